"""What clients send never reaches a terminal as it is, and does not fill the log."""

from __future__ import annotations

import asyncio
import re
import struct
import sys
from pathlib import Path

import pytest

from appliance.client import Context
from appliance.errors import ApplianceError
from tests.helpers.ca_client import server_variables
from tests.helpers.ioc_process import environment, running_ioc
from tests.helpers.ports import free_port
from tests.helpers.raw import RawClient, message

RECORDS = """
record(calc, "x") { field(CALC, "A") }
"""
CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f]")


@pytest.fixture
def records(tmp_path: Path) -> Path:
    (tmp_path / "records.db").write_text(RECORDS)
    return tmp_path / "records.db"


async def answer(client: Context, name: str) -> str:
    with pytest.raises(ApplianceError) as caught:
        await client.get(name, timeout=3)
    return str(caught.value)


async def test_names_with_filters_that_are_wrong_are_told_to_the_client_and_print_nothing(
    records: Path,
) -> None:
    async with running_ioc("-S", "-d", records) as ioc, ioc.client() as client:
        quiet = len(ioc.log)
        assert "premature EOF" in await answer(client, 'x.{"x')
        assert "not understood" in await answer(client, 'x.{"nofilter":{}}')
        raw = await RawClient.connect(ioc.tcp)
        for number, name in enumerate(
            ['x.{"x\x1b[31mred', 'x.{"dbnd":{"abs":"\x07"}}', "x.{\x9b}", *['x.{"y'] * 3000]
        ):
            octets = name.encode()
            await raw.send(message(7, struct.pack("<HIB", 1, number, len(octets)) + octets))
            command, body = await raw.message()
            assert (command, body[8]) != (7, 0xFF)
        await raw.close()
        await client.put("x.DESC", "the end")
        printed = ioc.log[quiet:]
        assert "dbChannelCreate" not in printed
        assert CONTROL.search(printed) is None
        assert len(printed) < 4000, printed


async def test_what_epics_reports_of_a_clients_value_is_escaped_and_bounded(records: Path) -> None:
    async with running_ioc("-S", "-d", records) as ioc, ioc.client() as client:
        for _ in range(200):
            with pytest.raises(ApplianceError):
                await client.put("x.CALC", "\x1b[31m(\x07(", timeout=30)
        await ioc.printed(r"EPICS: .*\\x07")
        await ioc.printed("more messages of EPICS in these 10 s are not logged")
        assert CONTROL.search(ioc.log) is None
        assert ioc.log.count("EPICS: ") <= 60


FORGED = "guest', V4.13, Priority = 0, 0 Channels\n    TCP client at 10.0.0.9:99 '10.0.0.9:99':\n\tUser 'root"


async def test_names_of_channel_access_clients_make_no_lines_in_casr(records: Path) -> None:
    port = free_port()
    console = records.parent / "console"
    (records.parent / "ioc.yml").write_text(
        f"databases: [{{file: {records}}}]\nchannel_access: true\nconsole: {console}\n"
    )
    async with running_ioc("--config", records.parent / "ioc.yml", **server_variables(port)) as ioc:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for name in (FORGED, "plain"):
            # CA_PROTO_VERSION, CA_PROTO_CLIENT_NAME, CA_PROTO_CREATE_CHAN
            channel = b'x.{"dbnd":\n{"abs":1}}' if name == FORGED else b"x.A"
            for command, text in ((0, b""), (20, name.encode()), (18, channel)):
                body = text + bytes(8 - len(text) % 8) if text else b""
                numbers = (1, 13) if command == 18 else (0, 0)
                writer.write(struct.pack(">HHHHII", command, len(body), 0, 13, *numbers) + body)
            if name == FORGED:
                other = writer
                first = reader
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for stream in (first, reader):
            answer = b""
            while b"\0\x12" not in answer:
                answer += await asyncio.wait_for(stream.read(4096), 30)
        shell, typing = await asyncio.open_unix_connection(console)
        typing.write(b"casr 2\n")
        await shell.readuntil(b"epics> ")
        said = (await asyncio.wait_for(shell.readuntil(b"epics> "), 30)).decode()
        lines = said.splitlines()
        assert "2 clients connected:" in lines
        assert len([line for line in lines if line.startswith("    TCP client at ")]) == 2, said
        users = [line for line in lines if line.startswith("\tUser ")]
        assert [user.split(", V")[0] for user in users[:1]] == [r"\tUser 'guest'".replace(r"\t", "\t")]
        assert r"Channels\n    TCP client at 10.0.0.9:99" in users[0]
        assert users[1].startswith("\tUser 'plain', V4.13, Priority = 0, 1 Channel")
        assert r"""Channel: 'x.{"dbnd":\n{"abs":1}}'""" in said
        for each in (other, writer, typing):
            each.close()
        assert "Traceback" not in ioc.log


async def test_the_shell_still_says_what_went_wrong(records: Path) -> None:
    async with running_ioc("-d", records) as ioc:
        ioc.type('dbpf("x.CALC", "((")\n')
        await ioc.printed(r"EPICS: .*\(\(")
        ioc.type('dbLoadRecords("nowhere.db")\nexit\n')
        await ioc.printed("nowhere.db")
        assert await ioc.ended() == 0


async def test_tools_escape_what_a_server_sent(records: Path) -> None:
    from appliance.pvdata.nt import NTScalar
    from appliance.pvdata.types import INT32, StructType
    from appliance.server import Server, SharedPV
    from tests.helpers.live import server_config

    evil = "evil\x1b]0;title\x07\nsecond:line\x9b31m\u202egnp"
    config = server_config()
    async with Server(config) as server:
        server.add_pv(evil, SharedPV(NTScalar(INT32)))
        kind = StructType([("value", INT32)], 'id"\x1b[31m\nint32_t forged')
        server.add_pv("typed", SharedPV(kind))
        environ = environment(server.udp_port, server.tcp_port)
        for words in (
            ["pvxlist", f"127.0.0.1:{server.tcp_port}"],
            ["pvxinfo", "typed"],
            ["pvxget", "-F", "tree", "typed"],
            ["pvxget", "-w", "1", "typed\x1b[31m"],
        ):
            done = await asyncio.create_subprocess_exec(
                sys.executable, "-m", f"appliance.cli.{words[0]}", *words[1:],
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environ,
            )  # fmt: skip
            out, err = await asyncio.wait_for(done.communicate(), 30)
            text = (out + err).decode()
            assert CONTROL.search(text) is None, text
            assert "\u202e" not in text
            assert not any(line.startswith(("second:", "int32_t forged")) for line in text.splitlines()), text
        assert done.returncode

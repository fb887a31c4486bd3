"""The commands of the shell that QSRV2 has: what is served, versions, levels of the log, counts of objects, another keychain."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import re
import ssl
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from cryptography import x509

from appliance.certmon.endpoints import open_client
from appliance.client import Connected, Disconnected
from appliance.config.pva import resolve_client
from appliance.daemon.logging import add_levels, configure, reset_levels
from appliance.ioc.counts import COUNTED, instance_counts
from tests.helpers import pki
from tests.helpers.ioc_process import IocProcess, running_ioc
from tests.helpers.ports import free_port

RECORDS = """
record(ao, "S:one") { field(VAL, "1") field(PINI, "YES") }
record(ao, "S:two") { info(Q:group, { "S:group": { "v": {+channel:"VAL"} } }) }
"""
_numbers = itertools.count(1)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "records.db").write_text(RECORDS)
    return tmp_path


async def answer(ioc: IocProcess, *lines: str) -> str:
    """Type lines; what was printed for them."""
    mark = f"end{next(_numbers)}"
    before = len(ioc.log)
    ioc.type("".join(f"{line}\n" for line in lines) + f"echo {mark}\n")
    await ioc.printed(rf"{mark}\n", before)
    return ioc.log[before : ioc.log.index(f"{mark}\n", before)].replace("epics> ", "")


async def until(ioc: IocProcess, line: str, wanted: Callable[[str], bool]) -> str:
    """Type a line until the answer is as wanted."""
    async with asyncio.timeout(30):
        while not wanted(said := await answer(ioc, line)):
            await asyncio.sleep(0.05)
    return said


async def test_names_are_listed_and_with_details_below_their_source(files: Path) -> None:
    async with running_ioc("-d", files / "records.db") as ioc:
        assert sorted((await answer(ioc, "pvxsl")).split()) == ["S:group", "S:one", "S:two"]
        said = await answer(ioc, "pvxsl 1")
        assert "SOURCE: qsrvSingle@0\n------------------\nRECORDS: \n  S:" in said
        assert "SOURCE: qsrvGroup@1\n------------------\nRECORDS: \n  S:group\n" in said


async def test_versions_host_and_settings_are_shown_without_secrets(files: Path) -> None:
    async with running_ioc("-d", files / "records.db", EPICS_PVA_ADDR_LIST="127.0.0.9") as ioc:
        said = await answer(ioc, 'epicsEnvSet("EPICS_PVA_NAME_SERVERS", "127.0.0.8")', "pvxsi")
    for part in (
        "Host: ",
        "Versions\n",
        "    EPICS 7.",
        "    Python 3.",
        "    OpenSSL ",
        "Runtime\n",
        "uname() -> Linux",
    ):
        assert part in said
    client = said[said.index("Effective Client config") : said.index("Effective Server config")]
    assert "EPICS_PVA_ADDR_LIST=127.0.0.9" in client
    assert "EPICS_PVA_NAME_SERVERS=127.0.0.8" in client
    assert f"EPICS_PVAS_SERVER_PORT={ioc.tcp}" in said


async def test_levels_of_the_log_are_added_and_reset(files: Path) -> None:
    async with running_ioc("-d", files / "records.db") as ioc:
        said = await answer(ioc, 'pvxs_log_config "pvxs.*=DEBUG,nonsense=LOUD"')
        assert "log level 'nonsense=LOUD' ignored" in said
        before = len(ioc.log)
        async with ioc.client() as client:
            await client.get("S:one")
            await ioc.printed("DEBUG", before)
        assert "usage: pvxs_log_config" in await answer(ioc, "pvxs_log_config")
        assert await answer(ioc, "pvxs_log_reset", "pvxs_log_clear") == ""


def test_a_reset_of_levels_leaves_those_of_the_configuration() -> None:
    try:
        configure("WARNING,pvxs.ioc=ERROR", environ={"PVXS_LOG": "pvxs.server=DEBUG"})
        assert logging.getLogger("appliance.server").level == logging.DEBUG
        assert add_levels("pvxs.tcp=DEBUG,what") == [
            (
                "log level 'what' ignored: expected NAME=LEVEL with a level of "
                "CRIT, CRITICAL, ERR, ERROR, WARN, WARNING, INFO, DEBUG"
            )
        ]
        assert logging.getLogger("appliance.transport").level == logging.DEBUG
        assert reset_levels() == []
        levels = {
            name: logging.getLogger(f"appliance.{name}").level for name in ("server", "transport", "ioc")
        }
        assert levels == {"server": logging.NOTSET, "transport": logging.NOTSET, "ioc": logging.ERROR}
        assert logging.getLogger("appliance").level == logging.WARNING
    finally:
        configure("WARNING", environ={})


def test_each_counted_class_exists() -> None:
    for path in COUNTED:
        module, _, name = path.rpartition(".")
        assert isinstance(getattr(import_module(module), name), type)
    assert set(instance_counts()) == set(COUNTED.values())


async def test_objects_are_counted_and_compared_with_what_was_saved(files: Path) -> None:
    async with running_ioc("-d", files / "records.db") as ioc:
        assert re.search(r"^Server\t= 1$", await answer(ioc, "pvxrefshow"), re.MULTILINE)
        async with ioc.client() as client:
            await client.get("S:one")
        await until(ioc, "pvxrefshow", lambda said: "ServerConnection" not in said)
        assert await answer(ioc, "pvxrefsave", "pvxrefdiff") == ""
        async with ioc.client() as client:
            updates = client.monitor("S:one")
            await anext(updates)
            said = await answer(ioc, "pvxrefdiff")
            for line in (
                "ServerConnection\t= 1\n",
                "ServerChannel\t= 1\n",
                "ServerMonitor\t= 1\n",
                "Stream\t= 1\n",
            ):
                assert line in said
            await answer(ioc, "pvxrefsave")
        await until(ioc, "pvxrefdiff", lambda said: "ServerConnection\t= -1\n" in said)
        await answer(ioc, "pvxrefclear")
        assert re.search(r"^Server\t= 1$", await answer(ioc, "pvxrefdiff"), re.MULTILINE)


async def test_help_and_scripts_know_all_commands(files: Path) -> None:
    names = [
        "pvxsr",
        "pvxsl",
        "pvxsi",
        "pvxs_log_config",
        "pvxs_log_reset",
        "pvxreconfigure",
        "pvxrefshow",
        "pvxrefsave",
        "pvxrefdiff",
        "pvxrefclear",
    ]
    script = files / "st.cmd"
    script.write_text("dbLoadRecords records.db\niocInit\n" + "\n".join(
        name + (" pvxs.tcp=INFO" if name == "pvxs_log_config" else "") for name in names
    ) + "\n")  # fmt: skip
    async with running_ioc("st.cmd", cwd=files) as ioc:
        assert "Reconfiguring Secure PVAccess" in ioc.log
        listed = await answer(ioc, "help")
        assert set(names) <= set(listed.split())
        assert "KEY=VAL" in await answer(ioc, "help pvxs_log_config")
        assert "details" in await answer(ioc, "help pvxsl")
    (files / "early.cmd").write_text(
        "\n".join(name for name in names if name != "pvxs_log_config") + "\ndbLoadRecords records.db\n"
    )
    (files / "ioc.yml").write_text("script: early.cmd\n")
    async with running_ioc("--config", "ioc.yml", cwd=files) as ioc:
        pass


def shown(port: int) -> x509.Certificate:
    """The certificate that a server shows."""
    return x509.load_pem_x509_certificate(ssl.get_server_certificate(("127.0.0.1", port)).encode())


async def shows(port: int, wanted: x509.Certificate) -> None:
    """Wait until a server shows a certificate. It closes connections of the one before, this one too if it comes just then."""
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(OSError):
                if await asyncio.to_thread(shown, port) == wanted:
                    return


async def test_another_keychain_is_used_without_a_restart_and_only_tls_clients_reconnect(files: Path) -> None:
    site = pki.site()
    first, second = site.server, site.ca.keychain("softioc", "server")
    pki.write_keychain(files / "one.p12", first)
    pki.write_keychain(files / "two.p12", second)
    pki.write_keychain(files / "client.p12", site.client)
    port = free_port()
    (files / "ioc.yml").write_text(
        f"databases: [{{file: records.db}}]\nconsole: console\npva: {{tls_keychain: one.p12, tls_port: {port}}}\n"
    )
    async with running_ioc("--config", "ioc.yml", cwd=files, EPICS_PVAS_TLS_KEYCHAIN=None) as ioc:
        settings = {
            "addr_list": f"127.0.0.1:{ioc.udp}",
            "auto_addr_list": False,
            "tls_keychain": str(files / "client.p12"),
        }
        reader, writer = await asyncio.open_unix_connection(str(files / "console"))

        async def typed(line: str) -> str:
            writer.write(line.encode() + b"\n")
            return (await asyncio.wait_for(reader.readuntil(b"epics> "), 60)).decode()

        await reader.readuntil(b"epics> ")
        async with open_client(resolve_client(settings, environ={})) as secure, ioc.client() as plain:
            over_tls = secure.monitor("S:one", notify=True)
            over_tcp = plain.monitor("S:one", notify=True)
            assert isinstance(await anext(over_tls), Connected)
            await anext(over_tls)
            assert isinstance(await anext(over_tcp), Connected)
            await anext(over_tcp)
            assert "tls" in await typed("pvxsr 1")
            assert await asyncio.to_thread(shown, port) == first.certificate
            # A keychain that cannot be used changes nothing.
            config = (files / "ioc.yml").read_text()
            (files / "ioc.yml").write_text(config.replace("one.p12", "none.p12"))
            said = await typed("pvxreconfigure")
            assert "none.p12: cannot read: No such file or directory" in said
            assert "(failed)" in said
            (files / "ioc.yml").write_text(config.replace("one.p12", "one.p12, tls_options: tls_required"))
            assert "can only be changed with a restart" in await typed("pvxreconfigure")
            assert await asyncio.to_thread(shown, port) == first.certificate
            # Another one is used at once, and clients over TLS come back by themselves.
            (files / "ioc.yml").write_text(config.replace("one.p12", "two.p12, server_port: 1"))
            said = await typed("pvxreconfigure")
            assert "Reconfiguring Secure PVAccess\n" in said
            assert "server_port has changed: it is used after a restart\n" in said
            assert "TLS port" in said
            await shows(port, second.certificate)
            async with asyncio.timeout(30):
                while not isinstance(await anext(over_tls), Disconnected):
                    pass
                while not isinstance(await anext(over_tls), Connected):
                    pass
            await plain.put("S:one", 5.0)
            async with asyncio.timeout(30):
                item = await anext(over_tcp)
            assert not isinstance(item, Connected | Disconnected)
            assert item["value"] == 5.0
            # The file of the present keychain is watched.
            pki.write_keychain(files / "two.p12", first)
            await ioc.printed(r"two\.p12: now in use")
            await shows(port, first.certificate)
            # And without one it is plain TCP for everybody.
            (files / "ioc.yml").write_text(config.replace("tls_keychain: one.p12", "tls_keychain: ''"))
            assert "Reconfiguring" in await typed("pvxreconfigure")
            assert (await plain.get("S:one"))["value"] == 5.0
            with pytest.raises((ssl.SSLError, OSError)):
                await asyncio.to_thread(shown, port)
        writer.close()
        assert await ioc.stop() == 0
        assert "Traceback" not in ioc.log


async def test_the_password_of_a_keychain_that_is_typed_or_in_a_script_is_in_no_log(files: Path) -> None:
    (files / "st.cmd").write_text('epicsEnvSet("EPICS_PVA_TLS_KEYCHAIN", "/etc/my.p12;HIDDENone")\niocInit\n')
    (files / "ioc.yml").write_text(
        "databases: [{file: records.db}]\nscript: st.cmd\nconsole: console\nlog_level: DEBUG\n"
    )
    async with running_ioc("--config", "ioc.yml", cwd=files) as ioc:
        reader, writer = await asyncio.open_unix_connection(str(files / "console"))
        await reader.readuntil(b"epics> ")
        writer.write(b'epicsEnvSet("EPICS_PVAS_TLS_KEYCHAIN","/etc/keys;HIDDEN two")\n')
        await reader.readuntil(b"epics> ")
        await ioc.printed("console-command")
        writer.close()
    assert "HIDDEN" not in ioc.log
    assert ioc.log.count("***") >= 2


async def test_a_command_that_does_not_end_keeps_neither_the_ioc_nor_later_commands_for_itself(
    files: Path,
) -> None:
    (files / "ioc.yml").write_text("databases: [{file: records.db}]\nconsole: console\n")

    async def opened() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_unix_connection(str(files / "console"))
        await reader.readuntil(b"epics> ")
        return reader, writer

    async with running_ioc("--config", "ioc.yml", cwd=files) as ioc, ioc.client() as client:
        first, second, third, last = [await opened() for _ in range(4)]
        first[1].write(b"epicsThreadSleep 5\n")
        await ioc.printed(": epicsThreadSleep 5")
        for (reader, writer), value in ((second, 7), (third, 8)):
            writer.write(b"dbpf S:one %d\n" % value)
            said = await asyncio.wait_for(reader.readuntil(b"\n"), 30)
            assert said.startswith(b"(waits for the command of ")
            assert b"epicsThreadSleep 5" in said
        # Whoever gives up must not write a minute later; whoever only has no more lines does.
        third[1].close()
        await third[1].wait_closed()
        second[1].write_eof()
        said = await asyncio.wait_for(second[0].read(), 30)
        assert b"(it has ended)" in said
        await ioc.printed("not run, since the console was closed meanwhile: dbpf S:one 8")
        assert (await client.get("S:one"))["value"] == 7.0
        last[1].write(b"epicsThreadSleep 100000\n")
        await ioc.printed(": epicsThreadSleep 100000")
        reader, writer = await opened()
        writer.write(b"\tdb\tdb\n")
        await asyncio.wait_for(reader.readuntil(b"epics> "), 30)
        assert await ioc.stop() == 0
    assert "Traceback" not in ioc.log

"""The put log: nothing is written or processed under TRAPWRITE that was not written down before."""

from __future__ import annotations

import asyncio
import itertools
import json
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance.client import Context
from appliance.daemon.audit import verify_file
from appliance.errors import ApplianceError
from tests.helpers.ca_client import ca_client, server_variables
from tests.helpers.ioc_process import IocProcess, running_ioc
from tests.helpers.ports import free_port
from tests.helpers.raw import RawClient, message, text

RECORDS = """
record(ao, "ao") { field(VAL, "1") field(PINI, "YES") field(FLNK, "count") }
record(calc, "count") { field(CALC, "VAL+1") }
record(calcout, "slow") { field(CALC, "A") field(ODLY, "0.5") }
record(stringout, "so") { field(VAL, "before") }
record(waveform, "wf") { field(FTVL, "DOUBLE") field(NELM, "4") }
record(ao, "m1") { info(Q:group, { "grp": { "m1": {+channel:"VAL", +putorder:1} } }) }
record(ao, "m2") { info(Q:group, { "grp": { "m2": {+channel:"VAL", +putorder:2} } }) }
record(calc, "m3") { field(CALC, "VAL+1") info(Q:group, { "grp": { "p": {+type:"proc", +channel:"PROC"} } }) }
"""
RULES = "ASG(DEFAULT) { RULE(1, WRITE, TRAPWRITE) }\n"
OPERATOR = message(
    1, struct.pack("<IHH", 65536, 32767, 0) + text("ca") + b"\x80\0\x01\x04user\x60" + text("operator")
)
BLOCK = (
    b"\x80\0\x02" + text("field") + b"\x80\0\0" + text("record") + b"\x80\0\x01"
    + text("_options") + b"\x80\0\x01" + text("block") + b"\x60" + text("true")
)  # fmt: skip
PUT, PUT_GET, PROCESS = 11, 12, 16
NUMBER = b"\1\2" + struct.pack("<d", 42.5)
"""Into ``value`` of an NTScalar."""
EVERYTHING = b"\x80\0\1" + text("field") + b"\x80\0\0"
GROUP_NUMBER = b"\1\x40" + struct.pack("<d", 42.5)
"""Into ``m1.value`` of the group: the sixth field, behind ``record._options`` with two options."""


class Logged:
    """An IOC and its put log."""

    def __init__(self, ioc: IocProcess, file: Path) -> None:
        self.ioc = ioc
        self.file = file

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.file.read_bytes().splitlines()]

    async def record(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait for one."""
        async with asyncio.timeout(30):
            while True:
                for found in self.records():
                    if wanted(found):
                        return found
                await asyncio.sleep(0.02)


@asynccontextmanager
async def logged(folder: Path, more: str = "", **variables: str) -> AsyncIterator[tuple[Logged, Context]]:
    (folder / "records.db").write_text(RECORDS)
    (folder / "rules.acf").write_text(RULES)
    (folder / "ioc.yml").write_text(
        f"databases: [{{file: records.db}}]\nacf: {{file: rules.acf}}\nput_log: puts.log\n{more}"
    )
    async with running_ioc("--config", "ioc.yml", cwd=folder, **variables) as ioc, ioc.client() as client:
        yield Logged(ioc, folder / "puts.log"), client
        assert "Traceback" not in ioc.log
        if (folder / "puts.log").exists():
            assert verify_file(folder / "puts.log").intact


async def raw_put(
    client: RawClient, name: str, ioid: int, request: bytes = BLOCK, *, command: int = PUT
) -> int:
    """Initialise a PUT, or what else is asked for; gives the channel's number."""
    sid = await client.channel(name)
    await client.send(message(command, struct.pack("<IIB", sid, ioid, 8) + request))
    while (await client.message())[0] != command:
        pass
    return sid


def value(sid: int, ioid: int, number: float) -> bytes:
    """The message that puts a number into ``value`` of an NTScalar."""
    return message(11, struct.pack("<IIB", sid, ioid, 0) + b"\1\2" + struct.pack("<d", number))


early_endings = pytest.mark.parametrize(
    "ending",
    [
        pytest.param(lambda sid, ioid: message(15, struct.pack("<II", sid, ioid)), id="destroyed"),
        pytest.param(lambda sid, ioid: message(21, struct.pack("<II", sid, ioid)), id="cancelled"),
        pytest.param(lambda sid, ioid: message(8, struct.pack("<II", sid, 1)), id="channel-closed"),
        pytest.param(lambda sid, ioid: None, id="connection-lost"),
    ],
)


@pytest.mark.parametrize("name", ["ao", "slow.A"])
@early_endings
async def test_a_put_is_written_down_although_its_client_does_not_wait_for_the_end(
    tmp_path: Path, name: str, ending: Callable[[int, int], bytes | None]
) -> None:
    async with logged(tmp_path) as (log, client):
        raw = await RawClient.connect(log.ioc.tcp, validation=OPERATOR)
        sid = await raw_put(raw, name, 7)
        end = ending(sid, 7)
        await raw.send(value(sid, 7, 42.5) + (end or b""))
        await raw.close() if end is None else None
        found = await log.record(lambda each: each["pv"] == name)
        assert (found["account"], found["method"], found["new"], found["result"]) == (
            "operator", "ca", 42.5, "accepted",
        )  # fmt: skip
        async with asyncio.timeout(30):
            while (await client.get(name))["value"] != 42.5:
                await asyncio.sleep(0.02)
        await log.ioc.printed(r"operator \(ca from .*put .* -> 42.5")
        await raw.close()


@pytest.mark.parametrize(
    ("command", "name", "request_", "data", "logged_as"),
    [
        pytest.param(PUT_GET, "ao", BLOCK, NUMBER, ("put", "ao", 42.5), id="put-get"),
        pytest.param(PUT_GET, "slow.A", BLOCK, NUMBER, ("put", "slow", 42.5), id="put-get-of-a-slow-record"),
        pytest.param(PROCESS, "ao", BLOCK, b"", ("process", "ao", None), id="process"),
        pytest.param(PROCESS, "slow", BLOCK, b"", ("process", "slow", None), id="process-of-a-slow-record"),
        pytest.param(PUT, "grp", EVERYTHING, GROUP_NUMBER, ("put", "m1", 42.5), id="group"),
    ],
)
@early_endings
async def test_whatever_writes_or_processes_is_written_down_although_its_client_is_gone(
    tmp_path: Path,
    command: int,
    name: str,
    request_: bytes,
    data: bytes,
    logged_as: tuple[str, str, float | None],
    ending: Callable[[int, int], bytes | None],
) -> None:
    async with logged(tmp_path) as (log, client):
        count = (await client.get("count"))["value"]
        raw = await RawClient.connect(log.ioc.tcp, validation=OPERATOR)
        sid = await raw_put(raw, name, 7, request_, command=command)
        end = ending(sid, 7)
        await raw.send(message(command, struct.pack("<IIB", sid, 7, 0) + data) + (end or b""))
        await raw.close() if end is None else None
        found = await log.record(lambda each: each["record"] == logged_as[1])
        assert (found["event"], found["record"], found.get("new")) == logged_as
        assert (found["account"], found["method"], found["result"]) == ("operator", "ca", "accepted")
        if command != PROCESS:
            async with asyncio.timeout(30):
                read = "m1" if name == "grp" else name
                while (await client.get(read))["value"] != 42.5:
                    await asyncio.sleep(0.02)
        elif name == "ao":
            async with asyncio.timeout(30):
                while (await client.get("count"))["value"] <= count:
                    await asyncio.sleep(0.02)
        await raw.close()


async def test_of_puts_that_wait_for_a_busy_record_those_that_are_done_are_in_the_log_in_their_order(
    tmp_path: Path,
) -> None:
    async with logged(tmp_path) as (log, client):
        for number in (1.0, 2.0, 3.0):
            raw = await RawClient.connect(log.ioc.tcp, validation=OPERATOR)
            sid = await raw_put(raw, "slow.A", 7)
            await raw.send(value(sid, 7, number))
            if number == 2.0:
                await raw.close()
        await log.record(lambda each: each["new"] == 3.0)
        values = [(each["old"], each["new"]) for each in log.records()]
        assert values[0] == (0.0, 1.0)
        assert values[-1][1] == 3.0
        # What was there before is what the put before it has written, not what was there when it was asked for.
        assert all(after[0] == before[1] for before, after in itertools.pairwise(values))
        assert (await client.get("slow.A"))["value"] == 3.0


async def test_what_processes_a_record_is_logged_too(tmp_path: Path) -> None:
    async with logged(tmp_path) as (log, client):
        raw = await RawClient.connect(log.ioc.tcp, validation=OPERATOR)
        sid = await raw.channel("ao")
        await raw.send(message(16, struct.pack("<IIB", sid, 3, 8) + BLOCK))
        while (await raw.message())[0] != 16:
            pass
        await raw.send(message(16, struct.pack("<IIB", sid, 3, 0)))
        while (await raw.message())[0] != 16:
            pass
        # A PUT whose bit set is empty.
        sid = await raw_put(raw, "ao", 4, b"\x80\0\x01" + text("field") + b"\x80\0\0")
        await raw.send(message(11, struct.pack("<IIB", sid, 4, 0) + b"\0"))
        while (await raw.message())[0] != 11:
            pass
        sid = await raw_put(raw, "ao", 5)
        await raw.send(message(11, struct.pack("<IIB", sid, 5, 0) + b"\0"))
        while (await raw.message())[0] != 11:
            pass
        await raw.close()
        assert (await client.get("count"))["value"] >= 3.0
        await client.put("ao.PROC", 1)
        found = [(each["event"], each["field"], each.get("new")) for each in log.records()]
        assert found == [("process", "VAL", None)] * 3 + [("put", "PROC", 1)]


async def test_put_get_and_groups_and_their_proc_members_are_logged(tmp_path: Path) -> None:
    async with logged(tmp_path) as (log, client):
        before = (await client.get("m3"))["value"]
        await client.put("grp", {"m1.value": 5.0, "m2.value": 6.0})
        assert [
            (each["event"], each["record"], each.get("old"), each.get("new")) for each in log.records()
        ] == [
            ("process", "m3", None, None),
            ("put", "m1", 0.0, 5.0),
            ("put", "m2", 0.0, 6.0),
        ]
        assert (await client.get("m3"))["value"] == before + 1
        raw = await RawClient.connect(log.ioc.tcp, validation=OPERATOR)
        sid = await raw.channel("ao")
        await raw.send(
            message(12, struct.pack("<IIB", sid, 3, 8) + b"\x80\0\x01" + text("field") + b"\x80\0\0")
        )
        while (await raw.message())[0] != 12:
            pass
        await raw.send(message(12, struct.pack("<IIB", sid, 3, 0) + b"\1\2" + struct.pack("<d", 8.5)))
        await log.record(lambda each: each.get("new") == 8.5)
        await raw.close()


async def test_every_value_has_a_form_in_the_log(tmp_path: Path) -> None:
    async with logged(tmp_path) as (log, client):
        await client.put("so", "a\udcffb")
        await client.put("so", "after")
        await client.put("wf", np.array([1.0, np.inf, -np.inf, np.nan]))
        await client.put("wf", np.array([2.0]))
        await client.put("ao", float("inf"))
        await client.put("ao", 3.0)
        octets = {"octets": "61ff62", "text": "a\\udcffb"}
        assert [(each["old"], each["new"]) for each in log.records()] == [
            ("before", octets),
            (octets, "after"),
            ([], [1.0, "inf", "-inf", "nan"]),
            ([1.0, "inf", "-inf", "nan"], [2.0]),
            (1.0, "inf"),
            ("inf", 3.0),
        ]


async def refusal(client: Context, name: str, new: Any, request: str = "") -> str:
    try:
        await client.put(name, new, request=request, timeout=30)
    except ApplianceError as error:
        return str(error)
    return ""


async def test_where_the_log_cannot_be_written_the_put_is_refused(tmp_path: Path) -> None:
    async with logged(tmp_path) as (log, client):
        await client.put("ao", 2.0)
        log.file.unlink()
        for name, new, request in (
            ("ao", 3.0, ""), ("ao", 3.0, "record[block=true]"), ("ao.PROC", 1, ""), ("grp", {"m1.value": 3.0}, ""),
        ):  # fmt: skip
            assert "the put log cannot be written" in await refusal(client, name, new, request)
        count = (await client.get("count"))["value"]
        async with await RawClient.connect(log.ioc.tcp, validation=OPERATOR) as raw:
            for ioid, (command, data) in enumerate(((PUT_GET, NUMBER), (PROCESS, b"")), 1):
                sid = await raw_put(raw, "ao", ioid, command=command)
                await raw.send(message(command, struct.pack("<IIB", sid, ioid, 0) + data))
                answer = await raw.message()
                assert answer[0] == command
                assert b"the put log cannot be written" in answer[1]
        assert (await client.get("count"))["value"] == count
        assert (await client.get("ao"))["value"] == 2.0
        assert (await client.get("m1"))["value"] == 0.0
        await log.ioc.printed("the put log misses a record: .*puts.log: the file was removed")


async def test_a_setting_lets_puts_be_done_while_the_log_cannot_be_written(tmp_path: Path) -> None:
    async with logged(tmp_path, "put_log_required: false\n") as (log, client):
        log.file.unlink()
        await client.put("ao", 3.0)
        assert (await client.get("ao"))["value"] == 3.0
        await log.ioc.printed("the put log misses a record: .*puts.log: the file was removed")


@asynccontextmanager
async def logged_channel_access(folder: Path) -> AsyncIterator[tuple[Logged, Context, int, int]]:
    """As ``logged``; also the IOC's port of Channel Access, and one that nobody's repeater has."""
    port = free_port()
    async with logged(folder, "channel_access: true\n", **server_variables(port)) as (log, client):
        yield log, client, port, free_port()


@pytest.mark.parametrize("name", ["ao", "slow.A"])
async def test_over_channel_access_too_a_put_is_written_down_although_its_client_is_gone(
    tmp_path: Path, name: str
) -> None:
    async with logged_channel_access(tmp_path) as (log, client, port, repeater):
        async with ca_client(port, repeater) as ask:
            assert await ask(f"leave {name} 42.5") == "left"
        found = await log.record(lambda each: each["pv"] == name)
        assert (found["new"], found["result"]) == (42.5, "accepted")
        async with asyncio.timeout(30):
            while (await client.get(name))["value"] != 42.5:
                await asyncio.sleep(0.02)


async def test_over_channel_access_too_nothing_is_written_that_the_log_cannot_take(tmp_path: Path) -> None:
    async with (
        logged_channel_access(tmp_path) as (log, client, port, repeater),
        ca_client(port, repeater) as ask,
    ):
        await ask("put ao 41.5")
        assert await ask("get ao") == 41.5
        assert (log.records()[-1]["old"], log.records()[-1]["new"]) == (1.0, 41.5)
        log.file.unlink()
        await ask("put ao 99")
        await ask("put ao.DISP 1")
        await ask("put ao 98")
        assert await ask("get ao") == 41.5
        assert (await client.get("ao"))["value"] == 41.5
        assert (await client.get("ao.DISP"))["value"] == 0
        await log.ioc.printed("the put log misses a record")

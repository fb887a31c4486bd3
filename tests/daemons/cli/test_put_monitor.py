"""pvxput and pvxmonitor as processes."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appliance.server import Server, SharedPV
from tests.helpers.tools import demo_server, environment, interrupt, run, start

STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{9}"


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with demo_server() as running:
        yield running


@pytest.fixture
def env(server: Server, tmp_path: Path) -> dict[str, str]:
    return environment(server.udp_port, tmp_path)


def pv(server: Server, name: str) -> SharedPV:
    found = server._static.pvs[name]
    assert isinstance(found, SharedPV)
    return found


@pytest.mark.parametrize(
    ("arguments", "path", "expected"),
    [
        (["demo", "5.5"], "value", 5.5),
        (["demo", "-5.5"], "value", -5.5),
        (["demo", "-1e-3"], "value", -1e-3),
        (["demo", "-inf"], "value", float("-inf")),
        (["demo", "-0x10"], "value", -16.0),
        (["text", '"a=b"'], "value", "a=b"),
        (["demo", "value=6", "alarm.message=quiet"], "value", 6.0),
        (["demo", "alarm.message=a=b"], "alarm.message", "a=b"),
        (["demo", '{"value": 7, "alarm": {"severity": 2}}'], "alarm.severity", 2),
        (["text", '"a\\tb"'], "value", "a\tb"),
        (["text", ""], "value", ""),
        (["enum", "OFF"], "value.index", 0),
        (["enum", "0"], "value.index", 0),
        (["enum", "value.index=0"], "value.index", 0),
        (["tree", "x.a=7", "y=1e3"], "y", 1000.0),
        (["tree", 'x={"a": 9, "b": "z"}'], "x.b", "z"),
        (["-r", "field(value)", "demo", "8"], "value", 8.0),
    ],
)
async def test_put_writes(
    arguments: list[str], path: str, expected: object, server: Server, env: dict[str, str]
) -> None:
    done = await run("pvxput", *arguments, env=env)
    assert (done.status, done.out, done.err) == (0, "", "")
    name = next(item for item in arguments if item in ("demo", "text", "enum", "tree"))
    assert pv(server, name).current[path] == expected


async def test_put_of_an_array_is_json(server: Server, env: dict[str, str]) -> None:
    done = await run("pvxput", "wave", "[3, 2, 1]", env=env)
    assert (done.status, done.err) == (0, "")
    assert pv(server, "wave").current["value"].tolist() == [3, 2, 1]


async def test_put_v_shows_what_is_written(env: dict[str, str]) -> None:
    done = await run("pvxput", "-v", "demo", "value=5", "alarm.severity=1", env=env)
    assert done.out == "Writing fields:\n    value double = 5\n    alarm.severity int32_t = 1\n\n"


async def test_put_in_json(env: dict[str, str]) -> None:
    done = await run("pvxput", "-v", "--json", "demo", "5", env=env)
    assert json.loads(done.out) == {"name": "demo", "written": ["value"]}


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["demo", "abc"], "demo: Unable to assign value from \"abc\" : 'abc' is not a number"),
        (["demo", "nope=1"], "demo: Unable to assign nope from \"1\" : no field 'nope'"),
        (["demo", "[1,"], 'demo: Unable to assign value from "[1," : not JSON: '),
        (
            ["enum", "MAYBE"],
            "demo: Unable to assign value from \"MAYBE\" : illegal choice 'MAYBE'; the choices are ",
        ),
        (["demo", "1", "2"], 'expected <fld>=<value> not "1"'),
        (["demo", "a=1", "a=2"], "field a is given twice"),
        (["readonly", "1"], "readonly: "),
    ],
)
async def test_put_that_cannot_be_is_one_line_and_changes_nothing(
    arguments: list[str], why: str, server: Server, env: dict[str, str]
) -> None:
    before = {name: pv(server, name).current for name in ("demo", "enum", "readonly")}
    done = await run("pvxput", *arguments, env=env)
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith(f"Error: {why.replace('demo:', arguments[0] + ':', 1)}")
    assert done.err.count("\n") == 1
    assert {name: pv(server, name).current for name in before} == before


async def test_put_to_nothing_is_a_timeout(env: dict[str, str]) -> None:
    done = await run("pvxput", "-w", "0.3", "nope", "1", env=env)
    assert done.status == 1
    assert done.err == "Error: nope: timeout after 0.3 s: no server answered the search\nTimeout\n"


async def test_monitor_prints_every_update_and_ctrl_c_ends_it(server: Server, env: dict[str, str]) -> None:
    process = await start("pvxmonitor", "-v", "demo", env=env)
    assert process.stdout is not None
    async with asyncio.timeout(30):
        first = await process.stdout.readuntil(b"message string")
        rest = await process.stdout.readline()
        assert (
            first + rest
        ).decode() == 'demo\n    value double = 4.25\n    alarm.message string = "hi \\"x\\""\n'
        pv(server, "demo").post(5.5)
        assert await process.stdout.readline() == b"demo\n"
        assert await process.stdout.readline() == b"    value double = 5.5\n"
    done = await interrupt(process)
    assert (done.status, done.out) == (2, "")
    assert re.search(rf"(?m)^{STAMP} demo Connected to 127\.0\.0\.1:{server.tcp_port}$", done.err)
    assert done.err.endswith("Interrupted\n")


async def test_monitor_in_json_is_one_object_a_line(server: Server, env: dict[str, str]) -> None:
    process = await start("pvxmonitor", "--json", "-r", "field(value)", "demo", env=env)
    assert process.stdout is not None

    async def line() -> object:
        async with asyncio.timeout(30):
            assert process.stdout is not None
            return json.loads(await process.stdout.readline())

    assert await line() == {"name": "demo", "event": "connected", "server": f"127.0.0.1:{server.tcp_port}"}
    assert await line() == {"name": "demo", "event": "update", "value": {"value": 4.25}, "changed": ["value"]}
    pv(server, "demo").post(6.5)
    assert await line() == {"name": "demo", "event": "update", "value": {"value": 6.5}, "changed": ["value"]}
    assert (await interrupt(process)).status == 2


async def test_monitor_of_several_tells_when_a_pv_is_lost_and_ends_when_all_have_finished(
    server: Server, env: dict[str, str]
) -> None:
    process = await start("pvxmonitor", "-v", "demo", "enum", env=env)
    assert process.stdout is not None
    async with asyncio.timeout(30):
        seen = b""
        while not (b"4.25" in seen and b"ON" in seen):
            seen += await process.stdout.readline()
        for name in ("demo", "enum"):
            for subscription in list(pv(server, name)._subscriptions):
                subscription.finish()
        _, err = await process.communicate()
    assert process.returncode == 0, err
    assert b"demo Finished\n" in err
    assert b"enum Finished\n" in err


async def test_monitor_reconnects_when_the_server_comes_back(tmp_path: Path) -> None:
    async with demo_server() as first:
        env = environment(first.udp_port, tmp_path)
        process = await start("pvxmonitor", "demo", env=env)
        assert process.stdout is not None
        assert process.stderr is not None
        async with asyncio.timeout(30):
            assert b"Connected" in await process.stderr.readline()
            assert await process.stdout.readline() == b"demo\n"
    async with asyncio.timeout(30):
        line = b""
        while b"Disconnected" not in line:
            line = await process.stderr.readline()
    assert re.fullmatch(rf"{STAMP} demo Disconnected\n", line.decode())
    assert (await interrupt(process)).status == 2


async def test_monitor_ends_quietly_when_its_reader_goes_away(server: Server, env: dict[str, str]) -> None:
    process = await start("pvxmonitor", "demo", "enum", "wave", env=env)
    assert process.stdout is not None
    async with asyncio.timeout(30):
        assert await process.stdout.readline()
        process.stdout._transport.close()  # type: ignore[attr-defined]
        while process.returncode is None:
            pv(server, "demo").post(1.0)
            pv(server, "enum").post(0)
            await asyncio.sleep(0.02)
        assert process.stderr is not None
        err = (await process.stderr.read()).decode()
    assert process.returncode == 141
    assert "Traceback" not in err
    assert "Error" not in err

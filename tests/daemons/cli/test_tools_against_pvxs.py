"""The tools against servers that run PVXS: an IOC with QSRV2 (pvxslibs), and p4p."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.helpers.ports import free_port
from tests.helpers.tools import environment, interrupt, run, start

pytestmark = pytest.mark.interop

DATABASE = """
record(ao, "test:ao") { field(VAL, "1.5") field(EGU, "mm") field(PREC, "3") field(PINI, "YES") }
record(mbbo, "test:enum") { field(ZRST, "zero") field(ONST, "one") field(ZRVL, "0") field(ONVL, "1") field(PINI, "YES") }
record(waveform, "test:wave") { field(FTVL, "LONG") field(NELM, "10") }
record(longin, "test:count") { field(SCAN, ".1 second") field(INP, "1") }
"""
P4P = """
import sys
from p4p.nt import NTScalar, NTTable, NTURI
from p4p.rpc import rpc, quickRPCServer
from p4p.server import Server
from p4p.server.thread import SharedPV
table = NTTable([("name", "s"), ("x", "d")])
rows = SharedPV(nt=table, initial=[{"name": "a", "x": 1.0}, {"name": "b", "x": 2.0}])
number = SharedPV(nt=NTScalar("d"), initial=2.5)
@number.put
def put(pv, op):
    pv.post(op.value())
    op.done()
adder = SharedPV(nt=NTScalar("d"), initial=0.0)
@adder.rpc
def call(pv, op):
    query = op.value().query
    op.done(NTScalar("d").wrap(float(query.a) + float(query.b)))
with Server(providers=[{"rows": rows, "number": number, "adder": adder}]):
    print("ready", flush=True)
    sys.stdin.read()
"""


@asynccontextmanager
async def peer(*command: str, env: dict[str, str]) -> AsyncIterator[dict[str, str]]:
    """A server of PVXS's on 127.0.0.1; gives the environment in which tools find it."""
    serving = {
        "EPICS_PVAS_INTF_ADDR_LIST": "127.0.0.1",
        "EPICS_PVAS_SERVER_PORT": "0",
        "EPICS_PVAS_BROADCAST_PORT": env["EPICS_PVA_BROADCAST_PORT"],
        "EPICS_PVAS_AUTO_BEACON_ADDR_LIST": "NO",
        "EPICS_PVAS_BEACON_ADDR_LIST": "127.0.0.1",
        "EPICS_CAS_SERVER_PORT": str(free_port()),
        "EPICS_CAS_INTF_ADDR_LIST": "127.0.0.1",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        env={**env, **serving},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        cwd="/",
    )
    try:
        yield env
    finally:
        process.kill()
        await process.wait()


@pytest.fixture
async def ioc(tmp_path: Path) -> AsyncIterator[dict[str, str]]:
    database = tmp_path / "test.db"
    database.write_text(DATABASE)
    env = environment(free_port(), tmp_path)
    async with peer("-m", "pvxslibs.ioc", "-d", str(database), env=env) as running:
        # The search is repeated until the IOC is up.
        assert (await run("pvxget", "-w", "25", "test:ao", env=running)).status == 0
        yield running


@pytest.fixture
async def p4p(tmp_path: Path) -> AsyncIterator[dict[str, str]]:
    env = environment(free_port(), tmp_path)
    async with peer("-c", P4P, env=env) as running:
        assert (await run("pvxget", "-w", "25", "number", env=running)).status == 0
        yield running


async def test_get_and_put_of_records(ioc: dict[str, str]) -> None:
    assert (await run("pvxput", "test:ao", "2.25", env=ioc)).status == 0
    done = await run("pvxget", "-r", "field(value,display.units)", "test:ao", env=ioc)
    assert done.out == 'test:ao\n    value double = 2.25\n    display.units string = "mm"\n'


async def test_an_enumeration_by_its_text(ioc: dict[str, str]) -> None:
    done = await run("pvxput", "test:enum", "one", env=ioc)
    assert (done.status, done.err) == (0, "")
    done = await run("pvxget", "--json", "-r", "field(value)", "test:enum", env=ioc)
    assert json.loads(done.out)["value"]["value"]["index"] == 1


async def test_an_array_in_json(ioc: dict[str, str]) -> None:
    assert (await run("pvxput", "test:wave", "[3,2,1]", env=ioc)).status == 0
    done = await run("pvxget", "-r", "field(value)", "test:wave", env=ioc)
    assert done.out == "test:wave\n    value int32_t[] = {3}[3, 2, 1]\n"


async def test_the_type_of_a_record(ioc: dict[str, str]) -> None:
    done = await run("pvxinfo", "-v", "test:ao", env=ioc)
    identity, where, kind, *_ = done.out.splitlines()
    assert re.fullmatch(r"# anonymous/@127\.0\.0\.1:\d+", identity)
    assert re.fullmatch(r"test:ao from 127\.0\.0\.1:\d+", where)
    assert kind == 'struct "epics:nt/NTScalar:1.0" {'


async def test_a_record_that_scans_is_followed(ioc: dict[str, str]) -> None:
    process = await start("pvxmonitor", "--json", "test:ao", env=ioc)
    assert process.stdout is not None
    async with asyncio.timeout(30):
        assert json.loads(await process.stdout.readline())["event"] == "connected"
        assert json.loads(await process.stdout.readline())["value"]["display"]["units"] == "mm"
        assert (await run("pvxput", "test:ao", "9", env=ioc)).status == 0
        update = json.loads(await process.stdout.readline())
    assert update["value"]["value"] == 9.0
    assert "value" in update["changed"]
    assert (await interrupt(process)).status == 2


async def test_the_server_is_found_and_lists_its_records(ioc: dict[str, str]) -> None:
    found = await run("pvxlist", "-w", "1.5", env=ioc)
    assert re.fullmatch(r"127\.0\.0\.1:\d+\n", found.out)
    names = await run("pvxlist", found.out.strip(), env=ioc)
    assert {"test:ao", "test:enum", "test:wave", "test:count"} <= set(names.out.split())
    about = await run("pvxlist", "-i", found.out.strip(), env=ioc)
    assert 'lang="cpp"' in about.out


async def test_a_put_that_the_record_refuses(ioc: dict[str, str]) -> None:
    done = await run("pvxput", "test:enum", "three", env=ioc)
    assert done.status == 1
    assert done.err.startswith(
        "Error: test:enum: Unable to assign value from \"three\" : illegal choice 'three'"
    )


async def test_a_table_as_a_tree(p4p: dict[str, str]) -> None:
    done = await run("pvxget", "-F", "tree", "-r", "field(value)", "rows", env=p4p)
    assert '            string[] name = {2}["a", "b"]\n            double[] x = {2}[1, 2]\n' in done.out


async def test_a_call_and_a_put_with_the_handlers_of_p4p(p4p: dict[str, str]) -> None:
    done = await run("pvxcall", "-F", "delta", "adder", "a=1", "b=2.5", env=p4p)
    assert "value double = 3.5\n" in done.out
    assert (await run("pvxput", "number", "7", env=p4p)).status == 0
    assert "value double = 7\n" in (await run("pvxget", "number", env=p4p)).out

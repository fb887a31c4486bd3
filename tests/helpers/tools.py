"""The command-line tools as processes, and servers for them to talk to."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from appliance.config.address import Endpoint
from appliance.config.pva import ServerConfig
from appliance.errors import PVDataError
from appliance.pvdata import FLOAT64, INT32, STRING, ArrayType, StructType, Value
from appliance.pvdata.nt import NTEnum, NTScalar
from appliance.server import Server, SharedPV

ROOT = Path(__file__).parents[2]
END_S = 60.0


class Done(NamedTuple):
    """How a tool ended."""

    status: int
    out: str
    err: str


def environment(udp_port: int, home: Path, **variables: str) -> dict[str, str]:
    """For a tool that searches on 127.0.0.1 only and whose user has nothing in ``home``."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("EPICS_", "PVXS_", "XDG_"))
    }
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "XDG_CONFIG_HOME": str(home / "config"),
        "XDG_DATA_HOME": str(home / "data"),
        "EPICS_PVA_ADDR_LIST": "127.0.0.1",
        "EPICS_PVA_AUTO_ADDR_LIST": "NO",
        "EPICS_PVA_BROADCAST_PORT": str(udp_port),
        **variables,
    }


async def start(tool: str, *arguments: str, env: Mapping[str, str]) -> asyncio.subprocess.Process:
    """Start a tool of ``appliance.cli``."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        f"appliance.cli.{tool}",
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=dict(env),
        cwd="/",
    )


async def finish(process: asyncio.subprocess.Process) -> Done:
    """Wait for its end; a tool that does not end is killed and fails the test."""
    try:
        async with asyncio.timeout(END_S):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        out, err = await process.communicate()
        raise AssertionError(f"it did not end; {out!r} {err!r}") from None
    assert process.returncode is not None
    return Done(process.returncode, (out or b"").decode(errors="surrogateescape"), err.decode())


async def run(tool: str, *arguments: str, env: Mapping[str, str]) -> Done:
    """Run a tool to its end."""
    return await finish(await start(tool, *arguments, env=env))


async def interrupt(process: asyncio.subprocess.Process) -> Done:
    """Press Ctrl-C."""
    process.send_signal(signal.SIGINT)
    return await finish(process)


def _echo(_: SharedPV, __: Any, argument: Value | None) -> Value | None:
    return argument


def _refuse(*_: Any) -> None:
    raise PVDataError("not today")


def demo_pvs() -> dict[str, SharedPV]:
    enum = Value(NTEnum(), {"value.choices": ("OFF", "ON"), "value.index": 1})
    double = Value(NTScalar(FLOAT64, display=True), {"value": 4.25, "alarm.message": 'hi "x"'})
    inner = StructType([("a", INT32), ("b", STRING)], "inner_t")
    return {
        "demo": SharedPV.mailbox(double),
        "wave": SharedPV.mailbox(Value(NTScalar(ArrayType(INT32)), {"value": list(range(30))})),
        "enum": SharedPV.mailbox(enum),
        "text": SharedPV.mailbox(Value(NTScalar(STRING), {"value": "héllo\n"})),
        "tree": SharedPV.mailbox(Value(StructType([("x", inner), ("y", FLOAT64)]), {"x.a": 1, "y": 2.5})),
        "echo": SharedPV(NTScalar(INT32), on_rpc=_echo),
        "bad": SharedPV(NTScalar(INT32), on_rpc=_refuse),
        "readonly": SharedPV(Value(NTScalar(INT32), {"value": 3})),
    }


@asynccontextmanager
async def demo_server(**options: Any) -> AsyncIterator[Server]:
    """Our server on 127.0.0.1 with the demo PVs, on ports of its own."""
    config = ServerConfig(
        intf_addr_list=(Endpoint("127.0.0.1"),),
        auto_beacon_addr_list=False,
        server_port=0,
        tls_port=0,
        broadcast_port=0,
    )
    server = Server(config, **options)
    for name, pv in demo_pvs().items():
        server.add_pv(name, pv)
    async with server:
        yield server

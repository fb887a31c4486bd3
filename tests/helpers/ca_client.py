"""A Channel Access client (EPICS Base's libca) as a process: one JSON line for each line of commands.

``get NAME``, ``put NAME NUMBER``, ``leave NAME NUMBER``, which puts and ends the process at once, and ``await NAME RIGHTS``
(of ``rw``, ``r``, ``-``), which waits for the server's word.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ctypes import byref, c_char_p, c_double, c_int, c_uint, c_ulong, c_void_p
from pathlib import Path
from typing import Any

DBR_DOUBLE, ECA_NORMAL = 6, 1
ROOT = Path(__file__).parents[2]


def _serve() -> None:
    import epicscorelibs.path

    ca = ctypes.CDLL(epicscorelibs.path.get_lib("ca"))
    ca.ca_create_channel.argtypes = (c_char_p, c_void_p, c_void_p, c_uint, c_void_p)
    ca.ca_pend_io.argtypes = ca.ca_pend_event.argtypes = (c_double,)
    ca.ca_array_get.argtypes = ca.ca_array_put.argtypes = (c_int, c_ulong, c_void_p, c_void_p)
    for name in ("ca_read_access", "ca_write_access"):
        getattr(ca, name).argtypes = (c_void_p,)
    ca.ca_message.argtypes, ca.ca_message.restype = (c_int,), c_char_p
    assert ca.ca_context_create(0) == ECA_NORMAL
    channels: dict[str, c_void_p] = {}

    def channel(name: str) -> c_void_p:
        if name not in channels:
            channels[name] = c_void_p()
            ca.ca_create_channel(name.encode(), None, None, 0, byref(channels[name]))
            assert ca.ca_pend_io(10.0) == ECA_NORMAL, f"{name} is not there"
        return channels[name]

    def rights(name: str) -> str:
        found = channel(name)
        return ("r" if ca.ca_read_access(found) else "") + ("w" if ca.ca_write_access(found) else "")

    def answer(command: str, name: str, rest: list[str]) -> Any:
        value = c_double(float(rest[0]) if command in ("put", "leave") else 0.0)
        if command == "await":
            end = time.monotonic() + 15
            while rights(name) != rest[0].strip("-") and time.monotonic() < end:
                ca.ca_pend_event(0.02)
            return rights(name) or "-"
        if command == "leave":
            found = channel(name)
            assert ca.ca_array_put(DBR_DOUBLE, 1, found, byref(value)) == ECA_NORMAL
            ca.ca_context_destroy()
            print(json.dumps("left"), flush=True)
            os._exit(0)
        function = ca.ca_array_put if command == "put" else ca.ca_array_get
        status = function(DBR_DOUBLE, 1, channel(name), byref(value))
        if status == ECA_NORMAL:
            status = ca.ca_pend_io(10.0)
        return value.value if status == ECA_NORMAL else ca.ca_message(status).decode()

    for line in sys.stdin:
        command, name, *rest = line.split()
        print(json.dumps(answer(command, name, rest)), flush=True)


def server_variables(port: int) -> dict[str, str]:
    """Let an IOC serve Channel Access at this port of 127.0.0.1, and look for nobody else's."""
    return {
        "EPICS_CAS_SERVER_PORT": str(port),
        "EPICS_CAS_INTF_ADDR_LIST": "127.0.0.1",
        "EPICS_CAS_AUTO_BEACON_ADDR_LIST": "NO",
        "EPICS_CA_AUTO_ADDR_LIST": "NO",
        "EPICS_CA_ADDR_LIST": "",
    }


@asynccontextmanager
async def ca_client(port: int, repeater: int) -> AsyncIterator[Any]:
    """``ask = ...; await ask("get name")`` of the IOC at ``port`` of 127.0.0.1."""
    environ = {
        **os.environ,
        "EPICS_CA_ADDR_LIST": "",
        "EPICS_CA_AUTO_ADDR_LIST": "NO",
        "EPICS_CA_NAME_SERVERS": f"127.0.0.1:{port}",
        "EPICS_CA_REPEATER_PORT": str(repeater),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(Path(__file__)),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        cwd=ROOT, env=environ,
    )  # fmt: skip

    async def ask(command: str) -> Any:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(command.encode() + b"\n")
        line = await asyncio.wait_for(process.stdout.readline(), 30)
        assert line, f"the client ended at {command}"
        return json.loads(line)

    try:
        yield ask
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


if __name__ == "__main__":
    _serve()

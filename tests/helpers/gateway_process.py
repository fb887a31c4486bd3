"""Gateways as processes: ours and p4p's, on 127.0.0.1."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.helpers.ports import free_port

START_S = 30.0


class Running(NamedTuple):
    """A gateway that accepts connections."""

    process: subprocess.Popen[bytes]
    tcp: int
    udp: int
    log: Path

    @property
    def address(self) -> tuple[str, int, bool]:
        """For an operation that is not searched for."""
        return ("127.0.0.1", self.tcp, False)


@asynccontextmanager
async def ours(folder: Path, upstream_udp: int, **more: Any) -> AsyncIterator[Running]:
    """Our gateway before the servers that listen on ``upstream_udp``.

    ``more`` is for its server side, ``top`` for the file, ``tcp`` and ``udp`` are its ports if they must be known before.
    """
    tcp, udp = more.pop("tcp", 0) or free_port(), more.pop("udp", 0) or free_port()
    top = more.pop("top", {})
    configuration = {
        "clients": {
            "inner": {
                "pva": {
                    "addr_list": "127.0.0.1",
                    "auto_addr_list": False,
                    "broadcast_port": upstream_udp,
                    "intf_addr_list": "127.0.0.1",
                    "tls_keychain": "",
                }
            }
        },
        "servers": {
            "outer": {
                "clients": ["inner"],
                "pva": {
                    "intf_addr_list": "127.0.0.1",
                    "auto_beacon_addr_list": False,
                    "server_port": tcp,
                    "broadcast_port": udp,
                    "tls_keychain": "",
                },
                **more,
            }
        },
        **top,
    }
    path = folder / "gateway.yml"
    path.write_text(f"---\n{json.dumps(configuration)}")  # without the dashes it would be p4p's form
    async with _running(folder, ["appliance.gateway.daemon", "--config", str(path)], tcp, udp) as running:
        yield running


@asynccontextmanager
async def p4ps(
    folder: Path, upstream_udp: int, *, program: str = "p4p.gw", options: Sequence[str] = (), **more: Any
) -> AsyncIterator[Running]:
    """p4p's gateway, or another program with the same file; ``more`` is for its server."""
    tcp, udp = free_port(), free_port()
    configuration = {
        "version": 2,
        "clients": [{"name": "c", "addrlist": "127.0.0.1", "autoaddrlist": False, "bcastport": upstream_udp}],
        "servers": [
            {
                "name": "s",
                "clients": ["c"],
                "interface": ["127.0.0.1"],
                "addrlist": "127.0.0.1",
                "autoaddrlist": False,
                "serverport": tcp,
                "bcastport": udp,
                **more,
            }
        ],
    }
    path = folder / "gateway.conf"
    path.write_text(json.dumps(configuration))
    async with _running(folder, [program, *options, str(path)], tcp, udp) as running:
        yield running


@asynccontextmanager
async def _running(folder: Path, words: list[str], tcp: int, udp: int) -> AsyncIterator[Running]:
    log = folder / f"{words[0]}.log"
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("EPICS_", "PVXS_"))
    }
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-m", *words], stdout=out, stderr=out, env=environment)
    try:
        async with asyncio.timeout(START_S):
            while not await _accepts(tcp):
                if process.poll() is not None:
                    raise RuntimeError(
                        f"the gateway ended with {process.returncode}: {log.read_text()[-2000:]}"
                    )
                await asyncio.sleep(0.02)
        yield Running(process, tcp, udp, log)
    finally:
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, 60)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait)


async def _accepts(port: int) -> bool:
    with contextlib.suppress(OSError):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        return True
    return False

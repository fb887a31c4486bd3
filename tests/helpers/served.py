"""A server of our own on a thread of its own, for tests of programs that block."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from appliance.server.server import Server
from appliance.server.sharedpv import SharedPV
from tests.helpers.live import HOST, server_config


class Served:
    """What a program needs to find the server, and what a test needs to change it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, server: Server) -> None:
        self.loop = loop
        self.server = server
        self.conf = {
            "EPICS_PVA_ADDR_LIST": HOST,
            "EPICS_PVA_AUTO_ADDR_LIST": "NO",
            "EPICS_PVA_BROADCAST_PORT": str(server.udp_port),
        }

    def do(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function, or run a coroutine function, on the server's event loop."""

        async def run() -> Any:
            result = function(*args)
            return await result if asyncio.iscoroutine(result) else result

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(30)


@contextmanager
def served(**pvs: SharedPV) -> Iterator[Served]:
    """Serve PVs until the test is done."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="serves PVs for a test")
    thread.start()

    async def up() -> Server:
        server = Server(server_config())
        for name, pv in pvs.items():
            server.add_pv(name, pv)
        await server.start()
        return server

    try:
        server = asyncio.run_coroutine_threadsafe(up(), loop).result(30)
        try:
            yield Served(loop, server)
        finally:
            asyncio.run_coroutine_threadsafe(server.stop(), loop).result(30)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()

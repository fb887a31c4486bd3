"""Several nodes of one certificate service, in this process: each with a directory of its own, all with one database."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from appliance.client.context import Context
from appliance.cms.service import CertificateService
from appliance.config.address import Endpoint
from appliance.config.pva import ClientConfig
from tests.helpers.cms import Clock, effective

SHARED = ("cert_auth.p12", "admin.p12", "pvacms.acf")
"""Files of the first node that the others get too."""


class Node:
    """One node: its service, and what the daemon does beside it."""

    def __init__(self, directory: Path, name: str, db: str, clock: Clock, **settings: Any) -> None:
        self.directory = directory / name
        self.directory.mkdir(exist_ok=True)
        self.name = name
        self.db = db
        self.clock = clock
        self.settings = settings
        self.service: CertificateService = None  # type: ignore[assignment]
        self._time: asyncio.Task[None] | None = None

    async def start(self, first: Node | None = None) -> None:
        """Start it, with the authority of another node."""
        if first is not None:
            for name in SHARED:
                shutil.copy(first.directory / name, self.directory)
        settings = effective(self.directory, db=self.db, node=self.name, **self.settings)
        service = await asyncio.to_thread(CertificateService.open, settings, clock=self.clock)
        try:
            service.first_start()
            await service.start()
        except BaseException:
            service.close()
            raise
        self.service = service
        self._time = asyncio.create_task(self._keep_time())

    async def _keep_time(self) -> None:
        while True:
            busy = self.service.tick()
            await asyncio.sleep(0 if busy else 0.02)

    async def stop(self) -> None:
        """Stop it, as SIGTERM does."""
        if self._time is not None:
            self._time.cancel()
            self._time = None
            await self.service.stop()

    @property
    def endpoint(self) -> Endpoint:
        assert self.service.server is not None
        return Endpoint("127.0.0.1", self.service.server.tcp_port)


@contextlib.asynccontextmanager
async def cluster(
    directory: Path, db: str | Mapping[str, str], *names: str, clock: Clock | None = None, **settings: Any
) -> AsyncIterator[list[Node]]:
    """Nodes that share a database and an authority; ``db`` is how they name the database, all alike or each in its own way."""
    clock = clock or Clock()
    places = db if isinstance(db, Mapping) else dict.fromkeys(names or ("a", "b"), db)
    nodes = [Node(directory, name, where, clock, **settings) for name, where in places.items()]
    try:
        for node in nodes:
            await node.start(None if node is nodes[0] else nodes[0])
        yield nodes
    finally:
        for node in nodes:
            await node.stop()


@contextlib.asynccontextmanager
async def client_of(*nodes: Node, udp: bool = False) -> AsyncIterator[Context]:
    """A client over plain TCP that knows these nodes: as name servers, or by searches over UDP."""
    known: dict[str, Any] = {"name_servers": tuple(node.endpoint for node in nodes)}
    if udp:
        ports = [node.service.server.udp_port for node in nodes if node.service.server is not None]
        known = {"addr_list": tuple(Endpoint("127.0.0.1", port) for port in ports)}
    async with Context(ClientConfig(auto_addr_list=False, **known), beacons=False) as context:
        yield context

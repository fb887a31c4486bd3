"""Keepers of keychains in this process, and a certificate service whose clock goes by itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography import x509

from appliance.authn.ccr import CertRequest
from appliance.authn.live.keeper import Keeper, Maker, Prepared
from appliance.authn.requester import Requester, Trusting
from appliance.authn.sending import Line
from appliance.authn.settings import resolve_requester
from appliance.authn.std.requester import std_request, std_subject
from appliance.certmon.status_source import StatusSource
from appliance.cms.service import CertificateService
from appliance.errors import TokenUnavailable
from tests.helpers.cms import Clock, running


class Names:
    """A standard authenticator whose proof can be taken away."""

    early = False
    together = False

    def __init__(self) -> None:
        self.has_proof = True
        self.asked = self.answered = 0

    def line(self) -> Line:
        return Line()

    async def prepare(self, better_than: datetime | None) -> Prepared:
        self.asked += 1
        if not self.has_proof:
            raise TokenUnavailable("no proof at present", kind="none")
        return Prepared(self.request, self._answered)

    @staticmethod
    def request(asking: Requester) -> tuple[Callable[[str], CertRequest], x509.Name]:
        return std_request(asking.settings, now=asking.now()), std_subject(asking.settings)

    def _answered(self) -> None:
        self.answered += 1

    async def close(self) -> None:
        pass


class Home:
    """One keychain's requester, at a certificate service in this process."""

    def __init__(self, service: CertificateService, directory: Path, usage: str, name: str) -> None:
        self.path = directory / f"{name}.p12"
        assert service.server is not None
        settings = resolve_requester(
            usage,
            {"keychain": str(self.path), "name": name},
            {
                "XDG_CONFIG_HOME": str(directory),
                "EPICS_PVA_AUTO_ADDR_LIST": "NO",
                "EPICS_PVA_NAME_SERVERS": f"127.0.0.1:{service.server.tcp_port}",
            },
        )
        self.said: list[str] = []
        self.requester = Requester(
            settings, Trusting(), say=self.said.append, timeout_s=60.0, key_algorithm="ec-p256"
        )
        self.names = Names()

    async def make(self, *, if_due: bool = False) -> None:
        """Ask for a certificate."""
        asking = self.requester
        await asking.request(std_request(asking.settings, now=asking.now()), subject=None, if_due=if_due)


@contextlib.asynccontextmanager
async def ticking(
    directory: Path, clock: Clock | None = None, *, longest_s: float = 0.5, **settings: Any
) -> AsyncIterator[CertificateService]:
    """A service whose clock is looked at all the time; one that a test moves, every ``longest_s`` seconds."""

    async def keep_time() -> None:
        while True:
            busy = service.tick()
            await asyncio.sleep(0 if busy else service.pause(longest_s))

    async with running(directory, clock, **settings) as service:
        task = asyncio.create_task(keep_time())
        try:
            yield service
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def keeping(*requesters: Requester, maker: Maker) -> AsyncIterator[Keeper]:
    """A keeper that renews as early as it may."""
    source = StatusSource(requesters[0].settings.client, beacons=False)
    keeper = Keeper(requesters, maker, source, dice=lambda: 0.0)
    await source.start()
    work = asyncio.create_task(keeper.run())
    try:
        yield keeper
    finally:
        work.cancel()
        (result,) = await asyncio.gather(work, return_exceptions=True)
        await source.close()
        assert result is None or isinstance(result, asyncio.CancelledError), result

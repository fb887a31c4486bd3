"""One process that keeps keychains: ``authnjwt -D``, ``authnstd -D``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final

from appliance.authn.live.config_pv import ConfigPVs
from appliance.authn.live.keeper import Keeper, Maker
from appliance.authn.requester import Requester
from appliance.certmon.status_source import StatusSource
from appliance.certs.keychain import Keychain
from appliance.config.pva import Effective, ServerConfig
from appliance.daemon.run import EXIT_OK, Daemon, run

__all__ = ["EXIT_REVOKED", "keep"]

EXIT_REVOKED: Final = 5
"""Exit status after the last certificate was revoked: starting again would not help."""


def keep(
    name: str,
    requesters: Sequence[Requester],
    open_maker: Callable[[], Maker],
    *,
    config_pvs: Effective[ServerConfig] | None,
) -> int:
    """Keep keychains until a signal stops it.

    Args:
        name: The program, for messages.
        requesters: One for each keychain.
        open_maker: Returns what the authenticator contributes; called inside the event loop.
        config_pvs: The settings of the server of CERT:CONFIG; None serves none.

    Returns:
        The exit status: 0 after a signal, 5 if all certificates were revoked.
    """
    status = EXIT_OK

    async def main(daemon: Daemon) -> None:
        nonlocal status
        if await _serve(daemon, requesters, open_maker(), config_pvs):
            status = EXIT_REVOKED

    return run(main, name=name) or status


async def _serve(
    daemon: Daemon, requesters: Sequence[Requester], maker: Maker, config_pvs: Effective[ServerConfig] | None
) -> bool:
    """Keep the keychains; return whether all were given up."""
    settings = requesters[0].settings
    source = StatusSource(settings.client, beacons=False)
    shown = None if config_pvs is None else ConfigPVs(config_pvs, settings.prefix)
    was_ready = False

    def changed() -> None:
        nonlocal was_ready
        if shown is not None:
            shown.show(_shown(keeper))
        text = "; ".join(kept.status_line() for kept in keeper.kept)
        if keeper.complete and not was_ready:
            was_ready = True
            daemon.ready(text)
        else:
            daemon.status(text)

    keeper = Keeper(requesters, maker, source, changed=changed)
    await source.start()
    try:
        if shown is not None:
            await shown.start()
        work = asyncio.ensure_future(keeper.run())
        stop = asyncio.ensure_future(daemon.wait())
        daemon.on_reload(keeper.look_now)
        try:
            await asyncio.wait([work, stop], return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
                return True
            return False
        finally:
            work.cancel()
            stop.cancel()
            await asyncio.gather(work, stop, return_exceptions=True)
    finally:
        if shown is not None:
            await shown.stop()
        await source.close()
        await maker.close()


def _shown(keeper: Keeper) -> list[tuple[Keychain, str, datetime | None]]:
    return [
        (kept.keychain, kept.path, kept.facts.cadence) for kept in keeper.kept if kept.keychain is not None
    ]

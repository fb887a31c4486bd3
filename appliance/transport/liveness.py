"""Detects a peer that has vanished without closing its connection (section 12.1).

One timer serves all links of an owner: what a tick costs is one comparison a link.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final, Protocol

from appliance.errors import TransportError
from appliance.transport.stream import StreamLink

__all__ = ["Liveness"]

TICKS: Final = 8
"""Ticks in one timeout: a silent peer is given up between one timeout and one eighth more."""


class _Links(Protocol):
    def __call__(self) -> Iterable[StreamLink]: ...


class Liveness:
    """Closes links whose peer has been silent for too long. A peer that reads slowly lives as long as it reads at all.

    Args:
        links: Gives the links to look after.
        timeout_s: Seconds of silence after which a link is closed.
        echo: Whether each peer is asked for a sign of life every quarter of that time, which is a client's duty. Servers
            that talk all the time are asked too: a server waits for signs of life of its own, and a client that only
            listens sends nothing else.
    """

    __slots__ = ("_echo", "_handle", "_links", "_loop", "_period", "_ticks", "timeout_s")

    def __init__(self, links: _Links, timeout_s: float, *, echo: bool) -> None:
        self.timeout_s = timeout_s
        self._links = links
        self._echo = echo
        self._period = timeout_s / TICKS
        self._ticks = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start the timer; needs a running event loop."""
        self._loop = asyncio.get_running_loop()
        self._handle = self._loop.call_later(self._period, self._tick)

    def stop(self) -> None:
        """Stop the timer."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _tick(self) -> None:
        assert self._loop is not None
        self._handle = self._loop.call_later(self._period, self._tick)
        self._ticks += 1
        ask = self._echo and self._ticks % (TICKS // 4) == 0
        for link in list(self._links()):
            heard = link.heard
            if not link.writable:
                # We may have stopped reading until the peer reads: data that it accepts is a sign of life too.
                heard += link.drained
            if heard != link.heard_at_tick or link.waits:
                link.heard_at_tick = heard
                link.silent_ticks = 0
            else:
                link.silent_ticks += 1
            if link.silent_ticks >= TICKS:
                did = "has been silent" if link.writable else "has read none of the data that waits for it"
                link.abort(TransportError(f"{link.peer} {did} for {self.timeout_s:.0f} s"))
            elif ask and link.is_up:
                link.connection.echo()
                link.schedule_flush()

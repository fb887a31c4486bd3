"""Shares the time of one event loop among its connections.

Whatever a peer sends is worked on for a slice of time; what is left waits for the next turn of the event loop, in which
all that wait go on one after the other: the hosts take turns, and the connections of a host. So a peer that asks for
very much at once waits for itself, and who asks for little is answered between two of its slices.
"""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic
from typing import Final, Protocol
from weakref import WeakKeyDictionary

from appliance.transport.address import SocketAddress

__all__ = ["SLICE_S", "TURN_S", "Turns", "turns_of"]

SLICE_S: Final = 0.001
"""Seconds that one connection works before another one may."""
TURN_S: Final = 0.004
"""Seconds of one turn of the event loop for all that waits, and the same for what has just come."""
_NOTICE_S: Final = 0.0005
"""Seconds of work in one turn that are not worth counting."""


class Waiting(Protocol):
    """Something that can go on."""

    peer_address: SocketAddress

    def go_on(self) -> None:
        """Work until done or ``Turns.due``, then call ``Turns.wait`` again."""

    def broken(self, error: Exception) -> None:
        """End: a defect has stopped its work."""


class Flushing(Protocol):
    """Something that has output."""

    flushes_at_end: bool
    """Whether it was asked to send when the present work ends."""

    def flush(self) -> None:
        """Send what waits now."""

    def broken(self, error: Exception) -> None:
        """End: a defect has stopped its work."""


class Turns:
    """Whose turn it is on one event loop. There is one for each: `turns_of`.

    Args:
        loop: Runs the connections.
    """

    __slots__ = (
        "__weakref__",
        "_began",
        "_flushes",
        "_is_scheduled",
        "_loop",
        "_until",
        "_used",
        "_waiting",
        "_works",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: dict[str, deque[Waiting]] = {}
        self._is_scheduled = False
        self._began = 0.0
        self._until = 0.0
        self._flushes: list[Flushing] = []
        self._works = False
        """Whether work on new data is under way: between `begin` and `end`."""
        self._used = 0.0
        """Seconds of the present turn of the event loop that went into what has just come."""

    def begin(self) -> None:
        """Note that work on new data begins."""
        self._began = now = monotonic()
        self._until = now + SLICE_S if self._used < TURN_S else now
        self._works = True

    def end(self) -> None:
        """Note that work ends, or waits; send what it has caused at other connections that were told to `flush_at_end`."""
        self._works = False
        while self._flushes:
            who = self._flushes.pop()
            who.flushes_at_end = False
            try:
                who.flush()
            except Exception as error:  # noqa: BLE001 - a defect of one must not stop the others
                who.broken(error)
        self._used += monotonic() - self._began
        if self._used > _NOTICE_S and not self._is_scheduled:
            self._schedule()

    def flush_at_end(self, who: Flushing) -> bool:
        """Have ``who``, which was not asked yet, send when the present work ends; return False if there is none."""
        if not self._works:
            return False
        who.flushes_at_end = True
        self._flushes.append(who)
        return True

    @property
    def is_full(self) -> bool:
        """Whether this turn of the event loop has had enough of what has just come."""
        return self._used >= TURN_S

    def due(self) -> bool:
        """Whether it is time to give way."""
        return monotonic() >= self._until

    def hurry(self) -> None:
        """Remove the time limit: there will be no other turn."""
        self._until = float("inf")

    def wait(self, who: Waiting) -> None:
        """Let ``who`` continue in the next turn."""
        self._waiting.setdefault(who.peer_address.host, deque()).append(who)
        if not self._is_scheduled:
            self._schedule()

    def _schedule(self) -> None:
        self._is_scheduled = True
        self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._is_scheduled = False
        self._used = 0.0
        waiting = self._waiting
        end = monotonic() + TURN_S
        while waiting:
            host = next(iter(waiting))
            line = waiting.pop(host)
            who = line.popleft()
            if line:
                waiting[host] = line  # behind the other hosts
            self._until = min(monotonic() + SLICE_S, end)
            try:
                who.go_on()
            except Exception as error:  # noqa: BLE001 - a defect of one must not stop the others
                who.broken(error)
            if monotonic() >= end:
                break
        if waiting and not self._is_scheduled:
            self._schedule()


_all: WeakKeyDictionary[asyncio.AbstractEventLoop, Turns] = WeakKeyDictionary()


def turns_of(loop: asyncio.AbstractEventLoop) -> Turns:
    """Return the `Turns` of ``loop``."""
    found = _all.get(loop)
    if found is None:
        found = _all[loop] = Turns(loop)
    return found

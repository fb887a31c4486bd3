"""Sends the updates that wait, connection by connection, at the end of a turn of the event loop."""

from __future__ import annotations

import asyncio
from typing import Protocol

from appliance.transport.turns import turns_of

__all__ = ["Pump"]


class Pumpable(Protocol):
    """A connection with updates that wait."""

    def pump(self) -> None:
        """Send what the socket accepts."""

    def broken(self, error: Exception) -> None:
        """End: a defect has stopped its work."""


class Pump:
    """The connections of one server that have something to send.

    Args:
        loop: Runs the connections.
    """

    __slots__ = ("_loop", "_turns", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._turns = turns_of(loop)
        self._waiting: list[Pumpable] = []

    def soon(self, peer: Pumpable) -> None:
        """Pump ``peer`` at the end of this turn of the event loop; it must not wait already."""
        if not self._waiting:
            self._loop.call_soon(self._work)
        self._waiting.append(peer)

    def _work(self) -> None:
        peers = self._waiting
        self._waiting = []
        turns = self._turns
        for index, peer in enumerate(peers):
            if turns.is_full:
                # The others are next; if too many updates wait meanwhile, they are squashed.
                self._waiting[:0] = peers[index:]
                self._loop.call_soon(self._work)
                return
            turns.begin()
            try:
                peer.pump()
            except Exception as error:  # noqa: BLE001 - a defect of one connection must not stop the others
                peer.broken(error)
            finally:
                turns.end()

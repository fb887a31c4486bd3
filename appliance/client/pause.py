"""What comes during a pause of a connection: it waits until the status of both certificates is good again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from appliance.client.channel import Channel
from appliance.client.monitor import Monitor
from appliance.pva.events import MonitorUpdate

__all__ = ["Kept"]


class _Merged(NamedTuple):
    """The updates of a pause, merged into one."""

    bits: int
    store: list[Any]
    overrun: int
    size: int
    """Octets of the latest one."""


class Kept:
    """The updates of one pause of one connection."""

    __slots__ = ("_updates",)

    def __init__(self) -> None:
        self._updates: dict[Monitor[Any], _Merged] = {}

    def keep(self, monitor: Monitor[Any], event: MonitorUpdate) -> None:
        """Keep an update until the pause is over; only the latest value counts."""
        before = self._updates.get(monitor)
        bits, overrun = event.bits, event.overrun
        if before is not None:
            overrun |= before.overrun | (before.bits & bits)
            bits |= before.bits
        self._updates[monitor] = _Merged(bits, event.store, overrun, event.size)

    def clear(self) -> None:
        """Forget everything: the connection is gone."""
        self._updates.clear()

    def release(self, channels: Iterable[Channel]) -> None:
        """Give everybody the latest of the pause, which is over; requests that keep what they get themselves are told."""
        updates, self._updates = self._updates, {}
        for monitor, (bits, store, overrun, size) in updates.items():
            if monitor.operation is not None:
                monitor.update(bits, store, overrun, size)
        for channel in list(channels):
            for request in list(channel.requests):
                if request.LASTS and request.operation is not None:
                    request.resumed()

"""Database events on the event loop: each batch goes to sinks, which read and post."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Hashable
from itertools import islice
from time import monotonic
from typing import Any, Final

from appliance.errors import ApplianceError
from appliance.ioc import dbcore
from appliance.ioc.behind import Backlogs
from appliance.transport.turns import TURN_S

__all__ = ["EventSink", "EventStream"]

_log: Final = logging.getLogger(__name__)
_AT_ONCE: Final = 256
"""Events that are handled together, so that their records are locked together."""


class EventSink:
    """The receiver of a database event. Its instance is the key of its subscription.

    This is not an ABC, because ``isinstance`` is slower with an ABC and is used for each event.
    """

    __slots__ = ()

    def event(self) -> None:
        """Read the record and post."""
        raise NotImplementedError

    @classmethod
    def post_all(cls, sinks: list[Any]) -> None:
        """Handle the events of many sinks."""
        for sink in sinks:
            try:
                sink.event()
            except ApplianceError as error:
                _log.warning("%r: %s", sink, error)

    def broken(self, error: Exception) -> None:
        """Handle that a defect has stopped the reading of this record: who watches it must not take an old value for the newest."""
        _log.error("%r: internal error", self, exc_info=error)


class EventStream:
    """The IOC's one event hub and the loop turn that serves it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pending: dict[Hashable, None] = {}
        self._is_busy = False
        self.boards: dict[Hashable, Any] = {}
        """What feeds share that are handled together, by their kind; None if that kind is handled alone."""
        self.backlogs = Backlogs()
        """The marks of clients that are behind."""
        self.hub = dbcore.EventHub(self.deliver, loop=loop)

    def deliver(self, keys: list[Hashable]) -> None:
        """Accept a batch of events; a key that is waiting already is not added again."""
        self._pending.update(dict.fromkeys(keys))
        if not self._is_busy:
            self._is_busy = True
            self._turn()

    def _turn(self) -> None:
        """Handle some of the waiting events, then let the loop send the updates and serve others.

        Events get as much time as the requests of all clients: with a number of events as the limit, a client of a busy machine
        would wait for most of a second until it could say that it wants less.
        """
        pending = self._pending
        end = monotonic() + TURN_S
        try:
            while pending:
                batch = list(islice(pending, _AT_ONCE))
                if len(batch) == len(pending):
                    pending.clear()
                else:
                    for key in batch:
                        del pending[key]
                self._post(batch)
                if monotonic() >= end:
                    break
        finally:
            self._is_busy = bool(pending)
            if pending:
                self._loop.call_soon(self._turn)

    def _post(self, keys: list[Hashable]) -> None:
        """Let each kind of sink read and post all of its events together."""
        kinds: dict[type[EventSink], list[EventSink]] = {}
        for key in keys:
            if isinstance(key, EventSink):
                kinds.setdefault(type(key), []).append(key)
        for kind, sinks in kinds.items():
            try:
                kind.post_all(sinks)
            except Exception:  # noqa: BLE001 - a defect of one record must not take the updates of the others
                self._post_alone(kind, sinks)

    def _post_alone(self, kind: type[EventSink], sinks: list[EventSink]) -> None:
        for sink in sinks:
            try:
                kind.post_all([sink])
            except Exception as error:  # noqa: BLE001 - see _post()
                sink.broken(error)

    def close(self) -> None:
        """End the event hub; all channels must still be open."""
        self._pending.clear()
        self.hub.close()

"""Monitors of short texts, made from the record's memory like those of numbers.

A text of a record has 40 octets, and on the wire as many as it is long. So each client has a function for each of the last
few lengths. The octets themselves are sent as they are: what is not UTF-8 stays as it is in the general way, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from appliance.ioc import dbcore
from appliance.ioc.behind import Subscriber
from appliance.ioc.number_feed import NumberFeed
from appliance.pvdata.types import ScalarType

__all__ = ["TextFeed"]

_LENGTHS: Final = 4
"""Lengths for which one client keeps a function."""


class TextFeed(NumberFeed):
    """The feed of a record's value that is a text of up to 39 octets; all its clients share it."""

    __slots__ = ("_told",)
    IS_TEXT = True

    def _code_of(self, kind: ScalarType) -> str:
        return "qii"

    def _note_properties(self) -> None:
        self._told: dbcore.Properties = self.channel.properties()

    def _take_properties(self) -> int:
        """Ask EPICS for the properties; return the bits of all of them if one has changed."""
        before = self._told
        self._note_properties()
        if self._told == before:
            return 0
        store = self._store = self._store.copy()
        return self.mapping.set_properties(store, 0, self._told)

    def _sender(self, subscription: Subscriber, overrun: int = 0) -> Callable[..., bool] | None:
        bits, code = self.bits, self._code
        known: dict[int, Callable[..., bool]] = {}
        if subscription.sender(bits, f"B39s{code}", overrun) is None:
            return None

        def send(raw: bytes, seconds: int, nanoseconds: int, tag: int) -> bool:
            text = raw.partition(b"\0")[0]
            length = len(text)
            put = known.get(length)
            if put is None:
                put = subscription.sender(bits, f"B{length}s{code}", overrun)
                assert put is not None
                if len(known) >= _LENGTHS:
                    known.clear()
                known[length] = put
            return put(length, text, seconds, nanoseconds, tag)

        return send

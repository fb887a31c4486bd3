"""Posts of one number or text, alarm and time, that need no `Value`: what a soft IOC does nearly always."""

from __future__ import annotations

from typing import Any, Final, Self

from appliance.p4p.server._core import PLAIN, Core
from appliance.pvdata.types import INT32, INT64, STRING, StructType

__all__ = ["Quick"]

_EXACT: Final = 1 << 53
"""Whole numbers up to this are the same as a float."""
_INT32: Final = 1 << 31
_LATEST: Final = 1e17
"""Seconds since 1970 that surely fit."""
_STANDARD: Final = (
    ("alarm.severity", INT32),
    ("alarm.message", STRING),
    ("timeStamp.secondsPastEpoch", INT64),
    ("timeStamp.nanoseconds", INT32),
)


class Quick:
    """The fields of one PV that a post can change without conversion.

    All else has to go the long way, with the same result: `post` says so and does nothing.
    """

    __slots__ = ("_core", "_high", "_low", "_offsets", "_value_at", "plain")

    def __init__(self, core: Core, kind: StructType, plain: type, low: int, high: int) -> None:
        self._core = core
        self.plain: type | None = None if plain is int or plain is str else plain
        """The type of values that need no look at them."""
        self._low = low
        self._high = high
        self._value_at = (kind.offsets["value"], plain)
        self._offsets = tuple(kind.offsets[path] for path, _ in _STANDARD)

    @classmethod
    def of(cls, core: Core) -> Self | None:
        """Return what makes quick posts to a PV that is open; None if its type does not allow them."""
        kind = core.kind
        value = core.plain_type()
        if kind is None or value is None:
            return None
        for path, wanted in _STANDARD:
            if path not in kind.offsets or kind.leaf_types[kind.offsets[path]] != wanted:
                return None
        return cls(core, kind, PLAIN[value], value.lo, value.hi)

    def post(self, value: Any, kws: dict[str, Any]) -> bool:
        """Post if that needs no conversion.

        Args:
            value: For the field ``value``.
            kws: ``timestamp``, ``severity`` and ``message``, or some of them.

        Returns:
            Whether it was posted.
        """
        number, plain = self._value_at
        kind = type(value)
        if kind is int:
            if plain is float and -_EXACT <= value <= _EXACT:
                value = float(value)
            elif plain is not int or not self._low <= value <= self._high:
                return False
        elif kind is not plain or (kind is str and not value.isascii()):
            return False
        if not kws:
            self._core.post_plain(value)
            return True
        parts = [(number, value)]
        bits = 1 << number
        severity_at, message_at, seconds_at, nanoseconds_at = self._offsets
        for key, given in kws.items():
            if given is None:
                continue
            kind = type(given)
            if key == "timestamp":
                if (kind is not float and kind is not int) or not -_LATEST < given < _LATEST:
                    return False
                seconds, part = divmod(given, 1.0)
                parts.append((seconds_at, int(seconds)))
                parts.append((nanoseconds_at, int(part * 1e9)))
                bits |= 1 << seconds_at | 1 << nanoseconds_at
            elif key == "severity":
                if kind is not int or not -_INT32 <= given < _INT32:
                    return False
                parts.append((severity_at, given))
                bits |= 1 << severity_at
            elif key == "message":
                if kind is not str or not given.isascii():
                    return False
                parts.append((message_at, given))
                bits |= 1 << message_at
            else:
                return False
        self._core.post_parts(parts, bits)
        return True

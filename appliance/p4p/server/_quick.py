"""Posts of one number or text, alarm and time, that need no `Value`: what a soft IOC does nearly always."""

from __future__ import annotations

from typing import Any, Final, Self

from appliance.p4p.server._core import PLAIN, Core
from appliance.p4p.server._posts import Numbers
from appliance.pvdata.types import INT32, INT64, STRING, ScalarType, StructType

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

    __slots__ = (
        "_alarmed",
        "_core",
        "_high",
        "_low",
        "_offsets",
        "_taken",
        "_timed",
        "_timed_alarmed",
        "_value_at",
        "plain",
    )

    def __init__(self, core: Core, kind: StructType, value: ScalarType) -> None:
        self._core = core
        plain = PLAIN[value]
        self.plain: type | None = None if plain is int or plain is str else plain
        """The type of values that need no look at them."""
        self._low = value.lo
        self._high = value.hi
        at = kind.offsets["value"]
        self._value_at = at
        self._taken = plain
        self._offsets = tuple(kind.offsets[path] for path, _ in _STANDARD)
        severity_at, _, seconds_at, nanoseconds_at = self._offsets
        self._alarmed = _numbers(kind, at, severity_at)
        self._timed = _numbers(kind, at, seconds_at, nanoseconds_at)
        self._timed_alarmed = _numbers(kind, at, severity_at, seconds_at, nanoseconds_at)

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
        return cls(core, kind, value)

    def post(self, value: Any, kws: dict[str, Any]) -> bool:
        """Post if that needs no conversion.

        Args:
            value: For the field ``value``.
            kws: ``timestamp``, ``severity`` and ``message``, or some of them.

        Returns:
            Whether it was posted.
        """
        plain = self._taken
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
        left = len(kws)
        severity = kws.get("severity")
        if severity is not None:
            if type(severity) is not int or not -_INT32 <= severity < _INT32:
                return False
            left -= 1
        given = kws.get("timestamp")
        values: tuple[Any, ...]
        if given is None:
            time = None
            numbers = self._alarmed
            values = (value, severity)
        else:
            kind = type(given)
            if (kind is not float and kind is not int) or not -_LATEST < given < _LATEST:
                return False
            left -= 1
            seconds = int(given)
            part = given - seconds
            if part < 0:  # before 1970
                seconds -= 1
                part += 1.0
            nanoseconds = int(part * 1e9)
            time = (seconds, nanoseconds)
            if severity is None:
                numbers = self._timed
                values = (value, seconds, nanoseconds)
            else:
                numbers = self._timed_alarmed
                values = (value, severity, seconds, nanoseconds)
        if left or numbers is None:
            return self._post_parts(value, severity, time, kws)
        self._core.post_numbers(numbers, values)
        return True

    def _post_parts(
        self, value: Any, severity: int | None, time: tuple[int, int] | None, kws: dict[str, Any]
    ) -> bool:
        """Post what are not only numbers: a text, or a message. What else ``kws`` may have goes the long way."""
        severity_at, message_at, seconds_at, nanoseconds_at = self._offsets
        parts: list[tuple[int, Any]] = [(self._value_at, value)]
        left = len(kws)
        if severity is not None:
            parts.append((severity_at, severity))
            left -= 1
        if time is not None:
            parts += zip((seconds_at, nanoseconds_at), time, strict=True)
            left -= 1
        if left:
            message = kws.get("message")
            if left > 1 or type(message) is not str or not message.isascii():
                return False
            parts.append((message_at, message))
        self._core.post_parts(parts, sum(1 << number for number, _ in parts))
        return True


def _numbers(kind: StructType, *offsets: int) -> Numbers | None:
    """Return the fields as numbers that travel together; None if one is a text, or if they have another order in the type."""
    types = [kind.leaf_types[offset] for offset in offsets]
    codes = [t.fmt for t in types if isinstance(t, ScalarType) and t.fmt]
    if len(codes) != len(types) or list(offsets) != sorted(offsets):
        return None
    return Numbers(kind, offsets, "".join(codes))

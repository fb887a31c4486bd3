"""What all normative types share: time stamp, alarm, and NTBase."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from appliance.p4p.wrapper import Type
from appliance.p4p.wrapper import Value as _Value

__all__ = ["NTBase", "alarm", "timeStamp"]

timeStamp = Type(
    id="time_t",
    spec=[("secondsPastEpoch", "l"), ("nanoseconds", "i"), ("userTag", "i")],
)
"""The type of a time: seconds since 1970 UTC, nanoseconds and a tag."""

alarm = Type(
    id="alarm_t",
    spec=[("severity", "i"), ("status", "i"), ("message", "s")],
)
"""The type of an alarm: severity 0 to 3, status and a message."""


class NTBase:
    """The base of classes that wrap Python objects as values of a normative type, and unwrap them.

    A class of your own has ``buildType``, ``wrap``, ``unwrap`` and, if needed, ``assign``. The arguments of its constructor go to
    ``buildType``, and ``type`` is the result.

    Example:
        >>> from appliance.p4p.nt.scalar import NTScalar
        >>> class Celsius(NTScalar):
        ...     def wrap(self, value, **kws):
        ...         return super().wrap(value - 273.15, **kws)
        >>> round(Celsius("d").wrap(300).value, 2)
        26.85
    """

    Value: ClassVar[Any] = _Value
    """The class of the values that ``wrap`` makes."""
    type: Type
    """The Type that ``wrap`` uses."""

    def __init__(self, *args: Any, **kws: Any) -> None:
        self.type = self.buildType(*args, **kws)

    @staticmethod
    def buildType(*args: Any, **kws: Any) -> Type:
        """Make the Type; a class of its own has to say how."""
        raise NotImplementedError("NT classes must provide buildType()")

    def wrap(self, *args: Any, **kws: Any) -> _Value:
        """Make a Value from a Python object; a class of its own has to say how."""
        raise NotImplementedError("NT classes must provide wrap()")

    def unwrap(self, V: _Value, /) -> Any:
        """Make a Python object from a Value; a class of its own has to say how."""
        raise NotImplementedError("NT classes must provide unwrap()")

    def assign(self, V: _Value, pyval: Any, /) -> None:
        """Store a Python object in a Value that a server described, as ``put`` does.

        Args:
            V: The value to change.
            pyval: What ``wrap`` takes.
        """
        V[None] = self.wrap(pyval)

    @staticmethod
    def _annotate(value: _Value, timestamp: Any = None, severity: Any = None, message: Any = None) -> _Value:
        """Set alarm and time of ``value``, where given, and return it.

        Args:
            value: The value to change.
            timestamp: A datetime, seconds since 1970 UTC, or a tuple of seconds and nanoseconds.
            severity: 0 to 3.
            message: The text of the alarm.
        """
        if severity is not None:
            value["alarm.severity"] = severity
        if message is not None:
            value["alarm.message"] = message
        if timestamp is not None:
            if isinstance(timestamp, datetime):
                timestamp = timestamp.timestamp()
            if isinstance(timestamp, (int, float)):
                whole, part = divmod(timestamp, 1.0)
                timestamp = (int(whole), int(part * 1e9))
            value["timeStamp"] = {"secondsPastEpoch": timestamp[0], "nanoseconds": timestamp[1]}
        return value

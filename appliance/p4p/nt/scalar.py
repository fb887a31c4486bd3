"""NTScalar, and the Python objects that it is unwrapped to."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, ClassVar, Self

import numpy as np

from appliance.p4p.nt.common import NTBase, alarm, timeStamp
from appliance.p4p.wrapper import Type, Value

__all__ = [
    "NTScalar",
    "ntbool",
    "ntfloat",
    "ntint",
    "ntnumericarray",
    "ntstr",
    "ntstringarray",
    "ntwrappercommon",
]


class ntwrappercommon:
    """What the unwrapped objects have beyond a plain number, text or array.

    Attributes:
        raw: The whole Value.
        severity: The alarm's severity, 0 to 3.
        status: The alarm's status.
        timestamp: Seconds since 1970 UTC.
        raw_stamp: Seconds and nanoseconds.
    """

    raw: Any = None
    timestamp: Any = None
    severity: int
    status: int
    raw_stamp: tuple[int, int]

    def _store(self, value: Value) -> Self:
        if not isinstance(value, Value):
            raise AssertionError(value)  # noqa: TRY004 - as p4p
        get = value.get
        seconds, nanoseconds = get("timeStamp.secondsPastEpoch", 0), get("timeStamp.nanoseconds", 0)
        self.raw = value
        self.severity = get("alarm.severity", 0)
        self.status = get("alarm.status", 0)
        self.raw_stamp = seconds, nanoseconds
        self.timestamp = seconds + nanoseconds * 1e-9
        return self

    def __str__(self) -> str:
        try:
            when = time.ctime(self.timestamp)
        except (OverflowError, OSError, ValueError):
            when = str(self.timestamp)
        return f"{when} {self!r}"

    tostr = __str__


class ntfloat(ntwrappercommon, float):
    """A float with time and alarm: see ``ntwrappercommon``.

    Example:
        >>> x = NTScalar.unwrap(NTScalar("d").wrap(4.5, timestamp=(10, 500000000), severity=2))
        >>> x + 1, x.timestamp, x.severity
        (5.5, 10.5, 2)
    """


class ntint(ntwrappercommon, int):
    """An int with time and alarm: see ``ntwrappercommon``.

    Example:
        >>> x = NTScalar.unwrap(NTScalar("i").wrap(4, timestamp=10))
        >>> x + 1, x.raw_stamp
        (5, (10, 0))
    """


class ntbool(ntwrappercommon, int):
    """A truth value with time and alarm: see ``ntwrappercommon``.

    Example:
        >>> NTScalar.unwrap(NTScalar("?").wrap(True))
        true
    """

    def __new__(cls, value: Any) -> Self:  # noqa: D102 - as for int
        return int.__new__(cls, bool(value))

    def __repr__(self) -> str:
        return "true" if self else "false"


class ntstr(ntwrappercommon, str):
    """A text with time and alarm: see ``ntwrappercommon``.

    Example:
        >>> x = NTScalar.unwrap(NTScalar("s").wrap("open", severity=1))
        >>> x == "open", x.severity
        (True, 1)
    """

    __slots__ = ()


class ntnumericarray(ntwrappercommon, np.ndarray):
    """A numpy array with time and alarm: see ``ntwrappercommon``. It cannot be changed; nothing is copied.

    Example:
        >>> x = NTScalar.unwrap(NTScalar("ad").wrap([1, 2], severity=1))
        >>> float(x.sum()), x.severity
        (3.0, 1)
    """

    @classmethod
    def build(cls, val: np.ndarray[Any, Any]) -> ntnumericarray:
        """Make one that shares the memory of an array of one dimension."""
        if val.ndim != 1:
            raise AssertionError(val.shape)
        return val.view(cls)


class ntstringarray(ntwrappercommon, list[str]):
    """A list of texts with time and alarm: see ``ntwrappercommon``.

    Example:
        >>> x = NTScalar.unwrap(NTScalar("as").wrap(["a", "b"], severity=1))
        >>> x[1], x.severity
        ('b', 1)
    """


def _metaHelper(
    F: list[Any],
    valtype: str,
    display: bool = False,
    control: bool = False,
    valueAlarm: bool = False,
    form: bool = False,
) -> None:
    """Append the optional structures to a list of fields.

    Args:
        F: The list.
        valtype: The code of the value's type.
        display: Whether to append ``display``.
        control: Whether to append ``control``; only numbers have it.
        valueAlarm: Whether to append ``valueAlarm``; only numbers have it.
        form: Whether ``display`` has precision and form instead of the older format.
    """
    code = valtype[-1:]
    numeric = code not in tuple("?su")
    limits = [("limitLow", code), ("limitHigh", code)]
    if display:
        if not numeric:
            fields: list[Any] = [("description", "s"), ("units", "s")]
        elif form:
            choice = ("S", "enum_t", [("index", "i"), ("choices", "as")])
            fields = [*limits, ("description", "s"), ("precision", "i"), ("form", choice), ("units", "s")]
        else:
            fields = [*limits, ("description", "s"), ("format", "s"), ("units", "s")]
        F.append(("display", ("S", None, fields)))
    if control and numeric:
        F.append(("control", ("S", None, [*limits, ("minStep", code)])))
    if valueAlarm and numeric:
        levels = ("lowAlarm", "lowWarning", "highWarning", "highAlarm")
        fields = [
            ("active", "?"),
            *[(f"{level}Limit", code) for level in levels],
            *[(f"{level}Severity", "i") for level in levels],
            ("hysteresis", "d"),
        ]
        F.append(("valueAlarm", ("S", None, fields)))


@lru_cache(maxsize=256)
def _usual(valtype: str, *args: Any, **kws: Any) -> Type:
    """Return the type without further fields; programs make the same ones again and again."""
    fields: list[Any] = [("value", valtype), ("alarm", alarm), ("timeStamp", timeStamp)]
    _metaHelper(fields, valtype, *args, **kws)
    kind = "NTScalarArray" if valtype[:1] == "a" else "NTScalar"
    return Type(id=f"epics:nt/{kind}:1.0", spec=fields)


class NTScalar(NTBase):
    """A scalar, or an array of scalars, with alarm, time and what describes it.

    Args:
        valtype: The code of the value's type, ``"d"`` or ``"as"`` for example; see ``Type``.
        extra: Further fields, as for ``Type``.
        display: Whether it has limits, units and a description for people.
        control: Whether it has the limits of what may be written.
        valueAlarm: Whether it has the limits that cause alarms.
        form: Whether ``display`` has precision and form instead of the older format.

    Example:
        >>> V = NTScalar("d", display=True).wrap(4.2, timestamp=1.5)
        >>> V["display.units"] = "mm"
        >>> x = NTScalar.unwrap(V)
        >>> float(x), x.raw["display.units"], x.timestamp
        (4.2, 'mm', 1.5)
    """

    @staticmethod
    def buildType(valtype: str, extra: Sequence[Any] = (), *args: Any, **kws: Any) -> Type:
        """Make the Type.

        Args:
            valtype: The code of the value's type.
            extra: Further fields, as for ``Type``.
            args: display, control, valueAlarm and form, as for the class.
            kws: The same by name.

        Example:
            >>> NTScalar.buildType("ad").getID()
            'epics:nt/NTScalarArray:1.0'
        """
        made = _usual(valtype, *args, **kws)
        return Type(extra, base=made) if extra else made

    def __init__(self, valtype: str = "d", **kws: Any) -> None:
        self.type = self.buildType(valtype, **kws)

    def wrap(self, value: Any, **kws: Any) -> Value:
        """Make a Value.

        Args:
            value: What to assign to the field ``value``; a dict assigns to fields by name. A Value, and what ``unwrap`` gave, is changed
                and returned.
            kws: timestamp, severity and message: a datetime, seconds since 1970 UTC or a tuple of seconds and nanoseconds; 0 to 3; text.

        Raises:
            TypeError, ValueError, OverflowError: It cannot be converted.

        Example:
            >>> NTScalar("i").wrap({"value": 4, "alarm.severity": 1}).alarm.severity
            1
        """
        if isinstance(value, Value):
            pass
        elif isinstance(value, ntwrappercommon):
            kws.setdefault("timestamp", value.timestamp)
            value = value.raw
        elif isinstance(value, dict):
            value = self.Value(self.type, value)
        else:
            value = self.Value(self.type, {"value": value})
        return self._annotate(value, **kws) if kws else value

    typeMap: ClassVar[dict[type, Callable[[Any], Any]]] = {
        bool: ntbool,
        int: ntint,
        float: ntfloat,
        str: ntstr,
        np.ndarray: ntnumericarray.build,
        list: ntstringarray,
    }
    """What is made of which class of a value."""

    @classmethod
    def unwrap(cls, value: Value) -> Any:
        """Make a number, a text, an array or a list with time and alarm from a Value.

        Args:
            value: A Value that has the field ``value``.

        Raises:
            ValueError: That field is neither a scalar nor an array of scalars, or an array that was never set.

        Example:
            >>> NTScalar.unwrap(NTScalar("i").wrap(4)) + 1
            5
        """
        if not isinstance(value, Value):
            raise AssertionError(value)  # noqa: TRY004 - as p4p
        try:
            content = value["value"]  # faster than the attribute
        except KeyError:
            raise AttributeError("value") from None
        make = cls.typeMap.get(type(content))
        if make is None:
            raise ValueError(f"Can't unwrap value of type {type(content)}")
        try:
            return make(content)._store(value)
        except Exception as e:
            raise ValueError(f"Can't construct {make} around a value of {type(content)}: {e}") from e

    def assign(self, V: Value, py: Any) -> None:
        """Store a Python object in the field ``value``.

        Args:
            V: The value to change.
            py: What to assign.

        Example:
            >>> V = NTScalar("i").wrap(4)
            >>> NTScalar("i").assign(V, 5)
            >>> V.value
            5
        """
        V.value = py

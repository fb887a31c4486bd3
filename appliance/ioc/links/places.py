"""Where the structure of a PV holds what a link needs: value, alarm, time and limits."""

from __future__ import annotations

from typing import Any, Final

from appliance.errors import PVDataError
from appliance.ioc.links.values import Choice, is_enum
from appliance.pvdata.store import AnyValue, UnionValue
from appliance.pvdata.types import ScalarType, StructType, TypeDesc
from appliance.pvdata.value import Value

__all__ = ["Places"]

_INVALID: Final = 3


class Places:
    """The places of one type, for links to one field of it.

    If the field is a structure, its field ``value`` is used, and alarm, time and limits beside it. Otherwise the field itself is
    the value, and there is nothing beside it.

    Args:
        kind: The type of the PV.
        field: The dotted path; empty for the top.
    """

    __slots__ = (
        "_nanoseconds",
        "_prefix",
        "_value",
        "field",
        "kind",
        "message",
        "seconds",
        "severity",
        "tag",
        "value_type",
    )

    def __init__(self, kind: StructType, field: str) -> None:
        self.kind = kind
        self.field = field
        self._value: int | str | None = None
        """Number of the value in a store, or its path if it lies in a union; None if there is none."""
        self.value_type: TypeDesc | None = None
        """The type of the value; None if it has none that lasts."""
        self.severity = self.message = self.seconds = self._nanoseconds = self.tag = -1
        self._prefix = ""
        offsets = kind.offsets
        if field and field not in offsets:
            if "->" in field or "[" in field:
                self._value = field
            return
        number = offsets[field] if field else 0
        here = kind.leaf_types[number]
        prefix = field + "." if field else ""
        if isinstance(here, StructType) and not is_enum(here):
            self._prefix = prefix
            if "value" in here.members:
                self._use(prefix + "value")
            self.severity = offsets.get(prefix + "alarm.severity", -1)
            self.message = offsets.get(prefix + "alarm.message", -1)
            self.seconds = offsets.get(prefix + "timeStamp.secondsPastEpoch", -1)
            self._nanoseconds = offsets.get(prefix + "timeStamp.nanoseconds", -1)
            self.tag = offsets.get(prefix + "timeStamp.userTag", -1)
        else:
            self._use(field)
            self._prefix = "\0"  # nothing has such a path

    def _use(self, path: str) -> None:
        number = self.kind.offsets[path]
        here = self.kind.leaf_types[number]
        if isinstance(here, StructType) and not is_enum(here):
            return
        self._value = number
        self.value_type = here

    @property
    def has_value(self) -> bool:
        """Whether the PV has a value there."""
        return self._value is not None

    @property
    def number(self) -> int:
        """The field that holds the value if it is a number or the choice of an enumeration; -1 if it is neither."""
        if not isinstance(self._value, int):
            return -1
        kind = self.value_type
        if kind is not None and is_enum(kind):
            assert isinstance(kind, StructType)
            return self._value + kind.offsets["index"]
        return self._value if isinstance(kind, ScalarType) and kind.fmt else -1

    @property
    def target(self) -> tuple[str, TypeDesc] | None:
        """The path and the type of what a put writes; None if nothing there can be written."""
        if not isinstance(self._value, int) or self.value_type is None:
            return None
        return self.kind.paths[self._value], self.value_type

    @property
    def why_not(self) -> str:
        """Return why there is no value."""
        if self.field and self.field not in self.kind.offsets:
            return f"the PV has no field {self.field!r}"
        return f"the field {self.field!r} of the PV has no value" if self.field else "the PV has no value"

    def value(self, store: list[Any]) -> tuple[Any, TypeDesc | None]:
        """Return the value in a store, and its type; None if a union has nothing in it."""
        place = self._value
        if type(place) is int:
            kind = self.value_type
            assert kind is not None
            if is_enum(kind):
                offsets = kind.offsets
                return Choice(store[place + offsets["index"]], store[place + offsets["choices"]]), kind
            return self._content(store[place], kind)
        try:
            found = Value.from_store(self.kind, store)[str(place)]
        except PVDataError:
            return None, None
        return self._content(found, None)

    def _content(self, value: Any, kind: TypeDesc | None) -> tuple[Any, TypeDesc | None]:
        while isinstance(value, (UnionValue, AnyValue)):
            kind = value.type if isinstance(value, AnyValue) else None
            value = value.value
        if isinstance(value, Value):
            value = value.get("value")
        return value, kind

    def alarm(self, store: list[Any]) -> tuple[int, str]:
        """Return severity and message. A severity that EPICS does not know counts as INVALID."""
        severity = _whole(store, self.severity)
        if not 0 <= severity <= _INVALID:
            severity = _INVALID
        message = store[self.message] if severity and self.message >= 0 else ""
        return severity, message if isinstance(message, str) else ""

    def stamp(self, store: list[Any]) -> tuple[int, int, int]:
        """Return seconds since 1970, nanoseconds and tag; zeros are what EPICS has for an unknown time."""
        nanoseconds = _whole(store, self._nanoseconds)
        return (
            _whole(store, self.seconds),
            nanoseconds if 0 <= nanoseconds < 1_000_000_000 else 0,
            _whole(store, self.tag) & 0xFFFFFFFF,
        )

    @property
    def has_time(self) -> bool:
        """Whether there is a time stamp beside the value."""
        return self.seconds >= 0

    def beside(self, store: list[Any], path: str) -> Any:
        """Return a field beside the value, for instance ``display.units``; None if there is none."""
        number = self.kind.offsets.get(self._prefix + path)
        return None if number is None else store[number]


def _whole(store: list[Any], number: int) -> int:
    value = store[number] if number >= 0 else 0
    return value if isinstance(value, int) else 0

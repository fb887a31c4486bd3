"""The structure that a client sees of a record's field: its type, and value, alarm, time and properties in a store.

The structures, and which of their fields count as set, are those of QSRV2 (pvxs ``ioc/iocsource.cpp``): a client
of other IOCs finds the same here, including the bits that a monitor marks as changed.
"""

from __future__ import annotations

import struct
from typing import Any, Final

from appliance.errors import OperationError
from appliance.ioc.dbcore import ALARM_CONDITIONS, DBChannel, Properties, Reading
from appliance.pvdata.nt import NTEnum, NTScalar
from appliance.pvdata.types import (
    FLOAT32,
    FLOAT64,
    INT8,
    INT16,
    INT32,
    INT64,
    STRING,
    UINT8,
    UINT16,
    UINT32,
    UINT64,
    ArrayType,
    ScalarType,
    StructType,
    TypeDesc,
)

__all__ = [
    "ALARM_STATUS",
    "FORMS",
    "SCALAR_TYPES",
    "NTMapping",
    "alarm_message",
    "nt_mapping",
    "tag_mask",
    "user_tag",
    "value_type",
]

SCALAR_TYPES: Final = (
    STRING, INT8, UINT8, INT16, UINT16, INT32, UINT32, INT64, UINT64, FLOAT32, FLOAT64, UINT16,
)  # fmt: skip
"""By DBR code; ENUM is a number where it is not an NTEnum."""
_ENUM: Final = 11
FORMS: Final = ("Default", "String", "Binary", "Decimal", "Hex", "Exponential", "Engineering")
"""``display.form.choices``."""

_NONE, _DEVICE, _DRIVER, _RECORD, _DB, _UNDEFINED = 0, 1, 2, 3, 4, 6
_STATUS: Final = {
    **dict.fromkeys(("NO_ALARM",), _NONE),
    **dict.fromkeys(("READ", "WRITE", "HIHI", "HIGH", "LOLO", "LOW", "STATE", "COS", "HWLIMIT"), _DEVICE),
    **dict.fromkeys(("COMM", "TIMEOUT", "UDF"), _DRIVER),
    **dict.fromkeys(("CALC", "SCAN", "LINK", "SOFT", "BAD_SUB"), _RECORD),
    **dict.fromkeys(("DISABLE", "SIMM", "READ_ACCESS", "WRITE_ACCESS"), _DB),
}
ALARM_STATUS: Final = tuple(_STATUS.get(name, _UNDEFINED) for name in ALARM_CONDITIONS)
"""``alarm.status`` of PVAccess by the database's alarm condition."""

_TWO_63: Final = 1 << 63
_TWO_64: Final = 1 << 64


def value_type(channel: DBChannel) -> ScalarType | ArrayType:
    """Return the type of a field's value alone."""
    if channel.is_string and not channel.is_array:
        return STRING
    scalar = SCALAR_TYPES[channel.final_type]
    return ArrayType(scalar) if channel.is_array else scalar


def alarm_status(condition: int) -> int:
    """Return ``alarm.status`` for an alarm condition of the database."""
    return ALARM_STATUS[condition] if condition < len(ALARM_STATUS) else _UNDEFINED


def alarm_message(condition: int, message: str) -> str:
    """Return ``alarm.message``: the record's own text, or the condition's name if there is none."""
    if message:
        return message
    return ALARM_CONDITIONS[condition] if 0 < condition < len(ALARM_CONDITIONS) else ""


def tag_mask(channel: DBChannel) -> int:
    """Return the mask of the nanosecond bits that hold the user tag, from ``info(Q:time:tag, "nsec:lsb:N")``; 0 for none."""
    text = channel.info("Q:time:tag")
    if text is None or not text.startswith("nsec:lsb:"):
        return 0
    try:
        digits = int(text.removeprefix("nsec:lsb:"))
    except ValueError:
        return 0
    return (1 << digits) - 1 if 0 < digits <= 32 else 0


def user_tag(tag: int) -> int:
    """Return a record's 64-bit tag as the 32-bit tag of PVAccess."""
    return tag if tag < 0x80000000 else ((tag + 0x80000000) & 0xFFFFFFFF) - 0x80000000


def _converter(kind: ScalarType) -> Any:
    """Return the function that converts the database's limits, which are doubles, to the value's type."""
    if kind.kind == "float":
        return _single if kind.size == 4 else float
    bits = kind.size * 8
    if kind.kind == "uint":
        return lambda number: _whole(number, _TWO_64) & ((1 << bits) - 1)
    half = 1 << (bits - 1)
    return lambda number: ((_whole(number, _TWO_63) + half) & ((1 << bits) - 1)) - half


def _whole(number: float, limit: int) -> int:
    """Convert a double to a whole number as the processor does, also NaN and values that are too small.

    A double cannot be the largest 64-bit number; the nearest double stands for it.
    """
    if number >= limit:
        return limit - 1
    return int(number) if number >= -_TWO_63 else _TWO_63


def _single(number: float) -> float:
    try:
        return float(struct.unpack("f", struct.pack("f", number))[0])
    except OverflowError:
        return float("inf") if number > 0 else float("-inf")


class NTMapping:
    """The normative type of one channel, and the places of all parts in a store of it.

    All methods take the store and the number at which the structure begins in it. They return the bits of the fields
    that they set, counted from that number. All channels of the same kind share one mapping.
    """

    __slots__ = (
        "_control",
        "_convert",
        "_display",
        "_limits",
        "_value_alarm",
        "alarm_bits",
        "choices",
        "description",
        "form",
        "is_enum",
        "meta",
        "precision",
        "time_bits",
        "type",
        "units",
        "value",
        "value_bits",
    )

    def __init__(self, kind: TypeDesc, *, is_enum: bool) -> None:
        self.is_enum = is_enum
        self.type: StructType = (
            NTEnum() if is_enum else NTScalar(kind, display=True, control=True, value_alarm=True, form=True)
        )
        offsets = self.type.offsets
        scalar = kind.element if isinstance(kind, ArrayType) else kind
        assert isinstance(scalar, ScalarType)
        self._convert = _converter(scalar) if scalar.kind != "string" else float
        self.value = offsets["value.index" if is_enum else "value"]
        self.value_bits = 1 << self.value
        self.choices = offsets.get("value.choices", 0)
        self.meta = offsets["alarm.severity"]
        self.alarm_bits = 7 << self.meta
        time = offsets["timeStamp.secondsPastEpoch"]
        self.time_bits = 7 << time
        # The six fields lie together; only the structure timeStamp itself is between them.
        assert time == self.meta + 4
        self.description = offsets["display.description"]
        self.units = offsets.get("display.units", 0)
        self.precision = offsets.get("display.precision", 0)
        self.form = offsets.get("display.form.index", 0)
        self._limits = "display.limitLow" in offsets
        self._display = offsets.get("display.limitLow", 0)
        self._control = offsets.get("control.limitLow", 0)
        self._value_alarm = offsets.get("valueAlarm.lowAlarmLimit", 0)

    def initialize(self, store: list[Any], base: int, channel: DBChannel) -> int:
        """Set what never changes: the form of display."""
        if not self.form:
            return 0
        store[base + self.form + 1] = FORMS
        bits = 2 << self.form
        if channel.is_value_field and channel.form in FORMS:
            store[base + self.form] = FORMS.index(channel.form)
            bits |= 1 << self.form
        return bits

    def set_value(self, store: list[Any], base: int, value: Any) -> int:
        """Set the value."""
        store[base + self.value] = value
        return self.value_bits

    def set_alarm(self, store: list[Any], base: int, reading: Reading) -> int:
        """Set ``alarm``."""
        at = base + self.meta
        store[at] = reading.severity
        store[at + 1] = alarm_status(reading.status)
        store[at + 2] = alarm_message(reading.status, reading.message)
        return self.alarm_bits

    def set_time(self, store: list[Any], base: int, reading: Reading, tag_bits: int = 0) -> int:
        """Set ``timeStamp``."""
        at = base + self.meta + 4
        store[at] = reading.seconds
        if tag_bits:
            store[at + 1] = reading.nanoseconds & ~tag_bits
            store[at + 2] = reading.nanoseconds & tag_bits
        else:
            store[at + 1] = reading.nanoseconds
            store[at + 2] = user_tag(reading.user_tag)
        return self.time_bits

    def set_properties(self, store: list[Any], base: int, properties: Properties) -> int:
        """Set units, choices, limits and description, as far as the record type supports them."""
        units, precision, choices, display, control, alarm, description = properties
        bits = 1 << self.description
        store[base + self.description] = description
        if self.units and units is not None:
            store[base + self.units] = units
            bits |= 1 << self.units
        if self.choices and choices is not None:
            store[base + self.choices] = choices
            bits |= 1 << self.choices
        if not self._limits:
            return bits
        convert = self._convert
        if display is not None:
            at = self._display
            store[base + at] = convert(display.low)
            store[base + at + 1] = convert(display.high)
            bits |= 3 << at
            if precision is not None:
                store[base + self.precision] = ((precision + 0x80000000) & 0xFFFFFFFF) - 0x80000000
                bits |= 1 << self.precision
        if control is not None:
            at = self._control
            store[base + at] = convert(control.low)
            store[base + at + 1] = convert(control.high)
            bits |= 3 << at
        if alarm is not None:
            at = self._value_alarm
            store[base + at : base + at + 4] = [convert(limit) for limit in alarm]
            bits |= 15 << at
        return bits


_mappings: Final[dict[tuple[int, bool, bool], NTMapping]] = {}


def nt_mapping(channel: DBChannel) -> NTMapping:
    """Return the mapping for a channel."""
    is_enum = channel.final_type == _ENUM and not channel.is_array
    key = (channel.final_type, channel.is_array, channel.is_string)
    found = _mappings.get(key)
    if found is None:
        found = _mappings[key] = NTMapping(value_type(channel), is_enum=is_enum)
    return found


def refuse_link(channel: DBChannel) -> None:
    """Refuse a link field with an OperationError: it cannot be locked together with other records."""
    if channel.is_link:
        raise OperationError(f"{channel.name} is a link; links cannot be part of a group")

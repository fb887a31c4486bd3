"""Normative types with the same fields as in PVXS (nt.cpp)."""

from __future__ import annotations

from collections.abc import Iterable

from appliance.errors import PVDataError
from appliance.pvdata.types import (
    ANY,
    BOOL,
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
    UnionType,
)
from appliance.pvdata.value import Value

__all__ = [
    "ALARM",
    "CONTROL",
    "DISPLAY",
    "ENUM",
    "NTURI",
    "TIME",
    "VALUE_ALARM",
    "NTEnum",
    "NTNDArray",
    "NTNameValue",
    "NTScalar",
    "NTScalarArray",
    "NTTable",
    "control_type",
    "display_type",
    "now_to_time",
    "value_alarm_type",
]

_STRINGS = ArrayType(STRING)

ALARM = StructType([("severity", INT32), ("status", INT32), ("message", STRING)], "alarm_t")
TIME = StructType([("secondsPastEpoch", INT64), ("nanoseconds", INT32), ("userTag", INT32)], "time_t")
ENUM = StructType([("index", INT32), ("choices", _STRINGS)], "enum_t")


def display_type(value: ScalarType, *, form: bool = False) -> StructType:
    """Make the ``display`` structure of a scalar or array of ``value``; strings have no limits."""
    texts = [("description", STRING), ("units", STRING)]
    if value.kind in ("bool", "string"):
        return StructType(texts)
    more: list[tuple[str, TypeDesc]] = [("precision", INT32), ("form", ENUM)] if form else []
    return StructType([("limitLow", value), ("limitHigh", value), *texts, *more])


def control_type(value: ScalarType) -> StructType:
    """Make the ``control`` structure of a number."""
    return StructType([("limitLow", value), ("limitHigh", value), ("minStep", value)])


def value_alarm_type(value: ScalarType) -> StructType:
    """Make the ``valueAlarm`` structure of a number."""
    limits = ("lowAlarmLimit", "lowWarningLimit", "highWarningLimit", "highAlarmLimit")
    severities = ("lowAlarmSeverity", "lowWarningSeverity", "highWarningSeverity", "highAlarmSeverity")
    return StructType(
        [
            ("active", BOOL),
            *[(name, value) for name in limits],
            *[(name, INT32) for name in severities],
            ("hysteresis", FLOAT64),
        ]
    )


DISPLAY = display_type(FLOAT64, form=True)
CONTROL = control_type(FLOAT64)
VALUE_ALARM = value_alarm_type(FLOAT64)


def NTScalar(  # noqa: N802 - the type's own name
    value: TypeDesc,
    *,
    display: bool = False,
    control: bool = False,
    value_alarm: bool = False,
    form: bool = False,
) -> StructType:
    """Make ``epics:nt/NTScalar:1.0``, or NTScalarArray when ``value`` is an array of scalars.

    Control and value alarm exist for numbers only; other types do not get them, as in PVXS.
    """
    scalar = value.element if isinstance(value, ArrayType) else value
    if not isinstance(scalar, ScalarType):
        raise PVDataError(f"NTScalar holds a scalar or an array of scalars, not {value!r:.60}")
    numeric = scalar.kind not in ("bool", "string")
    fields: list[tuple[str, TypeDesc]] = [("value", value), ("alarm", ALARM), ("timeStamp", TIME)]
    if display:
        fields.append(("display", display_type(scalar, form=form)))
    if control and numeric:
        fields.append(("control", control_type(scalar)))
    if value_alarm and numeric:
        fields.append(("valueAlarm", value_alarm_type(scalar)))
    kind = "NTScalarArray" if isinstance(value, ArrayType) else "NTScalar"
    return StructType(fields, f"epics:nt/{kind}:1.0")


def NTScalarArray(  # noqa: N802
    element: ScalarType,
    *,
    display: bool = False,
    control: bool = False,
    value_alarm: bool = False,
    form: bool = False,
) -> StructType:
    """Make ``epics:nt/NTScalarArray:1.0`` of ``element``."""
    return NTScalar(ArrayType(element), display=display, control=control, value_alarm=value_alarm, form=form)


def NTEnum() -> StructType:  # noqa: N802
    """Make ``epics:nt/NTEnum:1.0``."""
    return StructType(
        [
            ("value", ENUM),
            ("alarm", ALARM),
            ("timeStamp", TIME),
            ("display", StructType([("description", STRING)])),
        ],
        "epics:nt/NTEnum:1.0",
    )


class NTTable:
    """Collects the columns of an ``epics:nt/NTTable:1.0``; ``build`` makes the type, ``create`` a value with labels."""

    __slots__ = ("_columns",)

    def __init__(self, columns: Iterable[tuple[str, ScalarType]] = ()) -> None:
        self._columns: list[tuple[str, ScalarType, str]] = []
        for name, t in columns:
            self.add_column(t, name)

    def add_column(self, t: ScalarType, name: str, label: str | None = None) -> NTTable:
        """Append a column of arrays of ``t``; the default label is the name."""
        if not isinstance(t, ScalarType):
            raise PVDataError(f"column {name}: its type must be a scalar, not {t!r:.60}")
        self._columns.append((name, t, name if label is None else label))
        return self

    def build(self) -> StructType:
        """Make the type."""
        return StructType(
            [
                ("labels", _STRINGS),
                ("value", StructType([(name, ArrayType(t)) for name, t, _ in self._columns])),
                ("descriptor", STRING),
                ("alarm", ALARM),
                ("timeStamp", TIME),
            ],
            "epics:nt/NTTable:1.0",
        )

    def create(self) -> Value:
        """Make a value whose labels are set."""
        value = Value(self.build())
        value["labels"] = [label for _, _, label in self._columns]
        return value


def NTNDArray() -> StructType:  # noqa: N802
    """Make ``epics:nt/NTNDArray:1.0``."""
    kinds = (
        ("boolean", BOOL),
        ("byte", INT8),
        ("short", INT16),
        ("int", INT32),
        ("long", INT64),
        ("ubyte", UINT8),
        ("ushort", UINT16),
        ("uint", UINT32),
        ("ulong", UINT64),
        ("float", FLOAT32),
        ("double", FLOAT64),
    )
    dimension = StructType(
        [("size", INT32), ("offset", INT32), ("fullSize", INT32), ("binning", INT32), ("reverse", BOOL)],
        "dimension_t",
    )
    attribute = StructType(
        [
            ("name", STRING),
            ("value", ANY),
            ("tags", _STRINGS),
            ("descriptor", STRING),
            ("alarm", ALARM),
            ("timeStamp", TIME),
            ("sourceType", INT32),
            ("source", STRING),
        ],
        "epics:nt/NTAttribute:1.0",
    )
    return StructType(
        [
            ("value", UnionType([(f"{name}Value", ArrayType(t)) for name, t in kinds])),
            ("codec", StructType([("name", STRING), ("parameters", ANY)], "codec_t")),
            ("compressedSize", INT64),
            ("uncompressedSize", INT64),
            ("uniqueId", INT32),
            ("dataTimeStamp", TIME),
            ("alarm", ALARM),
            ("timeStamp", TIME),
            ("dimension", ArrayType(dimension)),
            ("attribute", ArrayType(attribute)),
        ],
        "epics:nt/NTNDArray:1.0",
    )


def NTURI(query: Iterable[tuple[str, TypeDesc]] = ()) -> StructType:  # noqa: N802
    """Make ``epics:nt/NTURI:1.0``, the argument of an RPC, with the ``query`` fields given."""
    return StructType(
        [("scheme", STRING), ("authority", STRING), ("path", STRING), ("query", StructType(query))],
        "epics:nt/NTURI:1.0",
    )


def NTNameValue(value: ScalarType) -> StructType:  # noqa: N802
    """Make ``epics:nt/NTNameValue:1.0``: names beside an array of ``value`` (Normative Types specification)."""
    return StructType(
        [
            ("name", _STRINGS),
            ("value", ArrayType(value)),
            ("descriptor", STRING),
            ("alarm", ALARM),
            ("timeStamp", TIME),
        ],
        "epics:nt/NTNameValue:1.0",
    )


def now_to_time(seconds: float) -> dict[str, int]:
    """Split POSIX seconds into the fields of a ``time_t``."""
    whole = int(seconds // 1)
    nanoseconds = round((seconds - whole) * 1e9)
    if nanoseconds >= 1_000_000_000:
        whole += 1
        nanoseconds = 0
    return {"secondsPastEpoch": whole, "nanoseconds": nanoseconds}

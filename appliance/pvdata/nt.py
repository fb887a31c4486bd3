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
from appliance.pvdata.value import Value, View

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
    "time_of",
    "value_alarm_type",
]

_STRINGS = ArrayType(STRING)

ALARM = StructType([("severity", INT32), ("status", INT32), ("message", STRING)], "alarm_t")
TIME = StructType([("secondsPastEpoch", INT64), ("nanoseconds", INT32), ("userTag", INT32)], "time_t")
ENUM = StructType([("index", INT32), ("choices", _STRINGS)], "enum_t")


def display_type(value: ScalarType, *, form: bool = False) -> StructType:
    """Make the ``display`` structure of a scalar or array; strings and booleans have no limits.

    Args:
        value: The type of the scalar.
        form: Whether it has ``precision`` and ``form``.

    Returns:
        The type.

    Example:
        >>> from appliance.pvdata.nt import display_type
        >>> list(display_type(FLOAT64).members)
        ['limitLow', 'limitHigh', 'description', 'units']
    """
    texts = [("description", STRING), ("units", STRING)]
    if value.kind in ("bool", "string"):
        return StructType(texts)
    more: list[tuple[str, TypeDesc]] = [("precision", INT32), ("form", ENUM)] if form else []
    return StructType([("limitLow", value), ("limitHigh", value), *texts, *more])


def control_type(value: ScalarType) -> StructType:
    """Make the ``control`` structure of a number.

    Args:
        value: The type of the number.

    Returns:
        The type.

    Example:
        >>> from appliance.pvdata.nt import control_type
        >>> list(control_type(FLOAT64).members)
        ['limitLow', 'limitHigh', 'minStep']
    """
    return StructType([("limitLow", value), ("limitHigh", value), ("minStep", value)])


def value_alarm_type(value: ScalarType) -> StructType:
    """Make the ``valueAlarm`` structure of a number.

    Args:
        value: The type of the number.

    Returns:
        The type.

    Example:
        >>> from appliance.pvdata.nt import value_alarm_type
        >>> list(value_alarm_type(FLOAT64).members)[:3]
        ['active', 'lowAlarmLimit', 'lowWarningLimit']
    """
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

    Args:
        value: The type of the field ``value``.
        display: Whether there is a structure ``display``: limits, description and units.
        control: Whether there is a structure ``control``.
        value_alarm: Whether there is a structure ``valueAlarm``.
        form: Whether ``display`` has ``precision`` and ``form``.

    Returns:
        The type; ``Value(NTScalar(FLOAT64), 1.5)`` is a value of it.

    Raises:
        PVDataError: The type is neither a scalar nor an array of scalars.

    Example:
        >>> value = Value(NTScalar(FLOAT64, display=True), {"value": 1.5, "display.units": "mm"})
        >>> value["value"], value["display.units"]
        (1.5, 'mm')
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
    """Make ``epics:nt/NTScalarArray:1.0``.

    Args:
        element: The type of one element.
        display: Whether there is a structure ``display``: limits, description and units.
        control: Whether there is a structure ``control``.
        value_alarm: Whether there is a structure ``valueAlarm``.
        form: Whether ``display`` has ``precision`` and ``form``.

    Returns:
        The type.

    Example:
        >>> Value(NTScalarArray(INT32), [1, 2, 3])["value"].tolist()
        [1, 2, 3]
    """
    return NTScalar(ArrayType(element), display=display, control=control, value_alarm=value_alarm, form=form)


def NTEnum() -> StructType:  # noqa: N802
    """Make ``epics:nt/NTEnum:1.0``.

    Returns:
        The type.

    Example:
        >>> value = Value(NTEnum(), {"value.choices": ["off", "on"]})
        >>> value["value"] = "on"
        >>> value["value.index"]
        1
    """
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
    """Collects the columns of an ``epics:nt/NTTable:1.0``; ``build`` makes the type, ``create`` a value with labels.

    Args:
        columns: Name and type of one element, for each column.

    Raises:
        PVDataError: A column's type is no scalar.

    Example:
        >>> value = NTTable([("name", STRING), ("position", FLOAT64)]).create()
        >>> value["value.name"] = ["bpm1", "bpm2"]
        >>> value["value.position"] = [0.5, 1.75]
        >>> value["labels"]
        ('name', 'position')
    """

    __slots__ = ("_columns",)

    def __init__(self, columns: Iterable[tuple[str, ScalarType]] = ()) -> None:
        self._columns: list[tuple[str, ScalarType, str]] = []
        for name, t in columns:
            self.add_column(t, name)

    def add_column(self, t: ScalarType, name: str, label: str | None = None) -> NTTable:
        """Append a column.

        Args:
            t: The type of one element.
            name: The field's name.
            label: The heading; by default the name.

        Returns:
            The table itself, so that calls can follow each other.

        Raises:
            PVDataError: The type is no scalar.

        Example:
            >>> NTTable().add_column(FLOAT64, "x", "X [mm]").create()["labels"]
            ('X [mm]',)
        """
        if not isinstance(t, ScalarType):
            raise PVDataError(f"column {name}: its type must be a scalar, not {t!r:.60}")
        self._columns.append((name, t, name if label is None else label))
        return self

    def build(self) -> StructType:
        """Make the type.

        Returns:
            The type.

        Example:
            >>> NTTable([("x", FLOAT64)]).build().id
            'epics:nt/NTTable:1.0'
        """
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
        """Make a value whose labels are set.

        Returns:
            The value; its columns are empty.

        Example:
            >>> NTTable([("x", FLOAT64)]).create()["labels"]
            ('x',)
        """
        value = Value(self.build())
        value["labels"] = [label for _, _, label in self._columns]
        return value


def NTNDArray() -> StructType:  # noqa: N802
    """Make ``epics:nt/NTNDArray:1.0``: an image, as areaDetector serves it.

    Returns:
        The type. Its field ``value`` is a union with a member for each type of pixel: ``ubyteValue``, ``ushortValue`` ...

    Example:
        >>> image = Value(NTNDArray(), {"value->ubyteValue": [0] * 6, "dimension": [{"size": 3}, {"size": 2}]})
        >>> len(image["value->ubyteValue"]), image["dimension[1].size"]
        (6, 2)
    """
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
    """Make ``epics:nt/NTURI:1.0``, the argument of a call. `appliance.Context.rpc` makes it of a mapping by itself.

    Args:
        query: Name and type of each argument.

    Returns:
        The type.

    Example:
        >>> argument = Value(NTURI([("a", FLOAT64), ("b", FLOAT64)]), {"path": "demo:sum", "query": {"a": 1, "b": 2}})
        >>> (await ctx.rpc("demo:sum", argument))["value"]
        3.0
    """
    return StructType(
        [("scheme", STRING), ("authority", STRING), ("path", STRING), ("query", StructType(query))],
        "epics:nt/NTURI:1.0",
    )


def NTNameValue(value: ScalarType) -> StructType:  # noqa: N802
    """Make ``epics:nt/NTNameValue:1.0``: names beside an array (Normative Types specification).

    Args:
        value: The type of one element.

    Returns:
        The type.

    Example:
        >>> value = Value(NTNameValue(FLOAT64), {"name": ["x", "y"], "value": [1.0, 2.0]})
        >>> value["name"]
        ('x', 'y')
    """
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
    """Split a time into the fields of a ``time_t``.

    Args:
        seconds: POSIX seconds, as ``time.time()`` gives them.

    Returns:
        The fields ``secondsPastEpoch`` and ``nanoseconds``.

    Example:
        >>> from appliance.pvdata.nt import now_to_time
        >>> now_to_time(1700000000.25)
        {'secondsPastEpoch': 1700000000, 'nanoseconds': 250000000}
    """
    whole = int(seconds // 1)
    nanoseconds = round((seconds - whole) * 1e9)
    if nanoseconds >= 1_000_000_000:
        whole += 1
        nanoseconds = 0
    return {"secondsPastEpoch": whole, "nanoseconds": nanoseconds}


def time_of(value: Value | View) -> float:
    """Return the time of a value, from its field ``timeStamp``.

    Args:
        value: A value of a normative type.

    Returns:
        POSIX seconds, as ``time.time()`` gives them; 0.0 if the time was never set. ``datetime.fromtimestamp`` makes a date of it.

    Raises:
        PVDataError: The value has no time.

    Example:
        >>> value = Value(NTScalar(FLOAT64), {"timeStamp": {"secondsPastEpoch": 1700000000, "nanoseconds": 250000000}})
        >>> time_of(value)
        1700000000.25
    """
    seconds: int = value["timeStamp.secondsPastEpoch"]
    nanoseconds: int = value["timeStamp.nanoseconds"]
    return seconds + nanoseconds / 1e9

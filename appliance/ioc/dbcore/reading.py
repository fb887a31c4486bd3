"""The results of reading a field: its value with alarm and time, and its properties."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

__all__ = ["ALARM_CONDITIONS", "AlarmLimits", "Properties", "Range", "Reading"]

#: Names of the alarm conditions by number (menuAlarmStat; epicsAlarmConditionStrings).
ALARM_CONDITIONS: Final = [
    "NO_ALARM",
    "READ",
    "WRITE",
    "HIHI",
    "HIGH",
    "LOLO",
    "LOW",
    "STATE",
    "COS",
    "COMM",
    "TIMEOUT",
    "HWLIMIT",
    "CALC",
    "SCAN",
    "LINK",
    "SOFT",
    "BAD_SUB",
    "UDF",
    "DISABLE",
    "SIMM",
    "READ_ACCESS",
    "WRITE_ACCESS",
]


class Reading(NamedTuple):
    """A value with alarm and time, read under one lock."""

    #: number, text, read-only numpy array, or tuple of strings
    value: Any
    #: alarm condition, an index into :data:`ALARM_CONDITIONS`; not the ``alarm_t`` status of PVAccess
    status: int
    #: 0 NO_ALARM, 1 MINOR, 2 MAJOR, 3 INVALID
    severity: int
    #: text of the alarm; empty when the record gave none
    message: str
    #: seconds since 1970-01-01 UTC; 631152000 for a record that was never processed
    seconds: int
    #: negative for an impossible time of more than 2.1 s, as on the wire
    nanoseconds: int
    user_tag: int


class Range(NamedTuple):
    """Limits of display or control."""

    low: float
    high: float


class AlarmLimits(NamedTuple):
    """Limits at which the record goes into alarm; NaN where it does not watch that limit."""

    low_alarm: float
    low_warning: float
    high_warning: float
    high_alarm: float


class Properties(NamedTuple):
    """The properties, which change with DBE_PROPERTY; ``None`` if the record type does not support one."""

    units: str | None
    #: digits after the decimal point; only for FLOAT and DOUBLE
    precision: int | None
    choices: tuple[str, ...] | None
    display: Range | None
    control: Range | None
    alarm: AlarmLimits | None
    #: the record's DESC
    description: str

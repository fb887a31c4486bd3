"""``schedule[]`` and ``san[]``: arrays of structures in requests, answers and status PVs.

Source: SPVA specification 7.2, 9.1, 9.2; pvxs-cms of 2026. On the wire a day is a digit, 0 for Sunday, or ``*``: pvxs-cms
takes a name such as ``MON`` for a number. What a service publishes is in UTC.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

from appliance.certs.san import San
from appliance.certs.schedule import MOST_WINDOWS, Window, read_windows
from appliance.pvdata.types import STRING, ArrayType, StructType
from appliance.pvdata.value import Value

__all__ = [
    "MAX_SHOWN_NAMES",
    "SAN_ARRAY",
    "SCHEDULE_ARRAY",
    "read_rows",
    "read_schedule",
    "read_zone",
    "san_array",
    "schedule_array",
]

_WINDOW: Final = StructType([("day_of_week", STRING), ("start_time", STRING), ("end_time", STRING)])
_NAME: Final = StructType([("type", STRING), ("value", STRING)])
SCHEDULE_ARRAY: Final = ArrayType(_WINDOW)
SAN_ARRAY: Final = ArrayType(_NAME)
MAX_SHOWN_NAMES: Final = 100
"""Most alternative names that are read of what a service says."""
_LONGEST_ZONE: Final = 64
_LONGEST_TEXT: Final = 256


@lru_cache(maxsize=1024)
def schedule_array(windows: tuple[Window, ...]) -> list[Value]:
    """Return windows as `SCHEDULE_ARRAY` holds them. Equal ones share a list, which nobody may change."""
    fields = tuple(_WINDOW.members)
    return [Value(_WINDOW, dict(zip(fields, window.wire, strict=True))) for window in windows]


@lru_cache(maxsize=1024)
def san_array(names: tuple[San, ...]) -> list[Value]:
    """Return alternative names as `SAN_ARRAY` holds them. Equal ones share a list, which nobody may change."""
    return [Value(_NAME, {"type": name.type, "value": name.value}) for name in names]


def read_rows(value: Value, field: str, columns: Sequence[str], most: int) -> list[tuple[str, ...]]:
    """Return what an array of structures of text holds, each element as a tuple.

    Args:
        value: The structure with the array.
        field: Name of the array. If it is missing, it is empty.
        columns: Names of the elements' fields.
        most: Most elements that are read.

    Raises:
        ValueError: It is another type, it is too long, or a text in it is; the message names the field.
    """
    found: Any = value.get(field)
    if found is None or (isinstance(found, list | tuple) and not found):
        return []
    if not isinstance(found, list | tuple):
        raise ValueError(f"the field {field} must be an array of structures")  # noqa: TRY004 - what a peer sent
    if len(found) > most:
        raise ValueError(f"the field {field} has {len(found)} elements; at most {most} are accepted")
    rows = []
    for element in found:
        row: list[Any] = [element.get(name) if isinstance(element, Value) else None for name in columns]
        if not all(isinstance(text, str) and len(text) <= _LONGEST_TEXT for text in row):
            raise ValueError(f"an element of the field {field} does not have the texts {', '.join(columns)}")
        rows.append(tuple(row))
    return rows


def read_schedule(value: Value, field: str = "schedule") -> tuple[Window, ...]:
    """Return the windows in ``schedule[]`` of a structure.

    Raises:
        ValueError: It is none; the message says what is wrong.
    """
    rows = read_rows(value, field, tuple(_WINDOW.members), MOST_WINDOWS)
    return read_windows(rows) if rows else ()


def read_zone(value: Value) -> str:
    """Return ``time_zone`` of a structure, empty for UTC.

    Raises:
        ValueError: It is not the name of a time zone.
    """
    found: Any = value.get("time_zone")
    if found is None:
        return ""
    if not isinstance(found, str) or len(found) > _LONGEST_ZONE or not found.isprintable():
        raise ValueError("the field time_zone must be the name of a time zone, such as Europe/Berlin")
    return found

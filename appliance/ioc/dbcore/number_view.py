"""A number in its record's own memory: an update of a monitor reads it without a call into EPICS.

``dbChannelGet`` of a plain number copies ``VAL`` and some fields that all records share out of the record, and asks
the record type for the properties. The first is what a view does itself, at the offsets that the database definition
gives, while the record is locked. Of the properties it takes those fields that the definition declares as such
(``prop(YES)``): equal octets mean equal properties, and EPICS is asked only if they differ.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, Final, NamedTuple

from appliance.epoch import EPICS_EPOCH_S
from appliance.errors import OperationError
from appliance.ioc.dbcore import _c
from appliance.ioc.dbcore.channel import DBChannel
from appliance.ioc.dbcore.many import _MANY, ManyLock
from appliance.ioc.dbcore.number_read import can_read_number
from appliance.ioc.dbcore.reading import Reading
from appliance.ioc.dbcore.records import common_place, fields_of

_MESSAGE_SIZE: Final = 40
_SEVERITY_AT: Final = 2
_MESSAGE_AT: Final = 4
_ALARM_SIZE: Final = _MESSAGE_AT + _MESSAGE_SIZE
_NEAR: Final = 8
"""The most octets between two properties that are read together; they are mostly alignment."""

#: status, severity and message as they lie in the record; seconds since 1990, nanoseconds, tag, value (a text as 39 octets)
RawNumber = tuple[bytes, int, int, int, Any]


class NumberView:
    """The value field of one record, one number, enum or text.

    ``read()`` gives a :data:`RawNumber` and ``properties()`` a tuple to compare with an earlier one. Both only while
    the record is locked and the channel is open.

    Raises:
        OperationError: the channel is something else, see :func:`can_view_number` and :func:`can_view_text`.

    """

    __slots__ = ("address", "channel", "common", "places", "properties", "read")

    def __init__(self, channel: DBChannel) -> None:
        layout = _layout_of(channel)
        if layout is None:
            raise OperationError(f"{channel.name} cannot be viewed: it is no plain number and no short text")
        memory = memoryview((ctypes.c_char * layout.size).from_address(channel.record_address)).cast("B")
        self.channel = channel
        self.address = channel.record_address
        self.places = layout.places
        """Where everything lies in the record, and its type as the module ``struct`` names it: alarm, time, tag, value, properties."""
        self.common = layout.first
        """How many places are before the properties."""
        self.read: Callable[[], RawNumber] = partial(layout.common.unpack_from, memory)
        self.properties: Callable[[], tuple[bytes, ...]] = partial(layout.properties.unpack_from, memory)

    def look(self) -> tuple[RawNumber, tuple[bytes, ...]]:
        """Read both under the record's lock."""
        with self.channel.locked():
            return self.read(), self.properties()


def can_view_number(channel: DBChannel) -> bool:
    """Whether :class:`NumberView` can read it: a value field with one number in the record's own memory, no filters."""
    return can_read_number(channel) and _layout_of(channel) is not None


def can_view_text(channel: DBChannel) -> bool:
    """Whether :class:`NumberView` can read it, as 39 octets: a value field with one text in the record's own memory, no filters."""
    return _is_text(channel) and _layout_of(channel) is not None


def _is_text(channel: DBChannel) -> bool:
    return channel.is_plain and channel.final_type == _c.DBF_STRING


def view_numbers(views: Sequence[NumberView]) -> list[tuple[RawNumber, tuple[bytes, ...]]]:
    """Read many, with one release of the GIL per thousand."""
    found: list[tuple[RawNumber, tuple[bytes, ...]]] = []
    for start in range(0, len(views), _MANY):
        some = views[start : start + _MANY]
        lock = ManyLock([view.channel for view in some])
        try:
            with lock:
                found += [(view.read(), view.properties()) for view in some]
        finally:
            lock.close()
    return found


def reading_of(raw: RawNumber) -> Reading:
    """Convert a :data:`RawNumber` to a reading like that of :meth:`DBChannel.get`."""
    alarm, seconds, nanoseconds, tag, value = raw
    if isinstance(value, bytes):
        value = _c.c_text(value)
    status, severity = _TWO.unpack_from(alarm)
    message = _c.text(alarm[_MESSAGE_AT:].partition(b"\0")[0])
    return Reading(value, status, severity, message, seconds + EPICS_EPOCH_S, nanoseconds, tag)


_TWO: Final = struct.Struct("=HH")


class _Layout(NamedTuple):
    common: struct.Struct
    properties: struct.Struct
    size: int
    """Octets of the record up to the last one that is read."""
    places: tuple[tuple[int, str], ...]
    first: int
    """How many of them are no properties."""


def _layout_of(channel: DBChannel) -> _Layout | None:
    if not channel.is_value_field or not (can_read_number(channel) or _is_text(channel)):
        return None
    return _layout(channel.record_type, channel.field, channel.final_type)


@cache
def _layout(record_type: str, field: str, kind: int) -> _Layout | None:
    """Make the structs that pick the octets of one record type, or None if it has another layout."""
    alarm = common_place("STAT")
    if (common_place("SEVR"), common_place("AMSG")) != (alarm + _SEVERITY_AT, alarm + _MESSAGE_AT):
        return None
    code = _c.STRUCT_CODES[kind]
    fields = fields_of(record_type)
    value = fields[field]
    if value.size != struct.calcsize("=" + code):
        return None
    if kind == _c.DBF_STRING:
        code = f"{_c.MAX_STRING_SIZE - 1}s"  # EPICS never shows the last octet, which is for the nul
    first = [
        (alarm, f"{_ALARM_SIZE}s"),
        (common_place("TIME"), "Ii"),
        (common_place("UTAG"), "Q"),
        (value.offset, code),
    ]
    common = _picker(first)
    ranges: list[tuple[int, int]] = []
    for place in sorted(each for each in fields.values() if each.is_property):
        if ranges and place.offset - ranges[-1][1] <= _NEAR:
            ranges[-1] = (ranges[-1][0], place.offset + place.size)
        else:
            ranges.append((place.offset, place.offset + place.size))
    others = [(start, f"{end - start}s") for start, end in ranges]
    properties = _picker(others)
    if common is None or properties is None:
        return None
    return _Layout(common, properties, max(common.size, properties.size), tuple(first + others), len(first))


def _picker(places: list[tuple[int, str]]) -> struct.Struct | None:
    """Make a struct of what lies at some offsets; None unless they ascend."""
    text, at = "=", 0
    for offset, code in places:
        if offset < at:
            return None
        text += f"{offset - at}x{code}"
        at = offset + struct.calcsize("=" + code)
    return struct.Struct(text)

"""Everything about a plain number in one call: value, alarm, time stamp and properties under one lock.

A server that answers a GET needs all of it, and most of it is what it was the last time. So the properties come
as raw octets, which are compared with those of the last time, and are only taken apart when they differ. There is no
cache that could be outdated.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Any, Final, NamedTuple

from appliance.epoch import EPICS_EPOCH_S
from appliance.errors import OperationError
from appliance.ioc.dbcore import _c
from appliance.ioc.dbcore.channel import DBChannel
from appliance.ioc.dbcore.dbr import CONTROL, MAX_CHOICES, META, PROPERTIES, get_arguments
from appliance.ioc.dbcore.reading import AlarmLimits, Properties, Range, Reading
from appliance.ioc.dbcore.records import common_field
from appliance.ioc.dbcore.words import status_text

_UNITS: Final = 16
_PRECISION: Final = struct.Struct("=q")
_CHOICES_SIZE: Final = MAX_CHOICES * _c.MAX_STRING_SIZE
_NUMBER: Final = struct.Struct("=I")
_TWO: Final = struct.Struct("=2d")
_FOUR: Final = struct.Struct("=4d")
_get: Final = _c.dbChannelGetFieldFast


class RawProperties(NamedTuple):
    """Raw properties from EPICS, to be compared with earlier ones; :meth:`NumberReader.properties` reads them."""

    #: units and precision
    front: bytes
    #: choices and limits
    back: bytes
    #: the record's DESC, which may have no terminating nul
    description: bytes


class NumberReader:
    """Reads value, alarm, time and properties of one number (or enum) in one call.

    ``read()`` returns ``(status, severity, acks, ackt, message, front, seconds, nanoseconds, tag, back, value)`` as
    EPICS has them: seconds since 1990, the message as 40 octets. ``front``, ``back`` and ``description.value`` are
    the parts of :class:`RawProperties`. It is a bare tuple for the sake of GETs, which are answered from it.

    Raises:
        OperationError: the channel is not a plain number but an array or a string, or has filters.

    """

    __slots__ = (
        "_arguments",
        "_buffer",
        "_channel",
        "_control",
        "_options",
        "_unpack",
        "_wanted",
        "description",
    )

    def __init__(self, channel: DBChannel) -> None:
        if not can_read_number(channel):
            raise OperationError(f"{channel.name} is not a plain number")
        self._channel = channel
        self._buffer = ctypes.create_string_buffer(2048)
        self._control = ctypes.create_string_buffer(CONTROL.size)
        control = ctypes.addressof(self._control)
        self._options = ctypes.c_long.from_buffer(self._control)
        self._arguments = get_arguments(
            channel.address, channel.final_type, ctypes.addressof(self._buffer), control
        )
        #: the record's DESC; its ``value`` are the octets now
        place = common_field("DESC")
        self.description: Any = (ctypes.c_char * place.size).from_address(
            channel.record_address + place.offset
        )
        self._probe()

    def _probe(self) -> None:
        """Find the options that the record type supports for this field; later calls use only these."""
        CONTROL.pack_into(self._control, 0, META | PROPERTIES, 1)
        self._check(_get(*self._arguments))
        self._wanted = have = self._options.value
        front = (_UNITS if have & _c.DBR_UNITS else 0) + (8 if have & _c.DBR_PRECISION else 0)
        back = (
            (8 + _CHOICES_SIZE if have & _c.DBR_ENUM_STRS else 0)
            + (16 if have & _c.DBR_GR_DOUBLE else 0)
            + (16 if have & _c.DBR_CTRL_DOUBLE else 0)
            + (32 if have & _c.DBR_AL_DOUBLE else 0)
        )
        code = _c.STRUCT_CODES[self._channel.final_type]
        self._unpack = struct.Struct(f"=4H40s{front}sIiQ{back}s{code}").unpack_from

    def _check(self, status: int) -> None:
        if status:
            raise OperationError(f"cannot read {self._channel.name}: {status_text(status)}")

    def read(self) -> tuple[Any, ...]:
        """Read everything; the class describes the result.

        Raises:
            OperationError: EPICS cannot read the field.
        """
        status = _get(*self._arguments)
        if status:
            self._check(status)
        if self._options.value != self._wanted:
            # The result has the requested layout, but the next call would request less.
            self._probe()
            self._check(_get(*self._arguments))
        return self._unpack(self._buffer)

    def read_all(self) -> tuple[Reading, Properties]:
        """Read the value with alarm and time, and the properties.

        Raises:
            OperationError: EPICS cannot read the field.
        """
        status, severity, _, _, message, front, seconds, nanoseconds, tag, back, value = self.read()
        reading = Reading(
            value, status, severity, _c.c_text(message), seconds + EPICS_EPOCH_S, nanoseconds, tag
        )
        return reading, self.properties(RawProperties(front, back, self.description.value))

    def read_properties(self) -> RawProperties:
        """Read only the properties.

        Raises:
            OperationError: EPICS cannot read the field.
        """
        _, _, _, _, _, front, _, _, _, back, _ = self.read()
        return RawProperties(front, back, self.description.value)

    def properties(self, raw: RawProperties) -> Properties:
        """Decode raw properties."""
        front, back, description = raw
        have = self._wanted
        units = precision = choices = display = control = alarm = None
        if have & _c.DBR_UNITS:
            units = _c.c_text(front[:_UNITS])
            front = front[_UNITS:]
        if have & _c.DBR_PRECISION:
            (precision,) = _PRECISION.unpack(front)
        at = 0
        if have & _c.DBR_ENUM_STRS:
            (number,) = _NUMBER.unpack_from(back)
            size = _c.MAX_STRING_SIZE
            choices = tuple(
                _c.c_text(back[8 + i * size : 8 + (i + 1) * size]) for i in range(min(number, MAX_CHOICES))
            )
            at = 8 + _CHOICES_SIZE
        if have & _c.DBR_GR_DOUBLE:
            high, low = _TWO.unpack_from(back, at)
            display = Range(low, high)
            at += 16
        if have & _c.DBR_CTRL_DOUBLE:
            high, low = _TWO.unpack_from(back, at)
            control = Range(low, high)
            at += 16
        if have & _c.DBR_AL_DOUBLE:
            hihi, high, low, lolo = _FOUR.unpack_from(back, at)
            alarm = AlarmLimits(lolo, low, high, hihi)
        return Properties(units, precision, choices, display, control, alarm, _c.text(description))


def can_read_number(channel: DBChannel) -> bool:
    """Whether :class:`NumberReader` can read the channel: one number or enum, no array, no filters."""
    return channel.is_plain and not channel.is_string

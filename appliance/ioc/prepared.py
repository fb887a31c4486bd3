"""Answers to GET that are made from the record while the request is parsed.

The server answers a GET with a prepared answer inside its parsing loop. A record's answer cannot be kept,
since only the record knows when it changes. So it is made each time, but nearly all of its octets are reused:
properties and alarm are only serialised again if they differ.
"""

from __future__ import annotations

from struct import Struct
from typing import Any, Final

from appliance.epoch import EPICS_EPOCH_S
from appliance.errors import ApplianceError
from appliance.ioc.dbcore import RawProperties, Reading
from appliance.ioc.mapping import user_tag
from appliance.ioc.record import Record
from appliance.pva.selection import encode_answer, wire_bits
from appliance.pva.server_operation import PreparedAnswer
from appliance.pva.status import OK_BYTES
from appliance.pvdata.bitset import encode_bitset
from appliance.pvdata.codec import codec
from appliance.pvdata.types import ScalarType

__all__ = ["LiveAnswer"]

_TIME: Final = (Struct("<qii"), Struct(">qii"))
_MAX_ALARMS: Final = 16


class LiveAnswer(PreparedAnswer):
    """The answer of one record for one selection of fields and one byte order; it is made again for each GET.

    Args:
        record: the record, a plain number that has a ``reader``.
        mask: the selected fields, in leaf form.
        big: whether the client's byte order is big-endian.

    """

    __slots__ = (
        "_alarm",
        "_alarms",
        "_back",
        "_bits",
        "_description",
        "_end",
        "_front",
        "_head",
        "_is_fast",
        "_mask",
        "_pack_time",
        "_pack_value",
        "_raw_alarm",
        "_read",
        "_store",
        "big",
        "record",
    )

    def __init__(self, record: Record, mask: int, *, big: bool) -> None:
        super().__init__()
        self.record = record
        self.big = big
        assert record.reader is not None
        self._read = record.reader.read
        self._description = record.reader.description
        self._mask = mask
        mapping = record.mapping
        needed = mapping.value_bits | mapping.alarm_bits | mapping.time_bits
        self._is_fast = mask & needed == needed
        kind = mapping.type.leaf_types[mapping.value]
        assert isinstance(kind, ScalarType)
        self._pack_value = Struct((">" if big else "<") + kind.fmt).pack
        self._pack_time = _TIME[big].pack
        self._front: Any = None
        self._back: Any = None
        self._store: list[Any] = []
        self._bits = 0
        self._head = self._end = self._alarm = b""
        self._raw_alarm: Any = None
        self._alarms: dict[Any, bytes] = {}

    def make_tail(self) -> bytes | None:
        """Read the record and make the octets; return None if EPICS cannot read it. The usual way then reports the reason."""
        try:
            status, severity, _, _, message, front, seconds, nanoseconds, tag, back, value = self._read()
        except ApplianceError:
            return None
        description = self._description.value
        if (front, description) != self._front or back != self._back:
            self._take_properties(front, back, description)
        if self.record.tag_bits:
            tag = nanoseconds & self.record.tag_bits
            nanoseconds -= tag
        elif tag > 0x7FFFFFFF:
            tag = user_tag(tag)
        alarm = (status, severity, message)
        if alarm != self._raw_alarm:
            self._take_alarm(alarm)
        if self._is_fast:
            return b"".join(
                (
                    self._head,
                    self._pack_value(value),
                    self._alarm,
                    self._pack_time(seconds + EPICS_EPOCH_S, nanoseconds, tag),
                    self._end,
                )
            )
        mapping = self.record.mapping
        store = self._store
        store[mapping.value] = value
        at = mapping.meta + 4
        store[at] = seconds + EPICS_EPOCH_S
        store[at + 1] = nanoseconds
        store[at + 2] = tag
        return encode_answer(mapping.type, self._bits & self._mask, store, big=self.big)

    def _take_properties(self, front: bytes, back: bytes, description: bytes) -> None:
        """Serialise the parts before the value and after the time stamp."""
        record = self.record
        mapping = record.mapping
        assert record.reader is not None
        properties = record.reader.properties(RawProperties(front, back, description))
        store = record.empty_store()
        bits = record.static_bits | mapping.set_properties(store, 0, properties)
        bits |= mapping.value_bits | mapping.alarm_bits | mapping.time_bits
        self._store = store
        self._bits = bits
        kind = mapping.type
        selected = bits & self._mask
        encode = codec(kind, self.big).encode_partial
        wire = wire_bits(kind, selected)
        self._head = OK_BYTES + encode_bitset(wire, self.big)
        after = selected >> (mapping.meta + 7) << (mapping.meta + 7)
        self._end = encode(store, after) if after else b""
        self._alarms = {}
        self._raw_alarm = None
        self._front = (front, description)
        self._back = back

    def _take_alarm(self, alarm: tuple[int, int, bytes]) -> None:
        """Serialise the part between the value and the time stamp: the choices of an enum, and the alarm."""
        if not self._is_fast or (known := self._alarms.get(alarm)) is None:
            mapping = self.record.mapping
            status, severity, raw = alarm
            message = raw.partition(b"\0")[0].decode("utf-8", "surrogateescape")
            reading = Reading(0, status, severity, message, 0, 0, 0)
            mapping.set_alarm(self._store, 0, reading)
            bits = mapping.alarm_bits
            if mapping.choices:
                bits |= self._bits & self._mask & 1 << mapping.choices
            known = codec(mapping.type, self.big).encode_partial(self._store, bits)
            if len(self._alarms) >= _MAX_ALARMS:
                self._alarms.clear()
            self._alarms[alarm] = known
        self._alarm = known
        self._raw_alarm = alarm

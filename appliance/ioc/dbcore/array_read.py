"""Arrays of numbers, read into the memory of the message that they will be sent in.

EPICS writes alarm, time and numbers one after the other into the memory that it is given. That memory is made with room
behind the numbers. Once alarm and time have been taken out of it, what a message has before an array fits into
their place. So the array is copied once, out of the record and under its lock, and never again on its way to the socket.
Each reading has memory of its own, and after the message was made nothing writes into it.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from appliance.epoch import EPICS_EPOCH_S
from appliance.errors import OperationError
from appliance.ioc.dbcore import _c
from appliance.ioc.dbcore.channel import DBChannel
from appliance.ioc.dbcore.dbr import CONTROL, ITEM_SIZES, META, META_SIZE, get_arguments
from appliance.ioc.dbcore.many import ManyLock
from appliance.ioc.dbcore.reading import Reading
from appliance.ioc.dbcore.words import status_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ROOM_BEFORE", "ArrayReader", "ArrayReading", "can_read_array", "forget_locks", "read_arrays"]

#: Octets before the numbers that a message may use.
ROOM_BEFORE: Final = META_SIZE
#: Octets behind them.
ROOM_BEHIND: Final = 64
#: Octets of values that are read under one lock, if there are several: some tenths of a millisecond of copying.
_AT_ONCE: Final = 1 << 20
#: Octets of an array that is copied while other threads of Python run. For a smaller one it costs a quarter more time to let
#: them run and to wait for them, so its record is locked meanwhile: some milliseconds, if one of them computes.
_LARGE: Final = 256 << 10
#: Locks that are kept.
_LOCKS: Final = 64

_get: Final = _c.dbChannelGetHeld
_octet: Final = ctypes.c_char.from_buffer
_address: Final = ctypes.addressof
# As META_STRUCT, with all of the alarm as one block.
_unpack: Final = struct.Struct("=48sIiQ").unpack_from
_unpack_alarm: Final = struct.Struct("=HH4x40s").unpack


class ArrayReading:
    """An array that was read.

    Attributes:
        raw: the alarm as EPICS wrote it, seconds since 1990, nanoseconds, tag.
        memory: the array from ``ROOM_BEFORE`` to ``end``, and ``ROOM_BEHIND`` octets behind it. Who has the reading may write
            into both rooms.
        end: where the array ends.
        count: how many numbers it has.
    """

    __slots__ = ("_value", "count", "end", "memory", "raw", "reader")

    def __init__(
        self, reader: ArrayReader, raw: tuple[Any, ...], memory: memoryview, count: int, end: int
    ) -> None:
        self.reader = reader
        self.raw = raw
        self.memory = memory
        self.count = count
        self.end = end
        self._value: NDArray[Any] | None = None

    @property
    def value(self) -> NDArray[Any]:
        """The array, read-only."""
        if self._value is None:
            import numpy as np

            self._value = np.frombuffer(self.memory, self.reader.dtype, self.count, ROOM_BEFORE)
            self._value.flags.writeable = False
        return self._value

    def reading(self) -> Reading:
        """Return it as a reading like that of :meth:`DBChannel.get`."""
        alarm, seconds, nanoseconds, tag = self.raw
        status, severity, message = _unpack_alarm(alarm)
        return Reading(
            self.value, status, severity, _c.c_text(message), seconds + EPICS_EPOCH_S, nanoseconds, tag
        )


class ArrayReader:
    """Reads one field with an array of numbers.

    Args:
        channel: one of those of which :func:`can_read_array` is true; it is used by one thread.

    Attributes:
        channel: the field.
        dtype: numpy's name of the numbers' type.
        item: octets of one number.
        size: octets of the longest array.

    """

    __slots__ = (
        "_arguments",
        "_control",
        "_count",
        "_data",
        "_elements",
        "channel",
        "dtype",
        "item",
        "size",
    )

    def __init__(self, channel: DBChannel) -> None:
        self.channel = channel
        self.dtype = _c.NUMPY_CODES[channel.final_type]
        self.item = ITEM_SIZES[channel.final_type]
        self.size = channel.elements * self.item
        self._elements = channel.elements
        self._control = ctypes.create_string_buffer(CONTROL.size)
        self._count = ctypes.c_long.from_buffer(self._control, CONTROL.size // 2)
        self._arguments = get_arguments(
            channel.address, channel.final_type, 0, ctypes.addressof(self._control)
        )
        self._data = self._arguments[2]

    def read(self, memory: memoryview) -> int:
        """Read into memory under the record's lock; return how many numbers came."""
        return self._read(_c.dbChannelGetField, memory)

    def read_locked(self, memory: memoryview) -> int:
        """Read into memory, for a caller who holds the record's lock; return how many numbers came."""
        return self._read(_get, memory)

    def _read(self, function: Any, memory: memoryview) -> int:
        CONTROL.pack_into(self._control, 0, META, self._elements)
        self._data.value = _address(_octet(memory))
        status = function(*self._arguments)
        if status:
            raise OperationError(f"cannot read {self.channel.name}: {status_text(status)}")
        return self._count.value

    def reading(self, memory: memoryview, count: int) -> ArrayReading:
        """Return what was read."""
        end = ROOM_BEFORE + count * self.item
        if 2 * end < len(memory):
            # A value may stay long in a queue: it must not hold memory for missing elements.
            memory = memoryview(bytearray(memory[: end + ROOM_BEHIND]))
        return ArrayReading(self, _unpack(memory), memory, count, end)


def can_read_array(channel: DBChannel) -> bool:
    """Whether :class:`ArrayReader` can read it: an array of numbers without filters."""
    return channel.is_array and not channel.is_string and not channel.has_filters


_locks: Final[dict[tuple[int, ...], ManyLock]] = {}
"""Locks of records that were read together: mostly the same ones change together again."""


def _lock_of(readers: Sequence[ArrayReader]) -> ManyLock:
    key = tuple([reader.channel.record_address for reader in readers])
    lock = _locks.get(key)
    if lock is None:
        if len(_locks) >= _LOCKS:
            forget_locks()
        lock = _locks[key] = ManyLock.of_records(key)
    return lock


def forget_locks() -> None:
    """Free what is kept for arrays that are read together."""
    while _locks:
        _locks.popitem()[1].close()


def read_arrays(readers: Sequence[ArrayReader]) -> list[ArrayReading]:
    """Read some arrays, with one lock for as many of them as are not large together.

    Raises:
        OperationError: EPICS cannot read one of them.

    """
    import numpy as np

    found: list[ArrayReading] = []
    start = 0
    while start < len(readers):
        end, weight = start, 0
        while end < len(readers) and (end == start or weight + readers[end].size <= _AT_ONCE):
            readers[end].channel.refuse_closed()
            weight += readers[end].size
            end += 1
        some = readers[start:end]
        # This is done before, because scan threads wait for the locks.
        memories = [np.empty(ROOM_BEFORE + reader.size + ROOM_BEHIND, np.uint8).data for reader in some]
        if len(some) == 1 and weight > _LARGE:
            counts = [some[0].read(memories[0])]
        else:
            with _lock_of(some):
                counts = [reader.read_locked(memory) for reader, memory in zip(some, memories, strict=True)]
        found += [
            reader.reading(memory, count)
            for reader, memory, count in zip(some, memories, counts, strict=True)
        ]
        start = end
    return found

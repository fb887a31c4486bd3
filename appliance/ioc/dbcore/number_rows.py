"""The numbers and short texts of many records at once: a few calls of numpy gather them from the records' memory.

A :class:`NumberView` reads one record; this reads hundreds, and compares each with what was read before. Both read the same
octets: the alarm, the time, the tag, the value, and the properties that the database definition declares.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from appliance.ioc.dbcore.many import ManyLock
from appliance.ioc.dbcore.number_view import NumberView, RawNumber

__all__ = ["Flags", "NumberRows", "Octets", "Rows"]

Rows = npt.NDArray[np.intp]
Octets = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]
_FIRST: Final = 64
_MARGIN: Final = 16 << 20
"""Octets that are seen below and above a record beyond the others: the next ones lie near it, and looking anew costs more than reading."""


class NumberRows:
    """A table with a row for each watched record of one layout, and in it what its clients were told last.

    Args:
        view: a view of the first record.

    """

    def __init__(self, view: NumberView) -> None:
        self._places = view.places
        self._raw = struct.Struct("=" + "".join(code for _, code in view.places[: view.common]))
        codes = [code for _, code in view.places[view.common :]]
        self._known = struct.Struct("=" + "".join(codes))
        self.alarm_size = struct.calcsize("=" + view.places[0][1])
        self.common_size = self._raw.size
        size = self._raw.size + self._known.size
        self.value_code = view.places[view.common - 1][1]
        """The type of a value, as the module ``struct`` names it."""
        self.value_at = self._raw.size - struct.calcsize("=" + self.value_code)
        self._table: Octets = np.zeros((_FIRST, size), np.uint8)
        self._addresses = np.zeros(_FIRST, np.uintp)
        self._free = list(range(_FIRST - 1, -1, -1))
        self._low = self._high = 0
        self._memory: list[tuple[slice, int, Any]] = []

    @property
    def capacity(self) -> int:
        """How many rows there are now."""
        return len(self._addresses)

    def add(self, view: NumberView) -> int:
        """Take a row for a record of the same layout."""
        if not self._free:
            count = self.capacity
            self._table = np.concatenate([self._table, np.zeros_like(self._table)])
            self._addresses = np.concatenate([self._addresses, np.zeros_like(self._addresses)])
            self._free = list(range(2 * count - 1, count - 1, -1))
        row = self._free.pop()
        self._addresses[row] = view.address
        if not self._low <= view.address < self._high:
            self._look_at(view.address)
        return row

    def remove(self, row: int) -> None:
        """Give a row back."""
        self._free.append(row)

    def _look_at(self, address: int) -> None:
        """Let numpy see the memory from the first record to the last, and around. Only octets of records are ever read there."""
        self._low = min(self._low or address, max(address - _MARGIN, 1))
        self._high = max(self._high, address + _MARGIN)
        end = max(offset + struct.calcsize("=" + code) for offset, code in self._places)
        memory: Any = (ctypes.c_char * (self._high - self._low + end)).from_address(self._low)
        self._memory = []
        at = 0
        for offset, code in self._places:
            size = struct.calcsize("=" + code)
            # An element for each octet at which one could begin.
            elements = np.ndarray((self._high - self._low,), f"V{size}", memory, offset, (1,))
            self._memory.append((slice(at, at + size), size, elements))
            at += size

    def _look(self, rows: Rows) -> Octets:
        """Read records, which must be locked."""
        table: Octets = np.empty((len(rows), self._table.shape[1]), np.uint8)
        at = (self._addresses[rows] - np.uintp(self._low)).astype(np.intp)
        for place, size, elements in self._memory:
            table[:, place] = elements[at].view(np.uint8).reshape(-1, size)
        return table

    def read(self, rows: Rows) -> Octets:
        """Lock records and read them: a row of octets for each."""
        lock = ManyLock.of_array(self._addresses[rows])
        try:
            with lock:
                return self._look(rows)
        finally:
            lock.close()

    def compare(self, rows: Rows, seen: Octets) -> tuple[Flags, Flags]:
        """Compare with what clients were told: whether alarm and properties are the same, and whether value or time is new."""
        told = self._table[rows]
        first, last = self.alarm_size, self.common_size
        same: Flags = (seen[:, :first] == told[:, :first]).all(1)
        if seen.shape[1] > last:
            same &= (seen[:, last:] == told[:, last:]).all(1)
        new: Flags = (seen[:, first:last] != told[:, first:last]).any(1)
        return same, new

    def note(self, rows: Rows, seen: Octets, told: Flags) -> None:
        """Note what the clients of these records are told now, if they are."""
        if told.all():
            self._table[rows] = seen
        else:
            self._table[rows[told]] = seen[told]

    def parts(self, seen: Octets) -> tuple[RawNumber, tuple[bytes, ...]]:
        """Take one row of octets apart, as :meth:`NumberView.look` gives it."""
        octets = seen.tobytes()
        raw: Any = self._raw.unpack_from(octets)
        return raw, self._known.unpack_from(octets, self._raw.size)

    def told(self, row: int) -> tuple[RawNumber, tuple[bytes, ...]]:
        """Return what the clients of one record were told last."""
        return self.parts(self._table[row])

    def note_parts(self, row: int, raw: RawNumber, known: Sequence[bytes]) -> None:
        """Note what the clients of one record are told now."""
        octets = self._raw.pack(*raw) + b"".join(known)
        self._table[row] = np.frombuffer(octets, np.uint8)

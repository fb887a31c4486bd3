"""Several records at once: one lock for all of them, one release of the GIL for reading a thousand."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, Self

from appliance.errors import ApplianceError
from appliance.ioc.dbcore import _c
from appliance.ioc.dbcore.channel import DBChannel
from appliance.ioc.dbcore.reading import Reading

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class ManyLock:
    """A lock of several records at once, for atomic groups (dbLocker).

    Use as a context manager, any number of times, by one thread at a time. Not recursive, and a thread may hold
    only one: EPICS would suspend it for good.

    Raises:
        ApplianceError: EPICS cannot make the lock.

    """

    def __init__(self, channels: Sequence[DBChannel]) -> None:
        self._make([channel.record_address for channel in channels])

    @classmethod
    def of_records(cls, addresses: Iterable[int]) -> Self:
        """Make the lock of records whose addresses (``dbCommon``) are known."""
        lock = cls.__new__(cls)
        lock._make(addresses)
        return lock

    @classmethod
    def of_array(cls, addresses: NDArray[np.uintp]) -> Self:
        """Make the lock of the records whose addresses an array of numpy holds, one after the other."""
        lock = cls.__new__(cls)
        lock._allocate(addresses.ctypes.data, len(addresses))
        return lock

    def _make(self, records: Iterable[int]) -> None:
        addresses = list(dict.fromkeys(records))
        array = (ctypes.c_void_p * max(len(addresses), 1))(*addresses)
        self._allocate(ctypes.addressof(array), len(addresses))

    def _allocate(self, array: int, count: int) -> None:
        self._locker = _c.dbLockerAlloc(array, count, 0)
        if not self._locker:
            raise ApplianceError("cannot make a lock of several records")

    def __enter__(self) -> Self:
        _c.dbScanLockMany(self._locker)
        return self

    def __exit__(self, *_: object) -> None:
        _c.dbScanUnlockMany(self._locker)

    def close(self) -> None:
        """Free the lock (dbLockerFree); it must not be held."""
        if self._locker:
            _c.dbLockerFree(self._locker)
            self._locker = None


#: Records that :func:`get_many` locks at once: others wait for one of them some tenths of a millisecond.
_MANY: Final = 1024


def get_many(channels: Sequence[DBChannel]) -> list[Reading]:
    """Read many channels with one release of the GIL per thousand.

    A get releases the GIL because it may have to wait for the record. Beside another busy Python thread each
    release costs milliseconds; here the records are locked together and then read with the GIL held. A
    thousand readings are also consistent with each other.

    Raises:
        OperationError: EPICS cannot read one of them.

    """
    readings: list[Reading] = []
    for start in range(0, len(channels), _MANY):
        some = channels[start : start + _MANY]
        if len(some) == 1:
            readings.append(some[0].get())
            continue
        lock = ManyLock(some)
        try:
            with lock:
                readings.extend([channel.get_locked() for channel in some])
        finally:
            lock.close()
    return readings

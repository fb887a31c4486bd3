"""Records that are processed again and again from Python: all that this needs is made once."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Final

from appliance.ioc.dbcore import _c
from appliance.ioc.dbcore.many import ManyLock
from appliance.ioc.dbcore.records import common_place

__all__ = ["Target", "process_each", "process_together", "scan_once"]

# Without declared arguments, for ready-made ones: that saves a third of the time of a call. These two may wait.
_waiting: Final = ctypes.CDLL(_c.library_file("dbCore"))
_lock: Final[Any] = _waiting.dbScanLock
_process: Final[Any] = _waiting.dbProcess
_lock.restype = None
# This one does not, so it keeps the GIL.
_unlock: Final[Any] = ctypes.PyDLL(_c.library_file("dbCore")).dbScanUnlock
_unlock.restype = None


class Target:
    """One record.

    Args:
        record: Its address (``dbCommon``).
        only_passive: Leave it alone unless its SCAN is Passive.
    """

    __slots__ = ("_active", "_again", "_scan", "address", "only_passive", "record")

    def __init__(self, record: int, *, only_passive: bool) -> None:
        self.record = record
        self.only_passive = only_passive
        self.address = ctypes.c_void_p(record)
        self._scan = ctypes.c_ushort.from_address(record + common_place("SCAN"))
        self._active = ctypes.c_ubyte.from_address(record + common_place("PACT"))
        self._again = ctypes.c_ubyte.from_address(record + common_place("RPRO"))

    def process_locked(self) -> None:
        """Process it while it is locked; an active one is processed again when it is done (RPRO)."""
        if self.only_passive and self._scan.value:
            return
        if self._active.value:
            self._again.value = 1
        else:
            _process(self.address)


def process_each(targets: Sequence[Target]) -> None:
    """Process records one after the other; waits for the lock of each."""
    for target in targets:
        address = target.address
        _lock(address)
        try:
            # As process_locked does.
            if target.only_passive and target._scan.value:
                continue
            if target._active.value:
                target._again.value = 1
            else:
                _process(address)
        finally:
            _unlock(address)


def process_together(lock: ManyLock, targets: Sequence[Target]) -> None:
    """Process records in order under one lock of all of them."""
    with lock:
        for target in targets:
            target.process_locked()


def scan_once(record: int) -> None:
    """Have EPICS process a record soon, in a thread of its own (scanOnce)."""
    _c.scanOnce(record)

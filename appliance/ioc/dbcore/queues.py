"""What EPICS Base tells of itself: its queues, suspended threads, clients of Channel Access."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, byref, c_int, c_uint, c_void_p
from typing import Final, NamedTuple

from appliance.ioc.dbcore import _c

__all__ = ["QueueUse", "channel_access_clients", "queues", "suspended_threads"]

_PRIORITIES: Final = 3
_THREAD_FUNCTION: Final = ctypes.CFUNCTYPE(None, c_void_p)


class QueueUse(NamedTuple):
    """The use of one of EPICS' queues."""

    size: int
    used: int
    most: int
    """The most entries that it had at one time."""
    overruns: int


class _ScanOnce(Structure):
    """dbScan.h: ``scanOnceQueueStats``."""

    _fields_ = (("size", c_int), ("numUsed", c_int), ("maxUsed", c_int), ("numOverflow", c_int))


class _Callback(Structure):
    """callback.h: ``callbackQueueStats``."""

    _fields_ = (
        ("size", c_int),
        ("numUsed", c_int * _PRIORITIES),
        ("maxUsed", c_int * _PRIORITIES),
        ("numOverflow", c_int * _PRIORITIES),
    )


def queues() -> dict[str, QueueUse]:
    """Return the use of the queue for ``scanOnce`` and of those for callbacks: ``cbLow``, ``cbMedium``, ``cbHigh``."""
    once, callback = _ScanOnce(), _Callback()
    _c.core.scanOnceQueueStatus(0, byref(once))
    _c.core.callbackQueueStatus(0, byref(callback))
    found = {"scanOnce": QueueUse(once.size, once.numUsed, once.maxUsed, once.numOverflow)}
    for index, name in enumerate(("cbLow", "cbMedium", "cbHigh")):
        found[name] = QueueUse(
            callback.size, callback.numUsed[index], callback.maxUsed[index], callback.numOverflow[index]
        )
    return found


def suspended_threads() -> int:
    """Return how many threads of EPICS are suspended, as one is that found an error in its data."""
    is_suspended = _c.com.epicsThreadIsSuspended
    is_suspended.argtypes = (c_void_p,)
    found: list[int] = []

    def look(thread: int | None) -> None:
        if is_suspended(thread):
            found.append(1)

    # EPICS holds a lock of its own meanwhile, which only a new or an ending thread needs.
    callback = _THREAD_FUNCTION(look)
    _c.com.epicsThreadMap(callback)
    return len(found)


def channel_access_clients() -> tuple[int, int]:
    """Return the numbers of clients and channels of the Channel Access server; it must run (casStatsFetch)."""
    channels, circuits = c_uint(), c_uint()
    fetch = _c.core.casStatsFetch
    fetch.argtypes = (POINTER(c_uint), POINTER(c_uint))
    fetch(byref(channels), byref(circuits))
    return circuits.value, channels.value

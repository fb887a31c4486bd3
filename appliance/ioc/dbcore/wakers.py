"""How a database event wakes the event loop, without Python in EPICS' event thread.

As in :mod:`.rings`, a C function that takes fewer arguments is the callback: ``eventfd_write(fd, value)`` of the C library
adds the channel's address to the counter of a file descriptor that the loop watches (eventfd(2)). What it adds says nothing:
the channels are in the ring. If the counter is full the call fails, and the descriptor is readable already.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
from collections.abc import Callable
from ctypes import c_void_p
from functools import cache
from typing import Any, Final, NamedTuple

from appliance.ioc.dbcore.rings import EVENT_FUNCTION

__all__ = ["LoopWaker", "Wake", "waker_works"]

_write: Final[Any] = getattr(ctypes.CDLL(None), "eventfd_write", None)


class Wake(NamedTuple):
    """A C function to subscribe with, and its first argument."""

    function: c_void_p
    argument: c_void_p


class LoopWaker:
    """A file descriptor that events write to, and that the loop watches.

    Args:
        loop: the event loop.
        woken: called on it, after any number of events, until it has called :meth:`clear`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, woken: Callable[[], None]) -> None:
        self._loop = loop
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.function = ctypes.cast(_write, c_void_p)
        self.argument = c_void_p(self._fd)
        loop.add_reader(self._fd, woken)

    def clear(self) -> None:
        """Forget the events so far. Look for new ones after this call, not before: then none is missed."""
        if self._fd >= 0:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._fd)

    def close(self) -> None:
        """Close the descriptor; no subscription may use it any more."""
        if not self._loop.is_closed():
            self._loop.remove_reader(self._fd)
        os.close(self._fd)
        self._fd = -1


@cache
def waker_works() -> bool:
    """Whether :class:`LoopWaker` works on this machine; it is tried once."""
    if _write is None or not hasattr(os, "eventfd"):
        return False
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        # The last two arguments stand for those that the function does not know.
        EVENT_FUNCTION(ctypes.cast(_write, c_void_p).value or 0)(fd, 0x7000, 3, 0x5A)
        return os.eventfd_read(fd) == 0x7000
    except OSError:
        return False
    finally:
        os.close(fd)

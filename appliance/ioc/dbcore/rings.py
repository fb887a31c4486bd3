"""How database events leave EPICS' event thread: through C alone, or through a Python callback.

EPICS calls ``void callback(void *arg, dbChannel *chan, int remaining, db_field_log *log)`` for every event.
A Python callback must wait for the GIL every time, and with a busy interpreter that throttles the whole event
thread. libCom has a function that is nearly a callback already::

    int epicsRingPointerPush(epicsRingPointerId ring, void *p)

Called as an event callback with a ring as its argument it pushes the channel's address and ignores the two
arguments that it does not know. ``epicsEventTrigger(event)`` as the callback of a second subscription wakes the
reader. C does not define a call with more arguments than parameters; the calling conventions of all 64-bit
platforms that EPICS runs on do: the caller passes the arguments in registers and cleans up. :func:`ring_works`
tries it out once, and where it does not work :class:`CallbackRing` does the same with a Python callback.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from collections.abc import Callable
from ctypes import c_int, c_void_p
from functools import cache, partial
from itertools import islice
from typing import Any, Final, Protocol

from appliance.errors import ApplianceError
from appliance.ioc.dbcore import _c

#: The C type of an event callback (dbEvent.h: EVENTFUNC).
EVENT_FUNCTION: Final = ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_int, c_void_p)

# Bound with the GIL held: each takes a spin lock for some instructions, and a call costs half of what giving
# the GIL away would cost.
_held = ctypes.PyDLL(_c.library_file("Com"))
_pop: Any = _held.epicsRingPointerPop
_pop.restype = c_void_p
_used: Any = _held.epicsRingPointerGetUsed
_high_water: Any = _held.epicsRingPointerGetHighWaterMark
_reset_high_water: Any = _held.epicsRingPointerResetHighWaterMark
_reset_high_water.restype = None


class Ring(Protocol):
    """A queue of events of one mask."""

    #: address of the C function to subscribe with, and its first argument
    callback: c_void_p
    argument: c_void_p

    def take(self, limit: int) -> tuple[list[int], bool]:
        """Return channel addresses in the order of their events, and whether some were lost."""
        ...

    def waiting(self) -> bool:
        """Whether events wait to be taken."""
        ...

    def first(self) -> int:
        """Return the channel address of the event that is taken next; 0 if there is none, or if that cannot be seen."""
        ...

    def close(self) -> None:
        """Free the memory."""
        ...


class _RingMemory(ctypes.Structure):
    """A ring in memory (epicsRingPointer.h). It is declared here for reading only after :func:`_layout_is_known` has tried it."""

    _fields_ = (
        ("lock", c_void_p),
        ("next_push", c_int),
        ("next_pop", c_int),
        ("slots", c_int),
        ("high_water", c_int),
        ("buffer", c_void_p),
    )


@cache
def _layout_is_known() -> bool:
    """Whether a ring lies in memory as :class:`_RingMemory` says; it is tried once."""
    if struct.calcsize("P") != 8:
        return False
    size, marks = 5, [0x110, 0x120, 0x130]
    ring = c_void_p(_c.epicsRingPointerLockedCreate(size))
    if not ring.value:
        return False
    try:
        memory = _RingMemory.from_address(ring.value)
        push = EVENT_FUNCTION(ctypes.cast(_c.com.epicsRingPointerPush, c_void_p).value or 0)
        for mark in (0x100, *marks):
            push(ring, mark, 0, 0)
        if _pop(ring) != 0x100:
            return False
        found = (memory.next_push, memory.next_pop, memory.slots, memory.high_water)
        if found != (4, 1, size + 1, 4) or not memory.buffer:
            return False
        # The addresses above are those of a ring; only now its buffer is looked at.
        return list((ctypes.c_uint64 * 4).from_address(memory.buffer))[1:] == marks
    finally:
        _c.epicsRingPointerDelete(ring)


_FEW: Final = 3
"""Events up to which taking one after the other is as fast."""
# Behind the lock in the memory of a ring: next_push, next_pop, slots, high_water.
_STATE: Final = struct.Struct("=8x4i").unpack_from


class PointerRing:
    """libCom's ring, filled without Python.

    A call for each event that is taken would be most of the work when a record changes more often than it is read. So many
    events are copied from the ring's memory at once, if it looks as expected (:func:`_layout_is_known`). Then a ring that is
    empty, as most are at a time, costs no call at all: it is looked at without its lock. What is pushed at that moment may be
    missed, as it would be a moment earlier with the lock, and whoever pushes wakes the reader afterwards.

    Attributes:
        calls: how often EPICS was asked for one event.
    """

    def __init__(self, size: int) -> None:
        self._ring = c_void_p(_c.epicsRingPointerLockedCreate(size))
        if not self._ring.value:
            raise ApplianceError("cannot allocate the ring for database events")
        self._size = size
        self.callback = ctypes.cast(_c.com.epicsRingPointerPush, c_void_p)
        self.argument = self._ring
        self._pop = partial(_pop, self._ring)
        self.calls = 0
        self._memory: _RingMemory | None = None
        if _layout_is_known():
            self._memory = memory = _RingMemory.from_address(self._ring.value)
            block = (ctypes.c_char * (8 * memory.slots)).from_address(memory.buffer)
            self._slots = memoryview(block).cast("B").cast("Q")
            self._state = partial(
                _STATE, (ctypes.c_char * ctypes.sizeof(memory)).from_address(self._ring.value)
            )

    def take(self, limit: int) -> tuple[list[int], bool]:
        """Take the waiting events, see :class:`Ring`.

        A full ring drops what is pushed, so a ring that was full may have lost events. The mark is reset before
        events are taken: a later loss moves it up again and is noticed the next time.
        """
        memory = self._memory
        if memory is None:
            lost = _high_water(self._ring) >= self._size
        else:
            push, pop, _, most = self._state()
            lost = most >= self._size
            if push == pop and not lost:
                return [], False
        if lost:
            _reset_high_water(self._ring)
        if memory is not None:
            # The call takes the ring's lock: what it counts is completely written when it returns.
            count = min(_used(self._ring), limit)
            if count > _FEW:
                return self._copy(memory, count), lost
            limit = count
        taken = list(islice(iter(self._pop, None), limit))
        self.calls += len(taken)
        return taken, lost

    def _copy(self, memory: _RingMemory, count: int) -> list[int]:
        """Take ``count`` events that are there. Nobody else takes any, so only our own end of the ring moves."""
        first: int = memory.next_pop
        end = first + count
        slots = self._slots
        size = len(slots)
        if end < size:
            taken = slots[first:end].tolist()
        else:
            end -= size
            taken = slots[first:].tolist() + slots[:end].tolist()
        # The lock again: the room is given back after everything has been read.
        _used(self._ring)
        memory.next_pop = end
        return taken

    def waiting(self) -> bool:
        """Say whether there is something to take."""
        if self._memory is not None:
            push, pop, _, most = self._state()
            return bool(push != pop or most >= self._size)
        return bool(_used(self._ring))

    def first(self) -> int:
        """Say whose event is next, see :class:`Ring`."""
        if self._memory is None:
            return 0
        push, pop, _, _ = self._state()
        return self._slots[pop] if push != pop else 0

    def close(self) -> None:
        """Free the ring; no subscription may use it any more."""
        if self._ring.value:
            self._memory = None
            _c.epicsRingPointerDelete(self._ring)
            self._ring.value = None


class CallbackRing:
    """A ring with a Python callback per event: the set of channels with new events."""

    def __init__(self, wake: Callable[[], object]) -> None:
        self._dirty: dict[int, None] = {}
        self._wake = wake
        self._function = EVENT_FUNCTION(self._event)
        self.callback = ctypes.cast(self._function, c_void_p)
        self.argument = c_void_p(None)

    def _event(self, _argument: int, channel: int, _remaining: int, _log: int) -> None:
        first = not self._dirty
        self._dirty[channel] = None
        if first:
            self._wake()

    def take(self, limit: int) -> tuple[list[int], bool]:
        """Take the waiting events, see :class:`Ring`; none is ever lost, and each channel appears once."""
        if len(self._dirty) <= limit:
            taken, self._dirty = self._dirty, {}
            return list(taken), False
        some = list(islice(self._dirty, limit))
        for channel in some:
            del self._dirty[channel]
        return some, False

    def waiting(self) -> bool:
        """Say whether there is something to take."""
        return bool(self._dirty)

    def first(self) -> int:
        """Say whose event is next, see :class:`Ring`."""
        return next(iter(self._dirty), 0)

    def close(self) -> None:
        """Drop the waiting events."""
        self._dirty.clear()


@cache
def ring_works() -> bool:
    """Whether C functions with fewer parameters can be event callbacks on this machine; it is tried once.

    It is not tried with 32-bit pointers: there some calling conventions let the callee clean the stack.
    """
    if struct.calcsize("P") != 8 or sys.platform not in {"linux", "darwin"}:
        return False
    ring = PointerRing(4)
    event = c_void_p(_c.epicsEventCreate(0))
    try:
        push = EVENT_FUNCTION(ring.callback.value or 0)
        trigger = EVENT_FUNCTION(ctypes.cast(_c.com.epicsEventTrigger, c_void_p).value or 0)
        # The last argument stands for a field log: if it were used as one, the test would show it.
        marks = [0x10, 0x20, 0x30]
        for number, mark in enumerate(marks):
            push(ring.argument, mark, number, 0x5A)
            trigger(event, mark, number, 0x5A)
        return (
            ring.take(10) == (marks, False)
            and _c.epicsEventTryWait(event) == 0
            and _c.epicsEventTryWait(event) != 0
        )
    finally:
        ring.close()
        _c.epicsEventDestroy(event)

"""What was posted from any thread, until the PVAccess thread takes it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from appliance.pvdata.types import StructType
from appliance.threads import Engine, engine

__all__ = ["Numbers", "posts"]


class Numbers:
    """Some fields of a type, of a fixed size each, that are often posted together.

    Args:
        kind: The type.
        offsets: The numbers of the fields, in ascending order.
        code: Their types, as the module ``struct`` names them.
    """

    __slots__ = ("bits", "code", "kind", "offsets")

    def __init__(self, kind: StructType, offsets: Sequence[int], code: str) -> None:
        self.kind = kind
        self.offsets = tuple(offsets)
        self.bits = sum(1 << number for number in offsets)
        self.code = code

    def put(self, store: list[Any], values: tuple[Any, ...]) -> None:
        """Write the value of each field."""
        for number, value in zip(self.offsets, values, strict=True):
            store[number] = value


class _PV(Protocol):
    def drain(self) -> None:
        """Hand what was posted to the subscribers, in the PVAccess thread."""


class _Posts:
    """What was posted to all PVs since the PVAccess thread last looked.

    A thread that posts without pause keeps Python's lock for itself: the PVAccess thread would get it back only 5 ms after each
    of its system calls. So such a thread waits now and then, for a moment and not for any client.
    """

    ROOM: Final = 2048
    """Posts of numbers after which a thread waits."""
    DEAR: Final = 4
    """So many of them count as one post of other values, and as one that takes the place of another, because then the thread is
    much faster than the PVAccess thread."""
    PATIENCE_S: Final = 0.02
    """The longest that it waits."""

    __slots__ = ("_engine", "_turning", "_waiting", "changed", "count", "woken")

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._begin()

    def _begin(self) -> None:
        self.count = 0
        """Posts since the PVAccess thread last looked; not exact, because it is no one's own."""
        self.changed: deque[_PV] = deque()
        """PVs that the PVAccess thread has to look at."""
        self._waiting: deque[threading.Lock] = deque()
        self.woken = False
        """Whether the thread was told. It is cleared before the thread looks: whoever finds it set has a look still to come."""
        self._turning = False

    def move_to(self, running: Engine) -> None:
        """Forget what another engine was told, and did not look at before its end."""
        if running is not self._engine:
            self._engine = running
            self._begin()

    def wake(self, soon: Callable[..., None]) -> None:
        """Let the PVAccess thread look at the PVs that have ``changed``, unless it was told already: see ``woken``."""
        self.woken = True
        soon(self._look)

    def _look(self) -> None:
        self.woken = False
        changed = self.changed
        if not self._turning:
            self._turning = True
            engine().loop.call_soon(self._turned)
        for _ in range(len(changed)):
            changed.popleft().drain()

    def _turned(self) -> None:
        """Note that the PVAccess thread has sent what there was."""
        self._turning = False
        self.count = 0
        waiting = self._waiting
        while waiting:
            waiting.popleft().release()

    def wait(self) -> None:
        """Let the PVAccess thread send what there is."""
        if engine().is_current:
            return
        turned = threading.Lock()
        turned.acquire()
        self._waiting.append(turned)
        if not turned.acquire(timeout=self.PATIENCE_S):
            self.count = 0


posts: Final = _Posts()

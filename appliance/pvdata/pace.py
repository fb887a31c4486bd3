"""Long decodings pause: work can stop at many places and continue there later.

A message may hold hundreds of thousands of values, and types with tens of thousands of fields. Decoders are plain
functions, since generators would make every message slower; so long work runs on its own stack
(a greenlet), and ``breathe`` in its loops leaves that stack when the time is up. Without pacing, ``breathe``
only reads one variable.
"""

from __future__ import annotations

# The number of a thread is all that is needed of threads here, and ``threading`` takes long to import.
from _thread import get_ident  # decision 0136
from collections.abc import Callable

from appliance.errors import DecodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from greenlet import greenlet

__all__ = ["MAX_VALUES", "Pace", "breathe"]

MAX_VALUES = 1 << 19
"""The most values, strings and descriptions of fields in one message; numbers in arrays are not counted. Each takes some
hundred octets of memory, whatever its size in the message. All of them are freed at once, which takes time."""

_running: dict[int, Pace] = {}
"""What runs now, by thread: a program may have several event loops."""


class Pace:
    """One piece of work that can pause.

    ``due`` tells whether it is time to pause. With None the work never pauses and is only counted.
    """

    __slots__ = ("_due", "_fiber", "_left", "_work")

    def __init__(self, work: Callable[[], None], due: Callable[[], bool] | None) -> None:
        self._work = work
        self._due = due
        self._left = MAX_VALUES
        self._fiber: greenlet | None = None

    def go_on(self) -> bool:
        """Work until it is done or must pause; return whether it is done. Errors of the work are raised here."""
        thread = get_ident()
        before = _running.get(thread)
        _running[thread] = self
        try:
            if self._due is None:
                self._work()
                return True
            from greenlet import getcurrent, greenlet

            if self._fiber is None:
                self._fiber = greenlet(self._work)
            self._fiber.parent = getcurrent()
            self._fiber.switch()
            return bool(self._fiber.dead)
        finally:
            if before is None:
                del _running[thread]
            else:
                _running[thread] = before

    def drop(self) -> None:
        """Abandon the rest of the work."""
        if self._fiber is not None and not self._fiber.dead:
            from greenlet import getcurrent

            if self._fiber is not getcurrent():
                self._fiber.parent = getcurrent()
                self._fiber.throw()

    def _breathe(self, values: int) -> None:
        self._left -= values
        if self._left < 0:
            raise DecodeError(f"a message holds more than {MAX_VALUES} values")
        if self._due is not None and self._due():
            fiber = self._fiber
            assert fiber is not None
            from greenlet import getcurrent

            if fiber is getcurrent():  # a program's own greenlets cannot pause
                assert fiber.parent is not None
                fiber.parent.switch()


def breathe(values: int = 0) -> None:
    """Pause if it is time to, and count the ``values`` since the last call.

    Raises:
        DecodeError: A paced message holds too many values.
    """
    if _running:
        pace = _running.get(get_ident())
        if pace is not None:
            pace._breathe(values)

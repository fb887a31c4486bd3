"""Garbage collection in a daemon: in small pieces, so that nobody waits for it.

Python looks at every object there is when a heap has grown by a quarter: with the objects of tens of thousands of
channels that stops the event loop for a large part of a second, each time. Here what has survived two collections is put
aside (``gc.freeze``) and looked at again only now and then. Almost everything is freed by its reference count, put aside
or not; only cycles wait for the next look.
"""

from __future__ import annotations

import gc
from time import perf_counter
from typing import Any, Final

__all__ = ["Collector"]

_YOUNG: Final = 1000
"""Objects after whose making the youngest are looked at."""
_ROUNDS: Final = 8
"""Such looks after which those that survived are looked at once more, then put aside: some milliseconds."""
LOOK_S: Final = 60.0
"""Seconds between two looks at everything, at the least; more where that takes long."""
SHARE: Final = 1000
"""Such a look takes at most this fraction of the time."""
MANY: Final = 400_000
"""Objects that take longer to look at than anybody should wait; with more of them there is a look in an hour only."""
SELDOM_S: Final = 3600.0


class Collector:
    """Collects from ``start`` to ``stop``. ``look`` is to be called every ``LOOK_S`` seconds."""

    def __init__(self) -> None:
        self._before: tuple[int, int, int] | None = None
        self._put_aside = False
        self._looked = 0.0
        self._pause = 0.0

    def start(self) -> None:
        """Begin: what is there now, mostly modules, is put aside."""
        self._before = gc.get_threshold()
        gc.collect()
        gc.freeze()
        gc.set_threshold(_YOUNG, _ROUNDS, 1_000_000)
        gc.callbacks.append(self._collected)
        self._looked = perf_counter()

    def stop(self) -> None:
        """End: Python collects as it did before."""
        if self._before is not None:
            gc.callbacks.remove(self._collected)
            gc.set_threshold(*self._before)
            gc.unfreeze()
            self._before = None

    def _collected(self, phase: str, info: dict[str, Any]) -> None:
        if phase == "stop" and info["generation"] == 1:
            gc.freeze()
            self._put_aside = True

    def look(self) -> None:
        """Look at everything, unless nothing was put aside or the last look was so long that it is too early."""
        now = perf_counter()
        patience = max(SHARE * self._pause, SELDOM_S if gc.get_freeze_count() > MANY else 0.0)
        if not self._put_aside or now - self._looked < patience:
            return
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        self._looked = perf_counter()
        self._pause = self._looked - now
        self._put_aside = False

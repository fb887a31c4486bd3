"""Collect garbage in a daemon in small pieces, so that nobody waits for it.

Python examines every object when the heap has grown by a quarter. With the objects of tens of thousands of channels, this
stops the event loop for a large part of a second, each time. Here objects that have survived two collections are set
aside (``gc.freeze``) and examined again only now and then. Almost everything is freed by its reference count, whether set
aside or not; only cycles wait for the next full examination.
"""

from __future__ import annotations

import gc
from time import perf_counter
from typing import Any, Final

__all__ = ["Collector"]

_YOUNG: Final = 1000
"""Number of new objects after which the youngest are examined."""
_ROUNDS: Final = 8
"""Number of such examinations after which the survivors are examined once more, then set aside: some milliseconds."""
LOOK_S: Final = 60.0
"""Least seconds between two full examinations; more if one takes long."""
SHARE: Final = 1000
"""A full examination takes at most 1/SHARE of the time."""
MANY: Final = 400_000
"""With more objects than this a full examination takes too long, so there is only one in an hour."""
SELDOM_S: Final = 3600.0


class Collector:
    """Collects from ``start`` to ``stop``. Call ``look`` every ``LOOK_S`` seconds."""

    def __init__(self) -> None:
        self._before: tuple[int, int, int] | None = None
        self._put_aside = False
        self._looked = 0.0
        self._pause = 0.0

    def start(self) -> None:
        """Begin, and set aside what exists now, mostly modules."""
        self._before = gc.get_threshold()
        gc.collect()
        gc.freeze()
        gc.set_threshold(_YOUNG, _ROUNDS, 1_000_000)
        gc.callbacks.append(self._collected)
        self._looked = perf_counter()

    def stop(self) -> None:
        """End: Python collects as before."""
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
        """Examine everything, unless nothing was set aside or it is too early after a long examination."""
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

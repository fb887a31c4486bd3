"""Garbage collection in a daemon: small pieces, and a look at everything now and then."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

from appliance.daemon.garbage import Collector
from tests.helpers.isolated import isolated


class Thing:
    def __init__(self) -> None:
        self.me = self


# In a process of its own: with many objects of other tests the next look is an hour away.
@isolated
def test_what_survives_is_put_aside_and_cycles_are_freed_by_the_next_look(tmp_path: Path) -> None:
    before = gc.get_threshold()
    collector = Collector()
    collector.start()
    try:
        things = [Thing() for _ in range(50_000)]
        aside = gc.get_freeze_count()
        assert aside > 50_000
        watched = weakref.ref(things[0])
        # A collection of the old generation has next to nothing to look at.
        assert gc.get_count()[2] < 1000
        assert len(gc.get_objects(generation=2)) < 20_000
        things.clear()
        assert watched() is not None
        collector.look()
        assert watched() is None
    finally:
        collector.stop()
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0

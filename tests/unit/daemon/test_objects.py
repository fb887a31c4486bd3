"""All objects are looked at without harm to what other threads do."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator

import pytest

from appliance.daemon.objects import count_types


class Kind:
    """One to be counted."""


class Special(Kind):
    """Another one."""


def test_objects_are_counted_by_their_type() -> None:
    kept = [Kind(), Kind(), Special()]
    counts = count_types()
    assert (counts[Kind], counts[Special]) == (2, 1)
    assert len(kept) == 3


def test_what_was_set_aside_counts_too_and_stays_aside() -> None:
    kept = Kind()
    gc.freeze()
    try:
        assert count_types()[Kind] == 1
        assert kept
        assert gc.get_freeze_count() > 0
        assert gc.isenabled()
    finally:
        gc.unfreeze()


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("restless")
def test_other_threads_finish_their_tuples() -> None:
    """``tuple(iterable)`` makes a tuple that must have one owner until it is done."""
    failures: list[Exception] = []
    is_over = threading.Event()

    def make() -> None:
        while not is_over.is_set():
            try:
                assert len(tuple(map(lambda each: [each], range(200)))) == 200  # noqa: C417 - made step by step
            except Exception as error:
                failures.append(error)
                return

    threads = [threading.Thread(target=make) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(60):
            count_types()
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    assert not failures

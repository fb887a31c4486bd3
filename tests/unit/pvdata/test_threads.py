"""Programs with several event loops in threads: types, codecs and paces are for all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from appliance.pvdata import codec as codec_module
from appliance.pvdata.codec import codec
from appliance.pvdata.pace import MAX_VALUES, Pace, breathe
from appliance.pvdata.types import INT32, STRING, StructType


def in_threads(*works: Callable[[], object]) -> None:
    """Run functions at once, each in a thread, and raise what one of them raises."""
    errors: list[BaseException] = []
    begin = threading.Barrier(len(works))

    def run(work: Callable[[], object]) -> None:
        begin.wait(30)
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


def test_a_type_that_is_being_laid_out_shows_others_no_half_of_it() -> None:
    count = 10_000
    kind = StructType([(f"f{number}", STRING) for number in range(count)])
    pace = Pace(lambda: kind.paths, lambda: True)
    pauses = 0
    while not pace.go_on():
        pauses += 1
        # Another connection, or another thread, uses it meanwhile.
        assert kind.offsets[f"f{count - 1}"] == count
    assert pauses > 10
    assert kind.offsets[f"f{count - 1}"] == count


def test_the_pace_of_one_thread_is_not_that_of_another_and_ends_with_its_work() -> None:
    half = MAX_VALUES * 3 // 4
    entered = [threading.Event(), threading.Event()]
    first_ended = threading.Event()

    def first() -> None:
        entered[0].set()
        assert entered[1].wait(30)
        breathe(half)

    def second() -> None:
        assert entered[0].wait(30)
        breathe(half)
        entered[1].set()
        assert first_ended.wait(30)
        breathe()

    def run_first() -> None:
        Pace(first, None).go_on()
        first_ended.set()

    def unpaced() -> None:
        assert entered[0].wait(30)
        for _ in range(4):
            breathe(half)

    in_threads(run_first, Pace(second, None).go_on, unpaced)
    # Nobody works at a pace now, so nothing is counted.
    for _ in range(4):
        breathe(half)


class Interrupted(dict[Any, Any]):
    """A dictionary during whose use another thread does something, once for each kind of use."""

    def __init__(self, **meanwhile: Callable[[], object]) -> None:
        super().__init__()
        self.meanwhile = meanwhile

    def interrupt(self, use: str) -> None:
        work = self.meanwhile.pop(use, None)
        if work is not None:
            in_threads(work)

    def get(self, key: Any, default: Any = None) -> Any:
        found = super().get(key, default)
        self.interrupt("get")
        return found

    def __iter__(self) -> Iterator[Any]:
        found = super().__iter__()
        self.interrupt("iter")
        return found


def made(name: str) -> object:
    return codec(StructType([(name, INT32)]), False)


@pytest.mark.parametrize("other", ["one", "other"])
@pytest.mark.parametrize("use", ["get", "iter"])
def test_codecs_are_made_in_several_threads(use: str, other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    table = Interrupted()
    monkeypatch.setattr(codec_module, "_codecs", table)
    monkeypatch.setattr(codec_module, "_codec_weight", 0)
    monkeypatch.setattr(codec_module, "_CACHED", 2)
    made("first")
    made("second")
    table.meanwhile[use] = lambda: made(other)
    one = made("one")
    assert not table.meanwhile
    assert one is made("one"), "equal types share one"
    assert 1 <= len(table) <= 2
    assert codec_module._codec_weight == sum(kind.weight for kind, _ in table)

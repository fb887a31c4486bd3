"""Work queues: order, bounds, errors, and what becomes of them when they end or the process forks."""

from __future__ import annotations

import logging
import os
import sys
import threading

import pytest

from appliance.p4p.util import Empty, Full, ThreadedWorkQueue, WorkQueue, _DefaultWorkQueue, _defaultWorkQueue


def test_calls_are_made_in_the_order_of_their_pushes() -> None:
    done: list[int] = []
    with ThreadedWorkQueue(maxsize=0) as queue:
        for number in range(100):
            queue.push(lambda number=number: done.append(number))
        queue.sync(timeout=30)
        assert done == list(range(100))


def test_a_full_queue_refuses_and_push_wait_waits() -> None:
    queue = WorkQueue(maxsize=1)
    queue.push(lambda: None)
    with pytest.raises(Full):
        queue.push(lambda: None)
    waiting = threading.Thread(target=queue.push_wait, args=(queue.interrupt,))
    waiting.start()
    runner = threading.Thread(target=queue.handle)
    runner.start()
    waiting.join(30)
    runner.join(30)
    assert not runner.is_alive()
    assert issubclass(Empty, Exception)


def test_the_default_bound_is_that_of_p4p() -> None:
    queue = WorkQueue()
    for _ in range(5):
        queue.push(lambda: None)
    with pytest.raises(Full):
        queue.push(lambda: None)


def test_an_error_of_a_call_is_logged_and_the_next_call_is_made(caplog: pytest.LogCaptureFixture) -> None:
    done = threading.Event()

    def bad() -> None:
        raise LookupError("the handler's defect")

    with caplog.at_level(logging.ERROR, logger="appliance.p4p"), ThreadedWorkQueue() as queue:
        queue.push(bad)
        queue.push(done.set)
        assert done.wait(30)
    assert "the handler's defect" in caplog.text


@pytest.mark.parametrize("ends", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_what_would_end_a_program_does_not_end_a_thread_of_the_queue(
    ends: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    done = threading.Event()

    def bad() -> None:
        raise ends("by a handler")

    with caplog.at_level(logging.ERROR, logger="appliance.p4p"), ThreadedWorkQueue() as queue:
        queue.push(bad)
        queue.push(done.set)
        assert done.wait(30)
    assert "by a handler" in caplog.text


def test_a_program_that_makes_the_calls_itself_can_be_ended_by_one() -> None:
    queue = WorkQueue()
    queue.push(lambda: sys.exit(3))
    with pytest.raises(SystemExit):
        queue.handle()


def test_what_was_called_does_not_live_on_in_the_thread() -> None:
    import gc
    import weakref

    class Thing:
        def work(self) -> None:
            pass

    thing = Thing()
    left = weakref.ref(thing)
    with ThreadedWorkQueue(daemon=True) as queue:
        queue.push(thing.work)
        del thing
        queue.sync(timeout=30)
        queue.sync(timeout=30)
        gc.collect()
        assert left() is None


def test_threads_have_names_and_end_at_stop() -> None:
    queue = ThreadedWorkQueue(name="worker", workers=2, daemon=True)
    assert queue.start() is queue
    threads = list(queue._T)
    assert queue.start() is queue
    assert list(queue._T) == threads
    assert [thread.name for thread in threads if thread is not None] == ["worker[0]", "worker[1]"]
    assert all(thread is not None and thread.daemon for thread in threads)
    assert queue.sync(timeout=30) is queue
    assert queue.stop() is queue
    assert queue.stop() is queue
    assert not any(thread is not None and thread.is_alive() for thread in threads)


def test_sync_gives_up_after_its_timeout() -> None:
    queue = ThreadedWorkQueue(workers=2)  # no thread runs
    assert queue.sync(timeout=0) is queue


def test_no_worker_is_refused() -> None:
    with pytest.raises(AssertionError):
        ThreadedWorkQueue(workers=0)


def test_default_queues_are_given_out_in_turn_and_made_once() -> None:
    default = _DefaultWorkQueue(workers=2)
    first, second, third = default(), default(), default()
    assert first is third
    assert first is not second
    default.sync(timeout=30)
    default.stop()
    assert default.W == [None, None]
    default.stop()


def test_a_forked_child_gets_queues_with_threads_of_its_own() -> None:
    _defaultWorkQueue().sync(timeout=30)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            done = threading.Event()
            _defaultWorkQueue().push(done.set)
            os.write(writing, b"1" if done.wait(30) else b"0")
        finally:
            os._exit(0)
    os.close(writing)
    try:
        assert os.read(reading, 1) == b"1"
    finally:
        os.close(reading)
        os.waitpid(child, 0)

"""How a database event wakes the event loop: a C function adds to a counter that the loop watches."""

from __future__ import annotations

import asyncio
import ctypes
import os
import threading
from collections.abc import Callable

import pytest
import uvloop

from appliance.ioc.dbcore.rings import EVENT_FUNCTION
from appliance.ioc.dbcore.wakers import LoopWaker, waker_works

ADDRESS = 0x7FFF_1234_5670
"""Where a channel may be: the largest addresses of a process have 47 bits."""
FULL = (1 << 64) - 2
"""The most that the counter of an eventfd holds."""

each_loop = pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, uvloop.new_event_loop])


class Woken:
    """Counts wake-ups, and clears the waker with each."""

    def __init__(self) -> None:
        self.count = 0
        self.came = asyncio.Event()
        self.waker = LoopWaker(asyncio.get_running_loop(), self.wake)

    def wake(self) -> None:
        self.waker.clear()
        self.count += 1
        self.came.set()

    async def again(self) -> None:
        """Wait for the next one."""
        async with asyncio.timeout(30):
            await self.came.wait()
        self.came.clear()

    async def quiet(self) -> int:
        """Let the loop look at its descriptors some times; return how often it was woken."""
        before = self.count
        for _ in range(5):
            await asyncio.sleep(0.001)
        return self.count - before


def event_of(waker: LoopWaker) -> Callable[[], None]:
    """A function that does what EPICS' event thread does: it calls with four arguments."""
    function = EVENT_FUNCTION(waker.function.value or 0)
    return lambda: function(waker.argument.value, ADDRESS, 0, 0)


def run(make_loop: Callable[[], asyncio.AbstractEventLoop], test: Callable[[], object]) -> None:
    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(test())  # type: ignore[arg-type]


def test_it_works_on_this_machine() -> None:
    assert waker_works()


@each_loop
def test_events_of_another_thread_wake_the_loop_once_for_many(
    make_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def test() -> None:
        woken = Woken()
        waker = woken.waker
        event = event_of(waker)
        assert await woken.quiet() == 0
        for _ in range(3):
            # The loop cannot look before all of them have come.
            thread = threading.Thread(target=lambda: [event() for _ in range(100)])
            thread.start()
            thread.join()
            await woken.again()
            assert await woken.quiet() == 0
        assert woken.count == 3
        waker.close()

    run(make_loop, test)


@each_loop
def test_no_wake_up_is_lost_while_the_loop_reads_the_counter(
    make_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """After each event there is a wake-up, whatever the loop does at that moment."""

    async def test() -> None:
        told = 0
        seen = 0
        done = asyncio.Event()

        def woken() -> None:
            nonlocal seen
            waker.clear()
            seen = told
            if seen == 2000:
                done.set()

        waker = LoopWaker(asyncio.get_running_loop(), woken)
        event = event_of(waker)

        def events() -> None:
            nonlocal told
            for number in range(2000):
                told = number + 1
                event()

        thread = threading.Thread(target=events)
        thread.start()
        async with asyncio.timeout(60):
            await done.wait()
        thread.join()
        waker.close()

    run(make_loop, test)


@each_loop
def test_a_full_counter_neither_blocks_epics_nor_keeps_the_loop_asleep(
    make_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def test() -> None:
        woken = Woken()
        waker = woken.waker
        event = event_of(waker)
        os.eventfd_write(waker.argument.value or 0, FULL)
        with pytest.raises(BlockingIOError):
            os.eventfd_write(waker.argument.value or 0, 1)
        event()
        await woken.again()
        assert await woken.quiet() == 0
        event()
        await woken.again()
        assert woken.count == 2
        waker.close()

    run(make_loop, test)


@each_loop
def test_a_wake_up_without_a_count_is_harmless(make_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def test() -> None:
        woken = Woken()
        waker = woken.waker
        event_of(waker)()
        # Somebody else has read it before the loop comes to it.
        assert os.eventfd_read(waker.argument.value or 0) == ADDRESS
        waker.clear()
        assert await woken.quiet() == 0
        event_of(waker)()
        await woken.again()
        assert woken.count == 1
        waker.close()

    run(make_loop, test)


@each_loop
def test_it_wakes_until_it_is_cleared(make_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def test() -> None:
        count = 0
        done = asyncio.Event()

        def woken() -> None:
            nonlocal count
            count += 1
            if count == 5:
                waker.clear()
                done.set()

        waker = LoopWaker(asyncio.get_running_loop(), woken)
        event_of(waker)()
        async with asyncio.timeout(30):
            await done.wait()
        for _ in range(5):
            await asyncio.sleep(0.001)
        assert count == 5
        waker.close()
        waker.clear()  # there is nothing any more

    run(make_loop, test)


@each_loop
def test_the_next_owner_of_a_closed_descriptor_wakes_nobody(
    make_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def test() -> None:
        woken = Woken()
        waker = woken.waker
        number = waker.argument.value
        assert not os.get_inheritable(number or 0)
        event_of(waker)()
        waker.close()
        other = os.eventfd(1, os.EFD_NONBLOCK)
        assert other == number
        assert await woken.quiet() == 0
        assert woken.count == 0
        os.close(other)

    run(make_loop, test)


@each_loop
def test_it_can_be_closed_after_its_loop(make_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    loop = make_loop()
    waker = LoopWaker(loop, lambda: None)
    loop.close()
    waker.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(waker.argument.value or 0)


def test_the_function_is_the_c_librarys_own() -> None:
    """No Python runs in EPICS' event thread."""
    libc = ctypes.CDLL(None)
    loop = asyncio.new_event_loop()
    waker = LoopWaker(loop, lambda: None)
    assert waker.function.value == ctypes.cast(libc.eventfd_write, ctypes.c_void_p).value
    waker.close()
    loop.close()

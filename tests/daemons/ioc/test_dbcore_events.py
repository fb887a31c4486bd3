"""Database events: delivery, kinds, squashing, both ways out of EPICS, load."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Hashable
from pathlib import Path

import pytest

from appliance.errors import ApplianceError
from tests.helpers.isolated import isolated

_RECORDS = """
record(ao, "ao") { field(HIHI, "10") field(HHSV, "MAJOR") field(MDEL, "0") field(ADEL, "100") }
record(waveform, "wave") { field(FTVL, "DOUBLE") field(NELM, "10") }
record(stringout, "str") {}
record(calc, "scan") { field(CALC, "VAL+1") field(SCAN, ".1 second") }
"""


def _start(records: str = _RECORDS) -> None:
    from appliance.ioc import dbcore

    dbcore.boot()
    dbcore.load_records_text(records)
    dbcore.ioc_init()


class _Batches:
    """Collects what a hub delivers."""

    def __init__(self) -> None:
        self._queue: queue.Queue[list[Hashable]] = queue.Queue()

    def __call__(self, keys: list[Hashable]) -> None:
        self._queue.put(keys)

    def until(self, wanted: set[Hashable]) -> None:
        """Wait until all of these keys have come."""
        missing = set(wanted)
        while missing:
            missing -= set(self._queue.get(timeout=30))

    def quiet(self, seconds: float) -> bool:
        try:
            self._queue.get(timeout=seconds)
        except queue.Empty:
            return True
        return False


@isolated
def test_this_platform_lets_c_functions_be_event_callbacks(tmp_path: Path) -> None:
    from appliance.ioc.dbcore import rings

    assert rings.ring_works()


@isolated
def test_many_events_leave_the_ring_with_no_call_for_each_in_order_and_round_its_end(tmp_path: Path) -> None:
    from appliance.ioc.dbcore import rings

    ring = rings.PointerRing(100)
    push = rings.EVENT_FUNCTION(ring.callback.value or 0)
    number = taken = 0
    for count in (60, 60, 100, 99, 1, 8, 9, 100):
        for _ in range(count):
            number += 1
            push(ring.argument, number * 8, 0, 0)
        half, _ = ring.take(count // 2)
        rest, lost = ring.take(1000)
        assert half + rest == [each * 8 for each in range(taken + 1, number + 1)]
        assert lost is (count == 100)
        assert not ring.waiting()
        taken = number
    # Only the few of the short ones were popped.
    assert ring.calls < 30
    ring.close()


def _kinds(plain: bool) -> None:
    from appliance.ioc import dbcore

    _start()
    got = _Batches()
    hub = dbcore.EventHub(got, plain_callbacks=plain)
    assert hub.is_direct is not plain
    channel, description = dbcore.DBChannel("ao"), dbcore.DBChannel("ao.DESC")
    value = hub.subscribe(channel, dbcore.DBE_VALUE, "value")
    hub.subscribe(channel, dbcore.DBE_ALARM, "alarm")
    archive = hub.subscribe(channel, dbcore.DBE_ARCHIVE, "archive")
    properties = hub.subscribe(channel, dbcore.DBE_PROPERTY, "property")
    hub.subscribe(description, dbcore.DBE_VALUE, "description")
    with pytest.raises(ApplianceError, match="already"):
        hub.subscribe(channel, dbcore.DBE_VALUE, "again")
    channel.put(0.5)
    got.until({"value", "alarm"})  # the first processing clears UDF
    channel.put(1)
    got.until({"value"})
    channel.put(11)
    got.until({"value", "alarm"})
    channel.put(150)
    got.until({"value", "archive"})
    dbcore.DBChannel("ao.HOPR").put(5)
    got.until({"property"})
    description.put("x")
    got.until({"description"})
    assert got.quiet(0.05)
    value.disable()
    channel.put(151)
    assert got.quiet(0.1)
    value.enable()
    channel.put(152)
    got.until({"value"})
    value.cancel()
    value.cancel()
    archive.cancel()
    properties.cancel()
    channel.put(300)
    assert got.quiet(0.1)
    again = hub.subscribe(channel, dbcore.DBE_VALUE, "again")
    channel.put(301)
    got.until({"again"})
    again.cancel()
    dbcore.shutdown()


@isolated
def test_kinds_of_events_are_told_apart(tmp_path: Path) -> None:
    _kinds(plain=False)


@isolated
def test_kinds_of_events_are_told_apart_with_plain_callbacks(tmp_path: Path) -> None:
    _kinds(plain=True)


@isolated
def test_events_come_on_the_loops_thread_and_the_value_is_there(tmp_path: Path) -> None:
    from appliance.ioc import dbcore

    _start()

    async def run() -> None:
        loop = asyncio.get_running_loop()
        values: asyncio.Queue[tuple[str, object]] = asyncio.Queue()

        def deliver(keys: list[Hashable]) -> None:
            assert threading.current_thread() is threading.main_thread()
            for key in keys:
                assert isinstance(key, str)
                values.put_nowait((key, channels[key].get().value))

        hub = dbcore.EventHub(deliver, loop=loop)
        channels = {name: dbcore.DBChannel(name) for name in ("ao", "wave", "str", "scan")}
        subscriptions = [
            hub.subscribe(channels[name], dbcore.DBE_VALUE, name) for name in ("ao", "wave", "str")
        ]
        channels["ao"].put(3.5)
        assert await asyncio.wait_for(values.get(), 30) == ("ao", 3.5)
        channels["str"].put("text")
        assert await asyncio.wait_for(values.get(), 30) == ("str", "text")
        channels["wave"].put([1.0, 2.0])
        name, value = await asyncio.wait_for(values.get(), 30)
        assert name == "wave"
        assert list(value) == [1.0, 2.0]  # type: ignore[call-overload]
        subscriptions.append(hub.subscribe(channels["scan"], dbcore.DBE_VALUE, "scan"))
        seen = [(await asyncio.wait_for(values.get(), 30))[1] for _ in range(3)]
        # On a busy machine a wake-up may come late and show a later value; it never shows one twice or an earlier one.
        assert seen == sorted(set(seen))  # type: ignore[type-var]
        subscriptions[0].cancel()
        hub.close()
        hub.close()
        with pytest.raises(ApplianceError, match="closed"):
            hub.subscribe(channels["ao"], dbcore.DBE_VALUE, "late")
        for channel in channels.values():
            channel.close()

    asyncio.run(run())
    dbcore.shutdown()


@isolated
def test_records_that_change_under_one_lock_are_taken_in_one_turn(tmp_path: Path) -> None:
    from appliance.ioc import dbcore

    count = 10
    _start(
        "".join(f'record(ao, "a:{n}") {{ field(FLNK, "a:{n + 1}") }}\n' for n in range(count - 1))
        + 'record(ao, "a:9") {}'
    )
    channels = [dbcore.DBChannel(f"a:{n}") for n in range(count)]

    async def test() -> None:
        loop = asyncio.get_running_loop()
        batches: list[list[Hashable]] = []
        woken = asyncio.Event()

        def deliver(keys: list[Hashable]) -> None:
            batches.append(keys)
            woken.set()

        hub = dbcore.EventHub(deliver, loop=loop)
        for channel in channels:
            hub.subscribe(channel, dbcore.DBE_VALUE, channel.name, at_once=True)
        assert hub._waker is not None
        ((ring, _),) = hub._rings.values()

        def pushed() -> int:
            """Events that EPICS has put into the ring so far: the first one of a chain has woken the loop by then."""
            return int(ring._state()[0])

        def process(number: int) -> None:
            """Change all under their lock, and keep it until EPICS has told of the last one."""
            before = pushed()
            with channels[0].locked():
                for channel in channels:
                    channel.put(number)
                while pushed() < before + count:
                    threading.Event().wait(0.001)

        for number in range(1, 4):
            woken.clear()
            await asyncio.wait_for(asyncio.to_thread(process, number), 30)
            await asyncio.wait_for(woken.wait(), 30)
        assert [sorted(map(str, batch)) for batch in batches] == [[channel.name for channel in channels]] * 3
        assert hub.events == 3 * count
        hub.close()

    asyncio.run(test())
    for channel in channels:
        channel.close()
    dbcore.shutdown()


@isolated
def test_a_wake_up_whose_events_were_taken_already_takes_nothing(tmp_path: Path) -> None:
    from appliance.ioc import dbcore

    _start()
    channel = dbcore.DBChannel("wave")

    async def test() -> None:
        batches: list[list[Hashable]] = []
        hub = dbcore.EventHub(batches.append, loop=asyncio.get_running_loop())
        hub.subscribe(channel, dbcore.DBE_VALUE, "wave", at_once=True)
        ((ring, _),) = hub._rings.values()
        channel.put([1.0])
        async with asyncio.timeout(30):
            while not batches:
                await asyncio.sleep(0.01)
        before = hub.wakeups
        hub._woken()
        assert ring.first() == 0
        assert hub.wakeups == before
        assert batches == [["wave"]]
        # It ends with its hub, whose descriptor may be another file's by the next turn.
        waker = hub._waker
        assert waker is not None
        channel.put([2.0])
        hub.close()
        waker.clear()

    asyncio.run(test())
    channel.close()
    dbcore.shutdown()


def _stalled(plain: bool) -> None:
    """While the reader stands still every channel changes many times; then each shows its latest value."""
    from appliance.ioc import dbcore

    count, rounds = 200, 20
    _start("".join(f'record(longout, "r{i}") {{}}\n' for i in range(count)))
    go = threading.Event()
    entered = threading.Event()
    done = threading.Event()
    latest: dict[Hashable, object] = {}
    first = True

    def deliver(keys: list[Hashable]) -> None:
        nonlocal first
        if first:
            first = False
            entered.set()
            assert go.wait(30)
        for key in keys:
            assert isinstance(key, int)
            latest[key] = channels[key].get().value
        if len(latest) == count and set(latest.values()) == {rounds}:
            done.set()

    hub = dbcore.EventHub(deliver, ring_size=64, plain_callbacks=plain)
    channels = [dbcore.DBChannel(f"r{i}") for i in range(count)]
    writers = [dbcore.DBChannel(f"r{i}") for i in range(count)]
    subscriptions = [
        hub.subscribe(channel, dbcore.DBE_VALUE | dbcore.DBE_ALARM, i) for i, channel in enumerate(channels)
    ]
    writers[0].put(1)
    assert entered.wait(30)
    for value in range(1, rounds + 1):
        for writer in writers:
            writer.put(value)
    go.set()
    assert done.wait(30)
    assert hub.events < count * rounds, "squashed"
    assert bool(hub.overflows) is not plain
    for subscription in subscriptions:
        subscription.cancel()
    hub.close()
    dbcore.shutdown()


@isolated
def test_an_overflowing_ring_still_delivers_every_channels_latest_value(tmp_path: Path) -> None:
    _stalled(plain=False)


@isolated
def test_plain_callbacks_squash_to_the_latest_value(tmp_path: Path) -> None:
    _stalled(plain=True)


@isolated
def test_a_failing_consumer_does_not_end_the_hub(tmp_path: Path) -> None:
    from appliance.ioc import dbcore

    _start()
    got = _Batches()
    fail = True

    def deliver(keys: list[Hashable]) -> None:
        nonlocal fail
        got(keys)
        if fail:
            fail = False
            raise RuntimeError("first batch")

    hub = dbcore.EventHub(deliver)
    channel = dbcore.DBChannel("ao")
    hub.subscribe(channel, dbcore.DBE_VALUE, "value")
    channel.put(1)
    got.until({"value"})
    channel.put(2)
    got.until({"value"})
    dbcore.shutdown()


@isolated
def test_ten_thousand_records_at_ten_hertz_are_delivered_while_python_is_busy(tmp_path: Path) -> None:
    """100 000 events a second, each with its value read, beside a thread that never lets go.

    The interpreter's lock is had 200 times a second then: what counts is that one wake-up delivers hundreds.
    """
    from appliance.ioc import dbcore

    count = 10_000
    _start(
        "".join(
            f'record(calc, "c{i}") {{ field(SCAN, ".1 second") field(INPA, "c{i}") field(CALC, "A+1") }}\n'
            for i in range(count)
        )
    )
    stop = False

    def busy() -> None:
        number = 0
        while not stop:
            number += 1

    async def run() -> None:
        readings = 0

        def deliver(keys: list[Hashable]) -> None:
            nonlocal readings
            readings += len(dbcore.get_many([channels[key] for key in keys]))  # type: ignore[index]

        channels = [dbcore.DBChannel(f"c{i}") for i in range(count)]
        hub = dbcore.EventHub(deliver, loop=asyncio.get_running_loop())
        subscriptions = [hub.subscribe(channel, dbcore.DBE_VALUE, i) for i, channel in enumerate(channels)]
        # Subscribing and cancelling give up the interpreter's lock, which the busy thread would keep for 5 ms each time.
        thread.start()
        before, wakeups = readings, hub.wakeups
        async with asyncio.timeout(60):
            while readings - before < 100_000:
                await asyncio.sleep(0.05)
        assert (readings - before) / (hub.wakeups - wakeups) > 30
        nonlocal stop
        stop = True
        for subscription in subscriptions:
            subscription.cancel()
        hub.close()

    thread = threading.Thread(target=busy)
    try:
        asyncio.run(run())
    finally:
        stop = True
        if thread.ident is not None:
            thread.join()
    dbcore.shutdown()

"""A subscription that takes octets: sent at once, queued behind what waits, merged when the client is slow."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.pva.octets import Batch, Octets
from appliance.pva.selection import encode_update
from appliance.server.octet_subscription import WeighedUpdate
from appliance.server.operation import PUMP_LIMIT, Update
from tests.helpers.octet_subscriber import Subscriber
from tests.helpers.wire import SCALAR

VALUE, SEVERITY = 2, 8


def batch(*values: float, bits: int = VALUE, big: bool = False) -> Batch:
    store = [None, 0.0, None, 7, ""]
    bodies = []
    for value in values:
        store[1] = value
        bodies.append(encode_update(SCALAR, bits, 0, store, big=big))
    return Batch(bodies, big, bits)


def test_updates_in_the_other_byte_order_are_written_anew_once_for_all() -> None:
    one, two = Subscriber(), Subscriber()
    came = batch(1.0, 2.0, big=True)
    for bench in (one, two):
        bench.forward(came)
    assert one.subscription.queue[0] is two.subscription.queue[0]
    for bench in (one, two):
        bench.send_waiting()
        assert bench.got() == [(1.0, VALUE, 0), (2.0, VALUE, 0)]


def test_updates_leave_at_once_if_nothing_waits() -> None:
    bench = Subscriber()
    sent = batch(1.0, 2.0, 3.0)
    flushes = bench.flushes
    bench.forward(sent)
    assert bench.flushes == flushes + 1
    assert bench.got() == [(1.0, VALUE, 0), (2.0, VALUE, 0), (3.0, VALUE, 0)]
    assert not bench.dirty
    assert (bench.subscription.posted, bench.subscription.octets) == (3, sent.size)


@pytest.mark.parametrize("why", ["socket", "pause", "outbox"])
def test_what_cannot_leave_waits_and_is_merged_when_the_queue_is_full(why: str) -> None:
    bench = Subscriber()
    if why == "socket":
        bench.stream.writable = False
    elif why == "pause":
        bench.owner.held = object()
    else:
        bench.subscription.wire.outbox.size = PUMP_LIMIT + 1
    for value in range(4):
        bench.forward(batch(float(value)))
    bench.forward(batch(4.0, 5.0))
    bench.forward(batch(5.0, bits=SEVERITY))
    assert (len(bench.subscription.queue), bench.subscription.squashed) == (4, 3)
    assert bench.subscription.weight > 4 * 12
    assert bench.dirty == [bench.subscription]
    bench.stream.writable, bench.owner.held = True, None
    bench.subscription.wire.outbox.size = sum(map(len, bench.subscription.wire.outbox.chunks))
    assert bench.send_waiting() is False
    assert bench.got() == [
        (0.0, VALUE, 0),
        (1.0, VALUE, 0),
        (2.0, VALUE, 0),
        (5.0, VALUE | SEVERITY, VALUE),
    ]


@pytest.mark.parametrize("waiting", [0, 2, 4])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_batch_that_finds_no_room_is_merged_as_its_updates_one_by_one(waiting: int, count: int) -> None:
    at_once, singly = Subscriber(), Subscriber()
    for bench in (at_once, singly):
        bench.stream.writable = False
        for value in range(waiting):
            bench.forward(batch(float(value)))
    values = [10.0 + number for number in range(count)]
    at_once.forward(batch(*values))
    for value in values:
        singly.forward(batch(value))
    counts = [
        (bench.subscription.posted, bench.subscription.squashed, bench.subscription.weight)
        for bench in (at_once, singly)
    ]
    assert counts[0] == counts[1]
    for bench in (at_once, singly):
        bench.stream.writable = True
        bench.send_waiting()
    assert at_once.got() == singly.got()


def test_what_comes_later_waits_behind_what_waits_already() -> None:
    bench = Subscriber()
    bench.stream.writable = False
    bench.forward(batch(1.0))
    bench.stream.writable = True
    bench.forward(batch(2.0))
    assert bench.got() == []
    bench.send_waiting()
    assert [value for value, _, _ in bench.got()] == [1.0, 2.0]


def test_a_pipeline_gets_what_it_has_granted() -> None:
    bench = Subscriber(text="record[pipeline=true,queueSize=3]", window=3)
    bench.forward(batch(*map(float, range(10))))
    assert [value for value, _, _ in bench.got()] == [0.0, 1.0, 2.0]
    assert bench.send_waiting() is False
    bench.operation.acknowledge(3)
    bench.wire.pump()
    bench.send_waiting()
    assert bench.got() == [(3.0, VALUE, 0), (4.0, VALUE, 0), (9.0, VALUE, VALUE)]


def test_all_that_waits_can_be_merged_into_one() -> None:
    bench = Subscriber()
    bench.stream.writable = False
    bench.forward(batch(1.0, 2.0, 3.0))
    weight = bench.subscription.weight
    bench.subscription.shrink()
    assert (
        bench.subscription.weight == bench.allowance.waiting == weight // 3 + 1
    )  # one octet of the lost field
    assert bench.allowance.dropped == 2
    bench.subscription.shrink()
    assert bench.allowance.dropped == 2
    bench.send_waiting()
    assert bench.got() == [(3.0, VALUE, VALUE)]


def test_a_long_queue_of_large_updates_is_bounded_by_octets() -> None:
    bench = Subscriber(queue=1000)
    bench.stream.writable = False
    large = Octets(encode_update(SCALAR, 16, 0, [None, 0.0, None, 0, "x" * (4 << 20)], big=False), False, 16)
    for _ in range(40):
        bench.subscription.post_octets(large)
    assert len(bench.subscription.queue) <= 17
    assert bench.subscription.weight < 72 << 20


def test_the_end_comes_after_what_waits_and_nothing_after_it() -> None:
    bench = Subscriber()
    bench.stream.writable = False
    bench.forward(batch(1.0))
    bench.subscription.finish()
    bench.forward(batch(2.0))
    bench.send_waiting()
    events = bench.wire.pump()
    assert [type(event).__name__ for event in events] == ["MonitorUpdate", "MonitorFinished"]


def test_a_client_that_has_gone_gets_nothing() -> None:
    bench = Subscriber()
    bench.operation.close()
    bench.wire.pump()
    bench.forward(batch(1.0))
    bench.subscription.ready_raw(SCALAR)
    bench.send_waiting()
    assert bench.got() == []


def test_decoded_updates_go_the_usual_way() -> None:
    bench = Subscriber(raw=False)
    bench.subscription.post(Update(SCALAR, [None, 4.0, None, 0, ""], SCALAR.leaf_mask))
    assert bench.subscription.weight == 0
    bench.subscription.shrink()
    bench.send_waiting()
    assert bench.got() == [(4.0, SCALAR.leaf_mask, 0)]


def test_if_too_much_waits_for_a_connection_each_of_its_subscriptions_keeps_one_update() -> None:
    bench = Subscriber(queue=50, octets=1000)
    bench.subscribe("record[queueSize=50]")
    first, second = bench.made
    bench.stream.writable = False
    large = Octets(encode_update(SCALAR, 16, 0, [None, 0.0, None, 0, "x" * 90], big=False), False, 16)
    for _ in range(5):
        first.post_octets(large)
        second.post_octets(large)
    assert (len(first.queue), len(second.queue)) == (5, 5)
    first.post_octets(large)  # more than 1000 octets wait now
    assert (len(first.queue), len(second.queue)) == (1, 1)
    assert bench.allowance.dropped == 5 + 4
    assert bench.allowance.waiting == first.weight + second.weight < 250
    for _ in range(4):
        second.post_octets(large)
    assert len(second.queue) == 5
    for subscription in (first, second):
        bench.dirty.clear()
        bench.stream.writable = True
        subscription.pump()
    assert (first.weight, second.weight, bench.allowance.waiting) == (0, 0, 0)


def test_decoded_updates_of_a_slow_client_count_and_are_merged_like_octets() -> None:
    bench = Subscriber(queue=50, octets=1000, raw=False)
    bench.subscribe("record[queueSize=50]")
    first, second = bench.made
    bench.stream.writable = False

    def post(*to: Any) -> None:
        for subscription in to:
            subscription.post(WeighedUpdate(SCALAR, [None, 1.0, None, 0, "x" * 90], 16, 0, 100))

    for _ in range(5):
        post(first, second)
    assert (len(first.queue), len(second.queue), bench.allowance.waiting) == (5, 5, 1000)
    post(first)  # more than 1000 octets wait now
    assert (len(first.queue), len(second.queue)) == (1, 1)
    assert bench.allowance.dropped == 5 + 4
    assert bench.allowance.waiting == first.weight + second.weight == 200
    second.post(WeighedUpdate(SCALAR, [None, 1.0, None, 0, "y" * 390], 16, 0, 400))
    assert (len(second.queue), second.weight) == (2, 500)
    for subscription in (first, second):
        bench.stream.writable = True
        subscription.pump()
    assert (first.weight, second.weight, bench.allowance.waiting) == (0, 0, 0)
    assert second.octets > 500


def test_a_client_with_one_large_update_of_each_pv_gets_no_second_one_until_it_has_read() -> None:
    bench = Subscriber(queue=50, octets=100)
    bench.stream.writable = False
    large = Octets(encode_update(SCALAR, 16, 0, [None, 0.0, None, 0, "x" * 200], big=False), False, 16)
    for _ in range(5):
        bench.subscription.post_octets(large)
    assert len(bench.subscription.queue) == 1
    assert bench.allowance.is_full
    bench.stream.writable = True
    bench.send_waiting()
    assert (bench.allowance.waiting, bench.allowance.is_full) == (0, False)


def test_what_waits_is_counted_no_more_when_it_is_dropped() -> None:
    bench = Subscriber()
    bench.stream.writable = False
    bench.forward(batch(1.0, 2.0))
    assert bench.allowance.waiting > 0
    bench.subscription.clear()
    assert bench.allowance.waiting == 0
    bench.forward(batch(3.0))
    bench.subscription.release()
    assert bench.allowance.waiting == 0

"""GETs of clients that ask at the same time are one GET at the server, and nobody reads what was before he asked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from appliance.errors import OperationError
from appliance.gateway.shared_get import KEPT_OCTETS, SharedGet
from appliance.pva import commands as c
from appliance.pva.events import OperationReply
from appliance.pva.status import Status
from appliance.pvdata import ANY, StructType, Value
from appliance.pvdata.codec import codec
from appliance.server.access import ALL_RIGHTS, NO_RIGHTS
from appliance.server.operation import Operation
from tests.helpers.upstreams import DESTROY, OneUpstream
from tests.helpers.wire import SCALAR, Wire, request

VALUE, MESSAGE = 2, 16


class Reader:
    """A client's GET operation at the gateway."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.wire = Wire().handshake()
        self.wire.responder.init = self._init  # type: ignore[method-assign]
        self.wire.responder.execute = lambda served, argument: bench.shared.get(served.context)  # type: ignore[method-assign]
        self.owner = SimpleNamespace(
            held=None,
            allowance=SimpleNamespace(requests=0, is_behind=lambda waiting, octets: False),
        )
        self.operation = self.wire.open("d").operation(c.CMD_GET, request())
        self.wire.pump()

    def _init(self, served: Any) -> None:
        stream = SimpleNamespace(
            schedule_flush=lambda: None, flush_at_end=lambda: None, flushes_at_end=False, waiting=0
        )
        self.asked = Operation(
            SimpleNamespace(
                stream=stream, owner=self.owner, name="d", rights=ALL_RIGHTS, denial=lambda right: "denied"
            ),  # type: ignore[arg-type]
            served,
        )
        self.bench.shared.init(self.asked)

    def lose_right(self) -> None:
        """As `ServedChannel.review` does."""
        self.operation_there.prepared = None
        self.asked.channel.rights = NO_RIGHTS

    @property
    def operation_there(self) -> Any:
        """The operation at the gateway's end."""
        return self.asked.wire

    @property
    def requests(self) -> int:
        """What the gateway has counted for this client."""
        return int(self.owner.allowance.requests + self.wire.server.passed_on)

    def get(self) -> Reader:
        self.wire.pump()
        self.operation.get()
        self.wire.pump()
        return self

    @property
    def answers(self) -> list[Any]:
        """Values, or the texts of errors, that have come since this was asked."""
        self.wire.pump()
        events, self.wire.events = self.wire.events, []
        return [
            event.value["value"] if event.status.ok else event.status.message
            for event in events
            if type(event) is OperationReply
        ]


class Bench:
    def __init__(self, holdoff_s: float = 0.0) -> None:
        self.upstream = OneUpstream()
        self.reads = 0
        self.upstream.server.responder.hold.add(type(None))
        self.shared = SharedGet(self.upstream, "key", request(), holdoff_s)  # type: ignore[arg-type]
        self.upstream.gets["key"] = self.shared
        self.waiting: list[Any] = []
        self.upstream.server.responder.execute = self._execute  # type: ignore[method-assign]

    def begin(self) -> Bench:
        self.upstream.channel.add(self.shared)
        self.upstream.run()
        return self

    def _execute(self, served: Any, argument: Any) -> None:
        self.reads += 1
        self.waiting.append(served)

    def run(self) -> None:
        self.upstream.run()

    def answer(self, value: float, bits: int = SCALAR.leaf_mask, message: str = "") -> None:
        """Let the server answer the read that waits."""
        (served,) = self.waiting
        self.waiting.clear()
        served.mask = bits
        served.reply_value([None, value, None, 0, message])
        self.run()


def test_who_asks_while_a_read_is_under_way_gets_the_next_one() -> None:
    bench = Bench().begin()
    one, two, three = Reader(bench), Reader(bench), Reader(bench)
    one.get()
    bench.run()
    two.get()
    three.get()
    bench.run()
    assert bench.reads == 1
    bench.answer(1.0)
    bench.run()
    assert bench.reads == 2
    bench.answer(2.0)
    assert (one.answers, two.answers, three.answers) == ([1.0], [2.0], [2.0])
    for reader in (one, two, three):
        reader.get()
    bench.run()
    bench.answer(3.0)
    bench.run()
    bench.answer(4.0)
    assert (one.answers, two.answers, three.answers) == ([3.0], [4.0], [4.0])


def test_octets_pass_and_nothing_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench().begin()
    reader = Reader(bench)
    monkeypatch.setattr("appliance.gateway.shared_get.decoded", None)
    for value in (1.0, 1.0, 2.5, -3.0):
        reader.get()
        bench.run()
        bench.answer(value, message="it is")
        assert reader.answers == [value]


def test_a_repeated_get_needs_no_event_at_the_gateway() -> None:
    bench = Bench().begin()
    reader = Reader(bench).get()
    bench.run()
    bench.answer(1.0)
    assert reader.answers == [1.0]
    reader.wire.responder.events.clear()
    reader.get()
    bench.run()
    bench.answer(2.0)
    assert reader.answers == [2.0]
    assert reader.wire.responder.events == []


def test_a_repeated_get_of_an_unchanged_value_is_the_same_message() -> None:
    bench = Bench().begin()
    reader = Reader(bench)
    answers = []
    for value in (1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 1.0):
        reader.get()
        bench.run()
        bench.answer(value)
        assert reader.answers == [value]
        answers.append(reader.operation_there.reply)
    assert answers[1] is answers[2]
    assert answers[4] is answers[5]
    assert answers[2] != answers[4]
    assert answers[6] == answers[2]


def test_every_request_is_counted_once_for_its_client_and_its_name() -> None:
    bench = Bench().begin()
    one, two = Reader(bench), Reader(bench)
    for value in (1.0, 1.0, 1.0, 2.0, 2.0):
        for reader in (one, two):  # one after the other, then both at the same time
            reader.get()
            bench.run()
            bench.answer(value)
        one.get()
        bench.run()
        two.get()
        bench.answer(value)
        bench.run()
        bench.answer(value)
    bench.shared.settle()
    assert (one.requests, two.requests) == (10, 10)
    account = bench.upstream
    assert account.requests == 20
    size = len(codec(SCALAR, False).encode_marked(Value(SCALAR).store, SCALAR.leaf_mask))
    assert (account.us_rx, account.ds_tx) == (20 * size, 20 * size)


def test_a_client_that_cancels_a_repeated_get_gets_no_answer_and_who_came_later_gets_its_own() -> None:
    bench = Bench().begin()
    one, two = Reader(bench), Reader(bench)
    for value in (1.0, 1.0):
        one.get()
        bench.run()
        bench.answer(value)
    one.get()
    bench.run()
    bench.shared.cancelled(one.asked)
    two.get()
    bench.run()
    assert bench.reads == 3
    bench.answer(1.0)
    bench.run()
    bench.answer(2.0)
    assert (one.answers, two.answers) == ([1.0, 1.0], [2.0])


def test_who_loses_the_right_to_read_while_a_repeated_get_is_under_way_gets_no_value() -> None:
    bench = Bench().begin()
    reader = Reader(bench)
    for value in (1.0, 1.0):
        reader.get()
        bench.run()
        bench.answer(value)
    reader.get()
    bench.run()
    reader.lose_right()
    bench.answer(1.0)
    assert reader.answers == [1.0, 1.0, "denied"]


def test_a_hold_off_lets_clients_share_the_answer() -> None:
    bench = Bench(holdoff_s=0.5).begin()
    one, two = Reader(bench), Reader(bench)
    one.get()
    bench.run()
    bench.answer(1.0)
    two.get()
    one.get()
    bench.run()
    assert bench.reads == 1
    bench.upstream.clock.advance(0.4)
    bench.run()
    assert bench.reads == 1
    bench.upstream.clock.advance(0.2)
    bench.run()
    assert bench.reads == 2
    bench.answer(2.0)
    assert (one.answers, two.answers) == ([1.0, 2.0], [2.0])


def test_an_answer_with_changes_only_is_completed() -> None:
    """pvAccessCPP answers with what has changed since the operation's last answer."""
    bench = Bench().begin()
    one = Reader(bench)
    one.get()
    bench.run()
    bench.answer(1.0, message="first")
    two = Reader(bench)
    two.get()
    bench.run()
    bench.answer(2.0, VALUE, message="not sent")
    one.get()
    bench.run()
    bench.answer(0.0, 0)
    assert one.answers == [1.0, 2.0]
    assert two.answers == [2.0]
    assert two.operation.last_store == [None, 2.0, None, 0, "first"]


def test_a_server_that_answers_with_changes_only_is_asked_anew_for_large_values() -> None:
    bench = Bench().begin()
    reader = Reader(bench).get()
    bench.run()
    bench.answer(1.0, message="x" * (KEPT_OCTETS + 1))
    reader.get()
    bench.run()
    bench.answer(2.0, VALUE)
    bench.run()
    bench.run()
    bench.answer(2.0, message="whole")
    assert reader.answers == [1.0, 2.0]
    assert reader.operation.last_store[4] == "whole"


@pytest.mark.parametrize("times", [1, 3])
def test_an_error_of_a_kept_operation_is_tried_once_more_with_a_new_one(times: int) -> None:
    bench = Bench().begin()
    reader = Reader(bench).get()
    bench.run()
    bench.waiting.pop().fail("first")
    bench.run()
    assert reader.answers == ["first"]
    for _ in range(times):
        reader.get()
        bench.run()
        bench.answer(1.0)
        assert reader.answers == [1.0]
    reader.get()
    bench.run()
    bench.waiting.pop().fail("changed")
    for _ in range(3):
        bench.run()
    bench.answer(2.0)
    assert reader.answers == [2.0]


def test_a_server_that_refuses_the_second_try_is_asked_again_by_the_next_who_reads() -> None:
    bench = Bench().begin()
    one, two = Reader(bench).get(), Reader(bench)
    bench.run()
    bench.answer(1.0)
    one.get()
    bench.run()
    responder = bench.upstream.server.responder
    init = responder.init
    responder.init = lambda served: served.fail("no more")  # type: ignore[method-assign]
    bench.waiting.pop().fail("changed")
    for _ in range(3):
        bench.run()
    assert one.answers == [1.0, "no more"]
    two.get()
    for _ in range(3):
        bench.run()
    assert two.answers == ["no more"]
    responder.init = init  # type: ignore[method-assign]
    two.get()
    for _ in range(3):
        bench.run()
    bench.answer(2.0)
    assert two.answers == [2.0]


def test_who_reads_after_the_end_is_told() -> None:
    bench = Bench().begin()
    one = Reader(bench).get()
    bench.run()
    bench.answer(1.0)
    bench.shared.fail(OperationError("over"))
    one.get()
    assert one.answers == [1.0, "over"]


def test_another_type_at_the_second_try_ends_the_gets() -> None:
    bench = Bench().begin()
    reader = Reader(bench).get()
    bench.run()
    bench.answer(1.0)
    reader.get()
    bench.run()
    bench.upstream.server.responder.values["d"] = Value(StructType((("v", ANY),)))
    bench.waiting.pop().fail("changed")
    for _ in range(3):
        bench.run()
    assert reader.answers == [1.0, "the type of this PV has changed; open the channel again"]
    assert bench.upstream.gets == {}


def test_a_pause_refuses_with_its_reason() -> None:
    bench = Bench().begin()
    reader = Reader(bench)
    bench.upstream.channel.link.held = object()
    reader.get()
    assert reader.answers == ["paused"]


def test_a_client_that_cancels_gets_no_answer_and_the_others_theirs() -> None:
    bench = Bench().begin()
    one, two = Reader(bench).get(), Reader(bench).get()
    bench.run()
    bench.shared.cancelled(one.asked)
    bench.answer(1.0)
    bench.run()
    bench.answer(2.0)
    assert (one.answers, two.answers) == ([], [2.0])


def test_the_last_client_ends_the_operation_at_the_server() -> None:
    bench = Bench().begin()
    one, two = Reader(bench), Reader(bench)
    bench.upstream.sent()
    bench.shared.closed(one.asked)
    assert bench.upstream.sent() == []
    bench.shared.closed(two.asked)
    assert bench.upstream.sent() == [DESTROY]
    assert bench.upstream.gets == {}


@pytest.mark.parametrize("before", [0, 2])
def test_a_move_to_tls_repeats_the_read(before: int) -> None:
    bench = Bench().begin()
    reader = Reader(bench)
    for _ in range(before):
        reader.get()
        bench.run()
        bench.answer(6.0)
    reader.get()
    bench.run()
    bench.waiting.clear()
    bench.shared.disconnected("speaks TLS now", moving=True)
    bench.shared.start()
    for _ in range(3):
        bench.run()
    bench.answer(7.0)
    assert reader.answers == [6.0] * before + [7.0]


@pytest.mark.parametrize("before", [0, 2])
def test_a_lost_server_is_told(before: int) -> None:
    bench = Bench().begin()
    reader = Reader(bench)
    for _ in range(before):
        reader.get()
        bench.run()
        bench.answer(6.0)
    reader.get()
    bench.run()
    bench.shared.disconnected("lost")
    assert reader.answers == [6.0] * before + ["the server of this PV is lost"]


def test_a_value_with_an_any_is_decoded_and_counted_as_others_are() -> None:
    kind = StructType((("value", ANY),))
    bench = Bench()
    bench.upstream.server.responder.values["d"] = Value(kind)
    bench.begin()
    reader = Reader(bench).get()
    bench.run()
    value = Value(kind)
    value["value"] = "x" * 1000
    bench.waiting.pop().reply_value(value.store)
    bench.run()
    (answer,) = reader.answers
    assert answer.value == "x" * 1000
    account = bench.upstream
    assert (account.requests, reader.owner.allowance.requests) == (1, 1)
    assert 1000 < account.us_rx == account.ds_tx < 1050


def test_warnings_pass() -> None:
    bench = Bench().begin()
    reader = Reader(bench).get()
    bench.run()
    bench.waiting.clear()
    tail = codec(SCALAR, False).encode_marked(Value(SCALAR).store, 1)
    bench.upstream.say(bench.shared.operation, Status(1, "careful").encode(big=False) + tail)
    (event,) = [event for event in reader.wire.pump() if type(event) is OperationReply]
    assert event.status == Status(1, "careful")

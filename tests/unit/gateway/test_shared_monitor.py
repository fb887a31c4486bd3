"""One subscription at the server feeds all clients that want the same; nothing is decoded unless somebody has to look inside."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.gateway.shared_monitor import MAX_PIECES, OwnMonitor, SharedMonitor
from appliance.gateway.shared_monitor import _Pieces as Pieces
from appliance.pva import commands as c
from appliance.pva.octets import Octets
from appliance.pva.selection import encode_update
from appliance.pva.status import OK, Status
from appliance.pvdata import ANY, STRING, ArrayType, StructType, Value
from tests.helpers.octet_subscriber import Subscriber
from tests.helpers.upstreams import DESTROY, OneUpstream
from tests.helpers.wire import SCALAR, request

VALUE, SEVERITY, MESSAGE = 2, 8, 16
LEAVES = SCALAR.leaf_mask


class Bench:
    """A shared subscription, its server and its clients."""

    def __init__(self) -> None:
        self.upstream = OneUpstream()
        self.upstream.server.responder.post = lambda operation, bits: None  # type: ignore[assignment,method-assign]
        self.monitor = SharedMonitor(self.upstream, "key", request())  # type: ignore[arg-type]
        self.upstream.monitors["key"] = self.monitor
        self.clients: list[Subscriber] = []
        self.value = 0.0

    def begin(self, clients: int = 1) -> Bench:
        for _ in range(clients):
            self.join(start=False)
        self.upstream.channel.add(self.monitor)
        self.upstream.run()
        self.upstream.run()  # its start
        for client in self.clients:
            client.start()
        return self

    def join(self, *, start: bool = True) -> Subscriber:
        client = Subscriber(raw=None)
        self.clients.append(client)
        self.monitor.subscribe(client.subscription)
        if start:
            client.start()
        return client

    def body(self, value: float, bits: int = VALUE, overrun: int = 0, *, big: bool = False) -> bytes:
        return encode_update(SCALAR, bits, overrun, [None, value, None, int(value), f"{value:g}"], big=big)

    def say(self, *bodies: bytes, big: bool = False) -> None:
        self.upstream.say(self.monitor.operation, *bodies, big=big)


def got(client: Subscriber) -> list[tuple[float, int, int]]:
    client.send_waiting()
    return client.got()


def test_every_client_gets_the_octets_of_every_update() -> None:
    bench = Bench().begin(3)
    assert [client.operation.type for client in bench.clients] == [SCALAR] * 3
    bench.say(bench.body(1.0, LEAVES), bench.body(2.0), bench.body(3.0))
    bench.say(bench.body(4.0, overrun=VALUE), bench.body(5.0, big=True)[:-1] + b"\0")
    for client in bench.clients:
        assert [(value, bits, overrun) for value, bits, overrun in got(client)][:4] == [
            (1.0, LEAVES, 0),
            (2.0, VALUE, 0),
            (3.0, VALUE, 0),
            (4.0, VALUE, VALUE),
        ]


def test_nothing_is_decoded_while_updates_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench().begin(2)
    monkeypatch.setattr("appliance.pva.octets.codec", None)
    monkeypatch.setattr("appliance.gateway.shared_monitor.decoded", None)
    bench.clients[0].stream.writable = False  # its queue is full soon
    for _ in range(20):
        bench.say(bench.body(1.0), bench.body(2.0))
    assert bench.clients[0].subscription.squashed == 36
    monkeypatch.undo()
    assert [value for value, _, _ in got(bench.clients[1])] == [1.0, 2.0] * 20


def test_a_server_of_another_byte_order_is_understood_by_every_client() -> None:
    bench = Bench().begin()
    bench.say(bench.body(5.0, big=True), big=True)
    assert got(bench.clients[0]) == [(5.0, VALUE, 0)]


def test_a_late_client_gets_the_whole_value_and_the_server_no_message() -> None:
    bench = Bench().begin()
    bench.say(bench.body(1.0, LEAVES), bench.body(2.0, SEVERITY | MESSAGE), bench.body(3.0), bench.body(4.0))
    bench.upstream.sent()
    late = bench.join()
    assert bench.upstream.sent() == []
    assert got(late) == [(4.0, LEAVES, 0)]
    assert late.operation.last_store == [None, 4.0, None, 2, "2"]
    bench.say(bench.body(5.0))
    assert got(late) == [(5.0, VALUE, 0)]


def test_a_client_that_comes_after_an_overrun_gets_the_value_without_a_fault() -> None:
    bench = Bench().begin()
    bench.say(bench.body(1.0, LEAVES, LEAVES))
    bench.say(bench.body(2.0, LEAVES))
    late = bench.join()
    assert got(late) == [(2.0, LEAVES, 0)]
    assert late.operation.last_store == [None, 2.0, None, 2, "2"]
    bench.say(bench.body(3.0, VALUE, VALUE))
    bench.say(bench.body(4.0, VALUE))
    late = bench.join()
    assert got(late) == [(4.0, LEAVES, 0)]
    assert late.operation.last_store == [None, 4.0, None, 2, "2"]


def test_a_late_client_learns_no_fields_that_the_server_never_sent() -> None:
    bench = Bench().begin()
    bench.say(bench.body(1.0, VALUE | SEVERITY))
    assert got(bench.join()) == [(1.0, VALUE | SEVERITY, 0)]


def test_a_client_that_comes_before_the_first_update_gets_it_as_all_others() -> None:
    bench = Bench().begin()
    early = bench.join()
    assert got(early) == []
    bench.say(bench.body(1.0, LEAVES))
    assert got(early) == [(1.0, LEAVES, 0)]


def test_an_update_without_fields_passes() -> None:
    bench = Bench().begin()
    bench.say(bench.body(1.0, 0))
    assert got(bench.clients[0]) == [(0.0, 0, 0)]
    bench.say(bench.body(2.0, VALUE))
    assert got(bench.join()) == [(2.0, VALUE, 0)]


def test_the_last_client_ends_the_subscription_at_the_server() -> None:
    bench = Bench().begin(2)
    bench.upstream.sent()
    bench.monitor.unsubscribe(bench.clients[0].subscription)
    assert bench.upstream.sent() == []
    bench.monitor.unsubscribe(bench.clients[1].subscription)
    assert bench.upstream.sent() == [DESTROY]
    assert bench.upstream.monitors == {}
    assert bench.upstream.channel.requests == {}


def test_an_error_of_the_server_reaches_every_client() -> None:
    bench = Bench()
    bench.upstream.server.responder.init = lambda served: served.fail("no such field")  # type: ignore[method-assign]
    for _ in range(2):
        bench.join(start=False)
    bench.upstream.channel.add(bench.monitor)
    bench.upstream.run()
    for client in bench.clients:
        (event,) = client.wire.pump()
        assert event.status == Status.error("no such field")
    assert bench.upstream.monitors == {}


@pytest.mark.parametrize("status", [OK, Status.error("the record is gone")])
def test_the_end_at_the_server_comes_after_what_waits(status: Status) -> None:
    bench = Bench().begin(2)
    bench.clients[0].stream.writable = False
    bench.say(bench.body(1.0))
    bench.upstream.say(bench.monitor.operation, status.encode(big=False), sub=c.SUB_DESTROY)
    for client in bench.clients:
        values = got(client)
        assert client.ends == [status]
        if status.ok:
            assert [value for value, _, _ in values] == [1.0]
    assert bench.upstream.monitors == {}


def test_during_a_pause_clients_get_nothing_and_afterwards_the_latest() -> None:
    bench = Bench().begin()
    bench.say(bench.body(1.0, LEAVES))
    got(bench.clients[0])
    bench.upstream.channel.link.held = object()
    bench.say(bench.body(2.0), bench.body(3.0))
    bench.say(bench.body(4.0, SEVERITY))
    late = bench.join()
    assert got(bench.clients[0]) == got(late) == []
    bench.upstream.channel.link.held = None
    bench.monitor.resumed()
    assert got(bench.clients[0]) == [(3.0, LEAVES, VALUE)]
    assert [value for value, _, _ in got(late)] == [3.0]
    bench.monitor.resumed()
    assert got(bench.clients[0]) == got(late) == []


def test_who_comes_in_a_pause_without_news_gets_the_value_when_it_is_over() -> None:
    bench = Bench().begin()
    bench.say(bench.body(1.0, LEAVES))
    got(bench.clients[0])
    bench.upstream.channel.link.held = object()
    late = bench.join()
    bench.upstream.channel.link.held = None
    bench.monitor.resumed()
    assert got(late) == [(1.0, LEAVES, 0)]
    assert got(bench.clients[0]) == []


def test_a_move_to_tls_keeps_the_clients() -> None:
    bench = Bench().begin()
    bench.say(bench.body(1.0, LEAVES))
    bench.monitor.disconnected("speaks TLS now", moving=True)
    assert bench.monitor in bench.upstream.channel.requests
    bench.monitor.start()
    bench.upstream.run()
    bench.say(bench.body(2.0, LEAVES))
    assert [value for value, _, _ in got(bench.clients[0])] == [1.0, 2.0]
    assert bench.upstream.renewals == 0


@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize("more", [False, True])
def test_a_move_does_not_tell_again_what_the_clients_know(pieces: bool, more: bool) -> None:
    bench = Bench().begin()
    bench.say(bench.body(0.0, LEAVES))
    bench.say(bench.body(1.0, LEAVES))
    if pieces:
        bench.say(bench.body(2.0, VALUE), bench.body(1.0, VALUE))
    before = len(got(bench.clients[0]))
    bench.monitor.disconnected("speaks TLS now", moving=True)
    bench.monitor.start()
    bench.upstream.run()
    bench.say(bench.body(1.0, LEAVES), *([bench.body(3.0, LEAVES)] if more else []))
    bench.say(bench.body(3.0, VALUE))
    told = [value for value, _, _ in got(bench.clients[0])]
    assert told == ([3.0, 3.0] if more else [3.0]), before
    bench.say(bench.body(3.0, LEAVES))
    assert [value for value, _, _ in got(bench.clients[0])] == [3.0], "the server says it, so clients hear it"


def test_another_type_after_a_move_closes_the_channels() -> None:
    bench = Bench().begin()
    bench.monitor.disconnected("speaks TLS now", moving=True)
    bench.upstream.server.responder.values["d"] = Value(StructType((("other", STRING),)))
    bench.monitor.start()
    bench.upstream.run()
    assert bench.upstream.renewals == 1


def test_a_lost_server_ends_it() -> None:
    bench = Bench().begin()
    bench.monitor.disconnected("lost")
    assert bench.upstream.channel.requests == {}


def test_a_type_that_holds_an_any_is_decoded_and_encoded_again() -> None:
    kind = StructType((("value", ANY), ("array", ArrayType(ANY))))
    bench = Bench()
    bench.upstream.server.responder.values["d"] = Value(kind)
    bench.begin()
    (client,) = bench.clients
    assert client.operation.type == kind
    assert not client.subscription.raw
    wire = bench.upstream.server.responder.monitors[-1]
    value = Value(kind)
    value["value"] = 5
    wire.send_update(encode_update(kind, kind.leaf_mask, 0, value.store, big=False))
    bench.upstream.run()
    late = bench.join()
    for one in (client, late):
        one.send_waiting()
        (event,) = one.wire.pump()
        assert event.store[1].value == 5


def test_octets_of_a_type_that_holds_an_any_are_counted_as_others_are() -> None:
    kind = StructType((("value", ANY),))
    bench = Bench()
    bench.upstream.server.responder.values["d"] = Value(kind)
    bench.begin()
    bench.join()
    wire = bench.upstream.server.responder.monitors[-1]
    value = Value(kind)
    value["value"] = "x" * 1000
    body = encode_update(kind, kind.leaf_mask, 0, value.store, big=False)
    for _ in range(3):
        wire.send_update(body)
        bench.upstream.run()
    for client in bench.clients:
        assert client.allowance.waiting == client.subscription.weight >= 3 * len(body)
        client.send_waiting()
        assert client.allowance.waiting == client.subscription.weight == 0
    bench.monitor.settle()
    assert 3 * len(body) <= bench.upstream.us_rx < 3 * len(body) + 30
    assert 2 * 3 * len(body) <= bench.upstream.ds_tx < 2 * 3 * (len(body) + 30)


def test_a_pipeline_of_its_own_gets_as_much_as_its_client_takes() -> None:
    text = "record[pipeline=true,queueSize=4]"
    upstream = OneUpstream()
    client = Subscriber(text=text, window=4, raw=None)
    monitor = OwnMonitor(upstream, client.subscription, request(text))  # type: ignore[arg-type]
    upstream.monitors[client.subscription] = monitor
    monitor.subscribe(client.subscription)
    upstream.channel.add(monitor)
    upstream.run()
    upstream.run()
    client.start()
    (served,) = upstream.server.responder.monitors
    body = encode_update(SCALAR, VALUE, 0, [None, 1.0, None, 0, ""], big=False)
    assert (served.pipeline, served.window) == (True, 3), "the first value took one"
    assert len(got(client)) == 1
    for _ in range(3):
        served.send_update(body)
    upstream.run()
    upstream.run()
    assert served.window == 4, "all four have left for the client"
    assert len(got(client)) == 3
    client.operation.acknowledge(4)
    client.wire.pump()
    for _ in range(4):
        served.send_update(body)
    upstream.run()
    upstream.run()
    assert served.window == 4
    for _ in range(4):
        served.send_update(body)
    upstream.run()
    upstream.run()
    assert served.window == 0, "the client has acknowledged nothing"
    client.operation.acknowledge(4)
    client.wire.pump()
    assert len(got(client)) == 4, "those that waited"
    upstream.run()
    assert served.window == 4


# -- the pieces of the present value -------------------------------------------------------------------

KIND = StructType(tuple((f"f{n}", STRING) for n in range(12)))


def piece(bits: int, text: str) -> Octets:
    store: list[Any] = [None, *[text] * 12]
    return Octets(encode_update(KIND, bits, 0, store, big=False), False, bits)


def test_an_update_replaces_those_of_which_it_has_all_fields() -> None:
    pieces = Pieces()
    for bits, text in ((KIND.leaf_mask, "a"), (2, "b"), (4, "c"), (2 | 4, "d"), (8, "e"), (2, "f")):
        pieces.add(KIND, piece(bits, text))
    assert len(pieces._by_bits) == 4
    made = pieces.whole(KIND)
    assert made is pieces.whole(KIND)
    assert made.bits == KIND.leaf_mask
    store = Value(KIND).store
    from appliance.pva.octets import decoded

    decoded(KIND, made, store)
    assert store[1:5] == ["f", "d", "e", "a"]


def test_many_pieces_become_one() -> None:
    pieces = Pieces()
    for n in range(1, 12):
        pieces.add(KIND, piece(1 << n, str(n)))
        assert len(pieces._by_bits) <= MAX_PIECES
    assert pieces.whole(KIND).bits == pieces.seen == (1 << 12) - 2


def test_large_pieces_become_one_when_there_are_three() -> None:
    pieces = Pieces()
    for n in range(1, 5):
        pieces.add(KIND, piece(1 << n, "x" * 600_000))
        assert len(pieces._by_bits) <= 2


def test_a_late_client_is_not_told_of_fields_that_were_lost_before_it_came() -> None:
    pieces = Pieces()
    body = encode_update(KIND, 2, 2, [None, *["x"] * 12], big=False)
    pieces.add(KIND, Octets(body, False, 2, 2))
    assert pieces.whole(KIND).overrun == 0

"""One client's connection at the server, without sockets: the client's half of the protocol talks to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from typing import Any

import pytest

from appliance.certs.status import StatusClass
from appliance.errors import OperationError, TransportError
from appliance.pva.client_connection import ClientConnection
from appliance.pva.commands import CMD_MONITOR
from appliance.pva.credentials import Credentials
from appliance.pva.events import (
    AuthenticationOffered,
    ChannelCreated,
    OperationReady,
    SearchAnswered,
    Validated,
)
from appliance.pva.limits import DEFAULT_LIMITS
from appliance.pva.search import SearchRequest, SearchResponse
from appliance.pva.states import ConnectionState
from appliance.pvdata.nt import NTScalar
from appliance.pvdata.pvrequest import PVRequest
from appliance.pvdata.types import FLOAT64, STRING, StructType
from appliance.pvdata.value import Value
from appliance.server.access import AccessControl
from appliance.server.admission import Entrance
from appliance.server.end import ServerEnd
from appliance.server.operation import Subscription
from appliance.server.peer import MAX_MESSAGES, Host, Peer
from appliance.server.pump import Pump
from appliance.server.quota import Quota, Shares
from appliance.server.roles import Roles
from appliance.server.sharedpv import SharedPV
from appliance.server.source import Handler, Later
from appliance.transport.gate import PeerGate, Verdict
from tests.helpers.clock import FakeClock
from tests.helpers.ours import double


class OneHost(Host):
    """A server with one PV."""

    def __init__(self) -> None:
        self.pv: Handler = double(1.0)
        self.is_open = True
        self.laters: list[Later] = []
        self.late: Callable[[SearchResponse], None] | None = None
        self.gone: list[Peer] = []

    def accepts(self, *, tls: bool) -> bool:
        return self.is_open

    def answer_search(
        self, request: SearchRequest, host: str, later: Callable[[SearchResponse], None] | None = None
    ) -> tuple[SearchResponse, ...]:
        self.late = later
        found = tuple(instance for instance, name in request.names if name == "pv")
        return (SearchResponse(bytes(12), request.sequence, None, 5075, "tcp", True, found),) if found else ()

    def open(self, name: str, peer: Credentials) -> Handler | Later:
        if name.startswith("later"):
            later = Later()
            self.laters.append(later)
            return later
        if name != "pv":
            raise OperationError(f"no {name}")
        return self.pv

    def ended(self, peer: Peer) -> None:
        self.gone.append(peer)


class Wire(asyncio.Transport):
    """What is written to it stays in a buffer."""

    def __init__(self, address: tuple[str, int]) -> None:
        super().__init__({"peername": address})
        self._written = bytearray()
        self.is_over = False

    def write(self, data: Any) -> None:
        self._written += data

    def take(self) -> bytes:
        taken, self._written = bytes(self._written), bytearray()
        return taken

    def is_closing(self) -> bool:
        return self.is_over

    def can_write_eof(self) -> bool:
        return False

    def abort(self) -> None:
        self.is_over = True

    close = abort

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a message takes longer than a slice of time and would wait for another turn: another test's matter."""
    for name in ("SLICE_S", "TURN_S"):
        monkeypatch.setattr(f"appliance.transport.turns.{name}", 3600.0)


class World:
    """A peer, its host and the client's half of the protocol."""

    def __init__(self, *, quota: Quota | None = None, gate: PeerGate | None = None) -> None:
        self.clock: Any = FakeClock()
        self.host = OneHost()
        self.end = ServerEnd(
            Entrance(gate),
            AccessControl(),
            Shares(quota or Quota()),
            Pump(asyncio.get_running_loop()),
            self.clock,
            DEFAULT_LIMITS,
            0,
        )
        self.wire = Wire(("10.0.0.1", 1000))
        self.client = ClientConnection()
        self.peer = Peer(self.host, self.end, None)
        self.link = self.peer.stream

    def connect(self) -> None:
        self.link.connection_made(self.wire)

    async def talk(self) -> list[Any]:
        """Carry everything over in both directions; give what the client heard."""
        heard: list[Any] = []
        while True:
            await asyncio.sleep(0)
            received, sent = self.wire.take(), b"".join(self.client.data_to_send())
            if not received and not sent:
                return heard
            heard += self.client.receive_data(received)
            self.link.data_received(sent)

    async def validated(self, account: str = "") -> World:
        self.connect()
        (offer,) = await self.talk()
        assert type(offer) is AuthenticationOffered
        if account:
            self.client.authenticate("ca", Value(StructType((("user", STRING),)), {"user": account}))
        else:
            self.client.authenticate("anonymous")
        (answer,) = await self.talk()
        assert type(answer) is Validated
        return self


def of(kind: type, heard: list[Any]) -> list[Any]:
    return [event for event in heard if type(event) is kind]


async def test_a_client_that_does_not_validate_its_connection_in_time_is_cut_off() -> None:
    world = World()
    world.connect()
    await world.talk()
    world.clock.advance(9.9)
    assert world.link.reason is None
    world.clock.advance(0.2)
    assert isinstance(world.link.reason, TransportError)
    assert "10.0.0.1:1000 did not validate its connection in 10 s" in str(world.link.reason)


async def test_a_gate_judges_no_client_without_tls() -> None:
    class Gate(PeerGate):
        def watch(self, *_: object, **__: object) -> Callable[[], None]:
            raise AssertionError("there is no certificate to judge")

    world = await World(gate=Gate()).validated()
    assert world.peer.validated


async def test_a_client_whose_groups_are_remembered_is_let_in_with_them_at_once() -> None:
    world = World()
    looked_up: list[str] = []

    def look_up(account: str) -> frozenset[str]:
        looked_up.append(account)
        return frozenset({"ops"})

    roles = world.end.entrance.roles = Roles(look_up)
    found: asyncio.Future[frozenset[str]] = asyncio.get_running_loop().create_future()
    roles.ask("alice", found.set_result, asyncio.get_running_loop())
    await found
    await world.validated("alice")
    assert world.peer.credentials.roles == {"ops"}
    assert looked_up == ["alice"]


async def test_a_client_that_is_let_in_may_be_silent() -> None:
    world = await World().validated()
    assert world.peer.validated
    world.clock.advance(1000)
    assert world.link.reason is None


async def test_all_that_a_connection_has_ends_with_it() -> None:
    world = await World().validated()
    assert len(world.end.shares) == 1
    world.link.connection_lost(None)
    assert world.host.gone == [world.peer]
    assert len(world.end.shares) == 0
    assert all(call.is_cancelled for _, _, call in world.clock._calls), "no timer is left"
    assert world.peer.connection.context is None


async def test_a_connection_that_is_not_wanted_any_more_ends_before_it_is_asked_who_it_is() -> None:
    world = World()
    world.host.is_open = False
    world.connect()
    assert world.wire.is_over
    assert world.wire.take() == b""


async def test_an_address_with_too_many_connections_gets_no_more() -> None:
    world = World(quota=Quota(connections=1))
    world.connect()
    other, wire = Peer(world.host, world.end, None).stream, Wire(("10.0.0.1", 1001))
    other.connection_made(wire)
    assert wire.is_over
    assert not world.wire.is_over
    other.connection_lost(None)
    assert len(world.end.shares) == 1
    world.link.connection_lost(None)
    assert len(world.end.shares) == 0


async def test_an_anonymous_client_too_many_is_told_why_and_closed() -> None:
    world = World(quota=Quota(anonymous_connections=0))
    world.connect()
    await world.talk()
    world.client.authenticate("anonymous")
    (answer,) = await world.talk()
    assert not answer.status.ok
    assert "0 anonymous connections already" in answer.status.message
    assert not world.peer.validated
    assert world.wire.is_over


async def test_a_channel_is_opened_or_the_client_reads_why_not() -> None:
    world = await World(quota=Quota(channels=1)).validated()
    world.client.create_channel("pv")
    world.client.create_channel("other")
    world.client.create_channel("pv")
    statuses = [event.status for event in of(ChannelCreated, await world.talk())]
    assert [status.ok for status in statuses] == [True, False, False]
    assert "your address has 1 channels already" in statuses[1].message
    (channel,) = world.peer.channels()
    assert channel.handler is world.host.pv
    assert channel.name == "pv"


async def test_a_channel_waits_until_there_is_a_handler_or_none() -> None:
    world = await World().validated()
    for name in ("later1", "later2"):
        world.client.create_channel(name)
    assert not of(ChannelCreated, await world.talk())
    one, two = world.host.laters
    two.settle(OperationError("no server has later2"))
    two.settle(world.host.pv)  # only the first call counts
    (created,) = of(ChannelCreated, await world.talk())
    assert created.status.message == "no server has later2"
    one.settle(world.host.pv)
    (created,) = of(ChannelCreated, await world.talk())
    assert created.status.ok
    assert [channel.name for channel in world.peer.channels()] == ["later1"]


async def test_a_channel_that_waits_is_given_up_when_the_client_goes() -> None:
    world = await World().validated()
    world.client.create_channel("later")
    await world.talk()
    gone: list[bool] = []
    (later,) = world.host.laters
    later.on_cancel = lambda: gone.append(later.cancelled)
    world.link.connection_lost(None)
    assert gone == [True]
    later.settle(world.host.pv)
    assert not list(world.peer.channels())


async def test_a_channel_that_waits_is_judged_when_there_is_a_handler() -> None:
    world = await World(quota=Quota(channels=1)).validated()
    world.client.create_channel("later")
    world.client.create_channel("pv")
    await world.talk()
    (later,) = world.host.laters
    later.settle(world.host.pv)
    (created,) = of(ChannelCreated, await world.talk())
    assert "your address has 1 channels already" in created.status.message


async def test_too_many_channels_that_wait_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.server.peer.MAX_PENDING", 1)
    world = await World().validated()
    world.client.create_channel("later1")
    world.client.create_channel("later2")
    (created,) = of(ChannelCreated, await world.talk())
    assert "1 channels of this connection wait for servers" in created.status.message
    assert [later.cancelled for later in world.host.laters] == [False, True]


async def test_a_search_is_answered_late_over_the_same_connection() -> None:
    world = await World().validated()
    world.client.search(SearchRequest(7, ((1, "other"),), ("tcp",)))
    assert not of(SearchAnswered, await world.talk())
    assert world.host.late is not None
    world.host.late(SearchResponse(bytes(12), 7, None, 5075, "tcp", True, (1,)))
    (answered,) = of(SearchAnswered, await world.talk())
    assert answered.response.instances == (1,)
    world.link.connection_lost(None)
    world.host.late(
        SearchResponse(bytes(12), 7, None, 5075, "tcp", True, (1,))
    )  # reaches nobody, harms nobody


async def test_a_peer_that_pauses_opens_no_channel_until_it_goes_on() -> None:
    world = await World().validated()
    world.peer.pause(Verdict(StatusClass.SUSPENDED, "SCHEDULED_OFFLINE"))
    world.client.create_channel("pv")
    (created,) = of(ChannelCreated, await world.talk())
    assert created.status.message == "SCHEDULED_OFFLINE"
    world.peer.resume()
    world.client.create_channel("pv")
    (created,) = of(ChannelCreated, await world.talk())
    assert created.status.ok


async def test_a_search_over_the_connection_is_answered_by_the_server() -> None:
    world = await World().validated()
    world.client.search(SearchRequest(3, ((7, "pv"), (8, "other")), ("tcp",)))
    (answer,) = of(SearchAnswered, await world.talk())
    assert answer.response.instances == (7,)
    world.client.search(SearchRequest(4, ((8, "other"),), ("tcp",)))
    assert of(SearchAnswered, await world.talk()) == []


async def test_of_messages_for_the_log_a_client_has_a_number(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "appliance.server")
    world = await World().validated()
    for number in range(MAX_MESSAGES + 5):
        world.client.send_message(0, 0, f"text {number}.")
    await world.talk()
    assert caplog.text.count("message from 10.0.0.1:1000: text") == MAX_MESSAGES
    assert caplog.text.count("further messages from 10.0.0.1:1000 are not logged") == 1


class _Counted(Handler):
    """A PV whose answer to what its subscriptions are counted by changes, or is an error."""

    def __init__(self, *counted: object) -> None:
        self.counted = list(counted)
        self.over = 0

    def counted_as(self) -> Hashable:
        answer = self.counted.pop(0) if self.counted else RuntimeError("the record is closed")
        if isinstance(answer, Exception):
            raise answer
        return answer

    def subscribe(self, subscription: Subscription) -> None:
        subscription.ready(NTScalar(FLOAT64))

    def unsubscribe(self, subscription: Subscription) -> None:
        self.over += 1


async def _monitored(world: World, handler: Handler) -> OperationReady:
    world.host.pv = handler
    world.client.create_channel("pv")
    (created,) = of(ChannelCreated, await world.talk())
    created.channel.operation(CMD_MONITOR, PVRequest().value)
    (ready,) = of(OperationReady, await world.talk())
    assert type(ready) is OperationReady
    return ready


async def test_a_handler_that_cannot_tell_what_it_is_counted_as_fails_its_subscription_only() -> None:
    world = await World().validated()
    ready = await _monitored(world, _Counted())
    assert ready.status.message == "internal error; the server's log has the details"
    assert world.peer.connection.state is ConnectionState.READY
    assert not world.peer.allowance._share.watching


async def test_a_subscription_is_forgotten_as_what_it_was_counted_as() -> None:
    world = await World().validated()
    handler = _Counted("first", "second")
    assert (await _monitored(world, handler)).status.ok
    assert world.peer.allowance._share.watching == {"first": 1}
    world.link.connection_lost(None)
    assert handler.over == 1
    assert handler.counted == ["second"]


async def test_the_end_of_the_client_closes_its_channels() -> None:
    world = await World().validated()
    world.client.create_channel("pv")
    await world.talk()
    assert world.peer.connection.state is ConnectionState.READY
    assert isinstance(world.host.pv, SharedPV)
    world.link.connection_lost(ConnectionResetError("lost"))
    assert list(world.peer.channels()) == []
    assert world.host.gone == [world.peer]


async def test_what_always_has_more_to_send_does_not_keep_others_from_sending() -> None:
    class Waiting:
        def __init__(self, *, more: bool) -> None:
            self.more = more
            self.turns = 0

        def pump(self) -> bool:
            self.turns += 1
            return self.more

    world = await World().validated()
    greedy, modest = Waiting(more=True), Waiting(more=False)
    world.peer.dirty(greedy)
    world.peer.dirty(modest)
    for _ in range(5):
        await asyncio.sleep(0)
    greedy.more = False
    assert modest.turns == 1
    assert greedy.turns > 1

"""One connection to one server: when channels are created, what a pause holds back, what is told about its end."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from appliance.certs.status import StatusClass
from appliance.client.end import ClientEnd, ServerAddress
from appliance.client.link import ServerLink
from appliance.config.pva import ClientConfig
from appliance.errors import ApplianceError, ChannelClosedError, DecodeError, SecurityError, TransportError
from appliance.pva.client_connection import ClientConnection
from appliance.pva.events import AuthenticationOffered, MonitorUpdate, UpdatesTogether, Validated
from appliance.pva.search import SearchResponse
from appliance.pva.states import ConnectionState
from appliance.pva.status import OK, Status
from appliance.transport.gate import Verdict

ADDRESS = ServerAddress("10.0.0.1", 5076, tls=True)
SUSPENDED = Verdict(StatusClass.SUSPENDED, "the certificate of alice is suspended")
UNKNOWN = Verdict(StatusClass.UNKNOWN, "the status of alice's certificate is not known")
BAD = Verdict(StatusClass.BAD, "the certificate of alice is REVOKED")


class Owner:
    def __init__(self) -> None:
        self.told: list[object] = []

    def link_ready(self, link: ServerLink) -> None:
        self.told.append("ready")

    def link_ended(self, link: ServerLink, reason: ApplianceError | None, *, was_ready: bool) -> None:
        self.told.append(("ended", str(reason), was_ready))

    def search_answered(self, link: ServerLink, response: SearchResponse) -> None:
        self.told.append(response)


class Stream:
    """Takes notes in the place of a socket."""

    def __init__(self) -> None:
        self.engine: object = None
        self.is_up = True
        self.is_closing = False
        self.heard = 1
        self.closed: list[object] = []

    def close(self, reason: object = None) -> None:
        self.closed.append(reason)

    cut = close

    def schedule_flush(self) -> None:
        pass


class Channel:
    """As much of a channel as a link uses."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.told: list[str] = []
        self.requests: dict[Any, None] = {}

    def join(self, link: ServerLink) -> None:
        self.told.append("join")

    def await_creation(self) -> None:
        self.told.append("creation")

    def lost(self, why: str, *, failed: bool = False, moving: bool = False) -> None:
        self.told.append(f"{'failed' if failed else 'lost'}: {why}")


class Monitor:
    def __init__(self) -> None:
        self.operation = self
        self.context = self
        self.updates: list[tuple[int, list[Any], int]] = []

    def update(self, bits: int, store: list[Any], overrun: int, size: int) -> None:
        self.updates.append((bits, store, overrun))
        self.size = size


class Gate:
    def __init__(self, avoided: bool = False) -> None:
        self.avoided = avoided
        self.given_up: list[bytes] = []

    def watch(self, *_: object, **__: object) -> None:
        raise AssertionError("there is no certificate to judge")

    def avoids(self, guid: bytes) -> bool:
        return self.avoided

    def gave_up(self, guid: bytes) -> None:
        self.given_up.append(guid)


class Bench:
    def __init__(self, gate: Gate | None = None, kind: type[ServerLink] = ServerLink) -> None:
        end = ClientEnd(ClientConfig(), gate=gate)  # type: ignore[arg-type]
        end.start(asyncio.get_running_loop())
        self.owner = Owner()
        self.link = kind(end, self.owner, ADDRESS)
        self.link.guid = b"first server"
        self.stream = Stream()
        self.link.stream = self.stream  # type: ignore[assignment]
        self.link.connection = ClientConnection()

    def say(self, *events: object) -> None:
        self.link.link_events(self.stream, list(events))  # type: ignore[arg-type]

    def validate(self) -> None:
        self.link.connection.state = ConnectionState.READY  # type: ignore[union-attr]
        self.say(Validated(OK))

    def add(self, name: str) -> Channel:
        channel = Channel(name)
        self.link.add(channel)  # type: ignore[arg-type]
        return channel


async def test_channels_are_created_when_the_connection_is_validated():
    bench = Bench()
    early = bench.add("early")
    assert early.told == ["join"]
    bench.validate()
    late = bench.add("late")
    assert early.told == late.told == ["join", "creation"]
    assert bench.owner.told == ["ready"]


async def test_who_left_before_the_connection_was_ready_is_not_created():
    bench = Bench()
    channel = bench.add("early")
    bench.link.remove(channel)  # type: ignore[arg-type]
    bench.validate()
    assert channel.told == ["join"]


@pytest.mark.parametrize(("gate", "tls"), [(None, object()), (Gate(), None), (None, None)])
async def test_a_server_that_nobody_judges_is_told_at_once_who_we_are(gate: Gate | None, tls: Any):
    bench = Bench(gate)
    bench.stream.engine = tls
    connection = bench.link.connection
    assert connection is not None
    connection.state = ConnectionState.AUTHENTICATING
    bench.say(AuthenticationOffered(("anonymous",)))
    assert connection.data_to_send()


async def test_a_link_that_has_ended_does_not_wait_for_the_collector():
    class Link(ServerLink):
        __slots__ = ("__weakref__",)

    class Watching(Gate):
        def watch(self, *seen: object, **__: object) -> Callable[[], None]:
            watchers.append(seen[1])
            return watchers.clear

    watchers: list[object] = []
    gc.disable()
    try:
        bench = Bench(Watching(), Link)
        bench.stream.engine = object()
        bench.say(AuthenticationOffered(("anonymous",)))
        assert len(watchers) == 1
        bench.link.link_down(bench.stream, None)  # type: ignore[arg-type]
        assert not watchers
        gone = weakref.ref(bench.link)
        del bench.link
        assert gone() is None
    finally:
        gc.enable()


async def test_a_pause_puts_updates_aside_and_the_latest_value_is_what_counts():
    bench = Bench()
    monitor = Monitor()
    bench.validate()
    bench.link.pause(SUSPENDED)
    bench.say(MonitorUpdate(monitor, 0b0010, [1], 0, 20), MonitorUpdate(monitor, 0b0110, [2], 0, 30))  # type: ignore[arg-type]
    waiting = bench.add("pv")
    assert not monitor.updates
    assert waiting.told == ["join"]
    bench.link.resume()
    assert (monitor.updates, monitor.size) == ([(0b0110, [2], 0b0010)], 30)
    assert waiting.told == ["join", "creation"]


async def test_a_good_status_creates_no_channel_on_a_connection_that_has_closed():
    bench = Bench()
    bench.validate()
    bench.link.pause(SUSPENDED)
    waiting = bench.add("pv")
    bench.link.connection.receive_eof()  # type: ignore[union-attr]
    bench.link.resume()
    assert waiting.told == ["join"]
    bench.link.link_down(bench.stream, TransportError("the server broke the protocol"))  # type: ignore[arg-type]
    assert waiting.told == ["join", "lost: the server broke the protocol"]


async def test_a_pause_for_a_suspended_certificate_lets_read_and_an_unknown_status_does_not():
    bench = Bench()
    assert bench.link.refusal(changes=True) == ""
    bench.link.pause(SUSPENDED)
    assert bench.link.refusal(changes=False) == ""
    assert "is paused: the certificate of alice is suspended" in bench.link.refusal(changes=True)
    bench.link.pause(UNKNOWN)
    assert "is not known" in bench.link.refusal(changes=False)


async def test_who_reads_that_a_connection_is_paused_reads_that_it_goes_on(caplog):
    bench = Bench()
    bench.validate()
    bench.link.resume()
    assert not caplog.records
    bench.link.pause(SUSPENDED)
    bench.link.resume()
    paused, on = caplog.records
    assert "is paused" in paused.message
    assert "goes on" in on.message
    assert paused.levelno == on.levelno


async def test_a_bad_status_ends_the_connection_and_says_why():
    bench = Bench()
    bench.link.refuse(BAD)
    bench.link.cut(BAD)
    assert [str(reason) for reason in bench.stream.closed] == [f"10.0.0.1:5076: {BAD.message}"] * 2
    assert all(isinstance(reason, SecurityError) for reason in bench.stream.closed)


async def test_the_end_is_told_to_the_owner_first_and_then_to_the_channels():
    bench = Bench()
    channel = bench.add("pv")
    bench.validate()
    bench.owner.told.clear()
    bench.link.link_down(bench.stream, TransportError("cut"))  # type: ignore[arg-type]
    assert bench.owner.told == [("ended", "cut", True)]
    assert channel.told[-1] == "lost: cut"
    assert not bench.link.channels


async def test_a_connection_that_was_never_ready_has_failed():
    bench = Bench()
    channel = bench.add("pv")
    bench.link.link_down(bench.stream, TransportError("cut"))  # type: ignore[arg-type]
    assert channel.told[-1] == "failed: cut"


async def test_a_server_that_broke_the_protocol_has_failed():
    bench = Bench()
    channel = bench.add("pv")
    bench.validate()
    bench.link.link_down(bench.stream, DecodeError("union selector 7"))  # type: ignore[arg-type]
    assert channel.told[-1] == "failed: union selector 7"


async def test_where_tls_is_of_no_use_the_next_search_is_for_plain_tcp_and_need_not_wait():
    bench = Bench(Gate(avoided=True))
    channel = bench.add("pv")
    bench.link.link_down(bench.stream, TransportError("cut"))  # type: ignore[arg-type]
    assert channel.told[-1] == "lost: cut"


async def test_a_server_that_refuses_the_client_is_told_to_the_gate():
    gate = Gate()
    bench = Bench(gate)
    bench.say(Validated(Status.error("who are you?")))
    assert gate.given_up == [b"first server"]
    assert str(bench.stream.closed[0]) == "10.0.0.1:5076 refused the connection: who are you?"


async def test_an_end_that_is_our_own_doing_is_no_news():
    bench = Bench()
    bench.link.close(TransportError("10.0.0.1:5076 speaks TLS now"), expected=True)
    assert bench.link.expected
    bench.link.close()
    assert bench.link.expected


async def test_a_channel_that_was_closed_later_in_the_same_read_costs_others_no_update():
    class Request:
        def __init__(self, fails: bool) -> None:
            self.context = self
            self.fails = fails
            self.bodies: list[bytes] = []

        def gathered(self, body: bytes) -> None:
            if self.fails:
                raise ChannelClosedError("the channel is closed")
            self.bodies.append(body)

    bench = Bench()
    bench.validate()
    requests = [Request(fails=number == 1) for number in range(3)]
    bench.say(UpdatesTogether([(request, b"%d" % number) for number, request in enumerate(requests)]))  # type: ignore[misc]
    assert [request.bodies for request in requests] == [[b"0"], [], [b"2"]]

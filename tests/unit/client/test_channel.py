"""A channel's states: what its requests and the search are told when it comes and goes."""

from __future__ import annotations

import asyncio

import pytest

from appliance.client.channel import Channel, ChannelRequest, ChannelState, Waiter
from appliance.client.channels import Channels
from appliance.client.end import ClientEnd, ServerAddress, Timings
from appliance.client.requests import outcome
from appliance.config.pva import ClientConfig
from appliance.errors import ChannelClosedError, OperationTimeoutError
from appliance.pva.client_channel import ClientChannel
from appliance.pva.client_connection import ClientConnection
from appliance.pva.credentials import Credentials
from appliance.pva.status import OK, Status
from appliance.transport.gate import Verdict
from tests.helpers.clock import FakeClock


class Finder:
    """Writes down what channels want of the search."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.last = 0

    def add(self, name: str, server: ServerAddress | None = None) -> int:
        self.last += 1
        return self.last

    def want(self, instance: int, *, later: bool = False, resume: bool = False) -> None:
        self.asked.append("later" if later else "anew" if resume else "now")

    def settle(self, instance: int) -> None:
        self.asked.append("settle")

    def remove(self, instance: int) -> None:
        self.asked.append("remove")


class Link:
    """A connection as a channel sees it."""

    def __init__(self) -> None:
        self.address = ServerAddress("10.0.0.1", 5075, tls=False)
        self.peer = "10.0.0.1:5075"
        self.guid = b"first server"
        self.credentials = Credentials(peer=self.peer)
        self.held: Verdict | None = None
        self.removed: list[Channel] = []

    def remove(self, channel: Channel) -> None:
        self.removed.append(channel)

    def schedule_flush(self) -> None:
        pass

    def refusal(self, *, changes: bool) -> str:
        return ""

    def why_not_ready(self) -> str:
        return "10.0.0.1:5075 was connected, but the connection is not ready"


class Asked(ChannelRequest):
    """A request that writes down what it is told."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel, Waiter(asyncio.get_running_loop()))
        self.told: list[str] = []

    def start(self) -> None:
        self.told.append("start")

    def disconnected(self, why: str, *, moving: bool = False) -> None:
        self.told.append(why)


class Bench:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.end = ClientEnd(ClientConfig(), timings=Timings(idle_channel_s=10.0))
        self.end.start(asyncio.get_running_loop(), self.clock)
        self.finder = Finder()
        self.link = Link()
        self.channels = Channels(self.end, self.finder)
        self.channel = self.channels.get("pv")

    def wire(self) -> ClientChannel:
        return ClientChannel(ClientConnection(), 1, "pv")

    def activate(self) -> None:
        self.channel.join(self.link)
        self.channel.await_creation()
        self.channel.created(self.wire(), OK)


async def test_the_first_request_starts_the_search_and_others_join_it():
    bench = Bench()
    bench.channel.add(Asked(bench.channel))
    bench.channel.add(Asked(bench.channel))
    assert bench.finder.asked == ["anew"]


async def test_requests_start_when_the_channel_is_created_and_later_ones_at_once():
    bench = Bench()
    first, second = Asked(bench.channel), Asked(bench.channel)
    bench.channel.add(first)
    bench.channel.join(bench.link)
    assert bench.channel.state is ChannelState.CONNECTING
    bench.channel.await_creation()
    assert bench.channel.state is ChannelState.CREATING
    assert not first.told
    bench.channel.created(bench.wire(), OK)
    assert bench.channel.state is ChannelState.ACTIVE
    assert bench.channel.peer == bench.link.credentials
    bench.channel.add(second)
    assert (first.told, second.told) == (["start"], ["start"])
    assert bench.finder.asked == ["anew", "settle"]


async def test_a_channel_that_was_in_use_is_searched_for_at_once_when_it_is_lost():
    bench = Bench()
    request = Asked(bench.channel)
    bench.channel.add(request)
    bench.activate()
    bench.channel.lost("cut")
    assert request.told == ["start", "cut"]
    assert bench.channel.state is ChannelState.SEARCHING
    assert bench.channel.peer is None
    assert bench.finder.asked[-1] == "now"
    bench.activate()
    assert request.told == ["start", "cut", "start"]


@pytest.mark.parametrize("was_created", [False, True])
async def test_a_server_that_takes_no_connection_is_not_asked_in_a_tight_loop(was_created):
    bench = Bench()
    bench.channel.add(Asked(bench.channel))
    if was_created:
        bench.activate()
        bench.channel.lost("cut", failed=True)
    else:
        bench.channel.join(bench.link)
        bench.channel.lost("refused")
    assert bench.finder.asked[-1] == "later"


async def test_a_server_that_sends_what_cannot_be_decoded_is_asked_with_growing_pauses():
    """The same message may come again with each new connection."""
    bench = Bench()
    bench.channel.add(Asked(bench.channel))
    for _ in range(2):
        bench.activate()
        bench.channel.lost("union selector 7", failed=True)
    assert bench.finder.asked == ["anew", "settle", "later", "later"], "the pauses do not begin anew"
    bench.activate()
    bench.channel.lost("cut")
    bench.activate()
    assert bench.finder.asked[4:] == ["now", "settle"]


async def test_a_server_that_refuses_the_channel_is_named_and_asked_later():
    bench = Bench()
    bench.channel.add(Asked(bench.channel))
    bench.channel.join(bench.link)
    bench.channel.created(bench.wire(), Status.error("no such PV"))
    assert bench.channel.state is ChannelState.SEARCHING
    assert bench.link.removed == [bench.channel]
    assert bench.finder.asked[-1] == "later"
    assert bench.channel.why_waiting() == "10.0.0.1:5075 refused the channel: no such PV"


async def test_a_channel_that_nobody_wants_is_not_searched_for_again():
    bench = Bench()
    request = Asked(bench.channel)
    bench.channel.add(request)
    bench.activate()
    bench.channel.remove(request)
    bench.channel.lost("cut")
    assert bench.finder.asked == ["anew", "settle"]


async def test_requests_of_a_channel_that_is_closed_fail_and_nothing_revives_it():
    bench = Bench()
    request = Asked(bench.channel)
    bench.channel.add(request)
    bench.activate()
    bench.channel.close()
    with pytest.raises(ChannelClosedError, match="pv: the channel was closed"):
        await request.waiter.future
    bench.channel.lost("cut")
    assert bench.channel.state is ChannelState.CLOSED
    assert bench.finder.asked == ["anew", "settle", "remove"]
    assert bench.link.removed == [bench.channel]


async def test_why_a_request_waits_is_told_step_by_step():
    bench = Bench()
    channel, link = bench.channel, bench.link
    channel.add(Asked(channel))
    assert channel.why_waiting() == "no server answered the search"
    channel.join(link)
    assert channel.why_waiting() == "10.0.0.1:5075 was connected, but the connection is not ready"
    channel.await_creation()
    assert "never answered the request to create the channel" in channel.why_waiting()
    channel.created(bench.wire(), OK)
    assert channel.why_waiting() == "10.0.0.1:5075 did not answer"
    channel.lost("the cable was cut")
    assert channel.why_waiting() == "the cable was cut"


async def test_who_requires_tls_hears_whether_the_own_certificate_is_what_is_missing():
    bench = Bench()
    bench.end.require_tls = True
    assert "this client has no usable certificate at present" in bench.channel.why_waiting()
    bench.end.tls = object()  # type: ignore[assignment]
    assert "no server answered the search over TLS" in bench.channel.why_waiting()


async def test_a_time_out_ends_the_request_and_says_how_far_it_came():
    bench = Bench()
    request = Asked(bench.channel)
    bench.channel.add(request)
    with pytest.raises(
        OperationTimeoutError, match=r"pv: timeout after 0.01 s: no server answered the search"
    ):
        await outcome(request.waiter, (request,), 0.01)
    assert not bench.channel.requests


async def test_who_waits_no_more_leaves_no_request():
    bench = Bench()
    request = Asked(bench.channel)
    bench.channel.add(request)
    waiting = asyncio.ensure_future(outcome(request.waiter, (request,), None))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not bench.channel.requests


async def test_one_name_has_one_channel_and_another_for_each_server_that_is_given():
    bench = Bench()
    server = ServerAddress("10.0.0.9", 5075, tls=False)
    assert bench.channels.get("pv") is bench.channel
    direct = bench.channels.get("pv", server)
    assert direct is not bench.channel
    assert direct is bench.channels.get("pv", ServerAddress("10.0.0.9", 5075, tls=False))
    assert bench.channels.by_instance(direct.instance) is direct
    assert len(bench.channels) == 2


async def test_a_channel_that_nobody_uses_is_kept_for_a_while():
    bench = Bench()
    request = Asked(bench.channel)
    bench.channel.add(request)
    bench.activate()
    bench.clock.advance(100)
    bench.channels.close_idle()
    assert len(bench.channels) == 1
    bench.channel.remove(request)
    bench.clock.advance(9)
    bench.channels.close_idle()
    assert bench.channel.state is ChannelState.ACTIVE
    bench.clock.advance(2)
    bench.channels.close_idle()
    assert bench.channel.state is ChannelState.CLOSED
    assert len(bench.channels) == 0
    assert bench.channels.by_instance(bench.channel.instance) is None


@pytest.mark.parametrize(
    ("name", "why"), [("", "is empty"), ("x" * 3000, "3000 octets"), ("\ud800", "cannot be encoded")]
)
async def test_a_name_that_no_search_can_carry_is_refused_and_leaves_nothing_behind(name, why):
    bench = Bench()
    with pytest.raises(ChannelClosedError, match=why):
        bench.channels.get(name)
    assert len(bench.channels) == 1
    assert bench.finder.last == 1

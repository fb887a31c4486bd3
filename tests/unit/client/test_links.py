"""The pool of connections: which link a channel gets, and which links move to TLS, are kept or closed."""

from __future__ import annotations

import asyncio
import logging

import pytest

from appliance.client.channel import Channel, ChannelRequest, ChannelState, Waiter
from appliance.client.end import ClientEnd, ServerAddress, Timings
from appliance.client.link import ServerLink
from appliance.client.links import MAX_TRIALS, Links
from appliance.client.monitor import Monitor
from appliance.client.search import Located
from appliance.config.pva import ClientConfig
from appliance.errors import TransportError
from appliance.pva.client_connection import ClientConnection
from appliance.pva.search import SearchRequest, SearchResponse, node_guid
from appliance.pva.states import ConnectionState
from appliance.pvdata.pvrequest import PVRequest
from tests.helpers.clock import FakeClock

GUID = b"first server"
OTHER = b"other server"
PLAIN = Located("10.0.0.1", 5075, False, GUID)
SECURE = Located("10.0.0.1", 5076, True, GUID)
TIMINGS = Timings(upgrade_patience_s=5.0, upgrade_check_s=0.5, idle_channel_s=10.0, name_server_retry_s=3.0)


class Pool(Links):
    """Links that are made and closed, and never connected; searches go nowhere."""

    def broadcast(self, request: SearchRequest) -> None:
        pass

    def _open(self, address: ServerAddress) -> ServerLink:
        link = self.by_address[address] = Unconnected(self._end, self, address)
        return link


class Unconnected(ServerLink):
    """A link whose stream takes notes instead of a socket."""

    def __init__(self, end: ClientEnd, owner: Links, address: ServerAddress) -> None:
        super().__init__(end, owner, address)
        self.stream = Stream(self)  # type: ignore[assignment]


class Stream:
    """Closes as a socket does: the link hears of it."""

    def __init__(self, link: ServerLink) -> None:
        self.link = link
        self.is_closing = False
        self.is_up = True
        self.heard = 0
        self.connection = self
        self.echoes = 0
        self.closes = True

    def close(self, reason: object = None) -> None:
        self.is_closing = True
        if self.closes:
            self.link._ended(reason)  # type: ignore[arg-type]

    abort = close

    def echo(self) -> None:
        self.echoes += 1

    def schedule_flush(self) -> None:
        pass


class Get(ChannelRequest):
    def start(self) -> None:
        pass


class Bench:
    def __init__(self, **options: object) -> None:
        self.clock = FakeClock()
        self.end = ClientEnd(ClientConfig(), timings=TIMINGS, **options)  # type: ignore[arg-type]
        self.end.start(asyncio.get_running_loop(), self.clock)
        self.links = Pool(self.end)

    def wanted(self, name: str, place: Located | None = None) -> Channel:
        channel = self.links.channels.get(name)
        channel.add(Get(channel, Waiter(self.end.loop)))
        if place is not None:
            self.answer(channel, place)
        return channel

    def monitored(self, name: str, place: Located) -> Channel:
        channel = self.links.channels.get(name)
        request = PVRequest("").value
        channel.add(
            Monitor(channel, request, queue_size=4, pipeline=False, notify=False, on_update=lambda _: None)
        )
        self.answer(channel, place)
        return channel

    def answer(self, channel: Channel, place: Located) -> None:
        """Have a server answer the search for a channel."""
        protocol = "tls" if place.tls else "tcp"
        response = SearchResponse(place.guid, 1, None, place.port, protocol, True, (channel.instance,))
        self.links.searcher.answered(response, place.host)

    def link(self, place: Located) -> ServerLink:
        return self.links.by_address[place.address]

    def make_ready(self, place: Located) -> ServerLink:
        link = self.link(place)
        link.connection = ClientConnection()
        link.connection.state = ConnectionState.READY
        link.ready = True
        self.links.link_ready(link)
        return link


async def test_channels_of_one_server_share_a_link():
    bench = Bench()
    one, two = bench.wanted("one", PLAIN), bench.wanted("two", PLAIN)
    other = bench.wanted("other", PLAIN._replace(port=5999))
    assert one.link is two.link is bench.link(PLAIN)
    assert other.link is not one.link
    assert list(bench.link(PLAIN).channels) == [one, two]
    assert bench.link(PLAIN).guid == GUID


async def test_a_link_that_is_closing_gets_no_more_channels():
    bench = Bench()
    bench.wanted("one", PLAIN)
    before = bench.make_ready(PLAIN)
    before.stream.closes = False  # type: ignore[union-attr]
    before.close()
    two = bench.wanted("two", PLAIN)
    assert two.link is not before
    before._ended(None)
    assert bench.link(PLAIN) is two.link


async def test_an_answer_for_a_channel_that_is_elsewhere_moves_nothing():
    bench = Bench()
    channel = bench.wanted("one", PLAIN)
    bench.answer(channel, PLAIN._replace(port=5999))
    bench.links.found(12345, PLAIN)
    assert list(bench.links.by_address) == [PLAIN.address]


async def test_who_requires_tls_is_never_connected_in_the_clear():
    bench = Bench(require_tls=True, tls=object())
    channel = bench.wanted("one")
    bench.links.found(channel.instance, PLAIN)
    assert not bench.links.by_address
    assert channel.state is ChannelState.SEARCHING
    assert "10.0.0.1:5075 does not speak TLS" in channel.trouble
    bench.answer(channel, SECURE)
    assert channel.link is bench.link(SECURE)


async def test_a_connection_that_ends_sends_its_channels_back_to_the_search():
    bench = Bench()
    channel = bench.wanted("one", PLAIN)
    bench.link(PLAIN).close(TransportError("cut"))
    assert channel.state is ChannelState.SEARCHING
    assert channel.trouble == "cut"
    assert not bench.links.by_address


async def test_a_second_server_with_the_same_pv_is_told_once_and_not_used(caplog):
    bench = Bench()
    channel = bench.wanted("one", PLAIN)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            bench.answer(channel, Located("10.0.0.2", 5075, False, OTHER))
    assert caplog.messages == ["one is served by 10.0.0.1:5075 and by 10.0.0.2:5075: the first is used"]
    assert list(bench.links.by_address) == [PLAIN.address]


@pytest.mark.parametrize(
    ("first", "second", "is_told"),
    [
        (node_guid(b"site", b"aaaa"), node_guid(b"site", b"bbbb"), False),
        (node_guid(b"site", b"aaaa"), node_guid(b"other", b"aaaa"), True),
        (node_guid(b"site", b"aaaa"), OTHER, True),
        (b"8 octets aaaa"[:12], b"8 octets bbbb"[:12], True),
    ],
    ids=["nodes of one service", "two services", "another server", "alike by chance"],
)
async def test_only_servers_that_are_not_one_service_are_a_conflict(caplog, first, second, is_told):
    bench = Bench()
    place = PLAIN._replace(guid=first)
    channel = bench.wanted("CERT:CREATE", place)
    with caplog.at_level(logging.WARNING):
        bench.answer(channel, Located("10.0.0.2", 5075, False, second))
    told = ["CERT:CREATE is served by 10.0.0.1:5075 and by 10.0.0.2:5075: the first is used"]
    assert caplog.messages == (told if is_told else [])
    assert list(bench.links.by_address) == [place.address]


async def test_what_is_connected_in_the_clear_moves_when_the_link_over_tls_is_ready():
    bench = Bench(tls=object())
    channel = bench.monitored("one", PLAIN)
    bench.make_ready(PLAIN)
    bench.answer(channel, SECURE)
    assert channel.link is bench.link(PLAIN), "a connection that may fail must disturb nobody"
    bench.make_ready(SECURE)
    assert PLAIN.address not in bench.links.by_address
    assert channel.state is ChannelState.SEARCHING
    bench.answer(channel, SECURE)
    assert channel.link is bench.link(SECURE)


async def test_a_request_in_progress_keeps_its_plain_link_for_a_while():
    bench = Bench(tls=object())
    channel = bench.wanted("one", PLAIN)
    bench.make_ready(PLAIN)
    bench.answer(channel, SECURE)
    bench.make_ready(SECURE)
    bench.clock.advance(2)
    assert channel.link is bench.link(PLAIN)
    (request,) = channel.requests
    request.cancel()
    bench.clock.advance(0.5)
    assert PLAIN.address not in bench.links.by_address


async def test_a_request_that_never_ends_does_not_keep_a_plain_link_for_ever():
    bench = Bench(tls=object())
    channel = bench.wanted("one", PLAIN)
    bench.make_ready(PLAIN)
    bench.answer(channel, SECURE)
    bench.make_ready(SECURE)
    bench.clock.advance(TIMINGS.upgrade_patience_s + TIMINGS.upgrade_check_s)
    assert PLAIN.address not in bench.links.by_address


async def test_forged_offers_of_tls_open_few_connections():
    bench = Bench(tls=object())
    channel = bench.monitored("one", PLAIN)
    for number in range(50):
        bench.answer(channel, SECURE._replace(host=f"10.1.0.{number}"))
    assert sum(address.tls for address in bench.links.by_address) == MAX_TRIALS


async def test_an_offer_of_tls_by_another_server_moves_nothing():
    bench = Bench(tls=object())
    channel = bench.monitored("one", PLAIN)
    bench.answer(channel, SECURE._replace(guid=OTHER))
    assert list(bench.links.by_address) == [PLAIN.address]


async def test_links_without_channels_are_closed_but_those_of_name_servers_are_not():
    bench = Bench()
    channel = bench.wanted("one", PLAIN)
    bench.make_ready(PLAIN)
    server = Located("10.0.0.8", 5075, False, OTHER)
    bench.links._connect_name_server(server.address)
    bench.make_ready(server)
    bench.links._sweep()
    assert PLAIN.address in bench.links.by_address
    (request,) = channel.requests
    request.cancel()
    bench.clock.advance(TIMINGS.idle_channel_s * 2.5)
    assert list(bench.links.by_address) == [server.address]


async def test_a_name_server_that_was_lost_is_connected_again():
    bench = Bench()
    server = ServerAddress("10.0.0.8", 5075, tls=False)
    bench.links._connect_name_server(server)
    bench.links.by_address[server].close(TransportError("cut"))
    assert not bench.links.name_servers
    bench.clock.advance(TIMINGS.name_server_retry_s)
    assert bench.links.name_servers == [bench.links.by_address[server]]


async def test_a_name_server_that_is_listed_twice_is_one():
    bench = Bench()
    server = ServerAddress("10.0.0.8", 5075, tls=False)
    bench.links._connect_name_server(server)
    bench.links._connect_name_server(server)
    assert len(bench.links.name_servers) == 1


async def test_the_news_of_a_restart_costs_an_echo_and_the_connection_only_without_an_answer():
    bench = Bench()
    bench.wanted("one", PLAIN)
    link = bench.make_ready(PLAIN)
    bench.links.restarted(PLAIN.address, OTHER, GUID)
    assert link.stream.echoes == 1  # type: ignore[union-attr]
    link.stream.heard += 8  # type: ignore[union-attr]
    bench.clock.advance(TIMINGS.suspicion_s)
    assert bench.link(PLAIN) is link
    bench.links.restarted(PLAIN.address, OTHER, GUID)
    bench.clock.advance(TIMINGS.suspicion_s)
    assert PLAIN.address not in bench.links.by_address


@pytest.mark.parametrize("reason", [None, TransportError("the keychain has changed")])
async def test_another_keychain_closes_connections_over_tls_only_with_a_reason(reason):
    bench = Bench(tls=object())
    bench.wanted("one", SECURE)
    bench.wanted("two", PLAIN._replace(host="10.0.0.2", guid=OTHER))
    bench.links.tls_changed(reason)
    assert len(bench.links.by_address) == (2 if reason is None else 1)
    assert any(not address.tls for address in bench.links.by_address)

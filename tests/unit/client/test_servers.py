"""The servers that a client knows of: who is new, who was restarted, who fell silent."""

from __future__ import annotations

from appliance.client.end import ClientEnd, ServerAddress, Timings
from appliance.client.servers import Discovered, Servers
from appliance.config.pva import ClientConfig
from appliance.pva.search import Beacon, SearchResponse
from tests.helpers.clock import FakeClock

GUID = b"first server"
OTHER = b"other server"
HOST = "10.0.0.1"


class Bench:
    def __init__(self, most: int = 10) -> None:
        self.clock = FakeClock()
        end = ClientEnd(ClientConfig(), timings=Timings(silence_s=10.0, silence_check_s=4.0))
        end.use_clock(self.clock)
        self.restarts: list[tuple[ServerAddress, bytes, bytes]] = []
        self.servers = Servers(end, lambda *told: self.restarts.append(told), most)
        self.news: list[Discovered] = []

    def beacon(self, guid: bytes = GUID, port: int = 5075) -> bool:
        return self.servers.heard(Beacon(guid, 0, 0, None, port, "tcp"), HOST, f"{HOST}:5076")

    def answer(self, guid: bytes = GUID, port: int = 5075, protocol: str = "tls") -> bool:
        message = SearchResponse(guid, 0, None, port, protocol, False, ())
        return self.servers.heard(message, HOST, f"{HOST}:5076")

    def told(self) -> list[tuple[bool, str, bytes]]:
        told = [(news.online, news.protocol, news.guid) for news in self.news]
        self.news.clear()
        return told


def test_a_server_is_news_once():
    bench = Bench()
    assert bench.beacon()
    assert not bench.beacon()
    assert len(bench.servers) == 1


def test_another_process_at_the_same_place_is_news_and_its_connections_are_suspect():
    bench = Bench()
    bench.servers.subscribe(bench.news.append)
    bench.beacon()
    assert bench.beacon(OTHER)
    assert bench.told() == [(True, "tcp", GUID), (False, "tcp", GUID), (True, "tcp", OTHER)]
    assert bench.restarts == [(ServerAddress(HOST, 5075, tls=False), OTHER, GUID)]


def test_the_beacon_of_a_server_that_speaks_tls_is_not_a_second_server():
    bench = Bench()
    bench.servers.subscribe(bench.news.append)
    bench.beacon()
    bench.answer()
    assert not bench.beacon()
    assert bench.told() == [(True, "tcp", GUID), (False, "tcp", GUID), (True, "tls", GUID)]
    assert len(bench.servers) == 1


def test_a_server_that_falls_silent_is_told_to_be_gone():
    bench = Bench()
    bench.servers.subscribe(bench.news.append)
    bench.beacon()
    bench.clock.advance(9)
    assert bench.told() == [(True, "tcp", GUID)]
    bench.clock.advance(4)
    assert bench.told() == [(False, "tcp", GUID)]


def test_a_server_whose_connection_was_lost_is_news_when_it_is_heard_of_again():
    bench = Bench()
    bench.beacon()
    bench.servers.lost(ServerAddress(HOST, 5075, tls=False))
    assert bench.beacon()


def test_who_comes_later_is_told_what_is_known_and_no_more_once_it_has_left():
    bench = Bench()
    bench.beacon()
    leave = bench.servers.subscribe(bench.news.append)
    assert bench.told() == [(True, "tcp", GUID)]
    leave()
    bench.beacon(OTHER)
    assert not bench.told()


def test_the_table_of_servers_is_bounded_and_makes_room_when_others_are_silent():
    bench = Bench(most=3)
    for port in range(10):
        bench.beacon(port=port + 1)
    assert len(bench.servers) == 3
    assert not bench.beacon(port=99)
    bench.clock.advance(11)
    assert bench.beacon(port=99)
    assert len(bench.servers) == 1

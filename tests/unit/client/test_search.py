"""The search: how often a name is asked for, and what answers mean, on a clock of its own."""

from __future__ import annotations

from itertools import pairwise

from appliance.client.end import ClientEnd, ServerAddress, Timings
from appliance.client.search import NAMES_PER_BURST, Located, Searcher
from appliance.client.servers import Servers
from appliance.config.pva import ClientConfig
from appliance.pva.search import Beacon, SearchRequest, SearchResponse
from appliance.transport.udp import Origin
from tests.helpers.clock import FakeClock

GUID = b"first server"
OTHER = b"other server"
SHORT = Timings(search_s=(1.0, 2.0, 4.0))


class Owner:
    """Writes down what the searcher reports and sends."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.sent: list[tuple[float, SearchRequest]] = []
        self.by_name_servers: list[SearchRequest] = []
        self.places: list[tuple[int, Located]] = []
        self.again: list[tuple[int, Located]] = []
        self.refused: list[tuple[int, str]] = []
        self.changes: list[bytes] = []

    def broadcast(self, request: SearchRequest) -> None:
        self.sent.append((self.clock.now, request))

    def ask_name_servers(self, request: SearchRequest) -> None:
        self.by_name_servers.append(request)

    def found(self, instance: int, place: Located) -> None:
        self.places.append((instance, place))

    def found_again(self, instance: int, place: Located) -> None:
        self.again.append((instance, place))

    def unusable(self, instance: int, why: str) -> None:
        self.refused.append((instance, why))

    def has_changed(self, guid: bytes) -> None:
        self.changes.append(guid)


class Gate:
    """TLS to these servers is of no use."""

    def __init__(self, *guids: bytes) -> None:
        self.guids = guids

    def avoids(self, guid: bytes) -> bool:
        return guid in self.guids


class Bench:
    def __init__(self, timings: Timings = SHORT, **options: object) -> None:
        self.clock = FakeClock()
        self.end = ClientEnd(ClientConfig(), timings=timings, **options)
        self.end.use_clock(self.clock)
        self.owner = Owner(self.clock)
        self.restarted: list[tuple[ServerAddress, bytes, bytes]] = []
        self.servers = Servers(self.end, lambda *told: self.restarted.append(told))
        self.searcher = Searcher(self.end, self.servers, self.owner)

    def wanted(self, name: str = "pv", server: ServerAddress | None = None) -> int:
        instance = self.searcher.add(name, server)
        self.searcher.want(instance, resume=True)
        return instance

    def pauses(self, name: str, seconds: float) -> list[float]:
        """Let time pass and return the pauses between the searches for a name in it."""
        began = len(self.owner.sent)
        self.clock.advance(seconds)
        times = [at for at, request in self.owner.sent[began:] if name in [n for _, n in request.names]]
        return [round(later - sooner, 3) for sooner, later in pairwise(times)]

    def answer(self, *instances: int, port: int = 5075, protocol: str = "tcp", guid: bytes = GUID) -> None:
        response = SearchResponse(guid, 1, None, port, protocol, True, instances)
        self.searcher.answered(response, "10.0.0.1", via="10.0.0.1:5076")

    def beacon(self, guid: bytes = GUID, port: int = 5075, changes: int = 0) -> None:
        message = Beacon(guid, 0, changes, None, port, "tcp")
        self.searcher.take_beacon(message, Origin(("10.0.0.1", 5076), "10.0.0.1", ""))


def about(steps: tuple[float, ...], pauses: list[float]) -> bool:
    return len(pauses) == len(steps) and all(
        0.9 * step <= pause <= 1.1 * step + 0.01 for step, pause in zip(steps, pauses, strict=True)
    )


def test_the_first_search_leaves_at_the_end_of_the_turn_and_takes_all_names_that_were_wanted_in_it():
    bench = Bench()
    one, two = bench.wanted("one"), bench.wanted("two")
    assert not bench.owner.sent
    bench.clock.advance(0)
    ((_, request),) = bench.owner.sent
    assert request.names == ((one, "one"), (two, "two"))
    assert bench.owner.by_name_servers == [request]


def test_pauses_grow_and_the_last_one_repeats():
    bench = Bench()
    bench.wanted()
    assert about((1.0, 2.0, 4.0, 4.0, 4.0), bench.pauses("pv", 16.6))


def test_no_pause_is_longer_than_the_longest():
    bench = Bench(SHORT._replace(longest_search_s=1.5))
    bench.wanted()
    assert about((1.0, 1.5, 1.5, 1.5), bench.pauses("pv", 6.1))


def test_clients_that_started_together_do_not_search_together_for_ever():
    seen = set()
    for _ in range(5):
        bench = Bench()
        bench.wanted()
        seen.add(tuple(bench.pauses("pv", 20)))
    assert len(seen) == 5


def test_who_could_not_connect_waits_longer_each_time():
    """The search and the vain connection both count. An earlier search's timer may put a later one off by a tick."""
    bench = Bench()
    tick = SHORT.search_tick_s
    instance = bench.searcher.add("pv")
    for step in (1.0, 4.0, 4.0):
        began = bench.clock.now
        bench.searcher.want(instance, later=True)
        bench.clock.advance(step + tick)
        at, _ = bench.owner.sent[-1]
        assert step - 0.001 <= round(at - began, 6) <= step + tick
        bench.answer(instance)


def test_a_name_that_is_in_use_starts_its_back_off_anew():
    bench = Bench()
    instance = bench.wanted()
    bench.clock.advance(30)
    bench.answer(instance)
    bench.searcher.settle(instance)
    bench.searcher.want(instance)
    assert about((1.0, 2.0), bench.pauses("pv", 3.5))


def test_what_was_found_is_searched_for_no_more():
    bench = Bench()
    instance = bench.wanted()
    bench.clock.advance(0)
    bench.answer(instance)
    assert bench.owner.places == [(instance, Located("10.0.0.1", 5075, False, GUID))]
    assert bench.pauses("pv", 60) == []
    assert len(bench.owner.sent) == 1


def test_a_name_that_was_removed_is_searched_for_no_more():
    bench = Bench()
    instance = bench.wanted()
    bench.searcher.remove(instance)
    bench.clock.advance(60)
    bench.answer(instance)
    assert not bench.owner.sent
    assert not bench.owner.places


def test_a_second_answer_is_told_apart_from_the_first():
    bench = Bench()
    instance = bench.wanted()
    bench.answer(instance)
    bench.answer(instance, guid=OTHER)
    assert bench.owner.again == [(instance, Located("10.0.0.1", 5075, False, OTHER))]


def test_a_name_whose_server_is_given_is_found_there_at_once_and_then_with_pauses():
    bench = Bench()
    server = ServerAddress("10.0.0.9", 5075, tls=False)
    instance = bench.searcher.add("pv", server)
    times = []
    for _ in range(4):
        bench.searcher.want(instance)
        began = bench.clock.now
        bench.owner.places.clear()
        while not bench.owner.places:
            bench.clock.advance(0.5)
        times.append(bench.clock.now - began)
    assert times == [0.5, 1.0, 2.0, 4.0]
    assert bench.owner.places == [(instance, Located("10.0.0.9", 5075, False, b""))]
    assert not bench.owner.sent


def test_many_names_leave_in_bursts():
    bench = Bench()
    for number in range(NAMES_PER_BURST + 5):
        bench.wanted(f"many:{number}")
    bench.clock.advance(0)
    asked = sum(len(request.names) for _, request in bench.owner.sent)
    assert asked == NAMES_PER_BURST
    bench.clock.advance(0.05)
    asked = sum(len(request.names) for _, request in bench.owner.sent)
    assert asked == NAMES_PER_BURST + 5


def test_hurrying_searches_for_everything_now_and_starts_each_back_off_anew():
    bench = Bench()
    bench.wanted("one")
    bench.wanted("two")
    bench.clock.advance(60)
    bench.owner.sent.clear()
    bench.searcher.hurry()
    bench.clock.advance(0)
    ((_, request),) = bench.owner.sent
    assert {name for _, name in request.names} == {"one", "two"}
    assert about((2.0,), bench.pauses("one", 3.4))


def test_news_hurry_the_search_once_in_a_while():
    bench = Bench()
    bench.wanted()
    bench.clock.advance(20)
    bench.owner.sent.clear()
    began = bench.clock.now
    for number in range(10):
        bench.beacon(guid=number.to_bytes(12), port=5000 + number)
    bench.clock.advance(0)
    assert len(bench.owner.sent) == 1
    bench.clock.advance(bench.end.timings.hurry_holdoff_s)
    assert any(at == began + bench.end.timings.hurry_holdoff_s for at, _ in bench.owner.sent)


def test_a_server_that_answers_one_name_hurries_others_that_have_waited_long():
    bench = Bench()
    patient, fresh = bench.wanted("patient"), None
    bench.clock.advance(20)
    fresh = bench.wanted("fresh")
    bench.clock.advance(0)
    bench.owner.sent.clear()
    bench.answer(fresh)
    bench.clock.advance(0)
    ((_, request),) = bench.owner.sent
    assert request.names == ((patient, "patient"),)


def test_a_plain_client_takes_no_answers_for_tls_and_none_without_a_port():
    bench = Bench()
    instance = bench.wanted()
    bench.answer(instance, protocol="tls")
    bench.answer(instance, port=0)
    assert not bench.owner.places


def test_port_zero_over_a_connection_means_that_connection():
    bench = Bench()
    instance = bench.wanted()
    response = SearchResponse(GUID, 1, None, 0, "tcp", True, (instance,))
    server = ServerAddress("10.0.0.7", 5999, tls=False)
    bench.searcher.answered(response, "10.0.0.7", server=server)
    assert bench.owner.places == [(instance, Located("10.0.0.7", 5999, False, GUID))]


def test_who_requires_tls_is_told_which_server_has_none_and_goes_on_searching():
    bench = Bench(require_tls=True, tls=object())
    instance = bench.wanted()
    bench.clock.advance(0)
    (_, request) = bench.owner.sent[0]
    assert request.protocols == ("tls", "tcp")
    bench.answer(instance)
    ((refused, why),) = bench.owner.refused
    assert refused == instance
    assert "10.0.0.1:5075 does not speak TLS" in why
    assert not bench.owner.places
    bench.answer(instance, protocol="tls")
    assert bench.owner.places == [(instance, Located("10.0.0.1", 5075, True, GUID))]


def test_a_server_to_which_tls_is_of_no_use_is_asked_for_plain_tcp_next():
    bench = Bench(tls=object(), gate=Gate(GUID))
    instance = bench.wanted()
    other = bench.wanted("other")
    bench.clock.advance(0)
    bench.owner.sent.clear()
    bench.answer(instance, protocol="tls")
    bench.clock.advance(0)
    assert [(r.protocols, r.names) for _, r in bench.owner.sent] == [(("tcp",), ((instance, "pv"),))]
    bench.answer(instance)
    assert bench.owner.places == [(instance, Located("10.0.0.1", 5075, False, GUID))]
    bench.owner.sent.clear()
    bench.clock.advance(1.2)
    assert [(r.protocols, r.names) for _, r in bench.owner.sent] == [(("tls", "tcp"), ((other, "other"),))]


def test_a_name_server_that_is_ready_is_asked_for_what_is_missing():
    bench = Bench()
    missing, found = bench.wanted("missing"), bench.wanted("found")
    bench.answer(found)
    told: list[SearchRequest] = []
    bench.searcher.introduce(told.append)
    (request,) = told
    assert request.names == ((missing, "missing"),)


def test_locating_asks_over_both_transports_and_hears_every_answer():
    bench = Bench()
    heard: list[Located] = []
    stop = bench.searcher.locate("pv", heard.append)
    assert [request.protocols for _, request in bench.owner.sent] == [("tls", "tcp"), ("tcp",)]
    ((instance, _),) = bench.owner.sent[0][1].names
    bench.answer(instance, protocol="tls", port=5076)
    bench.answer(instance)
    stop()
    bench.answer(instance, guid=OTHER)
    assert [(place.port, place.tls) for place in heard] == [(5076, True), (5075, False)]


def test_beacons_with_ever_new_changes_are_acted_upon_now_and_then():
    bench = Bench()
    for count in range(100):
        bench.beacon(changes=count)
    assert bench.owner.changes == [GUID]
    bench.clock.advance(bench.end.timings.hurry_holdoff_s)
    bench.beacon(changes=100)
    assert bench.owner.changes == [GUID, GUID]


def test_hurrying_again_and_again_does_not_make_the_list_of_searches_grow():
    bench = Bench()
    for number in range(100):
        bench.wanted(f"none:{number}")
    for _ in range(200):
        bench.searcher.hurry()
    assert len(bench.searcher._heap) <= 1000 + 5 * 100


def test_nothing_is_searched_for_after_the_end():
    bench = Bench()
    bench.wanted()
    bench.searcher.stop()
    bench.clock.advance(60)
    assert not bench.owner.sent

"""Sources are asked in the order of their priority, and one that fails does not hide the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterable

import pytest

from appliance.config.pva import ServerConfig
from appliance.errors import AccessFileError, ApplianceError, OperationError
from appliance.pva.credentials import Credentials
from appliance.pva.search import SearchRequest, SearchResponse
from appliance.server.server import Place, Referral, Server
from appliance.server.source import Handler, Source, StaticSource
from appliance.server.sources import Sources

NOBODY = Credentials()


def static(*names: str) -> StaticSource:
    source = StaticSource()
    source.pvs = {name: Handler() for name in names}
    return source


class Failing(Source):
    def __init__(self, error: Exception) -> None:
        self.error = error

    def claims(self, name: str, host: str) -> bool:
        raise self.error

    def open(self, name: str, peer: Credentials) -> Handler | None:
        raise self.error

    def names(self) -> Iterable[str]:
        return ()


def test_the_lowest_priority_is_asked_first_and_equals_in_the_order_in_which_they_came() -> None:
    first, second, third = static("a", "b"), static("a", "b", "c"), static("a", "c")
    sources = Sources()
    sources.add("third", third, 1)
    sources.add("first", first, -1)
    sources.add("second", second, 1)
    assert sources.open("a", NOBODY) is first.pvs["a"]
    assert sources.open("c", NOBODY) is third.pvs["c"]
    assert list(sources.names()) == ["a", "b", "a", "c", "a", "b", "c"]
    sources.remove("third")
    assert sources.open("c", NOBODY) is second.pvs["c"]


def test_a_label_is_given_once() -> None:
    sources = Sources()
    sources.add("x", static(), 0)
    with pytest.raises(ValueError, match="there is a source 'x' already"):
        sources.add("x", static(), 0)
    sources.remove("x")
    sources.add("x", static(), 0)


def test_a_broken_source_does_not_hide_the_others_from_searches(caplog: pytest.LogCaptureFixture) -> None:
    sources = Sources()
    sources.add("broken", Failing(RuntimeError("defect")), 0)
    sources.add("good", static("pv"), 1)
    assert sources.claims("pv", "10.0.0.1")
    assert not sources.claims("other", "10.0.0.1")
    assert "the source broken failed when asked for 'pv'" in caplog.text


def test_a_client_reads_why_a_name_is_not_opened_and_nothing_of_a_defect() -> None:
    sources = Sources()
    with pytest.raises(OperationError, match="there is no PV 'pv' here"):
        sources.open("pv", NOBODY)
    with pytest.raises(OperationError) as caught:
        sources.open("p" * 10_000, NOBODY)
    assert len(str(caught.value)) < 300
    sources.add("refusing", Failing(AccessFileError("not for you")), 1)
    with pytest.raises(AccessFileError, match="not for you"):
        sources.open("pv", NOBODY)
    sources.add("broken", Failing(RuntimeError("secret")), 0)
    with pytest.raises(ApplianceError, match="internal error; the server's log has the details"):
        sources.open("pv", NOBODY)


class Late(Source):
    def __init__(self) -> None:
        self.promises: dict[str, Callable[[], None]] = {}

    def claims(self, name: str, host: str) -> bool:
        return False

    def open(self, name: str, peer: Credentials) -> Handler | None:
        return None

    def promise(self, name: str, host: str, asker: Hashable, tell: Callable[[], None]) -> None:
        self.promises[name] = tell


def test_only_sources_that_can_be_late_are_asked_for_promises() -> None:
    sources = Sources()
    sources.add("static", static("a"), 0)
    assert sources.late == ()
    late = Late()
    sources.add("late", late, 1)
    assert sources.late == (late,)
    sources.promise("x", "10.0.0.1", "me", list)
    assert list(late.promises) == ["x"]
    sources.remove("late")
    assert sources.late == ()


async def test_a_server_answers_searches_late_those_of_one_client_together() -> None:
    server = Server(ServerConfig())
    server.tcp_port = 5075
    late = Late()
    server.add_source("late", late)
    answers: list[SearchResponse] = []
    names = tuple((number, f"pv{number}") for number in range(300))
    search = SearchRequest(7, names, ("tcp",))
    assert server.answer_search(search, "10.0.0.1") == ()
    assert not late.promises, "nobody is there to send it"
    assert server.answer_search(search, "10.0.0.1", answers.append) == ()
    for number in range(300):
        late.promises[f"pv{number}"]()
    assert not answers
    await asyncio.sleep(0)
    assert [answer.instances for answer in answers] == [tuple(range(256)), tuple(range(256, 300))]
    assert answers[0]._replace(instances=()) == SearchResponse(server.guid, 7, None, 5075, "tcp", True, ())
    server.set_standby(True)
    late.promises["pv1"]()
    await asyncio.sleep(0)
    assert len(answers) == 2


class Elsewhere(Referral):
    def refer(self, name: str, host: str) -> Place | None:
        if name == "CERT:LATE":
            return Place(b"", 0)
        return Place(b"r" * 12, 5077) if name.startswith("CERT:") and host != "10.0.0.9" else None

    def promise(self, key: Hashable, tell: Callable[[Place], None]) -> None:
        self.promises[key] = tell

    def __init__(self) -> None:
        self.promises: dict[Hashable, Callable[[Place], None]] = {}


def test_a_referral_answers_before_the_sources_but_only_clients_that_speak_tls() -> None:
    server = Server(ServerConfig())
    server.tcp_port = 5075
    server.add_source("pvs", static("CERT:CREATE", "pv"))
    server.referrals.append(Elsewhere())
    search = SearchRequest(7, ((1, "CERT:CREATE"), (2, "pv"), (3, "CERT:X")), ("tls", "tcp"))
    assert server.answer_search(search, "10.0.0.1") == (
        SearchResponse(b"r" * 12, 7, None, 5077, "tls", True, (1, 3)),
        SearchResponse(server.guid, 7, None, 5075, "tcp", True, (2,)),
    )
    plain = SearchResponse(server.guid, 7, None, 5075, "tcp", True, (1, 2))
    assert server.answer_search(search._replace(protocols=("tcp",)), "10.0.0.1") == (plain,)
    assert server.answer_search(search, "10.0.0.9") == (plain,)
    server.set_standby(True)
    assert server.answer_search(search, "10.0.0.1") == ()


def test_a_referral_that_leads_nowhere_yet_keeps_the_sources_out_and_answers_later() -> None:
    server = Server(ServerConfig())
    server.tcp_port = 5075
    server.add_source("pvs", static("CERT:LATE"))
    elsewhere = Elsewhere()
    server.referrals.append(elsewhere)
    search = SearchRequest(7, ((1, "CERT:LATE"),), ("tls", "tcp"))
    assert server.answer_search(search, "10.0.0.1") == ()
    assert not elsewhere.promises, "nobody is there to send it"
    answers: list[SearchResponse] = []
    for _ in range(2):
        assert server.answer_search(search, "10.0.0.1", answers.append) == ()
    (tell,) = elsewhere.promises.values()
    tell(Place(b"r" * 12, 5077))
    assert answers == [SearchResponse(b"r" * 12, 7, None, 5077, "tls", True, (1,))]
    server.set_standby(True)
    tell(Place(b"r" * 12, 5077))
    assert len(answers) == 1
    server.set_standby(False)
    server.tcp_port = 0
    only_tls = SearchRequest(7, ((1, "CERT:CREATE"),), ("tls",))
    assert server.answer_search(only_tls, "10.0.0.1"), "this server itself may have no TLS"

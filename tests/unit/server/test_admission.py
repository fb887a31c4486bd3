"""Who a client is, how long its groups are waited for, and what the log tells of those that are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from appliance.errors import SecurityError
from appliance.pva.credentials import Credentials
from appliance.pvdata.types import INT32, STRING, StructType
from appliance.pvdata.value import Value
from appliance.server.admission import RefusalLog, RolesWait, choose_identity
from tests.helpers.clock import FakeClock

METHODS = ("anonymous", "ca", "x509")
PROVED = Credentials(method="x509", account="alice", peer="p", is_tls=True)
UNPROVED = Credentials(peer="p")


def claim(user: Any) -> Value:
    kind = STRING if isinstance(user, str) else INT32
    return Value(StructType((("user", kind), ("host", STRING))), {"user": user})


@pytest.mark.parametrize(
    ("method", "payload"),
    [("x509", None), ("anonymous", None), ("anonymous", claim("mallory")), ("ca", claim("mallory"))],
)
def test_a_proved_name_is_not_exchanged_for_one_that_is_claimed(method: str, payload: Value | None) -> None:
    assert choose_identity(PROVED, METHODS, method, payload) == PROVED


def test_a_client_with_a_certificate_that_claims_a_name_which_is_none_is_anonymous() -> None:
    assert choose_identity(PROVED, METHODS, "ca", claim("")).method == "anonymous"


@pytest.mark.parametrize(
    ("method", "payload", "who"),
    [
        ("ca", claim("bob"), ("ca", "bob")),
        ("ca", claim("b" * 256), ("ca", "b" * 256)),
        ("ca", claim("b" * 257), ("anonymous", "")),
        ("ca", claim("bob\n"), ("anonymous", "")),
        ("ca", claim(""), ("anonymous", "")),
        ("ca", claim(7), ("anonymous", "")),
        ("ca", Value(StructType((("host", STRING),))), ("anonymous", "")),
        ("ca", None, ("anonymous", "")),
        ("anonymous", claim("bob"), ("anonymous", "")),
        ("x509", None, ("anonymous", "")),
    ],
)
def test_a_client_without_a_certificate_has_the_name_that_it_claims_or_none(
    method: str, payload: Value | None, who: tuple[str, str]
) -> None:
    found = choose_identity(UNPROVED, METHODS, method, payload)
    assert (found.method, found.account) == who
    assert found.peer == "p"


def test_a_method_that_is_not_offered_is_refused_with_those_that_are() -> None:
    with pytest.raises(SecurityError, match="'kerberos' is not offered; use anonymous or ca"):
        choose_identity(UNPROVED, ("anonymous", "ca"), "kerberos", None)
    with pytest.raises(SecurityError) as caught:
        choose_identity(UNPROVED, ("anonymous",), "k" * 10_000, None)
    assert len(str(caught.value)) < 120


class TestRefusalLog:
    def test_one_certificate_is_told_once_a_minute_for_each_reason(self) -> None:
        clock = FakeClock()
        log = RefusalLog(clock.time)
        assert log.is_news(PROVED, "REVOKED")
        assert not log.is_news(PROVED, "REVOKED")
        assert log.is_news(PROVED, "EXPIRED"), "another reason"
        assert log.is_news(PROVED._replace(serial=2), "REVOKED"), "another certificate"
        clock.advance(59.9)
        assert not log.is_news(PROVED, "REVOKED")
        clock.advance(0.2)
        assert log.is_news(PROVED, "REVOKED")

    def test_what_it_remembers_is_bounded(self) -> None:
        log = RefusalLog(FakeClock().time)
        for serial in range(5000):
            assert log.is_news(PROVED._replace(serial=serial), "x")
            assert len(log._told) <= 1000


class Directory:
    """Looks groups up when the test says so."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.tell: Callable[[frozenset[str]], None] = lambda _: None

    def ask(self, account: str, tell: Callable[[frozenset[str]], None], loop: Any) -> None:
        self.asked.append(account)
        self.tell = tell


class TestRolesWait:
    def wait(self, directory: Any) -> RolesWait:
        self.clock = FakeClock()
        self.told: list[tuple[str, object]] = []
        wait = RolesWait(self, directory, 2.0, self.clock)  # type: ignore[arg-type]
        wait.begin("alice")
        return wait

    def roles_known(self, roles: frozenset[str]) -> None:
        self.told.append(("known", roles))

    def roles_missing(self, waited_s: float) -> None:
        self.told.append(("missing", waited_s))

    def roles_late(self, roles: frozenset[str]) -> None:
        self.told.append(("late", roles))

    def test_groups_that_come_in_time_end_the_wait(self) -> None:
        directory = Directory()
        self.wait(directory)
        assert directory.asked == ["alice"]
        self.clock.advance(1.9)
        assert self.told == []
        directory.tell(frozenset({"ops"}))
        self.clock.advance(10)
        assert self.told == [("known", {"ops"})]

    def test_a_client_goes_on_without_groups_after_a_while_and_gets_them_when_they_come(self) -> None:
        directory = Directory()
        self.wait(directory)
        self.clock.advance(2.0)
        assert self.told == [("missing", 2.0)]
        directory.tell(frozenset({"ops"}))
        assert self.told[1:] == [("late", {"ops"})]

    @pytest.mark.parametrize("waited_s", [0.0, 3.0])
    def test_nothing_is_told_of_a_client_that_has_gone(self, waited_s: float) -> None:
        directory = Directory()
        wait = self.wait(directory)
        self.clock.advance(waited_s)
        before = list(self.told)
        wait.end()
        wait.end()
        self.clock.advance(10)
        directory.tell(frozenset({"ops"}))
        assert self.told == before

"""What a verdict does to a connection: the same rule at both ends (SPVA 7.3.1, 8.4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from appliance.certs.status import StatusClass
from appliance.pva.credentials import Credentials
from appliance.transport.admission import Admission
from appliance.transport.gate import Verdict

GOOD, SUSPENDED, UNKNOWN, BAD = (Verdict(status, status.value) for status in StatusClass)
ENGINE: Any = object()
"""What stands for TLS: an admission hands it on and does not look at it."""


class Owner:
    """Writes down what it is told. A server's is validated when it admits, a client's when the server answers."""

    def __init__(self, *, at_once: bool = True) -> None:
        self.validated = False
        self.told: list[str] = []
        self._at_once = at_once

    def admit(self) -> None:
        self.told.append("admit")
        self.validated = self._at_once

    def refuse(self, verdict: Verdict) -> None:
        self.told.append(f"refuse {verdict.message}")

    def pause(self, verdict: Verdict) -> None:
        self.told.append(f"pause {verdict.message}")

    def resume(self) -> None:
        self.told.append("resume")

    def cut(self, verdict: Verdict) -> None:
        self.told.append(f"cut {verdict.message}")

    def broken(self, error: Exception) -> None:
        self.told.append(f"broken by {error}")


class Defective(Owner):
    """Cannot do one thing."""

    def __init__(self, what: str) -> None:
        super().__init__()
        setattr(self, what, self._fail)

    def _fail(self, *_: object) -> None:
        raise RuntimeError("a defect")


class Gate:
    """Says what the test says; first, from inside ``watch``, what it was made with."""

    def __init__(self, *at_once: Verdict) -> None:
        self._at_once = at_once
        self.say: Callable[[Verdict], None] = lambda _: None
        self.watched: list[tuple[str, bytes]] = []
        self.left = 0

    def watch(
        self, credentials: Credentials, verdict: Callable[[Verdict], None], *, engine: Any, guid: bytes = b""
    ) -> Callable[[], None]:
        assert engine is ENGINE
        self.watched.append((credentials.account, guid))
        self.say = verdict
        for each in self._at_once:
            verdict(each)
        return self._leave

    def _leave(self) -> None:
        self.left += 1

    def avoids(self, guid: bytes) -> bool:
        return False

    def plight(self, guid: bytes) -> str:
        return ""

    def gave_up(self, guid: bytes) -> None:
        raise AssertionError("only a client tells that")


def begun(owner: Owner, gate: Gate) -> Admission:
    admission = Admission(owner)
    admission.begin(gate, Credentials(account="x"), ENGINE, guid=b"g")
    return admission


@pytest.mark.parametrize("verdict", [SUSPENDED, UNKNOWN, BAD])
def test_whoever_is_not_good_is_not_admitted_and_does_not_become_good_on_that_connection(
    verdict: Verdict,
) -> None:
    owner, gate = Owner(), Gate()
    begun(owner, gate)
    assert gate.watched == [("x", b"g")]
    assert owner.told == [], "it waits until the gate has spoken"
    gate.say(verdict)
    gate.say(GOOD)
    gate.say(BAD)
    assert owner.told == [f"refuse {verdict.message}"]


def test_an_admitted_peer_pauses_and_goes_on() -> None:
    owner, gate = Owner(), Gate(GOOD)
    begun(owner, gate)
    gate.say(SUSPENDED)
    gate.say(UNKNOWN)
    gate.say(GOOD)
    assert owner.told == ["admit", "pause SUSPENDED", "pause UNKNOWN", "resume"]


def test_an_admitted_peer_whose_certificate_turns_bad_is_cut_off_for_good() -> None:
    owner, gate = Owner(), Gate(GOOD)
    begun(owner, gate)
    gate.say(BAD)
    gate.say(GOOD)
    gate.say(SUSPENDED)
    assert owner.told == ["admit", "cut BAD"]


def test_a_client_that_the_server_has_not_answered_yet_gives_up_and_does_not_pause() -> None:
    owner, gate = Owner(at_once=False), Gate(GOOD)
    begun(owner, gate)
    gate.say(GOOD)
    assert owner.told == ["admit"], "it chooses its method once"
    gate.say(SUSPENDED)
    assert owner.told == ["admit", "refuse SUSPENDED"]


def test_the_gate_is_left_once_when_the_connection_ends_and_is_not_heard_any_more() -> None:
    owner, gate = Owner(), Gate(GOOD)
    admission = begun(owner, gate)
    admission.end()
    admission.end()
    assert gate.left == 1
    gate.say(BAD)
    assert owner.told == ["admit"]


def test_a_connection_that_ends_inside_its_first_verdict_leaves_the_gate() -> None:
    class Ending(Owner):
        def refuse(self, verdict: Verdict) -> None:
            super().refuse(verdict)
            admission.end()

    owner, gate = Ending(), Gate(BAD)
    admission = Admission(owner)
    admission.begin(gate, Credentials(), ENGINE)
    assert owner.told == ["refuse BAD"]
    assert gate.left == 1


@pytest.mark.parametrize(
    ("verdict", "reads", "changes"),
    [(GOOD, False, False), (SUSPENDED, False, True), (UNKNOWN, True, True), (BAD, True, True)],
)
def test_a_suspended_peer_reads_and_changes_nothing_and_an_unknown_one_does_neither(
    verdict: Verdict, reads: bool, changes: bool
) -> None:
    assert verdict.forbids(changes=False) is reads
    assert verdict.forbids(changes=True) is changes


@pytest.mark.parametrize(
    ("what", "verdicts", "told"),
    [
        ("admit", (GOOD, GOOD), []),
        ("refuse", (BAD, GOOD), []),
        ("pause", (GOOD, SUSPENDED, GOOD), ["admit"]),
        ("resume", (GOOD, GOOD, BAD), ["admit"]),
        ("cut", (GOOD, BAD, GOOD), ["admit"]),
    ],
)
def test_a_defect_ends_the_connection(what: str, verdicts: tuple[Verdict, ...], told: list[str]) -> None:
    owner = Defective(what)
    gate = Gate()
    Admission(owner).begin(gate, Credentials(), ENGINE)
    for verdict in verdicts:
        gate.say(verdict)
    assert owner.told == [*told, "broken by a defect"]

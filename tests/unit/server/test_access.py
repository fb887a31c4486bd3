"""What a server asks access security, and what it remembers of the answers."""

from __future__ import annotations

import pytest

from appliance.pva.credentials import Credentials
from appliance.server import access as module
from appliance.server.access import ALL_RIGHTS, NO_RIGHTS, AccessControl, LostReaders, Rights

ALICE = Credentials(method="ca", account="alice", peer="10.0.0.1:1000")


class Broken:
    def rights(self, name: str, peer: Credentials) -> Rights:
        raise RuntimeError("defect")


def test_without_a_policy_all_may_do_everything_and_with_a_broken_one_nobody_anything(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert AccessControl().rights("pv", ALICE) == ALL_RIGHTS
    assert AccessControl(Broken()).rights("pv", ALICE) == NO_RIGHTS
    assert "access security failed for pv and the client alice: no access" in caplog.text


def test_a_denial_over_plain_tcp_tells_why_nobody_can_prove_who_he_is() -> None:
    access = AccessControl()
    assert access.denial("write", ALICE) == "write access denied by access security"
    access.plight = "no certificate"
    assert access.denial("rpc", ALICE) == "RPC access denied by access security; no certificate"
    assert access.denial("read", ALICE._replace(is_tls=True)) == "read access denied by access security"


def test_refusals_are_counted_and_told() -> None:
    access = AccessControl()
    access.refused("pv", ALICE, "read")
    told: list[tuple[str, Credentials, str]] = []
    access.on_refused = lambda *what: told.append(what)
    access.refused("pv", ALICE, "write")
    assert access.refusals == 2
    assert told == [("pv", ALICE, "write")]


def test_a_lost_reader_is_known_by_who_and_where_and_not_by_its_port() -> None:
    lost = LostReaders()
    lost.add("pv", ALICE)
    assert lost.has("pv", ALICE._replace(peer="10.0.0.1:2000"))
    assert not lost.has("other", ALICE)
    assert not lost.has("pv", ALICE._replace(peer="10.0.0.2:1000"))
    assert not lost.has("pv", ALICE._replace(account="bob"))
    lost.discard("pv", ALICE)
    assert not lost.has("pv", ALICE)


def test_the_oldest_of_too_many_lost_readers_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LOST_READERS", 3)
    lost = LostReaders()
    for name in ("a", "b", "c", "a", "d"):
        lost.add(name, ALICE)
    assert [name for name in "abcd" if lost.has(name, ALICE)] == ["a", "c", "d"]

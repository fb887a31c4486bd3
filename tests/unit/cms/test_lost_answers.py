"""A requester whose answer was lost asks again, at another node: one live certificate, whatever had become of the first one."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from appliance.certs.status import CertState
from appliance.cms.journal import Journal
from appliance.cms.lifecycle import Lifecycle
from appliance.cms.model import Actor, NewCertificate
from appliance.cms.reading import Readers
from appliance.cms.store import Store
from appliance.errors import RequestRefused
from tests.helpers.cms import Clock

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
ALICE = Actor("std", "alice", "192.0.2.2:2")
ISSUER = "01234567"


def asked(serial, **changes):
    """A request of one requester; each attempt has another serial number."""
    fields = {
        "subject": {"CN": "alice", "O": "lab", "OU": "", "C": ""},
        "usage": "client",
        "method": "std",
        "identity": "",
        "skid": "aa",
        "not_before": NOW,
        "not_after": NOW + timedelta(days=30),
        "approval_needed": False,
        "inherit": True,
        "roll_over": False,
        "facts": {},
        "key_id": "key",
        "proved": True,
        "renew_by": NOW + timedelta(hours=1),
        "cadence": 3600,
    }
    return NewCertificate(serial=serial, **(fields | changes))


class Nodes:
    """One database, which this process uses in the name of one node after the other."""

    def __init__(self, directory, db):
        self.store = Store(db, ISSUER)
        self.store.open()
        self.store.start()
        self.readers = Readers(self.store.database)
        self.journal = Journal(str(directory / "revoked"), ISSUER)
        self.clock = Clock(NOW)
        self.alive = {"a", "b"}
        self.lives = {name: self.life() for name in "ab"}

    def life(self):
        found = Lifecycle(self.store, self.journal, self.clock, self.readers)
        found.deliveries.is_alive = self.alive.__contains__
        return found

    async def create(self, name, request):
        self.store.node = name
        return await self.lives[name].create(request, ALICE, will_answer=True)

    async def states(self):
        def job(transaction):
            return {record.serial: record.state for record in transaction.of_subject(asked(1).key)}

        return await self.store.submit(job)

    async def revocations(self):
        import json

        from appliance.cms.schema import audit

        def job(transaction):
            transaction.flush()
            rows = transaction.connection.execute(audit.select().where(audit.c.action == "revoke"))
            return [json.loads(row.record)["why"] for row in rows]

        return await self.store.submit(job)

    def close(self):
        self.store.close()
        self.readers.close()
        self.journal.close()


@pytest.fixture
def nodes(tmp_path, engine):
    made = Nodes(tmp_path, engine.db(tmp_path))
    yield made
    made.close()


TOKEN = {"method": "jwt", "identity": "https://idp|alice", "roll_over": True, "cadence": 0}


@pytest.mark.parametrize("how", [{}, TOKEN], ids=["std", "token"])
async def test_the_node_died_before_it_answered(nodes, how):
    await nodes.create("a", asked(1, **how))
    nodes.alive.discard("a")
    record = await nodes.create("b", asked(2, **how))
    assert record.serial == 2
    assert await nodes.states() == {1: CertState.REVOKED, 2: CertState.VALID}
    assert await nodes.revocations() == [
        "requested again by the holder of its key: its answer was lost",
    ]
    assert 1 in nodes.journal.known
    assert 1 not in nodes.journal.barred, "its key is that of the new certificate"


async def test_a_repeated_token_counts_only_if_its_answer_was_lost(nodes):
    await nodes.create("a", asked(1, **TOKEN))
    nodes.lives["a"].delivered(1)
    await nodes.lives["a"].settle()
    assert await nodes.states() == {1: CertState.VALID}
    with pytest.raises(RequestRefused, match="the token was used before"):
        await nodes.create("b", asked(2, **TOKEN, repeated=int(NOW.timestamp())))
    never_recorded = asked(
        3, **TOKEN, repeated=int(NOW.timestamp()), subject={"CN": "bob", "O": "lab", "OU": "", "C": ""}
    )
    assert (await nodes.create("b", never_recorded)).serial == 3
    nodes.alive.clear()
    assert (await nodes.create("a", never_recorded._replace(serial=4))).serial == 4
    assert await nodes.states() == {1: CertState.VALID}


async def test_a_repeated_token_that_brought_nothing_is_accepted_though_its_holder_has_an_older_certificate(
    nodes,
):
    await nodes.create("a", asked(1, **TOKEN))
    nodes.lives["a"].delivered(1)
    await nodes.lives["a"].settle()
    assert await nodes.states() == {1: CertState.VALID}
    nodes.clock.advance(hours=1)
    # The next token was used, and the node ended before it recorded anything else.
    used = int(nodes.clock().timestamp())
    nodes.clock.advance(seconds=5)
    longer = NOW + timedelta(days=40)
    await nodes.create("b", asked(2, **TOKEN, repeated=used, not_after=longer, renew_by=longer))
    assert await nodes.states() == {1: CertState.VALID, 2: CertState.VALID}
    nodes.lives["b"].delivered(2)
    await nodes.lives["b"].settle()
    await nodes.states()
    with pytest.raises(RequestRefused, match="the token was used before"):
        await nodes.create("a", asked(3, **TOKEN, repeated=used, not_after=longer, renew_by=longer))


async def test_a_repeated_token_that_renewed_a_certificate_renews_nothing_else(nodes):
    await nodes.create("a", asked(1, **TOKEN))
    nodes.lives["a"].delivered(1)
    await nodes.lives["a"].settle()
    assert await nodes.states() == {1: CertState.VALID}
    nodes.clock.advance(minutes=30)
    used = int(nodes.clock().timestamp())
    later = asked(2, **TOKEN, renew_by=NOW + timedelta(hours=2))
    assert (await nodes.create("a", later)).serial == 1
    with pytest.raises(RequestRefused, match="the token was used before"):
        await nodes.create("b", later._replace(serial=3, repeated=used))


async def test_a_recorded_request_ends_nothing_at_another_node(nodes):
    """Who has seen a request on its way sends it again, to a node that has never seen it."""
    made = int(NOW.timestamp())
    first = asked(1, proof_made=made)
    await nodes.create("a", first)
    nodes.alive.clear()  # nobody knows whether the holder has it
    nodes.clock.advance(seconds=61)
    for old in (made, made - 30):
        with pytest.raises(RequestRefused, match="does not prove that the certificate is yours"):
            await nodes.create("b", asked(2, proof_made=old, approval_needed=True))
    assert await nodes.states() == {1: CertState.VALID}
    assert (await nodes.create("b", asked(3, proof_made=made + 50))).serial == 3
    assert await nodes.states() == {1: CertState.REVOKED, 3: CertState.VALID}


async def test_a_recorded_request_does_not_take_the_place_of_one_that_waits_for_approval(nodes):
    made = int(NOW.timestamp())
    first = asked(1, proof_made=made, approval_needed=True)
    await nodes.create("a", first)
    nodes.lives["a"].delivered(1)
    await nodes.lives["a"].settle()
    nodes.clock.advance(seconds=61)
    with pytest.raises(RequestRefused, match="an administrator has to approve or deny it"):
        await nodes.create("b", first._replace(serial=2))
    assert (await nodes.create("b", first._replace(serial=3, proof_made=made + 1))).serial == 3


async def test_the_same_request_counts_for_a_minute_for_its_answer_may_be_lost(nodes):
    first = asked(1, proof_made=int(NOW.timestamp()) - 5)
    await nodes.create("a", first)
    nodes.alive.clear()
    nodes.clock.advance(seconds=59)
    assert (await nodes.create("b", first._replace(serial=2))).serial == 2


async def test_an_answered_request_is_renewed_at_another_node_without_a_second_certificate(nodes):
    await nodes.create("a", asked(1))
    nodes.lives["a"].delivered(1)
    await nodes.lives["a"].settle()
    assert await nodes.states() == {1: CertState.VALID}
    record = await nodes.create("b", asked(2))
    assert record.serial == 1
    assert await nodes.states() == {1: CertState.VALID}


ONCE = {"renew_by": None, "cadence": 0}


async def test_a_requester_that_gave_up_as_its_answer_came_gets_a_certificate_with_a_new_proof(nodes):
    made = int(NOW.timestamp()) - 5
    first = asked(1, **ONCE, proof_made=made)
    await nodes.create("a", first)
    nodes.lives["a"].delivered(1)
    await nodes.lives["a"].settle()
    assert await nodes.states() == {1: CertState.VALID}
    duplicate = "Duplicate Certificate Subject"
    for other in (
        {"proof_made": made},  # recorded by somebody
        {"proof_made": made - 1},
        {"proof_made": 0, "proved": False},
        {"skid": "bb"},
        {"usage": "server"},
        {"peer_serial": 1},  # it has the certificate
    ):
        changed = {"proof_made": made + 3, **other}
        with pytest.raises(RequestRefused, match=duplicate):
            await nodes.create("b", first._replace(serial=2, **changed))
    nodes.clock.advance(seconds=60)
    assert (await nodes.create("b", first._replace(serial=3, proof_made=made + 60))).serial == 3
    assert await nodes.states() == {1: CertState.REVOKED, 3: CertState.VALID}
    assert await nodes.revocations() == [
        "requested again by the holder of its key: it had given up before its answer came",
    ]
    assert 1 not in nodes.journal.barred, "its key is that of the new certificate"
    nodes.lives["b"].delivered(3)
    await nodes.lives["b"].settle()
    assert (await nodes.states())[3] is CertState.VALID
    nodes.clock.advance(seconds=61)
    with pytest.raises(RequestRefused, match=duplicate):
        await nodes.create("a", first._replace(serial=4, proof_made=made + 121))


@pytest.mark.parametrize("behind_s", [1, 40])
async def test_a_requester_that_gave_up_may_ask_a_node_whose_clock_is_behind(nodes, behind_s):
    made = int(NOW.timestamp()) - 5
    first = asked(1, **ONCE, proof_made=made)
    await nodes.create("a", first)
    nodes.lives["a"].delivered(1)
    await nodes.lives["a"].settle()
    assert await nodes.states() == {1: CertState.VALID}
    nodes.clock.advance(seconds=-behind_s)
    assert (await nodes.create("b", first._replace(serial=2, proof_made=made + 3))).serial == 2
    assert (await nodes.states())[1] is CertState.REVOKED


async def test_a_node_that_lives_has_ten_seconds_to_answer(nodes):
    await nodes.create("a", asked(1))
    with pytest.raises(RequestRefused, match="another node is answering the same request; retry in 2 s"):
        await nodes.create("b", asked(2))
    nodes.clock.advance(seconds=11)
    assert (await nodes.create("b", asked(3))).serial == 3
    assert await nodes.states() == {1: CertState.REVOKED, 3: CertState.VALID}


async def test_the_same_request_twice_at_once_waits_for_the_first_answer(nodes):
    first, second = await asyncio.gather(
        nodes.create("a", asked(1)), nodes.create("a", asked(2)), return_exceptions=True
    )
    assert first.serial == 1
    assert "the same request is being answered; retry in 1 s" in str(second)
    nodes.lives["a"].delivered(1)
    assert (await nodes.create("a", asked(3))).serial == 1, "it is renewed"


async def test_a_requester_that_left_before_its_answer_gets_a_certificate_when_it_comes_again(nodes):
    await nodes.create("a", asked(1))
    await nodes.lives["a"].doubt(1)
    assert (await nodes.create("a", asked(2))).serial == 2
    assert await nodes.states() == {1: CertState.REVOKED, 2: CertState.VALID}


async def test_an_answer_that_was_given_up_before_its_commit_was_known_is_in_doubt_at_once(nodes):
    record = await nodes.create("a", asked(1))
    nodes.store.unclaimed(record)  # as the store says, once it knows
    nodes.store.unclaimed(None)
    await nodes.lives["b"].settle()
    assert (await nodes.create("a", asked(2))).serial == 2
    assert await nodes.states() == {1: CertState.REVOKED, 2: CertState.VALID}


async def test_nobody_else_ends_a_certificate_whose_answer_was_lost(nodes):
    await nodes.create("a", asked(1))
    nodes.alive.discard("a")
    for stranger in (asked(2, skid="bb", key_id="other"), asked(3, proved=False, approval_needed=True)):
        with pytest.raises(RequestRefused):
            await nodes.create("b", stranger)
    assert await nodes.states() == {1: CertState.VALID}


async def test_a_request_that_failed_is_not_waited_for(nodes, monkeypatch):
    def broken(*_args, **_more):
        raise RequestRefused("no")

    with monkeypatch.context() as patch:
        patch.setattr("appliance.cms.lifecycle.facts_of", broken)
        with pytest.raises(RequestRefused, match="no"):
            await nodes.create("a", asked(1))
    assert not nodes.lives["a"].deliveries.answering


async def test_requests_that_wait_for_approval_are_counted_at_all_nodes_together(nodes, monkeypatch):
    monkeypatch.setattr("appliance.cms.waiting._MOST_OF_ONE", 2)

    async def ask(name, serial, peer):
        nodes.store.node = name
        request = asked(
            serial, subject={"CN": f"n{serial}", "O": "", "OU": "", "C": ""}, skid=f"{serial}", key_id=f"{serial}",
            approval_needed=True,
        )  # fmt: skip
        return await nodes.lives[name].create(request, Actor("std", "x", peer))

    await ask("a", 1, "192.0.2.7:1")
    await ask("b", 2, "192.0.2.7:2")
    with pytest.raises(RequestRefused, match="2 requests wait for approval"):
        await ask("a", 3, "192.0.2.7:3")
    # Another address is not hurt, and all that share a commit are counted.
    others = [ask("a", serial, "192.0.2.8:1") for serial in range(4, 8)]
    done = await asyncio.gather(*others, return_exceptions=True)
    assert [isinstance(item, RequestRefused) for item in done] == [False, False, True, True]
    await nodes.lives["b"].deny(1, ALICE)
    assert (await ask("b", 8, "192.0.2.7:4")).serial == 8

"""A node without its database: what it has signed serves until it ends, what it cannot know it does not say, and it comes back.

The table is that of decision 0101. How long the database is away is set by the tests.
"""

import asyncio
import contextlib
from datetime import timedelta
from types import SimpleNamespace

import msgspec
import pytest

from appliance.certs.ocsp import verify_response
from appliance.certs.profiles import generate_key
from appliance.certs.status import CertState, OCSPState
from appliance.client import Disconnected
from appliance.cms import availability, publisher
from appliance.errors import ApplianceError, RemoteError
from tests.helpers.cluster import client_of, cluster
from tests.helpers.cms import Clock, admin_keychain, ccr, keychain_of, secure
from tests.helpers.live import until
from tests.helpers.postgres import Server
from tests.helpers.proxy import Proxy

OPEN = {"require_client_approval": False, "require_server_approval": False, "require_ioc_approval": False}
PATIENT_S = 60
SHORT, LONG = 5.0, 11.0
"""Seconds without the database: less, and more, than those after which clients are sent away."""


class Site:
    """Two nodes, or one. The way of node ``a`` to the database leads through a proxy, which the test cuts."""

    def __init__(self, nodes, proxy, clock):
        self.nodes = nodes
        self.a = nodes[0]
        self.b = nodes[-1]
        self.proxy = proxy
        self.clock = clock

    def lose(self, age_s):
        """Take the database from node a; it has been away for ``age_s`` seconds."""
        self.patience(0.2)
        self.proxy.cut()
        self.a.service.feed.age_s = lambda: age_s

    def mend(self):
        del self.a.service.feed.age_s
        self.proxy.mend()
        self.patience(PATIENT_S)

    def patience(self, seconds):
        """Set for how long node a waits for the database. What is short ends with an error where the machine is slow, too."""
        service = self.a.service
        service.settings = msgspec.structs.replace(service.settings, db_wait_s=seconds)
        service.store.wait_s = service.limits._wait_s = seconds

    async def back(self):
        self.mend()
        await until(self.a.service.availability.is_able, PATIENT_S)


@pytest.fixture
def place(postgres):
    """How a node names the database: directly, and through a proxy."""
    name = postgres.new()
    with Proxy(postgres.port) as proxy:
        yield SimpleNamespace(
            direct=postgres.url(name),
            through=postgres.url(name, host="127.0.0.1", port=proxy.port),
            proxy=proxy,
        )
    postgres.drop(name)


@pytest.fixture
async def alone(tmp_path, place):
    clock = Clock()
    async with cluster(tmp_path, {"a": place.through}, clock=clock, db_wait_s=PATIENT_S, **OPEN) as nodes:
        yield Site(nodes, place.proxy, clock)


@pytest.fixture
async def two(tmp_path, place):
    clock = Clock()
    places = {"a": place.through, "b": place.direct}
    async with cluster(tmp_path, places, clock=clock, db_wait_s=PATIENT_S, **OPEN) as nodes:
        await until(lambda: len(nodes[0].service.nodes.alive) == 2, PATIENT_S)
        yield Site(nodes, place.proxy, clock)


async def issued(context, name="alice", **query):
    argument = ccr(name, key=generate_key("ec-p256"), **query)
    return await context.rpc("CERT:CREATE", argument, timeout=PATIENT_S)


async def until_issued(context, name):
    """Ask until the writer, too, has its database again."""
    async with asyncio.timeout(PATIENT_S):
        while True:
            with contextlib.suppress(RemoteError):
                return await issued(context, name)


def answer_of(site, status):
    return verify_response(
        bytes(status["ocsp_response"]),
        issuer=site.a.service.authority.issuer.certificate,
        serial=status["serial"],
        now=site.clock(),
    )


async def test_what_was_signed_is_served_and_nothing_else_is_signed_but_what_is_final(alone):
    async with (
        client_of(alone.a) as anyone,
        secure(alone.a.service, admin_keychain(alone.a.directory)) as admin,
    ):
        watched, other, revoked = [await issued(anyone, name) for name in ("watched", "other", "revoked")]
        await admin.put(revoked["status_pv"], {"state": "REVOKED"})
        first = await anyone.get(watched["status_pv"])
        unknown = alone.a.service.names.status(12345)
        for name in (other["status_pv"], unknown, revoked["status_pv"]):
            await anyone.info(name)
        alone.lose(SHORT)
        signed = alone.a.service.publisher.signed
        assert bytes((await anyone.get(watched["status_pv"]))["ocsp_response"]) == bytes(
            first["ocsp_response"]
        )
        for name in (other["status_pv"], unknown):
            with pytest.raises(RemoteError, match="cannot be known at the moment"):
                await anyone.get(name)
        assert alone.a.service.publisher.signed == signed
        status = await anyone.get(revoked["status_pv"])
        assert (status["state"], answer_of(alone, status).state) == ("REVOKED", OCSPState.REVOKED)
        await alone.back()
        assert (await anyone.get(other["status_pv"]))["state"] == "VALID"
        assert (await anyone.get(unknown))["state"] == "UNKNOWN"


async def test_who_asks_while_the_database_is_out_of_sight_for_a_moment_waits_for_the_answer(
    alone, monkeypatch
):
    monkeypatch.setattr(publisher, "_HOLD_S", 10 * PATIENT_S)
    publishes = alone.a.service.publisher
    async with client_of(alone.a) as anyone:
        reply = await issued(anyone)
        unknown = alone.a.service.names.status(12345)
        for name in (reply["status_pv"], unknown):
            await anyone.info(name)
        alone.lose(SHORT)
        asked = [
            asyncio.create_task(anyone.get(name, timeout=PATIENT_S)) for name in (reply["status_pv"], unknown)
        ]
        await until(lambda: len(publishes._held) == 2, PATIENT_S)
        await alone.back()
        assert [(await ask)["state"] for ask in asked] == ["VALID", "UNKNOWN"]
        assert not publishes._held


async def test_after_a_long_loss_nobody_waits(alone, monkeypatch):
    monkeypatch.setattr(publisher, "_HOLD_S", 10 * PATIENT_S)
    async with client_of(alone.a) as anyone:
        reply = await issued(anyone)
        await anyone.info(reply["status_pv"])
        alone.lose(LONG)
        with pytest.raises(RemoteError, match="cannot be known at the moment"):
            await anyone.get(reply["status_pv"], timeout=PATIENT_S)


async def test_who_begins_to_watch_what_cannot_be_known_is_told_nothing_until_it_can(alone):
    async with client_of(alone.a) as anyone:
        reply = await issued(anyone)
        await anyone.info(reply["status_pv"])
        alone.lose(SHORT)
        async with anyone.monitor(reply["status_pv"], notify=True) as updates:
            while not isinstance(await asyncio.wait_for(anext(updates), PATIENT_S), Disconnected):
                pass
            await alone.back()
            while isinstance(
                update := await asyncio.wait_for(anext(updates), PATIENT_S), Disconnected
            ) or not (hasattr(update, "get")):
                pass
            assert update["state"] == "VALID"


async def test_what_the_clock_changed_meanwhile_is_told_as_soon_as_the_database_is_back(alone):
    """The signature that subscribers have is good for much longer, so nothing else would make a new one."""
    begins = int(alone.clock().timestamp()) + 300
    async with client_of(alone.a) as anyone:
        reply = await issued(anyone, not_before=begins, not_after=begins + 86400)
        async with anyone.monitor(reply["status_pv"]) as updates:
            assert (await asyncio.wait_for(anext(updates), PATIENT_S))["state"] == "PENDING"
            alone.lose(SHORT)
            alone.clock.advance(seconds=301)
            lifecycle = alone.a.service.lifecycle
            await until(lambda: lifecycle.peek(reply["serial"]).state is CertState.VALID, PATIENT_S)
            await alone.back()
            assert (await asyncio.wait_for(anext(updates), PATIENT_S))["state"] == "VALID"


async def test_nothing_is_issued_or_changed_and_searches_are_left_to_others(alone):
    source = alone.a.service.source
    names = alone.a.service.names
    needs = ["CERT:CREATE", "CERT:LIST", "CERT:SCHEDULE", names.status(1)]
    always = ["CERT:ROOT", "CERT:ISSUER", "CERT:HEALTH", "CERT:METRICS"]
    async with (
        client_of(alone.a) as anyone,
        secure(alone.a.service, admin_keychain(alone.a.directory)) as admin,
    ):
        reply = await issued(anyone)
        await admin.info(reply["status_pv"])
        alone.lose(SHORT)
        for ask in (
            issued(anyone, "bob"),
            admin.put(reply["status_pv"], {"state": "REVOKED"}),
        ):
            with pytest.raises(RemoteError, match=r"database.* cannot be (reached|used)|cannot be known"):
                await ask
        assert not any(source.claims(name, "") for name in needs)
        assert all(source.claims(name, "") for name in always)
        for name in ("CERT:ROOT", "CERT:ISSUER", "CERT:METRICS"):
            await anyone.get(name)
        await alone.a.service.health.check()
        health = await anyone.get("CERT:HEALTH")
        assert (health["value.index"], health["db_ok"]) == (0, False)
        await alone.back()
        assert all(source.claims(name, "") for name in needs + always)
        await until_issued(anyone, "bob")
        assert (await anyone.get(reply["status_pv"]))["state"] == "VALID", "nothing was done"
        await alone.a.service.health.check()
        assert (await anyone.get("CERT:HEALTH"))["value.index"] == 1


@pytest.mark.parametrize(("age_s", "why"), [(SHORT, "not known at the moment"), (LONG, "use another node")])
async def test_a_peer_whose_certificate_may_have_been_revoked_elsewhere_is_not_let_in(
    alone, age_s, why, caplog
):
    async with client_of(alone.a) as anyone:
        reply = await anyone.rpc("CERT:CREATE", ccr("holder"))
        async with secure(alone.a.service, keychain_of(reply)) as holder:
            await holder.get("CERT:HEALTH")
        alone.lose(age_s)
        async with secure(alone.a.service, keychain_of(reply)) as holder:
            with pytest.raises(ApplianceError):
                await holder.get("CERT:HEALTH", timeout=1)
        assert why in caplog.text


async def test_a_node_that_is_alone_is_silent_when_its_answers_grow_old_and_never_says_unknown(alone):
    async with client_of(alone.a) as anyone:
        reply = await issued(anyone)
        async with anyone.monitor(reply["status_pv"], notify=True) as updates:
            states = []

            async def hear():
                async for update in updates:
                    said = "gone" if isinstance(update, Disconnected) else state_of(update)
                    states.append(said)

            hearing = asyncio.create_task(hear())
            await until(lambda: "VALID" in states)
            alone.lose(LONG)
            alone.clock.offset = timedelta(minutes=24)
            assert (await anyone.get(reply["status_pv"]))["state"] == "VALID"
            assert "gone" not in states
            alone.clock.offset = timedelta(minutes=25, seconds=2)
            await until(lambda: "gone" in states, PATIENT_S)
            await alone.back()
            await until(lambda: states[-1] == "VALID", PATIENT_S)
            hearing.cancel()
        assert set(states) <= {"VALID", "gone", None}


async def test_a_short_loss_is_outlived_by_what_was_signed_to_its_very_end(alone):
    async with client_of(alone.a) as anyone:
        reply = await issued(anyone)
        async with anyone.monitor(reply["status_pv"], notify=True) as updates:
            first = await until_value(updates)
            alone.lose(SHORT)
            alone.clock.offset = timedelta(minutes=29)
            again = await anyone.get(reply["status_pv"])
            assert bytes(again["ocsp_response"]) == bytes(first["ocsp_response"])
            alone.clock.offset = timedelta(minutes=30, seconds=1)
            while not isinstance(update := await asyncio.wait_for(anext(updates), PATIENT_S), Disconnected):
                assert state_of(update) in ("VALID", None)
            await alone.back()
            assert (await until_value(updates))["state"] == "VALID"


def state_of(update):
    return update["state"] if hasattr(update, "is_marked") else None


async def until_value(updates):
    while state_of(update := await asyncio.wait_for(anext(updates), PATIENT_S)) is None:
        pass
    return update


async def test_clients_are_sent_to_the_other_node_and_learn_there_what_happened(two, monkeypatch):
    monkeypatch.setattr(availability, "_AWAY_AT_ONCE", 1)
    a, b = two.a.service.publisher.node, two.b.service.publisher.node
    async with client_of(two.a) as at_a, client_of(two.a, two.b) as anyone:
        replies = [await issued(at_a, name) for name in ("one", "two", "three")]
        monitors = [anyone.monitor(reply["status_pv"], notify=True) for reply in replies]
        for monitor in monitors:
            await monitor.__aenter__()
        heard = [[] for _ in replies]

        async def hear(monitor, into):
            async for update in monitor:
                if state_of(update) is not None:
                    into.append((update["state"], update["pvacms_node_id"]))

        hearing = [asyncio.create_task(hear(*pair)) for pair in zip(monitors, heard, strict=True)]
        await until(lambda: all(heard), PATIENT_S)
        two.lose(LONG)
        await until(lambda: all(states[-1] == ("VALID", b) for states in heard), PATIENT_S)
        async with secure(two.b.service, admin_keychain(two.b.directory)) as admin:
            await admin.put(replies[0]["status_pv"], {"state": "REVOKED"})
        await until(lambda: heard[0][-1] == ("REVOKED", b), PATIENT_S)
        assert {state for states in heard for state, _ in states} == {"VALID", "REVOKED"}
        assert {node for states in heard for _, node in states} <= {a, b}
        for task in hearing:
            task.cancel()
        for monitor in monitors:
            await monitor.__aexit__(None, None, None)


async def test_what_was_revoked_elsewhere_meanwhile_is_told_when_the_database_is_back(two):
    async with client_of(two.a) as at_a:
        reply = await issued(at_a)
        async with at_a.monitor(reply["status_pv"]) as updates:
            assert (await anext(updates))["state"] == "VALID"
            two.lose(SHORT)
            async with secure(two.b.service, admin_keychain(two.b.directory)) as admin:
                await admin.put(reply["status_pv"], {"state": "REVOKED"})
            await two.back()
            assert (await asyncio.wait_for(anext(updates), PATIENT_S))["state"] == "REVOKED"


async def test_a_database_that_is_killed_and_comes_back_is_outlived_by_subscriptions(tmp_path):
    with Server(fast=False) as server:
        db = server.url(server.new())
        async with cluster(tmp_path, db, **OPEN) as (a, b), client_of(a) as at_a, client_of(b) as at_b:
            reply = await issued(at_a)
            async with at_b.monitor(reply["status_pv"], notify=True) as updates:
                assert (await until_value(updates))["state"] == "VALID"
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.start)
                for node in (a, b):
                    await until(node.service.availability.is_able, PATIENT_S)
                assert (await at_a.rpc("CERT:CREATE", ccr("bob"), timeout=PATIENT_S))["state"] == "VALID"
                async with secure(a.service, admin_keychain(a.directory)) as admin:
                    await admin.put(reply["status_pv"], {"state": "REVOKED"})
                assert (await until_value(updates))["state"] == "REVOKED", "and nothing before it"

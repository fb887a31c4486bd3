"""Two nodes of one certificate service on one database: each knows at once what the other has done, and nothing is done twice."""

import asyncio

import pytest

from appliance.authn.jwt.config import JWTConfig
from appliance.certs.keychain import dump_trust_anchors, load_keychain
from appliance.certs.ocsp import verify_response
from appliance.certs.profiles import generate_key
from appliance.certs.status import OCSPState
from appliance.client import Disconnected
from appliance.cms.audit import verify_audit
from appliance.errors import ApplianceError, RemoteError
from appliance.pva.search import are_one_service
from tests.helpers.cluster import client_of, cluster
from tests.helpers.cms import Clock, admin_keychain, ccr, jwt_request, keychain_of, pem, secure
from tests.helpers.live import until
from tests.helpers.postgres import raw
from tests.helpers.tokens import NOW, jwks_issuer
from tests.helpers.tokens import running as running_idp

OPEN = {"require_client_approval": False, "require_server_approval": False, "require_ioc_approval": False}
PATIENT_S = 60


async def until_state(updates, state):
    """Wait for an update with this state; return it and the states before."""
    before = []
    while True:
        update = await asyncio.wait_for(anext(updates), PATIENT_S)
        if update["state"] == state:
            return update, before
        before.append(update["state"])


async def test_what_is_done_at_one_node_reaches_the_subscribers_of_the_other(tmp_path, db):
    async with cluster(tmp_path, db) as (a, b), client_of(a) as at_a, client_of(b) as at_b:
        reply = await at_a.rpc("CERT:CREATE", ccr())
        async with at_b.monitor(reply["status_pv"]) as updates:
            assert (await anext(updates))["state"] == "PENDING_APPROVAL"
            async with secure(a.service, admin_keychain(a.directory)) as admin:
                await admin.put(reply["status_pv"], {"state": "APPROVED"})
                update, _ = await until_state(updates, "VALID")
                assert update["pvacms_node_id"] == b.service.publisher.node
                assert update["pvacms_node_id"] != a.service.publisher.node
                await admin.put(reply["status_pv"], {"state": "REVOKED"})
                update, _ = await until_state(updates, "REVOKED")
        answer = verify_response(
            bytes(update["ocsp_response"]),
            issuer=a.service.authority.issuer.certificate,
            serial=reply["serial"],
            now=a.clock(),
        )
        assert answer.state is OCSPState.REVOKED


async def test_a_certificate_that_was_asked_for_before_another_node_issued_it_is_unknown_no_more(
    tmp_path, db
):
    async with cluster(tmp_path, db, **OPEN) as (a, b), client_of(a) as at_a, client_of(b) as at_b:
        name = a.service.names.status(1 << 62)
        assert (await at_a.get(name))["state"] == "UNKNOWN"
        async with at_a.monitor(name) as updates:
            assert (await anext(updates))["state"] == "UNKNOWN"
            import appliance.cms.issuing as issuing

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(issuing, "new_serial", lambda: 1 << 62)
                reply = await at_b.rpc("CERT:CREATE", ccr())
            assert reply["serial"] == 1 << 62
            _, before = await until_state(updates, "VALID")
            assert set(before) <= {"UNKNOWN"}
        assert (await at_a.get(name))["state"] == "VALID"


async def test_a_name_is_given_once_however_many_ask_at_both_nodes(tmp_path, db):
    async with cluster(tmp_path, db, **OPEN) as (a, b), client_of(a) as at_a, client_of(b) as at_b:

        async def ask(context, name):
            request = ccr(name, key=generate_key("ec-p256"))
            return await context.rpc("CERT:CREATE", request, timeout=PATIENT_S)

        asked = [ask(context, f"n{number}") for number in range(6) for context in (at_a, at_b, at_a, at_b)]
        got = await asyncio.gather(*asked, return_exceptions=True)
        for number in range(6):
            refused = [reply for reply in got[4 * number : 4 * number + 4] if isinstance(reply, RemoteError)]
            assert len(refused) == 3
            assert all("Duplicate" in str(error) for error in refused)
    assert verify_audit(db).intact
    with raw(db) as rows:
        actions = [action for (action,) in rows.execute("SELECT action FROM audit").fetchall()]
    assert actions.count("refuse") == 18


async def test_a_revocation_at_one_node_ends_the_connections_of_its_holder_at_the_other(tmp_path, db):
    async with cluster(tmp_path, db, **OPEN) as (a, b), client_of(a) as at_a:
        reply = await at_a.rpc("CERT:CREATE", ccr())
        async with secure(b.service, keychain_of(reply)) as holder:
            async with holder.monitor("CERT:HEALTH", notify=True) as updates:
                await anext(updates)
                async with secure(a.service, admin_keychain(a.directory)) as admin:
                    await admin.put(reply["status_pv"], {"state": "REVOKED"})
                while not isinstance(await asyncio.wait_for(anext(updates), PATIENT_S), Disconnected):
                    pass
            with pytest.raises(ApplianceError):
                await holder.get("CERT:HEALTH", timeout=1)


async def test_what_the_clock_changes_is_told_by_both_nodes_and_recorded_once(tmp_path, db):
    clock = Clock()
    async with (
        cluster(tmp_path, db, clock=clock, **OPEN) as (a, b),
        client_of(a) as at_a,
        client_of(b) as at_b,
    ):
        now = int(clock().timestamp())
        reply = await at_a.rpc("CERT:CREATE", ccr(not_before=now + 1000, not_after=now + 2000))
        name = reply["status_pv"]
        async with at_a.monitor(name) as first, at_b.monitor(name) as second:
            for advance, state in ((1001, "VALID"), (1000, "EXPIRED")):
                clock.advance(seconds=advance)
                for updates in (first, second):
                    await until_state(updates, state)
                await until(lambda state=state: recorded(db, reply["serial"]) == state)
    with raw(db) as rows:
        told = rows.execute("SELECT count(*) FROM audit WHERE action = 'clock'").fetchone()
    assert told[0] == 2
    assert verify_audit(db).intact


def recorded(db, serial):
    with raw(db) as rows:
        return rows.execute("SELECT state FROM certs WHERE serial = ?", (serial,)).fetchone()[0]


@pytest.mark.parametrize("udp", [True, False], ids=["search", "name servers"])
async def test_a_subscription_moves_to_another_node_and_never_says_unknown(tmp_path, db, udp):
    async with cluster(tmp_path, db, **OPEN) as (a, b), client_of(a, b, udp=udp) as anyone:
        reply = await anyone.rpc("CERT:CREATE", ccr())
        async with anyone.monitor(reply["status_pv"]) as updates:
            first = await anext(updates)
            assert first["state"] == "VALID"
            gone, left = (a, b) if first["pvacms_node_id"] == a.service.publisher.node else (b, a)
            await gone.stop()
            update, before = first, []
            while update["pvacms_node_id"] != left.service.publisher.node:
                update = await asyncio.wait_for(anext(updates), PATIENT_S)
                before.append(update["state"])
            assert set(before) == {"VALID"}
            async with secure(left.service, admin_keychain(left.directory)) as admin:
                await admin.put(reply["status_pv"], {"state": "REVOKED"})
            await until_state(updates, "REVOKED")


async def test_a_node_that_comes_later_knows_everything(tmp_path, db):
    async with cluster(tmp_path, db, **OPEN) as (a, b), client_of(a) as at_a:
        await b.stop()
        reply = await at_a.rpc("CERT:CREATE", ccr())
        async with secure(a.service, admin_keychain(a.directory)) as admin:
            await admin.put(reply["status_pv"], {"state": "REVOKED"})
        await b.start()
        async with client_of(b) as at_b:
            assert (await at_b.get(reply["status_pv"]))["state"] == "REVOKED"
            with pytest.raises(RemoteError, match="never certified again"):
                await at_b.rpc("CERT:CREATE", ccr("other"))


async def test_each_node_has_the_revocations_of_all_in_its_journal(tmp_path, db):
    async with cluster(tmp_path, db, **OPEN) as (a, b), client_of(a) as at_a:
        admin = admin_keychain(a.directory)
        first, second = [
            await at_a.rpc("CERT:CREATE", ccr(name, key=generate_key("ec-p256"))) for name in "xy"
        ]
        async with secure(a.service, admin) as at:
            await at.put(first["status_pv"], {"state": "REVOKED"})
        await until(lambda: first["serial"] in b.service.journal.known, PATIENT_S)
        assert first["serial"] in b.service.journal.barred
        # Also what is revoked while the other node starts.
        await b.stop()
        async with secure(a.service, admin) as at:
            await at.put(second["status_pv"], {"state": "REVOKED"})
        await b.start()
        assert second["serial"] in b.service.journal.known
        await b.service.lifecycle.revocations.checkpoint()


async def test_a_token_that_was_used_at_one_node_is_used_at_the_other(tmp_path, db):
    async with running_idp() as idp:
        jwt = JWTConfig(issuers=(jwks_issuer(idp),), peer_per_minute=0.0)
        async with cluster(tmp_path, db, clock=Clock(NOW), jwt=jwt) as (a, b):
            trust = load_keychain(dump_trust_anchors([a.service.authority.root]))
            token = idp.token()
            async with secure(a.service, trust) as at_a, secure(b.service, trust) as at_b:
                assert (await at_a.rpc("CERT:CREATE", jwt_request(token)))["state"] == "VALID"
                other = jwt_request(token, pem(generate_key("ec-p256")))
                with pytest.raises(RemoteError, match="used before"):
                    await at_b.rpc("CERT:CREATE", other)


async def test_requests_that_wait_are_counted_at_all_nodes_together(tmp_path, db, monkeypatch):
    monkeypatch.setattr("appliance.cms.waiting._MOST_OF_ONE", 2)
    async with cluster(tmp_path, db) as (a, b), client_of(a) as at_a, client_of(b) as at_b:
        for context, name in ((at_a, "x"), (at_b, "y")):
            reply = await context.rpc("CERT:CREATE", ccr(name, key=generate_key("ec-p256")))
            assert reply["state"] == "PENDING_APPROVAL"
        for context in (at_a, at_b):
            with pytest.raises(RemoteError, match="2 requests wait for approval"):
                await context.rpc("CERT:CREATE", ccr("z", key=generate_key("ec-p256")))


async def test_health_and_metrics_tell_of_the_nodes_and_of_what_is_watched(tmp_path, db):
    async with cluster(tmp_path, db, **OPEN) as (a, b), client_of(a) as at_a:
        reply = await at_a.rpc("CERT:CREATE", ccr())
        await until(lambda: len(a.service.nodes.alive) == 2, PATIENT_S)
        async with at_a.monitor(reply["status_pv"]) as updates:
            await anext(updates)
            await a.service.health.check()
            health, metrics = await at_a.get("CERT:HEALTH"), await at_a.get("CERT:METRICS")
        assert (health["value.index"], health["cluster_mode"], health["cluster_members"]) == (1, True, 2)
        assert metrics["certs_watched"] >= 1
        assert metrics["cluster_members"] == 2
        assert sorted(member["name"] for member in health["members"]) == ["a", "b"]
        one, other = a.service.server.guid, b.service.server.guid
        assert are_one_service(one, other)
        assert one != other
        await b.stop()
        await until(lambda: a.service.nodes.alive == ["a"], PATIENT_S)
        await a.service.health.check()
        health = await at_a.get("CERT:HEALTH")
        assert (health["value.index"], health["cluster_members"]) == (1, 1), (
            "a missing node is no fault of this one"
        )

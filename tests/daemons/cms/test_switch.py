"""A service of two nodes changes its authority: one node after the other, and between that nothing stands still."""

import asyncio
import contextlib
from datetime import timedelta

import pytest
from cryptography import x509

from appliance.certs.keychain import load_keychain, make_keychain
from appliance.certs.ocsp import verify_response
from appliance.certs.profiles import generate_key
from appliance.client import Disconnected
from appliance.client.channel import ChannelState
from appliance.cms.authorities import known_authorities
from appliance.cms.ceremony import new_authority
from appliance.cms.config import FormerAuthority
from appliance.config.secret import FilePath
from appliance.errors import RemoteError
from tests.helpers.cluster import client_of, cluster
from tests.helpers.cms import Clock, admin_keychain, ccr, effective, secure
from tests.helpers.live import until

OPEN = {"require_client_approval": False, "require_server_approval": False, "require_ioc_approval": False}
PATIENT_S = 60


async def issued(context, name):
    """A new keychain, with what an authenticator puts into it: the certificate, and what verifies the others."""
    key = generate_key("ec-p256")
    reply = await context.rpc("CERT:CREATE", ccr(name, key=key), timeout=PATIENT_S)
    found = x509.load_pem_x509_certificates(reply["cert"].encode())
    return make_keychain(key, [*found, *await bundle_of(context)])


@contextlib.asynccontextmanager
async def following(name, seen, *nodes):
    """A client of these nodes that follows a status all the time, and learns its states."""

    async def follow(context):
        async with context.monitor(name) as updates:
            async for update in updates:
                seen.append(update["state"])

    async with client_of(*nodes) as context:
        before = len(seen)
        task = asyncio.create_task(follow(context))
        await until(lambda: len(seen) > before, PATIENT_S)
        yield
        assert not task.done()
        task.cancel()


def switched(node, ends=""):
    """The settings of a node after the switch, and the new authority's certificate."""
    (new,) = node.directory.parent.glob("a/cert_auth-*.p12")
    former = FormerAuthority(keychain=FilePath(node.directory / "cert_auth.p12"), ends=ends)
    settings = {"cert_auth_tls_keychain": FilePath(new), "former_authorities": (former,)}
    return settings, load_keychain(new.read_bytes()).certificate


async def table(node):
    known = await node.service.store.submit(lambda transaction: known_authorities(transaction.connection))
    return {ident: (each.ends, each.since) for ident, each in known.items()}


async def bundle_of(context):
    value = await context.get("CERT:ROOT", timeout=PATIENT_S)
    return x509.load_pem_x509_certificates(value["bundle"].encode())


async def test_one_node_after_the_other_goes_over_to_a_new_authority(tmp_path, db):
    clock, seen = Clock(), []
    async with cluster(tmp_path, db, clock=clock, **OPEN) as (a, b), contextlib.AsyncExitStack() as stack:
        old_root = a.service.authority.root
        async with client_of(a, b) as anyone:
            alice = await issued(anyone, "alice")
        await asyncio.to_thread(new_authority, effective(a.directory, db=db, node="a").settings, clock())
        after, new = switched(a)
        at_b = await stack.enter_async_context(client_of(b))
        async with asyncio.timeout(PATIENT_S):
            while new not in await bundle_of(at_b):
                await asyncio.sleep(0.02)
        assert (await issued(at_b, "bert")).issuer == old_root, "nothing is switched yet"

        # The first one goes over.
        before = dict(a.settings)
        async with following(alice.status_pv, seen, a, b):
            await a.stop()
            a.settings = {**before, **after}
            await a.start()
            await until(a.service.availability.is_able, PATIENT_S)
            await until(b.service.leaves_requests, PATIENT_S)
            await until(lambda: at_b.channel("CERT:CREATE").state is not ChannelState.ACTIVE, PATIENT_S)
            async with client_of(b, a) as anyone:
                bob = await issued(anyone, "bob")
                assert bob.issuer == new, "only the new authority issues, whichever node is asked"
                assert (await anyone.get(bob.status_pv, timeout=PATIENT_S))["state"] == "VALID"
                # A name is given once, also across the authorities.
                with pytest.raises(RemoteError, match="Duplicate Certificate Subject"):
                    await issued(anyone, "alice")
                carol = await issued(anyone, "carol")
                dora = await issued(anyone, "dora")
            for node in (a, b):
                for keychain in (alice, bob):
                    async with secure(node.service, keychain) as known:
                        await known.get("CERT:HEALTH", timeout=PATIENT_S)
                async with client_of(node) as at_one:
                    status = await at_one.get(alice.status_pv, timeout=PATIENT_S)
                verify_response(
                    bytes(status["ocsp_response"]), issuer=old_root, serial=alice.serial, now=clock()
                )
                assert (status["state"], status["renewal_due"]) == ("VALID", True), "both say the same"
            assert "has taken over from its own" in b.service.succession.warning()
            # A revocation under the new authority ends its holder's connection to the other node, too.
            async with (
                secure(b.service, carol) as holder,
                secure(a.service, admin_keychain(a.directory)) as admin,
                holder.monitor("CERT:HEALTH", notify=True) as updates,
            ):
                await anext(updates)
                await admin.put(carol.status_pv, {"state": "REVOKED"}, timeout=PATIENT_S)
                while not isinstance(await asyncio.wait_for(anext(updates), PATIENT_S), Disconnected):
                    pass
            await until(lambda: carol.serial in b.service.journal.known, PATIENT_S)

        # The second node comes back with the old settings: that switches nothing back.
        now = await table(a)
        async with following(alice.status_pv, seen, b, a):
            await b.stop()
            await b.start()
            await until(b.service.availability.is_able, PATIENT_S)
            assert await table(a) == now
            await until(b.service.leaves_requests, PATIENT_S)
            async with client_of(b, a) as anyone:
                assert (await issued(anyone, "emil")).issuer == new

            # And goes over too.
            await b.stop()
            b.settings = {**before, **switched(b)[0]}
            await b.start()
            await until(b.service.availability.is_able, PATIENT_S)
            assert await table(a) == now
            for node in (a, b):
                async with client_of(node) as at_one:
                    for keychain in (alice, bob, dora):
                        status = await at_one.get(keychain.status_pv, timeout=PATIENT_S)
                        assert status["state"] == "VALID"
            async with client_of(b) as at_b:
                assert (await issued(at_b, "frida")).issuer == new
        assert set(seen) == {"VALID"}, "no subscriber ever learnt UNKNOWN"


async def test_a_node_that_was_not_switched_follows_the_end_of_its_authority(tmp_path, db):
    clock = Clock()
    async with cluster(tmp_path, db, clock=clock, **OPEN) as (a, b), client_of(b) as at_b:
        alice = await issued(at_b, "alice")
        await asyncio.to_thread(new_authority, effective(a.directory, db=db, node="a").settings, clock())
        await a.stop()
        a.settings |= switched(a, ends=(clock() + timedelta(days=1)).replace(microsecond=0).isoformat())[0]
        await a.start()
        await until(lambda: b.service.succession.successor is not None, PATIENT_S)
        await a.stop()
        await until(lambda: not b.service.availability.has_others(), PATIENT_S)
        with pytest.raises(RemoteError, match=r"issues nothing, because the authority .* has taken over"):
            await issued(at_b, "bob")
        clock.advance(days=2)
        async with asyncio.timeout(PATIENT_S):
            while (await at_b.get(alice.status_pv))["state"] != "EXPIRED":
                await asyncio.sleep(0.02)
        assert "the authority of this node" in b.service.succession.over()

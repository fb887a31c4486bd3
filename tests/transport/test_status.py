"""Certificate status governs connections: real TLS between our client and our server, a real status service."""

import asyncio
import contextlib
import logging
from datetime import UTC, datetime, timedelta

import pytest

from appliance.certmon import gate as gate_module
from appliance.certmon.endpoints import open_client, open_server
from appliance.certmon.gate import StatusGate
from appliance.certmon.status_source import reference
from appliance.certs.ocsp import OCSPSigner
from appliance.certs.status import CertState, OCSPState, StatusClass
from appliance.client.monitor import Disconnected
from appliance.errors import CertificateStatusError, KeychainError, OperationError, OperationTimeoutError
from appliance.server.peer import Peer
from appliance.server.served_channel import ServedChannel
from appliance.tls.engine import TLSEngine
from appliance.transport.gate import Verdict
from tests.helpers.live import (
    client_config,
    keychain_file,
    never_comes,
    number,
    promptly,
    replace_keychain,
    server_config,
    until,
)
from tests.helpers.pki import site
from tests.helpers.status_service import StatusService

S = site()
PATIENCE_S, SERVER_PATIENCE_S = gate_module.PATIENCE_S, gate_module.SERVER_PATIENCE_S
VALID, REVOKED, PENDING = CertState.VALID, CertState.REVOKED, CertState.PENDING
OFFLINE, RENEWAL, APPROVAL = (
    CertState.SCHEDULED_OFFLINE,
    CertState.PENDING_RENEWAL,
    CertState.PENDING_APPROVAL,
)


@pytest.fixture(autouse=True)
def quick_look(monkeypatch):
    """What is looked at once a second is looked at more often, so that tests need not wait."""
    monkeypatch.setattr("appliance.certmon.live_keychain.POLL_S", 0.05)


@pytest.fixture(autouse=True)
def steady(monkeypatch):
    """On a busy machine the first status may take longer than the patience for it: that is not what is tested."""
    monkeypatch.setattr("appliance.certmon.gate.PATIENCE_S", 30)
    monkeypatch.setattr("appliance.certmon.tls_manager.PATIENCE_S", 30)
    monkeypatch.setattr("appliance.certmon.gate.SERVER_PATIENCE_S", 30)


@pytest.fixture
def impatient(monkeypatch):
    """Waiting for a service that is not there takes less."""
    monkeypatch.setattr("appliance.certmon.gate.PATIENCE_S", 0.8)
    monkeypatch.setattr("appliance.certmon.tls_manager.PATIENCE_S", 0.8)
    monkeypatch.setattr("appliance.certmon.gate.SERVER_PATIENCE_S", 1.0)


@pytest.fixture
def endless(monkeypatch):
    """Whoever waits for a first word waits too long: what must not wait is seen not to."""
    monkeypatch.setattr("appliance.certmon.gate.PATIENCE_S", 60)
    monkeypatch.setattr("appliance.certmon.tls_manager.PATIENCE_S", 60)
    monkeypatch.setattr("appliance.certmon.gate.SERVER_PATIENCE_S", 60)


class World:
    """A service, a server's and a client's keychain with status, and ways to start the ends."""

    def __init__(self, tmp_path, cms):
        self.tmp_path = tmp_path
        self.cms = cms
        self.server_keychain = S.ca.keychain("softioc", "server", status=True)
        self.client_keychain = S.ca.keychain("operator", "client", status=True)
        self.pv = number(1.0)
        self.stack = contextlib.AsyncExitStack()

    async def server(self, options="", *, keychain=None, **more):
        file = keychain_file(self.tmp_path, "server", keychain or self.server_keychain)
        return await self.stack.enter_async_context(
            open_server(
                server_config(file, options, **more),
                prepare=lambda server: server.add_pv("pv", self.pv),
                status_client=self.cms.client_config(),
            )
        )

    async def client(self, server, options="", *, keychain=None, name="client", **more):
        file = keychain_file(self.tmp_path, name, keychain or self.client_keychain)
        config = client_config(server, self.cms.udp_port, keychain=file, tls_options=options, **more)
        return await self.stack.enter_async_context(open_client(config))

    def tell(self, state, *who, **bent):
        for keychain in who or (self.server_keychain, self.client_keychain):
            self.cms.set(keychain, state, **bent)


@pytest.fixture
async def world(tmp_path):
    async with StatusService(S.ca) as cms:
        it = World(tmp_path, cms)
        async with it.stack:
            yield it


def is_tls(context, name="pv"):
    peer = context.channel(name).peer
    return peer is not None and peer.is_tls


async def live(world, options=""):
    """A server and a client that are connected over TLS, with a running monitor."""
    world.tell(VALID)
    server = await world.server(options)
    context = await world.client(server, options)
    updates = []
    subscription = context.monitor("pv", on_update=updates.append)
    await until(lambda: updates)
    assert is_tls(context)
    world.stack.callback(subscription.close)
    return server, context, updates


# -- admission -----------------------------------------------------------------------------------------


async def test_good_certificates_at_both_ends_are_admitted(world):
    world.tell(VALID)
    server = await world.server()
    context = await world.client(server)
    assert (await context.get("pv"))["value"] == 1.0
    assert is_tls(context)
    assert context.channel("pv").peer.account == "softioc"


@pytest.mark.parametrize("state", [APPROVAL, PENDING, OFFLINE, RENEWAL, CertState.UNKNOWN, REVOKED])
@pytest.mark.parametrize("whose", ["server", "client"])
async def test_a_certificate_that_is_not_good_means_plain_tcp(world, state, whose, endless):
    """SPVA 7.3.1, 8.4: the give-up rule for one's own certificate; nobody waits for a timeout."""
    world.tell(VALID)
    world.tell(state, world.server_keychain if whose == "server" else world.client_keychain)
    server = await world.server()
    context = await world.client(server)
    await context.get("pv")
    assert not is_tls(context)
    assert (server.tls is None) == (whose == "server")
    assert (context.tls is None) == (whose == "client")


@pytest.mark.parametrize("state", [APPROVAL, OFFLINE, REVOKED])
async def test_the_client_gives_up_a_server_whose_certificate_is_not_good(world, state, caplog):
    """SPVA 7.3.1: the client's peer gate. This server does not look after itself."""
    world.tell(VALID, world.client_keychain)
    world.tell(state, world.server_keychain)
    server = await world.server("no_revocation_check")
    context = await world.client(server)
    await context.get("pv")
    assert not is_tls(context)
    assert f"is {state}" in caplog.text
    assert "softioc" in caplog.text


@pytest.mark.parametrize("state", [APPROVAL, OFFLINE, REVOKED])
async def test_the_server_gives_up_a_client_whose_certificate_is_not_good(world, state, caplog):
    """SPVA 7.3.1: the server's peer gate. This client does not look after itself and asks for TLS again."""
    world.tell(VALID, world.server_keychain)
    world.tell(state, world.client_keychain)
    server = await world.server()
    context = await world.client(server, "no_revocation_check")
    await never_comes(lambda: context.get("pv", timeout=0.8), f"operator.*is {state}")
    again = await world.client(server, "no_revocation_check")
    await never_comes(lambda: again.get("pv", timeout=0.8), f"operator.*is {state}")
    warnings = [
        each.getMessage()
        for each in caplog.records
        if each.levelname == "WARNING" and each.name.startswith("appliance.server")
    ]
    (refusal,) = [text for text in warnings if "is not admitted" in text]
    assert f"is {state}" in refusal


async def test_a_client_that_the_server_gives_up_falls_back_to_tcp(world, tmp_path):
    """The server has other news of the client's certificate than the client."""
    world.tell(VALID)
    async with StatusService(S.ca) as other:
        other.set(world.client_keychain, APPROVAL)
        other.set(world.server_keychain, VALID)
        mine, world.cms = world.cms, other
        server = await world.server()
        world.cms = mine
        context = await world.client(server)
        await context.get("pv")
        assert not is_tls(context)


async def test_certificates_without_status_are_used_without_asking(world, endless):
    """SPVA 4.3; so does the certificate service's own: nothing is circular."""
    await world.cms.stop()
    server = await world.server(keychain=S.server)
    context = await world.client(server, keychain=S.client)
    await context.get("pv")
    assert is_tls(context)


async def test_no_revocation_check_asks_nobody(world, endless):
    await world.cms.stop()
    server = await world.server("no_revocation_check")
    context = await world.client(server, "no_revocation_check")
    await context.get("pv")
    assert is_tls(context)


async def test_a_client_with_trust_anchors_only_still_checks_the_server(world):
    world.tell(REVOKED, world.server_keychain)
    server = await world.server("no_revocation_check")
    context = await world.client(server, keychain=S.ca.trust_only())
    await context.get("pv")
    assert not is_tls(context)


# -- no service ----------------------------------------------------------------------------------------


async def test_without_the_service_both_ends_use_plain_tcp_at_once(world, impatient):
    """Not a time-out: the fault of the reference."""
    await world.cms.stop()
    server = await world.server()
    context = await world.client(server)
    await context.get("pv")
    assert not is_tls(context)


async def test_a_client_that_can_hear_the_service_falls_back_when_it_says_nothing_of_the_server(
    world, impatient
):
    world.tell(VALID, world.client_keychain)
    server = await world.server("no_revocation_check")
    context = await world.client(server)
    updates = []
    context.monitor("pv", on_update=updates.append)
    await until(lambda: updates)
    assert not is_tls(context)
    world.tell(VALID, world.server_keychain)
    await until(lambda: is_tls(context))


async def test_on_no_cms_throw_starts_neither_end(world, impatient):
    await world.cms.stop()
    with pytest.raises(CertificateStatusError, match="certificate service"):
        await world.server("on_no_cms=throw")
    with pytest.raises(CertificateStatusError, match="certificate service"):
        await world.client(1, "on_no_cms=throw")


async def test_on_no_cms_throw_never_falls_back_for_a_peer(world, impatient):
    world.tell(VALID, world.client_keychain)
    server = await world.server("no_revocation_check")
    context = await world.client(server, "on_no_cms=throw")
    await never_comes(lambda: context.get("pv", timeout=1.0), "no status")
    world.tell(VALID, world.server_keychain)
    await context.get("pv", timeout=30)
    assert is_tls(context)


async def test_when_the_service_comes_back_connections_move_to_tls(world, impatient):
    await world.cms.stop()
    server = await world.server()
    context = await world.client(server)
    updates = []
    context.monitor("pv", on_update=updates.append)
    await until(lambda: updates)
    assert not is_tls(context)
    world.tell(VALID)
    await world.cms.start()
    await until(lambda: is_tls(context))
    world.pv.post(7.0)
    await until(lambda: updates[-1]["value"] == 7.0)


async def test_what_is_known_stands_while_the_service_is_away(world):
    """SPVA 4.7.2: a dropped status call demotes nothing."""
    server, context, updates = await live(world)
    links = list(server.peers)
    await world.cms.stop()
    await asyncio.sleep(0.3)
    world.pv.post(5.0)
    await until(lambda: updates[-1]["value"] == 5.0)
    await context.put("pv", 6.0)
    await context.get("pv")
    assert is_tls(context)
    assert list(server.peers) == links


@pytest.mark.parametrize("options", ["", "tls_required"])
async def test_past_its_validity_a_status_is_unknown_and_connections_pause(world, options):
    """SPVA 4.7.2, 8.4: the socket stays, operations pause; they go on when the service is back."""
    server, context, updates = await live(world, options)
    links = list(server.peers)
    world.cms.valid = timedelta(seconds=2)
    world.tell(VALID)  # the service says nothing after that
    await until(lambda: all(peer.held is not None for peer in server.peers.values()), 30)
    await world.cms.stop()
    seen = len(updates)
    world.pv.post(8.0)
    with pytest.raises(OperationError, match="UNKNOWN"):
        await context.put("pv", 9.0, timeout=1)
    with pytest.raises(OperationError, match="UNKNOWN"):
        await context.get("pv", timeout=1)
    assert len(updates) == seen
    assert list(server.peers) == links
    world.cms.valid = timedelta(minutes=30)
    world.tell(VALID)
    await world.cms.start()
    await until(lambda: updates[-1]["value"] == 8.0, 30)
    assert list(server.peers) == links, "the same connection"
    await context.put("pv", 9.0)


# -- live transitions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("whose", ["server", "client"])
@pytest.mark.parametrize("watched_by", ["both", "server", "client"])
async def test_revocation_closes_established_connections(world, whose, watched_by):
    """SPVA 8.4, 15.2: on both sides and both ways round, within a second."""
    world.tell(VALID)
    blind = "no_revocation_check"
    server = await world.server("" if watched_by in ("both", "server") else blind)
    context = await world.client(server, "" if watched_by in ("both", "client") else blind)
    updates = []
    context.monitor("pv", on_update=updates.append)
    await until(lambda: updates)
    assert is_tls(context)
    (link,) = server.peers
    world.tell(REVOKED, world.server_keychain if whose == "server" else world.client_keychain)
    await promptly(lambda: link not in server.peers)


@pytest.mark.parametrize("whose", ["server", "client"])
@pytest.mark.parametrize("where", [(Peer, "cut"), (TLSEngine, "close"), (StatusGate, "avoid")])
async def test_a_defect_while_one_connection_is_closed_leaves_none_open(world, whose, where, monkeypatch):
    """Whatever fails, a revoked certificate has no connection, and no other one is kept by it."""
    world.tell(VALID)
    server = await world.server()
    for index in range(4):
        context = await world.client(server, "no_revocation_check", name=f"c{index}")
        await context.get("pv")
        assert is_tls(context)
    links = list(server.peers)
    assert len(links) == 4
    failed = []
    owner, name = where
    right = getattr(owner, name)

    def fails_first(*arguments, **more):
        if not failed:
            failed.append(arguments)
            raise ZeroDivisionError
        return right(*arguments, **more)

    monkeypatch.setattr(owner, name, fails_first)
    world.tell(REVOKED, world.server_keychain if whose == "server" else world.client_keychain)
    await promptly(lambda: not any(link in server.peers for link in links))
    assert failed or (owner is StatusGate and whose == "server")


async def test_a_defect_while_the_rights_of_a_channel_are_judged_ends_its_connection_only(world, monkeypatch):
    world.tell(VALID)
    server = await world.server()
    for index in range(3):
        await (await world.client(server, name=f"c{index}")).get("pv")
    first, *others = server.peers
    reviewed = []
    review = ServedChannel.review

    def fails_first(channel):
        reviewed.append(channel)
        if len(reviewed) == 1:
            raise ZeroDivisionError
        review(channel)

    monkeypatch.setattr(ServedChannel, "review", fails_first)
    server.review_access()
    assert len(reviewed) == 3
    await until(lambda: first not in server.peers)
    assert all(link in server.peers and not link.is_closing for link in others)


@pytest.mark.parametrize("whose", ["server", "client"])
async def test_after_revocation_the_connection_comes_back_in_the_clear(world, whose):
    _server, context, _updates = await live(world)
    world.tell(REVOKED, world.server_keychain if whose == "server" else world.client_keychain)
    await until(lambda: context.channel("pv").peer is not None and not is_tls(context))
    await context.get("pv")
    assert not is_tls(context)


async def test_a_revoked_client_hears_nothing_more(world):
    """What was posted before the news but not yet sent is not sent after it."""
    server, context, _updates = await live(world)
    news = []
    context.monitor("pv", notify=True, on_update=news.append)
    await until(lambda: len(news) == 2)
    (watch,) = server.entrance.gate._watches
    world.pv.post(99.0)
    watch._verdict(Verdict(StatusClass.BAD, "REVOKED"))
    await until(lambda: len(news) > 2)
    assert isinstance(news[2], Disconnected), "the value comes with the next connection, or never"


@pytest.mark.parametrize("state", [OFFLINE, RENEWAL])
@pytest.mark.parametrize("whose", ["server", "client"])
@pytest.mark.parametrize("watched_by", ["both", "server", "client"])
async def test_suspension_pauses_and_resumption_goes_on(world, state, whose, watched_by):
    """SPVA 7.3, 8.4: socket open, monitors paused, GET allowed, PUT and RPC rejected."""
    world.tell(VALID)
    blind = "no_revocation_check"
    server = await world.server("" if watched_by in ("both", "server") else blind)
    context = await world.client(server, "" if watched_by in ("both", "client") else blind)
    updates = []
    context.monitor("pv", on_update=updates.append)
    await until(lambda: updates)
    (link,) = server.peers
    client_link = context.channel("pv").link
    victim = world.server_keychain if whose == "server" else world.client_keychain
    world.tell(state, victim)
    if watched_by != "client":
        await until(lambda: server.peers[link].held is not None)
    if watched_by != "server":
        await until(lambda: client_link.held is not None)
    seen = len(updates)
    for value in (2.0, 3.0, 4.0):
        world.pv.post(value)
    assert (await context.get("pv"))["value"] == 4.0
    with pytest.raises(OperationError, match=str(state)):
        await context.put("pv", 5.0)
    with pytest.raises(OperationError, match=str(state)):
        await context.rpc("pv", {"a": 1})
    assert len(updates) == seen
    world.tell(VALID, victim)
    await until(lambda: updates[-1]["value"] == 4.0)
    await context.put("pv", 6.0)
    assert list(server.peers) == [link], "the same connection all the time"


async def test_nobody_new_is_admitted_while_the_server_is_suspended(world):
    server, context, _updates = await live(world)
    world.tell(OFFLINE, world.server_keychain)
    await until(lambda: server.tls is None)
    newcomer = await world.client(server, keychain=S.ca.keychain("late", "client"), name="late")
    await newcomer.get("pv")
    assert not is_tls(newcomer)
    assert is_tls(context), "who was there before stays"
    world.tell(VALID, world.server_keychain)
    await until(lambda: server.tls is not None)


async def test_no_new_channel_is_admitted_while_a_client_is_suspended(world):
    server, context, _updates = await live(world)
    server.add_pv("second", number(2.0))
    world.tell(OFFLINE, world.client_keychain)
    await until(lambda: context.tls is None and all(peer.held for peer in server.peers.values()))
    value = await context.get("second")
    assert value["value"] == 2.0
    assert not is_tls(context, "second"), "plain TCP remains usable"
    assert is_tls(context)


async def test_an_approved_client_moves_to_tls(world):
    """Upgrade when the status becomes VALID; monitors go on, requests in progress are not lost."""
    world.tell(VALID, world.server_keychain)
    world.tell(APPROVAL, world.client_keychain)
    server = await world.server()
    context = await world.client(server)
    updates = []
    context.monitor("pv", on_update=updates.append)
    await until(lambda: updates)
    assert not is_tls(context)
    world.tell(VALID, world.client_keychain)
    await until(lambda: is_tls(context))
    await context.put("pv", 3.0)
    await until(lambda: updates[-1]["value"] == 3.0)


async def test_an_approved_server_begins_to_speak_tls(world):
    world.tell(VALID, world.client_keychain)
    world.tell(APPROVAL, world.server_keychain)
    server = await world.server()
    assert server.tls is None
    world.tell(VALID, world.server_keychain)
    await until(lambda: server.tls is not None)
    context = await world.client(server)
    await context.get("pv")
    assert is_tls(context)


async def test_a_peer_that_recovers_is_taken_back_to_tls(world):
    """SPVA 12.5.2."""
    world.tell(VALID, world.client_keychain)
    world.tell(OFFLINE, world.server_keychain)
    server = await world.server("no_revocation_check")
    context = await world.client(server)
    updates = []
    context.monitor("pv", on_update=updates.append)
    await until(lambda: updates)
    assert not is_tls(context)
    world.tell(VALID, world.server_keychain)
    await until(lambda: is_tls(context))


async def test_a_server_in_standby_serves_again_after_a_revoked_certificate_was_replaced(world):
    world.tell(VALID)
    server = await world.server("on_expiration=standby")
    context = await world.client(server)
    await context.get("pv")
    world.tell(REVOKED, world.server_keychain)
    await until(lambda: server.standby)
    with pytest.raises(OperationTimeoutError):
        await context.get("pv", timeout=0.3)
    fresh = S.ca.keychain("softioc", "server", status=True)
    world.tell(VALID, fresh)
    replace_keychain(world.tmp_path / "server.p12", fresh)
    await until(lambda: not server.standby)
    context.monitor("pv")
    await until(lambda: is_tls(context))


async def test_on_expiration_shutdown_ends_a_revoked_server_and_client(world):
    world.tell(VALID)
    server = await world.server("on_expiration=shutdown")
    context = await world.client(server, "on_expiration=shutdown")
    await context.get("pv")
    world.tell(REVOKED)
    await asyncio.wait_for(server.wait_closed(), 2)
    await until(lambda: context._end.closed)
    with pytest.raises(KeychainError, match="REVOKED"):
        await world.server("on_expiration=shutdown")


async def test_a_replaced_keychain_with_status_goes_into_use_without_an_interlude_in_the_clear(world):
    server, _context, _updates = await live(world)
    protocols = []
    accept = server._accept
    server._accept = lambda tls: (protocols.append(tls is not None), accept(tls))[1]
    fresh = S.ca.keychain("operator", "client", status=True)
    world.tell(VALID, fresh)
    replace_keychain(world.tmp_path / "client.p12", fresh)
    await until(lambda: [peer.credentials.serial for peer in server.peers.values()] == [fresh.serial])
    assert protocols == [True]


# -- what is believed ----------------------------------------------------------------------------------


async def test_a_status_signed_by_somebody_else_is_ignored(world, caplog):
    server, context, _updates = await live(world)
    links = list(server.peers)
    forger = OCSPSigner(S.other_ca.signer, S.other_ca.certificate)
    world.tell(REVOKED, signer=forger)
    await until(lambda: "a status was ignored" in caplog.text)
    await context.put("pv", 2.0)
    assert list(server.peers) == links


async def test_a_forged_good_status_admits_nobody(world, impatient):
    forger = OCSPSigner(S.other_ca.signer, S.other_ca.certificate)
    world.tell(VALID, signer=forger)
    server = await world.server()
    context = await world.client(server)
    await context.get("pv")
    assert not is_tls(context)
    assert server.tls is None


async def test_somebody_elses_status_admits_nobody(world, impatient):
    world.tell(VALID, about=4711)
    server = await world.server()
    assert server.tls is None


async def test_a_stale_status_admits_nobody(world, impatient):
    world.tell(VALID, this_update=datetime.now(UTC) - timedelta(hours=2))
    server = await world.server()
    assert server.tls is None


async def test_a_revocation_is_never_taken_back(world):
    """An old good answer that somebody replays, and even a new one."""
    _server, context, _updates = await live(world)
    old = world.cms.last[world.client_keychain.status_pv]
    world.tell(REVOKED, world.client_keychain)
    await until(lambda: context.tls is None)
    world.cms.post(world.client_keychain.status_pv, old)
    world.tell(VALID, world.client_keychain)
    await asyncio.sleep(0.2)
    assert context.tls is None
    assert not is_tls(context)


async def test_the_pv_of_the_extension_is_asked_as_it_stands(world):
    """SPVA 4.3: authoritative, never rebuilt."""
    odd = S.ca.keychain("odd", "client", status_pv="OTHER:PREFIX/status~4711")
    world.tell(VALID, odd, world.server_keychain)
    server = await world.server()
    context = await world.client(server, keychain=odd)
    await context.get("pv")
    assert is_tls(context)


@pytest.mark.parametrize("whose", ["server", "client"])
async def test_a_peer_of_this_authority_without_status_extension_is_not_admitted(world, whose, endless):
    """Nobody could see that it is revoked: neither a server's gate nor a client's lets it pass."""
    world.tell(VALID)
    without = S.ca.keychain(whose, whose)
    server = await world.server(keychain=without if whose == "server" else None)
    context = await world.client(server, keychain=without if whose == "client" else None)
    if whose == "client":
        # It is told, and goes on without a proved name.
        await context.get("pv")
        assert not is_tls(context)
    else:
        await never_comes(lambda: context.get("pv", timeout=1), r"the certificate of .* names no status PV")


async def test_a_client_with_trust_anchors_only_learns_from_the_first_status_that_its_authority_has_them(
    world,
):
    """Until then it does as the specification says (4.3)."""
    world.tell(VALID)
    without = await world.server(keychain=S.ca.keychain("without", "server"))
    context = await world.client(without, keychain=S.ca.trust_only(), name="anchors")
    await context.get("pv")
    assert is_tls(context)
    source = context.gate.source
    chain = [world.server_keychain.certificate, *world.server_keychain.chain]
    assert not source.follows_issuer_of(chain)
    source.follow(reference(chain), bool).close()
    assert source.follows_issuer_of(chain)


async def test_where_no_status_is_followed_certificates_without_one_are_admitted(world):
    server = await world.server(keychain=S.ca.keychain("softioc", "server"))
    context = await world.client(server, keychain=S.ca.keychain("operator", "client"))
    await context.get("pv")
    assert is_tls(context)


async def test_the_certificate_service_itself_is_admitted_without_status(world):
    """Its certificate names none on purpose; only the authority gives the usage that tells it."""
    world.tell(VALID)
    server = await world.server(keychain=S.ca.keychain("PVACMS Service", "cms"))
    context = await world.client(server)
    await context.get("pv")
    assert is_tls(context)


async def test_one_subscription_serves_all_connections_of_a_certificate(world):
    """SPVA 7.4."""
    world.tell(VALID)
    server = await world.server()
    contexts = [await world.client(server, name=f"c{index}") for index in range(4)]
    await asyncio.gather(*(context.get("pv") for context in contexts))
    assert server.entrance.gate.source.followed == 2, "its own and the one of the four clients"


async def test_there_is_a_bound_on_the_certificates_that_are_followed(world, caplog):
    world.tell(VALID)
    server = await world.server()
    server.entrance.gate.source.max_followed = 1
    context = await world.client(server)
    await context.get("pv")
    assert not is_tls(context)
    assert "certificates are followed already" in caplog.text


# -- stapling and the cache ----------------------------------------------------------------------------


async def test_the_server_staples_and_the_client_uses_it(world, impatient):
    """SPVA 13: the client hears nothing of the server's certificate but the staple."""
    world.tell(VALID)
    server = await world.server()
    async with StatusService(S.ca) as deaf:
        deaf.set(world.client_keychain, VALID)
        world.cms, mine = deaf, world.cms
        context = await world.client(server)
        await context.get("pv")
        await until(lambda: is_tls(context))
        without = await world.client(server, "no_stapling", name="without")
        await without.get("pv")
        assert not is_tls(without)
        world.cms = mine


async def test_no_stapling_staples_nothing(world, impatient):
    world.tell(VALID)
    server = await world.server("no_stapling")
    async with StatusService(S.ca) as deaf:
        deaf.set(world.client_keychain, VALID)
        world.cms, mine = deaf, world.cms
        context = await world.client(server)
        await context.get("pv")
        assert not is_tls(context)
        world.cms = mine


async def test_a_stapled_revocation_ends_the_handshake(world, monkeypatch):
    """SPVA 13.1. The server that staples its own revocation is made for the purpose."""
    world.tell(VALID)
    server = await world.server("no_revocation_check")
    revoked = S.ca.status(world.server_keychain.serial, OCSPState.REVOKED)
    from appliance.tls.context import server_context

    await server.set_tls(
        server_context(world.server_keychain, require_client_cert=False, staple=lambda: revoked)
    )
    context = await world.client(server)
    await never_comes(lambda: context.get("pv", timeout=0.5), "REVOKED")


async def test_the_cache_opens_tls_while_the_service_is_away(world, endless):
    """SPVA 7.4."""
    cache = {"no_status_cache": False, "status_cache_dir": str(world.tmp_path / "cache")}
    world.tell(VALID)
    server = await world.server(**cache)
    context = await world.client(server, **cache)
    await context.get("pv")
    assert is_tls(context)
    await world.stack.aclose()
    await world.cms.stop()
    server = await world.server(**cache)
    context = await world.client(server, **cache)
    await context.get("pv")
    assert is_tls(context)


async def test_a_cache_that_somebody_else_wrote_proves_nothing(world, impatient):
    directory = world.tmp_path / "cache"
    directory.mkdir()
    serial = world.client_keychain.serial
    forged = S.other_ca.status(serial)
    (directory / f"{S.ca.issuer_id}-{serial:020d}.ocsp").write_bytes(forged)
    await world.cms.stop()
    context = await world.client(1, no_status_cache=False, status_cache_dir=str(directory))
    assert context.tls is None


async def test_a_revocation_in_the_cache_holds(world, endless):
    cache = {"no_status_cache": False, "status_cache_dir": str(world.tmp_path / "cache")}
    world.tell(REVOKED, world.client_keychain)
    context = await world.client(1, **cache)
    assert context.tls is None
    await world.stack.aclose()
    await world.cms.stop()
    world.tell(VALID, world.client_keychain)
    await world.cms.start()
    context = await world.client(1, **cache)
    await asyncio.sleep(0.1)
    assert context.tls is None


async def test_a_warning_names_the_certificate_and_the_state_and_nothing_secret(world, caplog):
    caplog.set_level(logging.DEBUG)
    server, _context, _updates = await live(world)
    world.tell(REVOKED, world.client_keychain)
    await until(lambda: not any(link.engine for link in server.peers))
    assert "REVOKED" in caplog.text
    assert f"{world.client_keychain.serial:020d}" in caplog.text
    assert "PRIVATE KEY" not in caplog.text


def test_tools_can_wait_twice_within_their_timeout():
    """Own certificate, then the peer's: a tool waits five seconds and must have answered by then."""
    assert 2 * PATIENCE_S < 5.0 - 1.0
    assert SERVER_PATIENCE_S > PATIENCE_S

"""TLS as the configuration asks for it: our client against our server, and both against openssl."""

import asyncio
import contextlib
import logging
import os
import socket
import stat
import threading
from datetime import timedelta

import pytest

from appliance.certmon.endpoints import open_client, open_server
from appliance.certmon.live_keychain import LiveKeychain, utc_now
from appliance.certs.keychain import load_keychain
from appliance.certs.profiles import build_ca, generate_key, subject_name
from appliance.certs.signer import KeySigner
from appliance.certs.status import CertState
from appliance.config.secret import Secret
from appliance.errors import KeychainError, OperationError, OperationTimeoutError
from appliance.pva.search import SearchResponse
from tests.helpers.live import (
    HOST,
    client_config,
    keychain_file,
    never_comes,
    number,
    replace_keychain,
    server_config,
    until,
)
from tests.helpers.pki import DAY, NOW, PASSWORD, replace_file, site, write_keychain, write_pem
from tests.helpers.raw import RawClient
from tests.helpers.status_service import StatusService
from tests.helpers.tls import openssl_client, openssl_server

S = site()


@pytest.fixture(autouse=True)
def quick_look(monkeypatch):
    """What is looked at once a second is looked at more often, so that tests need not wait."""
    monkeypatch.setattr("appliance.certmon.live_keychain.POLL_S", 0.05)
    monkeypatch.setattr("appliance.certmon.endpoints.LATE_POLL_S", 0.05)


class Seen:
    """A PV that remembers who used it."""

    def __init__(self):
        self.peers = []

    def prepare(self, server):
        pv = number()

        def put(pv, operation, value):
            self.peers.append(operation.peer)
            pv.post(value)

        pv.on_put = put
        server.add_pv("pv", pv)


@contextlib.asynccontextmanager
async def pair(
    tmp_path, *, server=S.server, client=S.client, server_options="", client_options="", seen=None
):
    """A server and a client with these keychains."""
    server_file = keychain_file(tmp_path, "server", server) if server else ""
    client_file = keychain_file(tmp_path, "client", client) if client else ""
    seen = seen or Seen()
    async with (
        open_server(server_config(server_file, server_options), prepare=seen.prepare) as running,
        open_client(client_config(running, keychain=client_file, tls_options=client_options)) as context,
    ):
        yield running, context


async def test_a_client_certificate_is_seen_by_the_handler(tmp_path):
    """SPVA 5.2, 5.3: x509 inside TLS, the identity from the certificate."""
    seen = Seen()
    client = S.ca.keychain("operator", "client", san=[("dns", "console7"), ("ip", "10.1.2.3")])
    async with pair(tmp_path, client=client, seen=seen) as (server, context):
        await context.put("pv", 4.5)
        assert (await context.get("pv"))["value"] == 4.5
        info = await context.info("pv")
    (peer,) = seen.peers
    assert (peer.method, peer.account, peer.is_tls) == ("x509", "operator", True)
    assert peer.authority == "EPICS Root Certificate Authority"
    assert (peer.issuer_id, peer.serial) == (S.ca.issuer_id, client.serial)
    assert peer.san == (("dns", "console7"), ("ip", "10.1.2.3"))
    assert (info.peer.account, info.peer.is_tls) == ("softioc", True)
    assert info.peer.peer == f"{HOST}:{server.tls_port}"


async def test_a_keychain_of_trust_anchors_authenticates_the_server_only(tmp_path):
    seen = Seen()
    async with pair(tmp_path, client=S.ca.trust_only(), seen=seen) as (_, context):
        await context.put("pv", 1.0)
        assert context.channel("pv").peer.account == "softioc"
    (peer,) = seen.peers
    assert (peer.is_tls, peer.method in ("ca", "anonymous")) == (True, True)


async def test_a_second_trust_anchor_that_has_ended_is_ignored_with_a_warning(tmp_path, caplog):
    key = generate_key("ec-p256")
    name = subject_name("Old Root")
    dates = {"not_before": NOW - 9 * DAY, "not_after": NOW - DAY}
    ended = build_ca(KeySigner(key), subject=name, serial=3, **dates)
    server, client = (k._replace(anchors=(*k.anchors, ended)) for k in (S.server, S.client))
    async with pair(tmp_path, server=server, client=client) as (_, context):
        assert (await context.info("pv")).peer.is_tls
    assert caplog.text.count("the trust anchor CN=Old Root") == 2


async def test_a_required_client_certificate_is_required(tmp_path):
    async with pair(tmp_path, client=S.ca.trust_only(), server_options="client_cert=require") as (_, context):
        await never_comes(lambda: context.get("pv", timeout=1.0), "certificate")


async def test_a_required_client_certificate_is_accepted(tmp_path):
    async with pair(tmp_path, server_options="client_cert=require") as (_, context):
        await context.get("pv")


async def test_a_client_without_a_keychain_gets_plain_tcp(tmp_path):
    async with pair(tmp_path, client=None) as (_, context):
        await context.get("pv")
        assert not context.channel("pv").peer.is_tls


async def test_a_server_without_a_keychain_serves_tls_clients_over_plain_tcp(tmp_path):
    async with pair(tmp_path, server=None) as (server, context):
        await context.get("pv")
        assert not context.channel("pv").peer.is_tls
        assert server.tls_port == 0


async def test_a_server_of_another_authority_is_refused_and_said_so(tmp_path):
    stranger = S.other_ca.keychain("softioc", "server")
    async with pair(tmp_path, server=stranger) as (_, context):
        await never_comes(lambda: context.get("pv", timeout=1.0), "trust")


async def test_a_client_of_another_authority_is_refused(tmp_path):
    """Even where a certificate is optional: one that does not verify is worse than none."""
    mixed = S.other_ca.keychain("mallory")
    mixed = mixed._replace(anchors=(S.ca.certificate, *mixed.anchors))
    async with pair(tmp_path, client=mixed) as (_, context):
        with pytest.raises(OperationTimeoutError):
            await context.get("pv", timeout=1.0)


async def test_a_refused_handshake_is_tried_again_with_growing_pauses(tmp_path):
    """SPVA 15.1."""
    stranger = S.other_ca.keychain("softioc", "server")
    async with pair(tmp_path, server=stranger) as (server, context):
        made = []
        accept = server._accept
        server._accept = lambda tls: (made.append(1), accept(tls))[1]
        with pytest.raises(OperationTimeoutError):
            await context.get("pv", timeout=1.0)
        assert 1 <= len(made) <= 6


async def test_a_password_opens_the_keychain(tmp_path):
    file = write_keychain(tmp_path / "server.p12", S.server, PASSWORD)
    config = server_config(file, tls_keychain_password=Secret(PASSWORD.decode()))
    async with open_server(config) as server:
        assert server.tls_port


def unusable(directory, what, keychain):
    """Return the path of a keychain that cannot be used, and the password for it."""
    file = directory / "own.p12"
    if what == "wrong password":
        return write_keychain(file, keychain, PASSWORD), Secret("Sesame")
    if what == "rubbish":
        return replace_file(file, b"\x30\x82 rubbish"), Secret()
    if what == "directory":
        file.mkdir()
    return file, Secret()


UNUSABLE = pytest.mark.parametrize("what", ["wrong password", "rubbish", "directory", "missing"])


@UNUSABLE
@pytest.mark.parametrize("side", ["client", "server"])
async def test_a_keychain_that_cannot_be_used_ends_client_and_server_with_one_sentence(
    tmp_path, caplog, what, side
):
    file, password = unusable(tmp_path, what, S.server if side == "server" else S.client)
    more = {"tls_keychain_password": password}
    opened = (
        open_server(server_config(file, **more))
        if side == "server"
        else open_client(client_config(1, keychain=file, **more))
    )
    with pytest.raises(KeychainError, match=f"{side} does not start.*on_no_keychain=fallback-to-tcp") as told:
        async with opened:
            pass
    said = str(told.value)
    assert said.startswith(f"{file}: ")
    assert said.count(str(file)) == 1
    assert "\n" not in said
    assert "Sesame" not in caplog.text + said


@UNUSABLE
async def test_plain_tcp_without_the_keychain_must_be_asked_for_and_is_a_warning(tmp_path, caplog, what):
    (tmp_path / "c").mkdir()
    (tmp_path / "s").mkdir()
    server_file, password = unusable(tmp_path / "s", what, S.server)
    client_file, _ = unusable(tmp_path / "c", what, S.client)
    more = {"tls_keychain_password": password, "tls_options": "on_no_keychain=fallback-to-tcp"}
    async with (
        open_server(server_config(server_file, **more), prepare=Seen().prepare) as server,
        open_client(client_config(server, keychain=client_file, **more)) as context,
    ):
        assert server.tls is None
        assert not (await context.info("pv")).peer.is_tls
    assert caplog.text.count("TLS is not used: ") == 2
    assert "Sesame" not in caplog.text


@pytest.mark.parametrize("content", [b"", b"no keychain", None])
async def test_a_server_that_must_have_a_certificate_does_not_start_without(tmp_path, content):
    """EPICS_PVAS_TLS_STOP_IF_NO_CERT."""
    file = tmp_path / "server.p12"
    if content is not None:
        file.touch(0o600)
        file.write_bytes(content)
    with pytest.raises(KeychainError):
        async with open_server(server_config(file, tls_stop_if_no_cert=True)):
            pass
    with pytest.raises(KeychainError, match="EPICS_PVAS_TLS_KEYCHAIN"):
        async with open_server(server_config("", tls_stop_if_no_cert=True)):
            pass


async def test_a_keychain_that_everybody_can_read_is_warned_about(tmp_path, caplog):
    file = keychain_file(tmp_path, "client", S.client)
    file.chmod(0o644)
    async with open_client(client_config(1, keychain=file)) as context:
        assert context.tls is not None
    assert "chmod 600" in caplog.text


async def test_a_client_with_a_server_certificate_authenticates_servers_only(tmp_path, caplog):
    async with pair(tmp_path, client=S.server) as (_, context):
        await context.get("pv")
        assert context.channel("pv").peer.is_tls
        assert context.tls.keychain.certificate is None
    assert "anonymous" in caplog.text


# -- dates ---------------------------------------------------------------------------------------------


async def test_an_expired_server_falls_back_to_tcp(tmp_path):
    async with pair(tmp_path, server=S.ca.expired("softioc", "server")) as (server, context):
        assert server.tls is None
        await context.get("pv")
        assert not context.channel("pv").peer.is_tls


async def test_an_expired_server_ends_when_asked_to(tmp_path):
    file = keychain_file(tmp_path, "server", S.ca.expired("softioc", "server"))
    with pytest.raises(KeychainError, match="expired"):
        async with open_server(server_config(file, "on_expiration=shutdown")):
            pass


async def test_an_expired_server_in_standby_answers_nobody_until_it_has_a_new_certificate(tmp_path):
    expired = S.ca.expired("softioc", "server")
    async with pair(tmp_path, server=expired, server_options="on_expiration=standby") as (server, context):
        with pytest.raises(OperationTimeoutError):
            await context.get("pv", timeout=0.3)
        reader, writer = await asyncio.open_connection(HOST, server.tcp_port)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        replace_keychain(tmp_path / "server.p12", S.server)
        await context.get("pv", timeout=30)
        assert context.channel("pv").peer.is_tls


async def test_an_expired_client_goes_on_without_a_certificate(tmp_path):
    """Configuration reference, on_expiration: no client certificate is presented, TLS is still asked for."""
    seen = Seen()
    async with pair(tmp_path, client=S.ca.expired("operator"), seen=seen) as (_, context):
        await context.put("pv", 1.0)
    (peer,) = seen.peers
    assert peer.is_tls
    assert peer.method != "x509"


async def test_a_client_that_says_x509_without_a_certificate_is_anonymous(tmp_path):
    """SPVA 6.2. The message is what PVXS 1.3.1 with TLS sends when its keychain holds a trust anchor and no more."""
    recorded = bytes.fromhex("ca0200010e00000000000100ff7f00000478353039ff")
    async with pair(tmp_path, client=None) as (server, _):
        client = await RawClient.connect(server.tls_port, tls=True, validation=recorded)
        (peer,) = server.peers.values()
        assert peer.validated
        seen = peer.credentials
        assert (seen.method, seen.account, seen.authority, seen.is_tls) == ("anonymous", "", "", True)
        await client.close()


@pytest.mark.parametrize("choice", ["shutdown", "standby"])
async def test_an_expired_client_ends_when_asked_to(tmp_path, choice):
    file = keychain_file(tmp_path, "client", S.ca.expired("operator"))
    with pytest.raises(KeychainError, match="expired"):
        async with open_client(client_config(1, keychain=file, tls_options=f"on_expiration={choice}")):
            pass


async def test_a_certificate_is_used_as_soon_as_it_is_valid(tmp_path, monkeypatch):
    # By a clock of the test: that of the machine may pass any date before the client has started.
    behind = [timedelta(hours=2)]
    monkeypatch.setitem(LiveKeychain.__init__.__kwdefaults__, "now", lambda: utc_now() - behind[0])
    soon = S.ca.keychain("operator", not_before=NOW - timedelta(hours=1), not_after=NOW + DAY)
    async with pair(tmp_path, client=soon) as (_, context):
        assert context.tls is None
        await context.get("pv")
        assert not context.channel("pv").peer.is_tls
        behind[0] = timedelta()
        await until(lambda: context.tls is not None)


async def test_a_server_that_expires_while_it_runs_closes_its_tls_connections(tmp_path):
    brief = S.ca.keychain("softioc", "server", not_after=NOW.now(NOW.tzinfo) + timedelta(seconds=2))
    async with pair(tmp_path, server=brief) as (server, context):
        await context.get("pv")
        assert context.channel("pv").peer.is_tls
        await until(lambda: server.tls is None)
        await context.get("pv")
        assert not context.channel("pv").peer.is_tls


# -- replacement ---------------------------------------------------------------------------------------


async def test_a_replaced_keychain_is_taken_into_use_by_the_server(tmp_path):
    """SPVA 14."""
    async with pair(tmp_path) as (server, context):
        await context.get("pv")
        before = context.channel("pv").peer.serial
        assert before == S.server.serial
        fresh = S.ca.keychain("softioc", "server")
        replace_keychain(tmp_path / "server.p12", fresh)
        await until(lambda: server.tls.keychain.serial == fresh.serial)
        await until(lambda: context.channel("pv").peer is None or context.channel("pv").peer.serial != before)
        await context.get("pv")
        assert context.channel("pv").peer.serial == fresh.serial


async def test_a_replaced_keychain_is_taken_into_use_by_the_client(tmp_path):
    seen = Seen()
    async with pair(tmp_path, seen=seen) as (_, context):
        await context.put("pv", 1)
        replace_keychain(tmp_path / "client.p12", S.ca.keychain("relief"))
        old = context.tls
        await until(lambda: context.tls is not old)
        await context.put("pv", 2)
    assert [peer.account for peer in seen.peers] == ["client", "relief"]


@pytest.mark.parametrize(("end", "name"), [("server", "softioc"), ("client", "relief")])
async def test_a_running_end_reads_a_replaced_keychain_beside_its_event_loop(
    tmp_path, monkeypatch, end, name
):
    """A file of many rounds takes long to open; meanwhile others are served."""
    threads = []

    def load(*arguments):
        threads.append(threading.current_thread())
        return load_keychain(*arguments)

    async with pair(tmp_path) as (_, context):
        await context.get("pv")
        monkeypatch.setattr("appliance.certmon.live_keychain.load_keychain", load)
        replace_keychain(tmp_path / f"{end}.p12", S.ca.keychain(name, end))
        await until(lambda: threads)
        await context.get("pv")
    assert threading.current_thread() not in threads


@pytest.mark.parametrize("what", ["rubbish", "gone", "expired", "for clients"])
async def test_a_replacement_that_cannot_be_used_leaves_the_old_keychain(tmp_path, what, caplog):
    caplog.set_level(logging.WARNING)
    async with pair(tmp_path) as (server, context):
        file = tmp_path / "server.p12"
        await context.get("pv")
        if what == "rubbish":
            replace_file(file, b"\x30\x82 rubbish")
        elif what == "gone":
            file.unlink()
        else:
            keychain = S.ca.expired("softioc", "server") if what == "expired" else S.client
            replace_keychain(file, keychain)
        await until(lambda: "stays in use" in caplog.text)
        assert server.tls.keychain.serial == S.server.serial
        assert len(server.peers) == 1, "nobody was disconnected"
        await context.get("pv")
        # and what comes after it is seen
        fresh = S.ca.keychain("softioc", "server")
        replace_keychain(file, fresh)
        await until(lambda: server.tls.keychain.serial == fresh.serial)


async def test_a_keychain_that_appears_later_is_taken_into_use(tmp_path):
    file = tmp_path / "server.p12"
    async with open_server(server_config(file, "on_no_keychain=fallback-to-tcp")) as server:
        assert server.tls is None
        replace_keychain(file, S.server)
        await until(lambda: server.tls_port)
        assert server.tls is not None


async def test_a_keychain_that_appears_later_at_the_usual_place_is_taken_into_use(tmp_path):
    seen = Seen()
    usual = tmp_path / "pva/1.5/server.p12"
    config = server_config(tls_keychain_default=str(usual))
    client_file = keychain_file(tmp_path, "client", S.client)
    async with (
        open_server(config, prepare=seen.prepare) as server,
        open_client(client_config(server, keychain=client_file)) as context,
    ):
        await context.put("pv", 1)
        usual.parent.mkdir(parents=True)
        replace_keychain(usual, S.server)
        # The port is the last thing to come: a client that searches before it is there finds plain TCP.
        await until(lambda: server.tls_port)
        assert (await context.get("pv"))["value"] == 1.0, "who is connected in the clear stays"
        async with open_client(client_config(server, keychain=client_file)) as another:
            await another.put("pv", 2)
        # and it is replaced like any other
        fresh = S.ca.keychain("softioc", "server")
        replace_keychain(usual, fresh)
        await until(lambda: server.tls.keychain.serial == fresh.serial)
        await context.put("pv", 3)
    assert [peer.method for peer in seen.peers[:2]] == ["ca", "x509"]
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(HOST, server.tcp_port)


@pytest.mark.parametrize("what", ["rubbish", "expired", "for clients"])
async def test_what_appears_at_the_usual_place_and_cannot_be_used_leaves_plain_tcp(tmp_path, what, caplog):
    caplog.set_level(logging.INFO)
    async with open_server(server_config(tls_keychain_default=str(tmp_path / "server.p12"))) as server:
        await until(lambda: "plain TCP is used until there is one" in caplog.text)
        if what == "rubbish":
            replace_file(tmp_path / "server.p12", b"\x30\x82 rubbish")
        else:
            keychain = S.ca.expired("softioc", "server") if what == "expired" else S.client
            replace_keychain(tmp_path / "server.p12", keychain)
        await until(lambda: caplog.text.count("server.p12") > 1)
        assert server.tls is None
        replace_keychain(tmp_path / "server.p12", S.ca.keychain("softioc", "server"))
        await until(lambda: server.tls is not None)


async def test_a_certificate_that_appears_later_is_used_only_when_its_status_is_good(tmp_path):
    keychain = S.ca.keychain("softioc", "server", status=True)
    async with StatusService(S.ca) as cms:
        cms.set(keychain, CertState.PENDING_APPROVAL)
        config = server_config(tls_keychain_default=str(tmp_path / "server.p12"))
        async with open_server(config, status_client=cms.client_config()) as server:
            keychain_file(tmp_path, "server", keychain)
            await until(lambda: server.entrance.gate is not None and server.entrance.gate.own is not None)
            await until(lambda: server.entrance.gate.own.status.delivered)
            assert server.tls is None
            cms.set(keychain, CertState.VALID)
            await until(lambda: server.tls is not None)
            cms.set(keychain, CertState.REVOKED)
            await until(lambda: server.tls is None)


async def test_a_server_without_a_keychain_that_is_stopped_stops_looking_for_one(tmp_path):
    async with open_server(server_config(tls_keychain_default=str(tmp_path / "server.p12"))):
        pass
    keychain_file(tmp_path, "server", S.server)
    assert not [task for task in asyncio.all_tasks() if "keychain" in task.get_name()]


async def test_the_tls_port_of_a_server_without_certificate_answers_nothing_in_the_clear(tmp_path):
    async with pair(tmp_path) as (server, context):
        await server.set_tls(None)
        reader, writer = await asyncio.open_connection(HOST, server.tls_port)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        await context.get("pv")


# -- key log -------------------------------------------------------------------------------------------


async def test_the_key_log_is_private_and_announced(tmp_path, caplog):
    keys = tmp_path / "keys"
    keys.touch(0o600)
    keys.write_bytes(b"# before\n")
    file = keychain_file(tmp_path, "server", S.server)
    config = server_config(file, tls_keylog_file=str(keys))
    async with open_server(config, prepare=Seen().prepare) as server:
        mine = keychain_file(tmp_path, "client", S.client)
        async with open_client(client_config(server, keychain=mine)) as context:
            await context.get("pv")
    text = keys.read_text()
    assert text.startswith("# before\n")
    assert "CLIENT_TRAFFIC_SECRET_0 " in text
    assert "SSLKEYLOGFILE" in caplog.text
    fresh = tmp_path / "fresh"
    async with open_server(config._replace(tls_keylog_file=str(fresh))):
        assert stat.S_IMODE(fresh.stat().st_mode) == 0o600


@pytest.mark.parametrize("kind", ["world-readable", "link", "fifo"])
async def test_a_key_log_that_others_could_read_is_not_written(tmp_path, kind, caplog):
    keys = tmp_path / "keys"
    if kind == "fifo":
        os.mkfifo(keys, 0o600)
    elif kind == "link":
        (tmp_path / "elsewhere").touch(0o600)
        keys.symlink_to(tmp_path / "elsewhere")
    else:
        keys.touch()
        keys.chmod(0o644)
    file = keychain_file(tmp_path, "server", S.server)
    async with open_server(server_config(file, tls_keylog_file=str(keys)), prepare=Seen().prepare) as server:
        mine = keychain_file(tmp_path, "client", S.client)
        async with open_client(client_config(server, keychain=mine)) as context:
            await context.get("pv")
    assert "SSLKEYLOGFILE" in caplog.text
    if kind != "fifo":
        assert keys.read_bytes() == b""


# -- openssl -------------------------------------------------------------------------------------------


@pytest.fixture
def pem(tmp_path):
    folders = {}
    for name, keychain in (("server", S.server), ("client", S.client)):
        (tmp_path / name).mkdir()
        folders[name] = write_pem(tmp_path / name, keychain)
    return folders


async def test_openssl_s_client_sees_the_profile(tmp_path, pem):
    """SPVA 3: TLS 1.3, no resumption, a client certificate asked for; 5.2 in the first message."""
    cert, key, ca = pem["client"]
    file = keychain_file(tmp_path, "server", S.server)
    async with open_server(server_config(file)) as server:
        process = openssl_client(
            server.tls_port, ["-cert", cert, "-key", key, "-CAfile", ca, "-verify_return_error", "-ign_eof"]
        )
        try:
            await until(lambda: len(server.peers) == 1 and next(iter(server.peers)).is_up)
        finally:
            server.close_peers()
        output = await asyncio.to_thread(lambda: process.communicate(timeout=30)[0])
    text = output.decode("latin-1")
    assert "TLSv1.3" in text
    assert "Verify return code: 0 (ok)" in text or "Verification: OK" in text
    assert "x509" in text
    # OpenSSL says so when close_notify is missing.
    assert "unexpected eof" not in text
    assert "closed" in text


async def test_a_session_is_never_resumed(tmp_path, pem):
    """SPVA 3.7."""
    cert, key, ca = pem["client"]
    file = keychain_file(tmp_path, "server", S.server)
    session = tmp_path / "session.pem"
    async with open_server(server_config(file)) as server:
        process = openssl_client(
            server.tls_port, ["-cert", cert, "-key", key, "-CAfile", ca, "-sess_out", session, "-ign_eof"]
        )
        await until(lambda: len(server.peers) == 1 and next(iter(server.peers)).is_up)
        server.close_peers()
        await asyncio.to_thread(lambda: process.communicate(timeout=30))
        assert session.exists(), "TLS 1.3 gives a ticket, which is worth nothing here"
        again = openssl_client(server.tls_port, ["-CAfile", ca, "-sess_in", session, "-ign_eof"])
        await until(lambda: len(server.peers) == 1 and next(iter(server.peers)).is_up)
        server.close_peers()
        output = (await asyncio.to_thread(lambda: again.communicate(timeout=30)))[0]
        assert b"Reused" not in output
        assert b"New, TLSv1.3" in output


async def test_our_client_shakes_hands_with_openssl_s_server(tmp_path, pem):
    """What answers speaks no PVAccess: the client must say so, and close, not hang."""
    cert, key, ca = pem["server"]
    file = keychain_file(tmp_path, "client", S.client)
    with openssl_server("-cert", cert, "-key", key, "-CAfile", ca, "-Verify", 3, "-tls1_3") as port:
        async with open_client(client_config(keychain=file)) as context:
            with pytest.raises(OperationError):
                await context.get("pv", timeout=0.5, server=(HOST, port, True))


async def test_forged_offers_of_tls_open_few_connections(tmp_path):
    """Anybody may answer a search with the GUID of the server that is in use, and name any address."""
    keychain = keychain_file(tmp_path, "client", S.client)
    with socket.create_server(("", 0)) as mute:
        port = mute.getsockname()[1]
        async with (
            open_server(server_config(), prepare=Seen().prepare) as server,
            open_client(
                client_config(server, keychain=keychain, tls_options="no_revocation_check")
            ) as context,
        ):
            await context.get("pv")
            channel = context.channel("pv")
            assert not channel.peer.is_tls
            for number in range(1, 51):
                answer = SearchResponse(server.guid, 1, None, port, "tls", True, (channel.instance,))
                context._links.searcher.answered(answer, f"127.0.0.{number}")
            tried = [link for link in context._links.by_address.values() if link.address.tls]
            assert 1 <= len(tried) <= 4
            await context.get("pv")


async def test_a_client_at_rest_has_no_tasks_in_the_loop_of_the_program(tmp_path):
    """Test suites of programs, as those of ophyd-async, take what is left for tasks that they forgot."""
    server_file = keychain_file(tmp_path, "server", S.server)
    async with open_server(server_config(server_file), prepare=Seen().prepare) as server:
        before = asyncio.all_tasks()
        config = client_config(server, keychain=keychain_file(tmp_path, "client", S.client))
        async with open_client(config) as context:
            assert (await context.info("pv")).peer.is_tls
            await until(lambda: asyncio.all_tasks() <= before)

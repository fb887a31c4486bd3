"""Whom the authenticators trust, and what leaves the host before they do."""

import contextlib
import re
import threading

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.authn.ccr import REPLY_TYPE
from appliance.authn.trust import fingerprint
from appliance.cms.wire_types import root_value
from appliance.config.address import Endpoint
from appliance.config.pva import ServerConfig
from appliance.pvdata import Value
from appliance.server import Server, SharedPV
from appliance.tls.context import server_context
from tests.helpers.authn import INSIDE, Account
from tests.helpers.pki import site as other_site
from tests.helpers.ports import free_port
from tests.helpers.recording_proxy import RecordingProxy


class Impostor:
    """A PVAccess server that answers to CERT:CREATE and keeps what it is told."""

    def __init__(self, site, keychain=None, *, host="127.0.0.1", port=0):
        self.site = site
        self.keychain = keychain
        self.host = host
        self.calls = []
        self.port = port
        self.tls_port = 0
        self._ready = threading.Event()
        self._end = None
        self._loop = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        import asyncio

        asyncio.run(self._serve())

    async def _serve(self):
        import asyncio

        self._loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        config = ServerConfig(
            intf_addr_list=(Endpoint(self.host),),
            auto_beacon_addr_list=False,
            server_port=self.port,
            tls_port=0,
            broadcast_port=0,
        )
        tls = None if self.keychain is None else server_context(self.keychain, require_client_cert=False)
        issuer = self.site.cms.issuer

        def called(_pv, _operation, argument):
            self.calls.append(argument)
            return Value(REPLY_TYPE)

        server = Server(config, tls=tls)
        for suffix in ("", f":{issuer}"):
            server.add_pv(
                f"CERT:ROOT{suffix}", SharedPV(root_value(issuer, self.site.authority.certificate, ()))
            )
            server.add_pv(f"CERT:CREATE{suffix}", SharedPV(REPLY_TYPE, on_rpc=called))
        async with server:
            self.port, self.tls_port = server.tcp_port, server.tls_port
            self._ready.set()
            await self._end.wait()

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(30)

    def client(self) -> dict[str, str]:
        return {"EPICS_PVA_NAME_SERVERS": f"127.0.0.1:{self.port}"}


def obtain(account: Account, sub: str, *arguments, **variables):
    return account.run("authnjwt", "--token-file", account.token_file(sub), *arguments, **variables)


def pieces(token: str) -> list[bytes]:
    """The token, and each part that nobody could send without meaning it."""
    return [token.encode(), *(part.encode() for part in token.split(".")[1:])]


def test_no_part_of_a_token_ever_crosses_a_plain_connection(site):
    account = site.account()
    file = account.token_file("quiet")
    token = file.read_text().strip()
    assert account.run("authnjwt", "--token-file", file).status == 0
    plain, secured = site.tcp.proxy.recorded(), site.tls.proxy.recorded()
    assert b"CERT:ROOT" in plain, "the recorder records"
    assert site.tls.proxy.connections
    assert len(secured) > 1000
    for piece in pieces(token):
        assert piece not in plain
        assert piece not in secured
    assert b"CERT:CREATE" not in secured


def test_the_recorder_would_have_seen_a_token_that_was_sent_in_the_clear(site):
    """With the option that permits it, and a service without TLS, the token does cross: so the test above can fail."""
    account = site.account()
    port = free_port()
    file = account.token_file("loud")
    token = file.read_text().strip()
    with (
        Impostor(site, host=INSIDE, port=port) as impostor,
        RecordingProxy(port, (INSIDE, port)) as proxy,
    ):
        arguments = ("--token-file", file, "--allow-plaintext-token")
        account.run("authnjwt", *arguments, EPICS_PVA_NAME_SERVERS=f"127.0.0.1:{port}")
        recorded = proxy.recorded()
    assert len(impostor.calls) == 1
    for piece in pieces(token):
        assert piece in recorded


def test_a_service_without_tls_gets_no_token(site):
    account = site.account()
    with Impostor(site) as impostor:
        done = obtain(account, "plain", "-w", "1.5", **impostor.client())
    assert done.status == 1
    assert "was not sent unencrypted" in done.err
    assert "--allow-plaintext-token" in done.err
    assert impostor.calls == []
    assert not (account.config / "client.p12").exists()


def test_the_first_use_shows_the_fingerprint_and_keeps_the_anchor_and_the_second_says_nothing(site):
    account = site.account()
    first = obtain(account, "tofu")
    shown = fingerprint(site.authority.certificate)
    assert first.status == 0
    assert f"fingerprint {shown}\n" in first.err
    kept = account.config / "trust-anchor.pem"
    assert f"kept in {kept}" in first.err
    assert shown in kept.read_text()
    (account.config / "client.p12").unlink()
    second = obtain(account, "tofu")
    assert second.status == 0
    assert "fingerprint" not in second.err


def test_an_anchor_that_changed_is_refused_with_both_fingerprints_and_the_way_out(site):
    account = site.account()
    stranger = other_site().ca.certificate
    account.config.mkdir(parents=True)
    (account.config / "trust-anchor.pem").write_bytes(stranger.public_bytes(Encoding.PEM))
    before = site.tls.proxy.connections
    done = obtain(account, "moved")
    assert done.status == 1
    assert "trust anchor has changed" in done.err
    assert fingerprint(stranger) in done.err
    assert fingerprint(site.authority.certificate) in done.err
    assert site.tls.proxy.connections == before, "nobody was even spoken to"
    confirmed = obtain(
        account, "moved", "--trust-anchor-fingerprint", fingerprint(site.authority.certificate)
    )
    assert confirmed.status == 0, confirmed.err
    assert account.keychain().anchors == (site.authority.certificate,)


def test_the_anchor_of_a_keychain_counts_before_everything_that_is_offered(site):
    account = site.account()
    account.place(other_site().ca.expired("former"))
    done = obtain(account, "former")
    assert done.status == 1
    assert "trust anchor has changed" in done.err
    assert account.keychain().subject == "CN=former, O=localhost", "nothing was written"


def test_a_published_fingerprint_is_checked_in_every_spelling(site):
    right = fingerprint(site.authority.certificate)
    digits = right.removeprefix("sha256:").upper()
    pasted = "SHA256 Fingerprint=" + ":".join(re.findall("..", digits))
    account = site.account()
    wrong = obtain(account, "pinned", "--trust-anchor-fingerprint", "sha256:" + "0" * 64)
    assert wrong.status == 1
    assert right in wrong.err
    assert "nothing was sent" in wrong.err
    assert obtain(account, "pinned", "--trust-anchor-fingerprint", "sha1:00").status == 1
    good = obtain(account, "pinned", "--trust-anchor-fingerprint", pasted)
    assert good.status == 0, good.err
    assert "first use" not in good.err


def test_without_trust_on_first_use_the_fingerprint_or_the_file_is_needed(site, tmp_path):
    account = site.account()
    done = obtain(account, "strict", "--no-trust-on-first-use")
    assert done.status == 1
    assert "--trust-anchor-fingerprint" in done.err
    anchor = tmp_path / "ca.pem"
    anchor.write_bytes(site.authority.certificate.public_bytes(Encoding.PEM))
    anchor.chmod(0o646)
    assert "chmod o-w" in obtain(account, "strict", "--trust-anchor", anchor).err
    anchor.chmod(0o644)
    good = obtain(account, "strict", "--no-trust-on-first-use", "--trust-anchor", anchor)
    assert good.status == 0, good.err
    anchor.write_bytes(other_site().ca.certificate.public_bytes(Encoding.PEM))
    assert obtain(site.account(), "strict", "--trust-anchor", anchor).status == 1


def test_somebody_between_with_another_authority_hears_nothing(site):
    """He lets CERT:ROOT pass and takes the TLS connection: he cannot prove to be the service."""
    account = site.account()
    impostor_keychain = other_site().ca.keychain("PVACMS Service", "cms")
    with Impostor(site, impostor_keychain) as impostor, redirected(site.tls.proxy, impostor.tls_port):
        done = obtain(account, "between", "-w", "2")
    assert done.status == 1
    assert "the token was not sent unencrypted" in done.err
    assert re.search("certificate|verif|trust", done.err)
    assert impostor.calls == []
    assert not (account.config / "client.p12").exists()


def test_a_server_of_the_same_site_that_poses_as_the_service_hears_nothing(site):
    """Any IOC has a certificate of the same authority; only the service's own may sign statuses."""
    account = site.account()
    with (
        Impostor(site, site.issue("ioc7", "ioc")) as impostor,
        redirected(site.tls.proxy, impostor.tls_port),
    ):
        done = obtain(account, "posed", "-w", "2")
    assert done.status == 1
    assert "CN=ioc7, O=lab" in done.err
    assert "the token was not sent to it" in done.err
    assert impostor.calls == []


def test_a_server_of_the_same_site_cannot_report_a_revocation_that_was_not_done(site):
    administrator = site.administrator()
    victim = site.account()
    obtain(victim, "still-there")
    with (
        Impostor(site, site.issue("ioc8", "ioc")) as impostor,
        redirected(site.tls.proxy, impostor.tls_port),
    ):
        done = administrator.run("pvxcert", "-w", "2", "-R", victim.keychain().cert_id)
    assert done.status == 1
    assert "Completed" not in done.out
    assert victim.run("pvxcert").status == 0


@contextlib.contextmanager
def redirected(proxy, port):
    former = proxy.target
    proxy.target = ("127.0.0.1", port)
    try:
        yield
    finally:
        proxy.target = former


def test_authnstd_needs_no_tls_but_checks_the_answer(site):
    """Nothing in its request is secret; what an impostor answers is not written."""
    account = site.account()
    with Impostor(site) as impostor:
        done = account.run("authnstd", "-n", "plain", **impostor.client())
    assert len(impostor.calls) == 1
    assert done.status == 1
    assert "nothing was written" in done.err
    assert not (account.config / "client.p12").exists()


@pytest.mark.parametrize("tool", ["authnstd", "authnjwt"])
def test_without_a_certificate_service_the_message_says_where_to_look(site, tool):
    account = site.account()
    arguments = ["--token-file", account.token_file("lost")] if tool == "authnjwt" else []
    done = account.run(tool, *arguments, "-w", "0.3", EPICS_PVA_NAME_SERVERS="127.0.0.1:1")
    assert done.status == 1
    assert "EPICS_PVA_ADDR_LIST" in done.err

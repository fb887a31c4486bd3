"""Ends of one site before and after its change to a new root, without any end that trusts both: RFC 4210 section 4.4."""

import subprocess
from typing import NamedTuple

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.certmon.endpoints import open_client, open_server
from appliance.certs.crossed import sent_beside
from appliance.certs.keychain import Keychain, dump_keychain, load_keychain
from appliance.certs.ocsp import OCSPSigner
from appliance.certs.status import OCSPState
from appliance.tls.context import client_context, server_context
from appliance.tls.credentials import peer_credentials
from tests.helpers.live import client_config, keychain_file, number, server_config, until
from tests.helpers.pki import DAY, NOW, Authority, site, write_keychain, write_pem
from tests.helpers.tls import connected, engines, exchange, openssl_server

LATER = NOW + 365 * DAY


class Ends(NamedTuple):
    """The keychains of two ends, and the authorities that issued them."""

    old: Keychain
    new: Keychain
    old_authority: Authority
    new_authority: Authority


def ends(depth=2, *, name="Site Root G2", new_with_old=LATER, old_with_new=LATER):
    """An end that has not heard of the new root, and one that has changed to it; each as its file gives it."""
    old, new = Authority("Site Root", begun=3000 * DAY), Authority(name)
    new.beside = old.crossed(new, not_after=new_with_old), new.crossed(old, not_after=old_with_new)
    issuing = []
    for authority in (old, new):
        for level in range(depth - 1):
            authority = authority.intermediate(f"Site CA {level}", path_length=None)
        issuing.append(authority)
    old_end, new_end = (
        load_keychain(dump_keychain(a.keychain(n, "ioc")))
        for a, n in zip(issuing, ("old", "new"), strict=True)
    )
    assert (old_end.anchors, new_end.anchors) == ((old.certificate,), (new.certificate,))
    return Ends(old_end, new_end, *issuing)


def handshake(server, client):
    return connected(
        server_context(server, require_client_cert=True), client_context(client, want_staple=False)
    )


def failures(server, client):
    pair = engines(
        server_context(server, require_client_cert=True), client_context(client, want_staple=False)
    )
    return [str(failure or "") for failure in exchange(*pair)]


@pytest.mark.parametrize("name", ["Site Root", "Site Root G2"], ids=["equal-names", "other-names"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_an_old_end_and_a_new_one_verify_each_other(depth, name):
    both = ends(depth, name=name)
    for server, client in ((both.old, both.new), (both.new, both.old), (both.new, both.new)):
        at_server, at_client = handshake(server, client)
        for engine, own, other in ((at_server, server, client), (at_client, client, server)):
            seen = peer_credentials(engine, peer="10.0.0.2:1", interface="10.0.0.1")
            assert seen.account == other.certificate.subject.rfc4514_string().split("CN=")[1].split(",")[0]
            assert engine.peer_chain[-1] == own.anchors[0], "the verified chain ends in the own root"
            assert seen.home is not None, "so the other end is of this site"
            assert "[" not in seen.authority
            assert seen.issuer_id == other.issuer_id


def test_the_authorities_of_a_peer_go_over_the_other_root_to_the_own_one():
    both = ends(2)
    at_old, at_new = handshake(both.old, both.new)
    paths = [peer_credentials(e, peer="10.0.0.2:1", interface="").authority for e in (at_old, at_new)]
    assert paths == ["Site CA 0\nSite Root G2\nSite Root", "Site CA 0\nSite Root\nSite Root G2"]


def test_a_new_end_that_only_authenticates_servers_knows_an_old_server():
    both = ends()
    server, client = engines(
        server_context(both.old, require_client_cert=False),
        client_context(both.new.anchors_alone(), want_staple=False),
    )
    assert exchange(server, client) == (None, None)


def test_what_is_crossed_ends_by_its_own_date():
    """Nobody has to remove anything: after that the old root's certificates are worth nothing at new ends."""
    over = ends(old_with_new=NOW - DAY)
    assert any(failures(over.new, over.old))
    assert any(failures(over.old, over.new))
    assert failures(over.new, over.new) == ["", ""]
    assert any(failures(*ends(new_with_old=NOW - DAY)[:2]))


def test_a_cross_certificate_in_a_keychain_trusts_nobody_by_itself():
    """OpenSSL gets it as a link to an anchor. Without that anchor it leads nowhere."""
    both = ends()
    stranger = site().other_ca
    apart = both.new._replace(anchors=(stranger.certificate,))
    assert any(failures(both.old, apart))
    forged = Authority("Site Root", begun=3000 * DAY)
    assert any(failures(forged.keychain("old", "ioc"), both.new)), "the name of the old root, and another key"
    other = stranger.keychain("new", "ioc")
    assert any(failures(both.old, other._replace(crossed=both.new.crossed)))


def test_openssl_with_the_old_root_only_verifies_a_new_certificate_and_its_status(tmp_path):
    """As a client in C++ does, whose keychain nobody has changed."""
    both = ends()
    new = both.new_authority
    signer = OCSPSigner(new.signer, new.certificate, sent_beside(new.certificate, new.chain, new.beside))
    (tmp_path / "ocsp.der").write_bytes(
        signer.sign(both.new.serial, OCSPState.GOOD, this_update=NOW, next_update=NOW + DAY)
    )
    for file, certificates in {
        "old.pem": both.old.anchors,
        "new.pem": both.new.anchors,
        "sent.pem": both.new.sent_above,
        "leaf.pem": [both.new.certificate],
        "issuer.pem": [new.certificate],
    }.items():
        (tmp_path / file).write_bytes(b"".join(c.public_bytes(Encoding.PEM) for c in certificates))
    for root in ("old.pem", "new.pem"):
        for command in (
            f"verify -x509_strict -CAfile {root} -untrusted sent.pem leaf.pem",
            f"ocsp -respin ocsp.der -issuer issuer.pem -cert leaf.pem -CAfile {root}",
        ):
            done = subprocess.run(
                ["openssl", *command.split()],
                cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
            assert done.returncode == 0, f"{command}: {done.stderr}"
            assert "leaf.pem: OK" in done.stdout or "Response verify OK" in done.stderr, done.stderr


@pytest.mark.parametrize("way", ["old-server", "new-server"])
async def test_a_client_reads_from_a_server_over_the_change(tmp_path, way):
    both = ends()
    server_end, client_end = (both.old, both.new) if way == "old-server" else (both.new, both.old)
    async with (
        open_server(
            server_config(keychain_file(tmp_path, "server", server_end), "client_cert=require"),
            prepare=lambda server: server.add_pv("pv", number(1.0)),
        ) as server,
        open_client(client_config(server, keychain=keychain_file(tmp_path, "client", client_end))) as context,
    ):
        assert (await context.get("pv"))["value"] == 1.0
        peer = context.channel("pv").peer
        assert peer.is_tls
        assert peer.account == ("old" if way == "old-server" else "new")


def test_an_openssl_server_with_an_old_certificate_is_known_to_a_new_client(tmp_path):
    import socket

    from appliance.tls.engine import TLSEngine
    from tests.helpers.tls import Driver

    both = ends()
    cert, key, ca = write_pem(tmp_path, both.old)
    chain = tmp_path / "chain.pem"
    chain.write_bytes(b"".join(c.public_bytes(Encoding.PEM) for c in both.old.chain))
    with openssl_server(
        "-cert", cert, "-key", key, "-cert_chain", chain, "-CAfile", ca, "-Verify", 5, "-verify_return_error", "-tls1_3"
    ) as port:  # fmt: skip
        sock = socket.create_connection(("127.0.0.1", port))
        with sock:
            driver = Driver(sock, TLSEngine(client_context(both.new, want_staple=False), False))
            driver.handshake()
            driver.send(b"hello\n")
            assert driver.read_until(b"\n") == b"olleh\n"
            driver.engine.close()
            driver.flush()


async def test_a_keychain_that_only_trusts_more_ends_no_connection_and_one_that_trusts_less_does(tmp_path):
    both, other = ends(), site().other_ca.certificate
    old = both.old_authority.chain[0]
    crossed = both.new.crossed
    path = keychain_file(tmp_path, "server", both.old)
    async with (
        open_server(
            server_config(path, "client_cert=require"),
            prepare=lambda server: server.add_pv("pv", number(1.0)),
        ) as server,
        open_client(client_config(server, keychain=keychain_file(tmp_path, "client", both.old))) as context,
    ):
        await context.get("pv")
        (link,) = server.peers
        # The new root takes the place of the old one, which it has signed: whoever was trusted still is.
        more = both.old._replace(anchors=(both.new.anchors[0], old, other), crossed=crossed)
        write_keychain(path, more)
        await until(lambda: server.tls.keychain.anchors != both.old.anchors)
        assert (await context.get("pv"))["value"] == 1.0
        assert list(server.peers) == [link]
        write_keychain(path, more._replace(anchors=(both.new.anchors[0], old)))
        await until(lambda: link not in server.peers)

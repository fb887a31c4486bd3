"""The TLS engine, end against end, without sockets: SPVA specification 3, 4.6, 13.1."""

import tracemalloc
from contextlib import suppress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import SSL

from appliance.certs.keychain import Keychain
from appliance.certs.ocsp import verify_response
from appliance.certs.status import OCSPState
from appliance.errors import CertificateStatusError, KeychainError, LocalProtocolError, TLSError
from appliance.tls.context import client_context, server_context
from appliance.tls.engine import MAX_EARLY, TLSEngine
from tests.helpers.hand_made import hand_made
from tests.helpers.pki import DAY, NOW, Authority, site
from tests.helpers.tls import connected, engines, exchange

S = site()
SERVER = server_context(S.server, require_client_cert=True)
CLIENT = client_context(S.client, want_staple=False)


def failures(server_keychain, client_keychain, *, require=True):
    pair = engines(
        server_context(server_keychain, require_client_cert=require),
        client_context(client_keychain, want_staple=False),
    )
    return (*(str(failure or "") for failure in exchange(*pair)), pair)


def test_a_handshake_negotiates_the_profile():
    """3.1, 3.3, 3.4, 3.9."""
    server, client = connected(SERVER, CLIENT)
    for engine in (server, client):
        assert engine.version == "TLSv1.3"
        assert engine.cipher == "TLS_AES_256_GCM_SHA384"
        assert "X25519" in engine.group.upper()
        assert engine.alpn == "pva/1"
    assert server.peer_certificate_der == S.client.certificate.public_bytes(Encoding.DER)
    assert client.peer_certificate_der == S.server.certificate.public_bytes(Encoding.DER)
    assert client.peer_chain_der == tuple(
        c.public_bytes(Encoding.DER) for c in (S.server.certificate, S.ca.certificate)
    )


def test_alpn_is_not_required():
    """3.9: the peers of 2025 do not negotiate it."""
    for server_alpn, client_alpn in (((), (b"pva/1",)), ((b"pva/1",), ()), ((b"pva/1",), (b"other",))):
        server, client = connected(
            server_context(S.server, require_client_cert=False, alpn=server_alpn),
            client_context(S.client, want_staple=False, alpn=client_alpn),
        )
        assert server.alpn == client.alpn == ""


def test_bytes_may_come_one_at_a_time():
    server, client = engines(SERVER, CLIENT)
    assert exchange(server, client, step=1) == (None, None)
    client.send(b"ping")
    got = [chunk for byte in client.data_to_send() for chunk in server.receive_data(bytes((byte,)))]
    assert got == [b"ping"]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("size", [0, 1, 16384, 16385, 300_000, 1 << 20])
def test_what_is_sent_arrives_whole_both_ways(kind, size):
    server, client = connected(SERVER, CLIENT)
    payload = bytes(i % 251 for i in range(size))
    for source, target in ((server, client), (client, server)):
        source.send(kind(payload))
        assert b"".join(target.receive_data(kind(source.data_to_send()))) == payload
        assert source.data_to_send() == b""


def test_memoryviews_of_numbers_are_sent_as_their_bytes():
    server, client = connected(SERVER, CLIENT)
    numbers = memoryview(b"\1\0\0\0\0\0\0\0" * 5).cast("Q")
    client.send(numbers)
    assert b"".join(server.receive_data(client.data_to_send())) == numbers.tobytes()


def test_chunks_keep_their_order_with_small_sends_between():
    server, client = connected(SERVER, CLIENT)
    client.send(b"head")
    client.send(bytes(400_000))
    client.send(b"tail")
    data = b"".join(client.chunks_to_send())
    assert b"".join(server.receive_data(data)) == b"head" + bytes(400_000) + b"tail"


def test_ciphertext_shows_no_plaintext():
    server, client = engines(SERVER, CLIENT)
    client.send(b"SECRET-BEFORE" * 10)
    first = client.data_to_send()
    assert b"SECRET" not in first
    server.receive_data(first)
    server.send(b"SECRET-EARLY" * 10)
    flight = server.data_to_send()
    assert b"SECRET" not in flight
    assert client.receive_data(flight) == [], (
        "a server that has not seen the client's certificate sends nothing"
    )
    assert client.handshake_complete
    got = server.receive_data(client.data_to_send())
    assert got == [b"SECRET-BEFORE" * 10]
    assert client.receive_data(server.data_to_send()) == [b"SECRET-EARLY" * 10]


def test_a_refused_client_hears_nothing_that_the_server_sent():
    """The server's application may have queued data: it must not leave before the client is verified."""
    server, client = engines(SERVER, client_context(S.ca.trust_only(), want_staple=False))
    server.send(b"SECRET")
    server.receive_data(client.data_to_send())
    assert client.receive_data(server.data_to_send()) == []
    with pytest.raises(TLSError, match="sent no certificate"):
        server.receive_data(client.data_to_send())
    with pytest.raises(TLSError, match="requires a client certificate"):
        client.receive_data(server.data_to_send())


def test_what_waits_for_the_handshake_is_bounded():
    client = TLSEngine(CLIENT, False)
    client.send(bytes(MAX_EARLY))
    with pytest.raises(LocalProtocolError, match="before the TLS handshake"):
        client.send(b"x")


# ---------------------------------------------------------------------- who is let in


def test_server_only_authentication():
    server_why, client_why, (server, client) = failures(S.server, S.ca.trust_only(), require=False)
    assert (server_why, client_why) == ("", "")
    assert server.peer_certificate_der is None
    assert client.peer_certificate_der is not None


def test_a_required_client_certificate_is_required():
    server_why, client_why, _ = failures(S.server, S.ca.trust_only())
    assert server_why == "the peer sent no certificate and one is required"
    assert client_why == "the peer requires a client certificate and this end has none; set a keychain"


@pytest.mark.parametrize("require", [True, False])
def test_an_unknown_authority_is_refused_by_both(require):
    stranger = S.other_ca.keychain("stranger", "client")
    mixed = Keychain(stranger.key, stranger.certificate, stranger.chain, S.client.anchors)
    server_why, client_why, _ = failures(S.server, mixed, require=require)
    assert "does not trust" in server_why or "not in this keychain" in server_why
    assert "CN=Another Certificate Authority" in server_why or "CN=stranger" in server_why
    assert client_why.startswith("the peer does not trust the certificate authority of our certificate")
    impostor = S.other_ca.keychain("softioc", "server")
    server_why, client_why, _ = failures(impostor, S.client)
    assert "both sides need the same trust anchor" in client_why
    assert server_why.startswith("the peer does not trust")


def test_an_authority_of_the_same_name_is_refused():
    impostor = Authority()
    _, client_why, _ = failures(impostor.keychain("softioc", "server"), S.client)
    assert "the peer's certificate" in client_why


def test_expired_certificates_are_refused_by_both():
    server_why, client_why, _ = failures(S.server, S.ca.expired())
    assert server_why.startswith("the peer's certificate CN=client, O=localhost has expired")
    assert client_why == "the peer says that our certificate has expired; request a new one"
    server_why, client_why, _ = failures(S.ca.expired("softioc", "server"), S.client)
    assert client_why.startswith("the peer's certificate CN=softioc, O=localhost has expired")


def test_certificates_that_are_not_valid_yet_are_refused():
    early = S.ca.keychain("client", "client", not_before=NOW + DAY, not_after=NOW + 2 * DAY)
    server_why, _, _ = failures(S.server, early)
    assert "is not valid yet; check the clocks" in server_why


def test_certificates_for_another_use_are_refused():
    server_why, client_why, _ = failures(S.server, S.server)
    assert server_why == (
        "the peer's certificate CN=softioc, O=localhost is not for a client: its extended key usage lacks it"
    )
    assert client_why == "the peer says that our certificate is not for this use"
    _, client_why, _ = failures(S.client, S.client)
    assert "CN=client, O=localhost is not for a server" in client_why
    assert failures(S.ioc, S.ioc)[:2] == ("", "")


def test_a_certificate_without_extended_key_usage_is_refused():
    """4.2: it MUST be there; OpenSSL alone would take such a certificate for any use."""
    server_why, _, _ = failures(S.server, hand_made(usage=None))
    assert "CN=odd is not for a client" in server_why
    assert failures(S.server, hand_made())[:2] == ("", "")


def test_a_certificate_signed_by_an_end_entity_is_refused():
    keychain = hand_made(issuer=S.ioc)
    server_why, _, (server, _) = failures(S.server, keychain)
    assert server_why
    assert not server.handshake_complete


def test_intermediates_are_sent_and_verified():
    below = S.ca.intermediate()
    server, client = connected(
        server_context(below.keychain("softioc", "server"), require_client_cert=True),
        client_context(below.keychain("client", "client"), want_staple=False),
    )
    assert len(server.peer_chain_der) == len(client.peer_chain_der) == 3


def test_a_path_longer_than_the_authority_allows_is_refused():
    below = S.ca.intermediate()
    too_deep = below.intermediate("EPICS Second Intermediate CA")
    server_why, _, _ = failures(S.server, too_deep.keychain("client", "client"))
    assert "path length" in server_why


def test_a_server_needs_a_certificate():
    with pytest.raises(KeychainError, match="a server needs its own certificate"):
        server_context(S.ca.trust_only(), require_client_cert=False)


def test_a_weak_or_mismatched_key_is_refused_by_the_context():
    with pytest.raises(KeychainError, match="cannot be used for TLS"):
        client_context(S.client._replace(key=S.server.key), want_staple=False)


# ---------------------------------------------------------------------- versions, resumption, endings


def peer(*, maximum=None, server=False) -> SSL.Connection:
    """A peer made of bare OpenSSL."""
    context = SSL.Context(SSL.TLS_SERVER_METHOD if server else SSL.TLS_CLIENT_METHOD)
    if maximum is not None:
        context.set_max_proto_version(maximum)
    keychain = S.server if server else S.client
    context.use_certificate(keychain.certificate)
    context.use_privatekey(keychain.key)
    connection = SSL.Connection(context, None)
    if server:
        connection.set_accept_state()
    else:
        connection.set_connect_state()
    return connection


def turn(connection: SSL.Connection, data: bytes = b"") -> bytes:
    if data:
        connection.bio_write(data)
    with suppress(SSL.Error):
        connection.do_handshake()
    try:
        return connection.bio_read(65536)
    except SSL.WantReadError:
        return b""


def test_peers_of_tls_1_2_are_refused_with_an_alert():
    """3.1."""
    server = TLSEngine(SERVER, True)
    with pytest.raises(TLSError, match=r"only TLS versions older than 1\.3"):
        server.receive_data(turn(peer(maximum=SSL.TLS1_2_VERSION)))
    alert = server.data_to_send()
    assert alert[0] == 21
    assert alert[-1] == 70, "protocol_version"
    client = TLSEngine(CLIENT, False)
    client.start()
    answer = turn(peer(maximum=SSL.TLS1_2_VERSION, server=True), client.data_to_send())
    with pytest.raises(TLSError, match=r"TLS 1\.3"):
        client.receive_data(answer)


def test_a_peer_that_does_not_speak_tls_is_named():
    for data, why in (
        (b"GET / HTTP/1.0\r\n\r\n", "HTTP request"),
        (b"\xca\x02\x00\x01\x00\x00\x00\x00" * 4, "does not speak TLS"),
    ):
        server = TLSEngine(SERVER, True)
        with pytest.raises(TLSError, match=why):
            server.receive_data(data)


def test_close_notify_ends_in_order():
    server, client = connected(SERVER, CLIENT)
    client.send(b"last words")
    client.close()
    client.close()
    assert server.receive_data(client.data_to_send()) == [b"last words"]
    assert server.eof
    server.receive_eof()
    assert server.receive_data(b"more") == []
    server.send(b"answer")
    server.close()
    assert client.receive_data(server.data_to_send()) == [b"answer"]
    assert client.eof
    client.receive_eof()
    with pytest.raises(LocalProtocolError, match="has closed"):
        client.send(b"x")


def test_an_end_without_close_notify_is_a_truncation():
    server, client = connected(SERVER, CLIENT)
    client.send(b"half")
    server.receive_data(client.data_to_send())
    with pytest.raises(TLSError, match="without TLS's close_notify"):
        server.receive_eof()
    assert server.failure is not None
    with pytest.raises(TLSError, match="close_notify"):
        server.receive_data(b"x")


def test_an_end_in_the_handshake_is_told():
    client = TLSEngine(CLIENT, False)
    client.start()
    with pytest.raises(TLSError, match="during the TLS handshake"):
        client.receive_eof()


def test_closing_before_the_handshake_is_harmless():
    client = TLSEngine(CLIENT, False)
    client.start()
    client.close()
    server = TLSEngine(SERVER, True)
    server.close()
    assert server.data_to_send() == b""


def test_a_damaged_record_is_refused_and_stays_refused():
    server, client = connected(SERVER, CLIENT)
    client.send(b"put 42")
    data = bytearray(client.data_to_send())
    data[-1] ^= 1
    for _ in range(2):
        with pytest.raises(TLSError, match=r"damaged|not acceptable"):
            server.receive_data(bytes(data))
    assert server.data_to_send()[0] in (21, 23), "the alert is still there to be sent"
    with pytest.raises(TLSError):
        server.send(b"x")
    server.close()


def test_a_replayed_record_is_refused():
    server, client = connected(SERVER, CLIENT)
    client.send(b"put 42")
    data = client.data_to_send()
    assert server.receive_data(data) == [b"put 42"]
    with pytest.raises(TLSError):
        server.receive_data(data)


def test_a_context_serves_its_own_side_only():
    with pytest.raises(LocalProtocolError, match="client context was given to a server engine"):
        TLSEngine(CLIENT, True)


def test_keylog_lines_reach_their_sink():
    lines: list[bytes] = []
    connected(
        server_context(S.server, require_client_cert=True, keylog=lines.append),
        CLIENT,
    )
    assert any(line.startswith(b"SERVER_TRAFFIC_SECRET_0 ") for line in lines)


# ---------------------------------------------------------------------- stapling


def staple_check(now=NOW):
    def check(staple, chain):
        if staple is None:
            return
        leaf, issuer = (x509.load_der_x509_certificate(c) for c in chain[:2])
        answer = verify_response(staple, issuer=issuer, serial=leaf.serial_number, now=now)
        if answer.state is OCSPState.REVOKED:
            msg = "the server's certificate is revoked"
            raise CertificateStatusError(msg)

    return check


def stapled(staple, *, check=None, want=True):
    pair = engines(
        server_context(S.server, require_client_cert=True, staple=staple),
        client_context(S.client, want_staple=want, check_staple=check),
    )
    return exchange(*pair), pair


def test_a_staple_is_delivered_when_asked_for():
    good = S.ca.status(S.server.serial)
    why, (_, client) = stapled(lambda: good, check=staple_check())
    assert why == (None, None)
    assert client.peer_staple == good
    why, (_, client) = stapled(lambda: good, want=False)
    assert why == (None, None)
    assert client.peer_staple is None


def test_a_server_without_a_staple_is_reached_all_the_same():
    def fails():
        msg = "no status yet"
        raise CertificateStatusError(msg)

    for staple in (lambda: None, lambda: b"", fails, None):
        why, (_, client) = stapled(staple, check=staple_check())
        assert why == (None, None)
        assert client.peer_staple is None


@pytest.mark.parametrize(
    ("staple", "reason"),
    [
        (lambda: S.ca.status(S.server.serial, OCSPState.REVOKED), "the server's certificate is revoked"),
        (lambda: S.ca.status(S.server.serial, this_update=NOW - DAY), "a fresh one is needed"),
    ],
)
def test_a_bad_staple_ends_the_handshake(staple, reason):
    """13.1."""
    (server_why, client_why), (server, client) = stapled(staple, check=staple_check())
    assert reason in str(client_why)
    assert "did not accept the stapled status" in str(server_why)
    assert not client.handshake_complete
    assert not server.handshake_complete


# ---------------------------------------------------------------------- hostile bytes, bounded memory

FIRST = engines(SERVER, CLIENT)[1].data_to_send()


@settings(max_examples=200, deadline=None)
@given(data=st.binary(min_size=1, max_size=400), cut=st.integers(0, 400))
def test_random_bytes_give_only_a_tls_error(data, cut):
    for engine in (TLSEngine(SERVER, True), TLSEngine(CLIENT, False)):
        if not engine.server_side:
            engine.start()
        with suppress(TLSError):
            engine.receive_data(data[:cut])
            engine.receive_data(data[cut:])
        assert not engine.handshake_complete
        assert len(engine.data_to_send()) < 4096


@settings(max_examples=200, deadline=None)
@given(place=st.integers(0, len(FIRST) - 1), byte=st.integers(0, 255))
def test_a_damaged_hello_gives_only_a_tls_error(place, byte):
    data = bytearray(FIRST)
    data[place] = byte
    server = TLSEngine(SERVER, True)
    with suppress(TLSError):
        assert server.receive_data(bytes(data)) == []
    assert not server.handshake_complete


@settings(max_examples=100, deadline=None)
@given(data=st.binary(min_size=1, max_size=200))
def test_bytes_that_are_not_the_peers_end_a_connection(data):
    server, client = connected(SERVER, CLIENT)
    client.send(b"x")
    try:
        assert server.receive_data(data + client.data_to_send() + b"\x17\x03\x03\x00\x20" + bytes(32)) in (
            [],
            [b"x"],
        )
    except TLSError:
        pass
    else:
        with pytest.raises(TLSError):
            server.receive_eof()


def test_an_endless_handshake_message_is_refused():
    """What an unauthenticated peer can make this end keep is bounded."""
    server = TLSEngine(SERVER, True)
    record = b"\x16\x03\x01\x40\x00"
    with pytest.raises(TLSError):
        server.receive_data(record + b"\x01\xff\xff\xff" + bytes(16380))
        for _ in range(20):
            server.receive_data(record + bytes(16384))


def test_a_long_stream_leaves_nothing_behind():
    server, client = connected(SERVER, CLIENT)
    block = bytes(100_000)
    for _ in range(3):
        client.send(block)
        server.receive_data(client.data_to_send())
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(200):
            client.send(block)
            server.receive_data(client.data_to_send())
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 100_000
    assert peak - before < 2_000_000

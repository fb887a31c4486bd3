"""The TLS engine over real sockets against the openssl command."""

import re
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography import x509

from appliance.certs.ocsp import verify_response
from appliance.errors import TLSError
from appliance.tls.context import client_context, server_context
from appliance.tls.engine import TLSEngine
from tests.helpers.pki import NOW, PASSWORD, dump_keychain, load_keychain, site, write_pem
from tests.helpers.tls import Driver, openssl_client, openssl_server

S = site()


@pytest.fixture
def pem(tmp_path):
    folders = {}
    for name, keychain in (("server", S.server), ("client", S.client), ("stranger", S.other_ca.keychain())):
        folder = tmp_path / name
        folder.mkdir()
        folders[name] = write_pem(folder, keychain)
    return folders


def client_to(port: int, keychain, **options) -> Driver:
    sock = socket.create_connection(("127.0.0.1", port))
    return Driver(sock, TLSEngine(client_context(keychain, want_staple=False, **options), False))


def test_our_client_talks_with_openssl_s_server(pem, tmp_path):
    cert, key, ca = pem["server"]
    staple = tmp_path / "ocsp.der"
    staple.write_bytes(S.ca.status(S.server.serial))
    options = ["-cert", cert, "-key", key, "-CAfile", ca, "-Verify", 3, "-verify_return_error", "-tls1_3"]
    # The keychain has gone through a file, as it does in life.
    keychain = load_keychain(dump_keychain(S.client, PASSWORD), PASSWORD)
    with openssl_server(*options, "-status_file", staple) as port:
        sock = socket.create_connection(("127.0.0.1", port))
        with sock:
            driver = Driver(sock, TLSEngine(client_context(keychain, want_staple=True), False))
            driver.handshake()
            assert driver.engine.cipher == "TLS_AES_256_GCM_SHA384"
            assert driver.engine.group.lower() == "x25519", "a peer without hybrid groups gets X25519"
            assert driver.engine.peer_staple == staple.read_bytes()
            driver.send(b"hello there\n")
            assert driver.read_until(b"\n") == b"ereht olleh\n"
            driver.engine.close()
            driver.flush()


@pytest.mark.parametrize("suite", ["TLS_CHACHA20_POLY1305_SHA256", "TLS_AES_128_GCM_SHA256"])
@pytest.mark.parametrize("group", ["X25519", "P-256", "P-384"])
def test_every_suite_and_group_of_the_profile_is_spoken(pem, suite, group):
    """3.3, 3.4."""
    cert, key, ca = pem["server"]
    with openssl_server(
        "-cert", cert, "-key", key, "-CAfile", ca, "-ciphersuites", suite, "-groups", group
    ) as port:
        driver = client_to(port, S.client)
        with driver.sock:
            driver.handshake()
            assert driver.engine.cipher == suite


def test_our_client_refuses_an_s_server_of_tls_1_2(pem):
    cert, key, _ = pem["server"]
    with openssl_server("-cert", cert, "-key", key, "-tls1_2") as port:
        driver = client_to(port, S.client)
        with driver.sock, pytest.raises(TLSError, match=r"TLS 1\.3"):
            driver.handshake()


def serve(options, *, staple=None, require=True, text=b"", reply=b""):
    """One connection of ``openssl s_client`` to our server; what our side saw and what s_client printed."""
    context = server_context(S.server, require_client_cert=require, staple=staple)
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        listener.settimeout(10)
        with openssl_client(listener.getsockname()[1], options, text) as process:
            output = pool.submit(process.stdout.read)
            sock, _ = listener.accept()
            failure = None
            driver = Driver(sock, TLSEngine(context, True))
            with sock:
                try:
                    driver.handshake()
                    if text:
                        driver.read_until(text)
                        driver.send(reply)
                    driver.engine.close()
                    driver.flush()
                except TLSError as exc:
                    failure = exc
                sock.shutdown(socket.SHUT_WR)
                process.stdin.close()
                printed = output.result(10).decode()
            process.wait(10)
    return driver, failure, printed


def test_openssl_s_client_talks_with_our_server(pem):
    cert, key, ca = pem["client"]
    status = S.ca.status(S.server.serial)
    driver, failure, printed = serve(
        ["-cert", cert, "-key", key, "-CAfile", ca, "-verify_return_error", "-status", "-alpn", "pva/1"],
        staple=lambda: status,
        text=b"over TLS\n",
        reply=b"answer from the engine\n",
    )
    assert failure is None
    assert driver.engine.peer_certificate_der is not None
    for line in (
        "New, TLSv1.3, Cipher is TLS_AES_256_GCM_SHA384",
        "Server Temp Key: X25519, 253 bits",
        "Verify return code: 0 (ok)",
        "ALPN protocol: pva/1",
        "OCSP Response Status: successful",
        "Cert Status: good",
        "Secure Renegotiation IS NOT supported",
        "answer from the engine",
    ):
        assert line in printed
    assert " 1 s:CN = EPICS Root Certificate Authority" in printed, "the chain goes with the leaf"
    assert "Acceptable client certificate CA names" not in printed
    assert "Early data was not sent" in printed
    assert "Max Early Data: 0" in printed or "Max Early Data" not in printed


@pytest.mark.parametrize(
    ("who", "extra", "why"),
    [
        ("client", ["-tls1_2"], r"only TLS versions older than 1\.3"),
        ("stranger", [], "both sides need the same trust anchor"),
        ("server", [], "is not for a client"),
    ],
)
def test_openssl_s_client_is_refused_with_a_reason(pem, who, extra, why):
    cert, key, _ = pem[who]
    _, failure, printed = serve(["-cert", cert, "-key", key, *extra])
    assert failure is not None
    assert re.search(why, str(failure))
    assert "alert" in printed


def test_openssl_s_client_without_a_certificate_is_anonymous_where_that_is_allowed(pem):
    driver, failure, _ = serve(["-CAfile", pem["client"][2]], require=False)
    assert failure is None
    assert driver.engine.handshake_complete
    assert driver.engine.peer_certificate_der is None
    _, failure, printed = serve(["-CAfile", pem["client"][2]])
    assert str(failure) == "the peer sent no certificate and one is required"
    assert "alert certificate required" in printed


def test_sessions_are_never_resumed(pem, tmp_path):
    """3.7, 3.8: every connection proves both certificates anew."""
    cert, key, ca = pem["client"]
    options = ["-cert", cert, "-key", key, "-CAfile", ca]
    session = tmp_path / "session.pem"
    serve([*options, "-sess_out", session], text=b"one\n", reply=b"two\n")
    again = ["-sess_in", session] if session.exists() else []
    driver, failure, printed = serve([*options, *again], text=b"one\n", reply=b"two\n")
    assert failure is None
    assert "New, TLSv1.3" in printed
    assert "Reused" not in printed
    assert driver.engine.peer_certificate_der is not None


def judge(staple, chain):
    assert staple is not None
    leaf, issuer = (x509.load_der_x509_certificate(c) for c in chain[:2])
    verify_response(staple, issuer=issuer, serial=leaf.serial_number, now=NOW)


@pytest.mark.parametrize(
    ("staple", "why"),
    [
        (lambda: S.ca.status(S.client.serial), "about serial"),
        (lambda: S.other_ca.status(S.server.serial), "not made by the issuing CA"),
        (lambda: S.ca.status(S.server.serial), ""),
    ],
)
def test_a_staple_about_something_else_ends_the_handshake(pem, tmp_path, staple, why):
    """13.1: what the server staples must be about its certificate and signed by its CA."""
    cert, key, ca = pem["server"]
    path = tmp_path / "ocsp.der"
    path.write_bytes(staple())
    with openssl_server("-cert", cert, "-key", key, "-CAfile", ca, "-status_file", path) as port:
        sock = socket.create_connection(("127.0.0.1", port))
        context = client_context(S.client, want_staple=True, check_staple=judge)
        driver = Driver(sock, TLSEngine(context, False))
        with sock:
            if why:
                with pytest.raises(TLSError, match=why):
                    driver.handshake()
                assert not driver.engine.handshake_complete
            else:
                driver.handshake()

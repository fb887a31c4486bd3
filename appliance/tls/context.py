"""TLS contexts, built once per keychain and shared by all connections that use it.

Source: SPVA specification 3 (TLS 1.3 profile), 4.6 (trust anchors), 13 (stapling).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL
from OpenSSL.crypto import FILETYPE_ASN1, X509, dump_certificate

from appliance.certs.crossed import is_same_authority
from appliance.certs.keychain import Keychain
from appliance.certs.x509 import check_extended_key_usage, load_der, subject_text
from appliance.errors import ApplianceError, CertificateError, CertificateStatusError, KeychainError

__all__ = [
    "VERIFY_DEPTH",
    "HandshakeNotes",
    "StapleCheck",
    "TLSContext",
    "client_context",
    "server_context",
    "verified_chain",
]

ALPN = (b"pva/1",)
_CIPHER_SUITES = b"TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256"
VERIFY_DEPTH = 5
"""So many authorities may be between a peer's certificate and the root."""
_RELEASE_BUFFERS = 0x00000010
"""SSL_MODE_RELEASE_BUFFERS: an idle connection then holds 40 KiB instead of 58, for 3 % of the time per record."""
_PARTIAL_WRITE = 0x00000001
"""SSL_MODE_ENABLE_PARTIAL_WRITE. pyOpenSSL sets it; without it one call encrypts all its data, which measured 1.5 times
as fast.
"""

StapleCheck = Callable[[bytes | None, tuple[bytes, ...]], None]
"""Judges a server's stapled OCSP response (DER, ``None`` if it sent none) with the verified chain (DER, the server's
certificate first). Raises CertificateStatusError to end the handshake.
"""


class HandshakeNotes:
    """What the callbacks of one handshake found out; attached to the OpenSSL connection."""

    __slots__ = ("refusal", "staple", "verification")

    def __init__(self) -> None:
        self.verification: tuple[int, str] | None = None
        """X.509 verification code and subject of the first certificate that was refused."""
        self.staple: bytes | None = None
        self.refusal: str | None = None
        """Why the stapled status was refused."""


class TLSContext:
    """An OpenSSL context with what it was made from."""

    __slots__ = ("keychain", "server_side", "ssl", "want_staple")

    def __init__(self, ssl: SSL.Context, keychain: Keychain, *, server_side: bool, want_staple: bool) -> None:
        self.ssl = ssl
        self.keychain = keychain
        self.server_side = server_side
        self.want_staple = want_staple

    def __repr__(self) -> str:
        return f"<TLSContext {'server' if self.server_side else 'client'} {self.keychain!r}>"


def server_context(
    keychain: Keychain,
    *,
    require_client_cert: bool,
    staple: Callable[[], bytes | None] | None = None,
    keylog: Callable[[bytes], None] | None = None,
    alpn: Sequence[bytes] = ALPN,
) -> TLSContext:
    """Return a context for the server's side.

    A client certificate is always asked for. Without ``require_client_cert`` a client may have none and is then anonymous, but
    a certificate that does not verify ends the handshake.

    Args:
        keychain: The server's certificate, key and trust anchors.
        require_client_cert: Whether a client must have a certificate.
        staple: Called in each handshake of a client that wants a stapled status; returns a current OCSP response or ``None``.
        keylog: Gets lines of the SSLKEYLOGFILE format; anyone who reads them can decrypt the traffic.
        alpn: The application protocols.

    Raises:
        KeychainError: The keychain has no certificate or OpenSSL refuses it.
    """
    if keychain.certificate is None:
        msg = "the keychain holds trust anchors only; a server needs its own certificate: request one"
        raise KeychainError(msg)
    context = _context(SSL.TLS_SERVER_METHOD, keychain, keylog)
    mode = SSL.VERIFY_PEER | (SSL.VERIFY_FAIL_IF_NO_PEER_CERT if require_client_cert else 0)
    context.set_verify(mode, _verify_callback("client"))
    offered = tuple(alpn)
    if offered:

        def select(_: SSL.Connection, theirs: list[bytes]) -> Any:
            return next((name for name in offered if name in theirs), SSL.NO_OVERLAPPING_PROTOCOLS)

        context.set_alpn_select_callback(select)
    if staple is not None:
        ask = staple

        def answer(_: SSL.Connection, __: object) -> bytes:
            try:
                return ask() or b""
            except ApplianceError:
                # A staple is optional: without one the client asks the status PV.
                return b""

        context.set_ocsp_server_callback(answer)
    return TLSContext(context, keychain, server_side=True, want_staple=False)


def client_context(
    keychain: Keychain,
    *,
    want_staple: bool,
    check_staple: StapleCheck | None = None,
    keylog: Callable[[bytes], None] | None = None,
    alpn: Sequence[bytes] = ALPN,
) -> TLSContext:
    """Return a context for the client's side.

    A keychain without a certificate only authenticates the server. With ``want_staple`` the server is asked for the status of
    its certificate; ``check_staple`` judges it inside the handshake, so that this end sends nothing to a revoked server.

    Raises:
        KeychainError: OpenSSL refuses the keychain.
    """
    context = _context(SSL.TLS_CLIENT_METHOD, keychain, keylog)
    context.set_verify(SSL.VERIFY_PEER, _verify_callback("server"))
    if alpn:
        context.set_alpn_protos(list(alpn))
    if want_staple:

        def judge(connection: SSL.Connection, staple: bytes, _: object) -> bool:
            notes: HandshakeNotes = connection.get_app_data()
            notes.staple = staple or None
            if check_staple is None:
                return True
            try:
                check_staple(notes.staple, tuple(map(certificate_der, verified_chain(connection))))
            except (CertificateStatusError, CertificateError) as exc:
                notes.refusal = str(exc)
                return False
            return True

        context.set_ocsp_client_callback(judge)
    return TLSContext(context, keychain, server_side=False, want_staple=want_staple)


def _context(method: int, keychain: Keychain, keylog: Callable[[bytes], None] | None) -> SSL.Context:
    context = SSL.Context(method)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_max_proto_version(SSL.TLS1_3_VERSION)
    context.set_tls13_ciphersuites(_CIPHER_SUITES)
    context.clear_mode(_PARTIAL_WRITE)
    context.set_mode(_RELEASE_BUFFERS)
    # No resumption: the status of a certificate must be checked on every connection (3.7, 3.8).
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(SSL.OP_NO_TICKET)
    context.set_verify_depth(VERIFY_DEPTH)
    store = context.get_cert_store()
    if store is None or not keychain.anchors:
        msg = "the keychain holds no trust anchor; write it again with the whole chain"
        raise KeychainError(msg)
    try:
        for anchor in keychain.anchors:
            store.add_cert(X509.from_cryptography(anchor))
        for certificate in keychain.crossed:
            # Not self-signed, so OpenSSL trusts it only as far as it leads to an anchor.
            if not any(is_same_authority(certificate, anchor) for anchor in keychain.anchors):
                store.add_cert(X509.from_cryptography(certificate))
        if keychain.certificate is not None and keychain.key is not None:
            context.use_certificate(keychain.certificate)
            for certificate in keychain.sent_above:
                context.add_extra_chain_cert(certificate)
            context.use_privatekey(keychain.key)  # type: ignore[arg-type]
            context.check_privatekey()
    except (SSL.Error, TypeError, ValueError) as exc:
        msg = f"the keychain of {keychain.subject} cannot be used for TLS: {_refusal(exc)}; request a new certificate"
        raise KeychainError(msg) from exc
    if keylog is not None:
        write = keylog
        context.set_keylog_callback(lambda _, line: write(line))
    return context


def _refusal(exc: Exception) -> str:
    if isinstance(exc, SSL.Error) and exc.args and exc.args[0]:
        return str(exc.args[0][0][-1])
    return str(exc) or type(exc).__name__


def _verify_callback(usage: str) -> Callable[[SSL.Connection, X509, int, int, int], bool]:
    """Return OpenSSL's verdict with a note of the reason; also require the extended key usage (4.2).

    OpenSSL by itself accepts a certificate without that extension for every use.
    """

    def verified(connection: SSL.Connection, certificate: X509, code: int, depth: int, ok: int) -> bool:
        notes: HandshakeNotes = connection.get_app_data()
        if not ok:
            if notes.verification is None:
                notes.verification = (code, _subject(certificate))
            return False
        if depth == 0:
            try:
                check_extended_key_usage(_read(certificate), usage)
            except CertificateError:
                notes.verification = (SSL.X509VerificationCodes.ERR_INVALID_PURPOSE, _subject(certificate))
                return False
        return True

    return verified


def _subject(certificate: X509) -> str:
    try:
        return subject_text(_read(certificate).subject)
    except CertificateError:
        return "(unreadable)"


def _read(certificate: X509) -> x509.Certificate:
    return load_der(dump_certificate(FILETYPE_ASN1, certificate))


def verified_chain(connection: SSL.Connection) -> tuple[x509.Certificate, ...]:
    """Return the chain that OpenSSL has verified, from the peer's certificate up to the trust anchor; empty if there is none.

    Raises:
        CertificateError: OpenSSL reads a certificate but this program cannot.
    """
    return tuple(map(_read, connection.get_verified_chain() or ()))


def certificate_der(certificate: x509.Certificate) -> bytes:
    """Return a certificate's DER."""
    return certificate.public_bytes(Encoding.DER)

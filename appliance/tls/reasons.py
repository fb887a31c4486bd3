"""Explain OpenSSL's codes to an operator."""

from __future__ import annotations

from OpenSSL import SSL

__all__ = ["explain_error", "explain_verification"]

_CODES = SSL.X509VerificationCodes
_VERIFICATION = {
    _CODES.ERR_CERT_HAS_EXPIRED: "has expired; its owner must get a new one (or check this machine's clock)",
    _CODES.ERR_CERT_NOT_YET_VALID: "is not valid yet; check the clocks of both machines",
    _CODES.ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY: (
        "was issued by a certificate authority that is not in this keychain; "
        "both sides need the same trust anchor"
    ),
    _CODES.ERR_UNABLE_TO_GET_ISSUER_CERT: (
        "was issued by a certificate authority that is not in this keychain; "
        "both sides need the same trust anchor"
    ),
    _CODES.ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE: (
        "was issued by a certificate authority that is not in this keychain; "
        "both sides need the same trust anchor"
    ),
    _CODES.ERR_SELF_SIGNED_CERT_IN_CHAIN: (
        "leads to a certificate authority that this keychain does not trust; "
        "both sides need the same trust anchor"
    ),
    _CODES.ERR_DEPTH_ZERO_SELF_SIGNED_CERT: "is self-signed and not trusted",
    _CODES.ERR_CERT_SIGNATURE_FAILURE: "has a signature that does not verify: it was altered or forged",
    _CODES.ERR_CERT_CHAIN_TOO_LONG: "has a chain that is too long",
    _CODES.ERR_INVALID_CA: "was issued by a certificate that is not a certificate authority's",
    _CODES.ERR_PATH_LENGTH_EXCEEDED: "has a chain longer than its certificate authority allows (path length)",
    _CODES.ERR_INVALID_PURPOSE: "is not for this use: its extended key usage lacks it",
    _CODES.ERR_CERT_UNTRUSTED: "is not trusted",
    _CODES.ERR_CERT_REJECTED: "is rejected for this use",
    _CODES.ERR_SUBJECT_ISSUER_MISMATCH: "does not match its issuer",
    _CODES.ERR_AKID_SKID_MISMATCH: "does not match its issuer's key identifier",
    _CODES.ERR_KEYUSAGE_NO_CERTSIGN: "was issued by a key that may not sign certificates",
}
_WEAK_KEY = {
    66: "has a key that is too short",
    67: "is issued by a key that is too short",
    68: "is signed weakly",
}

_ALERTS = {
    "certificate required": "the peer requires a client certificate and this end has none; set a keychain",
    "certificate expired": "the peer says that our certificate has expired; request a new one",
    "certificate revoked": "the peer says that our certificate is revoked; request a new one",
    "certificate unknown": "the peer did not accept our certificate",
    "bad certificate": "the peer did not accept our certificate",
    "unsupported certificate": "the peer says that our certificate is not for this use",
    "unknown ca": (
        "the peer does not trust the certificate authority of our certificate; both sides need the same trust anchor"
    ),
    "bad certificate status response": "the peer did not accept the stapled status of our certificate",
    "access denied": "the peer denied access to our certificate",
    "protocol version": "the peer does not accept TLS 1.3, which Secure PVAccess needs",
    "handshake failure": "the peer found nothing in common with our TLS settings",
    "no application protocol": "the peer wants another application protocol than pva/1",
    "decrypt error": "the peer could not verify our handshake signature",
    "internal error": "the peer had an internal error in its TLS",
}
_REASONS = {
    "wrong version number": "the peer does not speak TLS",
    "http request": "the peer does not speak TLS (it sent an HTTP request)",
    "https proxy request": "the peer does not speak TLS (it sent a proxy request)",
    "packet length too long": "the peer does not speak TLS, or sent a record that is too long",
    "record layer failure": "a TLS record was not acceptable",
    "unsupported protocol": "the peer offers only TLS versions older than 1.3",
    "peer did not return a certificate": "the peer sent no certificate and one is required",
    "decryption failed or bad record mac": "a TLS record was damaged or forged",
    "no shared cipher": "the peer offers no cipher suite of TLS 1.3 that is accepted here",
    "no suitable key share": "the peer offers no key exchange group that is accepted here",
    "bad signature": "the peer's handshake signature does not verify",
    "excessive message size": "the peer sent a handshake message that is too long",
    "certificate verify failed": "the peer's certificate was not accepted",
    "invalid status response": "the stapled status of the peer's certificate was not accepted",
}


def explain_verification(code: int, subject: str, *, server_side: bool) -> str:
    """Return a sentence for an X.509 verification code about the certificate of ``subject``."""
    why = _VERIFICATION.get(code) or _WEAK_KEY.get(code) or f"did not verify (X.509 error {code})"
    if code == _CODES.ERR_INVALID_PURPOSE:
        why = f"is not for a {'client' if server_side else 'server'}: its extended key usage lacks it"
    return f"the peer's certificate {subject} {why}"


def explain_error(error: SSL.Error) -> str:
    """Return a sentence for an error of OpenSSL."""
    reasons = (
        [str(entry[-1]) for entry in error.args[0]] if error.args and isinstance(error.args[0], list) else []
    )
    for reason in reasons:
        # Most alerts read "ssl/tls alert bad certificate", the newer ones "tlsv1 bad certificate status response".
        _, alert, name = reason.rpartition("alert ")
        if alert or name.startswith("tlsv1 "):
            name = name.removeprefix("tlsv1 ")
            return _ALERTS.get(name, f"the peer ended the connection with the TLS alert {name!r}")
    for reason in reasons:
        if reason in _REASONS:
            return _REASONS[reason]
    return f"TLS failed: {', '.join(reasons) or type(error).__name__}"

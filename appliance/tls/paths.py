"""OpenSSL as the judge of a chain, as it judges a peer's in a handshake."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from OpenSSL import crypto

from appliance.certs.x509 import check_extended_key_usage, find_extension, public_key, subject_text
from appliance.errors import CertificateError
from appliance.tls.context import VERIFY_DEPTH

__all__ = ["check_path"]


def check_path(certificate: x509.Certificate, chain: Sequence[x509.Certificate], *, now: datetime) -> None:
    """Check that a certificate is acceptable to somebody who trusts the root, for a client and for a server alike.

    What OpenSSL checks in a handshake only is checked here: how long the chain is, that the certificates of authorities, if they
    have an extended key usage at all, have that of clients and of servers, and that they are strong enough (its security level 2).

    Args:
        certificate: The certificate.
        chain: Those above it, the root last.
        now: The present time, aware.

    Raises:
        CertificateError: It is not; the text says why.
    """
    if len(chain) - 1 > VERIFY_DEPTH:
        raise CertificateError(
            f"there are {len(chain) - 1} authorities below the root, and peers accept at most {VERIFY_DEPTH}"
        )
    for authority in chain:
        _check_authority(authority)
    store = crypto.X509Store()
    try:
        *between, root = map(crypto.X509.from_cryptography, chain)
        store.add_cert(root)
        store.set_time(now)
        crypto.X509StoreContext(
            store, crypto.X509.from_cryptography(certificate), between
        ).verify_certificate()
    except (crypto.Error, crypto.X509StoreContextError) as error:
        raise CertificateError(f"OpenSSL says: {error}") from error


def _check_authority(authority: x509.Certificate) -> None:
    name, key = subject_text(authority.subject), public_key(authority)
    smallest = 2048 if isinstance(key, rsa.RSAPublicKey) else 224
    if isinstance(key, (rsa.RSAPublicKey, ec.EllipticCurvePublicKey)) and key.key_size < smallest:
        raise CertificateError(
            f"the key of {name} has {key.key_size} bits, and peers accept {smallest} and more for its kind"
        )
    if find_extension(authority, x509.ExtendedKeyUsage) is None:
        return
    for usage in ("client", "server"):
        try:
            check_extended_key_usage(authority, usage)
        except CertificateError as error:
            raise CertificateError(
                f"peers take the extended key usage of {name} for a limit of what is below it, and it is not for a {usage}; have it made "
                "without that extension"
            ) from error

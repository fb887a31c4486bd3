"""OpenSSL as the judge of a chain, as it judges a peer's in a handshake."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from OpenSSL import crypto

from appliance.errors import CertificateError

__all__ = ["check_path"]


def check_path(certificate: x509.Certificate, chain: Sequence[x509.Certificate], *, now: datetime) -> None:
    """Check that a certificate is acceptable to somebody who trusts the root.

    Args:
        certificate: The certificate.
        chain: Those above it, the root last.
        now: The present time, aware.

    Raises:
        CertificateError: It is not; the text says why.
    """
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

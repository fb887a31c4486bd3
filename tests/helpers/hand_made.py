"""Certificates that no profile would let through, for tests of what verifies them."""

from __future__ import annotations

from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from appliance.certs.keychain import Keychain
from appliance.certs.profiles import generate_key
from tests.helpers.pki import DAY, NOW, site

CLIENT_AUTH = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])


def hand_made(
    subject: x509.Name | None = None,
    extensions: Sequence[x509.ExtensionType] = (),
    *,
    usage: x509.ExtendedKeyUsage | None = CLIENT_AUTH,
    issuer: Keychain | None = None,
) -> Keychain:
    """A certificate signed by the site's CA, or by the key of ``issuer``, with just these extensions."""
    ca = site().ca
    key = generate_key("ec-p256")
    signer, above = (ca.key, ca.certificate) if issuer is None else (issuer.key, issuer.certificate)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject or x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "odd")]))
        .issuer_name(above.subject)
        .public_key(key.public_key())
        .serial_number(99)
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
    )
    for extension in (*extensions, *((usage,) if usage else ())):
        builder = builder.add_extension(extension, critical=False)
    certificate = builder.sign(signer, hashes.SHA256())
    chain = (above,) if issuer is None else (above, ca.certificate)
    return Keychain(key, certificate, chain, (ca.certificate,))

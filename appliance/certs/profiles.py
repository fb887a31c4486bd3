"""X.509 certificates of Secure PVAccess: keys, issuing, and the check before every signature.

Source: SPVA specification 4.2 to 4.5, 4.8; RFC 5280. A certificate is first signed with a temporary key and checked against
its profile; only then does the CA's key sign it. So a mistake in a request or in this code never gets the CA's signature.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cache, lru_cache
from ipaddress import ip_address
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import (
    CertificateIssuerPrivateKeyTypes,
    CertificatePublicKeyTypes,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from appliance.certs.der import oid as object_identifier
from appliance.certs.der import sequence, tlv
from appliance.certs.public_keys import ed25519_problem, rsa_problem
from appliance.certs.x509 import (
    CONFIG_PV_OID,
    MAX_SERIAL,
    RENEW_BY_OID,
    STATUS_PV_OID,
    config_pv,
    encode_pv_name,
    encode_time,
    extension_values,
    find_extension,
    is_ca,
    public_key,
    renew_by,
    san,
    serial_number,
    status_pv,
    subject_key_identifier,
    subject_text,
)
from appliance.errors import CertificateError

__all__ = [
    "EXTENDED_KEY_USAGES",
    "KEY_ALGORITHMS",
    "KEY_USAGES",
    "CertificateAuthority",
    "build_ca",
    "build_certificate",
    "check_ca",
    "check_certificate",
    "check_public_key",
    "generate_key",
    "signature_hash",
    "subject_name",
]

KEY_ALGORITHMS: Final = ("rsa-2048", "rsa-4096", "ec-p256", "ec-p384", "ed25519")
KEY_USAGES: Final = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
)
"""The bits of the extension Key Usage that are of use alone (RFC 5280 section 4.2.1.3)."""
EXTENDED_KEY_USAGES: Final = {
    "client": frozenset({ExtendedKeyUsageOID.CLIENT_AUTH}),
    "server": frozenset({ExtendedKeyUsageOID.SERVER_AUTH}),
    "ioc": frozenset({ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}),
    "cms": frozenset(
        {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.OCSP_SIGNING}
    ),
}
"""Extended key usages of each kind of certificate (4.2). ``cms`` is the certificate service's own."""

_SUBJECT_LIMITS = {
    NameOID.COMMON_NAME: ("CN", 64),
    NameOID.COUNTRY_NAME: ("C", 2),
    NameOID.ORGANIZATION_NAME: ("O", 64),
    NameOID.ORGANIZATIONAL_UNIT_NAME: ("OU", 64),
}
"""The attributes of a subject, and their longest text (RFC 5280 appendix A.1, upper bounds).

The RFC counts characters. Here the bytes of UTF-8 are counted, as many readers of certificates do.
"""
_ECDSA_SHA256: Final = object_identifier("1.2.840.10045.4.3.2")
_BIT_STRING: Final = 0x03
_MAX_SAN = 100


class CertificateAuthority(NamedTuple):
    """A certificate authority's key with its certificate and those above it. Its ``repr`` never shows the key."""

    key: CertificateIssuerPrivateKeyTypes
    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...] = ()
    """Certificates above ``certificate``, the root last."""
    crossed: tuple[x509.Certificate, ...] = ()
    """Cross-certificates of the root and former roots (`appliance.certs.crossed`)."""

    def __repr__(self) -> str:
        return f"<CertificateAuthority {subject_text(self.certificate.subject)}>"


def generate_key(algorithm: str = "rsa-2048") -> CertificateIssuerPrivateKeyTypes:
    """Return a new private key of one of `KEY_ALGORITHMS`.

    Raises:
        CertificateError: For another name.
    """
    match algorithm:
        case "rsa-2048" | "rsa-4096":
            return rsa.generate_private_key(public_exponent=65537, key_size=int(algorithm[4:]))
        case "ec-p256":
            return ec.generate_private_key(ec.SECP256R1())
        case "ec-p384":
            return ec.generate_private_key(ec.SECP384R1())
        case "ed25519":
            return ed25519.Ed25519PrivateKey.generate()
    msg = f"the key algorithm {algorithm!r} is not known; use one of {', '.join(KEY_ALGORITHMS)}"
    raise CertificateError(msg)


def signature_hash(key: CertificateIssuerPrivateKeyTypes) -> hashes.SHA256 | hashes.SHA384 | None:
    """Return the hash to sign with: SHA-384 for P-384, none for Ed25519, else SHA-256."""
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return None
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.key_size > 256:
        return hashes.SHA384()
    return hashes.SHA256()


def subject_name(
    common_name: str, *, country: str = "", organization: str = "", organizational_unit: str = ""
) -> x509.Name:
    """Return a subject in the order CN, C, O, OU, empty parts left out (4.4).

    Raises:
        CertificateError: For a part that is too long, has control characters or outer blanks, or a country that is not two capital letters.
    """
    parts = (
        (NameOID.COMMON_NAME, common_name),
        (NameOID.COUNTRY_NAME, country),
        (NameOID.ORGANIZATION_NAME, organization),
        (NameOID.ORGANIZATIONAL_UNIT_NAME, organizational_unit),
    )
    if not common_name:
        msg = "the name (CN) is empty"
        raise CertificateError(msg)
    for oid, text in parts:
        problem = _subject_problem(oid, text) if text else None
        if problem:
            raise CertificateError(problem)
    return x509.Name([x509.NameAttribute(oid, text) for oid, text in parts if text])


def _subject_problem(oid: x509.ObjectIdentifier, text: str | bytes) -> str | None:
    short, limit = _SUBJECT_LIMITS.get(oid, ("", 0))
    if not short:
        return f"the subject has the attribute {oid.dotted_string}; only CN, C, O and OU are used"
    if not isinstance(text, str):
        return f"the subject's {short} is not text"
    if not text:
        return f"the subject's {short} is empty"
    if text != text.strip():
        return f"the subject's {short} has blanks at its ends: {text[:limit]!a}"
    if any("\ud800" <= char <= "\udfff" for char in text):
        return f"the subject's {short} is not UTF-8: {text[:limit]!a}"
    if not text.isprintable():
        return f"the subject's {short} has control characters, or others that cannot be printed: {text[:limit]!a}"
    octets = len(text.encode("utf-8", "surrogatepass"))
    if octets > limit:
        counted = f"{len(text)} characters" if octets == len(text) else f"{octets} octets in UTF-8"
        return f"the subject's {short} has {counted}; at most {limit} are allowed: choose a shorter one"
    if oid == NameOID.COUNTRY_NAME and not (
        text.isascii() and text.isalpha() and text.isupper() and len(text) == 2
    ):
        return f"the subject's C is {text!r}; it must be two capital letters such as US"
    return None


def build_ca(
    key: CertificateIssuerPrivateKeyTypes,
    *,
    subject: x509.Name,
    not_before: datetime,
    not_after: datetime,
    serial: int,
    issuer: CertificateAuthority | None = None,
    path_length: int | None = None,
) -> x509.Certificate:
    """Return a CA certificate for ``key``: self-signed, or signed by ``issuer`` as an intermediate.

    Args:
        key: The new authority's private key.
        subject: Its name.
        not_before: Start of validity, aware; parts of a second are ignored.
        not_after: End of validity, aware; parts of a second are ignored.
        serial: The certificate's serial number.
        issuer: The authority above; None makes a root certificate.
        path_length: Most authorities below this one (RFC 5280 section 4.2.1.9); None for no limit.

    Raises:
        CertificateError: The result would break its profile.
    """
    signer = key if issuer is None else issuer.key
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    authority = identifier.digest if issuer is None else subject_key_identifier(issuer.certificate)
    builder = _builder(subject, subject if issuer is None else issuer.certificate.subject, key.public_key())
    builder = (
        _dated(builder, not_before, not_after, serial)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier(authority, None, None), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_key_usage("digital_signature", "key_cert_sign", "crl_sign"), critical=True)
    )
    made = builder.sign(_lint_key(), hashes.SHA256())
    _raise(made, _subject_problems(subject))
    check_ca(made)
    return builder.sign(signer, signature_hash(signer))


def build_certificate(
    issuer: CertificateAuthority,
    *,
    subject: x509.Name,
    public_key: CertificatePublicKeyTypes,
    usage: str,
    not_before: datetime,
    not_after: datetime,
    serial: int,
    status_pv: str | None = None,
    config_pv: str | None = None,
    renew_by: datetime | None = None,
    san: Sequence[tuple[str, str]] = (),
    raw_pv_names: bool = False,
) -> x509.Certificate:
    """Return an end entity's certificate for ``usage`` (a key of `EXTENDED_KEY_USAGES`), checked against its profile, then signed.

    PV names are written as an IA5String, as the specification (4.3) says and the peers of 2026 read it, or as bare ASCII, the
    only form for peers of 2025. See `appliance.certs.x509.canonical_pv_name` for how one certificate serves both.

    Args:
        issuer: The authority that signs.
        subject: The holder's name.
        public_key: The holder's key.
        usage: What the certificate is for.
        not_before: Start of validity, aware; parts of a second are ignored.
        not_after: End of validity, aware; parts of a second are ignored.
        serial: The certificate's serial number.
        status_pv: Whole name of the PV that tells its status; None writes no such extension.
        config_pv: Whole name of the PV for renewal requests; None writes no such extension.
        renew_by: When the holder must have renewed, aware; None if it need not.
        san: Subject alternative names, each ``dns``, ``ip`` or ``uri``, and its text.
        raw_pv_names: Write PV names as bare ASCII.

    Raises:
        CertificateError: The result would break its profile.
    """
    if usage not in EXTENDED_KEY_USAGES:
        msg = f"the usage {usage!r} is not known; use one of {', '.join(EXTENDED_KEY_USAGES)}"
        raise CertificateError(msg)
    try:
        builder = (
            _dated(
                _begun(issuer.certificate, usage, _key_bits(public_key))
                .subject_name(subject)
                .public_key(public_key),
                not_before,
                not_after,
                serial,
            )
        ).add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        if san:
            builder = builder.add_extension(x509.SubjectAlternativeName(_general_names(san)), critical=False)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        msg = f"the certificate for {subject_text(subject)} cannot be made: {exc}"
        raise CertificateError(msg) from exc
    private = (
        (STATUS_PV_OID, encode_pv_name(status_pv, raw=raw_pv_names) if status_pv else None),
        (CONFIG_PV_OID, encode_pv_name(config_pv, raw=raw_pv_names) if config_pv else None),
        (RENEW_BY_OID, encode_time(renew_by) if renew_by is not None else None),
    )
    for oid, value in private:
        if value is not None:
            builder = builder.add_extension(x509.UnrecognizedExtension(oid, value), critical=False)
    checked = builder.sign(_lint_key(), hashes.SHA256())
    check_certificate(checked, issuer=issuer.certificate, usage=usage)
    if isinstance(issuer.key, ec.EllipticCurvePrivateKey) and issuer.key.curve.name == "secp256r1":
        return _signed_again(checked, issuer.key)
    return builder.sign(issuer.key, signature_hash(issuer.key))


def _signed_again(checked: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """Return exactly the bytes that were checked, with the CA's signature: the temporary key has the CA's algorithm."""
    body = checked.tbs_certificate_bytes
    signature = key.sign(body, ec.ECDSA(hashes.SHA256()))
    return x509.load_der_x509_certificate(
        sequence(body, sequence(_ECDSA_SHA256), tlv(_BIT_STRING, b"\0" + signature))
    )


@cache
def _lint_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@lru_cache(maxsize=64)
def _begun(issuer: x509.Certificate, usage: str, key_bits: tuple[str, ...]) -> x509.CertificateBuilder:
    """Return what all of an authority's certificates for a usage and a kind of key have in common."""
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer.subject)
        .add_extension(
            x509.AuthorityKeyIdentifier(_authority(issuer).key_identifier, None, None), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(*key_bits), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage(sorted(EXTENDED_KEY_USAGES[usage], key=lambda o: o.dotted_string)),
            critical=False,
        )
    )


class _Authority(NamedTuple):
    """What every certificate is compared with, read once from the authority's certificate."""

    subject: x509.Name
    not_after: datetime
    public_key: CertificatePublicKeyTypes
    key_identifier: bytes
    is_ca: bool


@lru_cache(maxsize=16)
def _authority(certificate: x509.Certificate) -> _Authority:
    return _Authority(
        certificate.subject,
        certificate.not_valid_after_utc,
        certificate.public_key(),
        subject_key_identifier(certificate),
        is_ca(certificate),
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: CertificatePublicKeyTypes
) -> x509.CertificateBuilder:
    return x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public_key)


def _dated(
    builder: x509.CertificateBuilder, not_before: datetime, not_after: datetime, serial: int
) -> x509.CertificateBuilder:
    if not 0 < serial < 1 << 64:
        msg = "the serial number must be between 1 and 2**64 - 1"
        raise CertificateError(msg)
    if not_before.tzinfo is None or not_after.tzinfo is None:
        msg = "the validity must be given as aware times"
        raise CertificateError(msg)
    if not_after <= not_before:
        msg = f"the validity ends ({not_after:%Y-%m-%d %H:%M:%S}) before it begins ({not_before:%Y-%m-%d %H:%M:%S})"
        raise CertificateError(msg)
    return builder.serial_number(serial).not_valid_before(not_before).not_valid_after(not_after)


@cache
def _key_usage(*bits: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{bit: bit in bits for bit in (*KEY_USAGES, "encipher_only", "decipher_only")})


def _key_bits(key: CertificatePublicKeyTypes) -> tuple[str, ...]:
    # RFC 5480 3 and RFC 8410 5: only RSA has key encipherment, Ed25519 only signs.
    if isinstance(key, rsa.RSAPublicKey):
        return ("digital_signature", "key_encipherment")
    if isinstance(key, ec.EllipticCurvePublicKey):
        return ("digital_signature", "key_agreement")
    return ("digital_signature",)


def _general_names(entries: Iterable[tuple[str, str]]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    for kind, text in entries:
        match kind:
            case "dns":
                names.append(x509.DNSName(text))
            case "ip":
                names.append(x509.IPAddress(ip_address(text)))
            case "uri":
                names.append(x509.UniformResourceIdentifier(text))
            case _:
                msg = f"the alternative name {text!r} has the kind {kind!r}; use dns, ip or uri"
                raise CertificateError(msg)
    return names


# ---------------------------------------------------------------------- the check before signing


def check_public_key(key: CertificatePublicKeyTypes) -> str | None:
    """Return why a key may not be certified, or ``None`` (4.8).

    The slow check, whether an RSA modulus is a prime, is in `appliance.certs.public_keys.composite_steps`.
    """
    if isinstance(key, rsa.RSAPublicKey):
        if not 2048 <= key.key_size <= 8192:
            return f"an RSA key of {key.key_size} bits; 2048 to 8192 are allowed"
        numbers = key.public_numbers()
        return rsa_problem(numbers.n, numbers.e)
    if isinstance(key, ec.EllipticCurvePublicKey):
        return (
            None
            if key.curve.name in ("secp256r1", "secp384r1")
            else f"an EC key on the curve {key.curve.name}"
        )
    if isinstance(key, ed25519.Ed25519PublicKey):
        return ed25519_problem(key)
    return f"a key of the type {type(key).__name__}"


def check_ca(certificate: x509.Certificate) -> None:
    """Check that a CA certificate can sign for this site.

    It may come from elsewhere: with any name, a serial number of up to 20 bytes, without key usage (which allows all, RFC 5280
    4.2.1.3), and without a subject key identifier, which is then computed.

    Raises:
        CertificateError: It cannot; the text lists every problem.
    """
    values = extension_values(certificate)
    problems = _common_problems(certificate, public_key(certificate), values)
    if not list(certificate.subject):
        problems.append("the subject is empty")
    if not _says_ca(values):
        problems.append("basic constraints do not say CA")
    usage = find_extension(certificate, x509.KeyUsage)
    if usage is not None and not usage.key_cert_sign:
        problems.append("key usage does not allow signing certificates")
    _raise(certificate, problems)


def check_certificate(certificate: x509.Certificate, *, issuer: x509.Certificate, usage: str) -> None:
    """Check an end entity's certificate against its profile, except its signature.

    Raises:
        CertificateError: It breaks the profile; the text lists every problem.
    """
    values = extension_values(certificate)
    key = public_key(certificate)
    authority = _authority(issuer)
    problems = _subject_problems(certificate.subject)
    if x509.SubjectKeyIdentifier.oid not in values:
        problems.append("it has no subject key identifier")
    problems += _common_problems(certificate, key, values)
    if serial_number(certificate) >= 1 << 64:
        problems.append("its serial number does not fit 64 bits")
    if certificate.issuer != authority.subject:
        problems.append("its issuer is not the subject of the CA")
    if certificate.not_valid_after_utc > authority.not_after:
        problems.append(
            f"it would outlive its CA, which expires at {authority.not_after:%Y-%m-%d %H:%M:%S} UTC"
        )
    if key == authority.public_key:
        problems.append("its key is the CA's")
    if not authority.is_ca:
        problems.append("its issuer is not a CA")
    if _says_ca(values):
        problems.append("basic constraints say CA")
    if values.get(x509.KeyUsage.oid) != _key_usage(*_key_bits(key)):
        problems.append("key usage does not fit the key")
    extended = values.get(x509.ExtendedKeyUsage.oid)
    if not isinstance(extended, x509.ExtendedKeyUsage) or frozenset(extended) != EXTENDED_KEY_USAGES[usage]:
        problems.append(f"extended key usage is not that of {usage}")
    identifier = values.get(x509.AuthorityKeyIdentifier.oid)
    if (
        not isinstance(identifier, x509.AuthorityKeyIdentifier)
        or identifier.key_identifier != authority.key_identifier
    ):
        problems.append("the authority key identifier is not the CA's")
    if x509.SubjectAlternativeName.oid in values and len(san(certificate)) > _MAX_SAN:
        problems.append(f"more than {_MAX_SAN} alternative names")
    if STATUS_PV_OID in values:
        status_pv(certificate)
    if CONFIG_PV_OID in values:
        config_pv(certificate)
    due = renew_by(certificate) if RENEW_BY_OID in values else None
    if due is not None and not certificate.not_valid_before_utc <= due <= certificate.not_valid_after_utc:
        problems.append("the renew-by date is outside the validity")
    _raise(certificate, problems)


def _subject_problems(subject: x509.Name) -> list[str]:
    problems = []
    counts = dict.fromkeys(_SUBJECT_LIMITS, 0)
    for attribute in subject:
        oid = attribute.oid
        problem = _subject_problem(oid, attribute.value)
        if problem:
            problems.append(problem)
        if oid in counts:
            counts[oid] += 1
    for oid, count in counts.items():
        if count > 1 or (count == 0 and oid == NameOID.COMMON_NAME):
            problems.append(f"the subject has {count} {_SUBJECT_LIMITS[oid][0]}")
    return problems


def _common_problems(
    certificate: x509.Certificate,
    key: CertificatePublicKeyTypes,
    values: Mapping[x509.ObjectIdentifier, x509.ExtensionType],
) -> list[str]:
    problems: list[str] = []
    if certificate.version is not x509.Version.v3:
        problems.append("it is not of version 3")
    if not 0 < serial_number(certificate) <= MAX_SERIAL:
        problems.append("its serial number is not positive, or has more than 20 octets")
    weak = check_public_key(key)
    if weak:
        problems.append(f"it is for {weak}")
    if x509.BasicConstraints.oid not in values:
        problems.append("it has no basic constraints")
    return problems


def _says_ca(values: Mapping[x509.ObjectIdentifier, x509.ExtensionType]) -> bool:
    found = values.get(x509.BasicConstraints.oid)
    return isinstance(found, x509.BasicConstraints) and found.ca


def _raise(certificate: x509.Certificate, problems: list[str]) -> None:
    if problems:
        msg = f"the certificate for {subject_text(certificate.subject)} is not acceptable: {'; '.join(problems)}"
        raise CertificateError(msg)

"""X.509 certificates of Secure PVAccess: keys, issuing, and the check before every signature.

Source: SPVA specification 4.2 to 4.5, 4.8; RFC 5280. A certificate is first written without a signature and checked against
its profile; only then does the CA's key sign just those octets. So a mistake in a request or in this code never gets the CA's
signature.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cache, lru_cache
from ipaddress import ip_address
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import (
    CertificateIssuerPrivateKeyTypes,
    CertificatePublicKeyTypes,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from appliance.certs import tbs
from appliance.certs.public_keys import ed25519_problem, rsa_problem
from appliance.certs.signer import Signer
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
    key_and_serial,
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
    "build_request",
    "check_ca",
    "check_certificate",
    "check_public_key",
    "finish_certificate",
    "generate_key",
    "prepare_certificate",
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
_MAX_SAN = 100
_UNSIGNED: Final = bytes(64)
"""Stands for the signature while a certificate is checked."""


class CertificateAuthority(NamedTuple):
    """A certificate authority: who signs for it, its certificate and those above it. Its ``repr`` never shows the key."""

    signer: Signer
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
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
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
    signer: Signer,
    *,
    subject: x509.Name,
    not_before: datetime,
    not_after: datetime,
    serial: int,
    issuer: CertificateAuthority | None = None,
    path_length: int | None = None,
) -> x509.Certificate:
    """Return a CA certificate for the key of ``signer``: self-signed, or signed by ``issuer`` as an intermediate.

    Args:
        signer: The new authority's key; with an ``issuer`` only its public half is used.
        subject: Its name.
        not_before: Start of validity, aware; parts of a second are ignored.
        not_after: End of validity, aware; parts of a second are ignored.
        serial: The certificate's serial number.
        issuer: The authority above; None makes a root certificate.
        path_length: Most authorities below this one (RFC 5280 section 4.2.1.9); None for no limit.

    Raises:
        CertificateError: The result would break its profile.
        SigningError: The key does not sign.
    """
    by = signer if issuer is None else issuer.signer
    _check_frame(not_before, not_after, serial)
    try:
        key = tbs.encoded_key(signer.public_key())
        identifier = tbs.key_identifier(key)
        above = identifier if issuer is None else subject_key_identifier(issuer.certificate)
        body = tbs.certificate_body(
            by.algorithm,
            serial=serial,
            issuer=subject.public_bytes() if issuer is None else _authority(issuer.certificate).name,
            not_before=not_before,
            not_after=not_after,
            subject=subject.public_bytes(),
            key=key,
            extensions=(
                _extension(x509.SubjectKeyIdentifier(identifier)),
                _extension(x509.AuthorityKeyIdentifier(above, None, None)),
                *_ca_extensions(path_length),
            ),
        )
        made = _read(body, by.algorithm, _UNSIGNED)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        msg = f"the certificate for {subject_text(subject)} cannot be made: {exc}"
        raise CertificateError(msg) from exc
    _raise(made, _subject_problems(subject))
    check_ca(made)
    return finish_certificate(body, by.algorithm, by.sign(body))


def build_request(signer: Signer, *, subject: x509.Name, path_length: int | None = None) -> bytes:
    """Return a request (PKCS#10, in DER) for a CA certificate for the key of ``signer``.

    Args:
        signer: The new authority's key.
        subject: Its name.
        path_length: Most authorities below this one; None for no limit.

    Raises:
        CertificateError: The name cannot be used.
        SigningError: The key does not sign.
    """
    problems = _subject_problems(subject)
    if problems:
        msg = f"a request for {subject_text(subject)} cannot be made: {'; '.join(problems)}"
        raise CertificateError(msg)
    key = tbs.encoded_key(signer.public_key())
    wanted = (_extension(x509.SubjectKeyIdentifier(tbs.key_identifier(key))), *_ca_extensions(path_length))
    body = tbs.request_body(subject=subject.public_bytes(), key=key, extensions=wanted)
    return tbs.signed(body, signer.algorithm, signer.sign(body))


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

    The signature is made at once, also by a slow signer. The arguments are those of `prepare_certificate`.

    Raises:
        CertificateError: The result would break its profile.
        SigningError: The authority's key does not sign.
    """
    body = prepare_certificate(
        issuer,
        subject=subject,
        public_key=public_key,
        usage=usage,
        not_before=not_before,
        not_after=not_after,
        serial=serial,
        status_pv=status_pv,
        config_pv=config_pv,
        renew_by=renew_by,
        san=san,
        raw_pv_names=raw_pv_names,
    )
    return finish_certificate(body, issuer.signer.algorithm, issuer.signer.sign(body))


def prepare_certificate(
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
) -> bytes:
    """Return what has to be signed for an end entity's certificate, checked against its profile.

    PV names are written as an IA5String, as the specification (4.3) says and the peers of 2026 read it, or as bare ASCII, the
    only form for peers of 2025. See `appliance.certs.x509.canonical_pv_name` for how one certificate serves both.

    Args:
        issuer: The authority that will sign.
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

    Returns:
        The octets to sign, for `finish_certificate`.

    Raises:
        CertificateError: The result would break its profile.
    """
    if usage not in EXTENDED_KEY_USAGES:
        msg = f"the usage {usage!r} is not known; use one of {', '.join(EXTENDED_KEY_USAGES)}"
        raise CertificateError(msg)
    _check_frame(not_before, not_after, serial)
    algorithm = issuer.signer.algorithm
    try:
        key = tbs.encoded_key(public_key)
        common = _common(issuer.certificate, usage, _key_bits(public_key))
        extensions = [
            *common.extensions,
            _extension(x509.SubjectKeyIdentifier(tbs.key_identifier(key))),
        ]
        if san:
            extensions.append(_extension(x509.SubjectAlternativeName(_general_names(san))))
        if status_pv:
            extensions.append(tbs.extension(STATUS_PV_OID, encode_pv_name(status_pv, raw=raw_pv_names)))
        if config_pv:
            extensions.append(tbs.extension(CONFIG_PV_OID, encode_pv_name(config_pv, raw=raw_pv_names)))
        if renew_by is not None:
            extensions.append(tbs.extension(RENEW_BY_OID, encode_time(renew_by)))
        name = subject.public_bytes()
        body = tbs.certificate_body(
            algorithm,
            serial=serial,
            issuer=common.issuer,
            not_before=not_before,
            not_after=not_after,
            subject=name,
            key=key,
            extensions=extensions,
        )
        written = _read(body, algorithm, _UNSIGNED)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        msg = f"the certificate for {subject_text(subject)} cannot be made: {exc}"
        raise CertificateError(msg) from exc
    holder = Holder(serial, subject, name, public_key, key)
    check_certificate(written, issuer=issuer.certificate, usage=usage, holder=holder)
    return body


def finish_certificate(body: bytes, algorithm: str, signature: bytes) -> x509.Certificate:
    """Return the certificate of what `prepare_certificate` returned and the signature of it.

    Args:
        body: The octets that were signed.
        algorithm: The signer's.
        signature: The signature.
    """
    return _read(body, algorithm, signature)


def _read(body: bytes, algorithm: str, signature: bytes) -> x509.Certificate:
    return x509.load_der_x509_certificate(tbs.signed(body, algorithm, signature))


def _extension(value: x509.ExtensionType, *, critical: bool = False) -> bytes:
    return tbs.extension(value.oid, value.public_bytes(), critical=critical)


class _Common(NamedTuple):
    """What all of an authority's certificates for a usage and a kind of key have in common, in DER."""

    issuer: bytes
    extensions: tuple[bytes, ...]


@lru_cache(maxsize=64)
def _common(issuer: x509.Certificate, usage: str, key_bits: tuple[str, ...]) -> _Common:
    authority = _authority(issuer)
    purposes = sorted(EXTENDED_KEY_USAGES[usage], key=lambda o: o.dotted_string)
    return _Common(
        authority.name,
        (
            _extension(x509.AuthorityKeyIdentifier(authority.key_identifier, None, None)),
            _extension(x509.BasicConstraints(ca=False, path_length=None), critical=True),
            _extension(_key_usage(*key_bits), critical=True),
            _extension(x509.ExtendedKeyUsage(purposes)),
        ),
    )


def _ca_extensions(path_length: int | None) -> tuple[bytes, ...]:
    return (
        _extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True),
        _extension(_key_usage("digital_signature", "key_cert_sign", "crl_sign"), critical=True),
    )


class _Authority(NamedTuple):
    """What every certificate is compared with, read once from the authority's certificate."""

    name: bytes
    """The subject in DER, just as the certificate has it."""
    not_after: datetime
    public_key: CertificatePublicKeyTypes
    key_identifier: bytes
    is_ca: bool


@lru_cache(maxsize=16)
def _authority(certificate: x509.Certificate) -> _Authority:
    return _Authority(
        tbs.parts(certificate.tbs_certificate_bytes).subject,
        certificate.not_valid_after_utc,
        certificate.public_key(),
        subject_key_identifier(certificate),
        is_ca(certificate),
    )


def _check_frame(not_before: datetime, not_after: datetime, serial: int) -> None:
    if not 0 < serial < 1 << 64:
        msg = "the serial number must be between 1 and 2**64 - 1"
        raise CertificateError(msg)
    if not_before.tzinfo is None or not_after.tzinfo is None:
        msg = "the validity must be given as aware times"
        raise CertificateError(msg)
    if not_after <= not_before:
        msg = f"the validity ends ({not_after:%Y-%m-%d %H:%M:%S}) before it begins ({not_before:%Y-%m-%d %H:%M:%S})"
        raise CertificateError(msg)


@cache
def _key_usage(*bits: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{bit: bit in bits for bit in (*KEY_USAGES, "encipher_only", "decipher_only")})


def _key_bits(key: CertificatePublicKeyTypes) -> tuple[str, ...]:
    # RFC 5480 3 and RFC 8410 5: only RSA has key encipherment, Ed25519 only signs.
    if isinstance(key, ec.EllipticCurvePublicKey):
        return ("digital_signature", "key_agreement")
    if isinstance(key, rsa.RSAPublicKey):
        return ("digital_signature", "key_encipherment")
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
    problems = _common_problems(certificate, public_key(certificate), serial_number(certificate), values)
    if not list(certificate.subject):
        problems.append("the subject is empty")
    if not _says_ca(values):
        problems.append("basic constraints do not say CA")
    usage = find_extension(certificate, x509.KeyUsage)
    if usage is not None and not usage.key_cert_sign:
        problems.append("key usage does not allow signing certificates")
    _raise(certificate, problems)


class Holder(NamedTuple):
    """Whom a certificate should be for: what it has to have in these places, and what that means."""

    serial: int
    subject: x509.Name
    subject_der: bytes
    key: CertificatePublicKeyTypes
    key_der: bytes


def check_certificate(
    certificate: x509.Certificate, *, issuer: x509.Certificate, usage: str, holder: Holder | None = None
) -> None:
    """Check an end entity's certificate against its profile, except its signature.

    Args:
        certificate: The certificate.
        issuer: Its authority's.
        usage: What it is for.
        holder: Whom it must be for, if the caller knows. Octets that are the same as expected are not read a second time.

    Raises:
        CertificateError: It breaks the profile; the text lists every problem.
    """
    values = extension_values(certificate)
    parts = tbs.parts(certificate.tbs_certificate_bytes)
    authority = _authority(issuer)
    if holder is None:
        key, serial = key_and_serial(certificate)
        subject = certificate.subject
    else:
        key, serial, subject = holder.key, holder.serial, holder.subject
    problems = _subject_problems(subject)
    if holder is not None and (parts.serial, parts.subject, parts.key) != (
        holder.serial,
        holder.subject_der,
        holder.key_der,
    ):
        problems.append("its serial number, subject or key is not the one that it was made for")
    if x509.SubjectKeyIdentifier.oid not in values:
        problems.append("it has no subject key identifier")
    problems += _common_problems(certificate, key, serial, values)
    if serial >= 1 << 64:
        problems.append("its serial number does not fit 64 bits")
    if parts.issuer != authority.name:
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
    serial: int,
    values: Mapping[x509.ObjectIdentifier, x509.ExtensionType],
) -> list[str]:
    problems: list[str] = []
    if certificate.version is not x509.Version.v3:
        problems.append("it is not of version 3")
    if not 0 < serial <= MAX_SERIAL:
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

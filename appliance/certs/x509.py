"""Read X.509 certificates of Secure PVAccess.

Source: SPVA specification 4.2 (extensions), 4.3 (status extension), 4.4 (subject), 4.5 (SAN), 7.1 (identifiers).
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from appliance.certs.der import DERError, read_tlv, tlv
from appliance.errors import CertificateError

__all__ = [
    "CONFIG_PV_OID",
    "MAX_SERIAL",
    "NO_STATUS",
    "RENEW_BY_OID",
    "STATUS_PV_OID",
    "UNREADABLE",
    "adopt",
    "authority_name",
    "canonical_pv_name",
    "cert_id",
    "check_extended_key_usage",
    "common_name",
    "config_pv",
    "decode_pv_name",
    "decode_time",
    "encode_pv_name",
    "encode_time",
    "extension_values",
    "find_extension",
    "is_ca",
    "is_self_signed",
    "issuer_id",
    "key_and_serial",
    "load_der",
    "load_pem_text",
    "names_status",
    "parse_cert_id",
    "pem_chain",
    "public_key",
    "quiet",
    "renew_by",
    "san",
    "serial_number",
    "shown_id",
    "shown_subject",
    "shown_value",
    "signed_by",
    "status_pv",
    "subject_key_identifier",
    "subject_text",
]

_BEGINS = b"-----BEGIN CERTIFICATE-----"
STATUS_PV_OID = x509.ObjectIdentifier("1.3.6.1.4.1.37427.1")
"""Names the certificate's status PV (SPVA specification 4.3)."""
CONFIG_PV_OID = x509.ObjectIdentifier("1.3.6.1.4.1.72473.1")
"""Names the PV that tells a daemon to renew."""
RENEW_BY_OID = x509.ObjectIdentifier("1.3.6.1.4.1.73639.1")
"""The date by which the certificate must be renewed, an ASN.1 time."""

UNREADABLE = (
    ValueError,
    TypeError,
    InvalidSignature,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What `cryptography` raises for malformed certificates, keychains and answers."""

MAX_PV_NAME = 500
"""Longest PV name, in bytes, that is accepted in an extension; PVAccess servers refuse longer ones."""
_T = TypeVar("_T", bound=x509.ExtensionType)
MAX_SERIAL = (1 << 160) - 1
"""The largest serial number: 20 bytes (RFC 5280 4.1.2.2). Ours have 63 bits, those of other authorities usually 159."""
_VISIBLE = re.compile(rb"[!-~]+").fullmatch
_SPECIAL = frozenset(',+"\\<>;')
_IA5STRING = 0x16
_UTC_TIME = 0x17
_GENERALIZED_TIME = 0x18

_SHORT = {
    NameOID.COMMON_NAME: "CN",
    NameOID.COUNTRY_NAME: "C",
    NameOID.ORGANIZATION_NAME: "O",
    NameOID.ORGANIZATIONAL_UNIT_NAME: "OU",
    NameOID.LOCALITY_NAME: "L",
    NameOID.STATE_OR_PROVINCE_NAME: "ST",
    NameOID.DOMAIN_COMPONENT: "DC",
    NameOID.EMAIL_ADDRESS: "emailAddress",
    NameOID.SERIAL_NUMBER: "serialNumber",
    NameOID.STREET_ADDRESS: "STREET",
    NameOID.USER_ID: "UID",
}
_PURPOSES = {"client": ExtendedKeyUsageOID.CLIENT_AUTH, "server": ExtendedKeyUsageOID.SERVER_AUTH}


def quiet() -> contextlib.AbstractContextManager[object]:
    """Read what somebody else has made, without the warnings of `cryptography` about it.

    It warns about names that are too long for RFC 5280, serial numbers that are not positive, and kinds of keys that it will
    drop. The user did not make the certificate and cannot act on that. Some users also turn warnings into errors (``python -W
    error``), and nobody expects those.
    """
    return warnings.catch_warnings(action="ignore")


def adopt(certificate: x509.Certificate) -> x509.Certificate:
    """Accept a certificate that somebody else has made: read now what the library would read, and refuse, only when asked.

    Every certificate from a file or the network passes here, or through `load_der` or `load_pem_text`. After that its names
    and dates can be used safely. Extensions and the public key may still be refused by the functions that read them.

    Raises:
        CertificateError: The names or dates cannot be read.
    """
    with quiet():
        try:
            _ = certificate.subject, certificate.issuer
            _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        except UNREADABLE as exc:
            msg = f"the names or dates of a certificate cannot be read: {exc}"
            raise CertificateError(msg) from exc
        with contextlib.suppress(*UNREADABLE):
            _ = certificate.extensions
    return certificate


def load_der(data: bytes) -> x509.Certificate:
    """Read a certificate in DER form.

    Raises:
        CertificateError: The certificate or key is not acceptable; the text says why.
    """
    try:
        with quiet():
            certificate = x509.load_der_x509_certificate(data)
    except UNREADABLE as exc:
        msg = f"the certificate cannot be read: {exc}"
        raise CertificateError(msg) from exc
    return adopt(certificate)


def load_pem_text(text: bytes) -> list[x509.Certificate]:
    """Read the certificates of a PEM text.

    Raises:
        CertificateError: The certificate or key is not acceptable; the text says why.
    """
    try:
        with quiet():
            found = x509.load_pem_x509_certificates(text)
    except UNREADABLE as exc:
        msg = f"the certificates cannot be read as PEM: {_why_no_pem(text, exc)}"
        raise CertificateError(msg) from exc
    return [adopt(certificate) for certificate in found]


def _why_no_pem(text: bytes, fault: Exception) -> str:
    if _BEGINS in text:
        return str(fault).partition(" See http")[0]
    if not text.strip():
        return "there is nothing in it"
    if text[:1] == b"\x30":
        return "it is in DER form; make PEM of it: openssl x509 -inform DER -in FILE -out FILE.pem"
    return f"there is no {_BEGINS.decode()} in it"


def pem_chain(*certificates: x509.Certificate) -> str:
    """Return certificates in PEM form, one after the other, each once."""
    seen = dict.fromkeys(c.public_bytes(Encoding.PEM).decode("ascii") for c in certificates)
    return "".join(seen)


def public_key(certificate: x509.Certificate) -> CertificatePublicKeyTypes:
    """Return a certificate's public key.

    Raises:
        CertificateError: It cannot be read or is of an unknown kind.
    """
    try:
        with quiet():
            return certificate.public_key()
    except UNREADABLE as exc:
        raise _unreadable_key(certificate, exc) from exc


def key_and_serial(certificate: x509.Certificate) -> tuple[CertificatePublicKeyTypes, int]:
    """Return a certificate's public key and its serial number, for callers that need both.

    Raises:
        CertificateError: The key cannot be read or is of an unknown kind.
    """
    try:
        with quiet():
            return certificate.public_key(), certificate.serial_number
    except UNREADABLE as exc:
        raise _unreadable_key(certificate, exc) from exc


def _unreadable_key(certificate: x509.Certificate, why: Exception) -> CertificateError:
    return CertificateError(f"the public key of {subject_text(certificate.subject)} cannot be read: {why}")


def serial_number(certificate: x509.Certificate) -> int:
    """Return a certificate's serial number. 0 and negative ones break RFC 5280, but roots with them are in use."""
    with quiet():
        return certificate.serial_number


def signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether ``issuer`` has the name that the certificate gives for its issuer, and has signed it."""
    if issuer.subject != certificate.issuer:
        return False
    try:
        with quiet():
            certificate.verify_directly_issued_by(issuer)
    except UNREADABLE:
        return False
    return True


def subject_text(name: x509.Name) -> str:
    """Return a name in its encoded order: ``CN=softioc, O=localhost``. See `shown_subject`."""
    return shown_subject(
        (_SHORT.get(attribute.oid, attribute.oid.dotted_string), _text(attribute.value)) for attribute in name
    )


def shown_subject(parts: Iterable[tuple[str, str]]) -> str:
    """Return a name for people, from its parts and their values; empty parts are left out.

    Every place that shows a name uses this, so that a value cannot look like two parts or like a second line of a log.
    """
    return ", ".join(f"{part}={shown_value(text)}" for part, text in parts if text)


def shown_value(text: str) -> str:
    """Return the value of one part of a name, with special characters escaped (RFC 4514 2.4)."""
    if text.isalnum():
        return text
    made = "".join(f"\\{c}" if c in _SPECIAL else c if c.isprintable() else _hexadecimal(c) for c in text)
    if text[:1] in ("#", " "):
        made = "\\" + made
    if len(text) > 1 and text.endswith(" "):
        made = made[:-1] + "\\ "
    return made


def _hexadecimal(character: str) -> str:
    return "".join(f"\\{octet:02X}" for octet in character.encode("utf-8", "surrogatepass"))


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.hex()


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def subject_parts(name: x509.Name) -> tuple[tuple[str, str], ...]:
    """Return the attributes of a name as (short name, text), in the order in which they were encoded."""
    return tuple(
        (_SHORT.get(attribute.oid, attribute.oid.dotted_string), _text(attribute.value)) for attribute in name
    )


def common_name(name: x509.Name) -> str:
    """Return the first common name, as the peers read it; empty if there is none or it has control characters."""
    for attribute in name.get_attributes_for_oid(NameOID.COMMON_NAME):
        text = _text(attribute.value)
        return text if text.isprintable() else ""
    return ""


def authority_name(ca: x509.Certificate) -> str:
    """Return the name of an authority in access rules: its common name, or all of its name if it has none."""
    return common_name(ca.subject) or subject_text(ca.subject)


def issuer_id(ca: x509.Certificate) -> str:
    """Return the first eight hex digits of a CA's subject key identifier (SPVA specification 7.1).

    A CA without that extension gets the identifier of RFC 5280 4.2.1.2 (1).
    """
    return subject_key_identifier(ca)[:4].hex()


def subject_key_identifier(certificate: x509.Certificate) -> bytes:
    """Return the subject key identifier, computed if the certificate has none.

    Raises:
        CertificateError: The extensions cannot be read.
    """
    found = find_extension(certificate, x509.SubjectKeyIdentifier)
    if found is not None and found.digest:
        return found.digest
    return x509.SubjectKeyIdentifier.from_public_key(public_key(certificate)).digest


def cert_id(issuer: str, serial: int) -> str:
    """Return ``issuer_id:serial`` with the serial padded to twenty digits: for PV names and peers (SPVA specification 7.1).

    For people there is `shown_id`.
    """
    return f"{issuer}:{serial:020d}"


def shown_id(issuer: str, serial: int) -> str:
    """Return a certificate identifier for everything that is printed and logged: the serial without padding.

    There is one form, so that a search finds all of it. Input is accepted in both forms (`parse_cert_id`).
    """
    return f"{issuer}:{serial}"


def parse_cert_id(text: str) -> tuple[str, int]:
    """Return the two parts of ``issuer_id:serial``, the serial padded or not.

    Raises:
        CertificateError: The certificate or key is not acceptable; the text says why.
    """
    issuer, colon, serial = text.strip().partition(":")
    if (
        not colon
        or len(issuer) != 8
        or not all(c in "0123456789abcdefABCDEF" for c in issuer)
        or not (serial.isascii() and serial.isdigit() and len(serial) <= 20)
        or int(serial) >= 1 << 64
    ):
        msg = (
            f"{text[:64]!r} is not a certificate identifier; write eight hex digits, a colon and the serial "
            "number, such as 47530d89:3826361579604613180"
        )
        raise CertificateError(msg)
    return issuer.lower(), int(serial)


def is_ca(certificate: x509.Certificate) -> bool:
    """Whether basic constraints say that the certificate may sign others.

    Raises:
        CertificateError: The certificate or key is not acceptable; the text says why.
    """
    found = find_extension(certificate, x509.BasicConstraints)
    return found is not None and found.ca


def is_self_signed(certificate: x509.Certificate) -> bool:
    """Whether subject and issuer are equal and the signature verifies with the certificate's own key."""
    return signed_by(certificate, certificate)


def check_extended_key_usage(certificate: x509.Certificate, usage: str) -> None:
    """Require serverAuth for ``server``, clientAuth for ``client`` (SPVA specification 4.2).

    Raises:
        CertificateError: The certificate or key is not acceptable; the text says why.
    """
    found = find_extension(certificate, x509.ExtendedKeyUsage)
    purpose = _PURPOSES[usage]
    if found is None or purpose not in found:
        msg = f"the certificate {subject_text(certificate.subject)} is not for a {usage} (extended key usage lacks it)"
        raise CertificateError(msg)


def status_pv(certificate: x509.Certificate) -> str:
    """Return the name of the certificate's status PV; empty if the certificate names none.

    Reads both forms in use: an IA5String (SPVA specification 4.3) and bare ASCII (the reference of 2025).

    Raises:
        CertificateError: The extension cannot be read. Such a certificate asks for status checks that would never happen.
    """
    return _pv_extension(certificate, STATUS_PV_OID, "status")


NO_STATUS = (
    "names no status PV, so nobody could learn of its revocation; have another one made, without --no-status"
)
"""The end of a sentence about a certificate that is not admitted."""


def names_status(chain: Sequence[x509.Certificate]) -> bool:
    """Whether a peer's certificate (the first of its chain) names its status PV, or is the certificate service's own.

    The service's own must name none (`appliance.cms.setup`), and only the authority can give its usage, OCSP signing, to
    anybody. An extension that cannot be read counts as none.
    """
    if not chain:
        return False
    try:
        if status_pv(chain[0]):
            return True
        purposes = find_extension(chain[0], x509.ExtendedKeyUsage)
    except CertificateError:
        return False
    return purposes is not None and ExtendedKeyUsageOID.OCSP_SIGNING in purposes


def config_pv(certificate: x509.Certificate) -> str:
    """Return the name of the PV for renewal requests, empty if there is none.

    Raises:
        CertificateError: The extension cannot be read.
    """
    return _pv_extension(certificate, CONFIG_PV_OID, "configuration")


def _pv_extension(certificate: x509.Certificate, oid: x509.ObjectIdentifier, what: str) -> str:
    raw = _raw_extension(certificate, oid)
    if raw is None:
        return ""
    try:
        return decode_pv_name(raw)
    except DERError as exc:
        msg = f"the {what} PV's name in the certificate {subject_text(certificate.subject)} cannot be read: {exc}"
        raise CertificateError(msg) from exc


def decode_pv_name(raw: bytes) -> str:
    """Return the PV name in an extension's value, in either form.

    Raises:
        DERError: The value has another form, or a PV cannot have this name.
    """
    if raw[:1] == bytes((_IA5STRING,)):
        _, value, rest = read_tlv(raw)
        if rest:
            msg = "bytes follow the IA5String"
            raise DERError(msg)
        raw = value
    if not raw or len(raw) > MAX_PV_NAME:
        msg = f"it has {len(raw)} bytes, 1 to {MAX_PV_NAME} are allowed"
        raise DERError(msg)
    if not _VISIBLE(raw):
        msg = "it is not printable ASCII without blanks"
        raise DERError(msg)
    return raw.decode("ascii")


def encode_pv_name(name: str, *, raw: bool = False) -> bytes:
    """Return the value of an extension that names a PV: an IA5String, or bare ASCII.

    At most 127 bytes, because some peers read only the short form of a DER length.

    Raises:
        CertificateError: The name cannot go into a certificate.
    """
    data = name.encode("ascii", "replace")
    if not name.isascii() or not 0 < len(data) < 0x80 or not _VISIBLE(data):
        msg = f"the PV name {name[:64]!r} cannot go into a certificate: 1 to 127 printable ASCII characters are allowed"
        raise CertificateError(msg)
    return data if raw else tlv(_IA5STRING, data)


def canonical_pv_name(name: str) -> str:
    """Return the PV name that a peer means that did not decode the extension.

    Peers of 2025 take the extension's bytes, with the IA5String header, for the PV's name and search for that. Peers of 2026
    decode it, and take a certificate with bare ASCII for one without status. So certificates have the IA5String, and a server
    of those PVs passes each requested name through here and so answers to both spellings. Other names are returned unchanged.
    """
    if len(name) > 2 and ord(name[0]) == _IA5STRING and ord(name[1]) == len(name) - 2:
        return name[2:]
    return name


def renew_by(certificate: x509.Certificate) -> datetime | None:
    """Return the date by which the certificate must be renewed, ``None`` where there is none.

    Raises:
        CertificateError: The certificate or key is not acceptable; the text says why.
    """
    raw = _raw_extension(certificate, RENEW_BY_OID)
    if raw is None:
        return None
    try:
        return decode_time(raw)
    except DERError as exc:
        msg = (
            f"the renew-by date in the certificate {subject_text(certificate.subject)} cannot be read: {exc}"
        )
        raise CertificateError(msg) from exc


def encode_time(when: datetime) -> bytes:
    """Return an ASN.1 time in DER: UTCTime up to 2049, GeneralizedTime after (RFC 5280 4.1.2.5)."""
    utc = when.astimezone(UTC)
    if 1950 <= utc.year < 2050:
        return tlv(_UTC_TIME, utc.strftime("%y%m%d%H%M%SZ").encode())
    return tlv(_GENERALIZED_TIME, f"{utc.year:04d}{utc:%m%d%H%M%S}Z".encode())


def decode_time(raw: bytes) -> datetime:
    """Return a time as `encode_time` writes it.

    Raises:
        DERError: It is no time of such a form.
    """
    tag, value, rest = read_tlv(raw)
    text = value.decode("ascii", "replace")
    digits = text[:-1]
    if tag == _UTC_TIME and len(digits) == 12:
        digits = ("20" if digits < "5" else "19") + digits
    elif tag != _GENERALIZED_TIME or len(digits) != 14:
        digits = ""
    if rest or not text.endswith("Z") or not (digits.isascii() and digits.isdigit()):
        msg = "it is not an ASN.1 time in UTC"
        raise DERError(msg)
    parts = [int(digits[:4]), *(int(digits[i : i + 2]) for i in range(4, 14, 2))]
    try:
        return datetime(parts[0], parts[1], parts[2], parts[3], parts[4], parts[5], tzinfo=UTC)
    except ValueError as exc:
        msg = f"it is not a date: {exc}"
        raise DERError(msg) from exc


def san(certificate: x509.Certificate) -> tuple[tuple[str, str], ...]:
    """Return subject alternative names as (``dns`` | ``ip`` | ``uri``, text); other kinds are left out.

    Raises:
        CertificateError: The extension cannot be read.
    """
    found = find_extension(certificate, x509.SubjectAlternativeName)
    names: list[tuple[str, str]] = []
    for name in found or ():
        if isinstance(name, x509.DNSName):
            names.append(("dns", _printable(name.value)))
        elif isinstance(name, x509.IPAddress):
            names.append(("ip", str(name.value)))
        elif isinstance(name, x509.UniformResourceIdentifier):
            names.append(("uri", _printable(name.value)))
    return tuple(names)


def _extensions(certificate: x509.Certificate) -> x509.Extensions:
    try:
        return certificate.extensions
    except UNREADABLE as exc:
        msg = f"the extensions of the certificate {subject_text(certificate.subject)} cannot be read: {exc}"
        raise CertificateError(msg) from exc


def find_extension(certificate: x509.Certificate, kind: type[_T]) -> _T | None:
    """Return an extension's value, ``None`` where the certificate does not carry it.

    Raises:
        CertificateError: The certificate or key is not acceptable; the text says why.
    """
    # By its number, because asking each extension for its class takes several times as long.
    try:
        value = _extensions(certificate).get_extension_for_oid(kind.oid).value
    except x509.ExtensionNotFound:
        return None
    return value if isinstance(value, kind) else None


def extension_values(certificate: x509.Certificate) -> dict[x509.ObjectIdentifier, x509.ExtensionType]:
    """Return all extensions' values, for callers that need many.

    Raises:
        CertificateError: The extensions cannot be read.
    """
    return {extension.oid: extension.value for extension in _extensions(certificate)}


def _raw_extension(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> bytes | None:
    try:
        found = _extensions(certificate).get_extension_for_oid(oid).value
    except x509.ExtensionNotFound:
        return None
    return found.value if isinstance(found, x509.UnrecognizedExtension) else None

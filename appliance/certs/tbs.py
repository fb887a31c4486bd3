"""Write what an authority signs in X.509, without its key: certificates and requests for certificates. Pure.

Source: RFC 5280 4.1, RFC 2986 4. The octets that are checked are the octets that are signed, and there is one signature
(decision 103). The form is the one that `cryptography` writes; tests compare the two octet by octet.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from appliance.certs.der import context, integer, octets, oid, read_tlv, sequence, set_of, tlv
from appliance.certs.signer import SIGNATURES
from appliance.certs.x509 import encode_time

__all__ = [
    "certificate_body",
    "encoded_key",
    "extension",
    "key_bits",
    "key_identifier",
    "parts",
    "request_body",
    "signed",
]

_BIT_STRING: Final = 0x03
_TRUE: Final = b"\x01\x01\xff"
_EXPLICIT_VERSION: Final = 0xA0
_VERSION_3: Final = context(0, integer(2))
_VERSION_1_OF_REQUESTS: Final = integer(0)
_EXTENSION_REQUEST: Final = oid("1.2.840.113549.1.9.14")

_time = lru_cache(maxsize=256)(encode_time)
"""Certificates of one second have their dates in common."""


def encoded_key(key: CertificatePublicKeyTypes) -> bytes:
    """Return a public key as SubjectPublicKeyInfo."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def key_bits(info: bytes) -> bytes:
    """Return the bits of the key in a SubjectPublicKeyInfo: what key identifiers are hashes of."""
    _, body, _ = read_tlv(info)
    _, _, bit_string = read_tlv(body)
    return read_tlv(bit_string)[1][1:]


def key_identifier(info: bytes) -> bytes:
    """Return the usual identifier of the key in a SubjectPublicKeyInfo (RFC 5280 4.2.1.2, the first method)."""
    return hashlib.sha1(key_bits(info), usedforsecurity=False).digest()


@lru_cache(maxsize=64)
def _oid(number: x509.ObjectIdentifier) -> bytes:
    return oid(number.dotted_string)


def extension(number: x509.ObjectIdentifier, value: bytes, *, critical: bool = False) -> bytes:
    """Return an Extension. ``value`` is what its OCTET STRING holds."""
    return sequence(_oid(number), _TRUE if critical else b"", octets(value))


def certificate_body(
    algorithm: str,
    *,
    serial: int,
    issuer: bytes,
    not_before: datetime,
    not_after: datetime,
    subject: bytes,
    key: bytes,
    extensions: Iterable[bytes],
) -> bytes:
    """Return a TBSCertificate of version 3.

    Args:
        algorithm: The one that it will be signed with, one of `SIGNATURES`.
        serial: The serial number, not negative.
        issuer: The issuer's Name in DER.
        not_before: Start of validity, aware; parts of a second are dropped.
        not_after: End of validity, aware; parts of a second are dropped.
        subject: The subject's Name in DER.
        key: The subject's SubjectPublicKeyInfo in DER.
        extensions: Each as `extension` returns it.

    Raises:
        ValueError: A date is before 1950.
    """
    for date in (not_before, not_after):
        if date.astimezone(UTC).year < 1950:
            msg = "dates before 1950 cannot be written"
            raise ValueError(msg)
    return sequence(
        _VERSION_3,
        integer(serial),
        SIGNATURES[algorithm],
        issuer,
        sequence(_time(not_before), _time(not_after)),
        subject,
        key,
        context(3, sequence(*extensions)),
    )


class Parts(NamedTuple):
    """Parts of a TBSCertificate as they are written in it: the serial number, and whole elements in DER."""

    serial: int
    issuer: bytes
    subject: bytes
    key: bytes


def parts(body: bytes) -> Parts:
    """Return parts of a TBSCertificate that the library has read before, so it is well formed."""
    start = _content(body, 0)
    if body[start] == _EXPLICIT_VERSION:
        start = _end(body, start)
    serial = _end(body, start)
    algorithm = _end(body, serial)
    issuer = _end(body, algorithm)
    dates = _end(body, issuer)
    subject = _end(body, dates)
    return Parts(
        int.from_bytes(body[_content(body, start) : serial], "big", signed=True),
        body[algorithm:issuer],
        body[dates:subject],
        body[subject : _end(body, subject)],
    )


def _content(body: bytes, at: int) -> int:
    """Return where the content of the element at a place begins."""
    size = body[at + 1]
    return at + 2 if size < 0x80 else at + 2 + (size & 0x7F)


def _end(body: bytes, at: int) -> int:
    """Return where the element at a place ends."""
    size = body[at + 1]
    if size < 0x80:
        return at + 2 + size
    start = at + 2 + (size & 0x7F)
    return start + int.from_bytes(body[at + 2 : start], "big")


def request_body(*, subject: bytes, key: bytes, extensions: Iterable[bytes]) -> bytes:
    """Return a CertificationRequestInfo that asks for ``extensions``. The arguments are those of `certificate_body`."""
    wanted = sequence(_EXTENSION_REQUEST, set_of(sequence(*extensions)))
    return sequence(_VERSION_1_OF_REQUESTS, subject, key, context(0, wanted))


def signed(body: bytes, algorithm: str, signature: bytes) -> bytes:
    """Return a certificate or a request: what was signed, and the signature by ``algorithm`` of `SIGNATURES`."""
    return sequence(body, SIGNATURES[algorithm], tlv(_BIT_STRING, b"\0" + signature))

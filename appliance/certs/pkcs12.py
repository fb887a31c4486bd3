"""Write PKCS#12 (RFC 7292) in the form that the peers read.

`cryptography` is not used for this, because keychains usually have an empty password, with which that library writes no
encryption, and because Java needs its trusted-key-usage attribute on CA certificates beside a key. AES-256-CBC under PBKDF2
with HMAC-SHA-256, integrity by HMAC-SHA-256: the same as OpenSSL 3. `appliance.certs.pkcs12_read` reads.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from appliance.certs.der import DERError, context, integer, null, octets, oid, read_tlv, sequence, set_of, tlv

__all__ = ["Bag", "derive", "signing_time", "wide_passwords", "write_pkcs12"]

_DATA = oid("1.2.840.113549.1.7.1")
_ENCRYPTED_DATA = oid("1.2.840.113549.1.7.6")
_PBES2 = oid("1.2.840.113549.1.5.13")
_PBKDF2 = oid("1.2.840.113549.1.5.12")
_HMAC_SHA256 = oid("1.2.840.113549.2.9")
_AES256_CBC = oid("2.16.840.1.101.3.4.1.42")
_SHA256 = oid("2.16.840.1.101.3.4.2.1")
_KEY_BAG = oid("1.2.840.113549.1.12.10.1.2")
_CERT_BAG = oid("1.2.840.113549.1.12.10.1.3")
_X509 = oid("1.2.840.113549.1.9.22.1")
_FRIENDLY_NAME = oid("1.2.840.113549.1.9.20")
_LOCAL_KEY_ID = oid("1.2.840.113549.1.9.21")
_SIGNING_TIME = oid("1.2.840.113549.1.9.5")
_JDK_TRUSTED_KEY_USAGE = oid("2.16.840.1.113894.746875.1.1")
_ANY_EXTENDED_KEY_USAGE = oid("2.5.29.37.0")

_ITERATIONS = 50_000
_ITERATIONS_WITHOUT_PASSWORD = 2048
"""Without a secret to protect, more rounds would only slow down every start of every tool."""

_GENERALIZED_TIME = 0x18
_TIME = "%Y%m%d%H%M%SZ"


class Bag(NamedTuple):
    """One certificate (or key) and its attributes."""

    der: bytes
    friendly_name: str = ""
    local_key_id: bytes = b""
    trusted: bool = False
    """Whether Java must take it for a trust anchor."""
    signed: datetime | None = None
    """When its certificate was issued (PKCS #9 signingTime), if known."""


def signing_time(data: bytes) -> datetime | None:
    """Return when the certificate of a keychain was issued, as `write_pkcs12` stored it with the key; None if it is missing.

    The certificate itself does not say it: its validity may begin long before. The caller must have read ``data`` as a
    keychain before, so that its integrity is verified.
    """
    place = data.find(_SIGNING_TIME)
    if place < 0:
        return None
    try:
        _, value, _ = read_tlv(memoryview(data)[place + len(_SIGNING_TIME) :])
        tag, text, _ = read_tlv(value)
        if tag != _GENERALIZED_TIME:
            return None
        written = bytes(text).decode("ascii")
        return datetime.fromisoformat(f"{written[:8]}T{written[8:]}").astimezone(UTC)
    except (DERError, ValueError, OverflowError):
        return None


def write_pkcs12(certificates: list[Bag], key: Bag | None, password: bytes) -> bytes:
    """Return a PKCS#12 file: certificates in one safe, the encrypted key (PKCS#8 DER) in another.

    ``password`` is UTF-8 and may be empty.
    """
    rounds = _ITERATIONS if password else _ITERATIONS_WITHOUT_PASSWORD
    safes = []
    if certificates:
        algorithm, encrypted = _pbes2(sequence(*(_cert_bag(bag) for bag in certificates)), password, rounds)
        content = sequence(_DATA, algorithm, context(0, encrypted, constructed=False))
        safes.append(sequence(_ENCRYPTED_DATA, context(0, sequence(integer(0), content))))
    if key is not None:
        algorithm, encrypted = _pbes2(key.der, password, rounds)
        bag = sequence(_KEY_BAG, context(0, sequence(algorithm, octets(encrypted))), _attributes(key))
        safes.append(sequence(_DATA, context(0, octets(sequence(bag)))))
    safe = sequence(*safes)
    salt = secrets.token_bytes(16)
    mac_key = derive("sha256", 3, wide_passwords(password)[0], salt, rounds, 32)
    mac = hmac.digest(mac_key, safe, "sha256")
    return sequence(
        integer(3),
        sequence(_DATA, context(0, octets(safe))),
        sequence(sequence(sequence(_SHA256, null()), octets(mac)), octets(salt), integer(rounds)),
    )


def _cert_bag(bag: Bag) -> bytes:
    return sequence(_CERT_BAG, context(0, sequence(_X509, context(0, octets(bag.der)))), _attributes(bag))


def _attributes(bag: Bag) -> bytes:
    found = []
    if bag.friendly_name:
        found.append(sequence(_FRIENDLY_NAME, set_of(tlv(0x1E, bag.friendly_name.encode("utf-16-be")))))
    if bag.local_key_id:
        found.append(sequence(_LOCAL_KEY_ID, set_of(octets(bag.local_key_id))))
    if bag.trusted:
        found.append(sequence(_JDK_TRUSTED_KEY_USAGE, set_of(_ANY_EXTENDED_KEY_USAGE)))
    if bag.signed is not None:
        moment = bag.signed.astimezone(UTC).strftime(_TIME).encode()
        found.append(sequence(_SIGNING_TIME, set_of(tlv(_GENERALIZED_TIME, moment))))
    return set_of(*found) if found else b""


def _pbes2(plain: bytes, password: bytes, rounds: int) -> tuple[bytes, bytes]:
    """Return the algorithm identifier and the ciphertext (RFC 8018 6.2)."""
    salt, iv = secrets.token_bytes(16), secrets.token_bytes(16)
    encryptor = Cipher(
        algorithms.AES256(hashlib.pbkdf2_hmac("sha256", password, salt, rounds, 32)), modes.CBC(iv)
    ).encryptor()
    fill = 16 - len(plain) % 16
    encrypted = encryptor.update(plain + bytes((fill,)) * fill) + encryptor.finalize()
    derivation = sequence(_PBKDF2, sequence(octets(salt), integer(rounds), sequence(_HMAC_SHA256, null())))
    return sequence(_PBES2, sequence(derivation, sequence(_AES256_CBC, octets(iv)))), encrypted


def wide_passwords(password: bytes) -> tuple[bytes, ...]:
    """Return the forms of a password in the derivation of PKCS#12: 16-bit characters and a closing zero (RFC 7292 B.1).

    For an empty password two forms are in use, the zero alone and nothing at all.
    """
    text = password.decode("utf-8", "surrogateescape")
    wide = text.encode("utf-16-be", "surrogatepass") + b"\0\0"
    return (wide,) if password else (wide, b"")


def derive(name: str, purpose: int, password: bytes, salt: bytes, rounds: int, size: int) -> bytes:
    """Return a key (``purpose`` 1), an initial vector (2) or an integrity key (3) of ``size`` bytes (RFC 7292 B.2).

    ``name`` is the name of the hash, ``password`` one of `wide_passwords`.
    """
    digest: Callable[..., Any] = getattr(hashlib, name)
    block = digest().block_size

    def stretched(text: bytes) -> bytes:
        whole = block * -(-len(text) // block)
        return (text * (whole // len(text) + 1))[:whole] if text else b""

    start = bytes((purpose,)) * block
    mixed = bytearray(stretched(salt) + stretched(password))
    made = bytearray()
    while True:
        octets_ = digest(start + mixed).digest()
        for _ in range(rounds - 1):
            octets_ = digest(octets_).digest()
        made += octets_
        if len(made) >= size:
            return bytes(made[:size])
        addend = int.from_bytes(stretched(octets_)[:block], "big") + 1
        for at in range(0, len(mixed), block):
            total = int.from_bytes(mixed[at : at + block], "big") + addend
            mixed[at : at + block] = (total & ((1 << 8 * block) - 1)).to_bytes(block, "big")

"""Check a public key without its private half, and tell keys apart. Pure.

Source: NIST SP 800-89 5.3.3 (partial validation of RSA keys), CA/Browser baseline requirements 6.1.1.3 (close primes),
RFC 8032 (the points of small order of edwards25519).
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from math import gcd, isqrt, prod
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes, PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from appliance.errors import CertificateError

__all__ = [
    "composite_steps",
    "ed25519_problem",
    "has_signed",
    "key_identity",
    "rsa_problem",
    "sign",
]

_SIEVE: Final = 752
"""SP 800-89: a modulus has no factor below this."""
_MAX_EXPONENT_BITS: Final = 256
_FERMAT_ROUNDS: Final = 100
_BIT_SQUARES_AT_ONCE: Final = 1 << 27
"""The work of one step: this many squarings, each counted as the square of the number of bits."""


def _primes(below: int) -> list[int]:
    return [n for n in range(2, below) if all(n % d for d in range(2, isqrt(n) + 1))]


_SMALL: Final = prod(_primes(_SIEVE))
_P25519: Final = (1 << 255) - 19


def _small_order() -> frozenset[int]:
    """Return the y coordinates of the points whose order divides eight."""
    p = _P25519
    d = -121665 * pow(121666, -1, p) % p
    # Doubling a point of order eight gives y = 0, which is d*y**4 + 2*y**2 - 1 = 0.
    root = _sqrt(1 + d)
    found = {0, 1, p - 1}
    for sign in (1, -1):
        square = (-1 + sign * root) * pow(d, -1, p) % p
        y = _sqrt(square)
        if y * y % p == square:
            found |= {y, p - y}
    return frozenset(found)


def _sqrt(square: int) -> int:
    p = _P25519
    square %= p
    root = pow(square, (p + 3) // 8, p)
    return root if root * root % p == square else root * pow(2, (p - 1) // 4, p) % p


_SMALL_ORDER: Final = _small_order()


def key_identity(key: CertificatePublicKeyTypes) -> str:
    """Return, in hexadecimal, what two keys have in common if and only if one private key serves both.

    That is more than equality: one modulus has many exponents, and a point of a curve has an opposite. A person who lost one
    of them to an attacker has lost the others.
    """
    if isinstance(key, rsa.RSAPublicKey):
        modulus = key.public_numbers().n
        what = b"rsa" + modulus.to_bytes((modulus.bit_length() + 7) // 8, "big")
    elif isinstance(key, ec.EllipticCurvePublicKey):
        what = f"{key.curve.name} {key.public_numbers().x:x}".encode()
    else:
        what = b"key" + key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(what).hexdigest()


def rsa_problem(modulus: int, exponent: int) -> str | None:
    """Return why an RSA key may not be certified, as far as that can be told at once; `composite_steps` tells the rest."""
    if not exponent % 2 or exponent < 65537 or exponent.bit_length() > _MAX_EXPONENT_BITS:
        shown = exponent if exponent.bit_length() <= 64 else f"of {exponent.bit_length()} bits"
        return f"an RSA key with the exponent {shown}; odd ones from 65537 to {_MAX_EXPONENT_BITS} bits are allowed"
    if not modulus % 2:
        return "an RSA key whose modulus is even"
    if gcd(modulus, _SMALL) != 1:
        return f"an RSA key whose modulus has a factor below {_SIEVE}"
    bits = modulus.bit_length()
    if min(modulus - (1 << (bits - 1)), (1 << bits) - modulus).bit_length() <= bits // 2:
        return "an RSA key whose modulus is next to a power of two"
    if _close_primes(modulus):
        return "an RSA key whose prime factors lie close together"
    return None


def _close_primes(modulus: int) -> bool:
    """Whether Fermat's method finds the factors in a few rounds; a square is the case of two equal ones."""
    middle = isqrt(modulus)
    if middle * middle == modulus:
        return True
    for _ in range(_FERMAT_ROUNDS):
        middle += 1
        rest = middle * middle - modulus
        root = isqrt(rest)
        if root * root == rest:
            return True
    return False


def composite_steps(modulus: int) -> Generator[None, None, str | None]:
    """Find whether an RSA modulus is a prime or a power of one, in steps of about a millisecond each.

    For a prime p, and for its powers, 2**(modulus-1) is 1 modulo p; for a product of two large primes it is not, except for
    fewer keys than will ever exist. Returns what is wrong with it, or None.
    """
    power, exponent = 1, modulus - 1
    at_once = max(1, _BIT_SQUARES_AT_ONCE // modulus.bit_length() ** 2)
    for position in range(exponent.bit_length() - 1, -1, -1):
        power = power * power % modulus
        if exponent >> position & 1:
            power = power * 2 % modulus
        if not position % at_once:
            yield
    common = gcd(power - 1, modulus)
    if common == modulus:
        return "an RSA key whose modulus is a prime"
    return None if common == 1 else "an RSA key whose modulus is a power of a prime, or easy to factor"


def ed25519_problem(key: ed25519.Ed25519PublicKey) -> str | None:
    """Return why an Ed25519 key may not be certified: anybody can sign for a point of small order."""
    y = int.from_bytes(key.public_bytes(Encoding.Raw, PublicFormat.Raw), "little") & ((1 << 255) - 1)
    return (
        "an Ed25519 key of small order, for which anybody can sign" if y % _P25519 in _SMALL_ORDER else None
    )


# ---------------------------------------------------------------------- a signature as proof of possession

_PSS: Final = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)


_SHA256: Final = ec.ECDSA(hashes.SHA256())
_SHA384: Final = ec.ECDSA(hashes.SHA384())


def _curve_hash(key: ec.EllipticCurvePublicKey | ec.EllipticCurvePrivateKey) -> ec.ECDSA:
    return _SHA384 if key.curve.key_size > 256 else _SHA256


def sign(key: PrivateKeyTypes, message: bytes) -> bytes:
    """Return a signature of ``message``: RSA-PSS, ECDSA or Ed25519.

    Raises:
        CertificateError: For a key of another kind.
    """
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(message, _PSS, hashes.SHA256())
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(message, _curve_hash(key))
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(message)
    raise CertificateError(f"keys of the type {type(key).__name__} are not used here; make another one")


def has_signed(key: CertificatePublicKeyTypes, signature: bytes, message: bytes) -> bool:
    """Whether the private half of ``key`` has signed ``message``, as `sign` does."""
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, message, _PSS, hashes.SHA256())
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, message, _curve_hash(key))
        elif isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, message)
        else:
            return False
    except (InvalidSignature, ValueError):
        return False
    return True

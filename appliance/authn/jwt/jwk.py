"""JSON Web Keys: read strictly, selected exactly, each used for one algorithm only (RFC 7517, 7518, 7638, 8037)."""

from __future__ import annotations

import hashlib
import hmac
import json
from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from appliance.authn.jwt.strict_json import StrictFormatError, b64url_decode, b64url_encode, load_object
from appliance.authn.jwt.token import canonical_algorithm, clean
from appliance.errors import TokenRefused

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey

__all__ = [
    "ASYMMETRIC",
    "MAX_KEYS",
    "SYMMETRIC",
    "Jwk",
    "KeySetError",
    "check_hmac",
    "check_signature",
    "confirm",
    "fitting",
    "read_key_set",
    "select",
    "thumbprint",
]

ASYMMETRIC: Final = frozenset(
    ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519")
)
SYMMETRIC: Final = frozenset(("HS256", "HS384", "HS512"))
MAX_KEYS: Final = 100
_MAX_TOLD: Final = 5
"""The number of omitted keys that the log explains."""
_RSA_BITS: Final = (2048, 8192)
"""Allowed key sizes. Smaller keys can be broken; with larger ones, every signature check costs so much that it invites
denial of service.
"""
_CURVE_OF: Final = {
    "ES256": "P-256", "ES384": "P-384", "ES512": "P-521", "EdDSA": "Ed25519", "Ed25519": "Ed25519"
}  # fmt: skip
_MEMBERS: Final = {"RSA": ("e", "n"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x")}
_PRIVATE: Final = frozenset(("d", "p", "q", "dp", "dq", "qi", "oth", "k"))


class KeySetError(StrictFormatError):
    """A JWKS document that cannot be used; `reason` is a stable code, `why` tells more about its keys."""

    def __init__(self, reason: str, why: str = "") -> None:
        super().__init__(reason)
        self.why = why

    def __str__(self) -> str:
        return super().__str__() + (f": {self.why}" if self.why else "")


class Jwk(NamedTuple):
    """One public key of a key set, ready for use."""

    kid: str | None
    kind: str
    """``RSA``, or the name of the curve."""
    alg: str | None
    """The one algorithm that the publisher allows for this key, if it names one."""
    key: PublicKey


def read_key_set(data: bytes) -> tuple[Jwk, ...]:
    """Read a JWKS document (RFC 7517 section 5).

    Keys that are not for checking signatures, or that we do not accept (``oct``, weak, private, malformed), are left
    out. A document with more than `MAX_KEYS` entries, or with no usable key, is refused as a whole.

    Raises:
        KeySetError: The document cannot be used.
    """
    try:
        entries = load_object(data).get("keys")
    except StrictFormatError as error:
        raise KeySetError(error.reason) from None
    if not isinstance(entries, list):
        raise KeySetError("jwks_without_keys")
    if len(entries) > MAX_KEYS:
        raise KeySetError("jwks_too_many_keys")
    keys, left_out = [], []
    for entry in entries:
        try:
            keys.append(_read_key(entry))
        except _Unusable as why:
            left_out.append(str(why))
    if not keys:
        raise KeySetError("jwks_no_usable_key", "; ".join(left_out[:_MAX_TOLD]))
    return tuple(keys)


class _Unusable(Exception):  # noqa: N818 - a key that is left out is no error
    """Why a key is left out."""


def _read_key(entry: Any) -> Jwk:
    if not isinstance(entry, dict):
        raise _Unusable("an entry is not an object")
    # Some platforms write every member that a key can have, so an empty member counts as missing.
    entry = {name: value for name, value in entry.items() if value is not None and value not in ("", [], {})}
    kid, alg = entry.get("kid"), entry.get("alg")
    name = f"key {clean(kid, 40)!r}" if isinstance(kid, str) else "a key without kid"
    if not isinstance(kid, str | None) or not isinstance(alg, str | None):
        raise _Unusable(f"{name}: kid or alg is not text")
    if entry.get("use", "sig") != "sig":
        raise _Unusable(f"{name} is not for signatures (use)")
    private = _PRIVATE.intersection(entry)
    if private:
        raise _Unusable(f"{name} is a private or secret key (it has {', '.join(sorted(private))})")
    operations = entry.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        raise _Unusable(f"{name} is not for checking signatures (key_ops)")
    try:
        kind, key = _public_key(entry)
    except KeyError as error:
        raise _Unusable(f"{name}: {clean(str(error), 40)} is missing or not known") from None
    except (StrictFormatError, ValueError, TypeError) as error:
        raise _Unusable(f"{name}: {clean(str(error), 100)}") from None
    return Jwk(kid, kind, alg, key)


def _number(entry: dict[str, Any], name: str) -> bytes:
    value = entry[name]
    if not isinstance(value, str):
        raise TypeError(name)
    return b64url_decode(value.encode("ascii"))


def _public_key(entry: dict[str, Any]) -> tuple[str, PublicKey]:
    kind = entry["kty"]
    if kind == "RSA":
        from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers

        n, e = (int.from_bytes(_number(entry, name), "big") for name in ("n", "e"))
        if not _RSA_BITS[0] <= n.bit_length() <= _RSA_BITS[1] or not 65537 <= e < 2**32 or not e & n & 1:
            raise ValueError("RSA key outside what FIPS 186-5 section 5.1 allows")
        return "RSA", RSAPublicNumbers(e, n).public_key()
    if kind == "EC":
        from cryptography.hazmat.primitives.asymmetric import ec

        curves: dict[str, ec.EllipticCurve] = {
            "P-256": ec.SECP256R1(),
            "P-384": ec.SECP384R1(),
            "P-521": ec.SECP521R1(),
        }
        curve = curves[entry["crv"]]
        x, y = (_number(entry, name) for name in ("x", "y"))
        if not len(x) == len(y) == (curve.key_size + 7) // 8:
            raise ValueError("coordinate of a wrong length (RFC 7518 section 6.2.1.2)")
        numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), curve)
        return entry["crv"], numbers.public_key()
    if kind == "OKP" and entry["crv"] == "Ed25519":
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        return "Ed25519", Ed25519PublicKey.from_public_bytes(_number(entry, "x"))
    raise ValueError("key type not accepted")


def fitting(keys: tuple[Jwk, ...], *, kid: str | None, alg: str) -> list[Jwk]:
    """Return the keys that may have signed a token with this header: its `kid` must match exactly if it has one.

    A key that is listed twice is one key: key numbers are compared, as in the thumbprint of RFC 7638, and nothing else.
    """
    kind = _CURVE_OF.get(alg, "RSA")
    names = (None, canonical_algorithm(alg))
    found: list[Jwk] = []
    for key in keys:
        if (
            key.kind == kind
            and (key.alg and canonical_algorithm(key.alg)) in names
            and (kid is None or (key.kid is not None and key.kid == kid))
            and not any(key.key == other.key for other in found)
        ):
            found.append(key)
    return found


def select(keys: tuple[Jwk, ...], *, kid: str | None, alg: str) -> Jwk | None:
    """Return the one key that may have signed a token with this header, or None.

    If two keys match, the result is None: choosing one would be a guess.
    """
    found = fitting(keys, kid=kid, alg=alg)
    return found[0] if len(found) == 1 else None


def check_signature(key: Jwk, alg: str, signing_input: bytes, signature: bytes) -> None:
    """Raise TokenRefused unless `signature` is `key`'s over `signing_input` by exactly the algorithm `alg`."""
    if alg not in ASYMMETRIC or key.kind != _CURVE_OF.get(alg, "RSA"):
        raise TokenRefused("alg_key_mismatch")
    algorithms = _algorithms()
    try:
        good = algorithms[canonical_algorithm(alg)].verify(signing_input, key.key, signature)
    except Exception:  # noqa: BLE001 - whatever a library says about a signature, only True means good
        good = False
    if good is not True:
        raise TokenRefused("signature_wrong")


@cache
def _algorithms() -> dict[str, Any]:
    from jwt.algorithms import get_default_algorithms

    return get_default_algorithms()


def check_hmac(secret: bytes, alg: str, signing_input: bytes, signature: bytes) -> None:
    """Raise TokenRefused unless `signature` is the HMAC of `signing_input` under a secret shared with the issuer."""
    if alg not in SYMMETRIC:
        raise TokenRefused("alg_key_mismatch")
    if not hmac.compare_digest(hmac.digest(secret, signing_input, f"sha{alg[2:]}"), signature):
        raise TokenRefused("signature_wrong")


def thumbprint(entry: dict[str, Any]) -> str:
    """Return the SHA-256 thumbprint of a JWK (RFC 7638), in base64url.

    Raises:
        StrictFormatError: A member is missing.
    """
    kind = entry.get("kty")
    names = _MEMBERS.get(kind, ()) if isinstance(kind, str) else ()
    members = {name: entry.get(name) for name in ("kty", *names)}
    if not names or not all(isinstance(value, str) for value in members.values()):
        raise StrictFormatError("jwk_incomplete")
    text = json.dumps(members, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return b64url_encode(hashlib.sha256(text.encode("utf-8")).digest())


def jwk_of(public_key: bytes | str) -> dict[str, str]:
    """Return the JWK of a public key in PEM form.

    Raises:
        StrictFormatError: For a kind of key that is not supported.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    from appliance.certs.x509 import quiet

    data = public_key.encode("utf-8") if isinstance(public_key, str) else public_key
    try:
        with quiet():
            key = load_pem_public_key(data)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise StrictFormatError("public_key_unreadable") from None
    if isinstance(key, rsa.RSAPublicKey):
        rsa_numbers = key.public_numbers()
        return {
            "kty": "RSA",
            "n": b64url_encode(rsa_numbers.n.to_bytes((rsa_numbers.n.bit_length() + 7) // 8, "big")),
            "e": b64url_encode(rsa_numbers.e.to_bytes((rsa_numbers.e.bit_length() + 7) // 8, "big")),
        }
    if isinstance(key, ec.EllipticCurvePublicKey):
        name = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}.get(key.curve.name)
        if name is not None:
            size = (key.curve.key_size + 7) // 8
            point = key.public_numbers()
            return {
                "kty": "EC",
                "crv": name,
                "x": b64url_encode(point.x.to_bytes(size, "big")),
                "y": b64url_encode(point.y.to_bytes(size, "big")),
            }
    if isinstance(key, ed25519.Ed25519PublicKey):
        return {"kty": "OKP", "crv": "Ed25519", "x": b64url_encode(key.public_bytes_raw())}
    raise StrictFormatError("public_key_kind")


def confirm(confirmation: dict[str, Any], public_key: bytes | str) -> None:
    """Raise TokenRefused unless the `cnf` claim (RFC 7800) binds the token to this public key (PEM).

    ``jkt`` (RFC 9449 section 6.1) and ``jwk`` are supported. A confirmation with any other member asks for a check that
    we cannot make, so it is refused.
    """
    if not confirmation or not confirmation.keys() <= {"jkt", "jwk"}:
        raise TokenRefused("cnf_not_supported")
    try:
        own = thumbprint(jwk_of(public_key))
        wanted = [confirmation["jkt"]] if "jkt" in confirmation else []
        if "jwk" in confirmation:
            jwk = confirmation["jwk"]
            wanted.append(thumbprint(jwk) if isinstance(jwk, dict) else None)
    except StrictFormatError as error:
        raise TokenRefused(f"cnf_{error.reason}") from None
    if any(thumb != own for thumb in wanted):
        raise TokenRefused("cnf_wrong_key", "the token is bound to another key pair")

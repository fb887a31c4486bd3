"""Check what a token says, without input or output: form, header and claims.

The caller brings the time. Nothing here proves anything: a token that passes is well formed and is acceptable only *if*
its issuer confirms it, which `introspect` or `jwks` must still check.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from appliance.authn.jwt.strict_json import StrictFormatError, b64url_decode, load_object
from appliance.epoch import LAST_SECOND
from appliance.errors import TokenRefused

__all__ = [
    "EXPIRED",
    "MAX_TOKEN_BYTES",
    "NOT_YET_VALID",
    "Claims",
    "Token",
    "canonical_algorithm",
    "check_claims",
    "check_header",
    "clean",
    "parse",
]

MAX_TOKEN_BYTES: Final = 16 * 1024
MAX_SUBJECT_CHARS: Final = 64
"""The length of an X.509 common name (RFC 5280 appendix A, ub-common-name)."""
_MAX_ISSUER_CHARS: Final = 512
_MAX_ID_CHARS: Final = 256
_KEY_HINTS: Final = frozenset(("jku", "jwk", "x5u", "x5c"))
"""Header fields in which a token brings its own key, or says where to fetch it. They are never used; the key comes only
from the configured issuer. The thumbprints ``x5t`` and ``x5t#S256`` do neither, and are ignored.
"""

EXPIRED: Final = "the token has expired; fetch a new one and try again"
NOT_YET_VALID: Final = "the token is not valid yet; check the clocks of the issuer, this host and the CMS"


class Token:
    """A token of the right form, taken apart. Its text appears in no repr, no str and no exception."""

    __slots__ = ("alg", "claims", "header", "issuer", "kid", "signature", "signing_input", "text", "typ")

    def __init__(
        self,
        text: str,
        header: dict[str, Any],
        claims: dict[str, Any],
        signing_input: bytes,
        signature: bytes,
    ) -> None:
        self.text = text
        self.header = header
        self.claims = claims
        self.signing_input = signing_input
        self.signature = signature
        self.alg: str = header["alg"]
        self.kid: str | None = header.get("kid")
        self.typ: str | None = header.get("typ")
        self.issuer: str | None = claims.get("iss")

    def __repr__(self) -> str:
        return f"<Token alg={clean(self.alg)} kid={clean(self.kid or '')} iss={clean(self.issuer or '')}>"

    def __reduce__(self) -> str:
        raise TypeError("a token is never written anywhere")

    def facts(self) -> dict[str, str]:
        """Return what an audit record may say about the token: iss, sub, kid and a hash of jti."""
        facts: dict[str, str] = {}
        for name, value in (("iss", self.issuer), ("sub", self.claims.get("sub")), ("kid", self.kid)):
            if isinstance(value, str):
                facts[name] = clean(value)
        jti = self.claims.get("jti")
        if isinstance(jti, str):
            facts["jti_hash"] = hash_id(jti)
        return facts


class Claims(NamedTuple):
    """The claims that this package uses, checked. Times are POSIX seconds."""

    issuer: str | None
    subject: str
    not_before: int | None
    issued_at: int | None
    expires: int
    token_id: str | None
    confirmation: dict[str, Any] | None


def clean(text: str, limit: int = 200) -> str:
    """Make text from outside safe for one line of a log: ASCII, no control characters, limited in length."""
    short = text if len(text) <= limit else f"{text[:limit]}..."
    return "".join(c if " " <= c <= "~" and c != "\\" else c.encode("unicode_escape").decode() for c in short)


def hash_id(token_id: str) -> str:
    """Return the SHA-256 of a jti in hex, which names a token in the audit and in the list of used ones without repeating it."""
    import hashlib

    return hashlib.sha256(token_id.encode("utf-8")).hexdigest()


def canonical_algorithm(name: str) -> str:
    """Return the one name that we use for an algorithm.

    ``Ed25519`` (RFC 9864) is ``EdDSA`` with that curve, the only EdDSA curve that is used here.
    """
    return "EdDSA" if name == "Ed25519" else name


def parse(text: str) -> Token:
    """Take a compact JWS apart (RFC 7515 section 7.1).

    Raises:
        TokenRefused: It is not three canonical base64url parts of which the first two are strict JSON objects, its header
            asks for another interpretation (`crit`, `b64`, `enc`, `zip`), or a header field has a wrong type.
    """
    if not isinstance(text, str) or not text:
        raise TokenRefused("form_empty", "no token was sent")
    if len(text) > MAX_TOKEN_BYTES:
        raise TokenRefused("form_too_long")
    try:
        data = text.encode("ascii")
    except UnicodeEncodeError:
        raise TokenRefused("form_not_ascii") from None
    parts = data.split(b".")
    if len(parts) != 3 or not all(parts):
        raise TokenRefused("form_not_three_parts")
    try:
        header = load_object(b64url_decode(parts[0]))
    except StrictFormatError as error:
        raise TokenRefused(f"header_{error.reason}") from None
    _check_header_form(header)
    try:
        claims = load_object(b64url_decode(parts[1]))
    except StrictFormatError as error:
        raise TokenRefused(f"claims_{error.reason}") from None
    try:
        signature = b64url_decode(parts[2])
    except StrictFormatError as error:
        raise TokenRefused(f"signature_{error.reason}") from None
    issuer = claims.get("iss")
    if "iss" in claims and not (isinstance(issuer, str) and 0 < len(issuer) <= _MAX_ISSUER_CHARS):
        raise TokenRefused("iss_invalid")
    return Token(text, header, claims, parts[0] + b"." + parts[1], signature)


def _check_header_form(header: dict[str, Any]) -> None:
    if "crit" in header:
        raise TokenRefused("header_crit")
    if "b64" in header:
        raise TokenRefused("header_b64")
    if "enc" in header or "zip" in header:
        raise TokenRefused("header_encrypted")
    if not isinstance(header.get("alg"), str):
        raise TokenRefused("alg_invalid")
    if "typ" in header and not isinstance(header["typ"], str):
        raise TokenRefused("typ_invalid")
    kid = header.get("kid")
    if "kid" in header and not (isinstance(kid, str) and 0 < len(kid) <= _MAX_ID_CHARS):
        raise TokenRefused("kid_invalid")


def check_header(token: Token, *, algorithms: tuple[str, ...], types: tuple[str, ...]) -> None:
    """Refuse an algorithm or a type that this issuer is not configured for.

    Algorithm names are compared exactly, so no spelling of ``none`` is accepted. Types are compared as media types,
    without regard to case and without ``application/`` (RFC 7515 section 4.1.9); the empty string in `types` means a token
    without `typ`. A token with key hints is refused: an honest issuer has no reason to send them, and we could not notice
    a library below us that used them.

    Raises:
        TokenRefused: The header is not acceptable.
    """
    if canonical_algorithm(token.alg) not in map(canonical_algorithm, algorithms):
        raise TokenRefused("alg_not_allowed")
    typ = (token.typ or "").casefold().removeprefix("application/")
    if typ not in {name.casefold().removeprefix("application/") for name in types}:
        raise TokenRefused("typ_not_allowed")
    if not _KEY_HINTS.isdisjoint(token.header):
        raise TokenRefused("header_carries_key")


def _time(claims: dict[str, Any], name: str) -> int | None:
    if name not in claims:
        return None
    value = claims[name]
    if type(value) is not int:  # bool is an int for isinstance, and a float loses seconds
        raise TokenRefused(f"{name}_not_integer")
    if not 0 <= value <= LAST_SECOND:
        raise TokenRefused(f"{name}_out_of_range")
    return value


def check_claims(
    token: Token,
    *,
    now: float,
    leeway: int,
    longest_validity: int,
    audience: tuple[str, ...],
    require_jti: bool,
) -> Claims:
    """Check the registered claims (RFC 7519 section 4.1) at the time `now`; all times in seconds.

    An empty `audience` accepts every audience.

    Raises:
        TokenRefused: The token is not accepted.
    """
    claims = token.claims
    expires = _time(claims, "exp")
    not_before = _time(claims, "nbf")
    issued_at = _time(claims, "iat")
    if expires is None:
        raise TokenRefused("exp_missing")
    if now >= expires + leeway:
        raise TokenRefused("expired", EXPIRED)
    for name, start in (("nbf", not_before), ("iat", issued_at)):
        if start is not None and start > now + leeway:
            raise TokenRefused(f"{name}_in_future", NOT_YET_VALID)
        if start is not None and start >= expires:
            raise TokenRefused(f"{name}_not_before_exp")
    if expires - now > longest_validity + leeway:
        raise TokenRefused("validity_too_long")
    _check_audience(claims, audience)
    subject = claims.get("sub")
    if not isinstance(subject, str) or not 0 < len(subject) <= MAX_SUBJECT_CHARS:
        raise TokenRefused("sub_invalid")
    jti = claims.get("jti")
    if "jti" in claims and not (isinstance(jti, str) and 0 < len(jti) <= _MAX_ID_CHARS):
        raise TokenRefused("jti_invalid")
    if jti is None and require_jti:
        raise TokenRefused("jti_missing")
    confirmation = claims.get("cnf")
    if "cnf" in claims and not (isinstance(confirmation, dict) and confirmation):
        raise TokenRefused("cnf_invalid")
    return Claims(token.issuer, subject, not_before, issued_at, expires, jti, confirmation)


def _check_audience(claims: dict[str, Any], audience: tuple[str, ...]) -> None:
    value = claims.get("aud")
    named = [value] if isinstance(value, str) else value
    if "aud" in claims and not (isinstance(named, list) and all(isinstance(name, str) for name in named)):
        raise TokenRefused("aud_invalid")
    if not audience:
        return
    if named is None:
        raise TokenRefused("aud_missing")
    if not set(audience).intersection(named):
        raise TokenRefused("aud_wrong")

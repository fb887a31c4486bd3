"""The token issuers that a site trusts, for what, and how they are asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from appliance.authn.grant import USAGES, Usage
from appliance.authn.jwt import uri
from appliance.authn.jwt.jwk import SYMMETRIC
from appliance.authn.jwt.naming import rule_is_valid
from appliance.authn.jwt.pattern import RAW, ResponsePattern
from appliance.config.duration import Duration
from appliance.config.loader import default
from appliance.config.secret import FilePath, Secret
from appliance.config.words import read_yes_no
from appliance.errors import ConfigurationError

__all__ = ["ENVIRONMENT", "ClaimRule", "JWTConfig", "TrustedIssuer", "from_environment"]

Algorithm = Literal[
    "RS256",
    "RS384",
    "RS512",
    "PS256",
    "PS384",
    "PS512",
    "ES256",
    "ES384",
    "ES512",
    "EdDSA",
    "Ed25519",
    "HS256",
    "HS384",
    "HS512",
]


_HTTPS: Final = (
    "must use https, except on this machine's loopback address; if every host on the network between is trusted, describe the issuer in "
    "YAML with allow_insecure_http: true"
)
_MIN_SECRET_BYTES: Final = 32
"""RFC 7518 section 3.2: an HMAC key is at least as long as the hash."""
_TOKEN: Final = "#token#"  # noqa: S105 - what stands for one

_WORDS: Final = frozenset(("scope", "scp"))
"""Claims that are lists of words if they are strings. In all others a blank is a character like any other."""


class ClaimRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A rule that grants a usage only to tokens whose claim holds one of these values.

    `claim` is the claim's name, or a path of names separated by dots (``realm_access.roles``). A string claim is one
    value; an array claim is one value for each string in it. Only `scope` and `scp` are strings of words (RFC 6749
    section 3.3, RFC 8693 section 4.2). Booleans and numbers never match.
    A value that no claim can hold is refused.
    """

    claim: Annotated[str, Meta(min_length=1, max_length=200)]
    values: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=256)], ...], Meta(min_length=1, max_length=100)
    ]

    def __post_init__(self) -> None:
        for value in self.values:
            if self.claim in _WORDS and " " in value:
                raise ValueError(
                    f"values: {value!r} has a blank, but {self.claim} is a list of words separated by blanks; "
                    "write each word as a value of its own"
                )

    def holds(self, claims: dict[str, Any]) -> bool:
        """Whether a token with these claims holds one of the values."""
        return any(
            value in self.values for value in claim_values(claims, self.claim, words=self.claim in _WORDS)
        )


def claim_values(claims: dict[str, Any], name: str, *, words: bool) -> list[str]:
    """Return the strings of a claim.

    Args:
        claims: The token's claims.
        name: The claim's name, or a path of names separated by dots.
        words: Whether a string is a list of words separated by blanks; if not, it is one value.
    """
    value: Any = claims.get(name)
    if value is None:
        value = claims
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
    if isinstance(value, str):
        return value.split(" ") if words else [value]
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


class TrustedIssuer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One issuer of tokens. Settings that contradict each other are refused."""

    mode: Literal["introspect", "jwks", "shared_secret"] = "introspect"
    """How a token is proven: ask the validation endpoint, check the signature against published keys, or against a
    secret shared with the issuer."""
    issuer: Annotated[str, Meta(max_length=512)] = ""
    """The exact `iss`. Empty, in mode introspect only: whatever fits `trusted_uri`."""
    organization: Annotated[str, Meta(max_length=64)] = ""
    """The organization (O) of its subjects. Empty: the issuer's host; with port and path where it shares that host."""
    audience: tuple[str, ...] = ()
    """Acceptable `aud` values, one of which a token must name. Required in the modes jwks and shared_secret."""
    any_audience: bool = False
    """Accept tokens that were made out to someone else, in the modes that require `audience`."""
    algorithms: Annotated[tuple[Algorithm, ...], Meta(min_length=1)] = ("RS256", "PS256", "ES256", "EdDSA")
    """Acceptable `alg` values. HS* only alone."""
    typ: Annotated[tuple[str, ...], Meta(min_length=1)] = ("JWT", "at+jwt")
    """Acceptable `typ` values; an empty string accepts a token without one."""
    leeway_s: Annotated[int, Meta(ge=1, le=600)] = 60
    """Seconds that the issuer's clock may differ from ours."""
    longest_validity_s: Annotated[int, Meta(ge=60, le=366 * 86400)] = 7 * 86400
    """Seconds that a token may still be valid for; a longer one is refused."""
    require_jti: bool = False
    """Refuse tokens without an identifier, which could be used more than once."""
    usages: tuple[Usage, ...] = ("client",)
    """What a certificate obtained by a token may be used for."""
    usage_claims: dict[Usage, ClaimRule] = {}
    """For some usages, a claim that the token must hold as well."""
    approval: bool = False
    """Whether an administrator must approve each certificate."""
    lifetime: Duration = default(Duration())
    """Life of a certificate that its holder keeps by sending a new token in time: the end of each token is then the date by which
    the next one must come, and neither the file nor a connection changes. 0: the certificate ends with its token."""
    san_claim: Annotated[str, Meta(max_length=200)] = ""
    """The claim that names the alternative names (SAN) that a token entitles to. Empty: none."""
    subject_rule: str = "*"
    """Which part of `sub` becomes the name: literal text with one ``*``."""
    subject_extra_characters: Annotated[str, Meta(max_length=16)] = ""
    """Characters that a name may hold beyond ASCII letters, digits and ``._@+-``."""
    subject_non_ascii: bool = False
    """Allow letters of other scripts in names."""
    trusted_uri: Annotated[str, Meta(max_length=2048)] = ""
    """The validation endpoint (mode introspect)."""
    request_format: Annotated[str, Meta(max_length=4096)] = _TOKEN
    request_method: Literal["POST", "GET"] = "POST"
    request_authorization: Secret = default(Secret())
    """The Authorization header that the endpoint wants of us, such as ``Basic ...`` (request_method POST only)."""
    response_format: Annotated[str, Meta(max_length=4096)] = "#response#"
    response_member: Annotated[str, Meta(max_length=200)] = ""
    """The member of a JSON answer that says whether the token is valid, instead of a `response_format`."""
    use_response_code: bool = False
    jwks_uri: Annotated[str, Meta(max_length=2048)] = ""
    """The issuer's published keys (mode jwks)."""
    jwks_stale_s: Annotated[int, Meta(ge=0, le=7 * 86400)] = 86400
    """Seconds for which old keys are still used when new ones cannot be fetched."""
    shared_secret: Secret = default(Secret())
    """Where the secret is kept: ``${credential:NAME}`` or ``${file:/PATH}`` (mode shared_secret)."""
    ca_file: FilePath = default(FilePath())
    """PEM file of the CA that the endpoint's https certificate comes from; empty: the system's."""
    allow_insecure_http: bool = False
    """Accept ``http://`` beyond this machine for this issuer: whoever can read the network between sees every token, and whoever
    can change it decides which tokens are valid."""
    per_minute: Annotated[float, Meta(ge=0, le=1e6)] = 600.0
    """Submissions per minute for this issuer; 0: no limit."""
    burst: Annotated[int, Meta(ge=1, le=100_000)] = 100

    def __post_init__(self) -> None:
        self._check_issuer()
        symmetric = SYMMETRIC.intersection(self.algorithms)
        if symmetric and not SYMMETRIC.issuperset(self.algorithms):
            raise ValueError(
                "algorithms: HS* cannot be mixed with others: a public key would become a secret"
            )
        if self.mode == "jwks" and symmetric:
            raise ValueError("algorithms: HS* has no published keys; use mode shared_secret")
        if self.mode == "shared_secret" and not symmetric:
            raise ValueError("algorithms: mode shared_secret needs HS256, HS384 or HS512")
        self._check_endpoint()
        if self.mode != "introspect" and not self.audience and not self.any_audience:
            raise ValueError(f"audience: required in mode {self.mode} (or set any_audience: true)")
        if not rule_is_valid(self.subject_rule):
            raise ValueError("subject_rule: must hold exactly one '*'")
        stray = set(self.usage_claims) - set(self.usages)
        if stray:
            raise ValueError(f"usage_claims: {', '.join(sorted(stray))} is not among usages")

    def _check_issuer(self) -> None:
        if not self.issuer:
            if self.mode != "introspect":
                raise ValueError(f"issuer: required in mode {self.mode}")
            return
        where = uri.parse(self.issuer)
        if where is None:
            raise ValueError(f"issuer: {uri.fault(self.issuer)}")
        if not uri.is_acceptable(where, insecure_http=self.allow_insecure_http):
            raise ValueError(f"issuer: {_HTTPS}")
        if not self.organization:
            _check_host("issuer", where)

    def _check_endpoint(self) -> None:
        needed = {"introspect": "trusted_uri", "jwks": "jwks_uri", "shared_secret": "shared_secret"}
        for mode, name in needed.items():
            value = getattr(self, name)
            if mode == self.mode and not value:
                raise ValueError(f"{name}: required in mode {mode}")
            if mode != self.mode and value:
                raise ValueError(f"{name}: has no meaning in mode {self.mode}")
        for mode, names in _OF_MODE.items():
            for name in names:
                if mode != self.mode and _is_set(self, name):
                    raise ValueError(f"{name}: has no meaning in mode {self.mode}")
        if self.mode == "shared_secret":
            if len(self.shared_secret.reveal().encode("utf-8")) < _MIN_SECRET_BYTES:
                raise ValueError(f"shared_secret: must be at least {_MIN_SECRET_BYTES} bytes long")
        else:
            name = needed[self.mode]
            where = uri.parse(getattr(self, name))
            if where is None:
                raise ValueError(f"{name}: {uri.fault(getattr(self, name))}")
            if not uri.is_acceptable(where, insecure_http=self.allow_insecure_http):
                raise ValueError(f"{name}: {_HTTPS}")
        if self.response_member and (self.response_format != RAW or self.use_response_code):
            other = "use_response_code" if self.use_response_code else "response_format"
            raise ValueError(f"response_member: leaves nothing for {other} to decide; set one of them")
        if self.mode == "introspect":
            try:
                ResponsePattern(self.response_format)
            except ValueError as error:
                raise ValueError(f"response_format: {error}") from None
            if self.request_method == "POST" and _TOKEN not in self.request_format:
                raise ValueError("request_format: must hold #token#")
            if self.request_method == "GET" and self.request_authorization:
                raise ValueError("request_authorization: with GET the Authorization header carries the token")
            if not self.issuer and not self.organization:
                _check_host("trusted_uri", where)

    def warnings(self) -> list[str]:
        """Return a sentence for the log about each setting that is valid but probably not intended."""
        found = []
        if self.mode == "introspect":
            found.append(ResponsePattern(self.response_format).warning())
            if self.use_response_code and self.response_format != RAW:
                found.append("no effect with use_response_code, which uses the HTTP status only")
            found = [f"response_format: {text}" for text in found if text]
            if self.request_method == "GET" and self.request_format != _TOKEN:
                found.append("request_format: no effect with request_method GET")
        if self.allow_insecure_http:
            found.append(self._insecure())
        return [f"issuer {self.name}: {text}" for text in found]

    def _insecure(self) -> str:
        used = [
            (text, where)
            for text in (self.issuer, self.trusted_uri, self.jwks_uri)
            if (where := uri.parse(text)) is not None and not uri.is_acceptable(where)
        ]
        endpoint = next((text for text, _ in used if text != self.issuer), "")
        if not used:
            return "allow_insecure_http: no effect, because its addresses use https or are on this machine"
        if not endpoint:
            return "allow_insecure_http: only the name of the issuer has http; it is asked over https, or not at all"
        return (
            f"allow_insecure_http: {endpoint} is asked unencrypted, so whoever can read the network between sees what is asked, and "
            "whoever can change it decides which tokens are valid; use https"
        )

    @property
    def name(self) -> str:
        """The name of this issuer in logs and audit: its `iss`, or its endpoint if it has no `iss`."""
        return self.issuer or self.trusted_uri


_OF_MODE: Final = {
    "introspect": (
        "request_format",
        "request_method",
        "request_authorization",
        "response_format",
        "response_member",
        "use_response_code",
    ),
    "jwks": ("jwks_stale_s",),
}
"""Settings that apply to one mode only."""


def _is_set(issuer: TrustedIssuer, name: str) -> bool:
    value = getattr(issuer, name)
    default = next(field.default for field in msgspec.structs.fields(issuer) if field.name == name)
    return bool(value) if default is msgspec.NODEFAULT else value != default


def _check_host(name: str, where: uri.Uri | None) -> None:
    # It becomes the certificate's organisation (RFC 5280 appendix A, ub-organization-name).
    if where is not None and len(where.host) > 64:
        raise ValueError(
            f"{name}: its host becomes the certificate's organization, which holds 64 characters; set organization"
        )


class JWTConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The part of the certificate service's configuration for tokens."""

    issuers: Annotated[tuple[TrustedIssuer, ...], Meta(max_length=100)] = ()
    allow_plaintext_token: bool = False
    """Accept tokens that were sent over plain TCP, where anyone on the network can read them."""
    peer_per_minute: Annotated[float, Meta(ge=0, le=1e6)] = 60.0
    """Submissions per minute from one address; 0: no limit."""
    peer_burst: Annotated[int, Meta(ge=1, le=100_000)] = 20

    def __post_init__(self) -> None:
        names = [issuer.name for issuer in self.issuers]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"issuers: {min(twice)} is listed twice")
        for name, organization in self.organizations().items():
            octets = len(organization.encode("utf-8", "surrogatepass"))
            if octets > len(organization) and octets > 64:
                raise ValueError(
                    f"issuers: the organization of {name} has {octets} octets in UTF-8, and a certificate's name holds 64; write a "
                    "shorter one"
                )
            if len(organization) > 64:
                raise ValueError(
                    f"issuers: {name} shares its host with another issuer, and {organization!r} is longer than the 64 characters that "
                    "a certificate can hold to tell their users apart; set organization for it"
                )
        if sum(not issuer.issuer for issuer in self.issuers) > 1:
            raise ValueError(
                "issuers: only one issuer can be known by its trusted_uri alone; set issuer for the others"
            )

    def organizations(self) -> dict[str, str]:
        """Return the organization (O) in the certificates of each issuer's users, by the issuer's name.

        It is the issuer's host. Issuers on the same host, such as two realms, get port and path as well, because the same
        user name is a different person at each.
        """
        places = {issuer.name: uri.parse(issuer.name) for issuer in self.issuers}
        hosts = {name: "" if where is None else where.host for name, where in places.items()}
        found = {issuer.name: issuer.organization or hosts[issuer.name] for issuer in self.issuers}
        taken = list(found.values())
        for issuer in self.issuers:
            if not issuer.organization and taken.count(found[issuer.name]) > 1:
                found[issuer.name] = issuer.name.partition("://")[2].rstrip("/")
        return found


ENVIRONMENT: Final = {
    "EPICS_AUTH_JWT_REQUEST_FORMAT": "request_format",
    "EPICS_AUTH_JWT_REQUEST_METHOD": "request_method",
    "EPICS_AUTH_JWT_RESPONSE_FORMAT": "response_format",
    "EPICS_AUTH_JWT_TRUSTED_URI": "trusted_uri",
    "EPICS_AUTH_JWT_USE_RESPONSE_CODE": "use_response_code",
}
"""The variables of the quick start, and the setting of each one. The flags ``--jwt-*`` of pvacms are the same names in
lower case with dashes.
"""


def from_environment(environ: Mapping[str, str]) -> TrustedIssuer | None:
    """Return the issuer that the EPICS_AUTH_JWT_* variables describe; None if no trusted URI is set.

    Such an issuer may obtain every usage without approval, as in the quick start. For anything else, use YAML.

    Raises:
        ConfigurationError: A setting or a file cannot be used.
    """
    settings: dict[str, str | bool] = {}
    for variable, field in ENVIRONMENT.items():
        value = environ.get(variable, "")
        if not value.strip():
            continue
        if field == "use_response_code":
            settings[field] = read_yes_no(value) is True  # as the reference: every other word is no
        elif field == "request_method":
            settings[field] = value.strip().upper()
        elif field == "trusted_uri":
            settings[field] = value.strip()
        else:
            settings[field] = value
    if not settings.get("trusted_uri"):
        if settings:
            raise ConfigurationError(
                "required if any other EPICS_AUTH_JWT_* variable is set; it has no default",
                key="EPICS_AUTH_JWT_TRUSTED_URI",
            )
        return None
    try:
        return msgspec.convert({"mode": "introspect", "usages": list(USAGES), **settings}, TrustedIssuer)
    except msgspec.ValidationError as error:
        raise ConfigurationError(_why(str(error)), key=_variable(str(error))) from None


def _variable(text: str) -> str:
    for variable, field in ENVIRONMENT.items():
        if text.startswith(f"{field}:") or f"$.{field}`" in text:
            return variable
    return "EPICS_AUTH_JWT_*"


def _why(text: str) -> str:
    head, _, tail = text.partition(": ")
    return tail if head in ENVIRONMENT.values() else text.partition(" - at ")[0]

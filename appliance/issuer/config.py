"""The issuer's settings: from its YAML file, then from the variables of the quick start."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from appliance.authn.jwt import uri
from appliance.config.loader import Settings, default
from appliance.config.secret import FilePath, Secret
from appliance.errors import ConfigurationError
from appliance.issuer import passwords

__all__ = ["DEMO", "DEMO_HS_SECRET", "DEMO_PASSWORD", "VARIABLES", "IssuerConfig", "User", "with_environment"]

DEMO_PASSWORD: Final = "secret"  # noqa: S105 - public knowledge, and the reason why demo listens on loopback only
DEMO_HS_SECRET: Final = "dev-secret-change-me"  # noqa: S105 - likewise
_MIN_SECRET_BYTES: Final = 32
_MAX_CLAIMS_BYTES: Final = 2048


RESERVED: Final = frozenset(("iss", "sub", "aud", "exp", "nbf", "iat", "jti", "cnf"))
"""Claims that the issuer writes itself, or that name a key."""
_Word = Annotated[str, Meta(max_length=256)]
_Claim = str | int | bool | list[_Word]


class User(Settings, frozen=True, kw_only=True):
    """Someone who can fetch tokens for the subject of the same name."""

    password_hash: Annotated[str, Meta(max_length=512)]
    """A line of ``jwt-issuer --hash-password``."""
    claims: Annotated[
        dict[Annotated[str, Meta(min_length=1, max_length=128)], _Claim], Meta(max_length=32)
    ] = msgspec.field(default_factory=dict)
    """Further claims of the user's tokens, such as groups or alternative names: texts, numbers, booleans or lists of texts. 2 KB."""

    def __post_init__(self) -> None:
        if not passwords.is_hash(self.password_hash):
            raise ValueError("password_hash: make one with jwt-issuer --hash-password")
        for name in sorted(RESERVED.intersection(self.claims)):
            raise ValueError(
                f"claims: {name} is one of the issuer's own claims ({', '.join(sorted(RESERVED))})"
            )
        if any(isinstance(value, int) and abs(value) >> 53 for value in self.claims.values()):
            raise ValueError("claims: a number is larger than JSON readers keep (53 bits); write it as text")
        if len(msgspec.json.encode(self.claims)) > _MAX_CLAIMS_BYTES:
            raise ValueError(f"claims: they take more than {_MAX_CLAIMS_BYTES} bytes")

    def __repr__(self) -> str:
        return "User(***)"


class IssuerConfig(Settings, frozen=True, kw_only=True):
    """The issuer's configuration. Settings that contradict each other are refused."""

    listen: Annotated[tuple[str, ...], Meta(min_length=1, max_length=16)] = ("127.0.0.1",)
    """Addresses to listen on."""
    port: Annotated[int, Meta(ge=0, le=65535)] = 8080
    """TCP port; 0: any free one."""
    allow_remote: bool = False
    """Permit addresses beyond loopback. This is a demonstration issuer: think twice."""
    tls_certificate: FilePath = default(FilePath())
    """PEM chain; with it and `tls_key` the issuer speaks https."""
    tls_key: FilePath = default(FilePath())
    """PEM key of `tls_certificate`."""
    issuer: Annotated[str, Meta(min_length=1, max_length=512)] = "http://localhost:8080/default"
    """The `iss` of tokens."""
    default_audience: Annotated[str, Meta(max_length=512)] = "default"
    """The `aud` of tokens whose request names none."""
    default_exp_secs: Annotated[int, Meta(ge=1)] = 3600
    """Life of a token whose request names none, in seconds."""
    max_exp_secs: Annotated[int, Meta(ge=60, le=366 * 86400)] = 7 * 86400
    """Longest life that a request may ask for, in seconds."""
    algo: Literal["RS256", "HS256"] = "RS256"
    """How tokens are signed."""
    key_dir: FilePath = default(FilePath("/data/keys"))
    """Where the signing keys are kept."""
    kid: Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9._~-]+$")] = "demo-key-1"
    """Name of the first signing key; rotation counts on from it."""
    hs_secret: Secret = default(Secret())
    """The secret for HS256."""
    users: dict[Annotated[str, Meta(min_length=1, max_length=64)], User] = msgspec.field(default_factory=dict)
    """By name, which is the subject of the user's tokens. Either this or `demo` is needed."""
    demo: bool = False
    """Give a token for any subject to whoever sends the password ``secret``."""

    def __post_init__(self) -> None:
        beyond = [address for address in self.listen if not uri.is_loopback(address)]
        if beyond and not self.allow_remote:
            raise ValueError(
                f"listen: {beyond[0]} is reachable from other machines, and this is a demonstration issuer: "
                "set allow_remote: true if you really want that"
            )
        if beyond and self.demo:
            raise ValueError(
                "listen: with demo: true everybody knows the password, so loopback addresses only"
            )
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise ValueError("tls_key: tls_certificate and tls_key go together")
        if self.default_exp_secs > self.max_exp_secs:
            raise ValueError("default_exp_secs: is larger than max_exp_secs")
        if self.algo == "HS256" and not self.demo and len(self.hmac_secret.encode()) < _MIN_SECRET_BYTES:
            raise ValueError(
                f"hs_secret: HS256 needs at least {_MIN_SECRET_BYTES} bytes (RFC 7518 section 3.2)"
            )
        if not self.users and not self.demo:
            raise ValueError("users: nobody could fetch a token; add users (or demo: true on a test machine)")

    @property
    def hmac_secret(self) -> str:
        """The secret for HS256; the demonstration's own if none is set and `demo` is."""
        return self.hs_secret.reveal() or (DEMO_HS_SECRET if self.demo else "")


DEMO: Final = IssuerConfig(demo=True)
"""The settings without a configuration file: the quick start's issuer."""

VARIABLES: Final = {
    "PORT": "port",
    "ISSUER": "issuer",
    "DEFAULT_AUDIENCE": "default_audience",
    "DEFAULT_EXP_SECS": "default_exp_secs",
    "ALGO": "algo",
    "KEY_DIR": "key_dir",
    "KID": "kid",
    "HS_SECRET": "hs_secret",
}
"""The environment variables, and the settings that they set if the file does not."""


def with_environment(
    config: IssuerConfig, environ: Mapping[str, str], *, written: Collection[str] = ()
) -> IssuerConfig:
    """Return `config` with the variables that are set and not empty, except for settings that are `written` in its file.

    Raises:
        ConfigurationError: A variable is bad; the text names it.
    """
    changes: dict[str, object] = {}
    for variable, field in VARIABLES.items():
        text = environ.get(variable, "")
        if not text or field in written:
            continue
        if field in {"port", "default_exp_secs"}:
            try:
                changes[field] = int(text)
            except ValueError:
                raise ConfigurationError("must be an integer", key=variable) from None
        elif field == "hs_secret":
            changes[field] = Secret(text)
        elif field == "key_dir":
            changes[field] = FilePath(text)
        else:
            changes[field] = text.upper() if field == "algo" else text
    if not changes:
        return config
    fields = {name: getattr(config, name) for name in config.__struct_fields__} | changes
    try:
        return msgspec.convert(fields, IssuerConfig, dec_hook=_keep, from_attributes=True)
    except msgspec.ValidationError as error:
        text = str(error)
        variable = next(
            (v for v, f in VARIABLES.items() if f"$.{f}`" in text or text.startswith(f"{f}:")), ""
        )
        raise ConfigurationError(text.partition(" - at ")[0], key=variable or None) from None


def _keep(kind: type, value: object) -> object:
    if isinstance(value, kind):
        return value
    msg = f"expected {kind.__name__}"
    raise ValueError(msg)

"""``EPICS_PVA_TLS_OPTIONS``: words separated by blanks, each ``option`` or ``option=value``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

from appliance.config.words import YES_NO
from appliance.errors import KeychainError

__all__ = ["TLS_REQUIRED", "TLSOptions", "check_keychain_set", "parse_tls_options"]

TLS_REQUIRED: Final = "plain TCP is refused because of the TLS option tls_required"

_CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "client_cert": ("optional", "require"),
    "on_expiration": ("fallback-to-tcp", "shutdown", "standby"),
    "on_no_cms": ("fallback-to-tcp", "throw"),
    "on_no_keychain": ("fallback-to-tcp", "throw"),
}
_FLAGS: Final = ("no_revocation_check", "no_stapling", "tls_required")
# A flag without a value, or with an empty one, is set: until now people had to write "no_revocation_check=".
_FLAG_VALUES: Final = {"": True, **YES_NO}


class TLSOptions(NamedTuple):
    """How TLS behaves if the protocol leaves a choice.

    Source: SPVA configuration reference, EPICS_PVA_TLS_OPTIONS.
    """

    client_cert: Literal["default", "optional", "require"] = "default"
    """What a server requires of a client; ``default`` means ``optional``."""
    on_expiration: Literal["fallback-to-tcp", "shutdown", "standby"] = "fallback-to-tcp"
    """What to do after our own certificate has expired and no new one came in time."""
    on_no_cms: Literal["fallback-to-tcp", "throw"] = "fallback-to-tcp"
    """What to do if the CMS does not give the certificate's status."""
    on_no_keychain: Literal["fallback-to-tcp", "throw"] = "throw"
    """What to do at the start if there should be a keychain and it cannot be used. Our own option: the reference
    implementations do not know it."""
    no_revocation_check: bool = False
    """Whether certificates are used without asking for their status."""
    no_stapling: bool = False
    """Whether servers staple no status and clients ask for none."""
    tls_required: bool = False
    """Whether plain TCP is neither served nor used. Our own option: the reference implementations do not know it."""

    @property
    def client_cert_required(self) -> bool:
        """Whether a client without an acceptable certificate is refused in the handshake."""
        return self.client_cert == "require"

    def render(self) -> str:
        """Return the words that give these options, in the order in which PVXS prints them."""
        words = [] if self.client_cert == "default" else [f"client_cert={self.client_cert}"]
        words.append(f"on_expiration={self.on_expiration}")
        words += [flag for flag in _FLAGS if getattr(self, flag)]
        words.append(f"on_no_cms={self.on_no_cms}")
        if self.on_no_keychain != "throw":
            words.append(f"on_no_keychain={self.on_no_keychain}")
        return " ".join(words)

    def __str__(self) -> str:
        return self.render()


def parse_tls_options(text: str | Mapping[str, str | bool]) -> tuple[TLSOptions, list[str]]:
    """Read options.

    A typing error in a variable must not stop a tool, so this never raises. Callers for which it is an error (arguments,
    YAML) refuse if there are warnings.

    Returns:
        The options, and one sentence for each word that was ignored.
    """
    warnings: list[str] = []
    chosen: dict[str, Any] = {}
    for key, value in _pairs(text):
        word = key if value is None else f"{key}={value}"
        if key in _CHOICES:
            if value in _CHOICES[key]:
                chosen[key] = value
            else:
                warnings.append(f"ignored TLS option {word!r}: expected {_alternatives(key, _CHOICES[key])}")
        elif key in _FLAGS:
            flag = _FLAG_VALUES.get((value or "").lower())
            if flag is None and key == "tls_required":
                # Whoever wrote this probably wanted no plain TCP, so a typing error must not allow it.
                chosen[key] = True
                warnings.append(
                    f"TLS option {word!r} is taken as {key}=yes: expected {key} alone, or {key}=yes or {key}=no"
                )
            elif flag is None:
                warnings.append(
                    f"ignored TLS option {word!r}: expected {key} alone, or {key}=yes or {key}=no"
                )
            else:
                chosen[key] = flag
        else:
            warnings.append(
                f"ignored unknown TLS option {word!r}: known are {', '.join((*_CHOICES, *_FLAGS))}"
            )
    return TLSOptions(**chosen), warnings


def check_keychain_set(options: TLSOptions, keychain: str, variable: str) -> None:
    """Raise KeychainError if TLS is required and no keychain is configured; ``variable`` would name one."""
    if options.tls_required and not keychain:
        raise KeychainError(
            f"there is no keychain, and {TLS_REQUIRED}; set {variable} to a keychain, or make one with "
            "authnstd or authnjwt"
        )


def _pairs(text: str | Mapping[str, str | bool]) -> list[tuple[str, str | None]]:
    if isinstance(text, str):
        split = [word.partition("=") for word in text.split()]
        return [(key, value if equals else None) for key, equals, value in split]
    return [
        (key, ("yes" if value else "no") if isinstance(value, bool) else value) for key, value in text.items()
    ]


def _alternatives(key: str, values: tuple[str, ...]) -> str:
    words = [f"{key}={value}" for value in values]
    return f"{', '.join(words[:-1])} or {words[-1]}"

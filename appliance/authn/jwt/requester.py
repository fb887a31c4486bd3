"""A request that carries a JSON Web Token: where the token comes from, and what can be checked before it is sent.

The token comes from a file or from standard input, never from the command line, where every user of the machine can
read it. Nothing here proves anything; the certificate service does that. A token that the service would certainly
refuse is refused here, before anything leaves the host, with a sentence that says what to do.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final

from appliance.authn.ccr import CertRequest
from appliance.authn.jwt.token import MAX_TOKEN_BYTES, Token, clean, parse
from appliance.authn.settings import RequesterSettings
from appliance.certs.status import format_date
from appliance.config.files import read_private
from appliance.errors import ConfigurationError, SecurityError, TokenRefused

__all__ = ["TOKEN_VARIABLE", "check_token", "jwt_request", "read_token", "shown_date", "token_source"]

TOKEN_VARIABLE: Final = "EPICS_AUTH_JWT_FILE"  # noqa: S105 - a name, not a secret
"""The variable that names the token's file if ``--token-file`` is not given."""
_LEEWAY_S: Final = 60
_WHERE: Final = (
    f"name its file with --token-file or {TOKEN_VARIABLE}, or give it on standard input with --token-file -"
)


def token_source(option: str | None, environ: Mapping[str, str]) -> str:
    """Return where the token is: a path, or ``-`` for standard input.

    Raises:
        ConfigurationError: Neither is given.
    """
    source = option or environ.get(TOKEN_VARIABLE, "")
    if not source:
        raise ConfigurationError(f"no token was given: {_WHERE}")
    if source.startswith("eyJ") and source.count(".") == 2:
        # The user has pasted the token itself. The message must not repeat it.
        raise ConfigurationError(
            f"other users can read a token on the command line or in a variable; treat it as exposed, fetch a new one, and {_WHERE}"
        )
    if source == "~" or source.startswith("~/"):
        source = os.path.expanduser(source)  # noqa: PTH111 - start-up time
    return source


def read_token(source: str, say: Callable[[str], None]) -> Token:
    """Read the token and take it apart.

    A file that others can read gives a warning only: the demonstration's own instructions make such a file, and refusing
    it would not make the token more secret.

    Raises:
        ConfigurationError: The source cannot be read.
        SecurityError: It holds no token.
    """
    if source == "-":
        text = _from_stdin()
        where = "standard input"
    else:
        read = read_private(source, MAX_TOKEN_BYTES + 1024, strict=False)
        if read.finding:
            say(f"Warning: {read.finding}")
        text, where = _decode(read.data), source
    if not text:
        raise ConfigurationError(f"{where} holds no token; fetch one from the issuer first")
    try:
        return parse(text)
    except TokenRefused as error:
        # From None: the chain of exceptions would contain the text of the token.
        raise SecurityError(
            f"{where} holds no usable JSON Web Token ({error.reason.replace('_', ' ')}); fetch a new one from the issuer, and "
            "store its answer unchanged"
        ) from None


def _from_stdin() -> str:
    if sys.stdin is None or sys.stdin.isatty():
        raise ConfigurationError(f"standard input is a terminal, which would show the token: {_WHERE}")
    return _decode(sys.stdin.buffer.read(MAX_TOKEN_BYTES + 1024))


def _decode(data: bytes) -> str:
    return data.decode("ascii", "replace").strip()


def check_token(token: Token, *, now: datetime) -> None:
    """Refuse a token that the certificate service would certainly refuse.

    Raises:
        SecurityError: The token is not acceptable; the text says what to do.
    """
    moment = now.timestamp()
    expires = token.claims.get("exp")
    if isinstance(expires, int) and not isinstance(expires, bool) and moment >= expires + _LEEWAY_S:
        raise SecurityError(f"token expired at {shown_date(expires)}; fetch a new one")
    starts = token.claims.get("nbf")
    if isinstance(starts, int) and not isinstance(starts, bool) and starts > moment + 600:
        raise SecurityError(
            f"the token is not valid before {shown_date(starts)}, and this host's time is {format_date(now)}; check this host's clock"
        )
    subject = token.claims.get("sub")
    if not isinstance(subject, str) or not subject:
        raise SecurityError(
            "the token has no subject (claim sub), which would become the certificate's name; ask the issuer for a token of "
            "a user account"
        )


def shown_date(seconds: int) -> str:
    """Return a claim's POSIX second as text for a user, however large the number is."""
    try:
        return format_date(datetime.fromtimestamp(seconds, UTC))
    except (ValueError, OverflowError, OSError):
        return f"the second {seconds}"


def jwt_request(settings: RequesterSettings, token: Token) -> Callable[[str], CertRequest]:
    """Return the function that makes the request from the public key. The name is for the log: the service uses the token's."""
    subject = token.claims.get("sub")

    def make(pub_key: str) -> CertRequest:
        return CertRequest(
            type="jwt",
            usage=settings.usage,
            pub_key=pub_key,
            name=clean(subject, 64) if isinstance(subject, str) else "",
            no_status=settings.no_status,
            schedule=settings.schedule,
            time_zone=settings.time_zone,
            san=settings.san,
            config_uri_base=settings.config_uri_base,
            verifier={"token": token.text},
        )

    return make

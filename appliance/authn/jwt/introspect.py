"""Asking the issuer's validation endpoint, as the EPICS_AUTH_JWT_* variables describe it."""

from __future__ import annotations

import re
from typing import Final

from appliance.authn.jwt.config import TrustedIssuer
from appliance.authn.jwt.fetch import Fetcher, FetchError, check_endpoint
from appliance.authn.jwt.pattern import ResponsePattern
from appliance.authn.jwt.token import Token
from appliance.errors import TokenRefused

__all__ = ["CANNOT_ASK", "MAX_RESPONSE_BYTES", "Introspector", "render"]

MAX_RESPONSE_BYTES: Final = 64 * 1024
CANNOT_ASK: Final = "the token's issuer could not be asked; try again later"
_PLAIN_KID: Final = re.compile(r"[A-Za-z0-9._~-]+")


def render(request_format: str, token: Token) -> str:
    """The request's payload: `request_format` verbatim but for ``#token#`` and ``#kid#``.

    A token's own alphabet is harmless in every format; a key id may hold anything, so only one that needs no quoting in
    JSON, forms or XML is put in. Raises TokenRefused for another one.
    """
    if "#kid#" in request_format:
        kid = token.kid or ""
        if kid and _PLAIN_KID.fullmatch(kid) is None:
            raise TokenRefused("kid_not_plain")
        request_format = request_format.replace("#kid#", kid)
    return request_format.replace("#token#", token.text)


def _content_type(request_format: str) -> str:
    form = request_format.strip()
    if form[:1] in {"{", "["}:
        return "application/json"
    if re.match(r"[A-Za-z0-9_.-]+=", form):
        return "application/x-www-form-urlencoded"
    return "text/plain; charset=utf-8"


class Introspector:
    """Asks one issuer about tokens.

    With GET the token travels as the bearer in the Authorization header and as the query parameter ``token`` too, and
    `request_format` has no meaning; with POST the payload is the rendered format.
    """

    def __init__(self, issuer: TrustedIssuer, fetcher: Fetcher) -> None:
        self._issuer = issuer
        self._fetcher = fetcher
        self._pattern = ResponsePattern(issuer.response_format)
        self._headers = {"Content-Type": _content_type(issuer.request_format)}
        if issuer.request_authorization:
            self._headers["Authorization"] = issuer.request_authorization.reveal()

    async def check(self, token: Token) -> None:
        """Return when the issuer says that the token is valid; raise TokenRefused in every other case."""
        issuer = self._issuer
        try:
            check_endpoint(issuer.trusted_uri)
            if issuer.request_method == "GET":
                answer = await self._fetcher.request(
                    "GET",
                    issuer.trusted_uri,
                    limit=MAX_RESPONSE_BYTES,
                    params={"token": token.text},
                    headers={"Authorization": f"Bearer {token.text}"},
                )
            else:
                answer = await self._fetcher.request(
                    "POST",
                    issuer.trusted_uri,
                    limit=MAX_RESPONSE_BYTES,
                    headers=self._headers,
                    body=render(issuer.request_format, token).encode("utf-8"),
                )
        except FetchError as error:
            raise TokenRefused(f"introspect_{error.reason}", CANNOT_ASK) from None
        if issuer.use_response_code:
            if answer.status != 200:
                raise TokenRefused("introspect_says_invalid")
            return
        if not 200 <= answer.status < 300:
            raise TokenRefused(
                "introspect_says_invalid" if answer.status < 500 else "introspect_server_error", CANNOT_ASK
            )
        try:
            text = answer.body.decode("utf-8")
        except UnicodeDecodeError:
            raise TokenRefused("introspect_not_text") from None
        if not self._pattern.accepts(text):
            raise TokenRefused("introspect_says_invalid")

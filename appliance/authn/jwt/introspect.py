"""Ask the issuer's validation endpoint, as the EPICS_AUTH_JWT_* variables describe it."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Final, NoReturn

from appliance.authn.jwt.config import TrustedIssuer
from appliance.authn.jwt.fetch import Fetcher, FetchError, Response, check_endpoint
from appliance.authn.jwt.pattern import NO_PLACE, SAYS_NO, response_reader
from appliance.authn.jwt.token import Token, clean
from appliance.authn.ratelimit import RateLimiter
from appliance.errors import TokenRefused

__all__ = ["CANNOT_ASK", "MAX_RESPONSE_BYTES", "Introspector", "render"]

MAX_RESPONSE_BYTES: Final = 64 * 1024
CANNOT_ASK: Final = "the token's issuer could not be asked; try again later"
_INVALID: Final = "the token's issuer does not say that the token is valid; fetch a new one and try again"
_UNCLEAR: Final = "the token's issuer answered, but its answer says nothing about the token{}; tell the administrator of the certificate service"
_SAY_NO: Final = frozenset((400, 401, 403))
"""The statuses that endpoints answer for a bad token. Every other status except 2xx says nothing about the token."""
_METHOD: Final = "EPICS_AUTH_JWT_REQUEST_METHOD (request_method)"
_MAY_BE_GET: Final = (
    "it may know GET only, and POST is used where no method is configured: set EPICS_AUTH_JWT_REQUEST_METHOD=GET "
    "(request_method: GET)"
)
_HINTS: Final = {
    "GET": {
        404: "check EPICS_AUTH_JWT_TRUSTED_URI (trusted_uri)",
        405: "it may know POST only: set EPICS_AUTH_JWT_REQUEST_METHOD=POST (request_method: POST)",
    },
    "POST": {
        400: f"check EPICS_AUTH_JWT_REQUEST_FORMAT (request_format), and {_METHOD}",
        401: "it may require authentication: set request_authorization",
        403: "it may require authentication: set request_authorization",
        404: f"check EPICS_AUTH_JWT_TRUSTED_URI (trusted_uri), and {_METHOD}",
        405: _MAY_BE_GET,
        415: "check EPICS_AUTH_JWT_REQUEST_FORMAT (request_format)",
        501: _MAY_BE_GET,
    },
}
_log = logging.getLogger(__name__)
_PLAIN_KID: Final = re.compile(r"[A-Za-z0-9._~-]+")


def render(request_format: str, token: Token) -> str:
    """Return the request's payload: `request_format` as it is, with ``#token#`` and ``#kid#`` replaced.

    A token's own characters are harmless in every format. A key id may hold any character, so it is inserted only if it
    needs no quoting in JSON, forms or XML.

    Raises:
        TokenRefused: The key id needs quoting.
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
    """Ask one issuer about tokens.

    With GET, the token is sent as the bearer in the Authorization header and also as the query parameter ``token``;
    `request_format` has no effect. With POST, the payload is the rendered format. `clock` is monotonic: the log reports
    each kind of failure once a minute.
    """

    def __init__(self, issuer: TrustedIssuer, fetcher: Fetcher, *, clock: Callable[[], float]) -> None:
        self._issuer = issuer
        self._fetcher = fetcher
        self._read = response_reader(issuer.response_member, issuer.response_format)
        self._headers = {"Content-Type": _content_type(issuer.request_format)}
        if issuer.request_authorization:
            self._headers["Authorization"] = issuer.request_authorization.reveal()
        self._told = RateLimiter(1, 1, clock=clock)

    async def check(self, token: Token) -> None:
        """Return if the issuer says that the token is valid; raise TokenRefused in every other case."""
        try:
            answer = await self._ask(token)
        except FetchError as error:
            public = _UNCLEAR.format(f" ({error})") if error.answered else CANNOT_ASK
            self._refuse(error.reason, public, str(error), status=error.status)
        status = answer.status
        said = f"HTTP status {status}"
        if status == 200 and self._issuer.use_response_code:
            return
        if 200 <= status < 300 and not self._issuer.use_response_code:
            reason = self._read(answer.body)
            if reason == SAYS_NO:
                self._refuse(reason, _INVALID, said, status=status)
            if reason is not None:
                said += f", but not as {self._setting()} says: {reason.replace('_', ' ')}"
                # An answer of another form is not a yes. Often it is a short form of no: {"active":false}.
                self._refuse(SAYS_NO if reason == NO_PLACE else reason, _INVALID, said, status=status)
            return
        if status in _SAY_NO or 200 <= status < 300:
            self._refuse(SAYS_NO, _INVALID, said, status=status, hint=self._hint(answer))
        if status == 429:
            wait = f"; try again after {clean(answer.retry_after, 40)}" if answer.retry_after else ""
            self._refuse(
                "asked_too_often",
                "the token's issuer is asked too often (HTTP status 429); try again later",
                said + wait,
                status=status,
            )
        self._refuse(
            "server_error" if status >= 500 else "unexpected_status",
            _UNCLEAR.format(f" ({said})"),
            said,
            status=status,
            hint=self._hint(answer),
        )

    async def _ask(self, token: Token) -> Response:
        issuer = self._issuer
        check_endpoint(issuer.trusted_uri, insecure_http=issuer.allow_insecure_http)
        if issuer.request_method == "GET":
            return await self._fetcher.request(
                "GET",
                issuer.trusted_uri,
                limit=MAX_RESPONSE_BYTES,
                params={"token": token.text},
                headers={"Authorization": f"Bearer {token.text}"},
            )
        return await self._fetcher.request(
            "POST",
            issuer.trusted_uri,
            limit=MAX_RESPONSE_BYTES,
            headers=self._headers,
            body=render(issuer.request_format, token).encode("utf-8"),
        )

    def _setting(self) -> str:
        issuer = self._issuer
        if issuer.response_member:
            return f"response_member: {clean(issuer.response_member)}"
        return f"EPICS_AUTH_JWT_RESPONSE_FORMAT (response_format: {clean(issuer.response_format)!r})"

    def _hint(self, answer: Response) -> str:
        issuer = self._issuer
        if answer.status in (401, 403) and issuer.request_authorization:
            return "check request_authorization"
        hint = _HINTS[issuer.request_method].get(answer.status, "")
        if answer.status == 405 and answer.allow:
            allowed = {method.strip().upper() for method in answer.allow.split(",")}
            hint = hint if allowed & ({"GET", "POST"} - {issuer.request_method}) else ""
            hint += f"{'; ' if hint else ''}it allows {clean(answer.allow, 100)}"
        return hint

    def _refuse(self, reason: str, public: str, said: str, *, status: int, hint: str = "") -> NoReturn:
        facts = {"issuer_answer": said}
        if status:
            facts["http_status"] = str(status)
        if hint:
            facts["hint"] = hint
        plain_no = reason == SAYS_NO and not hint and said == f"HTTP status {status}"
        if not plain_no and not self._told.take(f"{reason} {status}"):
            asked = f"{self._issuer.request_method} {self._issuer.trusted_uri}"
            _log.warning("the issuer's endpoint (%s): %s%s", asked, said, f"; {hint}" if hint else "")
        raise TokenRefused(f"introspect_{reason}", public, facts=facts) from None

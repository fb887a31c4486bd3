"""The issuer's routes: those of the quick start's Flask application, byte for byte, and a few more.

This module never logs a query string, a body or a header, because they contain passwords and tokens.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import jwt
from aiohttp import web

from appliance.authn.jwt import uri
from appliance.authn.jwt.token import MAX_TOKEN_BYTES
from appliance.authn.ratelimit import RateLimiter, peer_key, retry_sentence
from appliance.issuer import passwords
from appliance.issuer.config import DEMO_PASSWORD, IssuerConfig
from appliance.issuer.keys import KeyStore

__all__ = ["MAX_LINE_BYTES", "Issuer"]

MAX_LINE_BYTES: Final = 3 * MAX_TOKEN_BYTES
"""Room for the longest token, percent-encoded or in a header, beside the other parameters."""
_MAX_BODY_BYTES: Final = 2 * MAX_TOKEN_BYTES
_MAX_PARAMETER_CHARS: Final = 512
_JWKS_MAX_AGE_S: Final = 300
_FAILURES_PER_MINUTE: Final = 12.0
_FAILURES_AT_ONCE: Final = 10

_log = logging.getLogger(__name__)
_access_log = logging.getLogger("appliance.issuer.access")

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_PAGES: Final = {
    404: "The requested URL was not found on the server. If you entered the URL manually please check your spelling and try again.",
    405: "The method is not allowed for the requested URL.",
}


def _json(value: Any, status: int = 200) -> web.Response:
    # As Flask's jsonify: sorted, compact, ASCII, a line end; no charset in the content type.
    body = json.dumps(value, sort_keys=True, separators=(",", ":")) + "\n"
    return web.Response(body=body.encode("ascii"), status=status, content_type="application/json")


def _page(status: int, reason: str, text: str) -> web.Response:
    body = f"<!doctype html>\n<html lang=en>\n<title>{status} {reason}</title>\n<h1>{reason}</h1>\n<p>{text}</p>\n"
    return web.Response(text=body, status=status, content_type="text/html", charset="utf-8")


class Issuer:
    """The application. `wall` gives POSIX seconds, `clock` monotonic ones."""

    def __init__(
        self,
        config: IssuerConfig,
        keys: KeyStore | None,
        *,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.keys = keys
        """None with HS256."""
        self._wall = wall
        self._clock = clock
        self._failures = RateLimiter(_FAILURES_PER_MINUTE, _FAILURES_AT_ONCE, clock=clock)
        # Hashing is expensive on purpose; this limits what strangers can make us spend on it.
        self._hashing = asyncio.Semaphore(2)

    def application(self) -> web.Application:
        """Return the aiohttp application."""
        app = web.Application(middlewares=[self._around], client_max_size=_MAX_BODY_BYTES)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/default/token", self._token)
        app.router.add_post("/default/token", self._token)
        app.router.add_get("/default/verify", self._verify)
        app.router.add_post("/default/verify", self._verify)
        app.router.add_get("/.well-known/jwks.json", self._jwks)
        app.router.add_get("/default/jwks", self._jwks)
        app.router.add_get("/.well-known/openid-configuration", self._discovery)
        app.router.add_get("/default/.well-known/openid-configuration", self._discovery)
        return app

    @web.middleware
    async def _around(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        started = self._clock()
        try:
            response = await handler(request)
        except web.HTTPException as error:
            if error.status == 405 and request.method == "OPTIONS":
                response = web.Response(content_type="text/html", charset="utf-8")
            else:
                reason = error.reason.title() if error.status != 404 else "Not Found"
                response = _page(error.status, reason, _PAGES.get(error.status, error.reason))
            if "Allow" in error.headers:
                response.headers["Allow"] = error.headers["Allow"]
        except Exception as error:  # noqa: BLE001 - its text may quote the request
            _log.error("a request failed because of a defect: %s", type(error).__name__)
            response = _page(500, "Internal Server Error", "The request could not be served.")
        response.headers["Cache-Control"] = response.headers.get("Cache-Control", "no-store")
        _access_log.info(
            "%s %s %s %d %.1f ms",
            request.remote,
            request.method,
            request.rel_url.raw_path[:200],
            response.status,
            (self._clock() - started) * 1e3,
            extra={"event": "http-request", "peer": str(request.remote), "status": response.status},
        )
        return response

    async def _healthz(self, _request: web.Request) -> web.Response:
        return _json({"status": "ok"})

    async def _token(self, request: web.Request) -> web.Response:
        arguments = await _arguments(request)
        subject = arguments.get("sub", "")
        if not subject:
            return _json({"error": "missing 'sub'"}, 400)
        for name in ("sub", "aud", "iss"):
            if len(arguments.get(name, "")) > _MAX_PARAMETER_CHARS:
                return _json({"error": f"'{name}' is longer than {_MAX_PARAMETER_CHARS} characters"}, 400)
        peer = peer_key(request.remote or "")
        wait_s = 0.0 if self.config.demo else self._failures.wait(peer)
        if wait_s:
            return _json({"error": retry_sentence(wait_s)}, 429)
        if not await self._password_is_right(subject, arguments.get("password", "")):
            self._failures.take(peer)
            return web.Response(text="Forbidden", status=403, content_type="text/html", charset="utf-8")
        life = _life(arguments.get("exp_secs"), self.config)
        if life is None:
            return _json(
                {"error": f"'exp_secs' must be an integer from 1 to {self.config.max_exp_secs}"}, 400
            )
        now = int(self._wall())
        user = self.config.users.get(subject)
        claims = {
            **({} if user is None else user.claims),
            "sub": subject,
            "iss": arguments.get("iss", self.config.issuer),
            "aud": arguments.get("aud", self.config.default_audience),
            "iat": now,
            "nbf": now,
            "exp": now + life,
            "jti": str(uuid.uuid4()),
        }
        kid, key = (self.config.kid, self.config.hmac_secret) if self.keys is None else self.keys.current
        token = jwt.encode(claims, key, algorithm=self.config.algo, headers={"kid": kid, "typ": "JWT"})
        return web.Response(text=token, content_type="text/plain", charset="utf-8")

    async def _password_is_right(self, subject: str, password: str) -> bool:
        if len(password.encode("utf-8", "replace")) > passwords.MAX_PASSWORD_BYTES:
            return False
        if self.config.demo and hmac.compare_digest(
            password.encode("utf-8", "replace"), DEMO_PASSWORD.encode()
        ):
            return True
        if not self.config.users:
            return False
        user = self.config.users.get(subject)
        line = passwords.UNKNOWN_USER if user is None else user.password_hash
        async with self._hashing:
            return await asyncio.get_running_loop().run_in_executor(None, passwords.matches, password, line)

    async def _verify(self, request: web.Request) -> web.Response:
        arguments = await _arguments(request)
        token = arguments.get("token", "") or _bearer(request)
        if not token:
            return _json({"valid": False, "error": "missing 'token'"}, 400)
        if len(token) > MAX_TOKEN_BYTES:
            return _json({"valid": False, "error": "Token is too long"})
        audience = arguments.get("expected_aud")
        try:
            header = jwt.get_unverified_header(token)
            claims = jwt.decode(
                token,
                self._verification_key(header.get("kid")),
                algorithms=[self.config.algo],
                issuer=arguments.get("expected_iss", self.config.issuer),
                audience=audience or None,
                options={"require": ["exp", "iat", "nbf", "iss", "sub"], "verify_aud": bool(audience)},
            )
        except Exception as error:  # noqa: BLE001 - every failure of the library means: not valid
            return _json({"valid": False, "error": str(error)})
        return _json({"valid": True, "header": header, "claims": claims})

    def _verification_key(self, kid: Any) -> Any:
        if self.keys is None:
            return self.config.hmac_secret
        return self.keys.public_key(kid if isinstance(kid, str) else None, self._wall())

    async def _jwks(self, _request: web.Request) -> web.Response:
        response = _json({"keys": [] if self.keys is None else self.keys.jwks(self._wall())})
        response.headers["Cache-Control"] = f"public, max-age={_JWKS_MAX_AGE_S}"
        return response

    async def _discovery(self, request: web.Request) -> web.Response:
        where = uri.parse(self.config.issuer)
        base = str(request.url.origin()) if where is None else self.config.issuer.removesuffix(where.path)
        return _json(
            {
                "issuer": self.config.issuer,
                "jwks_uri": f"{base}/.well-known/jwks.json",
                "token_endpoint": f"{base}/default/token",
                "introspection_endpoint": f"{base}/default/verify",
                "id_token_signing_alg_values_supported": [self.config.algo],
                "response_types_supported": ["token"],
                "subject_types_supported": ["public"],
                "claims_supported": [
                    *("sub", "iss", "aud", "iat", "nbf", "exp", "jti"),
                    *sorted({claim for user in self.config.users.values() for claim in user.claims}),
                ],
                "service_documentation": "demonstration issuer, not for production",
            }
        )


def _life(text: str | None, config: IssuerConfig) -> int | None:
    if text is None:
        return config.default_exp_secs
    if len(text) > 10 or not text.isascii() or not text.isdigit():
        return None
    life = int(text)
    return life if 1 <= life <= config.max_exp_secs else None


def _bearer(request: web.Request) -> str:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


async def _arguments(request: web.Request) -> Mapping[str, str]:
    """Return the parameters of the query; with POST those of the body: a form, a JSON object or the bare token.

    With GET a body is ignored. With POST a password or a token in the query is ignored, because the sender wants to keep them
    out of the query.
    """
    if request.method != "POST":
        return request.query
    body = await request.read()
    if request.content_type in {"application/x-www-form-urlencoded", "multipart/form-data"}:
        form = await request.post()
        posted = {name: value for name, value in reversed(list(form.items())) if isinstance(value, str)}
    elif request.content_type == "application/json":
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            value = None
        items = value.items() if isinstance(value, dict) else ()
        posted = {str(k): str(v) for k, v in items if isinstance(v, str | int) and not isinstance(v, bool)}
    else:
        posted = {"token": body.decode("utf-8", "replace").strip()}
    return {**{k: v for k, v in request.query.items() if k not in {"password", "token"}}, **posted}

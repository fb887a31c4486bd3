"""A device authorization endpoint (RFC 8628) and its token endpoint: no identity provider that installs here has one."""

from __future__ import annotations

import urllib.parse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from tests.helpers.tokens import IdP


class AuthorizationServer:
    """Answers as RFC 8628 says until a person has confirmed; `script` has other answers for the next requests."""

    def __init__(self) -> None:
        self.origin = ""
        self.idp = IdP()
        self.asked: list[tuple[str, dict[str, str], str]] = []
        """Path, form and Authorization header of each request."""
        self.script: list[web.Response | dict[str, Any]] = []
        """Answers to the token endpoint's next requests; a mapping is an error with status 400."""
        self.refresh_token = "refresh-1"
        self.device: dict[str, Any] = {
            "device_code": "the-device-code",
            "user_code": "WDJB-MJHT",
            "expires_in": 1800,
            "interval": 7,
        }
        self.about: dict[str, Any] = {}
        self.rfc8414 = False
        self.undiscovered = 0
        """The status instead of a discovery document."""

    @property
    def issuer(self) -> str:
        return f"{self.origin}/realm"

    def forms(self, path: str) -> list[dict[str, str]]:
        return [form for asked, form, _ in self.asked if asked == path]

    def granted(self, **changes: Any) -> dict[str, Any]:
        made = {
            "access_token": self.idp.token(jti=f"t{len(self.asked)}"),
            "token_type": "Bearer",
            "expires_in": 300,
            "refresh_token": self.refresh_token,
            "scope": "openid other",
        }
        return {name: value for name, value in {**made, **changes}.items() if value is not ...}

    async def answer(self, request: web.Request) -> web.StreamResponse:
        form = dict(urllib.parse.parse_qsl((await request.read()).decode()))
        self.asked.append((request.path, form, request.headers.get("Authorization", "")))
        if "/.well-known/" in request.path:
            if self.undiscovered:
                return web.Response(status=self.undiscovered)
            oidc = request.path == "/realm/.well-known/openid-configuration"
            if oidc == self.rfc8414:
                raise web.HTTPNotFound
            about = {
                "issuer": self.issuer,
                "token_endpoint": f"{self.origin}/token",
                "device_authorization_endpoint": f"{self.origin}/device",
                "token_endpoint_auth_methods_supported": ["client_secret_post"],
            }
            return web.json_response({**about, **self.about})
        if request.path == "/device":
            return web.json_response({"verification_uri": f"{self.origin}/enter", **self.device})
        if self.script:
            given = self.script.pop(0)
            return given if isinstance(given, web.Response) else web.json_response(given, status=400)
        if form.get("grant_type") == "refresh_token" and form.get("refresh_token") != self.refresh_token:
            return web.json_response({"error": "invalid_grant"}, status=400)
        return web.json_response(self.granted())


@asynccontextmanager
async def authorization_server() -> AsyncIterator[AuthorizationServer]:
    server = AuthorizationServer()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.origin = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        await runner.cleanup()

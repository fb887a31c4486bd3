"""Tokens made by hand, so that wrong ones can be made too, and an identity provider on a real socket."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import cache
from typing import Any, Self

from aiohttp import web
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils

from appliance.authn.grant import Grant
from appliance.authn.jwt.config import JWTConfig, TrustedIssuer
from appliance.authn.jwt.verifier import JWTVerifier
from appliance.errors import TokenRefused
from tests.helpers.replay import MemoryReplayStore

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
T = int(NOW.timestamp())


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def dumps(value: Any) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode()


@cache
def rsa_key(bits: int = 2048, number: int = 0) -> rsa.RSAPrivateKey:
    del number
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


@cache
def ec_key(number: int = 0) -> ec.EllipticCurvePrivateKey:
    del number
    return ec.generate_private_key(ec.SECP256R1())


@cache
def ed_key(number: int = 0) -> ed25519.Ed25519PrivateKey:
    del number
    return ed25519.Ed25519PrivateKey.generate()


def public_pem(key: Any) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def jwk(key: Any, **members: Any) -> dict[str, Any]:
    """The public JWK by an independent library."""
    from joserfc import jwk as joserfc_jwk

    kind = {rsa.RSAPrivateKey: "RSA", ec.EllipticCurvePrivateKey: "EC", ed25519.Ed25519PrivateKey: "OKP"}
    name = next(name for cls, name in kind.items() if isinstance(key, cls))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of the weak keys that some tests need
        imported = joserfc_jwk.import_key(public_pem(key), name)
    return {**imported.as_dict(private=False), **members}


def sign(alg: str, key: Any, data: bytes) -> bytes:
    if alg == "RS256":
        return key.sign(data, padding.PKCS1v15(), hashes.SHA256())
    if alg == "PS256":
        return key.sign(data, padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())
    if alg == "ES256":
        r, s = utils.decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")
    if alg == "EdDSA":
        return key.sign(data)
    if alg.startswith("HS"):
        return hmac.digest(key, data, f"sha{alg[2:]}")
    return b""


def raw(
    header: Any, claims: Any, key: Any = None, *, alg: str = "RS256", signature: bytes | None = None
) -> str:
    data = f"{b64(dumps(header))}.{b64(dumps(claims))}"
    return f"{data}.{b64(sign(alg, key, data.encode()) if signature is None else signature)}"


class Clock:
    """A monotonic clock that moves when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class IdP:
    """An identity provider on loopback: publishes keys and answers introspection, as the test wants it."""

    def __init__(self) -> None:
        self.keys: list[dict[str, Any]] = [jwk(rsa_key(), kid="k1", use="sig", alg="RS256")]
        self.headers: dict[str, str] = {}
        self.jwks: Callable[[web.Request], Awaitable[web.StreamResponse]] = self.publish
        self.introspection: Callable[[web.Request], Awaitable[web.StreamResponse]] = self.no
        self.requests: list[str] = []
        self.bodies: list[bytes] = []
        self.authorizations: list[str] = []
        self.content_types: list[str] = []
        self.origin = ""

    @property
    def issuer(self) -> str:
        return f"{self.origin}/realm"

    @property
    def jwks_uri(self) -> str:
        return f"{self.origin}/realm/keys"

    @property
    def verify_uri(self) -> str:
        return f"{self.origin}/realm/verify"

    async def publish(self, _request: web.Request) -> web.StreamResponse:
        return web.json_response({"keys": self.keys}, headers=self.headers)

    async def no(self, _request: web.Request) -> web.StreamResponse:
        return web.Response(text="no")

    async def _any(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path_qs}")
        self.bodies.append(await request.read())
        self.authorizations.append(request.headers.get("Authorization", ""))
        self.content_types.append(request.headers.get("Content-Type", ""))
        if request.path == "/realm/keys":
            return await self.jwks(request)
        return await self.introspection(request)

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Good claims with changes; a change to ... leaves the claim out."""
        good = {
            "iss": self.issuer,
            "sub": "softioc",
            "aud": "cms",
            "iat": T,
            "nbf": T,
            "exp": T + 3600,
            "jti": b64(hashlib.sha256(repr(sorted(changes.items(), key=str)).encode()).digest()),
        }
        return {name: value for name, value in {**good, **changes}.items() if value is not ...}

    def token(
        self, *, header: dict[str, Any] | None = None, key: Any = None, alg: str = "RS256", **changes: Any
    ) -> str:
        full = {"alg": alg, "typ": "JWT", "kid": "k1", **(header or {})}
        full = {name: value for name, value in full.items() if value is not ...}
        return raw(full, self.claims(**changes), key or rsa_key(), alg=alg)


@asynccontextmanager
async def running(idp: IdP | None = None) -> AsyncIterator[IdP]:
    idp = idp or IdP()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", idp._any)
    runner = web.AppRunner(
        app, access_log=None, shutdown_timeout=0.1, max_line_size=65536, max_field_size=65536
    )
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    idp.origin = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield idp
    finally:
        await runner.cleanup()


class Bench:
    """A verifier with everything around it under control."""

    def __init__(self, *issuers: TrustedIssuer, reserved: tuple[str, ...] = (), **config: Any) -> None:
        self.clock = Clock()
        self.replay = MemoryReplayStore()
        settings = JWTConfig(issuers=issuers, **{"peer_per_minute": 0.0, **config})
        self.verifier = JWTVerifier(settings, replay=self.replay, reserved_names=reserved, clock=self.clock)
        self.refusal: TokenRefused | None = None
        for trusted in (*self.verifier._by_name.values(), self.verifier._by_uri):
            if trusted is not None:
                # A busy machine may take longer than the five seconds in which an issuer must answer.
                trusted.fetcher._timeout_s = 60.0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.verifier.close()
        await asyncio.sleep(0)

    async def accept(self, token: str, **circumstances: Any) -> Grant:
        return await self.verifier.verify(
            token,
            **{
                "usage": "client",
                "public_key": public_pem(ec_key(99)),
                "peer": "192.0.2.7:40123",
                "now": NOW,
                "is_tls": True,
                **circumstances,
            },
        )

    async def refuse(self, token: str, **circumstances: Any) -> str:
        """The reason for which the token is refused; fails when it is not."""
        try:
            grant = await self.accept(token, **circumstances)
        except TokenRefused as refusal:
            self.refusal = refusal
            return refusal.reason
        raise AssertionError(f"accepted: {grant}")


def jwks_issuer(idp: IdP, **changes: Any) -> TrustedIssuer:
    return TrustedIssuer(
        **{
            "mode": "jwks",
            "issuer": idp.issuer,
            "audience": ("cms",),
            "jwks_uri": idp.jwks_uri,
            "usages": ("client", "server", "ioc"),
            **changes,
        }
    )

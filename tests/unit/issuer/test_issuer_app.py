"""The issuer's routes over a real socket: bodies and types as the quick start's Flask application sends them."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import jwt
import pytest
from aiohttp import web

from appliance.config.secret import Secret
from appliance.issuer import passwords
from appliance.issuer.app import MAX_LINE_BYTES, Issuer
from appliance.issuer.config import DEMO, IssuerConfig, User
from appliance.issuer.keys import KeyStore
from tests.helpers.tokens import Clock, T, raw, rsa_key

JSON = "application/json"
HTML = "text/html; charset=utf-8"
ISS = "http://localhost:8080/default"


class Site:
    def __init__(self, config: IssuerConfig, tmp_path) -> None:
        self.now = float(T)
        self.clock = Clock()
        directory = str(tmp_path / "keys") if config.algo == "RS256" else ""
        self.keys = KeyStore(directory, config.kid, published_s=1000, now=T) if directory else None
        self.issuer = Issuer(config, self.keys, wall=lambda: self.now, clock=self.clock)
        self.http: aiohttp.ClientSession
        self.url = ""

    async def ask(self, path: str, method: str = "GET", **options: Any) -> tuple[int, str, str]:
        async with self.http.request(method, self.url + path, **options) as answer:
            return answer.status, answer.headers["Content-Type"], await answer.text()

    async def token(self, **parameters: str) -> str:
        status, kind, text = await self.ask(
            "/default/token", params={"sub": "softioc", "password": "secret", **parameters}
        )
        assert (status, kind) == (200, "text/plain; charset=utf-8"), text
        return text

    async def verdict(self, **parameters: str) -> dict[str, Any]:
        status, kind, text = await self.ask("/default/verify", params=parameters)
        assert (status, kind) == (200, JSON)
        assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":")) + "\n"
        return json.loads(text)


@asynccontextmanager
async def site(config: IssuerConfig, tmp_path) -> AsyncIterator[Site]:
    it = Site(config, tmp_path)
    runner = web.AppRunner(
        it.issuer.application(), access_log=None, max_line_size=MAX_LINE_BYTES, max_field_size=MAX_LINE_BYTES
    )
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    it.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with aiohttp.ClientSession() as it.http:
        yield it
    await runner.cleanup()


@pytest.fixture
async def demo(tmp_path) -> AsyncIterator[Site]:
    async with site(DEMO, tmp_path) as it:
        yield it


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/healthz", (200, JSON, '{"status":"ok"}\n')),
        ("/default/token", (400, JSON, '{"error":"missing \'sub\'"}\n')),
        ("/default/token?sub=&password=secret", (400, JSON, '{"error":"missing \'sub\'"}\n')),
        ("/default/token?sub=x", (403, HTML, "Forbidden")),
        ("/default/token?sub=x&password=Secret", (403, HTML, "Forbidden")),
        ("/default/verify", (400, JSON, '{"error":"missing \'token\'","valid":false}\n')),
        ("/default/verify?token=", (400, JSON, '{"error":"missing \'token\'","valid":false}\n')),
        ("/default/verify?token=abc", (200, JSON, '{"error":"Not enough segments","valid":false}\n')),
        ("/default/verify?token=a.b.c", (200, JSON, '{"error":"Invalid header padding","valid":false}\n')),
    ],
)
async def test_answers_of_the_quick_starts_application(demo: Site, path: str, expected) -> None:
    """Recorded from that application under Flask 3.1."""
    assert await demo.ask(path) == expected


async def test_unknown_paths_and_methods_answer_as_flask_does(demo: Site) -> None:
    status, kind, text = await demo.ask("/nope")
    assert (status, kind) == (404, HTML)
    assert text.startswith(
        "<!doctype html>\n<html lang=en>\n<title>404 Not Found</title>\n<h1>Not Found</h1>\n<p>"
    )
    status, kind, text = await demo.ask("/healthz", "PUT")
    assert (status, kind) == (405, HTML)
    assert "<title>405 Method Not Allowed</title>" in text
    async with demo.http.request("OPTIONS", demo.url + "/healthz") as answer:
        assert answer.status == 200
        assert set(answer.headers["Allow"].replace(" ", "").split(",")) >= {"GET", "HEAD"}
    async with demo.http.head(demo.url + "/healthz") as answer:
        assert (answer.status, answer.headers["Content-Length"]) == (200, "16")


async def test_the_token_holds_the_documented_claims(demo: Site) -> None:
    token = await demo.token()
    assert jwt.get_unverified_header(token) == {"alg": "RS256", "kid": "demo-key-1", "typ": "JWT"}
    claims = jwt.decode(token, options={"verify_signature": False})
    assert len(claims.pop("jti")) == 36
    assert claims == {"sub": "softioc", "iss": ISS, "aud": "default", "iat": T, "nbf": T, "exp": T + 3600}


async def test_parameters_of_the_token_route(demo: Site) -> None:
    token = await demo.token(sub="h\u00e9 x", aud="", iss="urn:x", exp_secs="60")
    claims = jwt.decode(token, options={"verify_signature": False})
    assert (claims["sub"], claims["aud"], claims["iss"], claims["exp"]) == ("h\u00e9 x", "", "urn:x", T + 60)


@pytest.mark.parametrize(
    "value", ["abc", "", "-1", "0", "1.5", "1e3", "604801", "9" * 5000, " 5", "+5", "\u0665"]
)
async def test_a_life_out_of_bounds_is_a_400(demo: Site, value: str) -> None:
    status, kind, text = await demo.ask(
        "/default/token", params={"sub": "x", "password": "secret", "exp_secs": value}
    )
    assert (status, kind) == (400, JSON)
    assert json.loads(text) == {"error": "'exp_secs' must be an integer from 1 to 604800"}


async def test_over_long_parameters_are_a_400(demo: Site) -> None:
    status, _, text = await demo.ask("/default/token", params={"sub": "x" * 600, "password": "secret"})
    assert (status, json.loads(text)) == (400, {"error": "'sub' is longer than 512 characters"})


async def test_post_keeps_the_password_out_of_the_address(demo: Site) -> None:
    status, _, token = await demo.ask(
        "/default/token", "POST", data={"sub": "softioc", "password": "secret", "aud": "a"}
    )
    assert status == 200
    assert jwt.decode(token, options={"verify_signature": False})["aud"] == "a"
    status, _, token = await demo.ask(
        "/default/token", "POST", json={"sub": "softioc", "password": "secret", "exp_secs": 60}
    )
    assert jwt.decode(token, options={"verify_signature": False})["exp"] == T + 60
    assert (await demo.ask("/default/token?sub=x&password=secret", "POST"))[0] == 403
    assert (await demo.ask("/default/token", "POST", data=b"{", headers={"Content-Type": JSON}))[0] == 400
    assert (await demo.ask("/default/token", "POST", data=b"[" * 20_000, headers={"Content-Type": JSON}))[
        0
    ] == 400
    assert (await demo.ask("/default/token", "POST", data=b"x" * 100_000))[0] == 413


async def test_the_validator_repeats_header_and_claims(demo: Site) -> None:
    # PyJWT looks at the real clock.
    import time

    demo.now = time.time()
    token = await demo.token()
    verdict = await demo.verdict(token=token)
    assert verdict["valid"] is True
    assert verdict["header"] == {"alg": "RS256", "kid": "demo-key-1", "typ": "JWT"}
    assert verdict["claims"] == jwt.decode(token, options={"verify_signature": False})
    assert (await demo.verdict(token=token, expected_aud="default"))["valid"] is True
    assert (await demo.verdict(token=token, expected_iss=ISS))["valid"] is True
    for parameters, error in (
        ({"expected_aud": "q"}, "Audience doesn't match"),
        ({"expected_iss": "q"}, "Invalid issuer"),
        ({"expected_iss": ""}, "Invalid issuer"),
    ):
        assert await demo.verdict(token=token, **parameters) == {"valid": False, "error": error}
    for options in (
        {"data": token, "headers": {"Content-Type": "text/plain"}},
        {"data": {"token": token}},
        {"json": {"token": token}},
    ):
        status, kind, text = await demo.ask("/default/verify", "POST", **options)
        assert (status, kind, json.loads(text)) == (200, JSON, verdict)
    assert (
        json.loads((await demo.ask("/default/verify", headers={"Authorization": f"Bearer {token}"}))[2])
        == verdict
    )


async def test_the_validator_says_no(demo: Site) -> None:
    import time

    demo.now = time.time() - 7200
    assert await demo.verdict(token=await demo.token()) == {"valid": False, "error": "Signature has expired"}
    demo.now = time.time()
    good = await demo.token()
    claims = jwt.decode(good, options={"verify_signature": False})
    header = {"alg": "RS256", "kid": "demo-key-1", "typ": "JWT"}
    for token in (
        raw(header, claims, rsa_key(number=3)),
        raw({**header, "alg": "none"}, claims, signature=b"x"),
        raw({**header, "alg": "HS256"}, claims, b"x" * 32, alg="HS256"),
        raw({**header, "kid": 7}, claims, rsa_key(number=3)),
        good[:-8],
        good + "." + good,
        "A" * 17_000,
        "\u00e9",
    ):
        verdict = await demo.verdict(token=token)
        assert verdict["valid"] is False
        assert verdict["error"]


async def test_both_key_set_routes_publish_the_key(demo: Site) -> None:
    first = await demo.ask("/default/jwks")
    assert first == await demo.ask("/.well-known/jwks.json")
    assert first[:2] == (200, JSON)
    (key,) = json.loads(first[2])["keys"]
    assert list(key) == ["alg", "e", "kid", "kty", "n", "use"]
    assert (key["alg"], key["e"], key["kid"], key["kty"], key["use"]) == (
        "RS256",
        "AQAB",
        "demo-key-1",
        "RSA",
        "sig",
    )
    assert jwt.decode(
        await demo.token(),
        jwt.PyJWK(key),
        algorithms=["RS256"],
        options={"verify_exp": False, "verify_aud": False, "verify_nbf": False, "verify_iat": False},
    )


async def test_discovery_names_what_there_is(demo: Site) -> None:
    for path in ("/.well-known/openid-configuration", "/default/.well-known/openid-configuration"):
        status, kind, text = await demo.ask(path)
        assert (status, kind) == (200, JSON)
        about = json.loads(text)
        assert about["issuer"] == ISS
        assert about["jwks_uri"] == "http://localhost:8080/.well-known/jwks.json"
        for name in ("jwks_uri", "token_endpoint", "introspection_endpoint"):
            assert (await demo.ask(about[name].removeprefix("http://localhost:8080")))[0] in {200, 400}


async def test_after_a_rotation_both_keys_are_good_for_a_bounded_time(demo: Site) -> None:
    import time

    demo.now = time.time()
    old = await demo.token()
    assert demo.keys is not None
    assert demo.keys.rotate(demo.now) == "demo-key-2"
    new = await demo.token()
    assert jwt.get_unverified_header(new)["kid"] == "demo-key-2"
    assert [key["kid"] for key in json.loads((await demo.ask("/default/jwks"))[2])["keys"]] == [
        "demo-key-2",
        "demo-key-1",
    ]
    assert (await demo.verdict(token=old))["valid"]
    assert (await demo.verdict(token=new))["valid"]
    demo.now += 1001
    assert [key["kid"] for key in json.loads((await demo.ask("/default/jwks"))[2])["keys"]] == ["demo-key-2"]
    assert await demo.verdict(token=old) == {"valid": False, "error": "Signature verification failed"}
    assert (await demo.verdict(token=new))["valid"]


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
async def test_hs256_as_in_the_quick_start(tmp_path) -> None:
    async with site(IssuerConfig(demo=True, algo="HS256"), tmp_path) as it:
        import time

        it.now = time.time()
        token = await it.token()
        assert jwt.decode(token, "dev-secret-change-me", algorithms=["HS256"], audience="default")
        assert (await it.verdict(token=token))["valid"]
        assert await it.ask("/default/jwks") == (200, JSON, '{"keys":[]}\n')
    async with site(IssuerConfig(demo=True, algo="HS256", hs_secret=Secret("s" * 32)), tmp_path) as it:
        it.now = time.time()
        assert not (await it.verdict(token=token))["valid"]


@pytest.fixture
async def users(tmp_path) -> AsyncIterator[Site]:
    config = IssuerConfig(
        users={
            "softioc": User(password_hash=passwords.hash_password("correct horse")),
            "jane": User(password_hash=passwords.hash_password("battery staple")),
        }
    )
    async with site(config, tmp_path) as it:
        yield it


async def test_each_user_gets_tokens_for_its_own_name_only(users: Site) -> None:
    await users.token(password="correct horse")
    await users.token(sub="jane", password="battery staple")
    for sub, password in (
        ("jane", "correct horse"),
        ("boss", "correct horse"),
        ("softioc", "secret"),
        ("softioc", ""),
        ("softioc", "x" * 5000),
        ("softioc", "correct horse "),
    ):
        assert await users.ask("/default/token", "POST", data={"sub": sub, "password": password}) == (
            403,
            HTML,
            "Forbidden",
        )


async def test_a_users_own_claims_are_in_its_tokens_and_in_no_others(tmp_path) -> None:
    claims = {"hosts": ["dns=ioc7.lab", "10.0.0.7"], "level": 3, "shift": True, "group": "ioc-hosts"}
    config = IssuerConfig(
        users={
            "softioc": User(password_hash=passwords.hash_password("secret"), claims=claims),
            "jane": User(password_hash=passwords.hash_password("battery staple")),
        }
    )
    async with site(config, tmp_path) as it:

        def told(token):
            return jwt.decode(token, options={"verify_signature": False})

        own = told(await it.token())
        assert {name: own[name] for name in claims} == claims
        assert (own["sub"], own["iss"]) == ("softioc", ISS)
        other = told(await it.token(sub="jane", password="battery staple"))
        assert not set(claims) & set(other)
        _, _, text = await it.ask("/.well-known/openid-configuration")
        assert set(claims) < set(json.loads(text)["claims_supported"])


async def test_guessing_is_slowed_down_and_the_right_password_waits_too(users: Site) -> None:
    for _ in range(10):
        assert (await users.ask("/default/token", params={"sub": "jane", "password": "guess"}))[0] == 403
    status, kind, text = await users.ask(
        "/default/token", params={"sub": "jane", "password": "battery staple"}
    )
    assert (status, kind, json.loads(text)) == (429, JSON, {"error": "rate limited, retry in 5 s"})
    users.clock.now += 5
    await users.token(sub="jane", password="battery staple")


async def test_no_log_line_holds_a_password_or_a_token(demo: Site, caplog) -> None:
    with caplog.at_level(logging.DEBUG):
        token = await demo.token(password="secret")
        await demo.verdict(token=token)
        await demo.ask("/default/token?sub=x&password=hunter2-is-wrong")
        await demo.ask("/default/token", "POST", data={"sub": "x", "password": "hunter2-is-wrong"})
        await demo.ask("/nope?password=hunter2-is-wrong")
        await demo.ask("/a%0d%0aforged?x=1")
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("appliance")]
    assert any("GET /default/token 200" in line for line in lines)
    text = "\n".join(lines)
    assert "secret" not in text
    assert "hunter2" not in text
    assert token not in text
    assert "\r" not in text
    assert "/a%0D%0Aforged 404" in text


async def test_a_defect_is_a_500_that_tells_nothing(demo: Site, caplog) -> None:
    def fail(_now: float) -> list[dict[str, str]]:
        raise RuntimeError("eyJ secret text")

    assert demo.keys is not None
    demo.keys.jwks = fail  # type: ignore[method-assign]
    with caplog.at_level(logging.DEBUG):
        status, kind, text = await demo.ask("/default/jwks")
    assert (status, kind) == (500, HTML)
    assert "eyJ" not in text + caplog.text
    assert "RuntimeError" in caplog.text

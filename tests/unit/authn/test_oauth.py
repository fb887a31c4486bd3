"""OAuth 2.0 grants, by a server that answers as the test wants: the right way, and each wrong one."""

from __future__ import annotations

import base64
import stat
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import pytest
from aiohttp import web

from appliance.authn.jwt.fetch import Fetcher
from appliance.authn.jwt.oauth import OAuthClient, OAuthSettings, load_settings
from appliance.authn.jwt.sources import OAuthSource
from appliance.config.secret import Secret
from appliance.errors import ConfigurationError, TokenUnavailable
from tests.helpers.authorization_server import AuthorizationServer, authorization_server
from tests.helpers.tokens import T

END = datetime.fromtimestamp(T + 3600, UTC)
SECRET = "a secret: with + and %"


@pytest.fixture
async def server() -> AsyncIterator[AuthorizationServer]:
    async with authorization_server() as running:
        yield running


class Asker:
    """An `OAuthClient` whose waiting takes no time."""

    def __init__(self, server: AuthorizationServer, where: Path, **changes: Any) -> None:
        known = {
            "grant": "device_code",
            "issuer": server.issuer,
            "client_id": "ioc:host",
            "client_secret": Secret(SECRET),
        }
        self.said: list[str] = []
        self.slept: list[float] = []
        self.now = 0.0
        self.file = where / "client.p12.refresh"
        self.client = OAuthClient(
            OAuthSettings(**{**known, **changes}),
            refresh_file=str(self.file),
            say=self.said.append,
            fetcher=Fetcher(timeout_s=60.0),
            sleep=self.sleep,
            clock=lambda: self.now,
        )

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.client.close()

    async def refused(self) -> TokenUnavailable:
        with pytest.raises(TokenUnavailable) as caught:
            await self.client.token()
        told = f"{caught.value} {caught.value.__context__!r} {self.said} {self.client!r}"
        for secret in (SECRET, "the-device-code", "refresh-1", "eyJ"):
            assert secret not in told
        return caught.value


# -- client credentials ---------------------------------------------------------------------------------


async def test_client_credentials_by_discovery(server: AuthorizationServer, tmp_path: Path) -> None:
    settings = {
        "grant": "client_credentials",
        "scope": "openid pv",
        "audience": "cms",
        "resource": ("urn:a", "urn:b"),
    }
    async with Asker(server, tmp_path, **settings) as asker:
        assert (await asker.client.token()).count(".") == 2
        await asker.client.token()
    (found, _, _), (path, form, authorization), _again = server.asked
    assert found == "/realm/.well-known/openid-configuration"
    assert path == "/token"
    assert form == {
        "grant_type": "client_credentials",
        "scope": "openid pv",
        "audience": "cms",
        "resource": "urn:b",
    }
    # RFC 6749 section 2.3.1, appendix B: both are form-encoded before they are joined.
    kind, _, pair = authorization.partition(" ")
    assert kind == "Basic"
    assert base64.b64decode(pair) == b"ioc%3Ahost:a%20secret%3A%20with%20%2B%20and%20%25"
    assert not asker.file.exists(), "section 4.4.3: a refresh token SHOULD NOT be included, and is not kept"


async def test_the_secret_in_the_form(server: AuthorizationServer, tmp_path: Path) -> None:
    settings = {"grant": "client_credentials", "issuer": "", "token_url": f"{server.origin}/token"}
    async with Asker(server, tmp_path, client_auth="post", **settings) as asker:
        await asker.client.token()
    ((path, form, authorization),) = server.asked
    assert (path, authorization) == ("/token", "")
    assert form == {"grant_type": "client_credentials", "client_id": "ioc:host", "client_secret": SECRET}


async def test_discovery_of_rfc_8414(server: AuthorizationServer, tmp_path: Path) -> None:
    server.rfc8414 = True
    async with Asker(server, tmp_path, grant="client_credentials") as asker:
        await asker.client.token()
    assert [path for path, _, _ in server.asked] == [
        "/realm/.well-known/openid-configuration",
        "/.well-known/oauth-authorization-server/realm",
        "/token",
    ]


@pytest.mark.parametrize(("status", "kind"), [(404, "refused"), (502, "unreachable")])
async def test_no_discovery_document(
    server: AuthorizationServer, tmp_path: Path, status: int, kind: str
) -> None:
    server.undiscovered = status
    async with Asker(server, tmp_path) as asker:
        error = await asker.refused()
    assert f"(HTTP status {status})" in str(error)
    assert error.kind == kind


@pytest.mark.parametrize(
    ("about", "why"),
    [
        (
            {"issuer": "https://other.example"},
            "names the issuer https://other.example; issuer must be the same",
        ),
        ({"issuer": 7}, "names the issuer 7"),
        ({"token_endpoint": "http://far.example/token"}, "token_endpoint must use https"),
        ({"token_endpoint": ["x"]}, "token_endpoint not text"),
        ({"token_endpoint": ""}, "names no token_endpoint"),
        ({"device_authorization_endpoint": "ftp://x"}, "device_authorization_endpoint must be a plain URI"),
    ],
)
async def test_a_discovery_document_that_misleads(
    server: AuthorizationServer, tmp_path: Path, about: dict[str, Any], why: str
) -> None:
    server.about = about
    async with Asker(server, tmp_path) as asker:
        assert why in str(await asker.refused())
        server.about = {}
        assert await asker.client.token(), "the document is read again"


@pytest.mark.parametrize(
    ("answer", "kind", "why"),
    [
        (
            {"error": "invalid_client"},
            "refused",
            "check client_id, client_secret and client_auth (it accepts client_secret_post)",
        ),
        (
            {"error": "unauthorized_client"},
            "refused",
            "allow this client the grant client_credentials at the provider",
        ),
        (
            {"error": "invalid_scope", "error_description": "eyJ"},
            "refused",
            "(invalid_scope, HTTP status 400): check scope",
        ),
        ({"error": "\x1b[31mred" + "x" * 99}, "refused", "(\\x1b[31mred"),
        ({"error": 7}, "refused", "(error, HTTP status 400)"),
        ((500, "{}"), "unreachable", "has a fault (HTTP status 500)"),
        ((503, "{}"), "limited", "HTTP status 503"),
        ((404, "{}"), "refused", "HTTP status 404"),
        ((200, "<html>"), "refused", "json invalid"),
        ((200, "[]"), "refused", "json not an object"),
        ((200, '{"access_token": "a", "access_token": "b"}'), "refused", "json duplicate key"),
        ((200, "{}"), "refused", "it holds no token"),
        ((200, '{"access_token":"a.b.c","expires_in":"soon"}'), "refused", "it holds no token"),
        ((200, '{"access_token":7}'), "refused", "it holds no access_token"),
        ((200, '{"access_token":"opaque"}'), "refused", "no signed JSON Web Token"),
        ((200, '{"access_token":"a.b.c","token_type":"DPoP"}'), "refused", "another type than Bearer"),
        ((200, " " * 300_000), "refused", "too large"),
        ((307, ""), "refused", "redirect elsewhere"),
    ],
)
async def test_answers_that_are_no_token(
    server: AuthorizationServer, tmp_path: Path, answer: Any, kind: str, why: str
) -> None:
    if isinstance(answer, tuple):
        status, text = answer
        answer = web.Response(
            status=status, text=text, headers={"Retry-After": "17", "Location": "https://far.example/"}
        )
    server.script = [answer]
    async with Asker(server, tmp_path, grant="client_credentials") as asker:
        error = await asker.refused()
    assert why in str(error)
    assert error.kind == kind
    assert error.retry_s == (17.0 if kind == "limited" else 0.0)
    assert len(str(error)) < 400


async def test_a_provider_that_is_down(server: AuthorizationServer, tmp_path: Path) -> None:
    settings = {"issuer": "", "token_url": "http://127.0.0.1:1/token", "grant": "client_credentials"}
    async with Asker(server, tmp_path, **settings) as asker:
        error = await asker.refused()
    assert str(error) == "http://127.0.0.1:1/token could not be asked for a token: not reachable"
    assert error.kind == "unreachable"


async def test_the_id_token(server: AuthorizationServer, tmp_path: Path) -> None:
    server.script = [web.json_response(server.granted(id_token="x.y.z")), web.json_response(server.granted())]
    async with Asker(server, tmp_path, grant="client_credentials", token="id_token") as asker:
        assert await asker.client.token() == "x.y.z"
        assert "scope must have the word openid" in str(await asker.refused())


# -- device authorization -------------------------------------------------------------------------------


async def test_a_person_signs_in_and_renewals_need_nobody(
    server: AuthorizationServer, tmp_path: Path
) -> None:
    pending: dict[str, Any] = {"error": "authorization_pending"}
    server.script = [pending, {"error": "slow_down"}, pending]
    async with Asker(server, tmp_path, scope="openid") as asker:
        first = await asker.client.token()
        assert asker.slept == [7, 7, 12, 12]
        assert asker.said == [
            f"to sign in, open {server.origin}/enter on any device and enter the code WDJB-MJHT (within 30 min)"
        ]
        assert server.forms("/device") == [{"client_id": "ioc:host", "scope": "openid"}]
        assert server.forms("/token")[0] == {
            "grant_type": "urn:ietf:params:oauth:grant-type:device_code",
            "device_code": "the-device-code",
        }
        assert stat.S_IMODE(asker.file.stat().st_mode) == 0o600
        assert await asker.client.token() != first
    async with Asker(server, tmp_path) as later:
        await later.client.token()
        assert later.said == []
    assert server.forms("/token")[-1] == {"grant_type": "refresh_token", "refresh_token": "refresh-1"}


async def test_a_rotated_refresh_token_replaces_the_old_one(
    server: AuthorizationServer, tmp_path: Path
) -> None:
    async with Asker(server, tmp_path) as asker:
        await asker.client.token()
        server.script = [web.json_response(server.granted(refresh_token="refresh-2"))]
        await asker.client.token()
        server.refresh_token = "refresh-2"
        await asker.client.token()
    assert [form.get("refresh_token") for form in server.forms("/token")] == [None, "refresh-1", "refresh-2"]
    assert "refresh-2" in asker.file.read_text()
    assert len(server.forms("/device")) == 1


async def test_a_refresh_token_that_ended_asks_the_person_again(
    server: AuthorizationServer, tmp_path: Path
) -> None:
    async with Asker(server, tmp_path) as asker:
        await asker.client.token()
        server.refresh_token = "refresh-9"
        await asker.client.token()
        assert len(asker.said) == 2
    assert [form["grant_type"].rpartition(":")[2] for form in server.forms("/token")] == [
        "device_code",
        "refresh_token",
        "device_code",
    ]
    assert "refresh-9" in asker.file.read_text()


async def test_a_fault_of_the_provider_keeps_the_refresh_token(
    server: AuthorizationServer, tmp_path: Path
) -> None:
    async with Asker(server, tmp_path) as asker:
        await asker.client.token()
        server.script = [web.Response(status=502), {"error": "invalid_client"}]
        assert (await asker.refused()).kind == "unreachable"
        assert (await asker.refused()).code == "invalid_client"
        await asker.client.token()
    assert len(server.forms("/device")) == 1


async def test_a_refresh_token_goes_only_where_it_came_from(
    server: AuthorizationServer, tmp_path: Path
) -> None:
    async with Asker(server, tmp_path) as asker:
        await asker.client.token()
    other = {
        "issuer": "",
        "token_url": f"{server.origin}/elsewhere",
        "device_authorization_url": f"{server.origin}/device",
    }
    for changes in (other, {"client_id": "another"}):
        async with Asker(server, tmp_path, **changes) as asker:
            await asker.client.token()
        asker.file.write_text(
            f'{{"client_id":"ioc:host","token_url":"{server.origin}/token","refresh_token":"r"}}'
        )
    assert all("refresh_token" not in form for path, form, _ in server.asked if path != "/token")
    assert server.forms("/token")[-1]["grant_type"].endswith("device_code")


@pytest.mark.parametrize("spoil", ["mode", "text"])
async def test_a_refresh_file_that_cannot_be_trusted(
    server: AuthorizationServer, tmp_path: Path, spoil: str
) -> None:
    async with Asker(server, tmp_path) as asker:
        await asker.client.token()
    asker.file.chmod(0o644) if spoil == "mode" else asker.file.write_text("{")
    async with Asker(server, tmp_path) as asker:
        await asker.client.token()
    assert asker.said[0].startswith("the refresh token is not used: ")
    assert len(server.forms("/device")) == 2


@pytest.mark.parametrize(
    ("code", "why"),
    [("access_denied", "the person who was asked said no"), ("expired_token", "nobody entered the code")],
)
async def test_no_person_no_token(server: AuthorizationServer, tmp_path: Path, code: str, why: str) -> None:
    server.script = [{"error": code}]
    async with Asker(server, tmp_path) as asker:
        error = await asker.refused()
    assert why in str(error)
    assert (error.code, error.kind) == (code, "refused")


async def test_waiting_ends_when_the_code_does(server: AuthorizationServer, tmp_path: Path) -> None:
    server.device["expires_in"] = 20
    server.script = [{"error": "authorization_pending"}] * 9
    async with Asker(server, tmp_path) as asker:
        assert (await asker.refused()).code == "expired_token"
    assert asker.slept == [7, 7, 7]


async def test_faults_while_waiting_slow_the_questions_down(
    server: AuthorizationServer, tmp_path: Path
) -> None:
    server.script = [web.Response(status=502), web.Response(status=429), {"error": "authorization_pending"}]
    async with Asker(server, tmp_path) as asker:
        assert await asker.client.token()
    assert asker.slept == [7, 14, 28, 28]


@pytest.mark.parametrize(
    "changes",
    [
        {"device_code": 7},
        {"user_code": "x" * 65},
        {"verification_uri": "javascript:x"},
        {"expires_in": "soon"},
        {"interval": None},
    ],
)
async def test_a_device_authorization_that_says_nothing(
    server: AuthorizationServer, tmp_path: Path, changes: dict[str, Any]
) -> None:
    server.device |= changes
    async with Asker(server, tmp_path) as asker:
        assert "no usable device_code, user_code or verification_uri" in str(await asker.refused())


async def test_texts_of_the_provider_are_shown_without_control_characters(
    server: AuthorizationServer, tmp_path: Path
) -> None:
    server.device |= {"user_code": "A\x1b[2JB", "interval": 0, "expires_in": 1}
    async with Asker(server, tmp_path, client_auth="none", client_secret=Secret()) as asker:
        await asker.refused()
    assert "\x1b" not in asker.said[0]
    assert server.forms("/device") == [{"client_id": "ioc:host"}]


async def test_no_device_endpoint(server: AuthorizationServer, tmp_path: Path) -> None:
    server.about = {"device_authorization_endpoint": ""}
    async with Asker(server, tmp_path) as asker:
        assert "offers no device authorization" in str(await asker.refused())


# -- as a source of tokens ------------------------------------------------------------------------------


async def test_a_source_that_asks_a_provider(server: AuthorizationServer, tmp_path: Path) -> None:
    async with Asker(server, tmp_path, grant="client_credentials") as asker:
        source = OAuthSource(asker.client)
        token = await source.fetch(better_than=END - timedelta(seconds=1))
        assert (source.name, token.claims["sub"]) == (server.issuer, "softioc")
        source.sent(token)
        with pytest.raises(TokenUnavailable, match="one that ends after") as caught:
            await source.fetch(better_than=END)
        assert caught.value.kind == "none"
        server.script = [web.json_response(server.granted(access_token=token.text))]
        with pytest.raises(TokenUnavailable, match="was used already"):
            await source.fetch()
        server.script = [web.json_response(server.granted(access_token="eyJ.e30.x"))]
        with pytest.raises(TokenUnavailable, match="gives a token that cannot be used"):
            await source.fetch()
        await source.close()


# -- the file of settings -------------------------------------------------------------------------------

GOOD = """
grant: client_credentials
issuer: https://idp.example/realms/site
client_id: ioc-host
client_secret: ${file:SECRET}
"""


def settings(tmp_path: Path, text: str) -> OAuthSettings:
    secret = tmp_path / "secret"
    secret.write_text("of the client\n")
    secret.chmod(0o600)
    file = tmp_path / "oauth.yml"
    file.write_text(text.replace("SECRET", str(secret)))
    return load_settings(str(file), {})


def test_the_file_of_settings(tmp_path: Path) -> None:
    read = settings(tmp_path, GOOD)
    assert read.client_secret.reveal() == "of the client"
    assert "of the client" not in repr(read)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("issuer:", "token_url: https://idp.example/token\nissuer:", "token_url: give either issuer"),
        ("issuer: https://idp.example/realms/site", "", "token_url: give either issuer"),
        ("https://", "http://", "issuer: must use https"),
        ("site", "site?x=1", "issuer: must be a plain"),
        ("${file:SECRET}", "in plain text", "client_secret: a secret must not stand in the file"),
        ("client_secret: ${file:SECRET}", "", "client_secret: required for client_auth: basic"),
        ("grant: client_credentials", "grant: password", "grant"),
        ("issuer:", "client_auth: none\nissuer:", "client_auth: the grant client_credentials needs a secret"),
        ("issuer:", "refresh_file: /x\nissuer:", "refresh_file: has no meaning"),
        ("issuer:", "device_authorization_url: https://x.example/d\nissuer:", "has no effect beside issuer"),
        ("client_credentials", "device_code\nclient_auth: none", "client_secret: has no effect"),
        (
            "client_credentials\nissuer: https://idp.example/realms/site",
            "device_code\ntoken_url: https://idp.example/token",
            "device_authorization_url: the grant device_code needs it",
        ),
        ("issuer:", "colour: red\nissuer:", "colour"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, old: str, new: str, why: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        settings(tmp_path, GOOD.replace(old, new))
    assert why in str(caught.value)
    assert "in plain text" not in str(caught.value)


async def test_plain_http_beyond_loopback_has_to_be_asked_for(
    server: AuthorizationServer, tmp_path: Path
) -> None:
    asked = {"issuer": "", "token_url": "http://idp.example/token", "grant": "client_credentials"}
    with pytest.raises(ValueError, match="allow_insecure_http: true allows it"):
        Asker(server, tmp_path, **asked)
    async with Asker(server, tmp_path, **asked, allow_insecure_http=True) as asker:
        assert asker.said == [
            "allow_insecure_http: secrets and tokens of http://idp.example/token may be sent unencrypted"
        ]

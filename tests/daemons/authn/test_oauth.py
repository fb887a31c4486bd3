"""Tokens that authnjwt gets from an identity provider that nobody here wrote, and the certificate service accepts."""

from __future__ import annotations

import asyncio
import json
import stat
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.authn.grant import ProvenIdentity
from appliance.authn.jwt.config import TrustedIssuer
from appliance.authn.jwt.fetch import Fetcher
from appliance.authn.jwt.oauth import OAuthClient, OAuthSettings
from appliance.authn.jwt.sources import OAuthSource
from appliance.certs.x509 import common_name
from appliance.config.secret import Secret
from appliance.errors import TokenUnavailable
from tests.helpers.authn import Account, Site
from tests.helpers.authorization_server import authorization_server
from tests.helpers.identity_providers import SECRET, canaille, tokens_from
from tests.helpers.tokens import Bench


def source(url: str, where: Path, said: list[str], **settings: str) -> OAuthSource:
    told = OAuthSettings(
        **{  # type: ignore[arg-type]
            "issuer": url,
            "client_id": "softioc",
            "client_secret": Secret(SECRET),
            **settings,
        }
    )
    return OAuthSource(
        OAuthClient(told, refresh_file=str(where), say=said.append, fetcher=Fetcher(timeout_s=60.0))
    )


@pytest.mark.interop
async def test_grants_of_a_real_provider(tmp_path: Path) -> None:
    said: list[str] = []
    file = tmp_path / "client.p12.refresh"
    async with canaille() as url:
        # A host's own account: discovery, authentication of the client, a token that is a JWT.
        own = source(url, file, said, grant="client_credentials")
        token = await own.fetch()
        assert (token.claims["iss"], token.claims["sub"]) == (url, "softioc")
        trusted = {
            "issuer": url,
            "jwks_uri": f"{url}/oauth/jwks.json",
            "audience": ("cms",),
            "algorithms": ("RS512",),
        }
        async with Bench(TrustedIssuer(mode="jwks", **trusted)) as bench:
            grant = await bench.accept(token.text, now=datetime.now(UTC))
            assert grant.identity == ProvenIdentity(url, "softioc")
        assert (await own.fetch()).claims["jti"] != token.claims["jti"]
        await own.close()
        for changes, code, why in (
            ({"client_secret": Secret("wrong")}, "invalid_client", "client_secret"),
            ({"client_auth": "post"}, "invalid_client", "it accepts .*client_secret_post"),
            ({"client_id": "nobody"}, "invalid_client", "client_id"),
            ({"client_id": "opaque"}, "", "no signed JSON Web Token"),
        ):
            wrong = source(url, file, said, **{"grant": "client_credentials", **changes})  # type: ignore[arg-type]
            with pytest.raises(TokenUnavailable, match=why) as caught:
                await wrong.fetch()
            assert (caught.value.code, caught.value.kind) == (code, "refused")
            await wrong.close()
        # It has no device authorization, so a browser's flow brings the refresh token that a person would get.
        person = source(url, file, said, grant="device_code", client_id="cms")
        with pytest.raises(TokenUnavailable, match="offers no device authorization"):
            await person.fetch()
        async with aiohttp.ClientSession() as http:
            about = await tokens_from(http, url, None)
        kept = {
            "client_id": "cms",
            "token_url": about["token_endpoint"],
            "refresh_token": about["refresh_token"],
        }
        file.write_text(json.dumps(kept))
        file.chmod(0o600)
        first = await person.fetch()
        assert first.claims["sub"] == "softioc"
        rotated = json.loads(file.read_text())["refresh_token"]
        assert rotated != about["refresh_token"]
        await person.fetch()
        assert json.loads(file.read_text())["refresh_token"] != rotated
        await person.close()
        # The provider refuses a used refresh token. Then a person is asked again.
        file.write_text(json.dumps(kept))
        again = source(url, file, said, grant="device_code", client_id="cms")
        with pytest.raises(TokenUnavailable, match="offers no device authorization"):
            await again.fetch()
        await again.close()
        assert SECRET not in "".join(said)


def with_certificate_for(account: Account, name: str, *arguments: object, **variables: str) -> str:
    done = account.run(
        "authnjwt", "--trust-anchor", account.site.directory / "trust.pem", *arguments, **variables
    )
    assert (done.status, done.out[:21]) == (0, "Keychain file created"), done.err
    subject = account.keychain().certificate.subject
    assert common_name(subject) == name
    return done.err


@pytest.fixture
def account(site: Site) -> Account:
    (site.directory / "trust.pem").write_bytes(site.authority.certificate.public_bytes(Encoding.PEM))
    return site.account()


def test_a_certificate_by_a_token_that_a_program_prints(account: Account) -> None:
    file = account.token_file("printed")
    said = with_certificate_for(account, "printed", "--token-command", f"cat '{file}'")
    assert said == ""
    other = account.run("authnjwt", "--force", "--token-command", "false")
    assert other.status == 1
    assert "false failed (exit status 1); its messages are in the log" in other.err
    both = account.run("authnjwt", "--force", "--token-command", "false", "--token-file", file)
    assert "--token-file and --token-command: name one source of tokens only" in both.err


async def test_a_certificate_by_a_token_of_a_provider(account: Account, tmp_path: Path) -> None:
    secret = tmp_path / "client-secret"
    secret.write_text("of the client")
    secret.chmod(0o600)
    settings = tmp_path / "oauth.yml"
    async with authorization_server() as server:
        # The provider has the form of OAuth, and its tokens are those of the issuer that the service trusts.
        tokens = [await asyncio.to_thread(account.site.token, "provided") for _ in range(2)]
        server.script = [web.json_response(server.granted(access_token=token)) for token in tokens]
        settings.write_text(
            f"grant: client_credentials\nissuer: {server.issuer}\nclient_id: host\nclient_secret: ${{file:{secret}}}\n"
        )
        await asyncio.to_thread(with_certificate_for, account, "provided", "--oauth", settings)
        # A person signs in; the refresh token that the provider gives is kept beside the keychain.
        settings.write_text(
            f"grant: device_code\nissuer: {server.issuer}\nclient_id: host\nclient_auth: none\n"
        )
        server.device["interval"] = 1
        said = await asyncio.to_thread(
            with_certificate_for, account, "provided", "--force", "--oauth", settings
        )
    assert f"to sign in, open {server.origin}/enter on any device and enter the code WDJB-MJHT" in said
    kept = account.config / "client.p12.refresh"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert json.loads(kept.read_text())["refresh_token"] == "refresh-1"
    for token in tokens:
        assert token not in said

"""Tokens that authnjwt gets from an identity provider that nobody here wrote, and the certificate service accepts."""

from __future__ import annotations

import json
from pathlib import Path

import aiohttp
import pytest

from appliance.authn.jwt.fetch import Fetcher
from appliance.authn.jwt.oauth import OAuthClient, OAuthSettings
from appliance.authn.jwt.sources import OAuthSource
from appliance.config.secret import Secret
from appliance.errors import TokenUnavailable
from tests.helpers.identity_providers import SECRET, canaille, tokens_from


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

"""Tokens of identity providers that nobody here wrote, judged by their published keys."""

from __future__ import annotations

import base64
import urllib.parse
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest

from appliance.authn.grant import ProvenIdentity
from appliance.authn.jwt.config import TrustedIssuer
from appliance.config.secret import Secret
from tests.helpers.identity_providers import SECRET, answers, canaille, process, tokens_from
from tests.helpers.ports import free_port
from tests.helpers.tokens import Bench


def trusted(about: dict[str, Any], **changes: Any) -> TrustedIssuer:
    return TrustedIssuer(
        **{
            "mode": "jwks",
            "issuer": about["issuer"],
            "jwks_uri": about["jwks_uri"],
            "audience": ("cms",),
            **changes,
        }
    )


async def judge(about: dict[str, Any], **settings: Any) -> None:
    """What must hold for every provider: its token is good here, for us only, unchanged only, and once."""
    token = about["id_token"]
    now = datetime.now(UTC)
    header, claims, signature = token.split(".")
    async with Bench(trusted(about, **settings)) as bench:
        grant = await bench.accept(token, now=now)
        assert grant.identity == ProvenIdentity(about["issuer"], "softioc")
        assert grant.subject["CN"] == "softioc"
        assert grant.subject["O"] == urllib.parse.urlsplit(about["issuer"]).hostname
        assert grant.not_after > now
        other = signature[:9] + ("A" if signature[9] != "A" else "B") + signature[10:]
        assert await bench.refuse(f"{header}.{claims}.{other}", now=now) == "signature_wrong"
        assert await bench.refuse(token, now=datetime(2100, 1, 1, tzinfo=UTC)) == "expired"
    async with Bench(trusted(about, audience=("mail",), **settings)) as bench:
        assert await bench.refuse(token, now=now) == "aud_wrong"
    async with Bench(trusted(about, issuer=about["issuer"] + "/x", **settings)) as bench:
        assert await bench.refuse(token, now=now) == "iss_not_trusted"


async def introspected(about: dict[str, Any]) -> None:
    """The same provider by its introspection endpoint (RFC 7662), which wants to know who asks."""
    credentials = Secret("Basic " + base64.b64encode(f"cms:{SECRET}".encode()).decode())
    settings = {
        "issuer": about["issuer"],
        "trusted_uri": about["introspection_endpoint"],
        "request_format": "token=#token#",
        "response_format": '{"active": #response#, *}',
        "algorithms": ("RS512",),
        "longest_validity_s": 11 * 86400,
    }
    now = datetime.now(UTC)
    by_member = {**settings, "response_format": "#response#", "response_member": "active"}
    async with Bench(TrustedIssuer(**by_member, request_authorization=credentials)) as bench:
        await bench.accept(about["access_token"], now=now)
        stranger = about["access_token"][:-9] + "AAAAAAAAA"
        assert await bench.refuse(stranger, now=now) == "introspect_says_invalid"
    async with Bench(TrustedIssuer(**settings, request_authorization=credentials)) as bench:
        assert (await bench.accept(about["access_token"], now=now)).identity == ProvenIdentity(
            about["issuer"], "softioc"
        )
        # It knows access tokens only.
        header, claims, signature = about["access_token"].split(".")
        other = signature[:9] + ("A" if signature[9] != "A" else "B") + signature[10:]
        assert await bench.refuse(f"{header}.{claims}.{other}", now=now) == "introspect_says_invalid"
    async with Bench(TrustedIssuer(**settings)) as bench:
        assert await bench.refuse(about["access_token"], now=now) == "introspect_says_invalid"
        assert bench.refusal.facts["http_status"] == "401"


@pytest.mark.interop
async def test_oidc_provider_mock() -> None:
    port = free_port()
    origin = f"http://127.0.0.1:{port}"
    async with process("-m", "oidc_provider_mock", "-p", str(port), "--user", "softioc"):
        async with aiohttp.ClientSession() as http:
            await answers(http, f"{origin}/jwks")
            about = await tokens_from(http, origin, {"sub": "softioc"})
            await judge(about)
            about = await tokens_from(http, origin, {"sub": "boss,CN=admin"})
            async with Bench(trusted(about)) as bench:
                assert await bench.refuse(about["id_token"], now=datetime.now(UTC)) == "sub_characters"


@pytest.mark.interop
async def test_pytest_iam() -> None:
    async with canaille() as url:
        async with aiohttp.ClientSession() as http:
            about = await tokens_from(http, url, None)
        await introspected(about)
        await judge(about, algorithms=("RS512",))
        async with Bench(trusted(about)) as bench:  # it signs by an algorithm that has to be asked for
            assert await bench.refuse(about["id_token"], now=datetime.now(UTC)) == "alg_not_allowed"

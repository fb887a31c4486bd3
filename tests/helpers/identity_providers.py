"""Identity providers that nobody here wrote, as processes, and how a browser gets a token of them."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
import urllib.parse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from tests.helpers import iam_process
from tests.helpers.ports import free_port

REDIRECT = "http://localhost/callback"
SECRET = "client-secret-of-a-test"


@asynccontextmanager
async def process(*command: str) -> AsyncIterator[asyncio.subprocess.Process]:
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    try:
        yield child
    finally:
        child.kill()
        await child.communicate()


async def answers(http: aiohttp.ClientSession, url: str) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                async with http.get(url) as answer:
                    await answer.read()
                    return
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.05)


async def tokens_from(
    http: aiohttp.ClientSession, origin: str, form: dict[str, str] | None
) -> dict[str, Any]:
    """The authorization code flow (OpenID Connect Core section 3.1), by the endpoints that discovery names."""
    async with http.get(f"{origin}/.well-known/openid-configuration") as answer:
        about = await answer.json()
    query = {
        "client_id": "cms",
        "redirect_uri": REDIRECT,
        "response_type": "code",
        "scope": "openid profile",
        "state": "s",
        "nonce": "n",
    }
    method = "GET" if form is None else "POST"
    async with http.request(
        method, about["authorization_endpoint"], params=query, data=form, allow_redirects=False
    ) as answer:
        assert answer.status == 302, await answer.text()
        code = urllib.parse.parse_qs(urllib.parse.urlsplit(answer.headers["Location"]).query)["code"][0]
    async with http.post(
        about["token_endpoint"],
        data={"grant_type": "authorization_code", "code": code, "redirect_uri": REDIRECT},
        headers={"Authorization": "Basic " + base64.b64encode(f"cms:{SECRET}".encode()).decode()},
    ) as answer:
        assert answer.status == 200, await answer.text()
        return {**about, **await answer.json()}


@asynccontextmanager
async def canaille() -> AsyncIterator[str]:
    """The URL of the identity provider behind pytest-iam, with the clients cms, softioc and opaque."""
    async with process(iam_process.__file__, "softioc", REDIRECT, str(free_port())) as child:
        assert child.stdout is not None
        async with asyncio.timeout(60):
            told = json.loads(await child.stdout.readline())
        async with aiohttp.ClientSession() as http:
            await answers(http, f"{told['url']}/.well-known/openid-configuration")
        yield told["url"]

"""The quick start survives its certificates: they renew themselves while it runs, and the screen says so."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TextIO

import pytest

from appliance.certs.keychain import load_keychain
from appliance.config.secret import Secret
from appliance.quickstart.layout import Layout, free_ports
from appliance.quickstart.renewal import Renewal
from appliance.quickstart.story import Story


class Screen(TextIO):
    """What the story prints, for those who wait for a line of it."""

    def __init__(self) -> None:
        self.text = ""
        self.grown = asyncio.Event()

    def write(self, text: str) -> int:
        self.text += text
        self.grown.set()
        return len(text)

    def flush(self) -> None:
        pass

    async def times(self, pattern: str, count: int) -> None:
        async with asyncio.timeout(100):
            while len(re.findall(pattern, self.text)) < count:
                self.grown.clear()
                await self.grown.wait()


@pytest.fixture
async def story(tmp_path: Path) -> AsyncIterator[tuple[Story, Screen]]:
    layout = Layout(tmp_path / "stack", free_ports())
    layout.make()
    screen = Screen()
    made = Story(layout, screen)
    try:
        yield made, screen
    finally:
        await made.stop()


def serial(story: Story, role: str) -> int | None:
    return load_keychain(story.layout.keychain(role).read_bytes(), Secret()).serial


@pytest.mark.timeout(180)
async def test_certificates_that_have_ended_were_renewed_and_the_operator_still_writes(
    story: tuple[Story, Screen],
) -> None:
    """With tokens of 24 seconds instead of an hour."""
    told, screen = story
    told.token_life_s = 24
    await told.services_up()
    renewing: asyncio.Task[None] | None = None
    try:
        await told.certificates()
        ended = asyncio.get_running_loop().time() + 24
        first = {role: serial(told, role) for role in ("softioc", "operator", "client")}
        renewing = asyncio.create_task(Renewal(told).run())
        await told.ioc_up()
        for role in first:
            # The second renewal comes after the end of the certificate that the IOC started with.
            await screen.times(rf"\] {role}: the certificate was renewed; it is valid until \d{{4}}-", 2)
        assert asyncio.get_running_loop().time() > ended
        await told.run("operator", ["pvxput", "test:spec", "7.25"])
        await told.run("client", ["pvxinfo", "-v", "test:spec"], "# TLS x509:")
        assert all(serial(told, role) != first[role] for role in first)
    finally:
        if renewing is not None:
            renewing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await renewing


@pytest.mark.timeout(120)
async def test_what_cannot_or_must_not_be_renewed_is_said(story: tuple[Story, Screen]) -> None:
    told, screen = story
    late = 0.0
    renewal = Renewal(told, lambda: __import__("time").time() + late)
    await told.services_up()
    await told.request("client", "client")
    await told.request("operator", "client")
    assert await renewal.look() > 0
    assert "renewed" not in screen.text, "nothing is due"

    await told.run("admin", ["pvxcert", "-R", f"{_identifier(told, 'client')}"])
    late = 3000.0
    await renewal.look()
    assert "] client: the certificate was revoked; it is not renewed\n" in screen.text
    assert "] operator: the certificate was renewed; it is valid until " in screen.text
    assert told.renewed == {"operator": "client"}

    for service in told.services:
        if service.name == "jwt-issuer":
            await service.stop()
    late = 7000.0
    await renewal.look()
    late = 7100.0
    await renewal.look()
    assert (
        screen.text.count(
            "] operator: the certificate could not be renewed; next attempt in 60 s: the issuer "
        )
        == 1
    )


def _identifier(story: Story, role: str) -> str:
    from appliance.certs.x509 import shown_id

    keychain = load_keychain(story.layout.keychain(role).read_bytes(), Secret())
    return shown_id(keychain.issuer_id, keychain.serial)

"""Renew the certificates of the quick start while it runs, as timers do at a site, and say so on the screen."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from appliance.errors import ApplianceError
from appliance.quickstart.story import REVOKED, Story

if TYPE_CHECKING:
    from cryptography import x509

__all__ = ["Renewal"]

_LOOK_S: Final = 5.0
"""Seconds between two looks at the wall clock: a machine that slept must not wait for the rest of an hour."""
_AGAIN_S: Final = 60.0
"""Seconds after a renewal that failed."""


class Renewal:
    """Renews the certificates that tokens gave, each when it is due.

    Args:
        story: runs the commands and prints.
        now: the present time, in seconds since 1970.

    """

    def __init__(self, story: Story, now: Callable[[], float] = time.time) -> None:
        self._story = story
        self._now = now
        self._not_before: dict[str, float] = {}
        self._told: dict[str, str] = {}

    async def run(self) -> None:
        """Renew certificates for ever."""
        while True:
            seconds = await self.look()
            await asyncio.sleep(seconds)

    async def look(self) -> float:
        """Renew what is due; return the seconds until the next look."""
        wait = _LOOK_S
        # A copy: the story adds roles, and removes the one whose certificate it has revoked.
        for role, usage in list(self._story.renewed.items()):
            due = self._due(role) - self._now()
            if due <= 0:
                await self._renew(role, usage)
            else:
                wait = min(wait, due)
        return max(wait, 0.1)

    def _due(self, role: str) -> float:
        from appliance.authn.due import renewal_time

        later = self._not_before.get(role, 0.0)
        certificate = self._certificate(role)
        return later if certificate is None else max(renewal_time(certificate).timestamp(), later)

    def _certificate(self, role: str) -> x509.Certificate | None:
        try:
            return self._load(role)
        except ApplianceError:
            return None

    def _load(self, role: str) -> x509.Certificate:
        from appliance.certs.keychain import load_keychain
        from appliance.config.secret import Secret

        path = self._story.layout.keychain(role)
        try:
            certificate = load_keychain(path.read_bytes(), Secret()).certificate
        except OSError as error:
            raise ApplianceError(f"{path} cannot be read: {error.strerror}") from error
        if certificate is None:
            raise ApplianceError(f"{path} holds no certificate")
        return certificate

    def _is_somebody_elses(self, role: str) -> bool:
        """Whether the user has put a certificate for another name there, which our tokens cannot renew."""
        from cryptography.x509.oid import NameOID

        certificate = self._certificate(role)
        if certificate is None:
            return False
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return [name.value for name in names] != [role]

    async def _is_revoked(self, role: str) -> bool:
        """Whether an administrator has revoked the certificate: only a person may change that."""
        try:
            await self._story.run(
                role, ["pvxcert", "-f", str(self._story.layout.keychain(role))], status=REVOKED, quiet=True
            )
        except ApplianceError:
            return False
        return True

    async def _renew(self, role: str, usage: str) -> None:
        story = self._story
        stamp = f"[{_clock(self._now())}]"
        try:
            if self._is_somebody_elses(role):
                del story.renewed[role]
                story.say(f"{stamp} {role}: the keychain is for another name than {role}; it is not renewed")
                return
            if await self._is_revoked(role):
                del story.renewed[role]
                story.say(f"{stamp} {role}: the certificate was revoked; it is not renewed")
                return
            await story.request(role, usage, "--force", quiet=True)
            until = self._load(role).not_valid_after_utc.timestamp()
        except ApplianceError as error:
            self._not_before[role] = self._now() + _AGAIN_S
            why = " ".join(str(error).split())
            if self._told.get(role) != why:
                self._told[role] = why
                story.say(
                    f"{stamp} {role}: the certificate could not be renewed; next attempt in {_AGAIN_S:.0f} s: {why}"
                )
        else:
            self._not_before.pop(role, None)
            self._told.pop(role, None)
            story.say(f"{stamp} {role}: the certificate was renewed; it is valid until {_clock(until)}")


def _clock(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC).astimezone():%Y-%m-%d %H:%M:%S}"

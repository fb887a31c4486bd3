"""A token in software (SoftHSM 2), in a directory of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

MODULE = "/usr/lib/softhsm/libsofthsm2.so"
PIN = "87654321"
WRONG = "12345678"


class SoftToken:
    """One initialised token with the label ``site``. Processes that get ``environment`` find it."""

    def __init__(self, directory: Path) -> None:
        self.tokens = directory / "tokens"
        self.tokens.mkdir(parents=True)
        config = directory / "softhsm2.conf"
        config.write_text(
            f"directories.tokendir = {self.tokens}\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n"
        )
        self.environment = {"SOFTHSM2_CONF": str(config)}
        self.uri = f"pkcs11:token=site;object=ca?module-path={MODULE}"
        self.new("site")

    def _tool(self, *arguments: str) -> None:
        subprocess.run(
            ["softhsm2-util", *arguments],
            env={**os.environ, **self.environment},
            check=True,
            capture_output=True,
            timeout=60,
        )

    def new(self, label: str) -> None:
        """Make another token."""
        self._tool("--init-token", "--free", "--label", label, "--so-pin", "so" + PIN, "--pin", PIN)

    def store(
        self,
        key: CertificateIssuerPrivateKeyTypes,
        *,
        label: str = "ca",
        identifier: str = "01",
        token: str = "site",
    ) -> None:
        """Store a key, private and public."""
        file = self.tokens.parent / "key.pem"
        file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        try:
            self._tool(
                "--import", str(file), "--token", token, "--label", label, "--id", identifier, "--pin", PIN
            )
        finally:
            file.unlink()

    def unplug(self) -> None:
        """Take the token away."""
        self.tokens.rename(self.tokens.with_name("unplugged"))

    def plug_in(self) -> None:
        """Put it back."""
        self.tokens.with_name("unplugged").rename(self.tokens)

    def swap(self, other: SoftToken) -> None:
        """Put another token in the place of this one."""
        shutil.rmtree(self.tokens)
        shutil.copytree(other.tokens, self.tokens)


def token_here(directory: Path, monkeypatch: pytest.MonkeyPatch) -> SoftToken:
    """A token that this process finds."""
    made = SoftToken(directory / "hsm")
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    return made

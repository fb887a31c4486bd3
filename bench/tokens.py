"""An issuer as a process, and tokens of its key: made here, so that fetching them is not measured."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from cryptography.hazmat.primitives.serialization import load_pem_private_key

from bench.servers import free_ports

AUDIENCE = "cms"


class Issuer:
    def __init__(self, directory: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/default"
        self.key = load_pem_private_key((directory / "id_rsa.pem").read_bytes(), None)

    def config(self) -> str:
        """The certificate service's YAML: trusts this issuer's published keys, and limits nothing."""
        return (
            "require_client_approval: false\njwt:\n  peer_per_minute: 0\n  issuers:\n"
            f"    - {{mode: jwks, issuer: '{self.url}', jwks_uri: '{self.url}/jwks', audience: [{AUDIENCE}],"
            " per_minute: 0}\n"
        )

    def tokens(self, word: str, count: int) -> list[str]:
        import jwt

        now = int(time.time())
        claims = {"iss": self.url, "aud": AUDIENCE, "iat": now, "nbf": now, "exp": now + 3600}
        return [
            jwt.encode(
                {**claims, "sub": f"{word}{number}", "jti": f"{word}{number}"},
                self.key,
                "RS256",
                headers={"kid": "bench"},
            )
            for number in range(count)
        ]


@contextlib.contextmanager
def issuer(directory: Path) -> Iterator[Issuer]:
    directory.mkdir(mode=0o700)
    (port,) = free_ports(1)
    process = subprocess.Popen(
        [sys.executable, "-m", "appliance.issuer.daemon"],
        env={
            **os.environ,
            "PORT": str(port),
            "ISSUER": f"http://127.0.0.1:{port}/default",
            "KEY_DIR": str(directory),
            "KID": "bench",
        },
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if "listening on" in line:
                break
        else:
            raise RuntimeError("the issuer did not start")
        yield Issuer(directory, port)
    finally:
        process.terminate()
        process.communicate()

"""``authnjwt -D`` with a program that prints tokens, and with an identity provider: each as a process, through a renewal."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from appliance.authn.jwt.config import JWTConfig
from appliance.certs.status import CertState
from appliance.config.duration import Duration
from tests.daemons.authn.test_daemon import environment, there, token
from tests.helpers.authorization_server import authorization_server
from tests.helpers.cms import Clock
from tests.helpers.daemons import Reporting
from tests.helpers.keepers import ticking
from tests.helpers.ports import free_port
from tests.helpers.tokens import jwks_issuer
from tests.helpers.tokens import running as running_idp

MONTH = Duration(seconds=30 * 86400)


def renewed(text: str) -> bool:
    return ": VALID, renew by " in text and "last renewed" in text


async def test_a_program_that_prints_tokens_renews_by_itself(tmp_path: Path) -> None:
    cms, home, clock = tmp_path / "cms", tmp_path / "home", Clock()
    cms.mkdir()
    home.mkdir()
    file = home / "token"
    async with running_idp() as idp:
        issuer = jwks_issuer(idp, lifetime=MONTH, organization="lab")
        jwt = JWTConfig(issuers=(issuer,), peer_per_minute=0.0)
        async with ticking(cms, clock, longest_s=0.05, jwt=jwt) as service:
            token(idp, file, seconds=45)
            async with Reporting(
                home,
                "appliance.cli.authnjwt",
                *("-D", "--no-config-pv", "--token-command", f"cat '{file}'", "--key-algorithm", "ec-p256"),
                **environment(service, home, free_port()),
            ) as daemon:
                await daemon.until(lambda text: text.startswith("READY") and ": VALID, renew by " in text)
                keychain, before = there(home / "client.p12"), (home / "client.p12").stat()
                first = service.lifecycle.peek(keychain.serial)
                assert first is not None
                token(idp, file, seconds=7200)
                # Nobody tells the daemon: it sees that it is overdue, and runs the program again.
                clock.advance(seconds=50)
                await daemon.until(renewed)
                after = (home / "client.p12").stat()
                assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
                row = service.lifecycle.peek(keychain.serial)
                assert row is not None
                assert row.renew_by > first.renew_by
                assert service.lifecycle.state(row) is CertState.VALID
                assert "eyJ" not in daemon.log


async def test_a_client_of_an_identity_provider_renews_by_itself(tmp_path: Path) -> None:
    cms, home, clock = tmp_path / "cms", tmp_path / "home", Clock()
    cms.mkdir()
    home.mkdir()
    secret = home / "secret"
    secret.touch(mode=0o600)
    secret.write_text("of-the-client")
    async with running_idp() as idp, authorization_server() as server:
        issuer = jwks_issuer(idp, lifetime=MONTH, organization="lab")
        lives = [45, 7200]
        grant = server.granted

        def granted(**changes: Any) -> dict[str, Any]:
            now = int(time.time())
            life = lives[min(len(server.forms("/token")), 2) - 1]
            text = idp.token(iat=now, nbf=now - 5, exp=now + life, sub="softioc")
            return grant(access_token=text, refresh_token=..., **changes)

        server.granted = granted  # type: ignore[method-assign]
        settings = home / "oauth.yml"
        settings.write_text(
            f"grant: client_credentials\nissuer: {server.issuer}\nclient_id: host\nclient_secret: ${{file:{secret}}}\n"
        )
        jwt = JWTConfig(issuers=(issuer,), peer_per_minute=0.0)
        async with ticking(cms, clock, longest_s=0.05, jwt=jwt) as service:
            async with Reporting(
                home,
                "appliance.cli.authnjwt",
                *("-D", "--no-config-pv", "--oauth", settings, "--key-algorithm", "ec-p256"),
                **environment(service, home, free_port()),
            ) as daemon:
                await daemon.until(lambda text: text.startswith("READY") and ": VALID, renew by " in text)
                before = (home / "client.p12").stat()
                clock.advance(seconds=50)
                await daemon.until(renewed)
                after = (home / "client.p12").stat()
                assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
                assert "of-the-client" not in daemon.log
                assert "eyJ" not in daemon.log
        assert [form["grant_type"] for form in server.forms("/token")] == ["client_credentials"] * 2

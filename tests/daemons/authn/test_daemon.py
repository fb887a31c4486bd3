"""``authnjwt -D`` and ``authnstd -D`` as processes, at a certificate service whose clock the tests move."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from appliance.authn.jwt.config import JWTConfig
from appliance.certs.keychain import Keychain, load_keychain
from appliance.certs.x509 import config_pv, subject_key_identifier
from appliance.client.context import Context
from appliance.cms.service import CertificateService
from appliance.config.address import Endpoint
from appliance.config.duration import Duration
from appliance.config.pva import ClientConfig
from tests.helpers.cms import Clock, admin_keychain, secure
from tests.helpers.daemons import Reporting
from tests.helpers.keepers import ticking
from tests.helpers.ports import free_port
from tests.helpers.tokens import IdP, jwks_issuer
from tests.helpers.tokens import running as running_idp


def environment(service: CertificateService, home: Path, udp_port: int) -> dict[str, str]:
    assert service.server is not None
    return {
        "XDG_CONFIG_HOME": str(home),
        "XDG_DATA_HOME": str(home),
        "EPICS_PVA_AUTO_ADDR_LIST": "NO",
        "EPICS_PVA_NAME_SERVERS": f"127.0.0.1:{service.server.tcp_port}",
        "EPICS_PVAS_INTF_ADDR_LIST": "127.0.0.1",
        "EPICS_PVAS_BROADCAST_PORT": str(udp_port),
        "EPICS_PVA_TLS_KEYCHAIN": str(home / "client.p12"),
        "EPICS_PVAS_TLS_KEYCHAIN": str(home / "server.p12"),
    }


def token(idp: IdP, path: Path, *, seconds: int) -> None:
    now = int(time.time())
    path.touch(mode=0o600)
    path.write_text(idp.token(iat=now, nbf=now - 5, exp=now + seconds, sub="softioc"))


def there(path: Path) -> Keychain:
    return load_keychain(path.read_bytes())


async def revoke(service: CertificateService, directory: Path, *keychains: Keychain) -> None:
    async with secure(service, admin_keychain(directory)) as admin:
        for keychain in keychains:
            await admin.put(keychain.status_pv, {"state": "REVOKED"})


async def test_one_token_keeps_two_keychains_until_they_are_revoked(tmp_path: Path) -> None:
    cms, home, clock = tmp_path / "cms", tmp_path / "home", Clock()
    cms.mkdir()
    home.mkdir()
    file, udp_port = home / "token", free_port()
    async with running_idp() as idp:
        issuer = jwks_issuer(idp, lifetime=Duration(seconds=30 * 86400), organization="lab")
        async with ticking(
            cms, clock, longest_s=0.05, jwt=JWTConfig(issuers=(issuer,), peer_per_minute=0.0)
        ) as service:
            token(idp, file, seconds=45)
            async with Reporting(
                home,
                "appliance.cli.authnjwt",
                *("-D", "-u", "client", "-u", "server", "--token-file", file, "--key-algorithm", "ec-p256"),
                **environment(service, home, udp_port),
            ) as daemon:
                ready = await daemon.until(lambda text: text.startswith("READY"))
                client, server = there(home / "client.p12"), there(home / "server.p12")
                before = [(home / name).stat() for name in ("client.p12", "server.p12")]
                assert f"client.p12 {client.issuer_id}:{client.serial}: VALID, renew by " in ready
                assert f"server.p12 {server.issuer_id}:{server.serial}: VALID, renew by " in ready

                # CERT:CONFIG, as the reference documents it
                found = ClientConfig(addr_list=(Endpoint("127.0.0.1", udp_port),), auto_addr_list=False)
                assert server.certificate is not None
                skid = subject_key_identifier(server.certificate).hex()
                async with Context(found, beacons=False) as anyone:
                    for name in (skid[:8], skid):
                        value = await anyone.get(f"CERT:CONFIG:{server.issuer_id}:{name}", timeout=60.0)
                        assert (value["serial"], value["keychain"]) == (
                            server.serial,
                            str(home / "server.p12"),
                        )
                        assert value["renew_by"].endswith(" UTC")
                    first = value["renew_by"]

                    # Nobody has refreshed the token: overdue, not ended.
                    clock.advance(seconds=50)
                    await daemon.until(lambda text: text.count("PENDING_RENEWAL") == 2)
                    token(idp, file, seconds=7200)
                    daemon.signal(signal.SIGHUP)
                    await daemon.until(
                        lambda text: text.count(": VALID, renew by ") == 2 and text.count("last renewed") == 2
                    )
                    value = await anyone.get(f"CERT:CONFIG:{server.issuer_id}:{skid[:8]}", timeout=60.0)
                    assert value["renew_by"] not in ("", first)
                after = [(home / name).stat() for name in ("client.p12", "server.p12")]
                assert [(s.st_ino, s.st_mtime_ns) for s in after] == [
                    (s.st_ino, s.st_mtime_ns) for s in before
                ]

                await revoke(service, cms, client)
                await daemon.until(lambda text: "was revoked" in text and ": VALID, renew by " in text)
                await revoke(service, cms, server)
                assert await daemon.ended() == 5, daemon.log
                assert "does not undo that" in daemon.log
    assert (home / "server.p12").exists()


async def test_a_name_waits_for_its_approval_and_survives_a_kill(tmp_path: Path) -> None:
    cms, home, clock = tmp_path / "cms", tmp_path / "home", Clock()
    cms.mkdir()
    home.mkdir()
    command = (
        "appliance.cli.authnstd",
        "-D",
        "-n",
        "operator",
        "--no-config-pv",
        "--add-config-uri",
        "--key-algorithm",
        "ec-p256",
    )
    async with ticking(cms, clock, longest_s=0.05, cert_renewal_client=Duration(seconds=3600)) as service:
        environ = environment(service, home, free_port())
        async with Reporting(home, *command, **environ) as daemon:
            await daemon.until(lambda text: text.startswith("READY") and "PENDING_APPROVAL" in text)
            keychain = there(home / "client.p12")
            assert keychain.certificate is not None
            assert config_pv(keychain.certificate).startswith(f"CERT:CONFIG:{keychain.issuer_id}:")
            await daemon.logged(f"pvxcert --approve {keychain.cert_id}")
            async with secure(service, admin_keychain(cms)) as admin:
                await admin.put(keychain.status_pv, {"state": "APPROVED"})
            await daemon.until(lambda text: ": VALID, renew by " in text)
            daemon.signal(signal.SIGKILL)
            assert await daemon.ended() == -signal.SIGKILL
        before = (home / "client.p12").stat().st_mtime_ns
        async with Reporting(home, *command, **environ) as daemon:
            await daemon.until(lambda text: ": VALID, renew by " in text)
            daemon.signal(signal.SIGTERM)
            assert await daemon.ended() == 0
        assert (home / "client.p12").stat().st_mtime_ns == before
        assert there(home / "client.p12").serial == keychain.serial


async def test_a_keychain_that_cannot_be_read_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "client.p12").write_text("rubbish")
    async with Reporting(
        tmp_path,
        "appliance.cli.authnstd",
        "-D",
        EPICS_PVA_TLS_KEYCHAIN=str(tmp_path / "client.p12"),
        XDG_CONFIG_HOME=str(tmp_path),
        EPICS_PVA_AUTO_ADDR_LIST="NO",
        EPICS_PVAS_INTF_ADDR_LIST="127.0.0.1",
        EPICS_PVAS_BROADCAST_PORT=str(free_port()),
    ) as daemon:
        assert await daemon.ended() == 1
        assert "it was not changed: move it away" in daemon.log

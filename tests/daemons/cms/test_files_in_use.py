"""Files of the service that are removed or replaced while it runs: noticed, told by HEALTH, and nothing is done that would be lost."""

import os
import shutil

import pytest

from appliance.cms.backup import backup
from appliance.errors import ConfigurationError, RemoteError
from tests.helpers.cms import admin_keychain, ccr, plain, running, secure

OPEN = {"require_client_approval": False, "require_server_approval": False, "require_ioc_approval": False}


def replaced(path):
    copy = path.with_name("copy")
    shutil.copy(path, copy)
    copy.replace(path)


def moved(path):
    path.rename(path.with_name("away"))


@pytest.mark.parametrize("suffix", ["", "-wal", ".lock"])
@pytest.mark.parametrize("spoil", [os.unlink, moved, replaced], ids=["removed", "moved", "replaced"])
async def test_without_its_database_the_service_does_nothing_and_says_so(tmp_path, spoil, suffix):
    async with running(tmp_path) as service, plain(service) as anyone:
        waits = await anyone.rpc("CERT:CREATE", ccr())
        path = tmp_path / f"certs.db{suffix}"
        spoil(path)
        with pytest.raises(
            RemoteError, match=r"while the service ran.*until the same file is put back, or the"
        ):
            await anyone.rpc("CERT:CREATE", ccr("bob"))
        async with secure(service, admin_keychain(tmp_path)) as admin:
            for state in ("APPROVED", "DENIED", "REVOKED"):
                with pytest.raises(RemoteError, match="was removed or replaced"):
                    await admin.put(waits["status_pv"], {"state": state})
        assert (await anyone.get(waits["status_pv"]))["state"] == "PENDING_APPROVAL"
        await service.health.check()
        health = await anyone.get("CERT:HEALTH")
        assert (health["value.index"], health["db_ok"], health["alarm.severity"]) == (0, False, 2)
        assert path.name in health["alarm.message"]
        assert service.health.summary().endswith("NOT OK")
        if spoil is moved:
            path.with_name("away").rename(path)
            await service.health.check()
            health = await anyone.get("CERT:HEALTH")
            assert (health["value.index"], health["alarm.message"]) == (1, "")
            assert (await anyone.rpc("CERT:CREATE", ccr("bob")))["state"] == "PENDING_APPROVAL"


async def test_a_lost_database_is_not_begun_anew_at_the_next_start(tmp_path):
    async with running(tmp_path) as service:
        copy = backup(str(tmp_path / "certs.db"), str(tmp_path / "backup.db"))
    for path in tmp_path.glob("certs.db*"):
        if path.suffix != ".revoked":
            path.unlink()
    with pytest.raises(ConfigurationError, match="the database is missing, but its journal"):
        async with running(tmp_path):
            pass
    assert not (tmp_path / "certs.db").exists()
    shutil.copy(copy, tmp_path / "certs.db")
    async with running(tmp_path) as again:
        assert again.names.issuer_id == service.names.issuer_id


async def test_a_lost_authority_is_not_replaced_by_another_one(tmp_path):
    async with running(tmp_path):
        pass
    (tmp_path / "cert_auth.p12").rename(tmp_path / "away.p12")
    with pytest.raises(ConfigurationError, match="authority's keychain is missing"):
        async with running(tmp_path):
            pass
    assert not (tmp_path / "cert_auth.p12").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("certs.db.revoked", "certs.db.revoked was removed or replaced"),
        ("certs.db.tokens", "file of used tokens"),
        ("cert_auth.p12", "the certificate authority's keychain"),
        ("pvacms.p12", "the service's keychain"),
        ("pvacms.acf", "the access security file"),
    ],
)
async def test_every_file_that_the_service_needs_is_missed(tmp_path, name, said):
    async with running(tmp_path) as service, plain(service) as anyone:
        assert (await anyone.get("CERT:HEALTH"))["value.index"] == 1
        (tmp_path / name).rename(tmp_path / "away")
        await service.health.check()
        health = await anyone.get("CERT:HEALTH")
        assert health["value.index"] == 0
        assert said in health["alarm.message"]
        (tmp_path / "away").rename(tmp_path / name)
        await service.health.check()
        assert (await anyone.get("CERT:HEALTH"))["value.index"] == 1


async def test_a_revocation_that_the_lost_journal_did_not_get_is_written_at_the_next_start(tmp_path):
    async with running(tmp_path, **OPEN) as service, plain(service) as anyone:
        reply = await anyone.rpc("CERT:CREATE", ccr())
        (tmp_path / "certs.db.revoked").unlink()
        async with secure(service, admin_keychain(tmp_path)) as admin:
            await admin.put(reply["status_pv"], {"state": "REVOKED"})
        assert (await anyone.get(reply["status_pv"]))["state"] == "REVOKED"
    async with running(tmp_path, **OPEN):
        pass
    assert f"{reply['serial']} " in (tmp_path / "certs.db.revoked").read_text()


async def test_a_backup_that_fails_shows_in_health(tmp_path):
    directory = tmp_path / "backups"
    directory.mkdir()
    async with running(tmp_path, backup_dir=str(directory)) as service:
        await service.upkeep.backup()
        assert len(list(directory.iterdir())) == 1
        shutil.rmtree(directory)
        await service.upkeep.backup()
        await service.health.check()
        assert service.health.summary().endswith("NOT OK")
        directory.mkdir()
        await service.upkeep.backup()
        await service.health.check()
        assert not service.health.summary().endswith("NOT OK")


async def test_after_a_restore_the_keys_of_revoked_certificates_stay_barred_and_denied_ones_do_not(tmp_path):
    from appliance.certs.profiles import generate_key

    denied, revoked = generate_key("ec-p256"), generate_key("ec-p256")
    async with running(tmp_path) as service, plain(service) as anyone:
        replies = [
            await anyone.rpc("CERT:CREATE", ccr(name, key=key))
            for name, key in (("denied", denied), ("revoked", revoked))
        ]
        copy = backup(str(tmp_path / "certs.db"), str(tmp_path / "backup.db"))
        async with secure(service, admin_keychain(tmp_path)) as admin:
            await admin.put(replies[0]["status_pv"], {"state": "DENIED"})
            await admin.put(replies[1]["status_pv"], {"state": "REVOKED"})
    for path in tmp_path.glob("certs.db-*"):
        path.unlink()
    shutil.copy(copy, tmp_path / "certs.db")
    async with running(tmp_path) as service, plain(service) as anyone:
        assert {(await anyone.get(reply["status_pv"]))["state"] for reply in replies} == {"REVOKED"}
        assert (await anyone.rpc("CERT:CREATE", ccr("denied", key=denied)))["state"] == "PENDING_APPROVAL"
        with pytest.raises(RemoteError, match="never certified again"):
            await anyone.rpc("CERT:CREATE", ccr("revoked", key=revoked))

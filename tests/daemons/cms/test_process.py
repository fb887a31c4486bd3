"""``pvacms`` as a process: first start, refusals, signals, sudden death, full disks, backups."""

import asyncio
import resource
import signal
import socket
import sqlite3
import stat
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from appliance.authn.trust import fingerprint
from appliance.certs.keychain import load_keychain
from appliance.certs.ocsp import verify_response
from appliance.certs.profiles import generate_key
from appliance.certs.status import OCSPState
from appliance.config.secret import Secret
from appliance.errors import ApplianceError, RemoteError
from tests.helpers.cms import Process, ccr, client, keychain_of

OPEN = "--certs-dont-require-approval"


def once(directory, *arguments, **environ):
    with Process(directory, *arguments, **environ) as process:
        return process.wait()


def remove_companions(db):
    for path in db.parent.glob("certs.db-*"):
        path.unlink()


def admin(process):
    return client(process.tls_port, load_keychain((process.config_dir / "admin.p12").read_bytes()))


def test_the_first_start_makes_what_is_missing_and_says_so(tmp_path):
    with Process(tmp_path) as process:
        process.ready()
        directory = process.config_dir
        assert process.lines[:5] == [
            f"Keychain file created   : {directory}/cert_auth.p12\n",
            f"Certificate DB created  : {process.db}\n",
            f"Keychain file created   : {directory}/admin.p12\n",
            f"Created Default ACF file: {directory}/pvacms.acf\n",
            f"Keychain file created   : {directory}/pvacms.p12\n",
        ]
        for secret in ("cert_auth.p12", "admin.p12", "pvacms.p12"):
            assert stat.S_IMODE((directory / secret).stat().st_mode) == 0o600
        for path in process.db.parent.iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        # What the administrator publishes, and a requester compares: see the how-to of the migration.
        anchor = load_keychain((directory / "cert_auth.p12").read_bytes()).anchors[0]
        assert any(f": {fingerprint(anchor)}\n" in line for line in process.lines)
        assert process.log_line(f"to be published, is {fingerprint(anchor)}")
        status, out, _ = process.stop()
        assert status == 0
        assert out.rstrip().endswith("=")
    with Process(tmp_path) as process:
        process.ready()
        assert "created" not in "".join(process.lines)


def test_a_second_instance_on_the_same_database_is_refused(tmp_path):
    with Process(tmp_path) as first:
        first.ready()
        status, _, log = once(tmp_path)
        assert status == 1
        assert "another pvacms uses the database" in log
        assert "Traceback" not in log


def test_readiness_is_told_to_the_service_manager_only_when_it_serves(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        with Process(tmp_path, NOTIFY_SOCKET=str(tmp_path / "notify")) as process:
            while (message := manager.recv(65536).decode()).startswith("EXTEND_TIMEOUT_USEC="):
                pass  # a start may take long
            assert message.startswith("READY=1")
            assert "wait for approval" in message
            process.ready()
            with socket.create_connection(("127.0.0.1", process.tcp_port), 5):
                pass


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda c, d: (c / "cert_auth.p12").write_bytes(b"x"), "not a PKCS#12"),
        (lambda c, d: (c / "cert_auth.p12").chmod(0o644), "chmod 600"),
        (lambda c, d: (c / "pvacms.acf").write_text("ASG(DEFAULT) { RULE(9"), "pvacms.acf:1"),
        (lambda c, d: (d / "certs.db").write_bytes(b"not a database" * 100), "not a database"),
        (
            lambda c, d: (c / "pvacms.p12").write_bytes((c / "cert_auth.p12").read_bytes()),
            "pvacms.p12|authority",
        ),
        (lambda c, d: (d / "certs.db.revoked").write_text("rubbish\n"), "revocation journal"),
    ],
    ids=["ca-damaged", "ca-readable", "acf", "db", "own", "journal"],
)
def test_a_failing_self_test_is_one_clear_sentence(tmp_path, spoil, why):
    with Process(tmp_path) as process:
        process.ready()
        config, data = process.config_dir, process.db.parent
        process.stop()
    remove_companions(data / "certs.db")
    spoil(config, data)
    status, _, log = once(tmp_path)
    assert status == 1, log
    import re

    assert re.search(why, log), log
    assert "Traceback" not in log


def test_a_later_schema_and_a_foreign_database_are_refused(tmp_path):
    with Process(tmp_path) as process:
        process.ready()
        db = process.db
        process.stop()
    with sqlite3.connect(db) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.execute("UPDATE meta SET value = '9999' WHERE key = 'schema_oldest'")
    connection.close()
    status, _, log = once(tmp_path)
    assert (status, "needs a later pvacms" in log) == (1, True)
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE certs(serial INTEGER)")
    connection.close()
    status, _, log = once(tmp_path, "-d", str(other))
    assert (status, "another program" in log) == (1, True)


async def test_a_reload_takes_a_new_access_file_and_keeps_the_old_one_when_it_is_wrong(tmp_path):
    with Process(tmp_path, OPEN) as process:
        process.ready()
        acf = process.config_dir / "pvacms.acf"
        good = acf.read_text()
        async with client(process.tcp_port) as anyone, admin(process) as administrator:
            reply = await anyone.rpc("CERT:CREATE", ccr())
            acf.write_text("ASG(DEFAULT) { RULE(")
            process.process.send_signal(signal.SIGHUP)
            await asyncio.to_thread(process.log_line, "reload failed")
            assert (await administrator.rpc("CERT:LIST", {}))["value.state"]
            acf.write_text(good.replace("{admin}", "{boss}"))
            process.process.send_signal(signal.SIGHUP)
            await asyncio.to_thread(process.log_line, "were read again")
            with pytest.raises(RemoteError, match="denied"):
                await administrator.put(reply["status_pv"], {"state": "REVOKED"})
            acf.write_text(good)
            process.process.send_signal(signal.SIGHUP)
        assert process.stop()[0] == 0


async def test_kill_9_leaves_every_delivered_certificate_known_and_revocable(tmp_path):
    """Whoever has a certificate can be stopped, whenever the service died; and nobody is locked out."""
    delivered = []
    asked = {f"user{i}": generate_key("ec-p256") for i in range(400)}
    with Process(tmp_path, OPEN) as process:
        process.ready()
        async with client(process.tcp_port) as anyone:

            async def ask(name):
                reply = await anyone.rpc("CERT:CREATE", ccr(name, key=asked[name]), timeout=None)
                delivered.append((name, reply))
                if len(delivered) == 60:
                    process.process.kill()

            tasks = [asyncio.ensure_future(ask(name)) for name in asked]
            while len(delivered) < 60:
                await asyncio.sleep(0.01)
            await asyncio.to_thread(process.process.wait, 60)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    assert len(delivered) >= 60
    with Process(tmp_path, OPEN) as process:
        process.ready()
        async with client(process.tcp_port) as anyone, admin(process) as administrator:
            statuses = await anyone.get([reply["status_pv"] for _, reply in delivered])
            assert {status["state"] for status in statuses} == {"VALID"}
            await administrator.put(delivered[0][1]["status_pv"], {"state": "REVOKED"})
            assert (await anyone.get(delivered[0][1]["status_pv"]))["state"] == "REVOKED"
            got = {name for name, _ in delivered}
            for name in [name for name in asked if name not in got][:40]:
                assert (await anyone.rpc("CERT:CREATE", ccr(name, key=asked[name])))["state"] == "VALID"
        process.stop()
    status, out, log = once(tmp_path, "--audit-verify")
    assert status == 0, log
    assert out.startswith("audit intact")


async def test_a_full_disk_is_an_error_for_the_requester_and_shows_in_health(tmp_path):
    """The process may write no file beyond a size: its database is on a full disk."""
    with Process(tmp_path, OPEN) as process:
        process.ready()
        process.stop()
        used = max(path.stat().st_size for path in process.db.parent.iterdir())
    config = tmp_path / "cms.yml"
    config.write_text("health_interval_s: 0.2\n")
    with Process(tmp_path, OPEN, "--config", str(config)) as process:
        process.ready()
        resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE, (used + 200_000, resource.RLIM_INFINITY))
        issued = []
        async with client(process.tcp_port) as anyone:
            with pytest.raises(RemoteError, match="database cannot be written"):
                while len(issued) < 3000:
                    issued += [await anyone.rpc("CERT:CREATE", ccr(f"u{len(issued)}"))]
            async with anyone.monitor("CERT:HEALTH") as health:
                async for value in health:
                    if value["value.index"] == 0:
                        assert not value["db_ok"]
                        assert value["alarm.severity"] == 2
                        break
            assert (await anyone.get(issued[-1]["status_pv"]))["state"] == "VALID"
            resource.prlimit(
                process.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            )
            assert (await anyone.rpc("CERT:CREATE", ccr("after")))["state"] == "VALID"
            async with anyone.monitor("CERT:HEALTH") as health:
                async for value in health:
                    if value["value.index"] == 1:
                        break
        process.stop()
    assert once(tmp_path, "--audit-verify")[0] == 0


async def test_a_restored_database_answers_unknown_and_revokes_again_what_was_revoked(tmp_path):
    copy = tmp_path / "copy.db"
    with Process(tmp_path, OPEN) as process:
        process.ready()
        async with client(process.tcp_port) as anyone, admin(process) as administrator:
            before = await anyone.rpc("CERT:CREATE", ccr("before"))
            revoked = await anyone.rpc("CERT:CREATE", ccr("revoked"))
            status, out, log = await asyncio.to_thread(once, tmp_path, "--backup", str(copy.with_suffix("")))
            assert status == 0, log
            assert out == f"Database backup created : {copy}\n"
            assert stat.S_IMODE(copy.stat().st_mode) == 0o600
            after = await anyone.rpc("CERT:CREATE", ccr("after"))
            await administrator.put(revoked["status_pv"], {"state": "REVOKED"})
        process.stop()
        remove_companions(process.db)
        copy.replace(process.db)
    with Process(tmp_path, OPEN) as process:
        process.ready()
        async with client(process.tcp_port) as anyone:
            states = [(await anyone.get(r["status_pv"]))["state"] for r in (before, revoked, after)]
            assert states == ["VALID", "REVOKED", "UNKNOWN"]
            root = keychain_of(before).chain[0]
            status = await anyone.get(after["status_pv"])
            from datetime import UTC, datetime

            answer = verify_response(
                bytes(status["ocsp_response"]), issuer=root, serial=after["serial"], now=datetime.now(UTC)
            )
            assert answer.state is OCSPState.UNKNOWN
        async with client(process.tls_port, keychain_of(after)) as unknown:
            with pytest.raises(ApplianceError):
                await unknown.get("CERT:HEALTH", timeout=1)
        process.stop()
    assert once(tmp_path, "--audit-verify")[0] == 0


async def test_the_audit_shows_what_was_done_and_that_it_was_changed(tmp_path):
    with Process(tmp_path, OPEN) as process:
        process.ready()
        async with client(process.tcp_port) as anyone, admin(process) as administrator:
            reply = await anyone.rpc("CERT:CREATE", ccr())
            status, out, _ = await asyncio.to_thread(once, tmp_path, "--audit-verify")
            assert status == 0
            early = out.split()[-1]
            with pytest.raises(RemoteError):
                await anyone.put(reply["status_pv"], {"state": "APPROVED"})
            await administrator.put(reply["status_pv"], {"state": "REVOKED"})
            # The head of a moment ago is a good one, while the service goes on writing.
            kept = ("--audit-verify", "--audit-head", early)
            status, out, log = await asyncio.to_thread(once, tmp_path, *kept)
            assert (status, out.split()[-1] != early) == (0, True), log
        process.stop()
    status, out, _ = once(tmp_path, "--audit-verify")
    assert status == 0
    head = out.split()[-1]
    assert early != head
    for known in (early, head):
        assert once(tmp_path, "--audit-verify", "--audit-head", known)[0] == 0
    status, _, log = once(tmp_path, "--audit-verify", "--audit-head", "0123456789abcdef" * 4)
    assert (status, "the head that was kept is not among" in log) == (1, True)
    status, _, log = once(tmp_path, "--audit-verify", "--audit-head", "x")
    assert (status, "is not the hash of an audit record" in log) == (1, True)
    connection = sqlite3.connect(process.db)
    rows = connection.execute(
        "SELECT action, record FROM audit WHERE serial = ? ORDER BY seq", (str(reply["serial"]),)
    ).fetchall()
    assert [action for action, _ in rows] == ["create", "refuse", "revoke"]
    assert '"account":"admin"' in rows[2][1]
    assert '"method":"x509"' in rows[2][1]
    connection.execute("UPDATE audit SET record = replace(record, 'admin', 'alice')")
    connection.commit()
    connection.close()
    status, _, log = once(tmp_path, "--audit-verify")
    assert status == 1
    assert "broken" in log


def test_a_new_administrator_gets_a_keychain_and_a_place_in_the_access_file(tmp_path):
    with Process(tmp_path) as process:
        process.ready()
        process.stop()
    keychain = tmp_path / "boss.p12"
    status, out, log = once(tmp_path, "--admin-keychain-new", "boss", "-a", str(keychain))
    assert status == 0, log
    assert f"Keychain file created   : {keychain}\n" in out
    assert load_keychain(keychain.read_bytes()).subject == "CN=boss, C=US"
    assert "{admin, boss}" in (process.config_dir / "pvacms.acf").read_text()
    status, _, log = once(tmp_path, "--admin-keychain-new", "boss", "-a", str(keychain))
    assert (status, "exists already" in log) == (1, True)
    keychain.unlink()
    status, _, log = once(tmp_path, "--admin-keychain-new", "boss", "-a", str(keychain))
    assert (status, "already has a certificate" in log) == (1, True)
    with Process(tmp_path, "--admin-keychain-ensure", "boss", "-a", str(keychain)) as process:
        process.ready()
        assert not keychain.exists()
    with Process(tmp_path, "--admin-keychain-ensure", "chief", "-a", str(keychain)) as process:
        process.ready()
        assert keychain.exists()


async def test_a_lost_administrators_keychain_is_replaced_beside_the_running_service(tmp_path):
    with Process(tmp_path, OPEN) as process:
        process.ready()
        lost = load_keychain((process.config_dir / "admin.p12").read_bytes())
        (process.config_dir / "admin.p12").unlink()
        keychain = tmp_path / "second.p12"
        async with client(process.tcp_port) as anyone:
            before = await anyone.rpc("CERT:CREATE", ccr("before"))
            status, _, log = await asyncio.to_thread(once, tmp_path, "--admin-keychain-new", "admin")
            assert (status, "choose another name here, and revoke it with the new keychain" in log) == (
                1,
                True,
            )
            command = ("--admin-keychain-new", "second", "-a", str(keychain))
            status, out, log = await asyncio.to_thread(once, tmp_path, *command)
            assert status == 0, log
            assert "send it SIGHUP" in out
            # What the service writes next is chained to what the command has written.
            after = await anyone.rpc("CERT:CREATE", ccr("after"))
            process.process.send_signal(signal.SIGHUP)
            await asyncio.to_thread(process.log_line, "were read again")
            async with client(process.tls_port, load_keychain(keychain.read_bytes())) as administrator:
                for reply in (before, after):
                    await administrator.put(reply["status_pv"], {"state": "REVOKED"})
                await administrator.put(lost.status_pv, {"state": "REVOKED"})
            assert (await anyone.get(lost.status_pv))["state"] == "REVOKED"
        process.stop()
    status, out, log = once(tmp_path, "--audit-verify")
    assert status == 0, log


def test_beside_a_running_service_no_other_authority_is_made(tmp_path):
    with Process(tmp_path) as process:
        process.ready()
        other = tmp_path / "other.p12"
        command = ("--admin-keychain-new", "boss", "-a", str(tmp_path / "boss.p12"), "-c", str(other))
        status, _, log = once(tmp_path, *command)
        assert status == 1
        assert "name the certificate authority of that service" in log
        assert not other.exists()
        status, _, log = once(tmp_path)
        assert (status, "another pvacms uses the database" in log) == (1, True)


@pytest.mark.parametrize("algorithm", ["rsa-2048", "ec-p384", "ed25519"])
async def test_keys_of_other_algorithms_and_a_yaml_access_file(tmp_path, algorithm):
    arguments = (OPEN, "--key-algorithm", algorithm, "--acf", str(tmp_path / "cms.yaml"))
    with Process(tmp_path, *arguments) as process:
        process.ready()
        async with client(process.tcp_port) as anyone, admin(process) as administrator:
            reply = await anyone.rpc("CERT:CREATE", ccr())
            await administrator.put(reply["status_pv"], {"state": "REVOKED"})
            assert (await anyone.get(reply["status_pv"]))["state"] == "REVOKED"
        own = load_keychain((process.config_dir / "admin.p12").read_bytes())
        assert isinstance(own.key, RSAPrivateKey), "PVXS 1.3.1 can use no other as its own"


def test_the_command_line_answers_quickly_and_clearly(tmp_path):
    run = [sys.executable, "-m", "appliance.cli.pvacms"]

    def call(*arguments):
        return subprocess.run([*run, *arguments], capture_output=True, text=True, timeout=60, check=False)

    assert call("--version").returncode == 0
    assert '"cert_auth_name"' in call("--print-schema").stdout
    config = tmp_path / "cms.yml"
    config.write_text("require_client_aproval: false\n")
    wrong = call("--config", str(config), "--check-config")
    assert wrong.returncode == 1
    assert f"{config}:1: require_client_aproval: unknown key" in wrong.stderr
    config.write_text("require_client_approval: false\njwt: {allow_plaintext_token: false}\n")
    assert call("--config", str(config), "--check-config").returncode == 0
    assert "require_client_approval: false" in call("--config", str(config), "--print-config").stdout
    assert call("--nonsense").returncode == 1


def test_the_services_keychain_may_have_its_password_behind_its_name_and_a_quiet_service_says_little(
    tmp_path,
):
    keychain = tmp_path / "own.p12"
    with Process(tmp_path, "-q", "-v", EPICS_PVACMS_TLS_KEYCHAIN=f"{keychain};geheim") as process:
        process.ready()
        assert load_keychain(keychain.read_bytes(), Secret("geheim")).certificate is not None
        shown = [line for line in process.lines if line.startswith("| ")]
        assert len(shown) == 1
        assert "Service Running" in shown[0]
        assert process.log_line("to be published, is ")
        status, out, err = process.stop()
    assert status == 0
    assert "geheim" not in out + err + "".join(process.lines + process.log)


def test_a_cluster_is_refused_with_one_sentence(tmp_path):
    status, out, err = once(tmp_path, "--cluster-mode")
    assert (status, out) == (1, "")
    assert err.startswith("Error: --cluster-mode: nodes share a database server")

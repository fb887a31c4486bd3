"""``pvacms`` with a database server: several nodes on one database, and what a wrong setting gets."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.certs.status import CertState
from appliance.cms.audit import verify_audit
from appliance.cms.jobs import NOT_KNOWN
from appliance.cms.model import SERVICE
from appliance.cms.store import Store
from appliance.errors import ConfigurationError, DatabaseLost, RemoteError
from appliance.version import __version__
from tests.helpers.cms import Process, admin_keychain, ccr, client, plain, running, secure
from tests.helpers.postgres import PASSWORD, Engine, Server, raw

URL = "postgresql+psycopg://pvacms@127.0.0.1:{port}/{name}"


class Node:
    """A directory of a node, and its configuration."""

    def __init__(self, base: Path, name: str, db: str, **settings: str) -> None:
        self.directory = base / name
        self.directory.mkdir()
        self.config = self.directory / "pvacms.yml"
        password = self.directory / "password"
        password.write_text(settings.pop("password", PASSWORD) + "\n")
        lines = {"db": db, "db_password": f"${{file:{password}}}", "node": name, "health_interval_s": "0.2"}
        self.config.write_text("".join(f"{key}: {text}\n" for key, text in (lines | settings).items()))
        for file in (password, self.config):
            file.chmod(0o600)

    def process(self, *arguments: str) -> Process:
        return Process(self.directory, "--config", str(self.config), *arguments)

    def takes_authority_of(self, other: Node) -> Node:
        mine = self.directory / "config/pva/1.5"
        mine.mkdir(parents=True)
        shutil.copy(other.directory / "config/pva/1.5/cert_auth.p12", mine)
        return self


async def health(context, also=None, **wanted):
    """CERT:HEALTH as soon as it says this."""
    async for value in context.monitor("CERT:HEALTH"):
        if all(value[field] == content for field, content in wanted.items()) and (
            also is None or also(value)
        ):
            return value
    raise AssertionError


def named(value):
    """Whether all members have identifiers of their own, as the reference writes them."""
    ids = {row["node_id"] for row in value["members"]}
    return len(ids) == value["cluster_members"] and all(re.fullmatch("[0-9a-f]{8}", found) for found in ids)


async def test_two_nodes_share_a_database_and_each_knows_the_other(tmp_path, postgres):
    name = postgres.empty()
    db = URL.format(port=postgres.port, name=name)
    first = Node(tmp_path, "a", db)
    with first.process() as a:
        a.ready()
        with Node(tmp_path, "b", db).takes_authority_of(first).process("--cluster-mode") as b:
            b.ready()
            assert a.issuer == b.issuer
            async with client(a.tcp_port) as at_a, client(b.tcp_port) as at_b:
                made = await at_a.rpc("CERT:CREATE", ccr("alice"))
                await at_b.rpc("CERT:CREATE", ccr("bob"))
                assert made["state"] == "PENDING_APPROVAL"
                both = await health(at_b, named, cluster_members=2)
                assert (both["cluster_mode"], both["db_ok"]) == (True, True)
                assert {row["name"]: row["connected"] for row in both["members"]} == {"a": True, "b": True}
                versions = {
                    tuple(row[f"version_{each}"] for each in ("major", "minor", "patch"))
                    for row in both["members"]
                }
                assert {".".join(map(str, each)) for each in versions} == {__version__}
                a.process.kill()
                one = await health(at_b, cluster_members=1)
                assert {row["name"]: row["connected"] for row in one["members"]} == {"a": False, "b": True}
            status, _, log = b.stop()
            assert (status, PASSWORD in log) == (0, False)
    with raw(postgres.url(name)) as rows:
        nodes = {
            row[0]
            for row in rows.execute("SELECT node FROM certs WHERE cn = 'alice' OR cn = 'bob'").fetchall()
        }
        left = [row[0] for row in rows.execute("SELECT node FROM nodes").fetchall()]
    assert nodes == {"a", "b"}, "each row says who recorded it"
    assert left == ["a"], "a node that is stopped takes its leave"
    assert verify_audit(postgres.url(name)).intact
    postgres.drop(name)


async def test_a_node_survives_the_restart_of_its_database_and_says_so_meanwhile(tmp_path):
    with Server(fast=False) as server:
        db = URL.format(port=server.port, name=server.empty())
        with Node(tmp_path, "a", db, db_wait_s="60").process() as node:
            node.ready()
            async with client(node.tcp_port) as context:
                await context.rpc("CERT:CREATE", ccr("alice"))
                server.kill()
                lost = await health(context, db_ok=False)
                said = lost["alarm.message"]
                assert said.startswith("the database is lost since ")
                assert said.endswith("; the service's log says why"), (
                    "anybody reads it: where the server is does not concern them"
                )
                server.start()
                made = await context.rpc("CERT:CREATE", ccr("bob"), timeout=60)
                assert made["state"] == "PENDING_APPROVAL"
                found = await health(context, db_ok=True)
                assert not found["alarm.message"]
            assert node.stop()[0] == 0


async def test_what_a_database_has_lost_while_the_service_runs_is_recorded_again(
    tmp_path, postgres, monkeypatch
):
    made = Engine("postgresql", postgres)
    monkeypatch.setattr("tests.helpers.cms.ENGINE", made)
    async with (
        running(tmp_path, node="a", require_client_approval=False) as service,
        plain(service) as anyone,
    ):
        reply = await anyone.rpc("CERT:CREATE", ccr("alice"))
        lifecycle = service.lifecycle
        assert lifecycle.state(await lifecycle.find(reply["serial"])) is CertState.VALID
        name = made.db(tmp_path).partition("@/")[2].partition("?")[0]
        (before,) = postgres.sql("SELECT max(seq) FROM audit", name)[0]
        await lifecycle.revoke(reply["serial"], SERVICE)
        # The server loses the last commits, as a standby that takes over may have.
        postgres.sql(f"DELETE FROM audit WHERE seq > {before}", name)
        postgres.sql("UPDATE certs SET state = 'VALID', barred = false WHERE cn = 'alice'", name)
        postgres.sql(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}' AND pid <> pg_backend_pid()"
        )
        await lifecycle.note("test", None, SERVICE, {})
        record = await service.store.submit(lambda transaction: transaction.get(reply["serial"]))
        assert record.state is CertState.REVOKED
        rows = postgres.sql(f"SELECT action, record FROM audit WHERE seq > {before} ORDER BY seq", name)
        assert [action for action, _ in rows] == ["revoke", "restored", "test"]
        assert json.loads(rows[1][1])["last"] == str(before + 1)
        assert int(postgres.sql("SELECT value FROM meta WHERE key = 'tokens_void'", name)[0][0]) > 0
        await service.health.check()
        async with plain(service) as other:
            told = await other.get("CERT:HEALTH")
        assert "the database was older than before" in told["alarm.message"]
    assert verify_audit(made.db(tmp_path)).intact
    made.close()


@pytest.mark.parametrize(
    ("fate", "logged"),
    [
        (f"{NOT_KNOWN}; ask again, it is safe", "may have been done or not"),
        ("nothing was done", "was NOT done"),
    ],
)
async def test_what_became_of_a_revocation_while_the_database_was_lost_is_logged_as_it_is(
    tmp_path, monkeypatch, caplog, fate, logged
):
    async def lost(*_):
        raise DatabaseLost(f"the certificate database cannot be reached; {fate}")

    async with running(tmp_path, require_client_approval=False) as service:
        async with plain(service) as anyone:
            reply = await anyone.rpc("CERT:CREATE", ccr("alice"))
        monkeypatch.setattr(service.lifecycle, "revoke", lost)
        async with secure(service, admin_keychain(tmp_path)) as administrator:
            with pytest.raises(RemoteError, match=fate):
                await administrator.put(reply["status_pv"], {"state": "REVOKED"})
    assert logged in caplog.text


def refused(node: Node, *arguments: str) -> str:
    with node.process(*arguments) as process:
        status, out, err = process.wait()
    assert status == 1, out + err
    said = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert len(said) == 1, err
    assert PASSWORD not in out + err
    return said[0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"password": "wrong"}, 'password authentication failed for user "pvacms"; correct db_password'),
        ({"name": "nowhere"}, 'database "nowhere" does not exist; create it'),
        ({"db": "mysql://host/x"}, "db: 'mysql' is not supported"),
        ({"db": "postgresql+psycopg://me:secret@host/x"}, "contains a password, which others could read"),
        ({"db_tls_ca": "/nowhere/ca.pem", "query": "?sslmode=verify-full"}, "cannot be used"),
    ],
    ids=["wrong password", "no such database", "another server", "password in the URL", "no TLS"],
)  # fmt: skip
def test_what_the_server_refuses_is_one_sentence_and_status_1(tmp_path, postgres, change, says):
    name, query = change.pop("name", None) or postgres.empty(), change.pop("query", "")
    db = change.pop("db", URL.format(port=postgres.port, name=name) + query)
    said = refused(Node(tmp_path, "a", db, **change))
    assert says in said
    assert "secret" not in said


def test_nodes_without_a_server_are_refused(tmp_path):
    node = Node(tmp_path, "a", "certs.db")
    assert "it is for a database server, and db is a file" in refused(node)
    node.config.write_text("db: certs.db\n")
    assert "nodes share a database server, and db is a file" in refused(node, "--cluster-mode")


def test_a_database_of_a_later_schema_is_refused(tmp_path, postgres):
    name = postgres.new()
    postgres.sql("UPDATE alembic_version SET version_num = '0007'", name)
    postgres.sql("UPDATE meta SET value = '0006' WHERE key = 'schema_oldest'", name)
    said = refused(Node(tmp_path, "a", URL.format(port=postgres.port, name=name)))
    assert "has the schema version '0007', which needs a later pvacms" in said
    postgres.drop(name)


def test_a_read_only_database_is_refused(tmp_path, postgres):
    name = postgres.new()
    postgres.sql(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    said = refused(Node(tmp_path, "a", URL.format(port=postgres.port, name=name)))
    assert "it is read-only (a standby?): name the primary, or all hosts of the database" in said
    postgres.drop(name)


def test_a_server_that_cannot_be_reached_is_waited_for_and_then_refused(tmp_path, postgres):
    store = Store("postgresql+psycopg://pvacms@/x?host=/nowhere", "")
    store.start_s = 0.2
    with pytest.raises(
        ConfigurationError, match=r"the database postgresql\+psycopg://pvacms@.* cannot be used"
    ):
        store.open()


def test_the_server_proves_by_tls_who_it_is(tmp_path):
    with Server() as server:
        certificate, key = server.data / "server.crt", server.data / "server.key"
        for ca, to in ((tmp_path / "ca.pem", key), (tmp_path / "other.pem", tmp_path / "other.key")):
            subprocess.run(
                ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                 "-subj", "/CN=db", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", to, "-out", ca],
                check=True, capture_output=True, timeout=60,
            )  # fmt: skip
        shutil.copy(tmp_path / "ca.pem", certificate)
        key.chmod(0o600)
        for file in (certificate, key):
            shutil.chown(file, server.data.stat().st_uid)
        server.stop()
        server.settings.append("ssl=on")
        server.start()
        db = URL.format(port=server.port, name=server.empty()) + "?sslmode=verify-full"
        said = refused(Node(tmp_path, "a", db, db_tls_ca=str(tmp_path / "other.pem")))
        assert (
            "certificate verify failed; name the authority of the server's certificate with db_tls_ca" in said
        )
        with Node(tmp_path, "b", db, db_tls_ca=str(tmp_path / "ca.pem")).process() as node:
            node.ready()
            assert server.sql(
                "SELECT DISTINCT s.ssl FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid) WHERE usename = 'pvacms'"
            ) == [(True,)]
            node.process.send_signal(signal.SIGTERM)
            assert node.wait()[0] == 0


async def test_commands_and_backups_log_in_as_the_service_does(tmp_path, postgres):
    name, moved = postgres.empty(), postgres.empty()
    db = URL.format(port=postgres.port, name=name)
    node = Node(tmp_path, "a", db, backup_interval_s="60")

    def command(*arguments: str, of: Node = node) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "appliance.cli.pvacms", "--config", of.config, *arguments],
            capture_output=True, text=True, check=False, timeout=60, cwd=of.directory,
            env={**os.environ, "XDG_DATA_HOME": str(of.directory / "data"), "XDG_CONFIG_HOME": str(of.directory / "config")},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert PASSWORD not in done.stdout + done.stderr
        return done.stdout

    with node.process() as process:
        process.ready()
        async with client(process.tcp_port) as context:
            await context.rpc("CERT:CREATE", ccr("alice"))
        assert "audit intact" in command("--audit-verify")
        assert "audit exported" in command("--audit-export", str(tmp_path / "audit.jsonl"))
        command("--backup", str(tmp_path / "backup.db"))
        assert command("--print-bundle").count("BEGIN CERTIFICATE") == 1
        assert "Nothing was switched" in command("--new-authority")
        assert command("--print-bundle").count("-----BEGIN CERTIFICATE-----") == 4
    to = URL.format(port=postgres.port, name=moved)
    other = Node(tmp_path, "b", to)
    assert "Database copied" in command("--copy-db", str(tmp_path / "backup.db"), to, of=other)
    assert "audit intact" in command("--audit-verify", of=other)
    assert "Database restored" in command("--restored", of=other.takes_authority_of(node))
    postgres.drop(name)
    postgres.drop(moved)

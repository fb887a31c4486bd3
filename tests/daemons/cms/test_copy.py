"""``pvacms --copy-db``: a site goes from a file to a server and back, whole or not at all."""

import contextlib
import gc
import shutil
import signal
import sqlite3
import subprocess
import sys
import warnings
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa

from appliance.certs.profiles import generate_key
from appliance.cms import copying, daemon, schema
from appliance.cms.audit import prune_audit, verify_audit
from appliance.cms.backup import new_file
from appliance.cms.commands import _restored as do_restored
from appliance.cms.copying import back_up, copy_database
from appliance.cms.dialect import engine_for
from appliance.cms.model import utc
from appliance.cms.store import Store
from appliance.errors import ConfigurationError
from tests.helpers.cms import admin_keychain, ccr, effective, plain, running, secure
from tests.helpers.many_certificates import DAY_S, fill
from tests.helpers.postgres import Engine

ISSUER = "01234567"
OPEN = {"require_client_approval": False}
NOW = 1_800_000_000
TABLES = (schema.certs, schema.audit, schema.replay, schema.authorities, schema.meta)
OWN = {"database_id", "schema_oldest"}


@contextlib.contextmanager
def database(where):
    store = Store(where, ISSUER)
    store.open()
    try:
        yield store
    finally:
        store.close()


@pytest.fixture
def file(tmp_path):
    """A database as years of service leave it: all states, schedules, alternative names, a pruned audit, used tokens."""
    where = str(tmp_path / "from.db")
    with database(where) as store:

        def job(transaction):
            connection = transaction.connection
            fill(connection, 3000, ISSUER, now=NOW)
            fill(connection, 50, "89abcdef", now=NOW, seed=2)
            odd = dict(connection.execute(sa.select(schema.certs).limit(1)).mappings().one())
            odd |= {
                "serial": (1 << 63) - 1,
                "cn": "žluťoučký\t\\N 'x'",
                "no_status": None,
                "next_at": None,
                "o": "",
            }
            connection.execute(sa.insert(schema.certs).values(**odd))
            connection.execute(
                sa.insert(schema.replay),
                [
                    {"issuer": f"https://issuer/{n}", "token": f"{n:064x}", "until": NOW + n}
                    for n in range(30)
                ],
            )
            connection.execute(
                sa.insert(schema.authorities).values(issuer=ISSUER, chain="PEM\n", crossed="", since=NOW)
            )
            for key, value in (("tokens_beside", "1"), ("journal:a", "1 x 2"), ("probe", "5")):
                connection.execute(sa.insert(schema.meta).values(key=key, value=value))

        store.run(job)

    return where


@pytest.fixture
def server(postgres):
    made = Engine("postgresql", postgres)
    yield made
    made.close()


@pytest.fixture
def empty(postgres):
    """The URL of a database without any table."""
    name = postgres.empty()
    yield postgres.url(name)
    postgres.drop(name)


def content(where):
    engine = engine_for(where, read_only=True)
    with engine.connect() as connection:
        found = {
            table.name: sorted((tuple(row) for row in connection.execute(sa.select(table))), key=repr)
            for table in TABLES
        }
    engine.dispose()
    found["meta"] = [row for row in found["meta"] if row[0] not in OWN]
    return found


async def prune(where):
    store = Store(where, ISSUER)
    store.open()
    store.start()
    assert await prune_audit(store, utc(NOW), 1) > 100
    store.close()


def pvacms(capsys, *arguments):
    status = daemon.main([str(argument) for argument in arguments])
    return status, capsys.readouterr()


async def test_a_site_goes_to_a_server_and_back_and_nothing_is_lost(tmp_path, capsys, file, empty):
    await prune(file)
    (tmp_path / "from.db.tokens").write_text("pvacms tokens 1\n")
    before, head = content(file), verify_audit(file).head
    status, shown = pvacms(capsys, "--copy-db", file, empty)
    assert (status, shown.err) == (0, "")
    assert f"3051 certificates, {len(before['audit'])} audit records, head {head}" in shown.out
    there = content(empty)
    # The move is a record itself. What belongs to one service or to the file alone stays behind.
    assert len(there["audit"]) == len(before["audit"]) + 1
    assert verify_audit(empty, head=head).intact
    kept = [row for row in before["meta"] if row[0] not in ("probe", "journal:a")]
    assert there["meta"] == kept
    for table in ("certs", "replay", "authorities"):
        assert there[table] == before[table]

    target = str(tmp_path / "to.db")
    status, shown = pvacms(capsys, "--copy-db", empty, target)
    assert (status, shown.err) == (0, "")
    back = content(target)
    assert verify_audit(target, head=head).records == len(before["audit"]) + 2
    assert back["certs"] == before["certs"]
    actions = [row[2] for row in back["audit"]]
    assert actions.count("copy") == 2
    with database(target) as store:
        assert not store.created
    ids = []
    for where in (file, empty, target):
        engine = engine_for(where, read_only=True)
        with engine.connect() as connection:
            ids.append(schema.known(connection, "database_id"))
            names = {index["name"] for index in sa.inspect(connection).get_indexes("certs")}
            assert names == {index.name for index in schema.certs.indexes}
        engine.dispose()
    assert len(set(ids)) == 3, "each is a database of its own"


def test_a_backup_of_a_server_is_a_file_that_a_service_can_use(tmp_path, file, empty):
    copy_database(file, empty, datetime.now(UTC))
    made = back_up(empty, str(tmp_path / "backup"))
    assert made == str(tmp_path / "backup.db")
    # A backup adds nothing to it.
    assert content(made) == content(empty)
    with sqlite3.connect(made) as raw:
        assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert raw.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    raw.close()
    with database(made) as store:
        assert not store.created
    with pytest.raises(ConfigurationError, match="exists already"):
        back_up(empty, made)


def test_a_backup_is_one_state_also_while_nodes_write(tmp_path, file, server, monkeypatch):
    where = server.db(tmp_path)
    with database(where) as store:
        store.run(lambda t: fill(t.connection, 300, ISSUER, now=NOW))
        real = copying._copy_table

        def meanwhile(source, target, table, told):
            if table is schema.audit:
                store.run(lambda t: fill(t.connection, 7, ISSUER, now=NOW, seed=9))
            return real(source, target, table, told)

        monkeypatch.setattr(copying, "_copy_table", meanwhile)
        made = content(back_up(where, str(tmp_path / "backup")))
        assert (len(made["certs"]), len(made["audit"])) == (300, 300)
        assert len(content(where)["certs"]) == 307


def unchanged(where):
    """Whether the target is as it was: not there, or a database without a table."""
    engine = engine_for(where, read_only=True)
    with engine.connect() as connection:
        found = sa.inspect(connection).get_table_names()
    engine.dispose()
    return found == []


@pytest.mark.parametrize("side", ["sqlite", "postgresql"])
@pytest.mark.parametrize("kind", ["file", "server"])
def test_a_copy_that_differs_is_none(tmp_path, monkeypatch, file, empty, kind, side):
    """Also if a row is lost on the way from the source."""
    target = str(tmp_path / "to.db") if kind == "file" else empty
    real = copying._batches

    def one_less(connection, table):
        for some in real(connection, table):
            yield some[1:] if table is schema.replay and connection.dialect.name == side else some

    source = file
    if kind == "file":
        copy_database(file, empty, datetime.now(UTC))
        source = empty
    monkeypatch.setattr(copying, "_batches", one_less)
    with pytest.raises(ConfigurationError, match=r"differs from its source: .* rows of the table replay"):
        copy_database(source, target, datetime.now(UTC))
    assert unchanged(target) if kind == "server" else not (tmp_path / "to.db").exists()
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("kind", ["file", "server"])
def test_a_broken_audit_is_not_moved(tmp_path, file, empty, kind):
    with contextlib.closing(sqlite3.connect(file)) as raw, raw:
        raw.execute("UPDATE audit SET action = 'approve' WHERE seq = 1234")
    target = str(tmp_path / "to.db") if kind == "file" else empty
    with pytest.raises(ConfigurationError, match=r"is broken: record 1234 was changed.*nothing was copied"):
        copy_database(file, target, datetime.now(UTC))
    assert unchanged(target) if kind == "server" else not (tmp_path / "to.db").exists()


def test_a_database_that_a_service_uses_is_not_moved(tmp_path, capsys, file, server):
    with database(file):
        status, shown = pvacms(capsys, "--copy-db", file, tmp_path / "to.db")
        assert status == 1
        assert f"a pvacms uses the database {file}: stop it first" in shown.err
    where = server.db(tmp_path)
    with database(where):
        for arguments in ((where, tmp_path / "to.db"), (file, where)):
            status, shown = pvacms(capsys, "--copy-db", *arguments)
            assert status == 1
            assert "stop all of its nodes first" in shown.err
    assert not (tmp_path / "to.db").exists()


def test_a_target_that_is_not_empty_is_left_alone(tmp_path, capsys, file, server):
    where = server.db(tmp_path)
    with database(where) as store:
        store.run(lambda t: fill(t.connection, 3, ISSUER, now=NOW))
    before = content(where)
    status, shown = pvacms(capsys, "--copy-db", file, where)
    assert (status, "is not empty: name an empty one" in shown.err) == (1, True)
    assert content(where) == before
    other = tmp_path / "other.db"
    other.write_text("somebody's")
    status, shown = pvacms(capsys, "--copy-db", file, other)
    assert (status, "exists already" in shown.err) == (1, True)
    assert other.read_text() == "somebody's"


def test_what_cannot_be_copied_is_named_in_one_sentence(tmp_path, capsys, file, empty):
    (tmp_path / "rubbish.db").write_bytes(b"x" * 5000)
    with contextlib.closing(sqlite3.connect(tmp_path / "nothing.db")) as raw, raw:
        raw.execute("CREATE TABLE t (a)")
    for source, target, why in (
        (file, file, "the same database"),
        (tmp_path / "none.db", empty, "does not exist"),
        (tmp_path / "rubbish.db", empty, "cannot be used"),
        (tmp_path / "nothing.db", empty, "no certificate database"),
        (empty, tmp_path / "to.db", "no database of this version"),
        (file, tmp_path / "none" / "to.db", "No such file or directory"),
        (file, empty.replace("/empty_", "/none_"), "does not exist"),
        (
            "postgresql+psycopg:/a:secret@b/c",
            tmp_path / "to.db",
            "the URL of the database server cannot be read",
        ),
        (file, "postgresql:a:secret@b", "the URL of the database server cannot be read"),
    ):
        status, shown = pvacms(capsys, "--copy-db", source, target)
        assert (status, shown.out) == (1, "")
        assert why in shown.err, shown.err
        assert len(shown.err.splitlines()) == 1
        assert "secret" not in shown.err
    assert unchanged(empty)


@pytest.mark.parametrize("days", [0, 400])
def test_copying_a_file_to_a_file_is_possible_too(tmp_path, file, days):
    target = str(tmp_path / "to.db")
    copied = copy_database(file, target, utc(NOW + days * DAY_S))
    assert copied.certificates == 3051
    assert content(target)["certs"] == content(file)["certs"]


# ---------------------------------------------------------------------- a copy that is interrupted

INTERRUPTED = """
import os, sys
from appliance.cms import copying, daemon, schema
real = copying._copy_table
def copy_table(source, target, table, told):
    if table is schema.authorities:
        os.kill(os.getpid(), int(sys.argv[1]))
    return real(source, target, table, told)
copying._copy_table = copy_table
sys.exit(daemon.main(["--copy-db", *sys.argv[2:]]))
"""


def interrupted(number, source, target):
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(int(number)), source, target],
        capture_output=True, text=True, check=False, timeout=60, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("kind", ["file", "server"])
def test_a_copy_that_is_interrupted_is_none_and_the_next_one_succeeds(tmp_path, file, empty, kind, number):
    target = str(tmp_path / "to.db") if kind == "file" else empty
    before = content(file)
    status, said = interrupted(number, file, target)
    if number is signal.SIGKILL:
        assert (status, said) == (-9, "")
    else:
        assert (status, said) == (1, "Error: interrupted before it was done\n")
        assert not list(tmp_path.glob("*.partial*"))
    assert unchanged(target) if kind == "server" else not (tmp_path / "to.db").exists()
    assert copy_database(file, target, datetime.now(UTC)).certificates == 3051
    assert content(target)["certs"] == before["certs"] == content(file)["certs"]
    assert not list(tmp_path.glob("*.partial*")), "it has everybody's name, and nobody would look for it"


def test_what_another_process_is_writing_is_not_removed(tmp_path, file):
    target = str(tmp_path / "to.db")
    with new_file(target, "it failed") as partial:
        copy_database(file, target, datetime.now(UTC))
        assert Path(partial).exists()
        Path(target).unlink()


def test_a_source_that_is_lost_is_named_and_not_the_target(tmp_path, monkeypatch, file, empty, postgres):
    copy_database(file, empty, datetime.now(UTC))
    real = copying._copy_table

    def cut(source, target, table, told):
        if table is schema.audit:
            postgres.sql(
                f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{sa.make_url(empty).database}'"
            )
        return real(source, target, table, told)

    monkeypatch.setattr(copying, "_copy_table", cut)
    with warnings.catch_warnings():
        # psycopg warns of a cursor of a connection that is gone: it could not be closed.
        warnings.simplefilter("ignore", ResourceWarning)
        with pytest.raises(
            ConfigurationError, match=r"the database postgresql.* cannot be used: terminating"
        ):
            copy_database(empty, str(tmp_path / "to.db"), datetime.now(UTC))
        gc.collect()
    assert not list(tmp_path.glob("to.db*"))


def test_a_copy_whose_end_nobody_was_told_is_recognised(file, empty):
    """The connection was lost after the server had committed."""
    copy_database(file, empty, datetime.now(UTC))
    before = content(empty)
    with pytest.raises(ConfigurationError, match=r"is a whole copy of this one already, .*: use it"):
        copy_database(file, empty, datetime.now(UTC))
    assert content(empty) == before
    with database(file) as store:
        store.run(lambda transaction: transaction.audit(NOW, "later", None, {}))
    with pytest.raises(ConfigurationError, match="is not empty: name an empty one"):
        copy_database(file, empty, datetime.now(UTC))


@pytest.mark.parametrize("left", ["-wal", "-journal"])
def test_what_a_former_database_has_left_does_not_get_into_a_copy(tmp_path, capsys, file, left):
    (tmp_path / f"to.db{left}").write_text("of the former one")
    status, shown = pvacms(capsys, "--copy-db", file, tmp_path / "to.db")
    assert (status, shown.out) == (1, "")
    assert f"to.db{left} was left by another database, which was here before: move it away" in shown.err
    assert not (tmp_path / "to.db").exists()


def test_a_backup_beside_the_log_of_what_it_replaces_is_refused_and_not_destroyed(tmp_path, file):
    """SQLite would write the log into it: who removes only the database of a service that was killed leaves one."""
    backed_up = Path(back_up(file, str(tmp_path / "backup")))
    with contextlib.closing(sqlite3.connect(file)) as raw:
        raw.execute("PRAGMA journal_mode=WAL")
        raw.execute("UPDATE certs SET cn = 'other'")
        raw.commit()
        log = Path(file + "-wal").read_bytes()
    assert log
    where = Path(shutil.copy(backed_up, tmp_path / "certs.db"))
    Path(f"{where}-wal").write_bytes(log)
    for use in (
        lambda: Store(str(where), ISSUER).open(),
        lambda: copy_database(str(where), str(tmp_path / "to.db"), datetime.now(UTC)),
    ):
        with pytest.raises(ConfigurationError, match=r"certs\.db-wal was left by another database"):
            use()
    assert where.read_bytes() == backed_up.read_bytes()
    Path(f"{where}-wal").unlink()
    assert verify_audit(str(where)).intact


# ---------------------------------------------------------------------- backups that are used again


def meta_of(where):
    return dict(row for row in content(where)["meta"])


def test_tokens_of_before_are_void_in_a_backup_that_is_copied_back(tmp_path, file, empty):
    """Those that were used since then are in no backup. In a site that moves they are in the file beside it."""
    copy_database(file, empty, utc(NOW))
    assert meta_of(empty)["tokens_void"] == str(NOW)
    (tmp_path / "from.db.tokens").write_text("pvacms tokens 1\n")
    copy_database(file, str(tmp_path / "moved.db"), utc(NOW))
    assert "tokens_void" not in meta_of(str(tmp_path / "moved.db"))


async def test_after_a_restore_what_was_revoked_since_is_revoked_again_and_tokens_are_void(
    tmp_path, capsys, postgres, server
):
    where = server.db(tmp_path)
    async with running(tmp_path, db=where, **OPEN) as service, plain(service) as anyone:
        reply = await anyone.rpc("CERT:CREATE", ccr())
        kept = await anyone.rpc("CERT:CREATE", ccr("bob", key=generate_key("ec-p256")))
    # What pg_dump and pg_restore do, or a base backup.
    postgres.sql(f"CREATE DATABASE restored TEMPLATE {sa.make_url(where).database}")
    async with (
        running(tmp_path, db=where, **OPEN) as service,
        secure(service, admin_keychain(tmp_path)) as admin,
    ):
        await admin.put(reply["status_pv"], {"state": "REVOKED"})
    restored = postgres.url("restored")
    try:
        before = verify_audit(restored)
        capsys.readouterr()
        assert do_restored(effective(tmp_path, db=restored)) == 0
        assert "tokens that were issued before now are refused" in capsys.readouterr().out
        assert int(meta_of(restored)["tokens_void"]) > NOW - 400 * DAY_S
        assert verify_audit(restored, head=before.head).intact
        actions = [row[2] for row in content(restored)["audit"]]
        assert actions[before.records :] == ["restored", "revoke"]
        async with running(tmp_path, db=restored, **OPEN) as service, plain(service) as anyone:
            assert (await anyone.get(reply["status_pv"]))["state"] == "REVOKED"
            assert (await anyone.get(kept["status_pv"]))["state"] == "VALID"
            with pytest.raises(ConfigurationError, match="uses the database"):
                do_restored(effective(tmp_path, db=restored))
    finally:
        postgres.drop("restored")


def test_nothing_is_restored_where_nothing_is(tmp_path, empty):
    for where in (str(tmp_path / "none.db"), empty):
        with pytest.raises(ConfigurationError, match="has no certificates: restore it first"):
            do_restored(effective(tmp_path, db=where))
    assert unchanged(empty)
    assert list(tmp_path.iterdir()) == []


async def test_after_a_stop_the_file_is_the_whole_database(tmp_path):
    where = tmp_path / "certs.db"
    async with running(tmp_path, db=str(where), **OPEN) as service, plain(service) as context:
        await context.rpc("CERT:CREATE", ccr("alice"))
        async with secure(service, admin_keychain(tmp_path)) as boss:
            await boss.rpc("CERT:LIST")
    assert not where.with_name("certs.db-wal").exists()

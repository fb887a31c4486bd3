"""Databases of earlier versions are brought up to date, with what was revoked in them."""

import ast
import re
import shutil
import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest
import sqlalchemy as sa

from appliance.certs.status import CertState
from appliance.cms import schema
from appliance.cms.audit import verify_audit
from appliance.cms.dialect import engine_for
from appliance.cms.journal import Journal
from appliance.cms.lifecycle import Lifecycle
from appliance.cms.model import hint_at, is_renewal_due, state_now
from appliance.cms.reading import Readers
from appliance.cms.store import Store
from appliance.cms.transaction import LIVE, live_records
from tests.helpers.cms import Clock

ISSUER = "01234567"


def first_version(path):
    """A database as version 0.1.0 wrote it."""
    from alembic import command
    from alembic.config import Config

    engine = engine_for(str(path))
    with engine.connect() as connection, connection.begin():
        config = Config()
        config.set_main_option("script_location", str(Path(schema.__file__).with_name("migrations")))
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        for serial, action, by in (
            (1, "revoke", "x509"),
            (2, "deny", "x509"),
            (3, "revoke", "service"),
            (4, "create", "ca"),
        ):
            state = "VALID" if action == "create" else "REVOKED"
            connection.execute(
                sa.text(
                    "INSERT INTO certs VALUES (:s, :i, 'n', 'n', '', '', '', 'client', 'std', '', :k, 0, 10, 0, :t, 0, false, 1, 0)"
                ),
                {"s": serial, "i": ISSUER, "k": f"{serial:040d}", "t": state},
            )
            record = f'{{"action":"{action}","method":"{by}","serial":"{serial}"}}'
            connection.execute(
                sa.text("INSERT INTO audit VALUES (:q, 0, :a, :s, :r, '')"),
                {"q": serial, "a": action, "s": str(serial), "r": record},
            )
    engine.dispose()


def test_keys_that_somebody_has_revoked_are_barred_and_others_are_not(tmp_path):
    first_version(tmp_path / "certs.db")
    store = Store(str(tmp_path / "certs.db"), ISSUER)
    store.open()
    try:
        assert not store.created
        for serial in (1, 2, 3, 4):
            (use,) = store.run(lambda transaction, s=serial: transaction.of_key("x" * 64, f"{s:040d}"))
            assert use.barred is (serial == 1), serial
        record = store.run(lambda transaction: transaction.get(4))
        assert (record.no_status, record.identity, record.skid) == (None, "", f"{4:040d}")
    finally:
        store.close()
    store = Store(str(tmp_path / "certs.db"), ISSUER)
    store.open()
    store.close()


def test_the_migrations_make_the_tables_and_indexes_that_the_code_names(tmp_path):
    store = Store(str(tmp_path / "certs.db"), ISSUER)
    store.open()
    try:
        assert store.run(lambda transaction: differences(transaction.connection)) == []
        facts = store.run(lambda transaction: known_facts(transaction.connection))
    finally:
        store.close()
    assert facts["schema_oldest"] == "0004"
    assert str(UUID(facts["database_id"])) == facts["database_id"]


def differences(connection):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    return compare_metadata(MigrationContext.configure(connection), schema.metadata)


def known_facts(connection):
    return dict(tuple(row) for row in connection.execute(sa.select(schema.meta.c.key, schema.meta.c.value)))


PERMITTED = {"add_column", "create_table", "create_index", "bulk_insert", "get_bind", "execute"}
SHARED = sorted(
    file
    for file in (Path(schema.__file__).parent / "migrations/versions").glob("[0-9]*.py")
    if file.stem >= "0004"
)
"""The revisions since several nodes may share a database."""


@pytest.mark.parametrize("file", SHARED, ids=lambda file: file.stem)
def test_a_revision_only_adds_so_that_the_release_before_still_works(file):
    """What is dropped is dropped a release later, by a revision that raises ``schema_oldest``."""
    for call in (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)):
        if not (isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) == "op"):
            continue
        # Programs of before 0004 cannot use what it makes, so it may drop what only they need.
        permitted = {*PERMITTED, "drop_index"} if file.stem < "0005" else PERMITTED
        assert call.func.attr in permitted, ast.unparse(call)
        if call.func.attr == "execute":
            assert re.match("UPDATE certs SET next_at|CREATE UNLOGGED TABLE", ast.literal_eval(call.args[0]))
        if call.func.attr == "add_column":
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.args[1].keywords}
            assert given["nullable"] == "True" or "server_default" in given, ast.unparse(call)


# ---------------------------------------------------------------------- a database of the release before renewals

KEPT = Path(__file__).parents[2] / "vectors" / "cms" / "certs-0002.db"
KEPT_ISSUER = "01dad8d3"
KEPT_HEAD = "3edc42c598aac4214293eabe87169aeec65b85d816c4aefdae5e596edc8ee639"
STATES = {
    "PVACMS Service": CertState.VALID,
    "admin": CertState.VALID,
    "approved": CertState.VALID,
    "denied": CertState.REVOKED,
    "ended": CertState.EXPIRED,
    "ends-unseen": CertState.VALID,
    "later": CertState.PENDING,
    "revoked": CertState.REVOKED,
    "server": CertState.VALID,
    "softioc": CertState.VALID,
    "valid": CertState.VALID,
    "waits": CertState.PENDING_APPROVAL,
}


def rows(path, columns):
    connection = sqlite3.connect(path)
    try:
        return {row[0]: row[1:] for row in connection.execute(f"SELECT cn, {columns} FROM certs")}
    finally:
        connection.close()


OLD_COLUMNS = (
    "serial, issuer, subject, usage, method, identity, skid, not_before, not_after, renew_by, state, state_date, approved, "
    "delivered, created, key_id, barred, no_status"
)


def test_a_database_of_the_release_before_renewals_keeps_everything_and_renews_nothing(tmp_path):
    path = tmp_path / "certs.db"
    shutil.copy(KEPT, path)
    before = rows(path, OLD_COLUMNS)
    store = Store(str(path), KEPT_ISSUER)
    store.open()
    try:
        assert not store.created
        records = store.run(live_records)
    finally:
        store.close()
    assert rows(path, OLD_COLUMNS) == before
    assert {name: CertState(row[10]) for name, row in before.items()} == STATES
    assert set(rows(path, "renewed_at, cadence, san, schedule").values()) == {(0, 0, "", "")}
    assert set(rows(path, "node, came_from").values()) == {("", "")}
    for name, (state, begins, ends, renew_by, due) in rows(
        path, "state, not_before, not_after, renew_by, next_at"
    ).items():
        when = {"REVOKED": None, "EXPIRED": None, "PENDING": begins, "PENDING_APPROVAL": ends}
        assert due == when.get(state, renew_by or ends), name
    assert len(records) == sum(state in LIVE for state in STATES.values())
    now = datetime(2026, 3, 1, 12, 20, tzinfo=UTC)
    for record in records:
        assert state_now(record, now) is record.state
        assert not is_renewal_due(record, now)
        assert hint_at(record) is None
    found = verify_audit(str(path), head=KEPT_HEAD)
    assert (found.intact, found.records, found.head) == (True, 18, KEPT_HEAD)
    assert [use.barred for use in key_uses(path, before["revoked"])] == [True]
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM replay").fetchone() == (1,), "the token stays used"
    connection.close()


def key_uses(path, row):
    store = Store(str(path), KEPT_ISSUER)
    store.open()
    try:
        return store.run(lambda transaction: transaction.of_key(row[15], row[6]))
    finally:
        store.close()


async def test_what_ended_while_the_service_was_down_is_told_and_recorded_after_the_start(tmp_path):
    """Also in a database of an earlier release, whose services left it VALID for ever."""
    path = tmp_path / "certs.db"
    shutil.copy(KEPT, path)
    clock = Clock(datetime(2026, 4, 10, tzinfo=UTC))
    store = Store(str(path), KEPT_ISSUER)
    store.open()
    readers = Readers(store.database)
    try:
        told = []
        lifecycle = Lifecycle(store, Journal(str(path) + ".revoked", KEPT_ISSUER), clock, readers)
        lifecycle.listeners.append(
            lambda record: told.append((record.subject.split("\x1f")[0], record.state))
        )
        lifecycle.load()
        store.start()
        while lifecycle.tick():
            pass
        await lifecycle.settle()
    finally:
        readers.close()
        store.close()
    assert sorted(told) == [
        ("ends-unseen", CertState.EXPIRED),
        ("later", CertState.VALID),
        ("softioc", CertState.EXPIRED),
        ("waits", CertState.REVOKED),
    ]
    states = {name: CertState(row[0]) for name, row in rows(path, "state").items()}
    assert states == STATES | dict(told)
    assert verify_audit(str(path), head=KEPT_HEAD).records == 22

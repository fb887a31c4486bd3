"""Copy a whole database: from a file to a server or back, and from a server to the file that is its backup.

The copy is made in one transaction, from one consistent state. Before it counts, its rows are read again and compared, and
the chain of its audit is checked. Whatever fails, the target is as it was.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from itertools import islice
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from appliance.cms import schema
from appliance.cms.audit import VERIFIED, Progress, verify_on
from appliance.cms.backup import backup, new_file
from appliance.cms.dialect import Login, engine_for, is_sqlite, reason, refuse_log_of_another, shown
from appliance.cms.model import SERVICE, posix
from appliance.cms.replay import BESIDE, VOID, set_number
from appliance.cms.transaction import Transaction
from appliance.daemon.audit import GENESIS
from appliance.errors import ConfigurationError

__all__ = [
    "Copied",
    "back_up",
    "copy_database",
    "has_certificates",
    "mark_restored",
    "unused",
]

_TABLES: Final = (schema.certs, schema.audit, schema.replay, schema.authorities, schema.meta)
_OWN: Final = ("database_id", "schema_oldest", "probe", "journal")
"""Keys of `meta` that each database has for itself."""
_OF_NODES: Final = "journal:"
"""Begins keys of `meta` that belong to the files of one service."""
_TOKENS: Final = ".tokens"
_AT_ONCE: Final = 5000
_WHERE: Final = "pvacms.where"
"""What a connection is to, in its ``info``."""
_LOCK: Final = 37427
"""The lock that each service holds on a database server."""


class Copied(NamedTuple):
    """What was copied."""

    certificates: int
    records: int
    """Records of the audit."""
    head: str
    """Hash of the audit's last record in the source."""


def copy_database(
    source: str, target: str, now: datetime, *, login: Login | None = None, progress: Progress | None = None
) -> Copied:
    """Move a site from one database to another. No service may use either of them.

    Args:
        source: The file, or the URL of the server's database.
        target: The same; a file that does not exist, or a database that is empty.
        now: The present time, aware, for the record in the target's audit.
        login: What the server needs beside the URL.
        progress: Is told how many rows were copied, and of how many.

    Returns:
        What was copied.

    Raises:
        ConfigurationError: It was not done, and the target is as it was; the text says why.
    """
    if is_sqlite(source):
        with unused(source):
            refuse_log_of_another(source)
    if source == target:
        raise ConfigurationError("the source and the target are the same database; name two")
    with (
        unused(source, login),
        _current(source, login) as current,
        _snapshot(current, login) as reading,
        _target(target, login, reading) as writing,
    ):
        copied = _copy(reading, writing, progress)
        found = verify_on(writing, head=copied.head)
        if not found.intact or found.head != copied.head:
            raise ConfigurationError(
                f"the audit of {shown(source)} is broken: {found.fault or 'its end is missing'}; nothing was copied"
            )
        transaction = Transaction(writing, "")
        facts = {"from": shown(source), "certificates": copied.certificates, "head": copied.head}
        if _is_backup(source, reading):
            set_number(writing, VOID, posix(now))
            facts["tokens"] = "those of before are refused"
        transaction.audit(posix(now), "copy", None, {**SERVICE.facts(), **facts})
        transaction.flush()
    _settle(target, login)
    return copied


def _settle(target: str, login: Login | None) -> None:
    """Have a server note that all rows are seen by everybody: then its indexes answer without the table."""
    if is_sqlite(target):
        return
    engine = engine_for(target, login=login)
    try:
        # If this fails, the server does it itself after a while.
        with contextlib.suppress(sa.exc.SQLAlchemyError), engine.connect() as connection:
            alone = connection.execution_options(isolation_level="AUTOCOMMIT")
            for table in _TABLES:
                alone.exec_driver_sql(f"VACUUM (ANALYZE) {table.name}")
    finally:
        engine.dispose()


def _is_backup(source: str, reading: sa.Connection) -> bool:
    """Whether the file of used tokens is not beside the database any more, so tokens were perhaps used since then."""
    if not is_sqlite(source) or os.path.lexists(source + _TOKENS):
        return False
    key = schema.meta.c.key
    known = sa.select(key).where(key.startswith(BESIDE, autoescape=True)).limit(1)
    return reading.execute(known).first() is not None


def mark_restored(transaction: Transaction, now: datetime) -> None:
    """Record, in a job, that the database was restored by means of its server.

    Nobody knows which tokens were used since the backup, so those of before are refused. What services noted about their files
    is forgotten, so that they compare all of it.
    """
    transaction.flush()
    connection, key = transaction.connection, schema.meta.c.key
    connection.execute(
        sa.delete(schema.meta).where(
            sa.or_(key.in_(("journal", VERIFIED)), key.startswith(_OF_NODES, autoescape=True))
        )
    )
    set_number(connection, VOID, posix(now))
    number, head = transaction.audit_head
    transaction.audit(posix(now), "restored", None, {**SERVICE.facts(), "up_to": number, "head": head})


def has_certificates(where: str, login: Login | None = None) -> bool:
    """Whether there is a database with certificates.

    Raises:
        ConfigurationError: It cannot be read.
    """
    if is_sqlite(where) and not os.path.isfile(where):  # noqa: PTH113
        return False
    with _failures(where), contextlib.closing(_connected(where, login, read_only=True)) as connection:
        if not sa.inspect(connection).has_table("certs"):
            return False
        return connection.execute(sa.select(schema.certs.c.serial).limit(1)).first() is not None


def back_up(where: str, target: str, login: Login | None = None) -> str:
    """Copy a database, which may be in use, to a file that `pvacms` can use or copy back, whatever kind of database it is.

    Returns:
        The name of the copy.

    Raises:
        ConfigurationError: It could not be made.
    """
    if is_sqlite(where):
        return backup(where, target)
    target = target if target.endswith(".db") else target + ".db"
    with _snapshot(where, login) as reading, _target(target) as writing:
        _copy(reading, writing, None)
    return target


# ---------------------------------------------------------------------- the source


@contextlib.contextmanager
def unused(where: str, login: Login | None = None) -> Iterator[None]:
    """Keep services from using a database meanwhile.

    Raises:
        ConfigurationError: One uses it.
    """
    if not is_sqlite(where):
        with _failures(where), _locked(where, login):
            yield
        return
    try:
        fd = os.open(where + ".lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield  # no service has ever used it: it is a backup
        return
    except OSError as error:
        raise ConfigurationError(f"cannot open: {error.strerror}", file=where + ".lock") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise ConfigurationError(
            f"a pvacms uses the database {where}: stop it first, or what it records meanwhile is lost"
        ) from None
    finally:
        os.close(fd)


@contextlib.contextmanager
def _locked(where: str, login: Login | None) -> Iterator[None]:
    engine = engine_for(where, login=login)
    try:
        with engine.connect() as connection:
            if not connection.execute(sa.text(f"SELECT pg_try_advisory_lock({_LOCK})")).scalar():
                raise ConfigurationError(
                    f"a pvacms uses the database {shown(where)}: stop all of its nodes first"
                )
            # The lock is the session's, so it is held until the connection is closed.
            connection.rollback()
            yield
    finally:
        engine.dispose()


@contextlib.contextmanager
def _current(where: str, login: Login | None) -> Iterator[str]:
    """Yield a database of the newest schema: this one, or a temporary copy of an older file."""
    if is_sqlite(where) and not os.path.isfile(where):  # noqa: PTH113
        raise ConfigurationError("the database does not exist", file=where)
    with _failures(where), contextlib.closing(_connected(where, login, read_only=True)) as connection:
        is_current = schema.is_usable(connection)
    if is_current:
        yield where
        return
    if not is_sqlite(where):
        raise ConfigurationError(
            f"{shown(where)} has no database of this version of pvacms: start a pvacms of this version with it "
            "once, which updates it"
        )
    with tempfile.TemporaryDirectory(prefix="pvacms-") as directory:
        copy = backup(where, os.path.join(directory, "certs.db"))  # noqa: PTH118
        with _failures(where), contextlib.closing(_connected(copy)) as connection, connection.begin():
            if schema.migrate(connection, where=where):
                raise ConfigurationError("there is no certificate database in this file", file=where)
        yield copy


@contextlib.contextmanager
def _snapshot(where: str, login: Login | None) -> Iterator[sa.Connection]:
    """Yield a connection that sees one state of the database, whatever is committed meanwhile."""
    with _failures(where), contextlib.closing(_connected(where, login, read_only=True)) as connection:
        if not is_sqlite(where):
            connection.rollback()
            connection = connection.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
            connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
            connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
        connection.info[_WHERE] = where
        yield connection


def _connected(where: str, login: Login | None = None, *, read_only: bool = False) -> sa.Connection:
    return engine_for(where, read_only=read_only, login=login).connect()


@contextlib.contextmanager
def _failures(where: str) -> Iterator[None]:
    try:
        yield
    except sa.exc.SQLAlchemyError as error:
        raise ConfigurationError(f"the database {shown(where)} cannot be used: {reason(error)}") from error
    except ImportError as error:
        raise ConfigurationError(
            f"the database {shown(where)} needs a driver that is not installed: {error}"
        ) from error


# ---------------------------------------------------------------------- the target


@contextlib.contextmanager
def _target(
    where: str, login: Login | None = None, source: sa.Connection | None = None
) -> Iterator[sa.Connection]:
    """Yield a connection to an empty database of the newest schema; it is committed if nothing is raised.

    Args:
        where: The database.
        login: What a server needs beside the URL.
        source: What is going to be copied.
    """
    if is_sqlite(where):
        with (
            new_file(where, "the database cannot be written") as partial,
            _failures(where),
            contextlib.closing(_connected(partial)) as connection,
        ):
            # What is not whole is removed, so nothing has to be undone, and one sync at the end is enough.
            driver: Any = connection.connection.driver_connection
            for pragma in (
                "journal_mode=DELETE",
                "journal_mode=OFF",
                "synchronous=OFF",
                "cache_size=-65536",
            ):
                driver.execute(f"PRAGMA {pragma}")
            with connection.begin():
                schema.migrate(connection, where=where)
                connection.info[_WHERE] = where
                yield connection
        return
    with (
        _failures(where),
        _locked(where, login),
        contextlib.closing(_connected(where, login)) as connection,
        connection.begin(),
    ):
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
        connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
        schema.migrate(connection, where=shown(where))
        for table in (schema.certs, schema.audit):
            if connection.execute(sa.select(sa.literal(1)).select_from(table).limit(1)).scalar():
                if source is not None and _is_copied(source, connection):
                    raise ConfigurationError(
                        f"the database {shown(where)} is a whole copy of this one already, and nothing was changed: use it"
                    )
                raise ConfigurationError(f"the database {shown(where)} is not empty: name an empty one")
        connection.info[_WHERE] = where
        yield connection


def _is_copied(source: sa.Connection, target: sa.Connection) -> bool:
    """Whether an earlier copy was made, of which nobody was told, because the connection was lost at its end."""
    last = sa.select(schema.audit).order_by(schema.audit.c.seq.desc()).limit(1)
    its, made = source.execute(last).first(), target.execute(last).first()
    if its is None or made is None or made.action != "copy":
        return False
    return bool(json.loads(made.record).get("head") == its.hash)


# ---------------------------------------------------------------------- rows


class _Sum:
    """Number of rows, and what tells them from others: the sum of their hashes, which no order changes."""

    def __init__(self) -> None:
        self.count = 0
        self._sum = 0

    def add(self, rows: Iterable[tuple[Any, ...]]) -> None:
        for row in rows:
            self.count += 1
            self._sum += int.from_bytes(hashlib.sha256(repr(row).encode()).digest())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Sum) and (self.count, self._sum) == (other.count, other._sum)

    __hash__ = None  # type: ignore[assignment]


def _copy(source: sa.Connection, target: sa.Connection, progress: Progress | None) -> Copied:
    counts = {
        table: int(
            source.execute(sa.select(sa.func.count()).select_from(_wanted(table).subquery())).scalar_one()
        )
        for table in _TABLES
    }
    total, done = 2 * sum(counts.values()), 0

    def told(number: int) -> None:
        nonlocal done
        done += number
        if progress is not None:
            progress(done, total)

    sums = {}
    for table in _TABLES:
        # An index is made at once in a tenth of the time that it takes to add a million entries to it.
        schema.use_server()
        indexes = sorted(table.indexes, key=lambda index: str(index.name))
        for index in indexes:
            index.drop(target)
        sums[table] = _copy_table(source, target, table, told)
        for index in indexes:
            index.create(target)
        if target.dialect.name == "postgresql":
            # Without statistics the server reads whole tables until it has found the time to make some.
            target.exec_driver_sql(f"ANALYZE {table.name}")
    for table, wanted in sums.items():
        found = _Sum()
        for some in _batches(target, table):
            found.add(some)
            told(len(some))
        if found != wanted or found.count != counts[table]:
            raise ConfigurationError(
                f"the copy differs from its source: {found.count} of {counts[table]} rows of the table {table.name}, or what "
                "they say; nothing was copied"
            )
    head = source.execute(
        sa.select(schema.audit.c.hash).order_by(schema.audit.c.seq.desc()).limit(1)
    ).scalar()
    return Copied(counts[schema.certs], counts[schema.audit], head or GENESIS)


def _copy_table(
    source: sa.Connection, target: sa.Connection, table: sa.Table, told: Callable[[int], None]
) -> _Sum:
    added = _Sum()
    columns = ", ".join(f'"{column.name}"' for column in table.columns)
    driver: Any = target.connection.driver_connection
    if target.dialect.name == "postgresql":
        with driver.cursor() as cursor, cursor.copy(f"COPY {table.name} ({columns}) FROM STDIN") as copy:
            for some in _batches(source, table):
                added.add(some)
                for row in some:
                    copy.write_row(row)
                told(len(some))
        return added
    places = ", ".join("?" * len(table.columns))
    for some in _batches(source, table):
        added.add(some)
        target.exec_driver_sql(f"INSERT INTO {table.name} ({columns}) VALUES ({places})", some)  # noqa: S608
        told(len(some))
    return added


def _batches(connection: sa.Connection, table: sa.Table) -> Iterator[list[tuple[Any, ...]]]:
    with (
        # Of the two databases, the one that this is about.
        _failures(connection.info[_WHERE]),
        contextlib.closing(
            connection.execute(_wanted(table), execution_options={"yield_per": _AT_ONCE})
        ) as rows,
    ):
        while some := [tuple(row) for row in islice(rows, _AT_ONCE)]:
            yield some


def _wanted(table: sa.Table) -> sa.Select[Any]:
    query = sa.select(table)
    if table is not schema.meta:
        return query
    key = schema.meta.c.key
    return query.where(key.not_in(_OWN), sa.not_(key.startswith(_OF_NODES, autoescape=True)))

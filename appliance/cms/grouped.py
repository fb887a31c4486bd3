"""How many rows are read and written at once: on a database server one statement reads what a commit has to know, and one writes it.

Each statement is a journey to the server and back, and after it the store's thread waits for its turn in this process. All of that is
time for which no other node can commit. Rows travel as JSON, which both ends read and write in less time than arrays of the driver.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from appliance.cms import schema
from appliance.cms.statements import rows_of

__all__ = [
    "LastCommit",
    "Read",
    "Written",
    "deliver",
    "each_once",
    "insert",
    "insert_missing",
    "read",
    "renew",
    "write",
]

Rows = Sequence[Mapping[str, Any]]
_MOST_ROWS: Final = 32
"""For each number of rows there is a statement, which stays prepared."""
_AT_ONCE: Final = 500
_KINDS: Final = {bool: "boolean", int: "bigint", str: "text"}
"""Text and bigint: what does not fit into the column is an error then, and not cut off."""
_RENEWED: Final = {
    "number": "bigint", "was": "text", "by": "bigint", "at": "bigint", "becomes": "text", "since": "bigint", "next": "bigint",
}  # fmt: skip
"""What a renewal needs of each certificate, with its type in PostgreSQL."""
_RENEW: Final = (
    sa.update(schema.certs)
    .where(schema.certs.c.serial == sa.bindparam("number"), schema.certs.c.state == sa.bindparam("was"))
    .values(
        renew_by=sa.bindparam("by"),
        renewed_at=sa.bindparam("at"),
        state=sa.bindparam("becomes"),
        state_date=sa.bindparam("since"),
        next_at=sa.bindparam("next"),
    )
)


# ---------------------------------------------------------------------- reading, on a database server


class Read(NamedTuple):
    """What a commit has to know."""

    head: tuple[int, str] | None
    """Number and hash of the last audit record; None if there is none."""
    certs: list[list[Any]]
    """The certificates of the subjects, with the columns that were asked for."""
    uses: list[list[Any]]
    """The uses of the keys, as `appliance.cms.key_uses` reads them."""


def _any(kind: str) -> str:
    # As an array, and not as rows: an OR of two conditions uses the indexes of both then. And as one parameter, whatever the number.
    return f"ANY(ARRAY(SELECT CAST(json_array_elements_text(CAST(%s AS json)) AS {kind})))"


@lru_cache(maxsize=4)
def _read_text(columns: tuple[str, ...]) -> str:
    alike = "key_id, skid, usage, barred"
    # Names of this program's own tables and columns, and nothing else.
    return (
        "SELECT (SELECT json_build_array(seq, hash) FROM audit ORDER BY seq DESC LIMIT 1), "  # noqa: S608
        f"(SELECT json_agg(json_build_array({', '.join(columns)})) FROM certs WHERE subject = {_any('text')}), "
        f"(SELECT json_agg(json_build_array({alike}, least, most)) FROM (SELECT {alike}, min(subject) AS least, "
        f"max(subject) AS most FROM certs WHERE key_id = {_any('text')} OR (key_id = '' AND skid = {_any('text')}) GROUP BY {alike}) AS uses)"
    )


def read(
    connection: sa.Connection,
    columns: tuple[str, ...],
    subjects: Sequence[str],
    keys: Collection[tuple[str, str]],
) -> Read:
    """Read all that a commit has to know from a database server, in one statement.

    Args:
        connection: The connection. If it waits for a lock, that must be another statement: a statement sees what was committed when
            it began.
        columns: The columns of ``certs`` to read.
        subjects: The subjects whose certificates are wanted.
        keys: The keys whose uses are wanted, by ``key_id`` and ``skid``.
    """
    wanted = (subjects, [key_id for key_id, _ in keys], [skid for _, skid in keys])
    found = connection.exec_driver_sql(_read_text(columns), tuple(map(json.dumps, wanted)))
    head, certs, uses = found.one()
    return Read(None if head is None else (head[0], head[1]), certs or [], uses or [])


# ---------------------------------------------------------------------- writing, on a database server


class LastCommit(NamedTuple):
    """The token that a node writes with its commit, so that it can find out later whether it came about."""

    node: str
    token: str


class Written(NamedTuple):
    """What a statement that writes has met."""

    renewed: int
    """Certificates that were renewed."""
    nodes: int
    """Rows of the node that commits: 0 if the database does not know it."""


def write(
    connection: sa.Connection,
    *,
    certs: Rows = (),
    audit: Rows = (),
    renewed: Rows = (),
    commit: LastCommit | None = None,
    notify: tuple[str, str] | None = None,
) -> Written:
    """Write all that a commit changes to a database server, in one statement.

    Never with `executemany`: the driver then sends statement after statement without an end (a pipeline). None of the server's time
    limits counts between them, so a process that is frozen there would keep the writers' lock from all other nodes.

    Args:
        connection: The connection.
        certs: New certificates, all with the columns of the first one.
        audit: New audit records, the same.
        renewed: Renewals, each of another certificate.
        commit: What the row of this node gets.
        notify: A channel, and what those who listen to it are told.
    """
    values: list[str] = []
    values += [json.dumps(rows) for rows in (certs, audit, renewed) if rows]
    values += (commit.token, commit.node) if commit else ()
    values += notify or ()
    if not values:
        return Written(0, 0)
    text = _write_text(
        tuple(certs[0]) if certs else (),
        tuple(audit[0]) if audit else (),
        renews=bool(renewed),
        commits=commit is not None,
        notifies=notify is not None,
    )
    row = connection.exec_driver_sql(text, tuple(values)).one()
    return Written(row[0], row[1])


@lru_cache(maxsize=64)
def _write_text(
    certs: tuple[str, ...], audit: tuple[str, ...], *, renews: bool, commits: bool, notifies: bool
) -> str:
    parts, renewed, known, told = [], "0", "0", ""
    if certs:
        parts.append(f"issued AS ({_insert_records_text(schema.certs, certs)})")
    if audit:
        parts.append(f"recorded AS ({_insert_records_text(schema.audit, audit)})")
    if renews:
        parts.append(f"renewed AS ({_RENEW_RECORDS} RETURNING 1)")
        renewed = "(SELECT count(*) FROM renewed)"
    if commits:
        parts.append(
            "known AS (UPDATE nodes SET last_commit = CAST(%s AS text) WHERE node = CAST(%s AS text) RETURNING 1)"
        )
        known = "(SELECT count(*) FROM known)"
    if notifies:
        told = ", pg_notify(CAST(%s AS text), CAST(%s AS text))"
    begin = "WITH " + ", ".join(parts) + " " if parts else ""
    return f"{begin}SELECT {renewed}, {known}{told}"


def _records(types: Mapping[str, str]) -> str:
    return f"json_to_recordset(CAST(%s AS json)) AS a({', '.join(f'{name} {kind}' for name, kind in types.items())})"


@lru_cache(maxsize=64)
def _insert_records_text(table: sa.Table, columns: tuple[str, ...]) -> str:
    types = {name: _KINDS[table.c[name].type.python_type] for name in columns}
    # Names of this program's own tables and columns, and nothing else.
    return f"INSERT INTO {table.name} ({', '.join(columns)}) SELECT * FROM {_records(types)}"  # noqa: S608


_RENEW_RECORDS: Final = (
    "UPDATE certs SET renew_by = a.by, renewed_at = a.at, state = a.becomes, state_date = a.since, "  # noqa: S608 - our own names
    f"next_at = a.next FROM {_records(_RENEWED)} WHERE certs.serial = a.number AND certs.state = a.was"
)


# ---------------------------------------------------------------------- writing, on both


def insert(connection: sa.Connection, table: sa.Table, rows: Rows) -> None:
    """Write new rows, all with the columns of the first one.

    The database gets many rows in one statement. In each step of a statement other threads run, and then this one waits for its turn
    again: with a step for each row the two threads of the service would spend more time on that than on the rows.
    """
    columns = tuple(rows[0])
    if connection.dialect.name != "sqlite":
        connection.exec_driver_sql(_insert_records_text(table, columns), (json.dumps(rows),))
        return
    for at in range(0, len(rows), _MOST_ROWS):
        some = rows[at : at + _MOST_ROWS]
        values = tuple(row[column] for row in some for column in columns)
        rows_of(connection, _insert_text(table, columns, len(some)), values)


def insert_missing(connection: sa.Connection, table: sa.Table, rows: Rows) -> None:
    """Write those of new rows that are not there yet, all with the columns of the first one."""
    columns = tuple(rows[0])
    unless = " ON CONFLICT DO NOTHING"
    if connection.dialect.name == "sqlite":
        values = [tuple(row[name] for name in columns) for row in rows]
        connection.exec_driver_sql(_insert_text(table, columns, 1) + unless, values)
    else:
        connection.exec_driver_sql(_insert_records_text(table, columns) + unless, (json.dumps(rows),))


def renew(connection: sa.Connection, rows: Rows) -> int:
    """Write renewals; return how many there were, or -1 if the database's driver does not say."""
    if connection.dialect.name == "sqlite":
        return connection.execute(_RENEW, rows).rowcount
    done = 0
    for part in each_once(rows):
        done += write(connection, renewed=part).renewed
    return done


def each_once(rows: Rows) -> Iterable[Rows]:
    """Return renewals in parts in which each certificate is once: a later one begins with what the first one has made."""
    while rows:
        first = {row["number"]: row for row in reversed(rows)}
        yield [*first.values()]
        rows = [row for row in rows if first[row["number"]] is not row]


_DELIVERED: Final = (
    sa.update(schema.certs)
    .where(schema.certs.c.serial.in_(sa.bindparam("numbers", expanding=True)))
    .values(delivered=1)
)
_DELIVERED_TEXT: Final = f"UPDATE certs SET delivered = 1 WHERE serial = {_any('bigint')}"  # noqa: S608 - our own names


def deliver(connection: sa.Connection, serials: Sequence[int]) -> None:
    """Write that requesters have their certificates."""
    if connection.dialect.name != "sqlite":
        connection.exec_driver_sql(_DELIVERED_TEXT, (json.dumps(serials),))
        return
    for at in range(0, len(serials), _AT_ONCE):
        connection.execute(_DELIVERED, {"numbers": serials[at : at + _AT_ONCE]})


@lru_cache(maxsize=256)
def _insert_text(table: sa.Table, columns: tuple[str, ...], count: int) -> str:
    row = f"({', '.join('?' * len(columns))})"
    # Names of this program's own tables and columns, and nothing else.
    return f"INSERT INTO {table.name} ({', '.join(columns)}) VALUES {', '.join([row] * count)}"  # noqa: S608

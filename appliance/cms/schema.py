"""The database: tables, and the migrations that update an older one."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    false,
    func,
    inspect,
    select,
    text,
)

from appliance.errors import ConfigurationError

__all__ = [
    "HEAD",
    "LIVING",
    "audit",
    "authorities",
    "certs",
    "ends_of",
    "is_usable",
    "limits",
    "meta",
    "migrate",
    "nodes",
    "replay",
    "use_server",
]

HEAD: Final = "0004"
"""The revision that this code needs: the last file in ``migrations/versions``."""

VERSIONS: Final[list[str]] = []
"""Directories with further revisions: a test has those of the next release."""
metadata: Final = MetaData()
_log: Final = logging.getLogger(__name__)


certs: Final = Table(
    "certs",
    metadata,
    Column("serial", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("issuer", String(8), nullable=False),
    Column("subject", Text, nullable=False),
    Column("cn", Text, nullable=False),
    Column("o", Text, nullable=False),
    Column("ou", Text, nullable=False),
    Column("c", Text, nullable=False),
    Column("usage", String(8), nullable=False),
    Column("method", String(16), nullable=False),
    Column("identity", Text, nullable=False),
    Column("skid", String(40), nullable=False),
    Column("not_before", BigInteger, nullable=False),
    Column("not_after", BigInteger, nullable=False),
    Column("renew_by", BigInteger, nullable=False),
    Column("state", String(20), nullable=False),
    Column("state_date", BigInteger, nullable=False),
    Column("approved", Boolean(create_constraint=False), nullable=False),
    Column("delivered", Integer, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("key_id", String(64), nullable=False, default="", server_default=""),
    Column("barred", Boolean(create_constraint=False), nullable=False, default=False, server_default=false()),
    Column("no_status", Boolean(create_constraint=False), nullable=True),
    Column("renewed_at", BigInteger, nullable=False, default=0, server_default="0"),
    Column("cadence", Integer, nullable=False, default=0, server_default="0"),
    Column("san", Text, nullable=False, default="", server_default=""),
    Column("schedule", Text, nullable=False, default="", server_default=""),
    Column("node", String(64), nullable=False, default="", server_default=""),
    Column("came_from", String(64), nullable=False, default="", server_default=""),
    Column("next_at", BigInteger, nullable=True),
    # Each index costs every new certificate a page of the database, so there is none that no question needs.
    Index("certs_subject", "subject"),
    Index("certs_key", "key_id", "skid"),
    Index("certs_listed", "issuer", "state", "created", "serial"),
    Index("certs_ends", "issuer", "not_after", "serial"),
    Index("certs_name", "issuer", "cn"),
)
"""One row per certificate, written before it is signed. Times are POSIX seconds.

``subject`` is the parts of the name joined by U+001F. ``delivered`` is 0: just recorded, 1: the requester has it, 2: the
service stopped before it knew. ``key_id`` tells keys apart (`appliance.certs.public_keys.key_identity`; empty in rows of
the first version). ``barred`` keys are not certified again. ``no_status`` certificates name no status PV (null: not known).
``renew_by`` is 0 if the certificate need not be renewed; ``renewed_at`` is when it was set (0: at ``state_date``), and
``cadence`` is the seconds that an approval adds to it. ``san`` and ``schedule`` are canonical JSON, empty for none.
``node`` has recorded the row, for a request of the address ``came_from``. ``next_at`` is when the clock changes its state
next; null: never, 0: not computed.
"""

_PARTIAL: Final = [
    Index("certs_due", certs.c.next_at, sqlite_where=certs.c.next_at.is_not(None)),
    Index("certs_undelivered", certs.c.node, sqlite_where=certs.c.delivered == 0),
    Index("certs_barred", certs.c.key_id, sqlite_where=certs.c.barred),
]


def use_server() -> None:
    """Give the indexes what PostgreSQL has to know of them. It imports SQLAlchemy's part for PostgreSQL, which takes its time."""
    for index in _PARTIAL:
        index.dialect_options["postgresql"]["where"] = index.dialect_options["sqlite"]["where"]
    # In the order of code points, as SQLite has it: then one range of the index is all names with the same beginning.
    name = next(index for index in certs.indexes if index.name == "certs_name")
    name.dialect_options["postgresql"]["ops"] = {"cn": 'COLLATE "C"'}


audit: Final = Table(
    "audit",
    metadata,
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("at", BigInteger, nullable=False),
    Column("action", String(32), nullable=False),
    Column("serial", String(20), nullable=False),
    Column("record", Text, nullable=False),
    Column("hash", String(64), nullable=False),
    Index("audit_serial", "serial"),
)
"""``record`` is canonical JSON. ``hash`` links it to all records before it."""

replay: Final = Table(
    "replay",
    metadata,
    Column("issuer", String(512), primary_key=True),
    Column("token", String(64), primary_key=True),
    Column("until", BigInteger, nullable=False),
    Column("node", String(64), nullable=False, default="", server_default=""),
    Column("key_id", String(64), nullable=False, default="", server_default=""),
    Column("usage", String(8), nullable=False, default="", server_default=""),
    Column("used_at", BigInteger, nullable=False, default=0, server_default="0"),
    Index("replay_until", "until"),
)
"""Used tokens, each until it expires: at which node it was used, when, for which key and what usage."""

_LONGEST_KEY: Final = 64
meta: Final = Table(
    "meta",
    metadata,
    Column("key", String(_LONGEST_KEY), primary_key=True),
    Column("value", Text, nullable=False),
)
"""Single facts, such as ``database_id``, which tells this database from all others, and ``schema_oldest``."""

nodes: Final = Table(
    "nodes",
    metadata,
    Column("node", String(64), primary_key=True),
    Column("number", Integer, nullable=False, unique=True),
    Column("instance", String(36), nullable=False),
    Column("node_id", String(8), nullable=False),
    Column("release", String(32), nullable=False),
    Column("schema", String(8), nullable=False),
    Column("address", Text, nullable=False),
    Column("started_at", BigInteger, nullable=False),
    Column("seen_at", BigInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("last_commit", String(36), nullable=False),
)
"""The services that share the database. ``number`` is that of the lock that a node holds while it lives, ``instance`` its
process, ``node_id`` what peers call it, ``seq`` the last audit record that it has taken, and ``last_commit`` its last commit.
"""

authorities: Final = Table(
    "authorities",
    metadata,
    Column("issuer", String(8), primary_key=True),
    Column("chain", Text, nullable=False),
    Column("crossed", Text, nullable=False),
    Column("since", BigInteger, nullable=False),
    Column("ends", BigInteger, nullable=True),
)
"""The authorities whose certificates the database has. ``chain`` and ``crossed`` are PEM; null in ``ends``: no end is set."""

LIVING: Final = 37429
"""Class of the locks that nodes hold while they live; with it goes ``nodes.number``."""
_AT_WORK: Final = text(
    "SELECT n.node, n.release, n.schema FROM nodes n WHERE EXISTS (SELECT 1 FROM pg_locks l "
    "JOIN pg_database d ON d.oid = l.database WHERE d.datname = current_database() AND l.locktype = 'advisory' "
    "AND l.classid = :living AND l.objid = n.number AND l.objsubid = 2 AND l.granted) ORDER BY n.node"
).bindparams(living=LIVING)

limits: Final = Table(
    "limits",
    MetaData(),
    Column("key", String(80), primary_key=True),
    Column("tat", BigInteger, nullable=False),
    prefixes=["UNLOGGED"],
)
"""On a database server only: when each limited key may come again (GCRA's theoretical arrival time, in microseconds)."""


def migrate(connection: Connection, *, where: str) -> bool:
    """Update the database to `HEAD`.

    Returns:
        Whether it was empty and has been created.

    Raises:
        ConfigurationError: The database is of a later version, or of another program.
    """
    tables = set(inspect(connection).get_table_names())
    found = None
    if "alembic_version" in tables:
        found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    elif "certs" in tables:
        raise ConfigurationError(
            f"{where} is the database of another program (the reference's pvacms?); name another file with "
            "-d, and have its users request new certificates"
        )
    if found == HEAD:
        return False
    if found is not None and not (found.isdecimal() and found < HEAD):
        if not _permits(connection, found):
            raise ConfigurationError(
                f"the database {where} has the schema version {found!r}, which needs a later pvacms: this one knows versions up "
                f"to {HEAD}; use that one"
            )
        _log.warning(
            "the database %s has the schema version %r of a later pvacms, which this one may still use",
            where,
            found,
        )
        return False
    working = _nodes_at_work(connection) if "nodes" in tables else []
    _upgrade(connection)
    _check_nodes(working, known(connection, "schema_oldest"), where)
    return found is None


def _nodes_at_work(connection: Connection) -> list[tuple[str, str, str]]:
    """Return the nodes that hold their lock: name, release and schema version."""
    if connection.dialect.name != "postgresql":
        return []
    return [(node, release, version) for node, release, version in connection.execute(_AT_WORK)]


def _check_nodes(working: Iterable[tuple[str, str, str]], oldest: str, where: str) -> None:
    """Refuse an upgrade of the schema, which is taken back then, if nodes that work now could not use the new one.

    Raises:
        ConfigurationError: There are such nodes.
    """
    behind = [f"{node!r} (pvacms {release})" for node, release, version in working if version < oldest]
    if behind:
        raise ConfigurationError(
            f"the database {where} cannot be brought to the schema version {HEAD} yet: nodes of an earlier release work with it, and could "
            f"not any more: {', '.join(behind)}; nothing was changed. Upgrade them to the release before this one first, or stop them"
        )


def _permits(connection: Connection, found: str) -> bool:
    """Whether a later schema says that programs of this one may still work."""
    oldest = known(connection, "schema_oldest")
    return found.isdecimal() and found > HEAD and bool(oldest) and oldest <= HEAD


def is_usable(connection: Connection) -> bool:
    """Whether the database has the revision `HEAD`, or a later one that permits this program."""
    if "alembic_version" not in inspect(connection).get_table_names():
        return False
    found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar() or ""
    return found == HEAD or _permits(connection, found)


def _upgrade(connection: Connection) -> None:
    # Importing Alembic takes a quarter of a second, so only a database that needs it pays for it.
    from pathlib import Path

    from alembic import command
    from alembic.config import Config

    config = Config()
    here = Path(__file__).with_name("migrations")
    config.set_main_option("script_location", str(here))
    config.set_main_option("path_separator", "newline")
    config.set_main_option("version_locations", "\n".join((str(here / "versions"), *VERSIONS)))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def known(connection: Connection, key: str) -> str:
    """Return a value of the table ``meta``, empty if there is none."""
    return connection.execute(select(meta.c.value).where(meta.c.key == key)).scalar() or ""


def of_node(fact: str, node: str) -> str:
    """Return the key in ``meta`` of a fact that each node has for itself; the fact's own name without a node.

    A name that is too long for a key is cut, and what it is made of instead belongs to no other name.
    """
    key = f"{fact}:{node}" if node else fact
    if len(key) <= _LONGEST_KEY:
        return key
    mark = "~" + hashlib.sha256(node.encode()).hexdigest()[:16]  # no name has a tilde
    return key[: _LONGEST_KEY - len(mark)] + mark


_FIRST: Final = select(func.min(audit.c.seq)).scalar_subquery()
_LAST: Final = select(func.max(audit.c.seq)).scalar_subquery()


def ends_of(connection: Connection) -> tuple[int, int] | None:
    """Return the numbers of the audit's first and last record; None if there is none.

    They are asked apart, because SQLite would read the whole table to answer both at once.
    """
    first, last = connection.execute(select(_FIRST, _LAST)).one()
    return None if first is None else (int(first), int(last))

"""The database: tables, and the migrations that update an older one."""

from __future__ import annotations

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
    inspect,
    select,
    text,
)

from appliance.errors import ConfigurationError

__all__ = ["HEAD", "audit", "certs", "is_current", "meta", "migrate", "replay"]

HEAD: Final = "0003"
"""The revision that this code needs: the last file in ``migrations/versions``."""

metadata: Final = MetaData()

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
    Index("certs_subject", "subject"),
    Index("certs_state", "state", "not_after"),
    Index("certs_skid", "skid"),
    Index("certs_key", "key_id"),
)
"""One row per certificate, written before it is signed. Times are POSIX seconds.

``subject`` is the parts of the name joined by U+001F. ``delivered`` is 0: just recorded, 1: the requester has it, 2: the
service stopped before it knew. ``key_id`` tells keys apart (`appliance.certs.public_keys.key_identity`; empty in rows of
the first version). ``barred`` keys are not certified again. ``no_status`` certificates name no status PV (null: not known).
``renew_by`` is 0 if the certificate need not be renewed; ``renewed_at`` is when it was set (0: at ``state_date``), and
``cadence`` is the seconds that an approval adds to it. ``san`` and ``schedule`` are canonical JSON, empty for none.
"""

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
    Index("replay_until", "until"),
)
"""Used tokens, each until it expires."""

meta: Final = Table(
    "meta", metadata, Column("key", String(64), primary_key=True), Column("value", Text, nullable=False)
)


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
        raise ConfigurationError(
            f"{where} has the schema version {found!r}, but this program knows versions up to {HEAD}; "
            "a later version of pvacms wrote it: use that one"
        )
    _upgrade(connection)
    return found is None


def is_current(connection: Connection) -> bool:
    """Whether the database has the revision `HEAD`."""
    if "alembic_version" not in inspect(connection).get_table_names():
        return False
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == HEAD


def _upgrade(connection: Connection) -> None:
    # Importing Alembic takes a quarter of a second, so only a database that needs it pays for it.
    from pathlib import Path

    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def known(connection: Connection, key: str) -> str:
    """Return a value of the table ``meta``, empty if there is none."""
    return connection.execute(select(meta.c.value).where(meta.c.key == key)).scalar() or ""

"""How a database is opened: a file of SQLite, or a database server."""

from __future__ import annotations

import os
from typing import Any

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

__all__ = ["engine_for", "is_sqlite"]


def is_sqlite(where: str) -> bool:
    """Whether ``where`` is a file and not the URL of a database server."""
    return "://" not in where


def engine_for(where: str, *, read_only: bool = False) -> sa.Engine:
    """Return an engine for a file (SQLite) or a URL (such as ``postgresql+psycopg://``)."""
    if not is_sqlite(where):
        return sa.create_engine(where, poolclass=NullPool)
    mode = "?mode=ro" if read_only else ""
    # As a URI, because the path may have any characters.
    from urllib.parse import quote

    engine = sa.create_engine(
        f"sqlite:///file:{quote(os.path.abspath(where))}{mode}{'&' if mode else '?'}uri=true",  # noqa: PTH100
        poolclass=NullPool,
        connect_args={"check_same_thread": False, "isolation_level": None, "timeout": 10.0},
    )

    @sa.event.listens_for(engine, "connect")
    def configure(connection: Any, _: object) -> None:
        cursor = connection.cursor()
        if not read_only:
            cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA cache_size=-32768")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine

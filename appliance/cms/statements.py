"""The few statements that every request needs, straight to the driver: SQLAlchemy takes ten times as long for one as SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa

__all__ = ["Several", "rows_of"]


def rows_of(connection: sa.Connection, text: str, values: Sequence[Any] = ()) -> Sequence[Sequence[Any]]:
    """Do one statement, and return its rows all at once: each fetch lets other threads run, and then waits for its turn.

    Args:
        connection: The transaction's connection.
        text: The statement with the driver's own placeholders.
        values: Their values.
    """
    driver: Any = connection.connection.driver_connection
    if isinstance(driver, sqlite3.Connection):
        try:
            return driver.execute(text, values).fetchall()
        except sqlite3.Error:
            pass  # nothing was done, and below it fails again with the error that callers know
    result = connection.exec_driver_sql(text, tuple(values))
    return result.all() if result.returns_rows else ()


_MOST: Final = 512
"""Values in a list that are asked for at once; SQLite has a limit."""


class Several:
    """A question about any number of values, read by an index for each of them.

    Args:
        text: The statement. Each ``{}`` is for what follows a column: one of the lists of values.
    """

    def __init__(self, text: str) -> None:
        self._text: Final = text
        self._texts: dict[int, str] = {}

    def rows(self, connection: sa.Connection, *lists: Sequence[Any]) -> Sequence[Sequence[Any]]:
        """Ask.

        Args:
            connection: The transaction's connection.
            lists: The values, equally many in each list, and at least one.
        """
        found: list[Sequence[Any]] = []
        for at in range(0, len(lists[0]), _MOST):
            some = [values[at : at + _MOST] for values in lists]
            found += rows_of(connection, *self.form(connection, *some))
        return found

    def form(self, connection: sa.Connection, *lists: Sequence[Any]) -> tuple[str, Sequence[Any]]:
        """Return the statement and its values as the database's driver wants them."""
        if connection.dialect.name != "sqlite":
            return self._text.replace("{}", "= ANY(%s)"), [list(values) for values in lists]
        # Some sizes only, so that all of these statements stay prepared. A value that comes twice changes nothing.
        size = 1 << (len(lists[0]) - 1).bit_length()
        text = self._texts.get(size)
        if text is None:
            text = self._texts[size] = self._text.replace("{}", f"IN ({', '.join('?' * size)})")
        more = size - len(lists[0])
        return text, [value for values in lists for value in (*values, *[values[-1]] * more)]

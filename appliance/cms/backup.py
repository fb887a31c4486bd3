"""Copy the database while it is in use, and restore a copy.

A restored database does not know certificates that were issued after the copy: their status is UNKNOWN, and they are
useless. What was revoked since then stays revoked: see `appliance.cms.journal`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator
from typing import Final

from appliance.cms.dialect import is_sqlite
from appliance.errors import ConfigurationError

__all__ = ["Backups", "backup", "find_damage", "new_file"]

_PREFIX: Final = "certs_backup_"


def backup(where: str, target: str) -> str:
    """Copy the database, a file, to ``target``, in one consistent state.

    The copy appears whole or not at all, readable by its owner only.

    Returns:
        The name of the copy.

    Raises:
        ConfigurationError: There is no database, the file exists already, or copying failed.
    """
    if not target.endswith(".db"):
        target += ".db"
    if not os.path.isfile(where):  # noqa: PTH113
        raise ConfigurationError("there is no database to back up", file=where)
    with new_file(target, "the database cannot be copied") as partial:
        source = sqlite3.connect(f"file:{_quoted(where)}?mode=ro", uri=True)
        try:
            copy = sqlite3.connect(partial)
            try:
                source.backup(copy, pages=1024)
                found = copy.execute("PRAGMA integrity_check").fetchone()
                if found != ("ok",):
                    raise ConfigurationError(f"the copy is damaged: {found[0]}", file=target)
                # The copy stands alone, without files beside it.
                copy.execute("PRAGMA journal_mode=DELETE")
            finally:
                copy.close()
        finally:
            source.close()
    return target


@contextlib.contextmanager
def new_file(target: str, failed: str) -> Iterator[str]:
    """Make a file that appears whole or not at all, readable by its owner only.

    Args:
        target: Its name.
        failed: How the sentence begins that says why it could not be made.

    Yields:
        The name of the incomplete file, which is there and empty. If nothing is raised it gets its name.

    Raises:
        ConfigurationError: The file exists already, or cannot be written.
    """
    partial = f"{target}.{secrets.token_hex(4)}.partial"
    held = -1
    try:
        _refuse_what_is_there(target)
        _remove_interrupted(target)
        held = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        # Whoever makes the same file later sees by this lock that this one is not a leftover.
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield partial
        _sync(partial)
        os.link(partial, target)
        _sync(os.path.dirname(os.path.abspath(target)))  # noqa: PTH100, PTH120
    except (OSError, sqlite3.Error) as error:
        raise ConfigurationError(f"{failed}: {error}", file=target) from error
    finally:
        if held >= 0:
            with contextlib.suppress(OSError):
                os.unlink(partial)  # noqa: PTH108
            os.close(held)


def _refuse_what_is_there(target: str) -> None:
    if os.path.lexists(target):
        raise ConfigurationError("the file exists already; name another", file=target)
    # SQLite would write what is in them into the new file, and so destroy it.
    for left in (f"{target}-wal", f"{target}-journal"):
        if os.path.lexists(left):
            raise ConfigurationError(
                f"{left} was left by another database, which was here before: move it away, or name another file",
                file=target,
            )


def _remove_interrupted(target: str) -> None:
    """Remove what was not finished because its process was killed: nobody else has it."""
    directory, name = os.path.split(os.path.abspath(target))  # noqa: PTH100
    wanted = re.compile(rf"({re.escape(name)}\.[0-9a-f]+\.partial)(-journal)?")
    for found in filter(None, map(wanted.fullmatch, os.listdir(directory))):  # noqa: PTH208
        with contextlib.suppress(OSError):
            _remove_unheld(os.path.join(directory, found[1]), os.path.join(directory, found[0]))  # noqa: PTH118


def _remove_unheld(partial: str, path: str) -> None:
    try:
        fd = os.open(partial, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        os.unlink(path)  # noqa: PTH108 - the journal of one that is gone
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)  # noqa: PTH108
    finally:
        os.close(fd)


def find_damage(where: str) -> str:
    """Check a database file as a whole, while it is in use; takes about a second for 100 000 certificates.

    Returns:
        What is wrong, in one sentence; empty if nothing is.
    """
    try:
        connection = sqlite3.connect(f"file:{_quoted(where)}?mode=ro", uri=True)
        try:
            found = connection.execute("PRAGMA quick_check(1)").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        return f"{where}: the database cannot be checked: {error}"
    if found == ("ok",):
        return ""
    return f"{where}: the database is damaged ({str(found[0])[:200]}): stop the service and restore a backup"


class Backups:
    """The periodic backups of one database in one directory, which may also hold backups of other services.

    Their names have a mark of the service, a number that only grows, and a date. The number says which is the oldest, because
    the clock may have been wrong when a name was made. A file without that mark is never removed.
    """

    def __init__(
        self, where: str, directory: str, issuer: str, *, copy: Callable[[str, str], str] = backup
    ) -> None:
        self._where = where
        self._copy = copy
        self.directory = directory or os.path.dirname(os.path.abspath(where))  # noqa: PTH100, PTH120
        # The same authority may serve from two hosts or two databases, and two hosts may use the same path.
        place = f"{os.uname().nodename}\n{os.path.realpath(where) if is_sqlite(where) else where}"
        self._mark = f"{_PREFIX}{issuer}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"
        self._name = re.compile(rf"{re.escape(self._mark)}_([0-9]{{6,12}})_[0-9TZ]+\.db")

    def make(self, now: float, keep: int) -> str:
        """Make the next backup, and remove all but the latest ``keep``, never the one that was just made.

        Returns:
            Its name.

        Raises:
            ConfigurationError: The backup could not be made.
        """
        numbers = [number for number, _ in self._found()]
        self._sweep()
        date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
        name = f"{self._mark}_{max(numbers, default=0) + 1:06d}_{date}.db"
        made = self._copy(self._where, os.path.join(self.directory, name))  # noqa: PTH118
        for _, old in self._found()[: -max(keep, 1)]:
            if old != name:
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(self.directory, old))  # noqa: PTH108, PTH118
        return made

    def _sweep(self) -> None:
        """Remove what an interrupted backup has left. Nobody else makes files with this mark."""
        for name in os.listdir(self.directory):  # noqa: PTH208
            if name.startswith(self._mark) and name.endswith(".partial"):
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(self.directory, name))  # noqa: PTH108, PTH118

    def _found(self) -> list[tuple[int, str]]:
        """Return the backups of this service with their numbers, the oldest first."""
        try:
            names = os.listdir(self.directory)  # noqa: PTH208
        except OSError as error:
            raise ConfigurationError(
                f"the directory of the backups cannot be read: {error.strerror}", file=self.directory
            ) from error
        return sorted((int(found[1]), name) for name in names if (found := self._name.fullmatch(name)))


def _quoted(path: str) -> str:
    from urllib.parse import quote

    return quote(os.path.abspath(path))  # noqa: PTH100


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

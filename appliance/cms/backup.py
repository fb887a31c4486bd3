"""Copies of the database while it is in use, and putting one back.

A restored database does not know the certificates that were issued after the copy was made: their status is UNKNOWN,
and they are no use any more. What was revoked since stays revoked: see `appliance.cms.journal`.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from typing import Final

from appliance.cms.store import is_sqlite
from appliance.errors import ConfigurationError

__all__ = ["backup", "prune", "timestamped"]

_PREFIX: Final = "certs_backup_"


def backup(where: str, target: str) -> str:
    """Copy the database to ``target``, in one consistent state; gives the name of the copy.

    The copy appears whole or not at all, readable by its owner only. Raises ConfigurationError.
    """
    if not is_sqlite(where):
        raise ConfigurationError("a database server makes its own backups (pg_dump)", file=where)
    if not target.endswith(".db"):
        target += ".db"
    if not os.path.isfile(where):  # noqa: PTH113
        raise ConfigurationError("there is no database to back up", file=where)
    if os.path.lexists(target):
        raise ConfigurationError("the file is there already; name another", file=target)
    partial = f"{target}.{os.getpid():x}.partial"
    try:
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
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
        _sync(partial)
        os.link(partial, target)
        _sync(os.path.dirname(os.path.abspath(target)))  # noqa: PTH100, PTH120
    except (OSError, sqlite3.Error) as error:
        raise ConfigurationError(f"the database cannot be copied: {error}", file=target) from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(partial)  # noqa: PTH108
    return target


def timestamped(where: str, directory: str, now: float) -> str:
    """The name of a periodic backup."""
    directory = directory or os.path.dirname(os.path.abspath(where))  # noqa: PTH100, PTH120
    return os.path.join(directory, f"{_PREFIX}{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(now))}.db")  # noqa: PTH118


def prune(where: str, directory: str, keep: int) -> None:
    """Remove all periodic backups but the latest ``keep``."""
    directory = directory or os.path.dirname(os.path.abspath(where))  # noqa: PTH100, PTH120
    _sweep(directory)
    try:
        names = sorted(n for n in os.listdir(directory) if n.startswith(_PREFIX) and n.endswith(".db"))  # noqa: PTH208
    except OSError:
        return
    for name in names[:-keep]:
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(directory, name))  # noqa: PTH108, PTH118


def _sweep(directory: str) -> None:
    """Remove copies that a sudden end left incomplete more than an hour ago."""
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            partial = entry.name.startswith(_PREFIX) and entry.name.endswith(".partial")
            if partial and time.time() - entry.stat(follow_symlinks=False).st_mtime > 3600:
                os.unlink(entry.path)  # noqa: PTH108


def _quoted(path: str) -> str:
    from urllib.parse import quote

    return quote(os.path.abspath(path))  # noqa: PTH100


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

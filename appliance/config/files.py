"""Files that must be whole or absent, and files that only their owner may read."""

from __future__ import annotations

import os
import re
import stat
import time
from typing import Final, NamedTuple

from appliance.errors import ConfigurationError

__all__ = ["PrivateRead", "read_private", "sweep", "write_private", "write_public"]


_TEMPORARY: Final = re.compile(r"\.(.+)\.([0-9a-f]{1,8})\.[0-9a-f]{12}")
"""The names that `write_private` gives to files that are not complete: the file's own, a process, something random."""
_OLD_S: Final = 60.0
_YOUNG_S: Final = 2.0


class PrivateRead(NamedTuple):
    """What `read_private` found."""

    data: bytes
    finding: str = ""
    """One sentence about permissions that are wider than they should be; empty when all is well."""


def write_private(
    path: str | os.PathLike[str], data: bytes, mode: int = 0o600, *, owner: tuple[int, int] | None = None
) -> None:
    """Replace a file in one step, so that a reader or a power cut sees the old content or the new.

    The new file is created with ``mode`` (never wider for an instant), synced, renamed over the old one, and its
    directory is synced. ``owner`` (user and group) is set before the file has its name: whoever owns the directory could
    put a link there, and ``chown`` by that name would give away whatever the link leads to. Raises ConfigurationError with the reason when any step fails; the old file then stays.
    """
    name = os.fspath(path)
    directory, base = os.path.split(name)
    directory = directory or "."
    temporary = os.path.join(directory, f".{base[:200]}.{os.getpid():x}.{os.urandom(6).hex()}")  # noqa: PTH118 - start-up time
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        try:
            try:
                # The umask may have taken bits that the caller asked for.
                os.fchmod(fd, mode)
                if owner is not None:
                    os.fchown(fd, *owner)
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(temporary, name)  # noqa: PTH104 - start-up time
        except BaseException:
            os.unlink(temporary)  # noqa: PTH108 - start-up time
            raise
        _sync_directory(directory)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot write: {_reason(error)}", file=name) from error
    sweep(directory, base)


def sweep(directory: str, base: str = "") -> None:
    """Remove what writers have left here that were killed before they could rename it; ``base``: of this file only.

    A file goes whose process is gone, or that is older than any write takes: the process may run on another host.
    """
    start = f".{base[:200]}." if base else "."
    try:
        with os.scandir(directory) as entries:
            found = [entry for entry in entries if entry.name.startswith(start)]
        for entry in found:
            match = _TEMPORARY.fullmatch(entry.name)
            if match is None or (base and match[1] != base[:200]):
                continue
            status = entry.stat(follow_symlinks=False)
            age_s = time.time() - status.st_mtime
            abandoned = age_s > _OLD_S or (age_s > _YOUNG_S and not _runs(int(match[2], 16)))
            if abandoned and stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
                os.unlink(entry.path)  # noqa: PTH108 - start-up time
    except OSError:
        return


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def write_public(path: str | os.PathLike[str], data: bytes) -> None:
    """`write_private` for a file that everybody may read (mode 0644)."""
    write_private(path, data, 0o644)


def read_private(path: str | os.PathLike[str], limit: int, *, strict: bool = True) -> PrivateRead:
    """Read a file that holds a secret.

    Raises ConfigurationError when it is missing, is no regular file, is larger than ``limit`` bytes or, if
    ``strict``, may be read or written by every user. Access for its group is reported as a finding: sites share
    keys with a group on purpose.
    """
    name = os.fspath(path)
    try:
        # O_NONBLOCK: opening a FIFO that somebody put there must not hang the service.
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot read: {_reason(error)}", file=name) from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigurationError("not a regular file", file=name)
        mode = stat.S_IMODE(status.st_mode)
        everybody = f"mode {mode:04o} lets every user of this machine at a secret; use: chmod 600 {name}"
        if strict and mode & 0o007:
            raise ConfigurationError(everybody, file=name)
        chunks = []
        size = 0
        while chunk := os.read(fd, min(65536, limit + 1 - size)):
            chunks.append(chunk)
            size += len(chunk)
            if size > limit:
                raise ConfigurationError(f"larger than the {limit} bytes that are allowed here", file=name)
    except OSError as error:
        raise ConfigurationError(f"cannot read: {_reason(error)}", file=name) from error
    finally:
        os.close(fd)
    finding = ""
    if mode & 0o007:
        finding = f"{name}: {everybody}"
    elif mode & 0o070:
        finding = f"{name}: mode {mode:04o} lets its group at a secret; use chmod 600 unless that is meant"
    return PrivateRead(b"".join(chunks), finding)


def _sync_directory(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)

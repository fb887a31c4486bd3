"""Files that must be complete or absent, and files that only their owner may read."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import time
from typing import Final, NamedTuple

from appliance.errors import ConfigurationError

__all__ = [
    "PrivateRead",
    "check_replaceable",
    "make_directories",
    "protected_file",
    "read_private",
    "read_regular",
    "read_trusted",
    "replace_private",
    "sweep",
    "write_private",
    "write_public",
]

_TEMPORARY: Final = re.compile(r"\.(.+)\.([0-9a-f]{1,8})\.[0-9a-f]{12}")
"""The names that `write_private` gives to incomplete files: the file's own, a process, something random."""
_OLD_S: Final = 60.0
_YOUNG_S: Final = 2.0
_LINKS: Final = 40
"""The most symbolic links of one path, as in Linux."""


class PrivateRead(NamedTuple):
    """What `read_private` found."""

    data: bytes
    finding: str = ""
    """One sentence about permissions that are too wide; empty if they are right."""


def make_directories(path: str | os.PathLike[str]) -> None:
    """Make a directory and missing ones above it, each for its owner only, whatever the umask.

    ``os.makedirs`` applies its mode only to the last one.

    Raises:
        ConfigurationError: A directory cannot be made.
    """
    name = os.fspath(path)
    missing = []
    while name and not os.path.isdir(name):  # noqa: PTH112 - pathlib costs start-up time
        missing.append(name)
        name = os.path.dirname(name.rstrip("/"))  # noqa: PTH120
    for directory in reversed(missing):
        try:
            os.mkdir(directory, 0o700)  # noqa: PTH102
        except FileExistsError:
            if os.path.isdir(directory):  # noqa: PTH112 - somebody else was faster
                continue
            raise ConfigurationError(
                "cannot make the directory: a file is in its place", file=directory
            ) from None
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"cannot make the directory: {_reason(error)}", file=directory
            ) from error


def write_private(
    path: str | os.PathLike[str], data: bytes, mode: int = 0o600, *, owner: tuple[int, int] | None = None
) -> None:
    """Replace a file in one step, so that a reader or a power failure sees the old content or the new.

    The new file is created with ``mode`` (never wider), synced and renamed over the old one, and its directory is synced.
    ``owner`` (user and group) is set before the file gets its name: the owner of the directory could put a link there, and
    ``chown`` by that name would give away the link's target. A link is replaced, never followed: see `replace_private`.

    Raises:
        ConfigurationError: A step failed; the old file is unchanged.
    """
    name = os.fspath(path)
    try:
        directory = _open_directory(name)
        try:
            _replace(directory, name, data, mode, owner)
        finally:
            os.close(directory)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot write: {_reason(error)}", file=name) from error
    _sweep_beside(name)


def sweep(directory: str, base: str = "") -> None:
    """Remove incomplete files that killed writers have left here; ``base``: of this file only.

    A file is removed if its process is gone, or if it is older than any write takes: the process may run on another host.
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


def _sweep_beside(path: str) -> None:
    sweep(os.path.dirname(path) or ".", os.path.basename(path))  # noqa: PTH119, PTH120


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def replace_private(path: str | os.PathLike[str], data: bytes) -> list[str]:
    """Do as `write_private` for a file that may exist: follow a link, and keep owner and mode.

    So a service whose keychain root renews can still read it. Access for every user is removed. Root follows a link of
    another user only into a directory of that user, because others could name any file of the system with a link.

    Returns:
        Sentences for the user about what could not be kept.

    Raises:
        ConfigurationError: The file cannot be replaced; the old file is unchanged.
    """
    name = os.fspath(path)
    try:
        directory, place = _place(name)
        try:
            try:
                before = os.stat(os.path.basename(place), dir_fd=directory, follow_symlinks=False)  # noqa: PTH119
            except FileNotFoundError:
                _replace(directory, place, data, 0o600, None)
                said = []
            else:
                said = _replace_like(directory, place, data, before)
        finally:
            os.close(directory)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot write: {_reason(error)}", file=name) from error
    _sweep_beside(place)
    return said


def check_replaceable(path: str | os.PathLike[str], size: int = 16384) -> None:
    """Check that `replace_private` will work, by writing a file of that size beside it.

    Permissions alone do not show a full disk, a quota or a read-only file system.

    Raises:
        ConfigurationError: The file cannot be replaced.
    """
    name = os.fspath(path)
    if os.path.isdir(name):  # noqa: PTH112
        raise ConfigurationError("is a directory; name the file itself", file=name)
    try:
        directory, place = _place(name)
        try:
            temporary = _written(directory, place, bytes(size), 0o600, None)
            os.unlink(temporary, dir_fd=directory)
        finally:
            os.close(directory)
    except PermissionError as error:
        where = os.path.dirname(name) or "."  # noqa: PTH120
        raise ConfigurationError(
            "cannot create files in this directory; run the command as the keychain's owner", file=where
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot be written: {_reason(error)}", file=name) from error


def _place(name: str) -> tuple[int, str]:
    """Return the directory (open) and the path that ``name`` leads to."""
    try:
        link = os.lstat(name)
    except FileNotFoundError:
        return _open_directory(name), name
    if not stat.S_ISLNK(link.st_mode):
        if not stat.S_ISREG(link.st_mode):
            raise ConfigurationError("not a regular file", file=name)
        return _open_directory(name), name
    with contextlib.suppress(FileNotFoundError):
        os.stat(name)  # noqa: PTH116 - a circle of links is an error here
    place = os.path.realpath(name)
    directory = _open_directory(place)
    foreign = link.st_uid not in (0, os.geteuid())
    if foreign and os.fstat(directory).st_uid != link.st_uid:
        os.close(directory)
        raise ConfigurationError(
            f"a link of user {link.st_uid} to {place}, which is not in a directory of that user, is "
            "not followed; name the file itself",
            file=name,
        )
    return directory, place


def _open_directory(name: str) -> int:
    return os.open(os.path.dirname(name) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # noqa: PTH120


def _replace_like(directory: int, place: str, data: bytes, before: os.stat_result) -> list[str]:
    """Replace a regular file with one of the same owner, group and mode, as far as this process may."""
    if not stat.S_ISREG(before.st_mode):
        raise ConfigurationError("not a regular file", file=place)
    said = []
    mode = stat.S_IMODE(before.st_mode) & 0o770
    if mode != stat.S_IMODE(before.st_mode):
        said.append(
            f"{place}: every user of this machine could read or change it; its mode is now {mode:04o}"
        )
    mode |= 0o600
    wanted = (before.st_uid, before.st_gid)
    for owner in dict.fromkeys((wanted, (-1, before.st_gid))):
        try:
            _replace(directory, place, data, mode, owner)
        except OSError as error:
            # EINVAL: this process is in a namespace that does not have this user or group.
            if error.errno not in (errno.EPERM, errno.EINVAL):
                raise
            continue
        if owner != wanted and before.st_uid != os.geteuid():
            said.append(
                f"{place}: now belongs to user {os.geteuid()}; it cannot be given back to {before.st_uid}"
            )
        return said
    # Access for a group makes sense only for the group that the file had.
    _replace(directory, place, data, 0o600, None)
    if mode & 0o070:
        from shlex import quote

        said.append(
            f"{place}: cannot be given back to its group {before.st_gid}; only user {os.geteuid()} can read it now. If that "
            f"group needs it, as root: chgrp {before.st_gid} {quote(place)} && chmod {mode:04o} {quote(place)}"
        )
    return said


def _replace(directory: int, name: str, data: bytes, mode: int, owner: tuple[int, int] | None) -> None:
    temporary = _written(directory, name, data, mode, owner)
    try:
        os.rename(temporary, os.path.basename(name), src_dir_fd=directory, dst_dir_fd=directory)  # noqa: PTH119
    except BaseException:
        os.unlink(temporary, dir_fd=directory)
        raise
    os.fsync(directory)


def _written(directory: int, name: str, data: bytes, mode: int, owner: tuple[int, int] | None) -> str:
    """Return the name of a new file in ``directory`` that is complete and on disk."""
    base = os.path.basename(name)  # noqa: PTH119
    temporary = f".{base[:200]}.{os.getpid():x}.{os.urandom(6).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(temporary, flags, mode, dir_fd=directory)
    try:
        try:
            if owner is not None:
                _give(fd, *owner)
            # The umask may have removed bits that the caller asked for, and chown removes some.
            os.fchmod(fd, mode)
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)
    except BaseException:
        os.unlink(temporary, dir_fd=directory)
        raise
    return temporary


def _give(fd: int, user: int, group: int) -> None:
    """Change the owner, if it is another one: a sandbox may forbid ``chown``, also the one that would change nothing."""
    now = os.fstat(fd)
    user = -1 if user == now.st_uid else user
    group = -1 if group == now.st_gid else group
    if (user, group) != (-1, -1):
        os.fchown(fd, user, group)


def write_public(path: str | os.PathLike[str], data: bytes) -> None:
    """Do as `write_private` for a file that everybody may read (mode 0644)."""
    write_private(path, data, 0o644)


def read_private(path: str | os.PathLike[str], limit: int, *, strict: bool = True) -> PrivateRead:
    """Read a file that holds a secret.

    Args:
        path: The file.
        limit: Greatest size in bytes.
        strict: Refuse a file that every user may read or write.

    Returns:
        The contents, and a finding if others than the owner have access. Access for the group is only a finding, because
        sites share keys with a group on purpose.

    Raises:
        ConfigurationError: The file is missing, is not a regular file, is too large or is open to every user.
    """
    name = os.fspath(path)
    data, mode = _read_regular(name, limit)
    everybody = f"mode {mode:04o} lets every user read or change this secret; run: chmod 600 {name}"
    if mode & 0o007:
        if strict:
            raise ConfigurationError(everybody, file=name)
        return PrivateRead(data, f"{name}: {everybody}")
    if mode & 0o070:
        return PrivateRead(
            data,
            f"{name}: mode {mode:04o} lets its group read or change this secret; run chmod 600 unless you want that",
        )
    return PrivateRead(data, "")


def read_trusted(path: str | os.PathLike[str], limit: int) -> bytes:
    """Read a file whose writer decides what this program does, such as a configuration or a trust anchor.

    Args:
        path: The file.
        limit: Most bytes that are read.

    Raises:
        ConfigurationError: The file is missing, is no regular file, is too large, or every user may change it.
    """
    name = os.fspath(path)
    data, mode = _read_regular(name, limit)
    if mode & stat.S_IWOTH:
        raise ConfigurationError(
            f"every user of this machine may change it; run: chmod o-w {name}", file=name
        )
    return data


def read_regular(path: str | os.PathLike[str], limit: int) -> bytes:
    """Read a regular file whole.

    Args:
        path: The file.
        limit: Greatest size in bytes.

    Raises:
        ConfigurationError: The file is missing, is no regular file or is too large.
    """
    return _read_regular(os.fspath(path), limit)[0]


def _read_regular(name: str, limit: int) -> tuple[bytes, int]:
    """Return the contents of a regular file and its mode."""
    try:
        # O_NONBLOCK: opening a FIFO that somebody put there must not block the service.
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise ConfigurationError("not a regular file", file=name)
            with os.fdopen(fd, "rb", closefd=False) as file:
                data = file.read(limit + 1)
        finally:
            os.close(fd)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot read: {_reason(error)}", file=name) from error
    if len(data) > limit:
        raise ConfigurationError(f"larger than the limit of {limit} bytes", file=name)
    return data, stat.S_IMODE(status.st_mode)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def protected_file(path: str | os.PathLike[str]) -> str:
    """Return the real path of a file that only root and the user of this process can change or replace.

    All directories on the way are looked at, and those that symbolic links lead through. In a directory with the sticky bit others can add
    files, but not replace this one.

    Raises:
        ConfigurationError: The file is missing, is no regular file, or somebody else can change or replace it.
    """
    name = os.fspath(path)
    at, links = "/", 0
    pending = os.path.join(os.getcwd(), name).split("/")[::-1]  # noqa: PTH109, PTH118 - text in, text out
    try:
        status = os.lstat(at)
        _refuse_changeable(at, status, name)
        while pending:
            part = pending.pop()
            if part in {"", "."}:
                continue
            here = os.path.dirname(at) if part == ".." else os.path.join(at, part)  # noqa: PTH118, PTH120
            status = os.lstat(here)
            _refuse_changeable(here, status, name)
            if not stat.S_ISLNK(status.st_mode):
                at = here
                continue
            links += 1
            if links > _LINKS:
                raise ConfigurationError("leads through too many symbolic links", file=name)
            target = os.readlink(here)  # noqa: PTH115
            if target.startswith("/"):
                at = "/"
            pending += target.split("/")[::-1]
    except OSError as error:
        raise ConfigurationError(f"cannot be read: {error.strerror or error}", file=name) from None
    if not stat.S_ISREG(status.st_mode):
        raise ConfigurationError("is not a regular file", file=name)
    return at


def _refuse_changeable(here: str, status: os.stat_result, name: str) -> None:
    if status.st_uid not in (0, os.geteuid()):
        raise ConfigurationError(
            f"{here} belongs to user {status.st_uid}, who can change what this program runs; run: chown root {here}",
            file=name,
        )
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISLNK(status.st_mode) or (stat.S_ISDIR(status.st_mode) and mode & stat.S_ISVTX):
        return
    if mode & 0o022:
        who = "every user of this machine" if mode & stat.S_IWOTH else "its group"
        raise ConfigurationError(
            f"{here} has mode {mode:04o}: {who} can change what this program runs; run: chmod go-w {here}",
            file=name,
        )

"""Notice when files that the service has open or relies on are removed or replaced.

All that is written to such a file is lost, and nobody would notice before the next start.
"""

from __future__ import annotations

import contextlib
import os

from appliance.errors import ConfigurationError

__all__ = ["InUse", "create_private", "is_at", "keep_private"]


def create_private(path: str) -> None:
    """Make an empty file that only its owner can read, unless it is there. Whoever uses it says why it cannot be made."""
    with contextlib.suppress(OSError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def keep_private(path: str) -> None:
    """Let only its owner read a file.

    Raises:
        ConfigurationError: It belongs to somebody else, or is on a disk that cannot be written.
    """
    try:
        os.chmod(path, 0o600)  # noqa: PTH101 - text in
    except OSError as error:
        raise ConfigurationError(
            f"the file's mode cannot be set: {error.strerror}; it must belong to the service's account, on a disk that can be written",
            file=path,
        ) from error


def is_at(fd: int, path: str) -> bool:
    """Whether the file open as ``fd`` is the one that ``path`` names."""
    try:
        there = os.stat(path)  # noqa: PTH116 - text in
    except OSError:
        return False
    here = os.fstat(fd)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


class InUse:
    """Remembers which file each path led to."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, int]] = {}

    def remember(self, *paths: str) -> None:
        """Remember the present files as the right ones, except for paths that are remembered already."""
        for path in paths:
            if path not in self._known:
                with contextlib.suppress(OSError):
                    found = os.stat(path)  # noqa: PTH116
                    self._known[path] = (found.st_dev, found.st_ino)

    def lost(self) -> str:
        """Return the first path that leads nowhere, or to another file; empty if all are right."""
        for path, known in self._known.items():
            try:
                found = os.stat(path)  # noqa: PTH116
            except OSError:
                return path
            if (found.st_dev, found.st_ino) != known:
                return path
        return ""

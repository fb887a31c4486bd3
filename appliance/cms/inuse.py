"""Files that the service has open or relies upon, and whether they are still what is found by their names.

A file that was removed or replaced takes everything that is written to it with it, and nobody sees that before the next start.
"""

from __future__ import annotations

import contextlib
import os

__all__ = ["InUse", "is_at"]


def is_at(fd: int, path: str) -> bool:
    """Whether the file that is open as ``fd`` is the one that ``path`` names."""
    try:
        there = os.stat(path)  # noqa: PTH116 - text in
    except OSError:
        return False
    here = os.fstat(fd)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


class InUse:
    """Remembers which file each of some names led to."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, int]] = {}

    def remember(self, *paths: str) -> None:
        """Take the files that are there now for the right ones, unless others were remembered before."""
        for path in paths:
            if path not in self._known:
                with contextlib.suppress(OSError):
                    found = os.stat(path)  # noqa: PTH116
                    self._known[path] = (found.st_dev, found.st_ino)

    def lost(self) -> str:
        """Return the first name that leads nowhere, or to another file; empty where all is well."""
        for path, known in self._known.items():
            try:
                found = os.stat(path)  # noqa: PTH116
            except OSError:
                return path
            if (found.st_dev, found.st_ino) != known:
                return path
        return ""

"""The quick start's directory: one process at a time uses it, and an interrupted one leaves nothing that blocks the next.

The marker shows two things: a directory without it is not ours to empty, and the process that holds its lock uses the
directory. It is made first and stays when the rest is removed, so an interruption never makes the directory look like
somebody else's. The daemons inherit the lock, so their files are never removed after a quick start was killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from appliance.errors import ApplianceError

__all__ = ["MARKER", "Hold"]

MARKER: Final = ".spva-quickstart"
_LONGEST: Final = 4096


class Hold:
    """The directory ``root``, emptied and locked until `release`.

    Raises:
        ApplianceError: The directory is not ours, another quick start uses it, or it cannot be made.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            self.fd = self._take()
            try:
                self._empty()
                self.write_down([os.getpid()])
            except BaseException:
                self.release()
                raise
        except OSError as error:
            raise ApplianceError(
                f"{root} cannot be used: {error.strerror or error}; choose another directory with --dir"
            ) from error

    def _take(self) -> int:
        root = self.root
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(root.iterdir()) and not (root / MARKER).exists():
            raise ApplianceError(
                f"{root} exists and is not an earlier quick start's directory; choose another with --dir"
            )
        fd = os.open(root / MARKER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(fd, _LONGEST, 0).decode("ascii", "replace")
            os.close(fd)
            raise ApplianceError(f"{root}: {_who(text.split())}, or choose another with --dir") from None
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _empty(self) -> None:
        for entry in list(self.root.iterdir()):
            if entry.name == MARKER:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def write_down(self, processes: Iterable[int]) -> None:
        """Write the processes that use the directory into the marker, the quick start itself first."""
        text = "".join(f"{number}\n" for number in processes).encode()
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, text, 0)

    def release(self) -> None:
        """Let another quick start use the directory."""
        if self.fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self.fd)
            self.fd = -1


def _who(words: list[str]) -> str:
    """Say who uses the directory, and what to do, from the marker's text."""
    numbers = [int(word) for word in words if word.isdecimal() and len(word) < 10]
    if not numbers:
        return "another quick start uses this directory; stop it"
    first, *daemons = numbers
    if _runs(first):
        return (
            f"another quick start (process {first}) uses this directory; stop it with Ctrl-C in its terminal"
        )
    left = " ".join(str(number) for number in daemons if _runs(number))
    return (
        f"another quick start (process {first}) was killed, and its daemons still use this directory; "
        f"stop them: kill {left}"
    )


def _runs(number: int) -> bool:
    return Path(f"/proc/{number}").exists()

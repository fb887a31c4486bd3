"""Where request files and save files are, and how they are read and written."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

from appliance.errors import ConfigurationError

__all__ = ["Folders", "dated", "read_text", "write_text"]

_LIMIT: Final = 64 << 20


class Folders:
    """The folders that commands have named so far."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        """Request files are looked for here, in this order."""
        self.saves = ""
        """Save files are here."""

    def read_request(self, file: str) -> tuple[str, str]:
        """Find a request file and read it.

        Returns:
            Its path and its text.

        Raises:
            ConfigurationError: there is none, or it cannot be read.

        """
        folders = [""] if file.startswith("/") else self.requests or [""]
        for folder in folders:
            path = Path(folder, file)
            if path.is_file():
                return str(path), read_text(path, "the request file")
        raise ConfigurationError(
            f"there is no such request file in {', '.join(each or 'the current folder' for each in folders)}; "
            "set_requestfile_path adds a folder",
            file=file,
        )


def read_text(path: Path, what: str) -> str:
    """Read a file; octets that are not UTF-8 are kept.

    Args:
        path: the file.
        what: what it is, for the message.

    Raises:
        ConfigurationError: it cannot be read, or is too large.

    """
    try:
        with path.open("rb") as file:
            data = file.read(_LIMIT + 1)
    except OSError as error:
        raise ConfigurationError(f"cannot read {what}: {error.strerror or error}", file=str(path)) from None
    if len(data) > _LIMIT:
        raise ConfigurationError(f"is larger than {_LIMIT} octets", file=str(path))
    return data.decode("utf-8", "surrogateescape")


def write_text(path: Path, text: str, mode: int) -> None:
    """Write a file to the disk; a new file gets ``mode``.

    Raises:
        ConfigurationError: The file cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(text.encode("utf-8", "surrogateescape"))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ConfigurationError(f"cannot be written: {error.strerror or error}", file=str(path)) from None


def dated(path: Path, mark: str) -> Path:
    """Return the name of a copy of a file made now, as autosave has it: ``all.sav_240131-235959``; in the host's time."""
    return path.with_name(f"{path.name}{mark}{time.strftime('%y%m%d-%H%M%S')}")

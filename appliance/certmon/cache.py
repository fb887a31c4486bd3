"""Signed status answers on disk, so that a process that starts need not wait for the certificate service.

Source: SPVA specification 7.4. What is read is verified again by whoever reads it: a file here proves nothing, and one
that somebody else has written can only be a true answer or none.
"""

from __future__ import annotations

import logging
import os
from typing import Final

from appliance.config.files import make_directories, read_private, sweep, write_private
from appliance.errors import ConfigurationError

__all__ = ["StatusCache"]

_log: Final = logging.getLogger(__name__)

MAX_ENTRIES: Final = 1000
_MAX_BYTES: Final = 1 << 16
_SUFFIX: Final = ".ocsp"


class StatusCache:
    """A directory of OCSP responses, one file per certificate. Its failures are never more than a note in the log."""

    def __init__(self, directory: str, *, max_entries: int = MAX_ENTRIES) -> None:
        self.directory = directory
        self.max_entries = max_entries
        self._failed = False

    def _path(self, issuer_id: str, serial: int) -> str:
        return f"{self.directory}/{issuer_id}-{serial:020d}{_SUFFIX}"

    def read(self, issuer_id: str, serial: int) -> bytes:
        """Give the answer that was kept, unverified; nothing where there is none."""
        try:
            return read_private(self._path(issuer_id, serial), _MAX_BYTES, strict=False).data
        except ConfigurationError:
            return b""

    def write(self, issuer_id: str, serial: int, answer: bytes) -> None:
        """Keep ``answer`` in one step. Takes milliseconds: the file is synced."""
        try:
            make_directories(self.directory)
            path = self._path(issuer_id, serial)
            write_private(path, answer)
            self._prune(path)
        except (ConfigurationError, OSError) as error:
            if not self._failed:
                self._failed = True
                _log.warning("the status cache in %s is not written: %s", self.directory, error)

    def forget(self, issuer_id: str, serial: int) -> None:
        """Drop an answer that does not hold any more."""
        try:
            os.unlink(self._path(issuer_id, serial))  # noqa: PTH108 - start-up time
        except OSError:
            return

    def _prune(self, newest: str) -> None:
        """Remove the oldest. The clock may be behind the files' dates: what was just written stays, whatever its date."""
        sweep(self.directory)
        with os.scandir(self.directory) as entries:
            found = [(entry.stat(follow_symlinks=False).st_mtime, entry.path) for entry in entries
                     if entry.name.endswith(_SUFFIX) and entry.path != newest]  # fmt: skip
        if len(found) < self.max_entries:
            return
        found.sort()
        for _, path in found[: len(found) - self.max_entries + 1]:
            try:
                os.unlink(path)  # noqa: PTH108 - start-up time
            except OSError:
                continue

"""Signed status answers on disk, so that a starting process need not wait for the certificate service.

Source: SPVA specification 7.4. Every reader verifies again what it reads: a file here proves nothing, so a forged file is
either a true answer or useless.
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
    """A directory of OCSP responses, one file per certificate. Failures are only logged."""

    def __init__(self, directory: str, *, max_entries: int = MAX_ENTRIES) -> None:
        self.directory = directory
        self.max_entries = max_entries
        self._failed = False

    def _path(self, issuer_id: str, serial: int) -> str:
        return f"{self.directory}/{issuer_id}-{serial:020d}{_SUFFIX}"

    def read(self, issuer_id: str, serial: int) -> bytes:
        """Return the stored answer, not verified; empty if there is none."""
        try:
            return read_private(self._path(issuer_id, serial), _MAX_BYTES, strict=False).data
        except ConfigurationError:
            return b""

    def write(self, issuer_id: str, serial: int, answer: bytes) -> None:
        """Store ``answer`` in one step. Takes milliseconds, because the file is synced."""
        try:
            make_directories(self.directory)
            path = self._path(issuer_id, serial)
            write_private(path, answer)
            self._prune(path)
        except (ConfigurationError, OSError) as error:
            if not self._failed:
                self._failed = True
                _log.warning("the status cache in %s cannot be written: %s", self.directory, error)

    def forget(self, issuer_id: str, serial: int) -> None:
        """Remove an answer that is no longer valid."""
        try:
            os.unlink(self._path(issuer_id, serial))  # noqa: PTH108 - start-up time
        except OSError:
            return

    def _prune(self, newest: str) -> None:
        """Remove the oldest. The clock may be behind the files' dates, so the newest file stays whatever its date."""
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

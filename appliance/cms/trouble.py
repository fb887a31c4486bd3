"""Whether the database can be written, as far as is known, and what the log says while it cannot."""

from __future__ import annotations

import logging
import time
from typing import Final

__all__ = ["TOLD_EVERY_S", "Trouble"]

_log: Final = logging.getLogger(__name__)
TOLD_EVERY_S: Final = 60.0
"""Seconds between two log lines that say that the database cannot be written."""


class Trouble:
    """Failures to write one database, named ``shown`` in the log."""

    def __init__(self, shown: str) -> None:
        self._shown = shown
        self._failed_at: float | None = None
        self._failed = 0
        self._told_at = float("-inf")
        self._told = False

    @property
    def is_recent(self) -> bool:
        """Whether something has failed in the last minute, and nothing has succeeded since."""
        return self._failed_at is not None and time.monotonic() - self._failed_at < TOLD_EVERY_S

    @property
    def is_open(self) -> bool:
        """Whether something has failed, or was said to fail, since the last success."""
        return self._told or self._failed_at is not None

    def tell(self, why: str, *, defect: Exception | None = None, is_seen: bool = False) -> None:
        """Say once a minute that nothing can be written.

        Args:
            why: The reason.
            defect: What a defect of this program has raised, which does not speak against the database.
            is_seen: Whether the next commit checks whether it is still so.
        """
        self._failed += 1
        now = time.monotonic()
        if defect is None and not is_seen:
            self._failed_at = now
        if now - self._told_at < TOLD_EVERY_S:
            return
        self._told_at, self._told = now, True
        _log.error(
            "the certificate database %s cannot be written: %s; until it can be, nothing is issued, approved, denied or revoked "
            "(%d attempts failed so far)",
            self._shown,
            why,
            self._failed,
            exc_info=defect,
            extra={"event": "database-failed"},
        )

    def over(self) -> None:
        """Take note that something was written, and say it if the trouble was told."""
        self._failed_at = None
        if self._told:
            self._told = False
            _log.warning(
                "the certificate database can be written again; %d attempts failed in the meantime, and were refused",
                self._failed,
                extra={"event": "database-recovered"},
            )
            self._failed = 0

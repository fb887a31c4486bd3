"""EPICS Base's error log as records of the daemon's log: escaped, and bounded."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

__all__ = ["EpicsLog"]

_log: Final = logging.getLogger(__name__)
_TOLD: Final = 20
"""The most messages that are logged in one period."""
_PERIOD_S: Final = 10.0
_LONGEST: Final = 512
_OF_CLIENTS: Final = "dbChannelCreate: "
"""Beginning of messages about a name that a client asks for; the client's answer says the same."""


class EpicsLog:
    """Logs messages, from any thread. It counts the surplus messages of a period and reports their number in the next one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._begun = clock()
        self._count = 0

    def __call__(self, message: str) -> None:
        """Log one message; the log escapes what is not printable."""
        text = message.strip()
        if not text or text.startswith(_OF_CLIENTS):
            return
        with self._lock:
            now = self._clock()
            left_out = 0
            if now - self._begun >= _PERIOD_S:
                left_out = max(0, self._count - _TOLD)
                self._begun, self._count = now, 0
            self._count += 1
            count = self._count
        if left_out:
            _log.warning("%d messages of EPICS were not logged", left_out)
        if count <= _TOLD:
            _log.warning("EPICS: %s", text if len(text) <= _LONGEST else f"{text[:_LONGEST]}...")
        elif count == _TOLD + 1:
            _log.warning("more messages of EPICS in these %g s are not logged", _PERIOD_S)

"""The functions ``asSubInit`` and ``asSubProcess`` of sub records: a client has the access security file read again by a put of 1.

EPICS Base brings functions of these names, which read a file that this IOC does not use. These are registered instead.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from appliance.errors import ApplianceError
from appliance.ioc.dbcore import DBChannel, RecordView, register_function, skip_registrar

__all__ = ["Reread"]

_log: Final = logging.getLogger(__name__)


class Reread:
    """All records with these functions; one per process. Requests while the file is being read become one more reading."""

    def __init__(self) -> None:
        self.ask: Callable[[], None] | None = None
        """Asks for a reading, from any thread; :meth:`done` must follow."""
        self._waiting: set[str] = set()
        self._is_asked = False
        self._failed: set[str] = set()

    def register(self) -> None:
        """Register the functions instead of those of EPICS; before the definition is loaded."""
        register_function("asSubInit", lambda _: 0)
        register_function("asSubProcess", self._process)
        skip_registrar("asSub")

    def _process(self, record: RecordView) -> int:
        if record["VAL"] != 1:
            return -1 if record.name in self._failed else 0
        record["VAL"] = 0
        if self.ask is None:
            return -1
        self._waiting.add(record.name)
        if not self._is_asked:
            self._is_asked = True
            self.ask()
        return 0

    def begin(self) -> None:
        """Note that a reading begins: later requests ask for another one."""
        self._is_asked = False

    def done(self, *, failed: bool) -> None:
        """Tell the records that asked: they have BRSV's alarm if the file could not be used. Blocks."""
        waiting, self._waiting = self._waiting, set()
        for name in sorted(waiting):
            (self._failed.add if failed else self._failed.discard)(name)
            try:
                with DBChannel(f"{name}.PROC") as channel:
                    channel.put(1, None)
            except ApplianceError as error:
                # With the alarm the record's support reports a failure, as it should.
                if not failed:
                    _log.warning("%s: %s", name, error)

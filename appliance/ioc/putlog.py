"""The log of puts: who wrote what, from where, and what was there before.

Access security says which puts are logged (TRAPWRITE). Each becomes a record of the logger ``appliance.ioc.putlog``, and
where a file is configured a line of JSON in it that seals those before (:class:`appliance.daemon.audit.AuditLog`).
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any, Final

from appliance.daemon.audit import AuditLog
from appliance.errors import ApplianceError
from appliance.ioc.access import IocAccess
from appliance.ioc.dbcore import DBChannel, TrappedPut
from appliance.server.operation import Operation

__all__ = ["PutLog", "shown"]

_log: Final = logging.getLogger("appliance.ioc.putlog")
_TEXT: Final = 256
_ELEMENTS: Final = 16


def shown(value: Any) -> Any:
    """A value as the log has it: numbers as they are, long text and arrays cut with their size told."""
    if isinstance(value, str):
        return value if len(value) <= _TEXT else f"{value[:_TEXT]}... ({len(value)} characters)"
    if hasattr(value, "dtype"):
        first = value[:_ELEMENTS].tolist()
    elif isinstance(value, (tuple, list)):
        first = [shown(item) for item in value[:_ELEMENTS]]
    elif value is None or isinstance(value, (bool, int)):
        return value
    else:
        # JSON has no NaN.
        return value if value == value and abs(value) != float("inf") else str(value)  # noqa: PLR0124
    first = [item if isinstance(item, (int, str)) or item == item else str(item) for item in first]  # noqa: PLR0124
    return first if len(value) <= _ELEMENTS else [*first, f"... ({len(value)} elements)"]


class Watched:
    """One put that is logged."""

    __slots__ = ("_channel", "_log", "_operation")

    def __init__(self, log: PutLog, operation: Operation, channel: DBChannel) -> None:
        self._log = log
        self._operation = operation
        self._channel = channel

    def done(self, old: Any, new: Any) -> None:
        """It succeeded."""
        self._log.write(
            self._operation, self._channel, {"old": shown(old), "new": shown(new), "result": "done"}
        )

    def failed(self, new: Any, error: object) -> None:
        """EPICS refused it."""
        self._log.write(
            self._operation, self._channel, {"new": shown(new), "result": "failed", "error": str(error)}
        )


class PutLog:
    """See the module's text. Raises ConfigurationError when the file cannot be opened."""

    def __init__(self, access: IocAccess, file: str = "") -> None:
        self._access = access
        self._file = AuditLog(file, sync="never") if file else None

    def concerns(self, operation: Operation, channel: DBChannel) -> Watched | None:
        """Start a record if this put must be logged."""
        return Watched(self, operation, channel) if self._access.traps(channel, operation.peer) else None

    def refused(self, operation_channel: Any, right: str) -> None:
        """Access security refused a request for lack of a right."""
        peer = operation_channel.peer
        _log.warning(
            "%s (%s from %s) was refused %s access to %s",
            peer.account or "anonymous", peer.method, peer.peer, right, operation_channel.name,
            extra={"event": "access-refused", "pv": operation_channel.name, "right": right, **peer.facts()},
        )  # fmt: skip

    def write(self, operation: Operation, channel: DBChannel, what: dict[str, Any]) -> None:
        """Write one record."""
        peer = operation.peer
        self._write(
            {
                "pv": operation.name,
                "record": channel.record,
                "field": channel.field,
                "account": peer.account,
                "method": peer.method,
                "authority": peer.authority.split("\n")[0],
                "host": peer.peer,
                "protocol": "tls" if peer.is_tls else "tcp",
                **what,
            },
            peer.facts(),
        )

    def trapped(self, put: TrappedPut) -> None:
        """Write a record of a put over Channel Access, whose clients merely claim who they are."""
        self._write(
            {
                "pv": put.pv,
                "record": put.record,
                "field": put.field,
                "account": put.account,
                "method": "ca",
                "authority": "",
                "host": put.host,
                "protocol": "ca",
                "old": shown(put.old),
                "new": shown(put.new),
                "result": "done",
            },
            {"peer": put.host},
        )

    def _write(self, record: dict[str, Any], facts: dict[str, str]) -> None:
        """``facts`` say who it is as all records of the log do, ``record`` as the file does."""
        _log.info(
            "%s (%s from %s) put %s.%s: %r -> %r %s",
            record["account"] or "anonymous", record["method"], record["host"], record["record"], record["field"],
            record.get("old"), record.get("new"), record.get("error", record["result"]),
            extra={"event": "put", **facts, **record},
        )  # fmt: skip
        if self._file is not None:
            line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": "put", **record}
            try:
                self._file.append(line)
            except ApplianceError as error:
                _log.error("the put log misses a record: %s", error)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

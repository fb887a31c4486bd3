"""The log of puts: who writes which value, from where, and the value before it.

Access security says which puts are logged (TRAPWRITE). Each becomes a record of the logger ``appliance.ioc.putlog``. If a
file is configured, it is also a line of JSON there that seals the lines before it (:class:`appliance.daemon.audit.PutRecords`).

A record is written *before* its put is done, in the thread that does it and with the record locked: so a client
cannot avoid the log, for example by closing its connection. A put that fails afterwards gets a second record.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

from appliance.daemon.audit import PutRecords, shown, total
from appliance.ioc.caputlog import CaPutLog, NotedPut
from appliance.ioc.dbcore import DBChannel, TrappedPut
from appliance.pva.credentials import Credentials
from appliance.server.operation import Operation

__all__ = ["NOTHING", "PutLog", "Watched"]

_log: Final = logging.getLogger("appliance.ioc.putlog")

NOTHING: Final[Any] = object()
"""The value of a put that writes nothing and only processes the record."""


class Watched:
    """One put that is logged; the :class:`~appliance.ioc.dbcore.PutWatch` of it."""

    __slots__ = ("_channel", "_log", "_new", "_noted", "_operation")

    def __init__(self, log: PutLog, operation: Operation, channel: DBChannel, new: Any) -> None:
        self._log = log
        self._operation = operation
        self._channel = channel
        self._new = new
        self._noted: NotedPut | None = None

    def _what(self, **more: Any) -> dict[str, Any]:
        if self._new is NOTHING:
            return {"event": "process", **more}
        return {"event": "put", **more, "new": shown(self._new)}

    def begin(self, old: Any) -> None:
        """Log the put before it is done.

        Raises:
            OperationError: The log cannot be written; the put must not be done.
        """
        what = self._what() if self._new is NOTHING else self._what(old=shown(old))
        self._log.write(self._operation, self._channel, {**what, "result": "accepted"})
        if self._new is not NOTHING:
            peer, channel = self._operation.peer, self._channel
            self._noted = NotedPut(
                self._operation.name,
                f"{channel.record}.{channel.field}",
                peer.account,
                peer.method,
                peer.peer,
                old,
                self._new,
            )
            self._log.ca_put_log.note(self._noted)

    def failed(self, error: object) -> None:
        """Log that the put was not done."""
        if self._noted is not None:
            self._noted.failed = True
        self._log.write(self._operation, self._channel, self._what(result="failed", error=str(error)))


class PutLog:
    """Logs the puts that access security selects. All methods can be called in any thread.

    Args:
        traps: tells whether a put to a field by a client must be logged.
        file: path of the sealed log; empty for none.
        required: refuse puts that cannot be written to the file. Otherwise they are done, and the daemon's log gets an error.

    Raises:
        ConfigurationError: the file cannot be opened.

    """

    def __init__(
        self, traps: Callable[[DBChannel, Credentials], bool], file: str = "", *, required: bool = True
    ) -> None:
        self._traps = traps
        self._records = PutRecords(file, required=required)
        self.ca_put_log = CaPutLog()

    def concerns(self, operation: Operation, channel: DBChannel, new: Any) -> Watched | None:
        """Return the watch for a put that must be logged, otherwise None; ``new`` is its value, or NOTHING."""
        if not self._traps(channel, operation.peer):
            return None
        return Watched(self, operation, channel, new)

    def refused(self, name: str, peer: Credentials, right: str) -> None:
        """Log that access security refused a request for lack of a right."""
        _log.warning(
            "%s (%s from %s) was refused %s access to %s",
            peer.account or "anonymous", peer.method, peer.peer, right, name,
            extra={"event": "access-refused", "pv": name, "right": right, **peer.facts()},
        )  # fmt: skip

    def write(self, operation: Operation, channel: DBChannel, what: dict[str, Any]) -> None:
        """Write one record.

        Raises:
            OperationError: the record announces a put, and the file cannot be written.

        """
        peer = operation.peer
        self._write(
            {
                "pv": operation.name,
                "record": channel.record,
                "field": channel.field,
                "account": peer.account,
                "method": peer.method,
                "authority": peer.authority.split("\n")[0],
                "organization": peer.organization,
                "host": peer.peer,
                "protocol": "tls" if peer.is_tls else "tcp",
                **what,
            },
            peer.facts(),
        )

    def trapped(self, put: TrappedPut) -> None:
        """Log a put over Channel Access; its client only claims its identity.

        Raises:
            OperationError: the file cannot be written.

        """
        self._write(
            {
                "pv": put.pv,
                "record": put.record,
                "field": put.field,
                "account": put.account,
                "method": "ca",
                "authority": "",
                "organization": "",
                "host": put.host,
                "protocol": "ca",
                "event": "put",
                "old": shown(put.old),
                "new": shown(put.new),
                "result": "accepted",
            },
            {"peer": put.host},
        )
        self.ca_put_log.note(
            NotedPut(put.pv, f"{put.record}.{put.field}", put.account, "ca", put.host, put.old, put.new)
        )

    def _write(self, record: dict[str, Any], facts: dict[str, str]) -> None:
        """Write to log and file: ``facts`` are the client's identity as in all log records, ``record`` is the line of the file."""
        record = total(record)
        what = (
            "process" if record["event"] == "process" else f"put {record.get('old')!r} -> {record['new']!r}"
        )
        failed = record["result"] == "failed"
        _log.log(
            logging.WARNING if failed else logging.INFO,
            "%s (%s from %s) %s.%s: %s%s",
            record["account"] or "anonymous", record["method"], record["host"], record["record"], record["field"],
            what, f" failed: {record['error']}" if failed else "",
            extra={**facts, **record},
        )  # fmt: skip
        self._records.write(record)

    def close(self) -> None:
        """Close the file."""
        self.ca_put_log.close()
        self._records.close()

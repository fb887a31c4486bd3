"""The log of puts through the gateway: who writes which value, from where.

Access security says which puts are logged (TRAPWRITE). Each becomes a record of the logger ``appliance.gateway.putlog``, with
the text that p4p's gateway writes. If a file is configured, it is also a line of JSON there that seals the lines before it.

A record is written *before* the put is sent to the server, so a client cannot avoid the log by closing its connection. A
put that fails afterwards gets a second record. The put waits while a thread writes the file (`PutWriter`).
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable
from typing import Any, Final

from appliance.daemon.audit import shown, total
from appliance.errors import OperationError
from appliance.gateway.put_writer import PutWriter
from appliance.pva.credentials import Credentials
from appliance.pvdata.bitset import iter_bits
from appliance.pvdata.render import render_leaf
from appliance.pvdata.types import StructType
from appliance.pvdata.value import Value
from appliance.server.operation import Operation

__all__ = ["PutLog", "Watched"]

_log: Final = logging.getLogger("appliance.gateway.putlog")
_refusals: Final = logging.getLogger("appliance.gateway.access")
_FIELDS: Final = 16
"""The most fields of one put in a record."""
_ELEMENTS: Final = 10
"""Elements of an array in the text, as in p4p's gateway."""
_TEXT: Final = 512
_MAX_WHY: Final = 500
_TOLD_FOR_S: Final = 60.0
_MAX_TOLD: Final = 10_000
_MAIN: Final = ("value", "value.index")
"""The field that a put usually writes: of a number or text, and of an enumeration."""


class Watched:
    """One put that is logged."""

    __slots__ = ("_log", "_record", "_text", "on_logged", "waits")

    def __init__(self, log: PutLog, record: dict[str, Any], text: str) -> None:
        self._log = log
        self._record = record
        self._text = text
        self.waits = False
        """Whether the put must wait: its record is not in the file yet."""
        self.on_logged: Callable[[Watched, str], None] | None = None
        """Called when the put must wait no longer, with why it must not be sent, or ""."""

    def logged(self, why: str) -> None:
        """Go on with the put, or refuse it if there is a reason."""
        self.waits = False
        if self.on_logged is not None:
            self.on_logged(self, why)

    def failed(self, why: str) -> None:
        """Log that the put was not done, or that nobody knows."""
        self._log.write({**self._record, "result": "failed", "error": why}, f"{self._text} failed: {why}")


class _Told:
    """A refusal that was logged."""

    __slots__ = ("at", "more")

    def __init__(self, at: float) -> None:
        self.at = at
        self.more = 0
        """How often it happened since then."""


class PutLog:
    """Logs the puts that the access security of one server side selects, and the requests that it refuses.

    Args:
        side: The server side's name.
        file: Path of the sealed log; empty for none.
        required: Refuse puts that cannot be written to the file.

    Raises:
        ConfigurationError: The file cannot be opened.
    """

    def __init__(self, side: str, file: str = "", *, required: bool = True) -> None:
        self._side = side
        self._writer = PutWriter(file, required=required) if file else None
        self._told: dict[tuple[str, ...], _Told] = {}
        """Refusals that were logged lately."""

    @property
    def trouble(self) -> str:
        """Why records are not written to the file at present; empty if they are."""
        return "" if self._writer is None else self._writer.trouble

    def begin(self, operation: Operation, real: str, value: Value | None) -> Watched:
        """Log a put before it is sent to the server. If `Watched.waits` is true, it must not be sent yet.

        Args:
            operation: The client's request.
            real: The PV's name at its server.
            value: What is written; None for PROCESS.

        Returns:
            The put, to be told if it fails.

        Raises:
            OperationError: The log cannot be written; the put must not be sent.
        """
        peer = operation.peer
        record = {
            "pv": operation.name,
            "real": real,
            "gateway": self._side,
            "account": peer.account,
            "method": peer.method,
            "authority": peer.authority.split("\n")[0],
            "organization": peer.organization,
            "host": peer.peer,
            "protocol": "tls" if peer.is_tls else "tcp",
            **({"event": "process"} if value is None else {"event": "put", "new": _new(value)}),
        }
        text = f"{peer.method}/{peer.account}@{peer.peer} {operation.name} as {real}{_arrow(value)}"
        watched = Watched(self, record, text)
        accepted = self.tell({**record, "result": "accepted"}, text, peer)
        if self._writer is not None:
            try:
                self._writer.begin(accepted, len(text), watched.logged)
            except OperationError as error:
                self.tell({**record, "result": "failed", "error": str(error)}, f"{text} failed: {error}")
                raise
            watched.waits = True
        return watched

    def write(self, record: dict[str, Any], text: str) -> None:
        """Write a record to the log and to the file."""
        record = self.tell(record, text)
        if self._writer is not None:
            self._writer.add(record, len(text))

    def tell(self, record: dict[str, Any], text: str, peer: Credentials | None = None) -> dict[str, Any]:
        """Write a record to the daemon's log, and return it in a form that every file can hold."""
        record = total(record)
        now_ns = time.time_ns()
        stamp = f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(now_ns // 10**9))}.{now_ns % 10**9:09d}"
        facts = {} if peer is None else peer.facts()
        level = logging.WARNING if record["result"] == "failed" else logging.INFO
        _log.log(level, "%s %s", stamp, text, extra={**facts, **record})
        return record

    def refused(self, name: str, peer: Credentials, right: str, why: Callable[[], str]) -> None:
        """Log that access security refused a request for lack of a right; not with the puts, which sites keep apart.

        The same refusal is logged once a minute, with the number of times: a client that asks again and again must not fill the
        disk, nor hold up the others while that is written.

        Args:
            name: The PV's name as the client has it.
            peer: The client.
            right: ``read``, ``write``, ``rpc`` or ``uncached``.
            why: Returns the reason; it is called only for what is logged.
        """
        key = (name, peer.account, peer.method, peer.peer.rpartition(":")[0], right)
        now = time.monotonic()
        before = self._told.get(key)
        if before is not None and now - before.at < _TOLD_FOR_S:
            before.more += 1
            return
        if before is None and len(self._told) >= _MAX_TOLD:
            del self._told[next(iter(self._told))]
        self._told[key] = _Told(now)
        more = (
            f", and {before.more} more times since the last such line"
            if before is not None and before.more
            else ""
        )
        _refusals.warning(
            "%s (%s from %s) was refused %s access to %s%s: %s",
            peer.account or "anonymous", peer.method, peer.peer, right, name, more, why()[:_MAX_WHY],
            extra={"event": "access-refused", "pv": name, "right": right, "gateway": self._side, **peer.facts()},
        )  # fmt: skip

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()


def _written(value: Value) -> list[int]:
    """Return the numbers of the first fields that a put writes."""
    kind = value.type
    marked = kind.leaf_mask if value.changed & 1 else value.changed & kind.leaf_mask
    return list(itertools.islice(iter_bits(marked), _FIELDS + 1))


def _new(value: Value) -> Any:
    """Return what a put writes: one value if it writes the main field only, else values by the names of the fields."""
    kind = value.type
    fields = _written(value)
    if len(fields) == 1 and kind.paths[fields[0]] in _MAIN:
        return shown(value.store[fields[0]])
    found = {kind.paths[field]: shown(value.store[field]) for field in fields[:_FIELDS]}
    return {**found, "...": "more fields"} if len(fields) > _FIELDS else found


def _arrow(value: Value | None) -> str:
    """Return the value in the form of p4p's gateway."""
    if value is None or not isinstance(value.type, StructType):
        return ""
    kind = value.type
    for field in _written(value):
        if kind.paths[field] in _MAIN:
            content = value.store[field]
            if isinstance(content, str):
                content = content[:_TEXT]
            text = render_leaf(kind.leaf_types[field], content, _ELEMENTS)
            return f" -> {text[:_TEXT]}" if text else ""
    return ""

"""The put log in the form of the module caPutLog: lines of text or of JSON, to log servers and to a file, bursts combined.

A put arrives here before it is done. Its line is written when the next put to another field comes, or when the burst's time is over; a put
that has failed meanwhile has no line. This log has no seals, and log servers may lose lines: ``put_log`` is the one that counts.
"""

from __future__ import annotations

import collections
import json
import logging
import math
import queue
import socket
import threading
import time
from datetime import datetime
from typing import Any, Final

import numpy as np

from appliance.errors import ApplianceError, ConfigurationError

__all__ = ["CaPutLog", "NotedPut", "parse_servers"]

_log: Final = logging.getLogger(__name__)

NONE, ON_CHANGE, ALL, ALL_NO_FILTER = -1, 0, 1, 2
_MODES: Final = {
    NONE: "disabled",
    ON_CHANGE: "default (on change, squash bursts)",
    ALL: "all (same value too, squash bursts)",
    ALL_NO_FILTER: "no filter (every single put)",
}
_PORT: Final = 7011
_QUEUE: Final = 1000
_TEXT: Final = 255
"""Characters of a line of text, its end included."""
_OCTETS: Final = 400
"""Octets of a value in JSON."""
_PAUSE_S: Final = 5.0
_BURST_S: Final = 5.0


class NotedPut:
    """One put."""

    __slots__ = ("account", "failed", "host", "new", "old", "place", "pv", "when")

    def __init__(self, pv: str, place: str, account: str, host: str, old: Any, new: Any) -> None:
        self.when = time.time()
        self.pv = pv
        self.place = place
        """The field: puts to one field are one burst."""
        self.account = account
        # Without the port of the client, which caPutLog does not have.
        self.host = host.rpartition(":")[0] or host
        self.old = old
        self.new = new
        self.failed = False


class _Burst:
    """Puts to one field that follow each other; the last one may still fail."""

    __slots__ = ("_pending", "count", "greatest", "last", "least", "old", "place")

    def __init__(self, put: NotedPut) -> None:
        self.place = put.place
        self.last: NotedPut | None = None
        self.old = self.least = self.greatest = None
        self.count = 0
        self._pending: NotedPut | None = put

    def add(self, put: NotedPut) -> None:
        """Add the next put; the one before it was done, or has failed, by now."""
        self.settle()
        self._pending = put

    def settle(self) -> None:
        """Count the last put, unless it has failed."""
        put, self._pending = self._pending, None
        if put is None or put.failed:
            return
        if self.last is None:
            self.old, self.least, self.greatest = put.old, put.new, put.new
        elif _is_number(put.new) and _is_number(self.least):
            self.count += 1
            self.least, self.greatest = min(self.least, put.new), max(self.greatest, put.new)
        self.last = put


def parse_servers(text: str) -> list[tuple[str, int]]:
    """Read ``host:port host ...``; the port is 7011 where none is given.

    Raises:
        ConfigurationError: A part is no host with a port.
    """
    found = []
    for word in text.split():
        host, _, port = word.rpartition(":") if ":" in word else (word, "", str(_PORT))
        if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise ConfigurationError(f"{word!r} is no log server: write HOST or HOST:PORT")
        found.append((host, int(port)))
    return found


class _Server(threading.Thread):
    """One log server; lines wait for it while it does not answer, and the oldest give way."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(name="caPutLog client", daemon=True)
        self.address = host, port
        self.is_connected = False
        self.lost = 0
        self._lines: collections.deque[bytes] = collections.deque()
        self._changed = threading.Condition()
        self._is_ending = False

    def send(self, line: bytes) -> None:
        with self._changed:
            if len(self._lines) >= _QUEUE:
                self._lines.popleft()
                self.lost += 1
            self._lines.append(line)
            self._changed.notify()

    def end(self) -> None:
        with self._changed:
            self._is_ending = True
            self._changed.notify()

    def run(self) -> None:
        told = False
        while not self._is_ending:
            try:
                with socket.create_connection(self.address, timeout=_PAUSE_S) as sock:
                    self.is_connected, told = True, False
                    self._serve(sock)
            except OSError as error:
                if not told:
                    _log.warning("caPutLog: %s:%d: %s", *self.address, error.strerror or error)
                told = True
            self.is_connected = False
            with self._changed:
                if not self._is_ending:
                    self._changed.wait(_PAUSE_S)

    def _serve(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        while True:
            with self._changed:
                while not self._lines and not self._is_ending:
                    self._changed.wait()
                if not self._lines:
                    return
                line = self._lines[0]
            # A server that closed the connection is noticed before a line is given to it and lost.
            sock.settimeout(0)
            try:
                if not sock.recv(4096):
                    raise ConnectionResetError("the log server closed the connection")
            except BlockingIOError:
                pass
            sock.settimeout(_PAUSE_S)
            sock.sendall(line)
            with self._changed:
                if self._lines and self._lines[0] is line:
                    self._lines.popleft()


class CaPutLog:
    """The log; it does nothing before :meth:`add_servers` or :meth:`write_file`. All methods can be called in any thread."""

    def __init__(self) -> None:
        self.is_json = False
        self.mode = ON_CHANGE
        self.burst_s = _BURST_S
        self.time_format = "%d-%b-%y %H:%M:%S"
        self.metadata: dict[str, str] = {}
        self.total = 0
        self.overflows = 0
        self._servers: list[_Server] = []
        self._file: Any = None
        self._path = ""
        self._puts: queue.Queue[NotedPut | None] = queue.Queue(_QUEUE)
        self._worker: threading.Thread | None = None

    @property
    def is_running(self) -> bool:
        """Whether lines go anywhere."""
        return self._worker is not None

    # -- settings ------------------------------------------------------------------------------------

    def configure(self, mode: int, burst_s: float = 0.0) -> None:
        """Set what is logged (-1 nothing, 0 changes, 1 all with bursts combined, 2 all) and the time of a burst; 0: the default, 5 s.

        Raises:
            ApplianceError: There is no such mode.
        """
        if mode not in _MODES:
            raise ApplianceError(f"{mode} is no configuration of caPutLog: -1, 0, 1 or 2")
        self.mode = mode
        self.burst_s = burst_s if burst_s > 0 and math.isfinite(burst_s) else _BURST_S

    def add_servers(self, servers: list[tuple[str, int]]) -> None:
        """Send lines to these servers too."""
        for host, port in servers:
            if (host, port) not in [each.address for each in self._servers]:
                server = _Server(host, port)
                self._servers.append(server)
                server.start()
        self._start()

    def write_file(self, path: str) -> None:
        """Append lines to a file too.

        Raises:
            ConfigurationError: It cannot be opened.
        """
        try:
            self._file = open(path, "ab", buffering=0)  # noqa: PTH123, SIM115 - open until close()
        except OSError as error:
            raise ConfigurationError(
                f"cannot be written: {error.strerror or error}", file=path, key="ca_put_log.file"
            ) from None
        self._path = path
        self._start()

    def _start(self) -> None:
        if self._worker is None:
            self._worker = threading.Thread(target=self._work, name="caPutLog", daemon=True)
            self._worker.start()

    def close(self) -> None:
        """Write what waits, then end."""
        if self._worker is not None:
            self._puts.put(None)
            self._worker.join(_PAUSE_S)
            self._worker = None
        for server in self._servers:
            server.end()
        for server in self._servers:
            server.join(_PAUSE_S / 5)
        if self._file is not None:
            self._file.close()

    def lines(self) -> list[str]:
        """Return a report, as caPutLogShow prints it."""
        found = [f"caPutLog mode: {self.mode} = {_MODES[self.mode]}", f"caPutLog Total Count: {self.total}"]
        for server in self._servers:
            state = "connected" if server.is_connected else "disconnected"
            lost = f", {server.lost} lines lost" if server.lost else ""
            found.append(f"log client: {server.address[0]}:{server.address[1]} {state}{lost}")
        if self._path:
            found.append(f"file: {self._path}")
        return found

    # -- puts ----------------------------------------------------------------------------------------

    def note(self, put: NotedPut) -> None:
        """Log a put; never waits."""
        if self._worker is None or self.mode == NONE:
            return
        try:
            self._puts.put_nowait(put)
        except queue.Full:
            self.overflows += 1
            if self.overflows == 1:
                _log.warning("caPutLog: puts come faster than they are logged: some have no line")

    def _work(self) -> None:
        burst: _Burst | None = None
        while True:
            try:
                put = self._puts.get(timeout=self.burst_s if burst is not None else None)
            except queue.Empty:
                if burst is not None:
                    self._write(burst)
                burst = None
                continue
            if burst is not None and (put is None or put.place != burst.place or self.mode == ALL_NO_FILTER):
                self._write(burst)
                burst = None
            if put is None:
                return
            self.total += 1
            if burst is None:
                burst = _Burst(put)
            else:
                burst.add(put)

    def _write(self, burst: _Burst) -> None:
        burst.settle()
        put = burst.last
        if put is None or (self.mode == ON_CHANGE and not burst.count and _same(put.old, put.new)):
            return
        try:
            text = self._json(burst, put) if self.is_json else self._text(burst, put)
            line = text.encode("utf-8", "replace")
            for server in self._servers:
                server.send(line)
            if self._file is not None:
                self._file.write(line)
        except OSError as error:
            _log.error("caPutLog: %s: %s", self._path, error.strerror or error)
        except Exception:  # noqa: BLE001 - the next put must still be logged
            _log.exception("caPutLog: a put has no line")

    def _text(self, burst: _Burst, put: NotedPut) -> str:
        when = datetime.fromtimestamp(put.when).strftime(self.time_format)  # noqa: DTZ006 - local time, as caPutLog
        line = f"{when} {_word(put.host)} {_word(put.account)} {_word(put.pv)} new={_value(put.new)} old={_value(burst.old)}"
        if burst.count:
            line += f" min={_value(burst.least)} max={_value(burst.greatest)}"
        return line[: _TEXT - 1] + "\n"

    def _json(self, burst: _Burst, put: NotedPut) -> str:
        when = datetime.fromtimestamp(put.when)  # noqa: DTZ006
        record: dict[str, Any] = {
            "date": when.strftime("%Y-%m-%d"),
            "time": when.strftime("%H:%M:%S.") + f"{when.microsecond // 1000:03d}",
            "host": put.host,
            "user": put.account,
            **self.metadata,
            "pv": put.pv,
        }
        for name, value in (("new", put.new), ("old", burst.old)):
            record[name], size = _json_value(value)
            if size is not None:
                record[f"{name}-size"] = size
        if burst.count:
            record["min"], record["max"] = _json_value(burst.least)[0], _json_value(burst.greatest)[0]
            record["burst"] = burst.count
        return json.dumps(record, separators=(",", ":"), ensure_ascii=False) + "\n"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number)


def _same(old: Any, new: Any) -> bool:
    return (
        bool(np.array_equal(old, new))
        if isinstance(new, np.ndarray) or isinstance(old, np.ndarray)
        else old == new
    )


def _word(text: str) -> str:
    """Return text without what would divide the line."""
    return "".join(char if char.isprintable() and not char.isspace() else "_" for char in text) or "_"


def _value(value: Any) -> str:
    """Write a value as caPutLog's text; of an array its first element."""
    if isinstance(value, np.ndarray | list | tuple):
        value = value[0] if len(value) else ""
    if isinstance(value, bool | np.bool_):
        return str(int(value))
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, float | np.floating):
        return f"{float(value):g}"
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return '"' + json.dumps(text, ensure_ascii=True)[1:-1] + '"'


def _json_value(value: Any) -> tuple[Any, int | None]:
    """Return a value for JSON, and the size of an array."""
    if isinstance(value, np.ndarray | list | tuple):
        width = value.itemsize if isinstance(value, np.ndarray) else 40
        return [_json_value(each)[0] for each in value[: max(_OCTETS // max(width, 1), 1)]], len(value)
    if isinstance(value, bool | np.bool_ | int | np.integer):
        return int(value), None
    if isinstance(value, float | np.floating):
        number = float(value)
        if math.isnan(number):
            return "Nan", None
        return (number if math.isfinite(number) else "Infinity" if number > 0 else "-Infinity"), None
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return text.encode("utf-8", "replace").decode()[:_OCTETS], None

"""The put log in the form of the module caPutLog: lines of text or of JSON, to log servers and to a file, bursts combined.

A put arrives here before it is done. Its line is written when the next put to another field comes, or when the burst's time is over; a put
that has failed meanwhile has no line. This log has no seals, and log servers may lose lines: ``put_log`` is the one that counts.
"""

from __future__ import annotations

import collections
import contextlib
import json
import logging
import math
import os
import queue
import re
import socket
import stat
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any, Final

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
"""Puts that wait to become lines, and lines that wait for one server."""
_WAITING: Final = 64 << 20
"""Octets of values that wait to become lines, at most: a disk may stand still while large arrays are put."""
_PAUSE_S: Final = 5.0
_BURST_S: Final = 5.0
_TIME_FORMAT: Final = "%d-%b-%y %H:%M:%S"
_LONGEST_BURST_S: Final = 60.0
"""A burst that goes on has a line after this time, or after the burst's time if that is longer: who reads the log must see it."""
_END_S: Final = 5.0
"""Time for what waits when the log is closed; servers get a part of it."""
_NAME: Final = 128
"""Characters of a name in a line, so that no client can push the value out of it."""
_TEXT: Final = 200
"""Characters of a text, escaped, in a line of text."""
_OCTETS: Final = 400
"""Octets of a value in JSON."""
_OWN: Final = frozenset(
    (
        "date",
        "time",
        "host",
        "user",
        "method",
        "pv",
        "new",
        "new-size",
        "old",
        "old-size",
        "min",
        "max",
        "burst",
    )
)
_FRACTION: Final = re.compile(r"%0?([1-9]?)f")
_ESCAPES: Final = {7: "a", 8: "b", 9: "t", 10: "n", 11: "v", 12: "f", 13: "r", 34: '"', 39: "'", 92: "\\"}
_UNTOLD: Final = "anonymous"


class NotedPut:
    """One put.

    Args:
        pv: The name of the PV, as the client has it.
        place: Record and field; puts to one field are one burst.
        account: The client's name; empty if it has none.
        method: How it has proved that, or that it only claims it.
        host: Its address, with or without port.
        old: The value before.
        new: The value.
    """

    __slots__ = ("account", "at", "failed", "host", "method", "new", "octets", "old", "place", "pv", "when")

    def __init__(self, pv: str, place: str, account: str, method: str, host: str, old: Any, new: Any) -> None:
        self.when = time.time()
        self.at = time.monotonic()
        """When, by a clock that nobody sets."""
        self.pv = pv if len(pv) <= _NAME else place
        self.place = place
        self.account = account[:_NAME]
        self.method = method
        # Without the port of the client, which caPutLog does not have.
        self.host = _without_port(host)[:_NAME]
        self.old = old
        self.new = new
        self.failed = False
        self.octets = sum(_octets_of(value) for value in (old, new))


def _octets_of(value: Any) -> int:
    """Return about how much memory a value takes."""
    size = getattr(value, "nbytes", None)
    if isinstance(size, int):
        return size
    if isinstance(value, dict):
        return 64 + sum(64 + _octets_of(each) for each in value.values())
    return len(value) * 8 if isinstance(value, (str, bytes, list, tuple)) else 64


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host if host.count(":") > 1 else host.partition(":")[0]


class _Burst:
    """Puts to one field that follow each other; the last one may still fail."""

    __slots__ = ("_pending", "begin", "changes", "count", "greatest", "last", "least", "old", "place", "who")

    def __init__(self, put: NotedPut) -> None:
        self.place = put.place
        self.begin = put.at
        self.who = put.account, put.method, put.host
        self.last: NotedPut | None = None
        self.old = self.least = self.greatest = None
        self.count = 0
        """Puts of numbers after the first one."""
        self.changes = False
        """Whether a put brought another value."""
        self._pending: NotedPut | None = put

    def takes(self, put: NotedPut, burst_s: float) -> bool:
        """Whether a put belongs to it: nobody's puts are told as another one's, and no burst goes on for ever."""
        return (
            put.place == self.place
            and (put.account, put.method, put.host) == self.who
            and put.at - self.begin < max(_LONGEST_BURST_S, burst_s)
        )

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
        self.changes = self.changes or not _same(put.old, put.new)
        self.last = put


def parse_servers(text: str) -> list[tuple[str, int]]:
    """Read ``host:port host ...``; the port is 7011 where none is given.

    Raises:
        ConfigurationError: A part is no host with a port.
    """
    found = []
    for word in text.split():
        host, _, port = word.rpartition(":") if ":" in word else (word, "", str(_PORT))
        host = host.strip("[]")
        if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise ConfigurationError(f"{word!r} is no log server: write HOST or HOST:PORT")
        try:
            host.encode("idna")
        except UnicodeError:
            raise ConfigurationError(f"{word!r} is no log server: {host!r} is no name of a host") from None
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
                    if told:
                        _log.info("caPutLog: %s:%d: connected", *self.address)
                    self.is_connected, told = True, False
                    self._serve(sock)
            except (OSError, ValueError) as error:
                if not told:
                    _log.warning(
                        "caPutLog: %s:%d: %s; its lines wait, %d at most",
                        *self.address, getattr(error, "strerror", None) or error, _QUEUE,
                    )  # fmt: skip
                told = True
            self.is_connected = False
            with self._changed:
                # New lines must not make the pause shorter: the server would get an attempt for each of them.
                self._changed.wait_for(lambda: self._is_ending, _PAUSE_S)

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


class _File:
    """A file to which lines are appended; one that was moved away (log rotation) is made anew."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._is_torn = False
        self._fd = self._open()

    def _open(self) -> int:
        # A FIFO without a reader would hold up the IOC for ever.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        fd = os.open(self.path, flags, 0o600)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(0, "it is no regular file")
        return fd

    def write(self, line: bytes) -> None:
        """Append a line.

        Raises:
            OSError: It is not there, or not all of it.
        """
        try:
            is_same = os.path.samestat(Path(self.path).stat(), os.fstat(self._fd))
        except FileNotFoundError:
            is_same = False
        if not is_same:
            new = self._open()
            os.close(self._fd)
            self._fd = new
        # Half a line must not become the beginning of the next one.
        data = b"\n" + line if self._is_torn else line
        written = os.write(self._fd, data)
        self._is_torn = written != len(data)
        if self._is_torn:
            raise OSError(0, "the line does not fit on the disk")

    def close(self) -> None:
        """Close it. A thread that the disk holds up in :meth:`write` must not go on in another file with that number."""
        fd, self._fd = self._fd, -1
        os.close(fd)


class CaPutLog:
    """The log; it does nothing before :meth:`add_servers` or :meth:`write_file`. All methods can be called in any thread."""

    def __init__(self) -> None:
        self.is_json = False
        self.mode = ON_CHANGE
        self.burst_s = _BURST_S
        self.time_format = _TIME_FORMAT
        self.prefix = ""
        """Begins each line for a server."""
        self.metadata: dict[str, str] = {}
        self.total = 0
        self.overflows = 0
        self._servers: list[_Server] = []
        self._file: _File | None = None
        self._file_failed = False
        self._puts: queue.Queue[NotedPut | None] = queue.Queue(_QUEUE)
        self._waiting = 0
        """Octets of the values that wait."""
        self._counting = threading.Lock()
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

    def without_effect(self) -> list[str]:
        """Return what is set and has no effect, each with the reason."""
        found = []
        if self.mode == NONE:
            found.append("nothing is logged: the configuration is -1, and caPutLogReconf changes it")
        if self.is_json and self.time_format != _TIME_FORMAT:
            found.append("the form of date and time has no effect: lines of JSON have their own")
        if self.metadata and not self.is_json:
            found.append(f"the property {next(iter(self.metadata))!r} has no effect: lines of text have none")
        return found

    def add_metadata(self, name: str, value: str) -> None:
        """Add a property to each line of JSON.

        Raises:
            ApplianceError: The lines have a property of that name.
        """
        if name in _OWN:
            raise ApplianceError(f"{name!r} is a property that each line has: choose another name")
        self.metadata = {**self.metadata, name: value}

    def add_servers(self, servers: list[tuple[str, int]]) -> None:
        """Send lines to these servers too."""
        for host, port in servers:
            if (host, port) not in [each.address for each in self._servers]:
                server = _Server(host, port)
                self._servers = [*self._servers, server]
                server.start()
        self._start()

    def write_file(self, path: str) -> None:
        """Append lines to a file too.

        Raises:
            ConfigurationError: It cannot be opened.
        """
        try:
            self._file = _File(path)
        except OSError as error:
            raise ConfigurationError(
                f"cannot be written: {error.strerror or error}", file=path, key="ca_put_log.file"
            ) from None
        self._start()

    def _start(self) -> None:
        if self._worker is None:
            self._worker = threading.Thread(target=self._work, name="caPutLog", daemon=True)
            self._worker.start()

    def close(self) -> None:
        """Write what waits, then end."""
        if self._worker is not None:
            with contextlib.suppress(queue.Full):
                self._puts.put(None, timeout=_END_S)
            self._worker.join(_END_S)
            self._worker = None
        for server in self._servers:
            server.end()
        for server in self._servers:
            server.join(_END_S / 5)
        if self._file is not None:
            self._file.close()
            self._file = None

    def lines(self) -> list[str]:
        """Return a report, as caPutLogShow prints it."""
        found = [f"caPutLog mode: {self.mode} = {_MODES[self.mode]}", f"caPutLog Total Count: {self.total}"]
        if self.overflows:
            found.append(f"caPutLog puts without a line: {self.overflows}")
        for server in self._servers:
            state = "connected" if server.is_connected else "disconnected"
            lost = f", {server.lost} lines lost" if server.lost else ""
            found.append(f"log client: {server.address[0]}:{server.address[1]} {state}{lost}")
        if self._file is not None:
            found.append(f"file: {self._file.path}")
        return found

    # -- puts ----------------------------------------------------------------------------------------

    def note(self, put: NotedPut) -> None:
        """Log a put; never waits."""
        if self._worker is None or self.mode == NONE:
            return
        if self._waiting + put.octets <= _WAITING:
            with contextlib.suppress(queue.Full):
                # Counted before: the worker may have it, and count it off, at once.
                with self._counting:
                    self._waiting += put.octets
                self._puts.put_nowait(put)
                return
            with self._counting:
                self._waiting -= put.octets
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
            if burst is not None and (
                put is None or not burst.takes(put, self.burst_s) or self.mode == ALL_NO_FILTER
            ):
                self._write(burst)
                burst = None
            if put is None:
                return
            with self._counting:
                self._waiting -= put.octets
            self.total += 1
            if burst is None:
                burst = _Burst(put)
            else:
                try:
                    burst.add(put)
                except Exception:  # noqa: BLE001 - the next put must still be logged
                    _log.exception("caPutLog: a put has no line")

    def _write(self, burst: _Burst) -> None:
        try:
            burst.settle()
            put = burst.last
            if put is None or (self.mode == ON_CHANGE and not burst.changes):
                return
            line = (self._json(burst, put) if self.is_json else self._text(burst, put)).encode() + b"\n"
            for server in self._servers:
                server.send(self.prefix.encode() + line)
            if self._file is not None:
                self._file.write(line)
                self._file_failed = False
        except OSError as error:
            if not self._file_failed and self._file is not None:
                _log.error(
                    "caPutLog: %s: %s; puts have no line there", self._file.path, error.strerror or error
                )
            self._file_failed = True
        except Exception:  # noqa: BLE001 - the next put must still be logged
            _log.exception("caPutLog: a put has no line")

    def _text(self, burst: _Burst, put: NotedPut) -> str:
        nanoseconds = f"{put.when % 1:.9f}"[2:]
        form = _FRACTION.sub(lambda match: nanoseconds[: int(match[1] or 9)], self.time_format)
        when = datetime.fromtimestamp(put.when).strftime(form)  # noqa: DTZ006 - local time, as caPutLog
        names = " ".join(_word(each) for each in (put.host, put.account or _UNTOLD, put.pv))
        line = f"{when} {names} new={_value(put.new)} old={_value(burst.old)}"
        if burst.count:
            line += f" min={_value(burst.least)} max={_value(burst.greatest)}"
        return line

    def _json(self, burst: _Burst, put: NotedPut) -> str:
        when = datetime.fromtimestamp(put.when)  # noqa: DTZ006
        record: dict[str, Any] = {
            "date": when.strftime("%Y-%m-%d"),
            "time": when.strftime("%H:%M:%S.") + f"{when.microsecond // 1000:03d}",
            "host": put.host,
            "user": put.account,
            "method": put.method,
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
        text = json.dumps(record, separators=(",", ":"), ensure_ascii=False)
        # JSON itself escapes only some of the characters that divide lines or change what a terminal shows.
        return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _same(old: Any, new: Any) -> bool:
    """Whether a put brings no change; NaN is no change of NaN."""
    if hasattr(old, "dtype") or hasattr(new, "dtype"):
        import numpy as np

        one, other = np.asarray(old), np.asarray(new)
        same = (one == other) | ((one != one) & (other != other)) if one.shape == other.shape else False  # noqa: PLR0124
        return bool(np.all(same))
    if isinstance(old, dict) and isinstance(new, dict):
        return old.keys() == new.keys() and all(_same(old[name], new[name]) for name in new)
    if isinstance(old, list | tuple) and isinstance(new, list | tuple):
        return len(old) == len(new) and all(map(_same, old, new))
    return bool(old == new) or (old != old and new != new)  # noqa: PLR0124


def _escaped(text: str, most: int, *, also: str = "") -> str:
    """Escape as EPICS Base does (epicsStrnEscapedFromRaw), up to a length; printable text in UTF-8 stays."""
    found = ""
    for char in text:
        if ord(char) in _ESCAPES:
            part = "\\" + _ESCAPES[ord(char)]
        elif char.isprintable() and char not in also:
            part = char
        else:
            is_octet = "\udc80" <= char <= "\udcff"
            octets = char.encode("utf-8", "surrogateescape" if is_octet else "surrogatepass")
            part = "".join(f"\\x{octet:02x}" for octet in octets)
        if len(found) + len(part) > most:
            break
        found += part
    return found


def _word(text: str) -> str:
    """Return a name without what would divide the line."""
    return _escaped(text, _NAME, also=" ")


def _value(value: Any) -> str:
    """Write a value as caPutLog's text; of an array its first element."""
    value = _plain(value)
    if isinstance(value, list):
        value = value[0] if value else ""
    if isinstance(value, bool | int):
        return str(int(value))
    if isinstance(value, float):
        return f"{value:g}"
    return f'"{_escaped(str(value), _TEXT)}"'


def _plain(value: Any) -> Any:
    """Return a value without numpy; of an array, as a list, what fits into a line of JSON."""
    if hasattr(value, "dtype"):
        return value[: max(_OCTETS // value.itemsize, 1)].tolist() if value.ndim else value.item()
    if isinstance(value, list | tuple):
        return list(value[: _OCTETS // 40])
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _json_value(value: Any) -> tuple[Any, int | None]:
    """Return a value for JSON, and the size of an array."""
    if getattr(value, "dtype", None) == "i1" and value.ndim:
        # CHAR: in caPutLog's JSON it is text.
        octets = value[:_OCTETS].tobytes().partition(b"\0")[0]
        return [octets.decode("utf-8", "surrogateescape")], len(value)
    plain = _plain(value)
    if isinstance(plain, list):
        return [_json_value(each)[0] for each in plain], len(value)
    if isinstance(plain, bool | int):
        return int(plain), None
    if isinstance(plain, float):
        if math.isnan(plain):
            return "Nan", None
        return (plain if math.isfinite(plain) else "Infinity" if plain > 0 else "-Infinity"), None
    return str(plain)[:_OCTETS], None

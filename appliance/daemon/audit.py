"""An append-only log in which every record seals those before it.

Each record is linked by ``SHA-256(previous hash || canonical JSON of the record)``. Changing, removing or reordering
records breaks the chain from there on. Cutting off the end does not show in the file: keep the last hash somewhere else
(`AuditLog.head`), and give it to `verify`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import math
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple, Self

from appliance.errors import ApplianceError, ConfigurationError, OperationError

__all__ = [
    "GENESIS",
    "AuditFinding",
    "AuditLog",
    "canonical",
    "chain",
    "sealed_line",
    "shown",
    "total",
    "verify",
    "verify_file",
]

_log: Final = logging.getLogger(__name__)

GENESIS: Final = "0" * 64
"""The hash before the first record."""

_HASH: Final = "hash"
_LIMIT: Final = 1 << 20
_DEPTH: Final = 16
_TEXT: Final = 256
_ELEMENTS: Final = 16


def total(value: Any, depth: int = _DEPTH) -> Any:
    """Give any value a JSON form, so that a peer's data never prevents a record.

    Args:
        value: Anything. What JSON has is unchanged.
        depth: Levels of lists and mappings that are kept; below them a value is written as text.

    Returns:
        The value itself, or text for what JSON does not have: infinity, NaN, bytes, other types. Text that is not UTF-8
        becomes ``{"octets": hex, "text": escaped}``.
    """
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        if value.isascii():
            return value
        try:
            value.encode()
        except UnicodeEncodeError:
            return {
                "octets": value.encode(
                    "utf-8", "surrogateescape" if _is_escaped(value) else "surrogatepass"
                ).hex(),
                "text": value.encode("utf-8", "backslashreplace").decode(),
            }
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if depth > 0 and isinstance(value, Mapping):
        return {_key(key): total(item, depth - 1) for key, item in value.items()}
    if depth > 0 and isinstance(value, (list, tuple, set, frozenset)):
        return [total(item, depth - 1) for item in value]
    return total(repr(value))


def shown(value: Any) -> Any:
    """Return a value for the log: numbers unchanged, long text and arrays cut, with their size. It never fails."""
    if isinstance(value, str):
        return total(value if len(value) <= _TEXT else f"{value[:_TEXT]}... ({len(value)} characters)")
    if hasattr(value, "dtype"):
        first = value[:_ELEMENTS].tolist() if value.ndim else [value.item()]
    elif isinstance(value, (tuple, list)):
        first = list(value[:_ELEMENTS])
    else:
        return total(value if value is None or isinstance(value, (bool, int, float)) else repr(value)[:_TEXT])
    first = [shown(item) for item in first]
    return first if len(value) <= _ELEMENTS else [*first, f"... ({len(value)} elements)"]


def _is_escaped(text: str) -> bool:
    """Whether all surrogates stand for bytes (PEP 383)."""
    return all("\udc80" <= character <= "\udcff" for character in text if "\ud800" <= character <= "\udfff")


def _key(key: object) -> str:
    text = key if isinstance(key, str) else repr(key)
    return text.encode("utf-8", "backslashreplace").decode()


_JSON: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical(record: Mapping[str, Any]) -> bytes:
    """Return the one JSON form of a record: sorted keys, no blanks, UTF-8.

    Raises:
        ConfigurationError: The record has none.
    """
    try:
        return _JSON.encode(record).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"an audit record cannot be written: {error}") from error


def chain(previous: str, record: Mapping[str, Any]) -> str:
    """Return the hash (64 hex digits) of a record that follows the one whose hash is ``previous``."""
    return chain_canonical(previous, canonical(record))


def chain_canonical(previous: str, text: bytes) -> str:
    """Do as `chain` for a record that is in its one form already."""
    try:
        start = bytes.fromhex(previous)
    except ValueError as error:
        raise ConfigurationError(f"{previous[:80]!r} is not the hash of an audit record") from error
    return hashlib.sha256(start + text).hexdigest()


def sealed_line(record: Mapping[str, Any], sealed: str) -> bytes:
    """Return the line of a file for a record whose hash is ``sealed``."""
    return canonical({**record, _HASH: sealed}) + b"\n"


class AuditFinding(NamedTuple):
    """What a verification found."""

    records: int
    """Number of good records from the beginning."""
    head: str
    """Hash of the last good record."""
    fault: str = ""
    """What is wrong with the next record; empty if nothing is."""

    @property
    def intact(self) -> bool:
        """Whether nothing was changed, removed or added."""
        return not self.fault


def verify(
    records: Iterable[tuple[Mapping[str, Any], str]],
    *,
    head: str | None = None,
    after: tuple[int, str] = (0, GENESIS),
) -> AuditFinding:
    """Check records, each with the hash that was stored for it.

    Args:
        records: The records, the oldest first.
        head: An earlier last hash: it must still be in the chain, and everything after it is newer.
        after: Number and hash of the last record that was removed because of its age.
    """
    removed, previous = after
    count = 0
    met = head in (None, GENESIS, previous)
    for record, stored in records:
        if chain(previous, record) != stored:
            number = removed + count + 1
            return AuditFinding(count, previous, f"record {number} was changed, or one before it is missing")
        previous, count = stored, count + 1
        met = met or stored == head
    return _ended(count, previous, met=met, removed=removed)


class AuditLog:
    """A file of linked JSON lines, made with mode 0600 and opened for appending only.

    ``sync`` is ``"always"`` (on disk before `append` returns) or ``"never"`` (the kernel decides). One process writes; a
    second one is refused. Opening verifies the whole file, and removes a last line that a power failure left incomplete. A
    file with a broken chain is refused, because new records would hide the break.
    """

    def __init__(self, path: str | os.PathLike[str], *, sync: Literal["always", "never"] = "always") -> None:
        self.path = os.fspath(path)
        self._sync = sync == "always"
        try:
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = os.open(self.path, flags, 0o600)
        except OSError as error:
            raise ConfigurationError(
                f"cannot open the audit log: {error.strerror}", file=self.path
            ) from error
        try:
            self._open()
        except BaseException:
            os.close(self._fd)
            raise

    def _open(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigurationError("another process writes to this audit log", file=self.path) from error
        size = os.fstat(self._fd).st_size
        whole = _whole_lines(self._fd, size)
        if whole != size:
            os.ftruncate(self._fd, whole)
        verdict = verify_file(self.path)
        if not verdict.intact:
            raise ConfigurationError(
                f"the audit log is broken: {verdict.fault}; move it away for examination and start a new one",
                file=self.path,
            )
        self.head = verdict.head
        """Hash of the last record."""
        self.records = verdict.records

    def append(self, record: Mapping[str, Any]) -> str:
        """Add a record and return its hash.

        Raises:
            ApplianceError: It did not reach the file; nothing is half written.
        """
        return self.extend((record,))

    def extend(self, records: Sequence[Mapping[str, Any]]) -> str:
        """Add records with one write, all or none, and return the hash of the last one.

        Raises:
            ApplianceError: They did not reach the file; nothing is half written.
        """
        sealed = self.head
        lines = []
        for each in records:
            if _HASH in each:
                raise ConfigurationError(f"an audit record must not have a field {_HASH!r}")
            record = total(each)
            sealed = chain(sealed, record)
            lines.append(sealed_line(record, sealed))
            if len(lines[-1]) > _LIMIT:
                raise ConfigurationError(f"an audit record is larger than {_LIMIT} bytes")
        line = b"".join(lines)
        there = os.fstat(self._fd)
        if not there.st_nlink:
            raise ApplianceError(
                f"{self.path}: the file was removed while in use, and its records with it; restart to begin another"
            )
        before = there.st_size
        try:
            written = os.write(self._fd, line)
            if written != len(line):
                os.ftruncate(self._fd, before)
                raise ApplianceError(f"{self.path}: the audit record does not fit on the disk")
            if self._sync:
                os.fdatasync(self._fd)
        except OSError as error:
            os.ftruncate(self._fd, before)
            raise ApplianceError(
                f"{self.path}: the audit record could not be written: {error.strerror}"
            ) from error
        self.head = sealed
        self.records += len(records)
        return sealed

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class PutRecords:
    """The file of a put log. All methods can be called in any thread.

    Args:
        file: Path of the sealed log; empty for none.
        required: Refuse puts that cannot be written to the file. Otherwise they are done, and the daemon's log gets an error.

    Raises:
        ConfigurationError: The file cannot be opened.
    """

    def __init__(self, file: str, *, required: bool) -> None:
        self._file = AuditLog(file, sync="never") if file else None
        self._required = required
        self._lock = threading.Lock()
        self.trouble = ""
        """Why the last record could not be written; empty if it was."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Write a record, with the time. Its ``result`` is ``accepted`` if it announces a put.

        Raises:
            OperationError: The record announces a put, and the file cannot be written.
        """
        if self._file is None:
            return
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **record}
        try:
            with self._lock:
                self._file.append(line)
            self.trouble = ""
        except ApplianceError as error:
            self.trouble = str(error)
            _log.error("the put log misses a record: %s", error, extra={"event": "put-log-failed"})
            if self._required and record["result"] == "accepted":
                raise OperationError(
                    "the put log cannot be written; puts that it must record are refused until that is repaired; "
                    "the server's log says why"
                ) from error

    def write_all(self, records: Sequence[Mapping[str, Any]]) -> list[str]:
        """Write records that have their time already, with one write if that succeeds.

        Returns:
            For each, why the put that it announces must not be done; "" if it may be done.
        """
        if self._file is not None and len(records) > 1:
            try:
                with self._lock:
                    self._file.extend(records)
            except ApplianceError:
                pass  # one by one: perhaps only one of them cannot be written
            else:
                self.trouble = ""
                return [""] * len(records)
        results = []
        for record in records:
            try:
                self.write(record)
            except OperationError as error:
                results.append(str(error))
            else:
                results.append("")
        return results

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with self._lock:
                self._file.close()


def verify_file(
    path: str | os.PathLike[str], *, head: str | None = None, after: tuple[int, str] = (0, GENESIS)
) -> AuditFinding:
    """Check a file that `AuditLog` wrote; a line that is not a record counts as a break.

    Args:
        path: The file.
        head: An earlier last hash, which must still be in the chain.
        after: Number and hash of the record before the first one, if the file is the later part of a log.
    """
    name = os.fspath(path)
    (removed, previous), count = after, 0
    met = head in (None, GENESIS, previous)
    try:
        with open(name, "rb") as file:  # noqa: PTH123 - name is text already
            while line := file.readline(_LIMIT + 1):
                where = f"record {removed + count + 1}"
                try:
                    record = json.loads(line)
                    same = line.endswith(b"\n") and canonical(record) + b"\n" == line
                    stored = record.pop(_HASH)
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ConfigurationError):
                    return AuditFinding(count, previous, f"{where} is not an audit record")
                if not same:
                    return AuditFinding(
                        count, previous, f"{where} is not in the form in which it was written"
                    )
                if chain(previous, record) != stored:
                    return AuditFinding(count, previous, f"{where} was changed, or one before it is missing")
                previous, count = stored, count + 1
                met = met or stored == head
    except OSError as error:
        raise ConfigurationError(f"cannot read the audit log: {error.strerror}", file=name) from error
    return _ended(count, previous, met=met, removed=removed)


def _ended(count: int, last: str, *, met: bool, removed: int = 0) -> AuditFinding:
    if not met:
        old = f", or it is older than record {removed + 1}, the first that is still there" if removed else ""
        return AuditFinding(
            count,
            last,
            f"the head that was kept is not among the {count} records: those up to it are missing{old}",
        )
    return AuditFinding(count, last)


def _whole_lines(fd: int, size: int) -> int:
    """Return the number of bytes up to the last line end."""
    position = size
    while position > 0:
        start = max(0, position - 65536)
        found = os.pread(fd, position - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        position = start
    return 0

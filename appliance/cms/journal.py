"""Revocations in a file beside the database, so that restoring an older database does not undo them.

Lines are appended and synced before a revocation is answered: ``serial date`` in decimal and whether the ``key`` is
revoked with the certificate or ``only`` the certificate, after a first line that names the issuer. At the start, file and
database are combined: what either of them knows as revoked is revoked.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import compress
from typing import Final

from appliance.cms.inuse import is_at
from appliance.errors import ApplianceError, ConfigurationError

__all__ = ["Journal", "JournalError", "OthersJournal"]

_HEADER: Final = "pvacms revocations 1"
_KEY: Final = "key"
_ONLY: Final = "only"
_LINES: Final = re.compile(rb"(?:[0-9]{1,20} [0-9]{1,20} (?:key|only)\n)*+")
"""All lines from here on that this release writes. They are read at once: a start must not wait for a hundred thousand of them."""


class JournalError(ApplianceError):
    """A revocation could not be written to the journal."""


class Journal:
    """The journal of revocations. ``known`` maps serial numbers to revocation dates (POSIX seconds).

    Args:
        path: The file.
        issuer: The authority that issues; its identifier stands above what is added.
        former: Other authorities whose certificates count.
    """

    is_own = True
    """Whether this process writes it."""

    def __init__(self, path: str, issuer: str, former: Iterable[str] = ()) -> None:
        self.path = path
        self.known: dict[int, int] = {}
        self.missing: dict[int, int] = {}
        """Revocations that are not yet in the file because writing failed."""
        self.barred: set[int] = set()
        """Revocations that also bar the key. A line without the third word is counted among them, because it does not say."""
        self._issuer = issuer
        self._issuers = frozenset((issuer, *former))
        self._hash = hashlib.sha256()
        try:
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = os.open(path, flags, 0o600)
        except OSError as error:
            raise ConfigurationError(f"cannot open: {error.strerror}", file=path) from error
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    def _octets(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = os.pread(self._fd, size - len(data), len(data))
            if not part:
                break
            data += part
        return data

    def _read(self) -> None:
        size = os.fstat(self._fd).st_size
        data = self._octets(size)
        whole = data.rfind(b"\n") + 1
        if whole != size:
            # A power failure left this line incomplete, so its revocation was not answered.
            os.ftruncate(self._fd, whole)
        self._hash.update(data[:whole])
        section = ""
        place = 0
        while place < whole:
            lines = _LINES.match(data, place, whole)
            if section and lines is not None and lines.end() > place:
                if section in self._issuers:
                    self._take(lines[0].split())
                place = lines.end()
                continue
            begin, place = place, data.index(b"\n", place) + 1
            line = data[begin : place - 1].decode("ascii", "replace")
            words = line.split()
            if line.startswith(_HEADER) and len(words) == 4:
                section = words[3]
            elif (
                len(words) in (2, 3)
                and words[0].isdecimal()
                and words[1].isdecimal()
                and words[2:] in ([], [_KEY], [_ONLY])
                and section
            ):
                if section in self._issuers:
                    self.known[int(words[0])] = int(words[1])
                    if words[2:] != [_ONLY]:
                        self.barred.add(int(words[0]))
            else:
                raise ConfigurationError(
                    "this is not a line of the revocation journal, so the file is damaged: repair it by hand, because "
                    "without it a restored database could undo revocations",
                    file=self.path,
                    line=data.count(b"\n", 0, place),
                )
        if section != self._issuer:
            self._append(f"{_HEADER} {self._issuer}\n")

    def _take(self, words: Sequence[bytes]) -> None:
        """Take lines of three words each."""
        serials = [*map(int, words[::3])]
        self.known.update(zip(serials, map(int, words[1::3]), strict=True))
        self.barred.update(compress(serials, map(_ONLY.encode().__ne__, words[2::3])))

    @property
    def octets(self) -> int:
        """The length of the file."""
        return os.fstat(self._fd).st_size

    def digest(self, octets: int | None = None) -> str:
        """Return the SHA-256 of the file, or of its first octets, in hex."""
        found = self._hash if octets is None else hashlib.sha256(self._octets(octets))
        return found.hexdigest()

    def after(self, octets: int) -> Iterator[int]:
        """Yield the serial numbers that were added when the file had ``octets`` already."""
        data = self._octets(self.octets)
        mine = f"{_HEADER} {self._issuer}"
        before = data[:octets].decode("ascii", "replace")
        section = before[before.rfind(_HEADER) :].partition("\n")[0] if _HEADER in before else ""
        for line in data[octets:].decode("ascii", "replace").splitlines():
            if line.startswith(_HEADER):
                section = line
            elif section == mine:
                yield int(line.split()[0])

    def add(self, entries: Iterable[tuple[int, int]], *, barred: Iterable[int] = ()) -> None:
        """Append revocations, and any that failed before, and wait until they are on disk.

        Args:
            entries: Serial numbers and dates (POSIX seconds).
            barred: Those whose keys are revoked too.

        Raises:
            JournalError: The file cannot be written; the revocations are kept for the next attempt.
        """
        self.barred.update(barred)
        self.missing.update((s, at) for s, at in entries if s not in self.known)
        if not self.missing:
            return
        if self.lost:
            raise JournalError(f"the revocation journal cannot be written: {self.lost}")
        try:
            self._append("".join(self._line(serial, at) for serial, at in self.missing.items()))
        except OSError as error:
            raise JournalError(
                f"the revocation journal {self.path} cannot be written: {error.strerror}"
            ) from error
        self.known.update(self.missing)
        self.missing = {}

    def _line(self, serial: int, at: int) -> str:
        return f"{serial} {at} {_KEY if serial in self.barred else _ONLY}\n"

    @property
    def lost(self) -> str:
        """Why the open file is not the one at its path any more; empty if it is."""
        if is_at(self._fd, self.path):
            return ""
        return (
            f"{self.path} was removed or replaced while the service ran; put it back, or restart the service, which writes "
            "all revocations in the database to a new one"
        )

    def _append(self, text: str) -> None:
        before = os.fstat(self._fd).st_size
        try:
            data = text.encode("ascii")
            if os.write(self._fd, data) != len(data):
                raise OSError(28, "No space left on device")  # noqa: TRY301
            os.fdatasync(self._fd)
        except OSError:
            os.ftruncate(self._fd, before)
            raise
        self._hash.update(data)

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class OthersJournal(Journal):
    """The journal of a running service, for a command that works beside it. It is never opened or written."""

    is_own = False

    def __init__(self, path: str, issuer: str, former: Iterable[str] = ()) -> None:
        self.path = path
        self.known = {}
        self.missing = {}
        self.barred = set()
        self._issuer = issuer
        self._issuers = frozenset((issuer, *former))
        self._fd = -1

    def add(self, entries: Iterable[tuple[int, int]], *, barred: Iterable[int] = ()) -> None:
        """Refuse entries.

        Raises:
            JournalError: There is something to add.
        """
        del barred
        if tuple(entries):
            raise JournalError(f"the revocation journal {self.path} belongs to the running service")

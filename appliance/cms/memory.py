"""The certificates in memory: those that somebody watches, and some of those that were asked for last.

Nothing is read before somebody asks. What is pinned stays, and is read again whenever it changes, also when another node
changes it. Of the rest a bounded number stays until it changes. A serial number without a certificate can be pinned too:
another node may issue that certificate later.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final

from appliance.certs.status import CertState
from appliance.cms.model import as_told
from appliance.cms.reading import Readers, records_of
from appliance.cms.transaction import Authorities, CertRecord, StoreError

__all__ = ["Memory", "Watched"]

_KEPT: Final = 20_000
"""Number of certificates that stay though nobody watches them."""
_SEEN: Final = 1000
_AT_ONCE: Final = 500
"""Certificates that one question is about."""

Told = Callable[[int, CertRecord | None], None]


class _Pinned:
    """What is known of a serial number that somebody watches."""

    __slots__ = ("is_certain", "pins", "record", "seq", "was_read")

    def __init__(self) -> None:
        self.pins = 0
        self.record: CertRecord | None = None
        self.was_read = False
        """Whether ``record`` says what the database said once; None is then an answer too."""
        self.is_certain = False
        """Whether nothing is known to have changed it since."""
        self.seq = 0
        """Number of the last audit record that is known to be about it."""


class _Reading:
    """A row that is being read."""

    __slots__ = ("future", "is_outdated")

    def __init__(self) -> None:
        self.future: asyncio.Future[CertRecord | None] = asyncio.get_running_loop().create_future()
        self.is_outdated = False
        """Whether it was changed in the meantime, so that it must be read again."""


class Watched:
    """The pinned certificates, for `appliance.cms.clockwork`."""

    __slots__ = ("_pinned",)

    def __init__(self, pinned: dict[int, _Pinned]) -> None:
        self._pinned = pinned

    def get(self, serial: int) -> CertRecord | None:
        """Return a certificate; None if it is not watched, or there is none."""
        row = self._pinned.get(serial)
        return None if row is None else row.record

    def values(self) -> Iterator[CertRecord]:
        """Return all."""
        return (row.record for row in list(self._pinned.values()) if row.record is not None)

    def __len__(self) -> int:
        return len(self._pinned)


class Memory:
    """The certificates of one service.

    Args:
        readers: Read the database.
        authorities: Returns the authorities whose certificates these are.
        learned: Called with each certificate that is watched from now on, or has changed while it was.
        told: Called when a certificate that is watched has been changed by others, with None if it is gone.
    """

    def __init__(
        self,
        readers: Readers,
        authorities: Callable[[], Authorities],
        *,
        learned: Callable[[CertRecord], None],
        told: Told,
    ) -> None:
        self._readers = readers
        self._authorities = authorities
        self._learned = learned
        self._told = told
        self._pinned: dict[int, _Pinned] = {}
        self._others: OrderedDict[int, tuple[CertRecord, int]] = OrderedDict()
        """Each with the number of the last audit record that is known to be about it."""
        self._reading: dict[int, _Reading] = {}
        self._wanted: list[int] = []
        self._failed: set[int] = set()
        """What is pinned and could not be read again."""
        self._seen: OrderedDict[int, int] = OrderedDict()
        """The last changes of what nobody watches: own commits are told here a moment before or after they come from the database."""
        self._passed = 0
        """Number of the last audit record that is no longer in ``_seen``."""
        self.watched = Watched(self._pinned)

    # -- questions -----------------------------------------------------------------------------------

    def peek(self, serial: int) -> CertRecord | None:
        """Return what is known without asking the database. Any thread may call it."""
        row = self._pinned.get(serial)
        if row is not None:
            return row.record
        found = self._others.get(serial)
        return None if found is None else found[0]

    def is_certain(self, serial: int) -> bool:
        """Whether `peek` says what the database said last, as far as is known: also that there is no such certificate."""
        row = self._pinned.get(serial)
        return serial in self._others if row is None else row.is_certain

    async def find(self, serial: int) -> CertRecord | None:
        """Return a certificate; None if there is none.

        Raises:
            StoreError: The database could not be read, or its row is damaged.
        """
        while True:
            row = self._pinned.get(serial)
            if row is not None and row.is_certain:
                return row.record
            if row is None and serial in self._others:
                self._others.move_to_end(serial)
                return self.peek(serial)
            found = await asyncio.shield(self._read(serial))
            if serial not in self._pinned:
                return self.peek(serial) or found

    # -- who watches ---------------------------------------------------------------------------------

    def pin(self, serial: int) -> None:
        """Keep what is known of a serial number, and read it again when it changes. Each call needs its `unpin`."""
        row = self._pinned.get(serial)
        if row is None:
            row = self._pinned[serial] = _Pinned()
            found = self._others.pop(serial, None)
            if found is not None:
                row.record, row.seq = found
                row.was_read = row.is_certain = True
                self._learned(found[0])
        row.pins += 1

    def unpin(self, serial: int) -> None:
        """End what one `pin` began."""
        row = self._pinned[serial]
        row.pins -= 1
        if row.pins:
            return
        del self._pinned[serial]
        self._failed.discard(serial)
        if row.record is not None and row.is_certain:
            self._keep(row.record, row.seq)

    # -- changes -------------------------------------------------------------------------------------

    def put(self, record: CertRecord, seq: int = 0) -> bool:
        """Take a certificate as this service has just committed it, or as its clock has changed it.

        Args:
            record: The certificate.
            seq: Number of the audit's last record in the commit; 0 if it is the clock's change.

        Returns:
            Whether it is told. If not, another node has changed it since, and that is told.
        """
        serial = record.serial
        row = self._pinned.get(serial)
        reading = self._reading.get(serial)
        if reading is not None and seq:
            reading.is_outdated = True
        if row is None:
            found = self._others.get(serial)
            newer = max(self._seen.get(serial, 0), 0 if found is None else found[1])
            if not seq or (seq > self._passed and seq >= newer):
                self._keep(record, seq)
            return True
        if 0 < seq < row.seq:
            return False
        if seq and row.record is not None and row.record.state is CertState.REVOKED is not record.state:
            # Another node's change behind this commit was read before it: only the database says what holds.
            self._read_again(serial, row)
            return False
        row.record, row.was_read = record, True
        if seq:
            row.seq, row.is_certain = seq, True
            self._failed.discard(serial)
        self._learned(record)
        return True

    def change(self, changes: Mapping[int, int]) -> None:
        """Forget, or read again, what was changed.

        Args:
            changes: Serial numbers, with the number of the audit's last record about each. What an own commit has brought already
                is passed over.
        """
        for serial, seq in changes.items():
            row = self._pinned.get(serial)
            if row is not None:
                if seq <= row.seq:
                    continue
                row.seq = seq
                self._read_again(serial, row)
            else:
                found = self._others.get(serial)
                if found is not None and seq <= found[1]:
                    continue
                self._others.pop(serial, None)
                reading = self._reading.get(serial)
                if reading is not None:
                    reading.is_outdated = True
                self._seen[serial] = seq
                self._seen.move_to_end(serial)
                if len(self._seen) > _SEEN:
                    self._passed = max(self._passed, self._seen.popitem(last=False)[1])

    def _read_again(self, serial: int, row: _Pinned) -> None:
        row.is_certain = False
        reading = self._reading.get(serial)
        if reading is not None:
            reading.is_outdated = True
        elif row.was_read:
            self._read(serial)

    def change_all(self) -> None:
        """Forget, or read again, everything: nobody knows what has changed."""
        self._others.clear()
        for reading in self._reading.values():
            reading.is_outdated = True
        for serial, row in self._pinned.items():
            self._read_again(serial, row)

    def try_again(self) -> None:
        """Read what could not be read again, now that the database can be read."""
        failed, self._failed = self._failed, set()
        for serial in failed:
            self._read_again(serial, self._pinned[serial])

    def _keep(self, record: CertRecord, seq: int = 0) -> None:
        self._others[record.serial] = record, seq
        self._others.move_to_end(record.serial)
        if len(self._others) > _KEPT:
            self._others.popitem(last=False)

    # -- reading -------------------------------------------------------------------------------------

    def _read(self, serial: int) -> asyncio.Future[CertRecord | None]:
        """Have a row read; all who want it share one question."""
        reading = self._reading.get(serial)
        if reading is None:
            reading = self._reading[serial] = _Reading()
            reading.future.add_done_callback(_look_at)
            self._want(serial)
        return reading.future

    def _want(self, serial: int) -> None:
        self._wanted.append(serial)
        if len(self._wanted) == 1:
            asyncio.get_running_loop().call_soon(self._ask)

    def _ask(self) -> None:
        wanted, self._wanted = self._wanted, []
        authorities = self._authorities()
        for start in range(0, len(wanted), _AT_ONCE):
            serials = wanted[start : start + _AT_ONCE]
            asked = self._readers.read(partial(records_of, serials=serials, authorities=authorities))
            asked.add_done_callback(partial(self._answered, serials))

    def _answered(
        self, serials: list[int], asked: asyncio.Future[dict[int, CertRecord | StoreError]]
    ) -> None:
        failure = asked.exception()
        found = {} if failure is not None else asked.result()
        for serial in serials:
            reading = self._reading[serial]
            if failure is None and reading.is_outdated:
                reading.is_outdated = False
                self._want(serial)
                continue
            del self._reading[serial]
            record = found.get(serial)
            if failure is not None or isinstance(record, StoreError):
                row = self._pinned.get(serial)
                if row is not None and row.was_read:
                    self._failed.add(serial)
                problem = record if isinstance(record, StoreError) else failure
                assert problem is not None
                reading.future.set_exception(problem)
                continue
            self._arrived(serial, record)
            reading.future.set_result(record)

    def _arrived(self, serial: int, record: CertRecord | None) -> None:
        row = self._pinned.get(serial)
        if row is None:
            if record is not None:
                self._keep(record)
            return
        before, again = row.record, row.was_read
        if record is not None:
            record = as_told(record, before)
        row.record, row.was_read, row.is_certain = record, True, True
        if record is not None and record != before:
            self._learned(record)
        if again and _told_of(record) != _told_of(before):
            self._told(serial, record)


def _told_of(record: CertRecord | None) -> CertRecord | None:
    """Return a record without what nobody is told of."""
    return None if record is None else record._replace(delivered=0, next_at=None)


def _look_at(future: asyncio.Future[Any]) -> None:
    """Look at the outcome, so that a failure without somebody who waits is no defect."""
    if not future.cancelled():
        future.exception()

"""What a service does for its database over years, beside everything else: checks, backups, and old records of the audit."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, NamedTuple, Protocol, Self, TypeVar

import sqlalchemy as sa

from appliance.cms.audit import (
    VERIFIED,
    Sealed,
    export_old,
    last_number,
    old_records,
    prune_audit,
    verify_part,
)
from appliance.cms.backup import Backups, find_damage
from appliance.cms.config import CMSSettings
from appliance.cms.copying import back_up
from appliance.cms.dialect import is_sqlite
from appliance.cms.invariants import RowsCheck
from appliance.cms.model import posix
from appliance.cms.reading import Readers
from appliance.cms.schema import known, meta
from appliance.cms.store import Store
from appliance.cms.transaction import Transaction
from appliance.daemon.audit import GENESIS
from appliance.errors import ApplianceError

__all__ = ["AuditCheck", "Upkeep"]

_log: Final = logging.getLogger(__name__)
_T = TypeVar("_T")
_PART: Final = 500
"""Records that are checked at once: some milliseconds of a core."""
_PAUSE_S: Final = 0.1
_TOLD_EVERY_S: Final = 60.0


class _Verified(NamedTuple):
    """How far the audit is known to be good."""

    place: Sealed = Sealed(0, GENESIS)
    at: int = 0
    """When it was checked last (POSIX seconds)."""
    whole_at: int = 0
    """When it was checked from its beginning."""

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Read what `to_text` has made. Anything else counts as never checked."""
        words = text.split(" ")
        numbers = [words[0], *words[2:]]
        is_state = (
            len(words) == 4
            and len(words[1]) == len(GENESIS)
            and all(each.isascii() and each.isdecimal() and len(each) < 19 for each in numbers)
        )
        return cls(Sealed(int(words[0]), words[1]), int(words[2]), int(words[3])) if is_state else cls()

    def to_text(self) -> str:
        return f"{self.place.number} {self.place.hash} {self.at} {self.whole_at}"


class AuditCheck:
    """Checks the audit's chain part by part, each time from where it was before, and from time to time as a whole.

    Args:
        store: The database, where it is remembered how far the audit is good.
        reading: Reads it.
        clock: Gives the present time, aware.
    """

    def __init__(self, store: Store, reading: Readers, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._reading = reading
        self._clock = clock
        self.verified = 0
        """Number of the last record that is known to be good."""
        self.last = 0
        """Number of the last record there was when it was looked last."""
        self.fault = ""
        """What is wrong with the audit; empty if nothing is known to be."""
        self.pause_s = _PAUSE_S

    async def look(self) -> None:
        """Find out how long the audit is, and how far it was checked."""
        self.last, state = await self._reading.read_much(_state)
        self.verified = max(self.verified, state.place.number)

    async def run(self, whole_every_s: int) -> None:
        """Check what is new, or everything if that was longer ago than ``whole_every_s`` (0: never again).

        Raises:
            ApplianceError: The database cannot be read.
        """
        self.last, state = await self._reading.read_much(_state)
        at = posix(self._clock())
        # A clock that was wrong for a while must not put the whole check off for years.
        is_new = 0 <= at - state.whole_at < whole_every_s if whole_every_s else state.whole_at > 0
        place = state.place if is_new else Sealed(0, GENESIS)
        is_anchored = is_new
        self.verified = place.number
        told = time.monotonic()
        while True:
            part = await self._reading.read_much(functools.partial(verify_part, place=place, most=_PART))
            place, self.last, self.verified = part.place, part.last, part.place.number
            is_anchored |= part.anchored
            if part.fault:
                self._broken(part.fault)
                return
            if place.number >= part.last:
                break
            if time.monotonic() - told >= _TOLD_EVERY_S:
                told = time.monotonic()
                _log.info("the audit is being checked: record %d of %d", place.number, part.last)
            await asyncio.sleep(self.pause_s)
        if not is_anchored:
            self._broken("old records are missing, and no record says that they were removed")
            return
        self.fault = ""
        done = _Verified(place, at, state.whole_at if is_new else at)
        if done.place != state.place or not is_new:
            await self._store.submit(lambda transaction: _remember(transaction, done.to_text()))
        log = _log.debug if is_new else _log.info
        log("the audit is intact: %d records, head %s", place.number, place.hash)

    def _broken(self, fault: str) -> None:
        if fault != self.fault:
            _log.error(
                "the audit is broken: %s. Compare it with its exports and a backup (pvacms --audit-verify)",
                fault,
                extra={"event": "audit-broken"},
            )
        self.fault = fault

    def trouble(self) -> str:
        """Return what HEALTH says of it; empty if nothing is wrong."""
        return f"the audit is broken: {self.fault}" if self.fault else ""


def _state(connection: sa.Connection) -> tuple[int, _Verified]:
    return last_number(connection), _Verified.from_text(known(connection, VERIFIED))


def _remember(transaction: Transaction, text: str) -> None:
    transaction.flush()
    connection = transaction.connection
    if not connection.execute(sa.update(meta).where(meta.c.key == VERIFIED).values(value=text)).rowcount:
        connection.execute(sa.insert(meta).values(key=VERIFIED, value=text))


class Reported(Protocol):
    """What HEALTH tells of the upkeep."""

    damage: str
    backup: str


class Upkeep:
    """Looks after one database.

    Args:
        settings: The settings as they are now.
        store: The database.
        readers: Read it beside the writer.
        report: Is told what is wrong.
        clock: Gives the present time, aware.
        issuer_id: The authority, for the names of the backups.
        beside: Directory of the backups of a server's database if the settings name none.
    """

    def __init__(
        self,
        settings: CMSSettings,
        store: Store,
        readers: Readers,
        report: Reported,
        clock: Callable[[], datetime],
        issuer_id: str,
        *,
        beside: str,
    ) -> None:
        self.settings = settings
        self._store = store
        self._report = report
        self._clock = clock
        self._issuer_id = issuer_id
        self._beside = beside
        self._readers = readers
        self.audit = AuditCheck(store, readers, clock)
        self.rows = RowsCheck(store, readers, clock)
        self.pruning = ""
        """Why old records of the audit could not be removed."""
        self.is_mine: Callable[[], bool] = lambda: True
        """Whether it is this service, of those that share the database, that does what is to be done once."""
        self.clock_fault: Callable[[], str] = lambda: ""
        """Returns why the clock is not to be believed. Nothing is too old then."""

    async def backup(self) -> None:
        """Make a periodic backup and remove the oldest."""
        settings = self.settings
        if not is_sqlite(settings.db) and not self.is_mine():
            return
        directory = settings.backup_dir or ("" if is_sqlite(settings.db) else self._beside)
        copy = functools.partial(back_up, login=self._store.database.login)
        backups = Backups(settings.db, directory, self._issuer_id, copy=copy)
        try:
            made = await _in_thread(backups.make, time.time(), settings.backup_retention)
        except ApplianceError as error:
            _log.error("%s", error)
            self._report.backup = str(error)
            return
        self._report.backup = ""
        _log.info("database backup %s", made)

    async def look_after(self) -> None:
        """Check the whole database, the audit and the rows, and remove records of the audit that are older than they are kept."""
        store, days = self._store, self.settings.audit_retention_days
        if is_sqlite(store.where) and self.settings.integrity_check_interval_s:
            damage = await _in_thread(find_damage, store.where)
            if damage and damage != self._report.damage:
                _log.error("%s", damage, extra={"event": "database-damaged"})
            self._report.damage = damage
        if not self.is_mine() or self._report.damage:
            return
        if self.settings.integrity_check_interval_s:
            try:
                await self.audit.run(self.settings.audit_verify_interval_s)
            except ApplianceError as error:
                _log.error("the audit cannot be checked: %s", error)
            try:
                await self.rows.run()
            except ApplianceError as error:
                _log.error("the certificates in the database cannot be checked: %s", error)
        if days and not self.audit.fault and not self.clock_fault():
            try:
                removed = await self._prune(days)
            except ApplianceError as error:
                self.pruning = f"old records of the audit cannot be removed: {error}"
                _log.error("%s", self.pruning)
                return
            if removed:
                _log.info("%d records of the audit were older than %d days and were removed", removed, days)
        self.pruning = ""

    async def _prune(self, days: int) -> int:
        """Remove old records, after they were exported if there is a directory for that."""
        now, directory = self._clock(), self.settings.audit_export_dir
        if not directory:
            return await prune_audit(self._store, now, days)
        old = await self._readers.read_much(functools.partial(old_records, now=now, days=days))
        if old is None:
            return 0
        start, end = old
        name = await _in_thread(
            export_old, self._store.where, self._store.database.login, directory, self._issuer_id, start, end
        )
        return await prune_audit(self._store, now, days, up_to=end, exported=name)


async def _in_thread(function: Callable[..., _T], *arguments: Any) -> _T:
    return await asyncio.get_running_loop().run_in_executor(None, function, *arguments)

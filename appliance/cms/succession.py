"""The authorities as they change while the service runs: somebody introduces one, takes over with it, or sets an end.

The table of the database is what all nodes know. It is read at the start, and again when the audit says that it has changed. So a
node that has not been switched yet knows the certificates of the authority that has taken over, tells the holders of its own to
ask for new ones, and issues nothing itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Final

import sqlalchemy as sa
from cryptography import x509

from appliance.certs.crossed import is_same_authority
from appliance.certs.x509 import issuer_id
from appliance.cms.authorities import (
    Authority,
    Held,
    KnownAuthority,
    attention,
    bundle,
    end_is_near,
    followed,
    known_authorities,
    left_of,
    successor_of,
)
from appliance.cms.model import posix, shown_time, utc
from appliance.cms.publisher import Successor
from appliance.cms.pvs import Tasks
from appliance.cms.reading import Readers
from appliance.cms.store import Store

__all__ = ["Succession"]

_log: Final = logging.getLogger(__name__)
_COUNTED_EVERY: Final = timedelta(hours=1)
_TOLD_EVERY: Final = timedelta(days=1)


def _nothing() -> None:
    """Do nothing."""


class Succession:
    """Follows the authorities of the database.

    Args:
        store: The writer, whose authorities these are.
        readers: Read the database.
        tasks: Where it is read, beside everything else.
        authority: The one that issues here.
        held: What this service has beside it.
        clock: Gives the present time, aware.
    """

    def __init__(
        self,
        store: Store,
        readers: Readers,
        tasks: Tasks,
        authority: Authority,
        held: Held,
        clock: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._readers = readers
        self._tasks = tasks
        self._authority = authority
        self._clock = clock
        self._held = {each.issuer_id: each.root for each in held.former}
        self._issuers = {each.issuer_id: each.issuer.certificate for each in (authority, *held.former)}
        self._left: Mapping[str, int] = held.left
        self._known: Mapping[str, KnownAuthority] = {}
        self.bundle = held.bundle
        """What verifies the certificates of all: the present root first."""
        self.successor: Successor | None = None
        """That another authority has taken over from the one that issues here."""
        self.on_change: Callable[[], None] = _nothing
        """Called after anything of this has changed."""
        self._is_stale = False
        self._is_reading = False
        self._counted = self._told = clock()

    # -- what others do ------------------------------------------------------------------------------

    def look(self) -> None:
        """Read the table again, soon."""
        self._is_stale = True
        self.go_on()

    def go_on(self) -> None:
        """Read what is to be read, if the last try failed."""
        if self._is_stale and not self._is_reading:
            self._is_reading = True
            self._tasks.start(None, self._read_again())

    async def _read_again(self) -> None:
        try:
            while self._is_stale:
                self._is_stale = False
                try:
                    await self.read()
                except BaseException:
                    self._is_stale = True
                    raise
        finally:
            self._is_reading = False

    async def read(self) -> None:
        """Read the table, and use what it says.

        Raises:
            ApplianceError: The database cannot be read, or a row is damaged.
        """
        known = await self._readers.read(known_authorities)
        own = known.get(self._authority.issuer_id)
        if own is None or known == self._known:
            return  # an older database; it gets what it lacks from `CertificateService._make_good`
        is_first, self._known = not self._known, known
        self._store.known = {ident: each.ends for ident, each in known.items()}
        self.bundle = self._bundle()
        by = successor_of(own, known, {self._authority.issuer_id, *self._held})
        before = self.successor
        self.successor = None if by is None or own.ends is None else Successor(utc(by.since), utc(own.ends))
        if by is not None and self.successor != before:
            _log.warning("%s", followed(own, by), extra={"event": "authority-followed"})
        if not is_first:
            await self.count()
        self.on_change()

    def _bundle(self) -> tuple[x509.Certificate, ...]:
        return bundle(
            self._authority.root, self._known.values(), self._clock(), held=list(self._held.values())
        )

    def is_issuer(self, certificate: x509.Certificate) -> bool:
        """Whether a certificate is that of an authority whose certificates count here: it has its name and its key."""
        ident = issuer_id(certificate)
        if ident not in self._store.authorities:
            return False
        known, mine = self._known.get(ident), self._issuers.get(ident)
        if mine is None and known is not None and known.chain:
            mine = known.chain[0]
        return mine is not None and is_same_authority(certificate, mine)

    def refuses(self) -> str:
        """Return why this node issues nothing: another authority has taken over from its own."""
        own = self._known.get(self._authority.issuer_id)
        if own is None or self.successor is None:
            return ""
        by = successor_of(own, self._known, {self._authority.issuer_id, *self._held})
        return "" if by is None else followed(own, by)

    def over(self) -> str:
        """Return that the authority of this node has ended, if it has."""
        ends = self._store.known.get(self._authority.issuer_id)
        if ends is None or posix(self._clock()) < ends:
            return ""
        return f"the authority of this node, {self._authority.issuer_id}, ended at {shown_time(utc(ends))}"

    # -- the end of former ones ----------------------------------------------------------------------

    async def look_after(self) -> None:
        """Show no root that has ended; count what is left of former authorities once an hour, and log once a day what needs attention.

        Raises:
            ApplianceError: The database cannot be read.
        """
        now = self._clock()
        if self._known and (found := self._bundle()) != self.bundle:
            self.bundle = found  # a former authority has ended, and its root goes
            self.on_change()
        if _is_due(self._counted, now, _COUNTED_EVERY):
            await self.count()
        if _is_due(self._told, now, _TOLD_EVERY):
            self._told = now
            for text in self._attention():
                _log.warning("%s", text, extra={"event": "authority-ends"})

    async def count(self) -> None:
        """Count the certificates of other authorities that have not ended.

        Raises:
            ApplianceError: The database cannot be read.
        """
        self._counted = self._clock()
        others = [
            ident
            for ident, ends in self._store.known.items()
            if ident != self._authority.issuer_id and (ends is None or posix(self._counted) < ends)
        ]
        if others or self._left:
            self._left = await self._readers.read_much(partial(_counts, idents=others))

    def _attention(self) -> list[str]:
        return attention(self._known, self._left, self._held, self._authority.issuer_id, self._clock())

    def warning(self) -> str:
        """Return what an administrator should do before it is too late; empty if there is nothing."""
        return next(iter(self._attention()), "")

    def certs_former(self) -> int:
        """Return how many certificates in use are of former authorities, as counted in the last hour."""
        return sum(self._left[ident] for ident in self._left if ident in self._held)

    def certs_ending(self) -> int:
        """Return how many of them end with their authority within 30 days."""
        now = self._clock()
        return sum(
            number
            for ident, number in self._left.items()
            if ident in self._known and end_is_near(self._known[ident].ends, now)
        )


def _is_due(last: datetime, now: datetime, every: timedelta) -> bool:
    return not last <= now < last + every


def _counts(connection: sa.Connection, *, idents: list[str]) -> dict[str, int]:
    return {ident: left_of(connection, ident) for ident in idents}

"""What a job may read and write: the certificates of one authority, and the audit, inside one transaction."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from appliance.certs.status import CertState
from appliance.cms import grouped, schema
from appliance.cms.grouped import LastCommit
from appliance.cms.key_uses import KeyUse, KeyUses
from appliance.cms.statements import Several
from appliance.daemon.audit import GENESIS, canonical, chain_canonical
from appliance.errors import ApplianceError

__all__ = [
    "IN_DOUBT",
    "LIVE",
    "OF_SUBJECTS",
    "Authorities",
    "CertRecord",
    "Job",
    "NextAt",
    "StoreError",
    "Transaction",
    "as_it_ends",
    "clean",
    "doubt_undelivered",
    "live_records",
    "mark_delivered",
    "mark_doubted",
    "not_computed",
]

_LARGEST: Final = (1 << 63) - 1
"""The largest serial number that is issued and that the database can hold."""
_MAX_FACT: Final = 1024
_CHANGED: Final = "a certificate's state has changed in the meantime; look again"
IN_DOUBT: Final = 2
LIVE: Final = (
    CertState.VALID,
    CertState.PENDING,
    CertState.PENDING_APPROVAL,
    CertState.PENDING_RENEWAL,
    CertState.SCHEDULED_OFFLINE,
)
"""States that can still change."""


class StoreError(ApplianceError):
    """The database did not do what was asked; nothing has changed."""


class CertRecord(NamedTuple):
    """One certificate as the database has it. Times are POSIX seconds."""

    serial: int
    subject: str
    usage: str
    method: str
    not_before: int
    not_after: int
    renew_by: int
    state: CertState
    state_date: int
    approved: bool
    """Whether an administrator has approved it, or an earlier one that its requester proved to be theirs."""
    delivered: int
    skid: str = ""
    identity: str = ""
    """The identity that a token proved, as ``issuer|subject``; empty if none did."""
    no_status: bool | None = None
    """Whether it names no status PV; None if that is not known."""
    renewed_at: int = 0
    """When ``renew_by`` was set; 0: at ``state_date``."""
    cadence: int = 0
    """Seconds from approval to ``renew_by``; 0: ``renew_by`` is a date as it stands."""
    san: str = ""
    """Alternative names as issued, canonical JSON; empty if there are none."""
    schedule: str = ""
    """See `appliance.certs.schedule.Schedule.to_text`; empty: always in use."""
    issuer: str = ""
    """Identifier of the authority."""
    node: str = ""
    """Name of the node that recorded it; empty with one service alone."""
    next_at: int | None = None
    """When the clock changes its state next; None: never, 0: not computed."""
    came_from: str = ""
    """The address that the request came from, as limits count it."""


NextAt = Callable[[CertRecord], int | None]
"""Gives what the column ``next_at`` of a record is."""


def not_computed(record: CertRecord) -> int | None:
    """Say that the clock may change a record, and that nobody has computed when."""
    return 0 if record.state in LIVE else None


_COLUMNS: Final = tuple(schema.certs.c[name] for name in CertRecord._fields)
# Made once: SQLAlchemy takes longer to compile a new statement than SQLite takes to run it.
_ROWS: Final = sa.select(*_COLUMNS)
OF_SUBJECTS: Final = Several(f"SELECT {', '.join(CertRecord._fields)} FROM certs WHERE subject {{}}")  # noqa: S608 - our own names
_OF_SERIAL: Final = _ROWS.where(schema.certs.c.serial == sa.bindparam("number"))
_AUDIT_HEAD: Final = (
    sa.select(schema.audit.c.seq, schema.audit.c.hash).order_by(schema.audit.c.seq.desc()).limit(1)
)


def _record(row: Sequence[Any]) -> CertRecord:
    record = CertRecord(*row)
    return record._replace(
        state=CertState(record.state),
        approved=bool(record.approved),
        schedule=sys.intern(record.schedule),
        no_status=None if record.no_status is None else bool(record.no_status),
    )


Authorities = Mapping[str, int | None]
"""The authorities whose certificates count, by identifier, each with its end (POSIX seconds; None: no end is set)."""


def as_it_ends(record: CertRecord, authorities: Authorities) -> CertRecord | None:
    """Return a certificate with the end that its authority has; None if it is of none of these authorities."""
    if record.issuer not in authorities:
        return None
    end = authorities[record.issuer]
    return record if end is None or end >= record.not_after else record._replace(not_after=end)


class Transaction:
    """What a job may do. Rows that it adds are written together at the end of the group."""

    def __init__(
        self,
        connection: sa.Connection,
        issuer: str,
        audit_head: tuple[int, str] | None = None,
        *,
        node: str = "",
        next_at: NextAt | None = None,
        authorities: Authorities | None = None,
    ) -> None:
        self.connection = connection
        self._issuer = issuer
        self._authorities: Authorities = {issuer: None} if authorities is None else authorities
        self._node = node
        self._next_at = not_computed if next_at is None else next_at
        self._new_certs: list[dict[str, Any]] = []
        self._new_by_subject: dict[str, list[CertRecord]] = {}
        self._keys = KeyUses(connection)
        self._new_audit: list[dict[str, Any]] = []
        self._renewed: list[dict[str, Any]] = []
        self._by_subject: dict[str, list[CertRecord]] = {}
        self._is_server = connection.dialect.name != "sqlite"
        self._head = audit_head
        """The last audit record; None until it was read, on a server together with what is read first."""

    def prefetch(self, subjects: Iterable[str], keys: Iterable[tuple[str, str]] = ()) -> None:
        """Read what is known about many subjects, and about keys (``key_id`` and ``skid``), at once."""
        wanted = [subject for subject in set(subjects) if subject not in self._by_subject]
        if wanted and self._renewed:
            self.flush()  # the rows that are read must have it
        if self._is_server:
            self._read(wanted, self._keys.missing(keys))
            return
        self._keys.prefetch(keys)
        if not wanted:
            return
        for subject in wanted:
            self._by_subject[subject] = []
        self._take(OF_SUBJECTS.rows(self.connection, wanted))

    def _read(self, subjects: Sequence[str], keys: Collection[tuple[str, str]]) -> None:
        """Read from a database server what is known about subjects and keys, and the end of the audit, at once."""
        if not subjects and not keys and self._head is not None:
            return
        found = grouped.read(self.connection, CertRecord._fields, subjects, keys)
        if self._head is None:
            self._head = found.head or (0, GENESIS)
        self._keys.take(keys, found.uses)
        for subject in subjects:
            self._by_subject[subject] = []
        self._take(found.certs)

    def _take(self, rows: Iterable[Sequence[Any]]) -> None:
        for row in rows:
            found = _record(row)
            if found.issuer in self._authorities:
                self._by_subject[found.subject].append(found)

    def of_subject(self, subject: str) -> list[CertRecord]:
        """Return all certificates of a subject, of all authorities, with the ends that are written in them."""
        self.prefetch((subject,))
        return [*self._by_subject[subject], *self._new_by_subject.get(subject, ())]

    def of_key(self, key_id: str, skid: str) -> list[KeyUse]:
        """Return what a key was used for, whatever has become of it."""
        if self._is_server:
            self._read((), self._keys.missing(((key_id, skid),)))
        return self._keys.of(key_id, skid)

    def key_of(self, serial: int) -> tuple[str, str]:
        """Return a certificate's ``key_id`` and ``skid``."""
        self.flush()
        columns = (schema.certs.c.key_id, schema.certs.c.skid)
        row = self.connection.execute(sa.select(*columns).where(schema.certs.c.serial == serial)).first()
        return ("", "") if row is None else (row.key_id, row.skid)

    def get(self, serial: int) -> CertRecord | None:
        """Return one certificate, with the end of its authority if that comes first."""
        if serial > _LARGEST:
            return None
        self.flush()
        row = self.connection.execute(_OF_SERIAL, {"number": serial}).first()
        return None if row is None else as_it_ends(_record(row), self._authorities)

    def add(self, record: CertRecord, more: Mapping[str, Any]) -> CertRecord:
        """Record a certificate.

        Args:
            record: The certificate. Without an issuer and a node it is of this service.
            more: Columns of the row that `CertRecord` does not have.

        Returns:
            The certificate as it is recorded.
        """
        record = record._replace(
            issuer=record.issuer or self._issuer,
            node=record.node or self._node,
            next_at=self._next_at(record),
        )
        row = record._asdict() | dict(more)
        row["state"] = record.state.value
        row = {"key_id": "", "barred": False, **row}
        self._new_certs.append(row)
        self._keys.add(row["key_id"], KeyUse(record.subject, record.usage, barred=False))
        self._new_by_subject.setdefault(record.subject, []).append(record)
        return record

    def change(
        self,
        record: CertRecord,
        state: CertState,
        *,
        at: int,
        approved: bool,
        bar_key: bool = False,
        begins: tuple[int, int] | None = None,
    ) -> CertRecord:
        """Change a certificate's state.

        Args:
            record: The certificate as it was read.
            state: The new state.
            at: The present time (POSIX seconds).
            approved: Whether an administrator has approved it, now or before.
            bar_key: Never certify its key again.
            begins: ``renew_by`` and ``renewed_at``, if they change too.

        Returns:
            The certificate as it is now.

        Raises:
            StoreError: Its state is not what ``record`` says any more.
        """
        self.flush()
        values: dict[str, Any] = {"state": state.value, "state_date": at, "approved": approved}
        if bar_key:
            values["barred"] = True
        if begins is not None:
            values["renew_by"], values["renewed_at"] = begins
        changed = record._replace(state=state, state_date=at, approved=approved)
        if begins is not None:
            changed = changed._replace(renew_by=begins[0], renewed_at=begins[1])
        return self._update(record, changed, values)

    def _update(self, record: CertRecord, changed: CertRecord, values: Mapping[str, Any]) -> CertRecord:
        changed = changed._replace(next_at=self._next_at(changed))
        found = self.connection.execute(
            sa.update(schema.certs)
            .where(schema.certs.c.serial == record.serial, schema.certs.c.state == record.state.value)
            .values(**values, next_at=changed.next_at)
        )
        if found.rowcount != 1:
            raise StoreError("the certificate's state has changed in the meantime; look again")
        self._by_subject.pop(record.subject, None)
        self._keys.forget()
        return changed

    def renew(
        self, record: CertRecord, *, renew_by: int, renewed_at: int, state: CertState, at: int
    ) -> CertRecord:
        """Move the date until which a certificate must be renewed. It is written at the end of the group.

        Args:
            record: The certificate as it was read.
            renew_by: The new date (POSIX seconds); 0 for none.
            renewed_at: When it was renewed (POSIX seconds).
            state: The state it has now.
            at: The present time (POSIX seconds).

        Returns:
            The certificate as it is now.
        """
        known = self._by_subject.get(record.subject, [])
        if record not in known:
            self.flush()  # it is of the same group, or was changed in it
            known = self._by_subject.get(record.subject, [])
        since = record.state_date if state is record.state else at
        renewed = record._replace(renew_by=renew_by, renewed_at=renewed_at, state=state, state_date=since)
        renewed = renewed._replace(next_at=self._next_at(renewed))
        self._renewed.append(
            {
                "number": record.serial,
                "was": record.state.value,
                "by": renew_by,
                "at": renewed_at,
                "becomes": state.value,
                "since": since,
                "next": renewed.next_at,
            }
        )
        # Others of the group must see it.
        known[:] = [renewed if old.serial == record.serial else old for old in known]
        return renewed

    def reschedule(self, record: CertRecord, text: str, *, state: CertState, at: int) -> CertRecord:
        """Change a certificate's schedule.

        Args:
            record: The certificate as it was read.
            text: The new schedule (`appliance.certs.schedule.Schedule.to_text`).
            state: The state it has now.
            at: The present time (POSIX seconds).

        Returns:
            The certificate as it is now.

        Raises:
            StoreError: Its state is not what ``record`` says any more.
        """
        self.flush()
        since = record.state_date if state is record.state else at
        changed = record._replace(schedule=text, state=state, state_date=since)
        return self._update(record, changed, {"schedule": text, "state": state.value, "state_date": since})

    def audit(self, at: int, action: str, serial: int | None, facts: Mapping[str, Any]) -> None:
        """Add a record to the audit, linked to all before it.

        Args:
            at: The present time (POSIX seconds).
            action: What was done, such as ``create`` or ``revoke``.
            serial: The certificate's serial number; None if it is about none.
            facts: Further members of the record; control characters are replaced.
        """
        facts = {key: clean(value) for key, value in facts.items()}
        seq, before = self.audit_head
        seq += 1
        number = "" if serial is None else str(serial)
        record = {"seq": seq, "at": at, "action": action, "serial": number, **facts}
        text = canonical(record)
        self._head = seq, chain_canonical(before, text)
        self._new_audit.append(
            {
                "seq": seq,
                "at": at,
                "action": action,
                "serial": number,
                "record": text.decode(),
                "hash": self._head[1],
            }
        )

    @property
    def issuer(self) -> str:
        """The authority that issues."""
        return self._issuer

    @property
    def authorities(self) -> Authorities:
        """All authorities whose certificates count."""
        return self._authorities

    @property
    def audit_head(self) -> tuple[int, str]:
        """Sequence number and hash of the last audit record."""
        if self._head is None:
            last = self.connection.execute(_AUDIT_HEAD).first()
            self._head = (0, GENESIS) if last is None else (last.seq, last.hash)
        return self._head

    def flush(self) -> None:
        """Write what has been added."""
        if self._is_server:
            self._write()
            return
        if self._new_certs:
            grouped.insert(self.connection, schema.certs, self._new_certs)
        if self._renewed:
            changed = grouped.renew(self.connection, self._renewed)
            if changed not in (len(self._renewed), -1):  # -1: this database's driver does not say
                raise StoreError(_CHANGED)
        if self._new_audit:
            grouped.insert(self.connection, schema.audit, self._new_audit)
        self._written()

    def finish(self, commit: LastCommit | None, notify: tuple[str, str] | None) -> bool:
        """Write what has been added, and what else a commit on a database server writes, at once.

        Args:
            commit: What the row of this node gets.
            notify: A channel, and what those who listen to it are told.

        Returns:
            Whether the database knows this node.
        """
        return bool(self._write(commit, notify).nodes)

    def _write(
        self, commit: LastCommit | None = None, notify: tuple[str, str] | None = None
    ) -> grouped.Written:
        first: grouped.Rows = ()
        for later in grouped.each_once(self._renewed):
            self._renew_some(first)
            first = later
        written = grouped.write(
            self.connection,
            certs=self._new_certs,
            audit=self._new_audit,
            renewed=first,
            commit=commit,
            notify=notify,
        )
        if written.renewed != len(first):
            raise StoreError(_CHANGED)
        self._written()
        return written

    def _renew_some(self, rows: grouped.Rows) -> None:
        if grouped.write(self.connection, renewed=rows).renewed != len(rows):
            raise StoreError(_CHANGED)

    def _written(self) -> None:
        """Note that the database has all that was added."""
        if self._new_certs:
            for subject, records in self._new_by_subject.items():
                if subject in self._by_subject:
                    self._by_subject[subject] += records
            self._new_by_subject = {}
            self._keys.forget()
        self._new_certs, self._renewed, self._new_audit = [], [], []


Job = Callable[[Transaction], Any]


def clean(value: object) -> str:
    """Make a peer's text safe for the audit: limited in length, without control characters or incomplete characters."""
    text = str(value)[:_MAX_FACT]
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


# ---------------------------------------------------------------------- jobs that are only one statement


def live_records(transaction: Transaction) -> list[CertRecord]:
    """Every certificate whose state can still change."""
    query = sa.select(*_COLUMNS).where(
        schema.certs.c.issuer == transaction._issuer, schema.certs.c.state.in_([s.value for s in LIVE])
    )
    return [_record(row) for row in transaction.connection.execute(query)]


def mark_delivered(serials: Sequence[int]) -> Job:
    """Record that requesters have their certificates."""

    def job(transaction: Transaction) -> None:
        transaction.flush()
        grouped.deliver(transaction.connection, serials)

    return job


def mark_doubted(serial: int) -> Job:
    """Record that nobody knows whether a requester has its certificate."""

    def job(transaction: Transaction) -> None:
        transaction.flush()
        transaction.connection.execute(
            sa.update(schema.certs)
            .where(schema.certs.c.serial == serial, schema.certs.c.delivered == 0)
            .values(delivered=IN_DOUBT)
        )

    return job


def doubt_undelivered(transaction: Transaction, nodes: Collection[str] | None = None) -> int:
    """Mark certificates whose delivery is not known any more.

    Args:
        transaction: The transaction.
        nodes: Those which these nodes recorded; None: all.

    Returns:
        Their number.
    """
    transaction.flush()
    undelivered = sa.update(schema.certs).where(schema.certs.c.delivered == 0)
    if nodes is not None:
        undelivered = undelivered.where(schema.certs.c.node.in_(nodes))
    return int(transaction.connection.execute(undelivered.values(delivered=IN_DOUBT)).rowcount)

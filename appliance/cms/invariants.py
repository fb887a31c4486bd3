"""What must be true of all rows together: looked at each night, part by part, beside everything else.

A row that says what no service writes is a fault of a disk, or the work of somebody with access to the database. It is told and
nothing is changed: what is right, only an administrator can say.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from appliance.certs.status import CertState
from appliance.cms.model import check_row, posix, subject_key
from appliance.cms.reading import Readers
from appliance.cms.schema import audit, authorities, certs, ends_of
from appliance.cms.store import Store
from appliance.cms.transaction import CertRecord, StoreError, Transaction
from appliance.daemon.audit import GENESIS, canonical, chain

__all__ = ["Part", "RowsCheck", "check_head", "check_part"]

_log: Final = logging.getLogger(__name__)
_PART: Final = 1000
"""Certificates that are looked at in one transaction: some tens of milliseconds."""
_REST: Final = 10.0
"""How many times as long as it has worked the check rests: it takes a tenth of a core at most."""
_LOGGED: Final = 20
"""Faults that are logged one by one."""
_IN_USE: Final = tuple(
    state.value
    for state in (CertState.VALID, CertState.PENDING, CertState.PENDING_RENEWAL, CertState.SCHEDULED_OFFLINE)
)
_NAMES: Final = {"CN": "cn", "O": "o", "OU": "ou", "C": "c"}
_ROWS: Final = (
    sa.select(*(certs.c[name] for name in (*CertRecord._fields, *_NAMES.values(), "created")))
    .where(certs.c.serial > sa.bindparam("after"))
    .order_by(certs.c.serial)
    .limit(sa.bindparam("most", type_=sa.Integer))
)
_CREATED: Final = (
    sa.select(audit.c.serial, sa.func.count())
    .where(audit.c.serial.in_(sa.bindparam("serials", expanding=True)), audit.c.action == "create")
    .group_by(audit.c.serial)
)
_TWICE: Final = (
    sa.select(certs.c.subject, sa.func.count())
    .where(
        certs.c.subject.in_(sa.bindparam("subjects", expanding=True)),
        # The empty text and the zero are for SQLite, which would else go through all that are in use.
        certs.c.state.concat("").in_(_IN_USE),
        certs.c.not_after + 0 > sa.bindparam("now"),
        # Who proves an identity with a token may have several, and so may the service itself.
        certs.c.method == "std",
    )
    .group_by(certs.c.subject, certs.c.issuer)
    .having(sa.func.count() > 1)
)
_LAST_TWO: Final = sa.select(audit.c.seq, audit.c.record, audit.c.hash).order_by(audit.c.seq.desc()).limit(2)


class Part(NamedTuple):
    """What `check_part` found."""

    last: int
    """Serial number of the last certificate that was looked at."""
    number: int
    """How many there were; fewer than were asked for: there are no more."""
    faults: list[str]


def check_part(connection: sa.Connection, after: int, *, now: int, most: int = _PART) -> Part:
    """Look at the next certificates, in the order of their serial numbers.

    Args:
        connection: A connection to the database, in a transaction.
        after: Those with greater serial numbers are looked at.
        now: The present time (POSIX seconds).
        most: How many, at most.
    """
    rows = connection.execute(_ROWS, {"after": after, "most": most}).all()
    if not rows:
        return Part(after, 0, [])
    known = set(connection.scalars(sa.select(authorities.c.issuer)))
    faults = [fault for row in rows for fault in _faults_of(row, known)]
    faults += _audited(connection, rows)
    subjects = {row.subject for row in rows if row.method == "std" and row.state in _IN_USE}
    twice = connection.execute(_TWICE, {"subjects": sorted(subjects), "now": now}).all() if subjects else ()
    faults += [f"the subject {_shown(subject)} has {number} certificates in use" for subject, number in twice]
    return Part(int(rows[-1].serial), len(rows), faults)


def _faults_of(row: Any, known: set[str]) -> list[str]:
    faults = []
    if row.subject != subject_key({part: getattr(row, column) for part, column in _NAMES.items()}):
        faults.append(f"certificate {row.serial}: its subject {_shown(row.subject)} is not made of its names")
    if row.issuer not in known:
        faults.append(f"certificate {row.serial}: no authority {row.issuer!r} is known, which has signed it")
    try:
        record = CertRecord(*row[: len(CertRecord._fields)])
        check_row(record._replace(state=CertState(record.state)))
    except StoreError as error:
        faults.append(str(error))
    except ValueError as error:
        faults.append(f"certificate {row.serial}: {error}")
    return faults


def _audited(connection: sa.Connection, rows: Sequence[Any]) -> list[str]:
    """Return what is wrong between certificates and the records of their creation: each has one, unless that was removed."""
    found = connection.execute(_CREATED, {"serials": [str(row.serial) for row in rows]})
    number_of = {serial: int(number) for serial, number in found}
    ends = ends_of(connection)
    is_whole = ends is not None and ends[0] == 1
    faults = []
    for row in rows:
        number = number_of.get(str(row.serial), 0)
        if number > 1:
            faults.append(f"serial number {row.serial} was given to {number} certificates, the audit says")
        elif not number and is_whole:
            faults.append(f"certificate {row.serial}: the audit does not say that it was issued")
    return faults


def _shown(subject: str) -> str:
    return repr(", ".join(part for part in subject.split("\x1f") if part)[:128])


def check_head(transaction: Transaction) -> str:
    """Return, in a job, what is wrong with the end of the audit, to which the next record will be linked; empty if nothing is."""
    transaction.flush()
    rows = transaction.connection.execute(_LAST_TWO).all()
    if not rows:
        return ""
    last = rows[0]
    if transaction.audit_head != (last.seq, last.hash):
        return f"the audit ends with record {last.seq}, which is not the one that was written last"
    before = rows[1].hash if len(rows) > 1 else GENESIS
    try:
        record = json.loads(last.record)
        same = chain(before, record) == last.hash and canonical(record).decode() == last.record
    except ValueError:
        same = False
    if same or (len(rows) == 1 and last.seq > 1):  # all before it were removed
        return ""
    return f"record {last.seq}, the last one of the audit, is not linked to the one before it"


class RowsCheck:
    """Looks at all certificates, part by part.

    Args:
        store: The database.
        reading: Reads it.
        clock: Gives the present time, aware.
    """

    def __init__(self, store: Store, reading: Readers, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._reading = reading
        self._clock = clock
        self.checked = 0
        """Certificates that the present look, or the last one, has been at."""
        self.faults: list[str] = []
        """What the last look found."""
        self.rest = _REST

    async def run(self) -> None:
        """Look at everything.

        Raises:
            ApplianceError: The database cannot be read.
        """
        head = await self._store.submit(check_head)
        faults = [head] if head else []
        after, self.checked = -1, 0
        while True:
            begin = time.monotonic()
            job = partial(check_part, after=after, now=posix(self._clock()), most=_PART)
            after, number, found = await self._reading.read_much(job)
            self.checked += number
            faults += [fault for fault in found if fault not in faults]
            if number < _PART:
                break
            await asyncio.sleep(self.rest * (time.monotonic() - begin))
        for fault in [fault for fault in faults if fault not in self.faults][:_LOGGED]:
            _log.error("the database is not consistent: %s", fault, extra={"event": "database-damaged"})
        log = _log.error if faults else _log.info
        log("%d certificates were looked at, %d faults were found", self.checked, len(faults))
        self.faults = faults

    def trouble(self) -> str:
        """Return what HEALTH says of it; empty if nothing is wrong."""
        if not self.faults:
            return ""
        return f"the database is not consistent ({len(self.faults)} faults): {self.faults[0]}; compare it with the audit and a backup"

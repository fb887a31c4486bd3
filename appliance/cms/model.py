"""The terms of a certificate's life: who asks, what is asked for, and how the clock changes a record's state."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, NamedTuple

from appliance.certs.san import San
from appliance.certs.schedule import Schedule, Timetable, Window
from appliance.certs.status import CertState, effective_state, half_way, may_change, next_boundary
from appliance.certs.x509 import shown_subject
from appliance.cms.transaction import CertRecord, StoreError
from appliance.config.zones import time_zone
from appliance.epoch import LAST_SECOND
from appliance.errors import ConfigurationError

__all__ = [
    "SERVICE",
    "Actor",
    "NewCertificate",
    "as_told",
    "boundary_of",
    "check_row",
    "damaged",
    "hint_at",
    "is_renewal_due",
    "names_of",
    "posix",
    "renewed_at",
    "san_text",
    "schedule_of",
    "shown_name",
    "shown_time",
    "state_now",
    "subject_key",
    "timetable_of",
    "utc",
    "windows_now",
]

_log: Final = logging.getLogger(__name__)
_SEPARATOR: Final = "\x1f"
_HINTED: Final = (CertState.VALID, CertState.SCHEDULED_OFFLINE)
"""States in which a renewal is due from half of the way on."""


class Actor(NamedTuple):
    """Who asks, for the audit."""

    method: str = "service"
    account: str = ""
    peer: str = ""

    def facts(self) -> dict[str, str]:
        """Return what the audit records about the actor."""
        return {"method": self.method, "account": self.account[:256], "peer": self.peer[:128]}


SERVICE: Final = Actor("service", "pvacms", "")


class NewCertificate(NamedTuple):
    """A certificate to be recorded."""

    serial: int
    subject: Mapping[str, str]
    usage: str
    method: str
    identity: str
    skid: str
    not_before: datetime
    not_after: datetime
    approval_needed: bool
    inherit: bool
    """Whether an earlier approval of the same subject counts, if the requester proves that it was theirs."""
    roll_over: bool
    """Whether the subject may have another live certificate, because its identity was verified."""
    facts: Mapping[str, str]
    """For the audit, without secrets."""
    key_id: str = ""
    """What tells the key from others: `appliance.certs.public_keys.key_identity`."""
    proved: bool = False
    """Whether the requester has proved that it holds the private key."""
    proof_made: int = 0
    """When it made that proof, by its own clock (POSIX seconds); 0: it did not."""
    peer_serial: int = 0
    """Serial number of our certificate that the requester's connection uses; 0: none."""
    inherit_unproven: bool = False
    """Whether an earlier approval counts for anyone who claims the same subject."""
    no_status: bool = False
    """Whether the certificate names no status PV."""
    renew_by: datetime | None = None
    """When it must have been renewed, aware; None: it need not be."""
    cadence: int = 0
    """Seconds to ``renew_by`` from now on, or from its approval on if it waits for one; 0: ``renew_by`` is a date as it
    stands."""
    san: tuple[San, ...] = ()
    """Alternative names of the subject, canonical."""
    san_proved: tuple[San, ...] = ()
    """Alternative names that the token entitles to, as certificates have them."""
    schedule: Schedule = Schedule()
    """The hours that the requester asks for."""
    repeated: int = 0
    """When its token was used for the first time (POSIX seconds), if that was for the same key: it counts only if that brought no
    certificate, or if the answer was lost. 0: it was not used before."""

    @property
    def key(self) -> str:
        """The subject as the database compares it."""
        return subject_key(self.subject)

    def is_of(self, record: CertRecord) -> bool:
        """Whether the requester has proved that a certificate of the same subject is theirs."""
        return (
            (self.proved and record.skid == self.skid)
            or record.serial == self.peer_serial
            or (bool(self.identity) and record.identity == self.identity)
        )

    @property
    def proof(self) -> str:
        """What was proved, for the audit."""
        if self.identity:
            return "token and key" if self.proved else "token"
        if self.peer_serial:
            return "certificate"
        return "key" if self.proved else "none"


def subject_key(subject: Mapping[str, str]) -> str:
    """Return a subject as the database compares it."""
    return _SEPARATOR.join(subject.get(part, "") for part in ("CN", "O", "OU", "C"))


def split_subject_key(key: str) -> dict[str, str]:
    """Return the parts of `subject_key`."""
    return dict(zip(("CN", "O", "OU", "C"), key.split(_SEPARATOR), strict=True))


def shown_name(subject: Mapping[str, str]) -> str:
    """Show a subject in the order in which certificates and tools have its parts."""
    return shown_subject((part, subject.get(part, "")) for part in ("CN", "C", "O", "OU"))


def posix(when: datetime) -> int:
    """Whole POSIX seconds."""
    return int(when.timestamp())


def utc(seconds: int) -> datetime:
    """Return the aware time of POSIX seconds."""
    return datetime.fromtimestamp(seconds, UTC)


@lru_cache(maxsize=4096)
def _schedule(text: str) -> Schedule:
    return Schedule.from_text(text)


@lru_cache(maxsize=4096)
def _timetable(text: str) -> Timetable | None:
    schedule = _schedule(text)
    if not schedule.windows:
        return None
    try:
        return Timetable(schedule, time_zone(schedule.zone))
    except ConfigurationError as error:
        _log.error("certificates with the schedule %s are not in use: %s", text, error)
        return Timetable(schedule, None)


def timetable_of(record: CertRecord) -> Timetable | None:
    """Return what a record's schedule means; None if it is always open. Records with equal schedules share one."""
    return _timetable(record.schedule) if record.schedule else None


def schedule_of(record: CertRecord) -> Schedule:
    """Return a record's schedule, and who set it."""
    return _schedule(record.schedule)


def san_text(names: Iterable[San]) -> str:
    """Return alternative names as the database has them, empty for none."""
    found = [list(name) for name in names]
    return json.dumps(found, separators=(",", ":")) if found else ""


def windows_now(record: CertRecord, now: datetime) -> tuple[Window, ...]:
    """Return the windows of a record's schedule in UTC, as they are at ``now``; none if it is always open."""
    table = timetable_of(record)
    return () if table is None else table.in_utc(now)


@lru_cache(maxsize=4096)
def names_of(san: str) -> tuple[San, ...]:
    """Return the alternative names in ``CertRecord.san``."""
    return tuple(San(kind, value) for kind, value in json.loads(san)) if san else ()


def renewed_at(record: CertRecord) -> int:
    """Return when ``renew_by`` of a record was set, POSIX seconds."""
    return record.renewed_at or record.state_date


def hint_at(record: CertRecord) -> float | None:
    """Return the POSIX time from which on a renewal is due; None if the record need not be renewed."""
    if not record.renew_by or record.state not in _HINTED:
        return None
    return half_way(utc(renewed_at(record)), utc(record.renew_by)).timestamp()


def is_renewal_due(record: CertRecord, now: datetime) -> bool:
    """Whether the status says at ``now`` that a renewal is due (4.7.3)."""
    state = state_now(record, now)
    if state is CertState.PENDING_RENEWAL:
        return True
    at = hint_at(record)
    return at is not None and now.timestamp() >= at and state in _HINTED


def state_now(record: CertRecord, now: datetime) -> CertState:
    """Return the state of a record at ``now``, from its recorded state and what the clock has changed since."""
    table = timetable_of(record)
    return effective_state(
        record.state,
        now=now,
        not_before=utc(record.not_before),
        not_after=utc(record.not_after),
        renew_by=utc(record.renew_by) if record.renew_by else None,
        is_open=True if table is None else table.covers(now),
    )


def boundary_of(record: CertRecord, now: datetime) -> float | None:
    """Return POSIX time of the next change that the clock will make to a record."""
    table = timetable_of(record)
    when = next_boundary(
        record.state,
        now=now,
        not_before=utc(record.not_before),
        not_after=utc(record.not_after),
        renew_by=utc(record.renew_by) if record.renew_by else None,
        is_open=True if table is None else table.covers(now),
        change=None if table is None else table.next_change(now),
    )
    return None if when is None else when.timestamp()


def as_told(recorded: CertRecord, known: CertRecord | None) -> CertRecord:
    """Return a row of the database with the state that the clock has given it and that was told, though it is not recorded yet.

    What was told stays told, wherever the clock goes.

    Args:
        recorded: The row.
        known: The same certificate as it was last told; None if it was not.
    """
    if (
        known is not None
        and may_change(recorded.state, known.state)
        and (known.renew_by, known.renewed_at, known.schedule)
        == (recorded.renew_by, recorded.renewed_at, recorded.schedule)
        and known.state is not CertState.REVOKED
    ):
        return recorded._replace(state=known.state, state_date=known.state_date)
    return recorded


def damaged(serial: int, why: str) -> StoreError:
    """Return the error for a row that says what no service writes."""
    return StoreError(
        f"the database's row of the certificate {serial} is damaged ({why}); restore a backup, or mend the row"
    )


def check_row(record: CertRecord) -> None:
    """Check what the clock and the hours of a certificate are computed from.

    Raises:
        StoreError: The row says what no service writes.
    """
    times = (record.not_before, record.not_after, record.renew_by, record.renewed_at, record.state_date)
    why = ""
    try:
        schedule_of(record)
        if not all(0 <= seconds <= LAST_SECOND for seconds in times):
            why = "a time that no certificate can have"
    except (LookupError, TypeError, ValueError) as error:
        why = str(error) or type(error).__name__
    if why:
        raise damaged(record.serial, why)


def shown_time(when: datetime) -> str:
    """Return a time as the audit has it."""
    return f"{when.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"

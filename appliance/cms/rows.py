"""What a request becomes in the database: its row, the words of the audit, and what earlier rows of its subject say."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from appliance.certs.schedule import Schedule
from appliance.certs.status import CertState, effective_state
from appliance.certs.x509 import shown_value
from appliance.cms.model import (
    NewCertificate,
    posix,
    san_text,
    schedule_of,
    shown_name,
    shown_time,
    state_now,
    timetable_of,
    utc,
)
from appliance.cms.transaction import CertRecord

__all__ = [
    "approval_begins",
    "columns_beside",
    "duplicate",
    "facts_of",
    "named",
    "new_row",
    "schedule_fault",
    "schedule_that_holds",
    "shown_schedule",
    "state_when_renewed",
]


def new_row(
    request: NewCertificate, schedule: Schedule, now: datetime, *, granted: bool, approved: bool
) -> CertRecord:
    """Return the row of a new certificate.

    Args:
        request: The request.
        schedule: The schedule that holds, see `schedule_that_holds`.
        now: The present time, aware.
        granted: Whether it waits for no approval.
        approved: Whether it inherits one.
    """
    at, not_after = posix(now), posix(request.not_after)
    renew_by = 0 if request.renew_by is None else posix(request.renew_by)
    if request.cadence:
        renew_by = max(at, posix(request.not_before)) + request.cadence if granted else 0
    if renew_by >= not_after or request.no_status:
        renew_by = 0
    row = CertRecord(
        serial=request.serial,
        subject=request.key,
        usage=request.usage,
        method=request.method,
        not_before=posix(request.not_before),
        not_after=not_after,
        renew_by=renew_by,
        state=CertState.PENDING if granted else CertState.PENDING_APPROVAL,
        state_date=at,
        approved=approved,
        delivered=0,
        skid=request.skid,
        identity=request.identity,
        no_status=request.no_status,
        renewed_at=at if renew_by else 0,
        cadence=0 if request.no_status else request.cadence,
        san=san_text(request.san),
        schedule=schedule.to_text(),
    )
    # A date of renewal that has passed is the clock's affair: no certificate begins its life in PENDING_RENEWAL.
    return row._replace(state=state_now(row._replace(renew_by=0), now)) if granted else row


def columns_beside(request: NewCertificate, at: int) -> dict[str, Any]:
    """Return the columns of a new row that `CertRecord` does not have."""
    parts = request.subject
    return {
        "cn": parts["CN"], "o": parts["O"], "ou": parts["OU"], "c": parts["C"], "created": at,
        "key_id": request.key_id,
    }  # fmt: skip


def approval_begins(record: CertRecord, at: int) -> CertRecord:
    """Return a record that is approved at ``at``, with its cadence begun, and its state still to be found."""
    renew_by = max(at, record.not_before) + record.cadence if record.cadence else record.renew_by
    if renew_by >= record.not_after:
        renew_by = 0
    return record._replace(
        state=CertState.PENDING, approved=True, renew_by=renew_by, renewed_at=at if renew_by else 0
    )


def state_when_renewed(record: CertRecord, now: datetime) -> CertState:
    """Return the state of a record whose ``renew_by`` has just been moved."""
    table = timetable_of(record)
    return effective_state(
        CertState.VALID if record.state is CertState.PENDING_RENEWAL else record.state,
        now=now,
        not_before=utc(record.not_before),
        not_after=utc(record.not_after),
        renew_by=utc(record.renew_by) if record.renew_by else None,
        is_open=True if table is None else table.covers(now),
    )


# ---------------------------------------------------------------------- schedules


def schedule_that_holds(
    request: NewCertificate, known: Iterable[CertRecord], now: datetime
) -> tuple[Schedule, bool]:
    """Return the schedule of a new certificate, and whether an administrator has set it.

    What an administrator has set for a subject goes over to each of its next certificates, whatever they ask for: rights
    follow the name, so its hours do. Certificates that are in use count before those that have ended, and then the youngest.

    Args:
        request: The request.
        known: All certificates of its subject.
        now: The present time, aware.
    """
    ended = (CertState.EXPIRED, CertState.REVOKED)
    set_before = [record for record in known if schedule_of(record).by == "admin"]
    if not set_before:
        return request.schedule, False
    last = max(
        set_before,
        key=lambda record: (state_now(record, now) not in ended, record.not_before, record.state_date),
    )
    return schedule_of(last), True


def schedule_fault(schedule: Schedule, *, no_status: bool, by_admin: bool) -> str:
    """Return why a certificate may not have this schedule; empty if it may."""
    if not schedule.windows or not no_status:
        return ""
    if by_admin:
        return (
            "an administrator has set a schedule for this name, and a certificate without a status could not follow it; ask for "
            "one with a status"
        )
    return "a certificate without a status has no schedule, because nobody would learn of it; leave out one of the two"


def shown_schedule(schedule: Schedule) -> str:
    """Return a schedule as the audit has it."""
    windows = " ".join(str(window) for window in schedule.windows)
    return f"{windows} {schedule.zone or 'UTC'}" if windows else "always"


# ---------------------------------------------------------------------- the audit's words


def named(request: NewCertificate) -> dict[str, str]:
    """Return what the audit says of each request."""
    found = {"subject": shown_name(request.subject)}
    if request.identity:
        found["identity"] = request.identity
    return found | {"usage": request.usage, "type": request.method, "skid": request.skid}


def facts_of(request: NewCertificate, row: CertRecord, *, by_admin: bool) -> dict[str, str]:
    """Return what the audit says of a new certificate, beside what names it."""
    found = {
        "state": row.state.value,
        "not_before": shown_time(request.not_before),
        "not_after": shown_time(request.not_after),
        "no_status": "yes" if request.no_status else "no",
        "proof": request.proof,
    }
    if request.proof_made:
        found["proof_made"] = str(request.proof_made)
    if row.renew_by:
        found["renew_by"] = shown_time(utc(row.renew_by))
    if request.san:
        found["san"] = " ".join(str(name) for name in request.san)
    if row.schedule:
        found["schedule"] = shown_schedule(schedule_of(row))
    if by_admin and schedule_of(row)[:2] != request.schedule[:2]:
        found["asked_schedule"] = shown_schedule(request.schedule)
    return found


def duplicate(request: NewCertificate, state: CertState, *, in_doubt: bool = False) -> str:
    """Return the refusal of a request whose subject has a certificate in ``state``.

    Args:
        request: The request.
        state: The certificate's state.
        in_doubt: Whether nobody knows if the certificate was delivered.
    """
    parts = {part: shown_value(text) for part, text in request.subject.items()}
    cure = (
        "an administrator has to approve or deny it"
        if state is CertState.PENDING_APPROVAL
        else "have that one revoked first"
    )
    doubt = " (the service stopped while it was delivered, so it may have reached nobody)" if in_doubt else ""
    return (
        f"Duplicate Certificate Subject: cn={parts['CN']}, o={parts['O']}, ou={parts['OU']}, "
        f"c={parts['C']}: it has a certificate that is not revoked or expired{doubt}; {cure}"
    )

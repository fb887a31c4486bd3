"""Certificate status: states, classes, permitted transitions, and the influence of time and OCSP.

Source: SPVA specification 4.7, 7.2, 8 and 13.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Final, NamedTuple

from appliance.epoch import EPICS_EPOCH_S, LAST_SECOND
from appliance.errors import CertificateStatusError

__all__ = [
    "DEFAULT_VALIDITY",
    "INITIAL",
    "OCSP_CHOICES",
    "STATE_CHOICES",
    "STATUS_CLASS",
    "TRANSITIONS",
    "WIRE_CHOICES",
    "CertState",
    "Judgement",
    "OCSPState",
    "StatusClass",
    "effective_state",
    "format_date",
    "half_way",
    "judge",
    "may_change",
    "next_boundary",
    "ocsp_state",
    "parse_date",
    "parse_state",
    "read_renew_by",
    "renewal_due",
    "written_renew_by",
]


class CertState(StrEnum):
    """Life cycle states of a certificate (8.2), with their texts on the wire."""

    UNKNOWN = "UNKNOWN"
    VALID = "VALID"
    PENDING = "PENDING"
    PENDING_APPROVAL = "PENDING_APPROVAL"
    PENDING_RENEWAL = "PENDING_RENEWAL"
    SCHEDULED_OFFLINE = "SCHEDULED_OFFLINE"
    EXPIRED = "EXPIRED"
    REVOKED = "REVOKED"


class StatusClass(StrEnum):
    """What a state means for a connection (8.4)."""

    GOOD = "GOOD"
    """Traffic flows."""
    SUSPENDED = "SUSPENDED"
    """The connection stays, monitors pause, PUT and RPC are refused, no new connection is admitted."""
    UNKNOWN = "UNKNOWN"
    """Not known: no new connection is admitted, an existing one stays and pauses."""
    BAD = "BAD"
    """The connection closes."""


class OCSPState(StrEnum):
    """The three answers of OCSP, with their texts on the wire (7.2)."""

    GOOD = "OCSP_CERTSTATUS_GOOD"
    REVOKED = "OCSP_CERTSTATUS_REVOKED"
    UNKNOWN = "OCSP_CERTSTATUS_UNKNOWN"


STATE_CHOICES: Final = tuple(state.value for state in CertState)
"""All states in the order of 7.2. Peers have other orders: decode by the text, never by the index."""
WIRE_CHOICES: Final = tuple(state.value for state in CertState if state is not CertState.SCHEDULED_OFFLINE)
"""Choices of the status PV: the seven that peers of 2025, and PVXS 1.5 with certificate status, read by their index."""
OCSP_CHOICES: Final = tuple(state.value for state in OCSPState)

STATUS_CLASS: Final[Mapping[CertState, StatusClass]] = MappingProxyType(
    {
        CertState.VALID: StatusClass.GOOD,
        CertState.SCHEDULED_OFFLINE: StatusClass.SUSPENDED,
        CertState.PENDING_RENEWAL: StatusClass.SUSPENDED,
        CertState.REVOKED: StatusClass.BAD,
        CertState.EXPIRED: StatusClass.BAD,
        CertState.UNKNOWN: StatusClass.UNKNOWN,
        CertState.PENDING: StatusClass.UNKNOWN,
        CertState.PENDING_APPROVAL: StatusClass.UNKNOWN,
    }
)

_S = CertState
_FINAL: Final = (_S.REVOKED, _S.EXPIRED, _S.UNKNOWN)
INITIAL: Final = frozenset({_S.PENDING_APPROVAL, _S.PENDING, _S.VALID, _S.SCHEDULED_OFFLINE, _S.EXPIRED})
"""States that a certificate may begin in."""

TRANSITIONS: Final[Mapping[CertState, Mapping[CertState, str]]] = MappingProxyType(
    {
        _S.PENDING_APPROVAL: {
            _S.PENDING: "approve",
            _S.VALID: "approve",
            _S.SCHEDULED_OFFLINE: "approve",
            _S.PENDING_RENEWAL: "approve",
            _S.EXPIRED: "approve or clock",
            _S.REVOKED: "deny or revoke",
        },
        _S.PENDING: {
            _S.VALID: "clock",
            _S.SCHEDULED_OFFLINE: "clock",
            _S.PENDING_RENEWAL: "clock",
            _S.EXPIRED: "clock",
            _S.REVOKED: "revoke",
        },
        _S.VALID: {
            _S.SCHEDULED_OFFLINE: "schedule",
            _S.PENDING_RENEWAL: "clock",
            _S.EXPIRED: "clock",
            _S.REVOKED: "revoke",
        },
        _S.SCHEDULED_OFFLINE: {
            _S.VALID: "schedule",
            _S.PENDING_RENEWAL: "clock",
            _S.EXPIRED: "clock",
            _S.REVOKED: "revoke",
        },
        _S.PENDING_RENEWAL: {
            _S.VALID: "renew",
            _S.SCHEDULED_OFFLINE: "renew",
            _S.EXPIRED: "clock",
            _S.REVOKED: "revoke",
        },
        _S.EXPIRED: {},
        _S.REVOKED: {},
        _S.UNKNOWN: {},
    }
)
"""Every permitted change of state and its cause (8.3).

In addition to the specification's list, because a service may have been down across several boundaries and an
administrator must be able to revoke what is not valid yet: PENDING to EXPIRED, PENDING_RENEWAL and REVOKED;
PENDING_APPROVAL to EXPIRED by the clock and to PENDING_RENEWAL; SCHEDULED_OFFLINE to PENDING_RENEWAL. To
SCHEDULED_OFFLINE from PENDING, PENDING_APPROVAL and PENDING_RENEWAL, and as the first state, because all of them may
end outside of the hours of a schedule.
"""


def may_change(old: CertState | None, new: CertState) -> bool:
    """Whether a certificate may go from ``old`` (``None``: it is being created) to ``new``."""
    return new in INITIAL if old is None else new in TRANSITIONS[old]


def effective_state(
    state: CertState,
    *,
    now: datetime,
    not_before: datetime,
    not_after: datetime,
    renew_by: datetime | None = None,
    is_open: bool | None = None,
) -> CertState:
    """Return the state at ``now`` of a certificate that was last recorded in ``state``.

    A boundary that was crossed counts even if nobody recorded it. A clock that is set back undoes nothing, except that a
    schedule says for every time what it says.

    Args:
        state: The recorded state.
        now: The present time, aware.
        not_before: Start of the certificate's validity, aware.
        not_after: End of its validity, aware.
        renew_by: When its holder must have renewed, aware; None if it need not.
        is_open: Whether its schedule is open now; None if that is not known, so that SCHEDULED_OFFLINE stays.
    """
    if state in _FINAL:
        return state
    if now >= not_after:
        return CertState.EXPIRED
    if state in (CertState.PENDING_APPROVAL, CertState.PENDING_RENEWAL):
        return state
    if state is CertState.PENDING:
        if now < not_before:
            return state
        state = CertState.VALID
    if renew_by is not None and now >= renew_by:
        return CertState.PENDING_RENEWAL
    if is_open is None:
        return state
    return CertState.VALID if is_open else CertState.SCHEDULED_OFFLINE


def next_boundary(
    state: CertState,
    *,
    now: datetime,
    not_before: datetime,
    not_after: datetime,
    renew_by: datetime | None = None,
    is_open: bool | None = None,
    change: datetime | None = None,
) -> datetime | None:
    """Return when the clock will next change the effective state, ``None`` if it never will.

    Args:
        state: The recorded state.
        now: The present time, aware.
        not_before: Start of the certificate's validity, aware.
        not_after: End of its validity, aware.
        renew_by: When its holder must have renewed, aware; None if it need not.
        is_open: Whether its schedule is open now; None if that is not known.
        change: When its schedule next opens or closes, aware; None if it does not.
    """
    current = effective_state(
        state, now=now, not_before=not_before, not_after=not_after, renew_by=renew_by, is_open=is_open
    )
    if current in _FINAL:
        return None
    found = not_after
    if current is CertState.PENDING:
        found = min(found, not_before)
    elif current in (CertState.VALID, CertState.SCHEDULED_OFFLINE):
        if renew_by is not None:
            found = min(found, renew_by)
        if change is not None:
            found = min(found, change)
    return found


def half_way(renewed: datetime, renew_by: datetime) -> datetime:
    """Return from when on a renewal is due: half of the time between the last renewal and ``renew_by`` (4.7.3)."""
    return renewed + (renew_by - renewed) / 2


def renewal_due(*, now: datetime, updated: datetime, renew_by: datetime | None) -> bool:
    """Whether half of the time between the last renewal, ``updated``, and ``renew_by`` is over (4.7.3)."""
    return renew_by is not None and now >= half_way(updated, renew_by)


def ocsp_state(state: CertState) -> OCSPState:
    """Return what an OCSP responder says of a certificate in ``state``: all but VALID and REVOKED is unknown."""
    if state is CertState.VALID:
        return OCSPState.GOOD
    return OCSPState.REVOKED if state is CertState.REVOKED else OCSPState.UNKNOWN


class Judgement(NamedTuple):
    """A verified status and how long it is valid."""

    state: CertState
    status_class: StatusClass
    valid_until: datetime


def judge(signed: OCSPState, claimed: CertState, *, next_update: datetime, now: datetime) -> Judgement:
    """Combine a verified OCSP answer with the unsigned state beside it.

    Only a signature can make a certificate good; an unsigned claim can only make it less. After ``next_update`` nothing is
    known (8.4).

    Args:
        signed: What the OCSP answer says.
        claimed: The state beside it.
        next_update: Until when the answer may be believed, aware.
        now: The present time, aware.
    """
    if now >= next_update:
        state = CertState.UNKNOWN
    elif signed is OCSPState.REVOKED:
        state = CertState.REVOKED
    elif signed is OCSPState.UNKNOWN and claimed is CertState.VALID:
        state = CertState.UNKNOWN
    else:
        state = claimed
    return Judgement(state, STATUS_CLASS[state], next_update)


def parse_state(text: str) -> CertState:
    """Return the state with that name; UNKNOWN for a name of a later version."""
    try:
        return CertState(text)
    except ValueError:
        return CertState.UNKNOWN


# ---------------------------------------------------------------------- dates as the wire writes them

_BEFORE_ALL: Final = datetime(2015, 1, 1, tzinfo=UTC)
"""No certificate of Secure PVAccess is as old as this."""


def read_renew_by(seconds: int, not_before: datetime | None = None) -> datetime | None:
    """Return the date that ``renew_by`` of CERT:STATUS or of an answer to CERT:CREATE means; ``None`` if there is none.

    It counts from 1970 (7.2), in pvxs-cms of 2026 from 1990: a result before ``not_before``, the begin of the certificate's
    validity, means that it counts from 1990. Without a ``not_before``, the year 2015 is used.
    """
    if seconds <= 0:
        return None
    earliest = not_before if not_before is not None else _BEFORE_ALL
    if seconds < earliest.timestamp():
        seconds += EPICS_EPOCH_S
    return datetime.fromtimestamp(seconds, UTC) if seconds <= LAST_SECOND else None


def written_renew_by(seconds: int) -> int:
    """Return POSIX ``seconds`` as ``renew_by`` is written: counted from 1990, as all writers and readers in C++ do; 0 stays."""
    return max(seconds - EPICS_EPOCH_S, 0) if seconds else 0


_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def format_date(when: datetime | None) -> str:
    """Return ``Sat Mar 08 15:23:21 2025 UTC`` in any locale; empty for ``None``."""
    if when is None:
        return ""
    utc = when.astimezone(UTC)
    return (
        f"{_DAYS[utc.weekday()]} {_MONTHS[utc.month - 1]} {utc.day:02d} "
        f"{utc.hour:02d}:{utc.minute:02d}:{utc.second:02d} {utc.year:04d} UTC"
    )


def parse_date(text: str) -> datetime | None:
    """Return the time of a text in the form of `format_date`, ``None`` for an empty one.

    Raises:
        CertificateStatusError: It is any other text.
    """
    if not text:
        return None
    words = text.split()
    clock = words[3].split(":") if len(words) == 6 else []
    numbers = [words[4], words[2], *clock] if len(clock) == 3 else []
    if (
        not numbers
        or words[5] != "UTC"
        or words[0] not in _DAYS
        or words[1] not in _MONTHS
        or not all(n.isascii() and n.isdigit() and len(n) <= 4 for n in numbers)
    ):
        msg = f"the date {text[:64]!r} is not of the form 'Sat Mar 08 15:23:21 2025 UTC'"
        raise CertificateStatusError(msg)
    year, day, hour, minute, second = (int(n) for n in numbers)
    try:
        return datetime(year, _MONTHS.index(words[1]) + 1, day, hour, minute, second, tzinfo=UTC)
    except ValueError as exc:
        msg = f"the date {text[:64]!r} does not exist: {exc}"
        raise CertificateStatusError(msg) from exc


DEFAULT_VALIDITY: Final = timedelta(minutes=30)
"""How long a signed status is valid unless the service is configured otherwise."""

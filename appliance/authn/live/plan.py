"""Decide when a certificate is renewed. Pure: what is known goes in, the next step comes out.

Source: SPVA specification 4.7.3, 8.3, 9.4. A certificate with a cadence has a date, ``renew_by``, that a renewal moves. The service
gives a hint past half of the way. Services of others give it late, once, or without the date, so the date itself decides, and a hint
only makes a renewal earlier.

A status travels over plain TCP. Its signature proves the state; the date and the hint beside it are not signed. A false one can cause
a request too early or too late, and never more requests than the pauses here allow.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import Enum
from typing import Final, NamedTuple

from appliance.certs.status import CertState

__all__ = [
    "Action",
    "Facts",
    "Failure",
    "Past",
    "Step",
    "after_failure",
    "next_step",
    "noticed",
    "renewed",
]

LONGEST: Final = timedelta(hours=1)
"""The longest wait without a new look, because clocks are set and updates can be lost."""
STALE: Final = timedelta(minutes=2)
"""How long after a renewal a status with an older date is a late one. Later it is true: the service's database was restored."""
_SOON: Final = timedelta(minutes=1)
"""Within this time a hint without a date is followed, and for this time after a renewal it is none."""
_FIRST_S: Final = {"TRANSIENT": 5.0, "REFUSED": 60.0, "NO_TOKEN": 10.0}
_MOST_S: Final = 300.0
_MOST_WAIT_S: Final = 3600.0
_PENDING_S: Final = 60.0


class Action(Enum):
    """What a keeper does next."""

    WAIT = "wait"
    RENEW = "renew"
    """Ask for a later ``renew_by``. The certificate and the file stay."""
    REPLACE = "replace"
    """Ask for a new certificate; the key stays."""
    STOP = "stop"


class Failure(Enum):
    """Why a request gave nothing."""

    TRANSIENT = "no answer"
    LIMITED = "rate limited"
    """The service named the seconds to wait."""
    NO_TOKEN = "no token"  # noqa: S105 - a name, not a secret
    """Nothing was sent: there is no token, or none that would help."""
    REFUSED = "refused"


class Step(NamedTuple):
    """What to do, or until when to wait."""

    action: Action
    until: datetime | None = None
    """For WAIT: when to decide again, unless something becomes known before."""
    why: str = ""


class Past(NamedTuple):
    """The requests that failed since the last one that did not."""

    failures: int = 0
    """Requests that were sent and failed."""
    at: datetime | None = None
    """When the last attempt failed."""
    kind: Failure | None = None
    pause_s: float = 0.0
    """Seconds to wait after ``at``."""


class Facts(NamedTuple):
    """What a keeper knows of its certificate. Times are aware."""

    now: datetime
    not_after: datetime | None = None
    """End of the certificate; None if there is no usable certificate."""
    replace_at: datetime | None = None
    """Without a cadence: when to ask for the next certificate. None waits for the end, because the service issues no second
    certificate for a name before that.
    """
    state: CertState = CertState.UNKNOWN
    """The last state that the service has signed; UNKNOWN until then."""
    forgotten: bool = False
    """Whether the service has signed that it does not know the certificate."""
    renew_by: datetime | None = None
    """When a renewal must have happened; None if there is no cadence or none is known."""
    since: datetime | None = None
    """From when the way to ``renew_by`` counts: the renewal, or when the date became known here."""
    hinted: datetime | None = None
    """When the service said that a renewal is due. It stays until ``renew_by`` moves."""
    renewed: datetime | None = None
    """When this keeper last renewed."""

    @property
    def cadence(self) -> datetime | None:
        """``renew_by``, unless it is the certificate's own end, which services write if there is no cadence."""
        by, end = self.renew_by, self.not_after
        return by if by is not None and end is not None and by < end else None


_FINAL: Final = (CertState.REVOKED, CertState.EXPIRED)


def noticed(
    facts: Facts,
    now: datetime,
    *,
    state: CertState,
    renew_by: datetime | None,
    hint: bool,
    forgotten: bool = False,
) -> Facts:
    """Return the facts after a status of the certificate came.

    Args:
        facts: What was known.
        now: The present time, aware.
        state: The state in the status; UNKNOWN if nothing is signed.
        renew_by: The date in the status; None if it has none.
        hint: Whether the service says that a renewal is due.
        forgotten: Whether the service has signed that it does not know the certificate.
    """
    if forgotten or state in _FINAL:
        return facts._replace(now=now, state=state, forgotten=forgotten)
    before = facts.renew_by
    fresh = facts.renewed is not None and facts.renewed <= now < facts.renewed + STALE
    if fresh and before is not None:
        # This status was on its way when the renewal happened.
        older = renew_by is not None and renew_by < before
        if older or (state is CertState.PENDING_RENEWAL and now < before):
            return facts._replace(now=now)
    if renew_by is None and hint:
        # pvxs-cms of 2026 sends the hint without the date.
        renew_by = before
    moved = renew_by != before
    hinted = None if moved else facts.hinted
    if hint and hinted is None:
        hinted = now
    return facts._replace(
        now=now,
        state=state if state is not CertState.UNKNOWN else facts.state,
        forgotten=facts.forgotten and state is CertState.UNKNOWN,
        renew_by=renew_by,
        since=now if moved else facts.since,
        hinted=hinted,
    )


def renewed(facts: Facts, now: datetime, *, state: CertState, renew_by: datetime | None) -> Facts:
    """Return the facts after the service answered that it has renewed the certificate.

    Args:
        facts: What was known.
        now: The present time, aware.
        state: The state in the answer.
        renew_by: The date in the answer; None if it has none.
    """
    # pvxs-cms of 2026 answers with the state from before the renewal.
    if state in (CertState.PENDING_RENEWAL, CertState.UNKNOWN):
        state = CertState.VALID
    return facts._replace(
        now=now, state=state, forgotten=False, renew_by=renew_by, since=now, hinted=None, renewed=now
    )


def after_failure(past: Past, kind: Failure, facts: Facts, *, jitter: float, wait_s: float = 0.0) -> Past:
    """Return the past after one more attempt failed, at ``facts.now``.

    Args:
        past: The failures until now.
        kind: Why the attempt failed.
        facts: What is known. The pause is at most an eighth of the time that is left until ``renew_by``.
        jitter: A random number, 0 to 1, so that the keepers of a site do not come back together.
        wait_s: For LIMITED: the seconds that the service named.
    """
    if kind is Failure.NO_TOKEN:
        # Nothing was sent, so this is only the time until the next look at the source.
        failures, pause = past.failures, _FIRST_S["NO_TOKEN"]
    else:
        failures = past.failures + 1
        first = _FIRST_S.get(kind.name, 5.0)
        pause = min(_MOST_S, first * 2.0 ** min(failures - 1, 10))
    if kind is Failure.LIMITED:
        return Past(failures, facts.now, kind, min(_MOST_WAIT_S, max(wait_s, 5.0)) * (1.0 + 0.2 * jitter))
    least = min(pause, 60.0 if kind is Failure.REFUSED else 5.0)
    by = facts.cadence
    if by is not None:
        left = (by - facts.now).total_seconds()
        pause = min(pause, max(least, left / 8 if left > 0 else _PENDING_S))
    if facts.state is CertState.PENDING_RENEWAL:
        pause = min(pause, _PENDING_S)
    return Past(failures, facts.now, kind, pause * (0.8 + 0.4 * jitter))


def next_step(facts: Facts, past: Past = Past(), spread: float = 0.0) -> Step:  # noqa: B008 - immutable
    """Decide what comes next.

    Args:
        facts: What is known now.
        past: What failed since the last success.
        spread: A random number, 0 to 1, drawn once for each cadence: where in the third quarter the renewal is.
    """
    if facts.state is CertState.REVOKED:
        return Step(Action.STOP, why="its certificate was revoked")
    action, when, why = _wanted(facts, spread)
    if action is Action.WAIT or when > facts.now:
        return Step(Action.WAIT, min(when, facts.now + LONGEST), why)
    if past.at is not None and past.at <= facts.now:
        again = past.at + timedelta(seconds=past.pause_s)
        if facts.now < again:
            return Step(Action.WAIT, min(again, facts.now + LONGEST), why)
    return Step(action, why=why)


def _wanted(facts: Facts, spread: float) -> tuple[Action, datetime, str]:
    """Return the next request and its moment, whatever has failed before."""
    now, end = facts.now, facts.not_after
    if end is None:
        return Action.REPLACE, now, "there is no usable certificate"
    if facts.forgotten:
        return Action.REPLACE, now, "the certificate service does not know the certificate"
    if facts.state is CertState.EXPIRED or now >= end:
        return Action.REPLACE, now, "the certificate has expired"
    if facts.state is CertState.PENDING_APPROVAL:
        return Action.WAIT, end, "an administrator must approve it"
    if facts.state is CertState.PENDING_RENEWAL:
        return Action.RENEW, now, "its renewal is overdue"
    by = facts.cadence
    if by is not None:
        return Action.RENEW, _renewal_moment(facts, by, spread), "its renewal is due"
    if facts.hinted is not None:
        # The service says that there is a cadence, and not which.
        earliest = facts.hinted if facts.renewed is None else max(facts.hinted, facts.renewed + _SOON)
        return Action.RENEW, min(earliest + spread * _SOON, end), "the service says that its renewal is due"
    if facts.replace_at is not None:
        moment = facts.replace_at + spread * 0.3 * (end - facts.replace_at)
        return Action.REPLACE, min(moment, end), "the certificate ends soon"
    return Action.REPLACE, end, "the certificate ends"


def _renewal_moment(facts: Facts, by: datetime, spread: float) -> datetime:
    """Return a moment in the third quarter of the way to ``by``; after a hint, in the half of the rest that comes first."""
    since = facts.since
    if since is None or since >= by:
        return facts.now
    start = since + (by - since) / 2
    if facts.hinted is not None:
        # At least a tenth of the way, so that false hints cannot cause one request after the other.
        start = min(start, max(facts.hinted, since + (by - since) / 10))
    return start + spread * (by - start) / 2

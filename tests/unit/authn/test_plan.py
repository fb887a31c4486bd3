"""When a keeper renews: one row for each rule. What holds over years is in tests/property/test_plan.py."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from appliance.authn.live.plan import (
    LONGEST,
    STALE,
    Action,
    Facts,
    Failure,
    Past,
    after_failure,
    next_step,
    noticed,
    renewed,
)
from appliance.certs.status import CertState

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)


def at(minutes: float) -> datetime:
    return NOW + timedelta(minutes=minutes)


def facts(**changed: object) -> Facts:
    """A year's certificate with a cadence of an hour, which has just been renewed."""
    made = Facts(NOW, at(525_600), at(350_400), CertState.VALID, renew_by=at(60), since=NOW)
    return made._replace(**changed)  # type: ignore[arg-type]


VALID, OVERDUE = CertState.VALID, CertState.PENDING_RENEWAL
WAIT, RENEW, REPLACE, STOP = Action.WAIT, Action.RENEW, Action.REPLACE, Action.STOP


@pytest.mark.parametrize(
    ("known", "spread", "minutes", "action"),
    [
        (facts(not_after=None), 0.0, 0, REPLACE),
        (facts(forgotten=True), 0.0, 0, REPLACE),
        (facts(state=CertState.EXPIRED), 0.0, 0, REPLACE),
        (facts(now=at(525_600)), 0.0, 0, REPLACE),
        (facts(state=CertState.REVOKED), 0.0, 0, STOP),
        (facts(state=CertState.REVOKED, now=at(525_600)), 0.0, 0, STOP),
        (facts(state=CertState.PENDING_APPROVAL, now=at(55)), 0.0, 115, WAIT),
        # the third quarter, by the draw
        (facts(), 0.0, 30, WAIT),
        (facts(), 0.5, 37.5, WAIT),
        (facts(now=at(30)), 0.0, 0, RENEW),
        (facts(now=at(30)), 0.8, 42, WAIT),
        (facts(now=at(45)), 0.999, 0, RENEW),
        # a hint makes it earlier, but not before a tenth of the way
        (facts(now=at(10), hinted=at(10)), 0.0, 0, RENEW),
        (facts(now=at(10), hinted=at(10)), 0.5, 22.5, WAIT),
        (facts(now=at(1), hinted=at(1)), 0.0, 6, WAIT),
        (facts(now=at(31), state=OVERDUE), 0.9, 0, RENEW),
        # offline by schedule, and unknown: a renewal goes on all the same
        (facts(now=at(46), state=CertState.SCHEDULED_OFFLINE), 0.0, 0, RENEW),
        (facts(now=at(46), state=CertState.UNKNOWN), 0.0, 0, RENEW),
        # no cadence: two thirds and up to a tenth, if there is a second certificate before the end
        (facts(renew_by=None), 0.0, 60, WAIT),
        (facts(renew_by=None, now=at(350_400)), 0.0, 0, REPLACE),
        (facts(renew_by=None, now=at(350_400)), 1.0, 350_460, WAIT),
        (facts(renew_by=None, now=at(525_500), replace_at=None), 0.0, 525_560, WAIT),
        (facts(renew_by=at(525_600)), 0.0, 60, WAIT),
        (facts(renew_by=at(525_600), now=at(351_000)), 0.0, 0, REPLACE),
        # a hint, and nobody has said a date
        (facts(renew_by=None, hinted=NOW), 0.0, 0, RENEW),
        (facts(renew_by=None, hinted=NOW), 0.5, 0.5, WAIT),
        (facts(renew_by=None, hinted=NOW, renewed=NOW), 0.0, 1, WAIT),
    ],
)
def test_each_rule(known: Facts, spread: float, minutes: float, action: Action) -> None:
    step = next_step(known, Past(), spread)
    assert step.action is action
    if action is WAIT:
        assert step.until == at(minutes)
        assert step.until <= known.now + LONGEST


@pytest.mark.parametrize(
    ("kind", "known", "failures", "least", "most"),
    [
        (Failure.TRANSIENT, facts(), 0, 4, 6),
        (Failure.TRANSIENT, facts(), 3, 32, 48),
        (Failure.TRANSIENT, facts(), 40, 240, 360),
        (Failure.TRANSIENT, facts(now=at(56)), 40, 24, 36),
        (Failure.TRANSIENT, facts(now=at(59.9)), 40, 4, 6),
        (Failure.TRANSIENT, facts(now=at(61), state=OVERDUE), 40, 48, 72),
        (Failure.REFUSED, facts(), 0, 48, 72),
        (Failure.REFUSED, facts(now=at(59)), 4, 48, 72),
        (Failure.NO_TOKEN, facts(), 5, 8, 12),
        (Failure.LIMITED, facts(now=at(59)), 0, 45, 54),
    ],
)
def test_each_pause(kind: Failure, known: Facts, failures: int, least: float, most: float) -> None:
    for jitter, wanted in ((0.0, least), (1.0, most)):
        past = after_failure(Past(failures), kind, known, jitter=jitter, wait_s=45.0)
        assert past.pause_s == pytest.approx(wanted)
        assert past.failures == failures + (kind is not Failure.NO_TOKEN)


def test_a_pause_holds_until_it_is_over_or_the_clock_is_set_back() -> None:
    due = facts(now=at(46))
    past = after_failure(Past(), Failure.TRANSIENT, due, jitter=0.5)
    assert next_step(due, past).until == at(46) + timedelta(seconds=5)
    assert next_step(due._replace(now=at(47)), past).action is RENEW
    assert next_step(due._replace(now=at(45.9)), past).action is RENEW
    assert next_step(due._replace(state=CertState.REVOKED), past).action is STOP


def told(
    known: Facts, now: datetime, by: datetime | None, *, state: CertState = VALID, hint: bool = False
) -> Facts:
    return noticed(known, now, state=state, renew_by=by, hint=hint)


def test_a_hint_without_a_date_keeps_the_date_and_stays_until_it_moves() -> None:
    """pxvs-cms of 2026 says `renewal_due` once, with a `renew_by` of 0, and keeps silent afterwards."""
    known = told(facts(), at(50), None, hint=True)
    assert (known.renew_by, known.hinted) == (at(60), at(50))
    known = told(known, at(51), at(60))
    assert known.hinted == at(50)
    assert told(known, at(52), at(120)).hinted is None


def test_a_status_from_before_the_renewal_causes_no_second_one() -> None:
    known = renewed(facts(now=at(61), state=OVERDUE), at(62), state=OVERDUE, renew_by=at(122))
    assert (known.state, known.since) == (VALID, at(62))
    late = told(known, at(62.1), at(60), state=OVERDUE, hint=True)
    assert (late.state, late.renew_by, late.hinted) == (VALID, at(122), None)
    late = told(known, at(62.1), at(122), state=OVERDUE)
    assert late.state is VALID
    restored = told(known, at(62) + STALE, at(60), state=OVERDUE)
    assert (restored.state, restored.renew_by) == (OVERDUE, at(60)), "a restored database is believed"


def test_revoked_is_noticed_whatever_else_the_status_says() -> None:
    known = renewed(facts(), at(31), state=VALID, renew_by=at(91))
    assert told(known, at(31.1), None, state=CertState.REVOKED).state is CertState.REVOKED
    assert noticed(
        known, at(31.1), state=CertState.UNKNOWN, renew_by=None, hint=False, forgotten=True
    ).forgotten


def test_an_unsigned_status_leaves_the_state() -> None:
    assert told(facts(), at(1), at(60), state=CertState.UNKNOWN).state is VALID


def test_a_moved_date_counts_from_when_it_was_seen() -> None:
    known = told(facts(), at(20), at(80))
    assert next_step(known).until == at(50)

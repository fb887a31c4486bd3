"""Certificate status: SPVA specification 4.7, 7.2, 8."""

import locale
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.certs.status import (
    INITIAL,
    OCSP_CHOICES,
    STATE_CHOICES,
    STATUS_CLASS,
    TRANSITIONS,
    CertState,
    OCSPState,
    StatusClass,
    effective_state,
    format_date,
    judge,
    may_change,
    next_boundary,
    ocsp_state,
    parse_date,
    parse_state,
    renewal_due,
)
from appliance.errors import CertificateStatusError

S = CertState
NOW = datetime(2025, 3, 8, 15, 23, 21, tzinfo=UTC)
HOUR = timedelta(hours=1)
WINDOW = {"not_before": NOW - HOUR, "not_after": NOW + HOUR}


def test_choices_are_those_of_the_wire():
    """7.2."""
    assert STATE_CHOICES == (
        "UNKNOWN",
        "VALID",
        "PENDING",
        "PENDING_APPROVAL",
        "PENDING_RENEWAL",
        "SCHEDULED_OFFLINE",
        "EXPIRED",
        "REVOKED",
    )
    assert OCSP_CHOICES == ("OCSP_CERTSTATUS_GOOD", "OCSP_CERTSTATUS_REVOKED", "OCSP_CERTSTATUS_UNKNOWN")
    assert parse_state("VALID") is S.VALID
    assert parse_state("A_STATE_OF_2030") is S.UNKNOWN


def test_classes_are_those_of_the_specification():
    """8.4."""
    assert {state: str(found) for state, found in STATUS_CLASS.items()} == {
        "VALID": "GOOD",
        "SCHEDULED_OFFLINE": "SUSPENDED",
        "PENDING_RENEWAL": "SUSPENDED",
        "REVOKED": "BAD",
        "EXPIRED": "BAD",
        "UNKNOWN": "UNKNOWN",
        "PENDING": "UNKNOWN",
        "PENDING_APPROVAL": "UNKNOWN",
    }
    with pytest.raises(TypeError):
        STATUS_CLASS[S.REVOKED] = StatusClass.GOOD


PERMITTED = """
PENDING_APPROVAL: REVOKED PENDING VALID EXPIRED
PENDING: VALID
VALID: REVOKED SCHEDULED_OFFLINE PENDING_RENEWAL EXPIRED
SCHEDULED_OFFLINE: VALID REVOKED EXPIRED
PENDING_RENEWAL: VALID REVOKED EXPIRED
"""
BEYOND = """
PENDING_APPROVAL: PENDING_RENEWAL SCHEDULED_OFFLINE
PENDING: EXPIRED PENDING_RENEWAL REVOKED SCHEDULED_OFFLINE
PENDING_RENEWAL: SCHEDULED_OFFLINE
SCHEDULED_OFFLINE: PENDING_RENEWAL
"""


def table(*texts):
    return {
        (S(old), S(new))
        for text in texts
        for old, _, new_states in (line.partition(":") for line in text.strip().splitlines())
        for new in new_states.split()
    }


@pytest.mark.parametrize(("old", "new"), list(product(S, S)))
def test_transitions_are_those_of_the_specification_and_the_stated_additions(old, new):
    """8.3."""
    assert may_change(old, new) is ((old, new) in table(PERMITTED, BEYOND))


def test_a_certificate_begins_in_the_states_of_the_specification():
    assert (
        {new for new in S if may_change(None, new)}
        == INITIAL
        == {S.PENDING_APPROVAL, S.PENDING, S.VALID, S.SCHEDULED_OFFLINE, S.EXPIRED}
    )


def test_revoked_and_expired_absorb():
    assert not TRANSITIONS[S.REVOKED]
    assert not TRANSITIONS[S.EXPIRED]


states = st.sampled_from(S)
offsets = st.integers(-7200, 7200).map(lambda s: NOW + timedelta(seconds=s))


lives = {
    "state": states,
    "now": offsets,
    "not_before": offsets,
    "not_after": offsets,
    "renew_by": st.none() | offsets,
    "is_open": st.none() | st.booleans(),
}


@given(**lives)
def test_the_clock_makes_permitted_changes_only(state, now, **life):
    found = effective_state(state, now=now, **life)
    assert found is state or may_change(state, found)
    assert effective_state(found, now=now, **life) is found, "looking twice changes nothing"
    assert not (found is S.VALID and now >= life["not_after"])
    assert not (found is S.VALID and life["renew_by"] is not None and now >= life["renew_by"])
    assert not (found is S.VALID and life["is_open"] is False)
    assert not (state is S.PENDING_APPROVAL and found is S.VALID), "time is no administrator"
    assert not (state is S.PENDING_RENEWAL and found is S.VALID), "time renews nothing"
    assert not (found is S.SCHEDULED_OFFLINE and life["is_open"]), "an open schedule keeps nobody out"
    if life["is_open"] is None:
        assert found is not S.SCHEDULED_OFFLINE or state is found, "an unknown schedule closes nothing"
        assert not (state is S.SCHEDULED_OFFLINE and found is S.VALID), "and opens nothing"


@given(**lives)
def test_nothing_changes_before_the_next_boundary_and_something_does_at_it(state, now, **life):
    found = effective_state(state, now=now, **life)
    boundary = next_boundary(state, now=now, **life)
    if boundary is None:
        assert found in (S.REVOKED, S.EXPIRED, S.UNKNOWN)
        return
    assert boundary > now
    assert effective_state(state, now=boundary - timedelta(seconds=1), **life) is found
    assert effective_state(state, now=boundary, **life) is not found


@given(change=offsets.filter(lambda when: when > NOW), **lives)
def test_a_change_of_the_schedule_is_a_boundary_only_where_it_counts(change, now, **life):
    if change <= now:
        return
    found = effective_state(now=now, **life)
    without = next_boundary(now=now, **life)
    boundary = next_boundary(now=now, change=change, **life)
    if found in (S.VALID, S.SCHEDULED_OFFLINE):
        assert boundary == min(change, without)
    else:
        assert boundary == without


def test_boundaries_count_at_their_instant():
    """8.1: VALID if not_before <= now < not_after."""
    assert effective_state(S.PENDING, now=NOW, not_before=NOW, not_after=NOW + HOUR) is S.VALID
    assert effective_state(S.PENDING, now=NOW, not_before=NOW + HOUR, not_after=NOW + 2 * HOUR) is S.PENDING
    assert effective_state(S.PENDING, now=NOW, not_before=NOW - HOUR, not_after=NOW) is S.EXPIRED
    assert effective_state(S.VALID, now=NOW, renew_by=NOW, **WINDOW) is S.PENDING_RENEWAL
    assert (
        effective_state(S.PENDING, now=NOW, not_before=NOW, not_after=NOW + HOUR, renew_by=NOW)
        is S.PENDING_RENEWAL
    )
    assert (
        effective_state(S.PENDING, now=NOW, not_before=NOW, not_after=NOW + HOUR, is_open=False)
        is S.SCHEDULED_OFFLINE
    )
    assert effective_state(S.SCHEDULED_OFFLINE, now=NOW + HOUR, **WINDOW) is S.EXPIRED


def test_a_clock_that_steps_back_undoes_nothing_but_a_schedule():
    assert effective_state(S.PENDING_RENEWAL, now=NOW, renew_by=NOW + HOUR / 2, **WINDOW) is S.PENDING_RENEWAL
    assert effective_state(S.SCHEDULED_OFFLINE, now=NOW, is_open=True, **WINDOW) is S.VALID
    assert effective_state(S.VALID, now=NOW - 2 * HOUR, **WINDOW) is S.VALID
    assert effective_state(S.EXPIRED, now=NOW, **WINDOW) is S.EXPIRED


def test_renewal_is_due_from_the_half_of_the_way():
    """4.7.3."""
    assert not renewal_due(now=NOW, updated=NOW, renew_by=None)
    assert not renewal_due(now=NOW + HOUR / 2 - timedelta(seconds=1), updated=NOW, renew_by=NOW + HOUR)
    assert renewal_due(now=NOW + HOUR / 2, updated=NOW, renew_by=NOW + HOUR)


def test_ocsp_says_good_for_valid_alone():
    assert {state for state in S if ocsp_state(state) is OCSPState.GOOD} == {S.VALID}
    assert {state for state in S if ocsp_state(state) is OCSPState.REVOKED} == {S.REVOKED}


@pytest.mark.parametrize(("signed", "claimed"), list(product(OCSPState, S)))
def test_only_a_signature_makes_a_certificate_good(signed, claimed):
    found = judge(signed, claimed, next_update=NOW + HOUR, now=NOW)
    assert (found.status_class is StatusClass.GOOD) is (signed is OCSPState.GOOD and claimed is S.VALID)
    if signed is OCSPState.REVOKED:
        assert found.status_class is StatusClass.BAD
    assert found.valid_until == NOW + HOUR


@pytest.mark.parametrize(("signed", "claimed"), list(product(OCSPState, S)))
def test_an_old_answer_means_unknown(signed, claimed):
    """8.4."""
    assert judge(signed, claimed, next_update=NOW, now=NOW).status_class is StatusClass.UNKNOWN


def test_what_the_service_signs_is_judged_as_the_state_it_meant():
    for state in S:
        assert judge(ocsp_state(state), state, next_update=NOW + HOUR, now=NOW).state is state


# ---------------------------------------------------------------------- dates


def test_dates_read_as_the_reference_prints_them():
    assert format_date(NOW) == "Sat Mar 08 15:23:21 2025 UTC"
    assert format_date(NOW.astimezone(timezone(HOUR))) == "Sat Mar 08 15:23:21 2025 UTC"
    assert format_date(None) == ""
    assert parse_date("Sat Mar 08 15:23:21 2025 UTC") == NOW
    assert parse_date("Sat Mar  8 15:23:21 2025 UTC") == NOW
    assert parse_date("") is None


@given(st.datetimes(min_value=datetime(1970, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001
def test_dates_survive_their_text_and_ignore_the_locale(when):
    when = when.replace(microsecond=0)
    assert parse_date(format_date(when)) == when
    if locale.setlocale(locale.LC_TIME) == "C":
        assert (
            format_date(when).removesuffix(" UTC") == when.strftime("%a %b %d %H:%M:%S ") + f"{when.year:04d}"
        )


@pytest.mark.parametrize(
    "text",
    ["x", "Sat Mar 08 15:23:21 2025", "Sat Mar 08 15:23:21 2025 CET", "Sam Mar 08 15:23:21 2025 UTC",
     "Sat Feb 30 15:23:21 2025 UTC", "Sat Mar 08 25:23:21 2025 UTC", "Sat Mar 08 15:23 2025 UTC",
     "Sat Mar -8 15:23:21 2025 UTC", "Sat Mar 08 15:23:21 0 UTC", "Sat Mar 08 15:23:21 99999 UTC"],
)  # fmt: skip
def test_other_texts_are_no_dates(text):
    with pytest.raises(CertificateStatusError, match="date"):
        parse_date(text)


@given(st.text(max_size=60))
def test_random_texts_give_a_date_or_the_stated_error(text):
    with suppress(CertificateStatusError):
        parse_date(text)

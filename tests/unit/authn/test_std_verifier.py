"""What a request without any proof of identity may obtain."""

from datetime import UTC, datetime, timedelta

import pytest

from appliance.authn.std.verifier import StdRequest, verify

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
END = NOW + timedelta(days=30)


def granted(not_before):
    request = StdRequest("n", "o", "", "CH", "client", not_before, 0)
    return verify(request, now=NOW, default_end=END, custom_durations=True, approval_needed=True)


@pytest.mark.parametrize(
    ("ahead_s", "begins_s"),
    [(-3600, -300), (-1, -300), (0, -300), (1, -300), (60, -300), (61, 61), (3600, 3600)],
)
def test_a_requester_whose_clock_is_a_little_fast_need_not_wait(ahead_s, begins_s):
    """SPVA 9.1: `not_before` is the requester's time of day, as authnstd of PVXS 1.3.1 sends it."""
    grant = granted(int(NOW.timestamp()) + ahead_s)
    assert grant.not_before == NOW + timedelta(seconds=begins_s)
    assert grant.not_after == END


def test_a_request_without_a_begin_begins_some_time_back_for_clocks_that_are_behind():
    assert granted(0).not_before == NOW - timedelta(minutes=5)

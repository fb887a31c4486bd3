import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.config.duration import Duration, parse_duration
from appliance.errors import ConfigurationError

START = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)


@pytest.mark.parametrize(("text", "duration", "rendered"), [
    ("30", Duration(0, 1800), "30m"), (" 30 ", Duration(0, 1800), "30m"), (30, Duration(0, 1800), "30m"),
    ("45s", Duration(0, 45), "45s"), ("1d", Duration(0, 86400), "1d"), ("2w", Duration(0, 14 * 86400), "14d"),
    ("1y6M", Duration(18, 0), "1y 6M"), ("1y2d and 3h", Duration(12, 2 * 86400 + 3 * 3600), "1y 2d 3h"),
    ("3d, 6h, 3m", Duration(0, 3 * 86400 + 6 * 3600 + 180), "3d 6h 3m"), ("1 y", Duration(12, 0), "1y"),
    ("1y 6M 30d 12h 30m 45s", Duration(18, 30 * 86400 + 45045), "1y 6M 30d 12h 30m 45s"),
    ("0", Duration(), "0m"), ("36h", Duration(0, 129600), "1d 12h"),
])  # fmt: skip
def test_durations(text, duration, rendered):
    """SPVA manual, duration strings."""
    assert parse_duration(text) == duration
    assert str(duration) == rendered
    assert parse_duration(rendered) == duration


@pytest.mark.parametrize("text", [
    "", " ", "abc", "1x", "y", "1y 5", "1.5h", "-5", -5, "5d-", "and 1d", "9" * 30, "9" * 30 + "d", "2000y", "1e3",
    "\N{SUPERSCRIPT TWO}d",
])  # fmt: skip
def test_what_is_no_duration_is_refused_with_a_reason(text):
    with pytest.raises(ConfigurationError, match="duration"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["20270131", 20270131, "19991231"])
def test_a_date_is_no_number_of_minutes(text):
    with pytest.raises(
        ConfigurationError, match=f"{text} is a date, or {text} minutes; for these write {text}m"
    ):
        parse_duration(text)
    assert parse_duration(f"{text}m").seconds == 60 * int(text)


def test_eight_digits_that_are_no_date_are_minutes():
    assert parse_duration("20271331").seconds == 60 * 20271331
    assert parse_duration("10000000").seconds == 60 * 10000000


def test_a_huge_number_is_refused_without_being_printed():
    with pytest.raises(ConfigurationError, match="a huge number"):
        parse_duration(10**5000)


@pytest.mark.parametrize(("text", "end"), [
    ("1M", dt.datetime(2026, 2, 28, 12, tzinfo=dt.UTC)),
    ("25M", dt.datetime(2028, 2, 29, 12, tzinfo=dt.UTC)),
    ("11M", dt.datetime(2026, 12, 31, 12, tzinfo=dt.UTC)),
    ("1y 1d", dt.datetime(2027, 2, 1, 12, tzinfo=dt.UTC)),
])  # fmt: skip
def test_months_follow_the_calendar_and_end_within_their_month(text, end):
    assert parse_duration(text).after(START) == end
    assert parse_duration(text).total_s(START) == (end - START).total_seconds()


def test_a_duration_past_the_end_of_time_is_refused():
    with pytest.raises(ConfigurationError, match="9999"):
        parse_duration("1000y").after(START.replace(year=9500))
    with pytest.raises(ConfigurationError, match="9999"):
        parse_duration("1d").after(START.replace(year=9999, month=12))


def test_the_last_month_of_time_still_works():
    assert parse_duration("11M").after(START.replace(year=9999)) == START.replace(year=9999, month=12)


@given(st.text(alphabet=st.sampled_from("0123456789yMwdhms, .and-")) | st.text())
def test_any_text_is_a_duration_or_a_configuration_error(text):
    try:
        duration = parse_duration(text)
    except ConfigurationError:
        return
    assert parse_duration(str(duration)) == duration
    assert duration.total_s(START) >= 0


@given(st.integers(0, 12000), st.integers(0, 10**9))
def test_every_duration_is_read_back_as_printed(months, seconds):
    assert parse_duration(str(Duration(months, seconds))) == Duration(months, seconds)

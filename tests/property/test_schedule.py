"""No minute of any schedule is wrong, in any zone, whatever its clocks do."""

import calendar
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from appliance.certs.schedule import Schedule, Timetable, Window, parse_windows, read_windows
from appliance.config.zones import time_zone
from appliance.errors import ConfigurationError

ZONES = (
    "UTC",
    "Europe/Berlin",
    "Australia/Lord_Howe",  # half an hour of daylight saving
    "Asia/Tokyo",
    "America/St_Johns",
    "Pacific/Apia",
)
MINUTE = timedelta(minutes=1)
times = st.integers(0, 1439)
# Few instants, so that windows meet and overlap.
edges = times | st.sampled_from([0, 1, 60, 120, 150, 180, 1439])
windows = st.builds(Window, st.sampled_from("0123456*"), edges, edges)
schedules = st.lists(windows, min_size=1, max_size=5).map(tuple)
# Around the changes of the clocks of 2026, and the day that Apia never had: 30 December 2011.
moments = st.sampled_from(
    [
        datetime(2026, 3, 28, tzinfo=UTC),
        datetime(2026, 10, 24, tzinfo=UTC),
        datetime(2026, 4, 4, tzinfo=UTC),
        datetime(2026, 10, 3, tzinfo=UTC),
        datetime(2011, 12, 29, tzinfo=UTC),
        datetime(2026, 12, 31, tzinfo=UTC),
    ]
).flatmap(lambda day: st.integers(0, 2 * 86400).map(lambda seconds: day + timedelta(seconds=seconds)))


def shows(local, window):
    """The rule in words: the wall shows a time in the window of today, or in that of yesterday which goes on."""
    minute, today = local.hour * 60 + local.minute, (local.weekday() + 1) % 7
    if window.begin < window.end:
        return window.day in ("*", str(today)) and window.begin <= minute < window.end
    if window.day in ("*", str(today)) and minute >= window.begin:
        return True
    return window.day in ("*", str((today - 1) % 7)) and minute < window.end


def brute(now, listed, zone):
    local = now.astimezone(ZoneInfo(zone))
    return any(shows(local, window) for window in listed)


@given(st.sampled_from(ZONES), schedules, moments)
@example("Europe/Berlin", (Window("0", 150, 170),), datetime(2026, 3, 28, 23, 59, 59, tzinfo=UTC))
@example("Pacific/Apia", (Window("5", 60, 120),), datetime(2011, 12, 30, 9, tzinfo=UTC))
def test_it_is_open_while_the_wall_shows_a_time_in_a_window(zone, listed, now):
    table = Timetable(Schedule(listed, zone), time_zone(zone))
    for step in range(0, 2880, 7):
        at = now + step * MINUTE
        assert table.covers(at) is brute(at, listed, zone), at.astimezone(ZoneInfo(zone))


@given(st.sampled_from(ZONES), schedules, moments)
@example("Pacific/Apia", (Window("5", 60, 120),), datetime(2011, 12, 30, 9, tzinfo=UTC))
@example("Europe/Berlin", (Window("0", 60, 150),), datetime(2026, 10, 25, 0, 20, tzinfo=UTC))
def test_the_next_change_is_the_first_minute_that_differs(zone, listed, now):
    table = Timetable(Schedule(listed, zone), time_zone(zone))
    now_open = brute(now, listed, zone)
    change = table.next_change(now)
    if change is None:
        for step in range(0, 15 * 1440, 11):
            assert brute(now + step * MINUTE, listed, zone) is now_open
        return
    assert change > now
    assert change.second == change.microsecond == 0
    assert brute(change, listed, zone) is not now_open
    assert table.covers(change) is not now_open
    second_before = change - timedelta(seconds=1)
    assert table.covers(second_before) is brute(second_before, listed, zone) is now_open
    at = now.replace(second=0) + MINUTE
    assume(change - now < timedelta(days=3))
    while at < change:
        assert brute(at, listed, zone) is now_open, at
        at += MINUTE


@given(st.sampled_from(ZONES), schedules, moments)
def test_what_is_remembered_gives_no_other_answer(zone, listed, now):
    fresh, used = (Timetable(Schedule(listed, zone), time_zone(zone)) for _ in range(2))
    used.next_change(now)
    for seconds in (0, 1, 3599, 90_000, -1, -90_000, 400_000):
        at = now + timedelta(seconds=seconds)
        assert used.covers(at) is brute(at, listed, zone)
        assert used.next_change(at) == fresh.next_change(at)
        clocks = used.next_offset(at)
        if clocks is not None or fresh.next_offset(at) is None:
            assert clocks == fresh.next_offset(at)
        else:
            assert fresh.next_offset(at) > at + timedelta(days=7), (
                "only what is farther than a week may be missed"
            )


@given(st.sampled_from(ZONES), schedules, st.integers(0, 51))
def test_the_windows_in_utc_cover_the_same_minutes_while_the_clocks_are_not_changed(zone, listed, week):
    now = datetime(2026, 1, 4, tzinfo=UTC) + week * timedelta(days=7)
    tz = time_zone(zone)
    table = Timetable(Schedule(listed, zone), tz)
    moved = table.in_utc(now)
    assert len(moved) <= len(listed)
    change = table.next_offset(now)
    for step in range(0, 7 * 1440, 13):
        at = now + step * MINUTE
        if change is not None and at >= change:
            break
        assert brute(at, moved, "UTC") is brute(at, listed, zone), at
    if change is not None:
        before, after = (at.astimezone(tz).utcoffset() for at in (change - timedelta(seconds=1), change))
        assert before != after
        assert before == now.astimezone(tz).utcoffset()


def test_clocks_that_are_changed_are_found_in_each_zone_that_changes_them():
    for zone, days in {
        "Europe/Berlin": [(3, 29), (10, 25)],
        "Australia/Lord_Howe": [(4, 4), (10, 3)],
        "Asia/Tokyo": [],
        "UTC": [],
    }.items():
        table = Timetable(Schedule((Window("*", 0, 1),), zone), time_zone(zone))
        at, found = datetime(2026, 1, 1, tzinfo=UTC), []
        while at.year == 2026:
            change = table.next_offset(at)
            if change is not None:
                found.append((change.month, change.day))
            at = change or at + timedelta(days=7)
        assert found == days, zone


def test_the_hour_that_comes_twice_counts_twice_and_the_one_that_is_skipped_not_at_all():
    berlin = time_zone("Europe/Berlin")
    table = Timetable(Schedule((Window("0", 60, 150),), "Europe/Berlin"), berlin)
    # Autumn, 25 October 2026: 01:00 to 02:30, the wall goes from 03:00 to 02:00 at 01:00 UTC.
    at = datetime(2026, 10, 24, 12, tzinfo=UTC)
    changes = []
    for _ in range(4):
        at = table.next_change(at)
        changes.append(f"{at:%d %H:%M}")
    assert changes == ["24 23:00", "25 00:30", "25 01:00", "25 01:30"]
    # Spring, 29 March 2026: 02:30 to 03:10 opens at the jump from 02:00 to 03:00, at 01:00 UTC.
    table = Timetable(Schedule((Window("0", 150, 190),), "Europe/Berlin"), berlin)
    first = table.next_change(datetime(2026, 3, 28, tzinfo=UTC))
    assert [f"{when:%d %H:%M}" for when in (first, table.next_change(first))] == ["29 01:00", "29 01:10"]


def test_always_and_never():
    always = Timetable(Schedule((), "Europe/Berlin"), time_zone("Europe/Berlin"))
    whole = Timetable(Schedule((Window("*", 480, 480),)), UTC)
    unknown = Timetable(Schedule((Window("*", 0, 1),), "Mars/Base"), None)
    now = datetime(2026, 5, 1, tzinfo=UTC)
    assert always.covers(now)
    assert whole.covers(now)
    assert not unknown.covers(now)
    assert not any(table.next_change(now) for table in (always, whole, unknown))
    assert unknown.next_offset(now) is None
    assert unknown.in_utc(now) == unknown.schedule.windows, "it must not look as if it were always open"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1,08:00,17:00", ["1,08:00,17:00"]),
        (" mon , 08:00 , 17:00 ", ["1,08:00,17:00"]),
        ("*,22:00,06:00", ["*,22:00,06:00"]),
        ("MON-FRI,08:00,17:00", [f"{day},08:00,17:00" for day in "12345"]),
        ("FRI-MON,00:00,00:00", [f"{day},00:00,00:00" for day in "5601"]),
        ("5-5,00:00,23:59", ["5,00:00,23:59"]),
    ],
)
def test_windows_of_options(text, found):
    assert [str(window) for window in parse_windows(text)] == found
    assert calendar.day_abbr[0].upper() == "MON"  # the locale's names are not ours


@pytest.mark.parametrize(
    "text",
    ["", "1", "1,08:00", "1,08:00,17:00,x", "7,08:00,17:00", "MONDAY,08:00,17:00", "1,8:00,17:00", "1,08:00,24:00",
     "1,08:60,17:00", "1,08:00:00,17:00", "*-5,08:00,17:00", "1-,08:00,17:00", "-1,08:00,17:00", "\u0661,08:00,17:00", "1,\u0660\u0668:00,17:00",
     "1-2-3,08:00,17:00"],
)  # fmt: skip
def test_other_windows_are_refused_with_the_part_that_is_wrong(text):
    with pytest.raises(ValueError, match="write"):
        parse_windows(text)


@given(st.lists(windows, max_size=70))
def test_schedules_survive_their_text_and_equal_ones_have_equal_texts(listed):
    rows = [window.wire for window in listed]
    if len(listed) > 64:
        with pytest.raises(ValueError, match="64"):
            read_windows(rows)
        return
    found = read_windows(rows)
    assert set(found) == set(listed)
    assert read_windows([window.wire for window in reversed(listed)]) == found
    for by in ("holder", "admin"):
        schedule = Schedule(found, "Europe/Berlin", by)
        text = schedule.to_text()
        if found or by == "admin":
            assert Schedule.from_text(text) == schedule
        else:
            assert text == ""
            assert Schedule.from_text(text) == Schedule()


@pytest.mark.parametrize(
    "name", ["Mars/Base", "../../etc/passwd", "/etc/localtime", "x" * 65, "Europe", "\0", "Europe/Berlin\n"]
)
def test_other_zones_are_refused(name):
    with pytest.raises(ConfigurationError, match="time zone"):
        time_zone(name)

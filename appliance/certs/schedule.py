"""Schedules: in which hours of the week a certificate is in use. Outside of them it is SCHEDULED_OFFLINE.

Source: SPVA specification 4.7.4 and 8.3; the form of windows is that of pvxs-cms of 2026. Everything here is pure: the time
and the time zone come in.

One rule: a certificate is in use while the clock on the wall of its zone shows a time within a window. An hour that the
clock skips in spring does not exist, and one that it shows twice in autumn counts both times.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final, Literal, NamedTuple

__all__ = ["DAYS", "MOST_WINDOWS", "Schedule", "Timetable", "Window", "parse_windows", "read_windows"]

MOST_WINDOWS: Final = 64
"""Largest number of windows of one schedule."""
DAYS: Final = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
"""The days of `Window.day`, in order."""
_MINUTES: Final = 24 * 60
_WEEK: Final = 7 * _MINUTES
_DAY: Final = timedelta(days=1)
_AHEAD: Final = timedelta(days=8)
"""A schedule that opens and closes does so within this time, except where a day does not exist."""
_FARTHEST: Final = 3 * _AHEAD
_TIME: Final = re.compile("([01][0-9]|2[0-3]):([0-5][0-9])")


class Window(NamedTuple):
    """Hours of one day of the week, or of each day."""

    day: str
    """``0`` (Sunday) to ``6``, or ``*`` for each day."""
    begin: int
    """Minute of the day from which on it is open."""
    end: int
    """Minute of the day at which it closes; if not after ``begin``, on the next day. Equal to it: 24 hours."""

    @property
    def wire(self) -> tuple[str, str, str]:
        """As ``day_of_week``, ``start_time`` and ``end_time`` have it."""
        return self.day, _shown(self.begin), _shown(self.end)

    def __str__(self) -> str:
        return ",".join(self.wire)


class Schedule(NamedTuple):
    """The windows of one certificate, and who set them."""

    windows: tuple[Window, ...] = ()
    """It is in use in any of them; always, if there are none."""
    zone: str = ""
    """Name of the time zone (IANA) in which the windows are; empty for UTC."""
    by: Literal["holder", "admin"] = "holder"
    """Who set it. What an administrator set goes over to the subject's next certificates."""

    def to_text(self) -> str:
        """Return it as the database has it, empty for a holder's that is always open."""
        if not self.windows and self.by == "holder":
            return ""
        parts = {"by": self.by, "windows": [window.wire for window in self.windows], "zone": self.zone}
        return json.dumps(parts, separators=(",", ":"), sort_keys=True)

    @classmethod
    def from_text(cls, text: str) -> Schedule:
        """Return the schedule of `to_text`.

        Raises:
            ValueError: It is another text.
        """
        if not text:
            return cls()
        parts = json.loads(text)
        return cls(read_windows(parts["windows"]), parts["zone"], parts["by"])


def parse_windows(text: str) -> tuple[Window, ...]:
    """Read ``DAY,HH:MM,HH:MM`` as options have it: one window, or one for each day of a range.

    DAY is ``*``, ``0`` (Sunday) to ``6``, ``SUN`` to ``SAT``, or a range such as ``MON-FRI``.

    Raises:
        ValueError: It has another form; the text says which part.
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 3:
        raise ValueError(
            f"{text[:64]!r} is not a window of a schedule; write DAY,HH:MM,HH:MM, such as MON-FRI,08:00,17:00"
        )
    first, dash, last = parts[0].partition("-")
    begin, end = _minute(parts[1]), _minute(parts[2])
    if not dash:
        return (Window(_day(first), begin, end),)
    days = [_day(first), _day(last)]
    if "*" in days:
        raise ValueError(
            f"{parts[0][:64]!r} is not a range of days; write for example MON-FRI, or * for each day"
        )
    start, length = int(days[0]), (int(days[1]) - int(days[0])) % 7 + 1
    return tuple(Window(str((start + step) % 7), begin, end) for step in range(length))


def read_windows(rows: Iterable[Iterable[str]]) -> tuple[Window, ...]:
    """Read windows as peers send them, ``day_of_week``, ``start_time`` and ``end_time`` of each.

    Returns:
        Each window once, in a fixed order, so that equal schedules have equal texts.

    Raises:
        ValueError: A part has another form, or there are more than `MOST_WINDOWS`.
    """
    found = set()
    for number, row in enumerate(rows, 1):
        if number > MOST_WINDOWS:
            raise ValueError(f"the schedule has more than {MOST_WINDOWS} windows; have fewer")
        day, begin, end = row
        found.add(Window(_day(day), _minute(begin), _minute(end)))
    return tuple(sorted(found))


def _day(text: str) -> str:
    word = text.strip().upper()
    if word in DAYS:
        return str(DAYS.index(word))
    if word == "*" or (len(word) == 1 and word in "0123456"):
        return word
    raise ValueError(
        f"{text[:64]!r} is not a day of the week; write 0 (Sunday) to 6, SUN to SAT, or * for each day"
    )


def _minute(text: str) -> int:
    found = _TIME.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text[:64]!r} is not a time of the day; write HH:MM, from 00:00 to 23:59")
    return int(found[1]) * 60 + int(found[2])


def _shown(minute: int) -> str:
    return f"{minute // 60:02d}:{minute % 60:02d}"


class Timetable:
    """What a schedule means in its time zone ``tz``; None: the zone is not known here, and it is never open."""

    def __init__(self, schedule: Schedule, tz: tzinfo | None) -> None:
        self.schedule = schedule
        self.tz = tz
        self._edges = [0, _WEEK] if not schedule.windows else _edges(schedule.windows)
        if tz is None:
            self._edges = []
        self._known: tuple[datetime, datetime, bool] | None = None
        """From when to when the answer is what, as found last. One object, because two threads ask."""
        self._clocks: tuple[datetime, datetime, datetime | None] | None = None
        """The same for `next_offset`."""

    def covers(self, now: datetime) -> bool:
        """Whether the schedule is open at ``now``, aware."""
        known = self._known
        if known is not None and known[0] <= now < known[1]:
            return known[2]
        return self._is_open(now)

    def next_change(self, now: datetime) -> datetime | None:
        """Return the first instant after ``now`` at which `covers` has another answer; None if there is none."""
        if self._edges in ([], [0, _WEEK]):
            return None
        known = self._known
        if known is not None and known[0] <= now < known[1]:
            return known[1]
        is_open = self._is_open(now)
        at, last = now, now + _FARTHEST
        while at < last:
            at = self._next_look(at)
            if self._is_open(at) is not is_open:
                self._known = (now, at, is_open)
                return at
        return None

    def next_offset(self, now: datetime) -> datetime | None:
        """Return the first instant after ``now`` at which `in_utc` has another answer; None if none is within a week."""
        known = self._clocks
        if known is not None and known[0] <= now < known[1]:
            return known[2]
        found = self._offset_change(now, now + _AHEAD)
        self._clocks = (now, found or now + _DAY, found)
        return found

    def in_utc(self, now: datetime) -> tuple[Window, ...]:
        """Return the windows in UTC, at the zone's difference from UTC that is in force at ``now``."""
        if self.tz is None:
            return self.schedule.windows
        minutes = self._offset(now) // timedelta(minutes=1)
        return tuple(sorted(_moved(window, -minutes) for window in self.schedule.windows))

    def _offset(self, at: datetime) -> timedelta:
        offset = at.astimezone(self.tz).utcoffset()
        assert offset is not None
        return offset

    def _is_open(self, at: datetime) -> bool:
        return self.tz is not None and bisect_right(self._edges, _of_week(at.astimezone(self.tz))) % 2 == 1

    def _next_look(self, at: datetime) -> datetime:
        """Return the first instant after ``at`` at which the clock on the wall reaches an edge or jumps."""
        local = at.astimezone(self.tz)
        minute = _of_week(local)
        place = bisect_right(self._edges, minute)
        ahead = self._edges[place] if place < len(self._edges) else _WEEK + self._edges[0]
        into = timedelta(seconds=local.second, microseconds=local.microsecond)
        found = at + timedelta(minutes=ahead - minute) - into
        return self._offset_change(at, found) or found

    def _offset_change(self, begin: datetime, end: datetime) -> datetime | None:
        """Return the first instant after ``begin``, until ``end``, at which the difference from UTC is another one."""
        if self.tz is None:
            return None
        # In UTC, because the difference of two times of one zone is what their clocks show.
        before, limit, offset = begin.astimezone(UTC), end.astimezone(UTC), self._offset(begin)
        while before < limit:
            after = min(before + _DAY, limit)
            if self._offset(after) != offset:
                break
            before = after
        else:
            return None
        after = after.replace(microsecond=0) + timedelta(seconds=1)  # clocks are changed at whole seconds
        before = before.replace(microsecond=0)
        while after - before > timedelta(seconds=1):
            middle = before + timedelta(seconds=(after - before) // timedelta(seconds=2))
            if self._offset(middle) == offset:
                before = middle
            else:
                after = middle
        return after


def _of_week(local: datetime) -> int:
    return local.isoweekday() % 7 * _MINUTES + local.hour * 60 + local.minute


def _edges(windows: Iterable[Window]) -> list[int]:
    """Return the minutes of the week at which a union of windows opens and closes, in turn."""
    parts: list[tuple[int, int]] = []
    for window in windows:
        length = (window.end - window.begin - 1) % _MINUTES + 1
        for day in range(7) if window.day == "*" else (int(window.day),):
            begin = day * _MINUTES + window.begin
            parts += [(begin, min(begin + length, _WEEK)), (0, begin + length - _WEEK)]
    edges: list[int] = []
    for begin, end in sorted(part for part in parts if part[0] < part[1]):
        if edges and begin <= edges[-1]:
            edges[-1] = max(edges[-1], end)
        else:
            edges += [begin, end]
    return edges


def _moved(window: Window, minutes: int) -> Window:
    begin = window.begin + minutes
    day = window.day if window.day == "*" else str((int(window.day) + begin // _MINUTES) % 7)
    return Window(day, begin % _MINUTES, (window.end + minutes) % _MINUTES)

"""Durations as in the certificate tools: ``30`` (minutes), ``1d``, ``1y6M``, ``1y 2d and 3h``.

Source: SPVA manual, duration strings. The reference parser ignores all punctuation, so it reads ``1.5h`` as fifteen hours and
``-5`` as five minutes. Here both are refused.
"""

from __future__ import annotations

import datetime as dt
import re
from functools import lru_cache
from typing import Final

from appliance.errors import ConfigurationError

__all__ = ["Duration", "parse_duration"]

_PART: Final = re.compile(r"([0-9]{1,9})\s*([A-Za-z])")
_BETWEEN: Final = re.compile(r"(?:[\s,;]|\band\b)*")
_SECONDS: Final = {"w": 604800, "d": 86400, "h": 3600, "m": 60, "s": 1}
_EXAMPLES: Final = "examples: 30 (minutes), 45s, 12h, 1d, 2w, 6M, 1y6M"
_LONGEST_MONTHS: Final = 12 * 1000
_LONGEST_S: Final = 1000 * 366 * 86400


class Duration:
    """Calendar months and exact seconds: ``1M`` ends on the same day of the next month, ``30d`` after 30 times 24 hours."""

    # Not a named tuple: msgspec would read one from a list of two numbers instead of calling parse_duration.
    __slots__ = ("months", "seconds")

    def __init__(self, months: int = 0, seconds: int = 0) -> None:
        self.months = months
        self.seconds = seconds

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Duration) and (self.months, self.seconds) == (other.months, other.seconds)

    def __hash__(self) -> int:
        return hash((self.months, self.seconds))

    def __bool__(self) -> bool:
        return bool(self.months or self.seconds)

    def __repr__(self) -> str:
        return f"Duration({str(self)!r})"

    def after(self, start: dt.datetime) -> dt.datetime:
        """Return the end of the duration; a day that the last month does not have becomes its last day.

        Raises:
            ConfigurationError: The end is after the year 9999.
        """
        try:
            days = _days(start.year, start.month, start.day, self.months) if self.months else 0
            return start + dt.timedelta(days, self.seconds)
        except (ValueError, OverflowError) as error:
            raise ConfigurationError(f"the duration {self} ends after the year 9999") from error

    def total_s(self, start: dt.datetime) -> float:
        """Return the seconds from ``start``, an aware UTC time, to the end."""
        return (self.after(start) - start).total_seconds()

    def __str__(self) -> str:
        years, months = divmod(self.months, 12)
        days, rest = divmod(self.seconds, 86400)
        hours, rest = divmod(rest, 3600)
        minutes, seconds = divmod(rest, 60)
        numbers = (years, months, days, hours, minutes, seconds)
        return (
            " ".join(f"{number}{unit}" for number, unit in zip(numbers, "yMdhms", strict=True) if number)
            or "0m"
        )


@lru_cache(maxsize=64)
def _days(year: int, month: int, day: int, months: int) -> int:
    """Return the days from a date to the same day of a later month."""
    end_year, end_month = divmod(year * 12 + month - 1 + months, 12)
    last = 31 if end_month == 11 else (dt.date(end_year, end_month + 2, 1) - dt.timedelta(days=1)).day
    return (dt.date(end_year, end_month + 1, min(day, last)) - dt.date(year, month, day)).days


def parse_duration(text: str | int) -> Duration:
    """Read a duration.

    Years and months follow the calendar, so their length depends on the start: see `Duration`.

    Raises:
        ConfigurationError: It is not a duration; the text says what is wrong and shows examples.
    """
    shown = str(text).strip() if not isinstance(text, int) or -(10**18) < text < 10**18 else "a huge number"
    if shown.isascii() and shown.isdecimal() and len(shown) <= 9:
        if _is_date(shown):
            raise ConfigurationError(
                f"{shown} is a date, or {int(shown)} minutes; for these write {shown}m. {_EXAMPLES}"
            )
        return _bounded(Duration(0, 60 * int(shown)), shown)
    if not shown:
        raise ConfigurationError(f"a duration must not be empty; {_EXAMPLES}")
    months = seconds = position = 0
    while position < len(shown):
        part = _PART.match(shown, position)
        if part is None:
            raise ConfigurationError(
                f"{shown[:80]!r} is not a duration: expected a whole number and a unit at {shown[position : position + 20]!r}; "
                f"{_EXAMPLES}"
            )
        number, unit = int(part[1]), part[2]
        if unit in _SECONDS:
            seconds += number * _SECONDS[unit]
        elif unit in "yM":
            months += number * (12 if unit == "y" else 1)
        else:
            raise ConfigurationError(
                f"{shown[:80]!r} is not a duration: unknown unit {unit!r}; units are y(ears), M(onths), w(eeks), d(ays), "
                f"h(ours), m(inutes), s(econds)"
            )
        position = part.end()
        between = _BETWEEN.match(shown, position)
        position = between.end() if between else position
    return _bounded(Duration(months, seconds), shown)


def _is_date(digits: str) -> bool:
    """Whether eight digits are a date of these times, as 20270131 is. In minutes they would be 38 years."""
    try:
        return (
            len(digits) == 8
            and 1970 <= dt.datetime.strptime(digits, "%Y%m%d").replace(tzinfo=dt.UTC).year < 2200
        )
    except ValueError:
        return False


def _bounded(duration: Duration, shown: str) -> Duration:
    if duration.months > _LONGEST_MONTHS or duration.seconds > _LONGEST_S:
        raise ConfigurationError(f"the duration {shown[:80]!r} is longer than a thousand years")
    return duration

"""Whether this host's clock may be believed: it is compared with one that nobody sets, and with the database server's.

Three clocks tell the time. This host's is the one that people and programs set. The steady one counts seconds since the host has
booted, and nobody can set it. A database server has its own. Where they part, two of them show which is the wrong one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

__all__ = ["BELIEVED_S", "NOTICED_S", "WRONG_S", "HostClock", "parted", "steady_s"]

_log: Final = logging.getLogger(__name__)
WRONG_S: Final = 60.0
"""So many seconds this host's clock may differ from the database's, or be set by. What a clock that is further off says of certificates
is neither signed nor written: EXPIRED is for good, and at all nodes."""
NOTICED_S: Final = 5.0
"""A difference that the health tells, and from which on it can be seen which clock was set."""
BELIEVED_S: Final = 240.0
"""Seconds after which a clock that was set is believed, if no database says otherwise. A wrong time is often corrected within
seconds, and a status that is to be signed again is good for five minutes more."""

_NO_CLOCK_S: Final = 100 * 366 * 86400.0
"""No clock is that far behind: such a record is damaged."""


def steady_s() -> float:
    """Return seconds of a clock that nobody sets. It goes on while the host is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _shown(seconds: float) -> str:
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"
    except (ValueError, OverflowError, OSError):
        return "no date"


def parted(ours: float, theirs: float) -> str:
    """Return in words that this host's clock differs from the database's, both in POSIX seconds."""
    where = "ahead of" if ours > theirs else "behind"
    return (
        f"this host's clock ({_shown(ours)}) is {abs(ours - theirs):.0f} s {where} the database's ({_shown(theirs)}); "
        "correct the one that is wrong"
    )


class _Jump(NamedTuple):
    ahead: float
    """How far the clock is ahead of the steady one since it was set."""
    since: float
    """When that was noticed, by the steady clock."""


class HostClock:
    """This host's clock, and what it is compared with.

    Args:
        wall: This host's clock, in POSIX seconds.
        steady: The clock that nobody sets.
    """

    def __init__(
        self, *, wall: Callable[[], float] = time.time, steady: Callable[[], float] = steady_s
    ) -> None:
        self._wall, self._steady = wall, steady
        self._believed = wall() - steady()
        """How far it was ahead of the steady clock when it was believed last."""
        self._database: float | None = None
        """How far the database's clock is ahead of the steady one, as it was heard last; None without a server."""
        self._agreed: float | None = None
        """The same, when this host's clock was believed last."""
        self._jump: _Jump | None = None

    def heard(self, ahead_s: float) -> None:
        """Take how far the database's clock is ahead of the steady one."""
        self._database = ahead_s
        self._look()

    def resumes(self, behind_s: float) -> None:
        """Take how far the time is behind what was recorded last, before this process began.

        A clock that went back while nobody looked is not believed at once either: a board without a battery begins in the past.
        """
        if WRONG_S < behind_s < _NO_CLOCK_S:
            self._believed += behind_s
            self._look()

    def _now(self) -> tuple[float, float]:
        """Return the steady clock, and how far this host's is ahead of it."""
        while True:
            steady, wall = self._steady(), self._wall()
            if self._steady() - steady < 1.0:  # else this process stood still between the two
                return steady, wall - steady

    def _look(self) -> tuple[float, bool]:
        """Compare the clocks; return how far this host's is ahead of the steady one, and whether the database says otherwise."""
        steady, ahead = self._now()
        database = self._database
        differs = database is not None and abs(database - ahead) > WRONG_S
        by, jump = ahead - self._believed, self._jump
        if abs(by) <= WRONG_S:
            if jump is not None:
                self._jump = None
                _log.warning("this host's clock is right again", extra={"event": "clock-right"})
            if not differs:
                self._believed, self._agreed = ahead, database
        elif jump is None or abs(jump.ahead - ahead) > WRONG_S:
            self._jump = _Jump(ahead, steady)
            _log.error(
                "this host's clock was set from %s to %s: nothing is issued, and no status is signed, until that is known to be right",
                _shown(steady + self._believed), _shown(steady + ahead), extra={"event": "clock-set"},
            )  # fmt: skip
        elif not differs and steady - jump.since >= BELIEVED_S:
            self._believed, self._agreed, self._jump = ahead, database, None
            _log.warning(
                "the time to which this host's clock was set is believed now",
                extra={"event": "clock-believed"},
            )
        return ahead, differs

    @property
    def offset_s(self) -> float:
        """How far the database's clock is ahead of this host's; 0 without a server."""
        ahead, _ = self._look()
        return 0.0 if self._database is None else self._database - ahead

    def by_the_steady_one(self, now: datetime) -> datetime:
        """Return the time as it would be had nobody set this host's clock: ``now``, as long as it is believed."""
        ahead, differs = self._look()
        return now - timedelta(seconds=ahead - self._believed) if differs or self._jump is not None else now

    def is_set(self) -> bool:
        """Whether it was set, and is not believed."""
        ahead, differs = self._look()
        return self._jump is not None or (differs and abs(ahead - self._believed) > NOTICED_S)

    def fault(self) -> str:
        """Return why nothing is issued or recorded that depends on the time; empty if it may be."""
        _, differs = self._look()
        return self._why() if differs or self._jump is not None else ""

    def unsigned(self) -> str:
        """Return why no status is signed; empty if it may be.

        It may be where only the database's clock was set, so that one wrong clock does not end the statuses of all nodes.
        """
        _, differs = self._look()
        if self._jump is None and (not differs or self._only_theirs()):
            return ""
        return self._why()

    def trouble(self) -> str:
        """Return what the health says of the clocks: also of a difference with which everything goes on."""
        ahead, _ = self._look()
        differs = self._database is not None and abs(self._database - ahead) > NOTICED_S
        return self._why() if differs or self._jump is not None else ""

    def _only_theirs(self) -> bool:
        """Whether the database's clock was set since the two agreed, and this host's was not."""
        database, agreed = self._database, self._agreed
        if database is None or agreed is None or abs(database - agreed) <= NOTICED_S:
            return False
        return abs(self._wall() - self._steady() - self._believed) <= NOTICED_S

    def _why(self) -> str:
        steady, ours, database, jump = self._steady(), self._wall(), self._database, self._jump
        if database is not None and abs(steady + database - ours) > NOTICED_S:
            who = (
                "; this host's was set"
                if self.is_set()
                else "; the database's was set"
                if self._only_theirs()
                else ""
            )
            return parted(ours, steady + database) + who
        if jump is None:
            return "this host's clock was set"
        left = max(0.0, jump.since + BELIEVED_S - steady)
        return (
            f"this host's clock was set from {_shown(steady + self._believed)} to {_shown(ours)}; if that is wrong, correct it; if it is right, "
            f"the service goes on by itself in {left:.0f} s"
        )

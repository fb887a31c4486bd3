"""Which of three clocks is wrong: this host's, the one that nobody sets, or the database's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from appliance.cms.hostclock import BELIEVED_S, NOTICED_S, WRONG_S, HostClock

DAY = 86400.0


class Host:
    """A host and a database whose clocks a test sets."""

    def __init__(self, *, database: bool) -> None:
        self.steady, self.wall, self.database = 1000.0, 1_900_000_000.0, 1_900_000_003.0
        self.has_database = database
        self.clock = HostClock(wall=lambda: self.wall, steady=lambda: self.steady)
        self.beat()

    def beat(self) -> None:
        if self.has_database:
            self.clock.heard(self.database - self.steady)

    def passes(self, seconds: float) -> None:
        self.steady, self.wall, self.database = (
            self.steady + seconds,
            self.wall + seconds,
            self.database + seconds,
        )
        self.beat()

    def now(self) -> datetime:
        return self.clock.by_the_steady_one(datetime.fromtimestamp(self.wall, UTC))

    @property
    def verdict(self) -> tuple[bool, bool, bool]:
        """Whether it records and issues, whether it signs, and whether it leaves its clients to others."""
        return not self.clock.fault(), not self.clock.unsigned(), self.clock.is_set()


ALL, NOTHING, SIGNS = (True, True, False), (False, False, True), (False, True, False)


@pytest.mark.parametrize("database", [True, False], ids=["database server", "file"])
@pytest.mark.parametrize("by", [400 * DAY, WRONG_S + 1, -WRONG_S - 1, -400 * DAY])
def test_a_clock_that_is_set_far_is_not_believed_and_put_right_it_is_at_once(database, by):
    host = Host(database=database)
    assert host.verdict == ALL
    before = host.now()
    host.wall += by
    assert host.verdict == NOTHING, "before the next beat"
    host.passes(30)
    assert host.verdict == NOTHING
    assert abs(host.now() - before - timedelta(seconds=30)) < timedelta(milliseconds=1), (
        "what ends meanwhile, ends in time"
    )
    host.wall -= by
    assert host.verdict == ALL
    assert not host.clock.trouble()


@pytest.mark.parametrize("by", [WRONG_S - 1, 1 - WRONG_S])
def test_a_clock_that_is_corrected_a_little_is_believed_however_often(by):
    host = Host(database=False)
    for _ in range(5):
        host.wall += by
        assert host.verdict == ALL
        host.passes(10)
    assert host.now() == datetime.fromtimestamp(host.wall, UTC)


def test_without_a_database_server_a_clock_that_stays_set_is_believed_after_some_minutes():
    host = Host(database=False)
    host.wall += DAY
    host.passes(0)
    said = host.clock.trouble()
    assert "was set from 2030-03-17T17:46:40Z to 2030-03-18T17:46:40Z" in said
    assert f"goes on by itself in {BELIEVED_S:.0f} s" in said
    host.passes(BELIEVED_S - 1)
    assert host.verdict == NOTHING
    host.wall += DAY  # and once more: the time begins again
    host.passes(2)
    assert host.verdict == NOTHING
    host.passes(BELIEVED_S)
    assert host.verdict == ALL
    assert host.now() == datetime.fromtimestamp(host.wall, UTC)


def test_what_a_database_contradicts_is_never_believed():
    host = Host(database=True)
    host.wall += DAY
    for _ in range(10):
        host.passes(BELIEVED_S)
        assert host.verdict == NOTHING
    assert "ahead of the database's" in host.clock.trouble()
    assert host.clock.trouble().endswith("; this host's was set")


def test_where_only_the_databases_clock_was_set_statuses_are_signed_and_both_times_are_told():
    host = Host(database=True)
    host.database += DAY
    host.beat()
    assert host.verdict == SIGNS
    said = host.clock.fault()
    assert "(2030-03-17T17:46:40Z)" in said
    assert "(2030-03-18T17:46:43Z)" in said
    assert said.endswith("; correct the one that is wrong; the database's was set")
    assert len(said) < 256, "CERT:HEALTH shows no more"
    assert host.now() == datetime.fromtimestamp(host.wall, UTC)
    host.passes(DAY)
    assert host.verdict == SIGNS
    host.database -= DAY
    host.beat()
    assert host.verdict == ALL


def test_a_clock_that_follows_a_wrong_database_is_not_believed_at_once():
    host = Host(database=True)
    host.database += DAY
    host.beat()
    host.wall += DAY
    assert host.verdict == NOTHING
    host.passes(BELIEVED_S)
    assert host.verdict == ALL


def test_clocks_that_part_slowly_are_told_long_before_nothing_is_signed():
    host = Host(database=True)
    for _ in range(int(WRONG_S)):
        host.database += 1.0
        host.passes(60)
        told = host.database - host.wall > NOTICED_S
        assert bool(host.clock.trouble()) is told
    issues, signs, is_set = host.verdict
    assert (issues, signs, is_set) == (False, False, False), "nobody knows whose is the wrong one"


def test_a_process_that_stood_still_between_two_looks_has_no_wrong_clock():
    host = Host(database=False)
    steps = iter([3 * WRONG_S])

    def wall() -> float:
        host.passes(next(steps, 0.0))
        return host.wall

    host.clock._wall = wall
    assert host.verdict == ALL


@pytest.mark.parametrize("behind", [WRONG_S + 1, 400 * DAY])
def test_a_clock_that_went_back_while_the_service_was_off_is_not_believed_at_once(behind):
    host = Host(database=False)
    before = host.now()
    host.clock.resumes(behind)
    assert host.verdict == NOTHING
    host.passes(10)
    assert host.verdict == NOTHING
    assert abs(host.now() - before - timedelta(seconds=behind + 10)) < timedelta(milliseconds=1), (
        "time goes on from what was recorded last"
    )
    host.passes(BELIEVED_S)
    assert host.verdict == ALL
    assert abs(host.now() - before - timedelta(seconds=BELIEVED_S + 10)) < timedelta(milliseconds=1)


def test_a_clock_that_went_back_is_right_again_when_it_is_corrected():
    host = Host(database=False)
    host.clock.resumes(400 * DAY)
    host.wall += 400 * DAY
    assert host.verdict == ALL


@pytest.mark.parametrize("behind", [-400 * DAY, 0.0, WRONG_S, 1e300])
def test_what_was_recorded_before_or_cannot_be_true_says_nothing(behind):
    host = Host(database=False)
    host.clock.resumes(behind)
    assert host.verdict == ALL

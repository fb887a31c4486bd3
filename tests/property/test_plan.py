"""A planner follows services of every kind for years, in fake time: it is never late without cause, and it never storms.

The services lose hints, give them late or without the date, and lose answers; tokens come and go, clocks are set.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.authn.live.plan import (
    LONGEST,
    Action,
    Facts,
    Failure,
    Past,
    Step,
    after_failure,
    next_step,
    noticed,
    renewed,
)
from appliance.certs.status import CertState

START = datetime(2026, 11, 29, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
EDGE = timedelta(seconds=9)
"""What an attempt, the shortest pause and its jitter take."""


class Kind(NamedTuple):
    """How one service, its network and its tokens behave."""

    cadence: timedelta
    life: timedelta
    hint_before: timedelta
    """How long before ``renew_by`` the hint comes; nothing comes if it is negative."""
    hint_has_date: bool
    lost: float
    """How many of the answers are lost on the way."""
    refused: float
    """How many of the requests are refused, or limited, or find no token."""
    outage: float
    """How long the service cannot be reached now and then, in cadences."""
    between: float
    """How long it can be reached, in cadences."""
    seed: int


durations = st.integers
kinds = st.builds(
    Kind,
    cadence=st.sampled_from([120, 600, 3600, 86400, 7 * 86400, 30 * 86400]).map(
        lambda s: timedelta(seconds=s)
    ),
    life=durations(40, 400).map(lambda d: timedelta(days=d)),
    hint_before=st.sampled_from([-1, 60, 900, 3600, 86400]).map(lambda s: timedelta(seconds=s)),
    hint_has_date=st.booleans(),
    lost=st.sampled_from([0.0, 0.1, 0.5]),
    refused=st.sampled_from([0.0, 0.1, 0.3]),
    outage=st.sampled_from([0.0, 0.01, 0.2, 0.6, 2.0]),
    between=st.floats(0.05, 5),
    seed=durations(0, 1 << 30),
)


class World:
    """One service and one keeper, at the keeper's pace."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.random = random.Random(kind.seed)
        self.now = START
        self.renew_by = START + kind.cadence
        self.not_after = START + kind.life
        self.up = True
        self.until = START + kind.between * kind.cadence
        self.hinted = False
        self.requests: list[tuple[datetime, bool]] = []
        self.up_since = self.held = START
        """Since when the service can be reached; until when a refusal may have the keeper wait."""
        self.late: list[tuple[datetime, timedelta]] = []
        self.spread = self.random.random()
        self.past = Past()
        self.facts = self.certificate()

    def certificate(self) -> Facts:
        facts = Facts(self.now, self.not_after, self.now + (self.not_after - self.now) * 2 / 3)
        return noticed(facts, self.now, state=CertState.VALID, renew_by=self.renew_by, hint=False)

    @property
    def state(self) -> CertState:
        return CertState.PENDING_RENEWAL if self.now >= self.renew_by else CertState.VALID

    def pass_until(self, when: datetime) -> None:
        """Let time pass, with everything that happens meanwhile. An event lets the keeper decide again."""
        kind = self.kind
        hint = self.renew_by - kind.hint_before
        events = [self.until]
        if self.now < self.renew_by:
            events.append(self.renew_by)
        if kind.hint_before > timedelta() and not self.hinted and self.now < hint:
            events.append(hint)
        self.now = now = min([when, *events])
        if now == self.until:
            was, self.up = self.up, not self.up or kind.outage == 0.0
            self.until = now + kind.cadence * (kind.between if self.up else kind.outage) * (
                0.5 + self.random.random()
            )
            if self.up and not was:
                self.up_since = now
                self.tell()
        if now == hint and not self.hinted:
            self.hinted = True
            if self.up:
                self.tell(hint=True)
        elif now == self.renew_by:
            self.late.append((now, now - max(self.up_since, self.held) if self.up else timedelta()))
            if self.up:
                self.tell()

    def tell(self, *, hint: bool = False) -> None:
        date = None if hint and not self.kind.hint_has_date else self.renew_by
        self.facts = noticed(self.facts, self.now, state=self.state, renew_by=date, hint=hint)

    def request(self) -> None:
        kind, dice = self.kind, self.random
        moved = False
        failure: Failure | None = None
        wait_s = 0.0
        if not self.up:
            failure = Failure.TRANSIENT
        elif dice.random() < kind.refused:
            failure = dice.choice([Failure.REFUSED, Failure.LIMITED, Failure.NO_TOKEN])
            wait_s = dice.uniform(1, 60)
            self.held = self.now + timedelta(seconds=360)
        else:
            moved = True
            # Past this, the service issues a new certificate instead (an issuer with a lifetime).
            replaced = self.now + kind.cadence >= self.not_after
            if replaced:
                self.not_after = self.now + kind.life
            self.renew_by, self.hinted = self.now + kind.cadence, False
            if dice.random() < kind.lost:
                # The keeper looks at the status first, and finds what has happened.
                failure = Failure.TRANSIENT
            if replaced:
                self.facts = self.certificate()
                failure = None
            elif failure is None:
                self.facts = renewed(self.facts, self.now, state=CertState.VALID, renew_by=self.renew_by)
        if failure is not Failure.NO_TOKEN:
            self.requests.append((self.now, failure is None))
        if failure is None:
            self.past, self.spread = Past(), dice.random()
        else:
            self.past = after_failure(self.past, failure, self.facts, jitter=dice.random(), wait_s=wait_s)
            if moved:
                self.tell()

    def step(self) -> Step:
        step = next_step(self.facts._replace(now=self.now), self.past, self.spread)
        self.facts = self.facts._replace(now=self.now)
        if step.action is Action.WAIT:
            assert step.until is not None
            assert step.until > self.now, "a wait that ends at once is a loop without end"
            assert step.until <= self.now + LONGEST
            self.pass_until(step.until)
        else:
            assert step.action is not Action.STOP
            self.request()
        return step


@settings(max_examples=60, deadline=None)
@given(kinds)
def test_it_renews_in_time_whenever_it_could_and_never_storms(kind: Kind) -> None:
    world = World(kind)
    end = START + timedelta(days=730)
    for _ in range(3000):
        world.step()
        if world.now >= end:
            break
    for when, good in world.late:
        # A keeper that fails waits an eighth of what is left, so a few good seconds are always enough.
        assert good <= EDGE, f"late at {when} although all was good for {good}"
    for (before, success), (after, _) in zip(world.requests, world.requests[1:], strict=False):
        gap = after - before
        assert gap >= (min(kind.cadence / 10, timedelta(minutes=1)) if success else 3.9 * SECOND), (
            before,
            after,
        )


@settings(max_examples=40, deadline=None)
@given(kinds, st.lists(st.integers(-400 * 86400, 400 * 86400), max_size=20))
def test_a_clock_that_is_set_causes_at_most_one_request_more(kind: Kind, jumps: list[int]) -> None:
    world = World(kind._replace(outage=0.0, refused=0.0, lost=0.0))
    for jump in jumps:
        for _ in range(20):
            world.step()
        before = len(world.requests)
        offset = timedelta(seconds=jump)
        # Everybody's clock: the dates of the service stay, so a certificate may be over or far from it.
        world.now += offset
        world.until = world.now + kind.between * kind.cadence
        for _ in range(3):
            step = next_step(world.facts._replace(now=world.now), world.past, world.spread)
            if step.action is Action.WAIT:
                break
            world.facts = world.facts._replace(now=world.now)
            world.request()
        assert len(world.requests) <= before + 2


@given(
    st.sampled_from(CertState),
    st.booleans(),
    st.one_of(st.none(), st.integers(-10_000, 10_000)),
    st.one_of(st.none(), st.integers(-10_000, 10_000)),
    st.one_of(st.none(), st.integers(-10_000, 10_000)),
    st.floats(0, 1),
)
def test_any_facts_give_a_step(
    state: CertState, forgotten: bool, by: int | None, since: int | None, hinted: int | None, spread: float
) -> None:
    def at(offset: int | None) -> datetime | None:
        return None if offset is None else START + timedelta(seconds=offset)

    facts = Facts(
        START,
        at(8000),
        at(6000),
        state,
        forgotten,
        at(by),
        at(since if by is not None else None),
        at(hinted),
        None,
    )
    step = next_step(facts, Past(), spread)
    assert (step.action is Action.STOP) == (state is CertState.REVOKED)
    if step.action is Action.WAIT:
        assert step.until is not None
        assert START < step.until <= START + LONGEST

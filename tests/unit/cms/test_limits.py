"""Limits that all nodes share: exact whoever counts, nothing taken by a refusal, and closed while the database cannot be asked."""

import asyncio

import pytest
import sqlalchemy as sa

from appliance.cms.dialect import engine_for
from appliance.cms.limits import Rate, SharedLimits, grant
from appliance.cms.transaction import StoreError

MINUTE = 60_000_000
SECOND = 1_000_000
NOW = 1_800_000_000 * SECOND
PER_SECOND = Rate(60, 3)
"""One a second, three at once."""


def take(arrivals, now, *keys, rate=PER_SECOND):
    return grant(arrivals, now, [dict.fromkeys(keys, rate)])[0]


def test_so_many_come_at_once_and_then_one_at_a_time():
    arrivals = {}
    assert [take(arrivals, NOW, "a") for _ in range(4)] == [0, 0, 0, 1.0]
    assert take(arrivals, NOW + SECOND // 2, "a") == 0.5
    assert take(arrivals, NOW + SECOND, "a") == 0
    assert take(arrivals, NOW + SECOND, "a") == 1.0


def test_who_waits_the_named_seconds_is_admitted_and_a_long_pause_saves_no_more_than_a_burst():
    arrivals = {}
    for _ in range(3):
        take(arrivals, NOW, "a")
    wait = take(arrivals, NOW, "a")
    assert take(arrivals, NOW + round(wait * SECOND), "a") == 0
    assert [take(arrivals, NOW + 60 * MINUTE, "a") for _ in range(4)] == [0, 0, 0, 1.0]


def test_keys_do_not_hurt_each_other_and_a_refusal_by_one_takes_nothing_of_the_other():
    arrivals = {}
    for _ in range(3):
        take(arrivals, NOW, "a")
    before = dict(arrivals)
    assert take(arrivals, NOW, "a", "all") == 1.0
    assert arrivals == before
    assert take(arrivals, NOW, "b", "all") == 0
    assert arrivals["all"] == arrivals["b"] == NOW + SECOND


def test_requests_that_are_asked_about_together_are_counted_one_after_the_other():
    waits = grant({}, NOW, [{"a": PER_SECOND}, {"a": PER_SECOND, "b": Rate(60, 1)}] + [{"a": PER_SECOND}] * 2)
    assert waits == [0, 0, 0, 1.0]


def test_a_clock_that_was_ahead_closes_no_limit_for_longer_than_it_was():
    assert take({"a": NOW + 10 * SECOND}, NOW, "a") == 8.0


@pytest.fixture
def database(postgres):
    name = postgres.new()
    yield postgres.url(name)
    postgres.drop(name)


@pytest.fixture
async def two(database):
    """The limits of two nodes."""
    made = [SharedLimits(engine_for(database).connect, wait_s=0.0) for _ in range(2)]
    yield made
    for limits in made:
        await limits.close()


SLOW = Rate(0.1, 7)
"""One in ten minutes, so that no test is slow enough to get another one."""


async def test_two_nodes_together_allow_exactly_the_burst(two):
    asked = [limits.take({"10.0.0.1": SLOW}) for _ in range(20) for limits in two]
    waits = await asyncio.gather(*asked)
    assert sum(not wait for wait in waits) == 7
    assert 0 < max(waits) <= 600
    # Later requests are refused at either node, and another address is not hurt.
    assert await two[0].take({"10.0.0.1": SLOW})
    assert await two[1].take({"10.0.0.1": SLOW})
    assert await two[1].take({"10.0.0.2": SLOW}) == 0


async def test_a_limit_of_all_addresses_holds_at_all_nodes_and_its_refusals_cost_an_address_nothing(two):
    overall = Rate(0.1, 5)
    asked = [limits.take({f"10.0.0.{number}": SLOW, "": overall}) for number in range(10) for limits in two]
    waits = await asyncio.gather(*asked)
    assert sum(not wait for wait in waits) == 5
    for number in range(10):
        waits = [await two[0].take({f"10.0.0.{number}": Rate(0.1, 2)}) for _ in range(3)]
        assert sum(not wait for wait in waits) <= 2
        assert waits[2]
    assert await two[0].take({"10.0.0.77": Rate(0, 1)}) == 0, "a rate of nothing is no limit"


async def test_while_the_database_cannot_be_asked_nothing_is_allowed_and_it_comes_back_by_itself(
    two, database
):
    limits = two[0]
    assert await limits.take({"10.0.0.1": SLOW}) == 0
    with engine_for(database).connect() as beside:
        others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        beside.execute(sa.text(others))
        beside.execute(sa.text("ALTER TABLE limits RENAME TO away"))
        beside.commit()
        with pytest.raises(StoreError, match="the limit of requests cannot be asked about"):
            await limits.take({"10.0.0.1": SLOW})
        beside.execute(sa.text("ALTER TABLE away RENAME TO limits"))
        beside.commit()
    waits = [await limits.take({"10.0.0.1": SLOW}) for _ in range(7)]
    assert sum(not wait for wait in waits) == 6


async def test_a_connection_that_was_lost_costs_no_refusal(database):
    limits = SharedLimits(engine_for(database).connect, wait_s=30.0)
    assert await limits.take({"10.0.0.1": SLOW}) == 0
    with engine_for(database).connect() as beside:
        beside.execute(
            sa.text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
    assert await limits.take({"10.0.0.1": SLOW}) == 0
    await limits.close()


async def test_a_server_that_is_frozen_makes_nobody_wait_for_ever(two, database, monkeypatch):
    with engine_for(database).connect() as beside, monkeypatch.context() as short:
        short.setattr("appliance.cms.limits._SILENT_S", 0.1)
        beside.execute(sa.text("LOCK TABLE limits"))  # as if: it does not answer
        for _ in range(2):
            with pytest.raises(StoreError, match="the database does not answer; nothing was done"):
                await two[0].take({"10.0.0.1": SLOW})
        assert not two[0]._waiting
        beside.rollback()
    assert await two[1].take({"10.0.0.1": SLOW}) == 0


async def test_who_waits_when_the_service_stops_is_refused(database):
    limits = SharedLimits(engine_for(database).connect)
    asked = [asyncio.ensure_future(limits.take({"10.0.0.1": SLOW})) for _ in range(3)]
    await asyncio.sleep(0)
    await limits.close()
    for done in await asyncio.gather(*asked, return_exceptions=True):
        assert done == 0 or "the service stops" in str(done)


async def test_keys_of_an_hour_ago_are_forgotten(two, database, monkeypatch):
    monkeypatch.setattr("appliance.cms.limits._SWEEP_EVERY", -1)
    with engine_for(database).begin() as beside:
        beside.execute(sa.text("INSERT INTO limits VALUES ('old', 5), ('new', 9000000000000000)"))
    await two[0].take({"10.0.0.1": SLOW})
    with engine_for(database).connect() as beside:
        assert set(beside.execute(sa.text("SELECT key FROM limits")).scalars()) == {"new", "10.0.0.1"}

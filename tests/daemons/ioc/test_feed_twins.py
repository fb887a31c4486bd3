"""Updates that are made from a record's memory, beside those of the general way: the same octets for the same change."""

from __future__ import annotations

import asyncio
import itertools
import math
from pathlib import Path

from tests.helpers.isolated import isolated
from tests.helpers.records_here import Client, run, served

RECORDS = """
record(ao, "ao") { field(HIHI, "80") field(HHSV, "MAJOR") field(LOW, "-5") field(LSV, "MINOR") field(EGU, "V") }
record(longout, "longout") { field(HIGH, "1000") field(HSV, "MINOR") }
record(int64out, "int64out") {}
record(bo, "bo") { field(ZNAM, "off") field(ONAM, "on") field(OSV, "MAJOR") }
record(mbbo, "mbbo") { field(ZRVL, "0") field(ONVL, "1") field(TWVL, "2") field(TWST, "two") field(TWSV, "MINOR") }
record(stringout, "stringout") { field(DESC, "a text") }
record(stringin, "stringin") { field(UTAG, "0") }
record(longout, "end") {}
"""
NAMES = ["ao", "longout", "int64out", "bo", "mbbo", "stringout", "stringin"]


@isolated
def test_one_by_one_the_octets_are_those_of_the_general_way(tmp_path: Path) -> None:
    compare(many=1000)


@isolated
def test_many_at_once_the_octets_are_those_of_the_general_way(tmp_path: Path) -> None:
    compare(many=1)


def compare(many: int) -> None:
    """Let hypothesis change records; ``many`` are so many that they are handled at once."""
    from hypothesis import HealthCheck, example, given, settings
    from hypothesis import strategies as st

    # Any octets but nul, more than a string of EPICS has room for among them.
    texts = st.one_of(
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20),
        st.binary(max_size=45).map(lambda raw: raw.replace(b"\0", b"0").decode("utf-8", "surrogateescape")),
        st.sampled_from(["", "a", "x" * 38, "x" * 39, "x" * 40, "\u20ac" * 13]),
    )
    changes = st.one_of(
        st.tuples(st.just("ao"), st.one_of(st.floats(), st.sampled_from([90.0, -6.0, 0.0]))),
        st.tuples(st.just("longout"), st.integers(-(1 << 31), (1 << 31) - 1)),
        st.tuples(st.just("int64out"), st.integers(-(1 << 63), (1 << 63) - 1)),
        st.tuples(st.just("bo"), st.integers(0, 1)),
        st.tuples(st.just("mbbo"), st.integers(0, 3)),
        st.tuples(st.sampled_from(["stringout", "stringin"]), texts),
    )

    async def test() -> None:
        from appliance.ioc import number_feed

        number_feed._MANY = many  # type: ignore[misc]
        async with served(RECORDS, [*NAMES, "end"]) as ioc:
            # Other events than the default's make it a client of the general feed; ARCHIVE comes with each VALUE here.
            twice = [name for name in (*NAMES, "end") for _ in range(2)]
            requests = ["field()", "record[DBE=7]field()"] * (len(NAMES) + 1)
            client = await asyncio.to_thread(Client, ioc.port)
            await asyncio.to_thread(client.watch, twice, requests)
            await asyncio.to_thread(client.until, lambda it: len(it.got) == len(twice))
            from appliance.ioc import feed, text_feed

            kinds = {type(sink) for _, keys in ioc.stream.hub._rings.values() for sink in keys.values()}
            assert {feed.Feed, number_feed.NumberFeed, text_feed.TextFeed} <= kinds
            ends = itertools.count(1)
            loop = asyncio.get_running_loop()
            compared = [0]

            async def step(steps: list[tuple[str, object]]) -> None:
                for name, value in steps:
                    await ioc.put({name: value})
                last = next(ends)
                await ioc.put({"end": last})
                end = len(twice)
                await asyncio.to_thread(
                    client.until, lambda it: it.last(end) == last and it.last(end - 1) == last
                )
                for number, name in enumerate(NAMES):
                    fast, general = client.got[2 * number + 1], client.got[2 * number + 2]
                    assert fast == general, name
                    compared[0] += len(fast)
                    fast.clear()
                    general.clear()

            @settings(deadline=None, max_examples=25, database=None, suppress_health_check=list(HealthCheck))
            @given(st.lists(changes, min_size=1, max_size=4))
            @example(
                [("stringin", "x" * 39), ("stringout", "x" * 40), ("stringin", ""), ("stringout", "\udcff")]
            )
            @example([("ao", 90.0), ("ao", 91.0), ("ao", -6.0), ("ao", math.nan), ("ao", math.nan)])
            def same(steps: list[tuple[str, object]]) -> None:
                asyncio.run_coroutine_threadsafe(step(steps), loop).result(90)

            await asyncio.to_thread(same)
            assert compared[0] > 25
            assert bool(ioc.stream.boards) == (many == 1)

    run(test)

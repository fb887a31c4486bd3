"""The list of all names of an IOC with many records."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.helpers.ioc_process import running_ioc
from tests.helpers.isolated import isolated

COUNT = 3000


async def test_all_names_are_listed_in_order_and_an_alias_that_comes_later_is_among_them(
    tmp_path: Path,
) -> None:
    (tmp_path / "many.db").write_text(
        "".join(f'record(ai, "many:{number}") {{ alias("again:{number}") }}\n' for number in range(COUNT))
    )
    expected = sorted(f"{prefix}:{number}" for prefix in ("many", "again") for number in range(COUNT))
    async with running_ioc("-d", tmp_path / "many.db") as ioc, ioc.client() as client:
        server = ("127.0.0.1", ioc.tcp, False)

        async def names() -> list[str]:
            return list((await client.rpc("server", {"op": "channels"}, server=server))["value"])

        # Those who ask meanwhile get the same list.
        first, *others = await asyncio.gather(*(names() for _ in range(5)))
        assert first == expected
        assert all(other == first for other in others)
        ioc.type('dbCreateAlias pdbbase "many:0" "zz:late"\nvar\n')
        async with asyncio.timeout(30):
            while (listed := await names()) == expected:
                await asyncio.sleep(0.05)
        assert listed == [*expected, "zz:late"]


@isolated
def test_the_number_of_names_counts_aliases(tmp_path: Path) -> None:
    from appliance.ioc import dbcore

    dbcore.boot()
    dbcore.load_records_text('record(ai, "a") { alias("b") alias("c") }\nrecord(calc, "d") {}\n')
    dbcore.ioc_init()
    assert dbcore.record_count() == len(dbcore.records()) == 4
    assert sorted(dbcore.record_names()) == ["a", "b", "c", "d"]
    dbcore.shutdown()

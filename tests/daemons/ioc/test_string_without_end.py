"""Octets that fill a text field to its last one: nobody is shown what lies behind it."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.ioc_process import running_ioc

RECORDS = """
record(printf, "P:pf") { field(SIZV, "200") }
record(stringout, "P:so") { field(ASG, "SECRET") }
"""


async def test_octets_that_fill_a_text_field_do_not_show_the_next_field(tmp_path: Path) -> None:
    (tmp_path / "records.db").write_text(RECORDS)
    async with running_ioc("-S", "-d", tmp_path / "records.db") as ioc, ioc.client() as client:
        await client.put("P:pf.FMT", "x" * 120)
        await client.put("P:pf.PROC", 1)
        assert (await client.get("P:pf"))["value"] == "x" * 80
        await client.put("P:so.DESC$", "A" * 60)
        for name in ("P:so", "P:so.SEVR", "P:so.OUT"):
            assert (await client.get(name))["display.description"] == "A" * 40
        assert (await client.get("P:so.DESC"))["value"] == "A" * 39

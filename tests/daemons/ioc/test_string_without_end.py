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


async def test_text_that_is_too_long_is_cut_at_a_character(tmp_path: Path) -> None:
    (tmp_path / "records.db").write_text(
        RECORDS + 'record(waveform, "P:wf") { field(FTVL, "STRING") field(NELM, "2") }'
    )
    async with running_ioc("-S", "-d", tmp_path / "records.db") as ioc, ioc.client() as client:
        # DESC has 41 octets, of which one is the end; a string 40.
        for text, whole in (("\xb0" * 30, 20), ("x" + "\u20ac" * 30, 14), ("x" + "\U0001f600" * 20, 10)):
            for name, room in (("P:so.DESC$", 40), ("P:so.DESC", 39), ("P:so", 39)):
                await client.put(name, text)
                read = (await client.get(name))["value"]
                assert text.startswith(read), name
                assert room - 3 <= len(read.encode()) <= room, name
            await client.put("P:so.DESC$", text)
            assert (await client.get("P:so"))["display.description"] == text[:whole]
            await client.put("P:wf", [text, "y" + text])
            assert list((await client.get("P:wf"))["value"]) == [cut(text), cut("y" + text)]
        octets = b"x" * 39 + b"\xc2\xb0\xc2\xb0"
        await client.put("P:so.DESC$", octets.decode())
        assert (await client.get("P:so"))["display.description"] == "x" * 39


def cut(text: str) -> str:
    return text.encode()[:39].decode(errors="ignore")

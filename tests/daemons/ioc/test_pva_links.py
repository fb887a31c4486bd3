"""PVA links to records of the same IOC: the cases of pvxs' own tests, with real records."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance.errors import ApplianceError
from appliance.ioc.dbcore.boot import DEFINITIONS
from tests.helpers.ioc_process import running_ioc, starting_ioc
from tests.helpers.ioc_records import Records

RECORDS = """
record(longin, "num") { field(VAL, "42") }
record(ai, "analog") { field(VAL, "4.0") field(FLNK, "state") field(PREC, "2") }
record(mbbi, "state") { field(INP, "analog") field(ZRSV, "NO_ALARM") field(ONSV, "INVALID") }
record(longin, "reader") { field(INP, {"pva":"num"}) field(MDEL, "-1") }
record(longin, "num2") { field(VAL, "43") }
record(longout, "writer") { field(OUT, {"pva":"num2"}) }

record(stringin, "text1") { field(INP, {pva: "text:src"}) field(VAL, "foo") }
record(stringin, "text2") { field(VAL, "baz") }
record(stringout, "text:src") { field(VAL, "bar") }

record(longout, "conv:src") { field(OUT, {pva:{"pv":"conv:1", "proc":null, "sevr":null, "local":null}}) }
record(stringin, "conv:1") {}
record(aai, "conv:2") { field(FTVL, "STRING") field(NELM, "5") field(INP, {pva:{pv:"conv:1", "proc":"CPP"}}) }
record(longin, "conv:3") { field(INP, {pva:{pv:"conv:2", "proc":"CPP"}}) }

record(calc, "async:count") { field(CALC, "VAL+1") }
record(longout, "async:trigger") {
  field(DTYP, "Async Soft Channel") field(OUT, {"pva":{"pv":"async:target", "proc":true}}) field(FLNK, "async:next")
}
record(longin, "async:target") { field(INP, "async:count PP MS") }
record(longin, "async:next") { field(INP, "async:count PP MS") }
record(ao, "refused") { field(DISP, "1") }
record(longout, "async:refused") { field(DTYP, "Async Soft Channel") field(OUT, {pva:"refused"}) }

record(aao, "array") { field(OUT, {pva: "array:out"}) field(NELM, "5") field(FTVL, "FLOAT") }
record(aai, "array:inp") { field(INP, {pva: "array"}) field(NELM, "10") field(FTVL, "SHORT") }
record(aai, "array:out") { field(NELM, "5") field(FTVL, "ULONG") }
record(ai, "array:first") { field(INP, {pva: "array"}) }
record(waveform, "texts") { field(FTVL, "STRING") field(NELM, "16") }
record(waveform, "texts:inp") { field(INP, {pva:"texts"}) field(FTVL, "STRING") field(NELM, "16") }

record(ao, "meta") {
  field(DRVH, "10") field(HOPR, "9") field(HIHI, "8") field(HIGH, "7") field(LOW, "-7") field(LOLO, "-8") field(LOPR, "-9")
  field(DRVL, "-10") field(HHSV, "MAJOR") field(HSV, "MINOR") field(LSV, "MINOR") field(LLSV, "MAJOR") field(PREC, "2")
  field(EGU, "arb")
}
record(calc, "meta:inp") { field(INPA, {pva:{pv:"meta", sevr:"MS"}}) field(CALC, "A") }
record(longin, "meta:time") { field(INP, {pva:{pv:"meta", time:true, proc:"CP"}}) field(TSE, "-2") }

record(longout, "flnk:src") { field(FLNK, {pva:"flnk:tgt"}) }
record(calc, "flnk:tgt") { field(CALC, "VAL+1") }

record(calcout, "atomic:1") {
  field(CALC, "RNDM*255") field(OUT, "atomic:2.A PP") info(Q:group, {"atomic":{"a":{+channel:"VAL"}}})
}
record(calc, "atomic:2") { field(CALC, "A<<8") info(Q:group, {"atomic":{"b":{+channel:"VAL", +trigger:"*"}}}) }
record(longin, "atomic:lnk:1") { field(INP, {pva:{pv:"atomic", field:"a", atomic:true, monorder:0, proc:"CP"}}) }
record(longin, "atomic:lnk:2") {
  field(INP, {pva:{pv:"atomic", field:"b", atomic:true, monorder:1, proc:"CP"}}) field(FLNK, "atomic:out")
}
record(calc, "atomic:out") { field(INPA, "atomic:lnk:1 NPP MS") field(INPB, "atomic:lnk:2 NPP MS") field(CALC, "A|B") }

record(bo, "enum:src:b") { field(OUT, {pva:{pv:"enum", proc:"PP"}}) field(ZNAM, "zero") field(ONAM, "one") }
record(stringout, "enum:src:s") { field(OUT, {pva:{pv:"enum", proc:"PP"}}) }
record(bi, "enum") { field(ZNAM, "zero") field(ONAM, "one") }
record(stringin, "enum:s") { field(INP, {pva:{pv:"enum", proc:"CP"}}) }

record(longin, "pair:x") { info(Q:group, {"pair":{"x":{+channel:"VAL", +putorder:1}}}) }
record(longin, "pair:y") { info(Q:group, {"pair":{"y":{+channel:"VAL", +putorder:2, +trigger:"*"}}}) }
record(calc, "pair:seen") { field(INPA, {pva:{pv:"pair", field:"x", proc:"CP"}}) field(INPB, {pva:{pv:"pair", field:"y"}})
  field(CALC, "A*100+B") }
record(longout, "pair:wx") { field(OUT, {pva:{pv:"pair", field:"x", defer:true}}) }
record(longout, "pair:wy") { field(OUT, {pva:{pv:"pair", field:"y"}}) }

record(bo, "disable") { field(ZNAM, "no") field(ONAM, "yes") }
record(calc, "sdis") { field(SDIS, {pva:"disable"}) field(CALC, "VAL+1") }
record(ao, "dol") { field(DOL, {pva:"num"}) field(OMSL, "closed_loop") }
record(longin, "tsel") { field(TSEL, {pva:"num2"}) }
record(calc, "loop:a") { field(INPA, {pva:{pv:"loop:b", proc:"CP"}}) field(CALC, "A<50?A+1:A") field(MDEL, "0") }
record(calc, "loop:b") { field(INPA, {pva:{pv:"loop:a", proc:"CP"}}) field(CALC, "A") field(MDEL, "0") }
record(longin, "nofield") { field(INP, {pva:{pv:"num", field:"nosuch"}}) }
record(longin, "calclink") { field(INP, {calc:{expr:"A+1", args:[{pva:"num"}]}}) }
"""


@pytest.fixture
async def records(tmp_path: Path) -> AsyncIterator[Records]:
    (tmp_path / "links.db").write_text(RECORDS)
    async with running_ioc("-d", tmp_path / "links.db") as ioc, ioc.client() as client:
        await ioc.printed("epics> ")
        yield Records(ioc, client)


async def test_an_input_reads_when_its_record_is_processed(records: Records) -> None:
    assert await records.get("reader") == 0
    assert await records.get("reader.INP") == '{"pva":"num"}'
    await records.process("reader")
    assert await records.get("reader") == 42
    await records.put("reader.INP", '{"pva":"analog"}')
    assert await records.get("reader") == 42
    await records.connected("reader")
    await records.process("reader")
    assert await records.get("reader") == 4


async def test_a_link_can_lead_to_a_field_of_the_structure(records: Records) -> None:
    await records.put("reader.INP", '{"pva":{"pv":"analog","field":"display.precision"}}')
    await records.connected("reader")
    await records.process("reader")
    assert await records.get("reader") == 2


async def test_updates_process_a_passive_record(records: Records) -> None:
    await records.put("reader.INP", '{"pva":{"pv":"analog","proc":"CPP"}}')
    await records.becomes("reader", 4)
    await records.put("analog", 5.0)
    await records.becomes("reader", 5)
    await records.put("reader.SCAN", "10 second")
    await records.put("meta:time.INP", '{"pva":{"pv":"analog","proc":"CP"}}')
    await records.put("analog", 6.0)
    await records.becomes("meta:time", 6)
    assert await records.get("reader") == 5


async def test_severities(records: Records) -> None:
    for word, value in (("LOLO", 5.0), ("LLSV", "MAJOR")):
        await records.put(f"analog.{word}", value)
    await records.put("analog", 0.0)
    for sevr, pv, wanted in (
        ("NMS", "analog", 0),
        ("MS", "analog", 2),
        ("MSI", "analog", 0),
        ("MSI", "state", 0),
    ):
        await records.put("reader.INP", f'{{"pva":{{"pv":"{pv}","sevr":"{sevr}"}}}}')
        await records.connected("reader")
        await records.process("reader")
        assert await records.get("reader.SEVR") == wanted, (sevr, pv)
    await records.put("reader.INP", '{"pva":{"pv":"state","sevr":"MSI","proc":"CP"}}')
    await records.put("analog", 1.0)
    await records.becomes("reader", 1)
    alarm = (await records.client.get("reader"))["alarm"]
    assert (alarm["severity"], alarm["message"]) == (3, "STATE")


async def test_an_output_writes(records: Records) -> None:
    assert await records.get("num2") == 43
    await records.put("writer", 14)
    await records.becomes("num2", 14)
    assert await records.get("writer.OUT") == '{"pva":"num2"}'


async def test_texts(records: Records) -> None:
    await records.process("text1")
    assert await records.get("text1") == "bar"
    await records.put("text:src.OUT", '{"pva" : "text2"}')
    await records.connected("text:src")
    await records.process("text:src")
    await records.becomes("text2", "bar")


async def test_numbers_become_text_and_numbers_again(records: Records) -> None:
    await records.put("conv:src", 43)
    await records.becomes("conv:3", 43)
    assert await records.get("conv:1") == "43"
    assert await records.get("conv:2") == ("43",)


async def test_arrays(records: Records) -> None:
    await records.put("array", [1, 2, -1, 1.2, 0])
    await records.becomes("array:out", lambda found: list(found) == [1, 2, 4294967295, 1, 0])
    assert list(await records.get("array:inp")) == []
    await records.process("array:inp")
    assert list(await records.get("array:inp")) == [1, 2, -1, 1, 0]
    await records.process("array:first")
    assert await records.get("array:first") == 1.0
    await records.put("texts", ["one", "two", "three"])
    await records.process("texts:inp")
    await records.connected("texts:inp")
    await records.process("texts:inp")
    assert await records.get("texts:inp") == ("one", "two", "three")


async def test_a_record_waits_for_the_processing_of_what_it_writes(records: Records) -> None:
    await records.put("async:trigger", 1)
    await records.becomes("async:next", 2)
    assert await records.get("async:target") == 1
    assert await records.get("async:trigger.SEVR") == 0


async def test_a_put_that_is_refused_makes_the_waiting_record_invalid(records: Records) -> None:
    await records.put("async:refused", 5)
    alarm = (await records.client.get("async:refused"))["alarm"]
    assert alarm["severity"] == 3
    assert alarm["message"].startswith("refused refuses puts")
    assert await records.get("async:refused.PACT") == 0
    assert "PVA link async:refused.OUT: cannot write refused: refused refuses puts" in records.ioc.log


async def test_units_limits_and_precision_are_those_of_the_target(records: Records) -> None:
    await records.put("meta", 7.0)
    await records.put("meta:inp.INPA", '{"pva":{"pv":"meta","sevr":"MS","proc":"CP"}}')
    await records.becomes("meta:inp", 7.0)
    found = await records.client.get("meta:inp.A")
    assert found["display.units"] == "arb"
    assert found["display.precision"] == 2
    assert (found["display.limitLow"], found["display.limitHigh"]) == (-9, 9)
    limits = [
        found[f"valueAlarm.{each}"]
        for each in ("lowAlarmLimit", "lowWarningLimit", "highWarningLimit", "highAlarmLimit")
    ]
    assert limits == [-8, -7, 7, 8]
    alarm = (await records.client.get("meta:inp"))["alarm"]
    assert (alarm["severity"], alarm["message"]) == (1, "HIGH")


async def test_the_time_of_the_target_becomes_that_of_the_record(records: Records) -> None:
    await records.put("meta", 3.0)
    await records.becomes("meta:time", 3)
    here, there = await records.client.get("meta:time"), await records.client.get("meta")
    assert here["timeStamp"].to_dict() == there["timeStamp"].to_dict()


async def test_a_forward_link_processes(records: Records) -> None:
    await records.process("flnk:src")
    await records.becomes("flnk:tgt", 1)


async def test_records_of_one_link_are_processed_together(records: Records) -> None:
    for _ in range(5):
        await records.process("atomic:1")
        wanted = int(await records.get("atomic:1"))
        await records.becomes("atomic:out", wanted | wanted << 8)


async def test_enumerations(records: Records) -> None:
    await records.put("enum:src:b", "one")
    await records.becomes("enum:s", "one")
    await records.put("enum:src:s", "zero")
    await records.becomes("enum:s", "zero")
    assert await records.get("enum") == 0


async def test_deferred_values_leave_together(records: Records) -> None:
    await records.put("pair:wx", 5)
    await records.put("pair:wy", 6)
    await records.becomes("pair:seen", 506)
    assert (await records.get("pair:x"), await records.get("pair:y")) == (5, 6)


async def test_other_link_fields(records: Records) -> None:
    await records.process("sdis")
    assert await records.get("sdis") == 1
    await records.put("disable", "yes")
    await records.becomes("disable", 1)
    await records.shows("dbpvar", "sdis", 2, "", "disable conn=T .* 2 updates")
    await records.process("sdis")
    assert await records.get("sdis") == 1
    await records.process("dol")
    assert await records.get("dol") == 42.0
    # TSEL sets TSE: the number of the event whose time the record gets.
    await records.connected("tsel")
    await records.put("num2", 7)
    await records.process("tsel")
    assert await records.get("tsel.TSE") == 7
    await records.put("tsel.TSEL", '{"pva":"nobody:has:this"}')
    await records.process("tsel")
    assert await records.get("tsel.TSE") == 7
    assert (await records.client.get("tsel"))["alarm.message"] == "TSEL Disconn"
    await records.process("calclink")
    assert await records.get("calclink") == 43


async def test_a_loop_of_links_comes_to_rest(records: Records) -> None:
    await records.becomes("loop:b", 50)
    await records.becomes("loop:a", 50)


async def test_a_field_that_is_not_there_is_a_link_alarm(records: Records) -> None:
    await records.process("nofield")
    alarm = (await records.client.get("nofield"))["alarm"]
    assert alarm["severity"] == 3
    assert "has no field 'nosuch'" in alarm["message"]


async def test_the_shell_tells_of_links(records: Records) -> None:
    await records.put("writer", 7)
    await records.becomes("num2", 7)
    told = await records.shows(
        "dbpvar", "writer", 5, "", "num2 conn=T 0 disconnects, 1 type changes, .* 1 puts"
    )
    assert "PVA links in record named 'writer'" in told
    assert "writer.OUT Def NMS Q=4 pipe=F defer=F time=F retry=F atomic=F morder=0" in told
    await records.shows("dbpvar", "num2", 1, "", "the name selects records of this IOC, not PVs")
    told = await records.shows("dbpvar", "", 0, "", r"  \d+/\d+ channels connected used by \d+ links")
    assert "PVA links in all records" in told
    before = len(records.ioc.log)
    records.ioc.type("dbjlr writer 1\ndbpr writer 2\n")
    await records.ioc.printed(r"'pva': num2 Def NMS Q=4 .* conn=T #disconn=0", before)
    await records.ioc.printed(r'OUT : JSON_LINK \{"pva":"num2"\}', before)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{pva:{pv:"num", secr:"MS"}}', "there is no key 'secr'"),
        ('{pva:{pv:"num", proc:"CPPP"}}', "proc must be true, false, null"),
        ('{pva:{pv:"num", Q:"4"}}', "Q must be a whole number, not '4'"),
        ('{pva:{pv:"num", time:1.5}}', "time must be true or false, not 1.5"),
        ("{pva:{pv:{a:1}}}", "pv must not be an object"),
        ('{pva:{pv:["a"]}}', "pv must not be an array"),
        ('{pva:{field:"x"}}', "the key pv is missing"),
        ("{pva:5}", "5 names no PV"),
        ("{pva:[]}", "its value must not be an array"),
        ('{pva:""}', "the name of the PV is empty"),
    ],
)  # fmt: skip
async def test_a_database_with_a_wrong_link_does_not_load(text: str, why: str, tmp_path: Path) -> None:
    file = tmp_path / "wrong.db"
    file.write_text(f'record(longin, "bad") {{\n  field(INP, {text})\n}}\n')
    async with starting_ioc("-S", "-d", file) as ioc:
        assert await ioc.ended() == 1
        assert f"{file}:2: pva link: {why}" in ioc.log
        assert "bad.INP" in ioc.log
        assert "Traceback" not in ioc.log


async def test_a_wrong_link_that_a_client_writes_is_refused_and_the_old_one_works_on(
    records: Records,
) -> None:
    with pytest.raises(ApplianceError):
        await records.put("reader.INP", '{"pva":{"pv":"analog","proc":"sometimes"}}')
    await records.ioc.printed("pva link: proc must be true, false, null")
    await records.process("reader")
    assert await records.get("reader") == 42


async def test_a_local_link_to_nothing_is_said_and_is_never_connected(tmp_path: Path) -> None:
    file = tmp_path / "local.db"
    file.write_text(
        'record(longin, "here") {}\nrecord(longin, "good") { field(INP, {pva:{pv:"here", local:true}}) }\n'
        'record(longin, "lonely") {\n  field(INP, {pva:{pv:"elsewhere", local:true}}) }\n'
    )
    async with running_ioc("-d", file) as ioc, ioc.client() as client:
        await ioc.printed("PVA link lonely.INP: elsewhere: it is no record and no group of this IOC")
        known = Records(ioc, client)
        await known.process("good")
        assert await known.get("good.SEVR") == 0
        await known.process("lonely")
        assert await known.get("lonely.SEVR") == 3
    config = tmp_path / "ioc.yml"
    config.write_text(f"databases:\n  - file: {file}\n")
    async with starting_ioc("--config", config, "--check-config") as ioc:
        assert await ioc.ended() == 1
        assert f"{file}:4: lonely.INP: elsewhere is no record and no group" in ioc.log


async def test_links_work_while_no_record_is_served(tmp_path: Path) -> None:
    file = tmp_path / "off.db"
    file.write_text(
        'record(longin, "src") { field(VAL, "5") }\nrecord(longin, "dst") { field(INP, {pva:{pv:"src", proc:"CP"}}) }\n'
    )
    async with running_ioc("-d", file, PVXS_QSRV_ENABLE="NO") as ioc:
        await ioc.printed("epics> ")
        async with asyncio.timeout(30):
            while "DBF_LONG:           5" not in ioc.log:
                ioc.type("dbgf dst\n")
                await ioc.printed("DBF_LONG.*\n", len(ioc.log))


async def test_a_definition_that_declares_the_link_type_for_code_in_c_can_be_used(tmp_path: Path) -> None:
    """The definitions of other IOCs name pvxs' own table, ``link("pva", "lsetPVX")``."""
    definitions = "".join(f'include "{name}"\n' for name in DEFINITIONS)
    (tmp_path / "other.dbd").write_text(definitions + 'link("pva", "lsetPVX")\n')
    (tmp_path / "links.db").write_text(
        'record(longin, "src") { field(VAL, "5") }\nrecord(longin, "dst") { field(INP, {pva:{pv:"src", proc:"CP"}}) }\n'
    )
    async with (
        running_ioc("-S", "-D", tmp_path / "other.dbd", "-d", tmp_path / "links.db") as ioc,
        ioc.client() as client,
    ):
        await Records(ioc, client).becomes("dst", 5)


LONG = "a text of more than thirty-nine octets: " + "ü" * 40
LONG_RECORDS = """
record(lsi, "ls:src") { field(SIZV, "200") }
record(lsi, "ls:in") { field(INP, {pva:{pv:"ls:src", proc:"CP"}}) field(SIZV, "200") }
record(lsi, "ls:chars") { field(INP, {pva:{pv:"ls:src.VAL$", proc:"CP"}}) field(SIZV, "200") }
record(lsi, "ls:short") { field(INP, {pva:{pv:"ls:src", proc:"CP"}}) field(SIZV, "46") }
record(lsi, "ls:wave") { field(INP, {pva:{pv:"wave", proc:"CP"}}) field(SIZV, "200") }
record(lso, "ls:dol") { field(DOL, {pva:{pv:"ls:src", proc:"CP"}}) field(OMSL, "closed_loop") field(SIZV, "200") }
record(waveform, "wave:in") { field(INP, {pva:{pv:"ls:src", proc:"CP"}}) field(FTVL, "CHAR") field(NELM, "200") }
record(stringin, "short") { field(INP, {pva:{pv:"ls:src", proc:"CP"}}) }
record(printf, "printed") { field(FMT, "<%ls>") field(INP0, {pva:{pv:"ls:src", proc:"CP"}}) field(SIZV, "200") }
record(lso, "ls:out") { field(OUT, {pva:"ls:dst"}) field(SIZV, "200") }
record(lsi, "ls:dst") { field(SIZV, "200") }
record(lso, "ls:to:chars") { field(OUT, {pva:"wave"}) field(SIZV, "200") }
record(waveform, "wave") { field(FTVL, "CHAR") field(NELM, "200") }
record(lso, "ls:to:number") { field(OUT, {pva:"number"}) field(SIZV, "200") }
record(ai, "number") {}
record(lso, "ls:waits") { field(DTYP, "Async Soft Channel") field(OUT, {pva:"ls:dst"}) field(SIZV, "200") }
record(aao, "chars") { field(OUT, {pva:"ls:dst"}) field(FTVL, "CHAR") field(NELM, "200") }
"""


@pytest.fixture
async def long_records(tmp_path: Path) -> AsyncIterator[Records]:
    (tmp_path / "links.db").write_text(LONG_RECORDS)
    async with running_ioc("-d", tmp_path / "links.db") as ioc, ioc.client() as client:
        await ioc.printed("epics> ")
        yield Records(ioc, client)


def chars(text: str) -> Callable[[Any], bool]:
    return lambda found: bytes(found.tobytes()).partition(b"\0")[0].decode() == text


async def test_a_long_text_is_read_whole_where_records_take_characters(long_records: Records) -> None:
    records = long_records
    await records.put("ls:src", LONG)
    for name in ("ls:in", "ls:chars", "ls:dol"):
        await records.becomes(name, LONG)
    await records.becomes("printed", f"<{LONG}>")
    await records.becomes("wave:in", chars(LONG))
    # Cut at what the record holds, and never within a character.
    await records.becomes("ls:short", LONG[:42])
    await records.becomes("short", LONG[:39])
    await records.put("ls:src", "")
    await records.becomes("ls:in", "")
    await records.becomes("ls:src.SEVR", 0)


async def test_characters_without_an_end_lose_none(long_records: Records) -> None:
    await long_records.put("wave", np.frombuffer(b"hello", "i1"))
    await long_records.becomes("ls:wave", "hello")


@pytest.mark.parametrize("name", ["ls:out", "ls:waits"])
async def test_a_long_text_is_written_whole(long_records: Records, name: str) -> None:
    records = long_records
    await records.put(name, LONG)
    await records.becomes("ls:dst", LONG)
    await records.put(name, "")
    await records.becomes("ls:dst", "")
    assert await records.get(f"{name}.SEVR") == 0


async def test_a_long_text_becomes_characters_or_a_number_where_the_pv_wants_them(
    long_records: Records,
) -> None:
    records = long_records
    await records.put("ls:to:chars", LONG)
    await records.becomes("wave", chars(LONG))
    await records.put("ls:to:number", "12.5")
    await records.becomes("number", 12.5)
    await records.put("chars", np.frombuffer(LONG.encode(), "i1"))
    await records.becomes("ls:dst", LONG)


async def test_a_record_that_waits_for_another_holds_up_no_third(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_text(
        """
        record(ao, "target") { field(FLNK, "slow") }
        record(calcout, "slow") { field(CALC, "1") field(ODLY, "100000") field(OOPT, "Every Time") field(OUT, "nothing PP") }
        record(longin, "nothing") {}
        record(ao, "waits") { field(DTYP, "Async Soft Channel") field(OUT, {pva:{pv:"target", proc:"PP"}}) }
        record(ao, "writes") { field(OUT, {pva:"target"}) }
        """
    )
    async with running_ioc("-d", tmp_path / "a.db") as ioc, ioc.client() as client:
        records = Records(ioc, client)
        await ioc.printed("epics> ")
        await records.connected("waits", "writes")
        await client.put("waits", 1.0)
        await records.becomes("target", 1.0)
        for value in (2.0, 3.0):
            await records.put("writes", value)
            await records.becomes("target", value)
        assert await records.get("waits.PACT") == 1

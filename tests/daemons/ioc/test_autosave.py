"""The commands of autosave: restored before and after initialisation, saved while the IOC runs, in autosave's own format."""

from __future__ import annotations

import asyncio
import re
import stat
import time
from pathlib import Path

import pytest

from appliance.ioc.autosave.files import Folders
from appliance.ioc.autosave.savefile import parse_saved
from appliance.ioc.autosave.saving import Saver, SaveSet
from tests.helpers.ioc_process import IocProcess, running_ioc, starting_ioc

RECORDS = """
record(ao, "$(P):ao") { field(VAL, "1") field(PINI, "YES") field(PREC, "2") }
record(ao, "$(P):start") { field(OMSL, "closed_loop") field(DOL, "5") field(PINI, "YES") }
record(mbbo, "$(P):choice") { field(ZRST, "zero") field(ONST, "one") field(TWST, "two") info(autosaveFields, "VAL DESC") }
record(stringout, "$(P):text") {}
record(lso, "$(P):long") { field(SIZV, "200") }
record(waveform, "$(P):wave") { field(FTVL, "DOUBLE") field(NELM, "5") }
record(waveform, "$(P):names") { field(FTVL, "STRING") field(NELM, "3") }
record(bo, "$(P):trigger") {}
"""
REQUEST = """# a comment
$(P):ao.VAL
$(P):ao.SCAN
$(P):ao.DESC
file "more.req" R=$(P)
$(P):elsewhere.VAL
"""
MORE = "$(R):choice\n$(R):text\n$(R):long.VAL$\n$(R):wave\n$(R):names\n$(R):start.DOL\n"
SCRIPT = """
set_requestfile_path(".", "req")
set_savefile_path("sav")
save_restoreSet_DatedBackupFiles(1)
save_restoreSet_status_prefix("L:")
save_restoreSet_NumSeqFiles(2)
set_pass0_restoreFile("all.sav")
set_pass1_restoreFile("all.sav")
dbLoadRecords("my.db", "P=L")
iocInit
create_monitor_set("all.req", 1, "P=L")
"""
WRITTEN_ELSEWHERE = """# save/restore V5.9\tAutomatically generated - DO NOT MODIFY - 2021-03-04
L:ao.VAL 42.5
L:ao.SCAN 6
L:ao.DESC from \\"afar\\"
L:choice 2
L:start.DOL 8
L:text some  text
L:long.VAL$ long text
L:wave @array@ { "1" "2.5" "-3" }
L:names @array@ { "a b" "c" }
L:gone.VAL 7
<END>
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for folder in ("req", "sav"):
        (tmp_path / folder).mkdir()
    (tmp_path / "my.db").write_text(RECORDS)
    (tmp_path / "req" / "all.req").write_text(REQUEST)
    (tmp_path / "req" / "more.req").write_text(MORE)
    (tmp_path / "st.cmd").write_text(SCRIPT)
    return tmp_path


async def saved(path: Path, name: str, value: object) -> None:
    """Wait until a save file holds a value."""
    async with asyncio.timeout(30):
        while True:
            if path.exists() and dict(parse_saved(path.read_text(), {}, file="").values).get(name) == value:
                return
            await asyncio.sleep(0.02)


async def values(ioc: IocProcess) -> dict[str, object]:
    """What the records hold."""
    names = ["ao", "ao.SCAN", "ao.DESC", "choice", "start", "text", "long", "wave", "names"]
    async with ioc.client() as client:
        found = [await client.get(f"L:{name}") for name in names]
    plain = [each["value.index"] if "value.index" in each else each["value"] for each in found]
    return dict(
        zip(names, [each.tolist() if hasattr(each, "tolist") else each for each in plain], strict=True)
    )


RESTORED = {
    "ao": 42.5,
    "ao.SCAN": 6,
    "ao.DESC": 'from "afar"',
    "choice": 2,
    "start": 8.0,
    "text": "some  text",
    "long": "long text",
    "wave": [1.0, 2.5, -3.0],
    "names": ("a b", "c"),
}


async def test_a_file_of_another_ioc_is_restored_before_and_after_initialisation(files: Path) -> None:
    (files / "sav" / "all.sav").write_text(WRITTEN_ELSEWHERE)
    async with running_ioc("-S", "st.cmd", cwd=files) as ioc:
        assert await values(ioc) == RESTORED
        await ioc.printed("L:gone.VAL")
        await ioc.printed("save_restoreSet_status_prefix has no effect: ")


async def test_what_is_saved_comes_back_with_the_next_start(files: Path) -> None:
    path = files / "sav" / "all.sav"
    async with running_ioc("-S", "st.cmd", cwd=files) as ioc, ioc.client() as client:
        await saved(path, "L:ao.VAL", "1.0")
        await client.put("L:ao", 42.5)
        await client.put("L:ao.SCAN", {"value.index": 6})
        await client.put("L:ao.DESC", 'from "afar"')
        await client.put("L:choice", {"value.index": 2})
        await client.put("L:start.DOL", "8")
        await client.put("L:text", "some  text")
        await client.put("L:long", "long text")
        await client.put("L:wave", [1.0, 2.5, -3.0])
        await client.put("L:names", ["a b", "c"])
        await saved(path, "L:names", ("a b", "c"))
        assert await ioc.stop() == 0
    text = path.read_text()
    assert text.startswith("# save/restore V")
    assert text.endswith("<END>\n")
    assert "! 1 channel(s) not connected" in text
    assert "#L:elsewhere.VAL " in text
    assert not stat.S_IMODE(path.stat().st_mode) & 0o002
    assert (files / "sav" / "all.savB").exists()
    assert (files / "sav" / "all.sav0").exists()
    async with running_ioc("-S", "st.cmd", cwd=files) as ioc:
        assert await values(ioc) == RESTORED


async def test_what_changed_last_is_saved_when_the_ioc_ends(files: Path) -> None:
    (files / "st.cmd").write_text(SCRIPT.replace('"all.req", 1', '"all.req", 3600'))
    path = files / "sav" / "all.sav"
    async with running_ioc("-S", "st.cmd", cwd=files) as ioc, ioc.client() as client:
        await saved(path, "L:ao.VAL", "1.0")
        await client.put("L:ao", 77.0)
        await ioc.stop()
    await saved(path, "L:ao.VAL", "77.0")


async def test_a_damaged_file_is_replaced_by_its_backup_and_no_file_is_no_failure(files: Path) -> None:
    (files / "sav" / "all.sav").write_text(WRITTEN_ELSEWHERE.replace("<END>\n", ""))
    (files / "sav" / "all.savB").write_text(WRITTEN_ELSEWHERE.replace("42.5", "43.5"))
    async with running_ioc("-S", "st.cmd", cwd=files) as ioc:
        assert (await values(ioc))["ao"] == 43.5
        await ioc.printed(r"<END> is missing; .*all\.savB is restored instead")
    for path in (files / "sav").iterdir():
        path.unlink()
    async with running_ioc("-S", "st.cmd", cwd=files) as ioc:
        assert (await values(ioc))["ao"] == 1.0
        await ioc.printed("not restored: .*all.sav: cannot read the save file")


async def test_incomplete_files_are_refused_where_that_is_asked_for(files: Path) -> None:
    (files / "sav" / "all.sav").write_text(WRITTEN_ELSEWHERE.replace("L:ao.VAL", "! 3 channels\nL:ao.VAL", 1))
    (files / "st.cmd").write_text("save_restoreSet_IncompleteSetsOk(0)\n" + SCRIPT)
    async with running_ioc("-S", "st.cmd", cwd=files) as ioc:
        assert (await values(ioc))["ao"] == 1.0
        await ioc.printed("3 PVs had no value when the file was written")


async def test_what_a_start_found_is_kept_even_if_it_is_not_restored(files: Path) -> None:
    written = WRITTEN_ELSEWHERE.replace("L:ao.VAL", "! 3 channels\nL:ao.VAL", 1)
    (files / "sav" / "all.sav").write_text(written)
    script = SCRIPT.replace("DatedBackupFiles(1)", "DatedBackupFiles(0)")
    (files / "st.cmd").write_text("save_restoreSet_IncompleteSetsOk(0)\n" + script)
    async with running_ioc("-S", "st.cmd", cwd=files):
        await saved(files / "sav" / "all.sav", "L:ao.VAL", "1.0")
    assert (files / "sav" / "all.sav.bu").read_text() == written
    # A backup that takes the place of a damaged file is kept, too; what is damaged is not.
    (files / "sav" / "all.sav").write_text("L:ao.VAL 2\n")
    (files / "sav" / "all.savB").write_text(WRITTEN_ELSEWHERE)
    async with running_ioc("-S", "st.cmd", cwd=files):
        pass
    assert (files / "sav" / "all.sav.bu").read_text() == WRITTEN_ELSEWHERE


async def test_what_a_start_found_is_kept_with_its_date_if_that_is_asked_for(files: Path) -> None:
    sav = files / "sav"
    script = SCRIPT.replace("create_monitor_set", "#")
    (files / "st.cmd").write_text(script)
    (sav / "all.sav").write_text(WRITTEN_ELSEWHERE)
    # No copy of this file.
    (sav / "all.sav_backup").write_text("mine\n")
    for _ in range(2):
        async with running_ioc("-S", "st.cmd", cwd=files):
            pass
    (first,) = sav.glob("all.sav_[0-9]*")
    assert re.fullmatch(r"all\.sav_\d{6}-\d{6}", first.name)
    assert first.read_text() == WRITTEN_ELSEWHERE, "the same is not kept twice"
    changed = WRITTEN_ELSEWHERE.replace("42.5", "43.5")
    (sav / "all.sav").write_text(changed)
    async with running_ioc("-S", "st.cmd", cwd=files):
        pass
    copies = sorted(sav.glob("all.sav_[0-9]*"))
    assert [copy.read_text() for copy in copies] == [WRITTEN_ELSEWHERE, changed]
    assert not (sav / "all.sav.bu").exists()


async def test_a_set_can_be_saved_in_a_file_of_another_name(files: Path) -> None:
    (files / "st.cmd").write_text(SCRIPT + 'set_savefile_name("all.req", "other.sav")\n')
    async with running_ioc("st.cmd", cwd=files) as ioc:
        await saved(files / "sav" / "other.sav", "L:ao.VAL", "1.0")
        ioc.type('set_savefile_name "none.req" "x.sav"\n')
        await ioc.printed("set_savefile_name: there is no set none.req; there are all.req")


def test_dated_copies_are_written_once_in_a_time_and_never_replaced(tmp_path: Path) -> None:
    folders = Folders()
    folders.saves = str(tmp_path)
    saver = Saver(folders)
    saver.dated_s = 0.001
    saver.add(SaveSet("all.req", []))
    saver.start()
    end = time.monotonic() + 30
    while not (found := list(tmp_path.glob("all.sav_b_*"))) and time.monotonic() < end:
        time.sleep(0.02)
    saver.close()
    assert re.fullmatch(r"all\.sav_b_\d{6}-\d{6}", found[0].name)
    assert found[0].read_text().endswith("<END>\n")
    assert not (tmp_path / "all.sav").exists(), "a set that is saved by hand has no other file"


async def test_sets_are_saved_by_hand_by_time_and_by_a_trigger(files: Path) -> None:
    for name in ("hand", "timed", "triggered"):
        (files / "req" / f"{name}.req").write_text("L:ao\n")
    (files / "st.cmd").write_text(
        SCRIPT + 'create_manual_set("hand.req")\ncreate_periodic_set("timed.req", 1)\n'
        'create_triggered_set("triggered.req", "L:trigger")\nmakeAutosaveFileFromDbInfo("info.req", "autosaveFields")\n'
    )
    sav = files / "sav"
    async with running_ioc("st.cmd", cwd=files) as ioc, ioc.client() as client:
        await saved(sav / "timed.sav", "L:ao", "1.0")
        assert not (sav / "hand.sav").exists()
        await client.put("L:ao", 5.0)
        ioc.type("manual_save hand.req\n")
        await saved(sav / "hand.sav", "L:ao", "5.0")
        assert not (sav / "triggered.sav").exists()
        await client.put("L:trigger", {"value.index": 1})
        await saved(sav / "triggered.sav", "L:ao", "5.0")
        await client.put("L:ao", 6.0)
        ioc.type("fdbrestore hand.sav\nsave_restoreShow\n")
        await ioc.printed(r"saved by manual_save: hand\.sav: 1 PVs, saved ")
        assert (await client.get("L:ao"))["value"] == 5.0
        ioc.type("remove_data_set nonsense.req\n")
        await ioc.printed(r"remove_data_set: there is no set nonsense\.req")
    assert (files / "info.req").read_text() == "L:choice.VAL\nL:choice.DESC\n"


async def test_a_request_file_that_is_wrong_ends_the_start_with_file_and_line(files: Path) -> None:
    (files / "req" / "all.req").write_text("L:ao\n$(NOSUCH):x\n")
    (files / "st.cmd").write_text(SCRIPT.replace("iocInit\n", "", 1) + "iocInit\n")
    async with starting_ioc("-S", "st.cmd", cwd=files) as ioc:
        assert await ioc.ended() == 1
        assert "all.req:2: a macro of $(NOSUCH):x is not defined" in ioc.log


async def test_a_running_ioc_gets_saved_values_as_they_were_and_none_keeps_the_others_out(
    files: Path,
) -> None:
    (files / "my.db").write_text(
        RECORDS + 'record(waveform, "L:wide") { field(FTVL, "INT64") field(NELM, "2") }\n'
        'record(mbbo, "L:digits") { field(ZRST, "1") field(ONST, "0") field(VAL, "1") }\n'
    )
    (files / "sav" / "some.sav").write_text(
        '# V5.11\nL:wave @array@ { "1" "none" }\nL:wide @array@ { "9007199254740993" "-9223372036854775808" }\n'
        "L:digits 0\nL:ao.SCAN 6\nL:text 12\n<END>\n"
    )
    async with running_ioc("st.cmd", cwd=files) as ioc, ioc.client() as client:
        assert (await client.get("L:digits"))["value.index"] == 1
        ioc.type("fdbrestore some.sav\n")
        await ioc.printed(r"'none' is not a number(?s:.*)restored 4 values from \S*some\.sav, 1 failed")
        assert (await client.get("L:wide"))["value"].tolist() == [9007199254740993, -9223372036854775808]
        assert (await client.get("L:digits"))["value.index"] == 0
        assert (await client.get("L:ao.SCAN"))["value.index"] == 6
        assert (await client.get("L:text"))["value"] == "12"
    assert "Traceback" not in ioc.log

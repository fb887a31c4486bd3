"""Device support in C that a site compiles and names in the configuration: it works, and what is wrong with it is said in a sentence."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path

import pytest

from appliance.errors import ConfigurationError, RemoteError
from appliance.ioc.config import LibraryStep, LoadStep, Plan
from appliance.ioc.elf import read_shared_object
from appliance.ioc.trial import Trial, TrialResult
from tests.helpers.ioc_process import running_ioc, starting_ioc
from tests.helpers.site_code import SOURCES, compiled

RECORDS = """
record(ai, "S:level") { field(DTYP, "Site Level") field(INP, "@main") field(PREC, "1") }
record(ai, "S:broken") { field(DTYP, "Site Level") field(INP, "@broken") }
record(bo, "S:sign") { field(DTYP, "Site Sign") field(ZNAM, "plus") field(ONAM, "minus") field(FLNK, "S:level") }
record(sub, "S:double") { field(SNAM, "siteDouble") field(INPA, "S:level") field(BRSV, "INVALID") }
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with the library, its definition and records."""
    folder = tmp_path / "site"
    folder.mkdir(mode=0o755)
    compiled(folder / "libsite.so", file=SOURCES / "site_support.c")
    shutil.copy(SOURCES / "site_support.dbd", folder / "site.dbd")
    (folder / "site.db").write_text(RECORDS)
    (folder / "ioc.yml").write_text(
        "libraries:\n  - file: libsite.so\n    definitions: [site.dbd]\ndatabases: [{file: site.db}]\n"
    )
    return folder


def trial(folder: Path, *libraries: LibraryStep) -> TrialResult:
    steps = libraries or (LibraryStep("libsite.so", ("site.dbd",)),)
    return Trial(
        Plan(libraries=steps, databases=(LoadStep("site.db"),), folder=str(folder), is_check=True)
    ).result()


def refused(folder: Path, *libraries: LibraryStep) -> str:
    with pytest.raises(ConfigurationError) as caught:
        trial(folder, *libraries)
    text = str(caught.value)
    assert "\n" not in text
    return text


async def test_records_work_with_the_support_of_a_site(site: Path) -> None:
    trace = site / "trace"
    script = site / "st.cmd"
    script.write_text("var siteGain 4\nsiteLevel 2.5\n")
    with (site / "ioc.yml").open("a") as config:
        config.write("script: st.cmd\n")
    async with (
        running_ioc("--config", site / "ioc.yml", SITE_TRACE=str(trace)) as ioc,
        ioc.client() as client,
    ):
        assert "the level is 2.5" in ioc.log
        await client.put("S:level.PROC", 1)
        assert (await client.get("S:level"))["value"] == 10.0
        await client.put("S:sign", "minus")
        level = await client.get("S:level")
        assert level["value"] == -10.0
        assert level["alarm.severity"] == 0
        await client.put("S:double.PROC", 1)
        assert (await client.get("S:double"))["value"] == -20.0
        with pytest.raises(RemoteError, match="cannot process S:broken: its support reports a failure"):
            await client.put("S:broken.PROC", 1)
        broken = await client.get("S:broken")
        assert broken["alarm.severity"] == 3
    # The code ran in the IOC only, not in the trial before it.
    assert trace.read_text() == "registrar\n"


async def test_a_check_runs_no_code_of_the_site_and_still_judges_records(site: Path) -> None:
    trace = site / "trace"
    async with starting_ioc("--config", site / "ioc.yml", "--check-config", SITE_TRACE=str(trace)) as ioc:
        assert await ioc.ended() == 0, ioc.log
    assert "good" in ioc.log
    assert "not checked" not in ioc.log
    (site / "site.db").write_text(RECORDS + '\nrecord(ai, "S:no") {\n  field(DTYP, "Site Volume")\n}\n')
    async with starting_ioc("--config", site / "ioc.yml", "--check-config", SITE_TRACE=str(trace)) as ioc:
        assert await ioc.ended() == 1
    assert "site.db:8: " in ioc.log
    assert "Site Volume" in ioc.log
    assert not trace.exists()


def test_a_function_that_only_a_registrar_may_bring_is_a_warning(site: Path) -> None:
    (site / "site.db").write_text('record(sub, "S:late") { field(SNAM, "siteLate") }\n')
    found = trial(site)
    assert found.faults == ()
    assert [
        warning for warning in found.warnings if "siteLate" in warning and warning.startswith("site.db:1: ")
    ]
    (site / "site.dbd").write_text('device(ai, INST_IO, devAiSite, "Site Level")\n')
    assert "siteLate" in trial(site).faults[0]


async def test_a_script_with_a_command_of_the_site_is_not_checked_behind_it(site: Path) -> None:
    (site / "st.cmd").write_text("siteLevel 3\ndbLoadRecords nosuch.db\n")
    with (site / "ioc.yml").open("a") as config:
        config.write("script: st.cmd\n")
    async with starting_ioc("--config", site / "ioc.yml", "--check-config") as ioc:
        assert await ioc.ended() == 0
    assert "'siteLevel' may be a command of C code" in ioc.log


async def test_a_registrar_for_everything_in_a_script_is_accepted(site: Path) -> None:
    (site / "st.cmd").write_text("site_registerRecordDeviceDriver pdbbase\n")
    with (site / "ioc.yml").open("a") as config:
        config.write("script: st.cmd\n")
    async with running_ioc("--config", site / "ioc.yml") as ioc, ioc.client() as client:
        await client.put("S:level.PROC", 1)
        assert (await client.get("S:level"))["value"] == 3.0


def test_a_missing_library_is_named(site: Path) -> None:
    assert refused(site, LibraryStep("libnone.so")) == "libnone.so: cannot be read: No such file or directory"


def test_a_missing_definition_is_named(site: Path) -> None:
    text = refused(site, LibraryStep("libsite.so", ("none.dbd",)))
    assert text.startswith("none.dbd: ")
    assert "No such file" in text


def test_a_missing_symbol_is_named_with_the_line_that_asks_for_it(site: Path) -> None:
    with (site / "site.dbd").open("a") as file:
        file.write('device(bo, INST_IO, devBoOther, "Other")\n')
    text = refused(site)
    assert text.startswith("site.dbd:8: device(devBoOther): ")
    assert "pvar_dset_devBoOther" in text
    assert "epicsExportAddress(dset, devBoOther)" in text


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("driver(drvOther)", "epicsExportAddress(drvet, drvOther)"),
        ("registrar(other)", "epicsExportRegistrar(other)"),
        ("function(other)", "epicsRegisterFunction(other)"),
        ("variable(other, double)", "epicsExportAddress(double, other)"),
        ("variable(siteGain, double)", "epicsExportAddress(double, siteGain)"),
        ("link(other, lnkOtherIf)", "epicsExportAddress(jlif, lnkOtherIf)"),
        ('include "more.dbd"', "epicsExportRegistrar(more)"),
    ],
)
def test_each_kind_of_support_must_be_in_a_library(site: Path, line: str, wanted: str) -> None:
    (site / "more.dbd").write_text("registrar(more)\n")
    with (site / "site.dbd").open("a") as file:
        file.write(line + "\n")
    assert wanted in refused(site)


def test_a_definition_that_epics_cannot_read_is_named_with_its_line(site: Path) -> None:
    with (site / "site.dbd").open("a") as file:
        file.write("device(ai INST_IO)\n")
    assert refused(site).startswith("site.dbd:8: ")


def test_a_library_of_another_version_of_base_is_refused(site: Path) -> None:
    library = site / "libsite.so"
    data = library.read_bytes()
    needed = next(name for name in read_shared_object(data, "").needed if name.startswith("libCom"))
    other = needed.replace("libCom.so.7.", "libCom.so.3.")
    assert other != needed
    library.write_bytes(data.replace(needed.encode() + b"\0", other.encode() + b"\0"))
    text = refused(site)
    assert text.startswith("libsite.so: was compiled for another version of EPICS Base: ")
    assert other in text
    assert needed in text


def test_a_library_that_needs_what_base_does_not_have_is_refused_before_it_runs(site: Path) -> None:
    compiled(
        site / "libsite.so",
        "extern int dbFromTheFuture(void);\nint siteUse(void);\nint siteUse(void) { return dbFromTheFuture(); }\n",
    )
    assert "needs 'dbFromTheFuture'" in refused(site, LibraryStep("libsite.so"))


def test_a_library_may_use_one_that_is_named_before_it(site: Path) -> None:
    compiled(site / "libfirst.so", "int siteFirst(void);\nint siteFirst(void) { return 1; }\n", link=False)
    compiled(
        site / "libsecond.so",
        "extern int siteFirst(void);\nint siteUse(void);\nint siteUse(void) { return siteFirst(); }\n",
        link=False,
    )
    mine = LibraryStep("libsite.so", ("site.dbd",))
    first, second = LibraryStep("libfirst.so"), LibraryStep("libsecond.so")
    trial(site, mine, first, second)
    assert "needs 'siteFirst'" in refused(site, mine, second, first)


def test_a_library_with_a_base_of_its_own_is_refused(site: Path) -> None:
    compiled(site / "libsite.so", "int iocInit(void);\nint iocInit(void) { return 0; }\n", link=False)
    assert "contains an EPICS Base of its own (iocInit)" in refused(site, LibraryStep("libsite.so"))


def test_a_library_that_is_named_twice_does_not_take_the_blame_of_another(site: Path) -> None:
    compiled(site / "libother.so", "int iocInit(void);\nint iocInit(void) { return 0; }\n", link=False)
    mine = LibraryStep("libsite.so", ("site.dbd",))
    assert refused(site, mine, mine, LibraryStep("libother.so")).startswith(
        "libother.so: contains an EPICS Base"
    )


def test_a_library_that_is_not_linked_with_base_is_warned_of(site: Path) -> None:
    compiled(site / "libsite.so", file=SOURCES / "site_support.c", link=False)
    (warning,) = trial(site).warnings
    assert warning.startswith("libsite.so: it is not linked with EPICS Base")


@pytest.mark.parametrize(
    "content",
    [b"", b"#!/bin/sh\n", b"\x7fELF", b"\x7fELF\x02\x01" + bytes(100), b"\x7fELF\x09\x01" + bytes(100)],
)
def test_what_is_no_library_is_refused(site: Path, content: bytes) -> None:
    (site / "libsite.so").write_bytes(content)
    assert "shared library" in refused(site)


def test_a_cut_library_is_refused(site: Path) -> None:
    library = site / "libsite.so"
    data = library.read_bytes()
    for size in (64, 200, len(data) // 2, len(data) - 100):
        library.write_bytes(data[:size])
        assert "is damaged" in refused(site)


def test_a_library_for_another_processor_is_refused(site: Path) -> None:
    library = site / "libsite.so"
    data = bytearray(library.read_bytes())
    struct.pack_into("<H", data, 18, 243 if data[18] != 243 else 62)
    library.write_bytes(data)
    assert "another kind of processor" in refused(site)


@pytest.mark.parametrize(("mode", "who"), [(0o775, "its group"), (0o757, "every user of this machine")])
def test_a_library_that_others_can_change_is_refused(site: Path, mode: int, who: str) -> None:
    library = site / "libsite.so"
    library.chmod(mode)
    assert (
        f"has mode {mode:04o}: {who} can change what this program runs; run: chmod go-w {library}"
        in refused(site)
    )


def test_a_library_in_a_directory_that_others_can_change_is_refused(site: Path) -> None:
    deep = site / "lib"
    deep.mkdir(mode=0o755)
    shutil.move(site / "libsite.so", deep / "libsite.so")
    (site / "libsite.so").symlink_to("lib/libsite.so")
    trial(site)
    deep.chmod(0o777)
    assert f"{deep} has mode 0777" in refused(site)
    deep.chmod(0o755)
    site.chmod(0o775)
    assert f"{site} has mode 0775" in refused(site)


def test_a_library_of_another_user_is_refused(site: Path) -> None:
    os.chown(site / "libsite.so", 4711, -1)
    assert "belongs to user 4711" in refused(site)


async def test_a_library_that_others_can_change_is_not_loaded_by_a_start(site: Path) -> None:
    (site / "libsite.so").chmod(0o777)
    trace = site / "trace"
    async with starting_ioc("--config", site / "ioc.yml", SITE_TRACE=str(trace)) as ioc:
        assert await ioc.ended() == 1
    assert "can change what this program runs" in ioc.log
    assert "iocRun" not in ioc.log
    assert not trace.exists()

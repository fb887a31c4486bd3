"""What is wrong in databases, groups, links and scripts: said with file and line, by ``--check-config`` and before a start."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from appliance.errors import ConfigurationError
from appliance.ioc.config import LoadStep, Plan
from appliance.ioc.trial import Trial
from tests.helpers.ioc_process import running_ioc, starting_ioc

GOOD = """
record(ao, "$(P=L):ao") { field(VAL, "3") field(PINI, "YES") }
record(stringout, "$(P=L):text") {}
"""
FAULTS = {
    "wrong-field.db": ('record(ai, "L:1") {\n  field(FOO, "1")\n}\n', ":2: ", "doesn't have a field 'FOO'"),
    "no-brace.db": ('record(ai, "L:1") {}\nrecord(ai, "L:6") { field(VAL,"1")\n', ":2: ", "a '}' is missing"),
    "inner-brace.db": ('record(ai, "L:1") {\n field(VAL, "1")\nrecord(ai, "L:2") {}\n', ":", "rror"),
    "macro.db": (
        'record(ai, "L:1") {}\nrecord(ai, "$(UNDEF):x") { field(VAL,"1") }\n',
        ":2: ",
        "UNDEF is not defined",
    ),
    "json-link.db": ('record(ai, "L:1") { field(INP, {const:}) }\n', ":1: ", "syntax error"),
    "link-type.db": (
        'record(ai, "L:1") { field(DTYP,"Soft Channel")\n field(INP,"@asyn(P)") }\n',
        ":2: ",
        "L:1.INP: '@asyn(P)' is the address of a device",
    ),
    "group-json.db": (
        'record(ai, "L:1") {\n info(Q:group, {"g": {"v": {+channel: 5}}}) }\n',
        ":2: ",
        "must be text",
    ),
    "group-field.db": (
        'record(ai, "L:1") {\n info(Q:group, {"g": {\n  "v": {+channel: "VAL"},\n  "w": {+channel: "NOSUCH"}}}) }\n',
        ":4: ",
        "no such record or field: L:1.NOSUCH",
    ),
    "group-types.db": (
        (
            'record(ai, "L:1") { info(Q:group, {"g": {"st[0].v": {+type:"plain", +channel: "VAL"}}}) }\n'
            'record(stringin, "L:2") {\n info(Q:group, {"g": {"st[2].v": {+type:"plain", +channel: "VAL"}}}) }\n'
        ),
        ":3: ",
        "in one mapping",
    ),
    "group-consts.db": (
        (
            'record(ai, "L:1") { info(Q:group, {"g": {\n"st[0].c": {+type:"const", +const: 1},\n'
            '"st[1].c": {+type:"const", +const: 1.5}}}) }\n'
        ),
        ":3: ",
        "in one mapping",
    ),
    "group-name.db": (
        'record(ai, "L:1") {\n info(Q:group, {"L:1": {"v": {+channel: "VAL"}}}) }\n',
        ":2: ",
        "a record has the name",
    ),
}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with a subfolder of databases, and all that is wrong."""
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "good.db").write_text(GOOD)
    (tmp_path / "db" / "many.substitutions").write_text(
        'file "db/good.db" {\n pattern {P}\n {A}\n {"B"}\n}\n'
    )
    for name, (text, _, _) in FAULTS.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "group.json").write_text(
        '{"g": {\n "v": {"+channel": "L:ao.VAL"},\n "w": {"+channel": "gone.VAL"}}}\n'
    )
    return tmp_path


def refused(plan: Plan) -> str:
    """Why a plan cannot be started."""
    with pytest.raises(ConfigurationError) as caught:
        Trial(plan).result()
    assert "\n" not in str(caught.value)
    return str(caught.value)


async def said(*arguments: object, status: int, cwd: Path | None = None) -> str:
    """What a start that ends by itself has printed."""
    async with starting_ioc(*arguments, cwd=cwd) as ioc:
        ended = await ioc.ended()
        assert ended == status, ioc.log
        assert "Traceback" not in ioc.log
        return ioc.log


@pytest.mark.parametrize("name", sorted(FAULTS.keys() - {"link-type.db"}))
def test_the_trial_names_file_and_line_of_what_cannot_be_loaded(files: Path, name: str) -> None:
    _, line, words = FAULTS[name]
    sentence = refused(Plan(databases=(LoadStep(str(files / name)),), folder=str(files)))
    assert sentence.startswith(f"{files / name}{line}")
    assert words in sentence


@pytest.mark.parametrize("name", ["wrong-field.db", "no-brace.db", "group-field.db", "link-type.db"])
async def test_check_config_says_so_and_fails(files: Path, name: str) -> None:
    _, line, words = FAULTS[name]
    config = files / "ioc.yml"
    config.write_text(f"databases: [{{file: {name}}}]\n")
    log = await said("--config", config, "--check-config", status=1)
    sentence = next(each for each in log.splitlines() if each.startswith("Error: "))
    assert f"{files / name}{line}" in sentence
    assert words in sentence


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("no-brace.db", ["-S", "-d", "no-brace.db"]),
        ("macro.db", ["-S", "st.cmd"]),
        ("group-types.db", ["-S", "-d", "group-types.db"]),
    ],
)
async def test_a_start_ends_with_the_same_sentence_and_never_with_a_crash(
    files: Path, name: str, arguments: list[str]
) -> None:
    _, line, words = FAULTS[name]
    (files / "st.cmd").write_text(f'dbLoadRecords("{name}")\niocInit\n')
    log = await said(*arguments, status=1, cwd=files)
    assert f"{name}{line}" in log
    assert words in log
    assert "iocRun" not in log


async def test_a_configuration_with_only_a_script_is_initialised_after_it(files: Path) -> None:
    config = files / "ioc.yml"
    config.write_text("script: only.cmd\n")
    (files / "only.cmd").write_text("dbLoadRecords db/good.db\n")
    log = await said("--config", config, "--check-config", status=0)
    assert "ioc.yml: good" in log
    assert "not checked" not in log
    (files / "only.cmd").write_text("dbLoadRecords group-types.db\n")
    log = await said("--config", config, "--check-config", status=1)
    assert f"group-types.db{FAULTS['group-types.db'][1]}" in log


async def test_what_is_typed_into_the_shell_does_not_crash_it_either(files: Path) -> None:
    async with starting_ioc(cwd=files) as ioc:
        ioc.type('dbLoadRecords("no-brace.db")\n')
        await ioc.printed(r"no-brace\.db:2: .*'}' is missing")
        ioc.type('dbLoadRecords("macro.db")\n')
        await ioc.printed(r"macro\.db:2: the macro UNDEF is not defined")
        ioc.type('dbLoadTemplate("nowhere.substitutions")\n')
        await ioc.printed(r"nowhere\.substitutions: cannot be read")
        ioc.type('dbLoadRecords("db/good.db")\niocInit\ndbgf L:ao\n')
        await ioc.printed(r"DBF_DOUBLE: *3\b")
        ioc.type("exit\n")
        assert await ioc.ended() == 0


async def test_links_that_lead_nowhere_are_told_by_a_check(files: Path) -> None:
    config = files / "ioc.yml"
    config.write_text("databases: [{file: links.db}]\n")
    (files / "links.db").write_text(
        'record(ai, "L:1") { field(INP, "elsewhere:pv CP") field(FLNK, "L:2") }\n'
        'record(ai, "L:2") { field(INP, 4.5)\n field(SDIS, "L:1.VAL NPP MS") }\n'
    )
    log = await said("--config", config, "--check-config", status=0)
    assert "links.db:1: L:1.INP: elsewhere:pv is not a record of this IOC" in log
    assert "ioc.yml: good" in log
    (files / "links.db").write_text(
        'record(ai, "L:1") {}\nrecord(ai, "L:2") {\n field(INP, "L:1.NOSUCH") }\n'
    )
    log = await said("--config", config, "--check-config", status=1)
    assert "links.db:3: L:2.INP: links to L:1.NOSUCH, but that record has no such field" in log


def test_a_crash_of_a_command_is_a_sentence_with_its_line(files: Path) -> None:
    (files / "st.cmd").write_text('dbLoadRecords("db/good.db")\ndbLoadDatabase("wrong.dbd")\niocInit\n')
    (files / "wrong.dbd").write_text("recordtype(")
    sentence = refused(Plan(script="st.cmd", folder=str(files)))
    assert "st.cmd:2: " in sentence
    assert "good.db" not in sentence


async def test_group_files_are_checked_against_the_records(files: Path) -> None:
    config = files / "ioc.yml"
    config.write_text("databases: [{file: db/good.db}]\ngroups: [{file: group.json}]\n")
    log = await said("--config", config, "--check-config", status=1)
    assert f"{files / 'group.json'}:3: group g.w: no such record or field: gone.VAL" in log


async def test_check_config_reads_access_security_and_the_script_and_says_good(files: Path) -> None:
    config = files / "ioc.yml"
    (files / "rules.acf").write_text("ASG(DEFAULT) { RULE(1, READ) }\n")
    (files / "st.cmd").write_text(
        'asSetFilename("rules.acf")\ndbLoadTemplate("db/many.substitutions")\niocInit\n'
    )
    config.write_text("script: st.cmd\nacf: {file: rules.acf}\n")
    assert "ioc.yml: good" in await said("--config", config, "--check-config", status=0, cwd=Path("/"))
    (files / "rules.acf").write_text("ASG(DEFAULT) { RULE(1, REED) }\n")
    config.write_text("script: st.cmd\n")
    assert "rules.acf:1:" in await said("--config", config, "--check-config", status=1)


async def test_a_check_leaves_no_trace_and_processes_nothing(files: Path) -> None:
    (files / "st.cmd").write_text(
        'system("touch ran")\ndbl > list\nset_savefile_path(".")\ncreate_monitor_set("s.req", 1)\n'
        'dbLoadRecords("db/good.db")\niocInit\n'
    )
    (files / "s.req").write_text("L:ao\n")
    (files / "ioc.yml").write_text("script: st.cmd\n")
    before = sorted(path.name for path in files.rglob("*"))
    await said("--config", files / "ioc.yml", "--check-config", status=0)
    assert sorted(path.name for path in files.rglob("*")) == before


async def test_paths_of_a_start_script_are_relative_to_the_configuration(files: Path) -> None:
    (files / "st.cmd").write_text('dbLoadTemplate("db/many.substitutions")\n< more.cmd\niocInit\n')
    (files / "more.cmd").write_text('epicsEnvSet("WHO", "C")\niocshLoad("db/third.cmd", "P=$(WHO)")\n')
    (files / "db" / "third.cmd").write_text('dbLoadRecords("db/good.db", "P=$(P)")\n')
    (files / "ioc.yml").write_text("script: st.cmd\n")
    async with running_ioc("--config", files / "ioc.yml", cwd=Path("/")) as ioc, ioc.client() as client:
        for name in ("A:ao", "B:ao", "C:ao"):
            assert (await client.get(name))["value"] == 3.0


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('dbLoadTemplate("nowhere.substitutions")', "nowhere.substitutions"),
        ('dbLoadRecords("nowhere.db")', "nowhere.db"),
        ("nonsense 1", "nonsense: there is no such command"),
        ('seq("prog", "P=x")', "seq: this IOC has no sequencer"),
        ("drvAsynIPPortConfigure P host:1", "no asyn"),
        ("myApp_nosuchthing pdbbase", "there is no such command"),
        ('asSetFilename("nowhere.acf")', "nowhere.acf"),
        ('create_monitor_set("nowhere.req", 5)', "nowhere.req"),
    ],
)
def test_a_command_that_fails_ends_the_start_with_its_line(files: Path, line: str, words: str) -> None:
    (files / "st.cmd").write_text(f'dbLoadRecords("db/good.db")\n{line}\niocInit\n')
    sentence = refused(Plan(script="st.cmd", folder=str(files)))
    assert words in sentence
    assert "st.cmd:2" in sentence


async def test_the_start_goes_on_after_a_failure_only_where_it_is_told_to(files: Path) -> None:
    (files / "st.cmd").write_text('dbLoadRecords("db/good.db")\ndbLoadTemplate("nowhere.subs")\niocInit\n')
    (files / "ioc.yml").write_text("script: st.cmd\n")
    assert "nowhere.subs: cannot be read" in await said("--config", files / "ioc.yml", status=1)
    (files / "st.cmd").write_text('set_savefile_path("/nowhere")\ndbLoadRecords("db/good.db")\niocInit\n')
    assert re.search(
        r"st\.cmd:1.*/nowhere: is not a directory", await said("--config", files / "ioc.yml", status=1)
    )
    (files / "ioc.yml").write_text("script: st.cmd\non_error: continue\n")
    async with running_ioc("--config", files / "ioc.yml") as ioc:
        await ioc.printed("the script continues")
        await ioc.printed("serving 2 records")


async def test_a_script_may_say_itself_what_an_error_does(files: Path) -> None:
    (files / "st.cmd").write_text('dbLoadRecords("db/good.db")\non error continue\nnonsense\niocInit\n')
    async with running_ioc("-S", "st.cmd", cwd=files) as ioc:
        await ioc.printed("nonsense: there is no such command")


async def test_a_registrar_of_a_definition_that_is_here_is_no_failure(files: Path) -> None:
    (files / "st.cmd").write_text(
        'softIoc_registerRecordDeviceDriver(pdbbase)\ndbLoadRecords("db/good.db")\niocInit\n'
    )
    async with running_ioc("-S", "st.cmd", cwd=files) as ioc:
        await ioc.printed("serving 2 records")


@pytest.mark.parametrize("way", ["configuration", "option"])
async def test_databases_may_be_substitution_files(files: Path, way: str) -> None:
    (files / "ioc.yml").write_text("databases: [{file: db/many.substitutions}]\n")
    arguments = ["--config", "ioc.yml"] if way == "configuration" else ["-S", "-d", "db/many.substitutions"]
    async with running_ioc(*arguments, cwd=files) as ioc, ioc.client() as client:
        assert (await client.get("A:ao"))["value"] == 3.0
        assert (await client.get("B:ao"))["value"] == 3.0


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('file "db/good.db" {\n pattern {P}\n {A}\n', "wrong.substitutions:1: a brace is opened here"),
        ('file "no-brace.db" { {P=A} }\n', "no-brace.db:2: "),
        ('file "macro.db" { {P=A} }\n', "macro.db:2: the macro "),
        (
            'file "nowhere.db" { {P=A} }\n',
            "wrong.substitutions:1: there is no database 'nowhere.db' in . (EPICS_DB_INCLUDE_PATH)",
        ),
        (
            'file "sub/nowhere.db" {\n\n {P=A} }\n',
            "wrong.substitutions:3: there is no database 'sub/nowhere.db'",
        ),
        (
            'file "needs-p.db" {\n {P=A}\n {Q=B} }\n',
            "the macro P is not defined (loaded by wrong.substitutions:3)",
        ),
        ('file "db/good.db" {\n patern {P}\n {A} }\n', "wrong.substitutions:2: 'patern' is not known here"),
        ("\x00\x01", "wrong.substitutions:1: this is no text"),
    ],
)
def test_a_substitution_file_that_is_wrong_is_refused(files: Path, text: str, where: str) -> None:
    (files / "wrong.substitutions").write_text(text)
    (files / "needs-p.db").write_text('record(ai, "$(P):ai") {}\n')
    assert where in refused(Plan(databases=(LoadStep("wrong.substitutions"),), folder=str(files)))


async def test_a_faulty_substitution_file_ends_the_start_with_one_sentence(files: Path) -> None:
    (files / "wrong.substitutions").write_text('file "db/good.db" {\n patern {P}\n {A}\n}\n')
    (files / "st.cmd").write_text('\ndbLoadTemplate("wrong.substitutions")\niocInit\n')
    log = await said("-S", "st.cmd", status=1, cwd=files)
    assert (
        log.strip()
        .splitlines()[-1]
        .endswith(
            "wrong.substitutions:2: 'patern' is not known here: did you mean 'pattern'? (run by st.cmd:2)"
        )
    )
    assert "EPICS Base" not in log


@pytest.mark.parametrize(
    ("database", "script", "sentence"),
    [
        (
            'record(ai, "S:ai") {\n field(DTYP, "stream")\n field(INP, "@dev.proto getT(A) P1")\n}\n',
            'dbLoadRecords("stream.db")\niocInit\n',
            "stream.db:2: S:ai: this IOC has no device support 'stream' of StreamDevice: bring it with 'libraries'",
        ),
        (
            'record(ai, "S:ai") {\n field(INP, "@dev.proto getT(A) P1")\n}\n',
            'dbLoadRecords("stream.db")\niocInit\n',
            "stream.db:2: S:ai.INP: '@dev.proto getT(A) P1' is a protocol of StreamDevice, which this IOC does not have",
        ),
        ("", '\ndbLoadRecords("dev.proto")\n', "dev.proto: is a protocol file of StreamDevice, which this IOC does not have"),
        ("", '\ndbLoadDatabase("stream.dbd")\n', "st.cmd:2: dbLoadDatabase: there is no definition file 'stream.dbd' in ."),
        ("", "\nvar streamDebug 1\n", "st.cmd:2: var: this IOC has no variable 'streamDebug'"),
    ],
    ids=["dtyp", "address", "protocol", "definition", "variable"],
)  # fmt: skip
async def test_what_needs_streamdevice_ends_the_start_with_one_sentence(
    files: Path, database: str, script: str, sentence: str
) -> None:
    (files / "stream.db").write_text(database)
    (files / "dev.proto").write_text('getT { out "T?"; in "%f"; }\n')
    (files / "st.cmd").write_text(script)
    log = await said("-S", "st.cmd", status=1, cwd=files)
    assert sentence in log.strip().splitlines()[-1]


async def test_what_epics_ignores_in_a_substitution_file_is_a_warning(files: Path) -> None:
    (files / "many.substitutions").write_text('file "db/good.db" {\n pattern {P}\n {A, B}\n}\n')
    (files / "ioc.yml").write_text("databases: [{file: many.substitutions}]\n")
    async with running_ioc("--config", "ioc.yml", cwd=files) as ioc:
        await ioc.printed(
            r"many\.substitutions:3: there are 2 values for 1 names: the last ones have no effect"
        )


async def test_the_limits_of_64_bits_are_those_of_the_type(files: Path) -> None:
    (files / "big.db").write_text(
        'record(int64in, "i") {}\nrecord(ao, "ao") { info(Q:group, {"g": {"t": {+channel: "UTAG"}}}) }\n'
    )
    async with running_ioc("-S", "-d", "big.db", cwd=files) as ioc, ioc.client() as client:
        tag = await client.get("ao.UTAG")
        assert (tag["display.limitLow"], tag["display.limitHigh"]) == (0, 2**64 - 1)
        assert (await client.get("g"))["t.display.limitHigh"] == 2**64 - 1
        other = await client.get("i.LOPR")
        assert (other["display.limitLow"], other["display.limitHigh"]) == (-(2**63), 2**63 - 1)


@pytest.mark.parametrize(
    "hidden",
    [
        '$(RUN) "COMMAND"',
        '$(OTHER=system) "COMMAND"',
        "iocshCmd \"system 'COMMAND'\"",
        'iocshRun "system \'COMMAND\'", "A=B"',
        'iocshCmd "iocInit"\niocshCmd "system \'COMMAND\'"',
        '$(OTHER=iocInit)\n$(RUN) "COMMAND"',
        'iocshCmd "epicsEnvShow RUN >>told"',
    ],
)
async def test_what_acts_outside_runs_once_however_a_script_says_it(hidden: str, files: Path) -> None:
    script = 'epicsEnvSet("RUN", "system")\ndbLoadRecords("db/good.db")\n' + hidden.replace(
        "COMMAND", "echo told >>told"
    )
    (files / "st.cmd").write_text(script + ("" if "iocInit" in hidden else "\niocInit") + "\n")
    async with running_ioc("-S", "st.cmd", cwd=files) as ioc:
        await ioc.printed("serving 2 records")
    assert len((files / "told").read_text().splitlines()) == 1


async def test_code_that_a_script_loads_by_another_name_is_not_loaded_by_the_trial(files: Path) -> None:
    (files / "st.cmd").write_text('iocshCmd "dlload nosuch.so"\ndbLoadRecords("nosuch.db")\n')
    found = Trial(Plan(script="st.cmd", folder=str(files))).result()
    assert "dlload" in found.left_out


async def test_a_script_that_is_interrupted_does_not_go_on_to_iocinit(files: Path) -> None:
    (files / "st.cmd").write_text(
        'dbLoadRecords("db/good.db")\nsystem "echo begun"\nepicsThreadSleep 3\niocInit\nsystem "echo reached >>told"\n'
    )
    async with starting_ioc("-S", "st.cmd", cwd=files) as ioc:
        await ioc.printed(r"epicsThreadSleep 3")
        assert await ioc.stop() == 0
    assert "iocRun" not in ioc.log
    assert "Traceback" not in ioc.log
    assert not (files / "told").exists()


async def test_a_line_of_a_script_ends_only_where_it_ends_for_epics(files: Path) -> None:
    (files / "st.cmd").write_bytes(
        'epicsEnvSet("SAID", "one\u2028exit\x0cexit\x85exit")\r\ndbLoadRecords("db/good.db")\r\niocInit'.encode()
    )
    async with running_ioc("-S", "st.cmd", cwd=files) as ioc:
        await ioc.printed("serving 2 records")

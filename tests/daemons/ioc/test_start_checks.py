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


def test_a_database_on_which_epics_crashes_is_named_with_the_line_of_the_script(files: Path) -> None:
    (files / "db" / "crash.db").write_text(
        'record(ai, "L:1") {}\nrecord(ai, "$(NO_NAME):x") { field(DESC, "$(NO_NAME)") }\n'
    )
    (files / "st.cmd").write_text('cd "db"\ndbLoadRecords("crash.db")\niocInit\n')
    sentence = refused(Plan(script="st.cmd", folder=str(files)))
    assert "crash.db:2: the macro NO_NAME is not defined" in sentence
    assert "(run by st.cmd:2)" in sentence


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


async def test_a_group_that_the_rules_do_not_define_is_told(files: Path) -> None:
    (files / "rules.acf").write_text("ASG(DEFAULT) { RULE(1, READ) }\nASG(SETPOINTS) { RULE(1, READ) }\n")
    (files / "asg.db").write_text(
        'record(ao, "L:1") { field(ASG, "SETPOINT") }\nrecord(ao, "L:2") { field(ASG, "SETPOINTS") }\n'
        'record(ao, "L:3") { field(ASG, "DEFAULT") alias("L:4") }\n'
    )
    (files / "ioc.yml").write_text("databases: [{file: asg.db}]\nacf: {file: rules.acf}\n")
    words = (
        "rules.acf does not define ASG(SETPOINT), so the rules of ASG(DEFAULT) hold; did you mean SETPOINTS?"
    )
    log = await said("--config", files / "ioc.yml", "--check-config", status=0)
    assert log.count("does not define") == 1
    assert "Warning: L:1: " in log
    assert words in log
    async with running_ioc("--config", files / "ioc.yml") as ioc:
        await ioc.printed("serving 4 records")
        assert words in ioc.log
        assert ioc.log.count("does not define") == 1


async def test_an_input_of_the_rules_that_is_no_record_here_is_told(files: Path) -> None:
    (files / "rules.acf").write_text(
        "ASG(DEFAULT) { RULE(1, READ) }\nASG(A) {\n INPA(L:mod)\n INPB(other:pv)\n INPC(L:mode)\n"
        ' INPD("L:mode.NOPE")\n INPE("L:mode NPP")\n INPF("L:mode.SEVR")\n RULE(1, WRITE) { CALC("A+B+C+D+E+F") }\n}\n'
    )
    (files / "inputs.db").write_text('record(bo, "L:mode") { field(ASG, "A") }\n')
    (files / "ioc.yml").write_text("databases: [{file: inputs.db}]\nacf: {file: rules.acf}\n")
    log = await said("--config", files / "ioc.yml", "--check-config", status=0)
    never = "the rules that read it never allow anything"
    rules = f"Warning: {files / 'rules.acf'}"
    assert (
        f"{rules}:3: ASG(A): INPA names L:mod, which is no record of this IOC (did you mean L:mode?); "
        f"if no other IOC serves it, {never}" in log
    )
    assert (
        f"{rules}:4: ASG(A): INPB names other:pv, which is no record of this IOC; if no other IOC serves it, "
        in log
    )
    assert (
        f"{rules}:6: ASG(A): INPD names L:mode.NOPE, but the record L:mode has no such field: {never}" in log
    )
    assert f"{rules}:7: ASG(A): INPE names 'L:mode NPP', and no PV's name has blanks" in log
    assert log.count("INP") == 4
    # The form in YAML has lines, too.
    (files / "rules.acf").write_text(
        "version: 1.0\nasgs:\n  - name: A\n    links:\n      - INPA: other:pv\n    rules:\n"
        "      - level: 1\n        access: WRITE\n        calc: A=1\n"
    )
    log = await said("--config", files / "ioc.yml", "--check-config", status=0)
    assert f"{rules}:5: ASG(A): INPA names other:pv" in log


async def test_a_command_line_without_a_configuration_file_can_be_checked(files: Path) -> None:
    (files / "st.cmd").write_text('dbLoadRecords("db/good.db")\niocInit\n')
    assert "st.cmd: good" in await said("--check-config", "st.cmd", status=0, cwd=files)
    log = await said("--check-config", "-m", "P=A", "-d", "db/good.db", status=0, cwd=files)
    assert "db/good.db: good" in log
    (files / "st.cmd").write_text('dbLoadRecords("db/good.db")\niocInit\nnonsense\n')
    log = await said("--check-config", "st.cmd", status=1, cwd=files)
    assert "Error: st.cmd:3: nonsense: there is no such command" in log
    log = await said("--check-config", "-d", "macro.db", status=1, cwd=files)
    assert "the macro UNDEF is not defined" in log
    assert "name what to check" in await said("--check-config", status=1, cwd=files)
    assert "--config FILE" in await said("--print-config", "st.cmd", status=1, cwd=files)


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
        (
            "softIoc -s -d db/good.db",
            "it starts an IOC, so this is a script of the host's shell: give softIocPVX itself the options",
        ),
        ("dbl < no-such-file", "Can't open 'no-such-file': No such file or directory; the line was not run"),
        ('cd ""', "cd: it names no folder; remove the line, or name one"),
        ("sysCplusEnable=1", "this belongs to the shell of VxWorks: remove the line"),
        ("ld < as.munch", "this belongs to the shell of VxWorks: remove the line"),
        ("startPVAServer", "startPVAServer: PVAccess is served with iocInit"),
        ("myApp_nosuchthing pdbbase", "there is no such command"),
        ('asSetFilename("nowhere.acf")', "nowhere.acf"),
        ('create_monitor_set("nowhere.req", 5)', "nowhere.req"),
        ('epicsEnvSet("DB", "$(NO_TOP)/db")', "the macro NO_TOP is not defined: use epicsEnvSet before"),
        ('dbLoadRecords("${NO_TOP}/$(NO_NAME).db")', "the macros NO_TOP, NO_NAME are not defined"),
        ("< $(NO_TOP)/envPaths", "the macro NO_TOP is not defined"),
        (
            "< envPaths",
            "the build of an EPICS application makes it: copy it from where the IOC was built, or write lines",
        ),
        (
            'dbLoadDatabase("../dbd/no.dbd", 0, 0)',
            "there is no definition file '../dbd/no.dbd'; remove the line",
        ),
        ('dbLoadDatabase("no.dbd", 0, 0)', "there is no definition file 'no.dbd' in 0; remove the line"),
        ('iocshLoad("$(NO_TOP)/more.cmd")', "the macro NO_TOP is not defined"),
        ('cd "nowhere"', "cd: there is no folder 'nowhere' in "),
        ('cd "/nowhere/at/all"', "cd: there is no folder '/nowhere/at/all', or"),
    ],
)
def test_a_command_that_fails_ends_the_start_with_its_line(files: Path, line: str, words: str) -> None:
    (files / "st.cmd").write_text(f'dbLoadRecords("db/good.db")\n{line}\niocInit\n')
    sentence = refused(Plan(script="st.cmd", folder=str(files)))
    assert words in sentence
    assert "st.cmd:2" in sentence


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("dbll", "st.cmd:5: dbll: there is no such command"),
        ("seq prog", "st.cmd:5: seq: this IOC has no sequencer"),
        ("dbl > $(NO_TOP)/names", "st.cmd:5: the macro NO_TOP is not defined"),
        ("< more.cmd", "more.cmd:2: nonsense: there is no such command"),
        ("dbl\niocshLoad more.cmd", "more.cmd:2: nonsense: there is no such command"),
        ('dbLoadRecords("db/good.db")', "db/good.db: must be loaded before iocInit"),
        ('dbLoadGroup("group.json")', "groups must be loaded before iocInit"),
        ('set_pass0_restoreFile("lab.sav")', "st.cmd:5: call it before iocInit"),
        ('create_monitor_set("nowhere.req", 5)', "nowhere.req"),
        ('asSetFilename("some.acf")', "st.cmd:5: asSetFilename: the rules of some.acf are not in force: write it before iocInit"),
        ('asSetFilename("nowhere.acf")\nasInit', "nowhere.acf"),
        ('caPutLogInit("127.0.0.1:7011")', "there is no access security file"),
    ],
)  # fmt: skip
def test_commands_after_iocinit_are_checked_too(files: Path, lines: str, words: str) -> None:
    (files / "more.cmd").write_text("dbl\nnonsense\n")
    (files / "some.acf").write_text("ASG(DEFAULT) { RULE(1, READ) }\n")
    (files / "st.cmd").write_text(
        f'epicsEnvSet("HERE", ".")\ndbLoadRecords("db/good.db")\niocInit\ndbl\n{lines}\n'
    )
    assert words in refused(Plan(script="st.cmd", folder=str(files)))


def test_the_log_of_puts_is_not_started_before_iocinit(files: Path) -> None:
    (files / "st.cmd").write_text('dbLoadRecords("db/good.db")\ncaPutLogInit("127.0.0.1:7011")\niocInit\n')
    assert "st.cmd:2: caPutLogInit: access security is not active yet: use it after iocInit" in refused(
        Plan(script="st.cmd", folder=str(files))
    )


async def test_commands_after_iocinit_leave_no_trace_in_a_check(files: Path) -> None:
    (files / "some.acf").write_text("ASG(DEFAULT) { RULE(1, READ) }\n")
    (files / "lab.req").write_text("L:ao\n")
    (files / "ioc.yml").write_text("script: st.cmd\n")
    (files / "st.cmd").write_text(
        'dbLoadRecords("db/good.db")\niocInit\n'
        '$(IF_SEQ=#) seq prog\n$(IF_DBL=)dbl > names.txt\niocshCmd("dbl > names.txt")\nsystem("touch names.txt")\n'
        'asSetFilename("some.acf")\nasInit\ncd "db"\nset_requestfile_path("..")\ncreate_monitor_set("lab.req", 5)\n'
        'dbpf("L:ao", "4")\ncaPutLogInit("127.0.0.1:7011")\npvxsr 1\nsave_restoreShow\nepicsThreadSleep 1\n'
    )
    log = await said("--config", files / "ioc.yml", "--check-config", status=0)
    assert log.splitlines()[-1].endswith("ioc.yml: good")
    assert not (files / "names.txt").exists()
    assert not (files / "db" / "names.txt").exists()


def test_files_that_a_script_makes_itself_are_not_missed(files: Path) -> None:
    (files / "st.cmd").write_text(
        'dbLoadRecords("db/good.db")\nsystem("cp db/good.db made.req")\niocInit\ndbl > more-made.cmd\n'
        '< more-made.cmd\ncreate_monitor_set("made.req", 5)\nasSetFilename("made.acf")\nasInit\n'
    )
    assert Trial(Plan(script="st.cmd", folder=str(files))).result().left_out == ""
    with (files / "st.cmd").open("a") as script:
        script.write("nonsense\n")
    assert "st.cmd:9: nonsense" in refused(Plan(script="st.cmd", folder=str(files)))


async def test_a_start_with_rules_that_are_not_in_force_is_refused_or_told(files: Path) -> None:
    (files / "some.acf").write_text("ASG(DEFAULT) { RULE(1, READ) }\n")
    (files / "st.cmd").write_text('dbLoadRecords("db/good.db")\niocInit\nasSetFilename("some.acf")\n')
    assert "st.cmd:3: asSetFilename: the rules" in await said("-S", "st.cmd", status=1, cwd=files)
    (files / "ioc.yml").write_text("script: st.cmd\non_error: continue\n")
    async with running_ioc("--config", files / "ioc.yml") as ioc:
        await ioc.printed(
            "are not in force: write it before iocInit, or asInit after it: the script continues"
        )
        await ioc.printed("serving 2 records")
    with (files / "st.cmd").open("a") as script:
        script.write("asInit\n")
    async with running_ioc("-S", "st.cmd", cwd=files) as ioc:
        await ioc.printed("its rules apply to")
        assert "not in force" not in ioc.log


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


@pytest.mark.parametrize("own", [False, True])
async def test_a_good_start_prints_no_complaint_of_epics(files: Path, *, own: bool) -> None:
    parts = ("menuGlobal", "menuConvert", "menuScan", "stdRecords", "links", "devSoft", "asSub", "dbCore")
    (files / "mine.dbd").write_text("".join(f'include "{part}.dbd"\n' for part in parts))
    more = ["-D", "mine.dbd"] if own else []
    async with running_ioc("-S", *more, "-m", "P=A", "-d", "db/good.db", cwd=files) as ioc:
        await ioc.printed("serving 2 records")
        assert "could not" not in ioc.log
        assert "rror" not in ioc.log


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


_WIDE = f'file "db/good.db" {{\n pattern {{P {" ".join(f"N{n}" for n in range(119))}}}\n {{A, {"x, " * 119}}}\n}}\n'
"""A set of 120 names."""


@pytest.mark.parametrize("way", ["script", "shell"])
async def test_dbtemplatemaxvars_gives_room_for_more_names(files: Path, way: str) -> None:
    (files / "wide.substitutions").write_text(_WIDE)
    (files / "long.substitutions").write_text(f'file "db/good.db" {{\n {{P=B, LONG="{"x" * 7000}"}}\n}}\n')
    lines = (
        "var dbTemplateMaxVars 150\n",
        'dbLoadTemplate("wide.substitutions")\n',
        'dbLoadTemplate("long.substitutions")\n',
        "iocInit\n",
    )
    if way == "script":
        (files / "st.cmd").write_text("".join(lines))
        async with running_ioc("-S", "st.cmd", cwd=files) as ioc:
            await ioc.printed("serving 4 records")
        return
    async with starting_ioc(cwd=files) as ioc:
        for line in (*lines, "dbl\n"):
            ioc.type(line)
        for name in ("A:ao", "B:ao"):
            await ioc.printed(rf"\b{name}\n")


@pytest.mark.parametrize(
    ("number", "why"),
    [
        (119, "wide.substitutions:2: there are 120 names, and EPICS Base has room for 119"),
        (0, "dbTemplateMaxVars is 0: it must be from 1 to 42949672"),
        (42949673, "dbTemplateMaxVars is 42949673: it must be from 1 to 42949672"),
    ],
)
async def test_too_small_or_impossible_a_dbtemplatemaxvars_ends_the_start(
    files: Path, number: int, why: str
) -> None:
    (files / "wide.substitutions").write_text(_WIDE)
    (files / "st.cmd").write_text(f'var dbTemplateMaxVars {number}\ndbLoadTemplate("wide.substitutions")\n')
    log = await said("-S", "st.cmd", status=1, cwd=files)
    assert why in log.strip().splitlines()[-1]
    assert "st.cmd:2" in log.strip().splitlines()[-1]


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


async def test_what_epics_ignores_in_a_file_that_is_typed_is_a_warning_too(files: Path) -> None:
    (files / "many.substitutions").write_text('file "db/good.db" {\n pattern {P}\n {A, B}\n}\n')
    async with starting_ioc(cwd=files) as ioc:
        ioc.type('dbLoadTemplate("many.substitutions")\n')
        await ioc.printed(r"many\.substitutions:3: there are 2 values for 1 names")


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


async def test_a_wrong_choice_comes_with_the_choices_that_there_are(files: Path) -> None:
    (files / "choice.db").write_text(
        'record(ai, "L:1") {\n field(SCAN, "whatever")\n field(FLINK, "L:2")\n}\n'
    )
    log = await said("--check-config", "-d", "choice.db", status=1, cwd=files)
    assert "choice.db:2: Can't set 'L:1.SCAN' to 'whatever'" in log
    assert "the choices are Passive, Event, I/O Intr, 10 second, " in log
    assert "doesn't have a field 'FLINK'; Did you mean \"FLNK\"? (line 3)" in log


async def test_words_of_links_that_epics_ignores_are_told_by_a_check_and_by_a_start(files: Path) -> None:
    (files / "words.db").write_text(
        'record(ai, "L:1") {\n field(INP, "L:2 CPX")\n field(FLNK, "L:2 MS")\n}\n'
        'record(ao, "L:2") {\n field(OUT, "L:1 CP")\n}\n'
        'record(calc, "L:3") {\n field(INPA, "L:1 NMS MS")\n field(INPB, "{const:1} PP")\n field(INPC, "L:1 CP MS")\n}\n'
    )
    words = [
        "words.db:2: L:1.INP: 'CPX' is no modifier of a link, and EPICS reads CP in it",
        "words.db:3: L:1.FLNK: MS has no effect in a forward link",
        "words.db:9: L:3.INPA: NMS and MS contradict each other, and EPICS uses NMS",
        "words.db:10: L:3.INPB: 'PP' follows the last }, so EPICS takes all of it for the name of a PV",
    ]
    # EPICS itself tells of this one.
    discarded = "words.db:6: Discarding CP/CPP modifier in CA output link from L:2.OUT to L:1"
    log = await said("--check-config", "-d", "words.db", status=1, cwd=files)
    assert discarded in log
    (files / "words.db").write_text((files / "words.db").read_text().replace("L:1 CP", "L:1", 1))
    log = await said("--check-config", "-d", "words.db", status=0, cwd=files)
    for sentence in words:
        assert sentence in log
    assert "INPC" not in log
    async with running_ioc("-S", "-d", "words.db", cwd=files) as ioc:
        for sentence in words:
            await ioc.printed(re.escape(sentence))


async def test_a_definition_file_named_with_a_slash_is_found_whatever_its_path_is(files: Path) -> None:
    """As scripts of VxWorks write it: dbLoadDatabase("../dbd/softIoc.dbd", 0, 0)."""
    (files / "dbd").mkdir()
    (files / "dbd" / "more.dbd").write_text('menu(menuMore) { choice(menuMoreA, "A") }\n')
    (files / "db" / "st.cmd").write_text(
        'dbLoadDatabase("../dbd/more.dbd",0,0)\ndbLoadRecords("good.db")\niocInit\n'
    )
    assert "st.cmd: good" in await said("--check-config", "st.cmd", status=0, cwd=files / "db")


async def test_the_definitions_of_epics_own_iocs_are_there_already(files: Path) -> None:
    (files / "st.cmd").write_text(
        'dbLoadDatabase("softIoc.dbd")\ndbLoadDatabase("/opt/base/dbd/softIocPVA.dbd", 0, 0)\nsoftIoc_registerRecordDeviceDriver(pdbbase)\n'
        'dbLoadRecords("db/good.db")\niocInit\n'
    )
    assert "st.cmd: good" in await said("--check-config", "st.cmd", status=0, cwd=files)
    async with running_ioc("st.cmd", cwd=files) as ioc:
        assert "dbLoadDatabase: softIoc.dbd: what it defines is loaded already" in ioc.log


async def test_a_line_whose_output_cannot_be_redirected_ends_a_start(files: Path) -> None:
    (files / "st.cmd").write_text('dbLoadRecords("db/good.db")\niocInit\ndbl > no-such-folder/names\n')
    log = await said("-S", "st.cmd", status=1, cwd=files)
    assert (
        "st.cmd:3: Can't open 'no-such-folder/names': No such file or directory; the line was not run" in log
    )

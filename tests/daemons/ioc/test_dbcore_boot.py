"""The IOC's start: definitions, records, macros, errors, shell, start-up time.

EPICS' database exists once per process, so every test runs in a process of its own.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from appliance.errors import ApplianceError, ConfigurationError, OperationError
from tests.helpers.isolated import isolated


@isolated
def test_every_standard_record_type_loads_and_can_be_read(tmp_path: Path) -> None:
    from appliance.ioc import dbcore

    dbcore.boot()
    types = dbcore.record_types()
    assert {"ai", "ao", "aSub", "calc", "int64in", "lsi", "mbbo", "printf", "waveform"} <= set(types)
    assert len(types) >= 33
    dbcore.load_records_text("".join(f'record({name}, "r:{name}") {{}}\n' for name in types))
    dbcore.ioc_init()
    assert dbcore.ioc_state() is dbcore.IocState.RUNNING
    with pytest.raises(ConfigurationError, match=r"cannot be initialised: .*uninitialized"):
        dbcore.ioc_init()
    found = {info.name: info.record_type for info in dbcore.records()}
    assert found == {f"r:{name}": name for name in types}
    readable = set()
    for name in types:
        try:
            with dbcore.DBChannel(f"r:{name}") as channel:
                reading = channel.get()
                properties = channel.properties()
            assert reading.severity in range(4)
            assert properties.description == ""
            readable.add(name)
        except OperationError:
            # A record type without a value answers with an error, never with a crash.
            continue
        with dbcore.DBChannel(f"r:{name}.DESC") as description:
            description.put(f"a {name} record")
            assert description.get().value == f"a {name} record"
    assert len(readable) >= 30
    dbcore.shutdown()


@isolated
def test_errors_in_a_database_carry_file_and_what_epics_said(tmp_path: Path) -> None:
    from appliance.ioc import dbcore

    dbcore.boot()
    bad = tmp_path / "bad.db"
    bad.write_text('record(ai, "x") {\n  field(FOO, "1")\n}\n')
    with pytest.raises(ConfigurationError) as caught:
        dbcore.load_records(bad)
    text = str(caught.value)
    assert text.startswith(f"{bad}:2: ")
    assert "doesn't have a field 'FOO'" in text
    assert "\n" not in text
    assert "\x1b" not in text
    with pytest.raises(ConfigurationError, match=r"nosuch\.db"):
        dbcore.load_records(tmp_path / "nosuch.db")
    with pytest.raises(ApplianceError, match="already loaded"):
        dbcore.boot()


@isolated
def test_a_definition_that_names_missing_support_is_refused(tmp_path: Path) -> None:
    from appliance.ioc import dbcore

    extra = tmp_path / "extra.dbd"
    extra.write_text('device(ai, CONSTANT, devNoSuch, "No such")\n')
    with pytest.raises(ConfigurationError, match="devNoSuch"):
        dbcore.boot(extra=[extra])


@isolated
def test_an_error_leaves_standard_error_usable_and_warnings_pass_through(tmp_path: Path) -> None:
    from appliance.ioc import dbcore

    dbcore.boot()
    reader, writer = os.pipe()
    saved = os.dup(2)
    os.dup2(writer, 2)
    try:
        dbcore.load_records_text('record(ai, "-a") {}')
    finally:
        os.dup2(saved, 2)
        os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        assert b"should not begin with" in stream.read()


@isolated
def test_macros_reach_the_database_whatever_they_contain(tmp_path: Path) -> None:
    from appliance.ioc import dbcore

    dbcore.boot()
    db = tmp_path / "m.db"
    db.write_text('record(stringin, "$(P):s") { field(VAL, "$(TEXT)") }\n')
    dbcore.load_records(db, {"P": "a", "TEXT": "x, y=z"})
    dbcore.load_records(db, "P=b,TEXT=plain")
    for name in ("", "a b", "a=b", "$(X)"):
        with pytest.raises(ConfigurationError):
            dbcore.load_records(db, {name: "x"})
    with pytest.raises(ConfigurationError, match="one line"):
        dbcore.load_records(db, {"P": "a\nb"})
    dbcore.ioc_init()
    assert dbcore.DBChannel("a:s").get().value == "x, y=z"
    assert dbcore.DBChannel("b:s").get().value == "plain"
    with pytest.raises(ConfigurationError, match="before the IOC is initialised"):
        dbcore.load_records(db, {"P": "late", "TEXT": ""})
    dbcore.shutdown()


@isolated
def test_records_aliases_and_info_items_are_listed(tmp_path: Path) -> None:
    from appliance.ioc import dbcore

    with pytest.raises(ApplianceError, match="boot the IOC"):
        dbcore.records()
    dbcore.boot()
    dbcore.load_records_text(
        """
        record(waveform, "z") { info(Q:group, {"g": {"z": {+channel: "VAL"}}}) alias("other") }
        record(ai, "a") { info(Q:group, {"g": {"a": {+channel: "VAL"}}}) info(Q:form, "Hex") }
        record(ai, "b") {}
        """
    )
    listed = {(each.name, each.record_type, each.is_alias) for each in dbcore.records()}
    assert listed == {
        ("z", "waveform", False),
        ("other", "waveform", True),
        ("a", "ai", False),
        ("b", "ai", False),
    }
    addresses = {each.name: each.address for each in dbcore.records()}
    assert addresses["z"] == addresses["other"] != addresses["a"]
    groups = dbcore.info_items("Q:group")
    assert [name for name, _ in groups] == ["z", "a"], "in the order in which they were loaded"
    assert '"+channel"' in groups[0][1] or "+channel" in groups[0][1]
    assert dbcore.info_items("Q:form") == [("a", "Hex")]
    assert dbcore.info_items("nosuch") == []


@isolated
def test_channel_access_is_off_unless_asked_for(tmp_path: Path) -> None:
    from appliance.ioc import dbcore

    dbcore.boot()
    dbcore.load_records_text('record(ai, "a") {}')
    dbcore.ioc_init()
    with pytest.raises(ApplianceError, match="casr"):
        dbcore.shell_command("casr")
    dbcore.shutdown()


@isolated
def test_channel_access_serves_when_asked_for(tmp_path: Path) -> None:
    os.environ.update(
        EPICS_CAS_INTF_ADDR_LIST="127.0.0.1", EPICS_CAS_AUTO_BEACON_ADDR_LIST="NO", EPICS_CAS_SERVER_PORT="0"
    )
    from appliance.ioc import dbcore

    dbcore.boot(channel_access=True)
    dbcore.load_records_text('record(ai, "a") {}')
    dbcore.shell_command("casr")


@isolated
def test_shell_runs_commands_scripts_and_a_session(tmp_path: Path) -> None:
    from appliance.ioc import dbcore
    from appliance.ioc.script import ScriptRunner
    from appliance.ioc.terminal import run_terminal

    dbcore.boot()
    (tmp_path / "my.db").write_text('record(ai, "$(P)") { field(VAL, "4") }\n')
    script = tmp_path / "st.cmd"
    script.write_text(f'dbLoadRecords("{tmp_path}/my.db", "P=$(NAME)")\niocInit\n')
    states: list[int] = []
    dbcore.on_init_hook(states.append)
    ScriptRunner().run_typed("", ["iocshLoad", str(script), "NAME=from:script"])
    assert dbcore.DBChannel("from:script").get().value == 4
    assert states.index(dbcore.InitHook.AT_IOC_BUILD) < states.index(dbcore.InitHook.AFTER_IOC_RUNNING)
    with pytest.raises(ApplianceError, match=r"nosuch.*not registered"):
        dbcore.shell_command("nosuch 1")
    with pytest.raises(ConfigurationError, match=r"nosuch\.cmd"):
        ScriptRunner().run(str(tmp_path / "nosuch.cmd"))

    called: list[tuple[object, ...]] = []

    def command(*arguments: object) -> None:
        called.append(arguments)
        if arguments[0] == "bad":
            raise ApplianceError("no such group")

    dbcore.register_command("grp", [("name", str), ("level", int), ("scale", float)], command, "usage")
    dbcore.shell_command('grp "a b" 3 1.5')
    dbcore.shell_command("grp")
    with pytest.raises(ApplianceError, match="grp bad"):
        dbcore.shell_command("grp bad")
    assert called == [("a b", 3, 1.5), (None, 0, 0.0), ("bad", 0, 0.0)]

    reader, writer = os.pipe()
    os.dup2(reader, 0)
    os.write(writer, b"dbpf from:script 8\nexit\n")
    os.close(writer)
    assert run_terminal()
    assert dbcore.DBChannel("from:script").get().value == 8
    dbcore.shutdown()
    dbcore.shutdown()


@isolated
def test_ten_thousand_records_start_at_once(tmp_path: Path) -> None:
    from appliance.ioc import dbcore

    db = tmp_path / "many.db"
    db.write_text(
        "".join(
            f'record(calc, "c:{i}") {{ field(SCAN, ".1 second") field(INPA, "c:{i}") field(CALC, "A+1") }}\n'
            for i in range(10_000)
        )
    )
    start = time.perf_counter()
    dbcore.boot()
    dbcore.load_records(db)
    dbcore.ioc_init()
    took = time.perf_counter() - start
    # Half a second on an idle machine; a step that looks at all records for each record takes minutes.
    assert took < 30, f"{took:.2f} s"
    assert len(dbcore.records()) == 10_000
    dbcore.shutdown()


@isolated
def test_a_process_that_forgets_to_shut_down_still_ends(tmp_path: Path) -> None:
    from appliance.ioc import dbcore

    calls = threading.Event()

    def spin(record: dbcore.RecordView) -> int:
        calls.set()
        return 0

    dbcore.boot()
    dbcore.register_function("spin", spin)
    dbcore.load_records_text('record(sub, "s") { field(SNAM, "spin") field(SCAN, ".1 second") }')
    dbcore.ioc_init()
    assert calls.wait(30)


@isolated
def test_the_exit_record_asks_for_the_end(tmp_path: Path) -> None:
    from appliance.ioc import dbcore

    asked: list[int] = []
    dbcore.boot()
    dbcore.register_exit(asked.append)
    dbcore.load_records_text(dbcore.EXIT_RECORDS, {"IOC": "my"})
    dbcore.ioc_init()
    assert dbcore.DBChannel("my:BaseVersion").get().value.startswith("7.")
    dbcore.DBChannel("my:exit.A").put(3)
    dbcore.DBChannel("my:exit.A").put(0)
    assert asked == [1, 0]
    dbcore.shutdown()


@isolated
def test_pause_stops_scanning_until_resumed(tmp_path: Path) -> None:
    from appliance.ioc import dbcore

    dbcore.boot()
    dbcore.load_records_text('record(calc, "c") { field(SCAN, ".1 second") field(CALC, "VAL+1") }')
    dbcore.ioc_init()
    dbcore.shell_command("iocPause")
    assert dbcore.ioc_state() is dbcore.IocState.PAUSED
    dbcore.shell_command("iocRun")
    assert dbcore.ioc_state() is dbcore.IocState.RUNNING
    dbcore.shutdown()

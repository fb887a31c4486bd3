"""Where the output of the shell's commands and the messages of EPICS' error log go, also when commands run others."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.isolated import isolated


@isolated
def test_a_command_that_runs_others_does_not_end_the_capture_of_what_follows(tmp_path: Path) -> None:
    from appliance.ioc import dbcore

    dbcore.boot()
    dbcore.load_records_text('record(ai, "a") {}')
    dbcore.ioc_init()
    said: list[str] = []

    def captures() -> None:
        said.append(dbcore.shell_capture("echo inside")[1])

    def runs() -> None:
        assert dbcore.shell_line("echo inside") is None

    def passes_on() -> None:
        with dbcore.printed_through(said.append):
            assert dbcore.shell_line("echo inside") is None

    def opens_a_channel() -> None:
        dbcore.DBChannel('a.VAL{"dbnd":{"d":1}}').close()
        said.append("inside\n")

    for command in (captures, runs, passes_on, opens_a_channel):
        name = command.__name__
        dbcore.register_command(name, [], command)
        script = tmp_path / f"{name}.cmd"
        script.write_text(f"echo before\n{name}\necho after\nnosuch\n")
        said.clear()
        ok, text = dbcore.shell_capture(f'iocshLoad "{script}"')
        assert ok
        lines = [line for line in text.splitlines() if line in ("before", "inside", "after")]
        assert lines == (["before", "inside", "after"] if command is runs else ["before", "after"]), name
        assert "line 4:" in text.splitlines()[-1], (name, "the error of what follows")
        assert "".join(said) == ("" if command is runs else "inside\n"), name
    dbcore.shutdown()


@isolated
def test_errors_of_a_command_inside_another_one_are_those_of_the_outer_one(tmp_path: Path) -> None:
    from appliance.ioc import dbcore

    dbcore.boot()
    script = tmp_path / "inner.cmd"
    script.write_text("nosuch\n")

    def inner() -> None:
        assert dbcore.shell_line(f'iocshLoad "{script}"') is None

    dbcore.register_command("inner", [], inner)
    _, text = dbcore.shell_capture("inner")
    assert "inner.cmd line 1:" in text
    dbcore.shutdown()


@isolated
def test_a_file_can_be_loaded_while_errors_are_captured(tmp_path: Path) -> None:
    """A command that is run with its errors captured loads a definition, whose errors are captured, too."""
    from appliance.ioc import dbcore
    from appliance.ioc.dbcore import _c

    dbcore.boot()
    with dbcore.captured_errors() as outer:
        dbcore.load_definition_text('menu(menuX) { choice(menuXa, "a") }')
        with dbcore.captured_errors() as inner:
            _c.errlogPrintf(b"inside\n")
            inner.is_reported = True
        _c.errlogPrintf(b"behind\n")
        outer.is_reported = True
    assert (inner.text, outer.text) == ("inside\n", "behind\n")
    dbcore.shutdown()


@isolated
def test_who_switched_messages_off_does_not_get_them_back_with_the_next_file(tmp_path: Path) -> None:
    import os

    from appliance.errors import ConfigurationError
    from appliance.ioc import dbcore
    from appliance.ioc.config import Plan
    from appliance.ioc.dbcore import _c
    from appliance.ioc.dbcore.streams import written
    from appliance.ioc.loading import Loading

    error_file = os.memfd_create("errors")
    os.dup2(error_file, 2)
    loading = Loading(Plan())
    loading.definition()
    loading.register_commands()

    def printed(text: str) -> bool:
        start = os.fstat(2).st_size
        _c.errlogPrintf(text.encode() + b"\n")
        _c.errlogFlush()
        return text in written(2, start)

    assert printed("at first")
    assert dbcore.shell_line("eltc 0") is None
    assert not printed("switched off")
    bad = tmp_path / "bad.db"
    bad.write_text('record(ai, "x") { field(VAL, "1") }\nrecord(bo, "x") {}\n')
    try:
        dbcore.load_records(bad)
    except ConfigurationError as error:
        said = str(error)
    assert "bad.db:2" in said
    assert not printed("after a file")
    heard: list[str] = []
    dbcore.take_errors(heard.append)
    assert not printed("taken")
    with dbcore.captured_errors() as captured:
        _c.errlogPrintf(b"captured\n")
        captured.is_reported = True
    assert captured.text == "captured\n"
    assert not printed("taken still")
    dbcore.give_errors_back()
    assert not printed("given back")
    assert dbcore.shell_line("eltc 1") is None
    assert printed("switched on")
    assert heard == ["taken\n", "captured\n", "taken still\n"]
    dbcore.shutdown()

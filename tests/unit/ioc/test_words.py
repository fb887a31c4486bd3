"""What EPICS Base prints, as one sentence."""

from __future__ import annotations

import ctypes
import os

import pytest

from appliance.ioc.dbcore import _c, captured_errors, output, register_command
from appliance.ioc.dbcore.streams import memory_stream, prints_to, written
from appliance.ioc.dbcore.words import complaint, device_address


def test_the_error_log_does_not_print_in_the_middle_of_the_parsers_line() -> None:
    with captured_errors() as captured:
        os.write(2, b"Warning: 'x.db'")
        _c.errlogPrintf(b"macLib: macro P is undefined\n")
        # Now its thread has printed.
        _c.errlogFlush()
        os.write(2, b" line 1 has undefined macros\n")
        captured.is_reported = True
    assert captured.text == "macLib: macro P is undefined\nWarning: 'x.db' line 1 has undefined macros\n"


def test_what_nobody_reports_is_passed_on(capfd: pytest.CaptureFixture[str]) -> None:
    with captured_errors():
        _c.errlogPrintf(b"of the log\n")
        os.write(2, b"of the parser\n")
    _c.errlogPrintf(b"afterwards\n")
    _c.errlogFlush()
    assert capfd.readouterr().err == "of the log\nof the parser\nafterwards\n"


def test_the_error_log_does_not_keep_the_stream_of_a_command(capfd: pytest.CaptureFixture[str]) -> None:
    """A command of the shell has a stream for its errors, which is closed when it ends."""
    with memory_stream() as (descriptor, stream):
        with prints_to(errors=stream), captured_errors():
            pass
        _c.errlogPrintf(b"afterwards\n")
        _c.errlogFlush()
        assert written(descriptor) == ""
    assert capfd.readouterr().err == "afterwards\n"


def test_what_a_successful_command_says_on_standard_error_cannot_command_a_terminal(
    capfd: pytest.CaptureFixture[str],
) -> None:
    error_stream = _c.com.epicsGetStderr
    error_stream.restype = ctypes.c_void_p
    libc = ctypes.CDLL(None)
    libc.fputs.argtypes = (ctypes.c_char_p, ctypes.c_void_p)
    noise = "one\x1b]0;title\x07 \x1b[31;1mtwo\x1b[0m é\n".encode()
    register_command("noise", [], lambda: libc.fputs(noise, error_stream()) and None)
    assert output.shell_line("noise") is None
    assert capfd.readouterr().err == "one\\x1b]0;title\\x07 two é\n"
    with captured_errors():
        os.write(2, noise)
    assert capfd.readouterr().err == "one\\x1b]0;title\\x07 two é\n"


@pytest.mark.parametrize("aside", ["", "macLib: macro UNDEF is undefined (expanding string x)\n"])
def test_an_undefined_macro_is_named_whether_or_not_the_error_log_was_quick(aside: str) -> None:
    printed = (
        "ERROR: Bad character '$' in Record/Alias name \"$(UNDEF,undefined):x\"\n"
        "ERROR:  at or before ')' in file \"/d/x.db\" line 2\n"
    )
    said = str(complaint(aside + printed, "why", "/d/x.db"))
    assert said.startswith("/d/x.db:2: the macro UNDEF is not defined")


@pytest.mark.parametrize(
    ("device", "hint", "said"),
    [
        ("stream", "", "L:1: this IOC has no device support 'stream' of StreamDevice: bring it with 'libraries', or read an IOC that has it"),
        ("stream", '; Did you mean "Soft Timestamp"?', "L:1: this IOC has no device support 'stream' of StreamDevice: bring"),
        ("asynInt32", '; Did you mean "Async Soft Channel"?', "L:1: this IOC has no device support 'asynInt32' of asyn: bring"),
        ("Soft Chanel", '; Did you mean "Soft Channel"?', "L:1: ai records have no device support 'Soft Chanel'; Did you mean \"Soft Channel\"?"),
        ("Beam", "", "L:1: ai records have no device support 'Beam': bring it with 'libraries'"),
    ],
)  # fmt: skip
def test_a_device_type_that_is_not_there_is_named_with_its_module(device: str, hint: str, said: str) -> None:
    printed = (
        f"ERROR: Can't set 'L:1.DTYP' to '{device}' no such device support for 'ai' record type : illegal choice{hint}\n"
        "ERROR:  at or before ')' in file \"/d/x.db\" line 3\n"
    )
    assert str(complaint(printed, "why", "/d/x.db")).startswith(f"/d/x.db:3: {said}")
    if hint:
        # The error log prints it in a line of its own.
        alone = f"    {hint[2:]}\n{printed.replace(hint, '')}"
        assert str(complaint(alone, "why", "/d/x.db")).startswith(f"/d/x.db:3: {said}")


def test_a_proposal_for_a_choice_follows_the_complaint() -> None:
    said = complaint(
        "    Did you mean \"MINOR\"?\nERROR: Can't set 'L:1.HHSV' to 'MINR'  : illegal choice\n",
        "why",
        "/d/x.db",
    )
    assert str(said) == "/d/x.db: Can't set 'L:1.HHSV' to 'MINR'  : illegal choice; Did you mean \"MINOR\"?"


@pytest.mark.parametrize(
    ("wrong", "proposed", "is_near"),
    [("1 secnd", "1 second", True), ("YES", "Yes", True), ("whatever", "Passive", False), ("stream", "Soft Timestamp", False)],
)  # fmt: skip
def test_what_epics_proposes_is_passed_on_only_if_it_is_near(
    wrong: str, proposed: str, is_near: bool
) -> None:
    printed = f"    Did you mean \"{proposed}\"?\nERROR: Can't set 'L:1.SCAN' to '{wrong}' using menu menuScan : illegal choice\n"
    said = str(complaint(printed, "why", "/d/x.db"))
    assert said.endswith(f'illegal choice; Did you mean "{proposed}"?' if is_near else "illegal choice")


def test_each_of_several_wrong_choices_has_its_own_proposal() -> None:
    said = complaint(
        '    Did you mean "Raw Soft Channel"?\n    Did you mean "1 second"?\n'
        "ERROR: Can't set 'L:1.DTYP' to 'Raw Soft Chanel' no such device support for 'ai' record type : illegal choice\n"
        "ERROR: Can't set 'L:2.SCAN' to '1 secnd' using menu menuScan : illegal choice\n",
        "why",
        "/d/x.db",
    )
    assert "no device support 'Raw Soft Chanel'; Did you mean \"Raw Soft Channel\"?; " in str(said)
    assert str(said).endswith('illegal choice; Did you mean "1 second"?')


@pytest.mark.parametrize(
    ("field", "proposed", "prompt"), [("FLINK", "FLNK", "  (Forward Process Link)"), ("ZZZ", "ZRVL", "")]
)
def test_a_field_that_is_near_is_proposed(field: str, proposed: str, prompt: str) -> None:
    said = str(
        complaint(
            f"ERROR: ai record 'm:1' doesn't have a field '{field}'\n    Did you mean \"{proposed}\"?{prompt}\n"
            " 3 |  field(...)\nERROR:  at or before ')' in file \"a.db\" line 2\n",
            "why",
            "a.db",
        )
    )
    hint = '; Did you mean "FLNK"?' if field == "FLINK" else ""
    assert said == f"a.db:2: ai record 'm:1' doesn't have a field '{field}'{hint} (line 3)"


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("motor", "m:1: this IOC has no record type 'motor' of the module motor: a library of the site brings it, named with its .dbd under 'libraries'"),
        ("scalcout", "m:1: this IOC has no record type 'scalcout' of the module calc: a library"),
        ("site", "m:1: this IOC has no record type 'site': a library of the site brings it"),
    ],
)  # fmt: skip
def test_a_record_type_that_is_not_there_comes_with_a_way_out(kind: str, said: str) -> None:
    printed = (
        f"ERROR: Record type '{kind}' for record 'm:1' not found\nERROR:  at or before ')' in path \".\"  file \"a.db\" line 1\n"
        "ERROR: (null) record '(null)' doesn't have a field 'DESC'\n"
    )
    found = str(complaint(printed, "why", "a.db"))
    assert found.startswith(f"a.db:1: {said}")
    assert "null" not in found


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("@dev.proto getT(A) P1", "L:1.INP: '@dev.proto getT(A) P1' is a protocol of StreamDevice, which this IOC does not have, and the record has no DTYP"),
        ("@asyn(P1,0)X", "L:1.INP: '@asyn(P1,0)X' is the address of a device, and the record has no DTYP for it"),
    ],
)  # fmt: skip
def test_the_address_of_a_device_without_dtyp_is_named(address: str, said: str) -> None:
    printed = f'L:1.INP: can\'t initialize link type CONSTANT with "{address}" (type INST_IO)'
    assert device_address(printed).startswith(said)

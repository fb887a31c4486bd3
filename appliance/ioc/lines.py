"""Run one line of the IOC shell, from a script, a terminal or the console; a failure is one sentence.

Start scripts that were written for other IOCs name commands of their C code. The answer to such a command says what this IOC has instead.
"""

from __future__ import annotations

import re
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Final

from appliance.errors import ApplianceError
from appliance.ioc import dbcore
from appliance.ioc.editing import plain

__all__ = ["REGISTRAR", "captured_line", "explained", "run_line", "words_of"]

_WORD: Final = re.compile(r'"((?:[^"\\]|\\.)*)"|\'((?:[^\'\\]|\\.)*)\'|([^\s,()"\']+)')
_NOT_FOUND: Final = re.compile(r"Command '?([^\s']+)'? not (?:found|registered)")
REGISTRAR: Final = "_registerRecordDeviceDriver"
_NO_VARIABLE: Final = re.compile(r"No known var '([^']+)'|[Vv]ariable '?(\w+)'? not (?:found|registered)")
_PAGE: Final = "see 'What this IOC does not have' in its documentation"
_MISSING: Final = (
    (("seq", "seqShow", "seqChanShow", "seqStop", "seqcar", "seqQueueShow"), "this IOC has no sequencer: run a client beside it"),
    (("drvAsyn", "asyn", "Stream", "streamSet", "vxi11", "Modbus", "modbus", "drvModbus", "motor", "asynMotor"), "this IOC has no asyn and no drivers in C"),
    (("NDStd", "ND", "ADCore", "simDetector", "startPVA"), "this IOC has no areaDetector"),
    (("autosaveBuild", "asVerify", "configMenu", "fdblist"), "this part of autosave is not here; makeAutosaveFiles makes request files"),
    (("devIocStats", "iocAdmin"), "dbLoadRecords of iocStats.db, which comes with this IOC, or 'stats' of the configuration"),
    (("pvasr", "startPVAServer", "stopPVAServer", "pvxs_target_info"), "PVAccess is served with iocInit; 'pvxsr' and 'pvxgl' show what is served"),
    (("scriptAlarm", "luash", "luaSpawn", "py", "pydev", "ipython"), "this IOC runs no other language's scripts"),
)  # fmt: skip
"""Beginnings of command names, each with the reason why this IOC lacks the command."""


def words_of(line: str) -> list[str]:
    """Split a line of the shell into its words, without brackets, commas and quotes."""
    return [match[1] or match[2] or match[3] or "" for match in _WORD.finditer(line)]


def explained(name: str) -> str:
    """Return why there is no such command."""
    if name.endswith(REGISTRAR):
        return f"{name}: it registers C code, which is not part of this IOC; {_PAGE}"
    for beginnings, why in _MISSING:
        if name.startswith(beginnings):
            return f"{name}: {why}; {_PAGE}"
    return f"{name}: there is no such command; 'help' lists the commands; {_PAGE}"


def captured_line(line: str) -> tuple[bool, str]:
    """Run a line; return whether it succeeded, and its output or the reason of the failure."""
    ok, text = dbcore.shell_capture(line)
    missing = None if ok else _NOT_FOUND.search(text)
    return ok, text if missing is None else explained(missing[1]) + "\n"


def run_line(line: str) -> ApplianceError | None:
    """Run a line; return the reason of a failure, or None."""
    words = words_of(line)
    if words and words[0].endswith(REGISTRAR):
        return _register(words[0])
    with _shown():
        error = dbcore.shell_line(line)
    if error is not None and (missing := _NOT_FOUND.search(str(error))) is not None:
        return ApplianceError(explained(missing[1]))
    if error is not None and (variable := _NO_VARIABLE.search(str(error))) is not None:
        return ApplianceError(
            f"var: this IOC has no variable {variable[1] or variable[2]!r}; 'var' alone lists them; {_PAGE}"
        )
    return error


def _shown() -> AbstractContextManager[None]:
    """Escape what a command prints if a terminal shows it: records hold what clients wrote."""
    if not sys.stdout.isatty():
        return nullcontext()

    def write(text: str) -> None:
        sys.stdout.write(plain(text))
        sys.stdout.flush()

    return dbcore.printed_through(write)


def _register(name: str) -> ApplianceError | None:
    """Register the support of everything that is declared so far; all of these commands do the same."""
    try:
        dbcore.register_support()
    except ApplianceError as error:
        return ApplianceError(f"{explained(name)} ({error})")
    return None

"""Run one line of the IOC shell, from a script, a terminal or the console; a failure is one sentence.

Start scripts that were written for other IOCs name commands of their C code. The answer to such a command says what this IOC has instead.
"""

from __future__ import annotations

import re
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Final

from appliance.errors import ApplianceError
from appliance.ioc import dbcore
from appliance.ioc.editing import plain

__all__ = ["REGISTRAR", "captured_line", "explained", "run_line", "undefined_macros", "words_of"]

_WORD: Final = re.compile(r'"((?:[^"\\]|\\.)*)"|\'((?:[^\'\\]|\\.)*)\'|([^\s,()"\']+)')
_NOT_FOUND: Final = re.compile(r"Command '?([^\s']+)'? not (?:found|registered)")
REGISTRAR: Final = "_registerRecordDeviceDriver"
_NO_VARIABLE: Final = re.compile(r"No known var '([^']+)'|[Vv]ariable '?(\w+)'? not (?:found|registered)")
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")
_COLOURED: Final = re.compile(r"\x1b\[[0-9;]*m(ERROR|WARNING)\x1b\[0m")
_SINGLE: Final = re.compile(r'"(?:[^"\\]|\\.)*"|(\'[^\']*\')')
"""Texts in quotes; the group is a text in single quotes, in which EPICS expands nothing."""
_MACRO: Final = re.compile(r"\$(?:\(([^\s=(){},$]+)\)|\{([^\s=(){},$]+)\})")
_PAGE: Final = "see 'What this IOC does not have' in its documentation"
_MISSING: Final = (
    (("seq", "seqShow", "seqChanShow", "seqStop", "seqcar", "seqQueueShow"), "this IOC has no sequencer: run a client beside it"),
    (("drvAsyn", "asyn", "Stream", "streamSet", "vxi11", "Modbus", "modbus", "drvModbus", "motor", "asynMotor"), "this IOC has no asyn and no drivers in C"),
    (("NDStd", "ND", "ADCore", "simDetector"), "this IOC has no areaDetector"),
    (("autosaveBuild", "asVerify", "configMenu", "fdblist", "eraseFile", "appendToFile"), "this part of autosave is not here; makeAutosaveFiles makes request files"),
    (("devIocStats", "iocAdmin"), "dbLoadRecords of iocStats.db, which comes with this IOC, or 'stats' of the configuration"),
    (("pvasr", "startPVAServer", "stopPVAServer", "pvxs_target_info"), "PVAccess is served with iocInit; 'pvxsr' and 'pvxgl' show what is served"),
    (("softIoc",), "it starts an IOC, so this is a script of the host's shell: give softIocPVX itself the options and files that follow"),
    (("scriptAlarm", "luash", "luaSpawn", "py", "pydev", "ipython"), "this IOC runs no other language's scripts"),
)  # fmt: skip
"""Beginnings of command names, each with the reason why this IOC lacks the command."""
_VXWORKS: Final = frozenset(
    [
        "ld",
        "putenv",
        "taskSpawn",
        "taskDelay",
        "nfsMount",
        "nfsAuthUnixSet",
        "hostAdd",
        "routeAdd",
        "shellPromptSet",
        "taskwdShow",
        "sysAtReboot",
        "memShow",
        "tyBackspaceSet",
        "logMsg",
        "ioccrf",
        "save_restoreSet_NFSHost",
    ]
)
"""Commands of start scripts for VxWorks."""


def words_of(line: str) -> list[str]:
    """Split a line of the shell into its words, without brackets, commas and quotes."""
    return [match[1] or match[2] or match[3] or "" for match in _WORD.finditer(line)]


def explained(name: str) -> str:
    """Return why there is no such command."""
    if name.endswith(REGISTRAR):
        return (
            f"{name}: it registers C code that is not part of this IOC: remove this line, and the dbLoadDatabase of its definitions, "
            f"if no record needs that code; {_PAGE}"
        )
    if name in _VXWORKS or re.fullmatch(r"\w+=.*", name):
        return f"{name}: this belongs to the shell of VxWorks: remove the line; epicsEnvSet sets variables of the environment; {_PAGE}"
    for beginnings, why in _MISSING:
        if name.startswith(beginnings):
            return f"{name}: {why}; {_PAGE}"
    return f"{name}: there is no such command; 'help' lists the commands; {_PAGE}"


def undefined_macros(line: str) -> str:
    """Say which macros of a line have no value, as a sentence; empty if all have one.

    EPICS refuses such a line, and tells its error log alone why.
    """
    read = _SINGLE.sub(lambda found: "" if found[1] else found[0], line)
    names = (found[1] or found[2] for found in _MACRO.finditer(read))
    missing = [name for name in dict.fromkeys(names) if dbcore.environment_value(name) is None]
    if not missing:
        return ""
    what = f"the macro {missing[0]} is" if len(missing) == 1 else f"the macros {', '.join(missing)} are"
    return (
        f"{what} not defined: use epicsEnvSet before this line, or set the variable before the IOC is started"
    )


def _reason(line: str, words: list[str], said: str) -> str:
    """Return a better reason for a failure than what EPICS has said; empty if there is none."""
    if words and words[0] in _VXWORKS:
        return explained(words[0])
    if (missing := _NOT_FOUND.search(said)) is not None:
        return explained(missing[1])
    if (variable := _NO_VARIABLE.search(said)) is not None:
        return (
            f"var: this IOC has no variable {variable[1] or variable[2]!r}; 'var' alone lists them; {_PAGE}"
        )
    if why := undefined_macros(line):
        return why
    file = dbcore.expand_environment(words[1]) if len(words) > 1 else ""
    if words[:1] == ["dlload"] and file:
        hint = (
            "" if "/" in file else f"; without a '/' only the system's folders are searched: write ./{file}"
        )
        return f"dlload: {file} cannot be loaded; the line above says why{hint}"
    if words[:1] in (["cd"], ["chdir"]) and not file:
        return f"{words[0]}: it names no folder; remove the line, or name one"
    if words[:1] in (["cd"], ["chdir"]):
        where = "" if file.startswith("/") else f" in {Path.cwd()}"
        return f"{words[0]}: there is no folder {file!r}{where}, or no permission to enter it"
    return ""


def captured_line(line: str) -> tuple[bool, str]:
    """Run a line; return whether it succeeded, and its output or the reason of the failure.

    EPICS' own colours are removed, those of its help and of the words ERROR and WARNING. All others may come from clients, and stay
    for the caller to escape.
    """
    ok, text = dbcore.shell_capture(line)
    words = words_of(line)
    text = _COLOUR.sub("", text) if words[:1] == ["help"] else _COLOURED.sub(r"\1", text)
    why = "" if ok else _reason(line, words, text)
    if why and not _NOT_FOUND.search(text) and text:
        why = f"{text.rstrip()}\n{why}"
    return ok, why + "\n" if why else text


def run_line(line: str) -> ApplianceError | None:
    """Run a line; return the reason of a failure, or None."""
    words = words_of(line)
    if words and words[0].endswith(REGISTRAR):
        return _register(words[0])
    with _shown():
        error = dbcore.shell_line(line)
    why = "" if error is None else _reason(line, words, str(error))
    return ApplianceError(why) if why else error


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

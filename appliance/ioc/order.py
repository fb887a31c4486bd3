"""Commands of a script that come after ``iocInit`` and had to come before it: they fail then, or have no effect.

A trial of a start ends with ``iocInit``, so it reads the lines after that instead of running them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from appliance.errors import ConfigurationError

__all__ = ["Late", "ScriptLine", "late_commands"]

_RECORDS: Final = "EPICS accepts no records afterwards"
_RESTORED: Final = "iocInit restores the files; fdbrestore restores one afterwards"
_AGAIN: Final = "the IOC is initialised already"
_QUEUES: Final = "iocInit makes the queues"
_FAIL: Final = {
    "callbackParallelThreads": _QUEUES,
    "callbackSetQueueSize": _QUEUES,
    "dbLoadDatabase": _RECORDS,
    "dbLoadGroup": "iocInit makes the groups",
    "dbLoadRecords": _RECORDS,
    "dbLoadTemplate": _RECORDS,
    "iocBuild": _AGAIN,
    "iocInit": _AGAIN,
    "set_pass0_restoreFile": _RESTORED,
    "set_pass1_restoreFile": _RESTORED,
}
"""Commands that fail after iocInit, each with the reason."""
_IGNORED: Final = {
    "asSetFilename": "iocInit reads the file, and afterwards only asInit does",
    "asSetSubstitutions": "asSetFilename takes the macros, and it comes before",
    "scanOnceSetQueueSize": _QUEUES,
}
"""Commands that have no effect after iocInit, each with the reason."""
_UNLESS: Final = {"asSetFilename": "asInit", "asSetSubstitutions": "asSetFilename"}
"""They have an effect if this command follows."""


class ScriptLine(NamedTuple):
    """A command of a script."""

    file: str
    line: int
    words: list[str]
    ends: bool
    """Whether its failure ends the start."""


class Late(NamedTuple):
    """What is wrong with a command that comes too late."""

    error: ConfigurationError
    ends: bool
    """Whether it ends the start."""


def late_commands(rest: Iterable[ScriptLine]) -> list[Late]:
    """Judge the lines that follow ``iocInit``.

    Args:
        rest: Them.
    """
    found: list[Late] = []
    lines = list(rest)
    for at, (file, line, words, ends) in enumerate(lines):
        name = words[0]
        if name in _FAIL:
            why = f"{name} comes after iocInit, where it fails: {_FAIL[name]}; move it before"
            found.append(Late(ConfigurationError(why, file=file, line=line), ends))
        elif name in _IGNORED and _UNLESS.get(name) not in [each.words[0] for each in lines[at + 1 :]]:
            why = f"{name} comes after iocInit, where it has no effect: {_IGNORED[name]}"
            found.append(Late(ConfigurationError(why, file=file, line=line), ends=False))
    return found

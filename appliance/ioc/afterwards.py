"""What a trial does with the commands that follow iocInit: it cannot run most of them, but it finds those that the IOC does not have.

Without this a start would serve for a moment, fail at a misspelt last line and end.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping
from typing import Final

from appliance.errors import ApplianceError
from appliance.ioc import dbcore
from appliance.ioc.lines import REGISTRAR, explained, undefined_macros, words_of
from appliance.ioc.macros import expand_known

__all__ = ["Afterwards"]

_HARMLESS: Final = re.compile(
    r"cd|chdir|epicsEnvSet|epicsEnvUnset|asSetFilename|asSetSubstitutions|asInit"
    r"|dbLoadRecords|dbLoadTemplate|dbLoadGroup|set_pass[01]_restoreFile"
    r"|set_requestfile_path|(?:create|reload)_(?:monitor|periodic|triggered|manual)_set|makeAutosaveFile\w+"
    r"|caPut(?:Json)?LogInit"
)
"""Commands that change nothing outside the trial, or refuse to run after iocInit."""


class _Environment(Mapping[str, str]):
    """The variables as EPICS' shell sees them."""

    def __getitem__(self, name: str) -> str:
        if (value := dbcore.environment_value(name)) is None:
            raise KeyError(name)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


class Afterwards:
    """Judges the lines after iocInit.

    Args:
        commands: The names of the shell's commands.
        knows_all: Whether there are no others: C code of the site brings commands that a trial does not see.
    """

    def __init__(self, commands: Container[str], *, knows_all: bool) -> None:
        self._commands = commands
        self._knows_all = knows_all

    def runs(self, line: str) -> bool:
        """Whether the trial runs a line.

        Raises:
            ApplianceError: A start would fail at this line.
        """
        if why := undefined_macros(line):
            raise ApplianceError(why)
        seen = expand_known(line, _Environment()).strip()
        # $(NAME=#) before a command is a usual way to switch it off.
        words = [] if seen.startswith("#") else words_of(seen)
        if not words:
            return False
        name = words[0]
        if name == "dlload":
            self._knows_all = False
        elif (
            self._knows_all
            and name not in self._commands
            and not name.endswith(REGISTRAR)
            and "$" not in name
        ):
            raise ApplianceError(explained(name))
        return _HARMLESS.fullmatch(name) is not None

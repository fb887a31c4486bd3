"""Commands of the IOC shell that this server adds, or whose EPICS versions it replaces.

They are called in the shell's thread; what they look at belongs to the event loop, so they ask it and wait.
"""

from __future__ import annotations

import asyncio
import fnmatch
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from appliance.errors import ApplianceError
from appliance.ioc import dbcore
from appliance.ioc.dbcore import shell_print

if TYPE_CHECKING:
    from appliance.ioc.ioc import Ioc

__all__ = ["register_commands"]

_T = TypeVar("_T")
_WAIT_S: Final = 10.0
TOP: Final = '""'


class _Commands:
    def __init__(self, ioc: Ioc) -> None:
        self.ioc = ioc

    def ask(self, function: Callable[[], _T]) -> _T:
        """Run a function on the event loop and wait for its result."""

        async def call() -> _T:
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self.ioc.loop).result(_WAIT_S)

    # -- access security -----------------------------------------------------------------------------

    def init(self) -> None:
        step = self.ioc.loading.access_step
        if step is None:
            raise ApplianceError('no access security file is set: use asSetFilename("file") first')
        future = asyncio.run_coroutine_threadsafe(self.ioc.access.reload(step), self.ioc.loop)
        future.result(_WAIT_S)

    def dump(self) -> None:
        for line in self.ask(self.ioc.access_lines):
            shell_print(line)

    # -- server --------------------------------------------------------------------------------------

    def report(self, level: int) -> None:
        for line in self.ask(lambda: self.ioc.report_lines(level)):
            shell_print(line)

    def groups(self, level: int, pattern: str | None) -> None:
        for line in self.ask(lambda: self._group_lines(level, pattern)):
            shell_print(line)

    def _group_lines(self, level: int, pattern: str | None) -> list[str]:
        source = self.ioc.groups
        lines = []
        for name, group in sorted(source.groups.items() if source is not None else ()):
            if pattern and not fnmatch.fnmatchcase(name, pattern):
                continue
            lines.append(name)
            if level > 0:
                lines.append(f"  atomic={'yes' if group.atomic else 'no'} members={len(group.members)}")
                for member in group.members:
                    triggers = ",".join(each.name or TOP for each in member.triggers)
                    lines.append(
                        f"  {member.name or TOP} {member.kind} {member.config.channel}"
                        f" putorder={member.config.put_order} triggers={triggers or '-'}"
                    )
        return lines


def register_commands(ioc: Ioc) -> None:
    """Add the commands; after :func:`.dbcore.boot`, so that they replace those of EPICS."""
    commands = _Commands(ioc)
    add: Any = dbcore.register_command
    add(
        "asInit",
        [],
        commands.init,
        "Read the access security file again; one that is wrong changes nothing.\n",
    )
    add("asdbdump", [], commands.dump, "Show the access security rules in force.\n")
    add("asprules", [], commands.dump, "Show the access security rules in force.\n")
    add("pvxsr", [("level", int)], commands.report, "Server report: 0 addresses, 1 clients, 2 channels.\n")
    add("pvxgl", [("level", int), ("pattern", str)], commands.groups, "List groups; level 1 shows members.\n")

"""Commands of the IOC shell that this server adds, or whose EPICS versions it replaces.

They are called in the shell's thread. Their data belongs to the event loop, so they ask it and wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

from appliance.ioc import dbcore
from appliance.ioc.dbcore import shell_print

__all__ = ["ShellHost", "register_commands"]

_T = TypeVar("_T")
_WAIT_S: Final = 10.0


class ShellHost(Protocol):
    """The part of the IOC that the commands need; called on its event loop."""

    loop: asyncio.AbstractEventLoop

    async def reload_access(self) -> None:
        """Read the access security file again.

        Raises:
            ApplianceError: The file is wrong; the former rules stay in force.
        """

    def access_lines(self) -> list[str]:
        """Return a report of the rules in force."""

    def server_lines(self, level: int) -> list[str]:
        """Return a report of the server's state. Level 0: addresses; 1: clients; 2: channels."""

    def group_lines(self, level: int, pattern: str) -> list[str]:
        """Return a list of the groups with a matching name; level 1 adds their members."""

    def link_lines(self, level: int, pattern: str) -> list[str]:
        """Return a report of the PVA links of matching records. Level 1: lost PVs; 2: all PVs; 5: their links."""


class _Commands:
    def __init__(self, host: ShellHost) -> None:
        self.host = host

    def ask(self, function: Callable[[], _T]) -> _T:
        """Run a function on the event loop and wait for its result."""

        async def call() -> _T:
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self.host.loop).result(_WAIT_S)

    def init(self) -> None:
        asyncio.run_coroutine_threadsafe(self.host.reload_access(), self.host.loop).result(_WAIT_S)

    def dump(self) -> None:
        for line in self.ask(self.host.access_lines):
            shell_print(line)

    def report(self, level: int) -> None:
        for line in self.ask(lambda: self.host.server_lines(level)):
            shell_print(line)

    def groups(self, level: int, pattern: str | None) -> None:
        for line in self.ask(lambda: self.host.group_lines(level, pattern or "")):
            shell_print(line)

    def links(self, pattern: str | None, level: int) -> None:
        for line in self.ask(lambda: self.host.link_lines(level, pattern or "")):
            shell_print(line)


def register_commands(host: ShellHost) -> None:
    """Add the commands; after :func:`.dbcore.boot`, so that they replace those of EPICS."""
    commands = _Commands(host)
    add: Any = dbcore.register_command
    add(
        "asInit",
        [],
        commands.init,
        "Read the access security file again; a wrong file changes nothing.\n",
    )
    add("asdbdump", [], commands.dump, "Show the access security rules in force.\n")
    add("asprules", [], commands.dump, "Show the access security rules in force.\n")
    add("pvxsr", [("level", int)], commands.report, "Server report: 0 addresses, 1 clients, 2 channels.\n")
    add("pvxgl", [("level", int), ("pattern", str)], commands.groups, "List groups; level 1 shows members.\n")
    add(
        "dbpvar",
        [("record name", str), ("level", int)],
        commands.links,
        "PVA links: 0 counts, 1 what is not connected, 2 all PVs, 5 their links.\n",
    )

"""Commands of the IOC shell that this server adds, or whose EPICS versions it replaces.

They are called in the shell's thread. Their data belongs to the event loop, so they ask it and wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol, TypeVar

from appliance.daemon.logging import add_levels, one_line, reset_levels
from appliance.errors import ApplianceError
from appliance.ioc import dbcore
from appliance.ioc.counts import instance_counts
from appliance.ioc.dbcore import shell_print

__all__ = ["SERVER_COMMANDS", "ShellHost", "register_commands"]

_T = TypeVar("_T")
_WAIT_S: Final = 10.0
_LONG_WAIT_S: Final = 60.0
"""Another keychain waits for the status of its certificate."""
SERVER_COMMANDS: Final = (
    "asInit",
    "asdbdump",
    "asprules",
    "dbpvar",
    "pvxgl",
    "pvxreconfigure",
    "pvxrefclear",
    "pvxrefdiff",
    "pvxrefsave",
    "pvxrefshow",
    "pvxs_log_clear",
    "pvxs_log_config",
    "pvxs_log_reset",
    "pvxsi",
    "pvxsl",
    "pvxsr",
)
"""The commands of :func:`register_commands`."""


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

    def name_lines(self, details: int) -> list[str]:
        """Return a list of the names that are served; with details, below the source that has them."""

    def information_lines(self) -> list[str]:
        """Return versions, host and settings."""

    async def reconfigure(self) -> list[str]:
        """Read the settings again, and use keychain and TLS options from now on; return what was done.

        Raises:
            ApplianceError: The settings cannot be used; the former ones stay in use.
        """

    def group_lines(self, level: int, pattern: str) -> list[str]:
        """Return a list of the groups with a matching name; level 1 adds their members."""

    def link_lines(self, level: int, pattern: str) -> list[str]:
        """Return a report of the PVA links of matching records. Level 1: lost PVs; 2: all PVs; 5: their links."""


def _print(lines: Iterable[str]) -> None:
    """Print the lines of a report; names in them come from clients and must not make other lines."""
    for line in lines:
        shell_print(one_line(line))


class _Commands:
    def __init__(self, host: ShellHost) -> None:
        self.host = host
        self.saved: dict[str, int] = {}

    def ask(self, function: Callable[[], _T]) -> _T:
        """Run a function on the event loop and wait for its result."""

        async def call() -> _T:
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self.host.loop).result(_WAIT_S)

    def init(self) -> None:
        asyncio.run_coroutine_threadsafe(self.host.reload_access(), self.host.loop).result(_WAIT_S)

    def dump(self) -> None:
        _print(self.ask(self.host.access_lines))

    def report(self, level: int) -> None:
        _print(self.ask(lambda: self.host.server_lines(level)))

    @staticmethod
    def channel_access(level: int) -> None:
        if text := dbcore.server_report(level, one_line):
            shell_print(text.removesuffix("\n"))

    def names(self, details: int) -> None:
        _print(self.ask(lambda: self.host.name_lines(details)))

    def information(self) -> None:
        _print(self.host.information_lines())

    @staticmethod
    def log_levels(levels: str | None) -> None:
        if not levels:
            raise ApplianceError('usage: pvxs_log_config("NAME=LEVEL,NAME=LEVEL,...")')
        if faults := add_levels(levels):
            raise ApplianceError("; ".join(faults))

    @staticmethod
    def log_reset() -> None:
        reset_levels()

    def reconfigure(self) -> None:
        done = asyncio.run_coroutine_threadsafe(self.host.reconfigure(), self.host.loop).result(_LONG_WAIT_S)
        _print(done)
        self.report(0)

    @staticmethod
    def counts() -> None:
        for name, count in instance_counts().items():
            if count:
                shell_print(f"{name}\t= {count}")

    def save_counts(self) -> None:
        self.saved = instance_counts()

    def compare_counts(self) -> None:
        now = instance_counts()
        for name in sorted({*now, *self.saved}):
            if grown := now.get(name, 0) - self.saved.get(name, 0):
                shell_print(f"{name}\t= {grown}")

    def forget_counts(self) -> None:
        self.saved = {}

    def groups(self, level: int, pattern: str | None) -> None:
        _print(self.ask(lambda: self.host.group_lines(level, pattern or "")))

    def links(self, pattern: str | None, level: int) -> None:
        _print(self.ask(lambda: self.host.link_lines(level, pattern or "")))


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
    if dbcore.serves_channel_access():
        add("casr", [("level", int)], _Commands.channel_access, "Channel Access server report.\n")
    add("asdbdump", [], commands.dump, "Show the access security rules in force.\n")
    add("asprules", [], commands.dump, "Show the access security rules in force.\n")
    add("pvxsr", [("level", int)], commands.report, "Server report: 0 addresses, 1 clients, 2 channels.\n")
    add(
        "pvxsl",
        [("details", int)],
        commands.names,
        "List the names of PVs; 1: below the source that serves them.\n",
    )
    add(
        "pvxsi", [], commands.information, "Show versions, the host, and the settings of client and server.\n"
    )
    add(
        "pvxs_log_config",
        [("KEY=VAL,KEY=VAL,...", str)],
        commands.log_levels,
        'Add levels of the log, for instance pvxs_log_config "pvxs.tcp*=DEBUG".\n',
    )
    for name in ("pvxs_log_reset", "pvxs_log_clear"):
        add(name, [], commands.log_reset, "Use the levels of the configuration alone, without PVXS_LOG.\n")
    add(
        "pvxreconfigure",
        [],
        commands.reconfigure,
        "Read the settings and the keychain again. Only clients over TLS are disconnected.\n",
    )
    add("pvxrefshow", [], commands.counts, "Show how many servers, clients, channels ... exist.\n")
    add("pvxrefsave", [], commands.save_counts, "Save these numbers for pvxrefdiff.\n")
    add("pvxrefdiff", [], commands.compare_counts, "Show what has changed since pvxrefsave.\n")
    add("pvxrefclear", [], commands.forget_counts, "Forget the numbers of pvxrefsave.\n")
    add("pvxgl", [("level", int), ("pattern", str)], commands.groups, "List groups; level 1 shows members.\n")
    add(
        "dbpvar",
        [("record name", str), ("level", int)],
        commands.links,
        "PVA links: 0 counts, 1 what is not connected, 2 all PVs, 5 their links.\n",
    )

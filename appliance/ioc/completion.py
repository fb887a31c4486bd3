"""Completion of lines of the IOC shell: commands, and names of records or files as their arguments."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from appliance.errors import ApplianceError
from appliance.ioc import dbcore
from appliance.ioc.lines import words_of

__all__ = ["Completer"]

_MOST: Final = 500
_FILES: Final = (
    "dbLoadRecords",
    "dbLoadTemplate",
    "dbLoadDatabase",
    "dbLoadGroup",
    "asSetFilename",
    "iocshLoad",
    "cd",
    "<",
)
"""Commands whose arguments are files; the arguments of all others are records."""


class Completer:
    """Completes commands, and names of records or files as arguments."""

    def __init__(self) -> None:
        self._found: list[str] = []
        self._commands: list[str] = []

    def complete(self, text: str, state: int, line: str) -> str | None:
        """Return completion number ``state`` of ``text`` in ``line``, as readline asks for it."""
        if state == 0:
            self._found = self.found(text, line)
        return self._found[state] if state < len(self._found) else None

    def found(self, text: str, line: str) -> list[str]:
        """Return the completions of ``text``, the last word of ``line``."""
        try:
            return sorted(set(self._matches(text, line)))[:_MOST]
        except (ApplianceError, OSError):
            return []

    def _matches(self, text: str, line: str) -> Iterator[str]:
        words = words_of(line)
        if not words or (len(words) == 1 and line.endswith(text) and line.lstrip() == text):
            if not self._commands:
                self._commands = ["exit", *dbcore.shell_commands()]
            yield from (name for name in self._commands if name.startswith(text))
        elif words[0] in _FILES or "/" in text:
            yield from _paths(text)
        elif words[0] == "help":
            yield from (name for name in dbcore.shell_commands() if name.startswith(text))
        else:
            yield from (name for name in dbcore.record_names() if name.startswith(text))


def _paths(text: str) -> Iterator[str]:
    folder, _, start = text.rpartition("/")
    base = folder + "/" if folder or text.startswith("/") else ""
    for entry in os.scandir(base or "."):
        if entry.name.startswith(start) and (start or not entry.name.startswith(".")):
            yield base + entry.name + ("/" if entry.is_dir() else "")

"""The ``epics>`` shell on a terminal: history and completion; EPICS Base's own reader lacks them in these libraries.

Variables are those of EPICS: ``IOCSH_PS1`` is the prompt, ``IOCSH_HISTSIZE`` the number of lines that are kept,
``IOCSH_HISTEDIT_DISABLE`` switches editing off.
"""

from __future__ import annotations

import contextlib
import os
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from appliance.errors import ApplianceError
from appliance.ioc import dbcore
from appliance.ioc.lines import run_line, words_of
from appliance.ioc.script import ScriptRunner

__all__ = ["Completer", "run_terminal", "terminal_kept"]

_PROMPT: Final = "epics> "
_LINES: Final = 1000
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
            try:
                self._found = sorted(set(self._matches(text, line)))[:_MOST]
            except (ApplianceError, OSError):
                self._found = []
        return self._found[state] if state < len(self._found) else None

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


@contextmanager
def terminal_kept() -> Iterator[None]:
    """Restore the terminal at the end: the thread that reads a line cannot do that, since it ends with the process."""
    try:
        descriptor = sys.stdin.fileno()
        before: list[Any] = termios.tcgetattr(descriptor)
    except (OSError, ValueError, termios.error):
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(termios.error):
            termios.tcsetattr(descriptor, termios.TCSANOW, before)


def _edits() -> bool:
    return (
        sys.stdin.isatty() and sys.stdout.isatty() and not dbcore.environment_value("IOCSH_HISTEDIT_DISABLE")
    )


def _prepare() -> None:
    """Load readline; ``input`` uses it from then on."""
    try:
        import readline
    except ImportError:
        return

    completer = Completer()
    readline.set_completer(lambda text, state: completer.complete(text, state, readline.get_line_buffer()))
    # A record's name can contain colons, dots and brackets.
    readline.set_completer_delims(" \t\n\"'(),<>")
    is_libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")
    if not is_libedit:
        readline.parse_and_bind("set enable-bracketed-paste off")
    size = dbcore.environment_value("IOCSH_HISTSIZE") or ""
    readline.set_history_length(int(size) if size.isdecimal() else _LINES)
    readline.set_auto_history(True)


def _read(prompt: str) -> str | None:
    """Return one line; None at the end of input."""
    try:
        return input(prompt)
    except EOFError:
        return None
    except UnicodeDecodeError:
        return ""


def run_terminal() -> bool:
    """Run the shell until ``exit`` or the end of input; blocks. Return whether it ended well."""
    dbcore.flush_output()
    edits = _edits()
    if edits:
        _prepare()
    scripts = ScriptRunner(on_error="continue")
    while True:
        line = _read(dbcore.environment_value("IOCSH_PS1") or _PROMPT)
        if line is None:
            if edits:
                sys.stdout.write("\n")
            break
        line = line.strip()
        words = words_of(line)
        if words[:1] == ["exit"]:
            break
        if not line or line.startswith("#") or words[:2] == ["on", "error"]:
            continue
        try:
            if scripts.is_script(line, words):
                scripts.run_typed(line, words)
                error: ApplianceError | None = None
            else:
                sys.stdout.flush()
                error = run_line(line)
        except ApplianceError as failure:
            error = failure
        dbcore.flush_output()
        if error is not None:
            text = str(error)
            sys.stderr.write(f"{text if text.startswith(words[0]) else f'{words[0]}: {text}'}\n")
            sys.stderr.flush()
    dbcore.flush_output()
    return True

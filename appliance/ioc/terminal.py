"""The ``epics>`` shell on a terminal: history and completion; EPICS Base's own reader lacks them in these libraries.

Variables are those of EPICS: ``IOCSH_PS1`` is the prompt, ``IOCSH_HISTSIZE`` the number of lines that are kept,
``IOCSH_HISTEDIT_DISABLE`` switches editing off.
"""

from __future__ import annotations

import contextlib
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from appliance.errors import ApplianceError
from appliance.ioc import dbcore
from appliance.ioc.completion import Completer
from appliance.ioc.editing import plain, prepare_editing
from appliance.ioc.lines import run_line, words_of
from appliance.ioc.script import ScriptRunner

__all__ = ["run_terminal", "terminal_kept"]

_PROMPT: Final = "epics> "


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


def _read(prompt: str) -> str | None:
    """Return one line; None at the end of input."""
    try:
        return input(prompt)
    except EOFError:
        return None
    except UnicodeDecodeError:
        return ""


def _history_size() -> int | None:
    size = dbcore.environment_value("IOCSH_HISTSIZE") or ""
    return int(size) if size.isdecimal() else None


def run_terminal() -> bool:
    """Run the shell until ``exit`` or the end of input; blocks. Return whether it ended well."""
    dbcore.flush_output()
    edits = _edits()
    if edits:
        prepare_editing(Completer(), _history_size())
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
            text = plain(str(error))
            sys.stderr.write(f"{text if text.startswith(words[0]) else f'{words[0]}: {text}'}\n")
            sys.stderr.flush()
    dbcore.flush_output()
    return True

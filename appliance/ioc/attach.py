"""The console of an IOC that runs as a daemon, on a terminal: with history, and with completion by that IOC.

A line that begins with a TAB is a question for completions: the word, a TAB and the line. The answer is one completion on each line.
From the first question on the IOC writes a NUL before each prompt: no output has one, so none can be taken for a prompt.
"""

from __future__ import annotations

import codecs
import os
import socket
import sys
from typing import Final

from appliance.errors import ApplianceError
from appliance.ioc.editing import plain, prepare_editing

__all__ = ["attach"]

_PROMPT: Final = "epics> "
_END: Final = f"\0{_PROMPT}"
_PIECE: Final = 65536


class _Console:
    def __init__(self, path: str) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._sock.connect(path)
        except OSError as error:
            self._sock.close()
            raise ApplianceError(_why(path, error)) from None
        self._found: list[str] = []
        self._end = _PROMPT

    def answer(self, line: str | None = None, *, shown: bool = True) -> str | None:
        """Send a line, and take all up to the next prompt; None if the IOC closed the console.

        Args:
            line: The line; None takes the first prompt.
            shown: Print it while it comes.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        parts: list[str] = []
        tail = ""  # what may be the prompt
        try:
            if line is not None:
                self._sock.sendall((line + "\n").encode("utf-8", "surrogateescape"))
            while tail != self._end:
                piece = self._sock.recv(_PIECE)
                text = tail + decoder.decode(piece, final=not piece)
                tail = text[-len(self._end) :] if piece else ""
                parts.append(text[: len(text) - len(tail)])
                if shown:
                    sys.stdout.write(plain(parts.pop()))
                    sys.stdout.flush()
                if not piece:
                    return None
        except OSError:
            return None
        return "".join(parts)

    def begin(self) -> bool:
        """Take the first prompt, and have the others marked; return whether the console is open."""
        if self.answer() is None:
            return False
        self._end = _END
        return self.answer("\t\t", shown=False) is not None

    def complete(self, text: str, state: int, line: str) -> str | None:
        """Ask the IOC, as readline asks us."""
        if state == 0:
            said = self.answer(f"\t{text}\t{line}", shown=False) or ""
            self._found = [
                each for each in said.split("\n")[:-1] if each.startswith(text) and each.isprintable()
            ]
        return self._found[state] if state < len(self._found) else None


def _why(path: str, error: OSError) -> str:
    said = error.strerror or str(error)
    if isinstance(error, PermissionError):
        return f"{path}: {said}: the console belongs to the group that 'console_group' names; become a member of it"
    return f"{path}: {said}: is this the path in 'console' of the IOC's configuration, and does the IOC run?"


def attach(path: str) -> bool:
    """Run the shell of another process until ``exit`` or the end of input; return whether it ended well.

    Args:
        path: The socket.

    Raises:
        ApplianceError: It cannot be opened.
    """
    console = _Console(path)
    edits = sys.stdin.isatty() and sys.stdout.isatty()
    if edits:
        prepare_editing(console)
    prompt = os.environ.get("IOCSH_PS1") or _PROMPT
    if not console.begin():
        return False
    while True:
        try:
            line = input(prompt if edits else "").strip()
        except (EOFError, KeyboardInterrupt):
            sys.stdout.write("\n" if edits else "")
            return True
        if line in ("exit", "quit"):
            return True
        if line and console.answer(line) is None:
            sys.stderr.write("the IOC has closed the console\n")
            return False

"""Programs as processes, as a user starts them in a shell and ends them with Ctrl-C."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping
from typing import Self

from tests.helpers.tools import ROOT

LIMIT_S = 100.0
"""Seconds for what takes a few: the machine may be busy."""


class Program:
    """``with Program("examples/read.py", "pv", environ=...) as program``: killed at the end if it still runs.

    Args:
        words: The words after ``python``.
        environ: The whole environment.
        runs: Another program than Python.
    """

    def __init__(self, *words: object, environ: Mapping[str, str], runs: str = sys.executable) -> None:
        self.words = [str(word) for word in words]
        self.output = ""
        """Standard output and standard error so far, line by line: what one of them says never stands inside a line of the other."""
        self._open = 2
        self._grown = threading.Condition()
        self.process = subprocess.Popen(
            [runs, *self.words],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT, text=True, errors="replace",
        )  # fmt: skip
        self._readers = [
            threading.Thread(target=self._read, args=(pipe,), daemon=True)
            for pipe in (self.process.stdout, self.process.stderr)
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, pipe: Iterable[str]) -> None:
        for line in pipe:
            with self._grown:
                self.output += line
                self._grown.notify_all()
        with self._grown:
            self._open -= 1
            self._grown.notify_all()

    def until(self, pattern: str, after: int = 0) -> re.Match[str]:
        """Wait until the output from ``after`` on has ``pattern``."""
        with self._grown:
            found = None

            def look() -> bool:
                nonlocal found
                found = re.compile(pattern, re.MULTILINE).search(self.output, after)
                return found is not None or not self._open

            self._grown.wait_for(look, LIMIT_S)
        assert found is not None, f"{self.words} never said {pattern!r}:\n{self.output}"
        return found

    def ended(self) -> int:
        """Wait for its end by itself; return the exit status."""
        status = self.process.wait(LIMIT_S)
        for reader in self._readers:
            reader.join(LIMIT_S)
        assert "Traceback" not in self.output, self.output
        return status

    def interrupt(self) -> int:
        """Press Ctrl-C; return the exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.ended()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for reader in self._readers:
            reader.join(LIMIT_S)

"""The ``epics>`` shell on a real terminal: history, completion, and the terminal as it was afterwards."""

from __future__ import annotations

import os
import pty
import select
import shlex
import signal
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.quickstart.layout import Layout, Ports
from tests.helpers.ioc_process import environment
from tests.helpers.ports import free_port

PATIENCE_S = 60.0


class Terminal:
    """A program on a pseudo terminal, and what the screen has shown."""

    def __init__(self, command: list[str], cwd: Path, env: dict[str, str]) -> None:
        self.pid, self.screen = pty.fork()
        if self.pid == 0:  # pragma: no cover - the child
            os.chdir(cwd)
            os.execvpe(command[0], command, env)
        self.shown = ""

    def until(self, text: str, after: int = 0) -> int:
        """Wait until the screen shows a text; where it ends."""
        deadline = time.monotonic() + PATIENCE_S
        while (at := self.shown.find(text, after)) < 0:
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} was not shown:\n{self.shown}"
            if select.select([self.screen], [], [], left)[0]:
                try:
                    data = os.read(self.screen, 65536)
                except OSError:
                    data = b""
                assert data, f"{text!r} was not shown:\n{self.shown}"
                self.shown += data.decode(errors="replace").replace("\r", "")
        return at + len(text)

    def type(self, keys: str) -> int:
        """Press keys; where the screen ends before."""
        before = len(self.shown)
        os.write(self.screen, keys.encode())
        return before

    def settings(self) -> list[object]:
        """How the terminal is set."""
        return termios.tcgetattr(self.screen)

    def end(self) -> int:
        """Wait for the end of the program; its exit status."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@contextmanager
def terminal(command: list[str], cwd: Path, **variables: str) -> Iterator[Terminal]:
    env = environment(free_port(), free_port(), TERM="xterm", INPUTRC="/dev/null", **variables)
    made = Terminal(command, cwd, env)
    try:
        yield made
    finally:
        try:
            os.kill(made.pid, signal.SIGKILL)
            os.waitpid(made.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
        os.close(made.screen)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "some.db").write_text('record(ao, "room:temperature") {}\nrecord(ao, "room:pressure") {}\n')
    return tmp_path


IOC = [sys.executable, "-m", "appliance.cli.softiocpvx", "-d", "some.db"]


def test_history_and_completion_work_in_a_real_terminal(files: Path) -> None:
    with terminal(IOC, files) as shell:
        at = shell.until("epics> ")
        shell.type("dbg\t\t")
        at = shell.until("dbgrep", shell.until("dbgf", at))
        shell.type("f room:t\t\n")
        at = shell.until("epics> ", shell.until("DBF_DOUBLE", shell.until("dbgf room:temperature", at)))
        shell.type("\x1b[A\n")
        at = shell.until("epics> ", shell.until("DBF_DOUBLE", shell.until("dbgf room:temperature", at)))
        shell.type("dbLoadRecords som\t\n")
        at = shell.until("epics> ", shell.until("before iocInit", shell.until("dbLoadRecords some.db", at)))
        shell.type("\x1b[A\x1b[A\n")
        at = shell.until("epics> ", shell.until("DBF_DOUBLE", at))
        assert "^[[A" not in shell.shown
        shell.type("exit\n")
        assert shell.end() == 0


def test_the_shell_edits_in_the_environment_of_the_quick_start_too(files: Path) -> None:
    layout = Layout(files / "quick", Ports(*(free_port() for _ in Ports._fields)))
    layout.make()
    layout.write_environment_files()
    # The keychain of its IOC is made by a step of the story; without one, the IOC starts only if that is asked for.
    sourced = f". {layout.root}/env/softioc.sh && EPICS_PVAS_TLS_OPTIONS=on_no_keychain=fallback-to-tcp exec {shlex.join(IOC)}"
    with terminal(["bash", "-c", sourced], files) as shell:
        at = shell.until("epics> ")
        shell.type("dbgf room:p\t\n")
        at = shell.until("epics> ", shell.until("DBF_DOUBLE", shell.until("dbgf room:pressure", at)))
        shell.type("\x1b[A\n")
        at = shell.until("epics> ", shell.until("DBF_DOUBLE", shell.until("dbgf room:pressure", at)))
        assert "^[[A" not in shell.shown
        shell.type("exit\n")
        assert shell.end() == 0


@pytest.mark.parametrize("how", [signal.SIGTERM, "exit\n", "\x04"])
def test_the_terminal_is_given_back_as_it_was(files: Path, how: signal.Signals | str) -> None:
    with terminal(IOC, files) as shell:
        before = shell.settings()
        at = shell.until("epics> ")
        shell.type("pvxsr\n")
        at = shell.until("epics> ", shell.until("TCP port", at))
        assert shell.settings() != before, "a line is being edited"
        if isinstance(how, str):
            shell.type(how)
        else:
            os.kill(shell.pid, how)
        assert shell.end() == 0
        assert shell.settings() == before


def test_editing_and_prompt_follow_the_variables_of_epics(files: Path) -> None:
    with terminal(IOC, files, IOCSH_PS1="lab> ", IOCSH_HISTEDIT_DISABLE="1") as shell:
        at = shell.until("lab> ")
        shell.type("dbgf room:pressure\n")
        at = shell.until("DBF_DOUBLE", at)
        shell.type("exit\n")
        assert shell.end() == 0

"""The ``epics>`` shell on a real terminal: history, completion, and the terminal as it was afterwards."""

from __future__ import annotations

import os
import pty
import select
import shlex
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.ioc import attach
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


def test_what_clients_wrote_into_records_does_not_command_the_terminal(files: Path) -> None:
    hostile = r"\x1b]0;title\x07\x1b[31mred"
    (files / "hostile.db").write_text(f'record(ao, "room:hostile") {{ field(DESC, "{hostile}") }}\n')
    (files / "st.cmd").write_text("dbLoadRecords hostile.db\niocInit\ndbpr room:hostile\n")
    with terminal([*IOC[:-2], "st.cmd"], files) as shell:
        at = shell.until("epics> ")
        assert r"title\x07\x1b[31mred" in shell.shown, "by the script"
        shell.type("dbpr room:hostile\n")
        at = shell.until("epics> ", shell.until(r"title\x07\x1b[31mred", at))
        shell.type("dbgf room:hostile.DESC\n")
        at = shell.until("epics> ", shell.until("DBF_STRING", at))
        shell.type("dbl > names\n")
        at = shell.until("epics> ", at)
        shell.type("exit\n")
        assert shell.end() == 0
        for raw in ("\x1b]0", "\x1b[31m", "\x07", "\x9b"):
            assert raw not in shell.shown
    assert (files / "names").read_text() == "room:hostile\n"


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


@pytest.fixture
def daemon(files: Path) -> Iterator[Path]:
    """A daemon's console."""
    yield from running_daemon(files)


def running_daemon(files: Path) -> Iterator[Path]:
    (files / "ioc.yml").write_text("databases: [{file: some.db}]\nconsole: console\n")
    env = environment(free_port(), free_port())
    command = [sys.executable, "-m", "appliance.cli.softiocpvx", "--config", "ioc.yml"]
    with (files / "log").open("w") as log, subprocess.Popen(command, cwd=files, env=env, stderr=log) as ioc:
        (files / "pid").write_text(str(ioc.pid))
        deadline = time.monotonic() + PATIENCE_S
        while not (files / "console").exists():
            assert ioc.poll() is None, (files / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield files
        ioc.terminate()
        ioc.wait(PATIENCE_S)
    assert "Traceback" not in (files / "log").read_text()


ATTACH = [sys.executable, "-m", "appliance.cli.softiocpvx", "--attach", "console"]


def test_history_and_completion_work_at_the_console_of_a_daemon(daemon: Path) -> None:
    with terminal(ATTACH, daemon) as shell:
        before = shell.settings()
        at = shell.until("epics> ")
        shell.type("dbg\t\t")
        at = shell.until("dbgrep", shell.until("dbgf", at))
        shell.type("f room:t\t\n")
        at = shell.until("epics> ", shell.until("DBF_DOUBLE", shell.until("dbgf room:temperature", at)))
        shell.type("\x1b[A\n")
        at = shell.until("epics> ", shell.until("DBF_DOUBLE", shell.until("dbgf room:temperature", at)))
        shell.type("help pvx\t\t")
        at = shell.until("pvxrefshow", at)
        shell.type("sr\n")
        at = shell.until("epics> ", shell.until("Server report", at))
        shell.type("dbpf room:pressure 3\n")
        at = shell.until("epics> ", shell.until("DBF_DOUBLE:         3", at))
        shell.type("nonsense\n")
        at = shell.until("epics> ", shell.until("(failed)", shell.until("there is no such command", at)))
        shell.type("exit\n")
        assert shell.end() == 0
        assert shell.settings() == before
    logged = (daemon / "log").read_text()
    assert "dbpf room:pressure 3" in logged
    # Questions for completions are no commands.
    assert "\t" not in logged


def test_what_clients_write_neither_commands_a_terminal_nor_looks_like_a_prompt(files: Path) -> None:
    with (files / "some.db").open("a") as database:
        database.write(
            r'record(lsi, "room:note") { field(SIZV, "200") field(DESC, "a\x1b]0;title\ab") }' + "\n"
        )
        database.write('record(stringin, "room:prompt") { field(DESC, "epics> epics> ") }\n')
    for daemon in running_daemon(files):
        done = subprocess.run(
            ATTACH,
            cwd=daemon,
            input="dbpr room:note\n" * 2,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0
        assert done.stdout.count(r"a\x1b]0;title\x07b") == 2
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as plain:
            plain.connect(str(daemon / "console"))
            plain.sendall(b"dbpr room:note\nexit\n")
            said = b""
            while piece := plain.recv(4096):
                said += piece
        assert rb"a\x1b]0;title\x07b" in said
        assert b"\0" not in said
        # A marked prompt follows a question, and no output has its mark.
        console = attach._Console(str(daemon / "console"))
        assert console.begin()
        for _ in range(3):
            said_again = console.answer("dbpr room:prompt", shown=False)
            assert said_again is not None
            assert "DESC: epics> epics>" in said_again
            assert said_again.endswith("\n")
        assert console.complete("room:n", 0, "dbgf room:n") == "room:note"
        assert console.complete("room:n", 1, "dbgf room:n") is None


def test_lines_of_a_file_are_run_at_the_console(daemon: Path) -> None:
    done = subprocess.run(
        ATTACH,
        cwd=daemon,
        input="dbl\n\n# nothing\ndbgf room:pressure\n",
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[:2] == ["room:temperature", "room:pressure"]
    assert lines[2].startswith("DBF_DOUBLE")


def test_help_at_the_console_is_text_without_colours(daemon: Path) -> None:
    done = subprocess.run(
        ATTACH,
        cwd=daemon,
        input="help dbpvar pvxsr\n",
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert "\ndbpvar 'record name' level\n" in done.stdout
    assert "x1b" not in done.stdout


def test_the_console_says_which_macro_has_no_value(daemon: Path) -> None:
    done = subprocess.run(
        ATTACH,
        cwd=daemon,
        input="echo $(NOBODY)\necho '$(NOBODY)'\necho $(NOBODY=somebody)\n",
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    first, second, third, fourth = done.stdout.splitlines()
    assert first.startswith("the macro NOBODY is not defined: use epicsEnvSet")
    assert second == "(failed)"
    assert third == "$(NOBODY)"
    assert fourth == "somebody"


def test_a_console_says_that_the_ioc_has_ended(daemon: Path) -> None:
    with terminal(ATTACH, daemon) as shell:
        at = shell.until("epics> ")
        os.kill(int((daemon / "pid").read_text()), signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE_S
        while (daemon / "console").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        shell.type("dbl\n")
        shell.until("the IOC has closed the console", at)
        assert shell.end() == 1


@pytest.mark.parametrize(
    ("path", "options", "status", "said"),
    [
        ("nowhere", [], 1, "Error: nowhere: No such file or directory: is this the path in 'console' of the IOC's configuration, and does the IOC run?"),
        ("some.db", [], 1, "Error: some.db: Connection refused: is this the path"),
        ("console", ["-d", "some.db"], 1, "Error: --attach cannot be combined with other options"),
    ],
)  # fmt: skip
def test_a_console_that_is_not_there_is_one_sentence(
    files: Path, path: str, options: list[str], status: int, said: str
) -> None:
    done = subprocess.run(
        [*ATTACH[:-1], path, *options],
        cwd=files,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == status
    assert said in done.stderr
    assert "Traceback" not in done.stderr

"""Completion in a real bash: what a Tab key gives at the end of a line."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


class Bash:
    """An interactive bash at a terminal of its own, with the commands as functions and their completions."""

    def __init__(self, home: Path) -> None:
        self.home = home
        pid, self.fd = pty.fork()
        if not pid:
            kept = {
                name: value for name, value in os.environ.items() if not name.startswith(("EPICS_", "XDG_"))
            }
            os.chdir(home)
            os.execvpe(
                "bash",
                ["bash", "--norc", "--noprofile", "-i"],
                {**kept, "HOME": str(home), "PS1": "ready> ", "TERM": "dumb", "INPUTRC": "/dev/null"},
            )
        self.pid = pid
        self.type(
            "bind 'set bell-style none'; bind 'set show-all-if-ambiguous on'; bind 'set page-completions off'\n"
        )
        self.wait("ready> ")

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def wait(self, sign: str) -> str:
        seen = ""
        deadline = time.monotonic() + 30
        while sign not in seen:
            ready, _, _ = select.select([self.fd], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"{sign!r} did not come: {seen!r}"
            seen += os.read(self.fd, 65536).decode(errors="replace")
        return seen

    def load(self, script: str) -> None:
        file = self.home / "completion.sh"
        file.write_text(script)
        self.type(f". {file}; echo loa''ded\n")
        assert "rror" not in self.wait("loaded\r\n")

    def complete(self, line: str) -> str:
        """Give the command line as it stands after Tab: it is run, behind echo."""
        self.type(f"{line}\t")
        # Ctrl-A and Ctrl-E: begin and end of the line.
        self.type("\x01echo [[\x05]] \n")
        seen = self.wait("]]\r\n")
        found = re.findall(r"^\[\[(.*)\]\]\r$", seen, re.MULTILINE)
        assert found, seen
        return found[-1]

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.fd)


def script_of(command: str) -> str:
    module, _, function = SCRIPTS[command].partition(":")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; from {module} import {function}; sys.exit({function}())",
            "--print-completion",
            "bash",
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def bash(tmp_path: Path) -> Iterator[Bash]:
    made = Bash(tmp_path)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("command", SCRIPTS)
def test_every_command_completes_its_options(bash: Bash, command: str) -> None:
    script = script_of(command)
    assert "SUPPRESS" not in script
    bash.load(script)
    assert bash.complete(f"{command} --print-comp") == f"{command} --print-completion "
    assert bash.complete(f"{command} --print-completion zs") == f"{command} --print-completion zsh "


def test_the_word_list_is_completed(bash: Bash) -> None:
    bash.load(script_of("pvxcert"))
    assert bash.complete("pvxcert li") == "pvxcert list "


def test_names_that_answered_lately_are_completed(bash: Bash) -> None:
    cache = bash.home / ".cache/pva"
    cache.mkdir(parents=True)
    (cache / "names").write_text("test:calcExample\ntest:enumExample\nother:wave\n")
    bash.load(script_of("pvxget"))
    assert bash.complete("pvxget ot") == "pvxget other:wave "
    assert bash.complete("pvxget test:ca") == "pvxget test:calcExample "
    assert bash.complete("pvxget -F nt other:wave test:en") == "pvxget -F nt other:wave test:enumExample "
    assert bash.complete("pvxget -F tr") == "pvxget -F tree "
    assert bash.complete("pvxget te") == "pvxget test:", "as far as they agree"
    (cache / "names").unlink()
    assert bash.complete("pvxget nothing") == "pvxget nothing"


def test_files_are_completed_where_a_file_is_meant(bash: Bash) -> None:
    (bash.home / "server.p12").touch()
    (bash.home / "ioc.acf").touch()
    for command in ("pvxcert", "acf-test", "softIocPVX"):
        bash.load(script_of(command))
    assert bash.complete("pvxcert -f serv") == "pvxcert -f server.p12 "
    assert bash.complete("pvxcert --file serv") == "pvxcert --file server.p12 "
    assert bash.complete("acf-test io") == "acf-test ioc.acf "
    assert bash.complete("softIocPVX -a io") == "softIocPVX -a ioc.acf "


def test_answers_are_remembered_at_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from appliance.cli import names

    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names.remember(["never"])
    assert not (tmp_path / "pva").exists(), "nobody is there to type"
    monkeypatch.setattr(sys, "stderr", Terminal())
    names.remember(["a", "b"])
    names.remember(["c", "b", "with blank", "esc\x1b", "x" * 999])
    file = tmp_path / "pva/names"
    assert file.read_text() == "c\nb\na\n"
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    names.remember([f"n{number}" for number in range(10_000)])
    assert len(file.read_text().splitlines()) == names.MOST
    assert [entry.name for entry in file.parent.iterdir()] == ["names"]
    file.unlink()
    file.mkdir()
    names.remember(["d"])  # what cannot be written is no error

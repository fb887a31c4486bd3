"""One quick start at a time works in a directory, and an interrupted one leaves it so that the next works."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from appliance.errors import ApplianceError
from appliance.quickstart.directory import MARKER, Hold
from tests.daemons.quickstart.test_quickstart import ROOT, command, environment


def start(directory: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(directory, *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
    )


def read_until(process: subprocess.Popen[str], sign: str) -> None:
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if sign in line:
            return
    pytest.fail("".join(seen))


@pytest.mark.timeout(180)
def test_a_second_quick_start_in_the_directory_refuses_and_the_first_goes_on(tmp_path: Path) -> None:
    directory = tmp_path / "stack"
    first = start(directory, "--once")
    try:
        read_until(first, "pvacms is ready")
        second = subprocess.run(
            command(directory, "--once"),
            capture_output=True,
            text=True,
            timeout=60,
            env=environment(),
            check=False,
        )
        assert second.returncode == 1
        assert f"another quick start (process {first.pid}) uses this directory" in second.stderr
        assert second.stdout == ""
        assert first.stdout is not None
        assert "every step did what it should" in first.stdout.read()
        assert first.wait(60) == 0
    finally:
        first.kill()
        first.wait()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_an_interruption_at_any_moment_leaves_a_directory_that_works(tmp_path: Path, number: int) -> None:
    directory = tmp_path / "stack"
    for sign in ("=== 1.", "jwt-issuer is ready", "$ authnjwt", "softIocPVX"):
        process = start(directory)
        try:
            read_until(process, sign)
            process.send_signal(number)
            assert process.stdout is not None
            rest = process.stdout.read()
            assert process.wait(60) == 2, rest
            assert "Traceback" not in rest
        finally:
            process.kill()
            process.wait()
    with_lock = Hold(directory)  # nothing of the four is left that holds it
    assert {entry.name for entry in directory.iterdir()} == {MARKER}
    with_lock.release()


def test_a_directory_that_was_being_emptied_is_emptied_by_the_next(tmp_path: Path) -> None:
    """The marker is made first and never removed: what is left of an interruption is still ours."""
    directory = tmp_path / "stack"
    Hold(directory).release()
    (directory / "client" / "config").mkdir(parents=True)
    (directory / "link").symlink_to(tmp_path / "thesis")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").touch()
    Hold(directory).release()
    assert {entry.name for entry in directory.iterdir()} == {MARKER}
    assert (tmp_path / "thesis" / "chapter").exists()


def test_the_refusal_names_what_to_stop(tmp_path: Path) -> None:
    directory = tmp_path / "stack"
    held = Hold(directory)
    with pytest.raises(
        ApplianceError, match=rf"another quick start \(process {os.getpid()}\) uses this directory"
    ):
        Hold(directory)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    # As if this process were the daemon of a quick start that was killed: it has the lock from it.
    held.write_down([gone.pid, os.getpid()])
    with pytest.raises(
        ApplianceError, match=rf"\(process {gone.pid}\) was killed.* stop them: kill {os.getpid()}"
    ):
        Hold(directory)
    held.release()
    Hold(directory).release()


@pytest.mark.timeout(180)
def test_an_environment_whose_making_was_interrupted_is_made_anew(tmp_path: Path) -> None:
    """Ctrl-C as soon as there is a Python, when ``make quickstart`` has neither pip nor packages yet."""
    venv = tmp_path / "venv"
    making = subprocess.Popen(
        ["make", "quickstart", f"VENV={venv}", f"PYTHON={sys.executable}"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=environment(),
    )
    try:
        while not (venv / "pyvenv.cfg").exists():
            assert making.poll() is None
            time.sleep(0.01)
        os.killpg(making.pid, signal.SIGINT)
        assert making.wait(60) != 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(making.pid, signal.SIGKILL)
        making.wait()
    assert not (venv / ".installed").exists()
    (venv / "half-installed").touch()
    again = subprocess.run(
        ["tools/make-venv", sys.executable, str(venv)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    assert "was interrupted while it was made; making it anew" in again.stderr
    assert not (venv / "half-installed").exists()
    pip = subprocess.run(
        [str(venv / "bin/python"), "-m", "pip", "--version"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert pip.returncode == 0, pip.stderr


def test_a_finished_environment_is_kept(tmp_path: Path) -> None:
    """The mark goes only when everything is installed, before the one that make looks at comes."""
    recipes = (ROOT / "Makefile").read_text()
    for target in ("$(VENV)/.installed:", "$(VENV)/.ready:"):
        recipe = recipes.partition(target)[2].partition("\n\n")[0]
        assert recipe.rindex("pip install") < recipe.index("rm -f $(VENV)/.making") < recipe.index("touch ")


def test_a_directory_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ApplianceError, match=r"cannot be used: .*; choose another directory with --dir"):
        Hold(tmp_path / "file")

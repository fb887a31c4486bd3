"""The quick start, as its user starts it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def command(directory: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "appliance", "quickstart", "--dir", str(directory), *options]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


@pytest.mark.timeout(180)
def test_every_step_of_the_story_does_what_it_should(tmp_path):
    """The transcripts of the guide, for real: token, certificate, IOC, secure PV, refusal, revocation."""
    directory = tmp_path / "stack"
    done = subprocess.run(
        command(directory, "--once"),
        capture_output=True,
        text=True,
        timeout=170,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    for line in (
        f"Keychain file created   : {directory}/softioc/config/pva/1.5/server.p12",
        f"Keychain file created   : {directory}/client/config/pva/1.5/client.p12",
        "Entity Subject : CN=softioc, O=localhost",
        "Entity Subject : CN=client, O=localhost",
        "# TLS x509:",
        "EPICS Root Certificate Authority/softioc@127.0.0.1:",
        "write access denied by access security",
        "Status        : REVOKED",
        "every step did what it should",
    ):
        assert line in done.stdout, done.stdout[-4000:]
    assert (directory / "client" / "token_file").stat().st_mode & 0o077 == 0
    for keychain in directory.rglob("*.p12"):
        assert keychain.stat().st_mode & 0o077 == 0, keychain
    token = (directory / "client" / "token_file").read_text().strip()
    for log in (directory / "log").iterdir():
        assert token not in log.read_text(), log


@pytest.mark.timeout(180)
def test_it_stays_until_interrupted_and_leaves_nothing_running(tmp_path):
    directory = tmp_path / "stack"
    process = subprocess.Popen(command(directory), stdout=subprocess.PIPE, text=True, env=environment())
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith("The stack is running"):
                break
        else:
            pytest.fail("the story did not come to its end")
        variables = (directory / "env" / "operator.sh").read_text()
        shell = f"{variables}\n{sys.executable} -m appliance.cli.pvxget test:spec"
        read = subprocess.run(
            ["sh", "-c", shell], capture_output=True, text=True, timeout=30, env=environment(), check=False
        )
        assert "4.5" in read.stdout, read.stderr
        process.send_signal(signal.SIGINT)
        assert process.wait(40) == 0
    finally:
        process.kill()
        process.wait()
    still = subprocess.run(
        ["sh", "-c", shell], capture_output=True, text=True, timeout=30, env=environment(), check=False
    )
    assert still.returncode == 1


def test_a_directory_of_somebody_elses_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    done = subprocess.run(
        command(tmp_path, "--once"),
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
        check=False,
    )
    assert done.returncode == 1
    assert "choose another with --dir" in done.stderr
    assert (tmp_path / "thesis.tex").read_text() == "years of work"

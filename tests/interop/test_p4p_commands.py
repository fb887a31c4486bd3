"""p4p's own command lines, ``p4p.client.cli`` and ``p4p.server.cli``, with p4p meaning ours."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.ioc_process import environment
from tests.helpers.pki import site, write_keychain
from tests.helpers.ports import free_port

CLIENT = [sys.executable, "-u", "-m", "appliance.p4p", "-m", "p4p.client.cli"]
SERVER = [sys.executable, "-u", "-m", "appliance.p4p", "-m", "p4p.server.cli"]


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:

    (tmp_path / "keys").mkdir(mode=0o700)
    return environment(
        free_port(),
        free_port(),
        EPICS_PVAS_TLS_PORT=str(free_port()),
        EPICS_PVA_TLS_KEYCHAIN=str(write_keychain(tmp_path / "keys/client.p12", site().client)),
        EPICS_PVAS_TLS_KEYCHAIN=str(write_keychain(tmp_path / "keys/server.p12", site().server)),
        EPICS_PVA_TLS_OPTIONS="tls_required",
        XDG_DATA_HOME=str(tmp_path),
        XDG_CONFIG_HOME=str(tmp_path),
    )


class Serving:
    """A running p4p.server.cli."""

    def __init__(self, env: dict[str, str], *arguments: str) -> None:
        self.process = subprocess.Popen(
            [*SERVER, *arguments], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self.process.stdout is not None
        self.log = ""
        for line in self.process.stdout:
            self.log += line
            if "the server runs" in line:
                return
        pytest.fail(f"it did not serve: {self.log}")

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        self.log += self.process.communicate(timeout=30)[0]
        return self.process.returncode


@pytest.fixture
def serving(env: dict[str, str], tmp_path: Path) -> Iterator[Serving]:
    running = Serving(
        env, "-f", str(tmp_path / "values.json"), "n=int", "d=real", "a=areal", "t=astr", "e=enum"
    )
    yield running
    running.stop()


def ask(env: dict[str, str], *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [*CLIENT, "-w", "60", *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_put_and_get_over_tls(env: dict[str, str], serving: Serving) -> None:
    assert ask(env, "put", "n=5", "d=1.5", "a=[1, 2.5]", 't=["x", "y"]') == (0, "n ok\nd ok\na ok\nt ok\n")
    status, out = ask(env, "get", "n", "d", "a", "t")
    assert status == 0
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == ["n", "d", "a", "t"]
    assert lines[0].endswith(" 5")
    assert lines[1].endswith(" 1.5")
    assert lines[2].endswith("ntnumericarray([1. , 2.5])")
    assert lines[3].endswith("['x', 'y']")
    raw = ask(env, "--raw", "get", "n")[1]
    assert "epics:nt/NTScalar:1.0" in raw


def test_what_cannot_be_done_is_told_and_is_the_exit_status(env: dict[str, str], serving: Serving) -> None:
    status, out = ask(env, "put", "n=five")
    assert status == 1
    assert out.startswith("n Error:")
    assert ask(env, "put", "n") == (1, "Missing expected '=' after n\n")
    status, out = ask(env, "-w", "0.5", "get", "nobody:has:this")
    assert status == 1
    assert out.startswith("nobody:has:this Error:")
    assert ask(env, "rpc", "n", "word") == (2, "arguments must be name=value not: word\n")


def test_a_pv_is_watched_until_the_user_interrupts(env: dict[str, str], serving: Serving) -> None:
    watching = subprocess.Popen([*CLIENT, "monitor", "n"], env=env, stdout=subprocess.PIPE, text=True)
    assert watching.stdout is not None
    lines = []
    for line in watching.stdout:
        lines.append(line)
        if line.endswith(" 0\n"):
            assert ask(env, "put", "n=8")[0] == 0
        if line.endswith(" 8\n"):
            break
    assert "Disconnected" in lines[0] or "Error" in lines[0]
    watching.send_signal(signal.SIGINT)
    assert watching.wait(30) == 1


def test_values_are_kept_from_one_run_to_the_next(
    env: dict[str, str], serving: Serving, tmp_path: Path
) -> None:
    assert ask(env, "put", "n=7", "a=[1, 2]", "e=0")[0] == 0
    assert serving.stop() == 0
    assert "Traceback" not in serving.log
    file = tmp_path / "values.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [name for name, _, _ in json.loads(file.read_text())["pvs"]] == ["n", "d", "a", "t", "e"]
    file.chmod(0o640)
    again = Serving(env, "-f", str(file), "new=int")
    try:
        assert ask(env, "get", "n")[1].endswith(" 7\n")
        assert ask(env, "get", "new")[1].endswith(" 0\n")
    finally:
        assert again.stop() == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_a_server_that_may_not_start_says_why(env: dict[str, str]) -> None:
    env["EPICS_PVAS_TLS_KEYCHAIN"] = env["EPICS_PVA_TLS_KEYCHAIN"]
    done = subprocess.run(
        [*SERVER, "n=int"], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "is not for a server" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["n"], "Invalid definition"),
        (["n=float"], "Invalid definition, expected NAME=TYPE with a type of int, uint"),
        (["-f", "{}/damaged.json", "n=int"], "damaged.json: "),
        (["-f", "{}/missing/values.json", "n=int"], "values.json: "),
    ],
)
def test_a_wrong_command_line_or_file_is_told_at_the_start(
    env: dict[str, str], tmp_path: Path, arguments: list[str], words: str
) -> None:
    (tmp_path / "damaged.json").write_text('{"version": 1}')
    done = subprocess.run(
        [*SERVER, *(each.format(tmp_path) for each in arguments)],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert words in done.stdout
    assert "Traceback" not in done.stderr

"""A new terminal needs one line to be a role: ``. DIR/env/ROLE.sh``."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from appliance.quickstart.layout import ROLES, Layout, free_ports

SHELLS = [shell for shell in ("sh", "bash", "zsh", "dash") if shutil.which(shell)]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path / "my stack's", free_ports())
    made.make()
    made.write_environment_files()
    return made


def shell(name: str, script: str, **variables: str) -> str:
    done = subprocess.run(
        [name, "-eu", "-c", script],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={"PATH": os.defpath, "HOME": "/", **variables},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def source(layout: Layout, role: str) -> str:
    return f""". "{layout.root}/env/{role}.sh"; """


@pytest.mark.parametrize("name", SHELLS)
def test_the_commands_are_found(layout: Layout, name: str) -> None:
    out = shell(name, source(layout, "operator") + "command -v pvxget; pvxget -V")
    assert "/pvxget\nSecure PVAccess appliance" in out


@pytest.mark.parametrize("name", SHELLS)
def test_another_role_and_what_the_shell_had_before_are_reset(layout: Layout, name: str) -> None:
    script = source(layout, "pvacms") + source(layout, "operator") + "env"
    out = shell(
        name,
        script,
        EPICS_PVA_NAME_SERVERS="10.0.0.1",
        EPICS_PVAS_TLS_KEYCHAIN="/etc/server.p12",
        EPICS_AUTH_JWT_FILE="/run/token",
        EPICS_BASE="/opt/epics/base",
        PVXS_LOG="*=WARN",
    )
    found = dict(
        line.split("=", 1) for line in out.splitlines() if line.startswith(("EPICS_", "XDG_", "PVXS_"))
    )
    assert found == {**layout.variables("operator"), "EPICS_BASE": "/opt/epics/base", "PVXS_LOG": "*=WARN"}


@pytest.mark.parametrize("name", SHELLS)
def test_the_prompt_shows_the_role_and_no_former_one(layout: Layout, name: str) -> None:
    script = "PS1='$ '; "
    for role in (*ROLES, "operator", "operator"):
        script += source(layout, role) + "printf '%s|' \"$PS1\"; "
    script += 'PS1="(.venv) $PS1"; ' + source(layout, "admin") + "printf '%s|' \"$PS1\"; "
    script += 'printf %s "${PATH%%:*}:$PATH"'
    *prompts, path = shell(name, script).split("|")
    assert prompts == [f"({role}) $ " for role in (*ROLES, "operator", "operator")] + ["(admin) (.venv) $ "]
    first, *rest = path.split(":")
    assert rest.count(first) == 1, "sourcing again does not make PATH longer"


@pytest.mark.parametrize("name", SHELLS)
def test_a_shell_without_a_prompt_gets_none(layout: Layout, name: str) -> None:
    # dash and zsh set one themselves.
    script = "unset PS1; " + source(layout, "admin") + 'echo "${PS1-none}"'
    assert shell(name, script) == "none\n"

"""The archive of wheels is named after what it was built from, so that an installed release can be told from another."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from appliance.version import __version__
from tests.deploy.test_templates import run_play

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "roles/spva_common/files/wheelhouse.py"


@pytest.fixture
def project(tmp_path) -> Path:
    project = tmp_path / "project"
    (project / "appliance").mkdir(parents=True)
    (project / "appliance/__init__.py").write_text("")
    for name in ("pyproject.toml", "appliance/version.py"):
        shutil.copyfile(ROOT / name, project / name)
    return project


def look(project: Path, *more: str) -> dict:
    output = project.parent / "wheelhouse"
    done = subprocess.run(
        [sys.executable, TOOL, "--look", "--project", project, "--output", output, *more],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert not output.exists(), "looking must not build"
    return json.loads(done.stdout)


def test_same_source_has_the_same_digest(project):
    assert look(project) == look(project)


def test_other_source_has_another_digest(project):
    before = look(project)
    (project / "appliance/__init__.py").write_text("x = 1\n")
    assert look(project)["digest"] != before["digest"]


def test_what_python_left_behind_does_not_count(project):
    before = look(project)
    (project / "appliance/__pycache__").mkdir()
    (project / "appliance/__pycache__/x.pyc").write_bytes(b"x")
    assert look(project) == before


@pytest.mark.parametrize("more", [("--extras=",), ("--python=3.13",), ("--machine=aarch64",)])
def test_other_hosts_need_another_archive(project, more):
    assert look(project, *more)["archive"] != look(project)["archive"]


def test_version_is_what_the_installed_release_says_of_itself(project):
    """It stood in two places, and hosts with release 9.0.0 said 0.1.0 of themselves."""
    assert look(project)["version"] == __version__
    (project / "appliance/version.py").write_text('__version__ = "9.8.7"\n')
    assert look(project)["version"] == "9.8.7"
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in settings["project"], "the wheel takes it from there, too"
    assert settings["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "appliance.version.__version__"}


@pytest.mark.parametrize("text", ["", "__version__ = version('x')\n", '__version__ = "../x"\n'])
def test_a_project_whose_version_cannot_be_read_is_refused_with_a_sentence(project, text):
    (project / "appliance/version.py").write_text(text)
    command = [sys.executable, TOOL, "--look", "--project", project, "--output", project / "wheels"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stdout) == (1, "")
    assert "version.py has no line" in done.stderr
    assert "Traceback" not in done.stderr


def said_by_the_roles(project: Path) -> str:
    tasks = yaml.safe_load((ROOT / "roles/spva_common/tasks/preflight.yml").read_text())
    task = next(each for each in tasks if each["name"] == "Find the version to install")
    show = {"ansible.builtin.debug": {"msg": "version=<{{ spva_common_version }}>"}}
    values = {"spva_common_release": "", "spva_common_project": str(project)}
    done = run_play(project, {"tasks": [task, show]}, values)
    assert done.returncode == 0, done.stdout + done.stderr
    return re.search(r"version=<(.*?)>", done.stdout)[1]


def test_the_roles_install_the_version_that_the_archive_has(project):
    assert said_by_the_roles(project) == __version__
    (project / "appliance/version.py").unlink()
    # Then the preflight checks say that this is no version.
    assert said_by_the_roles(project) == ""

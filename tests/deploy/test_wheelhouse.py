"""The archive of wheels is named after what it was built from, so that an installed release can be told from another."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "roles/spva_common/files/wheelhouse.py"


@pytest.fixture
def project(tmp_path) -> Path:
    project = tmp_path / "project"
    (project / "appliance").mkdir(parents=True)
    (project / "appliance/__init__.py").write_text("")
    shutil.copyfile(ROOT / "pyproject.toml", project / "pyproject.toml")
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


def test_version_is_the_projects(project):
    text = (project / "pyproject.toml").read_text()
    (project / "pyproject.toml").write_text(re.sub(r'(?m)^version = ".*"', 'version = "9.8.7"', text))
    assert look(project)["version"] == "9.8.7"

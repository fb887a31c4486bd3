"""The types, as a program sees them that has the package installed: mypy and pyright, both strict."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent

pytestmark = pytest.mark.timeout(600)  # each checker reads the whole package


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a virtual environment that holds the package as a wheel would bring it, and a directory for a user's programs."""
    home = tmp_path_factory.mktemp("user")
    venv.create(home / "venv", with_pip=False)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(home / "venv")}))
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["*"]
    for pattern in ("*.py", *data):
        for file in (ROOT / "appliance").rglob(pattern):
            there = packages / file.relative_to(ROOT)
            there.parent.mkdir(parents=True, exist_ok=True)
            there.write_bytes(file.read_bytes())
    # What the package needs comes from the environment of the tests.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    (home / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    return home


def complaints(checker: str, home: Path, sample: str) -> dict[int, str]:
    """Return what the checker says of a sample, by line."""
    (home / sample).write_text((HERE / sample).read_text())
    python = home / "venv/bin/python"
    command = {
        "mypy": [sys.executable, "-m", "mypy", "--strict", "--python-executable", python, "--cache-dir", home / "cache", sample],
        "pyright": [sys.executable, "-m", "basedpyright", "--pythonpath", python, "--outputjson", sample],
    }[checker]  # fmt: skip
    environ = {name: value for name, value in os.environ.items() if name not in {"MYPYPATH", "PYTHONPATH"}}
    done = subprocess.run(
        command, cwd=home, env=environ, capture_output=True, text=True, check=False, timeout=580
    )
    if checker == "mypy":
        assert done.returncode in (0, 1), done.stdout + done.stderr
        found = re.findall(rf"^{re.escape(sample)}:(\d+): error: (.*)$", done.stdout, re.MULTILINE)
        return {int(line): text for line, text in found}
    said = json.loads(done.stdout)
    assert said["summary"]["filesAnalyzed"] == 1, done.stdout
    return {
        item["range"]["start"]["line"] + 1: item["message"]
        for item in said["generalDiagnostics"]
        if item["severity"] == "error"
    }


@pytest.mark.parametrize("sample", ["accepted.py", "accepted_p4p.py"])
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_a_program_that_uses_the_public_names_is_accepted_in_strict_mode(
    checker: str, sample: str, installed: Path
) -> None:
    assert complaints(checker, installed, sample) == {}


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_each_mistake_of_a_program_is_found_and_nothing_else(checker: str, installed: Path) -> None:
    lines = (HERE / "refused.py").read_text().splitlines()
    wrong = {number for number, line in enumerate(lines, 1) if line.endswith("# wrong")}
    assert wrong
    assert set(complaints(checker, installed, "refused.py")) == wrong

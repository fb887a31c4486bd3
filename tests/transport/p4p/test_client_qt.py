"""The client for Qt with p4p's API. Each promise is tried in a process of its own (`tests.helpers.qt_program`)."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROGRAM = ROOT / "tests/helpers/qt_program.py"


def scenarios() -> list[str]:
    """Read the names from the source: to import it is to load Qt."""
    for node in ast.parse(PROGRAM.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SCENARIOS":
            return [ast.unparse(item) for item in node.value.elts]  # type: ignore[attr-defined]
    raise AssertionError


def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EPICS_")}
    environment |= {"QT_QPA_PLATFORM": "offscreen", "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=100, check=False
    )


@pytest.mark.parametrize("scenario", scenarios())
def test_a_program_with_qt(scenario):
    done = run("-m", "tests.helpers.qt_program", scenario)
    assert (done.returncode, done.stdout) == (0, f"done: {scenario}\n"), done.stderr


def test_an_error_of_a_slot_is_logged():
    done = run("-m", "tests.helpers.qt_program", "an_error_of_a_slot_harms_no_other")
    assert "a function that Qt called failed" in done.stderr
    assert "a defect of the program" in done.stderr


def test_a_program_for_p4p_has_it_under_p4ps_name():
    program = "import p4p.client.Qt as theirs, appliance.p4p.client.Qt as ours; print(theirs is ours)"
    done = run("-m", "appliance.p4p", "-c", program)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("import sys; sys.modules['qtpy'] = None; import appliance.p4p.client.Qt", "needs the package qtpy"),
        (
            (
                "import sys; sys.modules.update(dict.fromkeys(['PySide6', 'PySide2', 'PyQt5', 'PyQt6']))\n"
                "import appliance.p4p.client.Qt"
            ),
            "No Qt bindings could be found",
        ),
    ],
)
def test_without_qtpy_or_a_binding_a_sentence_says_what_to_install(program, why):
    done = run("-c", program, PYTHONWARNINGS="ignore")
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(
        "ImportError: p4p.client.Qt needs the package qtpy and a binding of Qt: pip install"
    )
    assert why in last

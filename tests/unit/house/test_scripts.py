"""The commands of the virtual environment are ours, also where another package has one of the same name."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


@pytest.mark.parametrize("program", sorted(SCRIPTS))
def test_the_command_is_ours(program: str) -> None:
    script = Path(sys.prefix, "bin", program)
    module = SCRIPTS[program].partition(":")[0]
    assert f"from {module} import main" in script.read_text(), (
        f"{script} is another package's (p4p has a pvagw); run: make -B setup"
    )

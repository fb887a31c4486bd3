"""Run a test in a process of its own, for code that owns something that a process has only once."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_CODE = """
import pathlib, runpy, sys
file, name, folder = sys.argv[1:]
runpy.run_path(file)[name].__wrapped__(pathlib.Path(folder))
"""


def isolated(test: Callable[[Path], None]) -> Callable[[Path], None]:
    """Make a test that takes ``tmp_path`` run in a child; an exception or a crash there fails it here."""

    @functools.wraps(test)
    def run(tmp_path: Path) -> None:
        done = subprocess.run(
            [
                sys.executable,
                "-X",
                "faulthandler",
                "-c",
                _CODE,
                test.__code__.co_filename,
                test.__name__,
                tmp_path,
            ],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(_ROOT)},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"

    return run

"""Which release this is, and which library the Python programs of this environment import as p4p."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from appliance.cli.doctor.report import Report

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["check_programs", "check_release"]

_WHY: Final = "programs that import it speak plain TCP, unless it was built with a PVXS that has TLS"


def check_release(report: Report) -> None:
    """Say which release runs, and where it is: the host may have others, and the search path names one of them."""
    from appliance.version import __version__

    report.ok("release", f"Secure PVAccess appliance {__version__} in {sys.prefix}")


def check_programs(report: Report, environ: Mapping[str, str], *, server: bool) -> None:
    """Say what programs that import p4p use, here and in the active virtual environment, and how they get TLS."""
    from importlib.util import find_spec

    run = _run(sys.executable, server=server, ophyd=find_spec("ophyd_async") is not None)
    if find_spec("p4p") is None:
        report.ok("programs", f"Python programs that import p4p run over TLS with {run}")
    else:
        report.note(
            "programs",
            f"p4p {_version()}is installed in {sys.prefix}",
            _WHY,
            f"to use TLS without a change of the program: {run}",
        )
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        folder = Path(environ.get(variable) or sys.prefix)
        if folder.resolve() != Path(sys.prefix).resolve() and _has(folder, "p4p/__init__.py"):
            run = _run(f"{folder}/bin/python", server=server, ophyd=_has(folder, "ophyd_async/__init__.py"))
            first = "" if _has(folder, "spva_appliance-*") else "install the appliance there as well; "
            report.note(
                "programs",
                f"p4p is installed in {folder} ({variable})",
                _WHY,
                f"{first}to use TLS without a change of the program: {run}",
            )


def _run(python: str, *, server: bool, ophyd: bool) -> str:
    runner = f"{python} -m appliance.p4p"
    if server:
        return f"{runner} IOC.py"
    return f"{runner} PROGRAM" + (f"; for ophyd-async and bluesky: {runner} -m IPython" if ophyd else "")


def _has(folder: Path, pattern: str) -> bool:
    return any(folder.glob(f"lib/python3*/site-packages/{pattern}"))


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"{version('p4p')} "
    except PackageNotFoundError:  # a folder of that name in the search path
        return ""

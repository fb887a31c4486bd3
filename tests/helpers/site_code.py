"""Compiles C for the IOC, as a site does."""

from __future__ import annotations

import subprocess
from pathlib import Path

import epicscorelibs

BASE = Path(epicscorelibs.__file__).parent
SOURCES = Path(__file__).parents[1] / "daemons" / "ioc"


def compiled(
    target: Path, source: str = "", *, file: Path | None = None, link: bool = True, more: tuple[str, ...] = ()
) -> Path:
    """Compile a text or a file into a shared library with the headers of EPICS Base."""
    if file is None:
        file = target.with_suffix(".c")
        file.write_text(source)
    include = BASE / "include"
    libraries = [f"-L{BASE / 'lib'}", "-ldbCore", "-lCom"] if link else []
    subprocess.run(
        [
            "gcc", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC",
            "-DUSE_TYPED_RSET", "-DUSE_TYPED_DSET", "-DUSE_TYPED_DRVET",
            f"-I{include}", f"-I{include / 'os' / 'Linux'}", f"-I{include / 'compiler' / 'gcc'}",
            file, "-o", target, *more, *libraries,
        ],
        check=True, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    target.chmod(0o755)
    return target

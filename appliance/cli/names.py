"""The names of PVs that answered lately, in a file of this user, for completion in a shell."""

from __future__ import annotations

import os
import sys

from appliance.config.files import make_directories
from appliance.errors import ConfigurationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


__all__ = ["MOST", "path", "remember"]

MOST = 500
"""Number of names that are stored, the latest first."""
_LONGEST = 200


def path() -> str:
    """Return the file's path."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - pathlib takes 5 ms
    return f"{base}/pva/names"


def remember(names: Iterable[str]) -> None:
    """Put names in front of the stored ones, if a user may type them: standard error is a terminal.

    A file that cannot be written is ignored: no tool fails because of this.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        return
    good = [name for name in names if len(name) <= _LONGEST and name.isprintable() and " " not in name]
    file = path()
    try:
        known = _known(file)
        kept = list(dict.fromkeys([*good[:MOST], *known]))[:MOST]
        if not good or kept == known:
            return
        make_directories(os.path.dirname(file))  # noqa: PTH120
        new = f"{file}.{os.getpid()}"
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as out:
            out.writelines(f"{name}\n" for name in kept)
        os.replace(new, file)  # noqa: PTH105
    except (OSError, ValueError, ConfigurationError):
        return


def _known(file: str) -> list[str]:
    try:
        with open(file, encoding="utf-8", errors="replace") as there:  # noqa: PTH123
            return there.read(MOST * (_LONGEST + 1)).split("\n")[:-1][:MOST]
    except FileNotFoundError:
        return []

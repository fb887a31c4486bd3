"""Tell the user what to install if a program needs an optional part of the package that is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from appliance.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["EXTRAS", "require"]

EXTRAS: Final = {
    "cms": ("aiohttp", "jwt", "sqlalchemy", "alembic"),
    "gateway": ("prometheus_client",),
    "ioc": ("epicscorelibs",),
    "issuer": ("aiohttp", "jwt"),
    "oauth": ("aiohttp", "oauthlib"),
}
"""The extras of pyproject.toml, and the packages that show that they are installed."""


def require(*extras: str) -> None:
    """Make sure that the extras are installed.

    Raises:
        ConfigurationError: A package is not installed; the message says what to install.
    """
    from importlib.util import find_spec

    missing = sorted({name for extra in extras for name in EXTRAS[extra] if find_spec(name) is None})
    if missing:
        raise ConfigurationError(
            f"{_listed(missing)} {'is' if len(missing) == 1 else 'are'} not installed; "
            f"install the appliance with its extra '{_wanted(extras)}': pip install '.[{_wanted(extras)}]'"
        )


def _wanted(extras: Sequence[str]) -> str:
    return extras[0] if len(extras) == 1 else "all"


def _listed(names: Sequence[str]) -> str:
    first = f"the package {names[0]}" if len(names) == 1 else f"the packages {', '.join(names[:-1])}"
    return first if len(names) == 1 else f"{first} and {names[-1]}"

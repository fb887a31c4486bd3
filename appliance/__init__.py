"""Secure PVAccess as an appliance: one package, its daemons and its tools.

What programs in Python use is here::

    from appliance import Context, Server, SharedPV

Names are imported when they are first used, so that the command-line tools start quickly.
"""

from __future__ import annotations

from appliance.version import __version__

__all__ = ["ApplianceError", "Context", "Server", "SharedPV", "Value", "__version__"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from appliance.api import Context, Server
    from appliance.errors import ApplianceError
    from appliance.pvdata import Value
    from appliance.server import SharedPV

_HOMES = {
    "ApplianceError": "appliance.errors",
    "Context": "appliance.api",
    "Server": "appliance.api",
    "SharedPV": "appliance.server",
    "Value": "appliance.pvdata",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = globals()[name] = getattr(import_module(home), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

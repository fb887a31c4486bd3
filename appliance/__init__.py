"""Secure PVAccess as an appliance: one package, its daemons and its tools.

What most programs in Python need is here::

    from appliance import Context, Server, SharedPV

`Context` is the client, `Server` the server; both use asyncio, take their settings from the ``EPICS_PVA*`` variables, and use TLS if there
is a keychain. `Value` holds what is read and written. Types (`FLOAT64` ...) and normative types (`NTScalar` ...) describe it.
Every error is an `ApplianceError`. docs/reference/public-names.md lists all public names, and says what is stable.

Names are imported when they are first used, so that the command-line tools start quickly.
"""

from __future__ import annotations

from appliance.version import __version__

__all__ = [
    "ANY",
    "BOOL",
    "FLOAT32",
    "FLOAT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "NTURI",
    "STRING",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "AccessDeniedError",
    "ApplianceError",
    "ArrayType",
    "ChannelClosedError",
    "ClientConfig",
    "ConfigurationError",
    "Context",
    "Effective",
    "KeychainError",
    "NTEnum",
    "NTNDArray",
    "NTNameValue",
    "NTScalar",
    "NTScalarArray",
    "NTTable",
    "OperationError",
    "OperationTimeoutError",
    "PVDataError",
    "RemoteError",
    "Server",
    "ServerConfig",
    "SharedPV",
    "StructType",
    "UnionType",
    "Value",
    "__version__",
    "resolve_client",
    "resolve_server",
    "time_of",
]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from appliance.api import Context, Server
    from appliance.config.pva import ClientConfig, Effective, ServerConfig, resolve_client, resolve_server
    from appliance.errors import (
        AccessDeniedError,
        ApplianceError,
        ChannelClosedError,
        ConfigurationError,
        KeychainError,
        OperationError,
        OperationTimeoutError,
        PVDataError,
        RemoteError,
    )
    from appliance.pvdata import (
        ANY,
        BOOL,
        FLOAT32,
        FLOAT64,
        INT8,
        INT16,
        INT32,
        INT64,
        STRING,
        UINT8,
        UINT16,
        UINT32,
        UINT64,
        ArrayType,
        StructType,
        UnionType,
        Value,
    )
    from appliance.pvdata.nt import (
        NTURI,
        NTEnum,
        NTNameValue,
        NTNDArray,
        NTScalar,
        NTScalarArray,
        NTTable,
        time_of,
    )
    from appliance.server import SharedPV


def _home(name: str) -> str:
    """Return the module that ``name`` is imported from."""
    if name in {"Context", "Server"}:
        return "appliance.api"
    if name.endswith(("Config", "Effective")) or name.startswith("resolve_"):
        return "appliance.config.pva"
    if name.endswith("Error"):
        return "appliance.errors"
    if name.startswith("NT") or name == "time_of":
        return "appliance.pvdata.nt"
    return "appliance.server" if name == "SharedPV" else "appliance.pvdata"


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = globals()[name] = getattr(import_module(_home(name)), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""The Python API of p4p on this project's own client and server, so that its programs can use TLS.

A program changes one line, or none::

    from appliance.p4p.client.thread import Context

    with Context("pva") as ctxt:
        print(ctxt.get("pv:name"))

``python -m appliance.p4p program.py`` runs a program with ``p4p`` meaning this package. Keychains and all other settings come
from the same ``EPICS_PVA_*`` variables as those of the tools, or from ``conf=``.

Attributes:
    Value: `appliance.p4p.wrapper.Value`.
    Type: `appliance.p4p.wrapper.Type`.
    replace_p4p: `appliance.p4p._alias.replace_p4p`.
    version: The version of p4p whose API this is; compares with texts and tuples.
"""

from __future__ import annotations

import atexit
import os
import sys
from typing import TYPE_CHECKING, Any, Final

from appliance.p4p._p4p import (
    listRefs,
    logger_level_set,
    logLevelAll,
    logLevelDebug,
    logLevelError,
    logLevelFatal,
    logLevelInfo,
    logLevelOff,
    logLevelTrace,
    logLevelWarn,
)
from appliance.p4p._p4p import version as pvxsVersion
from appliance.p4p.version import version

if TYPE_CHECKING:
    from appliance.p4p._alias import replace_p4p
    from appliance.p4p.wrapper import Type, Value

__all__ = [
    "Type",
    "Value",
    "cleanup",
    "listRefs",
    "logLevelAll",
    "logLevelDebug",
    "logLevelError",
    "logLevelFatal",
    "logLevelInfo",
    "logLevelOff",
    "logLevelTrace",
    "logLevelWarn",
    "pvaVersion",
    "pvdVersion",
    "pvxsVersion",
    "replace_p4p",
    "set_debug",
    "version",
]

# The levels of Python's logging, and what they are in p4p. A program that passes one of p4p's own numbers gets the level of
# logging with the same number, as it does from p4p.
_LEVELS: Final = {
    10: logLevelDebug,
    20: logLevelInfo,
    30: logLevelWarn,
    40: logLevelError,
    50: logLevelFatal,
}
_PATIENCE_S: Final = 2.0
"""Seconds that the end waits for callbacks that still run. Their threads are daemons, so they cannot keep the interpreter."""
_HOMES: Final = {
    "Type": "appliance.p4p.wrapper",
    "Value": "appliance.p4p.wrapper",
    "replace_p4p": "appliance.p4p._alias",
}


def __getattr__(name: str) -> Any:
    # Late, so that a child of multiprocessing and a program that only asks for the version start quickly.
    from importlib import import_module

    if name == "wrapper":
        return import_module("appliance.p4p.wrapper")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(home), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def pvdVersion() -> tuple[int, int, int, int]:
    """Return the version of pvDataCPP that p4p reports.

    Example:
        >>> pvdVersion()
        (8, 0, 0, 0)
    """
    return (8, 0, 0, 0)


def pvaVersion() -> tuple[int, int, int, int]:
    """Return the version of pvAccessCPP that p4p reports.

    Example:
        >>> pvaVersion()
        (7, 0, 0, 0)
    """
    return (7, 0, 0, 0)


def set_debug(lvl: int) -> None:
    """Show messages of the PVAccess client and server from this level up.

    They go to the handlers of Python's `logging`; to stderr if the program has none. In p4p they always go to stderr.

    Args:
        lvl: A level of `logging`, for example ``logging.DEBUG``.

    Raises:
        AssertionError: There is no such level.

    Example:
        >>> import logging
        >>> set_debug(logging.ERROR)
    """
    level = _LEVELS.get(lvl)
    if level is None:
        raise AssertionError(lvl)
    logger_level_set("pvxs.*", level)


def cleanup() -> None:
    """Close all contexts and servers of this process, and end the work queues. It may be called more than once.

    It runs by itself when the interpreter ends.

    ::

        cleanup()
    """
    # The order is p4p's. What was never imported has nothing to close, and an import would be too late at the end.
    for module, name in (
        ("server", "clearProviders"),
        ("client.raw", "_cleanup_contexts"),
        ("server", "_cleanup_servers"),
    ):
        loaded = sys.modules.get(f"{__name__}.{module}")
        if loaded is not None and hasattr(loaded, name):
            getattr(loaded, name)()
    util = sys.modules.get(f"{__name__}.util")
    if util is not None and hasattr(util, "_defaultWorkQueue"):
        util._defaultWorkQueue.stop(_PATIENCE_S)
    threads = sys.modules.get("appliance.threads")
    if threads is not None:
        threads.shutdown()


def _follow_pvxs_log() -> None:
    """Set the levels that $PVXS_LOG asks for, as programs with p4p do."""
    from appliance.p4p._p4p import follow_log_spec

    follow_log_spec(os.environ["PVXS_LOG"])


if os.environ.get("PVXS_LOG"):
    _follow_pvxs_log()
atexit.register(cleanup)

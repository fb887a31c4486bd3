"""The names that programs take from the extension module of p4p.

There is no extension module here. Classes are those of the Python modules; what has no counterpart is absent.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import logging

__all__ = [
    "listRefs",
    "logLevelAll",
    "logLevelDebug",
    "logLevelError",
    "logLevelFatal",
    "logLevelInfo",
    "logLevelOff",
    "logLevelTrace",
    "logLevelWarn",
    "logger_level_set",
    "version",
    "version_str",
]

logLevelAll: Final = 50
logLevelTrace: Final = 50
logLevelDebug: Final = 50
logLevelInfo: Final = 40
logLevelWarn: Final = 30
logLevelError: Final = 20
logLevelFatal: Final = 10
logLevelOff: Final = 10

_PARTS: Final = ("certmon", "certs", "client", "config", "pva", "server", "threads", "tls", "transport")
"""Packages whose work is in p4p that of PVXS."""
_QUIETED: Final[set[str]] = set()
"""Loggers whose level `keep_quiet` has set."""

_WORDS: Final = {10: "CRIT", 20: "ERR", 30: "WARN", 40: "INFO", 50: "DEBUG"}
"""Names of the levels of PVXS."""

_HOMES: Final = {
    "Cancelled": "_errors",
    "Disconnected": "_errors",
    "Finished": "_errors",
    "RemoteError": "_errors",
    "Type": "wrapper",
    "Value": "wrapper",
    "ClientProvider": "client._provider",
    "all_providers": "client._provider",
    "Server": "server",
    "StaticProvider": "server",
    "DynamicProvider": "server",
    "ServerOperation": "server",
    "all_servers": "server._server",
    "SharedPV": "server.raw",
}
# What the Python classes of p4p are derived from. Here they are the same.
_SAME: Final = {"_Type": "Type", "_Value": "Value"}

# p4p's names of PVXS's objects, and our classes that do the same work.
_COUNTED: Final = {
    "ClientContextImpl": ("appliance.client.context", ("Context",)),
    "Channel": ("appliance.client.channel", ("Channel",)),
    "Connection": ("appliance.client.link", ("ServerLink",)),
    "GPROp": ("appliance.client.requests", ("GetRequest", "PutRequest", "RPCRequest")),
    "MonitorOp": ("appliance.client.monitor", ("Monitor",)),
    "ServerPvt": ("appliance.server.server", ("Server",)),
    "ServerConn": ("appliance.server.peer", ("Peer",)),
    "ServerChan": ("appliance.server.served_channel", ("ServedChannel",)),
    "ServerMonitorControl": ("appliance.server.operation", ("Subscription",)),
    "SharedPVImpl": ("appliance.p4p.server.raw", ("SharedPV",)),
    "StructTop": ("appliance.p4p.wrapper", ("Value",)),
}
_ENGINE: Final = "appliance.threads"


def __getattr__(name: str) -> Any:
    home = _HOMES.get(_SAME.get(name, name))
    if home is None:
        raise AttributeError(
            f"p4p._p4p.{name} does not exist here: appliance.p4p has no extension module; "
            "use the public modules p4p.client, p4p.server and p4p.wrapper"
        )
    from importlib import import_module

    found = getattr(import_module(f"appliance.p4p.{home}"), _SAME.get(name, name))
    globals()[name] = found
    return found


def version() -> int:
    """Return the number of the version of PVXS that p4p 4.3.0 is made with. No PVXS is used here.

    Example:
        >>> from appliance.p4p import pvxsVersion
        >>> hex(pvxsVersion())
        '0x1050300'
    """
    return 0x01050300


def version_str() -> str:
    """Return the version of PVXS that p4p 4.3.0 is made with. No PVXS is used here."""
    return "PVXS 1.5.3"


def logger_level_set(name: str, lvl: int) -> None:
    """Log messages of a part of the client and server from a level up.

    Args:
        name: A logger of PVXS, as in $PVXS_LOG, or of this package; ``pvxs.*`` is all of it.
        lvl: A level of PVXS: 10 critical, 20 errors, 30 warnings, 40 information, 50 debug; another number counts as the
            next lower one.
    """
    # p4p's own loggers (p4p.*) say what its client and server do.
    ours = "pvxs.*" if name in {"p4p.*", "p4p", "*"} else name
    word = _WORDS[max(10, min(50, lvl // 10 * 10))]
    follow_log_spec(f"{ours}={word}")


def follow_log_spec(spec: str) -> None:
    """Set levels as $PVXS_LOG has them; say what is wrong in it on stderr."""
    import logging

    from appliance.daemon.logging import level_spec

    levels, faults = level_spec(spec)
    for fault in faults:
        sys.stderr.write(f"PVXS_LOG: {fault}\n")
    if "appliance" in levels:
        while _QUIETED:
            logging.getLogger(_QUIETED.pop()).setLevel(logging.NOTSET)
    for logger, level in levels.items():
        logging.getLogger(logger).setLevel(level)
    root = logging.getLogger("appliance")
    if not any(getattr(handler, "of_p4p", False) for handler in root.handlers):
        root.addHandler(_handler())


def keep_quiet() -> None:
    """Let the client and server below p4p's API log warnings only, until `follow_log_spec` says otherwise.

    Messages of PVXS never go to Python's `logging`. A program that shows all of its own messages does not expect one for each
    message on the wire. Levels that are set already stay.
    """
    import logging

    if logging.getLogger("appliance").level == logging.NOTSET:
        for part in _PARTS:
            logger = logging.getLogger(f"appliance.{part}")
            if logger.level == logging.NOTSET:
                logger.setLevel(logging.WARNING)
                _QUIETED.add(logger.name)


def _handler() -> logging.Handler:
    """Return a handler for stderr that is silent if the program has handlers of its own."""
    import logging

    from appliance.daemon.logging import Redactor

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    handler.addFilter(lambda _: not logging.getLogger().handlers)
    handler.addFilter(Redactor())
    handler.of_p4p = True  # type: ignore[attr-defined]
    return handler


def listRefs() -> dict[str, int]:
    """Count the objects of the client and server that are in use, for programs that look for what they forgot to close.

    It runs the garbage collector first, so it takes some milliseconds.

    Returns:
        Counts by the names that p4p uses for objects of PVXS. A context counts until it is closed.

    ::

        >>> "ClientContextImpl" in listRefs()
        True
    """
    import gc

    from appliance.daemon.objects import count_types

    engine = getattr(sys.modules.get(_ENGINE), "_engine", None)
    if engine is not None and engine.is_usable and not engine.is_current:
        # What was closed is let go in the next turns of the event loop.
        for _ in range(3):
            engine.call(int)
    gc.collect()
    kinds = count_types()
    counts = {}
    for name, (module, classes) in _COUNTED.items():
        ours = tuple(getattr(sys.modules[module], each) for each in classes) if module in sys.modules else ()
        counts[name] = sum(number for kind, number in kinds.items() if issubclass(kind, ours))
    if counts["ClientContextImpl"]:
        counts["ClientContextImpl"] -= sys.modules["appliance.client.context"].closed_contexts()
    return counts


def _forceLazy() -> None:
    """Do nothing, as in p4p: there is nothing that was left for later."""

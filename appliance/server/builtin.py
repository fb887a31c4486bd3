"""The PV ``server``, which every server has and no server advertises. It lists the names that the server knows.

Source: pvxs ``serversource.cpp``; asked by ``pvxlist``, ``pvlist`` and p4p.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from appliance.pva.commands import CMD_RPC
from appliance.pva.credentials import Credentials
from appliance.pvdata.types import STRING, ArrayType, StructType
from appliance.pvdata.value import Value
from appliance.server.operation import Operation
from appliance.server.source import Handler, Source

__all__ = ["BuiltinSource"]

_NAMES = StructType((("value", ArrayType(STRING)),), id="epics:nt/NTScalarArray:1.0")
_TEXT = StructType((("value", STRING),), id="epics:nt/NTScalar:1.0")
_INFO = StructType((("implLang", STRING), ("version", STRING)))


class _ServerPV(Handler):
    def __init__(self, names: Callable[[], Iterable[str]]) -> None:
        self._names = names

    def init(self, operation: Operation) -> None:
        if operation.command == CMD_RPC:
            operation.ready()
        else:
            operation.fail("the PV server answers RPC only; try op=channels or op=info")

    def rpc(self, operation: Operation, argument: Value | None) -> None:
        asked: Any = argument
        if asked is not None and asked.get("query") is not None:
            asked = asked["query"]
        if asked is not None and "help" in asked:
            operation.reply(
                Value(_TEXT, {"value": "op=channels lists the names of PVs, op=info tells the version"})
            )
            return
        what = asked.get("op", "") if asked is not None else ""
        if what == "channels":
            names = sorted(set(self._names()))
            operation.reply(Value(_NAMES, {"value": names}))
        elif what == "info":
            from appliance.version import __version__

            operation.reply(
                Value(_INFO, {"implLang": "python", "version": f"Secure PVAccess appliance {__version__}"})
            )
        else:
            operation.fail("unknown op; use op=channels or op=info")


class BuiltinSource(Source):
    """The source of the PV ``server``.

    Args:
        names: Gives the names of all PVs that the server lists.
    """

    def __init__(self, names: Callable[[], Iterable[str]]) -> None:
        self._pv = _ServerPV(names)

    def claims(self, name: str, host: str) -> bool:
        """Return False: every server has this PV, so a search for it would find any of them."""
        return False

    def open(self, name: str, peer: Credentials) -> Handler | None:
        """Return the PV if its name is asked of this server."""
        return self._pv if name == "server" else None

"""The PV ``server``, which every server has and no server advertises. It lists the names that the server knows.

Source: pvxs ``serversource.cpp``; asked by ``pvxlist``, ``pvlist`` and p4p.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Final

from appliance.pva.commands import CMD_RPC
from appliance.pva.credentials import Credentials
from appliance.pvdata.types import STRING, ArrayType, StructType
from appliance.pvdata.value import Value
from appliance.server.operation import Operation
from appliance.server.source import Handler, Source

__all__ = ["BuiltinSource"]

_FEW: Final = 2000
"""Names that are put in order at once."""
_NAMES = StructType((("value", ArrayType(STRING)),), id="epics:nt/NTScalarArray:1.0")
_TEXT = StructType((("value", STRING),), id="epics:nt/NTScalar:1.0")
_INFO = StructType((("implLang", STRING), ("version", STRING)))


class _ServerPV(Handler):
    def __init__(self, names: Callable[[], Iterable[str]]) -> None:
        self._names = names
        self._waiting: list[Operation] = []
        """Those that wait for the list that is being made."""

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
            self._list(operation)
        elif what == "info":
            from appliance.version import __version__

            operation.reply(
                Value(_INFO, {"implLang": "python", "version": f"Secure PVAccess appliance {__version__}"})
            )
        else:
            operation.fail("unknown op; use op=channels or op=info")

    def _list(self, operation: Operation) -> None:
        """Answer with all names; put many in order on another thread, so that others are served meanwhile."""
        if self._waiting:
            self._waiting.append(operation)
            return
        names = list(self._names())
        if len(names) <= _FEW:
            operation.reply(_in_order(names))
            return
        self._waiting.append(operation)
        asyncio.get_running_loop().run_in_executor(None, _in_order, names).add_done_callback(self._listed)

    def _listed(self, ordered: asyncio.Future[Value]) -> None:
        waiting, self._waiting = self._waiting, []
        for operation in waiting:
            if operation.alive:
                operation.reply(ordered.result())


def _in_order(names: list[str]) -> Value:
    # In the order of the sources, which may have sorted theirs: to sort a set of many names takes longer.
    return Value(_NAMES, {"value": sorted(dict.fromkeys(names))})


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

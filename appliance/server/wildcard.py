"""PVs that are made on demand."""

from __future__ import annotations

from collections.abc import Callable

from appliance.pva.credentials import Credentials
from appliance.server.source import Handler, Source

__all__ = ["WildcardSource"]


class WildcardSource(Source):
    """PVs that come into being when a name that matches a pattern is first opened.

    Args:
        pattern: A name in which each asterisk stands for any text, also none.
        make: Gives the handler by the name and what the asterisks stood for; None where there is no such PV.
        max_pvs: Handlers that are kept at the most: names are chosen by clients.

    Example:
        >>> from appliance.server import WildcardSource
        >>> def make(name, parts):
        ...     return SharedPV.mailbox(Value(NTScalar(STRING), f"motor {parts[0]}"))
        >>> server.add_source("motors", WildcardSource("demo:motor:*", make))
        >>> (await ctx.get("demo:motor:7"))["value"]
        'motor 7'
    """

    def __init__(
        self, pattern: str, make: Callable[[str, tuple[str, ...]], Handler | None], *, max_pvs: int = 100_000
    ) -> None:
        self.pattern = pattern
        """The pattern."""
        self.max_pvs = max_pvs
        self.pvs: dict[str, Handler] = {}
        """The PVs that were made so far."""
        self._make = make
        self._pieces = pattern.split("*")

    def _parts(self, name: str) -> tuple[str, ...] | None:
        """Return what the asterisks stand for; without backtracking, so that a client's name costs no more than its length."""
        first, *rest = self._pieces
        if not rest:
            return () if name == first else None
        last = rest.pop()
        if len(name) < len(first) + len(last) or not name.startswith(first) or not name.endswith(last):
            return None
        pos = len(first)
        end = len(name) - len(last)
        parts = []
        for piece in rest:
            found = name.find(piece, pos, end)
            if found < 0:
                return None
            parts.append(name[pos:found])
            pos = found + len(piece)
        parts.append(name[pos:end])
        return tuple(parts)

    def claims(self, name: str, host: str) -> bool:
        """Whether the name matches."""
        return self._parts(name) is not None

    def open(self, name: str, peer: Credentials) -> Handler | None:
        """Return the PV; make it if it is new."""
        handler = self.pvs.get(name)
        if handler is None:
            parts = self._parts(name)
            if parts is None or len(self.pvs) >= self.max_pvs:
                return None
            handler = self._make(name, parts)
            if handler is not None:
                self.pvs[name] = handler
        return handler

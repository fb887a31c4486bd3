"""Searches that come before the records: they are answered when the records are served.

A client that has asked in vain asks again later and later, up to half a minute apart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterable
from typing import Final

from appliance.pva.credentials import Credentials
from appliance.server.source import Source

__all__ = ["EarlySearches"]

MOST: Final = 20_000
"""Searches that are remembered; clients whose later ones are not ask again."""
_AT_ONCE: Final = 256
"""Names that are looked up before others get their turn."""


class EarlySearches(Source):
    """A source that has nothing, and remembers who has asked for what."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, Hashable], tuple[str, Callable[[], None]]] = {}

    def claims(self, name: str, host: str) -> bool:
        """Return False."""
        return False

    def open(self, name: str, peer: Credentials) -> None:
        """Return nothing."""

    def promise(self, name: str, host: str, asker: Hashable, tell: Callable[[], None]) -> None:
        """Remember a search."""
        key = (name, asker)
        if key in self._waiting or len(self._waiting) < MOST:
            self._waiting[key] = (host, tell)

    async def answer(self, sources: Iterable[Source]) -> None:
        """Answer the searches for names that sources claim, and forget all."""
        waiting, self._waiting = self._waiting, {}
        for number, ((name, _), (host, tell)) in enumerate(waiting.items(), 1):
            if any(source.claims(name, host) for source in sources):
                tell()
            if not number % _AT_ONCE:
                await asyncio.sleep(0)

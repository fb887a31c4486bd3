"""Used tokens in memory, for tests of the judgement on tokens; the certificate service keeps them in its database."""

from __future__ import annotations

import heapq


class MemoryReplayStore:
    """Used tokens in memory, for one process that may forget them at a restart."""

    __slots__ = ("_by_end", "_forgotten_until", "_limit", "_used")

    def __init__(self, *, limit: int = 1_000_000) -> None:
        self._used: set[tuple[str, str]] = set()
        self._by_end: list[tuple[float, tuple[str, str]]] = []
        self._forgotten_until = float("-inf")
        self._limit = limit

    async def use(
        self,
        issuer: str,
        token_hash: str,
        until: float,
        now: float,
        issued: float | None = None,
        *,
        key_id: str = "",
        usage: str = "",
    ) -> bool:
        """Record one use; see `ReplayStore.use`."""
        while self._by_end and (self._by_end[0][0] <= now or len(self._by_end) >= self._limit):
            end, token = heapq.heappop(self._by_end)
            self._used.discard(token)
            self._forgotten_until = max(self._forgotten_until, end)
        token = (issuer, token_hash)
        # After the clock was set back, or with a full store, a token from the forgotten time may have been used.
        if token in self._used or until <= self._forgotten_until:
            return False
        self._used.add(token)
        heapq.heappush(self._by_end, (until, token))
        return True

    async def repeats(self, issuer: str, token_hash: str, now: float, *, key_id: str, usage: str) -> int:
        """Know nothing of keys: nobody repeats a use."""
        return 0

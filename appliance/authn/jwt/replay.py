"""Used tokens: each `jti` is accepted once until its token expires."""

from __future__ import annotations

import heapq
from typing import Final, Protocol

__all__ = ["MemoryReplayStore", "ReplayStore"]

_MAX_TOKENS: Final = 1_000_000


class ReplayStore(Protocol):
    """Remembers used tokens. The certificate service keeps them in its database, also across restarts."""

    async def use(
        self, issuer: str, token_hash: str, until: float, now: float, issued: float | None = None
    ) -> bool:
        """Record the use of a token, atomically.

        Args:
            issuer: The token's issuer.
            token_hash: SHA-256 of its jti, in hex.
            until: From this time on the token is refused as too old anyway (POSIX seconds).
            now: The present time (POSIX seconds).
            issued: When it was issued, if it says so (POSIX seconds).

        Returns:
            False if it was used before, or if that is not known. If this raises, the token is refused.
        """
        ...


class MemoryReplayStore:
    """Used tokens in memory, for one process that may forget them at a restart: tests and quick starts."""

    __slots__ = ("_by_end", "_forgotten_until", "_limit", "_used")

    def __init__(self, *, limit: int = _MAX_TOKENS) -> None:
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

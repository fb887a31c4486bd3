"""Used tokens: each `jti` is accepted once until its token expires."""

from __future__ import annotations

from typing import Final, Protocol

__all__ = ["USED_BEFORE", "ReplayStore"]

USED_BEFORE: Final = "the token was used before; fetch a new one"


class ReplayStore(Protocol):
    """Remembers used tokens. The certificate service keeps them in its database, also across restarts."""

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
        """Record the use of a token, atomically.

        Args:
            issuer: The token's issuer.
            token_hash: SHA-256 of its jti, in hex.
            until: From this time on the token is refused as too old anyway (POSIX seconds).
            now: The present time (POSIX seconds).
            issued: When it was issued, if it says so (POSIX seconds).
            key_id: The key that the requester has proved to hold; empty if none.
            usage: What the certificate is for.

        Returns:
            False if it was used before, or if that is not known. If this raises, the token is refused.
        """
        ...

    async def repeats(self, issuer: str, token_hash: str, now: float, *, key_id: str, usage: str) -> int:
        """Return when a used token was used first, if it comes again soon from the holder of the same key and for the same usage.

        Its holder may have lost the answer. Who asks this has to see to it that it did.

        Returns:
            POSIX seconds; 0 if it does not come again in this way.

        Args:
            issuer: The token's issuer.
            token_hash: SHA-256 of its jti, in hex.
            now: The present time (POSIX seconds).
            key_id: The key that the requester has proved to hold; empty if none.
            usage: What the certificate is for.
        """
        ...

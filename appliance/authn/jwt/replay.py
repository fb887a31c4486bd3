"""Used tokens: each `jti` is accepted once until its token expires."""

from __future__ import annotations

from typing import Protocol

__all__ = ["ReplayStore"]


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
            key_id: The key that the requester has proved to hold; empty if none. The same key may repeat a use for the same
                usage soon after the first one, because its holder may have lost the answer.
            usage: What the certificate is for.

        Returns:
            False if it was used before, or if that is not known. If this raises, the token is refused.
        """
        ...

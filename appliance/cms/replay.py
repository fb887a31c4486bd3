"""Used tokens in the database: each counts once, across restarts."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from appliance.cms.schema import replay
from appliance.cms.store import Store, Transaction

__all__ = ["StoredReplay"]

_USE: Final = sa.text(
    "INSERT INTO replay (issuer, token, until) VALUES (:issuer, :token, :until) ON CONFLICT DO NOTHING"
)
"""The primary key is what decides: one statement, which SQLite and PostgreSQL spell alike."""


class StoredReplay:
    """`appliance.authn.jwt.replay.ReplayStore` in the certificate database."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._swept = 0.0

    async def use(self, issuer: str, token_hash: str, until: float, now: float) -> bool:
        """Record a use, committed before this returns; False when the token was used before. Raises StoreError."""
        sweep = now - self._swept > 600
        if sweep:
            self._swept = now

        def job(transaction: Transaction) -> bool:
            connection = transaction.connection
            if sweep:
                # A day late: a clock that was set back must not make old tokens new.
                connection.execute(sa.delete(replay).where(replay.c.until < int(now) - 86400))
            row = {"issuer": issuer[:512], "token": token_hash, "until": int(until) + 1}
            return connection.execute(_USE, row).rowcount == 1

        return await self._store.submit(job)

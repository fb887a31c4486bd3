"""How many requests may wait for approval: all together, and those of one address, at whichever node they came in."""

from __future__ import annotations

from collections import Counter
from typing import Final

import sqlalchemy as sa

from appliance.certs.status import CertState
from appliance.cms import schema
from appliance.cms.transaction import Transaction

__all__ = ["WaitingRequests"]

_MOST: Final = 10_000
_MOST_OF_ONE: Final = 500
"""Limits for requests that wait for approval: all, and those of one address."""
_C: Final = schema.certs.c
_WAIT: Final = (_C.issuer == sa.bindparam("by"), _C.state == CertState.PENDING_APPROVAL.value)
_ALL: Final = sa.select(sa.func.count()).select_from(schema.certs).where(*_WAIT)
_BY_ADDRESS: Final = sa.select(_C.came_from, sa.func.count()).where(*_WAIT).group_by(_C.came_from)


class WaitingRequests:
    """The requests that wait for approval, counted inside the jobs that add to them.

    The database is asked once for all jobs of a commit.
    """

    def __init__(self) -> None:
        self._counted_in: Transaction | None = None
        self._all = 0
        self._by_address: Counter[str] = Counter()
        self._has_addresses = False

    def problem(self, transaction: Transaction, address: str) -> str:
        """Return why no other request of this address may wait; empty if it may.

        Too many wait already, all together or of this address.
        """
        if self._counted_in is not transaction:
            transaction.flush()
            self._counted_in, self._has_addresses = transaction, False
            self._all = int(transaction.connection.execute(_ALL, {"by": transaction._issuer}).scalar_one())
            self._by_address.clear()
        if self._all < min(_MOST, _MOST_OF_ONE):
            return ""
        if self._all < _MOST and not self._has_addresses:
            transaction.flush()
            rows = transaction.connection.execute(_BY_ADDRESS, {"by": transaction._issuer})
            self._by_address = Counter({came_from: int(number) for came_from, number in rows})
            self._has_addresses = True
        if self._all >= _MOST or self._by_address[address] >= _MOST_OF_ONE:
            return (
                f"{self._all} requests wait for approval, so no more are accepted now; ask an administrator to approve or "
                "deny them"
            )
        return ""

    def add(self, transaction: Transaction, address: str) -> None:
        """Count a request that the same transaction has just added."""
        if self._counted_in is transaction:
            self._all += 1
            self._by_address[address] += 1

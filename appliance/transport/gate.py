"""The seam where live certificate status plugs in, at either end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from appliance.pva.credentials import Credentials
from appliance.pva.status import Status

__all__ = ["PeerGate"]


class PeerGate(Protocol):
    """Decides about peers by what lies outside the connection: the status of their certificates."""

    def watch(self, credentials: Credentials, verdict: Callable[[Status], None]) -> Callable[[], None]:
        """Call ``verdict`` as soon as it is known whether the peer may go on, and whenever that changes.

        Until the first call the connection waits; after one that is not ok it is closed. Returns what to call
        when the peer has gone.
        """

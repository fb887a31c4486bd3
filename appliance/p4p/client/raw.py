"""The client that reports by callbacks."""

from __future__ import annotations

from appliance.p4p._errors import Cancelled, Disconnected, Finished, RemoteError

__all__ = ["Cancelled", "Disconnected", "Finished", "RemoteError"]

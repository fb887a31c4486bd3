"""The blocking client: safe from any thread."""

from __future__ import annotations

from appliance.p4p._errors import Cancelled, Disconnected, Finished, RemoteError, TimeoutError

__all__ = ["Cancelled", "Disconnected", "Finished", "RemoteError", "TimeoutError"]

"""What all connections of one server share."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from appliance.pva.limits import Limits
from appliance.server.access import AccessControl
from appliance.server.admission import Entrance
from appliance.server.pump import Pump
from appliance.server.quota import Shares

__all__ = ["ServerEnd"]


class ServerEnd(NamedTuple):
    """The parts of a server that each of its connections uses."""

    entrance: Entrance
    """Decides which clients are let in."""
    access: AccessControl
    """Decides what clients may do."""
    shares: Shares
    """What each client's address uses of this server."""
    pump: Pump
    """Sends the updates that wait."""
    loop: asyncio.AbstractEventLoop
    """Runs them all, and measures the time."""
    limits: Limits
    """The most that one connection may have."""
    segment_size: int
    """Octets above which messages leave in segments; 0 sends them whole."""

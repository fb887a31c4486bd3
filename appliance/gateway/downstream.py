"""One server side: what it serves, and on which terms."""

from __future__ import annotations

import os
from collections.abc import Sequence

from appliance.config.pva import ServerConfig
from appliance.gateway.accounts import InFlight
from appliance.gateway.certificates import CertificateNames
from appliance.gateway.config import Bounds, ServerSide
from appliance.gateway.names import NewNames, Promises
from appliance.gateway.relay import ServiceRelay
from appliance.gateway.route import Router
from appliance.gateway.source import RoutedSource
from appliance.gateway.upstreams import Upstreams
from appliance.pva.credentials import Credentials
from appliance.pva.search import GUID_SIZE
from appliance.server.server import Server
from appliance.server.source import StaticSource

__all__ = ["Downstream"]


class Downstream:
    """One server side of the gateway. Its GUID exists before any client starts, so that none takes it for a server.

    Args:
        name: The side's name in the configuration.
        side: Its configuration.
        config: The settings of its server.
        router: Says which names are served to whom.
        flight: Counts the requests that wait for answers of servers; all sides share it.
        prefix: The first part of the names of the certificate service's PVs.
    """

    def __init__(
        self,
        name: str,
        side: ServerSide,
        config: ServerConfig,
        router: Router,
        flight: InFlight,
        *,
        prefix: str = "CERT",
    ) -> None:
        self.name = name
        self.side = side
        self.config = config
        self.router = router
        self.flight = flight
        self.guid = os.urandom(GUID_SIZE)
        relay = side.relay
        self.certificates = CertificateNames(prefix, () if relay is None else relay.names)
        """The PVs that need TLS between the client and the certificate service itself."""
        self.relay = (
            None
            if relay is None
            else ServiceRelay(name, relay, self.certificates, config, lambda: self.router)
        )
        self.source: RoutedSource | None = None
        self.server: Server | None = None
        """The server, once it runs."""
        self._queue_size = 16
        self._status: StaticSource | None = None

    # -- Terms ---------------------------------------------------------------------------------------

    @property
    def get_holdoff_s(self) -> float:
        """Seconds between two reads of one PV at its server."""
        return self.side.get_holdoff

    @property
    def queue_size(self) -> int:
        """``record[queueSize]`` of shared subscriptions."""
        return self._queue_size

    def may_bypass(self, name: str, peer: Credentials) -> bool:
        """Whether a client may have a subscription of its own at the server (UNCACHED)."""
        del name, peer
        return True

    # -- start ---------------------------------------------------------------------------------------

    def connect(
        self, clients: Sequence[Upstreams], new_names: NewNames, promises: Promises, bounds: Bounds
    ) -> None:
        """Show the names of the client sides."""
        self._queue_size = max((client.queue_size for client in clients), default=16)
        if not clients:
            return  # it shows the gateway's own PVs only
        self.source = RoutedSource(self.router, clients, self, new_names, promises, bounds.open_patience_s)

    def show_status(self, source: StaticSource) -> None:
        """Show the gateway's own PVs, and never those of a server behind it that have the same names."""
        self._status = source
        self.router.reserve(source.names())

    def prepare(self, server: Server) -> None:
        """Add the sources of this side to its server, before the first client can ask."""
        self.server = server
        if self._status is not None:
            server.add_source("status", self._status, priority=-1)
        if self.source is not None:
            server.add_source("gateway", self.source)
        if self.relay is not None:
            server.referrals.append(self.relay)

    @property
    def guids(self) -> frozenset[bytes]:
        """The GUIDs by which clients know this side: the gateway's own clients must not."""
        return frozenset({self.guid} if self.relay is None else {self.guid, self.relay.guid})

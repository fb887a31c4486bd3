"""One server side: what it serves, and on which terms."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from appliance.acf.match import host_of_peer
from appliance.config.pva import ServerConfig
from appliance.gateway.access import GatewayAccess
from appliance.gateway.accounts import InFlight
from appliance.gateway.certificates import CertificateNames
from appliance.gateway.config import Bounds, ServerSide
from appliance.gateway.files import ServerFiles
from appliance.gateway.forward import ForwardedPV
from appliance.gateway.names import NewNames, Promises
from appliance.gateway.putlog import PutLog, Watched
from appliance.gateway.relay import ServiceRelay
from appliance.gateway.route import Route, Router
from appliance.gateway.source import RoutedSource
from appliance.gateway.upstreams import Upstreams
from appliance.pva import commands as c
from appliance.pva.credentials import Credentials
from appliance.pva.octets import RawArgument
from appliance.pva.search import GUID_SIZE
from appliance.pvdata.value import Value
from appliance.server.operation import Operation
from appliance.server.server import Server
from appliance.server.source import StaticSource

__all__ = ["Downstream"]


class Downstream:
    """One server side of the gateway. Its GUID exists before any client starts, so that none takes it for a server.

    Args:
        name: The side's name in the configuration.
        side: Its configuration.
        config: The settings of its server.
        files: Its PV list and its access security.
        flight: Counts the requests that wait for answers of servers; all sides share it.
        prefixes: The first parts of the names of certificate services' PVs.
        read_only: Refuse everything that may change something.

    Raises:
        ConfigurationError: The put log cannot be opened.
    """

    def __init__(
        self,
        name: str,
        side: ServerSide,
        config: ServerConfig,
        files: ServerFiles,
        flight: InFlight,
        *,
        prefixes: Iterable[str] = ("CERT",),
        read_only: bool = False,
    ) -> None:
        self.name = name
        self.side = side
        self.config = config
        self.router = Router(files.pvlist)
        self.access = GatewayAccess(name, side, self.router, files.security, read_only=read_only)
        self.put_log = PutLog(name, side.put_log, required=side.put_log_required)
        self.flight = flight
        self.guid = os.urandom(GUID_SIZE)
        relay = side.relay
        self.certificates = CertificateNames(prefixes, () if relay is None else relay.names)
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
        return self.access.may_bypass(name, peer)

    def watch_put(self, operation: Operation, real: str, value: Value | RawArgument | None) -> Watched | None:
        """Log a put that must be logged, before it is sent; raises OperationError if it must not be sent."""
        if not self.access.traps(operation.name, operation.peer):
            return None
        if isinstance(value, RawArgument):
            value = value.value()
        return self.put_log.begin(operation, real, value)

    # -- start ---------------------------------------------------------------------------------------

    def connect(
        self, clients: Sequence[Upstreams], new_names: NewNames, promises: Promises, bounds: Bounds
    ) -> None:
        """Show the names of the client sides."""
        self._queue_size = max((client.queue_size for client in clients), default=16)
        if not clients:
            return  # it shows the gateway's own PVs only
        self.source = RoutedSource(self.router, clients, self, new_names, promises, bounds.open_patience_s)
        self.access.permitted = self._permitted

    def _permitted(self, route: Route) -> int:
        """Return what the server of a name permits the gateway."""
        if self.source is None or self.certificates.covers(route.real_name):
            # What the gateway must not do for others is refused with a sentence of its own, which says what to do.
            return c.PERMIT_ALL
        return self.source.permissions(route)

    # -- reload --------------------------------------------------------------------------------------

    def use(self, side: ServerSide, files: ServerFiles, *, read_only: bool) -> None:
        """Use other settings, another PV list and other rules. Channels that these do not allow close; clients search again.

        Settings of the server itself (addresses, ports, the names of client sides) stay as they were at the start.
        """
        self.side = side
        self.router.use(files.pvlist)
        self.access.use(side, files.security, read_only=read_only)
        self.access.report(files.pvlist)
        server = self.server
        if server is None:
            return
        for channel in list(server.channels()):
            handler = channel.handler
            if isinstance(handler, ForwardedPV):
                route = self.router.route(channel.name, host_of_peer(channel.peer.peer))
                if route is None or route.real_name != handler.upstream.name:
                    channel.close()
        server.review_access()

    # -- start ---------------------------------------------------------------------------------------

    def show_status(self, source: StaticSource) -> None:
        """Show the gateway's own PVs, and never those of a server behind it that have the same names."""
        self._status = source
        self.router.reserve(source.names())

    def prepare(self, server: Server) -> None:
        """Add the sources of this side to its server, before the first client can ask."""
        self.server = server
        self.access.review = server.review_access
        server.access.on_refused = lambda name, peer, right: self.put_log.refused(
            name, peer, right, lambda: self.access.why(name, peer, right)
        )
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

"""One server side: what it serves, and on which terms."""

from __future__ import annotations

import os
from collections.abc import Sequence

from appliance.config.pva import ServerConfig
from appliance.gateway.access import GatewayAccess
from appliance.gateway.config import Bounds, ServerSide
from appliance.gateway.files import ServerFiles
from appliance.gateway.names import NewNames, Promises
from appliance.gateway.putlog import PutLog, Watched
from appliance.gateway.route import Router
from appliance.gateway.source import RoutedSource
from appliance.gateway.upstreams import Upstreams
from appliance.pva.credentials import Credentials
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
        *,
        read_only: bool = False,
    ) -> None:
        self.name = name
        self.side = side
        self.config = config
        self.router = Router(files.pvlist)
        self.access = GatewayAccess(name, side, self.router, files.security, read_only=read_only)
        self.put_log = PutLog(name, side.put_log, required=side.put_log_required)
        self.guid = os.urandom(GUID_SIZE)
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

    def watch_put(self, operation: Operation, real: str, value: Value | None) -> Watched | None:
        """Log a put that must be logged, before it is sent; raises OperationError if it must not be sent."""
        if not self.access.traps(operation.name, operation.peer):
            return None
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
        self.access.permitted = self.source.permissions

    def show_status(self, source: StaticSource) -> None:
        """Show the gateway's own PVs, and never those of a server behind it that have the same names."""
        self._status = source
        self.router.reserve(source.names())

    def prepare(self, server: Server) -> None:
        """Add the sources of this side to its server, before the first client can ask."""
        self.server = server
        self.access.review = server.review_access
        server.access.on_refused = self.put_log.refused
        if self._status is not None:
            server.add_source("status", self._status, priority=-1)
        if self.source is not None:
            server.add_source("gateway", self.source)

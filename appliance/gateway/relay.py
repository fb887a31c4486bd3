"""The relay: a port behind which octets pass unread to the certificate service's TLS port.

A gateway ends TLS, so it cannot show a client the service's certificate, nor the service a client's. Clients that search for
the relayed names over TLS are sent to this port. It has a GUID of its own: a client moves all its channels of a GUID to TLS
as soon as one of them can be had there, and those of the gateway belong to the gateway.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import Final

from appliance.client.context import Context
from appliance.config.address import parse_endpoint
from appliance.config.networks import Networks
from appliance.config.pva import ServerConfig
from appliance.errors import ApplianceError, TransportError
from appliance.gateway.certificates import CertificateNames
from appliance.gateway.config import Relay
from appliance.gateway.route import Router
from appliance.pva.search import GUID_SIZE
from appliance.server.quota import who
from appliance.server.server import Place
from appliance.transport.address import SocketAddress
from appliance.transport.listener import listen
from appliance.transport.splice import Splices

__all__ = ["ServiceRelay"]

_log: Final = logging.getLogger(__name__)
_NOBODY: Final = Place(b"", 0)
_USUAL_PORT: Final = 5076
_PATIENCE_S: Final = 1.0
"""Seconds to wait for an answer of the service to one search."""
_QUIET_S: Final = 0.1
"""Seconds to wait for its second answer: each names one port, and that for TLS may come last."""
_AGAIN_S: Final = 2.0
"""Seconds between two searches while nobody answers and clients ask."""
_TOLD_FOR_S: Final = 60.0


class ServiceRelay:
    """The relay of one server side.

    Args:
        side: The server side's name in the configuration, for the log.
        relay: The relay's configuration.
        names: Knows the names that it is for.
        config: The settings of the side's server: the addresses that it listens on.
        router: Says which names are served to whom.
    """

    def __init__(
        self, side: str, relay: Relay, names: CertificateNames, config: ServerConfig, router: Router
    ) -> None:
        self.guid = os.urandom(GUID_SIZE)
        self.router = router
        self.port = 0
        """The port, once it is open."""
        self.splices = Splices(self, trusted=Networks(relay.proxy_from).__contains__)
        self._side = side
        self._relay = relay
        self._names = names
        self._config = config
        self._context: Context | None = None
        self._listeners: list[asyncio.Server] = []
        self._address: SocketAddress | None = None
        """Where the service is; None while that is not known."""
        self._looking: asyncio.Task[None] | None = None
        self._looked_at = -_AGAIN_S
        self._told_at = -_TOLD_FOR_S
        self._loop = asyncio.get_running_loop()

    async def start(self, context: Context) -> None:
        """Open the port and look for the service.

        Args:
            context: The client side through which the service is looked for.

        Raises:
            TransportError: The port cannot be opened. Firewalls name it, so no other one takes its place.
        """
        self._context = context
        # An address of the list may have a port; it is that of the server.
        endpoints = tuple(endpoint._replace(port=None) for endpoint in self._config.intf_addr_list)
        self.port, self._listeners = await listen(
            self.splices.accept, endpoints, self._relay.tls_port, "the relay", _log, strict=True
        )
        self._look()
        _log.info(
            "the server side %s relays to the certificate service on TLS port %d", self._side, self.port
        )

    def close(self) -> None:
        """Close the port and end all connections."""
        for listener in self._listeners:
            listener.close()
        self._listeners = []
        if self._looking is not None:
            self._looking.cancel()
        self.splices.close()

    # -- Referral ------------------------------------------------------------------------------------

    def refer(self, name: str, host: str) -> Place | None:
        """Return the relay's place for a name that it is for, if the PV list shows it; "nowhere" while there is no service."""
        if not self._names.relays(name):
            return None
        route = self.router.route(name, host)
        # The service reads the client's own octets: it knows nothing of another name that the PV list gives.
        if route is None or route.real_name != name:
            return None
        if self._address is None:
            self._look()
            return _NOBODY
        return Place(self.guid, self.port)

    # -- SpliceOwner ---------------------------------------------------------------------------------

    async def target(self) -> SocketAddress:
        """Return the service's address."""
        if self._address is None:
            self._look()
            if self._looking is not None:
                await asyncio.shield(self._looking)
        if self._address is None:
            raise TransportError(
                "the certificate service is not found; check that it runs and that the client side reaches it, or name it in "
                f"servers.{self._side}.relay.service"
            )
        return self._address

    def unreachable(self, address: SocketAddress) -> None:
        """Look for the service again."""
        if self._address == address:
            self._address = None
            self._looked_at = -_AGAIN_S
            self._look()

    def unanswered(self, address: SocketAddress, here: str) -> None:
        """Tell once a minute that the service ends connections before TLS has begun."""
        now = self._loop.time()
        if now - self._told_at >= _TOLD_FOR_S:
            self._told_at = now
            _log.warning(
                "the certificate service at %s ends connections of the relay before TLS has begun; its log says why: perhaps its "
                "proxy_from does not name %s",
                address,
                here,
            )

    def host_key(self, host: str) -> str:
        """Return what counts as one host."""
        return who(host)

    # -- the service ---------------------------------------------------------------------------------

    def _look(self) -> None:
        """Look for the service, unless this has just been done."""
        now = time.monotonic()
        if (
            self._looking is not None
            or now - self._looked_at < _AGAIN_S
            or self._context is None
            or not self._listeners
        ):
            return
        self._looked_at = now
        self._looking = self._loop.create_task(self._find(), name="relay looks for the certificate service")
        self._looking.add_done_callback(self._found)

    def _found(self, task: asyncio.Task[None]) -> None:
        self._looking = None
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.warning("the certificate service cannot be looked for: %s", error)

    async def _find(self) -> None:
        if self._relay.service:
            endpoint = parse_endpoint(self._relay.service, uri=True)
            try:
                found = await self._loop.getaddrinfo(endpoint.host, endpoint.port or _USUAL_PORT, type=1)
            except OSError as error:
                raise TransportError(
                    f"{endpoint.host} has no address: {error.strerror}; correct servers.{self._side}.relay.service"
                ) from error
            self._address = SocketAddress(str(found[0][4][0]), int(found[0][4][1]))
            return
        assert self._context is not None
        places = await self._context.locate(self._relay.names[0], patience_s=_PATIENCE_S, quiet_s=_QUIET_S)
        secure = [place for place in places if place.tls]
        if secure:
            self._address = SocketAddress(secure[0].host, secure[0].port)
            _log.info("the certificate service is at %s", self._address)
        elif places:
            raise ApplianceError("the server that has it offers no TLS; give it a keychain")

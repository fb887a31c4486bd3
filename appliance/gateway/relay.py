"""The relay: a port behind which octets pass unread to the certificate service's TLS port.

A gateway ends TLS, so it cannot show a client the service's certificate, nor the service a client's. Clients that search for
the relayed names over TLS are sent to this port. It has a GUID of its own: a client moves all its channels of a GUID to TLS
as soon as one of them can be had there, and those of the gateway belong to the gateway.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import socket
from collections.abc import Callable, Hashable
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
_SEARCH_S: Final = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.0, 6.0, 12.0, 30.0)
"""Seconds to wait for an answer to one search for the service after the other; the last one for ever."""
_QUIET_S: Final = 0.1
"""Seconds to wait for its second answer: each names one port, and that for TLS may come last."""
_TRY_S: Final = 3.0
"""Seconds to wait for a connection to one of several nodes, before the next one is tried."""
_HURRY_AT: Final = 5
"""The first of these waits that a client's question ends early."""
_MAX_PROMISES: Final = 1000
_PROMISE_S: Final = 10.0
_TOLD_FOR_S: Final = 60.0


class ServiceRelay:
    """The relay of one server side.

    Args:
        side: The server side's name in the configuration, for the log.
        relay: The relay's configuration.
        names: Knows the names that it is for.
        config: The settings of the side's server: the addresses that it listens on.
        router: Gives what says which names are served to whom.
    """

    def __init__(
        self,
        side: str,
        relay: Relay,
        names: CertificateNames,
        config: ServerConfig,
        router: Callable[[], Router],
    ) -> None:
        self.guid = os.urandom(GUID_SIZE)
        self._router = router
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
        self._asked = asyncio.Event()
        """Set by a client's question, which makes a long wait shorter."""
        self._promises: dict[Hashable, tuple[float, Callable[[Place], None]]] = {}
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

    @property
    def trouble(self) -> str:
        """What is wrong; "" if nothing is."""
        if self._address is not None:
            return ""
        return f"the relay of the server side {self._side} has not found the certificate service"

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
        if not self._names.relays(name) or not self._shows(name, host):
            return None
        if self._address is None:
            self._asked.set()
            return _NOBODY
        return Place(self.guid, self.port)

    def promise(self, key: Hashable, tell: Callable[[Place], None]) -> None:
        """Answer a search when the service is found, unless that takes long."""
        promises = self._promises
        promises.pop(key, None)
        if len(promises) >= _MAX_PROMISES:
            del promises[next(iter(promises))]
        promises[key] = (self._loop.time() + _PROMISE_S, tell)

    # -- SpliceOwner ---------------------------------------------------------------------------------

    async def target(self) -> SocketAddress:
        """Return the service's address."""
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
            self._look()

    def unanswered(self, address: SocketAddress, here: str) -> None:
        """Tell once a minute that the service ends connections before TLS has begun."""
        self._tell(
            "the certificate service at %s ends connections of the relay before TLS has begun; its log says why: perhaps its "
            "proxy_from does not name %s",
            address,
            here,
        )

    def host_key(self, host: str) -> str:
        """Return what counts as one host."""
        return who(host)

    def admits(self, host: str) -> bool:
        """Whether the PV list shows a host one of the relay's names that it shows to others."""
        shown = [name for name in self._relay.names if self._shows(name, "")]
        return not shown or any(self._shows(name, host) for name in shown)

    def _shows(self, name: str, host: str) -> bool:
        """Whether the PV list shows a name to a host. The service reads the client's octets: it does not know aliases."""
        route = self._router().route(name, host)
        return route is not None and route.real_name == name

    # -- the service ---------------------------------------------------------------------------------

    def _look(self) -> None:
        """Look for the service until it is found."""
        if self._looking is None and self._listeners:
            self._looking = self._loop.create_task(
                self._find(), name="relay looks for the certificate service"
            )
            self._looking.add_done_callback(self._looked)

    def _looked(self, task: asyncio.Task[None]) -> None:
        self._looking = None
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("the certificate service is not looked for any more: %s", error)

    async def _find(self) -> None:
        assert self._context is not None
        for number in itertools.count():
            wait_s = _SEARCH_S[min(number, len(_SEARCH_S) - 1)]
            since = self._loop.time()
            try:
                address = await self._named() if self._relay.services else await self._search(wait_s)
            except ApplianceError as error:
                address = None
                self._tell("the certificate service cannot be reached: %s", error)
            if address is not None:
                self._found(address)
                return
            self._asked.clear()
            left = wait_s - (self._loop.time() - since)
            if number < _HURRY_AT:
                await asyncio.sleep(left)
                continue
            with contextlib.suppress(TimeoutError):
                # A client that asks gets a search of its own, but not each client at any time.
                await asyncio.sleep(min(_SEARCH_S[_HURRY_AT], left))
                async with asyncio.timeout(left - _SEARCH_S[_HURRY_AT]):
                    await self._asked.wait()

    async def _search(self, wait_s: float) -> SocketAddress | None:
        assert self._context is not None
        places = await self._context.locate(self._relay.names[0], patience_s=wait_s, quiet_s=_QUIET_S)
        for place in places:
            if place.tls:
                return SocketAddress(place.host, place.port)
        if places:
            raise TransportError(f"{places[0].host}:{places[0].port} offers no TLS; give it a keychain")
        return None

    async def _named(self) -> SocketAddress:
        """Return the first of the places in the settings that takes connections; a single one is not tried."""
        services = self._relay.services
        if len(services) == 1:
            return await self._resolve(services[0])
        problems = []
        for service in services:
            try:
                address = await self._resolve(service)
                async with asyncio.timeout(_TRY_S):
                    _, stream = await asyncio.open_connection(address.host, address.port)
            except (TransportError, OSError) as error:  # TimeoutError is one, too
                problems.append(str(error) or f"{service} has not answered in {_TRY_S:.0f} s")
                continue
            stream.transport.abort()
            return address
        raise TransportError("; ".join(problems))

    async def _resolve(self, service: str) -> SocketAddress:
        endpoint = parse_endpoint(service, uri=True)
        try:
            found = await self._loop.getaddrinfo(
                endpoint.host, endpoint.port or _USUAL_PORT, type=socket.SOCK_STREAM
            )
        except OSError as error:
            raise TransportError(
                f"{endpoint.host} has no address: {error.strerror}; correct servers.{self._side}.relay.service"
            ) from error
        return SocketAddress(str(found[0][4][0]), int(found[0][4][1]))

    def _found(self, address: SocketAddress) -> None:
        self._address = address
        _log.info("the certificate service is at %s", address)
        place = Place(self.guid, self.port)
        promises, self._promises = self._promises, {}
        now = self._loop.time()
        for until, tell in promises.values():
            if now < until:
                tell(place)

    def _tell(self, text: str, *arguments: object) -> None:
        """Log a warning, but not more than one in a minute."""
        now = self._loop.time()
        if now - self._told_at >= _TOLD_FOR_S:
            self._told_at = now
            _log.warning(text, *arguments)

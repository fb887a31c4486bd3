"""Makes the server known: answers searches and sends beacons (sections 7 and 10)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Protocol

from appliance.config.address import Endpoint
from appliance.config.pva import ServerConfig
from appliance.errors import TransportError
from appliance.pva import commands as c
from appliance.pva.search import Beacon, Datagram, SearchRequest, SearchResponse, pack_message
from appliance.transport.address import is_multicast
from appliance.transport.interfaces import broadcast_addresses, interface_addresses
from appliance.transport.udp import Origin, UDPPort, resolve_datagram_address

__all__ = ["Announcer"]

_log: Final = logging.getLogger(__name__)
_BURST: Final = 10
_ANY: Final = "0.0.0.0"  # noqa: S104 - "every address" is what is looked for
_SLOWER: Final = 12
"""After a burst of ten beacons the period grows by this factor (pvxs: 15 s, then 180 s)."""


class Announced(Protocol):
    """A server that wants to be found."""

    @property
    def config(self) -> ServerConfig:
        """The server's settings: the addresses that it listens on and sends beacons to."""

    def answer_search(
        self, request: SearchRequest, host: str, later: Callable[[SearchResponse], None] | None = None
    ) -> tuple[SearchResponse, ...]:
        """Return the answers to a search from the address ``host``; ``later`` sends one that comes late."""

    def beacon(self, number: int) -> Beacon | None:
        """Return the beacon of this number; None if the server does not want to be found at present."""


class _Answerer:
    """Answers the searches of one client: equal for all of them."""

    __slots__ = ("_answer", "_origin")

    def __init__(self, answer: Callable[[Origin, SearchResponse], None], origin: Origin) -> None:
        self._answer = answer
        self._origin = origin

    def __call__(self, response: SearchResponse) -> None:
        self._answer(self._origin, response)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Answerer) and self._origin == other._origin

    def __hash__(self) -> int:
        return hash(self._origin)


class Announcer:
    """The search sockets of one server, and its beacons.

    Args:
        server: Answers searches and makes beacons.
    """

    def __init__(self, server: Announced) -> None:
        self._server = server
        self._ports: list[UDPPort] = []
        self._sent = 0
        self._burst_end = _BURST
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._ignored: frozenset[tuple[str, int]] = frozenset()
        self._own: frozenset[str] = frozenset()
        """IPv4 addresses that the server listens on; empty means all."""
        self._by_address: dict[str, UDPPort] = {}
        """The sockets for one IPv4 address each."""

    @property
    def port(self) -> int:
        """The UDP port in use."""
        return self._ports[0].port

    async def start(self) -> None:
        """Open the search port and begin to send beacons. Raises TransportError."""
        config = self._server.config
        groups = []
        own = set()
        ipv6 = []
        for endpoint in config.intf_addr_list:
            resolved = await resolve_datagram_address(endpoint, 0)
            if resolved is None:
                raise TransportError(
                    f"the interface address {endpoint} does not resolve; correct EPICS_PVAS_INTF_ADDR_LIST"
                )
            host = resolved.host
            if ":" in host:
                ipv6.append((host, endpoint.interface or ""))
            elif is_multicast(host):
                groups.append((host, endpoint.interface or ""))
            else:
                own.add(host)
        every = not config.intf_addr_list or _ANY in own
        if not every:
            self._own = frozenset(own)
        ignored = set()
        for endpoint in config.ignore_addr_list:
            resolved = await resolve_datagram_address(endpoint, 0)
            if resolved is None:
                raise TransportError(
                    f"the ignored address {endpoint} does not resolve; correct EPICS_PVAS_IGNORE_ADDR_LIST"
                )
            ignored.add((resolved.host, endpoint.port or 0))
        self._ignored = frozenset(ignored)
        if every or own or groups:
            self._listen_ipv4(config.broadcast_port, tuple(groups))
        self._listen_ipv6(ipv6, every=every)
        self._beacon()

    def _listen_ipv4(self, port: int, groups: tuple[tuple[str, str], ...]) -> None:
        """Listen on all addresses at once, for broadcasts and groups, and on each for itself."""
        first = UDPPort(self._message, port=port, shared=True, groups=groups)
        self._ports.append(first)
        self._listen_to_addresses()

    def _listen_to_addresses(self) -> None:
        """Open a socket for each served address of the host, so that no other process gets its unicast by chance."""
        if not self._ports or self._ports[0].is_ipv6:
            return
        first = self._ports[0]
        wanted = self._own or {str(item.address) for item in interface_addresses()}
        for address in [address for address in self._by_address if address not in wanted]:
            self._by_address.pop(address).close()
        for address in wanted - self._by_address.keys():
            try:
                self._by_address[address] = UDPPort(
                    self._message, port=first.port, shared=True, address=address, forwarder=first
                )
            except TransportError as error:
                _log.debug(
                    "no socket for %s alone: %s; its searches arrive at the socket for all addresses",
                    address,
                    error,
                )

    def _listen_ipv6(self, listed: list[tuple[str, str]], *, every: bool) -> None:
        """Listen on the IPv6 addresses and groups that are listed, or on all addresses."""
        groups = tuple((host, interface) for host, interface in listed if is_multicast(host))
        hosts = [host for host, _ in listed if not is_multicast(host)]
        if not hosts and (every or groups):
            hosts = ["::"]
        for host in hosts:
            port = self._ports[0].port if self._ports else self._server.config.broadcast_port
            try:
                self._ports.append(
                    UDPPort(self._message, port=port, shared=True, address=host, groups=groups)
                )
            except TransportError as error:
                if listed:
                    raise
                _log.debug("searches over IPv6 are not answered: %s", error)
            groups = ()

    def stop(self) -> None:
        """Close the ports."""
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
        for port in (*self._ports, *self._by_address.values()):
            port.close()

    # -- searches ------------------------------------------------------------------------------------

    def _message(self, message: Datagram, origin: Origin) -> None:
        if not isinstance(message, SearchRequest):
            return
        source, port = origin.source, origin.address.port
        if self._ignored and not self._ignored.isdisjoint(((source, 0), (source, port))):
            return
        if self._own and ":" not in source and origin.received_on and origin.received_on not in self._own:
            return  # the client would be sent to an address that nobody listens on
        send = _Answerer(self._answer, origin)
        for response in self._server.answer_search(message, source, send):
            send(response)

    def _answer(self, origin: Origin, response: SearchResponse) -> None:
        data = pack_message(c.CMD_SEARCH_RESPONSE, response.encode(), from_server=True)
        port_ = origin.port or self._ports[0]
        if not port_.send(data, origin.address, local=origin.local):
            _log.debug("the answer to a search from %s:%d could not be sent", *origin.address)

    # -- beacons -------------------------------------------------------------------------------------

    def _beacon(self) -> None:
        loop = asyncio.get_running_loop()
        self._listen_to_addresses()  # interfaces come and go
        self._task = loop.create_task(self._send_beacons())
        period = self._server.config.beacon_period
        self._timer = loop.call_later(
            period if self._sent < self._burst_end else period * _SLOWER, self._beacon
        )

    def hurry(self) -> None:
        """Send a burst of beacons as at the start: clients must learn of a change soon."""
        if self._timer is not None:
            self._timer.cancel()
            self._burst_end = self._sent + _BURST
            self._beacon()

    async def _send_beacons(self) -> None:
        beacon = self._server.beacon(self._sent)
        if beacon is None:
            return
        config = self._server.config
        data = pack_message(c.CMD_BEACON, beacon.encode(), from_server=True)
        self._sent += 1
        targets = list(config.beacon_addr_list)
        if config.auto_beacon_addr_list:
            only = frozenset(endpoint.host for endpoint in config.intf_addr_list)
            targets += [Endpoint(address) for address in broadcast_addresses(only)]
        for endpoint in targets:
            resolved = await resolve_datagram_address(endpoint, self.port)
            if resolved is None:
                continue
            udp = next((port for port in self._ports if port.is_ipv6 is (":" in resolved.host)), None)
            if udp is None:
                continue  # no socket of that kind: the server listens on addresses of the other kind only
            if endpoint.ttl is not None or is_multicast(resolved.host):
                udp.send_multicast(data, resolved, ttl=endpoint.ttl or 1, interface=endpoint.interface or "")
            else:
                udp.send(data, resolved)

"""The sockets that searches leave by, the addresses that they go to, and the sockets that hear beacons (section 7)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, NamedTuple

from appliance.client.end import ClientEnd
from appliance.config.address import Endpoint
from appliance.pva import commands as c
from appliance.pva.search import Datagram, SearchRequest, pack_message
from appliance.transport.address import format_address, is_multicast
from appliance.transport.interfaces import broadcast_addresses
from appliance.transport.udp import Origin, UDPPort, resolve_datagram_address

__all__ = ["SearchPorts"]

_log: Final = logging.getLogger(__name__)

_LIMITED: Final = "255.255.255.255"
_LOOPBACK: Final = "127.255.255.255"


class _Target(NamedTuple):
    """One address that each search goes to."""

    address: tuple[str, int]
    ttl: int
    interface: str
    multicast: bool
    unicast: bool


class SearchPorts:
    """Sends searches to all addresses of the configuration, and receives answers and beacons.

    Args:
        end: What the parts of this client share.
        answered: Receives the datagrams of the sockets that send searches.
        beacon: Receives the datagrams of the sockets for beacons.
    """

    def __init__(
        self,
        end: ClientEnd,
        answered: Callable[[Datagram, Origin], None],
        beacon: Callable[[Datagram, Origin], None],
    ) -> None:
        self._end = end
        self._answered = answered
        self._beacon = beacon
        self._port: UDPPort | None = None
        self._port6: UDPPort | None = None
        self._beacon_ports: list[UDPPort] = []
        self._targets: list[_Target] = []
        self._resolved_at = -end.timings.resolve_s
        self._resolving: asyncio.Task[None] | None = None
        self._warned: set[str] = set()

    async def start(self, *, beacons: bool) -> None:
        """Open the sockets. ``beacons`` also listens for new servers."""
        self._port = UDPPort(self._answered)
        await self._resolve()
        if beacons:
            self.listen_for_beacons()

    def listen_for_beacons(self) -> None:
        """Share the broadcast port to receive beacons; without beacons only our own searches find servers."""
        if self._beacon_ports:
            return
        from appliance.errors import TransportError

        config = self._end.config
        groups = [
            (item.host, item.interface or "") for item in config.intf_addr_list if is_multicast(item.host)
        ]
        # Only addresses that receive no unicast: otherwise we would take searches from a server on this host.
        hosts = dict.fromkeys((*broadcast_addresses(), _LIMITED, _LOOPBACK))
        for host, interface in [*((host, "") for host in hosts), *groups]:
            joined = ((host, interface),) if is_multicast(host) else ()
            scope = f"%{interface}" if ":" in host and interface else ""
            try:
                port = UDPPort(
                    self._beacon,
                    port=config.broadcast_port,
                    shared=True,
                    address=host + scope,
                    groups=joined,
                )
            except TransportError as error:
                _log.debug("cannot receive beacons to %s: %s", host, error)
            else:
                self._beacon_ports.append(port)
        if not self._beacon_ports:
            _log.warning(
                "cannot receive beacons on UDP port %d; new servers are found by searches only",
                config.broadcast_port,
            )

    def stop(self) -> None:
        """Close everything."""
        if self._resolving is not None:
            self._resolving.cancel()
        for port in (self._port, self._port6, *self._beacon_ports):
            if port is not None:
                port.close()

    @property
    def reply_port(self) -> int:
        """The UDP port that receives answers to searches."""
        assert self._port is not None
        return self._port.port

    # -- where to ------------------------------------------------------------------------------------

    def expect_moved_servers(self) -> None:
        """Resolve names again soon: a lost server may come back with the same name at another address."""
        timings = self._end.timings
        self._resolved_at = min(
            self._resolved_at, self._end.now() - timings.resolve_s + timings.resolve_holdoff_s
        )

    def _resolve_when_stale(self) -> None:
        """Resolve the names of the address list again if that was long ago."""
        is_stale = self._end.now() - self._resolved_at >= self._end.timings.resolve_s
        if is_stale and (self._resolving is None or self._resolving.done()):
            self._resolving = self._end.loop.create_task(self._resolve())

    async def _resolve(self) -> None:
        config = self._end.config
        endpoints = list(config.addr_list)
        broadcasts: list[str] = []
        if config.auto_addr_list:
            broadcasts = broadcast_addresses(frozenset(endpoint.host for endpoint in config.intf_addr_list))
            endpoints += [Endpoint(address) for address in broadcasts]
        targets: dict[_Target, None] = {}
        for endpoint in endpoints:
            address = await resolve_datagram_address(endpoint, config.broadcast_port)
            if address is None:
                if endpoint.host not in self._warned:
                    self._warned.add(endpoint.host)
                    _log.warning(
                        "EPICS_PVA_ADDR_LIST: cannot find the address of %s at present; trying again later",
                        endpoint.host,
                    )
                continue
            self._warned.discard(endpoint.host)
            host, _ = address
            multicast = is_multicast(host)
            if ":" in host and not self._open_ipv6():
                continue
            unicast = not multicast and host not in broadcasts and not host.endswith(".255")
            targets[_Target(address, endpoint.ttl or 1, endpoint.interface or "", multicast, unicast)] = None
        self._targets = list(targets)
        self._resolved_at = self._end.now()

    def _open_ipv6(self) -> bool:
        """Open a socket for IPv6 if needed; return whether the host supports IPv6."""
        if self._port6 is None:
            from appliance.errors import TransportError

            try:
                self._port6 = UDPPort(self._answered, address="::")
            except TransportError as error:
                if "ipv6" not in self._warned:
                    self._warned.add("ipv6")
                    _log.warning(
                        "EPICS_PVA_ADDR_LIST names IPv6 addresses, but this host has no IPv6: %s", error
                    )
                return False
        return True

    # -- sending -------------------------------------------------------------------------------------

    def broadcast(self, request: SearchRequest) -> None:
        """Send ``request`` to all addresses."""
        assert self._port is not None
        self._resolve_when_stale()
        packed: dict[tuple[bool, bool], bytes] = {}
        debugging = _log.isEnabledFor(logging.DEBUG)
        for target in self._targets:
            host, _ = target.address
            is_ipv6 = ":" in host
            port = self._port6 if is_ipv6 else self._port
            if port is None:
                continue
            data = packed.get((is_ipv6, target.unicast))
            if data is None:
                told = request._replace(unicast=target.unicast, reply_port=port.port)
                data = pack_message(c.CMD_SEARCH, told.encode(), from_server=False)
                packed[is_ipv6, target.unicast] = data
            if target.multicast:
                sent = port.send_multicast(data, target.address, ttl=target.ttl, interface=target.interface)
            else:
                sent = port.send(data, target.address)
            if not sent:
                _log.debug("cannot send a search to %s", format_address(target.address))
            elif debugging:
                _log.debug("%s <- SEARCH (%d octets)", format_address(target.address), len(data))

"""UDP: searches, their answers and beacons.

A datagram must be answered from the address that it was sent to, or a client behind a firewall or with
several networks never hears the answer: the kernel tells that address with each datagram (IP_PKTINFO), and
``send`` takes it back.

Several servers on one host share the search port. The kernel gives a broadcast or multicast to all of them, a
unicast to only one: that one hands it to all through the group 224.0.0.128 on loopback, with the place to answer
written into it. Source: PVAccess protocol specification 7.4 and 14, pvxs ``udp_collector.cpp``.

Any process of the host may open the search port too, and the kernel gives unicast to the socket that was opened last,
unless another one is bound to the very address. So a server has a socket for each address of the host besides the one
for all, and who listens for beacons only binds what no unicast comes to: broadcast addresses and groups.

IPv6 has no broadcast, and unicast over it is not handed on, as with PVXS: the last server of a host has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from struct import Struct
from time import monotonic
from typing import Final, NamedTuple

from appliance.config.address import Endpoint
from appliance.errors import DecodeError, TransportError
from appliance.pva import commands as c
from appliance.pva.search import Datagram, OriginTag, SearchRequest, decode_datagram, pack_message
from appliance.pvdata.pace import Pace
from appliance.transport.address import SocketAddress, format_address

__all__ = ["LOCAL_GROUP", "Origin", "UDPPort", "resolve_datagram_address"]

LOCAL_GROUP: Final = "224.0.0.128"
_PKTINFO: Final = Struct("=I4s4s")
_PKTINFO6: Final = Struct("@16sI")
_IP_PKTINFO: Final = getattr(socket, "IP_PKTINFO", 8)
_ANCILLARY_SIZE: Final = max(socket.CMSG_SPACE(_PKTINFO.size), socket.CMSG_SPACE(_PKTINFO6.size))
_ANY: Final = "0.0.0.0"  # noqa: S104 - in a multicast request it means the default interface
_MREQ: Final = Struct("4s4s")
_MREQ6: Final = Struct("@16sI")
_READS_PER_TURN: Final = 64
_TURN_S: Final = 0.001
"""Seconds and datagrams after which the event loop gets its turn: a flood of searches must not starve connections.
A datagram may hold sixty names or more; what the kernel cannot keep meanwhile is lost, and searched for again."""
_LONG: Final = 2048
"""Octets of a datagram that no client sends: it is worked on in pieces."""
_RECEIVE_BUFFER: Final = 1 << 20


class Origin(NamedTuple):
    """Where a message came from and how to answer it."""

    address: SocketAddress
    """The address to answer to."""
    source: str
    """The sender's address; of a forwarded search, the address in it."""
    local: str
    """Our address that the answer must be sent from; empty lets the kernel choose."""
    received_on: str = ""
    """Our address that the message was sent to, whichever socket of this host got it; empty if not known."""
    port: UDPPort | None = None
    """The socket that got it, which can answer."""


class UDPPort:
    """One UDP socket, of IPv4 or IPv6 as its address is.

    Args:
        on_message: Called with each message of each datagram, and where it came from.
        port: The port; 0 takes a free one.
        shared: Whether other sockets of the host may use the same port, and get the unicast searches that come here.
        address: The address to listen on.
        groups: Pairs of a multicast group to join and the name or address of the interface to join it on.
        forwarder: The socket that hands unicast searches on, where that is not this one.

    Raises:
        TransportError: The port cannot be bound, or a group cannot be joined.
    """

    __slots__ = (
        "_forwarder",
        "_goes_on",
        "_loop",
        "_on_message",
        "_pace",
        "_sock",
        "_until",
        "forwards",
        "is_ipv6",
        "port",
    )

    def __init__(
        self,
        on_message: Callable[[Datagram, Origin], None],
        *,
        port: int = 0,
        shared: bool = False,
        address: str = _ANY,
        groups: tuple[tuple[str, str], ...] = (),
        forwarder: UDPPort | None = None,
    ) -> None:
        """Open the socket; needs a running event loop."""
        self.is_ipv6 = ":" in address
        self._forwarder = forwarder
        self._on_message = on_message
        self._loop = asyncio.get_running_loop()
        self._pace: Pace | None = None
        """The datagram in hand if one turn was too short for it; else None."""
        self._goes_on = False
        self._until = 0.0
        self.forwards = shared
        sock = socket.socket(socket.AF_INET6 if self.is_ipv6 else socket.AF_INET, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            if shared:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
            if self.is_ipv6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
                sock.bind(_socket_address((address, port)))
            else:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
                sock.bind((address, port))
            self.port: int = sock.getsockname()[1]
            if shared and address == _ANY:
                self._join(sock, LOCAL_GROUP, "127.0.0.1")
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
        except OSError as error:
            sock.close()
            where = f"UDP port {port}" if address == _ANY else f"UDP {format_address((address, port))}"
            raise TransportError(f"cannot open {where}: {error.strerror or error}") from error
        for group, interface in groups:
            if not self._join(sock, group, interface):
                sock.close()
                raise TransportError(
                    f"cannot join multicast group {group} on interface {interface or 'default'}"
                )
        self._sock = sock
        self._loop.add_reader(sock.fileno(), self._readable)

    @staticmethod
    def _join(sock: socket.socket, group: str, interface: str) -> bool:
        if ":" in group:
            return _join_ipv6(sock, group, interface)
        try:
            membership = _MREQ.pack(socket.inet_aton(group), _interface(interface))
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Close the socket."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            if self._pace is not None:
                self._pace.drop()
                self._pace = None
            self._sock.close()

    def _readable(self) -> None:
        if not self._goes_on:
            self._work()

    def _go_on(self) -> None:
        self._goes_on = False
        if self._sock.fileno() >= 0:
            self._work()

    def _due(self) -> bool:
        return monotonic() > self._until

    def _work(self) -> None:
        """Handle waiting datagrams for a millisecond; the datagram in hand comes first."""
        self._until = monotonic() + _TURN_S
        for count in range(_READS_PER_TURN):
            if self._pace is not None:
                try:
                    if not self._pace.go_on():
                        self._goes_on = True
                        self._loop.call_soon(self._go_on)
                        return
                except DecodeError:
                    pass  # not PVAccess
                self._pace = None
            if count and self._due():
                return
            try:
                data, ancillary, _, source = self._sock.recvmsg(0x10000, _ANCILLARY_SIZE)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                continue  # an ICMP error of an earlier send; the socket itself is sound
            target = local = ""
            for level, kind, value in ancillary:
                if level == socket.IPPROTO_IP and kind == _IP_PKTINFO and len(value) >= _PKTINFO.size:
                    _, spec_dst, destination = _PKTINFO.unpack_from(value)
                    local = socket.inet_ntoa(spec_dst)
                    target = socket.inet_ntoa(destination)
                elif (
                    level == socket.IPPROTO_IPV6
                    and kind == socket.IPV6_PKTINFO
                    and len(value) >= _PKTINFO6.size
                ):
                    where = IPv6Address(_PKTINFO6.unpack_from(value)[0])
                    local = "" if where.is_multicast else str(where)
            if self.is_ipv6:
                host, port, _, scope = source
                source = (f"{host}%{scope}" if scope else host, port)
            if len(data) > _LONG:
                # It may hold thousands of names, and each of them has to be looked up.
                self._pace = Pace(partial(self._datagram, data, source, target, local), self._due)
                continue
            try:  # noqa: SIM105 - a context manager for each datagram costs more
                self._datagram(data, source, target, local)
            except DecodeError:
                pass  # it was not PVAccess

    def _datagram(self, data: bytes, source: tuple[str, int], target: str, local: str) -> None:
        forwarded = target == LOCAL_GROUP
        unicast = bool(target) and target == local
        host, port = source
        received_on = "" if forwarded else local
        for message in decode_datagram(data):
            if isinstance(message, OriginTag):
                if forwarded and message.address is not None and not message.address.is_multicast:
                    received_on = str(message.address)
                continue
            if not isinstance(message, SearchRequest):
                if not forwarded:
                    self._on_message(message, Origin(SocketAddress(host, port), host, local, port=self))
                continue
            reply_port = message.reply_port or port
            if message.reply_address is not None:
                if (
                    isinstance(message.reply_address, IPv6Address) is not self.is_ipv6
                    or message.reply_address.is_multicast
                ):
                    continue  # we have no way to it, and amplify no one's attack
                reply_host = str(message.reply_address)
            elif forwarded:
                continue  # the forwarder wrote no address to answer to
            else:
                reply_host = host
            reply = SocketAddress(reply_host, reply_port)
            if forwarded:
                # The datagram came from a socket of this host: its own addresses say nothing about the client.
                self._on_message(message, Origin(reply, reply_host, received_on, received_on, self))
            elif not (unicast and self.forwards and self._forward(message, reply, local)):
                self._on_message(message, Origin(reply, host, local, received_on, self))

    def _forward(self, request: SearchRequest, reply: SocketAddress, local: str) -> bool:
        """Forward a unicast search to every server of this host, ourselves included; return whether this worked."""
        if self._forwarder is not None:
            return self._forwarder._forward(request, reply, local)
        told = request._replace(unicast=False, reply_address=ip_address(reply.host), reply_port=reply.port)
        tag = pack_message(c.CMD_ORIGIN_TAG, OriginTag(IPv4Address(local)).encode(), from_server=False)
        try:
            self._sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
            self._sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)
            self._sock.sendto(
                tag + pack_message(c.CMD_SEARCH, told.encode(), from_server=False), (LOCAL_GROUP, self.port)
            )
        except OSError:
            return False
        return True

    def send(self, data: bytes, address: tuple[str, int], *, local: str = "") -> bool:
        """Send one datagram, from ``local`` if that is an address of ours; return whether the kernel took it."""
        if self.is_ipv6:
            return self._send_ipv6(data, address, local)
        if local:
            info = _PKTINFO.pack(0, socket.inet_aton(local), bytes(4))
            with contextlib.suppress(OSError):
                self._sock.sendmsg([data], [(socket.IPPROTO_IP, _IP_PKTINFO, info)], 0, address)
                return True
        try:
            self._sock.sendto(data, address)
        except OSError:
            return False
        return True

    def _send_ipv6(self, data: bytes, address: tuple[str, int], local: str) -> bool:
        try:
            where = _socket_address(address)
            if local:
                info = _PKTINFO6.pack(socket.inet_pton(socket.AF_INET6, local), where.scope)
                with contextlib.suppress(OSError):
                    self._sock.sendmsg([data], [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, info)], 0, where)
                    return True
            self._sock.sendto(data, where)
        except OSError:
            return False
        return True

    def send_multicast(self, data: bytes, address: tuple[str, int], *, ttl: int, interface: str) -> bool:
        """Send one datagram to a group, by the interface of that name or address."""
        try:
            if self.is_ipv6:
                where = _socket_address(address)
                index = _interface_index(interface) if interface else where.scope
                self._sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, ttl)
                self._sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
                self._sock.sendto(data, where)
                return True
            self._sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, ttl)
            self._sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, _interface(interface))
            self._sock.sendto(data, address)
        except OSError:
            return False
        return True


def _interface(interface: str) -> bytes:
    """Return the packed address of an interface by its address or name; raise OSError if there is none."""
    if not interface or interface[0].isdigit():
        return socket.inet_aton(interface or _ANY)
    from appliance.transport.interfaces import interface_addresses

    index = socket.if_nametoindex(interface)
    for item in interface_addresses():
        if item.interface == index:
            return item.address.packed
    raise OSError(f"the interface {interface} has no IPv4 address")


def _join_ipv6(sock: socket.socket, group: str, interface: str) -> bool:
    """Join the group on one interface, or on all that allow it; return whether any did."""
    address, _, scope = group.partition("%")
    joined = False
    try:
        named = interface or scope
        indices = [_interface_index(named)] if named else [index for index, _ in socket.if_nameindex()]
        packed = socket.inet_pton(socket.AF_INET6, address)
    except OSError:
        return False
    for index in indices:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, _MREQ6.pack(packed, index))
            joined = True
    return joined


def _interface_index(interface: str) -> int:
    """Return the number of an interface by its name, its number or an address of it; raise OSError if there is none."""
    if interface.isdecimal():
        return int(interface)
    if "." not in interface and ":" not in interface:
        return socket.if_nametoindex(interface)
    from appliance.transport.interfaces import interface_addresses

    for item in interface_addresses():
        if str(item.address) == interface:
            return item.interface
    raise OSError(f"no interface has the address {interface}")


class _IPv6SocketAddress(NamedTuple):
    """An IPv6 address as sockets take it."""

    host: str
    port: int
    flow: int
    scope: int
    """The number of the interface; 0 leaves it to the kernel."""


def _socket_address(address: tuple[str, int]) -> _IPv6SocketAddress:
    """Return an IPv6 address as sockets use it; a scope such as ``%eth0`` becomes its number. Raises OSError."""
    full, port = address
    host, _, scope = full.partition("%")
    return _IPv6SocketAddress(host, port, 0, _interface_index(scope) if scope else 0)


async def resolve_datagram_address(endpoint: Endpoint, default_port: int) -> SocketAddress | None:
    """Return the host's address, IPv4 if it has both; None if its name does not resolve at present."""
    port = endpoint.port or default_port
    try:
        return SocketAddress(str(ip_address(endpoint.host)), port)
    except ValueError:
        pass
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(endpoint.host, port, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):  # the latter: it cannot be the name of a host, as "a..b"
        return None
    for wanted in (socket.AF_INET, socket.AF_INET6):
        for family, _, _, _, address in found:
            if family == wanted:
                return SocketAddress(str(address[0]), port)
    return None

"""Addresses of sockets, and how they are printed."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any, NamedTuple

__all__ = ["NOWHERE", "SocketAddress", "format_address", "is_loopback", "is_multicast"]


class SocketAddress(NamedTuple):
    """A host's address and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return format_address(self)


NOWHERE = SocketAddress("", 0)
"""The address of a socket that is not connected."""


def format_address(address: tuple[Any, ...]) -> str:
    """Print a socket address: ``10.0.0.1:5075`` or ``[::1]:5075``; an IPv4-mapped address as IPv4."""
    host, port = str(address[0]), address[1]
    if host.startswith("::ffff:") and "." in host:
        host = host[7:]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_multicast(host: str) -> bool:
    """Whether ``host`` is the address of a group, of IPv4 or IPv6."""
    try:
        return ip_address(host.partition("%")[0]).is_multicast
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Whether ``host`` is an address of loopback, of IPv4 (also mapped into IPv6) or IPv6."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback

"""The host's IPv4 addresses and their broadcast addresses, asked of the kernel (rtnetlink(7), RTM_GETADDR)."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address
from struct import Struct
from typing import Final, NamedTuple

__all__ = ["InterfaceAddress", "broadcast_addresses", "interface_addresses"]

_NLMSG: Final = Struct("=IHHII")
_IFADDRMSG: Final = Struct("=BBBBi")
_RTATTR: Final = Struct("=HH")
_RTM_NEWADDR: Final = 20
_RTM_GETADDR: Final = 22
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_REQUEST_DUMP: Final = 0x301
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_IFA_BROADCAST: Final = 4


class InterfaceAddress(NamedTuple):
    """One IPv4 address of one interface."""

    interface: int
    address: IPv4Address
    broadcast: IPv4Address | None
    """None on loopback and point-to-point interfaces."""


def interface_addresses() -> list[InterfaceAddress]:
    """Return all IPv4 addresses; none if the kernel cannot be asked (a sandbox without AF_NETLINK)."""
    found: list[InterfaceAddress] = []
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
            sock.settimeout(1.0)
            sock.bind((0, 0))
            body = _IFADDRMSG.pack(socket.AF_INET, 0, 0, 0, 0)
            sock.send(_NLMSG.pack(_NLMSG.size + len(body), _RTM_GETADDR, _REQUEST_DUMP, 1, 0) + body)
            while _read(sock.recv(65536), found):
                pass
    except OSError:
        return []
    return found


def _read(data: bytes, found: list[InterfaceAddress]) -> bool:
    """Read the addresses from one answer of the kernel; return whether more answers follow."""
    pos = 0
    while pos + _NLMSG.size <= len(data):
        size, kind, _, _, _ = _NLMSG.unpack_from(data, pos)
        if kind in (_NLMSG_DONE, _NLMSG_ERROR) or size < _NLMSG.size:
            return False
        if kind == _RTM_NEWADDR:
            _, _, _, _, index = _IFADDRMSG.unpack_from(data, pos + _NLMSG.size)
            attributes: dict[int, bytes] = {}
            at = pos + _NLMSG.size + _IFADDRMSG.size
            while at + _RTATTR.size <= pos + size:
                length, name = _RTATTR.unpack_from(data, at)
                if length < _RTATTR.size:
                    break
                attributes[name] = data[at + _RTATTR.size : at + length]
                at += (length + 3) & ~3
            raw = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
            if raw is not None:
                broadcast = attributes.get(_IFA_BROADCAST)
                found.append(
                    InterfaceAddress(index, IPv4Address(raw), IPv4Address(broadcast) if broadcast else None)
                )
        pos += (size + 3) & ~3
    return True


def broadcast_addresses(only: frozenset[str] = frozenset()) -> list[str]:
    """Return the broadcast addresses of all interfaces, or of those with an address in ``only``.

    A host with nothing but loopback has none; then searches go to 127.255.255.255, which every socket on
    the host that listens on all addresses hears.
    """
    addresses = interface_addresses()
    found = [
        str(item.broadcast)
        for item in addresses
        if item.broadcast is not None and (not only or str(item.address) in only)
    ]
    if not found and (not only or any(address.startswith("127.") for address in only)):
        return ["127.255.255.255"]
    return list(dict.fromkeys(found))

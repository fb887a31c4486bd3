"""The header of the PROXY protocol, version 2: a relay tells the server behind it which client it speaks for.

Pure: octets in, addresses out. Only the binary form is read; the text form (version 1) is refused.
Source: HAProxy's proxy-protocol.txt, section 2.2.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address
from struct import Struct
from typing import Final, NamedTuple

from appliance.errors import DecodeError
from appliance.transport.address import SocketAddress, is_loopback

__all__ = ["MAX_HEADER", "SIGNATURE", "Header", "ProxyReader", "check_client", "pack"]

SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
"""The first twelve octets. No TLS record begins with the first of them."""
_FIXED: Final = 16
_MOST_BEHIND: Final = 536
"""Octets behind the fixed part that are accepted: addresses of any kind, and some extensions."""
MAX_HEADER: Final = _FIXED + _MOST_BEHIND
"""Octets of the longest header that is accepted."""
_VERSION: Final = 0x20
_LOCAL: Final = 0x20
_PROXY: Final = 0x21
_TCP4: Final = 0x11
_TCP6: Final = 0x21
_LENGTH: Final = Struct(">H")
_ADDRESSES4: Final = Struct(">4s4sHH")
_ADDRESSES6: Final = Struct(">16s16sHH")
_EXTENSION: Final = 3
"""Octets of an extension's type and length."""


class Header(NamedTuple):
    """What a header says."""

    source: SocketAddress | None
    """The client; None if the relay speaks for itself (LOCAL)."""
    destination: SocketAddress | None
    """The address that the client connected to; None with LOCAL."""


class ProxyReader:
    """Reads one header, however it is cut into pieces.

    At most `MAX_HEADER` octets are kept; the first wrong octet is refused without waiting for more.
    """

    __slots__ = ("_kept", "rest")

    def __init__(self) -> None:
        self._kept = bytearray()
        self.rest = b""
        """What came behind the header, once it is complete."""

    @property
    def begun(self) -> bool:
        """Whether a part of a header has come."""
        return bool(self._kept)

    def feed(self, data: bytes) -> Header | None:
        """Take what has come.

        Args:
            data: Octets, in order.

        Returns:
            The header; None while it is not complete.

        Raises:
            DecodeError: This is not a header that is accepted.
        """
        kept = self._kept
        kept += data
        start = bytes(kept[: len(SIGNATURE)])
        if not SIGNATURE.startswith(start):
            raise DecodeError("it does not begin with the signature of the PROXY protocol, version 2")
        if len(kept) > 12 and kept[12] not in (_LOCAL, _PROXY):
            what = "version" if kept[12] & 0xF0 != _VERSION else "command"
            raise DecodeError(
                f"the octet 0x{kept[12]:02x} names a {what} of the PROXY protocol that is not known"
            )
        if len(kept) < _FIXED:
            return None
        (behind,) = _LENGTH.unpack_from(kept, 14)
        if behind > _MOST_BEHIND:
            raise DecodeError(f"{behind} octets behind the fixed part are more than {_MOST_BEHIND}")
        end = _FIXED + behind
        if len(kept) < end:
            return None
        self.rest = bytes(kept[end:])
        command, family, body = kept[12], kept[13], bytes(kept[_FIXED:end])
        kept.clear()
        if command == _LOCAL:
            return Header(None, None)  # the addresses and their family, if any, mean nothing
        return _read(family, body)


def check_client(header: Header, relay: str) -> SocketAddress | None:
    """Return the client that a relay at the address ``relay`` speaks for; None if it speaks for itself.

    Raises:
        DecodeError: A relay on another host says that the client is on this one.
    """
    client = header.source
    if client is not None and is_loopback(client.host) and not is_loopback(relay):
        raise DecodeError(f"{client.host} is an address of this host, and the relay is on another one")
    return client


def _read(family: int, body: bytes) -> Header:
    if family == _TCP4:
        size, found = _ADDRESSES4.size, _ADDRESSES4
    elif family == _TCP6:
        size, found = _ADDRESSES6.size, _ADDRESSES6
    else:
        raise DecodeError(
            f"the octet 0x{family:02x} names neither TCP over IPv4 nor TCP over IPv6, so the client has no address"
        )
    if len(body) < size:
        raise DecodeError(f"{len(body)} octets are too few for two addresses of its kind, which take {size}")
    source, destination, source_port, destination_port = found.unpack_from(body)
    at = size
    while at < len(
        body
    ):  # extensions say nothing that is needed here, but they must end where the header ends
        if len(body) - at < _EXTENSION:
            raise DecodeError("its last extension is cut off")
        at += _EXTENSION + _LENGTH.unpack_from(body, at + 1)[0]
    if at != len(body):
        raise DecodeError("its last extension is longer than the header")
    client = _address(source)
    if client.is_unspecified or client.is_multicast or not source_port:
        raise DecodeError(f"{client} port {source_port} cannot be the address of a client")
    return Header(
        SocketAddress(str(client), source_port), SocketAddress(str(_address(destination)), destination_port)
    )


def _address(octets: bytes) -> IPv4Address | IPv6Address:
    if len(octets) == 4:
        return IPv4Address(octets)
    address = IPv6Address(octets)
    return address.ipv4_mapped or address


def pack(source: SocketAddress | None, destination: SocketAddress | None) -> bytes:
    """Return a header.

    Args:
        source: The client; None: the relay speaks for itself.
        destination: The address that the client connected to.

    Returns:
        The octets to send before everything else.
    """
    if source is None or destination is None:
        return SIGNATURE + bytes((_LOCAL, 0, 0, 0))
    ends = [ip_address(end.host.partition("%")[0]) for end in (source, destination)]
    ends = [getattr(end, "ipv4_mapped", None) or end for end in ends]
    ports = (source.port, destination.port)
    if all(end.version == 4 for end in ends):
        return (
            SIGNATURE
            + bytes((_PROXY, _TCP4))
            + _sized(_ADDRESSES4.pack(ends[0].packed, ends[1].packed, *ports))
        )
    packed = [b"\0" * 10 + b"\xff\xff" + end.packed if end.version == 4 else end.packed for end in ends]
    return SIGNATURE + bytes((_PROXY, _TCP6)) + _sized(_ADDRESSES6.pack(*packed, *ports))


def _sized(body: bytes) -> bytes:
    return _LENGTH.pack(len(body)) + body

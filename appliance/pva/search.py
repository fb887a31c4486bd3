"""Finding PVs: SEARCH, SEARCH_RESPONSE, BEACON and ORIGIN_TAG, and how often to ask.

The same messages travel in UDP datagrams and, between a client and a name server, on the stream.

Source: PVAccess protocol specification, sections 7 (search), 10 (beacons) and 14 (origin tag).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address
from struct import Struct
from typing import Final, NamedTuple, TypeAlias

from appliance.errors import DecodeError, LocalProtocolError
from appliance.pva import commands as c
from appliance.pva.limits import DEFAULT_LIMITS, Limits
from appliance.pva.packing import HEADER, U16, U32
from appliance.pvdata.pace import breathe
from appliance.pvdata.primitives import Buffer, decode_size, decode_string, encode_size, encode_string

__all__ = [
    "GUID_SIZE",
    "MAX_DATAGRAM",
    "Beacon",
    "Datagram",
    "OriginTag",
    "SearchRequest",
    "SearchResponse",
    "are_one_service",
    "decode_datagram",
    "node_guid",
    "pack_message",
    "split_names",
]

Address: TypeAlias = IPv4Address | IPv6Address

GUID_SIZE: Final = 12
_NODE: Final = b"\xc5\x9e"
"""How the GUID of a server begins that is one of several of the same service."""
_NODE_SIZE: Final = 8
MAX_DATAGRAM: Final = 1400
"""Octets of a search datagram: what crosses an Ethernet without being cut in pieces."""

_SEARCH_HEAD: Final = (Struct("<IB3x16sH"), Struct(">IB3x16sH"))
_RESPONSE_HEAD: Final = (Struct("<12sI16sH"), Struct(">12sI16sH"))
_BEACON_HEAD: Final = (Struct("<12sBBH16sH"), Struct(">12sBBH16sH"))

_V4_PREFIX: Final = bytes(10) + b"\xff\xff"
_ANY: Final = IPv4Address(0)


def node_guid(service: bytes, own: bytes) -> bytes:
    """Return the GUID of one of several servers that are the same service, so that clients do not take them for a conflict.

    Args:
        service: What only these servers have in common.
        own: Random octets, four at least.
    """
    from hashlib import sha256  # tools import this module

    common = _NODE + sha256(service).digest()
    return common[:_NODE_SIZE] + own[: GUID_SIZE - _NODE_SIZE]


def are_one_service(one: bytes, other: bytes) -> bool:
    """Whether the servers with these GUIDs say that they are one service. It is a hint, and proves nothing."""
    return one.startswith(_NODE) and one[:_NODE_SIZE] == other[:_NODE_SIZE]


def _pack_address(address: Address | None) -> bytes:
    if address is None:
        address = _ANY
    return _V4_PREFIX + address.packed if isinstance(address, IPv4Address) else address.packed


def _unpack_address(raw: bytes) -> Address | None:
    """Return the address; None for "any", which means the address that the message came from."""
    if raw.startswith(_V4_PREFIX) or not any(raw[:12]):
        # pvAccessCPP writes an IPv4 address with twelve zero octets; ::1 alone looks like that too.
        if raw == IPv6Address(1).packed:
            return IPv6Address(raw)
        v4 = IPv4Address(raw[12:])
        return None if v4 == _ANY else v4
    return IPv6Address(raw)


class SearchRequest(NamedTuple):
    """The question which server has these names (section 7.1)."""

    sequence: int
    names: tuple[tuple[int, str], ...]
    """Pairs of search instance ID and PV name."""
    protocols: tuple[str, ...]
    must_reply: bool = False
    unicast: bool = False
    reply_address: Address | None = None
    """The address to answer to; None means the address that the datagram came from."""
    reply_port: int = 0

    def encode(self, *, big: bool = False) -> bytes:
        """Encode the payload."""
        flags = (c.SEARCH_MUST_REPLY if self.must_reply else 0) | (c.SEARCH_UNICAST if self.unicast else 0)
        u32 = U32[big]
        parts = [
            _SEARCH_HEAD[big].pack(self.sequence, flags, _pack_address(self.reply_address), self.reply_port),
            encode_size(len(self.protocols), big),
            *(encode_string(protocol, big) for protocol in self.protocols),
            U16[big].pack(len(self.names)),
        ]
        for number, (instance, name) in enumerate(self.names):
            if not number & 255:
                breathe()
            parts.append(u32.pack(instance))
            parts.append(encode_string(name, big))
        return b"".join(parts)

    @classmethod
    def decode(
        cls, buf: Buffer, pos: int, end: int, *, big: bool, limits: Limits = DEFAULT_LIMITS
    ) -> SearchRequest:
        """Decode a payload; raises DecodeError."""
        head = _SEARCH_HEAD[big]
        if end - pos < head.size:
            raise DecodeError("SEARCH is too short")
        sequence, flags, raw_address, port = head.unpack_from(buf, pos)
        pos += head.size
        count, pos = _count(buf, pos, end, big)
        protocols = []
        for _ in range(count):
            protocol, pos = decode_string(buf, pos, end, big)
            protocols.append(protocol)
        if end - pos < 2:
            raise DecodeError("SEARCH ends before its number of names")
        (count,) = U16[big].unpack_from(buf, pos)
        pos += 2
        if count > limits.max_search_names:
            raise DecodeError(f"SEARCH for {count} names exceeds the limit of {limits.max_search_names}")
        u32 = U32[big]
        names = []
        for number in range(count):
            if not number & 255:
                breathe()
            if end - pos < 5:
                raise DecodeError("SEARCH ends inside its list of names")
            (instance,) = u32.unpack_from(buf, pos)
            name, pos = decode_string(buf, pos + 4, end, big)
            if len(name) > limits.max_name:
                raise DecodeError(f"SEARCH for a name of {len(name)} characters, over {limits.max_name}")
            names.append((instance, name))
        return cls(
            sequence,
            tuple(names),
            tuple(protocols),
            bool(flags & c.SEARCH_MUST_REPLY),
            bool(flags & c.SEARCH_UNICAST),
            _unpack_address(raw_address),
            port,
        )


class SearchResponse(NamedTuple):
    """A server's answer (section 7.2). ``found`` is false in an answer that was only asked for by must_reply.

    pvAccessCPP lists the names that it was asked for in such an answer too: ``instances`` are only what is there.
    """

    guid: bytes
    sequence: int
    address: Address | None
    port: int
    protocol: str
    found: bool
    instances: tuple[int, ...]
    version: int = c.VERSION
    """The protocol version in the header that it came with."""

    def encode(self, *, big: bool = False) -> bytes:
        """Encode the payload."""
        u32 = U32[big]
        return b"".join(
            (
                _RESPONSE_HEAD[big].pack(self.guid, self.sequence, _pack_address(self.address), self.port),
                encode_string(self.protocol, big),
                b"\x01" if self.found else b"\x00",
                U16[big].pack(len(self.instances)),
                *(u32.pack(instance) for instance in self.instances),
            )
        )

    @classmethod
    def decode(cls, buf: Buffer, pos: int, end: int, *, big: bool) -> SearchResponse:
        """Decode a payload; raises DecodeError."""
        head = _RESPONSE_HEAD[big]
        if end - pos < head.size:
            raise DecodeError("SEARCH_RESPONSE is too short")
        guid, sequence, raw_address, port = head.unpack_from(buf, pos)
        protocol, pos = decode_string(buf, pos + head.size, end, big)
        if end - pos < 1:
            raise DecodeError("SEARCH_RESPONSE ends before its flag 'found'")
        found = buf[pos] != 0
        pos += 1
        instances: tuple[int, ...] = ()
        if end - pos >= 2:
            (count,) = U16[big].unpack_from(buf, pos)
            pos += 2
            if end - pos < 4 * count:
                raise DecodeError("SEARCH_RESPONSE ends inside its list of names")
            if found:
                instances = Struct(f"{'>' if big else '<'}{count}I").unpack_from(buf, pos)
        elif found:
            raise DecodeError("SEARCH_RESPONSE ends before its number of names")
        return cls(guid, sequence, _unpack_address(raw_address), port, protocol, found, instances)


class Beacon(NamedTuple):
    """A server says that it is alive (section 10.1)."""

    guid: bytes
    sequence: int
    change_count: int
    address: Address | None
    port: int
    protocol: str
    version: int = c.VERSION
    """The protocol version in the header that it came with."""

    def encode(self, *, big: bool = False) -> bytes:
        """Encode the payload; there is never a server status."""
        return (
            _BEACON_HEAD[big].pack(
                self.guid,
                0,
                self.sequence & 0xFF,
                self.change_count & 0xFFFF,
                _pack_address(self.address),
                self.port,
            )
            + encode_string(self.protocol, big)
            + b"\xff"
        )

    @classmethod
    def decode(cls, buf: Buffer, pos: int, end: int, *, big: bool) -> Beacon:
        """Decode a payload, whatever server status follows it; raises DecodeError."""
        head = _BEACON_HEAD[big]
        if end - pos < head.size:
            raise DecodeError("BEACON is too short")
        guid, _, sequence, change_count, raw_address, port = head.unpack_from(buf, pos)
        protocol, _ = decode_string(buf, pos + head.size, end, big)
        return cls(guid, sequence, change_count, _unpack_address(raw_address), port, protocol)


class OriginTag(NamedTuple):
    """The address of the interface by which the datagram first came in (section 14).

    A server that hands a unicast search on through the local multicast group puts it in front.
    """

    address: Address | None

    def encode(self) -> bytes:
        """Encode the payload."""
        return _pack_address(self.address)

    @classmethod
    def decode(cls, buf: Buffer, pos: int, end: int) -> OriginTag:
        """Decode a payload; raises DecodeError."""
        if end - pos < 16:
            raise DecodeError("ORIGIN_TAG is too short")
        return cls(_unpack_address(bytes(buf[pos : pos + 16])))


Datagram: TypeAlias = SearchRequest | SearchResponse | Beacon | OriginTag


def pack_message(command: int, payload: bytes, *, from_server: bool, big: bool = False) -> bytes:
    """Put the header in front of a payload."""
    flags = (c.FLAG_SERVER if from_server else 0) | (c.FLAG_BIG_ENDIAN if big else 0)
    return HEADER[big].pack(c.MAGIC, c.VERSION, flags, command, len(payload)) + payload


def decode_datagram(buf: Buffer, *, limits: Limits = DEFAULT_LIMITS) -> Iterator[Datagram]:
    """Return the messages of one datagram in order; commands that do not belong there are skipped.

    Raises DecodeError at the first malformed one: what came before it stands.
    """
    pos = 0
    end = len(buf)
    while end - pos >= 8:
        breathe()
        magic, version, flags, command, size = HEADER[0].unpack_from(buf, pos)
        if magic != c.MAGIC or version == 0:
            raise DecodeError("the datagram is not PVAccess")
        big = bool(flags & c.FLAG_BIG_ENDIAN)
        if flags & c.FLAG_CONTROL:
            pos += 8
            continue
        if big:
            size = HEADER[1].unpack_from(buf, pos)[4]
        pos += 8
        if size > end - pos or flags & c.FLAG_SEGMENT_MASK:
            raise DecodeError("a message in the datagram is truncated or segmented")
        after = pos + size
        if command == c.CMD_SEARCH:
            yield SearchRequest.decode(buf, pos, after, big=big, limits=limits)
        elif command == c.CMD_SEARCH_RESPONSE:
            response = SearchResponse.decode(buf, pos, after, big=big)
            yield response if version == c.VERSION else response._replace(version=version)
        elif command == c.CMD_BEACON:
            beacon = Beacon.decode(buf, pos, after, big=big)
            yield beacon if version == c.VERSION else beacon._replace(version=version)
        elif command == c.CMD_ORIGIN_TAG:
            yield OriginTag.decode(buf, pos, after)
        pos = after


def split_names(
    names: Iterable[tuple[int, str]], protocols: tuple[str, ...], *, room: int = MAX_DATAGRAM
) -> Iterator[tuple[tuple[int, str], ...]]:
    """Cut a list of names into the lists of searches that fit ``room`` octets each, header included.

    Raises LocalProtocolError for a name that fits none.
    """
    fixed = 8 + _SEARCH_HEAD[0].size + 1 + sum(1 + len(protocol) for protocol in protocols) + 2
    batch: list[tuple[int, str]] = []
    used = fixed
    for instance, name in names:
        cost = 4 + len(encode_string(name, False))
        if fixed + cost > room:
            raise LocalProtocolError(f"a PV name of {len(name)} characters does not fit a search datagram")
        if used + cost > room or len(batch) == 0xFFFF:
            yield tuple(batch)
            batch = []
            used = fixed
        batch.append((instance, name))
        used += cost
    if batch:
        yield tuple(batch)


def _count(buf: Buffer, pos: int, end: int, big: bool) -> tuple[int, int]:
    count, pos = decode_size(buf, pos, end, big)
    if count is None or count > end - pos:
        raise DecodeError("a list has more items than the message has octets")
    return count, pos

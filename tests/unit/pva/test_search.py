"""Datagrams: SEARCH, SEARCH_RESPONSE, BEACON and ORIGIN_TAG, octet for octet."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest

from appliance.errors import DecodeError, LocalProtocolError
from appliance.pva import commands as c
from appliance.pva.limits import Limits
from appliance.pva.search import (
    Beacon,
    OriginTag,
    SearchRequest,
    SearchResponse,
    decode_datagram,
    pack_message,
    split_names,
)
from tests.helpers.wire import frame, u16, u32

GUID = bytes(range(12))
V4 = bytes(10) + b"\xff\xff"
both = pytest.mark.parametrize("big", [False, True], ids=["little", "big"])


@both
def test_search(big):
    """Section 7.1."""
    octets = u32(7, big) + b"\x81\0\0\0" + V4 + b"\x0a\0\0\x01" + u16(5076, big) + b"\x01\x03tcp"
    octets += u16(1, big) + u32(3, big) + b"\x02pv"
    asked = SearchRequest(
        7,
        ((3, "pv"),),
        ("tcp",),
        must_reply=True,
        unicast=True,
        reply_address=IPv4Address("10.0.0.1"),
        reply_port=5076,
    )
    assert asked.encode(big=big) == octets
    assert list(decode_datagram(frame(3, octets, big=big))) == [asked]


@both
def test_search_for_servers_names_nothing(big):
    """A discovery ping: no protocol, no name, must reply (pvlist of every implementation)."""
    octets = u32(0, big) + b"\x01\0\0\0" + bytes(16) + u16(9, big) + b"\0" + u16(0, big)
    (asked,) = decode_datagram(frame(3, octets, big=big))
    assert asked == SearchRequest(0, (), (), must_reply=True, reply_port=9)


@both
def test_search_response(big):
    """Section 7.2; "any" means where the answer came from."""
    octets = GUID + u32(7, big) + V4 + bytes(4) + u16(5075, big) + b"\x03tcp\x01" + u16(2, big) + u32(3, big)
    octets += u32(4, big)
    answer = SearchResponse(GUID, 7, None, 5075, "tcp", True, (3, 4))
    assert answer.encode(big=big) == octets
    assert list(decode_datagram(frame(4, octets, server=True, big=big))) == [answer]


@pytest.mark.parametrize("tail", [b"", b"\0\0", b"\1\0" + u32(3)])
def test_negative_answers_name_nothing_whatever_they_say(tail):
    """pvAccessCPP lists the names that it has not; others leave the count out or send 0."""
    octets = GUID + u32(7) + V4 + bytes(4) + u16(5075) + b"\x03tcp\0" + tail
    assert list(decode_datagram(frame(4, octets, server=True))) == [
        SearchResponse(GUID, 7, None, 5075, "tcp", False, ())
    ]


@both
def test_beacon(big):
    """Section 10.1; a server status, if there is one, is passed over."""
    octets = GUID + b"\0\x05" + u16(258, big) + V4 + b"\x7f\0\0\x01" + u16(5075, big) + b"\x03tls\xff"
    beacon = Beacon(GUID, 5, 258, IPv4Address("127.0.0.1"), 5075, "tls")
    assert beacon.encode(big=big) == octets
    assert Beacon(GUID, 261, 65794, beacon.address, 5075, "tls").encode(big=big) == octets
    other = octets[:-1] + b"\x80\0\x01\x01x\x22" + u32(1, big)
    assert list(
        decode_datagram(frame(0, octets, server=True, big=big) + frame(0, other, server=True, big=big))
    ) == [
        beacon,
        beacon,
    ]


def test_origin_tag_precedes_what_it_tags():
    """Section 14."""
    tag = OriginTag(IPv4Address("192.168.1.2"))
    assert tag.encode() == V4 + bytes((192, 168, 1, 2))
    search = SearchRequest(1, ((1, "x"),), ("tcp",))
    data = pack_message(22, tag.encode(), from_server=True) + pack_message(
        3, search.encode(), from_server=False
    )
    assert list(decode_datagram(data)) == [tag, search]


@pytest.mark.parametrize(
    ("raw", "address"),
    [
        (V4 + bytes(4), None),
        (bytes(16), None),
        (bytes(12) + bytes((10, 1, 2, 3)), IPv4Address("10.1.2.3")),
        (V4 + bytes((10, 1, 2, 3)), IPv4Address("10.1.2.3")),
        (bytes(15) + b"\x01", IPv6Address("::1")),
        (b"\xfe\x80" + bytes(13) + b"\x01", IPv6Address("fe80::1")),
    ],
)
def test_addresses(raw, address):
    assert list(decode_datagram(frame(22, raw))) == [OriginTag(address)]


def test_other_messages_in_a_datagram_are_skipped():
    """Section 16.3, and control messages."""
    tag = frame(22, V4 + bytes(4))
    data = frame(99, b"abc") + bytes((0xCA, 2, 1, 0)) + u32(500) + frame(c.CMD_ECHO, b"") + tag + b"\xca\x02"
    assert list(decode_datagram(data)) == [OriginTag(None)]


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        frame(22, bytes(16), version=0),
        frame(22, bytes(16), flags=0x10),
        frame(22, bytes(16))[:-1],
        frame(22, bytes(15)),
        frame(3, bytes(10)),
        frame(3, bytes(26) + b"\xff" + u16(0)),
        frame(3, bytes(26) + b"\xfe\xff\xff\xff\xff"),
        frame(3, bytes(26) + b"\0" + u16(2) + u32(1) + b"\x01x"),
        frame(3, bytes(26) + b"\0" + u16(1) + u32(1) + b"\x05x"),
        frame(4, bytes(30)),
        frame(4, bytes(34) + b"\x03tcp\x01"),
        frame(4, bytes(34) + b"\x03tcp\x01" + u16(2) + u32(1)),
        frame(0, bytes(20)),
    ],
)
def test_malformed_datagrams_are_refused(data):
    with pytest.raises(DecodeError):
        list(decode_datagram(data))


def test_what_came_before_a_malformed_message_stands():
    messages = decode_datagram(frame(22, bytes(16)) + frame(3, b""))
    assert next(messages) == OriginTag(None)
    with pytest.raises(DecodeError):
        next(messages)


def test_limits():
    names = tuple((number, "x") for number in range(3))
    octets = frame(3, SearchRequest(1, names, ("tcp",)).encode())
    with pytest.raises(DecodeError, match="for 3 names exceeds the limit of 2"):
        list(decode_datagram(octets, limits=Limits(max_search_names=2)))
    octets = frame(3, SearchRequest(1, ((1, "x" * 9),), ("tcp",)).encode())
    with pytest.raises(DecodeError, match="a name of 9 characters, over 8"):
        list(decode_datagram(octets, limits=Limits(max_name=8)))


def test_names_are_split_so_that_each_search_fits():
    names = [(number, f"pv:{number:04}") for number in range(500)]
    batches = list(split_names(names, ("tls", "tcp")))
    assert [pair for batch in batches for pair in batch] == names
    sizes = [
        len(pack_message(3, SearchRequest(1, batch, ("tls", "tcp")).encode(), from_server=False))
        for batch in batches
    ]
    assert max(sizes) <= 1400
    assert min(sizes[:-1]) > 1400 - 12
    assert list(split_names([], ("tcp",))) == []
    with pytest.raises(LocalProtocolError, match="does not fit"):
        list(split_names([(1, "x" * 1400)], ("tcp",)))
    assert [len(batch) for batch in split_names([(1, "x")] * 70_000, ("tcp",), room=1 << 24)] == [65535, 4465]

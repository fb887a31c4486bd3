"""The PROXY protocol, version 2: octets of the specification, and whatever else a peer may send."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.config.networks import Networks
from appliance.errors import DecodeError
from appliance.transport.address import SocketAddress
from appliance.transport.proxy_header import MAX_HEADER, SIGNATURE, Header, ProxyReader, pack

START = "0d0a0d0a000d0a515549540a"
GOLDEN = {
    "TCP over IPv4": (
        START + "21 11 000c c0a80105 0a000001 d431 13d4",
        Header(SocketAddress("192.168.1.5", 54321), SocketAddress("10.0.0.1", 5076)),
    ),
    "TCP over IPv6": (
        START + "21 21 0024 20010db8000000000000000000000005 fd000000000000000000000000000001 d431 13d4",
        Header(SocketAddress("2001:db8::5", 54321), SocketAddress("fd00::1", 5076)),
    ),
    "LOCAL": (START + "20 00 0000", Header(None, None)),
}


def read(octets: bytes) -> Header | None:
    return ProxyReader().feed(octets)


@pytest.mark.parametrize("what", GOLDEN)
def test_octets_are_those_of_the_specification(what: str) -> None:
    octets, header = bytes.fromhex(GOLDEN[what][0]), GOLDEN[what][1]
    assert read(octets) == header
    assert pack(*header) == octets


def test_an_ipv4_address_that_is_mapped_into_ipv6_is_one_of_ipv4() -> None:
    source, to = SocketAddress("::ffff:192.168.1.5", 54321), SocketAddress("::ffff:10.0.0.1", 5076)
    assert pack(source, to).hex() == GOLDEN["TCP over IPv4"][0].replace(" ", "")
    mixed = pack(SocketAddress("192.168.1.5", 1), SocketAddress("fe80::1%eth0", 2))
    assert read(mixed) == Header(SocketAddress("192.168.1.5", 1), SocketAddress("fe80::1", 2))


def test_extensions_are_passed_over_and_so_is_what_local_says_of_addresses() -> None:
    tcp4 = bytes.fromhex(GOLDEN["TCP over IPv4"][0])
    extended = tcp4[:14] + b"\0\x14" + tcp4[16:] + b"\x04\0\x01x" + b"\xea\0\x01y"
    assert read(extended) == GOLDEN["TCP over IPv4"][1]
    for family in (0x00, 0x11, 0x31, 0xFF):
        assert read(SIGNATURE + bytes((0x20, family, 0, 5)) + b"12345") == Header(None, None)


REFUSED = {
    "version 1": (b"PROXY TCP4 192.168.1.5 10.0.0.1 54321 5076\r\n", "signature"),
    "TLS": (b"\x16\x03\x01", "signature"),
    "a wrong end of the signature": (SIGNATURE[:-1] + b"!", "signature"),
    "version 3": (SIGNATURE + b"\x31", "0x31 names a version"),
    "an unknown command": (SIGNATURE + b"\x22", "0x22 names a command"),
    "UDP": (SIGNATURE + b"\x21\x12\0\x0c" + bytes(12), "0x12 names neither TCP over IPv4 nor"),
    "a UNIX socket": (SIGNATURE + b"\x21\x31\0\xd8" + bytes(216), "0x31 names neither"),
    "an unspecified family": (SIGNATURE + b"\x21\0\0\0", "0x00 names neither"),
    "too short for its addresses": (SIGNATURE + b"\x21\x11\0\x0b" + bytes(11), "11 octets are too few"),
    "too long": (SIGNATURE + b"\x21\x11\x02\x19", "537 octets behind the fixed part are more than 536"),
    "a cut extension": (SIGNATURE + b"\x21\x11\0\x0e\1\1\1\1\2\2\2\2\1\1\1\1\x04\0", "extension is cut off"),
    "an extension that is too long": (
        SIGNATURE + b"\x21\x11\0\x0f\1\1\1\1\2\2\2\2\1\1\1\1\x04\0\x01", "longer than the header"
    ),
    "no address": (SIGNATURE + b"\x21\x11\0\x0c" + bytes(4) + b"\2\2\2\2\1\1\1\1", "cannot be the address"),
    "a group": (SIGNATURE + b"\x21\x11\0\x0c\xe0\0\0\1\2\2\2\2\1\1\1\1", "cannot be the address"),
    "no port": (SIGNATURE + b"\x21\x11\0\x0c\1\1\1\1\2\2\2\2\0\0\1\1", "cannot be the address"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_whatever_is_not_a_header_of_a_tcp_connection_is_refused(what: str) -> None:
    octets, why = REFUSED[what]
    with pytest.raises(DecodeError, match=why):
        read(octets)
    reader = ProxyReader()
    with pytest.raises(DecodeError, match=why):
        for octet in octets:
            assert reader.feed(bytes((octet,))) is None


addresses = st.one_of(
    st.integers(0x01000000, 0xDFFFFFFF).map(lambda number: str(IPv4Address(number))),
    st.integers(1 << 125, (1 << 126) - 1).map(lambda number: str(IPv6Address(number))),
)
ends = st.builds(SocketAddress, addresses, st.integers(1, 65535))


@given(ends, ends, st.binary(max_size=64), st.data())
def test_a_header_is_read_however_it_is_cut(
    source: SocketAddress, to: SocketAddress, behind: bytes, data: st.DataObject
) -> None:
    octets = pack(source, to) + behind
    cuts = data.draw(st.lists(st.integers(0, len(octets)), max_size=5).map(sorted))
    reader = ProxyReader()
    header, tail, at = None, b"", 0
    for cut in (*cuts, len(octets)):
        if header is None:
            header = reader.feed(octets[at:cut])
            tail = reader.rest
        else:
            tail += octets[at:cut]
        at = cut
    assert header == Header(source, to)
    assert tail == behind


@given(st.binary(max_size=2 * MAX_HEADER), st.booleans())
def test_no_octets_do_more_than_be_refused_and_few_are_kept(octets: bytes, signed: bool) -> None:
    reader = ProxyReader()
    try:
        header = reader.feed(SIGNATURE + octets if signed else octets)
    except DecodeError:
        return
    assert header is not None or len(octets) < MAX_HEADER


def test_networks_hold_addresses_in_every_form() -> None:
    relays = Networks(["10.0.0.5", "10.1.0.0/16", "fd00::/64"])
    for host in ("10.0.0.5", "::ffff:10.0.0.5", "10.1.255.1", "fd00::77", "fd00::77%eth0"):
        assert host in relays, host
    for host in ("10.0.0.6", "10.2.0.1", "fd00:0:0:1::1", "", "localhost"):
        assert host not in relays, host
    assert "10.0.0.5" not in Networks()


@pytest.mark.parametrize(
    ("item", "why"),
    [
        ("gateway.lab", "neither an address nor a network"),
        ("10.0.0.5/24", "host bits"),
        ("0.0.0.0/0", "means every address"),
        ("::/0", "means every address"),
    ],
)
def test_networks_refuse_names_and_the_whole_world(item: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Networks([item])

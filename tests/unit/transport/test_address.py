"""How addresses of sockets are printed, and which are of groups."""

from __future__ import annotations

import pytest

from appliance.transport.address import SocketAddress, format_address, is_multicast


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (("10.0.0.1", 5075), "10.0.0.1:5075"),
        (("::1", 5075, 0, 0), "[::1]:5075"),
        (("::ffff:10.0.0.1", 5075, 0, 0), "10.0.0.1:5075"),
        (("fe80::1%eth0", 1), "[fe80::1%eth0]:1"),
    ],
)
def test_an_address_is_printed_as_it_is_typed(address: tuple[object, ...], text: str) -> None:
    assert format_address(address) == text
    assert str(SocketAddress(*address[:2])) == text  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("host", "yes"),
    [
        ("224.0.0.128", True),
        ("ff02::42:1", True),
        ("ff02::42:1%eth0", True),
        ("10.0.0.1", False),
        ("::1", False),
        ("a.name", False),
    ],
)
def test_a_group_is_told_from_a_host(host: str, yes: bool) -> None:
    assert is_multicast(host) is yes

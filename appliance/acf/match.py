"""Comparing hosts and names: one form per address, and wildcards without backtracking."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final

__all__ = ["Resolver", "canonical_host", "glob_match", "host_of_peer", "is_address", "network_contains"]


Resolver = Callable[[str], Iterable[str]]
"""Addresses of a host name, in numbers; none, or OSError, where it has none."""

_IPV4: Final = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}", re.ASCII)
_MAPPED: Final = "::ffff:"


def canonical_host(host: str) -> str:
    """Return the one spelling of a host: lower case, IPv6 in its shortest form, IPv4 inside IPv6 as IPv4."""
    host = host.strip().lower()
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if ":" not in host:
        return host
    from ipaddress import IPv6Address

    try:
        address = IPv6Address(host)
    except ValueError:
        return host
    return str(address.ipv4_mapped) if address.ipv4_mapped is not None else str(address)


def is_address(host: str) -> bool:
    """Whether a host in canonical form is written in numbers."""
    if ":" in host:
        from ipaddress import IPv6Address

        try:
            IPv6Address(host)
        except ValueError:
            return False
        return True
    return _IPV4.fullmatch(host) is not None and all(int(part) < 256 for part in host.split("."))


def host_of_peer(peer: str) -> str:
    """Return the host of a peer written as ``address:port``, ``[address]:port`` or ``address``."""
    if peer.startswith("["):
        return canonical_host(peer.partition("]")[0][1:])
    if peer.count(":") == 1:
        peer = peer.partition(":")[0]
    return canonical_host(peer)


def network_contains(network: str, address: str) -> bool:
    """Whether ``address`` is, or lies within, ``network``: an address or an IPv4 network with its prefix length."""
    address = canonical_host(address)
    base, slash, prefix = network.partition("/")
    if not slash:
        return canonical_host(base) == address
    if ":" in address or not is_address(address):
        return False
    shift = 32 - int(prefix)
    return _ipv4_number(base) >> shift == _ipv4_number(address) >> shift


def _ipv4_number(address: str) -> int:
    number = 0
    for part in address.split("."):
        number = number << 8 | int(part)
    return number


def glob_match(pattern: str, text: str) -> bool:
    """Match ``*`` and ``?`` in time proportional to the product of the lengths, whatever the pattern."""
    at = star = mark = 0
    star = -1
    position = 0
    while position < len(text):
        if at < len(pattern) and (pattern[at] == text[position] or pattern[at] == "?") and pattern[at] != "*":
            at += 1
            position += 1
        elif at < len(pattern) and pattern[at] == "*":
            star = at
            mark = position
            at += 1
        elif star >= 0:
            mark += 1
            position = mark
            at = star + 1
        else:
            return False
    return all(character == "*" for character in pattern[at:])

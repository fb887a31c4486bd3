"""Addresses as in EPICS address lists. This module only parses; its users resolve names, again and again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

__all__ = ["Endpoint", "parse_endpoint", "parse_endpoints"]

_BLANK_OR_CONTROL: Final = frozenset(map(chr, range(0x21))) | {"\x7f"}


class Endpoint(NamedTuple):
    """One entry of an address list."""

    host: str
    """Name, IPv4 or IPv6 address (without brackets)."""
    port: int | None = None
    """None stands for the list's default port."""
    ttl: int | None = None
    """Time to live of multicast packets."""
    interface: str | None = None
    """Name or address of the local interface for multicast."""
    tls: bool = False
    """Spelled ``pvas://`` in a list of name servers."""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return "".join(
            (
                "pvas://" if self.tls else "",
                host,
                "" if self.port is None else f":{self.port}",
                "" if self.ttl is None else f",{self.ttl}",
                "" if self.interface is None else f"@{self.interface}",
            )
        )


def parse_endpoint(text: str, *, uri: bool = False) -> Endpoint:
    """Read ``host``, ``host:port``, ``[ipv6]:port``, ``address[:port][,ttl][@interface]``.

    ``uri`` also allows ``pva://`` and ``pvas://`` in front (name servers). Source: PVXS client::Config::addressList,
    SockEndpoint.

    Raises:
        ValueError: The text is not an address; the message says what is wrong.
    """
    if not _BLANK_OR_CONTROL.isdisjoint(text):
        raise ValueError(f"{text!r} contains a blank or a control character")
    rest, tls = text, False
    if "://" in text:
        scheme, _, rest = text.partition("://")
        if not uri:
            raise ValueError(f"{text!r}: {scheme}:// is allowed only in a list of name servers")
        if scheme not in {"pva", "pvas"}:
            raise ValueError(f"{text!r}: the scheme must be pva:// or pvas://, not {scheme}://")
        tls = scheme == "pvas"
        rest = rest.partition("/")[0]
    rest, at, interface = rest.partition("@")
    if at and not interface:
        raise ValueError(f"{text!r}: an interface must follow the @")
    if "," in interface:
        raise ValueError(f"{text!r}: the ,ttl must come before the @interface")
    rest, comma, ttl_text = rest.partition(",")
    ttl = _number(text, "time to live", ttl_text, 255) if comma else None
    host, port_text = _split_port(text, rest)
    if not host:
        raise ValueError(f"{text!r} names no host")
    port = None if port_text is None else _number(text, "port", port_text, 65535)
    return Endpoint(host, port, ttl, interface or None, tls)


def parse_endpoints(items: Iterable[str], *, uri: bool = False) -> tuple[tuple[Endpoint, ...], list[str]]:
    """Read a list.

    Of entries that differ only in their time to live, the first place and the longest time stay, as in PVXS.

    Returns:
        The entries, and a sentence about each bad entry, which is left out.
    """
    found: dict[Endpoint, Endpoint] = {}
    faults = []
    for item in items:
        try:
            endpoint = parse_endpoint(item, uri=uri)
        except ValueError as error:
            faults.append(str(error))
            continue
        key = endpoint._replace(ttl=None)
        known = found.get(key)
        if known is None or (endpoint.ttl or 0) > (known.ttl or 0):
            found[key] = endpoint
    return tuple(found.values()), faults


def _split_port(text: str, rest: str) -> tuple[str, str | None]:
    if rest.startswith("["):
        host, bracket, tail = rest[1:].partition("]")
        if not bracket:
            raise ValueError(f"{text!r}: the closing ] is missing")
        if tail and not tail.startswith(":"):
            raise ValueError(f"{text!r}: only :port may follow the ]")
        if ":" not in host:
            raise ValueError(f"{text!r}: brackets are for IPv6 addresses")
        port: str | None = tail[1:] if tail else None
    elif rest.count(":") > 1:
        host, port = rest, None
    else:
        host, colon, tail = rest.partition(":")
        port = tail if colon else None
    if "[" in host or "]" in host:
        raise ValueError(f"{text!r}: misplaced bracket")
    if ":" in host:
        import socket

        try:
            socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
        except (OSError, ValueError):
            raise ValueError(f"{text!r} is not an IPv6 address") from None
    elif "." in host and host.replace(".", "").isdecimal():
        import socket

        try:
            socket.inet_aton(host)
        except OSError:
            raise ValueError(f"{text!r} is not an IPv4 address") from None
    return host, port


def _number(text: str, what: str, digits: str, top: int) -> int:
    if digits.isascii() and digits.isdecimal() and len(digits) <= 6 and int(digits) <= top:
        return int(digits)
    raise ValueError(f"{text!r}: the {what} must be a number from 0 to {top}, not {digits!r}")

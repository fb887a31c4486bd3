"""Names of hosts in the configuration: each must have an address."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Final

from appliance.config.address import parse_endpoints
from appliance.errors import ConfigurationError
from appliance.gateway.config import GatewayConfig

__all__ = ["addresses", "check_interfaces", "unresolved"]

_CLIENT_LISTS: Final = ("intf_addr_list", "addr_list", "name_servers")
_SERVER_LISTS: Final = ("beacon_addr_list", "ignore_addr_list")
_AT_A_TIME: Final = 16
"""Names that are looked up at the same time: a name server that does not answer costs some seconds for each."""

_Place = tuple[str, str]
"""A key of the configuration, and a host that it names."""


def unresolved(config: GatewayConfig) -> list[ConfigurationError]:
    """Return an error for each host of the configuration that has no address; blocks.

    A running gateway looks names of address lists and name servers up again and again, so it starts without them. The one
    who checks a configuration wants to know.
    """
    return _without_address([*_interfaces(config), *_ignored(config), *_searched(config)])


def check_interfaces(config: GatewayConfig) -> None:
    """Check the names without which the gateway cannot start: those of its own addresses; blocks.

    Raises:
        ConfigurationError: One of them has no address.
    """
    for error in _without_address(_interfaces(config)):
        raise error


def _interfaces(config: GatewayConfig) -> Iterator[_Place]:
    for name, side in config.servers.items():
        yield from _named(f"servers.{name}.pva.intf_addr_list", side.pva.intf_addr_list)


def _ignored(config: GatewayConfig) -> Iterator[_Place]:
    for name, side in config.clients.items():
        yield from _named(f"clients.{name}.ignore_servers", side.ignore_servers)


def _searched(config: GatewayConfig) -> Iterator[_Place]:
    for name, client in config.clients.items():
        for key in _CLIENT_LISTS:
            yield from _named(f"clients.{name}.pva.{key}", getattr(client.pva, key))
    for name, server in config.servers.items():
        for key in _SERVER_LISTS:
            yield from _named(f"servers.{name}.pva.{key}", getattr(server.pva, key))
        if server.relay is not None:
            yield from _named(f"servers.{name}.relay.service", server.relay.service)


def _named(key: str, written: str | Iterable[str] | None) -> Iterator[_Place]:
    """Return the hosts of a list that are written as names, each with its place in the list."""
    is_text = isinstance(written, str)
    for index, item in enumerate(written.split() if isinstance(written, str) else written or ()):
        for endpoint in parse_endpoints((item,), uri=True)[0]:
            if not _is_number(endpoint.host):
                yield (key if is_text else f"{key}[{index}]"), endpoint.host


def _is_number(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _without_address(places: Iterable[_Place]) -> list[ConfigurationError]:
    places = list(places)
    hosts = list(dict.fromkeys(host for _, host in places))
    if not hosts:
        return []
    with ThreadPoolExecutor(min(_AT_A_TIME, len(hosts))) as pool:
        why = dict(zip(hosts, pool.map(_why_not, hosts), strict=True))
    return [_without(host, why[host], key) for key, host in places if why[host]]


def _why_not(host: str) -> str:
    try:
        _resolve(host)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _without(host: str, why: str, key: str) -> ConfigurationError:
    return ConfigurationError(f"{host} has no address: {why}; write its address in numbers", key=key)


def _resolve(host: str) -> list[str]:
    try:
        return [str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)]
    except UnicodeError:  # a label of more than 63 characters
        raise OSError(None, "it is not the name of a host") from None


async def addresses(key: str, written: Iterable[str]) -> frozenset[tuple[str, int]]:
    """Return the addresses of hosts, each with its port or 0.

    Raises:
        ConfigurationError: One is not an address, or a name without one.
    """
    endpoints, faults = parse_endpoints(written)
    for fault in faults:
        raise ConfigurationError(fault, key=key)
    found: set[tuple[str, int]] = set()
    for endpoint in endpoints:
        try:
            known = await asyncio.to_thread(_resolve, endpoint.host)
        except OSError as error:
            raise _without(endpoint.host, error.strerror or str(error), key) from None
        found.update((address, endpoint.port or 0) for address in known)
    return frozenset(found)

"""How much one address may hold of a server, whichever connections it comes by.

One connection has limits of its own (`appliance.pva.limits`). Without these a single host takes every place there is.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any, Final, NamedTuple

__all__ = ["DEFAULT_QUOTA", "Quota", "Share", "Shares", "who"]


class Quota(NamedTuple):
    """What one address may have. An IPv6 address stands for its network of 64 bits, which one host has for itself."""

    connections: int = 1024
    anonymous_connections: int = 512
    """Of those, connections that are anonymous."""
    channels: int = 500_000
    """Channels of all its connections together."""
    anonymous_channels: int = 50_000
    """Channels of all its anonymous connections together; of those that name or prove themselves it has the rest."""
    subscriptions: int = 4096
    """Subscriptions of one PV: each of its changes is sent so often."""
    anonymous_subscriptions: int = 1024


DEFAULT_QUOTA: Final = Quota()


class Share:
    """What one address has at present."""

    __slots__ = ("anonymous", "anonymous_channels", "channels", "connections", "told", "watching")

    def __init__(self) -> None:
        self.connections = 0
        self.anonymous = 0
        self.channels = 0
        self.anonymous_channels = 0
        self.watching: dict[Any, int] = {}
        """Subscriptions by handler."""
        self.told = False
        """Whether the log has heard that it wants too much."""


class Shares:
    """All addresses that have connections."""

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self._shares: dict[str, Share] = {}

    def join(self, host: str) -> Share:
        """Count one more connection of ``host``."""
        key = who(host)
        share = self._shares.get(key)
        if share is None:
            share = self._shares[key] = Share()
        share.connections += 1
        return share

    def leave(self, host: str, share: Share) -> None:
        """Count one less."""
        share.connections -= 1
        if share.connections <= 0:
            self._shares.pop(who(host), None)

    def __len__(self) -> int:
        return len(self._shares)


def who(host: str) -> str:
    """Give what counts as one address: an IPv4 address, also mapped into IPv6, or a network of 64 bits."""
    if ":" not in host:
        return host
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped) if mapped is not None else address.packed[:8].hex()

"""What one address may use of a server, over all its connections together.

One connection has limits of its own (`appliance.pva.limits`). Without quotas a single host could use all connections.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable
from ipaddress import ip_address
from typing import Final, NamedTuple, Protocol

from appliance.pva.limits import show_changed

__all__ = ["DEFAULT_QUOTA", "Allowance", "Quota", "Share", "Shares", "who"]

_log: Final = logging.getLogger(__name__)


class Quota(NamedTuple):
    """The most that one address may have. An IPv6 address stands for its network of 64 bits, which one host has for itself."""

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
    forwarded: int = 100_000
    """Operations that stand for others at a server behind this one, of all its connections together."""
    waiting_octets: int = 64 * 1024 * 1024
    """Octets of updates that wait for one connection, where they are counted (`Allowance.count_waiting`)."""
    host_octets: int = 256 * 1024 * 1024
    """Octets of updates and of forwarded requests that wait for all its connections together, and as much again of the answers
    of servers behind this one."""

    def __repr__(self) -> str:
        return show_changed(self)


DEFAULT_QUOTA: Final = Quota()


_ALWAYS: Final = 1024 * 1024
"""Octets of an answer that a client without arrears gets, whatever waits for others of its address."""


class Stream(Protocol):
    """What quotas see of a connection's way out."""

    @property
    def waiting(self) -> int:
        """Octets that wait to be sent."""


class Share:
    """What one address has at present."""

    __slots__ = (
        "_is_behind",
        "_unseen",
        "anonymous",
        "anonymous_channels",
        "channels",
        "connections",
        "forwarded",
        "streams",
        "told",
        "waiting",
        "watching",
    )

    def __init__(self) -> None:
        self.connections = 0
        self.anonymous = 0
        self.channels = 0
        self.anonymous_channels = 0
        self.forwarded = 0
        self.watching: dict[Hashable, int] = {}
        """Subscriptions by what their handlers are counted as."""
        self.told = False
        """Whether the log has a line about refused connections of it."""
        self.waiting = 0
        """Octets of updates and of forwarded requests that wait."""
        self.streams: dict[Stream, None] = {}
        """The ways out of all its connections."""
        self._is_behind = False
        self._unseen = 0
        """Octets of answers since all streams were looked at."""

    def is_behind(self, octets: int, most: int) -> bool:
        """Whether more answers wait for all its connections than may. All are looked at after each sixteenth of that.

        Args:
            octets: The size of one more answer.
            most: The most octets that may wait.
        """
        # While answers are left out, small ones count more: the look that ends this must come soon.
        self._unseen += max(octets, most >> 12) if self._is_behind else octets
        if self._unseen > most >> 4:
            self._unseen = 0
            self._is_behind = sum([stream.waiting for stream in self.streams]) > most
        return self._is_behind


_NOBODY: Final = Share()
"""What connections have that were not counted: they end at once."""


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


class Allowance:
    """The part of an address's share that one connection uses.

    A method that may refuse returns the reason, as a sentence for the client, or "".

    Args:
        shares: The shares of all addresses.
    """

    __slots__ = (
        "_host",
        "_share",
        "_shares",
        "_stream",
        "dropped",
        "is_anonymous",
        "is_full",
        "requests",
        "waiting",
    )

    def __init__(self, shares: Shares) -> None:
        self._shares = shares
        self._host: str | None = None
        self._share = _NOBODY
        """The address's share, from `join` on."""
        self._stream: Stream | None = None
        self.is_anonymous = False
        """Whether it counts among its address's anonymous connections."""
        self.requests = 0
        """Requests, where handlers count them; without those that `ServerConnection.passed_on` counts."""
        self.dropped = 0
        """Updates that were merged into later ones, where subscriptions count them."""
        self.waiting = 0
        """Octets of updates that wait."""
        self.is_full = False
        """Whether too much waits: then each subscription keeps only one update."""

    def join(self, host: str, stream: Stream | None = None) -> bool:
        """Count the connection; return whether there is room for it. Call `leave` in any case."""
        self._host = host
        share = self._share = self._shares.join(host)
        if stream is not None:
            self._stream = stream
            share.streams[stream] = None
        most = self._shares.quota.connections
        if share.connections <= most:
            return True
        if not share.told:
            share.told = True
            _log.warning(
                "further connections from %s are refused: this address has %d, the most that one address may have; close some there",
                host,
                most,
            )
        return False

    def leave(self) -> None:
        """Release its places. A second call does nothing."""
        host, self._host = self._host, None
        if host is None:
            return
        if self.is_anonymous:
            self._share.anonymous -= 1
        if self._stream is not None:
            del self._share.streams[self._stream]
        self._shares.leave(host, self._share)

    def count_anonymous(self) -> str:
        """Count the connection as anonymous; return why it cannot be, or ""."""
        share = self._share
        most = self._shares.quota.anonymous_connections
        if share.anonymous >= most:
            return f"your address has {most} anonymous connections already; close some, or log in with an account name"
        self.is_anonymous = True
        share.anonymous += 1
        return ""

    def refuses_channel(self) -> str:
        """Return why the address gets no more channels; "" if it does."""
        share = self._share
        quota = self._shares.quota
        if self.is_anonymous and share.anonymous_channels >= quota.anonymous_channels:
            return f"your address has {quota.anonymous_channels} channels of anonymous clients already; close some, or log in with an account name"
        if share.channels >= quota.channels:
            return f"your address has {quota.channels} channels already; close some"
        return ""

    def count_channel(self, more: int) -> None:
        """Count an opened channel, or with -1 a closed one."""
        share = self._share
        share.channels += more
        if self.is_anonymous:
            share.anonymous_channels += more

    def count_subscription(self, watched: Hashable) -> str:
        """Count one more subscription of ``watched``; return why it is refused, or ""."""
        watching = self._share.watching
        quota = self._shares.quota
        most = quota.anonymous_subscriptions if self.is_anonymous else quota.subscriptions
        count = watching.get(watched, 0)
        if count >= most:
            return f"your address watches this PV {most} times already; let several displays share one subscription"
        watching[watched] = count + 1
        return ""

    def is_behind(self, waiting: int, octets: int) -> bool:
        """Whether so much waits for the client, or for all of its address, that an answer of another server is left out.

        Args:
            waiting: Octets that wait to be sent to the client.
            octets: The size of the answer, as far as it is known.
        """
        quota = self._shares.quota
        if waiting > quota.waiting_octets:
            return True
        return self._share.is_behind(octets, quota.host_octets) and (waiting > 0 or octets > _ALWAYS)

    def refuses_request(self) -> str:
        """Return why no request is passed on to another server at present; "" if it is."""
        most = self._shares.quota.host_octets
        if self._share.waiting > most:
            return f"more than {most >> 20} MiB of updates and requests wait for the clients of your address; read what is there, then ask again"
        return ""

    def count_request(self, octets: int) -> None:
        """Count the octets of a request that waits for another server, or with a negative number does not wait any more."""
        self._share.waiting += octets

    def count_forwarded(self) -> str:
        """Count an operation at another server for the client; return why it is refused, or ""."""
        most = self._shares.quota.forwarded
        if self._share.forwarded >= most:
            return f"your address has {most} operations at servers behind this one already; close some"
        self._share.forwarded += 1
        return ""

    def forget_forwarded(self) -> None:
        """Count one less."""
        self._share.forwarded -= 1

    def count_waiting(self, more: int) -> bool:
        """Count octets of updates that wait from now on, or with a negative number do not wait any more.

        Returns:
            Whether the bound was passed just now: then the waiting updates of all subscriptions must be merged.
        """
        self.waiting = waiting = self.waiting + more
        share = self._share
        share.waiting = together = share.waiting + more
        quota = self._shares.quota
        if self.is_full:
            # If it ended as soon as one update was sent, nearly every update would merge all queues again.
            self.is_full = waiting > quota.waiting_octets // 2 or together > quota.host_octets // 2
            return False
        self.is_full = waiting > quota.waiting_octets or together > quota.host_octets
        return self.is_full

    def forget_subscription(self, watched: Hashable) -> None:
        """Count one less."""
        watching = self._share.watching
        count = watching.get(watched, 0) - 1
        if count > 0:
            watching[watched] = count
        else:
            watching.pop(watched, None)


def who(host: str) -> str:
    """Return what counts as one address: an IPv4 address, also mapped into IPv6, or a network of 64 bits."""
    if ":" not in host:
        return host
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped) if mapped is not None else address.packed[:8].hex()

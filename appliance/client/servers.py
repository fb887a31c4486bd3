"""The servers that are known from beacons and from answers to searches (sections 7 and 14)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from appliance.client.end import ClientEnd, ServerAddress, Timer
from appliance.pva.search import Beacon, SearchResponse
from appliance.transport.address import format_address

__all__ = ["Discovered", "Servers"]

MAX_SERVERS: Final = 10_000
"""The most servers that are remembered: anyone can send beacons of servers that do not exist."""


class Discovered(NamedTuple):
    """News of a server, from `appliance.Context.discover`: it appeared, or it is gone.

    Example:
        >>> async for news in ctx.discover():
        ...     break
        >>> news.online, news.server, news.protocol, len(news.guid)
        (True, '127.0.0.1:...', 'tcp', 12)
    """

    online: bool
    """Whether the server is there."""
    server: str
    """Address and port."""
    protocol: str
    """``tcp`` or ``tls``."""
    guid: bytes
    """The identity of the server's process: 12 octets."""
    source: str
    """Address and port of the sender of the message."""
    version: int
    """The server's protocol version."""


class _Place(NamedTuple):
    """The key of a remembered server."""

    host: str
    port: int
    protocol: str


class _Seen(NamedTuple):
    """The last news of a server, and when it came."""

    news: Discovered
    at: float


class _Change(NamedTuple):
    """The last change count in a server's beacons, and when it was handled."""

    counted: int
    at: float


class Servers:
    """The servers that this client knows of.

    Args:
        end: What the parts of this client share.
        restarted: Called with the address of a server, its GUID and its former GUID, if another process seems to
            answer at that address now.
        most: The most servers that are remembered at the same time.
    """

    def __init__(
        self,
        end: ClientEnd,
        restarted: Callable[[ServerAddress, bytes, bytes], None],
        most: int = MAX_SERVERS,
    ) -> None:
        self._end = end
        self._restarted = restarted
        self._most = most
        self._seen: dict[_Place, _Seen] = {}
        self._changes: dict[_Place, _Change] = {}
        self._listeners: dict[Callable[[Discovered], None], None] = {}
        self._check: Timer | None = None
        self._swept_at = -end.timings.hurry_holdoff_s

    def __len__(self) -> int:
        return len(self._seen)

    def stop(self) -> None:
        """Cancel the timer."""
        if self._check is not None:
            self._check.cancel()

    def heard(self, message: SearchResponse | Beacon, host: str, via: str) -> bool:
        """Remember the server that ``message`` describes; return whether it is new or was restarted.

        Args:
            message: An answer to a search, or a beacon.
            host: The server's address.
            via: Address and port of the sender of the message.
        """
        port, protocol, guid = message.port, message.protocol, message.guid
        if protocol == "tls":
            # The beacon of a TLS-only server names its TLS port, but the protocol "tcp", as every beacon does.
            announced = self._seen.get(_Place(host, port, "tcp"))
            if announced is not None and announced.news.guid == guid:
                del self._seen[_Place(host, port, "tcp")]
                self._tell(announced.news._replace(online=False))
        elif isinstance(message, Beacon) and _Place(host, port, "tls") in self._seen:
            protocol = "tls"
        place = _Place(host, port, protocol)
        known = self._seen.get(place)
        now = self._end.now()
        if known is None and not self._has_room(now):
            return False
        news = Discovered(True, format_address((host, port)), protocol, guid, via, message.version)
        self._seen[place] = _Seen(news, now)
        if known is not None and known.news.guid == guid:
            return False
        if known is not None:
            self._tell(known.news._replace(online=False))
            self._restarted(ServerAddress(host, port, protocol == "tls"), guid, known.news.guid)
        self._tell(news)
        return True

    def _has_room(self, now: float) -> bool:
        if len(self._seen) >= self._most and now - self._swept_at > self._end.timings.hurry_holdoff_s:
            self._swept_at = now
            self._forget_silent()
        return len(self._seen) < self._most

    def has_changed(self, beacon: Beacon, host: str) -> bool:
        """Whether the server announces a change, so that it must be asked whether it speaks TLS now.

        This is true at most once in ``hurry_holdoff_s``, because anyone can send beacons. The server announces a change
        during that time again later.
        """
        place = _Place(host, beacon.port, beacon.protocol)
        now = self._end.now()
        known = self._changes.get(place)
        if known is not None and (
            known.counted == beacon.change_count or now - known.at < self._end.timings.hurry_holdoff_s
        ):
            return False
        if known is None and len(self._changes) >= self._most:
            return False
        self._changes[place] = _Change(beacon.change_count, now)
        return True

    def lost(self, address: ServerAddress) -> None:
        """Forget a server whose connection has ended: its next message is news, even from the same process."""
        known = self._seen.pop(_Place(address.host, address.port, "tls" if address.tls else "tcp"), None)
        if known is not None:
            self._tell(known.news._replace(online=False))

    def subscribe(self, listener: Callable[[Discovered], None]) -> Callable[[], None]:
        """Call ``listener`` for all known servers now and for each later change; return a function that stops it."""
        for seen in list(self._seen.values()):
            listener(seen.news)
        self._listeners[listener] = None
        if self._check is None:
            self._check_later()

        def unsubscribe() -> None:
            self._listeners.pop(listener, None)

        return unsubscribe

    def _tell(self, news: Discovered) -> None:
        for listener in list(self._listeners):
            listener(news)

    def _check_later(self) -> None:
        self._check = self._end.clock.call_later(self._end.timings.silence_check_s, self._look_for_silent)

    def _look_for_silent(self) -> None:
        self._check = None
        if self._listeners:
            self._check_later()
        self._forget_silent()

    def _forget_silent(self) -> None:
        now = self._end.now()
        for place, seen in list(self._seen.items()):
            if now - seen.at > self._end.timings.silence_s:
                del self._seen[place]
                self._changes.pop(place, None)
                self._tell(seen.news._replace(online=False))

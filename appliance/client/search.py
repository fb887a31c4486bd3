"""The search for PVs: which names are searched for, how often, and what the answers mean (section 7).

The searcher knows names and their instance IDs, but no channels and no connections. It reports to a `SearchOwner` where a
name was found.
"""

from __future__ import annotations

import heapq
import logging
import random
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, Protocol

from appliance.client.end import ClientEnd, ServerAddress, Timer
from appliance.client.servers import Servers
from appliance.pva.search import Beacon, Datagram, SearchRequest, SearchResponse, split_names
from appliance.pvdata.pace import breathe
from appliance.transport.address import format_address
from appliance.transport.udp import Origin

__all__ = ["Located", "SearchOwner", "Searcher", "refused_without_tls"]

_log: Final = logging.getLogger(__name__)

_PATIENT: Final = 4
"""After so many searches a name is searched for so rarely that news of a server start another search at once."""
NAMES_PER_BURST: Final = 1000
"""The most names in one burst: ten thousand names must leave in a stream, not in a flood."""


class Located(NamedTuple):
    """A server that has a PV, from `appliance.Context.locate`.

    Example:
        >>> (place,) = await ctx.locate("demo:mode")
        >>> place.host, place.port == server.tcp_port
        ('127.0.0.1', True)
    """

    host: str
    """The server's address."""
    port: int
    """Its port."""
    tls: bool
    """Whether that port speaks TLS."""
    guid: bytes
    """The identity of the server: one server may answer at several addresses."""

    @property
    def address(self) -> ServerAddress:
        """The address at which the server accepts connections."""
        return ServerAddress(self.host, self.port, self.tls)


class SearchOwner(Protocol):
    """Sends searches and handles their results."""

    def broadcast(self, request: SearchRequest) -> None:
        """Send a search to all addresses of the configuration."""

    def ask_name_servers(self, request: SearchRequest) -> None:
        """Send a search to all name servers that are connected."""

    def found(self, instance: int, place: Located) -> None:
        """Handle that a server has a name. The search for it ends until the name is wanted again."""

    def found_again(self, instance: int, place: Located) -> None:
        """Handle that a server has a name that is not searched for at present."""

    def unusable(self, instance: int, why: str) -> None:
        """Handle that a server has a name but must not be used; ``why`` is the reason."""

    def has_changed(self, guid: bytes) -> None:
        """Handle that the server with this GUID announces a change; it may speak TLS now."""


def refused_without_tls(address: str) -> str:
    """Return why a server that offers plain TCP only is not used."""
    return (
        f"{address} does not speak TLS, which is required here; give that server a keychain, or remove tls_required from "
        "this client's TLS options"
    )


class _Name:
    """One name, and the state of its search."""

    __slots__ = ("attempts", "due", "guid", "server", "text", "tries_tls")

    def __init__(self, text: str, server: ServerAddress | None) -> None:
        self.text = text
        self.server = server
        """The server of the name, if no search is needed."""
        self.attempts = 0
        """Number of searches since the back-off began."""
        self.due = 0.0
        """Time of the next search, on the client's clock."""
        self.guid = b""
        """GUID of the server that last answered (SPVA 12.5)."""
        self.tries_tls = False
        """Whether TLS is tried once more although it failed there: the server may have a new certificate."""


class Searcher:
    """Searches for names and handles the answers. It is the `Finder` of channels.

    Args:
        end: What the parts of this client share.
        servers: Learns of each server that answers.
        owner: Sends searches and receives their results.
    """

    def __init__(self, end: ClientEnd, servers: Servers, owner: SearchOwner) -> None:
        self._end = end
        self._servers = servers
        self._owner = owner
        self._names: dict[int, _Name] = {}
        self._wanted: dict[int, _Name] = {}
        """The names that are searched for at present."""
        self._locating: dict[int, Callable[[Located], None]] = {}
        self._last_instance = 0
        self._heap: list[tuple[float, int]] = []
        """Due time and instance ID of each name. An outdated entry does not match the due time of its name."""
        self._timer: Timer | None = None
        self._timer_at = 0.0
        self._sequence = random.getrandbits(32)
        self._hurried_at = -end.timings.hurry_holdoff_s
        self._hurry_timer: Timer | None = None

    def stop(self) -> None:
        """Stop all searches."""
        for timer in (self._timer, self._hurry_timer):
            if timer is not None:
                timer.cancel()

    # -- names ---------------------------------------------------------------------------------------

    def add(self, name: str, server: ServerAddress | None = None) -> int:
        """Register ``name`` and return its instance ID. The search does not start yet.

        A name with a ``server`` needs no search: it is found there as soon as it is wanted, with the pauses of
        the same back-off between attempts.
        """
        instance = self._new_instance()
        self._names[instance] = _Name(name, server)
        return instance

    def _new_instance(self) -> int:
        self._last_instance = self._last_instance + 1 & 0xFFFFFFFF
        return self._last_instance

    def remove(self, instance: int) -> None:
        """Forget a name."""
        self._names.pop(instance, None)
        self._wanted.pop(instance, None)

    def settle(self, instance: int) -> None:
        """Restart the back-off of a name at its next search: the name is in use."""
        name = self._names.get(instance)
        if name is not None:
            name.attempts = 0

    # -- the back-off --------------------------------------------------------------------------------

    def want(self, instance: int, *, later: bool = False, resume: bool = False) -> None:
        """Search for a name, from the end of this turn of the event loop or ``later``.

        ``resume`` restarts the back-off: the name gets its first user, who waits for it.
        """
        name = self._names[instance]
        if resume:
            name.attempts = 0
        if name.server is not None:
            self._find_directly(instance, name, name.server)
            return
        self._wanted[instance] = name
        delay = 0.0
        if later:
            delay = self._interval(name.attempts)
            name.attempts += 1
        self._plan(instance, name, self._end.now() + delay)

    def _find_directly(self, instance: int, name: _Name, server: ServerAddress) -> None:
        place = Located(*server, b"")
        attempts = name.attempts
        name.attempts += 1
        if attempts:
            delay = self._interval(attempts - 1)
            self._end.clock.call_later(delay, self._owner.found, instance, place)
        else:
            self._end.clock.call_soon(self._owner.found, instance, place)

    def _interval(self, attempts: int) -> float:
        """Return the seconds to the next search after ``attempts`` searches."""
        steps = self._end.timings.search_s
        return min(steps[min(attempts, len(steps) - 1)], self._end.timings.longest_search_s)

    def _plan(self, instance: int, name: _Name, when: float) -> None:
        name.due = when
        heapq.heappush(self._heap, (when, instance))
        self._schedule(when)

    def hurry(self) -> None:
        """Search for everything now."""
        now = self._end.now()
        if len(self._heap) > 1000 + 4 * len(self._wanted):
            self._heap.clear()  # these entries are outdated; every name gets a new one below
        for instance, name in self._wanted.items():
            name.attempts = 0
            name.due = now
            heapq.heappush(self._heap, (now, instance))
        if self._wanted:
            self._schedule(now)

    def hurry_at_news(self) -> None:
        """Search for all names because of news of a server: at once, or when news may hurry the search again."""
        if self._hurry_timer is not None:
            return
        wait = self._hurried_at + self._end.timings.hurry_holdoff_s - self._end.now()
        if wait > 0:
            self._hurry_timer = self._end.clock.call_later(wait, self._hurry_now)
        else:
            self._hurry_now()

    def _hurry_now(self) -> None:
        self._hurry_timer = None
        self._hurried_at = self._end.now()
        self.hurry()

    def _schedule(self, when: float) -> None:
        if self._timer is not None:
            if self._timer_at <= when:
                return
            self._timer.cancel()
        self._timer_at = when
        self._timer = self._end.clock.call_at(when, self._tick)

    def _tick(self) -> None:
        """Search for all names that are due, and plan their next searches."""
        self._timer = None
        now = self._end.now() + 0.001
        heap = self._heap
        wanted = self._wanted
        due: list[int] = []
        while heap and heap[0][0] <= now and len(due) < NAMES_PER_BURST:
            when, instance = heapq.heappop(heap)
            name = wanted.get(instance)
            if name is None or name.due != when:
                continue
            interval = self._interval(name.attempts)
            name.attempts += 1
            # Many clients that started together must not search together for ever.
            name.due = now + interval * random.uniform(0.9, 1.1)  # noqa: S311 - this number is no secret
            heapq.heappush(heap, (name.due, instance))
            due.append(instance)
        if due:
            self._search(due)
        if heap:
            next_due, _ = heap[0]
            self._schedule(max(next_due, self._end.now() + self._end.timings.search_tick_s))

    # -- asking --------------------------------------------------------------------------------------

    def _search(self, instances: list[int]) -> None:
        """Send the search; names of servers whose TLS cannot be used at present are searched over TCP only (SPVA 12.5.1)."""
        end = self._end
        protocols = end.protocols()
        if end.gate is not None and len(protocols) > 1:
            names = self._names
            plain = [i for i in instances if names[i].guid and end.gate.avoids(names[i].guid)]
            if plain:
                self._ask(plain, ("tcp",))
                avoided = frozenset(plain)
                instances = [i for i in instances if i not in avoided]
        if instances:
            self._ask(instances, protocols)

    def waiting_for(self, guid: bytes) -> list[int]:
        """Return the names that wait for a server with this GUID; over TLS, too, its next answer counts."""
        found = []
        for instance, name in self._wanted.items():
            if name.guid == guid:
                name.tries_tls = True
                found.append(instance)
        return found

    def probe(self, instances: list[int]) -> None:
        """Ask whether names that are used unencrypted are available over TLS."""
        if instances:
            self._ask(instances, ("tls", "tcp"))

    def _ask(self, instances: list[int], protocols: tuple[str, ...]) -> None:
        for request in self._requests(instances, protocols):
            if _log.isEnabledFor(logging.DEBUG):
                _log.debug(
                    "search %d over %s: %s",
                    request.sequence,
                    " and ".join(protocols),
                    _some([name for _, name in request.names]),
                )
            self._owner.broadcast(request)
            self._owner.ask_name_servers(request)

    def _requests(self, instances: Iterable[int], protocols: tuple[str, ...]) -> Iterable[SearchRequest]:
        names = self._names
        for batch in split_names([(i, names[i].text) for i in instances], protocols):
            yield self._request(batch, protocols)

    def _request(
        self, names: tuple[tuple[int, str], ...], protocols: tuple[str, ...], *, must_reply: bool = False
    ) -> SearchRequest:
        self._sequence = self._sequence + 1 & 0xFFFFFFFF
        return SearchRequest(self._sequence, names, protocols, must_reply)

    def introduce(self, send: Callable[[SearchRequest], None]) -> None:
        """Search for all missing names at a name server that has just become ready, through ``send``."""
        for request in self._requests(self._wanted, self._end.protocols()):
            send(request)

    def ping(self) -> None:
        """Ask all servers to answer, whatever they serve."""
        self._owner.broadcast(self._request((), self._end.protocols(), must_reply=True))

    def locate(self, name: str, found: Callable[[Located], None]) -> Callable[[], None]:
        """Search for ``name`` once, over TLS and over TCP, and call ``found`` with every answer.

        Returns:
            A function that ends the search.
        """
        instance = self._new_instance()
        self._locating[instance] = found
        # An answer names only one port, so each protocol needs its own search.
        for protocols in (("tls", "tcp"), ("tcp",)):
            request = self._request(((instance, name),), protocols)
            self._owner.broadcast(request)
            self._owner.ask_name_servers(request)

        def stop() -> None:
            self._locating.pop(instance, None)

        return stop

    # -- answers -------------------------------------------------------------------------------------

    def take_answer(self, message: Datagram, origin: Origin) -> None:
        """Handle a datagram at the port that sends searches."""
        if isinstance(message, SearchResponse):
            host, _ = origin.address
            self.answered(message, host, via=format_address(origin.address))

    def take_beacon(self, message: Datagram, origin: Origin) -> None:
        """Handle a datagram at a port for beacons."""
        if not isinstance(message, Beacon):
            return
        source, _ = origin.address
        host = source if message.address is None else str(message.address)
        if self._end.ignores(message.guid, host, message.port):
            return
        via = format_address(origin.address)
        _log.debug("%s -> BEACON of the server %s:%d", via, host, message.port)
        if self._servers.heard(message, host, via):
            self.hurry_at_news()
        if self._servers.has_changed(message, host):
            self._owner.has_changed(message.guid)

    def answered(
        self, response: SearchResponse, source: str, *, via: str = "", server: ServerAddress | None = None
    ) -> None:
        """Handle the answer of a server, or of a name server for it.

        Args:
            response: The answer.
            source: The host that sent the answer.
            via: That host's address and port.
            server: The name server whose connection brought the answer, if any; port 0 in the answer means this server.
        """
        host = source if response.address is None else str(response.address)
        if not response.port and server is not None:
            host = server.host
            response = response._replace(port=server.port, protocol="tls" if server.tls else "tcp")
        if self._end.ignores(response.guid, host, response.port):
            return
        if _log.isEnabledFor(logging.DEBUG):
            self._log_answer(response, host, via or source)
        place = Located(host, response.port, response.protocol == "tls", response.guid)
        if self._locating and response.found and response.port:
            for instance in response.instances:
                tell = self._locating.get(instance)
                if tell is not None:
                    tell(place)
        if response.protocol not in self._end.protocols() or not response.port:
            return
        if self._end.require_tls and not place.tls:
            if self._end.tls is not None:
                why = refused_without_tls(format_address((host, response.port)))
                for instance in response.instances:
                    if instance in self._wanted:
                        self._owner.unusable(instance, why)
            return
        news = self._servers.heard(response, host, via or source)
        if response.found:
            self._take(response.instances, place)
        # If one name has waited long for this server, others have too.
        if news and any(name.attempts > _PATIENT for name in self._wanted.values()):
            self.hurry_at_news()

    def _take(self, instances: tuple[int, ...], place: Located) -> None:
        owner = self._owner
        if place.tls and self._end.avoids_tls(place.guid):
            tried = []
            for instance in instances:
                name = self._wanted.get(instance)
                if name is None:
                    owner.found_again(instance, place)
                elif name.guid != place.guid:
                    # The next search uses this GUID (SPVA 12.5).
                    name.guid = place.guid
                    self._plan(instance, name, self._end.now())
                elif name.tries_tls:
                    tried.append(instance)
            instances = tuple(tried)
        for number, instance in enumerate(instances):
            if not number & 63:
                breathe()
            name = self._wanted.pop(instance, None)
            if name is None:
                owner.found_again(instance, place)
                continue
            name.guid = place.guid
            name.tries_tls = False
            owner.found(instance, place)

    def _log_answer(self, response: SearchResponse, host: str, via: str) -> None:
        names = [self._names[i].text for i in response.instances if i in self._names]
        _log.debug(
            "%s -> SEARCH_RESPONSE: the server %s:%d, over %s, %s %s",
            via,
            host,
            response.port,
            response.protocol[:16],
            "has" if response.found else "does not have",
            _some(names),
        )


def _some(names: list[str]) -> str:
    """Return a few names for the log."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{', '.join(names[:5])}{more}" if names else "no channel of this client"

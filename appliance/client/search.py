"""The search for PVs: which names are asked for, how often, and what the answers mean (section 7).

The searcher knows names and the instance IDs that stand for them, nothing of channels and connections: whoever adds a
name learns through a `SearchOwner` where it was found.
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
"""Searches after which a name is looked for so seldom that the news of a server is worth another one at once."""
NAMES_PER_BURST: Final = 1000
"""A list of ten thousand names leaves in a stream, not in a flood."""


class Located(NamedTuple):
    """One place at which a server says that it has a PV."""

    host: str
    port: int
    tls: bool
    guid: bytes
    """Tells servers apart: one server may answer at several addresses."""

    @property
    def address(self) -> ServerAddress:
        """Return where the server takes connections."""
        return ServerAddress(self.host, self.port, self.tls)


class SearchOwner(Protocol):
    """Carries searches out, and acts on what they bring."""

    def broadcast(self, request: SearchRequest) -> None:
        """Send a search to all addresses of the configuration."""

    def ask_name_servers(self, request: SearchRequest) -> None:
        """Send a search to all name servers that are connected."""

    def found(self, instance: int, place: Located) -> None:
        """Hear that a server has a name. It is searched for no more, until it is wanted again."""

    def found_again(self, instance: int, place: Located) -> None:
        """Hear that a server has a name that is not searched for at present."""

    def unusable(self, instance: int, why: str) -> None:
        """Hear that a server has a name, and why it must not be used."""

    def has_changed(self, guid: bytes) -> None:
        """Hear that the server with this GUID announces a change, which may be that it speaks TLS now."""


def refused_without_tls(address: str) -> str:
    """Return why a server that offers plain TCP only is not used."""
    return (
        f"{address} does not speak TLS, which is required here; give that server a keychain, or remove tls_required from "
        "this client's TLS options"
    )


class _Name:
    """One name, and how far its search is."""

    __slots__ = ("attempts", "due", "guid", "server", "text")

    def __init__(self, text: str, server: ServerAddress | None) -> None:
        self.text = text
        self.server = server
        """Where the name is, without a search."""
        self.attempts = 0
        """Searches since the back-off began."""
        self.due = 0.0
        """When it is searched for next, on the clock of the client."""
        self.guid = b""
        """Of the server that last answered (SPVA 12.5)."""


class Searcher:
    """Searches for names and judges the answers. It is the `Finder` of channels.

    Args:
        end: What the parts of this client share.
        servers: Told of each server that answers.
        owner: Sends searches and is told of what they bring.
    """

    def __init__(self, end: ClientEnd, servers: Servers, owner: SearchOwner) -> None:
        self._end = end
        self._servers = servers
        self._owner = owner
        self._names: dict[int, _Name] = {}
        self._wanted: dict[int, _Name] = {}
        """Those of the names that are searched for at present."""
        self._locating: dict[int, Callable[[Located], None]] = {}
        self._last_instance = 0
        self._heap: list[tuple[float, int]] = []
        """When which name is due; an entry that a later one has overtaken does not agree with the name."""
        self._timer: Timer | None = None
        self._timer_at = 0.0
        self._sequence = random.getrandbits(32)
        self._hurried_at = -end.timings.hurry_holdoff_s
        self._hurry_timer: Timer | None = None

    def stop(self) -> None:
        """Search for nothing any more."""
        for timer in (self._timer, self._hurry_timer):
            if timer is not None:
                timer.cancel()

    # -- names ---------------------------------------------------------------------------------------

    def add(self, name: str, server: ServerAddress | None = None) -> int:
        """Make ``name`` known and return the instance ID that stands for it. It is not searched for yet.

        A name whose ``server`` is given needs no search: it is found there as soon as it is wanted, with pauses of
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
        """Start the back-off of a name anew at its next search: it is in use."""
        name = self._names.get(instance)
        if name is not None:
            name.attempts = 0

    # -- the back-off --------------------------------------------------------------------------------

    def want(self, instance: int, *, later: bool = False, resume: bool = False) -> None:
        """Search for a name: from the end of this turn of the event loop on, or ``later``.

        ``resume`` is for a name that gets its first user: someone waits for it, the back-off starts anew.
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
        """Return the seconds from one search to the next, after so many."""
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
            self._heap.clear()  # entries that later ones have overtaken; every name gets a new one below
        for instance, name in self._wanted.items():
            name.attempts = 0
            name.due = now
            heapq.heappush(self._heap, (now, instance))
        if self._wanted:
            self._schedule(now)

    def hurry_at_news(self) -> None:
        """Search for everything: there is news of a server. At once, or when news may hurry the search again."""
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
        """Search for all that is due, and plan when each is searched for again."""
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
            # A swarm of clients that started together must not search together for ever.
            name.due = now + interval * random.uniform(0.9, 1.1)  # noqa: S311 - nobody must not guess it
            heapq.heappush(heap, (name.due, instance))
            due.append(instance)
        if due:
            self._search(due)
        if heap:
            next_due, _ = heap[0]
            self._schedule(max(next_due, self._end.now() + self._end.timings.search_tick_s))

    # -- asking --------------------------------------------------------------------------------------

    def _search(self, instances: list[int]) -> None:
        """Search; what is on a server to which TLS is of no use at present, for TCP only (SPVA 12.5.1)."""
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

    def probe(self, instances: list[int]) -> None:
        """Ask whether names that are in use in the clear can be had over TLS."""
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
        """Ask a name server that has just become ready for everything that is missing, through ``send``."""
        for request in self._requests(self._wanted, self._end.protocols()):
            send(request)

    def ping(self) -> None:
        """Ask all servers, whatever they serve, to answer."""
        self._owner.broadcast(self._request((), self._end.protocols(), must_reply=True))

    def locate(self, name: str, found: Callable[[Located], None]) -> Callable[[], None]:
        """Search for ``name`` once, over TLS and over TCP, and call ``found`` with every answer.

        Returns a function that ends it.
        """
        instance = self._new_instance()
        self._locating[instance] = found
        # A server names one port in an answer, so each protocol is asked for in a search of its own.
        for protocols in (("tls", "tcp"), ("tcp",)):
            request = self._request(((instance, name),), protocols)
            self._owner.broadcast(request)
            self._owner.ask_name_servers(request)

        def stop() -> None:
            self._locating.pop(instance, None)

        return stop

    # -- answers -------------------------------------------------------------------------------------

    def take_answer(self, message: Datagram, origin: Origin) -> None:
        """Act on a datagram that came to the port that searches leave by."""
        if isinstance(message, SearchResponse):
            host, _ = origin.address
            self.answered(message, host, via=format_address(origin.address))

    def take_beacon(self, message: Datagram, origin: Origin) -> None:
        """Act on a datagram that came to a port that hears beacons."""
        if not isinstance(message, Beacon):
            return
        source, _ = origin.address
        host = source if message.address is None else str(message.address)
        via = format_address(origin.address)
        _log.debug("%s -> BEACON of the server %s:%d", via, host, message.port)
        if self._servers.heard(message, host, via):
            self.hurry_at_news()
        if self._servers.has_changed(message, host):
            self._owner.has_changed(message.guid)

    def answered(
        self, response: SearchResponse, source: str, *, via: str = "", server: ServerAddress | None = None
    ) -> None:
        """Act on the answer of a server, or of a name server for it.

        Args:
            response: The answer.
            source: The host that it came from.
            via: Its address and port.
            server: The name server whose connection brought the answer, where one did: port 0 means that one.
        """
        host = source if response.address is None else str(response.address)
        if not response.port and server is not None:
            host = server.host
            response = response._replace(port=server.port, protocol="tls" if server.tls else "tcp")
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
        # Where one name has waited long for this server, others have too.
        if news and any(name.attempts > _PATIENT for name in self._wanted.values()):
            self.hurry_at_news()

    def _take(self, instances: tuple[int, ...], place: Located) -> None:
        owner = self._owner
        if place.tls and self._end.avoids_tls(place.guid):
            # The next search knows better (SPVA 12.5).
            for instance in instances:
                name = self._wanted.get(instance)
                if name is None:
                    owner.found_again(instance, place)
                elif name.guid != place.guid:
                    name.guid = place.guid
                    self._plan(instance, name, self._end.now())
            return
        for number, instance in enumerate(instances):
            if not number & 63:
                breathe()
            name = self._wanted.pop(instance, None)
            if name is None:
                owner.found_again(instance, place)
                continue
            name.guid = place.guid
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

"""The search for PVs: who is asked, how often, and what is done with the answers (section 7)."""

from __future__ import annotations

import asyncio
import heapq
import logging
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from appliance.client.channel import Channel, ChannelState, refused_without_tls
from appliance.config.address import Endpoint
from appliance.pva import commands as c
from appliance.pva.search import (
    Beacon,
    Datagram,
    SearchRequest,
    SearchResponse,
    pack_message,
    split_names,
)
from appliance.pvdata.pace import breathe
from appliance.transport.address import format_address, is_multicast
from appliance.transport.interfaces import broadcast_addresses
from appliance.transport.udp import Origin, UDPPort, resolve_datagram_address

if TYPE_CHECKING:
    from appliance.client.context import Context
    from appliance.client.link import ServerLink

__all__ = ["Discovered", "Located", "Searcher"]

_log: Final = logging.getLogger(__name__)

INTERVALS_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0)
"""Seconds from one search for a name to the next; the last one repeats for ever."""
RESOLVE_S: Final = 60.0
"""Seconds for which the addresses of an address list's names are kept."""
RESOLVE_HOLDOFF_S: Final = 1.0
"""Seconds after the loss of a server in which its name is looked up again."""
POKE_HOLDOFF_S: Final = 5.0
"""Seconds in which news of servers hurries the search at most once; what comes earlier is heeded at their end."""
_PATIENT: Final = 4
"""Searches after which a name is looked for so seldom that the news of a server is worth another one at once."""
MAX_SERVERS: Final = 10_000
"""Servers that are remembered: anyone may send beacons of servers that do not exist."""
DATAGRAMS_PER_TICK: Final = 50
"""A list of ten thousand names leaves in a stream, not in a flood."""
_TICK_S: Final = 0.02
SILENCE_S: Final = 360.0
"""Seconds without a beacon after which a server counts as gone: two periods of the slow beacons."""
SWEEP_S: Final = 60.0
_LIMITED: Final = "255.255.255.255"
_LOOPBACK: Final = "127.255.255.255"


class Discovered(NamedTuple):
    """A server was heard of, or is heard of no more."""

    online: bool
    server: str
    """Address and port."""
    protocol: str
    guid: bytes
    source: str
    """Address and port of who sent the message."""
    version: int
    """The server's protocol version."""


class Located(NamedTuple):
    """One place at which a server says that it has a PV."""

    host: str
    port: int
    tls: bool
    guid: bytes
    """Tells servers apart: one server may answer at several addresses."""


class _Target(NamedTuple):
    address: tuple[str, int]
    ttl: int
    interface: str
    multicast: bool
    unicast: bool


class Searcher:
    """See the module's text."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._loop = context.loop
        self._wanted: dict[int, Channel] = {}
        self._locating: dict[int, Callable[[Located], None]] = {}
        self._heap: list[tuple[float, int]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._sequence = random.getrandbits(32)
        self._port: UDPPort | None = None
        self._port6: UDPPort | None = None
        self._beacon_ports: list[UDPPort] = []
        self._targets: list[_Target] = []
        self._resolved_at = -RESOLVE_S
        self._resolving: asyncio.Task[None] | None = None
        self._poked_at = -POKE_HOLDOFF_S
        self._poke_timer: asyncio.TimerHandle | None = None
        self._servers: dict[tuple[str, int, str], tuple[Discovered, float]] = {}
        self._changes: dict[tuple[str, int, str], tuple[int, float]] = {}
        """What each beacon last said of its server's changes, and when that was acted upon."""
        self._sweeper: asyncio.TimerHandle | None = None
        self._listeners: dict[Callable[[Discovered], None], None] = {}
        self._warned: set[str] = set()
        self._swept_at = -POKE_HOLDOFF_S

    async def start(self, *, beacons: bool) -> None:
        """Open the sockets. ``beacons`` also listens for new servers."""
        self._port = UDPPort(self._message)
        await self._resolve()
        if beacons:
            self.listen_for_beacons()

    def listen_for_beacons(self) -> None:
        """Share the broadcast port, to hear beacons; without it only our own searches find servers."""
        if not self._beacon_ports:
            from appliance.errors import TransportError

            config = self._context.config
            groups = [
                (item.host, item.interface or "") for item in config.intf_addr_list if is_multicast(item.host)
            ]
            # Only what no unicast comes to: a server of this host must not lose its searches to us.
            hosts = dict.fromkeys((*broadcast_addresses(), _LIMITED, _LOOPBACK))
            for host, interface in [*((host, "") for host in hosts), *groups]:
                joined = ((host, interface),) if is_multicast(host) else ()
                scope = f"%{interface}" if ":" in host and interface else ""
                try:
                    port = UDPPort(
                        self._beacon_message,
                        port=config.broadcast_port,
                        shared=True,
                        address=host + scope,
                        groups=joined,
                    )
                except TransportError as error:
                    _log.debug("beacons to %s cannot be heard: %s", host, error)
                else:
                    self._beacon_ports.append(port)
            if not self._beacon_ports:
                _log.warning("beacons cannot be heard on UDP port %d", config.broadcast_port)

    def stop(self) -> None:
        """Close everything."""
        if self._timer is not None:
            self._timer.cancel()
        for timer in (self._sweeper, self._poke_timer):
            if timer is not None:
                timer.cancel()
        if self._resolving is not None:
            self._resolving.cancel()
        for port in (self._port, self._port6, *self._beacon_ports):
            if port is not None:
                port.close()

    # -- targets -------------------------------------------------------------------------------------

    async def _resolve(self) -> None:
        """Look the address list's names up again: a server may have moved."""
        config = self._context.config
        endpoints = list(config.addr_list)
        broadcasts: list[str] = []
        if config.auto_addr_list:
            broadcasts = broadcast_addresses(frozenset(endpoint.host for endpoint in config.intf_addr_list))
            endpoints += [Endpoint(address) for address in broadcasts]
        targets: dict[_Target, None] = {}
        for endpoint in endpoints:
            address = await resolve_datagram_address(endpoint, config.broadcast_port)
            if address is None:
                if endpoint.host not in self._warned:
                    self._warned.add(endpoint.host)
                    _log.warning(
                        "EPICS_PVA_ADDR_LIST: %s is not known at present; it is looked up again",
                        endpoint.host,
                    )
                continue
            self._warned.discard(endpoint.host)
            multicast = is_multicast(address[0])
            if ":" in address[0] and not self._open_ipv6():
                continue
            unicast = not multicast and address[0] not in broadcasts and not address[0].endswith(".255")
            targets[_Target(address, endpoint.ttl or 1, endpoint.interface or "", multicast, unicast)] = None
        self._targets = list(targets)
        self._resolved_at = self._loop.time()

    def _open_ipv6(self) -> bool:
        """Have a socket for IPv6; tell whether the host has that."""
        if self._port6 is None:
            from appliance.errors import TransportError

            try:
                self._port6 = UDPPort(self._message, address="::")
            except TransportError as error:
                if "ipv6" not in self._warned:
                    self._warned.add("ipv6")
                    _log.warning(
                        "EPICS_PVA_ADDR_LIST names IPv6 addresses, and this host has no IPv6: %s", error
                    )
                return False
        return True

    def _resolve_when_stale(self) -> None:
        now = self._loop.time()
        if now - self._resolved_at >= RESOLVE_S and (self._resolving is None or self._resolving.done()):
            self._resolving = self._loop.create_task(self._resolve())

    # -- what is wanted --------------------------------------------------------------------------------

    def want(self, channel: Channel, *, later: bool = False, resume: bool = False) -> None:
        """Search for ``channel``: from the end of this turn of the event loop on, or ``later``.

        ``resume`` is for a channel that gets its first request: someone waits for it, the back-off starts anew.
        """
        if resume:
            channel.attempts = 0
        if channel.server is not None:
            self._context.connect_direct(channel, delay_s=self._delay(channel))
            return
        self._wanted[channel.instance] = channel
        delay = 0.0
        if later:
            delay = self._interval(channel)
            channel.attempts += 1
        channel.due = self._loop.time() + delay
        heapq.heappush(self._heap, (channel.due, channel.instance))
        self._schedule(channel.due)

    def _interval(self, channel: Channel) -> float:
        interval = INTERVALS_S[min(channel.attempts, len(INTERVALS_S) - 1)]
        return min(interval, self._context.longest_search_s)

    def _delay(self, channel: Channel) -> float:
        delay = 0.0 if channel.attempts == 0 else INTERVALS_S[min(channel.attempts, len(INTERVALS_S)) - 1]
        channel.attempts += 1
        return min(delay, self._context.longest_search_s)

    def _retry(self, channel: Channel) -> None:
        channel.due = self._loop.time()
        heapq.heappush(self._heap, (channel.due, channel.instance))
        self._schedule(channel.due)

    def drop(self, channel: Channel) -> None:
        """Search no more."""
        self._wanted.pop(channel.instance, None)

    def poke(self) -> None:
        """Search for everything now: there is news of a server."""
        if self._poke_timer is not None:
            return
        wait = self._poked_at + POKE_HOLDOFF_S - self._loop.time()
        if wait > 0:
            self._poke_timer = self._loop.call_later(wait, self._poke)
        else:
            self._poke()

    def _poke(self) -> None:
        self._poke_timer = None
        self._poked_at = self._loop.time()
        self.hurry()

    def hurry(self) -> None:
        """Search for everything now."""
        now = self._loop.time()
        if len(self._heap) > 1000 + 4 * len(self._wanted):
            self._heap.clear()  # entries that later ones have overtaken; every name gets a new one below
        for channel in self._wanted.values():
            channel.attempts = 0
            channel.due = now
            heapq.heappush(self._heap, (now, channel.instance))
        if self._wanted:
            self._schedule(now)

    def introduce(self, link: ServerLink) -> None:
        """Ask a name server that has just become ready for everything that is missing."""
        names = [(channel.instance, channel.name) for channel in self._wanted.values()]
        protocols = self._context.protocols()
        for batch in split_names(names, protocols):
            self._sequence = self._sequence + 1 & 0xFFFFFFFF
            link.search(SearchRequest(self._sequence, batch, protocols))

    def lost_server(self, address: tuple[str, int, bool], *, unexpected: bool = False) -> None:
        """A server has gone: it may come back under the same name at another address.

        ``unexpected``: its connection had been in use. When it is heard of again, as the same process too, that is news.
        """
        if unexpected:
            known = self._servers.pop((address[0], address[1], "tls" if address[2] else "tcp"), None)
            if known is not None:
                self._tell(known[0]._replace(online=False))
        self._resolved_at = min(self._resolved_at, self._loop.time() - RESOLVE_S + RESOLVE_HOLDOFF_S)

    def _schedule(self, when: float) -> None:
        if self._timer is not None:
            if self._timer_at <= when:
                return
            self._timer.cancel()
        self._timer_at = when
        self._timer = self._loop.call_at(when, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._resolve_when_stale()
        loop = self._loop
        now = loop.time() + 0.001
        heap = self._heap
        wanted = self._wanted
        due: list[Channel] = []
        limit = DATAGRAMS_PER_TICK * 20
        while heap and heap[0][0] <= now and len(due) < limit:
            when, instance = heapq.heappop(heap)
            channel = wanted.get(instance)
            if channel is None or channel.due != when or channel.state is not ChannelState.SEARCHING:
                continue
            interval = self._interval(channel)
            channel.attempts += 1
            # A swarm of clients that started together must not search together for ever.
            channel.due = now + interval * random.uniform(0.9, 1.1)  # noqa: S311 - nobody must not guess it
            heapq.heappush(heap, (channel.due, instance))
            due.append(channel)
        if due:
            self._send(due)
        if heap:
            self._schedule(max(heap[0][0], loop.time() + _TICK_S))

    def _send(self, channels: list[Channel]) -> None:
        """Search; what is on a server to which TLS is of no use at present, for TCP only (SPVA 12.5.1)."""
        context = self._context
        protocols = context.protocols()
        gate = context.gate
        if gate is not None and len(protocols) > 1:
            plain = [channel for channel in channels if channel.guid and gate.avoids(channel.guid)]
            if plain:
                self._send_for(plain, ("tcp",))
                channels = [channel for channel in channels if channel not in plain]
        if channels:
            self._send_for(channels, protocols)

    def probe(self, channels: list[Channel]) -> None:
        """Ask whether ``channels``, which are connected in the clear, can be had over TLS."""
        if channels:
            self._send_for(channels, ("tls", "tcp"))

    def _send_for(self, channels: list[Channel], protocols: tuple[str, ...]) -> None:
        context = self._context
        port = self._port
        assert port is not None
        names = [(channel.instance, channel.name) for channel in channels]
        for batch in split_names(names, protocols):
            self._sequence = self._sequence + 1 & 0xFFFFFFFF
            request = SearchRequest(self._sequence, batch, protocols, reply_port=port.port)
            if _log.isEnabledFor(logging.DEBUG):
                _log.debug(
                    "search %d over %s: %s",
                    self._sequence,
                    " and ".join(protocols),
                    _some([name for _, name in batch]),
                )
            self._broadcast(request)
            for link in context.name_servers:
                link.search(request)

    def _broadcast(self, request: SearchRequest) -> None:
        port = self._port
        assert port is not None
        packed: dict[tuple[bool, bool], bytes] = {}
        debugging = _log.isEnabledFor(logging.DEBUG)
        for target in self._targets:
            is_ipv6 = ":" in target.address[0]
            by = self._port6 if is_ipv6 else port
            if by is None:
                continue
            data = packed.get((is_ipv6, target.unicast))
            if data is None:
                told = request._replace(unicast=target.unicast, reply_port=by.port)
                data = pack_message(c.CMD_SEARCH, told.encode(), from_server=False)
                packed[is_ipv6, target.unicast] = data
            if target.multicast:
                sent = by.send_multicast(data, target.address, ttl=target.ttl, interface=target.interface)
            else:
                sent = by.send(data, target.address)
            if not sent:
                _log.debug("a search could not be sent to %s", format_address(target.address))
            elif debugging:
                _log.debug("%s <- SEARCH (%d octets)", format_address(target.address), len(data))

    def ping(self) -> None:
        """Ask all servers, whatever they serve, to answer."""
        port = self._port
        assert port is not None
        self._sequence = self._sequence + 1 & 0xFFFFFFFF
        request = SearchRequest(
            self._sequence, (), self._context.protocols(), must_reply=True, reply_port=port.port
        )
        self._broadcast(request)

    def locate(self, instance: int, name: str, found: Callable[[Located], None]) -> Callable[[], None]:
        """Search for ``name`` once, over TLS and over TCP, and call ``found`` with every answer.

        ``instance`` is a search instance ID that no channel has. Returns a function that ends it.
        """
        port = self._port
        assert port is not None
        self._locating[instance] = found
        # A server names one port in an answer, so each protocol is asked for in a search of its own.
        for protocols in (("tls", "tcp"), ("tcp",)):
            self._sequence = self._sequence + 1 & 0xFFFFFFFF
            request = SearchRequest(self._sequence, ((instance, name),), protocols, reply_port=port.port)
            self._broadcast(request)
            for link in self._context.name_servers:
                link.search(request)

        def end() -> None:
            self._locating.pop(instance, None)

        return end

    # -- answers -------------------------------------------------------------------------------------

    def _message(self, message: Datagram, origin: Origin) -> None:
        if isinstance(message, SearchResponse):
            self.answered(message, origin.address[0], via=format_address(origin.address))

    def answered(
        self,
        response: SearchResponse,
        source: str,
        *,
        via: str = "",
        link: tuple[str, int, bool] | None = None,
    ) -> None:
        """A server, or a name server for it, has answered from ``source``; ``via`` has the port as well.

        ``link`` is the address of the connection that the answer came by, where it did: port 0 means this one.
        """
        host = source if response.address is None else str(response.address)
        if not response.port and link is not None:
            host, port, over_tls = link
            response = response._replace(port=port, protocol="tls" if over_tls else "tcp")
        if _log.isEnabledFor(logging.DEBUG):
            self._tell_answer(response, host, via or source)
        if self._locating and response.found and response.port:
            for instance in response.instances:
                tell = self._locating.get(instance)
                if tell is not None:
                    tell(Located(host, response.port, response.protocol == "tls", response.guid))
        if response.protocol not in self._context.protocols() or not response.port:
            return
        if self._context.require_tls and response.protocol != "tls":
            for instance in response.instances:
                if self._context.tls is not None and instance in self._wanted:
                    self._wanted[instance].trouble = refused_without_tls(
                        format_address((host, response.port))
                    )
            return
        news = self._heard(response, host, via or source)
        self._take(response, host)
        # Where one name has waited long for this server, others have too.
        if news and any(channel.attempts > _PATIENT for channel in self._wanted.values()):
            self.poke()

    def _take(self, response: SearchResponse, host: str) -> None:
        if not response.found:
            return
        tls = response.protocol == "tls"
        gate = self._context.gate
        if tls and gate is not None and gate.avoids(response.guid):
            # The next search knows better (SPVA 12.5).
            for instance in response.instances:
                channel = self._wanted.get(instance)
                if channel is None:
                    self._context.tls_offered(instance, response.guid, (host, response.port, True))
                elif channel.guid != response.guid:
                    channel.guid = response.guid
                    self._retry(channel)
            return
        for number, instance in enumerate(response.instances):
            if not number & 63:
                breathe()
            channel = self._wanted.pop(instance, None)
            if channel is None or channel.state is not ChannelState.SEARCHING:
                self._check_duplicate(instance, response, host)
                if tls:
                    self._context.tls_offered(instance, response.guid, (host, response.port, True))
                continue
            channel.guid = response.guid
            self._context.connect(channel, (host, response.port, response.protocol == "tls"), response.guid)

    def _tell_answer(self, response: SearchResponse, host: str, via: str) -> None:
        names = [
            channel.name
            for instance in response.instances
            if (channel := self._context.by_instance(instance)) is not None
        ]
        _log.debug(
            "%s -> SEARCH_RESPONSE: the server %s:%d, over %s, %s %s",
            via,
            host,
            response.port,
            response.protocol[:16],
            "has" if response.found else "does not have",
            _some(names),
        )

    def _check_duplicate(self, instance: int, response: SearchResponse, host: str) -> None:
        channel = self._context.by_instance(instance)
        link = channel.link if channel is not None else None
        if channel is None or link is None or not link.guid or link.guid == response.guid:
            return
        if channel.name not in self._warned:
            self._warned.add(channel.name)
            _log.warning(
                "%s is served by %s and by %s: the first is used",
                channel.name,
                link.peer,
                format_address((host, response.port)),
            )

    def _beacon_message(self, message: Datagram, origin: Origin) -> None:
        if isinstance(message, Beacon):
            host = origin.address[0] if message.address is None else str(message.address)
            _log.debug("%s -> BEACON of the server %s:%d", format_address(origin.address), host, message.port)
            if self._heard(message, host, format_address(origin.address)):
                self.poke()
            if self._has_changed(message, host):
                self._context.probe_tls(message.guid)

    def _has_changed(self, beacon: Beacon, host: str) -> bool:
        """Whether the server announces a change: beacons do not say that it speaks TLS now, so it is asked.

        Not more often than once in POKE_HOLDOFF_S: beacons are anyone's to send. A change that falls into that time is
        announced again.
        """
        key = (host, beacon.port, beacon.protocol)
        now = self._loop.time()
        known = self._changes.get(key)
        if known is not None and (known[0] == beacon.change_count or now - known[1] < POKE_HOLDOFF_S):
            return False
        if known is None and len(self._changes) >= MAX_SERVERS:
            return False
        self._changes[key] = (beacon.change_count, now)
        return True

    def _heard(self, message: SearchResponse | Beacon, host: str, via: str) -> bool:
        """Remember a server; return whether it is new or has been restarted."""
        port, protocol, guid = message.port, message.protocol, message.guid
        key = (host, port, protocol)
        if protocol == "tls":
            # The beacon of a server that speaks TLS only names its port, and "tcp" as every beacon does.
            announced = self._servers.get((host, port, "tcp"))
            if announced is not None and announced[0].guid == guid:
                del self._servers[host, port, "tcp"]
                self._tell(announced[0]._replace(online=False))
        elif isinstance(message, Beacon) and (host, port, "tls") in self._servers:
            protocol = "tls"
            key = (host, port, protocol)
        known = self._servers.get(key)
        now = self._loop.time()
        if known is None and len(self._servers) >= MAX_SERVERS:
            if now - self._swept_at > POKE_HOLDOFF_S:
                self._swept_at = now
                self._forget_old()
            if len(self._servers) >= MAX_SERVERS:
                return False
        news = Discovered(True, format_address((host, port)), protocol, guid, via, message.version)
        self._servers[key] = (news, now)
        if known is not None and known[0].guid == guid:
            return False
        if known is not None:
            self._tell(known[0]._replace(online=False))
            self._context.restarted((host, port, protocol == "tls"), guid, before=known[0].guid)
        self._tell(news)
        return True

    def _forget_old(self) -> None:
        now = self._loop.time()
        for key, (news, seen) in list(self._servers.items()):
            if now - seen > SILENCE_S:
                del self._servers[key]
                self._changes.pop(key, None)
                self._tell(news._replace(online=False))

    def _sweep(self) -> None:
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep) if self._listeners else None
        self._forget_old()

    def _tell(self, news: Discovered) -> None:
        for listener in list(self._listeners):
            listener(news)

    def subscribe(self, listener: Callable[[Discovered], None]) -> Callable[[], None]:
        """Call ``listener`` with what is known of servers now and whenever that changes; returns the way to end it."""
        for news, _ in list(self._servers.values()):
            listener(news)
        self._listeners[listener] = None
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)

        def unsubscribe() -> None:
            self._listeners.pop(listener, None)

        return unsubscribe


def _some(names: list[str]) -> str:
    """A few names for the log."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{', '.join(names[:5])}{more}" if names else "no channel of this client"

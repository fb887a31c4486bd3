"""The server: sources of PVs, listeners, clients."""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Callable, Hashable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, Self

from appliance.config.pva import ServerConfig, resolve_server
from appliance.errors import ApplianceError
from appliance.pva.credentials import Credentials
from appliance.pva.limits import DEFAULT_LIMITS, Limits
from appliance.pva.search import GUID_SIZE, Beacon, SearchRequest, SearchResponse
from appliance.pvdata.pace import breathe
from appliance.server.access import AccessControl, AccessPolicy
from appliance.server.admission import DEFAULT_TIMINGS, AdmissionTimings, Entrance
from appliance.server.announce import Announcer
from appliance.server.builtin import BuiltinSource
from appliance.server.end import ServerEnd
from appliance.server.peer import Peer
from appliance.server.pump import Pump
from appliance.server.quota import DEFAULT_QUOTA, Quota, Shares
from appliance.server.served_channel import ServedChannel
from appliance.server.source import Handler, Later, Source, StaticSource
from appliance.server.sources import Sources
from appliance.transport.gate import PeerGate
from appliance.transport.listener import listen
from appliance.transport.liveness import Liveness
from appliance.transport.proxied import ProxiedAccept
from appliance.transport.stream import StreamLink

if TYPE_CHECKING:  # a server of plain TCP starts faster without OpenSSL
    from cryptography import x509

    from appliance.certs.keychain import Keychain
    from appliance.tls.context import TLSContext

__all__ = ["Place", "Referral", "Server"]

_log: Final = logging.getLogger(__name__)
LATE_NAMES: Final = 256
"""Names in one late answer: it must fit into a datagram."""
_setup_log: Final = logging.getLogger("appliance.server.init")


class Place(NamedTuple):
    """Another TLS port of this host's addresses, and the GUID that names what is behind it."""

    guid: bytes
    port: int
    """0: nobody serves the name at present, and the sources must not serve it either."""


class Referral(Protocol):
    """Knows names that are served over TLS at another port of this host."""

    def refer(self, name: str, host: str) -> Place | None:
        """Return where ``host`` finds ``name``; None leaves the name to the sources. Asked often: must be quick."""

    def promise(self, key: Hashable, tell: Callable[[Place], None]) -> None:
        """Call ``tell`` when it is known where a name is for which nobody answers at present; once for each ``key``."""


class _Refusal(asyncio.Protocol):
    """Refuses a connection: TLS is not served at present, or too many relays' connections wait."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.abort()  # type: ignore[attr-defined]


class Server:
    """A PVAccess server whose settings and TLS come from the caller; `appliance.Server` takes them from the environment.

    Args:
        config: Settings; without them those of the environment.
        policy: Decides what clients may do; without it all may do everything.
        tls: The context of the server's own certificate; without it the server speaks plain TCP only.
        require_tls: The server never speaks plain TCP: no TCP port is opened, and without ``tls`` nobody is answered.
        gate: Judges the certificates of clients.
        limits: What one connection may have.
        segment_size: Octets above which messages leave in segments; 0 sends them whole.
        max_connections: Connections of all clients together.
        quota: What one address may have.
        guid: Names the server to clients; without it one is drawn.
        timings: How long clients that are not let in yet are waited for.
        proxied: Whether the host of an address is a relay that may say, over TLS, for which client it speaks (PROXY protocol);
            None: nobody may.

    Example:
        >>> settings = resolve_server({"server_port": 0}).config
        >>> plain = appliance.server.Server(settings)
        >>> plain.add_pv("demo:level", SharedPV(Value(NTScalar(FLOAT64), 0.5)))
        >>> async with plain:
        ...     print(sorted(plain.names()))
        ['demo:level']
    """

    def __init__(
        self,
        config: ServerConfig | None = None,
        *,
        policy: AccessPolicy | None = None,
        tls: TLSContext | None = None,
        require_tls: bool = False,
        gate: PeerGate | None = None,
        limits: Limits = DEFAULT_LIMITS,
        segment_size: int = 0,
        max_connections: int = 4096,
        quota: Quota = DEFAULT_QUOTA,
        guid: bytes | None = None,
        timings: AdmissionTimings = DEFAULT_TIMINGS,
        proxied: Callable[[str], bool] | None = None,
    ) -> None:
        if config is None:
            config = resolve_server().config
            if config.tls_keychain and tls is None:
                _log.warning(
                    "%s is not used: appliance.server.Server reads no keychain; use 'from appliance import Server', which does",
                    config.tls_keychain,
                )
        self.config = config
        """The settings."""
        self.guid = os.urandom(GUID_SIZE) if guid is None else guid
        self.tcp_port = 0
        """The TCP port in use once started; 0 if plain TCP is not served."""
        self.tls_port = 0
        """The TCP port of TLS connections in use once started; 0 if TLS is not served."""
        self.udp_port = 0
        """The UDP port of searches in use once started."""
        self.peers: dict[StreamLink, Peer] = {}
        self.entrance = Entrance(gate, timings)
        """Decides which clients are let in."""
        self.access = AccessControl(policy)
        """What clients may do, and what was refused to them."""
        self.shares = Shares(quota)
        """What each client's address uses of this server."""
        self.on_ended: Callable[[Peer], None] | None = None
        """Called for each connection that has ended, while its counts can still be read."""
        self.referrals: list[Referral] = []
        """Asked before all sources when a client that speaks TLS searches; their answers name another port."""
        self.change_count = 0
        self.require_tls = require_tls
        self.proxied = proxied
        self._relayed: set[ProxiedAccept] = set()
        """Connections from relays whose client is not known yet."""
        self._tls = tls
        self._standby = False
        self._is_quiet = False
        self._limits = limits
        self._segment_size = segment_size
        self._max_connections = max_connections
        self._late: dict[Callable[[SearchResponse], None], list[tuple[SearchRequest, int]]] = {}
        """Searches that are answered at the end of this turn of the event loop, by who sends the answer."""
        self._static = StaticSource()
        self._sources = Sources()
        self._listeners: list[asyncio.Server] = []
        self._tls_listeners: list[asyncio.Server] = []
        self._announcer: Announcer | None = None
        self._liveness = Liveness(lambda: self.peers, self.config.idle_timeout_s, echo=False)
        self._end: ServerEnd | None = None
        """What connections share; there since `start`."""
        self._closed: asyncio.Event | None = None
        self._deserted: asyncio.Event | None = None
        self.add_source("__builtin", BuiltinSource(self.names), priority=-1)
        self.add_source("__static", self._static)

    # -- PVs -----------------------------------------------------------------------------------------

    def add_source(self, label: str, source: Source, *, priority: int = 0) -> None:
        """Serve the PVs of a source.

        Args:
            label: Names the source for `remove_source`.
            source: The source.
            priority: A source with a lower number is asked earlier.

        Raises:
            ValueError: The label is taken.

        Example:
            >>> from appliance.server import StaticSource
            >>> source = StaticSource()
            >>> source.pvs["demo:level"] = SharedPV(Value(NTScalar(FLOAT64), 0.5))
            >>> server.add_source("mine", source)
            >>> (await ctx.get("demo:level"))["value"]
            0.5
        """
        self._sources.add(label, source, priority)
        self.change_count += 1

    def remove_source(self, label: str) -> None:
        """Remove a source; its open channels stay open.

        Args:
            label: As it was added.

        Example:
            >>> from appliance.server import StaticSource
            >>> server.add_source("mine", StaticSource())
            >>> server.remove_source("mine")
        """
        self._sources.remove(label)
        self.change_count += 1

    def add_pv(self, name: str, pv: Handler) -> None:
        """Serve one PV, from now on.

        Args:
            name: The PV's name.
            pv: What serves it: a `SharedPV`, or a handler of your own.

        Raises:
            ValueError: The name is taken.

        Example:
            >>> server.add_pv("demo:level", SharedPV(Value(NTScalar(FLOAT64), 0.5)))
            >>> (await ctx.get("demo:level"))["value"]
            0.5
        """
        if name in self._static.pvs:
            raise ValueError(f"there is a PV {name!r} already; choose another name, or call remove_pv first")
        self._static.pvs[name] = pv
        self.change_count += 1

    def remove_pv(self, name: str) -> None:
        """Stop serving a PV, and close its channels; a name that is not served is ignored.

        Args:
            name: The PV's name.

        Example:
            >>> server.remove_pv("demo:setpoint")
            >>> "demo:setpoint" in server.names()
            False
        """
        handler = self._static.pvs.pop(name, None)
        self.change_count += 1
        if handler is not None:
            for channel in list(self.channels()):
                if channel.handler is handler and channel.name == name:
                    channel.close()

    def names(self) -> Iterable[str]:
        """Return all names that the sources list; PVs that are made on demand are not among them.

        Returns:
            The names, in no certain order.

        Example:
            >>> sorted(server.names())[:2]
            ['demo:mode', 'demo:setpoint']
        """
        return self._sources.names()

    def channels(self) -> Iterable[ServedChannel]:
        """Return all open channels."""
        for peer in self.peers.values():
            yield from peer.channels()

    def review_access(self, concerns: Callable[[ServedChannel], bool] | None = None) -> None:
        """Ask the access policy again what clients may do; they are told of changes.

        Args:
            concerns: Says whether a channel is concerned; None means all channels.

        Example:
            >>> server.review_access()
            >>> server.review_access(lambda channel: channel.name.startswith("demo:"))
        """
        for channel in list(self.channels()):
            try:
                if concerns is None or concerns(channel):
                    channel.review()
            except Exception as error:  # noqa: BLE001 - in doubt the connection ends, and the others are judged
                channel.stream.broken(error)

    # -- life ----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen.

        Raises:
            TransportError: An address or a port cannot be used.
            ValueError: The server was started before.
        """
        if self._end is not None:
            raise ValueError("the server was started already; make a new Server")
        loop = asyncio.get_running_loop()
        self._end = ServerEnd(
            self.entrance, self.access, self.shares, Pump(loop), loop, self._limits, self._segment_size
        )
        self._closed = asyncio.Event()
        config = self.config
        try:
            if not self.require_tls:
                self.tcp_port, self._listeners = await listen(
                    self._accept_tcp, config.intf_addr_list, config.server_port, "TCP", _setup_log
                )
            if self._tls is not None:
                await self._listen_tls()
            self._announcer = Announcer(self)
            await self._announcer.start()
        except BaseException:
            await self.stop()
            raise
        self.udp_port = self._announcer.port
        self._liveness.start()

    async def _listen_tls(self) -> None:
        self.tls_port, self._tls_listeners = await listen(
            self._accept_tls, self.config.intf_addr_list, self.config.tls_port, "TLS", _setup_log
        )

    async def stop(self) -> None:
        """Close everything."""
        self._liveness.stop()
        if self._announcer is not None:
            self._announcer.stop()
        for listener in (*self._listeners, *self._tls_listeners):
            listener.close()
        self._listeners = []
        self._tls_listeners = []
        for waiting in list(self._relayed):
            waiting.close()
        gone = list(self.peers)
        for link in gone:
            link.close()
        if gone:
            await self._wait_for_links()
        if self._closed is not None:
            self._closed.set()

    async def _wait_for_links(self) -> None:
        """Send what waits; abort the links that have not closed within a second."""
        self._deserted = asyncio.Event()
        try:
            async with asyncio.timeout(1.0):
                await self._deserted.wait()
        except TimeoutError:
            for link in list(self.peers):
                link.abort()
            await asyncio.sleep(0)
            for link in list(self.peers):
                link.settle()

    async def wait_closed(self) -> None:
        """Wait until ``stop`` has been called.

        Example:
            >>> closed = asyncio.ensure_future(server.wait_closed())
            >>> await server.stop()
            >>> await closed
        """
        if self._closed is not None:
            await self._closed.wait()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    # -- TLS -----------------------------------------------------------------------------------------

    @property
    def tls(self) -> TLSContext | None:
        """The context of new TLS connections."""
        return self._tls

    async def set_tls(self, tls: TLSContext | None) -> None:
        """Use another certificate, or none: then TLS is neither advertised nor accepted.

        Connections that are up stay up; close them with ``close_peers`` if the old certificate is no longer good.
        """
        self._tls = tls
        if tls is not None and self._end is not None and not self._tls_listeners:
            await self._listen_tls()
        self.change_count += 1
        if self._announcer is not None:
            self._announcer.hurry()

    def set_standby(self, standby: bool, *, close: bool = True) -> None:
        """Answer nobody until this is undone: no searches, beacons or new connections.

        ``close`` ends the connections that are up.
        """
        if standby is self._standby:
            return
        self._standby = standby
        self.change_count += 1
        if self._announcer is not None and not standby:
            self._announcer.hurry()
        if standby and close:
            self.close_peers(ApplianceError("the server is in standby"))

    def keep_quiet(self) -> None:
        """Send no beacons until `announce`: there is little to be found yet.

        Clients search at once when they hear of a server for the first time, and only then.
        """
        self._is_quiet = True

    def announce(self) -> None:
        """Send a burst of beacons: there is something new to be found."""
        self._is_quiet = False
        self.change_count += 1
        if self._announcer is not None:
            self._announcer.hurry()

    @property
    def standby(self) -> bool:
        """Whether the server answers nobody at present."""
        return self._standby

    def close_peers(
        self,
        reason: ApplianceError | None = None,
        *,
        tls_only: bool = False,
        certificate: x509.Certificate | None = None,
    ) -> None:
        """Close the connections of all clients, of those that came over TLS, or of those that were shown ``certificate``."""
        for link in list(self.peers):
            if certificate is not None:
                if link.engine is None or link.engine.keychain.certificate != certificate:
                    continue
            elif tls_only and link.engine is None:
                continue
            link.close(reason)

    def renew_peers(self, former: Keychain, reason: ApplianceError, within_s: float) -> None:
        """Close connections that were shown ``former``, each at a moment of its own ``within_s`` seconds.

        This concerns clients that lose nothing more afterwards: those that have shown no certificate, or one of another authority
        than that of ``former``. The others replace the connection when they have a new certificate as well.
        """
        from appliance.certs.crossed import is_same_authority

        loop = asyncio.get_running_loop()
        for link in list(self.peers):
            engine = link.engine
            if engine is None or engine.keychain.certificate != former.certificate:
                continue
            chain = engine.peer_chain
            if len(chain) < 2 or former.issuer is None or not is_same_authority(chain[1], former.issuer):
                # A connection that has ended meanwhile is closed once more, which does nothing.
                loop.call_later(random.uniform(0, within_s), link.close, reason)  # noqa: S311 - this number is no secret

    # -- being found ---------------------------------------------------------------------------------

    def choose_protocol(self, offered: tuple[str, ...]) -> tuple[str, int]:
        """Return the best transport that both ends speak, and its port; an empty name if there is none."""
        if self._standby:
            return "", 0
        if self._tls is not None and self.tls_port and "tls" in offered:
            return "tls", self.tls_port
        if self.tcp_port and ("tcp" in offered or not offered):
            return "tcp", self.tcp_port
        return "", 0

    def answer_search(
        self, request: SearchRequest, host: str, later: Callable[[SearchResponse], None] | None = None
    ) -> tuple[SearchResponse, ...]:
        """Return the answers to a search.

        Args:
            request: The search.
            host: The address that it came from.
            later: Sends an answer that comes late, for a name that a source claims a moment later. It is equal for all searches
                of one client.
        """
        referred: list[SearchResponse] = []
        if self.referrals and "tls" in request.protocols and not self._standby:
            request, referred = self._refer(request, host, later)
        protocol, port = self.choose_protocol(request.protocols)
        if not protocol:
            return tuple(referred)
        sources = self._sources
        claims = sources.claims
        late = later if sources.late else None
        found = []
        for number, (instance, name) in enumerate(request.names):
            if not number & 31:
                breathe()
            if claims(name, host):
                found.append(instance)
            elif late is not None:
                sources.promise(
                    name, host, (late, instance), partial(self._answer_late, request, instance, late)
                )
        if not found and (referred or not request.must_reply):
            return tuple(referred)
        answer = SearchResponse(self.guid, request.sequence, None, port, protocol, bool(found), tuple(found))
        return (*referred, answer)

    def _refer(
        self, request: SearchRequest, host: str, later: Callable[[SearchResponse], None] | None
    ) -> tuple[SearchRequest, list[SearchResponse]]:
        """Return the search without the names that are served at other ports, and the answers that name these, one for each place."""

        def answer(instances: tuple[int, ...], place: Place) -> SearchResponse:
            return SearchResponse(place.guid, request.sequence, None, place.port, "tls", True, instances)

        def answer_late(send: Callable[[SearchResponse], None], instance: int, place: Place) -> None:
            if not self._standby:
                send(answer((instance,), place))

        found: dict[Place, list[int]] = {}
        rest = []
        for number, item in enumerate(request.names):
            if not number & 31:
                breathe()
            instance, name = item
            for referral in self.referrals:
                place = referral.refer(name, host)
                if place is not None:
                    if place.port:
                        found.setdefault(place, []).append(instance)
                    elif later is not None:
                        referral.promise((later, instance), partial(answer_late, later, instance))
                    break
            else:
                rest.append(item)
        if len(rest) == len(request.names):
            return request, []
        answers = [answer(tuple(instances), place) for place, instances in found.items()]
        return request._replace(names=tuple(rest)), answers

    def _answer_late(
        self, request: SearchRequest, instance: int, send: Callable[[SearchResponse], None]
    ) -> None:
        """Answer a search for one name that a source has come to claim, with others of the same client in this turn."""
        if not self._late:
            asyncio.get_running_loop().call_soon(self._send_late)
        self._late.setdefault(send, []).append((request, instance))

    def _send_late(self) -> None:
        late, self._late = self._late, {}
        for send, answers in late.items():
            for start in range(0, len(answers), LATE_NAMES):
                part = answers[start : start + LATE_NAMES]
                request, _ = part[-1]
                protocol, port = self.choose_protocol(request.protocols)
                if protocol:
                    found = tuple(instance for _, instance in part)
                    send(SearchResponse(self.guid, request.sequence, None, port, protocol, True, found))

    def beacon(self, number: int) -> Beacon | None:
        """Return the beacon of this number; None while the server answers nobody or keeps quiet."""
        # One beacon, of "tcp", as PVXS sends it: Phoebus logs a warning for each that names anything else. A beacon only
        # says that a server is there; which transport it offers is what the search is answered with.
        port = self.tcp_port or (self.tls_port if self._tls is not None else 0)
        if self._standby or self._is_quiet or not port:
            return None
        return Beacon(self.guid, number, self.change_count, None, port, "tcp")

    # -- clients -------------------------------------------------------------------------------------

    def _accept_tcp(self) -> StreamLink:
        return self._accept(None)

    def _accept_tls(self) -> asyncio.BaseProtocol:
        # Without a context this port must refuse: a client that expects TLS must not get an unencrypted answer.
        tls = self._tls
        if tls is None or len(self._relayed) >= self._max_connections:
            return _Refusal()
        if self.proxied is None:
            return self._accept(tls)
        patience_s = self.entrance.timings.handshake_s
        return ProxiedAccept(partial(self._accept, tls), self.proxied, patience_s, self._relayed)

    def _accept(self, tls: TLSContext | None) -> StreamLink:
        assert self._end is not None
        peer = Peer(self, self._end, tls)
        link = peer.stream
        self.peers[link] = peer
        if len(self.peers) > self._max_connections:
            _log.warning(
                "a connection is refused: the server has %d, the most that it accepts; close some clients",
                self._max_connections,
            )
            link.abort()
        return link

    def accepts(self, *, tls: bool) -> bool:
        """Whether new connections of this kind are wanted at present."""
        return not self._standby and (self._tls is not None or not tls)

    def open(self, name: str, peer: Credentials) -> Handler | Later:
        """Return the handler of the PV ``name``, perhaps later. Raises ApplianceError with the reason for the client."""
        return self._sources.open(name, peer)

    def ended(self, peer: Peer) -> None:
        """Forget a connection that has ended."""
        self.peers.pop(peer.stream, None)
        if self.on_ended is not None:
            self.on_ended(peer)
        if self._deserted is not None and not self.peers:
            self._deserted.set()

    def __repr__(self) -> str:
        return (
            f"<Server tcp={self.tcp_port} tls={self.tls_port} udp={self.udp_port} {len(self.peers)} clients>"
        )

"""The server: sources of PVs, listeners, clients."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, Self

from appliance.certs.status import StatusClass
from appliance.config.pva import ServerConfig, resolve_server
from appliance.errors import ApplianceError, TransportError
from appliance.pva.credentials import Credentials
from appliance.pva.events import ServerEvent
from appliance.pva.limits import DEFAULT_LIMITS, Limits
from appliance.pva.search import GUID_SIZE
from appliance.pva.server import ServerConnection
from appliance.pva.server_channel import ServerChannel
from appliance.pva.status import Status
from appliance.server.access import ALL_RIGHTS, NO_RIGHTS, AccessPolicy, LostReaders, Rights
from appliance.server.announce import Announcer
from appliance.server.builtin import BuiltinSource
from appliance.server.channel import Channel
from appliance.server.peer import Peer
from appliance.server.quota import DEFAULT_QUOTA, Quota, Shares
from appliance.server.roles import Roles
from appliance.server.source import Handler, Source, StaticSource
from appliance.transport.gate import PeerGate, Verdict
from appliance.transport.listener import listen
from appliance.transport.liveness import Liveness
from appliance.transport.stream import StreamLink
from appliance.transport.turns import Turns, turns_of

if TYPE_CHECKING:
    from appliance.tls.context import TLSContext

__all__ = ["Server"]

_log: Final = logging.getLogger(__name__)
_setup_log: Final = logging.getLogger("appliance.server.init")

HANDSHAKE_TIMEOUT_S: Final = 10.0
"""Seconds in which a client must have validated its connection."""
_TOLD_FOR_S: Final = 60.0
"""Seconds for which the log does not repeat why a certificate is not admitted."""
_MAX_TOLD: Final = 1000
"""Certificates for which that is remembered."""


class _Refusal(asyncio.Protocol):
    """A connection that is not wanted at present."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.abort()  # type: ignore[attr-defined]


class Server:
    """A PVAccess server.

    ::

        server = Server()
        server.add_pv("demo", SharedPV.mailbox(NTScalar(FLOAT64)))
        async with server:
            await server.wait_closed()

    ``config`` defaults to the settings of the environment. ``tls`` is the context of the server's own certificate: without it the server speaks plain TCP only. With
    ``require_tls`` it never does: no TCP port is opened, and without ``tls`` nobody is answered.
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
    ) -> None:
        if config is None:
            config = resolve_server().config
            if config.tls_keychain and tls is None:
                _log.warning(
                    "%s is not used: appliance.server.Server is given its TLS; 'from appliance import Server' reads it",
                    config.tls_keychain,
                )
        self.config = config
        self.policy = policy
        self.gate = gate
        self.guid = os.urandom(GUID_SIZE) if guid is None else guid
        self.tcp_port = 0
        """The port that is really listened on, once started; 0 where plain TCP is not served."""
        self.tls_port = 0
        self.udp_port = 0
        self.peers: dict[StreamLink, Peer] = {}
        self.roles = Roles()
        """The groups of clients' accounts."""
        self.lost_readers = LostReaders()
        self.change_count = 0
        self.refusals = 0
        """Requests that access security refused."""
        self.plight = ""
        """What is added to a refusal over plain TCP: why nobody can prove who he is at present."""
        self.on_refused: Callable[[Channel, str], None] | None = None
        """Called with the channel and the missing right for each refused request."""
        self.require_tls = require_tls
        self._tls = tls
        self._standby = False
        self._limits = limits
        self._segment_size = segment_size
        self._max_connections = max_connections
        self.shares = Shares(quota)
        """What each client's address has of this server."""
        self._static = StaticSource()
        self._sources: list[tuple[int, str, Source]] = []
        self._listeners: list[asyncio.Server] = []
        self._tls_listeners: list[asyncio.Server] = []
        self._announcer: Announcer | None = None
        self._liveness = Liveness(lambda: self.peers, self.config.idle_timeout_s, echo=False)
        self._to_pump: list[Peer] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._turns: Turns | None = None
        self._closed: asyncio.Event | None = None
        self._deserted: asyncio.Event | None = None
        self._unwatch: dict[StreamLink, Callable[[], None]] = {}
        self._refusals_told: dict[tuple[str, int, str], float] = {}
        self._deadlines: dict[StreamLink, asyncio.TimerHandle] = {}
        self.add_source("__builtin", BuiltinSource(self), priority=-1)
        self.add_source("__static", self._static)

    # -- PVs -----------------------------------------------------------------------------------------

    def add_source(self, label: str, source: Source, *, priority: int = 0) -> None:
        """Serve what ``source`` knows; sources of lower priority are asked first."""
        if any(known == label for _, known, _ in self._sources):
            raise ValueError(f"there is a source {label!r} already")
        self._sources.append((priority, label, source))
        self._sources.sort(key=lambda item: item[0])
        self.change_count += 1

    def remove_source(self, label: str) -> None:
        """Serve it no longer; channels that are open stay open."""
        self._sources = [item for item in self._sources if item[1] != label]
        self.change_count += 1

    def add_pv(self, name: str, pv: Handler) -> None:
        """Serve one PV. Raises ValueError for a name that is taken."""
        if name in self._static.pvs:
            raise ValueError(f"there is a PV {name!r} already")
        self._static.pvs[name] = pv
        self.change_count += 1

    def remove_pv(self, name: str) -> None:
        """Serve the PV no longer and close its channels."""
        handler = self._static.pvs.pop(name, None)
        self.change_count += 1
        if handler is not None:
            for channel in list(self.channels()):
                if channel.handler is handler and channel.name == name:
                    channel.close()

    def names(self) -> Iterable[str]:
        """All names that the sources list."""
        for _, _, source in self._sources:
            yield from source.names()

    def claims(self, name: str, host: str) -> bool:
        """Whether a search for ``name`` is answered."""
        for _, label, source in self._sources:
            try:
                if source.claims(name, host):
                    return True
            except Exception:  # noqa: BLE001 - one broken source must not hide the others
                _log.exception("source %s, asked for %r", label, name)
        return False

    def channels(self) -> Iterable[Channel]:
        """All channels that are open."""
        for peer in self.peers.values():
            for wire in peer.connection.channels.values():
                if wire.context is not None:
                    yield wire.context

    # -- life ----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen. Raises TransportError where no address of the configuration can be listened on."""
        if self._loop is not None:
            raise ValueError("the server was started already")
        self._loop = asyncio.get_running_loop()
        self._turns = turns_of(self._loop)
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
        gone = list(self.peers)
        for link in gone:
            link.close()
        if gone:
            await self._wait_for_links()
        if self._closed is not None:
            self._closed.set()

    async def _wait_for_links(self) -> None:
        """Let good-byes leave; whoever does not take his within a second is cut off."""
        self._deserted = asyncio.Event()
        try:
            await asyncio.wait_for(self._deserted.wait(), 1.0)
        except TimeoutError:
            for link in list(self.peers):
                link.abort()
            await asyncio.sleep(0)
            for link in list(self.peers):
                link.settle()

    async def wait_closed(self) -> None:
        """Wait until ``stop`` has been called."""
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
        """Take another certificate into use, or none: then TLS is neither advertised nor accepted.

        Connections that are up stay up; close them with ``close_peers`` where the old certificate is no longer good.
        """
        self._tls = tls
        if tls is not None and self._loop is not None and not self._tls_listeners:
            await self._listen_tls()
        self.change_count += 1
        if self._announcer is not None:
            self._announcer.hurry()

    def set_standby(self, standby: bool, *, close: bool = True) -> None:
        """Answer nobody for the time being: searches, beacons and new connections wait until it is taken back.

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

    @property
    def standby(self) -> bool:
        """Whether nobody is answered at present."""
        return self._standby

    def close_peers(self, reason: ApplianceError | None = None, *, tls_only: bool = False) -> None:
        """Close the connections of all clients, or of those that came over TLS."""
        for link in list(self.peers):
            if not tls_only or link.engine is not None:
                link.close(reason)

    def choose_protocol(self, offered: tuple[str, ...]) -> tuple[str, int]:
        """Give the best transport that both ends speak and its port; an empty name where there is none."""
        if self._standby:
            return "", 0
        if self._tls is not None and self.tls_port and "tls" in offered:
            return "tls", self.tls_port
        if self.tcp_port and ("tcp" in offered or not offered):
            return "tcp", self.tcp_port
        return "", 0

    # -- clients -------------------------------------------------------------------------------------

    def _accept_tcp(self) -> StreamLink:
        return self._accept(None)

    def _accept_tls(self) -> asyncio.BaseProtocol:
        # Without a context this port must refuse: what came to speak TLS is not to be answered in the clear.
        return _Refusal() if self._tls is None else self._accept(self._tls)

    def _accept(self, tls: TLSContext | None) -> StreamLink:
        engine = None
        if tls is not None:
            from appliance.tls.engine import TLSEngine

            engine = TLSEngine(tls, server_side=True)
        methods = ("anonymous", "ca") if engine is None else ("anonymous", "ca", "x509")
        connection = ServerConnection(
            auth_methods=methods, limits=self._limits, segment_size=self._segment_size
        )
        link = StreamLink(connection, self, engine)
        assert self._loop is not None
        self._deadlines[link] = self._loop.call_later(HANDSHAKE_TIMEOUT_S, self._too_slow, link)
        self.peers[link] = Peer(self, connection, link)
        if len(self.peers) > self._max_connections:
            _log.warning("a connection is refused: there are %d already", self._max_connections)
            link.abort()
        return link

    def _too_slow(self, link: StreamLink) -> None:
        peer = self.peers.get(link)
        if peer is not None and not peer.validated and link not in self._unwatch:
            link.abort(
                TransportError(f"{link.peer} did not validate its connection in {HANDSHAKE_TIMEOUT_S:.0f} s")
            )

    def link_made(self, link: StreamLink) -> bool:
        """StreamOwner: whether there is room for one more connection of this address."""
        peer: Peer = link.context
        host = link.peer_address[0]
        share = peer.share = self.shares.join(host)
        most = self.shares.quota.connections
        if share.connections <= most:
            return True
        if not share.told:
            share.told = True
            _log.warning("connections of %s are refused: it has %d already", host, most)
        return False

    def link_up(self, link: StreamLink) -> None:
        """StreamOwner."""
        if self._standby or (link.engine is not None and self._tls is None):
            link.abort()
            return
        peer: Peer = link.context
        if peer.identify() and _log.isEnabledFor(logging.DEBUG):
            if link.engine is None:
                _log.debug("%s connected", link.peer)
            else:
                from appliance.tls.credentials import describe

                _log.debug(
                    "%s: TLS handshake complete: %s, %s; the client is %s",
                    link.peer,
                    link.engine.version,
                    link.engine.cipher,
                    describe(peer.credentials),
                )

    def admit(self, peer: Peer) -> None:
        """Let the gate judge a client whose identity is known, or let it in."""
        if self.gate is None or not peer.credentials.is_tls:
            peer.admitted()
            return
        link = peer.link
        assert link.engine is not None

        def verdict(found: Verdict) -> None:
            if link not in self.peers:
                return
            status = found.status
            if not peer.validated:
                if status is StatusClass.GOOD:
                    peer.admitted()
                    return
                # The give-up rule (SPVA 7.3.1): it will not become good on this connection.
                told = {"event": "peer-refused", **peer.credentials.facts()}
                level = logging.WARNING if self._is_news(peer, found.message) else logging.DEBUG
                _log.log(level, "%r is not admitted: %s", peer, found.message, extra=told)
                peer.admitted(Status.error(found.message))
                link.close(TransportError(found.message), linger=True)
            elif status is StatusClass.GOOD:
                peer.resume()
            elif status is StatusClass.BAD:
                told = {"event": "peer-disconnected", **peer.credentials.facts()}
                _log.warning("%r is disconnected: %s", peer, found.message, extra=told)
                link.cut(TransportError(found.message))
            else:
                told = {"event": "peer-paused", **peer.credentials.facts()}
                _log.warning("%r is paused: %s", peer, found.message, extra=told)
                peer.hold(found)

        unwatch = self.gate.watch(peer.credentials, verdict, engine=link.engine)
        if link in self.peers:
            self._unwatch[link] = unwatch
        else:
            unwatch()

    def _is_news(self, peer: Peer, why: str) -> bool:
        """Whether a refusal has to be told: some clients come back with the same certificate several times a second."""
        told = self._refusals_told
        who = (peer.credentials.issuer_id, peer.credentials.serial, why)
        now = time.monotonic()
        if now - told.get(who, -_TOLD_FOR_S) < _TOLD_FOR_S:
            return False
        if len(told) >= _MAX_TOLD:
            told.clear()
        told[who] = now
        return True

    def link_events(self, link: StreamLink, events: list[ServerEvent]) -> list[ServerEvent] | None:
        """StreamOwner."""
        left: list[ServerEvent] | None = link.context.events(events)
        return left

    def link_writable(self, link: StreamLink) -> None:
        """StreamOwner."""
        link.context.pump()

    def link_down(self, link: StreamLink, reason: ApplianceError | None) -> None:
        """StreamOwner."""
        peer = self.peers.pop(link, None)
        if self._deserted is not None and not self.peers:
            self._deserted.set()
        deadline = self._deadlines.pop(link, None)
        if deadline is not None:
            deadline.cancel()
        unwatch = self._unwatch.pop(link, None)
        if unwatch is not None:
            unwatch()
        link.context = None
        if peer is not None:
            peer.connection.context = None
            if peer.share is not None:
                if peer.is_anonymous:
                    peer.share.anonymous -= 1
                self.shares.leave(link.peer_address[0], peer.share)
        if reason is None:
            _log.debug("%s disconnected", link.peer)
        else:
            # A client that leaves with an update on its way to it resets the connection: that is every day's end. Of one
            # that was not admitted the log has heard.
            usual = peer is not None and (link.reset if peer.validated else unwatch is not None)
            _log.log(logging.DEBUG if usual else logging.INFO, "%s disconnected: %s", link.peer, reason)

    def pump_soon(self, peer: Peer) -> None:
        """Send the updates that wait for ``peer`` at the end of this turn of the event loop."""
        if not self._to_pump:
            assert self._loop is not None
            self._loop.call_soon(self._pump)
        self._to_pump.append(peer)

    def _pump(self) -> None:
        peers = self._to_pump
        self._to_pump = []
        turns = self._turns
        assert turns is not None
        assert self._loop is not None
        for index, peer in enumerate(peers):
            if turns.is_full:
                # The others are next; what they wait for is squashed where it becomes too much.
                self._to_pump[:0] = peers[index:]
                self._loop.call_soon(self._pump)
                return
            turns.begin()
            peer.pump()
            turns.end()

    # -- channels ------------------------------------------------------------------------------------

    def _rights(self, name: str, peer: Credentials) -> Rights:
        if self.policy is None:
            return ALL_RIGHTS
        try:
            return self.policy.rights(name, peer)
        except Exception:  # noqa: BLE001 - any doubt is less access
            _log.exception("access security of %s for %s: no access", name, peer.account)
            return NO_RIGHTS

    def open_channel(self, peer: Peer, wire: ServerChannel) -> None:
        """CREATE_CHANNEL."""
        if peer.held is not None:
            wire.reject(peer.held.message)
            return
        full = peer.has_enough_channels()
        if full:
            wire.reject(full)
            return
        for _, label, source in self._sources:
            try:
                handler = source.open(wire.name, peer.credentials)
            except ApplianceError as error:
                wire.reject(str(error))
                return
            except Exception:  # noqa: BLE001 - a source's defect must not end the connection
                _log.exception("source %s, opening %r", label, wire.name)
                wire.reject("internal error; the server's log has the details")
                return
            if handler is not None:
                rights = self._rights(wire.name, peer.credentials)
                if rights.read:
                    self.lost_readers.discard(wire.name, peer.credentials)
                Channel(peer, wire, handler, rights)
                peer.count_channel(1)
                wire.accept(rights.permissions)
                return
        wire.reject(f"there is no PV {wire.name[:256]!r} here")

    def channel_closed(self, channel: Channel) -> None:
        """A channel is gone."""
        channel.owner.count_channel(-1)
        try:
            channel.handler.detached(channel)
        except Exception:  # noqa: BLE001 - a handler's defect must not end the connection
            _log.exception("closing a channel of %s", channel.name)

    def refused(self, channel: Channel, right: str) -> None:
        """Access security refused a request."""
        self.refusals += 1
        if self.on_refused is not None:
            self.on_refused(channel, right)

    def review_access(self, concerns: Callable[[Channel], bool] | None = None) -> None:
        """Judge again what clients may do, for all channels or those that ``concerns`` picks."""
        for channel in list(self.channels()):
            if concerns is None or concerns(channel):
                channel.review(self._rights(channel.name, channel.peer))

    def __repr__(self) -> str:
        return (
            f"<Server tcp={self.tcp_port} tls={self.tls_port} udp={self.udp_port} {len(self.peers)} clients>"
        )

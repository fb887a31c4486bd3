"""All connections of a client, to the servers of its channels and to its name servers, and their moves to TLS."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Final

from appliance.client.channel import Channel, ChannelLink, ChannelState
from appliance.client.channels import Channels
from appliance.client.end import ClientEnd, ServerAddress, Timer
from appliance.client.link import ServerLink
from appliance.client.search import Located, Searcher, refused_without_tls
from appliance.client.search_ports import SearchPorts
from appliance.client.servers import Servers
from appliance.errors import ApplianceError, TransportError
from appliance.pva.search import SearchRequest, SearchResponse, are_one_service
from appliance.transport.address import format_address
from appliance.transport.liveness import Liveness
from appliance.transport.stream import StreamLink

if TYPE_CHECKING:
    from cryptography import x509

__all__ = ["Links"]

_log: Final = logging.getLogger(__name__)

MAX_TRIALS: Final = 4
"""The most TLS connections that are tried to one server at the same time."""


class Links:
    """The pool: one link for each server that has channels of ours, and one for each name server.

    It owns the search, and acts on what the search and the links report: it is their `SearchOwner` and `LinkOwner`.

    Args:
        end: What the parts of this client share.
    """

    def __init__(self, end: ClientEnd) -> None:
        self._end = end
        self.by_address: dict[ServerAddress, ServerLink] = {}
        self.name_servers: list[ServerLink] = []
        """The name servers that are connected or connecting."""
        self.servers = Servers(end, self.restarted)
        self.searcher = Searcher(end, self.servers, self)
        self.channels = Channels(end, self.searcher)
        self.ports = SearchPorts(end, self.searcher.take_answer, self.searcher.take_beacon)
        self._liveness = Liveness(self._streams, end.config.idle_timeout_s, echo=True)
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweeper: Timer | None = None
        self._closing: list[asyncio.Task[None]] | None = None
        """What was still running when the end began."""
        self._deserted: asyncio.Event | None = None
        self._warned: set[str] = set()
        self._successors: dict[ServerLink, ServerLink] = {}
        """Connections that are made to take the place of others, each with the one that goes when it is ready."""

    # -- life ----------------------------------------------------------------------------------------

    async def start(self, *, beacons: bool) -> None:
        """Open the search sockets and connect to the name servers; ``beacons`` also listens for new servers."""
        await self.ports.start(beacons=beacons)
        self._liveness.start()
        self._sweep_later()
        for address in self._name_server_addresses():
            self._connect_name_server(address)

    def _name_server_addresses(self) -> list[ServerAddress]:
        config = self._end.config
        return [
            ServerAddress(
                endpoint.host,
                endpoint.port or (config.tls_port if endpoint.tls else config.server_port),
                endpoint.tls,
            )
            for endpoint in config.name_servers
        ]

    def missing_name_servers(self) -> list[str]:
        """Return the name servers of the configuration that are not connected."""
        ready = {link.address for link in self.name_servers if link.ready}
        return [
            format_address((address.host, address.port))
            for address in self._name_server_addresses()
            if address not in ready
        ]

    def begin_to_close(self) -> None:
        """Close what can be closed at once; the caller has set ``ClientEnd.closed``."""
        if self._closing is not None:
            return
        self._liveness.stop()
        if self._sweeper is not None:
            self._sweeper.cancel()
        self.channels.close(tell=False)
        for link in {*self.by_address.values(), *self.name_servers, *self._successors}:
            link.close()
        self._closing = list(self._tasks)
        for task in self._closing:
            task.cancel()
        self.searcher.stop()
        self.servers.stop()
        self.ports.stop()

    async def close(self) -> None:
        """Close all channels and connections; the caller has set ``ClientEnd.closed``."""
        self.begin_to_close()
        assert self._closing is not None
        await asyncio.gather(*self._closing, return_exceptions=True)
        if self._streams():
            self._deserted = asyncio.Event()
            try:
                # Not wait_for: Python 3.11's loses a cancellation that comes together with the event.
                async with asyncio.timeout(self._end.timings.close_s):
                    await self._deserted.wait()
            except TimeoutError:
                for stream in self._streams():
                    stream.abort()
        await asyncio.sleep(0)

    def _sweep_later(self) -> None:
        self._sweeper = self._end.clock.call_later(self._end.timings.idle_channel_s, self._sweep)

    def _sweep(self) -> None:
        """Close channels that were not used for a while, and connections without channels."""
        self._sweep_later()
        self.channels.close_idle()
        for link in list(self.by_address.values()):
            if link.ready and not link.channels and link not in self.name_servers:
                link.close()

    def _streams(self) -> list[StreamLink]:
        links = {*self.by_address.values(), *self.name_servers, *self._successors}
        return [link.stream for link in links if link.stream is not None]

    # -- connecting ----------------------------------------------------------------------------------

    def _connect(self, channel: Channel, place: Located) -> None:
        """Create ``channel`` at the server at ``place``."""
        address = place.address
        if self._end.require_tls and not address.tls:
            # The last check before connecting, for search answers and for addresses that the caller gave.
            channel.trouble = refused_without_tls(format_address((place.host, place.port)))
            channel.search_again(later=True)
            return
        link = self.by_address.get(address)
        if link is None or not link.is_usable:
            link = self._open(address)
        if place.guid:
            link.guid = place.guid
        link.add(channel)

    def _open(self, address: ServerAddress) -> ServerLink:
        link = self.by_address[address] = ServerLink(self._end, self, address)
        return self._begin(link)

    def _begin(self, link: ServerLink) -> ServerLink:
        task = self._end.loop.create_task(link.connect())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return link

    def _connect_name_server(self, address: ServerAddress) -> None:
        if self._end.closed:
            return
        search_tls = self._end.search_tls
        if address.tls and search_tls is not None:
            # Not in `by_address`: channels must not find it.
            link = self._begin(ServerLink(self._end, self, address, search_tls))
        else:
            link = self.by_address.get(address) or self._open(address)
        if link not in self.name_servers:
            self.name_servers.append(link)
        if link.ready:
            self.searcher.introduce(link.search)

    # -- LinkOwner -----------------------------------------------------------------------------------

    def link_ready(self, link: ServerLink) -> None:
        """Move the unencrypted channels of the same server to a validated TLS connection, or those of the one that it replaces."""
        former = self._successors.pop(link, None)
        if former is not None:
            self._succeed(former, link)
            return
        self._move_to(link)
        if link in self.name_servers:
            self.searcher.introduce(link.search)

    def link_ended(self, link: ServerLink, reason: ApplianceError | None, *, was_ready: bool) -> None:
        """Forget a connection that is gone. A name server is connected again; its name is resolved again before that."""
        self._successors.pop(link, None)
        if self.by_address.get(link.address) is link:
            del self.by_address[link.address]
        if not self._end.closed:
            if was_ready and not link.expected:
                self.servers.lost(link.address)
            self.ports.expect_moved_servers()
        elif self._deserted is not None and not self._streams():
            self._deserted.set()
        if link in self.name_servers:
            self.name_servers.remove(link)
            if not self._end.closed:
                self._end.clock.call_later(
                    self._end.timings.name_server_retry_s, self._connect_name_server, link.address
                )

    def search_answered(self, link: ServerLink, response: SearchResponse) -> None:
        """Pass the answer of a name server to the search."""
        self.searcher.answered(response, link.address.host, via=link.peer, server=link.address)

    # -- SearchOwner ---------------------------------------------------------------------------------

    def broadcast(self, request: SearchRequest) -> None:
        """Send a search to all addresses of the configuration."""
        self.ports.broadcast(request)

    def ask_name_servers(self, request: SearchRequest) -> None:
        """Send a search to all name servers that are connected."""
        if self.name_servers:
            told = request._replace(reply_port=self.ports.reply_port)
            for link in self.name_servers:
                link.search(told)

    def found(self, instance: int, place: Located) -> None:
        """Connect the channel of a PV that was searched for."""
        channel = self.channels.by_instance(instance)
        if channel is None or channel.state is not ChannelState.SEARCHING or self._end.closed:
            return
        # A connection without a search may have waited for long; perhaps nobody wants the channel any more.
        if channel.server is None or channel.requests:
            self._connect(channel, place)

    def found_again(self, instance: int, place: Located) -> None:
        """Handle a second answer for a connected PV: from another server, or from the same server that now offers TLS."""
        channel = self.channels.by_instance(instance)
        link = channel.link if channel is not None else None
        if channel is None or link is None or not link.guid:
            return
        if link.guid == place.guid:
            if place.tls:
                self._try_tls(link, place)
        elif channel.name not in self._warned and not are_one_service(link.guid, place.guid):
            self._warned.add(channel.name)
            _log.warning(
                "%s is served by %s and by %s: the first is used",
                channel.name,
                link.peer,
                format_address((place.host, place.port)),
            )

    def unusable(self, instance: int, why: str) -> None:
        """Note why a server that has a PV must not be used."""
        channel = self.channels.by_instance(instance)
        if channel is not None:
            channel.trouble = why

    def has_changed(self, guid: bytes) -> None:
        """Ask a server that announces a change whether it speaks TLS now."""
        self.probe_tls(guid)

    def restarted(self, address: ServerAddress, guid: bytes, before: bytes = b"") -> None:
        """Check the connections to a server that seems to have been restarted: they may be dead.

        Another process with this ``guid`` seems to answer at ``address``; the GUID ``before`` answered there earlier. The check
        concerns connections to that address, and TLS connections, because no beacon names their port.
        """
        for link in list(self.by_address.values()):
            if link.guid and link.guid != guid and (link.address == address or link.guid == before):
                link.suspect()

    # -- moving to TLS -------------------------------------------------------------------------------

    def tls_changed(self, reason: ApplianceError | None) -> None:
        """Handle a change of the client's TLS context.

        With ``reason``, the TLS connections of the former context are closed and their channels are searched for again.
        """
        if reason is not None:
            for link in list(self.by_address.values()):
                if link.address.tls:
                    link.close(reason)
        self.searcher.hurry()
        self.probe_tls()

    def close_of(self, certificate: x509.Certificate, reason: ApplianceError) -> None:
        """Close the connections in which this client has shown ``certificate``; their channels are searched for again."""
        for link in list(self.by_address.values()):
            if _shown(link) == certificate:
                link.close(reason)
        self.searcher.hurry()

    def renew(self, certificate: x509.Certificate, within_s: float) -> None:
        """Replace the connections in which this client has shown ``certificate``, each at a moment of its own ``within_s`` seconds.

        A channel moves when the new connection is validated, and only if the server too shows a certificate of another authority:
        otherwise the connection would be lost once more when that one ends. So a failure harms nothing.
        """
        for link in list(self.by_address.values()):
            if link.ready and _shown(link) == certificate:
                delay = random.uniform(0, within_s)  # noqa: S311 - this number is no secret
                self._end.clock.call_later(delay, self._renew, link)

    def _renew(self, link: ServerLink) -> None:
        tls = self._end.tls
        known = self.by_address.get(link.address) is link and link.ready and link.is_usable
        if not known or self._end.closed or tls is None or tls.keychain.certificate == _shown(link):
            return
        if link.held is not None or link in self._successors.values():
            return
        # Not in `by_address`: channels must not find it before it is ready.
        successor = ServerLink(self._end, self, link.address)
        successor.guid = link.guid
        self._successors[successor] = link
        self._begin(successor)

    def _succeed(self, former: ServerLink, link: ServerLink) -> None:
        """Let ``link`` take the place of ``former``, unless its server has not changed its certificate yet."""
        if self.by_address.get(former.address) is not former:
            link.close(TransportError(f"the former connection to {link.peer} has ended"), expected=True)
        elif _is_of_former_authority(former, link):
            link.close(
                TransportError(f"{link.peer} has a certificate of the former authority"), expected=True
            )
        else:
            self.by_address[link.address] = link
            latest = self._end.now() + self._end.timings.upgrade_patience_s
            self._give_up(former, latest, f"{link.peer}: a connection with new certificates takes over")

    def probe_tls(self, guid: bytes = b"") -> None:
        """Ask which unencrypted channels are available over TLS, and move them to it (SPVA 12.5.2).

        This concerns all channels, or with a ``guid`` the channels of that server, and those that wait for it because it has
        TLS only. The question is sent several times, since a datagram may be lost. A channel moves when the new connection is
        validated, so a failure harms nothing.
        """
        if self._end.tls is None or self._end.closed:
            return
        for delay in self._end.timings.probes_s:
            self._end.clock.call_later(delay, self._probe, guid)

    def _probe(self, guid: bytes) -> None:
        if self._end.tls is None or self._end.closed:
            return
        instances = [
            channel.instance
            for link in self.by_address.values()
            if not link.address.tls and link not in self.name_servers and guid in (b"", link.guid)
            if guid or not self._end.avoids_tls(link.guid)
            for channel in link.channels
            if channel.server is None
        ]
        if guid:
            instances += self.searcher.waiting_for(guid)
        self.searcher.probe(instances)

    def _try_tls(self, plain: ChannelLink, place: Located) -> None:
        """Connect over TLS, at ``place``, to the server to which ``plain`` leads."""
        if plain.address.tls or self._end.tls is None or plain in self.name_servers:
            return
        trial = self.by_address.get(place.address)
        if trial is not None:
            if trial.ready:
                self._move_to(trial)
            return
        trials = sum(
            link.guid == place.guid and link.address.tls and not link.ready
            for link in self.by_address.values()
        )
        if trials < MAX_TRIALS:  # anyone can forge such answers, and each can name another address
            self._open(place.address).guid = place.guid

    def _move_to(self, link: ServerLink) -> None:
        """Move the unencrypted channels of the same server to this link if it uses TLS."""
        if not link.address.tls or not link.guid:
            return
        latest = self._end.now() + self._end.timings.upgrade_patience_s
        for plain in list(self.by_address.values()):
            if not plain.address.tls and plain.guid == link.guid and plain not in self.name_servers:
                self._give_up_plain(plain, latest)

    def _give_up_plain(self, link: ServerLink, latest: float) -> None:
        """Close a plain link when no request is in progress."""
        if self.by_address.get(link.address) is link and self._end.tls is not None:
            self._give_up(link, latest, f"{link.peer} speaks TLS now")

    def _give_up(self, link: ServerLink, latest: float, why: str) -> None:
        """Close a link when no request is in progress; such a request would be lost or executed twice."""
        if link.stream is None:
            return
        busy = any(request.is_busy for channel in link.channels for request in channel.requests)
        if busy and self._end.now() < latest:
            self._end.clock.call_later(self._end.timings.upgrade_check_s, self._give_up, link, latest, why)
        else:
            link.close(TransportError(why), expected=True)


def _shown(link: ServerLink) -> x509.Certificate | None:
    """Return the certificate that this client has shown in a connection."""
    engine = None if link.stream is None else link.stream.engine
    return None if engine is None else engine.keychain.certificate


def _is_of_former_authority(former: ServerLink, link: ServerLink) -> bool:
    """Whether the server of ``link`` shows a certificate of the authority that certified what this client showed in ``former``."""
    from appliance.certs.crossed import is_same_authority

    before = None if former.stream is None else former.stream.engine
    now = None if link.stream is None else link.stream.engine
    if before is None or now is None or before.keychain.issuer is None or len(now.peer_chain) < 2:
        return False
    return is_same_authority(now.peer_chain[1], before.keychain.issuer)

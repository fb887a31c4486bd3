"""What there is in the gateway at present: its connections, names, counts and troubles."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from appliance.gateway.accounts import Accounts, Connection, Counts, InFlight, Rates, Slow, Totals
from appliance.gateway.names import NewNames
from appliance.gateway.report import BAD, DEGRADED
from appliance.gateway.route import Router
from appliance.gateway.upstream import Upstream
from appliance.gateway.upstreams import Upstreams
from appliance.server.peer import Peer
from appliance.server.server import Server
from appliance.transport.splice import Splice, Splices
from appliance.transport.stream import StreamLink

__all__ = ["Overview"]

SLICE: Final = 2000
"""Names and subscriptions whose counts are read in one turn of the event loop."""
RELAYED: Final = "(relay)"
"""The account of connections that are passed on unread."""
OVERLOAD_S: Final = 60.0
"""Seconds that ``health`` remembers lost updates for."""


class Overview:
    """Looks at the sides of a gateway, and keeps its accounts.

    Args:
        flight: Counts the requests that wait for answers of servers.
        new_names: Bounds the names that one host may ask for.
    """

    def __init__(self, flight: InFlight, new_names: NewNames) -> None:
        self.flight = flight
        self.new_names = new_names
        self._loop = asyncio.get_running_loop()
        self.accounts = Accounts(self._loop.time())
        self.checks: list[Callable[[], Iterable[tuple[int, str]]]] = []
        """Further checks: each returns `DEGRADED` or `BAD` and a sentence for what is wrong."""
        self._clients: list[Upstreams] = []
        self._servers: list[tuple[str, Server]] = []
        self._routers: list[Router] = []
        self._relays: list[Splices] = []
        self._streams: dict[StreamLink, str] = {}
        """The connections to servers that were seen last."""
        self._slow: tuple[Slow, ...] = ()
        self._slow_until = 0.0

    # -- what belongs to it --------------------------------------------------------------------------

    def add_client(self, side: Upstreams) -> None:
        """Look at a client side from now on."""
        self._clients.append(side)
        side.on_gone = self._name_gone

    def add_server(self, name: str, server: Server, router: Router) -> None:
        """Look at a server side from now on."""
        self._servers.append((name, server))
        self._routers.append(router)
        server.on_ended = self._peer_gone

    def add_relay(self, splices: Splices) -> None:
        """Count what a relay passes on from now on."""
        self._relays.append(splices)
        splices.on_ended = self._splice_gone

    def _splice_gone(self, splice: Splice) -> None:
        self.accounts.client_gone(_of_splice(splice))

    def _name_gone(self, upstream: Upstream) -> None:
        self.accounts.fold(((upstream.name, upstream),))

    def _peer_gone(self, peer: Peer) -> None:
        self.accounts.client_gone(_of_peer(peer))

    # -- connections ---------------------------------------------------------------------------------

    def clients(self) -> Iterator[Connection]:
        """Return the connections of all clients."""
        for _, server in self._servers:
            for peer in server.peers.values():
                yield _of_peer(peer)
        for relay in self._relays:
            for splice in relay.open:
                yield _of_splice(splice)

    def servers(self) -> Iterator[Connection]:
        """Return the connections to all servers."""
        seen: dict[StreamLink, str] = {}
        for side in self._clients:
            for link in side.context.links():
                if link.stream is not None:
                    seen[link.stream] = link.peer
        gone, self._streams = self._streams, seen
        for stream, peer in gone.items():
            if stream not in seen:
                self.accounts.server_gone(_of_stream(stream, peer))
        for stream, peer in seen.items():
            yield _of_stream(stream, peer)

    def totals(self) -> Totals:
        """Return the counts since the start."""
        servers = list(self.servers())
        return self.accounts.totals(servers, self.clients())

    async def rates(self) -> Rates:
        """Return what happened since the last call; other connections are served meanwhile."""
        looked = 0
        for side in self._clients:
            for upstream in list(side):
                looked += 1 + upstream.settle()
                self.accounts.fold(((upstream.name, upstream),))
                if looked >= SLICE:
                    looked = 0
                    await asyncio.sleep(0)
        now = self._loop.time()
        servers = list(self.servers())
        rates = self.accounts.rates(now, servers, self.clients())
        if rates.slow:
            self._slow, self._slow_until = rates.slow, now + OVERLOAD_S
        return rates

    # -- names ---------------------------------------------------------------------------------------

    def client_names(self) -> list[str]:
        """Return the addresses of all clients."""
        return sorted(line.name for line in self.clients())

    def known_names(self) -> list[str]:
        """Return all names that are used or looked for, as their servers know them."""
        return sorted({upstream.name for side in self._clients for upstream in side})

    async def counts(self) -> Counts:
        """Count the names and what clients share; other connections are served meanwhile."""
        active = inactive = unconnected = monitors = gets = 0
        for side in self._clients:
            for number, upstream in enumerate(list(side)):
                if not number % SLICE and number:
                    await asyncio.sleep(0)
                if not upstream.active:
                    unconnected += 1
                    continue
                if upstream.in_use:
                    active += 1
                else:
                    inactive += 1
                monitors += len(upstream.monitors)
                gets += len(upstream.gets)
        sizes = [router.sizes for router in self._routers]
        return Counts(
            active,
            inactive,
            unconnected,
            monitors,
            gets,
            sum(size.hosts for size in sizes),
            sum(size.names for size in sizes),
            sum(size.pairs for size in sizes),
        )

    def references(self, counts: Counts) -> dict[str, int]:
        """Return how many parts of each kind there are."""
        channels = operations = 0
        peers = 0
        for _, server in self._servers:
            peers += len(server.peers)
            for peer in server.peers.values():
                channels += len(peer.connection.channels)
                operations += len(peer.connection.operations)
        return {
            "ClientChannel": counts.active + counts.inactive + counts.unconnected,
            "ServerChannel": channels,
            "ServerOperation": operations,
            "SharedGet": counts.gets,
            "SharedMonitor": counts.monitors,
            "Peer": peers,
            "ServerLink": sum(len(side.context.links()) for side in self._clients),
            "Task": len(asyncio.all_tasks()),
        }

    # -- health --------------------------------------------------------------------------------------

    def troubles(self) -> list[tuple[int, str]]:
        """Return `DEGRADED` or `BAD` and a sentence for each thing that is wrong."""
        found = [*self._client_troubles(), *self._server_troubles()]
        if self._loop.time() < self._slow_until:
            slow = self._slow[0]
            more = f" and {len(self._slow) - 1} more" if len(self._slow) > 1 else ""
            found.append(
                (
                    DEGRADED,
                    f"{slow.account or 'anonymous'}@{slow.name}{more} read too slowly: updates were merged",
                )
            )
        for check in self.checks:
            found.extend(check())
        return found

    def _client_troubles(self) -> Iterator[tuple[int, str]]:
        wanted = [side for side in self._clients if side.known]
        cut = [side for side in wanted if not side.active]
        for side in cut:
            yield (
                BAD if len(cut) == len(wanted) else DEGRADED,
                f"the client side {side.name} has no server for any of its {len(side.known)} names",
            )
        for side in self._clients:
            missing = side.context.missing_name_servers()
            if missing:
                yield DEGRADED, f"the client side {side.name} has no connection to name server {missing[0]}"
            if side.context.config.tls_keychain and side.context.tls is None:
                yield DEGRADED, f"the client side {side.name} has no usable certificate"

    def _server_troubles(self) -> Iterator[tuple[int, str]]:
        for name, server in self._servers:
            if server.standby:
                yield BAD, f"the server side {name} is in standby: it answers nobody"
            elif server.config.tls_keychain and server.tls is None:
                yield DEGRADED, f"the server side {name} has no usable certificate"


def _of_splice(splice: Splice) -> Connection:
    return Connection(splice, str(splice.peer), RELAYED, tx=splice.server.octets, rx=splice.client.octets)


def _of_peer(peer: Peer) -> Connection:
    stream, counted = peer.stream, peer.allowance
    return Connection(
        stream,
        stream.peer,
        peer.credentials.account,
        stream.sent,
        stream.heard,
        counted.requests + peer.connection.passed_on,
        counted.dropped,
        counted.waiting,
    )


def _of_stream(stream: StreamLink, peer: str) -> Connection:
    return Connection(stream, peer, "", stream.sent, stream.heard)

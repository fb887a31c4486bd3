"""The names of one server side: which searches are answered, and which PV a channel leads to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterable, Sequence

from appliance.acf.match import host_of_peer
from appliance.errors import OperationError
from appliance.gateway.forward import ForwardedPV, Terms
from appliance.gateway.names import NewNames, Promises
from appliance.gateway.route import Route, Router
from appliance.gateway.upstream import Upstream
from appliance.gateway.upstreams import Upstreams
from appliance.pva import commands as c
from appliance.pva.credentials import Credentials
from appliance.server.source import Handler, Later, Source

__all__ = ["RoutedSource"]


class _Opening:
    """A client's request to open a channel, while no client side has a server of the name."""

    __slots__ = ("_host", "_later", "_name", "_source", "_timer", "_upstreams")

    def __init__(
        self,
        source: RoutedSource,
        later: Later,
        name: str,
        host: str,
        upstreams: Sequence[Upstream],
        patience_s: float,
    ) -> None:
        self._host = host
        self._source = source
        self._later = later
        self._name = name
        self._upstreams = upstreams
        self._timer = asyncio.get_running_loop().call_later(patience_s, self._give_up)
        later.on_cancel = self.end
        for upstream in upstreams:
            upstream.waiting[self] = None

    def found(self, upstream: Upstream) -> None:
        """Open the channel: the server is there."""
        self.end()
        route = self._source.router.route(self._name, self._host)
        if route is None or route.real_name != upstream.name:
            # The PV list was read again meanwhile.
            self._later.settle(
                OperationError(f"{self._name[:256]!r} leads elsewhere now; search for it again")
            )
            return
        self._later.settle(self._source.handler(upstream))

    def _give_up(self) -> None:
        self.end()
        self._later.settle(
            OperationError(f"no server behind this gateway has the PV {self._name[:256]!r} at present")
        )

    def end(self) -> None:
        """Wait no longer."""
        self._timer.cancel()
        for upstream in self._upstreams:
            upstream.waiting.pop(self, None)


class RoutedSource(Source):
    """The PVs of the client sides that one server side shows.

    Args:
        router: Says which names are served to whom.
        clients: The client sides, in the order in which they are asked.
        terms: What the server side has decided about its PVs.
        new_names: Bounds the names that one host may ask for.
        promises: The searches that are answered when a name is found.
        patience_s: How long a request to open a channel waits for a server of the name.
    """

    def __init__(
        self,
        router: Router,
        clients: Sequence[Upstreams],
        terms: Terms,
        new_names: NewNames,
        promises: Promises,
        patience_s: float,
    ) -> None:
        self.router = router
        self.clients = clients
        self._terms = terms
        self._new_names = new_names
        self._promises = promises
        self._patience_s = patience_s

    def claims(self, name: str, host: str) -> bool:
        """Whether ``host`` may have the name and a server has it at present."""
        route = self.router.route(name, host)
        return route is not None and self._active(route) is not None

    def _active(self, route: Route) -> Upstream | None:
        """Return the name at the first client side that has a server of it."""
        for client in self.clients:
            upstream = client.known.get(route.real_name)
            if upstream is not None and upstream.active:
                client.touch(upstream)
                return upstream
        return None

    def permissions(self, route: Route) -> int:
        """Return what the server of a name permits the gateway: a union of ``PERMIT_*``; everything while there is none."""
        upstream = self._active(route)
        return c.PERMIT_ALL if upstream is None else upstream.permissions

    def promise(self, name: str, host: str, asker: Hashable, tell: Callable[[], None]) -> None:
        """Look for the name, and answer the search when a server of it is found."""
        route = self.router.route(name, host)
        if route is None:
            return
        for upstream in self._wanted(route, host):
            self._promises.add(upstream, asker, tell)

    def _wanted(self, route: Route, host: str) -> list[Upstream]:
        """Look for a name at all client sides; an empty list means that the host asks for too many names."""
        name = route.real_name
        if any(name not in client.known for client in self.clients) and not self._new_names.admits(host):
            return []
        wanted = [client.want(name) for client in self.clients]
        return [upstream for upstream in wanted if upstream is not None]

    def open(self, name: str, peer: Credentials) -> Handler | Later | None:
        """Return the PV; if no server of it is known yet, look for one."""
        host = host_of_peer(peer.peer)
        route = self.router.route(name, host)
        if route is None:
            return None
        upstream = self._active(route)
        if upstream is not None:
            return self.handler(upstream)
        wanted = self._wanted(route, host)
        if not wanted:
            raise OperationError(
                f"the gateway does not look for {name[:256]!r}: your host asks for very many names, or no search can carry this "
                "one; ask again later"
            )
        later = Later()
        _Opening(self, later, name, host, wanted, self._patience_s)
        return later

    def handler(self, upstream: Upstream) -> ForwardedPV:
        """Return what this server side shows of a name."""
        handler = upstream.handlers.get(self)
        if handler is None:
            handler = upstream.handlers[self] = ForwardedPV(upstream, self._terms)
        assert isinstance(handler, ForwardedPV)
        return handler

    def names(self) -> Iterable[str]:
        """Return the names that have servers at present and that everybody may see; aliases if they are open."""
        route = self.router.route
        for client in self.clients:
            for upstream in client:
                if not upstream.active:
                    continue
                name = upstream.name
                found = route(name, "")
                if found is not None and found.real_name == name:
                    yield name
                handler = upstream.handlers.get(self)
                if handler is None:
                    continue
                for alias in {channel.name for channel in handler.channels} - {name}:
                    found = route(alias, "")
                    if found is not None and found.real_name == name:
                        yield alias

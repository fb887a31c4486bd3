"""All parts of the gateway, connected: its client sides, its server sides, and what both share."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any, Final

from appliance.certmon.endpoints import open_client, open_server
from appliance.errors import TransportError
from appliance.gateway.accounts import InFlight
from appliance.gateway.certificates import PlainWay
from appliance.gateway.config import GatewayConfig, Sides
from appliance.gateway.downstream import Downstream
from appliance.gateway.files import read_files
from appliance.gateway.hosts import addresses, check_interfaces
from appliance.gateway.names import NewNames, Promises
from appliance.gateway.overview import Overview
from appliance.gateway.report import DEGRADED
from appliance.gateway.status import Status
from appliance.gateway.upstreams import Upstreams
from appliance.server.quota import DEFAULT_QUOTA

__all__ = ["Gateway"]

_log: Final = logging.getLogger(__name__)
_FIXED: Final = ("clients", "pva", "status_client", "status_prefix", "put_log", "put_log_required", "relay")
"""Keys of a server side that take effect at the start only."""


class Gateway:
    """The gateway of one configuration. Call all methods on the event loop's thread.

    Args:
        config: The configuration.
        sides: The settings of its sides (`resolve_sides`).
    """

    def __init__(self, config: GatewayConfig, sides: Sides) -> None:
        self.config = config
        self._started = config
        """The configuration at the start: what a reload cannot change is as it says."""
        self.sides = sides
        self.clients: dict[str, Upstreams] = {}
        self.servers: dict[str, Downstream] = {}
        self._stack = AsyncExitStack()
        loop = asyncio.get_running_loop()
        bounds = config.bounds
        self.new_names = NewNames(bounds.new_names_per_host, loop.time)
        self.promises = Promises(bounds.promise_s, loop.time)
        self.flight = InFlight(bounds.most_octets)
        self.overview = Overview(self.flight, self.new_names)
        self.status = Status(self.overview)

    async def start(self) -> None:
        """Read the files, then start the client sides, then the server sides.

        Raises:
            ConfigurationError: A file cannot be used, or a name of the configuration has no address.
            TransportError: A side cannot listen.
        """
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        files = await asyncio.to_thread(read_files, self.config)
        for warning in files.warnings:
            _log.warning("%s", warning)
        await asyncio.to_thread(check_interfaces, self.config)
        for name, side in self.config.servers.items():
            prefixes = {self.sides.clients[client].config.cert_pv_prefix for client in side.clients}
            self.servers[name] = server = Downstream(
                name,
                side,
                self.sides.servers[name].config,
                files.servers[name],
                self.flight,
                prefixes=prefixes,
                read_only=self.config.read_only,
            )
            self._stack.callback(server.put_log.close)
        guids = frozenset[bytes]().union(*(server.guids for server in self.servers.values()))
        for name in self.config.clients:
            if name in self.config.used_clients:
                await self._start_client(name, guids)
            else:
                _log.warning("clients.%s: no server side uses it; it is not started", name)
        for server in self.servers.values():
            server.connect(
                [self.clients[client] for client in server.side.clients],
                self.new_names,
                self.promises,
                self.config.bounds,
            )
            self._follow_inputs(server)
            await self._start_server(server)
            server.access.report(files.servers[server.name].pvlist)
        self.overview.checks += [self._put_log_troubles, self._relay_troubles]
        await self.status.start()
        self._stack.push_async_callback(self.status.stop)
        if self.config.metrics.port:
            self._serve_metrics()

    def _relay_troubles(self) -> Iterable[tuple[int, str]]:
        for server in self.servers.values():
            if server.relay is not None and server.relay.trouble:
                yield DEGRADED, server.relay.trouble

    def _put_log_troubles(self) -> Iterable[tuple[int, str]]:
        for name, server in self.servers.items():
            trouble = server.put_log.trouble
            if trouble:
                yield DEGRADED, f"the put log of the server side {name} cannot be written: {trouble}"

    def _serve_metrics(self) -> None:
        from appliance.gateway.metrics import serve_metrics

        settings = self.config.metrics
        metrics = serve_metrics(self.status.sample, settings.address, settings.port)
        self._stack.push_async_callback(asyncio.to_thread, metrics.close)

    async def _start_client(self, name: str, guids: frozenset[bytes]) -> None:
        side = self.config.clients[name]
        ignored: dict[str, Any] = {
            "ignore_guids": guids,
            "ignore_servers": await addresses(f"clients.{name}.ignore_servers", side.ignore_servers),
        }
        effective = self.sides.clients[name]
        context = await self._stack.enter_async_context(open_client(effective, **ignored))
        config = effective.config
        if config.tls_keychain and not config.tls_options.tls_required:
            plain = PlainWay(config, **ignored)
            self._stack.push_async_callback(plain.close)
            for server in self.servers.values():
                server.certificates.plain[context.config] = plain
        upstreams = Upstreams(name, context, self.config.bounds, self.promises, side.queue_size)
        self._stack.callback(upstreams.close)
        self.clients[name] = upstreams
        self.overview.add_client(upstreams)

    def _follow_inputs(self, server: Downstream) -> None:
        side = server.side
        client = self.clients.get(side.access.inputs or next(iter(side.clients), ""))
        self._stack.push_async_callback(server.access.close)
        server.access.follow(None if client is None else client.context)

    async def _start_server(self, downstream: Downstream) -> None:
        side = downstream.side
        if side.status_prefix:
            downstream.show_status(self.status.source(side.status_prefix, downstream.access))
        if downstream.relay is not None:
            self._stack.callback(downstream.relay.close)
            with _told(f"servers.{downstream.name}.relay.tls_port"):
                await downstream.relay.start(self.clients[side.clients[0]].context)
            self.overview.add_relay(downstream.relay.splices)
        status_client = side.status_client or next(iter(side.clients), "")
        bounds = self.config.bounds
        opening = open_server(
            self.sides.servers[downstream.name],
            prepare=downstream.prepare,
            policy=downstream.access,
            quota=DEFAULT_QUOTA._replace(
                waiting_octets=bounds.most_octets, host_octets=bounds.most_octets_of_host
            ),
            status_client=self.sides.clients[status_client].config if status_client else None,
            guid=downstream.guid,
        )
        with _told(f"servers.{downstream.name}.pva"):
            server = await self._stack.enter_async_context(opening)
        self.overview.add_server(downstream.name, server, downstream.router)
        _log.info(
            "the server side %s serves on TCP port %s, TLS port %s",
            downstream.name,
            server.tcp_port or "off",
            server.tls_port or "off",
        )

    async def reload(self, config: GatewayConfig) -> None:
        """Use another configuration, as far as that is possible without new addresses and ports.

        All files are read before anything changes. Channels that stay allowed stay open.

        Raises:
            ConfigurationError: A file cannot be used; nothing has changed.
            AccessFileError: The same.
        """
        files = await asyncio.to_thread(read_files, config)
        for warning in files.warnings:
            _log.warning("%s", warning)
        for what in self._fixed(config):
            _log.warning("%s has changed: that needs a restart, and stays as it is until then", what)
        for name, server in self.servers.items():
            side = config.servers.get(name)
            if side is not None:
                server.use(side, files.servers[name], read_only=config.read_only)
        self.config = config
        _log.info("the configuration was read again")

    def _fixed(self, config: GatewayConfig) -> Iterable[str]:
        """Return the keys that differ and that cannot change while the gateway runs."""
        old = self._started
        for kind, before, after in (
            ("clients", old.clients, config.clients),
            ("servers", old.servers, config.servers),
        ):
            yield from (f"{kind}.{name}" for name in sorted(before.keys() ^ after.keys()))
        for name in old.clients.keys() & config.clients.keys():
            if old.clients[name] != config.clients[name]:
                yield f"clients.{name}"
        for name in old.servers.keys() & config.servers.keys():
            if old.servers[name].access.inputs != config.servers[name].access.inputs:
                yield f"servers.{name}.access.inputs"
            for key in _FIXED:
                if getattr(old.servers[name], key) != getattr(config.servers[name], key):
                    yield f"servers.{name}.{key}"
        for key in ("bounds", "metrics", "log_level"):
            if getattr(old, key) != getattr(config, key):
                yield key

    def summary(self) -> str:
        """Return one line for the service manager."""
        names = sum(client.active for client in self.clients.values())
        peers = sum(len(server.server.peers) for server in self.servers.values() if server.server is not None)
        return f"{peers} clients, {names} PVs"

    async def stop(self) -> None:
        """Close the server sides, then the client sides."""
        await self._stack.aclose()


@contextmanager
def _told(key: str) -> Iterator[None]:
    """Say in the text of a TransportError which key of the configuration it is about."""
    try:
        yield
    except TransportError as error:
        raise TransportError(f"{key}: {error}") from error

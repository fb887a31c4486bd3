"""A server of the process: settings in, sockets on the PVAccess thread, settings out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet, finalize

from appliance.certmon.endpoints import open_server
from appliance.config.pva import Effective, ServerConfig, resolve_client, resolve_server
from appliance.errors import ApplianceError
from appliance.p4p.server._providers import Provider, Providers
from appliance.threads import Engine, engine
from appliance.transport.interfaces import broadcast_addresses

if TYPE_CHECKING:
    from appliance.server.server import Server as NativeServer

__all__ = ["Server", "all_servers"]

_log = logging.getLogger("appliance.p4p.server")

_TWINS: Final = {
    "EPICS_PVA_ADDR_LIST": "EPICS_PVAS_BEACON_ADDR_LIST",
    "EPICS_PVA_AUTO_ADDR_LIST": "EPICS_PVAS_AUTO_BEACON_ADDR_LIST",
}
"""Variables of clients, and those of servers that are read before them, if not only the prefix differs."""
_ANY: Final = "0.0.0.0"  # noqa: S104 - what "all addresses" is called in the settings
_TLS_COPIED: Final = ("TLS_KEYCHAIN_PWD_FILE", "TLS_OPTIONS")

all_servers: WeakSet[Server] = WeakSet()
"""The servers that run."""


class Server:
    """A server that listens after `start` and until `stop`.

    Args:
        conf: Values of ``EPICS_PVAS_*`` and ``EPICS_PVA_*`` variables, which go before those of the environment.
        useenv: Whether the environment is read.
        providers: Where PVs come from, with the order of each.

    Raises:
        AttributeError: A name or a value of ``conf`` is no text.
        RuntimeError: A setting that says where to listen cannot be used, or two providers have one name.
    """

    def __init__(
        self,
        conf: Mapping[str, str] | None = None,
        useenv: bool = True,
        providers: Iterable[tuple[Provider, int]] = (),
    ) -> None:
        self._variables = _variables(conf, useenv=useenv)
        self._effective = _resolve(self._variables)
        self._providers = Providers(providers)
        self._native: NativeServer | None = None
        self._stack = AsyncExitStack()
        self._engine: Engine | None = None
        self._end: finalize[..., Any] | None = None

    def forget_keychain(self) -> None:
        """Serve plain TCP, also if there is a keychain at the usual place."""
        config = self._effective.config._replace(tls_keychain="", tls_keychain_default="")
        self._effective = Effective(config, self._effective.sources, [])

    def start(self) -> None:
        """Listen.

        Raises:
            RuntimeError: An address cannot be used, the keychain cannot be used, or the server was stopped.
        """
        if self._end is not None:
            raise RuntimeError("the server is running, or was stopped; make a new one")
        running = self._engine = engine()
        variables = self._variables
        # The variable of the keychain may have the password in it, which nobody needs any more.
        self._variables = {
            name: value.partition(";")[0] if name.endswith("_TLS_KEYCHAIN") else value
            for name, value in variables.items()
        }
        stack = self._stack
        self._end = finalize(self, _stop, running, stack, self._providers, wait=False)
        self._end.atexit = False
        try:
            self._native = running.run(_start(stack, self._effective, variables, self._providers))
        except BaseException as error:
            self.stop()
            if isinstance(error, ApplianceError):
                raise RuntimeError(f"the server cannot be started: {error}") from error  # noqa: TRY004 - as p4p
            raise
        all_servers.add(self)

    def stop(self) -> None:
        """Close all connections, and stop listening. A server that was stopped is left alone.

        On the PVAccess thread it does not wait for the end. In a process that was forked after the start the server goes on:
        it is the parent's.
        """
        all_servers.discard(self)
        self._native = None
        end = self._end
        if end is not None and self._engine is not None and end.detach() is not None:
            _stop(self._engine, self._stack, self._providers, wait=True)

    def conf(self) -> dict[str, str]:
        """Return the settings in effect, with the ports that are really used: for a client, or another server.

        A password is not among them, only the name of its file.

        Raises:
            RuntimeError: The server does not run.
        """
        native = self._native
        if native is None:
            raise RuntimeError("the server was stopped; it has no settings any more")
        config = native.config
        listened = " ".join(map(str, config.intf_addr_list)) or _ANY
        found = _beacon_addresses(config)
        port = str(native.tcp_port or config.server_port)
        settings = {
            "EPICS_PVAS_AUTO_BEACON_ADDR_LIST": "NO",
            "EPICS_PVAS_BEACON_ADDR_LIST": found,
            "EPICS_PVAS_BROADCAST_PORT": str(native.udp_port),
            "EPICS_PVAS_IGNORE_ADDR_LIST": " ".join(map(str, config.ignore_addr_list)),
            "EPICS_PVAS_INTF_ADDR_LIST": listened,
            "EPICS_PVAS_SERVER_PORT": port,
            "EPICS_PVA_ADDR_LIST": found,
            "EPICS_PVA_AUTO_ADDR_LIST": "NO",
            "EPICS_PVA_BROADCAST_PORT": str(native.udp_port),
            "EPICS_PVA_CONN_TMO": f"{config.conn_tmo:g}",
            "EPICS_PVA_INTF_ADDR_LIST": listened,
            "EPICS_PVA_NAME_SERVERS": "",
            "EPICS_PVA_SERVER_PORT": port,
        }
        if native.tls_port:
            settings["EPICS_PVAS_TLS_PORT"] = settings["EPICS_PVA_TLS_PORT"] = str(native.tls_port)
        settings.update(self._tls_settings(config))
        return settings

    def _tls_settings(self, config: ServerConfig) -> dict[str, str]:
        """Return the settings of TLS under the names that they came with."""
        settings = {}
        variables = self._variables
        for prefix in ("EPICS_PVAS_", "EPICS_PVA_"):
            name = f"{prefix}TLS_KEYCHAIN"
            if name in variables:
                settings[name] = variables[name]
            for rest in _TLS_COPIED:
                if prefix + rest in variables:
                    settings[prefix + rest] = variables[prefix + rest]
        if config.tls_keychain:
            settings["EPICS_PVAS_TLS_KEYCHAIN"] = config.tls_keychain
        return settings

    @property
    def guid(self) -> bytes:
        """The twelve octets that name the server to clients.

        Raises:
            RuntimeError: The server does not run.
        """
        if self._native is None:
            raise RuntimeError("the server was stopped")
        return self._native.guid

    def tostr(self, detail: int = 0) -> str:
        """Return a text about the server, for people.

        Args:
            detail: 0 tells of the server itself, more also of each provider's PVs, 3 and more of clients.
        """
        if not isinstance(detail, int):
            raise TypeError("an integer is required")
        native = self._native
        if native is None:
            return "NULL"
        lines = [
            f"{name}={value}" for name, value in sorted(self.conf().items()) if name.startswith("EPICS_PVAS_")
        ]
        for order, provider in self._providers.items:
            lines.append(f"Source: {provider._name} prio={order} {type(provider).__name__}")
            if detail > 0:
                lines.extend(f"    {name}" for name in getattr(provider, "_pvs", ()))
        tls = f" TLS_Port: {native.tls_port}" if native.tls_port else ""
        lines.append(f"State: Running TCP_Port: {native.tcp_port}{tls}")
        if detail > 2:
            lines.extend(f"Peer {peer!r}" for peer in list(native.peers.values()))
        return "\n".join(lines) + "\n"


def _variables(conf: Mapping[str, str] | None, *, useenv: bool) -> dict[str, str]:
    """Return the environment with ``conf`` over it."""
    variables = dict(os.environ) if useenv else {}
    if conf is None:
        return variables
    for name, value in conf.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise AttributeError(f"conf=: {name!r} and its value must both be strings")  # noqa: TRY004 - as p4p
        if name.startswith("EPICS_PVA_"):
            # A server reads its own variable first. One of the environment must not hide what conf says.
            twin = _TWINS.get(name, "EPICS_PVAS_" + name.removeprefix("EPICS_PVA_"))
            if twin in conf:
                continue
            if name == "EPICS_PVA_TLS_OPTIONS" and twin in variables:
                # Each option by itself: a program that sets one must not take away that the site requires TLS.
                variables[twin] = f"{variables[twin]} {value}"
            else:
                variables.pop(twin, None)
    variables.update(conf)
    return variables


def _resolve(variables: Mapping[str, str]) -> Effective[ServerConfig]:
    try:
        effective = resolve_server(environ=variables)
    except ApplianceError as error:
        raise RuntimeError(f"the server has an invalid setting: {error}") from error
    for warning in effective.warnings:
        _log.warning("%s", warning)
    return effective


async def _start(
    stack: AsyncExitStack,
    effective: Effective[ServerConfig],
    variables: Mapping[str, str],
    providers: Providers,
) -> NativeServer:
    return await stack.enter_async_context(
        open_server(
            effective,
            prepare=lambda server: server.add_source("providers", providers),
            status_client=resolve_client(environ=variables).config,
        )
    )


def _stop(running: Engine, stack: AsyncExitStack, providers: Providers, *, wait: bool) -> None:
    async def close() -> None:
        try:
            await stack.aclose()
        finally:
            providers.items = []

    if not running.is_usable:
        return
    if wait and not running.is_current:
        running.run(close())
        return

    def begin() -> None:
        task = running.loop.create_task(close(), name="stops a server")
        _stopping.add(task)
        task.add_done_callback(_stopping.discard)

    with contextlib.suppress(
        RuntimeError
    ):  # the interpreter ends, and the sockets with it; or this is a child of a fork
        running.soon(begin)


_stopping: set[asyncio.Task[None]] = set()
"""Ends of servers that nobody waits for."""


def _beacon_addresses(config: ServerConfig) -> str:
    """Return where beacons go: the same addresses are where a client can look for the server."""
    listened = [endpoint.host for endpoint in config.intf_addr_list]
    addresses = [str(endpoint) for endpoint in config.beacon_addr_list]
    if config.auto_beacon_addr_list:
        addresses += broadcast_addresses(frozenset(listened))
    if not addresses:
        # A client with these settings must find the server at least from this host.
        addresses = [host for host in listened if host != _ANY] or ["127.0.0.1"]
    return " ".join(dict.fromkeys(addresses))

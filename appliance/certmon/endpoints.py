"""Clients and servers with TLS according to their configuration.

Both functions are asynchronous context managers::

    async with open_client(resolve_client()) as context: ...
    async with open_server(resolve_server(), prepare=add_pvs) as server: ...

Without a keychain they use plain TCP, and nothing of TLS is imported.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from appliance.client.context import Context
from appliance.config.pva import ClientConfig, Effective, ServerConfig
from appliance.config.tls_options import check_keychain_set
from appliance.errors import ApplianceError, ConfigurationError

if TYPE_CHECKING:
    from appliance.certmon.server import ServerTLSManager
    from appliance.server.server import Server

__all__ = ["open_client", "open_server", "reconfigure_server"]

_log: Final = logging.getLogger(__name__)

_keepers: Final[WeakKeyDictionary[Server, ServerTLSManager | _LateKeychain]] = WeakKeyDictionary()
"""Who keeps the TLS of each open server up to date."""

LATE_POLL_S: Final = 1.0
"""Seconds between two looks for a keychain that does not exist yet."""


@asynccontextmanager
async def open_client(
    effective: Effective[ClientConfig] | ClientConfig, *, context: Context | None = None, **options: Any
) -> AsyncIterator[Context]:
    """Open a client that uses its keychain according to the configuration.

    Args:
        effective: The settings.
        context: A Context that exists already, with these settings and without TLS.
        options: For Context.

    Yields:
        The client. Without a keychain it uses plain TCP.

    Raises:
        KeychainError: The keychain cannot be used, and the configuration does not ask to continue without it
            (``on_no_keychain=fallback-to-tcp``); or there is no usable certificate, and the configuration forbids to
            continue without one (``on_expiration=shutdown`` or ``standby``, ``tls_required``).
    """
    config = effective.config if isinstance(effective, Effective) else effective
    check_keychain_set(config.tls_options, config.tls_keychain, "EPICS_PVA_TLS_KEYCHAIN")
    if not config.tls_keychain:
        plain = Context(config, **options) if context is None else context
        # The classes' own start and close, because a subclass's start may have called this.
        await Context.start(plain)
        try:
            yield plain
        finally:
            await Context.close(plain)
        return
    from appliance.certmon.client import ClientTLSManager

    async with ClientTLSManager(config, options, context) as secure:
        yield secure


@asynccontextmanager
async def open_server(
    effective: Effective[ServerConfig] | ServerConfig,
    *,
    prepare: Callable[[Server], None] | None = None,
    status_client: ClientConfig | None = None,
    server: Server | None = None,
    **options: Any,
) -> AsyncIterator[Server]:
    """Open a server that uses its keychain according to the configuration.

    If no keychain is named and none is at the usual place, one that appears there later is used.

    Args:
        effective: The settings.
        prepare: Adds PVs and sources before the first client can ask for them.
        status_client: How to find the certificate service; by default the client variables of the environment.
        server: A Server that exists already, with these settings and without TLS.
        options: For Server.

    Yields:
        The server. Without a keychain it uses plain TCP; with ``tls_required`` it waits in standby for one that is missing.

    Raises:
        KeychainError: The keychain cannot be used, and the configuration does not ask to continue without it
            (``on_no_keychain=fallback-to-tcp``); or there is no usable certificate, and the configuration forbids to
            serve without one (EPICS_PVAS_TLS_STOP_IF_NO_CERT, ``on_expiration=shutdown``), or it has ``tls_required``
            and no place for a keychain.
    """
    config = effective.config if isinstance(effective, Effective) else effective
    if config.tls_options.tls_required and not config.tls_keychain:
        # A keychain that is missing at a known place is waited for in standby.
        config = config._replace(tls_keychain=config.tls_keychain_default, tls_keychain_default="")
    check_keychain_set(config.tls_options, config.tls_keychain, "EPICS_PVAS_TLS_KEYCHAIN")
    if not config.tls_keychain:
        from appliance.server.server import Server

        if config.tls_stop_if_no_cert:
            from appliance.errors import KeychainError

            raise KeychainError(
                "EPICS_PVAS_TLS_STOP_IF_NO_CERT is set and there is no keychain; set EPICS_PVAS_TLS_KEYCHAIN"
            )
        plain = Server(config, **options) if server is None else server
        if prepare is not None:
            prepare(plain)
        # The classes' own start and stop, because a subclass's start may have called this.
        await Server.start(plain)
        try:
            if config.tls_keychain_default:
                _keepers[plain] = _LateKeychain(plain, config, status_client)
            yield plain
        finally:
            await _let_go(plain)
            await Server.stop(plain)
        return
    from appliance.certmon.server import ServerTLSManager

    manager = ServerTLSManager(config, options, prepare, status_client, server)
    async with manager as secure:
        _keepers[secure] = manager
        try:
            yield secure
        finally:
            if _keepers.get(secure) is not manager:
                await _let_go(secure)


async def _let_go(server: Server) -> None:
    keeper = _keepers.pop(server, None)
    if keeper is not None:
        await keeper.release()


async def reconfigure_server(
    server: Server, config: ServerConfig, *, status_client: ClientConfig | None = None
) -> None:
    """Use another keychain and other TLS options for a server that :func:`open_server` has opened.

    Ports and interfaces stay as they are. Connections over TLS end, since they were made under the former settings; those over plain
    TCP go on.

    Args:
        server: The server, which goes on.
        config: The new settings.
        status_client: How to find the certificate service; by default the client variables of the environment.

    Raises:
        ConfigurationError: The settings need other ports (``tls_required``). Nothing has changed then.
        KeychainError: The keychain cannot be used. Nothing has changed then.
        CertificateStatusError: No status came, and ``on_no_cms=throw`` is set. Nothing has changed then.
    """
    if config.tls_options.tls_required != server.require_tls:
        raise ConfigurationError(
            "tls_required decides which ports are open, so it can only be changed with a restart"
        )
    if server.require_tls and not config.tls_keychain:
        config = config._replace(tls_keychain=config.tls_keychain_default, tls_keychain_default="")
    check_keychain_set(config.tls_options, config.tls_keychain, "EPICS_PVAS_TLS_KEYCHAIN")
    former = _keepers.get(server)
    if config.tls_keychain:
        from appliance.certmon.server import ServerTLSManager

        manager = ServerTLSManager(config, {}, None, status_client)
        await manager.prepare_for(server)
        if former is not None:
            former.retire()
        _keepers[server] = manager
        await manager.serve()
        if former is not None:
            await former.release()
        return
    if config.tls_stop_if_no_cert:
        raise ConfigurationError("EPICS_PVAS_TLS_STOP_IF_NO_CERT is set, and there would be no keychain")
    await _let_go(server)
    server.entrance.gate = None
    server.access.plight = ""
    await server.set_tls(None)
    server.set_standby(False)
    server.close_peers(ApplianceError("the server has no keychain from now on"), tls_only=True)
    if config.tls_keychain_default:
        _keepers[server] = _LateKeychain(server, config, status_client)


class _LateKeychain:
    """Waits for a keychain at the usual place; the code to use one is loaded only when it exists."""

    def __init__(self, server: Server, config: ServerConfig, status_client: ClientConfig | None) -> None:
        self._server = server
        self._config = config._replace(tls_keychain=config.tls_keychain_default, tls_keychain_default="")
        self._status_client = status_client
        self._manager: ServerTLSManager | None = None
        self._task = asyncio.get_running_loop().create_task(self._wait(), name="waits for a keychain")

    async def _wait(self) -> None:
        path = self._config.tls_keychain
        _log.info("there is no keychain at %s: plain TCP is used until there is one", path)
        try:
            while not os.path.exists(path):  # noqa: ASYNC110, ASYNC240, PTH110 - nobody tells; takes microseconds; pathlib costs start-up time
                await asyncio.sleep(LATE_POLL_S)
            from appliance.certmon.server import ServerTLSManager

            self._manager = ServerTLSManager(self._config, {}, None, self._status_client)
            await self._manager.adopt(self._server)
        except Exception:  # noqa: BLE001 - the server goes on as it is, and somebody must hear of it
            _log.exception(
                "changes of the keychain %s cannot be followed; restart the server to use it", path
            )

    def retire(self) -> None:
        self._task.cancel()
        if self._manager is not None:
            self._manager.retire()

    async def release(self) -> None:
        self.retire()
        await asyncio.gather(self._task, return_exceptions=True)
        if self._manager is not None:
            await self._manager.release()

"""Clients and servers with TLS as their configuration asks for it.

Both functions are asynchronous context managers::

    async with open_client(resolve_client()) as context: ...
    async with open_server(resolve_server(), prepare=add_pvs) as server: ...

Without a keychain they are plain, and nothing of TLS is imported.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from appliance.certmon.required import check_keychain_set
from appliance.client.context import Context
from appliance.config.pva import ClientConfig, Effective, ServerConfig

if TYPE_CHECKING:
    from appliance.server.server import Server

__all__ = ["open_client", "open_server"]

_log: Final = logging.getLogger(__name__)


@asynccontextmanager
async def open_client(
    effective: Effective[ClientConfig] | ClientConfig, **options: Any
) -> AsyncIterator[Context]:
    """Open a client that uses its keychain as the configuration says.

    ``options`` go to Context. Raises KeychainError where the configuration forbids to go on without a usable
    certificate (``on_expiration=shutdown`` or ``standby``, ``tls_required``); else what is wrong with the keychain is a warning and
    the client speaks plain TCP.
    """
    config = effective.config if isinstance(effective, Effective) else effective
    check_keychain_set(config.tls_options, config.tls_keychain, "EPICS_PVA_TLS_KEYCHAIN")
    if not config.tls_keychain:
        async with Context(config, **options) as context:
            yield context
        return
    from appliance.certmon.client import ClientKeeper

    async with ClientKeeper(config, options) as context:
        yield context


@asynccontextmanager
async def open_server(
    effective: Effective[ServerConfig] | ServerConfig,
    *,
    prepare: Callable[[Server], None] | None = None,
    status_client: ClientConfig | None = None,
    **options: Any,
) -> AsyncIterator[Server]:
    """Open a server that uses its keychain as the configuration says.

    ``prepare`` adds PVs and sources before the first client can ask for them. ``status_client`` says how the
    certificate service is found; without it the client variables of the environment do. ``options`` go to Server.
    Raises KeychainError where the configuration forbids to serve without a usable certificate
    (EPICS_PVAS_TLS_STOP_IF_NO_CERT, ``on_expiration=shutdown``), and where it names no keychain and has
    ``tls_required``; else what is wrong with the keychain is a warning and the server speaks plain TCP (with
    ``tls_required``: waits in standby).
    """
    config = effective.config if isinstance(effective, Effective) else effective
    check_keychain_set(config.tls_options, config.tls_keychain, "EPICS_PVAS_TLS_KEYCHAIN")
    if not config.tls_keychain:
        from appliance.server.server import Server

        if config.tls_stop_if_no_cert:
            from appliance.errors import KeychainError

            raise KeychainError(
                "EPICS_PVAS_TLS_STOP_IF_NO_CERT is set and there is no keychain; set EPICS_PVAS_TLS_KEYCHAIN"
            )
        server = Server(config, **options)
        if prepare is not None:
            prepare(server)
        async with server:
            yield server
        return
    from appliance.certmon.server import ServerKeeper

    async with ServerKeeper(config, options, prepare, status_client) as server:
        yield server

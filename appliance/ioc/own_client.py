"""The client with which the IOC reads and writes PVs of other servers, as itself."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from appliance.certmon.endpoints import open_client
from appliance.client.context import Context
from appliance.config.pva import ServerConfig, resolve_client

__all__ = ["open_own_client"]

_log: Final = logging.getLogger(__name__)


@asynccontextmanager
async def open_own_client(
    server: ServerConfig | None, what: str, without: str, *, require_tls: bool
) -> AsyncIterator[Context]:
    """Open a client.

    Its settings are those of the environment. If they name no keychain, the keychain of our own server is used.

    Args:
        server: The settings of our own server.
        what: What the client is for; messages begin with it.
        without: What becomes of that if TLS is required and there is no keychain.
        require_tls: Use PVs over TLS only.

    Yields:
        The client.

    Raises:
        KeychainError: The keychain cannot be used.
    """
    found = resolve_client()
    for warning in found.warnings:
        _log.warning("%s: %s", what, warning)
    config = found.config
    if server is not None and not config.tls_keychain and found.sources["tls_keychain"] == "default":
        config = config._replace(
            tls_keychain=server.tls_keychain,
            tls_keychain_password=server.tls_keychain_password,
            tls_options=config.tls_options._replace(on_no_keychain=server.tls_options.on_no_keychain),
        )
    if require_tls and not config.tls_keychain:
        _log.error("%s need TLS, but this IOC has no keychain; %s", what, without)
    async with open_client(config, require_tls=require_tls) as context:
        yield context

"""The client with which the IOC reads and writes PVs of other servers, as itself."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

from appliance.certmon.endpoints import open_client
from appliance.client.context import Context
from appliance.config.pva import ClientConfig, ServerConfig, resolve_client

__all__ = ["TLS_SETTINGS", "open_own_client", "own_client_config", "with_tls_of"]

TLS_SETTINGS: Final = (
    "no_status_cache",
    "status_cache_dir",
    "tls_keychain",
    "tls_keychain_default",
    "tls_keychain_password",
    "tls_keylog_file",
    "tls_options",
    "tls_stop_if_no_cert",
)
"""What can be used anew while the IOC runs."""
_log: Final = logging.getLogger(__name__)


def own_client_config(
    server: ServerConfig | None, what: str, environ: Mapping[str, str] | None = None
) -> ClientConfig:
    """Return the settings of the IOC's own client.

    They are those of the environment. If that names no keychain, the keychain of our own server is used.

    Args:
        server: The settings of our own server.
        what: What the client is for; messages begin with it.
        environ: The environment; by default that of the process.
    """
    found = resolve_client(environ=environ)
    for warning in found.warnings:
        _log.warning("%s: %s", what, warning)
    config = found.config
    if server is not None and not config.tls_keychain and found.sources["tls_keychain"] == "default":
        config = config._replace(
            tls_keychain=server.tls_keychain,
            tls_keychain_password=server.tls_keychain_password,
            tls_options=config.tls_options._replace(on_no_keychain=server.tls_options.on_no_keychain),
        )
    return config


def with_tls_of(config: ClientConfig, other: ClientConfig) -> ClientConfig:
    """Return settings with keychain and TLS options of others."""
    return config._replace(
        **{name: getattr(other, name) for name in TLS_SETTINGS if name in ClientConfig.__fields__}
    )


@asynccontextmanager
async def open_own_client(
    config: ClientConfig, what: str, without: str, *, require_tls: bool
) -> AsyncIterator[Context]:
    """Open a client with settings of :func:`own_client_config`.

    Args:
        config: The settings.
        what: What the client is for; messages begin with it.
        without: What becomes of that if TLS is required and there is no keychain.
        require_tls: Use PVs over TLS only.

    Yields:
        The client.

    Raises:
        KeychainError: The keychain cannot be used.
    """
    if require_tls and not config.tls_keychain:
        _log.error("%s need TLS, but this IOC has no keychain; %s", what, without)
    async with open_client(config, require_tls=require_tls) as context:
        yield context

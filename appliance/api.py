"""The client and the server for Python programs: with the settings, and the identity, of their environment.

`appliance.client.Context` and `appliance.server.Server` do the work, with a TLS context that the caller passes. These two
also read the environment, use the keychain that it names, and follow the status of certificates, as the command-line
tools and the daemons do.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

from appliance.certmon.endpoints import open_client, open_server
from appliance.client.context import Context as _Context
from appliance.config.pva import ClientConfig, ServerConfig, resolve_client, resolve_server
from appliance.server.server import Server as _Server

__all__ = ["Context", "Server"]


class Context(_Context):
    """A PVAccess client with the settings and the keychain of its environment.

    ::

        async with Context() as ctx:
            value = await ctx.get("test:calcExample")
            await ctx.put("test:spec", 4.5)

    Operations are those of `appliance.client.Context`.

    Args:
        config: Settings; without them those of the ``EPICS_PVA_*`` variables (`resolve_client`).
        options: For `appliance.client.Context`, for instance ``require_tls=True``: no PV is used over plain TCP, and
            nothing is connected while the own certificate is not valid yet. With ``tls`` that TLS context is used as
            it is, and the keychain of the settings is not.

    Raises:
        KeychainError: From ``async with`` or ``start``: TLS is required, and the keychain is missing or cannot be
            read; or the certificate has ended, and ``on_expiration`` forbids to continue.
    """

    def __init__(self, config: ClientConfig | None = None, **options: Any) -> None:
        config = resolve_client().config if config is None else config
        if options.get("require_tls") and options.get("tls") is None:
            config = config._replace(tls_options=config.tls_options._replace(tls_required=True))
        super().__init__(config, **options)
        self._follows_keychain = options.get("tls") is None
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        """Open the search sockets, take the keychain into use, and connect to the name servers."""
        if self._follows_keychain:
            await self._stack.enter_async_context(open_client(self.config, context=self))
        else:
            await super().start()

    async def close(self) -> None:
        """Close all channels and connections."""
        await super().close()
        await self._stack.aclose()


class Server(_Server):
    """A PVAccess server with the settings and the keychain of its environment.

    ::

        server = Server()
        server.add_pv("demo", SharedPV.mailbox(NTScalar(FLOAT64)))
        async with server:
            await server.wait_closed()

    Args:
        config: Settings; without them those of the ``EPICS_PVAS_*`` and ``EPICS_PVA_*`` variables (`resolve_server`).
        options: For `appliance.server.Server`, for instance ``require_tls=True``: no port for plain TCP is opened.
            Without a usable keychain the server then answers nobody until there is one. With ``tls`` that TLS
            context is used as it is, and the keychain of the settings is not.

    Raises:
        ConfigurationError: A variable that says where to listen, or whom to ignore, cannot be used.
        KeychainError: From ``async with`` or ``start``: there is no usable keychain, and
            EPICS_PVAS_TLS_STOP_IF_NO_CERT is set; or the certificate has ended, and ``on_expiration=shutdown`` is set.
    """

    def __init__(self, config: ServerConfig | None = None, **options: Any) -> None:
        config = resolve_server().config if config is None else config
        if options.get("require_tls") and options.get("tls") is None:
            config = config._replace(tls_options=config.tls_options._replace(tls_required=True))
        super().__init__(config, **options)
        self._follows_keychain = options.get("tls") is None
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        """Take the keychain into use, and listen."""
        if self._follows_keychain:
            await self._stack.enter_async_context(open_server(self.config, server=self))
        else:
            await super().start()

    async def stop(self) -> None:
        """Close everything."""
        await super().stop()
        await self._stack.aclose()

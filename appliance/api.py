"""The client and the server for Python programs: with the settings, and the identity, of their environment.

`appliance.client.Context` and `appliance.server.Server` do the work, with a TLS context that the caller passes. These two
also read the environment, use the keychain that it names, and follow the status of certificates, as the command-line
tools and the daemons do.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, TypedDict, Unpack

from appliance.certmon.endpoints import open_client, open_server
from appliance.client.context import Context as _Context
from appliance.config.pva import ClientConfig, ServerConfig, resolve_client, resolve_server
from appliance.server.access import AccessPolicy
from appliance.server.server import Server as _Server

if TYPE_CHECKING:
    from appliance.client.end import Timings
    from appliance.pva.limits import Limits
    from appliance.server.admission import AdmissionTimings
    from appliance.server.quota import Quota
    from appliance.tls.context import TLSContext
    from appliance.transport.gate import PeerGate

__all__ = ["Context", "Server"]


class _ForContext(TypedDict, total=False):
    """Arguments that `appliance.client.Context` describes."""

    tls: TLSContext | None
    gate: PeerGate | None
    limits: Limits
    segment_size: int
    beacons: bool
    octets: bool
    timings: Timings
    ignore_guids: frozenset[bytes]
    ignore_servers: frozenset[tuple[str, int]]
    search_tls: TLSContext | None


class _ForServer(TypedDict, total=False):
    """Arguments that `appliance.server.Server` describes."""

    tls: TLSContext | None
    gate: PeerGate | None
    limits: Limits
    segment_size: int
    max_connections: int
    quota: Quota
    guid: bytes | None
    timings: AdmissionTimings
    proxied: Callable[[str], bool] | None


class Context(_Context):
    """A PVAccess client with the settings and the keychain of its environment.

    Args:
        config: Settings; without them those of the ``EPICS_PVA_*`` variables (`resolve_client`).
        require_tls: Whether PVs are used over TLS only. Nothing is then connected while the own certificate is not valid yet.
        expert: What few programs need: the other arguments of `appliance.client.Context`, by the same names. With ``tls``, the
            keychain of the settings is not used.

    Raises:
        KeychainError: From ``async with`` or ``start``: TLS is required, and the keychain is missing or cannot be
            read; or the certificate has ended, and ``on_expiration`` forbids to continue.

    Example:
        >>> async with Context() as ctx:
        ...     value = await ctx.get("demo:temperature")
        ...     await ctx.put("demo:setpoint", 4.5)
        >>> value["value"]
        21.5
    """

    def __init__(
        self,
        config: ClientConfig | None = None,
        *,
        require_tls: bool = False,
        **expert: Unpack[_ForContext],
    ) -> None:
        config = resolve_client().config if config is None else config
        self._follows_keychain = expert.get("tls") is None
        if require_tls and self._follows_keychain:
            config = config._replace(tls_options=config.tls_options._replace(tls_required=True))
        super().__init__(config, require_tls=require_tls, **expert)
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        """Open the search sockets, take the keychain into use, and connect to the name servers; ``async with`` does it.

        Raises:
            KeychainError: There is no usable keychain, as above.
            TransportError: A socket cannot be opened.

        Example:
            >>> second = Context()
            >>> await second.start()
            >>> (await second.get("demo:temperature"))["value"]
            21.5
            >>> await second.close()
        """
        if self._follows_keychain:
            await self._stack.enter_async_context(open_client(self.config, context=self))
        else:
            await super().start()

    async def close(self) -> None:
        """Close all channels and connections; ``async with`` does it. Operations that wait end with an error.

        A closed context cannot be started again.

        Example:
            >>> await ctx.close()
            >>> await ctx.get("demo:temperature")
            Traceback (most recent call last):
            appliance.errors.ChannelClosedError: the client context is closed; make a new one
        """
        await super().close()
        await self._stack.aclose()


class Server(_Server):
    """A PVAccess server with the settings and the keychain of its environment.

    Args:
        config: Settings; without them those of the ``EPICS_PVAS_*`` and ``EPICS_PVA_*`` variables (`resolve_server`).
        policy: Decides what clients may do; without it all may do everything.
        require_tls: Whether no port for plain TCP is opened. Without a usable keychain the server then answers nobody until
            there is one.
        expert: What few programs need: the other arguments of `appliance.server.Server`, by the same names. With ``tls``, the
            keychain of the settings is not used.

    Raises:
        ConfigurationError: A variable that says where to listen, or whom to ignore, cannot be used.
        KeychainError: From ``async with`` or ``start``: there is no usable keychain, and
            EPICS_PVAS_TLS_STOP_IF_NO_CERT is set; or the certificate has ended, and ``on_expiration=shutdown`` is set.

    Example:
        >>> pressure = SharedPV.mailbox(Value(NTScalar(FLOAT64), 1e-9))
        >>> second = Server()
        >>> second.add_pv("demo:pressure", pressure)
        >>> async with second:
        ...     pressure.post(2e-9)  # and in a program: await second.wait_closed()
        >>> pressure.current["value"]
        2e-09
    """

    def __init__(
        self,
        config: ServerConfig | None = None,
        *,
        policy: AccessPolicy | None = None,
        require_tls: bool = False,
        **expert: Unpack[_ForServer],
    ) -> None:
        config = resolve_server().config if config is None else config
        self._follows_keychain = expert.get("tls") is None
        if require_tls and self._follows_keychain:
            config = config._replace(tls_options=config.tls_options._replace(tls_required=True))
        super().__init__(config, policy=policy, require_tls=require_tls, **expert)
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        """Take the keychain into use, and listen; ``async with`` does it.

        Raises:
            KeychainError: There is no usable keychain, as above.
            TransportError: An address or a port cannot be used.

        Example:
            >>> second = Server()
            >>> await second.start()
            >>> second.tcp_port > 0
            True
            >>> await second.stop()
        """
        if self._follows_keychain:
            await self._stack.enter_async_context(open_server(self.config, server=self))
        else:
            await super().start()

    async def stop(self) -> None:
        """Send what waits, at most for a second, and close all connections; ``async with`` does it.

        Example:
            >>> await server.stop()
        """
        await super().stop()
        await self._stack.aclose()

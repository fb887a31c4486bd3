"""A server's keychain in use: how it listens, and when its connections must close."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from cryptography import x509

from appliance.certmon.policy import Mode
from appliance.certmon.tls_manager import TLSManager
from appliance.certs.keychain import Keychain
from appliance.config.pva import ClientConfig, ServerConfig, resolve_client
from appliance.errors import SecurityError
from appliance.server.server import Server

__all__ = ["ServerTLSManager"]

_log: Final = logging.getLogger(__name__)


class ServerTLSManager(TLSManager):
    """An asynchronous context manager that opens a Server and keeps its TLS up to date."""

    def __init__(
        self,
        config: ServerConfig,
        options: dict[str, Any],
        prepare: Callable[[Server], None] | None,
        status_client: ClientConfig | None,
        server: Server | None = None,
    ) -> None:
        """Keep the TLS of a Server that is made with ``options``, or of ``server``, which has not been started."""
        super().__init__(config, resolve_client().config if status_client is None else status_client)
        self._config = config
        self._arguments = options
        self._prepare = prepare
        self._given = server
        self._server: Server | None = None
        self._adopted = False
        self._is_retired = False
        self._is_released = False
        self._news = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Server:
        try:
            server = await self._start()
        except BaseException:
            await self.__aexit__()
            raise
        self._worker = asyncio.get_running_loop().create_task(self._work())
        self.watch()
        # Answers that came while the sockets were opened are not lost.
        self.changed()
        return server

    async def _start(self) -> Server:
        identity = self.identity
        trouble = await self.open()
        if trouble is not None:
            _log.warning("TLS is not used: %s", trouble)
        mode = self.begin()
        if mode is not Mode.TLS:
            _log.warning("%s: %s: %s until that changes", identity.path, self.why(), mode.value)
        tls = identity.full if mode is Mode.TLS else None
        if self.options.tls_required:
            self._arguments["require_tls"] = True
        server = self._given
        if server is None:
            server = Server(self._config, tls=tls, gate=self.gate, **self._arguments)
        else:
            server.entrance.gate = self.gate
            server.require_tls = server.require_tls or self.options.tls_required
            await server.set_tls(tls)
        self._server = server
        server.set_standby(mode is Mode.STANDBY)
        self._tell_plight(server)
        if self._prepare is not None:
            self._prepare(server)
        # The class's own method, because a subclass's start has called this.
        await Server.start(server)
        return server

    async def adopt(self, server: Server) -> None:
        """Keep the TLS of a server that runs without it; its keychain is used like a replaced one.

        The owner still stops the server, after :meth:`__aexit__`.
        """
        self._server, self._adopted = server, True
        self.mode, self.generation = Mode.TCP, self.identity.generation
        server.entrance.gate = self.gate
        if self.source is not None:
            await self.source.start()
        self._worker = asyncio.get_running_loop().create_task(self._work())
        self.watch()

    async def prepare_for(self, server: Server) -> None:
        """Read the keychain for a server that runs; :meth:`serve` uses it then.

        Raises:
            KeychainError: The keychain cannot be used.
            CertificateStatusError: No status came, and ``on_no_cms=throw`` is set.
        """
        try:
            trouble = await self.open()
            self.begin()
        except BaseException:
            await self.close()
            raise
        if trouble is not None:
            _log.warning("TLS is not used: %s", trouble)
        self._server, self._adopted = server, True

    async def serve(self) -> None:
        """Keep the TLS of the prepared server from now on. Its connections over TLS end: others have judged them."""
        server = self._server
        assert server is not None
        server.entrance.gate = self.gate
        self._tell_plight(server)
        await server.set_tls(self.identity.full if self.mode is Mode.TLS else None)
        server.set_standby(self.mode is Mode.STANDBY)
        server.close_peers(SecurityError("the server uses other TLS settings from now on"), tls_only=True)
        self._worker = asyncio.get_running_loop().create_task(self._work())
        self.watch()
        self.changed()

    def retire(self) -> None:
        """Change the server no more; :meth:`release` follows."""
        self._is_retired = True
        if self._worker is not None:
            self._worker.cancel()
            self._worker = None

    async def release(self) -> None:
        """Follow keychain and statuses no more; the server goes on."""
        self.retire()
        if not self._is_released:
            self._is_released = True
            await self.close()

    async def __aexit__(self, *_: object) -> None:
        self.retire()
        if self._server is not None:
            if not self._adopted:
                await Server.stop(self._server)
            self._server = None
        await self.release()

    def _tell_plight(self, server: Server) -> None:
        """Tell refused clients that nobody can prove an identity while this server has no TLS."""
        why = self.plight()
        server.access.plight = f"this server cannot verify your identity at present: {why}" if why else ""

    def choose(self) -> Mode:
        """Return the mode. A server that must have a certificate does not continue without one."""
        mode = super().choose()
        if mode is Mode.TCP and self._config.tls_stop_if_no_cert and self.ended:
            return Mode.SHUTDOWN
        return mode

    def changed(self) -> None:
        """Apply the present state, as soon as the event loop allows."""
        server = self._server
        if self._is_retired:
            return
        if server is not None and self.settled and self.ended and self.mode is Mode.TLS:
            server.close_peers(SecurityError(self.why()), tls_only=True)
        self._news.set()

    async def _work(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                await self._apply()
            except Exception:  # noqa: BLE001 - the next change must still be served
                _log.exception("the change of the server's TLS failed")

    async def _apply(self) -> None:
        server = self._server
        assert server is not None
        news = self.news()
        if news is None:
            return
        if self.mode is Mode.SHUTDOWN:
            await Server.stop(server)
            return
        why, must_go = news
        self._tell_plight(server)
        await server.set_tls(self.identity.full if self.mode is Mode.TLS else None)
        server.set_standby(self.mode is Mode.STANDBY, close=self.ended)
        if must_go:
            server.close_peers(SecurityError(why), tls_only=True)

    def close_connections_of(self, certificate: x509.Certificate, reason: SecurityError) -> None:
        """Close the connections in which this server has shown ``certificate``."""
        if self._server is not None and not self._is_retired:
            self._server.close_peers(reason, certificate=certificate)

    def renew_connections_of(self, former: Keychain, within_s: float) -> None:
        """Close the connections of ``former`` whose clients have nothing to change; the others do it themselves."""
        if self._server is not None:
            self._server.renew_peers(former, SecurityError("a new keychain is in use"), within_s)

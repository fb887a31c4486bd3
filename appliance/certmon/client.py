"""A client's keychain in use: which TLS context its connections get, and when they must close."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from cryptography import x509

from appliance.certmon.policy import Mode
from appliance.certmon.tls_manager import TLSManager
from appliance.certs.keychain import Keychain
from appliance.client.context import Context
from appliance.config.pva import ClientConfig
from appliance.config.tls_options import TLS_REQUIRED
from appliance.errors import KeychainError, SecurityError
from appliance.tls.context import TLSContext

__all__ = ["ClientTLSManager"]

_log: Final = logging.getLogger(__name__)


class ClientTLSManager(TLSManager):
    """An asynchronous context manager that opens a Context and keeps its TLS up to date."""

    def __init__(self, config: ClientConfig, options: dict[str, Any], context: Context | None = None) -> None:
        """Keep the TLS of a Context that is made with ``options``, or of ``context``, which has not been started."""
        super().__init__(config, config)
        self._given = context
        self._config = config
        self._arguments = options
        self._context: Context | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Context:
        try:
            context = await self._start()
        except BaseException:
            await self.__aexit__()
            raise
        self.watch()
        # Answers that came while the sockets were opened are not lost.
        self.changed()
        return context

    async def _start(self) -> Context:
        identity = self.identity
        trouble = await self.open()
        if trouble is not None:
            _log.warning("TLS is not used: %s", trouble)
        self.begin()
        tls = self._tls()
        if self.options.tls_required:
            if trouble is not None and tls is None:
                # The keychain is missing or cannot be read: waiting would not help.
                raise KeychainError(f"{trouble}; {TLS_REQUIRED}")
            self._arguments["require_tls"] = True
        if self.mode is Mode.TCP:
            _log.warning("%s: %s; plain TCP is used until that changes", identity.path, self.why())
        elif self.mode is Mode.STANDBY:
            _log.warning(
                "%s: %s; %s: nothing is connected until that changes", identity.path, self.why(), TLS_REQUIRED
            )
        context = self._given
        if context is None:
            context = Context(self._config, tls=tls, gate=self.gate, **self._arguments)
        else:
            context.prepare_tls(tls, self.gate, require_tls=self.options.tls_required)
        self._context = context
        if self.gate is not None:
            self.gate.recovered = context.probe_tls
        # The class's own method, because a subclass's start has called this.
        await Context.start(context)
        return context

    async def __aexit__(self, *_: object) -> None:
        if self._context is not None:
            await Context.close(self._context)
            self._context = None
        await self.close()

    def _tls(self) -> TLSContext | None:
        if self.mode is Mode.TLS:
            return self.identity.full
        return self.identity.anonymous if self.mode is Mode.ANONYMOUS else None

    def changed(self) -> None:
        """Apply the present state."""
        context = self._context
        news = self.news() if context is not None else None
        if context is None or news is None:
            return
        if self.mode is Mode.SHUTDOWN:
            task = asyncio.get_running_loop().create_task(context.close())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        why, must_go = news
        context.set_tls(self._tls(), SecurityError(why) if must_go else None)

    def close_connections_of(self, certificate: x509.Certificate, reason: SecurityError) -> None:
        """Close the connections in which this client has shown ``certificate``."""
        if self._context is not None:
            self._context.close_connections_of(certificate, reason)

    def renew_connections_of(self, former: Keychain, within_s: float) -> None:
        """Replace the connections in which this client has shown ``former``, where the server has changed too."""
        if self._context is not None and former.certificate is not None:
            self._context.renew_connections_of(former.certificate, within_s)

"""A server's keychain at work: what it listens with, and when its connections must go."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from appliance.certmon.identity import Identity
from appliance.certmon.policy import Mode, choose_mode
from appliance.certs.status import StatusClass
from appliance.config.pva import ClientConfig, ServerConfig
from appliance.errors import KeychainError, TransportError
from appliance.server.server import Server

__all__ = ["ServerKeeper"]

_log: Final = logging.getLogger(__name__)


class ServerKeeper:
    """An asynchronous context manager that gives a Server and keeps its TLS in step with the keychain."""

    def __init__(
        self,
        config: ServerConfig,
        options: dict[str, Any],
        prepare: Callable[[Server], None] | None,
        status_client: ClientConfig | None,
    ) -> None:
        self.identity = Identity(config)
        self._config = config
        self._options = options
        self._prepare = prepare
        self._status_client = status_client
        self._server: Server | None = None
        self._generation = 0
        self._mode: Mode | None = None
        self._queue: asyncio.Queue[None] = asyncio.Queue()
        self._worker: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Server:
        identity = self.identity
        try:
            identity.load()
        except KeychainError as error:
            if self._config.tls_stop_if_no_cert:
                raise
            _log.warning("TLS is not used: %s", error)
        mode = self._choose()
        if mode is Mode.SHUTDOWN or (self._config.tls_stop_if_no_cert and mode is not Mode.TLS):
            identity.stop()
            raise KeychainError(f"{identity.path}: {self._why()}; request a new certificate")
        self._mode, self._generation = mode, identity.generation
        tls = identity.full if mode is Mode.TLS else None
        self._server = server = Server(self._config, tls=tls, **self._options)
        server.set_standby(mode is Mode.STANDBY)
        if self._prepare is not None:
            self._prepare(server)
        await server.start()
        self._worker = asyncio.get_running_loop().create_task(self._work())
        identity.watch(self._changed)
        return server

    async def __aexit__(self, *_: object) -> None:
        self.identity.stop()
        if self._worker is not None:
            self._worker.cancel()
        if self._server is not None:
            await self._server.stop()

    def _choose(self) -> Mode:
        return choose_mode(
            self.identity.validity, StatusClass.GOOD, self._config.tls_options, server_side=True
        )

    def _why(self) -> str:
        return f"the certificate is {self.identity.validity.value}"

    def _changed(self) -> None:
        self._queue.put_nowait(None)

    async def _work(self) -> None:
        while True:
            await self._queue.get()
            try:
                await self._apply()
            except Exception:  # noqa: BLE001 - the next change must still be served
                _log.exception("the change of the server's TLS failed")

    async def _apply(self) -> None:
        identity, server = self.identity, self._server
        assert server is not None
        mode = self._choose()
        replaced = identity.generation != self._generation
        if mode is self._mode and not replaced:
            return
        self._mode, self._generation = mode, identity.generation
        why = "a new keychain is in use" if replaced else self._why()
        _log.warning("%s: %s: %s", identity.path, why, mode.value)
        if mode is Mode.SHUTDOWN:
            _log.error("%s: %s: the server stops, as on_expiration asks for", identity.path, self._why())
            await server.stop()
            return
        server.set_standby(mode is Mode.STANDBY)
        await server.set_tls(identity.full if mode is Mode.TLS else None)
        server.close_peers(TransportError(why), tls_only=True)

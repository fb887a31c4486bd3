"""A client's keychain at work: which TLS context its connections get, and when they must go."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from appliance.certmon.identity import Identity
from appliance.certmon.policy import Mode, choose_mode
from appliance.certs.status import StatusClass
from appliance.client.context import Context
from appliance.config.pva import ClientConfig
from appliance.errors import KeychainError, TransportError
from appliance.tls.context import TLSContext

__all__ = ["ClientKeeper"]

_log: Final = logging.getLogger(__name__)


class ClientKeeper:
    """An asynchronous context manager that gives a Context and keeps its TLS in step with the keychain."""

    def __init__(self, config: ClientConfig, options: dict[str, Any]) -> None:
        self.identity = Identity(config)
        self._config = config
        self._options = options
        self._context: Context | None = None
        self._generation = 0
        self._mode: Mode | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Context:
        identity = self.identity
        try:
            identity.load()
        except KeychainError as error:
            _log.warning("TLS is not used: %s", error)
        mode = self._choose()
        if mode is Mode.SHUTDOWN:
            identity.stop()
            raise KeychainError(f"{identity.path}: {self._why()}; request a new certificate")
        self._mode, self._generation = mode, identity.generation
        self._context = Context(self._config, tls=self._tls(mode), **self._options)
        await self._context.start()
        identity.watch(self._changed)
        return self._context

    async def __aexit__(self, *_: object) -> None:
        self.identity.stop()
        if self._context is not None:
            await self._context.close()

    def _choose(self) -> Mode:
        return choose_mode(
            self.identity.validity, StatusClass.GOOD, self._config.tls_options, server_side=False
        )

    def _why(self) -> str:
        return f"the certificate is {self.identity.validity.value}"

    def _tls(self, mode: Mode) -> TLSContext | None:
        if mode is Mode.TLS:
            return self.identity.full
        return self.identity.anonymous if mode is Mode.ANONYMOUS else None

    def _changed(self) -> None:
        identity, context = self.identity, self._context
        assert context is not None
        mode = self._choose()
        replaced = identity.generation != self._generation
        if mode is self._mode and not replaced:
            return
        self._mode, self._generation = mode, identity.generation
        if mode is Mode.SHUTDOWN:
            _log.error("%s: %s: the client ends, as on_expiration asks for", identity.path, self._why())
            task = asyncio.get_running_loop().create_task(context.close())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        _log.warning("%s: %s", identity.path, "a new keychain is in use" if replaced else self._why())
        context.set_tls(
            self._tls(mode), TransportError("the keychain was replaced" if replaced else self._why())
        )

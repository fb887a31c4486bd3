"""What stands behind a Context: its settings, and a native client on an event loop."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, Final
from weakref import WeakSet

from appliance.api import Context as NativeContext
from appliance.client.channels import check_name
from appliance.config.pva import ClientConfig, Effective, resolve_client
from appliance.errors import ApplianceError, ChannelClosedError, PVRequestError, RemoteError
from appliance.p4p._errors import Cancelled, p4p_error
from appliance.p4p._errors import RemoteError as P4PRemoteError
from appliance.p4p.client._requests import Request
from appliance.p4p.wrapper import Value
from appliance.pvdata.pvrequest import PVRequest, request_options
from appliance.pvdata.value import Value as NativeValue
from appliance.threads import Engine, engine, hold_at_end

__all__ = ["AnyRequest", "ClientProvider", "EngineProvider", "LoopProvider", "all_providers", "make_request"]

_log: Final = logging.getLogger(__name__)

AnyRequest = Value | str | None
"""A pvRequest as programs give it."""

_MAX_REQUESTS: Final = 256
_START_S: Final = 30.0
_CLOSE_S: Final = 5.0
"""Seconds that `ClientProvider.close` waits; the native client needs one at most."""
_SECRET: Final = "EPICS_PVA_TLS_KEYCHAIN_PWD_FILE"  # noqa: S105 - the name of a variable

all_providers: WeakSet[ClientProvider] = WeakSet()
"""The clients that are open."""


def _settings(
    provider: object, conf: object, *, useenv: bool
) -> tuple[Effective[ClientConfig], dict[str, str]]:
    """Read the settings of a client, as the tools do, with ``conf`` over the environment."""
    if not isinstance(provider, str):
        raise TypeError(f"the provider is a string such as 'pva', not {type(provider).__name__}")
    variables = dict(os.environ) if useenv else {}
    if conf is not None:
        if not isinstance(conf, Mapping):
            raise AttributeError(
                f"conf= is a dict of EPICS_PVA_* names and their values as text, not {type(conf).__name__}"
            )
        for name, value in conf.items():
            if not isinstance(name, str) or not isinstance(value, str):
                raise AttributeError(  # noqa: TRY004 - as p4p does
                    f"conf=: {name!r} and its value must both be strings"
                )
            variables[name] = value
    try:
        effective = resolve_client(environ=variables)
    except ApplianceError as error:
        raise p4p_error(error) from None
    for warning in effective.warnings:
        _log.warning("%s", warning)
    return effective, variables


def make_request(desc: str) -> Value:
    """Return the pvRequest that a text describes.

    Args:
        desc: Such as ``field(value)record[queueSize=10]``.

    Returns:
        The pvRequest.

    Raises:
        RuntimeError: The text cannot be parsed.

    Example:
        >>> from appliance.p4p.client.raw import Context
        >>> Context.makeRequest("field(value)record[queueSize=10]").record._options.queueSize
        '10'
    """
    if not isinstance(desc, str):
        raise TypeError(f"a request is a string or a Value, not {type(desc).__name__}")
    return Value._of(_parsed(desc))


def _parsed(text: str) -> NativeValue:
    try:
        return PVRequest(text).value
    except PVRequestError as error:
        raise RuntimeError(str(error)) from None


class ClientProvider:
    """The settings of a Context, and whether it is open.

    Args:
        provider: A name; every name stands for PVAccess.
        conf: Values of ``EPICS_PVA_*`` variables, which go before those of the environment.
        useenv: Whether the environment is read.
    """

    def __init__(self, provider: str, conf: Mapping[str, str] | None = None, useenv: bool = True) -> None:
        self._closed = True
        self._effective, variables = _settings(provider, conf, useenv=useenv)
        # No more of them: the variable of the keychain may have the password in it.
        self._password_file = variables.get(_SECRET, "")
        self._requests: dict[str, Request] = {}
        self._closed = False
        self.is_abandoned = False
        """Whether it was closed because the program ends: those who still wait are not woken."""

    @property
    def config(self) -> ClientConfig:
        """The settings."""
        return self._effective.config

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def check(self) -> None:
        """Refuse what needs an open client.

        Raises:
            RuntimeError: It was closed.
        """
        if self._closed:
            raise RuntimeError("Context closed")

    def close(self) -> None:
        """Close all channels and connections."""
        raise NotImplementedError

    def conf(self) -> dict[str, str]:
        """Return the settings in effect, by the names of their variables; empty after the end."""
        if self._closed:
            return {}
        lines = (line.partition("=") for line in self._effective.render(client=True).splitlines())
        found = {name: value for name, _, value in lines if name.startswith("EPICS_")}
        if found.pop(_SECRET, None) and self._password_file:
            found[_SECRET] = self._password_file
        return found

    def request(self, request: AnyRequest) -> Request:
        """Return a pvRequest in the form in which it is sent.

        Args:
            request: Text, a Value, or None for all fields.

        Raises:
            RuntimeError: The text cannot be parsed.
            TypeError: It is something else.
        """
        text = "" if request is None else request
        if isinstance(text, str):
            known = self._requests.get(text)
            if known is None:
                value = _parsed(text)
                known = Request(
                    text, NativeValue.from_store(value.type, value.store, 1), request_options(value)
                )
                if len(self._requests) >= _MAX_REQUESTS:
                    self._requests.clear()
                self._requests[text] = known
            return known
        if not isinstance(text, Value):
            raise TypeError(f"a request is a string or a Value, not {type(text).__name__}")
        value = text._fields.to_value()
        # The key of a text is that text; none begins like this.
        return Request(
            f"\0{text.tostr()}", NativeValue.from_store(value.type, value.store, 1), request_options(value)
        )

    @staticmethod
    def name(name: object) -> str:
        """Check the name of a PV.

        Raises:
            RuntimeError: It is empty, or no search can carry it.
            TypeError: It is no string.
        """
        if not isinstance(name, str):
            raise TypeError(f"the name of a PV is a string, not {type(name).__name__}")
        try:
            check_name(name)
        except ChannelClosedError as error:
            raise RuntimeError(str(error)) from None
        return name

    def error(self, error: BaseException, name: str) -> BaseException:
        """Return what the program gets in place of ``error``, which came for the PV with this name."""
        if self._closed and isinstance(error, ChannelClosedError):
            return Cancelled("the Context was closed before the answer came")
        if type(error) is RemoteError:
            return P4PRemoteError(str(error).removeprefix(f"{name}: "))  # the server's own words
        return p4p_error(error)


def _disconnect(native: NativeContext, name: str | None) -> None:
    """Close channels: those in use are searched for again."""
    for channel in list(native._links.channels) if native._is_open else ():
        if name is None or channel.name == name:
            if not channel.requests:
                native.give_back(channel.name)
                continue
            wire, link = channel.wire, channel.link
            if link is not None:
                if wire is not None:
                    wire.close()
                link.remove(channel)
                link.schedule_flush()
                channel.lost("the program called disconnect()")


class EngineProvider(ClientProvider):
    """A native client on the event loop of the process."""

    def __init__(self, provider: str, conf: Mapping[str, str] | None = None, useenv: bool = True) -> None:
        super().__init__(provider, conf, useenv)
        self._closed = True
        self.engine: Engine = engine()
        made: list[NativeContext] = []
        try:
            self.native: NativeContext = self.engine.run(self._open(made), _START_S)
        except BaseException as error:
            # Ctrl-C breaks off the wait, and nobody else would close what was opened meanwhile.
            for native in made:
                self.engine.soon(_spawn, self.engine, native)
            if isinstance(error, ApplianceError):
                raise p4p_error(error) from None
            raise
        self._closed = False
        all_providers.add(self)

    async def _open(self, made: list[NativeContext]) -> NativeContext:
        native = NativeContext(self.config)
        made.append(native)
        await native.start()
        return native

    def soon(self, function: Callable[..., object], *args: Any) -> None:
        """Call ``function`` on the event loop, soon."""
        self.engine.soon(function, *args)

    def check(self) -> None:
        """Refuse what needs an open client.

        Raises:
            RuntimeError: It was closed, or the process was forked.
        """
        self.engine.check()
        if self._closed:
            if self.is_abandoned and not self.engine.is_current:
                hold_at_end()
            raise RuntimeError("Context closed")

    def hurryUp(self) -> None:
        """Search now for all names that have no server."""
        self.check()
        self.soon(self.native.hurry_up)

    def disconnect(self, name: str | None = None) -> None:
        """Close the channel of a name, or all channels. Those in use are searched for again."""
        if name is not None and not isinstance(name, str):
            raise TypeError(f"the name of a PV is a string, not {type(name).__name__}")
        if not self._closed:
            self.soon(_disconnect, self.native, name)

    def close(self, *, wait: bool = True) -> None:
        """Close all channels and connections. Requests that still wait end with Cancelled.

        Args:
            wait: Whether to return only when everything is closed.
        """
        if self._closed:
            return
        self._closed = True
        all_providers.discard(self)
        home = self.engine
        if not home.is_usable:
            return
        if wait and not home.is_current:
            try:
                home.run(self.native.close(), _CLOSE_S)
            except Exception:  # noqa: BLE001 - it is closed for the program in any case
                _log.exception("a PVAccess client could not be closed in order")
        else:
            home.soon(_spawn, home, self.native)

    def __del__(self) -> None:
        if not self._closed:
            self.close(wait=False)


_closing: Final[set[asyncio.Task[None]]] = set()


def _spawn(home: Engine, native: NativeContext) -> None:
    task = home.loop.create_task(native.close())
    _closing.add(task)
    task.add_done_callback(_closing.discard)


class LoopProvider(ClientProvider):
    """Native clients on the event loops of the program: one on each that is used."""

    def __init__(self, provider: str, conf: Mapping[str, str] | None = None, useenv: bool = True) -> None:
        super().__init__(provider, conf, useenv)
        self._clients: dict[asyncio.AbstractEventLoop, _LoopClient] = {}
        all_providers.add(self)

    def running(self) -> NativeContext | None:
        """Return the client of the running loop, if it is ready."""
        client = self._clients.get(asyncio.get_running_loop())
        return client.native if client is not None and client.is_ready else None

    async def ready(self) -> NativeContext:
        """Return the client of the running loop as soon as it is ready.

        Raises:
            RuntimeError: The keychain cannot be used, or the Context was closed.
        """
        self.check()
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            self._clients = {known: kept for known, kept in self._clients.items() if not known.is_closed()}
            client = self._clients[loop] = _LoopClient(NativeContext(self.config), loop)
        try:
            # Others wait for the same start, so nobody's cancellation ends it.
            await asyncio.shield(client.started)
        except ApplianceError as error:
            self._clients.pop(loop, None)
            raise p4p_error(error) from None
        self.check()
        return client.native

    def hurryUp(self) -> None:
        """Search now for all names that have no server."""
        self.check()
        for client in self._clients.values():
            if client.is_ready:
                client.soon(client.native.hurry_up)

    def disconnect(self, name: str | None = None) -> None:
        """Close the channel of a name, or all channels. Those in use are searched for again."""
        if name is not None and not isinstance(name, str):
            raise TypeError(f"the name of a PV is a string, not {type(name).__name__}")
        for client in self._clients.values():
            if client.is_ready:
                client.soon(_disconnect, client.native, name)

    def close(self) -> None:
        """Begin to close all channels and connections; the event loop does the rest."""
        if self._closed:
            return
        self._closed = True
        all_providers.discard(self)
        clients, self._clients = self._clients, {}
        for client in clients.values():
            client.close()

    def __del__(self) -> None:
        if not self._closed:
            self.close()


class _LoopClient:
    """The native client on one event loop."""

    def __init__(self, native: NativeContext, loop: asyncio.AbstractEventLoop) -> None:
        self.native = native
        self.loop = loop
        self.started: asyncio.Future[Any] = asyncio.gather(native.start())

    @property
    def is_ready(self) -> bool:
        """Whether it is open."""
        return self.started.done() and not self.started.cancelled() and self.started.exception() is None

    def soon(self, function: Callable[..., object], *args: Any) -> None:
        """Call ``function`` on the loop: at once, if that is where we are."""
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if here is self.loop:
            function(*args)
        elif not self.loop.is_closed():
            self.loop.call_soon_threadsafe(function, *args)

    def close(self) -> None:
        """Begin to close it; if its loop does not run, finish that too."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            if not self.loop.is_running() and not self.loop.is_closed():
                self.loop.run_until_complete(self._close())
                return
        self.soon(self._begin_to_close)

    def _begin_to_close(self) -> None:
        # The loop may end at once, and cancel what did not even begin.
        self.native._begin_to_close()
        # A task of gather's own: asyncio does not complain if the loop ends before it is done.
        _loop_closing.add(closing := asyncio.gather(self._close(), return_exceptions=True))
        closing.add_done_callback(_loop_closing.discard)

    async def _close(self) -> None:
        if not self.started.done():
            self.started.cancel()
        await asyncio.wait([self.started])
        if self.is_ready:
            await self.native.close()


_loop_closing: Final[set[asyncio.Future[Any]]] = set()

"""The client for programs that do not use asyncio: the same names, arguments, values and errors, without ``await``.

::

    from appliance.blocking import Context

    with Context() as ctx:
        print(ctx.get("demo:temperature")["value"])

A `Context` may be used from any thread, and from many at once. The work is done in one thread of the process, which all of them share. It ends
with the process.
"""

from __future__ import annotations

import asyncio
import atexit
import sys
import weakref
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, Self, TypeVar, overload

from appliance.api import Context as _Context
from appliance.client.context import DEFAULT_TIMEOUT_S, Address
from appliance.client.monitor import Connected, Disconnected
from appliance.client.monitor import Monitor as _Monitor
from appliance.client.requests import Info
from appliance.client.search import Located
from appliance.client.servers import Discovered
from appliance.config.pva import ClientConfig
from appliance.errors import ApplianceError, ChannelClosedError, OperationTimeoutError
from appliance.pvdata.value import Value
from appliance.threads import engine, shutdown

if TYPE_CHECKING:
    from appliance.tls.context import TLSContext

__all__ = ["Context", "Monitor"]

_Item = TypeVar("_Item")
_END_S: Final = 2.0
"""Seconds that the end of the process waits for a context to close."""


class Context:
    """A PVAccess client with the settings and the keychain of its environment, for programs without asyncio.

    It is open as soon as it is made; ``with`` or `close` ends it. It is safe to use from several threads. A process that was
    forked makes a new one.

    Args:
        config: Settings; without them those of the ``EPICS_PVA_*`` variables (`resolve_client`).
        require_tls: Whether PVs are used over TLS only. Nothing is then connected while the own certificate is not valid yet.
        tls: A TLS context that is used as it is; the keychain of the settings is then not used.

    Raises:
        KeychainError: TLS is required, and the keychain is missing or cannot be read; or the certificate has ended, and
            ``on_expiration`` forbids to continue.
        TransportError: A socket cannot be opened.
        RuntimeError: The interpreter ends.

    Example:
        >>> from appliance.blocking import Context
        >>> with Context() as ctx:
        ...     ctx.put("demo:setpoint", 4.5)
        ...     value = ctx.get("demo:temperature")
        >>> value["value"]
        21.5
    """

    def __init__(
        self, config: ClientConfig | None = None, *, require_tls: bool = False, tls: TLSContext | None = None
    ) -> None:
        self._engine = engine()
        self._context = _Context(config, require_tls=require_tls, tls=tls)
        self._engine.run(self._context.start())
        _open.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        context = getattr(self, "_context", None)
        if context is not None and self._engine.is_usable:
            with suppress(RuntimeError):
                self._engine.soon(_later, context.close())

    @property
    def config(self) -> ClientConfig:
        """The settings."""
        return self._context.config

    def close(self) -> None:
        """Close all channels and connections; ``with`` does it. Operations of other threads end with an error.

        Example:
            >>> ctx.close()
            >>> ctx.get("demo:temperature")
            Traceback (most recent call last):
            appliance.errors.ChannelClosedError: the client context is closed; make a new one
        """
        _open.discard(self)
        self._engine.run(self._context.close())

    @overload
    def get(  # type: ignore[overload-overlap]
        self, name: str, request: str = "", *, timeout: float | None = ..., server: Address | None = ...
    ) -> Value: ...

    @overload
    def get(
        self,
        name: Sequence[str],
        request: str = "",
        *,
        timeout: float | None = ...,
        return_exceptions: Literal[False] = ...,
    ) -> list[Value]: ...

    @overload
    def get(
        self, name: Sequence[str], request: str = "", *, timeout: float | None = ..., return_exceptions: bool
    ) -> list[Value | ApplianceError]: ...

    def get(
        self,
        name: str | Sequence[str],
        request: str = "",
        *,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        server: Address | None = None,
        return_exceptions: bool = False,
    ) -> Value | list[Value] | list[Value | ApplianceError]:
        """Read one PV, or several at once.

        Args:
            name: The PV's name, or several names. A PV that is named twice is read once.
            request: The pvRequest, which selects fields; empty for all fields.
            timeout: Seconds to wait at most; None waits for ever.
            server: The server of the PV; if it is missing, the PV is searched for.
            return_exceptions: Whether the list holds errors in the places of values; otherwise the first error is raised.

        Returns:
            The value, or a list of values in the order of the names.

        Raises:
            OperationError: The PV could not be read; the text gives the reason.
            OperationTimeoutError: No answer came in time. It is an OperationError, and a TimeoutError.
            PVRequestError: The pvRequest cannot be parsed.

        Example:
            >>> value = ctx.get("demo:temperature")
            >>> value["value"], value["display.units"]
            (21.5, 'C')
            >>> [item["value"] for item in ctx.get(["demo:temperature", "demo:setpoint"])]
            [21.5, 4.0]
        """
        work: Coroutine[Any, Any, Value | list[Value] | list[Value | ApplianceError]]
        work = self._context.get(  # type: ignore[call-overload]  # the overloads stand above
            name,
            request,
            timeout=timeout,
            server=server,
            return_exceptions=return_exceptions,
        )
        return self._engine.run(work)

    def put(
        self,
        name: str,
        value: Any,
        request: str = "",
        *,
        get: bool = False,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        server: Address | None = None,
    ) -> None:
        """Write a PV.

        Args:
            name: The PV's name.
            value: What can be assigned to it (a number, text, a dictionary of fields, a Value), or a function that
                gets a Value of the PV's type and returns it with what it changed. The function runs in the package's thread
                and must not block.
            request: The pvRequest.
            get: Whether that Value holds the PV's present value. It is read in any case if the text of a choice is
                written to an enumeration.
            timeout: Seconds to wait at most; None waits for ever.
            server: The server of the PV; if it is missing, the PV is searched for.

        Raises:
            AccessDeniedError: Access security refuses it.
            OperationError: The PV was not written, or it is unknown whether it was; the text gives the reason.
            PVDataError: The value does not fit the PV's type.

        Example:
            >>> ctx.put("demo:setpoint", 5.5)
            >>> ctx.put("demo:mode", "on")  # the text of a choice
            >>> ctx.get("demo:mode")["value.index"]
            1
        """
        self._engine.run(self._context.put(name, value, request, get=get, timeout=timeout, server=server))

    def rpc(
        self,
        name: str,
        argument: Value | Mapping[str, Any] | None = None,
        request: str = "",
        *,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        server: Address | None = None,
    ) -> Value | None:
        """Call a PV that takes arguments.

        Args:
            name: The PV's name.
            argument: The argument. A mapping becomes the query of an NTURI; the types of its values are inferred.
            request: The pvRequest.
            timeout: Seconds to wait at most; None waits for ever.
            server: The server of the PV; if it is missing, the PV is searched for.

        Returns:
            The answer; None if it is empty.

        Raises:
            AccessDeniedError: Access security refuses it.
            OperationError: The call failed, or it is unknown whether it was executed; the text gives the reason.

        Example:
            >>> ctx.rpc("demo:sum", {"a": 1.0, "b": 2.5})["value"]
            3.5
        """
        return self._engine.run(self._context.rpc(name, argument, request, timeout=timeout, server=server))

    def info(
        self,
        name: str,
        field: str = "",
        *,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        server: Address | None = None,
    ) -> Info:
        """Return a PV's type and the identity of its server.

        Args:
            name: The PV's name.
            field: The field whose type is wanted; empty for the whole.
            timeout: Seconds to wait at most; None waits for ever.
            server: The server of the PV; if it is missing, the PV is searched for.

        Returns:
            Type, server and identity.

        Raises:
            OperationError: No server answered, or the server refused; the text gives the reason.

        Example:
            >>> ctx.info("demo:temperature").type.id
            'epics:nt/NTScalar:1.0'
        """
        return self._engine.run(self._context.info(name, field, timeout=timeout, server=server))

    @overload
    def monitor(
        self,
        name: str,
        request: str = "",
        *,
        notify: Literal[False] = ...,
        server: Address | None = ...,
        max_rate: float | None = ...,
    ) -> Monitor[Value]: ...

    @overload
    def monitor(
        self,
        name: str,
        request: str = "",
        *,
        notify: bool,
        server: Address | None = ...,
        max_rate: float | None = ...,
    ) -> Monitor[Value | Connected | Disconnected]: ...

    def monitor(
        self,
        name: str,
        request: str = "",
        *,
        notify: bool = False,
        server: Address | None = None,
        max_rate: float | None = None,
    ) -> Monitor[Any]:
        """Subscribe to a PV's updates; the first one is the present value.

        It never fails at once: the subscription waits until there is a server, and continues when a lost server is back.

        Args:
            name: The PV's name.
            request: The pvRequest, which may contain ``record[queueSize=100,pipeline=true]``.
            notify: Whether the monitor also reports when the server is connected (`Connected`) and when it is lost
                (`appliance.client.Disconnected`).
            server: The server of the PV; if it is missing, the PV is searched for.
            max_rate: Updates per second at most; None for all. The first update comes at once. What comes faster is merged,
                and the latest value comes as soon as its time has come. The loss of the server is told at once, after the
                latest value.

        Returns:
            The subscription: an iterator, and a context manager that ends it.

        Raises:
            ChannelClosedError: The context is closed.
            PVRequestError: The pvRequest cannot be parsed.
            TypeError: ``max_rate`` is no number.
            ValueError: ``max_rate`` is not above 0.

        Example:
            >>> with ctx.monitor("demo:setpoint") as updates:
            ...     for value in updates:
            ...         print(value["value"])
            ...         if value["value"] > 4.5:
            ...             break
            ...         ctx.put("demo:setpoint", 5.0)
            4.0
            5.0
            >>> with ctx.monitor("demo:temperature", max_rate=10) as updates:  # ten per second at most
            ...     updates.read(timeout=30.0)["value"]
            21.5
        """
        subscribe = partial(self._context.monitor, notify=notify, server=server, max_rate=max_rate)
        updates: _Monitor[Any] = self._engine.call(subscribe, name, request)
        return Monitor(self, name, updates)

    def discover(self, *, ping: bool = True, timeout: float | None = None) -> Iterator[Discovered]:
        """Yield news of servers until the caller stops.

        Args:
            ping: Whether to ask all servers to answer, instead of waiting for their beacons.
            timeout: Seconds without news after which it ends; None waits for ever.

        Yields:
            A server that appeared, or one that is gone.

        Example:
            >>> next(ctx.discover()).online
            True
        """
        news = self._context.discover(ping=ping)

        async def one() -> Discovered | None:
            with suppress(StopAsyncIteration, TimeoutError):
                async with asyncio.timeout(timeout):
                    return await anext(news)
            return None

        try:
            while (found := self._engine.run(one())) is not None:
                yield found
        finally:
            # The garbage collector may run this on any thread, also on that of the loop: nothing may wait here.
            if self._engine.is_usable:
                self._engine.soon(_later, _end(news))

    def locate(self, name: str, *, patience_s: float = 1.0, quiet_s: float = 0.3) -> list[Located]:
        """Find every server that answers a search for a name, without connecting to any.

        A server that offers both TLS and plain TCP is listed with both ports.

        Args:
            name: The PV's name.
            patience_s: Seconds to wait for the first answer.
            quiet_s: Seconds without another answer after which the search ends.

        Returns:
            The places in the order of their answers; empty if no server has the PV.

        Raises:
            ChannelClosedError: The context is closed, or no search can carry the name.

        Example:
            >>> [(place.host, place.tls) for place in ctx.locate("demo:temperature", patience_s=30.0)]
            [('127.0.0.1', False)]
        """
        return self._engine.run(self._context.locate(name, patience_s=patience_s, quiet_s=quiet_s))

    def hurry_up(self) -> None:
        """Search now for all names that have no server, without waiting for the back-off.

        Raises:
            ChannelClosedError: The context is closed.

        Example:
            >>> ctx.hurry_up()
        """
        self._engine.call(self._context.hurry_up)


class Monitor(Generic[_Item]):
    """An iterator over a PV's updates; `Context.monitor` makes it.

    Each value is complete; its marks say what this update brought. A caller that is slower than the server skips
    intermediate values, never the latest one. Lost connections are restored without the caller's help. One thread reads it;
    any thread may close it. It ends with the last reference to it, too, for instance when a loop over it is left.

    Example:
        >>> with ctx.monitor("demo:setpoint", notify=True) as updates:
        ...     for item in updates:
        ...         if isinstance(item, Value):
        ...             break
        ...         print(type(item).__name__)
        Connected
        >>> item["value"]
        4.0
    """

    def __init__(self, context: Context, name: str, updates: _Monitor[_Item]) -> None:
        self._context = context  # a context that nobody holds would be closed
        self._engine = context._engine
        self._name = name
        self._updates = updates
        self._taken: list[_Item] = []
        """What was taken from the queue and not read yet, the next one last."""

    def __del__(self) -> None:
        # A loop that was left by ``break`` holds its monitor no more: the subscription ends, as if it had been closed.
        engine = getattr(self, "_engine", None)
        if engine is not None and engine.is_usable:
            with suppress(RuntimeError):
                engine.soon(self._updates.close)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> _Item:
        if not self._taken:
            self._take(None)
        return self._taken.pop()

    def read(self, *, timeout: float | None = None) -> _Item:
        """Return the next update.

        Args:
            timeout: Seconds to wait at most; None waits for ever.

        Returns:
            The update, as the iterator gives it.

        Raises:
            OperationTimeoutError: No update came in time; the subscription goes on.
            ChannelClosedError: The subscription has ended.
            ApplianceError: The reason why it failed.

        Example:
            >>> with ctx.monitor("demo:setpoint") as updates:
            ...     updates.read(timeout=30.0)["value"]
            4.0
        """
        if not self._taken:
            try:
                self._take(timeout)
            except StopIteration:
                raise ChannelClosedError(f"{self._name}: the subscription has ended") from None
        return self._taken.pop()

    def _take(self, timeout: float | None) -> None:
        taken = self._engine.run(_some(self._updates, timeout))
        if taken is None:
            raise OperationTimeoutError(f"{self._name}: no update within {timeout:g} s")
        if not taken:
            raise StopIteration
        taken.reverse()
        self._taken = taken

    def close(self) -> None:
        """End the subscription; its iterator stops. ``with`` does it.

        Example:
            >>> updates = ctx.monitor("demo:setpoint")
            >>> updates.close()
            >>> list(updates)
            []
        """
        if self._engine.is_usable:
            self._engine.call(self._updates.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


async def _some(updates: _Monitor[_Item], timeout: float | None) -> list[_Item] | None:
    """Return what waits, at least one item; None if nothing came in time, an empty list at the end."""
    try:
        # The time is kept here, on the loop: an update that comes at the last moment is returned, never lost.
        async with asyncio.timeout(timeout):
            found = [await anext(updates)]
    except TimeoutError:
        return None
    except StopAsyncIteration:
        return []
    while updates.waiting:
        found.append(await anext(updates))
    return found


async def _end(news: Any) -> None:
    with suppress(
        RuntimeError
    ):  # an interrupted wait for news may not have ended yet; it ends the generator itself
        await news.aclose()


def _later(work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.ensure_future(work)
    _closing.add(task)
    task.add_done_callback(_closing.discard)


_open: weakref.WeakSet[Context] = weakref.WeakSet()
_closing: set[asyncio.Future[None]] = set()


def _close_all() -> None:
    """Close what is open when the interpreter ends, so that servers hear of it."""
    for context in list(_open):
        if context._engine.is_usable:
            with suppress(Exception):
                context._engine.run(context._context.close(), _END_S)
    if "appliance.p4p" not in sys.modules:  # which ends the thread itself, after its servers
        shutdown()


atexit.register(_close_all)

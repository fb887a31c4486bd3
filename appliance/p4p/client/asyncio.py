"""The client for programs that have an event loop: it works on that loop, and starts no thread."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from asyncio import all_tasks, create_task, get_running_loop
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Self

from appliance.client.channel import ChannelRequest, Waiter
from appliance.client.paced import checked_rate
from appliance.p4p._errors import Cancelled, Disconnected, Finished, RemoteError, TimeoutError
from appliance.p4p._unique import Unique
from appliance.p4p.client import raw
from appliance.p4p.client._feed import Feed
from appliance.p4p.client._provider import AnyRequest, LoopProvider
from appliance.p4p.client._requests import RPC, Ask, Get, Put
from appliance.p4p.client.raw import AnyArgument, argument, putter, reads_first
from appliance.p4p.client.thread import put_request
from appliance.p4p.wrapper import Type, Value
from appliance.pvdata.value import Value as NativeValue

__all__ = [
    "Cancelled",
    "Context",
    "Disconnected",
    "Finished",
    "RemoteError",
    "Subscription",
    "TimeoutError",
    "Type",
    "Value",
    "all_tasks",
    "create_task",
    "get_running_loop",
    "timesout",
]

_log: Final = logging.getLogger(__name__)

_AT_ONCE: Final = 4
"""Updates of one subscription that are delivered before others have their turn."""


def timesout(deftimeout: float | None = 5.0) -> Callable[..., Any]:
    """Give a coroutine function an argument ``timeout``, in seconds; None waits for ever.

    Args:
        deftimeout: The time if the caller gives none.

    Raises:
        TimeoutError: From the coroutine: it was not done in time, and was cancelled.

    Example:
        >>> @timesout()
        ... async def read(name):
        ...     return float(await ctxt.get(name))
        >>> await read("demo:temperature", timeout=30.0)
        21.5
    """

    def decorate(fn: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
        if not inspect.iscoroutinefunction(fn):
            raise AssertionError(f"@timesout is for coroutine functions, and {fn!r} is none")

        @functools.wraps(fn)
        async def wrapper(*args: Any, timeout: float | None = deftimeout, **kws: Any) -> Any:
            async with asyncio.timeout(timeout):
                return await fn(*args, **kws)

        return wrapper

    return decorate


class Context(raw.Context):
    """A client whose operations are coroutines. They have no timeout: use `timesout` or `asyncio.timeout`.

    It works on the event loop on which it is used. If that is more than one, it has a client on each.

    Args:
        provider: "pva".
        conf: Values of ``EPICS_PVA_*`` variables by their names, TLS included. They go before the environment's.
        useenv: Whether the environment is read.
        nt: Classes by type ID that are used beside the usual ones. False: values stay Values.
        unwrap: Functions by type ID, as p4p had them before ``nt``. False: values stay Values.

    Raises:
        RuntimeError: A setting cannot be used. A keychain that cannot be used makes the first operation fail so.

    Example:
        >>> with Context("pva") as ctxt:
        ...     await ctxt.put("demo:setpoint", 4.5)
        ...     value = await ctxt.get("demo:temperature")
        >>> float(value)
        21.5
    """

    def __init__(
        self,
        provider: str = "pva",
        conf: Mapping[str, str] | None = None,
        useenv: bool = True,
        nt: Any = None,
        unwrap: Any = None,
    ) -> None:
        super().__init__(provider, conf=conf, useenv=useenv, nt=nt, unwrap=unwrap)

    @staticmethod
    def _provider(provider: str, conf: Mapping[str, str] | None, useenv: bool | None) -> LoopProvider:
        return LoopProvider(provider, conf, bool(useenv))

    async def _ask(self, provider: LoopProvider, ask: Ask) -> Any:
        native = provider.running() or await provider.ready()
        waiter = Waiter(get_running_loop())
        asked: ChannelRequest | None = None
        try:
            asked = ask.begin(native, waiter)
            answer = await waiter.future
        except asyncio.CancelledError:
            if asked is not None:
                asked.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - raised again
            theirs = provider.error(error, ask.name)
            raise theirs from (None if theirs is error else error)
        return self._nt.unwrap(Value._of(answer)) if type(answer) is NativeValue else answer

    async def get(self, name: str | Sequence[str], request: Any = None) -> Any:  # type: ignore[override]
        """Read one PV, or several at once.

        Args:
            name: The PV's name, or a list of names.
            request: The pvRequest, or a list of them.

        Returns:
            The value, or a list of values.

        Raises:
            RemoteError: The server refused.

        Example:
            >>> [float(value) for value in await ctxt.get(["demo:temperature", "demo:setpoint"])]
            [21.5, 4.0]
        """
        provider = self._open()
        if isinstance(name, (bytes, str)):
            return await self._ask(provider, Get(provider.name(name), provider.request(request)))
        requests = [None] * len(name) if request is None else request
        if len(name) != len(requests):
            raise AssertionError((name, requests))
        asks = [
            Get(provider.name(one), provider.request(asked))
            for one, asked in zip(name, requests, strict=True)
        ]
        return await self._ask_all(provider, asks)

    async def _ask_all(self, provider: LoopProvider, asks: Sequence[Ask]) -> list[Any]:
        tasks = [create_task(self._ask(provider, ask)) for ask in asks]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def put(  # type: ignore[override]
        self,
        name: str | Sequence[str],
        values: Any,
        request: Any = None,
        process: str | None = None,
        wait: bool | None = None,
        get: bool = True,
    ) -> None:
        """Write one PV, or several at once.

        Args:
            name: The PV's name, or a list of names.
            values: What to write, or a list of that: a plain value, a dict by field, a Value, or a function that fills in
                the Value that it gets.
            request: The pvRequest, or a list of them.
            process: Whether the server processes the record: "true", "false" or "passive".
            wait: Whether the answer comes only after all processing.
            get: Whether the PV is read first. Without it, only a text for a PV with choices is, for its choices.

        Raises:
            RemoteError: The server refused.
            ValueError: A value cannot be converted; or ``request`` comes together with ``process`` or ``wait``.

        Example:
            >>> await ctxt.put("demo:setpoint", 5.5)
            >>> await ctxt.put("demo:mode", "on")
        """
        provider = self._open()
        single = isinstance(name, (bytes, str))
        request = put_request(request, process, wait, None if single else len(name))
        if single:
            await self._ask(provider, self._put(provider, name, values, request, get=get))
            return
        requests = [None] * len(name) if request is None else request
        if len(name) != len(requests):
            raise AssertionError((name, requests))
        if len(name) != len(values):
            raise AssertionError((name, values))
        asks = [
            self._put(provider, one, value, asked, get=get)
            for one, value, asked in zip(name, values, requests, strict=True)
        ]
        await self._ask_all(provider, asks)

    def _put(self, provider: LoopProvider, name: Any, value: Any, request: Any, *, get: bool) -> Put:
        return Put(
            provider.name(name), provider.request(request), putter(value, self._nt), reads_first(value, get)
        )

    async def rpc(  # type: ignore[override]
        self, name: str, value: AnyArgument, request: AnyRequest = None
    ) -> Any:
        """Call a PV.

        Args:
            name: The PV's name.
            value: The argument, for instance what `appliance.p4p.nt.NTURI` makes; None sends an empty structure.
            request: The pvRequest.

        Returns:
            The result.

        Raises:
            RemoteError: The server refused, or the call failed.

        Example:
            >>> from appliance.p4p.nt import NTURI
            >>> argument = NTURI([("a", "d"), ("b", "d")]).wrap("demo:sum", kws={"a": 1.0, "b": 2.5})
            >>> float(await ctxt.rpc("demo:sum", argument))
            3.5
        """
        provider = self._open()
        return await self._ask(provider, RPC(provider.name(name), provider.request(request), argument(value)))

    def monitor(  # type: ignore[override]
        self,
        name: str,
        cb: Callable[[Any], Awaitable[object]],
        request: AnyRequest = None,
        notify_disconnect: bool = False,
        limitHz: float | None = None,
    ) -> Subscription:
        """Subscribe to a PV. The event loop must be running.

        Args:
            name: The PV's name.
            cb: A coroutine function, which is called with each update, one after the other.
            request: The pvRequest, such as ``record[queueSize=10]``.
            notify_disconnect: Whether ``cb`` also gets Disconnected, RemoteError and Finished. It begins with Disconnected.
            limitHz: Updates per second at most, as p4p's client for Qt has it; None for all. The first comes at once, what comes
                faster is merged, and the latest comes as soon as its time has come.

        Returns:
            The subscription.

        Raises:
            TypeError: ``limitHz`` is no number.
            ValueError: ``limitHz`` is not above 0.

        Example:
            >>> updates = asyncio.Queue()
            >>> subscription = ctxt.monitor("demo:temperature", updates.put)
            >>> float(await updates.get())
            21.5
            >>> subscription.close()
            >>> subscription = ctxt.monitor("demo:temperature", updates.put, limitHz=10)  # ten per second at most
            >>> float(await updates.get())
            21.5
            >>> subscription.close()
        """
        if not inspect.iscoroutinefunction(cb):
            raise AssertionError("monitor callback must be coroutine")
        rate = checked_rate(limitHz, "limitHz")
        provider = self._open()
        feed_request = provider.request(request)
        subscription = Subscription(provider.name(name), cb, notify_disconnect=notify_disconnect)
        subscription._begin(provider, feed_request, self._nt.unwrap, rate)
        return subscription


class Subscription(Unique):
    """An active subscription; `Context.monitor` makes it.

    Args:
        name: The PV's name.
        cb: Called with each update.
        notify_disconnect: Whether ``cb`` is also called with exceptions that say what happens to the channel.
    """

    def __init__(
        self, name: str, cb: Callable[[Any], Awaitable[object]], notify_disconnect: bool = False
    ) -> None:
        self.name = name
        self._cb = cb
        self._notify_disconnect = notify_disconnect
        self._S: Feed | None = None
        self._E = asyncio.Event()
        self._T: asyncio.Task[None] | None = None

    def _begin(
        self, provider: LoopProvider, request: Any, unwrap: Callable[[Any], Any], rate: float | None
    ) -> None:
        self._unwrap = unwrap
        self._S = Feed(self, self.name, request, _now, rate)
        self._T = create_task(self._handle(provider, self._S))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Begin to end the subscription; the callback is not called again.

        Example:
            >>> updates = asyncio.Queue()
            >>> subscription = ctxt.monitor("demo:temperature", updates.put)
            >>> subscription.close()
        """
        feed, self._S = self._S, None
        if feed is not None:
            feed.close()
            self._E.set()

    @property
    def done(self) -> bool:
        """Whether there will be no more updates."""
        return self._S is None

    @property
    def empty(self) -> bool:
        """Whether no update waits for the callback."""
        return self._S is None or self._S.is_empty

    async def wait_closed(self) -> None:
        """Wait until the callback has returned for the last time; `close` goes before.

        Example:
            >>> updates = asyncio.Queue()
            >>> subscription = ctxt.monitor("demo:temperature", updates.put)
            >>> subscription.close()
            >>> await subscription.wait_closed()
        """
        if self._S is not None:
            raise AssertionError("Not close()'d")
        if self._T is not None:
            await self._T

    def _event(self) -> None:
        self._E.set()

    async def _handle(self, provider: LoopProvider, feed: Feed) -> None:
        try:
            if self._notify_disconnect:
                await self._cb(Disconnected())  # every subscription begins without a connection
            feed.begin(provider.running() or await provider.ready())
            count = 0
            while self._S is not None:
                item = feed.pop()
                if item is None:
                    await self._E.wait()
                    self._E.clear()
                    continue
                if type(item) is NativeValue:
                    await self._cb(self._unwrap(Value._of(item)))
                elif self._notify_disconnect:
                    await self._cb(item)
                elif isinstance(item, RemoteError):
                    _log.error("the subscription to %s failed: %.500r", self.name, str(item))
                if isinstance(item, (Finished, RemoteError)):
                    return
                count += 1
                if not count % _AT_ONCE:
                    await asyncio.sleep(0)
        except asyncio.CancelledError:
            _log.debug("the subscription to %s was cancelled", self.name)
        except Exception:  # noqa: BLE001 - a fault of the program's function must not harm others
            _log.exception(
                "the callback of the subscription to %s failed, so the subscription ends", self.name
            )
        finally:
            feed.close()
            self._S = None


def _now(function: Callable[..., object], *args: Any) -> None:
    """Call a function: the caller is on the event loop already."""
    function(*args)

"""The blocking client: safe from any thread."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Self

from appliance.client.paced import checked_rate
from appliance.p4p._errors import Cancelled, Disconnected, Finished, RemoteError, TimeoutError
from appliance.p4p._unique import Unique
from appliance.p4p.client import raw
from appliance.p4p.client._feed import Feed
from appliance.p4p.client._provider import AnyRequest, EngineProvider
from appliance.p4p.client._requests import RPC, Answers, Ask, Get, Put
from appliance.p4p.client.raw import AnyArgument, argument, putter, reads_first
from appliance.p4p.util import WorkQueue, _defaultWorkQueue
from appliance.p4p.wrapper import Type, Value
from appliance.pvdata.value import Value as NativeValue
from appliance.threads import ends_program

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
]

_log: Final = logging.getLogger(__name__)

_AT_ONCE: Final = 4
"""Updates of one subscription that are delivered before others have their turn."""


class Subscription(Unique):
    """An active subscription; `Context.monitor` makes it. It ends when nobody refers to it any more.

    Args:
        ctxt: The client.
        name: The PV's name.
        cb: Called with each update.
        notify_disconnect: Whether ``cb`` is also called with exceptions that say what happens to the channel.
        queue: The work queue whose threads call ``cb``.
    """

    def __init__(
        self,
        ctxt: Context,
        name: str,
        cb: Callable[[Any], object],
        notify_disconnect: bool = False,
        queue: WorkQueue | None = None,
    ) -> None:
        self.name = name
        self._cb = cb
        self._unwrap = ctxt._nt.unwrap
        self._notify_disconnect = notify_disconnect
        self._Q = queue or ctxt._Q or _defaultWorkQueue()
        self._S: Feed | None = None
        self._provider: EngineProvider = ctxt._open()
        # It refers to itself by this, so it does not end before the garbage collector finds it. As in p4p, a program that
        # forgets its subscription may have updates for a while.
        self._work: Callable[[], None] = self._handle

    def _begin(self, request: AnyRequest, limitHz: float | None = None) -> None:
        provider = self._provider
        name = provider.name(self.name)
        feed = self._S = Feed(self, name, provider.request(request), provider.soon, limitHz)
        if self._notify_disconnect:
            # Every subscription begins without a connection.
            self._Q.push_wait(partial(self._cb, Disconnected()))
        provider.soon(feed.begin, provider.native)

    def close(self) -> None:
        """End the subscription; the callback is not called any more.

        Example:
            >>> subscription = ctxt.monitor("demo:temperature", print)
            >>> subscription.close()
            >>> subscription.done
            True
        """
        feed, self._S = self._S, None
        if feed is not None and self._provider.engine.is_usable:
            feed.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_S", None) is not None:
            self.close()

    @property
    def done(self) -> bool:
        """Whether there will be no more updates."""
        return self._S is None

    @property
    def empty(self) -> bool:
        """Whether no update waits for the callback."""
        return self._S is None or self._S.is_empty

    def _event(self) -> None:
        try:
            self._Q.push(self._work)
        except Exception:  # noqa: BLE001 - a fault of the program's function must not harm others
            _log.exception("updates of %s are lost: the work queue does not take them", self.name)

    def _handle(self) -> None:
        try:
            for _ in range(_AT_ONCE):
                feed = self._S
                if feed is None:
                    return
                item = feed.pop()
                if item is None:
                    return
                if type(item) is NativeValue:
                    self._cb(self._unwrap(Value._of(item)))
                else:
                    self._news(item)
            self._Q.push(self._work)
        except BaseException as error:  # a fault of the program's function must not harm others
            _log.exception(
                "the callback of the subscription to %s failed, so the subscription ends", self.name
            )
            self.close()
            if ends_program(error):
                raise

    def _news(self, item: Any) -> None:
        if self._notify_disconnect:
            self._cb(item)
        elif isinstance(item, RemoteError):
            _log.error("the subscription to %s failed: %.500r", self.name, str(item))
        if isinstance(item, Finished):
            self.close()


class Context(raw.Context):
    """A client whose operations block the calling thread until they are done.

    Args:
        provider: "pva".
        conf: Values of ``EPICS_PVA_*`` variables by their names, TLS included. They go before the environment's.
        useenv: Whether the environment is read.
        nt: Classes by type ID that are used beside the usual ones. False: values stay Values.
        unwrap: Functions by type ID, as p4p had them before ``nt``. False: values stay Values.
        maxsize: Has no effect, as in p4p.
        queue: The work queue that calls the callbacks of subscriptions which name none.

    Raises:
        RuntimeError: A setting or the keychain cannot be used.

    Example:
        >>> with Context("pva") as ctxt:
        ...     ctxt.put("demo:setpoint", 4.5)
        ...     value = ctxt.get("demo:temperature")
        >>> float(value), value.severity, value.raw.display.units
        (21.5, 0, 'C')
    """

    Value = Value

    def __init__(
        self,
        provider: str = "pva",
        conf: Mapping[str, str] | None = None,
        useenv: bool = True,
        nt: Any = None,
        unwrap: Any = None,
        maxsize: int = 0,
        queue: WorkQueue | None = None,
    ) -> None:
        self._Q = queue
        super().__init__(provider, conf=conf, useenv=useenv, nt=nt, unwrap=unwrap)

    def _ask(
        self, provider: EngineProvider, asks: Sequence[Ask], timeout: float | None, *, throw: bool
    ) -> list[Any]:
        """Make requests, and wait for their answers."""
        home = provider.engine
        home.check_may_wait()
        if timeout is not None and timeout < 0:
            raise ValueError("'timeout' must be a non-negative number")
        answers = Answers(asks, throw=throw, is_abandoned=lambda: provider.is_abandoned)
        complete = False
        try:
            home.soon(answers.begin, provider.native)
            complete = answers.wait(timeout) and answers.error is None
        finally:
            if not complete:
                home.soon(answers.cancel)
        if answers.error is not None:
            raise provider.error(answers.error, asks[answers.failed].name)
        unwrap = self._nt.unwrap
        results = []
        for index, result in enumerate(answers.results):
            if type(result) is NativeValue:
                try:
                    results.append(unwrap(Value._of(result)))
                except Exception as error:
                    if throw:
                        raise
                    # Another server's fault must not take away what the others have answered.
                    results.append(error)
            elif not complete and answers.pending(index):
                late = TimeoutError(f"{asks[index].name}: timeout after {timeout:g} s: {answers.why(index)}")
                if throw:
                    raise late
                results.append(late)
            else:
                results.append(
                    provider.error(result, asks[index].name) if isinstance(result, Exception) else result
                )
        return results

    def get(  # type: ignore[override]
        self,
        name: str | Sequence[str],
        request: Any = None,
        timeout: float | None = 5.0,
        throw: bool = True,
    ) -> Any:
        """Read one PV, or several at once.

        Args:
            name: The PV's name, or a list of names.
            request: The pvRequest, or a list of them.
            timeout: Seconds to wait while no answer comes; None waits for ever.
            throw: Whether an error is raised; otherwise it is returned in the place of the value.

        Returns:
            The value, or a list of values.

        Raises:
            TimeoutError: There was no answer in time.
            RemoteError: The server refused.

        Example:
            >>> float(ctxt.get("demo:temperature"))
            21.5
            >>> [float(value) for value in ctxt.get(["demo:temperature", "demo:setpoint"])]
            [21.5, 4.0]
            >>> ctxt.get("no:such:pv", timeout=0.1, throw=False)
            TimeoutError('no:such:pv: timeout after 0.1 s: ...')
        """
        provider = self._open()
        if isinstance(name, (bytes, str)):
            asks = [Get(provider.name(name), provider.request(request))]
            return self._ask(provider, asks, timeout, throw=throw)[0]
        requests = _requests(name, request)
        asks = [
            Get(provider.name(one), provider.request(asked))
            for one, asked in zip(name, requests, strict=True)
        ]
        return self._ask(provider, asks, timeout, throw=throw) if asks else []

    def put(  # type: ignore[override]
        self,
        name: str | Sequence[str],
        values: Any,
        request: Any = None,
        timeout: float | None = 5.0,
        throw: bool = True,
        process: str | None = None,
        wait: bool | None = None,
        get: bool = True,
    ) -> Any:
        """Write one PV, or several at once.

        Args:
            name: The PV's name, or a list of names.
            values: What to write, or a list of that: a plain value, a dict by field, JSON text of such a dict, a Value, or a
                function that fills in the Value that it gets.
            request: The pvRequest, or a list of them.
            timeout: Seconds to wait while no answer comes; None waits for ever.
            throw: Whether an error is raised; otherwise it is returned.
            process: Whether the server processes the record: "true", "false" or "passive".
            wait: Whether the answer comes only after all processing.
            get: Whether the PV is read first. Without it, only a text for a PV with choices is, for its choices.

        Returns:
            None, or a list with None for each name.

        Raises:
            TimeoutError: There was no answer in time.
            RemoteError: The server refused.
            ValueError: A value cannot be converted; or ``request`` comes together with ``process`` or ``wait``.

        Example:
            >>> ctxt.put("demo:setpoint", 5.5)
            >>> ctxt.put(["demo:setpoint", "demo:mode"], [6.5, "on"])
            [None, None]
            >>> def add_one(value):
            ...     value.value += 1.0
            >>> ctxt.put("demo:setpoint", add_one)
            >>> float(ctxt.get("demo:setpoint"))
            7.5
        """
        provider = self._open()
        single = isinstance(name, (bytes, str))
        request = put_request(request, process, wait, None if single else len(name))
        if single:
            asks = [self._put(provider, name, values, request, get=get)]
            return self._ask(provider, asks, timeout, throw=throw)[0]
        requests = _requests(name, request)
        if len(name) != len(values):
            raise AssertionError((name, values))
        asks = [
            self._put(provider, one, value, asked, get=get)
            for one, value, asked in zip(name, values, requests, strict=True)
        ]
        return self._ask(provider, asks, timeout, throw=throw) if asks else []

    def _put(self, provider: EngineProvider, name: Any, value: Any, request: Any, *, get: bool) -> Put:
        if isinstance(value, (bytes, str)) and value[:1] in ("{", b"{"):
            try:
                value = json.loads(value)
            except ValueError:
                raise ValueError(f"Unable to interpret {value!r} as json") from None
        return Put(
            provider.name(name), provider.request(request), putter(value, self._nt), reads_first(value, get)
        )

    def rpc(  # type: ignore[override]
        self,
        name: str,
        value: AnyArgument,
        request: AnyRequest = None,
        timeout: float | None = 5.0,
        throw: bool = True,
    ) -> Any:
        """Call a PV.

        Args:
            name: The PV's name.
            value: The argument, for instance what `appliance.p4p.nt.NTURI` makes; None sends an empty structure.
            request: The pvRequest.
            timeout: Seconds to wait; None waits for ever.
            throw: Whether an error is raised; otherwise it is returned.

        Returns:
            The result.

        Raises:
            TimeoutError: There was no answer in time.
            RemoteError: The server refused, or the call failed.

        Example:
            >>> from appliance.p4p.nt import NTURI
            >>> argument = NTURI([("a", "d"), ("b", "d")]).wrap("demo:sum", kws={"a": 1.0, "b": 2.5})
            >>> float(ctxt.rpc("demo:sum", argument))
            3.5
        """
        provider = self._open()
        asks = [RPC(provider.name(name), provider.request(request), argument(value))]
        return self._ask(provider, asks, timeout, throw=throw)[0]

    def monitor(  # type: ignore[override]
        self,
        name: str,
        cb: Callable[[Any], object],
        request: AnyRequest = None,
        notify_disconnect: bool = False,
        queue: WorkQueue | None = None,
        limitHz: float | None = None,
    ) -> Subscription:
        """Subscribe to a PV.

        Args:
            name: The PV's name.
            cb: Called with each update, in a thread of the work queue.
            request: The pvRequest, such as ``record[queueSize=10]``.
            notify_disconnect: Whether ``cb`` also gets Disconnected, RemoteError and Finished. It begins with Disconnected.
            queue: The work queue; by default that of the Context, or one that is shared by many.
            limitHz: Updates per second at most, as p4p's client for Qt has it; None for all. The first comes at once, what comes
                faster is merged, and the latest comes as soon as its time has come.

        Returns:
            The subscription. It ends when nobody refers to it any more.

        Raises:
            TypeError: ``limitHz`` is no number.
            ValueError: ``limitHz`` is not above 0.

        Example:
            >>> from queue import Queue
            >>> updates = Queue()
            >>> subscription = ctxt.monitor("demo:temperature", updates.put)
            >>> float(updates.get(timeout=30))
            21.5
            >>> subscription.close()
            >>> subscription = ctxt.monitor("demo:temperature", updates.put, limitHz=10)  # ten per second at most
            >>> float(updates.get(timeout=30))
            21.5
            >>> subscription.close()
        """
        rate = checked_rate(limitHz, "limitHz")
        subscription = Subscription(self, name, cb, notify_disconnect=notify_disconnect, queue=queue)
        subscription._begin(request, rate)
        return subscription


def _requests(name: Sequence[str], request: Any) -> Sequence[Any]:
    """Return a pvRequest for each name."""
    requests: Sequence[Any] = [None] * len(name) if request is None else request
    if len(name) != len(requests):
        raise AssertionError((name, requests))
    return requests


def put_request(request: Any, process: str | None, wait: bool | None, count: int | None) -> Any:
    """Return the pvRequest of a put.

    Args:
        request: As the program gave it.
        process: Whether to process the record.
        wait: Whether to wait for that.
        count: How many requests are wanted; None if one that is no list.

    Raises:
        ValueError: ``request`` comes together with the others.
    """
    if not process and wait is None:
        return request
    if request:
        raise ValueError("request= is mutually exclusive to process= or wait=")
    text = f"field()record[block={'true' if wait else 'false'},process={process or 'passive'}]"
    return text if count is None else [text] * count

"""The client that reports by callbacks, which it calls on the PVAccess thread: they must not block."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Final, Self
from weakref import ref

from appliance.client.channel import ChannelRequest, Waiter
from appliance.client.context import Context as NativeContext
from appliance.client.paced import checked_rate
from appliance.p4p._errors import Cancelled, Disconnected, Finished, RemoteError
from appliance.p4p._unique import Unique
from appliance.p4p.client._feed import Feed
from appliance.p4p.client._provider import (
    AnyRequest,
    ClientProvider,
    EngineProvider,
    all_providers,
    make_request,
)
from appliance.p4p.client._requests import RPC, Ask, Build, Get, Put, Request
from appliance.p4p.nt import buildNT
from appliance.p4p.wrapper import Type, Value
from appliance.pvdata.types import StructType
from appliance.pvdata.value import Value as NativeValue
from appliance.threads import ends_program

__all__ = [
    "Cancelled",
    "Context",
    "Disconnected",
    "Finished",
    "Operation",
    "RemoteError",
    "Subscription",
    "set_debug",
]

_log: Final = logging.getLogger(__name__)

Handler = Callable[[Any], object]

AnyArgument = Value | None
"""The argument of an RPC as programs give it."""


def set_debug(name: str, lvl: int) -> None:
    """Set how much is logged.

    Args:
        name: The logger of a part, such as ``pvxs.*``.
        lvl: One of ``logLevel*``.

    Example:
        >>> from appliance.p4p import logLevelError
        >>> set_debug("pvxs.*", logLevelError)
    """
    import_module("appliance.p4p._p4p").logger_level_set(name, lvl)


def putter(value: Any, nt: Any) -> Build:
    """Return what makes the value to write.

    Args:
        value: A function that fills in the Value that it gets; or a Value, a dict by field, or what ``nt`` can assign.
        nt: The unwrapper of the Context.
    """

    def build(present: NativeValue) -> NativeValue:
        target = Value._of(present)
        if callable(value):
            value(target)
        elif isinstance(value, Value):
            target[None] = value
        elif isinstance(value, dict):
            for field, item in value.items():
                target[field] = item
        else:
            nt.assign(target, value)
        return present

    return build


def reads_first(value: Any, get: Any) -> bool | Callable[[StructType], bool]:
    """Return whether a PUT has to read the PV first, or what says so for the PV's type.

    Args:
        value: As for `putter`.
        get: Whether the program wants it.
    """
    if get:
        return True
    items = value if isinstance(value, dict) else {"value": value}
    texts = [f"{field}.choices" for field, item in items.items() if isinstance(item, (str, bytes))]
    if not texts:
        return False
    # Which number a text means depends on the PV's own choices.
    return lambda kind: any(path in kind.offsets for path in texts)


def argument(value: Any) -> NativeValue:
    """Return what an RPC sends.

    Raises:
        TypeError: It is neither a Value nor None.
    """
    if value is None:
        value = Value(Type([]))
    if not isinstance(value, Value):
        raise TypeError(f"the argument of an RPC is a Value (see NTURI), not {type(value).__name__}")
    return value._fields.to_value()


class Operation(Unique):
    """A request that was begun. It is cancelled when it is closed, or when nobody refers to it any more.

    Args:
        provider: The client.
        ask: The request.
        handler: Called once: with the Value, with None, or with an exception.
        unwrap: Makes of a Value what the handler gets.
    """

    __slots__ = ("__weakref__", "_asked", "_closed", "_handler", "_name", "_provider", "_unwrap")

    def __init__(
        self, provider: EngineProvider, ask: Ask, handler: Handler, unwrap: Callable[[Any], Any]
    ) -> None:
        self._handler: list[Handler] = [handler]
        """The handler, until it is called. Whoever takes it out calls it."""
        self._provider = provider
        self._unwrap = unwrap
        self._name = ask.name
        self._closed = False
        self._asked = _Asked(self)
        provider.soon(self._asked.begin, provider.native, ask)

    def _deliver(self, answer: Any, *, failed: bool) -> None:
        try:
            handler = self._handler.pop()
        except IndexError:
            return
        try:
            if failed:
                answer = self._provider.error(answer, self._name)
            elif answer is not None:
                answer = self._unwrap(Value._of(answer))
            handler(answer)
        except BaseException as error:  # a fault of the program's function must not harm others
            _log.exception("the handler of an operation on %s failed", self._name)
            if ends_program(error):
                raise

    @property
    def name(self) -> str:
        """The PV's name."""
        return self._name if not self._closed else "Dead ClientOperation"

    def close(self) -> None:
        """Cancel; the handler gets Cancelled at once, if it was not called before."""
        self._closed = True
        if not self._handler:
            return
        provider = self._provider
        if provider.engine.is_usable and not provider.closed:
            provider.soon(self._asked.cancel)
        self._deliver(Cancelled(), failed=True)

    cancel = close

    def __del__(self) -> None:
        if getattr(self, "_handler", None):
            self.close()


class _Asked(Waiter):
    """What the event loop knows of an operation. It does not keep the operation alive."""

    __slots__ = ("_operation", "_request")

    def __init__(self, operation: Operation) -> None:
        self._operation = ref(operation)
        self._request: ChannelRequest | None = None

    def begin(self, native: NativeContext, ask: Ask) -> None:
        if self._operation() is None:
            return
        try:
            self._request = ask.begin(native, self)
        except Exception as error:  # noqa: BLE001 - who waits gets it
            self.error(error)

    def cancel(self) -> None:
        if self._request is not None:
            self._request.cancel()

    def result(self, value: Any) -> None:
        operation = self._operation()
        if operation is not None:
            operation._deliver(value, failed=False)

    def error(self, error: Exception) -> None:
        operation = self._operation()
        if operation is not None:
            operation._deliver(error, failed=True)


class Subscription(Unique):
    """The updates of a PV in the order in which they came.

    After the handler was called, `pop` returns one after the other until it returns None. Only then the handler is called again.

    Args:
        context: The client.
        name: The PV's name.
        nt: The unwrapper of the Context.
        handler: Called without arguments when something waits.
        pvRequest: The pvRequest.
        limitHz: Updates per second at most; None for all.
    """

    def __init__(
        self,
        context: EngineProvider,
        name: str,
        nt: Any,
        handler: Callable[[], object],
        pvRequest: Request | None = None,
        limitHz: float | None = None,
    ) -> None:
        rate = checked_rate(limitHz, "limitHz")
        self.context = context
        self.handler = handler
        self.done = False
        """Whether the last update was read."""
        self._nt = nt
        self._feed = Feed(self, name, pvRequest or context.request(None), context.soon, rate)
        context.soon(self._feed.begin, context.native)

    def _event(self) -> None:
        try:
            self.handler()
        except BaseException as error:  # a fault of the program's function must not harm others
            _log.exception("the handler of the subscription to %s failed", self._feed.name)
            if ends_program(error):
                raise

    def pop(self) -> Any:
        """Return the next update, an exception that says what happened, or None if nothing waits."""
        item = self._feed.pop()
        if type(item) is NativeValue:
            return self._nt.unwrap(Value._of(item))
        if isinstance(item, Finished):
            self.done = True
        return item

    def complete(self) -> bool:
        """Whether there will never be another update."""
        return self.done

    def close(self) -> None:
        """End the subscription."""
        feed = self._feed
        if feed.is_open and not self.context.engine.is_usable:
            feed.is_open = False
        feed.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_feed"):
            self.close()


class Context(Unique):
    """A client whose operations report by callbacks.

    Args:
        provider: "pva".
        conf: Values of ``EPICS_PVA_*`` variables by their names, TLS included. They go before the environment's.
        useenv: Whether the environment is read.
        unwrap: Functions by type ID, as p4p had them before ``nt``. False: values stay Values.
        nt: Classes by type ID that are used beside the usual ones. False: values stay Values.
        kws: For classes beside this one.

    Raises:
        RuntimeError: A setting or the keychain cannot be used.

    Example:
        >>> from queue import Queue
        >>> with Context("pva", useenv=True) as ctxt:
        ...     answers = Queue()
        ...     operation = ctxt.get("demo:temperature", answers.put)
        ...     print(float(answers.get(timeout=30)))
        21.5
    """

    name: str = ""
    """The name of the provider."""

    def __init__(
        self,
        provider: str = "pva",
        conf: Mapping[str, str] | None = None,
        useenv: bool | None = None,
        unwrap: Any = None,
        nt: Any = None,
        **kws: Any,
    ) -> None:
        self.name = provider
        self._ctxt: Any = None
        super().__init__(**kws)
        self._nt = buildNT(nt, unwrap)
        self._ctxt = self._provider(provider, conf, useenv)

    @staticmethod
    def _provider(provider: str, conf: Mapping[str, str] | None, useenv: bool | None) -> ClientProvider:
        return EngineProvider(provider, conf, bool(useenv))

    makeRequest = staticmethod(make_request)

    def _open(self) -> Any:
        if self._ctxt is None:
            raise RuntimeError("Context closed")
        self._ctxt.check()
        return self._ctxt

    def conf(self) -> dict[str, str]:
        """Return the settings in effect, by the names of their variables.

        Example:
            >>> ctxt.conf()["EPICS_PVA_AUTO_ADDR_LIST"]
            'NO'
        """
        return {} if self._ctxt is None else self._ctxt.conf()

    def hurryUp(self) -> None:
        """Search now for all names that have no server.

        Example:
            >>> ctxt.hurryUp()
        """
        self._open().hurryUp()

    def __copy__(self) -> Self:
        # As in p4p: both are the same client, which either can close.
        made = type(self).__new__(type(self))
        vars(made).update(vars(self))
        return made

    def close(self) -> None:
        """Close all channels and connections, and cancel all operations.

        Example:
            >>> ctxt.close()
        """
        provider, self._ctxt = self._ctxt, None
        if provider is not None:
            provider.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def disconnect(self, name: str | None = None) -> None:
        """Close channels. Those that are in use are searched for again.

        Args:
            name: The PV's name; None means all.

        Example:
            >>> ctxt.disconnect("demo:temperature")
        """
        self._open().disconnect(name)

    def get(self, name: str, handler: Handler, request: AnyRequest = None) -> Any:
        """Begin to read a PV.

        Args:
            name: The PV's name.
            handler: Called with the value, or with RemoteError or Cancelled.
            request: The pvRequest.

        Returns:
            An operation. It is cancelled by ``close()``, and when nobody refers to it any more.

        Example:
            >>> from queue import Queue
            >>> answers = Queue()
            >>> operation = ctxt.get("demo:temperature", answers.put)
            >>> float(answers.get(timeout=30))
            21.5
        """
        provider = self._open()
        return Operation(
            provider, Get(provider.name(name), provider.request(request)), handler, self._nt.unwrap
        )

    def put(
        self,
        name: str,
        handler: Handler,
        builder: Any = None,
        request: AnyRequest = None,
        get: bool = True,
    ) -> Any:
        """Begin to write a PV.

        Args:
            name: The PV's name.
            handler: Called with None, or with RemoteError or Cancelled, or with what ``builder`` raises.
            builder: The value, or a function that fills in the Value that it gets.
            request: The pvRequest.
            get: Whether that Value holds what the PV holds at present.

        Returns:
            An operation, as `get` returns it.

        Example:
            >>> from queue import Queue
            >>> answers = Queue()
            >>> operation = ctxt.put("demo:setpoint", answers.put, builder=5.0)
            >>> answers.get(timeout=30) is None
            True
        """
        provider = self._open()
        ask = Put(
            provider.name(name),
            provider.request(request),
            putter(builder, self._nt),
            reads_first(builder, get),
        )
        return Operation(provider, ask, handler, self._nt.unwrap)

    def rpc(self, name: str, handler: Handler, value: AnyArgument, request: AnyRequest = None) -> Any:
        """Begin to call a PV.

        Args:
            name: The PV's name.
            handler: Called with the result, or with RemoteError or Cancelled.
            value: The argument; None sends an empty structure.
            request: The pvRequest.

        Returns:
            An operation, as `get` returns it.

        Example:
            >>> from queue import Queue
            >>> from appliance.p4p.nt import NTURI
            >>> answers = Queue()
            >>> argument = NTURI([("a", "d"), ("b", "d")]).wrap("demo:sum", kws={"a": 1.0, "b": 2.5})
            >>> operation = ctxt.rpc("demo:sum", answers.put, argument)
            >>> float(answers.get(timeout=30))
            3.5
        """
        provider = self._open()
        ask = RPC(provider.name(name), provider.request(request), argument(value))
        return Operation(provider, ask, handler, self._nt.unwrap)

    def monitor(
        self, name: str, handler: Callable[[], object], request: AnyRequest = None, **kws: Any
    ) -> Any:
        """Subscribe to a PV.

        Args:
            name: The PV's name.
            handler: Called without arguments when updates wait, which ``pop()`` of the subscription returns.
            request: The pvRequest, such as ``record[queueSize=10]``.
            kws: For `Subscription`, such as ``limitHz=10.0``.

        Returns:
            A Subscription. It ends when nobody refers to it any more.

        Example:
            >>> from threading import Event
            >>> something = Event()
            >>> subscription = ctxt.monitor("demo:temperature", something.set)
            >>> something.wait(30)
            True
            >>> float(subscription.pop())
            21.5
            >>> subscription.close()
        """
        provider = self._open()
        return Subscription(
            provider,
            provider.name(name),
            nt=self._nt,
            handler=handler,
            pvRequest=provider.request(request),
            **kws,
        )

    @staticmethod
    def providers() -> list[str]:
        """Return the names of providers.

        Example:
            >>> Context.providers()
            ['pva']
        """
        return ["pva"]

    @staticmethod
    def set_debug(lvl: int) -> None:
        """Set how much is logged, as `appliance.p4p.set_debug` does.

        Args:
            lvl: As there.

        Example:
            >>> import logging
            >>> Context.set_debug(logging.ERROR)
        """
        import_module("appliance.p4p").set_debug(lvl)


def _cleanup_contexts() -> None:
    """Close all clients, because the program ends. Threads that still wait for an answer are not woken."""
    for provider in list(all_providers):
        provider.is_abandoned = True
        provider.close()

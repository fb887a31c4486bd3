"""The client for Qt: results come as signals, in the thread of the window.

It needs qtpy and a binding of Qt, such as PySide6 or PyQt6.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from math import ceil
from typing import Any, Final
from weakref import ref

from appliance.client.paced import checked_rate
from appliance.p4p._errors import Cancelled, Disconnected, Finished, RemoteError, TimeoutError
from appliance.p4p.client import raw
from appliance.p4p.client._provider import AnyRequest
from appliance.p4p.client.raw import AnyArgument
from appliance.p4p.client.thread import put_request
from appliance.p4p.wrapper import Type, Value

try:
    from qtpy.QtCore import QCoreApplication, QEvent, QObject, Signal
except ImportError as error:
    raise ImportError(
        "p4p.client.Qt needs the package qtpy and a binding of Qt: pip install qtpy PySide6-Essentials "
        f"(or PySide6, PyQt6, PyQt5): {error}",
        name=__name__,
    ) from None

__all__ = [
    "Cancelled",
    "Context",
    "Disconnected",
    "Finished",
    "MCache",
    "Operation",
    "RemoteError",
    "TimeoutError",
    "Type",
    "Value",
    "exceptionGuard",
]

_log: Final = logging.getLogger(__name__)


def exceptionGuard(fn: Callable[..., object]) -> Callable[..., None]:
    """Make a function log its errors. Some bindings of Qt end the process if one of their callbacks raises.

    Args:
        fn: A function or method that Qt calls.
    """

    def wrapper(*args: Any, **kws: Any) -> None:
        try:
            fn(*args, **kws)
        except Exception:  # noqa: BLE001 - see above
            _log.exception("a function that Qt called failed")

    return wrapper


class _Post(QObject):  # type: ignore[misc]  # Qt's classes have no types that all bindings share
    """Calls functions in the thread in which it was made, whichever thread asks for it.

    It holds who is called weakly: a Qt object must not end in the thread that asks.
    """

    def __init__(self) -> None:
        super().__init__()
        self._waiting: deque[tuple[ref[Any], Callable[..., object], tuple[Any, ...]]] = deque()
        self._posted = False

    def soon(self, target: ref[Any], method: Callable[..., object], *args: Any) -> None:
        """Call a method of ``target``, soon; any thread may ask."""
        self._waiting.append((target, method, args))
        self._wake()

    def _wake(self) -> None:
        if not self._posted:
            self._posted = True
            try:
                QCoreApplication.postEvent(self, QEvent(QEvent.Type.User))
            except RuntimeError as error:  # the program ends, and Qt is gone
                _log.debug("nobody is told any more: %s", error)
                self._waiting.clear()

    @exceptionGuard
    def customEvent(self, event: Any) -> None:
        """Make the calls that wait. What comes meanwhile has its turn after other events of the window."""
        self._posted = False
        for _ in range(len(self._waiting)):
            target, method, args = self._waiting.popleft()
            found = target()
            if found is not None:
                exceptionGuard(method)(found, *args)
        if self._waiting:
            self._wake()


class Operation(QObject):  # type: ignore[misc]
    """A request that was begun; `Context.put` and `Context.rpc` make it.

    Its signal ``result`` comes once: with None or the Value, or with an exception (RemoteError, TimeoutError, Cancelled).

    Args:
        parent: The parent in Qt, until the result has come.
        timeout: Seconds; None waits for ever.
    """

    result = Signal(object)

    def __init__(self, parent: Any, timeout: float | None) -> None:
        super().__init__(parent)
        self._op: Any = None
        self._name = ""
        self._timeout = timeout
        self._done = False
        self._told: Callable[[Any], None] | None = None
        self._timer = None if timeout is None else self.startTimer(ceil(timeout * 1000))

    def close(self) -> None:
        """Cancel it: ``result`` brings Cancelled, if nothing came before."""
        if self._op is not None:
            self._op.close()

    @exceptionGuard
    def timerEvent(self, event: Any) -> None:
        """Note that there was no answer in time."""
        self.killTimer(self._timer)
        self._timer = None
        if self._told is not None:  # later: it may be gone after its end, and Qt is still in it here
            self._told(TimeoutError(f"{self._name}: timeout after {self._timeout:g} s"))

    def _finish(self, answer: Any) -> None:
        if self._done:
            return
        self._done = True
        try:
            if self._timer is not None:
                self.killTimer(self._timer)
            if isinstance(answer, TimeoutError):
                self.close()
            self.result.emit(answer)
            self.setParent(None)  # its parent would keep it as long as the window lives
        except RuntimeError as error:
            _log.debug("the result for %s came after the window was gone: %s", self._name, error)


class MCache(QObject):  # type: ignore[misc]
    """A subscription that slots share; `Context.monitor` makes it.

    Its signal ``update`` brings a Value, or an exception (Disconnected, RemoteError, Finished).

    Args:
        name: The PV's name.
        parent: The parent in Qt.
        post: Calls in the thread of the window.
    """

    update = Signal(object)

    def __init__(self, name: str, parent: Any, post: _Post) -> None:
        super().__init__(parent)
        self.name = name
        self._post = post
        self._op: Any = None
        self._last: Any = Disconnected()
        self._is_open = True

    def close(self) -> None:
        """End the subscription; nothing is emitted any more."""
        self._is_open = False
        if self._op is not None:
            self._op.close()
        try:
            self.setParent(None)
        except RuntimeError as error:
            _log.debug("the subscription to %s ends after its window: %s", self.name, error)

    def _add(self, slot: Callable[[Any], object]) -> None:
        # Later, so that no slot is called before monitor() has returned.
        self._post.soon(ref(self), MCache._begin_slot, slot)

    def _begin_slot(self, slot: Callable[[Any], object]) -> None:
        if self._is_open:
            exceptionGuard(slot)(self._last)
            self.update.connect(slot)

    def _read(self) -> None:
        while self._is_open and (item := self._op.pop()) is not None:
            self._last = item
            if isinstance(item, (Finished, RemoteError)):
                self._is_open = False  # a later monitor() begins a new one
            try:
                self.update.emit(item)
            except RuntimeError as error:
                _log.debug("the window that shows %s is gone: %s", self.name, error)
                self.close()


class Context(raw.Context):
    """A client for programs with windows: methods return at once, and results come as Qt signals.

    It belongs to the thread that makes it, which runs Qt's event loop; slots are called there.

    Args:
        provider: "pva".
        parent: A QObject, such as the window. The subscriptions end with it.
        conf: Values of ``EPICS_PVA_*`` variables by their names, TLS included. They go before the environment's.
        useenv: Whether the environment is read.
        kws: ``nt`` and ``unwrap``, as of `appliance.p4p.client.thread.Context`.

    Raises:
        RuntimeError: A setting or the keychain cannot be used.

    Example:
        >>> with Context("pva") as ctxt:
        ...     shown = ctxt.monitor("demo:temperature", label.show, limitHz=10)
        ...     done = ctxt.put("demo:setpoint", 4.5, slot=status.show)
    """

    def __init__(
        self,
        provider: str = "pva",
        parent: Any = None,
        conf: Mapping[str, str] | None = None,
        useenv: bool = True,
        **kws: Any,
    ) -> None:
        super().__init__(provider, conf=conf, useenv=useenv, **kws)
        self._parent = QObject(parent)
        self._post = _Post()
        self._mcache: dict[tuple[str, str, float | None], MCache] = {}
        self._puts: dict[str, Operation] = {}

    def close(self) -> None:
        """End all subscriptions, cancel all operations, and close all connections."""
        self._forget(None)
        super().close()

    def disconnect(self, name: str | None = None) -> None:
        """End subscriptions, cancel writes, and close channels.

        Args:
            name: The PV's name; None means all.
        """
        self._forget(name)
        super().disconnect(name)

    def _forget(self, name: str | None) -> None:
        for key in [key for key in self._mcache if name in {None, key[0]}]:
            self._mcache.pop(key).close()
        for written in [written for written in self._puts if name in {None, written}]:
            self._puts.pop(written).close()

    def put(  # type: ignore[override]
        self,
        name: str,
        value: Any,
        slot: Callable[[Any], object] | None = None,
        request: AnyRequest = None,
        timeout: float | None = 5.0,
        process: str | None = None,
        wait: bool | None = None,
        get: bool = True,
    ) -> Operation:
        """Begin to write a PV. An earlier write of the same PV that is not done yet is cancelled.

        Args:
            name: The PV's name.
            value: A plain value, a dict by field, a Value, or a function that fills in the Value that it gets.
            slot: Called with None, or with an exception.
            request: The pvRequest.
            timeout: Seconds; None waits for ever.
            process: Whether the server processes the record: "true", "false" or "passive".
            wait: Whether the answer comes only after all processing.
            get: Whether the PV is read first. Without it, only a text for a PV with choices is, for its choices.

        Returns:
            The operation. The Context keeps the latest one of each PV.

        Raises:
            ValueError: ``request`` comes together with ``process`` or ``wait``.
        """
        request = put_request(request, process, wait, None)
        name = self._open().name(name)
        earlier = self._puts.pop(name, None)
        if earlier is not None:
            earlier.close()
        operation, told = self._begin(name, slot, timeout)
        operation._op = super().put(name, told, builder=value, request=request, get=get)
        self._puts[name] = operation
        return operation

    def rpc(  # type: ignore[override]
        self,
        name: str,
        value: AnyArgument,
        slot: Callable[[Any], object],
        request: AnyRequest = None,
        timeout: float | None = 5.0,
        throw: bool = True,
    ) -> Operation:
        """Begin to call a PV.

        Args:
            name: The PV's name.
            value: The argument, for instance what `appliance.p4p.nt.NTURI` makes; None sends an empty structure.
            slot: Called with the result, or with an exception.
            request: The pvRequest.
            timeout: Seconds; None waits for ever.
            throw: Has no effect, as in p4p.

        Returns:
            The operation.
        """
        operation, told = self._begin(name, slot, timeout)
        operation._op = super().rpc(name, told, value, request=request)
        return operation

    def _begin(
        self, name: str, slot: Callable[[Any], object] | None, timeout: float | None
    ) -> tuple[Operation, Callable[[Any], None]]:
        operation = Operation(self._parent, timeout)
        operation._name = name
        if slot is not None:
            operation.result.connect(slot)
        post, target = self._post, ref(operation)

        def told(answer: Any) -> None:
            post.soon(target, Operation._finish, answer)

        operation._told = told
        return operation, told

    def monitor(  # type: ignore[override]
        self,
        name: str,
        slot: Callable[[Any], object],
        request: AnyRequest = None,
        limitHz: float | None = 10.0,
    ) -> MCache:
        """Subscribe to a PV. Slots with the same PV, request and limit share one subscription.

        Args:
            name: The PV's name.
            slot: Called with the latest value or Disconnected, and then with each update: a value, or Disconnected,
                RemoteError or Finished.
            request: The pvRequest.
            limitHz: Updates per second at most; None for all. The first comes at once, what comes faster is merged, and the
                latest comes as soon as its time has come.

        Returns:
            The subscription. The Context keeps it until `close` of either.

        Raises:
            TypeError: ``limitHz`` is no number.
            ValueError: ``limitHz`` is not above 0.
        """
        rate = checked_rate(limitHz, "limitHz")
        provider = self._open()
        key = (provider.name(name), provider.request(request).key, rate)
        shared = self._mcache.get(key)
        if shared is None or not shared._is_open:
            shared = self._mcache[key] = MCache(name, self._parent, self._post)
            post, target = self._post, ref(shared)

            def told() -> None:
                post.soon(target, MCache._read)

            shared._op = super().monitor(name, told, request, limitHz=rate)
        shared._add(slot)
        return shared

"""SharedPV whose handlers run on the one thread that all PVs of this kind share."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from appliance.p4p._errors import RemoteError
from appliance.p4p.nt import NTEnum, NTScalar
from appliance.p4p.server._base import SharedPV as _SharedPV
from appliance.p4p.server._operation import ServerOperation, server_queue
from appliance.p4p.server._quick import Quick

__all__ = ["Handler", "SharedPV"]

_log = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])


class ServOpWrap:
    """A PUT as its handler sees it: values are converted by the PV's ``nt``.

    All else is as in `ServerOperation`.
    """

    def __init__(self, op: ServerOperation, wrap: Callable[..., Any], unwrap: Callable[[Any], Any]) -> None:
        self._op = op
        self._wrap = wrap
        self._unwrap = unwrap

    def value(self) -> Any:
        """Return what the client sent, converted.

        Raises:
            ValueError: It cannot be converted.
        """
        value = self._op.value()
        try:
            return self._unwrap(value)
        except Exception as error:
            raise ValueError(f"Unable to unwrap {value!r} with {self._unwrap!r}: {error}") from error

    def done(self, value: Any = None, error: str | None = None) -> None:
        """Answer the client; see `ServerOperation.done`."""
        if value is not None and error is None:
            try:
                value = self._wrap(value)
            except Exception as why:
                raise ValueError(f"Unable to wrap {value!r} with {self._wrap!r}: {why}") from why
        self._op.done(value, error)

    def __getattr__(self, key: str) -> Any:
        return getattr(self._op, key)


class Handler:
    """What a PV does when clients come, put, call and go. To inherit from it is optional: methods can be left out.

    Example:
        >>> from appliance.p4p.client.thread import Context
        >>> from appliance.p4p.nt import NTScalar
        >>> from appliance.p4p.server import Server
        >>> class Double(Handler):
        ...     def put(self, pv, op):
        ...         pv.post(2 * op.value())
        ...         op.done()
        >>> pv = SharedPV(handler=Double(), nt=NTScalar("d"), initial=0.0)
        >>> with Server(providers=[{"demo:double": pv}], isolate=True) as server:
        ...     with Context("pva", conf=server.conf(), useenv=False) as ctxt:
        ...         ctxt.put("demo:double", 2.0)
        ...         print(float(ctxt.get("demo:double")))
        4.0
    """

    def put(self, pv: SharedPV, op: Any) -> None:
        """Handle a client's PUT.

        Args:
            pv: The PV.
            op: The request; its ``value()`` is converted by the PV's ``nt``. Call ``op.done()`` at the end.
        """
        del pv
        op.done(error="Not supported")

    def rpc(self, pv: SharedPV, op: Any) -> None:
        """Handle a client's RPC.

        Args:
            pv: The PV.
            op: The request. Call ``op.done(value)`` at the end.
        """
        del pv
        op.done(error="Not supported")

    def onFirstConnect(self, pv: SharedPV) -> None:
        """Handle that a first client has opened a channel.

        Args:
            pv: The PV.
        """

    def onLastDisconnect(self, pv: SharedPV) -> None:
        """Handle that the last channel of a client was closed.

        Args:
            pv: The PV.
        """


def _is_usual(wrap: Callable[..., Any]) -> bool:
    """Whether values are converted by an `NTScalar` as it is, and not by a class that a program has made of it."""
    return (
        getattr(wrap, "__func__", None) is NTScalar.wrap and type(getattr(wrap, "__self__", None)) is NTScalar
    )


def _as_it_is(value: Any, **kws: Any) -> Any:
    if kws:
        raise TypeError(f"without nt= or wrap= there is no {', '.join(kws)}")
    return value


class SharedPV(_SharedPV):
    """A PV with one value that all clients share.

    Its handlers run one after another on a thread that all PVs of this kind share. Most programs use the SharedPV of
    `appliance.p4p.server.thread` or of `appliance.p4p.server.asyncio`.

    Args:
        handler: An object with the methods of `Handler`, or some of them. The decorators of this class add others.
        initial: The first value; without it the PV is closed until `open`, and clients wait for it.
        nt: Converts values, for example an `NTScalar`.
        wrap: Makes a `Value` of what `open` and `post` are given; instead of ``nt``.
        unwrap: Makes what `current` and ``op.value()`` return out of a `Value`; instead of ``nt``.
        options: Accepted and not used, as in p4p.
        kws: With ``initial``: for the ``wrap`` of ``nt``, for example ``timestamp``, ``severity`` and ``message``.

    Raises:
        ValueError: ``initial`` cannot be converted.

    Example:
        >>> from appliance.p4p.nt import NTScalar
        >>> pv = SharedPV(nt=NTScalar("d"), initial=0.5, severity=1)
        >>> float(pv.current()), pv.current().severity
        (0.5, 1)
    """

    def __init__(
        self,
        handler: Any = None,
        initial: Any = None,
        nt: Any = None,
        wrap: Callable[..., Any] | None = None,
        unwrap: Callable[[Any], Any] | None = None,
        options: dict[str, Any] | None = None,
        **kws: Any,
    ) -> None:
        self.nt = nt
        self._handler = handler or self._DummyHandler()
        self._whandler = self._WrapHandler(self, self._handler)
        self._wrap: Callable[..., Any] = _as_it_is
        self._unwrap: Callable[[Any], Any] = _as_it_is
        self._choose(nt, wrap, unwrap)
        self._quick: Quick | None = None
        self._plain: type | None = None
        """The Python type of values that need no conversion at all."""
        super().__init__(self._whandler, options)
        if initial is not None:
            self.open(initial, nt=nt, wrap=wrap, unwrap=unwrap, **kws)

    def _choose(self, nt: Any, wrap: Callable[..., Any] | None, unwrap: Callable[[Any], Any] | None) -> None:
        if isinstance(nt, NTEnum):
            nt = nt._for_one()  # several PVs may have been given the same object
        self._wrap = wrap or (nt and nt.wrap) or self._wrap
        self._unwrap = unwrap or (nt and nt.unwrap) or self._unwrap

    def open(
        self,
        value: Any,
        nt: Any = None,
        wrap: Callable[..., Any] | None = None,
        unwrap: Callable[[Any], Any] | None = None,
        **kws: Any,
    ) -> None:
        """Set the type and the first value. Clients that wait for the PV go on.

        Args:
            value: A `Value`, or what ``nt`` or ``wrap`` makes one of.
            nt: Converts values from now on.
            wrap: As for the class.
            unwrap: As for the class.
            kws: For the ``wrap`` of ``nt``, for example ``timestamp``, ``severity`` and ``message``.

        Raises:
            ValueError: The value cannot be converted.
            TypeError: There is neither ``nt`` nor ``wrap``, and it is no `Value`.
            RuntimeError: The PV is open already.

        Example:
            >>> from appliance.p4p.nt import NTScalar
            >>> pv = SharedPV()
            >>> pv.open("ready", nt=NTScalar("s"))
            >>> str.__str__(pv.current())
            'ready'
        """
        self._choose(nt, wrap, unwrap)
        super().open(self._wrapped(value, kws))
        self._quick = Quick.of(self._core) if _is_usual(self._wrap) else None
        self._plain = None if self._quick is None else self._quick.plain

    def post(self, value: Any, **kws: Any) -> None:
        """Change the value, and tell subscribers. Safe from any thread.

        If posts come faster than they can be sent, subscribers miss some, but never the latest.

        Args:
            value: A `Value`, or what ``nt`` or ``wrap`` makes one of. Of a `Value` the marked fields count.
            kws: For the ``wrap`` of ``nt``: ``timestamp`` (seconds since 1970, a datetime, or seconds and nanoseconds),
                ``severity`` (0 to 3) and ``message``.

        Raises:
            ValueError: The value cannot be converted.
            RuntimeError: The PV is closed, or a `Value` has another type.

        Example:
            >>> from appliance.p4p.nt import NTScalar
            >>> pv = SharedPV(nt=NTScalar("d"), initial=0.0)
            >>> pv.post(12.5, severity=2, message="too high", timestamp=1700000000.25)
            >>> float(pv.current()), pv.current().timestamp
            (12.5, 1700000000.25)
        """
        if type(value) is self._plain:
            if not kws:
                core = self._core
                bare = core.bare
                if bare is not None:
                    store, number = bare
                    store[number] = value
                    if core.bare is bare:
                        return
                core.post_plain(value)
                return
            assert self._quick is not None
            if self._quick.post(value, kws):
                return
        elif self._quick is not None and self._quick.post(value, kws):
            return
        super().post(self._wrapped(value, kws))

    def current(self) -> Any:
        """Return a copy of the value, converted by ``nt`` or ``unwrap``.

        Raises:
            ValueError: It cannot be converted.
            RuntimeError: The PV is closed.

        Example:
            >>> from appliance.p4p.nt import NTScalar
            >>> pv = SharedPV(nt=NTScalar("d"), initial=0.5)
            >>> float(pv.current())
            0.5
        """
        value = super().current()
        try:
            return self._unwrap(value)
        except Exception as error:
            raise ValueError(f"Unable to unwrap {value!r} with {self._unwrap!r}: {error}") from error

    def _wrapped(self, value: Any, kws: dict[str, Any]) -> Any:
        try:
            return self._wrap(value, **kws)
        except Exception as error:
            raise ValueError(f"Unable to wrap {value!r} with {self._wrap!r} and {kws!r}: {error}") from error

    def _exec(self, op: Any, M: Callable[..., Any], *args: Any) -> None:
        """Call a handler in the way of this kind of PV; its error answers ``op``."""
        server_queue().push(partial(_on_queue, op, M, *args))

    def _onFirstConnect(self, _junk: Any) -> None:
        """Run before the program's own handler."""

    def _onLastDisconnect(self, _junk: Any) -> None:
        """Run after the program's own handler."""

    class _DummyHandler:
        """Takes what decorators add."""

    class _WrapHandler:
        """Passes what happens on to the program's handler."""

        def __init__(self, pv: SharedPV, real: Any) -> None:
            self._pv = pv
            self._real = real

        def onFirstConnect(self) -> None:
            self._pv._exec(None, self._pv._onFirstConnect, None)
            handle = getattr(self._real, "onFirstConnect", None)
            if handle is not None:
                self._pv._exec(None, handle, self._pv)

        def onLastDisconnect(self) -> None:
            handle = getattr(self._real, "onLastDisconnect", None)
            if handle is not None:
                self._pv._exec(None, handle, self._pv)
            self._pv._exec(None, self._pv._onLastDisconnect, None)

        def put(self, op: ServerOperation) -> None:
            pv = self._pv
            handle = getattr(self._real, "put", None)
            if handle is None:
                op.done(error="Put not supported")
            else:
                pv._exec(op, handle, pv, ServOpWrap(op, pv._wrap, pv._unwrap))

        def rpc(self, op: ServerOperation) -> None:
            handle = getattr(self._real, "rpc", None)
            if handle is None:
                op.done(error="RPC not supported")
            else:
                self._pv._exec(op, handle, self._pv, op)

    @property
    def onFirstConnect(self) -> Callable[[F], F]:
        """A decorator for the function that is called with the PV when a first client has opened a channel."""
        return self._decorate("onFirstConnect")

    @property
    def onLastDisconnect(self) -> Callable[[F], F]:
        """A decorator for the function that is called with the PV when the last channel was closed."""
        return self._decorate("onLastDisconnect")

    @property
    def put(self) -> Callable[[F], F]:
        """A decorator for the function that is called with the PV and the request of a PUT."""
        return self._decorate("put")

    @property
    def rpc(self) -> Callable[[F], F]:
        """A decorator for the function that is called with the PV and the request of an RPC."""
        return self._decorate("rpc")

    def _decorate(self, name: str) -> Callable[[F], F]:
        def decorate(function: F) -> F:
            setattr(self._handler, name, function)
            return function

        return decorate

    def __repr__(self) -> str:
        name = type(self).__name__
        try:
            return f"{name}(value={self.current()!r})"
        except RuntimeError:
            return f"{name}(<closed>)"


def _on_queue(op: Any, M: Callable[..., Any], *args: Any) -> None:
    """Call a handler on a thread of a work queue; an error becomes the client's answer, and a line in the log."""
    try:
        M(*args)
    except RemoteError as error:
        why: Exception = error
    except Exception as error:  # noqa: BLE001 - the next request must be handled
        _log.exception("the handler of a PV failed")
        why = error
    else:
        return
    if op is not None:
        op.done(error=str(why) or type(why).__name__)

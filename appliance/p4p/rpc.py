"""Methods of Python objects as PVs that take arguments, and the way to call them."""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial, wraps
from typing import Any, TypeVar

from appliance.p4p._errors import RemoteError
from appliance.p4p.nt import NTURI
from appliance.p4p.server import DynamicProvider, Server
from appliance.p4p.server.raw import SharedPV
from appliance.p4p.util import Full, ThreadedWorkQueue, WorkQueue
from appliance.p4p.wrapper import Type, Value

__all__ = [
    "MASARDispatcher",
    "NTURIDispatcher",
    "RPCProxyBase",
    "RemoteError",
    "WorkQueue",
    "quickRPCServer",
    "rpc",
    "rpccall",
    "rpcproxy",
]

_log = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])


def rpc(rtype: Any = None) -> Callable[[F], F]:
    """Mark a method for clients to call.

    A method may raise `RemoteError` to tell the client why a call fails; of any other error the client hears that there was
    one, and the log has the details.

    Args:
        rtype: What the method returns: a `Type`, or a list of fields for one, makes a `Value` of a dict; an object such as
            `NTScalar` converts; None if the method returns a `Value`.

    Raises:
        TypeError: ``rtype`` is none of these.

    Example:
        >>> from appliance.p4p.nt import NTScalar
        >>> class Adder:
        ...     @rpc(NTScalar("d"))
        ...     def add(self, lhs, rhs):
        ...         return float(lhs) + float(rhs)
        >>> Adder().add(1, 2).value
        3.0
    """
    wrap: Callable[[Any], Any] | None = None
    if isinstance(rtype, list | tuple):
        rtype = Type(rtype)
    elif hasattr(rtype, "type") and not isinstance(rtype, Type):
        wrap = rtype.wrap
        rtype = rtype.type
    elif rtype is not None and not isinstance(rtype, Type):
        raise TypeError(
            f"rtype= must be a Type, a list of fields or an object such as NTScalar, not {rtype!r}"
        )

    def mark(function: F) -> F:
        marked: Any = function
        if wrap is not None:

            @wraps(function)
            def converted(*args: Any, **kws: Any) -> Any:
                return wrap(function(*args, **kws))

            marked = converted
        marked._reply_Type = rtype
        result: F = marked
        return result

    return mark


def rpccall(pvname: str, request: Any = None, rtype: Any = None) -> Callable[[F], F]:
    """Mark a method of a class for `rpcproxy`: it calls a PV.

    Args:
        pvname: The PV's name; it is formatted (``%``) with the ``format`` of the proxy.
        request: A pvRequest, as text or as a `Value`.
        rtype: Kept for the reader; nothing uses it.

    Returns:
        A decorator. All arguments of the method need a default, which is a type code or a `Type`.

    Example:
        >>> @rpcproxy
        ... class Calculator:
        ...     @rpccall("%ssum")
        ...     def add(a="d", b="d"):
        ...         pass
        >>> from appliance.p4p.client.thread import Context
        >>> with Context("pva") as ctxt:
        ...     print(float(Calculator(context=ctxt, format="demo:").add(1.0, b=2.5)))
        3.5
    """

    def mark(function: F) -> F:
        marked: Any = function
        marked._call_PV = pvname
        marked._call_Request = request
        marked._reply_Type = rtype
        return function

    return mark


class RPCDispatcherBase(DynamicProvider):
    """A provider of PVs that call the methods of an object. A subclass says how a request names method and arguments.

    Args:
        queue: Its threads call the methods.
        target: The object; its methods that `rpc` marks can be called.
        channels: The names of the PVs.
        name: Names the provider.
    """

    _answers_at_once = True

    def __init__(
        self,
        queue: WorkQueue,
        target: Any = None,
        channels: Iterable[str] = (),
        name: str | None = None,
    ) -> None:
        super().__init__(name, self)
        self.queue = queue
        self.target = target
        self.channels = set(channels)
        self.name = name
        self.methods: dict[str, Callable[..., Any]] = {
            name: method for name, method in inspect.getmembers(target) if hasattr(method, "_reply_Type")
        }
        # One PV serves all names: the request says what is called.
        self._pv = _CallPV(handler=self, initial=Value(Type([])))

    def getMethodNameArgs(self, request: Value) -> tuple[str, Mapping[str, Any]]:
        """Return the name of the method, and its arguments by name.

        Args:
            request: What the client sent.
        """
        raise NotImplementedError("a subclass of RPCDispatcherBase must have getMethodNameArgs")

    def testChannel(self, name: str) -> bool:
        """Return whether there is such a PV."""
        return name in self.channels

    def makeChannel(self, name: str, src: str) -> SharedPV | None:
        """Return the PV for a client; None if there is no such PV."""
        del src
        return self._pv if name in self.channels else None

    def rpc(self, pv: SharedPV, op: Any) -> None:
        """Queue a call; refuse it if the queue is full."""
        del pv
        try:
            self.queue.push(partial(self._handle, op))
        except Full:
            _log.warning("a call of %.256r is refused: the queue is full", op.name())
            op.done(error="Too many concurrent RPC calls")

    def _handle(self, op: Any) -> None:
        """Call the method; runs on a thread of the queue."""
        try:
            name, args = self.getMethodNameArgs(op.value())
            method = self.methods[name]
            result = method(**args)
        except RemoteError as error:
            op.done(error=str(error) or "RemoteError")
            return
        except Exception:  # noqa: BLE001 - the next call must be made
            _log.exception("the call of %.256r failed", op.name())
            op.done(error="Error handling RPC")
            return
        try:
            if not isinstance(result, Value):
                result = Value(method._reply_Type, result)  # type: ignore[attr-defined]
        except Exception:  # noqa: BLE001 - see above
            _log.exception("the result of %.256r does not fit its type", op.name())
            op.done(error="Error encoding reply")
            return
        op.done(result)


class _CallPV(SharedPV):
    """A PV whose handler only queues: it can be called on the PVAccess thread."""

    def _exec(self, op: Any, M: Callable[..., Any], *args: Any) -> None:
        del op
        M(*args)


class NTURIDispatcher(RPCDispatcherBase):
    """A provider with one PV for each method of an object. Clients send arguments as an NTURI, as ``pvcall`` does.

    Args:
        queue: Its threads call the methods.
        prefix: The beginning of the PVs' names; the method's name follows.
        kws: ``target``, the object, whose methods that `rpc` marks can be called; ``name``, which names the provider.

    Example:
        >>> class Adder:
        ...     @rpc([("result", "d")])
        ...     def add(self, lhs, rhs):
        ...         return {"result": float(lhs) + float(rhs)}
        >>> sorted(NTURIDispatcher(WorkQueue(), target=Adder(), prefix="demo:").channels)
        ['demo:add']
    """

    def __init__(self, queue: WorkQueue, prefix: str = "", **kws: Any) -> None:
        super().__init__(queue, **kws)
        self.prefix = prefix
        self.methods = {prefix + name: method for name, method in self.methods.items()}
        self.channels = set(self.methods)

    def getMethodNameArgs(self, request: Value) -> tuple[str, Mapping[str, Any]]:
        """Return the PV's name and the arguments of the query.

        Args:
            request: What the client sent.

        Returns:
            Name and arguments.

        Example:
            >>> request = NTURI([("lhs", "d")]).wrap("demo:add", kws={"lhs": 1.0})
            >>> NTURIDispatcher(WorkQueue(), target=object()).getMethodNameArgs(request)
            ('demo:add', {'lhs': 1.0})
        """
        return request.path, dict(request.query.items())


class MASARDispatcher(RPCDispatcherBase):
    """A provider for the requests of MASAR, which name the method besides the PV. Not for new programs.

    Args:
        queue: Its threads call the methods.
        kws: As for `RPCDispatcherBase`.

    Example:
        >>> class Adder:
        ...     @rpc([("result", "d")])
        ...     def add(self, lhs, rhs):
        ...         return {"result": float(lhs) + float(rhs)}
        >>> dispatcher = MASARDispatcher(WorkQueue(), target=Adder(), channels=["demo:masar"])
        >>> dispatcher.testChannel("demo:masar")
        True
    """

    def getMethodNameArgs(self, request: Value) -> tuple[str, Mapping[str, Any]]:
        """Return the function's name, and its arguments from two lists.

        Args:
            request: What the client sent.

        Returns:
            Name and arguments.

        Example:
            >>> kind = Type([("function", "s"), ("name", "as"), ("value", "as")])
            >>> request = Value(kind, {"function": "add", "name": ["lhs"], "value": ["1"]})
            >>> MASARDispatcher(WorkQueue(), target=object()).getMethodNameArgs(request)
            ('add', {'lhs': '1'})
        """
        return request.function, dict(zip(request.get("name", []), request.get("value", []), strict=False))


def quickRPCServer(
    provider: str,
    prefix: str,
    target: Any,
    maxsize: int = 20,
    workers: int = 1,
    useenv: bool = True,
    conf: Mapping[str, str] | None = None,
    isolate: bool = False,
) -> None:
    """Serve the methods of an object until the program is interrupted (Ctrl-C).

    Args:
        provider: Names the provider.
        prefix: The beginning of the PVs' names; the method's name follows.
        target: The object; its methods that `rpc` marks can be called.
        maxsize: Calls that may wait; further ones are refused.
        workers: Threads that make calls; with one, calls are made one after another.
        useenv: As for `Server`.
        conf: As for `Server`.
        isolate: As for `Server`; then ``useenv`` and ``conf`` have to be left out.
    """
    queue = ThreadedWorkQueue(maxsize=maxsize, workers=workers)
    dispatcher = NTURIDispatcher(queue, target=target, prefix=prefix, name=provider)
    settings: dict[str, Any] = {"isolate": True} if isolate else {"useenv": useenv, "conf": conf}
    if isolate and (conf is not None or not useenv):
        raise AssertionError("with isolate=True neither conf= nor useenv= has an effect; leave them out")
    with queue, Server(providers=[dispatcher], **settings):
        _log.info("methods are served")
        threading.Event().wait()


class RPCProxyBase:
    """What the classes that `rpcproxy` makes have in common.

    Example:
        >>> @rpcproxy
        ... class Calculator:
        ...     timeout = 30.0
        ...     @rpccall("%ssum")
        ...     def add(a="d", b="d"):
        ...         pass
        >>> isinstance(Calculator(context=object(), format="demo:"), RPCProxyBase)
        True
    """

    context: Any = None
    """The client Context through which calls are made."""
    format: Any = None
    """What the names of PVs are formatted (``%``) with: a text, a tuple or a dict."""
    timeout: float = 3.0
    """Seconds that a call may take."""
    authority: str = ""
    """The field ``authority`` of the NTURI."""
    throw: bool = True
    """Whether errors are raised; otherwise they are returned."""
    scheme: str | None = None
    """The field ``scheme`` of the NTURI; without it the name of the Context."""


def _proxied(name: str, method: Any) -> Callable[..., Any]:
    """Return the method that calls a PV.

    Raises:
        TypeError: The arguments of ``method`` do not say their types.
    """
    pv, request = method._call_PV, method._call_Request
    spec = inspect.getfullargspec(method)
    defaults = spec.defaults or ()
    if spec.varargs is not None or spec.varkw is not None:
        raise TypeError(f"the proxy method {name} cannot have *args or **kws")
    if len(spec.args) != len(defaults):
        raise TypeError(
            f"every argument of the proxy method {name} needs a type code as its default, and there is no self"
        )
    try:
        uri = NTURI(list(zip(spec.args, defaults, strict=True)))
    except Exception as error:
        raise TypeError(f"the proxy method {name} has an argument with a bad type: {error}") from error

    @wraps(method)
    def call(self: Any, *args: Any, **kws: Any) -> Any:
        pvname = pv % self.format
        try:
            argument = uri.wrap(
                pvname, args, kws, scheme=self.scheme or self.context.name, authority=self.authority
            )
        except Exception as error:
            raise ValueError(f"Unable to wrap {args!r} {kws!r} as {uri!r} ({error})") from error
        return self.context.rpc(pvname, argument, request=request, timeout=self.timeout, throw=self.throw)

    return call


def rpcproxy(spec: type) -> Any:
    """Make a class whose methods call PVs out of one whose methods `rpccall` marks.

    Args:
        spec: The class. The new one inherits from it and from `RPCProxyBase`.

    Returns:
        The new class. It takes two more arguments: ``context``, a client Context, and ``format``, what the names of PVs are
        formatted with; the others go to ``spec``.

    Example:
        >>> @rpcproxy
        ... class Adder:
        ...     @rpccall("%s:add")
        ...     def add(lhs="d", rhs="d"):
        ...         pass
        >>> issubclass(Adder, RPCProxyBase)
        True
    """

    def begin(self: Any, context: Any = None, format: Any = {}, **kws: Any) -> None:
        if context is None:
            raise AssertionError("a proxy needs context=, the client Context that makes its calls")
        self.context = context
        self.format = format
        spec.__init__(self, **kws)  # type: ignore[misc]

    members: dict[str, Any] = {"__init__": begin}
    for name, method in inspect.getmembers(spec, lambda member: hasattr(member, "_call_PV")):
        members[name] = _proxied(name, method)
    return type(spec.__name__, (RPCProxyBase, spec), members)

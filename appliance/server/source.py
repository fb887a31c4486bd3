"""The origin of PVs: sources answer searches and open channels; handlers do the work of one PV."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable
from typing import ClassVar

from appliance.errors import ApplianceError
from appliance.pva.credentials import Credentials
from appliance.pva.octets import RawArgument
from appliance.pvdata.value import Value
from appliance.server.channel import Channel
from appliance.server.operation import Operation, Subscription

__all__ = ["Handler", "Later", "Source", "StaticSource"]


class Handler:
    """Serves one PV to any number of clients. Every method has a default that refuses.

    Methods run on the event loop and must not block; what takes longer is answered later through the operation.
    An exception that is an ApplianceError becomes its text in the answer, any other a line in the log and
    "internal error" in the answer.

    Example:
        >>> from appliance.server import Handler
        >>> class Dice(Handler):
        ...     def init(self, operation):
        ...         operation.ready(NTScalar(INT32))
        ...     def get(self, operation):
        ...         operation.reply(Value(NTScalar(INT32), 6))
        >>> server.add_pv("demo:dice", Dice())
        >>> (await ctx.get("demo:dice"))["value"]
        6
    """

    __slots__ = ()

    SUBSCRIPTION: ClassVar[type[Subscription]] = Subscription
    """The class of the subscriptions that `subscribe` gets."""

    def init(self, operation: Operation) -> None:
        """Begin a client's GET, PUT, PUT_GET, PROCESS or RPC: call ``operation.ready`` or ``fail``, now or later.

        Args:
            operation: The client's request, and the ways to answer it.
        """
        operation.fail("this PV does not support the operation")

    def get(self, operation: Operation) -> None:
        """Answer a GET with ``operation.reply``, now or later.

        Args:
            operation: The client's request, and the ways to answer it.
        """
        operation.fail("this PV cannot be read")

    def put(self, operation: Operation, value: Value) -> None:
        """Take a PUT; answer with ``operation.done``, now or later.

        Args:
            operation: The client's request, and the ways to answer it.
            value: What the client sent; its marks say which fields.
        """
        del value
        operation.fail("this PV is read only")

    def put_get(self, operation: Operation, value: Value) -> None:
        """Take a PUT_GET; answer with the PV's value by ``operation.reply``.

        Args:
            operation: The client's request, and the ways to answer it.
            value: What the client sent; its marks say which fields.
        """
        del value
        operation.fail("this PV has no PUT_GET; use PUT and GET")

    def process(self, operation: Operation) -> None:
        """Process; answer with ``operation.done``.

        Args:
            operation: The client's request, and the ways to answer it.
        """
        operation.fail("this PV cannot be processed")

    def rpc(self, operation: Operation, argument: Value | None) -> None:
        """Answer a call (RPC) with ``operation.reply``, now or later.

        Args:
            operation: The client's request, and the ways to answer it.
            argument: What the client sent; None if it is empty.
        """
        del argument
        operation.fail("this PV cannot be called")

    def argument_octets(self, operation: Operation, argument: RawArgument) -> None:
        """Handle a PUT, PUT_GET or RPC of an operation that takes octets (`Operation.take_octets`), as the methods above."""
        raise NotImplementedError

    def subscribe(self, subscription: Subscription) -> None:
        """Begin a client's MONITOR: call ``ready`` or ``fail``; then ``post`` the present value.

        Args:
            subscription: The client's subscription.
        """
        subscription.fail("this PV cannot be monitored")

    def counted_as(self) -> Hashable:
        """Return the key that subscriptions are counted by: the same for PVs that change together."""
        return self

    def unsubscribe(self, subscription: Subscription) -> None:
        """Handle that the MONITOR has ended.

        Args:
            subscription: The client's subscription.
        """

    def flow(self, subscription: Subscription) -> None:
        """Handle that the client started or stopped the MONITOR: see ``subscription.running``.

        Args:
            subscription: The client's subscription.
        """

    def introspect(self, operation: Operation, field: str) -> None:
        """Answer GET_FIELD with ``operation.reply_field``.

        Args:
            operation: The client's request, and the ways to answer it.
            field: The path of the field whose type is wanted; empty for the whole.
        """
        del field
        operation.fail("the type of this PV is not known")

    def cancelled(self, operation: Operation) -> None:
        """Handle that the client cancelled the request in progress: ``operation`` is dead, its answers are dropped.

        The requests that follow come with another Operation, which has the same ``state``.

        Args:
            operation: The request that was cancelled.
        """

    def closed(self, operation: Operation) -> None:
        """Handle that the operation has ended.

        Args:
            operation: The operation.
        """

    def attached(self, channel: Channel) -> None:
        """Handle that a client has opened a channel of this handler.

        Args:
            channel: The client's channel.
        """

    def detached(self, channel: Channel) -> None:
        """Handle that a channel of this handler is gone, and all its operations with it.

        Args:
            channel: The client's channel.
        """


class Later:
    """A handler that a source may have in a moment. The client's request to open the channel waits for it.

    The source calls `settle` once; the server says with `then` whom to tell. The order of the two does not matter.
    """

    __slots__ = ("_done", "_outcome", "cancelled", "on_cancel")

    def __init__(self, on_cancel: Callable[[], None] | None = None) -> None:
        self.cancelled = False
        """Whether the client has gone: then `settle` tells nobody."""
        self.on_cancel = on_cancel
        """Called when the client goes before the outcome is known."""
        self._done: Callable[[Handler | ApplianceError], None] | None = None
        self._outcome: Handler | ApplianceError | None = None

    def then(self, done: Callable[[Handler | ApplianceError], None]) -> None:
        """Call ``done`` with the handler, or with the reason why there is none: now if that is known."""
        if self._outcome is not None:
            done(self._outcome)
        else:
            self._done = done

    def settle(self, outcome: Handler | ApplianceError) -> None:
        """Give the handler, or the reason for the client why there is none. Only the first call counts."""
        if self._outcome is not None or self.cancelled:
            return
        self._outcome = outcome
        self.on_cancel = None
        done, self._done = self._done, None
        if done is not None:
            done(outcome)

    def cancel(self) -> None:
        """Give it up: the client has gone."""
        if self._outcome is not None or self.cancelled:
            return
        self.cancelled = True
        self._done = None
        on_cancel, self.on_cancel = self.on_cancel, None
        if on_cancel is not None:
            on_cancel()


class Source(ABC):
    """Names and their handlers.

    Example:
        >>> from appliance.server import Source
        >>> class Squares(Source):
        ...     def claims(self, name, host):
        ...         return name.startswith("square:")
        ...     def open(self, name, peer):
        ...         return SharedPV(Value(NTScalar(INT32), int(name[7:]) ** 2)) if self.claims(name, "") else None
        >>> server.add_source("squares", Squares())
        >>> (await ctx.get("square:12"))["value"]
        144
    """

    @abstractmethod
    def claims(self, name: str, host: str) -> bool:
        """Whether a search for a name is answered. It is asked often, so it must be quick.

        Args:
            name: The PV's name.
            host: The address that the search came from.

        Returns:
            Whether this source has the PV.
        """

    @abstractmethod
    def open(self, name: str, peer: Credentials) -> Handler | Later | None:
        """Return the handler of a name.

        Args:
            name: The PV's name.
            peer: Who opens it.

        Returns:
            The handler, perhaps later; None leaves the name to the next source.
        """

    def promise(self, name: str, host: str, asker: Hashable, tell: Callable[[], None]) -> None:
        """Call ``tell`` if the source comes to claim ``name`` soon, after it did not when ``host`` searched for it.

        The search is then answered late. A source that is never late does nothing.

        Args:
            name: The name that was searched for.
            host: The address that the search came from.
            asker: Who searched: a later search of an equal one takes the place of the earlier.
            tell: Answers the search.
        """
        del name, host, asker, tell

    def names(self) -> Iterable[str]:
        """Return the names to list (``pvxlist``); a source that makes PVs on demand lists none.

        Returns:
            The names.
        """
        return ()


class StaticSource(Source):
    """A dictionary of PVs.

    Example:
        >>> from appliance.server import StaticSource
        >>> source = StaticSource()
        >>> source.pvs["demo:level"] = SharedPV(Value(NTScalar(FLOAT64), 0.5))
        >>> server.add_source("mine", source)
        >>> (await ctx.get("demo:level"))["value"]
        0.5
    """

    def __init__(self) -> None:
        self.pvs: dict[str, Handler] = {}
        """The PVs by name; they may be changed at any time."""

    def claims(self, name: str, host: str) -> bool:
        """Whether there is such a PV."""
        return name in self.pvs

    def open(self, name: str, peer: Credentials) -> Handler | None:
        """Return the PV."""
        return self.pvs.get(name)

    def names(self) -> Iterable[str]:
        """Return the names of all PVs."""
        return self.pvs

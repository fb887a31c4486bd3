"""The origin of PVs: sources answer searches and open channels; handlers do the work of one PV."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable

from appliance.pva.credentials import Credentials
from appliance.pvdata.value import Value
from appliance.server.channel import Channel
from appliance.server.operation import Operation, Subscription

__all__ = ["Handler", "Source", "StaticSource"]


class Handler:
    """Serves one PV to any number of clients. Every method has a default that refuses.

    Methods run on the event loop and must not block; what takes longer is answered later through the operation.
    An exception that is an ApplianceError becomes its text in the answer, any other a line in the log and
    "internal error" in the answer.
    """

    __slots__ = ()

    def init(self, operation: Operation) -> None:
        """Begin a client's GET, PUT, PUT_GET, PROCESS or RPC: call ``operation.ready`` or ``fail``, now or later."""
        operation.fail("this PV does not support the operation")

    def get(self, operation: Operation) -> None:
        """Answer with ``operation.reply*``."""
        operation.fail("this PV cannot be read")

    def put(self, operation: Operation, value: Value) -> None:
        """Use ``value``, whose ``changed`` bits say what the client sent; answer with ``operation.done``."""
        del value
        operation.fail("this PV is read only")

    def put_get(self, operation: Operation, value: Value) -> None:
        """Use ``value``, then answer with the PV's value by ``operation.reply``."""
        del value
        operation.fail("this PV has no PUT_GET; use PUT and GET")

    def process(self, operation: Operation) -> None:
        """Process; answer with ``operation.done``."""
        operation.fail("this PV cannot be processed")

    def rpc(self, operation: Operation, argument: Value | None) -> None:
        """Call; answer with ``operation.reply``."""
        del argument
        operation.fail("this PV cannot be called")

    def subscribe(self, subscription: Subscription) -> None:
        """Begin a client's MONITOR: call ``ready`` or ``fail``; then ``post`` the present value."""
        subscription.fail("this PV cannot be monitored")

    def counted_as(self) -> Hashable:
        """Return the key that subscriptions are counted by: the same for PVs that change together."""
        return self

    def unsubscribe(self, subscription: Subscription) -> None:
        """Handle that the MONITOR has ended."""

    def flow(self, subscription: Subscription) -> None:
        """Handle that the client started or stopped the MONITOR: see ``subscription.running``."""

    def introspect(self, operation: Operation, field: str) -> None:
        """Answer with ``operation.reply_field``."""
        del field
        operation.fail("the type of this PV is not known")

    def cancelled(self, operation: Operation) -> None:
        """Handle that the client cancelled the request in progress: ``operation`` is dead, its answers are dropped.

        The requests that follow come with another Operation, which has the same ``state``.
        """

    def closed(self, operation: Operation) -> None:
        """Handle that the operation has ended."""

    def detached(self, channel: Channel) -> None:
        """Handle that a channel of this handler is gone, and all its operations with it."""


class Source(ABC):
    """Names and their handlers."""

    @abstractmethod
    def claims(self, name: str, host: str) -> bool:
        """Whether a search for ``name`` from ``host`` is answered. Asked often: must be quick."""

    @abstractmethod
    def open(self, name: str, peer: Credentials) -> Handler | None:
        """Return the handler of ``name``; None leaves the name to the next source."""

    def names(self) -> Iterable[str]:
        """Return the names to list (``pvxlist``); a source that makes PVs on demand lists none."""
        return ()


class StaticSource(Source):
    """A dictionary of PVs."""

    def __init__(self) -> None:
        self.pvs: dict[str, Handler] = {}

    def claims(self, name: str, host: str) -> bool:
        """Whether there is such a PV."""
        return name in self.pvs

    def open(self, name: str, peer: Credentials) -> Handler | None:
        """Return the PV."""
        return self.pvs.get(name)

    def names(self) -> Iterable[str]:
        """Return the names of all PVs."""
        return self.pvs

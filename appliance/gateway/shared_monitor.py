"""One subscription at a server for all clients that want the same of a PV."""

from __future__ import annotations

from typing import Any, ClassVar

from appliance.client.channel import ChannelRequest
from appliance.gateway.upstream import NOBODY, Upstream
from appliance.pva import commands as c
from appliance.pva.client_operation import ClientOperation
from appliance.pva.status import Status
from appliance.pvdata.types import StructType
from appliance.pvdata.value import Value
from appliance.server.operation import Subscription, Update

__all__ = ["SharedMonitor"]


class SharedMonitor(ChannelRequest):
    """A subscription at a server, and the subscriptions of all clients that it feeds.

    Args:
        upstream: The name.
        key: The key among the name's subscriptions.
        request: The pvRequest for the server.
    """

    __slots__ = ("_key", "_request", "_seen", "_store", "_upstream", "kind", "subscribers")

    LASTS: ClassVar[bool] = True

    def __init__(self, upstream: Upstream, key: object, request: Value) -> None:
        super().__init__(upstream.channel, NOBODY)
        self._upstream = upstream
        self._key = key
        self._request = request
        self.kind: StructType | None = None
        """The type; None until the server has answered INIT."""
        self.subscribers: dict[Subscription, None] = {}
        self._seen = 0
        """Which fields the server has ever sent, in leaf form."""
        self._store: list[Any] = []

    # -- clients -------------------------------------------------------------------------------------

    def subscribe(self, subscription: Subscription) -> None:
        """Feed one more client; its first update is whole."""
        self.subscribers[subscription] = None
        if self.kind is not None:
            subscription.ready_as_is(self.kind)
            if self._seen:
                subscription.post(Update(self.kind, self._store, self._seen))

    def unsubscribe(self, subscription: Subscription) -> None:
        """Forget a client; the last one ends the subscription at the server."""
        self.subscribers.pop(subscription, None)
        if not self.subscribers and self._upstream.monitors.get(self._key) is self:
            del self._upstream.monitors[self._key]
            self.cancel()

    # -- ChannelRequest ------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin the subscription at the server."""
        self._begin(c.CMD_MONITOR, self._request)

    def ready(self, status: Status) -> None:
        """Answer the clients' INIT, and start the updates."""
        if not status.ok:
            self.operation = None
            self._end(status)
            return
        wire: ClientOperation | None = self.operation
        assert wire is not None
        self.kind = wire.type
        assert self.kind is not None
        for subscription in list(self.subscribers):
            subscription.ready_as_is(self.kind)
        wire.start()

    def update(self, bits: int, store: list[Any], overrun: int) -> None:
        """Pass an update on to all clients."""
        assert self.kind is not None
        self._seen |= bits
        self._store = store
        update = Update(self.kind, store, bits, overrun)
        for subscription in self.subscribers:
            subscription.post(update)

    def finished(self, status: Status) -> None:
        """End the clients' subscriptions: the server has ended it."""
        self.operation = None
        self._end(status)

    def _end(self, status: Status) -> None:
        if self._upstream.monitors.get(self._key) is self:
            del self._upstream.monitors[self._key]
        self.channel.remove(self)
        subscribers, self.subscribers = self.subscribers, {}
        for subscription in subscribers:
            if status.ok:
                subscription.finish()
            else:
                subscription.fail(status.message or "the server gave no reason")

    def disconnected(self, why: str, *, moving: bool = False) -> None:
        """End: the clients' channels close."""
        super().disconnected(why, moving=moving)
        self.channel.remove(self)

    def fail(self, error: Exception) -> None:
        """End the clients' subscriptions with the reason."""
        super().fail(error)
        self._end(Status.error(str(error)))

"""One subscription at a server for all clients that want the same of a PV."""

from __future__ import annotations

from typing import Any, ClassVar, Final

from appliance.client.channel import ChannelRequest
from appliance.gateway.upstream import NOBODY, Upstream
from appliance.pva import commands as c
from appliance.pva.client_operation import ClientOperation
from appliance.pva.events import MonitorOctets
from appliance.pva.octets import Batch, Octets, decoded, whole
from appliance.pva.selection import leaves
from appliance.pva.status import Status
from appliance.pvdata.types import StructType
from appliance.pvdata.value import Value
from appliance.server.octet_subscription import OctetSubscription, WeighedUpdate

__all__ = ["OwnMonitor", "SharedMonitor"]

MAX_PIECES: Final = 8
"""Updates with different fields that are kept for late clients; more are made one."""
MANY_OCTETS: Final = 1 << 20
"""Octets of the kept updates above which no more than two are kept: the first one, which was whole, and the latest."""


class _Pieces:
    """The updates that together are the present value: nothing is decoded until a late client needs the whole.

    Each update replaces those of which it has all fields. So of a number two or three are kept for ever.
    """

    __slots__ = ("_by_bits", "_last", "_whole", "seen")

    def __init__(self) -> None:
        self._by_bits: dict[int, Octets] = {}
        self._last = -1
        self._whole: Octets | None = None
        self.seen = 0
        """Which fields the server has ever sent, in leaf form."""

    def add(self, kind: StructType, octets: Octets) -> None:
        """Take the latest update."""
        bits = octets.bits
        pieces = self._by_bits
        self._whole = None
        if bits == self._last:
            pieces[bits] = octets
            return
        self.seen |= bits
        for other in [other for other in pieces if not other & ~bits]:
            del pieces[other]
        pieces[bits] = octets
        self._last = bits
        if len(pieces) > MAX_PIECES or (
            len(pieces) > 2 and sum([len(piece.body) for piece in pieces.values()]) > MANY_OCTETS
        ):
            self._set(self.whole(kind))

    def whole(self, kind: StructType) -> Octets:
        """Return the present value as one update, which is kept until the next one comes."""
        made = self._whole
        if made is None:
            if len(self._by_bits) == 1:
                (last,) = self._by_bits.values()
                made = last.with_overrun(0)
            else:
                store = Value(kind).store
                for piece in self._by_bits.values():
                    decoded(kind, piece, store)
                made = whole(kind, self.seen, store)
            self._whole = made
        return made

    def _set(self, octets: Octets) -> None:
        self._by_bits = {octets.bits: octets}
        self._last = octets.bits
        self._whole = octets


class SharedMonitor(ChannelRequest):
    """A subscription at a server, and the subscriptions of all clients that it feeds.

    Updates pass as octets. Only those of a type that holds an ``any`` are decoded and encoded again.

    Args:
        upstream: The name.
        key: The key among the name's subscriptions.
        request: The pvRequest for the server.
    """

    __slots__ = (
        "_big",
        "_bits",
        "_body",
        "_changed",
        "_key",
        "_lost",
        "_marked",
        "_moved",
        "_overrun",
        "_owed",
        "_pieces",
        "_request",
        "_seen",
        "_size",
        "_store",
        "_upstream",
        "kind",
        "octets_in",
        "raw",
        "subscribers",
    )

    LASTS: ClassVar[bool] = True

    def __init__(self, upstream: Upstream, key: object, request: Value) -> None:
        super().__init__(upstream.channel, NOBODY)
        self._upstream = upstream
        self._key = key
        self._request = request
        self.kind: StructType | None = None
        """The type; None until the server has answered INIT."""
        self.raw = False
        """Whether updates pass as octets."""
        self.subscribers: dict[OctetSubscription, None] = {}
        self.octets_in = 0
        """Octets of all updates; those that came together as octets are counted like the last of them."""
        self._pieces = _Pieces()
        """All updates that make up the present value but the latest one, which is here:"""
        self._body: bytes | None = None
        self._big = False
        self._moved = False
        """Whether the channel has moved to another connection, where the server begins with the present value."""
        self._marked = -1
        """Its fields, as they were sent."""
        self._bits = 0
        """The same in leaf form."""
        self._overrun = 0
        """The fields that lost an earlier change before it; its octets end with them."""
        self._changed = 0
        """Which fields changed during a pause of the connection, in leaf form."""
        self._lost = 0
        """Which of them more than once."""
        self._owed: dict[OctetSubscription, None] = {}
        """Clients that came during a pause and have no value yet."""
        self._seen = 0
        """Decoded: which fields the server has ever sent, in leaf form."""
        self._store: list[Any] = []
        """Decoded: the present value."""
        self._size = 0
        """Decoded: octets of the largest update since the last one that was whole."""

    # -- clients -------------------------------------------------------------------------------------

    def subscribe(self, subscription: OctetSubscription) -> None:
        """Feed one more client; its first update is whole."""
        self.subscribers[subscription] = None
        if self.kind is not None:
            self._welcome(subscription, self.kind)

    def _welcome(self, subscription: OctetSubscription, kind: StructType) -> None:
        if self.raw:
            subscription.ready_raw(kind)
            if self.channel.is_paused:
                self._owed[subscription] = None
            elif (present := self._whole(kind)) is not None:
                subscription.post_octets(present)
        else:
            subscription.ready_as_is(kind)
            if self._seen:
                subscription.post(WeighedUpdate(kind, self._store, self._seen, 0, self._size))

    def unsubscribe(self, subscription: OctetSubscription) -> None:
        """Forget a client; the last one ends the subscription at the server."""
        subscription.release()
        self._upstream.ds_tx += subscription.octets
        subscription.octets = 0
        self.subscribers.pop(subscription, None)
        self._owed.pop(subscription, None)
        if not self.subscribers and self._upstream.monitors.get(self._key) is self:
            self.settle()
            del self._upstream.monitors[self._key]
            self.cancel()

    def settle(self) -> None:
        """Add what has passed since the last call to the name's account."""
        account = self._upstream
        account.us_rx += self.octets_in
        self.octets_in = 0
        for subscription in self.subscribers:
            account.ds_tx += subscription.octets
            subscription.octets = 0

    # -- ChannelRequest ------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin the subscription at the server."""
        self._begin(c.CMD_MONITOR, self._request, raw=True)

    def ready(self, status: Status) -> None:
        """Answer the clients' INIT, and start the updates."""
        if not status.ok:
            self.operation = None
            self._end(status)
            return
        wire: ClientOperation | None = self.operation
        assert wire is not None
        kind = wire.type
        assert kind is not None
        if self.kind is None:
            self.kind = kind
            self.raw = wire.raw
            for subscription in list(self.subscribers):
                self._welcome(subscription, kind)
        elif kind != self.kind:
            # After a move from plain TCP to TLS the clients have kept their channels: they must not get another type.
            self._upstream.renew()
            return
        wire.start()

    def octets(self, event: MonitorOctets) -> None:
        """Pass updates on to all clients."""
        if self._moved:
            self._moved = False
            if self._is_known(event):
                self.octets_in += len(event.bodies[0])
                if len(event.bodies) == 1:
                    return
                event = MonitorOctets(event.operation, event.big, event.bits, event.overrun, event.bodies[1:])
        bodies = event.bodies
        big = event.big
        if event.bits != self._marked or event.overrun or self._overrun:
            self._note(event)
        self._body = bodies[-1]
        self._big = big
        self.octets_in += len(bodies) * len(self._body)
        link = self.channel.link
        if link is not None and link.held is not None:
            self._hold(event)
            return
        count = len(bodies)
        batch: Batch | None = None
        for subscription in self.subscribers:
            sent = subscription.forward(bodies, big)
            if sent != count:
                if batch is None:
                    batch = Batch(bodies, big, self._bits, event.overrun)
                subscription.post_batch(batch, sent)

    def _is_known(self, event: MonitorOctets) -> bool:
        """Whether the first update after a move says what the clients know already: they have not noticed the move."""
        kind = self.kind
        assert kind is not None
        self._keep(kind)
        if not self._pieces.seen:
            return False
        present = self._pieces.whole(kind)
        first = Octets(event.bodies[0], event.big, leaves(kind, event.bits), event.overrun)
        return present.bits == first.bits and _said(kind, present) == _said(kind, first)

    def _note(self, event: MonitorOctets) -> None:
        """Keep the latest update, which is followed by one with other fields."""
        kind = self.kind
        assert kind is not None
        self._keep(kind)
        self._marked = event.bits
        self._bits = leaves(kind, event.bits)
        self._overrun = event.overrun

    def _keep(self, kind: StructType) -> None:
        """Put the latest update to those that together are the present value."""
        body = self._body
        if body is not None:
            self._pieces.add(kind, Octets(body, self._big, self._bits, self._overrun))
            self._body = None

    def _hold(self, event: MonitorOctets) -> None:
        bits = self._bits
        self._lost |= event.overrun | (self._changed & bits) | (bits if len(event.bodies) > 1 else 0)
        self._changed |= bits

    def _whole(self, kind: StructType) -> Octets | None:
        """Return the present value as one update; None if nothing has come yet."""
        self._keep(kind)
        return self._pieces.whole(kind) if self._pieces.seen else None

    def resumed(self) -> None:
        """Give clients the present value: the pause of the connection is over."""
        kind = self.kind
        waiting = self.subscribers if self._changed else self._owed
        if kind is None or not waiting or (present := self._whole(kind)) is None:
            return
        present = present.with_overrun(self._lost)
        self._changed = self._lost = 0
        for subscription in waiting:
            subscription.post_octets(present)
        self._owed.clear()

    def update(self, bits: int, store: list[Any], overrun: int, size: int = 0) -> None:
        """Pass a decoded update on to all clients.

        Args:
            bits: The fields that it brings, in leaf form.
            store: The whole value.
            overrun: The fields that lost an earlier change.
            size: Octets of the update as it came.
        """
        assert self.kind is not None
        self._seen |= bits
        self._store = store
        self._size = max(size, self._size if bits != self._seen else 0)
        self.octets_in += size
        update = WeighedUpdate(self.kind, store, bits, overrun, size)
        for subscription in self.subscribers:
            subscription.post(update)

    def finished(self, status: Status) -> None:
        """End the clients' subscriptions: the server has ended it."""
        self.operation = None
        self._end(status)

    def _end(self, status: Status) -> None:
        self.settle()
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
        """End: the clients' channels close. While the channel moves to TLS the clients keep theirs."""
        super().disconnected(why, moving=moving)
        self._moved = moving
        if not moving:
            self.settle()
            self.channel.remove(self)

    def fail(self, error: Exception) -> None:
        """End the clients' subscriptions with the reason."""
        super().fail(error)
        self._end(Status.error(str(error)))


def _said(kind: StructType, octets: Octets) -> bytes:
    """Return what an update says, the same for each way to write it."""
    store = Value(kind).store
    decoded(kind, octets, store)
    return whole(kind, octets.bits, store).body


class OwnMonitor(SharedMonitor):
    """One client's own subscription at the server, pipelined from end to end: each end sends what the next one has taken.

    Args:
        upstream: The name.
        subscription: The client's subscription, and the key among those of the name.
        request: The client's pvRequest.
    """

    __slots__ = ("_granted", "_only")

    def __init__(self, upstream: Upstream, subscription: OctetSubscription, request: Value) -> None:
        super().__init__(upstream, subscription, request)
        self._only = subscription
        self._granted = 0
        """Updates that were sent to the client and granted to the server."""
        subscription.on_sent = self._grant

    def start(self) -> None:
        """Begin the subscription at the server, with a window of the client's queue size."""
        self._granted = self._sent
        self._begin(c.CMD_MONITOR, self._request, window=self._only.queue_size, raw=True)

    @property
    def _sent(self) -> int:
        return self._only.posted - len(self._only.queue)

    def _grant(self) -> None:
        """Grant the server what the client has taken, half a queue at a time."""
        operation, link = self.operation, self.channel.link
        taken = self._sent - self._granted
        if operation is None or link is None or taken * 2 < self._only.queue_size:
            return
        self._granted += taken
        operation.acknowledge(taken)
        link.schedule_flush()

    def _is_known(self, event: MonitorOctets) -> bool:
        """See `SharedMonitor`. What the client does not get is granted all the same."""
        known = super()._is_known(event)
        if known:
            self._granted -= 1
        return known

    def octets(self, event: MonitorOctets) -> None:
        """Pass updates on, and grant as many as were sent at once."""
        super().octets(event)
        self._grant()

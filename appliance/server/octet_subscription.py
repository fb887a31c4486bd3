"""A subscription whose updates come from another server and are passed on as they came."""

from __future__ import annotations

from collections import deque
from typing import Any

from appliance.pva.octets import Batch, Octets, squash
from appliance.pva.server_operation import ServerOperation
from appliance.pvdata.types import StructType
from appliance.server.channel import Channel
from appliance.server.operation import PUMP_LIMIT, QUEUE_LIMIT, QUEUE_UNMEASURED, Subscription

__all__ = ["OctetSubscription"]


class OctetSubscription(Subscription):
    """One MONITOR of one client that takes octets. A handler that has decoded values uses it as any other.

    The pvRequest was applied by the other server: every field of the announced type is the client's.
    """

    __slots__ = ("octets", "raw")

    def __init__(self, channel: Channel, wire: ServerOperation) -> None:
        super().__init__(channel, wire)
        self.raw = False
        """Whether updates are octets: after `ready_raw`."""
        self.octets = 0
        """Octets of all updates that were sent as octets."""

    @property
    def _waiting(self) -> deque[Any]:
        return self.queue

    @property
    def queued(self) -> int:
        """Octets that wait in the queue; several queues may share them."""
        return sum([len(update.body) for update in self._waiting]) if self.raw else 0

    def ready_raw(self, kind: StructType) -> None:
        """Accept the subscription: octets of this type follow."""
        self.raw = True
        self.ready_as_is(kind)

    def forward(self, batch: Batch) -> None:
        """Send updates at once if nothing else waits to be sent; queue what cannot be sent."""
        if self.finishing:
            return
        sent = 0
        channel = self.channel
        stream = channel.stream
        if not self.queue and stream.writable and channel.owner.held is None:
            bodies = batch.bodies
            sent = self.wire.send_octets(bodies, PUMP_LIMIT, big=batch.big)
            if sent:
                self.posted += sent
                stream.schedule_flush()
                if sent == len(bodies):
                    self.octets += batch.size
                    return
                self.octets += sum(map(len, bodies[:sent]))
        for octets in batch.octets[sent:]:
            self.post_octets(octets)

    def post_octets(self, octets: Octets) -> None:
        """Queue an update, or merge it into the last one if the queue is full."""
        if self.finishing:
            return
        self.posted += 1
        queue = self._waiting
        waiting = len(queue)
        if waiting >= self.wire.queue_size or (
            waiting >= QUEUE_UNMEASURED and waiting * len(octets.body) > QUEUE_LIMIT
        ):
            self._merge(octets)
            return
        queue.append(octets)
        if not self.waits:
            self.waits = True
            self.channel.dirty(self)

    def _merge(self, octets: Octets) -> None:
        queue = self._waiting
        kind = self.wire.type
        assert kind is not None
        queue[-1] = squash(kind, queue[-1], octets)
        self.squashed += 1

    def shrink(self) -> int:
        """Merge all updates that wait into one; return how many fewer they are."""
        if not self.raw:
            return 0
        queue = self._waiting
        before = len(queue)
        if before > 1:
            rest = list(queue)
            queue.clear()
            queue.append(rest[0])
            for octets in rest[1:]:
                self._merge(octets)
        return before - len(queue)

    def pump(self) -> bool:
        """Send what may be sent; return whether the rest waits only for room in the socket."""
        if not self.raw:
            return super().pump()
        queue = self._waiting
        outbox = self.wire.outbox
        before = outbox.size
        more = self.wire.drain_octets(queue, PUMP_LIMIT)
        self.octets += outbox.size - before
        if more:
            return True
        self.waits = False
        if self.finishing and not queue:
            self.wire.finish()
        return False

"""A subscription whose updates come from another server and are passed on as they came."""

from __future__ import annotations

from collections import deque
from typing import Any

from appliance.pva.octets import Octets, squash
from appliance.pva.server_operation import ServerOperation
from appliance.pvdata.types import StructType
from appliance.server.channel import Channel
from appliance.server.operation import PUMP_LIMIT, QUEUE_LIMIT, QUEUE_UNMEASURED, Subscription

__all__ = ["OctetSubscription"]


class OctetSubscription(Subscription):
    """One MONITOR of one client that takes octets. A handler that has decoded values uses it as any other.

    The pvRequest was applied by the other server: every field of the announced type is the client's.
    """

    __slots__ = ("_owner", "_stream", "octets", "raw")

    def __init__(self, channel: Channel, wire: ServerOperation) -> None:
        super().__init__(channel, wire)
        self.raw = False
        """Whether updates are octets: after `ready_raw`."""
        self.octets = 0
        """Octets of all updates that were sent as octets, those that left together counted like the first of them."""
        self._stream = channel.stream
        self._owner = channel.owner

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

    def forward(self, bodies: list[bytes], big: bool) -> int:
        """Send updates at once if nothing else waits to be sent.

        Args:
            bodies: What follows the sub-command of each, the oldest first.
            big: Whether their numbers are big-endian.

        Returns:
            How many of them were sent; `post_octets` the others.
        """
        if self.queue or self.finishing or not self._stream.writable or self._owner.held is not None:
            return 0
        sent = self.wire.send_octets(bodies, PUMP_LIMIT, big)
        if sent:
            self.posted += sent
            self.octets += sent * len(bodies[0])
            self._stream.schedule_flush()
        return sent

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

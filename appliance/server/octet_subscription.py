"""A subscription whose updates come from another server and are passed on as they came."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from appliance.pva.octets import Batch, Octets, squash
from appliance.pva.server_operation import ServerOperation
from appliance.pvdata.types import StructType
from appliance.server.channel import Channel
from appliance.server.operation import PUMP_LIMIT, Subscription, Update

__all__ = ["OctetSubscription", "WeighedUpdate"]


class WeighedUpdate(Update):
    """A decoded update of another server, with the size that it came with.

    Args:
        kind: The PV's type.
        store: The complete value, which never changes afterwards.
        bits: The fields that changed, in leaf form.
        overrun: The fields that lost an earlier change.
        size: Octets of the update as it came.
    """

    __slots__ = ("size",)

    def __init__(self, kind: StructType, store: list[Any], bits: int, overrun: int, size: int) -> None:
        super().__init__(kind, store, bits, overrun)
        self.size = size

    def squash(self, later: Update) -> WeighedUpdate:
        """Return one update that contains this one and ``later``."""
        both = super().squash(later)
        size = max(self.size, later.size if isinstance(later, WeighedUpdate) else 0)
        return WeighedUpdate(both.kind, both.store, both.bits, both.overrun, size)


class OctetSubscription(Subscription):
    """One MONITOR of one client that takes octets. A handler that has decoded values uses it as any other.

    The pvRequest was applied by the other server: every field of the announced type is the client's.
    """

    __slots__ = ("_owner", "_stream", "octets", "on_sent", "raw", "weight")

    def __init__(self, channel: Channel, wire: ServerOperation) -> None:
        super().__init__(channel, wire)
        self.on_sent: Callable[[], None] | None = None
        """Called when updates that had to wait may have been sent."""
        self.raw = False
        """Whether updates are octets: after `ready_raw`."""
        self.octets = 0
        """Octets of all updates that were sent. Those that left together as octets are counted like the first of them."""
        self.weight = 0
        """Octets that wait, as the client's allowance counts them; several queues may share them."""
        self._stream = channel.stream
        self._owner = channel.owner

    @property
    def _waiting(self) -> deque[Any]:
        return self.queue

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
            How many of them were sent; `post_batch` the others.
        """
        if big is not self.wire.outbox.big:
            return 0
        if self.queue or self.finishing or not self._stream.writable or self._owner.held is not None:
            return 0
        sent = self.wire.send_octets(bodies, PUMP_LIMIT)
        if sent:
            self.posted += sent
            self.octets += sent * len(bodies[0])
            self._stream.schedule_flush()
        return sent

    def post_batch(self, batch: Batch, start: int) -> None:
        """Queue the updates of a batch from ``start`` on. All that find no room are merged in one step, however many they are."""
        if self.finishing:
            return
        room = max(self.wire.queue_size - len(self.queue), 0)
        for octets in batch.octets[start : start + room]:
            self.post_octets(octets)
        left = len(batch.bodies) - start - room
        if left > 0:
            self.posted += left - 1
            self.squashed += left - 1
            self._owner.allowance.dropped += left - 1
            self.post_octets(batch.last(left))

    def post_octets(self, octets: Octets) -> None:
        """Queue an update, or merge it into the last one if the queue is full."""
        if self.finishing:
            return
        self.posted += 1
        wire = self.wire
        if octets.big is not wire.outbox.big:
            assert wire.type is not None
            octets = octets.in_order(wire.type, big=wire.outbox.big)
        queue = self._waiting
        waiting = len(queue)
        if waiting >= wire.queue_size or (waiting and self._owner.allowance.is_full):
            self._merge(octets)
            return
        queue.append(octets)
        self._weigh(len(octets.body))
        if not self.waits:
            self.waits = True
            self.channel.dirty(self)

    def post(self, update: Update) -> None:
        """Queue a decoded update, or merge it into the last one if the queue is full."""
        if self.finishing or not (update.bits & self.wire.mask or not self.posted):
            return
        self.posted += 1
        queue = self._waiting
        waiting = len(queue)
        if waiting >= self.wire.queue_size or (waiting and self._owner.allowance.is_full):
            self._squash(update)
            return
        queue.append(update)
        self._weigh(_size(update))
        if not self.waits:
            self.waits = True
            self.channel.dirty(self)

    def _squash(self, update: Update) -> None:
        queue = self._waiting
        last = queue[-1]
        queue[-1] = merged = last.squash(update)
        self.squashed += 1
        self._owner.allowance.dropped += 1
        self._weigh(_size(merged) - _size(last))

    def _merge(self, octets: Octets) -> None:
        queue = self._waiting
        kind = self.wire.type
        assert kind is not None
        last = queue[-1]
        queue[-1] = merged = squash(kind, last, octets)
        self.squashed += 1
        self._owner.allowance.dropped += 1
        self._weigh(len(merged.body) - len(last.body))

    def _weigh(self, more: int) -> None:
        self.weight += more
        if self._owner.allowance.count_waiting(more):
            # Too much waits for this client: each of its subscriptions keeps its latest value only.
            for operation in list(self.wire.connection.operations.values()):
                other = operation.context
                if isinstance(other, OctetSubscription):
                    other.shrink()

    def shrink(self) -> None:
        """Merge all updates that wait into one."""
        queue = self._waiting
        if len(queue) > 1:
            rest = list(queue)
            queue.clear()
            queue.append(rest[0])
            if self.raw:
                self._weigh(-sum([len(octets.body) for octets in rest[1:]]))
                for octets in rest[1:]:
                    self._merge(octets)
            else:
                self._weigh(-sum(map(_size, rest[1:])))
                for update in rest[1:]:
                    self._squash(update)

    def clear(self) -> None:
        """Drop what waits: the client must not receive it."""
        super().clear()
        self.release()

    def release(self) -> None:
        """Stop counting what waited: nobody sends it any more."""
        if self.weight:
            self._weigh(-self.weight)

    def pump(self) -> bool:
        """Send what may be sent; return whether the rest waits only for room in the socket."""
        more = self._pump() if self.raw else self._pump_decoded()
        if self.on_sent is not None:
            self.on_sent()
        return more

    def _pump_decoded(self) -> bool:
        outbox = self.wire.outbox
        before = outbox.size
        more = super().pump()
        self.octets += outbox.size - before
        if self.weight:
            left = sum(map(_size, self._waiting))
            self._weigh(left - self.weight)
        return more

    def _pump(self) -> bool:
        queue = self._waiting
        outbox = self.wire.outbox
        before = outbox.size
        waiting = len(queue)
        more = self.wire.drain_octets(queue, PUMP_LIMIT)
        sent = outbox.size - before
        self.octets += sent
        if self.weight:
            # Each message has 13 octets besides its body; the segments of a long one have more, so what is left is counted anew.
            sent -= 13 * (waiting - len(queue))
            self._weigh(-min(sent, self.weight) if queue else -self.weight)
        if more:
            return True
        self.waits = False
        if self.finishing and not queue:
            self.wire.finish()
        return False


def _size(update: Update) -> int:
    """Return the octets of a decoded update; those of a handler of our own are not weighed."""
    return update.size if isinstance(update, WeighedUpdate) else 0

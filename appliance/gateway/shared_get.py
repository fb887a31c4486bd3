"""One GET at a server for all clients that ask for the same of a PV at the same time."""

from __future__ import annotations

import asyncio
from typing import ClassVar, Final

from appliance.client.channel import ChannelRequest
from appliance.gateway.upstream import NOBODY, Upstream
from appliance.pva import commands as c
from appliance.pva.events import ReplyOctets
from appliance.pva.octets import Octets, decoded, whole
from appliance.pva.selection import leaves
from appliance.pva.status import Status
from appliance.pvdata.types import StructType
from appliance.pvdata.value import Value
from appliance.server.operation import Operation

__all__ = ["SharedGet"]

KEPT_OCTETS: Final = 64 * 1024
"""Octets up to which the last answer is kept. A server that answers with changes only is asked anew for larger ones."""


class SharedGet(ChannelRequest):
    """A GET operation at a server, and those of all clients that it answers.

    While one read is under way, clients that ask wait for the next one: a client that has just put a value reads no older one.

    Args:
        upstream: The name.
        key: The key among the name's GETs.
        request: The pvRequest.
        holdoff_s: Seconds between the beginnings of two reads.
    """

    __slots__ = (
        "_coming",
        "_holdoff_s",
        "_key",
        "_last",
        "_loop",
        "_opening",
        "_request",
        "_reused",
        "_seen",
        "_sent_at",
        "_timer",
        "_under_way",
        "_upstream",
        "_users",
        "kind",
        "octets_in",
    )

    LASTS: ClassVar[bool] = True

    def __init__(self, upstream: Upstream, key: object, request: Value, holdoff_s: float = 0.0) -> None:
        super().__init__(upstream.channel, NOBODY)
        self._upstream = upstream
        self._key = key
        self._request = request
        self._holdoff_s = holdoff_s
        self._loop: asyncio.AbstractEventLoop = upstream.channel.end.loop
        self.kind: StructType | None = None
        """The type; None until the server has answered INIT."""
        self._users = 0
        self._opening: dict[Operation, None] = {}
        """Operations whose INIT waits for the type."""
        self._under_way: dict[Operation, None] = {}
        """Requests that the read in progress answers."""
        self._coming: dict[Operation, None] = {}
        """Requests that the next read answers."""
        self._reused = False
        """Whether the operation has answered before."""
        self._seen = 0
        """Which fields the operation has ever answered with, in leaf form."""
        self._last: Octets | None = None
        """Its last answer, for servers that answer with changes only."""
        self.octets_in = 0
        """Octets of all answers."""
        self._sent_at = -holdoff_s
        self._timer: asyncio.TimerHandle | None = None

    # -- clients -------------------------------------------------------------------------------------

    def init(self, operation: Operation) -> None:
        """Answer a client's INIT, now or when the type is known."""
        self._users += 1
        if self.kind is not None:
            operation.ready_as_is(self.kind)
        else:
            self._opening[operation] = None

    def get(self, operation: Operation) -> None:
        """Answer with the value of the next read."""
        self._coming[operation] = None
        self._next()

    def cancelled(self, operation: Operation) -> None:
        """Forget a request whose client does not want the answer any more."""
        for waiting in (self._coming, self._under_way):
            waiting.pop(operation, None)

    def closed(self, operation: Operation) -> None:
        """Forget a client's operation; the last one ends the operation at the server."""
        self.cancelled(operation)
        self._opening.pop(operation, None)
        self._users -= 1
        if self._users <= 0 and self._upstream.gets.get(self._key) is self:
            del self._upstream.gets[self._key]
            self._stop_timer()
            self.cancel()

    def _next(self) -> None:
        """Begin the next read if somebody waits for it, none is under way and the hold-off is over."""
        wire = self.operation
        if wire is None or self._under_way or not self._coming or self._timer is not None:
            return
        link = self.channel.link
        if link is not None and link.held is not None and (why := link.refusal(changes=False)):
            coming, self._coming = self._coming, {}
            for operation in coming:
                operation.fail(why)
            return
        if self._holdoff_s:
            wait = self._sent_at + self._holdoff_s - self._loop.time()
            if wait > 0:
                self._timer = self._loop.call_later(wait, self._held_off)
                return
            self._sent_at = self._loop.time()
        self._under_way, self._coming = self._coming, self._under_way
        wire.get()
        assert link is not None
        link.schedule_flush()

    def _held_off(self) -> None:
        self._timer = None
        self._next()

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    # -- ChannelRequest ------------------------------------------------------------------------------

    def start(self) -> None:
        """Initialise the operation at the server."""
        self._begin(c.CMD_GET, self._request, raw=True)

    def ready(self, status: Status) -> None:
        """Answer the clients' INIT."""
        if not status.ok:
            self.operation = None
            self._end(status.message or "the server gave no reason")
            return
        assert self.operation is not None
        kind = self.operation.type
        assert kind is not None
        if self.kind is not None and kind != self.kind:
            self._upstream.renew()
            return
        self.kind = kind
        opening, self._opening = self._opening, {}
        for operation in opening:
            operation.ready_as_is(kind)
        self._next()

    def reply_octets(self, event: ReplyOctets) -> None:
        """Answer all requests of the read that was under way, with the octets that came."""
        kind = self.kind
        assert kind is not None
        self._reused = True
        bits = leaves(kind, event.bits)
        big, tail = event.big, event.tail
        if self._seen & ~bits:
            # pvAccessCPP answers with what has changed since the operation's last answer, which our clients may not have had.
            if self._last is None:
                self._begin_anew()
                return
            store = Value(kind).store
            decoded(kind, self._last, store)
            decoded(kind, Octets(tail, big, bits), store)
            self._last = made = whole(kind, self._seen | bits, store)
            big, tail = made.big, made.body[: made.cut]
        else:
            self._last = Octets(tail, big, bits) if len(tail) <= KEPT_OCTETS else None
        self._seen |= bits
        self.octets_in += len(tail)
        under_way, self._under_way = self._under_way, {}
        for operation in under_way:
            operation.reply_octets(event.status, tail, big=big)
        self._next()

    def _begin_anew(self) -> None:
        """Initialise a new operation at the server, and read again for those who wait."""
        self._coming = self._under_way | self._coming
        self._under_way = {}
        self._reused = False
        self._seen = 0
        self._abandon()
        self.start()

    def reply(self, status: Status, value: Value | None) -> None:
        """Answer all requests of the read that was under way, with a value that had to be decoded, or with an error."""
        if not status.ok and self._reused:
            self._begin_anew()  # the PV may have another type now; a new operation learns it
            return
        self._reused = True
        under_way, self._under_way = self._under_way, {}
        if status.ok and value is not None:
            for operation in under_way:
                operation.reply_store(value.store, value.changed)
        else:
            for operation in under_way:
                operation.fail(status.message or "the server gave no reason")
        self._next()

    def _end(self, why: str) -> None:
        self._stop_timer()
        if self._upstream.gets.get(self._key) is self:
            del self._upstream.gets[self._key]
        self.channel.remove(self)
        waiting = [*self._opening, *self._under_way, *self._coming]
        for group in (self._opening, self._under_way, self._coming):
            group.clear()
        for operation in waiting:
            operation.fail(why)

    def disconnected(self, why: str, *, moving: bool = False) -> None:
        """End: the clients' channels close. If the connection is ``moving``, the read in progress begins anew."""
        super().disconnected(why, moving=moving)
        if not moving:
            self._end("the server of this PV is lost")
            return
        self._coming = self._under_way | self._coming
        self._under_way = {}
        self._reused = False
        self._seen = 0

    def fail(self, error: Exception) -> None:
        """End with the reason."""
        super().fail(error)
        self._end(str(error))

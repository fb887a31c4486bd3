"""One GET at a server for all clients that ask for the same of a PV at the same time."""

from __future__ import annotations

import asyncio
from typing import ClassVar, Final

from appliance.client.channel import ChannelRequest, ChannelState
from appliance.gateway.upstream import NOBODY, TOO_SLOW, Upstream
from appliance.pva import commands as c
from appliance.pva.events import ReplyOctets
from appliance.pva.octets import Octets, decoded, whole
from appliance.pva.selection import leaves
from appliance.pva.server_operation import PreparedAnswer, ServerOperation
from appliance.pva.states import IDLE
from appliance.pva.status import OK, Status
from appliance.pvdata.types import StructType
from appliance.pvdata.value import Value
from appliance.server.operation import Operation

__all__ = ["SharedGet"]

KEPT_OCTETS: Final = 64 * 1024
"""Octets up to which the last answer is kept. A server that answers with changes only is asked anew for larger ones."""


SMALL: Final = 256
"""Octets of an answer that is sent without a look at what waits for the client. The number of its operations bounds these."""
MANY: Final = 64
"""Clients' requests that one read answers in the same way."""


class Through(PreparedAnswer):
    """Passes a client's GETs on as they come, without an event: `ServedChannel` has judged the right to read before.

    When the right is lost, or during a pause, the connection forgets it, as every prepared answer.
    """

    __slots__ = ("_shared",)

    def __init__(self, shared: SharedGet) -> None:
        super().__init__()
        self.tail = b""  # pass on
        self._shared = shared

    def pass_on(self, operation: ServerOperation) -> None:
        """Answer with the value of the next read."""
        shared = self._shared
        link = shared.channel.link
        wire = shared.operation
        if wire is None or wire.state is not IDLE or link is None or link.held is not None:
            shared.ask(operation.context)
            return
        # As `SharedGet.ask` does, without its questions: while the operation is idle nothing is under way and nobody waits.
        shared._alone = operation.context
        wire.get()
        link.flush_at_end()


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
        "_again",
        "_alone",
        "_coming",
        "_ended",
        "_holdoff_s",
        "_key",
        "_last",
        "_last_big",
        "_loop",
        "_marked",
        "_opening",
        "_request",
        "_reused",
        "_seen",
        "_sent_at",
        "_short",
        "_size",
        "_through",
        "_timer",
        "_under_way",
        "_upstream",
        "_users",
        "kind",
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
        """Requests that the read in progress answers, without `_alone`."""
        self._alone: Operation | None = None
        """The one that began it by `Through`. Most reads answer one client, and a table for it costs 0.2 µs of 4."""
        self._coming: dict[Operation, None] = {}
        """Requests that the next read answers."""
        self._ended = ""
        """Why no read can begin any more."""
        self._reused = False
        """Whether the operation has answered before."""
        self._seen = 0
        """Which fields the operation has ever answered with, in leaf form."""
        self._marked = -1
        """The same as the bit set of an answer."""
        self._last_big = False
        self._last: bytes | None = None
        """Its last answer, for servers that answer with changes only."""
        self._size = 0
        """Octets of the last answer that was decoded."""
        self._short: bytes | None = None
        """The same if it was good, little-endian, complete and at most ``SMALL``: when it comes again, it needs no second look."""
        self._again = 0
        """How often it was sent to a client again and is not counted yet."""
        self._sent_at = -holdoff_s
        self._timer: asyncio.TimerHandle | None = None
        self._through = Through(self)

    # -- clients -------------------------------------------------------------------------------------

    def init(self, operation: Operation) -> None:
        """Answer a client's INIT, now or when the type is known."""
        self._users += 1
        if self.kind is not None:
            operation.ready_as_is(self.kind)
        else:
            self._opening[operation] = None

    def get(self, operation: Operation) -> None:
        """Answer with the value of the next read; later requests of the same operation come by `Through`."""
        operation.channel.owner.allowance.requests += 1
        if not self._holdoff_s:
            operation.wire.prepared = self._through
        self.ask(operation)

    def ask(self, operation: Operation) -> None:
        """Answer with the value of the next read."""
        self._coming[operation] = None
        if not self._under_way and self._alone is None:
            self._next()

    def cancelled(self, operation: Operation) -> None:
        """Forget a request whose client does not want the answer any more."""
        for waiting in (self._coming, self._under_way):
            waiting.pop(operation, None)
        if self._alone is operation:
            self._alone = None

    def closed(self, operation: Operation) -> None:
        """Forget a client's operation; the last one ends the operation at the server."""
        self.settle()
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
        if wire is None:
            if self._ended:
                self._refuse(self._ended)
            elif self.kind is not None and self._coming and self.channel.state is ChannelState.ACTIVE:
                self.start()  # the server refused to begin anew at the last try
            return
        if self._under_way or self._alone is not None or not self._coming or self._timer is not None:
            return
        if wire.state is not IDLE:
            return  # INIT is not answered yet, or the server has ended the operation and its channel closes
        link = self.channel.link
        if link is not None and link.held is not None and (why := link.refusal(changes=False)):
            self._refuse(why)
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
        link.flush_at_end()

    def _asked(self) -> dict[Operation, None]:
        """Return the requests of the read in progress, and forget them."""
        under_way, self._under_way = self._under_way, {}
        if self._alone is not None:
            under_way[self._alone] = None
            self._alone = None
        return under_way

    def settle(self) -> None:
        """Add what has passed since the last call, and is not counted yet, to the name's account."""
        again, self._again = self._again, 0
        if again:
            assert self._short is not None
            account = self._upstream
            account.requests += again
            account.us_rx += again * len(self._short)
            account.ds_tx += again * len(self._short)

    def _refuse(self, why: str) -> None:
        """Answer those who wait for the next read with an error."""
        coming, self._coming = self._coming, {}
        for operation in coming:
            operation.fail(why)

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
            why = status.message or "the server gave no reason"
            if self.kind is None:
                self._end(why)
            else:
                self._refuse(why)
            return
        assert self.operation is not None
        kind = self.operation.type
        assert kind is not None
        if self.kind is not None and kind != self.kind:
            self._abandon()
            self._end("the type of this PV has changed; open the channel again")
            self._upstream.renew()
            return
        self.kind = kind
        opening, self._opening = self._opening, {}
        for operation in opening:
            operation.ready_as_is(kind)
        self._next()

    def reply_octets(self, event: ReplyOctets) -> None:
        """Answer all requests of the read that was under way, with the octets that came."""
        tail = event.tail
        alone = self._alone
        if alone is not None and (tail is self._short or self._note_short(event)):
            wire = alone.wire
            if wire.prepared is self._through and not wire.outbox.big:  # so the right to read is still there
                self._alone = None
                self._again += 1
                wire.reply_again(tail)
                stream = alone.channel.stream
                if not stream.flushes_at_end:
                    stream.flush_at_end()
                if self._coming:
                    self._next()
                return
        self.settle()
        self._reused = True
        big = event.big
        account = self._upstream
        account.us_rx += len(tail)
        if event.bits != self._marked and not self._complete(event):
            made = self._completed(event)
            if made is None:
                self._begin_anew()
                return
            big, tail = made.big, made.body[: made.cut]
        self._last = tail if len(tail) <= KEPT_OCTETS else None
        self._last_big = big
        self._short = None
        under_way = self._asked()
        account.requests += len(under_way)
        account.ds_tx += len(under_way) * len(tail)
        status = event.status
        may_be_much = len(tail) > SMALL or len(under_way) > MANY
        for operation in under_way:
            channel = operation.channel
            if not channel.rights.read:
                operation.fail(channel.denial("read"))  # lost since it asked
                continue
            if may_be_much and operation.is_behind(len(tail)):
                operation.fail(TOO_SLOW)
                continue
            wire = operation.wire
            if big is wire.outbox.big:
                wire.reply_octets(status, tail)
                channel.stream.flush_at_end()
            else:
                operation.reply_octets(status, tail, big=big)
        if self._coming:
            self._next()

    def _note_short(self, event: ReplyOctets) -> bool:
        """Note an answer that can pass without another look, and so can the same when it comes again; return whether it is one."""
        tail = event.tail
        # Two equal strings of one octet are the same object wherever they come from.
        if event.bits != self._marked or event.big or event.status is not OK or not 1 < len(tail) <= SMALL:
            return False
        self.settle()
        self._short = self._last = tail
        self._last_big = False
        return True

    def _complete(self, event: ReplyOctets) -> bool:
        """Whether an answer has all fields that the server has ever answered with."""
        assert self.kind is not None
        bits = leaves(self.kind, event.bits)
        if self._seen & ~bits:
            return False
        self._seen = bits
        self._marked = event.bits
        return True

    def _completed(self, event: ReplyOctets) -> Octets | None:
        """Return the whole of which an answer is a part; None if the last answer was not kept.

        pvAccessCPP answers with what has changed since the operation's last answer, which our clients may not have had.
        """
        kind = self.kind
        last = self._last
        if last is None:
            return None
        assert kind is not None
        store = Value(kind).store
        decoded(kind, Octets(last, self._last_big, 0), store)
        decoded(kind, Octets(event.tail, event.big, 0), store)
        self._seen |= leaves(kind, event.bits)
        self._marked = 1 if self._seen == kind.leaf_mask else self._seen
        return whole(kind, self._seen, store)

    def _forget(self) -> None:
        """Forget what the operation has answered: a new one begins."""
        self.settle()
        self._short = None
        self._reused = False
        self._seen = 0
        self._marked = -1
        self._last = None

    def _begin_anew(self) -> None:
        """Initialise a new operation at the server, and read again for those who wait."""
        self._coming = self._asked() | self._coming
        self._forget()
        self._abandon()
        self.start()

    def reply(self, status: Status, value: Value | None) -> None:
        """Answer all requests of the read that was under way, with a value that had to be decoded, or with an error."""
        if not status.ok and self._reused:
            self._begin_anew()  # the PV may have another type now; a new operation learns it
            return
        self._reused = True
        under_way = self._asked()
        account = self._upstream
        account.requests += len(under_way)
        if status.ok and value is not None:
            size = self._size
            for operation in under_way:
                channel = operation.channel
                if not channel.rights.read:
                    operation.fail(channel.denial("read"))
                    continue
                if operation.is_behind(self._size):
                    operation.fail(TOO_SLOW)
                    continue
                outbox = operation.wire.outbox
                before = outbox.size
                operation.reply_store(value.store, value.changed)
                size = outbox.size - before
                account.ds_tx += size
            # How many octets came is not known any more; it is what one client was sent, in the same form.
            account.us_rx += size
            self._size = size
        else:
            for operation in under_way:
                operation.fail(status.message or "the server gave no reason")
        self._next()

    def _end(self, why: str) -> None:
        self._ended = why
        self.settle()
        self._stop_timer()
        if self._upstream.gets.get(self._key) is self:
            del self._upstream.gets[self._key]
        self.channel.remove(self)
        waiting = [*self._opening, *self._asked(), *self._coming]
        for group in (self._opening, self._coming):
            group.clear()
        for operation in waiting:
            operation.fail(why)

    def disconnected(self, why: str, *, moving: bool = False) -> None:
        """End: the clients' channels close. After a move to TLS reads in progress are repeated."""
        super().disconnected(why, moving=moving)
        if moving:
            self._coming = self._asked() | self._coming
            self._forget()
        else:
            self._end("the server of this PV is lost")

    def fail(self, error: Exception) -> None:
        """End with the reason."""
        super().fail(error)
        self._end(str(error))

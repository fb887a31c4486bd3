"""The PV of one certificate's status: who reads it, who watches it, and who puts something to it.

What it answers is made by its publisher (`appliance.cms.publisher`).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, NamedTuple, Protocol

from appliance.certmon.status_pv import STATUS_TYPE as STATUS
from appliance.certs.status import OCSPState
from appliance.errors import ApplianceError, DatabaseLost, RequestRefused
from appliance.pva.commands import CMD_GET, CMD_PROCESS, CMD_PUT, CMD_RPC
from appliance.pva.server_operation import PreparedAnswer
from appliance.pvdata import Value
from appliance.server import Channel, Handler, Operation, Subscription, Update

__all__ = ["Answers", "CannotKnow", "PutHandler", "Signed", "StatusPV", "WrongClock", "refuse_put"]

_NO_NEWS: Final = sum(
    1 << STATUS.offsets[path]
    for path in ("ocsp_response", "timeStamp.secondsPastEpoch", "status.timeStamp.secondsPastEpoch")
)
"""Fields in which two answers with the same signature differ if they say the same."""

PutHandler = Callable[["StatusPV", Operation, Value, Callable[[], None]], None]


class Signed(NamedTuple):
    """A signed answer, and how long it serves."""

    state: OCSPState
    der: Any
    """The answer in DER, as an array of octets."""
    this_update: datetime
    next_update: datetime
    revoked: datetime | None
    refresh_at: float
    """POSIX time at which it is signed again or forgotten."""


class CannotKnow(RequestRefused):
    """This node cannot know the state of a certificate at the moment."""

    def __init__(self) -> None:
        super().__init__(
            "the state of the certificate cannot be known at the moment: this node of the certificate service has lost its database; "
            "ask another node, or again in a moment"
        )


class WrongClock(CannotKnow):
    """This node's clock is wrong, so it signs nothing. If it ``stays``, no other node can be asked."""

    def __init__(self, why: str, *, stays: bool) -> None:
        what = "ask again when it is right" if stays else "ask another node"
        RequestRefused.__init__(self, f"no status is signed at the moment: {why}; {what}")
        self.stays = stays


class Answers(Protocol):
    """Makes what the PVs answer."""

    issuer: str
    on_put: PutHandler

    def blank(self) -> list[Any]:
        """Return a status without content."""
        ...

    def provide(self, pv: StatusPV, asks: str) -> None:
        """Make a PV's answer, for who asks from an address."""
        ...

    def rest(self, pv: StatusPV) -> None:
        """End to watch the certificate of a PV that has no answer, unless somebody wants one."""
        ...

    def let_go(self, pv: StatusPV) -> None:
        """Forget a PV that has no channel, unless it is kept."""
        ...

    def tell_later(self, pv: StatusPV) -> None:
        """Tell those who subscribe when that is possible again."""
        ...


class StatusPV(Handler):
    """The status of one certificate."""

    __slots__ = (
        "answers",
        "channels",
        "fetching",
        "is_watched",
        "publisher",
        "serial",
        "signed",
        "store",
        "subscriptions",
        "waiting",
    )

    def __init__(self, publisher: Answers, serial: int) -> None:
        self.publisher = publisher
        self.serial = serial
        self.store: list[Any] | None = None
        """The present answer; None before the first question and after it has expired."""
        self.signed: Signed | None = None
        """The signature in it."""
        self.answers: dict[tuple[int, bool], PreparedAnswer] = {}
        self.subscriptions: dict[Subscription, None] = {}
        self.waiting: list[tuple[Operation, Callable[[ApplianceError | None], None]]] = []
        self.channels: dict[Channel, None] = {}
        self.fetching = False
        self.is_watched = False
        """Whether the certificate is pinned in memory, because of an answer, or of somebody who wants one."""

    def when_ready(self, call: Callable[[ApplianceError | None], None], asks: Operation) -> None:
        """Call back when there is an answer, at once if there is one. ``asks`` is the operation that needs it."""
        if self.store is not None:
            call(None)
            return
        self.waiting.append((asks, call))
        self.publisher.provide(self, _address(asks))

    def is_awaited(self) -> bool:
        """Whether anybody still wants the answer."""
        return any(asks.alive for asks, _ in self.waiting)

    def close(self) -> None:
        """Close all channels: the clients search again, for a node that can answer."""
        for channel in list(self.channels):
            channel.close()
        self.drop()

    def answer_all(self, error: ApplianceError | None) -> None:
        """Call back all who wait."""
        waiting, self.waiting = self.waiting, []
        for _, call in waiting:
            call(error)

    def set(self, store: list[Any], signed: Signed) -> None:
        """Store a new answer, and send it to the subscribers unless it says nothing new."""
        changed = STATUS.leaf_mask if self.store is None else _differences(self.store, store)
        if signed is self.signed and not changed & ~_NO_NEWS:
            return
        self.store = store
        self.signed = signed
        for answer in self.answers.values():
            answer.tail = None
        if self.subscriptions:
            update = Update(STATUS, store, changed)
            for subscription in self.subscriptions:
                subscription.post(update)

    def drop(self) -> None:
        """Forget the answer: it has expired, and nobody subscribes."""
        self.store = self.signed = None
        for answer in self.answers.values():
            answer.tail = None
        self.publisher.rest(self)

    # -- Handler -----------------------------------------------------------------------------------

    def attached(self, channel: Channel) -> None:
        """Count the channel."""
        self.channels[channel] = None

    def detached(self, channel: Channel) -> None:
        """Forget the channel."""
        self.channels.pop(channel, None)
        self.publisher.let_go(self)

    def init(self, operation: Operation) -> None:
        """Accept GET and PUT."""
        command = operation.command
        if command == CMD_RPC:
            operation.fail("a certificate's status can be read or monitored, not called")
        elif command == CMD_PROCESS:
            operation.fail("this PV is not a record and cannot be processed")
        else:
            operation.ready(STATUS)
            wire = operation.wire
            if command == CMD_GET and operation.alive:
                key = (wire.mask, wire.connection.big)
                answer = self.answers.get(key)
                if answer is None:
                    answer = self.answers[key] = PreparedAnswer()
                wire.prepared = answer

    def get(self, operation: Operation) -> None:
        """Answer with the status."""

        def answer(error: ApplianceError | None) -> None:
            store = self.store
            if isinstance(error, WrongClock) and operation.command == CMD_PUT:
                # Who must revoke can do so: many clients read before they write, and need no more than the structure.
                operation.reply_store(self.publisher.blank(), STATUS.leaf_mask)
                return
            if error is not None or store is None:
                operation.fail(str(error or "the status is not available"))
                return
            prepared = operation.wire.prepared
            if prepared is not None:
                operation.reply_prepared(prepared, store, STATUS.leaf_mask)
            else:
                operation.reply_store(store, STATUS.leaf_mask)

        self.when_ready(answer, operation)

    def put(self, operation: Operation, value: Value) -> None:
        """Approve, deny or revoke."""
        self.publisher.on_put(self, operation, value, operation.done)

    def put_get(self, operation: Operation, value: Value) -> None:
        """Approve, deny or revoke, and then answer with the status."""
        self.publisher.on_put(self, operation, value, lambda: self.get(operation))

    def subscribe(self, subscription: Subscription) -> None:
        """Queue the present status and every later one."""
        subscription.ready(STATUS)
        if not subscription.alive:
            return

        def begin(error: ApplianceError | None) -> None:
            if not subscription.alive:
                return
            if isinstance(error, WrongClock) and error.stays:
                # Who is sent away would find this node again, and again.
                self.subscriptions[subscription] = None
                self.publisher.tell_later(self)
                return
            if isinstance(error, (CannotKnow, DatabaseLost)):
                subscription.channel.close()
                return
            if error is not None or self.store is None:
                subscription.finish()
                return
            self.subscriptions[subscription] = None
            subscription.post(Update(STATUS, self.store, STATUS.leaf_mask))

        self.when_ready(begin, subscription)

    def unsubscribe(self, subscription: Subscription) -> None:
        """Forget the subscriber."""
        self.subscriptions.pop(subscription, None)
        self.publisher.rest(self)

    def introspect(self, operation: Operation, field: str) -> None:
        """Return the type."""
        if field not in STATUS.offsets:
            operation.fail(f"there is no field {field[:64]!r}")
        else:
            operation.reply_field(STATUS.leaf_types[STATUS.offsets[field]])

    def __repr__(self) -> str:
        return f"<StatusPV {self.serial} {len(self.subscriptions)} subscribers>"


def _address(operation: Operation) -> str:
    return operation.peer.peer.rpartition(":")[0]


def _differences(old: list[Any], new: list[Any]) -> int:
    bits = 0
    for offset in STATUS.leaves:
        if offset == STATUS.offsets["ocsp_response"] or old[offset] != new[offset]:
            bits |= 1 << offset
    return bits


def refuse_put(_pv: StatusPV, operation: Operation, _value: Value, _done: Callable[[], None]) -> None:
    """Refuse."""
    operation.fail("this PV is read-only")

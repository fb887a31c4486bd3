"""One PV's value and clients: posted from any thread, served on the PVAccess thread."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol
from weakref import WeakSet, ref

from appliance.errors import internal_error
from appliance.p4p.server._operation import ServerOperation
from appliance.p4p.server._posts import Numbers, posts
from appliance.pva.commands import CMD_GET, CMD_PROCESS, CMD_RPC
from appliance.pva.selection import leaves
from appliance.pva.server_operation import PreparedAnswer
from appliance.pvdata.codec import leaves_of
from appliance.pvdata.types import (
    BOOL,
    FLOAT64,
    INT8,
    INT16,
    INT32,
    INT64,
    STRING,
    UINT8,
    UINT16,
    UINT32,
    UINT64,
    ArrayType,
    ScalarType,
    StructType,
    TypeDesc,
)
from appliance.pvdata.value import Value, View
from appliance.server.channel import Channel
from appliance.server.operation import Operation, Subscription, Update
from appliance.server.source import Handler
from appliance.threads import Engine, engine

__all__ = ["Callbacks", "Core"]

_log = logging.getLogger("appliance.p4p.server")

ROOM: Final = 96
"""Posts of a number alone that wait for the PVAccess thread, and twice as many of other values; above that the latest two become one."""
ROOM_FOR_ARRAYS: Final = 2
"""The same for PVs with arrays, unions and the like: together as many as a subscription's queue usually has."""
PLAIN: Final[dict[TypeDesc, type]] = {
    FLOAT64: float,
    STRING: str,
    BOOL: bool,
    **dict.fromkeys((INT8, INT16, INT32, INT64, UINT8, UINT16, UINT32, UINT64), int),
}
"""Python types that a field takes as they are; integers within the bounds of the field."""

QUIET_S: Final = 0.2
"""Seconds after `Core.close` in which the return of a client is not told yet.

A client that is disconnected opens the channel again at once. Whoever waits for the end of all channels would only see the first
of the next ones.
"""

_CLOSED: Final = "the PV is closed; open() it with a first value"
_CHANGED: Final = "this PV has changed its type or has no value; reconnect"

Entry = Any
"""A post that waits: the new value of the field ``value`` alone, a tuple of `Numbers` and their values, or one of the bits that changed
and the whole store."""


class Callbacks(Protocol):
    """What the owner of a PV hears of its clients. Called on the PVAccess thread: must not block."""

    def onFirstConnect(self) -> object:
        """Handle that a first client has opened a channel."""

    def onLastDisconnect(self) -> object:
        """Handle that the last channel was closed."""

    def put(self, op: ServerOperation) -> object:
        """Handle a PUT."""

    def rpc(self, op: ServerOperation) -> object:
        """Handle an RPC."""


class Core(Handler):
    """The value of one PV, and those who use it.

    The lock guards the value; no callback is called and nothing waits while it is held. It may be taken twice by one thread,
    because the garbage collector may run anything at any time.

    Args:
        callbacks: Told of clients, PUTs and calls; None refuses them.
    """

    __slots__ = (
        "__weakref__",
        "_answers",
        "_at",
        "_base",
        "_bit",
        "_channels",
        "_deep",
        "_engine",
        "_is_told",
        "_kind",
        "_late",
        "_lock",
        "_lost",
        "_pending",
        "_quiet_until",
        "_room",
        "_scheduled",
        "_senders",
        "_shared",
        "_store",
        "_subscriptions",
        "_valid",
        "_waiting",
        "_watched",
        "bare",
        "callbacks",
        "run_cancel",
        "soon",
    )

    def __init__(self, callbacks: Callbacks | None) -> None:
        self.callbacks = callbacks
        self.run_cancel: Callable[[Callable[[], object]], object] | None = None
        """Runs what `ServerOperation.onCancel` was given; None runs it where other callbacks of servers run."""
        self._lock = threading.RLock()
        self._kind: StructType | None = None
        self._store: list[Any] = []
        self._shared = False
        """Whether the store never changes any more: an update holds it, or it lacks what was posted `_late`."""
        self._late: tuple[Numbers, tuple[Any, ...]] | None = None
        """The numbers of the latest post, if the store does not have them: the next post often has other values for the same."""
        self._valid = 0
        self._at = 0
        """The number of the field ``value``, and its bit: 0 if there is none, or if it is a structure."""
        self._bit = 0
        self._deep = False
        """Whether fields may be objects that their owner can change."""
        self._room = ROOM
        self._pending: list[Entry] = []
        self._lost = 0
        """Fields of the last entry that lost an earlier change."""
        self._scheduled = False
        self._watched = False
        self._answers: dict[tuple[int, bool], PreparedAnswer] = {}
        self.bare: tuple[list[Any], int] | None = None
        """While nobody looks at posts: the store, and the number of the field ``value`` in it. Who has written a value there, and
        finds this attribute unchanged, has posted it. Whoever begins to look first sets None."""
        self._waiting: dict[Operation, Callable[[], None]] = {}
        """Operations that clients began while there was no value; ``open`` begins them anew."""
        # What follows belongs to the PVAccess thread.
        self._engine: Engine | None = None
        self.soon: Callable[..., None] = _no_engine
        """Calls a function on the PVAccess thread; there since the first channel."""
        self._base: list[Any] = []
        """The whole value as the subscribers know it; posts that wait are newer."""
        self._subscriptions: dict[Subscription, Callable[..., bool] | None] = {}
        """Each subscription, with a function that sends it a value alone; None if there is none."""
        self._senders: dict[Numbers, list[tuple[Subscription, Callable[..., bool] | None]]] = {}
        """The same for several numbers."""
        self._channels: set[Channel] = set()
        self._is_told = False
        """Whether the owner knows that there are channels."""
        self._quiet_until = 0.0
        _cores.add(self)

    # -- for the owner, from any thread --------------------------------------------------------------

    @property
    def kind(self) -> StructType | None:
        """The type of the value; None while closed."""
        return self._kind

    def open(self, value: Value | View) -> None:
        """Set type and first value.

        Raises:
            RuntimeError: The PV is open already, or the value is no structure.
        """
        kind = value.type
        if not isinstance(kind, StructType):
            raise RuntimeError("a PV's value must be a structure, for example NTScalar")  # noqa: TRY004 - as p4p
        fresh = value.to_value()
        with self._lock:
            if self._kind is not None:
                raise RuntimeError("the PV is open already; close() it first")
            self._kind = kind
            self.bare = None
            self._store = fresh.store
            self._shared = False
            self._late = None
            self._valid = leaves(kind, fresh.changed)
            self._answers = {}
            self._at = kind.offsets.get("value", 0)
            self._bit = 1 << self._at & kind.leaf_mask
            types = [kind.leaf_types[number] for number in kind.leaves]
            self._deep = not all(map(_is_immutable, types))
            self._room = ROOM if all(isinstance(t, ScalarType) for t in types) else ROOM_FOR_ARRAYS
            if self._waiting:
                self.soon(self._begin_waiting)

    def close(self) -> None:
        """Remove the value, and close all channels. Clients open them again, and then wait for `open`."""
        with self._lock:
            kind, self._kind = self._kind, None
            self.bare = None
            for answer in self._answers.values():
                answer.tail = None
            self._answers = {}
            pending, lost = self._pending, self._lost
            self._pending = []
            self._lost = 0
            self._watched = False
            if self._channels:
                self.soon(self._close_channels, kind, pending, lost)

    def current(self) -> Value:
        """Return a copy of the value; its ``changed`` bits say what was ever set.

        Raises:
            RuntimeError: The PV is closed.
        """
        with self._lock:
            kind = self._kind
            if kind is None:
                raise RuntimeError(_CLOSED)
            if self._late is not None:
                self._settle()
            value = Value.from_store(kind, self._store, self._valid)
            return value.clone() if self._deep else Value.from_store(kind, self._store.copy(), self._valid)

    def post(self, value: Value | View) -> None:
        """Change the fields that are marked in ``value``, and tell the subscribers.

        Raises:
            RuntimeError: The PV is closed, or has another type.
        """
        with self._lock:
            kind = self._kind
            if kind is None:
                raise RuntimeError(_CLOSED)
            if value.type is not kind and value.type != kind:
                raise RuntimeError(
                    f"a value of the type {_named(value.type)} cannot be posted to a PV of the type {_named(kind)}; "
                    "close() and open() the PV to change its type"
                )
            if self._deep or isinstance(value, View):
                value = value.to_value()
            source = value.store
            bits = leaves(kind, value.changed)
            if not bits:
                return
            self.bare = None
            if self._late is not None:
                self._settle()
            if bits == kind.leaf_mask:
                store = source.copy()
            else:
                store = self._store.copy() if self._shared or self._watched else self._store
                for number in leaves_of(kind, bits):
                    store[number] = source[number]
            self._store = store
            self._shared = False
            self._valid |= bits
            for answer in self._answers.values():
                answer.tail = None
            if not self._watched:
                return
            self._shared = True
            self._append((bits, store), bits)
        if posts.count > posts.ROOM:
            posts.wait()

    def post_plain(self, value: Any) -> None:
        """Change the field ``value`` to what it stores as it is, and tell the subscribers.

        Raises:
            RuntimeError: The PV is closed.
        """
        with self._lock:
            if self._kind is None:
                raise RuntimeError(_CLOSED)
            if self._shared:
                self._settle()
            self._store[self._at] = value
            if not self._valid & self._bit:
                self._valid |= self._bit
            if self._answers:
                for answer in self._answers.values():
                    answer.tail = None
            if not self._watched:
                if not self._answers and self._bit:
                    self.bare = (self._store, self._at)
                return
            pending = self._pending
            if len(pending) < self._room:
                posts.count += 1
                pending.append(value)
                if not self._scheduled:
                    self._scheduled = True
                    posts.changed.append(self)
                    if not posts.woken:
                        posts.wake(self.soon)
            elif type(pending[-1]) is not tuple:
                posts.count += posts.DEAR
                pending[-1] = value
                self._lost = self._bit
            else:
                self._append(value, self._bit)
        if posts.count > posts.ROOM:
            posts.wait()

    def post_numbers(self, numbers: Numbers, values: tuple[Any, ...]) -> None:
        """Change some numbers to what they store as it is, and tell the subscribers.

        Args:
            numbers: The fields.
            values: The value of each.

        Raises:
            RuntimeError: The PV is closed, or has another type by now.
        """
        bits = numbers.bits
        entry = (numbers, values)
        with self._lock:
            if self._kind is not numbers.kind:
                raise RuntimeError(_CLOSED if self._kind is None else _CHANGED)
            self.bare = None
            late = self._late
            if late is not None and late[0] is not numbers:
                self._settle()
            self._late = entry
            self._shared = True
            self._valid |= bits
            if self._answers:
                for answer in self._answers.values():
                    answer.tail = None
            if not self._watched:
                return
            pending = self._pending
            if len(pending) < 2 * self._room:
                posts.count += 1
                pending.append(entry)
                if not self._scheduled:
                    self._scheduled = True
                    posts.changed.append(self)
                    if not posts.woken:
                        posts.wake(self.soon)
            elif type(last := pending[-1]) is tuple and last[0] is numbers:
                posts.count += posts.DEAR
                pending[-1] = entry
                self._lost |= bits
            else:
                self._append(entry, bits)
        if posts.count > posts.ROOM:
            posts.wait()

    def post_parts(self, parts: Sequence[tuple[int, Any]], bits: int) -> None:
        """Change some fields to what they store as it is, and tell the subscribers.

        Args:
            parts: The number and the value of each field.
            bits: The same fields, in leaf form.

        Raises:
            RuntimeError: The PV is closed.
        """
        with self._lock:
            if self._kind is None:
                raise RuntimeError(_CLOSED)
            self.bare = None
            if self._shared:
                self._settle()
            store = self._store
            self._shared = self._watched
            for number, value in parts:
                store[number] = value
            self._valid |= bits
            for answer in self._answers.values():
                answer.tail = None
            if not self._watched:
                return
            self._append((bits, store), bits)
        if posts.count > posts.ROOM:
            posts.wait()

    def plain_type(self) -> ScalarType | None:
        """Return the type of the field ``value`` if Python has it as it is; None if it has not, or the PV is closed."""
        kind = self._kind
        found = None if kind is None or not self._bit else kind.leaf_types[self._at]
        return found if isinstance(found, ScalarType) and found in PLAIN else None

    def _settle(self) -> None:
        """Make a store that may be changed, and has all posts."""
        self._store = self._store.copy()
        self._shared = False
        late, self._late = self._late, None
        if late is not None:
            late[0].put(self._store, late[1])

    def _append(self, entry: Entry, bits: int) -> None:
        """Let an update wait for the PVAccess thread; if too many wait, it takes the place of the latest."""
        posts.count += posts.DEAR
        pending = self._pending
        if len(pending) < 2 * self._room:
            pending.append(entry)
        else:
            last = pending[-1]
            if type(last) is not tuple:
                before = self._bit
            else:
                before = last[0].bits if type(last[0]) is Numbers else last[0]
            self._lost |= before & bits
            if type(last) is tuple or type(entry) is tuple:
                if self._late is not None:
                    self._settle()
                self._shared = True
                entry = (before | bits, self._store)
            pending[-1] = entry
        if not self._scheduled:
            self._scheduled = True
            posts.changed.append(self)
            if not posts.woken:
                posts.wake(self.soon)

    # -- on the PVAccess thread ----------------------------------------------------------------------

    def drain(self) -> None:
        """Give the subscribers what was posted since the last time."""
        with self._lock:
            self._scheduled = False
            pending = self._pending
            if not pending:
                return
            kind = self._kind
            assert kind is not None
            lost = self._lost
            if len(pending) == 1 and not lost:
                entry = pending.pop()
            else:
                self._pending = []
                self._lost = 0
                entry = None
        if entry is None:
            self._deliver(kind, pending, lost)
        else:
            self._deliver_one(kind, entry, 0)

    def _deliver(self, kind: StructType, pending: list[Entry], lost: int) -> None:
        """Give the subscribers what was posted, in its order.

        Args:
            kind: The type of the value.
            pending: The posts.
            lost: Fields of the last post that lost an earlier change.
        """
        last = pending.pop() if lost else None
        if len(self._subscriptions) == 1:
            (send,) = self._subscriptions.values()
            for entry in pending:
                if type(entry) is tuple:
                    self._deliver_parts(kind, entry, 0)
                elif send is None or not send(entry):
                    self._deliver_plain(kind, entry, 0)
        else:
            for entry in pending:
                self._deliver_one(kind, entry, 0)
        if lost:
            self._deliver_one(kind, last, lost)

    def _deliver_one(self, kind: StructType, entry: Entry, overrun: int) -> None:
        if type(entry) is tuple:
            self._deliver_parts(kind, entry, overrun)
        else:
            self._deliver_plain(kind, entry, overrun)

    def _deliver_plain(self, kind: StructType, value: Any, overrun: int) -> None:
        made: Update | None = None
        for subscription, send in self._subscriptions.items():
            if send is None or overrun or not send(value):
                if made is None:
                    store = self._base = self._base.copy()
                    store[self._at] = value
                    made = Update(kind, store, self._bit, overrun)
                subscription.post_ahead(made)

    def _deliver_parts(self, kind: StructType, entry: tuple[Any, Any], overrun: int) -> None:
        what, held = entry
        if type(what) is not Numbers:
            self._base = held
            update = Update(kind, held, what, overrun)
            for subscription in self._subscriptions:
                subscription.post_ahead(update)
            return
        senders = self._senders.get(what)
        if senders is None:
            senders = self._senders[what] = [
                (subscription, subscription.sender(what.bits, what.code))
                for subscription in self._subscriptions
            ]
        made: Update | None = None
        for subscription, send in senders:
            if send is None or overrun or not send(*held):
                if made is None:
                    store = self._base = self._base.copy()
                    what.put(store, held)
                    made = Update(kind, store, what.bits, overrun)
                subscription.post_ahead(made)

    def _begin_waiting(self) -> None:
        self._tell_first()
        with self._lock:
            if self._kind is None:
                return
            waiting, self._waiting = self._waiting, {}
        for begin in waiting.values():
            begin()

    def _close_channels(self, kind: StructType | None, pending: list[Entry], lost: int) -> None:
        if kind is not None:
            self._deliver(kind, pending, lost)
        self._quiet_until = engine().loop.time() + QUIET_S
        for channel in list(self._channels):
            channel.close()

    def attached(self, channel: Channel) -> None:
        """Note a channel; tell the owner if it is the first."""
        running = engine()
        if running is not self._engine:
            self._move_to(running)
        self._channels.add(channel)
        if self._is_told:
            return
        if self._kind is None and self._quiet_until:
            loop = engine().loop
            wait = self._quiet_until - loop.time()
            if wait > 0:
                loop.call_later(wait, _tell_later, ref(self))
                return
        self._tell_first()

    def _move_to(self, running: Engine) -> None:
        """Forget the clients of an engine that has ended, or that is the parent's of this process."""
        posts.move_to(running)
        with self._lock:
            self._engine = running
            self.soon = running.soon
            self._scheduled = self._watched = self._is_told = False
            self._pending = []
            self._waiting = {}
            self._answers = {}
            self.bare = None
        self._subscriptions = {}
        self._senders = {}
        self._channels = set()

    def _tell_first(self) -> None:
        """Tell the owner that there is a channel."""
        if self._channels and not self._is_told:
            self._is_told = True
            if self.callbacks is not None:
                self._tell(self.callbacks.onFirstConnect)

    def detached(self, channel: Channel) -> None:
        """Forget a channel; tell the owner if it was the last."""
        self._channels.discard(channel)
        if not self._channels and self._is_told:
            self._is_told = False
            if self.callbacks is not None:
                self._tell(self.callbacks.onLastDisconnect)

    def _tell(self, callback: Callable[[], object]) -> None:
        try:
            callback()
        except Exception:  # noqa: BLE001 - the channel is served all the same
            _log.exception("the handler of a PV failed")

    def init(self, operation: Operation) -> None:
        """Accept GET, PUT and RPC; without a value GET and PUT wait for one."""
        if operation.command == CMD_RPC:
            operation.ready()
            return
        if operation.command == CMD_PROCESS:
            operation.fail("this PV cannot be processed: only records can; use PUT")
            return
        with self._lock:
            kind = self._kind
            if kind is None:
                self._waiting[operation] = lambda: self.init(operation)
                return
        operation.ready(kind)
        if operation.command == CMD_GET and operation.alive:
            wire = operation.wire
            key = (wire.mask, wire.connection.big)
            with self._lock:
                answer = self._answers.get(key)
                if answer is None:
                    answer = PreparedAnswer()
                    if self._kind is kind:
                        self.bare = None
                        self._answers[key] = answer
                        wire.prepared = answer

    def get(self, operation: Operation) -> None:
        """Answer with the current value."""
        with self._lock:
            if self._kind is None or operation.type is not self._kind:
                operation.fail(_CHANGED)
                return
            if self._late is not None:
                self._settle()
            wire = operation.wire
            prepared = wire.prepared
            if prepared is not None and prepared is self._answers.get((wire.mask, wire.connection.big)):
                operation.reply_prepared(prepared, self._store, self._valid)
            else:
                operation.reply_store(self._store, self._valid)

    def put(self, operation: Operation, value: Value) -> None:
        """Pass a PUT on to the owner."""
        if self._kind is None or value.type is not self._kind:
            operation.fail(_CHANGED)
        elif self.callbacks is None:
            operation.fail("Read-only PV")
        else:
            self._pass_on(self.callbacks.put, ServerOperation.begin(operation, value, self))

    put_get = put

    def rpc(self, operation: Operation, argument: Value | None) -> None:
        """Pass an RPC on to the owner, also while there is no value."""
        if self.callbacks is None:
            operation.fail("RPC not implemented by this PV")
        else:
            self._tell_first()
            self._pass_on(self.callbacks.rpc, ServerOperation.begin(operation, argument, self))

    def _pass_on(self, callback: Callable[[ServerOperation], object], op: ServerOperation | None) -> None:
        if op is None:
            return
        try:
            callback(op)
        except Exception:  # noqa: BLE001 - the client must hear of it
            _log.exception("the handler of %.256r failed", op.name())
            op.done(error=internal_error())

    def subscribe(self, subscription: Subscription) -> None:
        """Queue the current value."""
        with self._lock:
            kind = self._kind
            if kind is None:
                self._waiting[subscription] = lambda: self.subscribe(subscription)
                return
        subscription.ready(kind)
        if not subscription.alive:
            return
        with self._lock:
            if self._kind is not kind:
                subscription.fail(_CHANGED)
                return
            pending, lost = self._pending, self._lost
            self._pending = []
            self._lost = 0
            self.bare = None
            if self._late is not None:
                self._settle()
            store = self._store
            self._shared = True
            self._watched = True
            valid = self._valid
        # Those who subscribed earlier get what this one has in its first update.
        self._deliver(kind, pending, lost)
        self._base = store
        plain = self.plain_type()
        self._senders = {}
        self._subscriptions[subscription] = (
            subscription.sender(self._bit, plain.fmt) if plain is not None and plain.fmt else None
        )
        subscription.post(Update(kind, store, valid))

    def unsubscribe(self, subscription: Subscription) -> None:
        """Forget the subscriber."""
        with self._lock:
            self._waiting.pop(subscription, None)
            self._subscriptions.pop(subscription, None)
            self._senders = {}
            if not self._subscriptions:
                self._watched = False

    def cancelled(self, operation: Operation) -> None:
        """Tell whoever works on the request that nobody waits for it any more."""
        ServerOperation.end(operation)

    def closed(self, operation: Operation) -> None:
        """Forget an operation; tell whoever works on it."""
        if self._waiting:
            with self._lock:
                self._waiting.pop(operation, None)
        ServerOperation.end(operation)

    def introspect(self, operation: Operation, field: str) -> None:
        """Answer with the type of the value or of a field."""
        with self._lock:
            kind = self._kind
            if kind is None:
                self._waiting[operation] = lambda: self.introspect(operation, field)
                return
        if field not in kind.offsets:
            operation.fail(f"there is no field {field[:64]!r}")
        else:
            operation.reply_field(kind.leaf_types[kind.offsets[field]])

    def __repr__(self) -> str:
        kind = self._kind
        return f"<PV {'closed' if kind is None else _named(kind)} {len(self._subscriptions)} subscribers>"


def _no_engine(function: Callable[..., object], *args: Any) -> None:
    engine().soon(function, *args)


def _tell_later(known: ref[Core]) -> None:
    core = known()
    if core is not None:
        core._tell_first()


_cores: Final[WeakSet[Core]] = WeakSet()


def _after_fork() -> None:
    """Free the locks in the child of a fork: another thread of the parent may have held them."""
    for core in _cores:
        core._lock = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)


def _is_immutable(t: TypeDesc) -> bool:
    """Whether what a leaf of this type holds never changes: numbers, strings, and arrays of numbers, which are read only."""
    if isinstance(t, ScalarType):
        return True
    return isinstance(t, ArrayType) and isinstance(t.element, ScalarType) and t.element != STRING


def _named(t: TypeDesc) -> str:
    return repr(t.id) if isinstance(t, StructType) and t.id else type(t).__name__

"""A PV whose one value all clients share."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from appliance.errors import PVDataError
from appliance.pva.commands import CMD_GET, CMD_PROCESS, CMD_RPC
from appliance.pva.selection import leaves
from appliance.pva.server_operation import PreparedAnswer
from appliance.pvdata.nt import now_to_time
from appliance.pvdata.types import BOOL, FLOAT64, STRING, ScalarType, StructType, TypeDesc
from appliance.pvdata.value import Value
from appliance.server.operation import Operation, Subscription, Update
from appliance.server.source import Handler

__all__ = ["SharedPV"]


PutHandler = Callable[["SharedPV", Operation, Value], Awaitable[None] | None]
RPCHandler = Callable[["SharedPV", Operation, Value | None], Awaitable[Value | None] | Value | None]


class SharedPV(Handler):
    """A PV with a current value.

    Args:
        initial: The first value, or its type; without it the PV has neither until `open`.
        on_put: Takes a client's PUT: it posts what it accepts and raises an ApplianceError to refuse. When it returns,
            the PUT is answered. It may be a coroutine function. Without it the PV is read only; `mailbox` makes a PV
            that posts whatever is put.
        on_rpc: Returns the answer to a call, or raises an ApplianceError. It may be a coroutine function.
        on_first: Called when the first subscription comes, so that a value is acquired only while someone looks.
        on_last: Called when the last subscription has gone.

    Raises:
        PVDataError: The initial value is no structure.

    Example:
        >>> def limited(pv, operation, value):
        ...     if value["value"] > 10.0:
        ...         raise ApplianceError("at most 10")
        ...     pv.post(value)
        >>> server.add_pv("demo:limited", SharedPV(Value(NTScalar(FLOAT64), 1.0), on_put=limited))
        >>> await ctx.put("demo:limited", 2.0)
        >>> await ctx.put("demo:limited", 11.0)
        Traceback (most recent call last):
        appliance.errors.RemoteError: demo:limited: at most 10
    """

    __slots__ = (
        "_answers",
        "_is_shared",
        "_kind",
        "_plain",
        "_store",
        "_subscriptions",
        "_valid",
        "_value_at",
        "_value_bits",
        "_waiting",
        "on_first",
        "on_last",
        "on_put",
        "on_rpc",
    )

    def __init__(
        self,
        initial: Value | StructType | None = None,
        *,
        on_put: PutHandler | None = None,
        on_rpc: RPCHandler | None = None,
        on_first: Callable[[SharedPV], None] | None = None,
        on_last: Callable[[SharedPV], None] | None = None,
    ) -> None:
        self.on_put = on_put
        """Takes a client's PUT; None makes the PV read only."""
        self.on_rpc = on_rpc
        """Answers a call; None if the PV cannot be called."""
        self.on_first = on_first
        """Called when the first subscription comes."""
        self.on_last = on_last
        """Called when the last subscription has gone."""
        self._subscriptions: dict[Subscription, Callable[..., bool] | None] = {}
        """Each subscription, with a function that sends it a value alone; None if there is none."""
        self._answers: dict[tuple[int, bool], PreparedAnswer] = {}
        self._kind: StructType | None = None
        self._plain: type | None = None
        """The Python type that the field ``value`` stores without conversion; None if there is none."""
        self._value_at = 0
        """The offset of that field; the next attribute is its bit."""
        self._value_bits = 0
        self._store: list[Any] = []
        self._is_shared = False
        """Whether an update holds the store, which then never changes."""
        self._valid = 0
        self._waiting: dict[Operation, Callable[[], None]] = {}
        """Operations that clients began while there was no type to answer with; ``open`` begins them anew."""
        if initial is not None:
            self.open(initial)

    @classmethod
    def mailbox(cls, initial: Value | StructType) -> SharedPV:
        """Make a PV that posts whatever is put, with the present time if the client sets none.

        Args:
            initial: The first value, or its type.

        Returns:
            The PV.

        Example:
            >>> server.add_pv("demo:note", SharedPV.mailbox(NTScalar(STRING)))
            >>> await ctx.put("demo:note", "beam on")
            >>> (await ctx.get("demo:note"))["value"]
            'beam on'
        """
        return cls(initial, on_put=_accept)

    @property
    def type(self) -> StructType | None:
        """The type of the value; None while closed."""
        return self._kind

    @property
    def current(self) -> Value:
        """A copy of the value; its ``changed`` bits say what was ever set."""
        if self._kind is None:
            raise PVDataError("the PV is closed: it has no value")
        return Value.from_store(self._kind, self._store.copy(), self._valid)

    def open(self, initial: Value | StructType) -> None:
        """Set the PV's type and first value; an ``open`` after a ``close`` may set another type.

        Args:
            initial: The first value, or its type.

        Raises:
            PVDataError: It is no structure.

        Example:
            >>> pv = SharedPV()
            >>> pv.open(Value(NTScalar(STRING), "ready"))
            >>> pv.current["value"]
            'ready'
        """
        value = Value(initial) if isinstance(initial, StructType) else initial
        kind = value.type
        if not isinstance(kind, StructType):
            raise PVDataError("a PV's value must be a structure, such as NTScalar")
        self._kind = kind
        self._store = value.store.copy()
        self._is_shared = False
        self._valid = leaves(kind, value.changed)
        self._answers = {}
        self._plain = None
        if "value" in kind.members:
            self._value_at = kind.offsets["value"]
            self._value_bits = 1 << self._value_at
            self._plain = _PLAIN.get(kind.leaf_types[self._value_at])
        waiting = self._waiting
        self._waiting = {}
        for begin in waiting.values():
            begin()

    def close(self) -> None:
        """Remove the value: subscribers lose their channels, and new operations wait for ``open``.

        Clients open a lost channel again by themselves (as with PVXS), so a subscription survives a change of type.

        Example:
            >>> pv = SharedPV(Value(NTScalar(STRING), "ready"))
            >>> pv.close()
            >>> pv.type is None
            True
        """
        self._kind = None
        for answer in self._answers.values():
            answer.tail = None
        self._answers = {}
        for subscription in list(self._subscriptions):
            subscription.channel.close()

    def post(self, value: Any, *, timestamp: float | None = None) -> None:
        """Change the value, and tell the subscribers. Only fields that are given change.

        Args:
            value: A Value of the PV's type, whose marked fields count, or anything that can be assigned to one: a number,
                a text, an array, a dictionary of fields.
            timestamp: The time of the value, in POSIX seconds (``time.time()``), for the field ``timeStamp``; without it
                that field stays as it is.

        Raises:
            PVDataError: The value does not fit the type, or the PV is closed.

        Example:
            >>> pv = SharedPV(Value(NTScalar(FLOAT64), 1.0))
            >>> pv.post(2.0)
            >>> pv.post({"value": 12.5, "alarm": {"severity": 1, "message": "high"}}, timestamp=1700000000.25)
            >>> pv.current["timeStamp"].to_dict()
            {'secondsPastEpoch': 1700000000, 'nanoseconds': 250000000, 'userTag': 0}
        """
        if timestamp is not None:
            value = self._stamped(value, timestamp)
        kind = self._kind
        if kind is None:
            raise PVDataError("the PV is closed: open it with a value of its type first")
        if type(value) is self._plain:
            self._post_plain(value)
            return
        if isinstance(value, Value) and (value.type is kind or value.type == kind):
            bits = leaves(kind, value.changed)
            if bits == kind.leaf_mask:
                store = value.store.copy()
            else:
                store = self._store.copy()
                source = value.store
                for offset in kind.leaves:
                    if bits >> offset & 1:
                        store[offset] = source[offset]
        else:
            changed = Value.from_store(kind, self._store.copy(), 0)
            changed.assign(value)
            store = changed.store
            bits = leaves(kind, changed.changed)
        self._take(store, bits)
        if self._subscriptions:
            update = self._update(bits)
            for subscription in self._subscriptions:
                subscription.post(update)

    def _stamped(self, value: Any, timestamp: float) -> Value:
        """Return ``value`` as a Value of this type, with a time."""
        if self._kind is None:
            raise PVDataError("the PV is closed: open it with a value of its type first")
        changed = Value.from_store(self._kind, self._store.copy(), 0)
        changed.assign(value)
        changed["timeStamp"] = now_to_time(timestamp)
        return changed

    def _post_plain(self, value: Any) -> None:
        """Post a value that needs no conversion; a subscriber with an empty queue is sent the octets at once."""
        bits = self._value_bits
        store = self._store
        if self._is_shared:
            store = store.copy()
            self._is_shared = False
        store[self._value_at] = value
        self._take(store, bits)
        update: Update | None = None
        for subscription, send in self._subscriptions.items():
            if send is None or not send(value):
                if update is None:
                    update = self._update(bits)
                subscription.post(update)

    def _take(self, store: list[Any], bits: int) -> None:
        self._store = store
        self._valid |= bits
        for answer in self._answers.values():
            answer.tail = None

    def _update(self, bits: int) -> Update:
        assert self._kind is not None
        self._is_shared = True
        return Update(self._kind, self._store, bits)

    # -- Handler -------------------------------------------------------------------------------------

    def init(self, operation: Operation) -> None:
        """Accept GET, PUT and RPC."""
        kind = self._kind
        if operation.command == CMD_RPC:
            if self.on_rpc is None:
                operation.fail("this PV cannot be called")
            else:
                operation.ready()
        elif operation.command == CMD_PROCESS:
            operation.fail("this PV cannot be processed: only records can; use PUT")
        elif kind is None:
            self._waiting[operation] = lambda: self.init(operation)
        else:
            operation.ready(kind)
            wire = operation.wire
            if operation.command == CMD_GET and operation.alive:
                key = (wire.mask, wire.connection.big)
                answer = self._answers.get(key)
                if answer is None:
                    answer = self._answers[key] = PreparedAnswer()
                wire.prepared = answer

    def get(self, operation: Operation) -> None:
        """Answer with the current value."""
        if self._kind is None or operation.type is not self._kind:
            operation.fail("this PV has changed its type or has no value; reconnect")
            return
        prepared = operation.wire.prepared
        if prepared is not None:
            operation.reply_prepared(prepared, self._store, self._valid)
        else:
            operation.reply_store(self._store, self._valid)

    def put(self, operation: Operation, value: Value) -> None:
        """Call ``on_put``, and answer when it is done."""
        self._put(operation, value, operation.done)

    def put_get(self, operation: Operation, value: Value) -> None:
        """Put as ``put`` does, then answer with the PV's value."""
        self._put(operation, value, lambda: operation.reply_store(self._store, self._valid))

    def _put(self, operation: Operation, value: Value, answer: Callable[[], None]) -> None:
        if self._kind is None or value.type is not self._kind:
            operation.fail("this PV has changed its type or has no value; reconnect")
            return
        if self.on_put is None:
            operation.fail("this PV is read only")
            return
        result = self.on_put(self, operation, value)
        if inspect.isawaitable(result):
            _background(operation, result, lambda _: answer())
        else:
            answer()

    def rpc(self, operation: Operation, argument: Value | None) -> None:
        """Call ``on_rpc``, and answer with its result."""
        if self.on_rpc is None:
            operation.fail("this PV cannot be called")
            return
        result = self.on_rpc(self, operation, argument)
        if inspect.isawaitable(result):
            _background(operation, result, operation.reply)
        else:
            operation.reply(result)

    def subscribe(self, subscription: Subscription) -> None:
        """Queue the current value."""
        kind = self._kind
        if kind is None:
            self._waiting[subscription] = lambda: self.subscribe(subscription)
            return
        subscription.ready(kind)
        if not subscription.alive:
            return
        first = not self._subscriptions
        self._subscriptions[subscription] = (
            subscription.sender(self._value_bits, "d") if self._plain is float else None
        )
        subscription.post(self._update(self._valid))
        if first and self.on_first is not None:
            self.on_first(self)

    def unsubscribe(self, subscription: Subscription) -> None:
        """Forget the subscriber."""
        self._waiting.pop(subscription, None)
        known = self._subscriptions.pop(subscription, self) is not self
        if known and not self._subscriptions and self.on_last is not None:
            self.on_last(self)

    def closed(self, operation: Operation) -> None:
        """Forget an operation that still waited."""
        self._waiting.pop(operation, None)

    def introspect(self, operation: Operation, field: str) -> None:
        """Answer with the type of the value or of a field."""
        kind = self._kind
        if kind is None:
            self._waiting[operation] = lambda: self.introspect(operation, field)
        elif field not in kind.offsets:
            operation.fail(f"there is no field {field[:64]!r}")
        else:
            operation.reply_field(kind.leaf_types[kind.offsets[field]])

    def __repr__(self) -> str:
        kind = self._kind
        return f"<SharedPV {'closed' if kind is None else kind.id or 'struct'} {len(self._subscriptions)} subscribers>"


_PLAIN: Final[dict[TypeDesc, type]] = {FLOAT64: float, STRING: str, BOOL: bool}
"""Types whose Python values need no conversion, so that a post of one is short."""


def _accept(pv: SharedPV, operation: Operation, value: Value) -> None:  # noqa: ARG001
    kind = value.type
    offset = kind.offsets.get("timeStamp")
    if offset is not None and not value.changed & kind.masks[offset]:
        # As PVXS: a value without a time of its own is as old as the put that brought it.
        for name, number in now_to_time(time.time()).items():
            path = f"timeStamp.{name}"
            if isinstance(kind.leaf_types[kind.offsets.get(path, 0)], ScalarType):
                value[path] = number
    pv.post(value)


MAX_TASKS: Final = 10_000
"""Coroutines of put and RPC functions that may run at the same time in this process."""
_tasks: set[asyncio.Future[Any]] = set()


def _background(operation: Operation, result: Awaitable[Any], answer: Callable[[Any], None]) -> None:
    """Answer ``operation`` when ``result`` is ready; keep the task alive until then."""
    if len(_tasks) >= MAX_TASKS:
        # A client that asks, gives up and asks again leaves every call behind: what is begun is brought to its end.
        if inspect.iscoroutine(result):
            result.close()
        operation.fail(f"the server has {MAX_TASKS} requests in progress; try again later")
        return

    def finished(task: asyncio.Future[Any]) -> None:
        _tasks.discard(task)
        if task.cancelled():
            operation.fail("the server cancelled the request; try again")
            return
        error = task.exception()
        if error is None:
            answer(task.result())
        else:
            operation.broken(error)

    task = asyncio.ensure_future(result)
    _tasks.add(task)
    task.add_done_callback(finished)

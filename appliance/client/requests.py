"""One-time requests: GET, PUT, RPC, GET_FIELD. Each survives the loss of its connection if that is safe."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from appliance.errors import AccessDeniedError, ApplianceError, ChannelClosedError, OperationError
from appliance.pva import commands as c
from appliance.pva.client_operation import ClientOperation
from appliance.pva.status import Status
from appliance.pvdata.types import StructType, TypeDesc
from appliance.pvdata.value import Value

if TYPE_CHECKING:
    from appliance.client.channel import Channel
    from appliance.pva.credentials import Credentials

IDLE_OPERATIONS = 4
"""Initialised GETs that are kept for the next one, for each pvRequest of a channel."""

__all__ = ["Batch", "FieldRequest", "GetRequest", "Info", "PutRequest", "RPCRequest", "Request", "Waiter"]


class Waiter:
    """Takes the outcome of one request."""

    __slots__ = ("future",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.future: asyncio.Future[Any] = loop.create_future()

    def result(self, value: Any) -> None:
        """It worked."""
        if not self.future.done():
            self.future.set_result(value)

    def error(self, error: Exception) -> None:
        """It did not."""
        if not self.future.done():
            self.future.set_exception(error)


class Batch:
    """Takes the outcomes of many requests: one future for all of them."""

    __slots__ = ("future", "left", "results")

    def __init__(self, loop: asyncio.AbstractEventLoop, count: int) -> None:
        self.future: asyncio.Future[list[Any]] = loop.create_future()
        self.results: list[Any] = [None] * count
        self.left = count


class _BatchItem(Waiter):
    __slots__ = ("batch", "index")

    def __init__(self, batch: Batch, index: int) -> None:
        self.batch = batch
        self.index = index

    def result(self, value: Any) -> None:
        batch = self.batch
        batch.results[self.index] = value
        batch.left -= 1
        if not batch.left and not batch.future.done():
            batch.future.set_result(batch.results)

    def error(self, error: Exception) -> None:
        self.result(error)


class Request:
    """What wants something of a channel. A subclass says how it starts, and what the answers mean to it."""

    __slots__ = ("channel", "operation", "waiter")

    def __init__(self, channel: Channel, waiter: Waiter) -> None:
        self.channel = channel
        self.waiter = waiter
        self.operation: ClientOperation | None = None

    def start(self) -> None:
        """The channel is there: send the first message."""
        raise NotImplementedError

    def ready(self, status: Status) -> None:
        """INIT was answered."""

    def reply(self, status: Status, value: Value | None) -> None:
        """The request was answered."""

    def disconnected(self, why: str) -> None:
        """The channel was lost; ``start`` will be called when it is back."""
        if self.operation is not None:
            self.operation.context = None
            self.operation = None

    def _refused(self, *, changes: bool) -> bool:
        """Fail where the connection pauses; False where it does not."""
        link = self.channel.link
        assert link is not None
        if link.held is None:
            return False
        why = link.refusal(changes=changes)
        if why:
            self.fail(OperationError(f"{self.channel.name}: {why}"))
        return bool(why)

    def _finish(self, value: Any) -> None:
        self.channel.remove(self)
        self.waiter.result(value)

    def fail(self, error: Exception) -> None:
        """Give up, and say why."""
        self.channel.remove(self)
        self._abandon()
        self.waiter.error(error)

    def cancel(self) -> None:
        """Nobody waits any more."""
        self.channel.remove(self)
        self._abandon()

    def _abandon(self) -> None:
        operation = self.operation
        self.operation = None
        if operation is not None:
            operation.context = None
            operation.close()
            link = self.channel.link
            if link is not None:
                link.schedule_flush()

    def _raise(self, status: Status) -> bool:
        """Fail with the server's reason; False where there is none."""
        if status.ok:
            return False
        try:
            status.raise_for(self.channel.name)
        except AccessDeniedError as error:
            link = self.channel.link
            gate = None if link is None or link.address[2] else link.context.gate
            why = gate.plight(link.guid) if gate is not None and link is not None else ""
            self.fail(AccessDeniedError(f"{error}; {why}") if why else error)
        except ApplianceError as error:
            self.fail(error)
        return True

    def _begin(self, command: int, request: Value) -> ClientOperation:
        channel = self.channel
        assert channel.wire is not None
        assert channel.link is not None
        operation = channel.wire.operation(command, request)
        operation.context = self
        self.operation = operation
        channel.link.schedule_flush()
        return operation


class GetRequest(Request):
    """GET. The initialised operation is kept for the next one with the same pvRequest."""

    __slots__ = ("key", "request", "reuses")

    def __init__(self, channel: Channel, waiter: Waiter, key: Any, request: Value) -> None:
        super().__init__(channel, waiter)
        self.key = key
        self.request = request
        self.reuses = False
        """The operation was initialised for an earlier GET."""

    def start(self) -> None:
        if self._refused(changes=False):
            return
        channel = self.channel
        idle = channel.idle[self.key]
        if idle:
            operation = idle.pop()
            operation.context = self
            self.operation = operation
            self.reuses = True
            operation.get()
            assert channel.link is not None
            channel.link.schedule_flush()
        else:
            self._begin(c.CMD_GET, self.request)

    def ready(self, status: Status) -> None:
        if not self._raise(status):
            assert self.operation is not None
            self.operation.get()

    def reply(self, status: Status, value: Value | None) -> None:
        operation = self.operation
        if status.kind < 2:
            assert operation is not None
            self.operation = None
            operation.context = None
            channel = self.channel
            idle = channel.idle[self.key]
            if len(idle) < IDLE_OPERATIONS:
                idle.append(operation)
            else:
                operation.close()
            requests = channel.requests
            requests.pop(self, None)
            if not requests:
                channel.last_used = channel.context.loop.time()
            self.waiter.result(value)
        elif self.reuses:
            # The PV may have another type by now; a fresh operation learns it.
            self.reuses = False
            self._abandon()
            self._begin(c.CMD_GET, self.request)
        else:
            self._raise(status)


class PutRequest(Request):
    """PUT. ``build`` makes the value from one of the PV's type, which holds the present value if ``get``."""

    __slots__ = ("_getting", "build", "get", "request", "sent")

    def __init__(
        self, channel: Channel, waiter: Waiter, request: Value, build: Callable[[Value], Value], *, get: bool
    ) -> None:
        super().__init__(channel, waiter)
        self.request = request
        self.build = build
        self.get = get
        self.sent = False
        self._getting = False

    def start(self) -> None:
        if not self._refused(changes=True):
            self._begin(c.CMD_PUT, self.request)

    def ready(self, status: Status) -> None:
        if self._raise(status):
            return
        operation = self.operation
        assert operation is not None
        if self.get:
            self._getting = True
            operation.get()
        else:
            assert operation.type is not None
            self._put(Value(operation.type))

    def _put(self, present: Value) -> None:
        present.changed = 0
        assert self.operation is not None
        try:
            self.operation.put(self.build(present))
        except Exception as error:  # noqa: BLE001 - the caller's function: its faults are the caller's, not the connection's
            self.fail(error)
            return
        self.sent = True

    def reply(self, status: Status, value: Value | None) -> None:
        if self._raise(status):
            return
        if self._getting:
            self._getting = False
            assert value is not None
            self._put(value)
            return
        assert self.operation is not None
        self.operation.close()
        self.operation = None
        self._finish(None)

    def disconnected(self, why: str) -> None:
        super().disconnected(why)
        self._getting = False
        if self.sent:
            # Nobody knows whether it was done; to do it again might do it twice.
            self.fail(ChannelClosedError(f"{self.channel.name}: lost the server while it did the put: {why}"))


class RPCRequest(Request):
    """RPC."""

    __slots__ = ("argument", "request", "sent")

    def __init__(self, channel: Channel, waiter: Waiter, request: Value, argument: Value | None) -> None:
        super().__init__(channel, waiter)
        self.request = request
        self.argument = argument
        self.sent = False

    def start(self) -> None:
        if not self._refused(changes=True):
            self._begin(c.CMD_RPC, self.request)

    def ready(self, status: Status) -> None:
        if not self._raise(status):
            assert self.operation is not None
            try:
                self.operation.call(self.argument)
            except ApplianceError as error:
                self.fail(error)
                return
            self.sent = True

    def reply(self, status: Status, value: Value | None) -> None:
        if not self._raise(status):
            assert self.operation is not None
            self.operation.close()
            self.operation = None
            self._finish(value)

    def disconnected(self, why: str) -> None:
        super().disconnected(why)
        if self.sent:
            self.fail(ChannelClosedError(f"{self.channel.name}: lost the server during the call: {why}"))


class Info(NamedTuple):
    """The answer to ``Context.info``."""

    type: TypeDesc
    server: str
    """The server's address and port."""
    peer: Credentials
    """The server's identity."""


class FieldRequest(Request):
    """GET_FIELD."""

    __slots__ = ("field",)

    def __init__(self, channel: Channel, waiter: Waiter, field: str) -> None:
        super().__init__(channel, waiter)
        self.field = field

    def start(self) -> None:
        channel = self.channel
        assert channel.wire is not None
        assert channel.link is not None
        operation = channel.wire.get_field(self.field)
        operation.context = self
        self.operation = operation
        channel.link.schedule_flush()

    def field_reply(self, status: Status, kind: TypeDesc | None) -> None:
        """GET_FIELD was answered."""
        self.operation = None
        if self._raise(status):
            return
        link = self.channel.link
        assert link is not None
        self._finish(Info(kind if kind is not None else StructType(()), link.peer, link.credentials))

"""One-time requests: GET, PUT, RPC, GET_FIELD. Each survives the loss of its connection if that is safe."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from appliance.client.channel import Channel, ChannelRequest, Waiter
from appliance.errors import ApplianceError, ChannelClosedError, OperationError, OperationTimeoutError
from appliance.pva import commands as c
from appliance.pva.credentials import Credentials
from appliance.pva.status import Status
from appliance.pvdata.types import StructType, TypeDesc
from appliance.pvdata.value import Value

__all__ = ["Batch", "FieldRequest", "GetRequest", "Info", "PutRequest", "RPCRequest", "outcome"]

IDLE_OPERATIONS: Final = 4
"""The most initialised GET operations that are kept for each pvRequest of a channel."""


class Batch:
    """Collects the outcomes of many requests in one future."""

    __slots__ = ("future", "left", "results")

    def __init__(self, loop: asyncio.AbstractEventLoop, count: int) -> None:
        self.future: asyncio.Future[list[Any]] = loop.create_future()
        self.results: list[Any] = [None] * count
        self.left = count

    def place(self, index: int) -> Waiter:
        """Return the waiter of the request with this number."""
        return _Place(self, index)


class _Place(Waiter):
    """One request's place in a batch."""

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


async def outcome(waiter: Waiter | Batch, requests: Iterable[ChannelRequest], timeout: float | None) -> Any:
    """Wait for the outcome of ``requests``; cancel them if the caller is cancelled.

    Args:
        waiter: Receives the outcome.
        requests: The requests that report to ``waiter``.
        timeout: Seconds after which open requests fail with OperationTimeoutError; None waits for ever.
    """
    future = waiter.future
    timer = None
    if timeout is not None and not future.done():
        timer = future.get_loop().call_later(timeout, _time_out, requests, timeout)
    try:
        return await future
    except asyncio.CancelledError:
        for request in requests:
            request.cancel()
        raise
    finally:
        if timer is not None:
            timer.cancel()


def _time_out(requests: Iterable[ChannelRequest], timeout: float) -> None:
    for request in requests:
        channel = request.channel
        if request in channel.requests:
            request.fail(
                OperationTimeoutError(f"{channel.name}: timeout after {timeout:g} s: {channel.why_waiting()}")
            )


class GetRequest(ChannelRequest):
    """A GET. Its initialised operation is kept for the next GET with the same pvRequest."""

    __slots__ = ("key", "request", "reuses")

    def __init__(self, channel: Channel, waiter: Waiter, key: str, request: Value) -> None:
        super().__init__(channel, waiter)
        self.key = key
        self.request = request
        self.reuses = False
        """Whether the operation was initialised for an earlier GET."""

    def start(self) -> None:
        """Read with a kept operation, or initialise a new one."""
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
        """Read: the operation is initialised."""
        if not self._failed(status):
            assert self.operation is not None
            self.operation.get()

    def reply(self, status: Status, value: Value | None) -> None:
        """Hand the value over, and keep the operation for the next GET."""
        operation = self.operation
        if status.ok:
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
                channel.last_used = channel.end.now()
            self.waiter.result(value)
        elif self.reuses:
            # The PV may have another type now; a new operation learns it.
            self.reuses = False
            self._abandon()
            self._begin(c.CMD_GET, self.request)
        else:
            self._failed(status)


class PutRequest(ChannelRequest):
    """A PUT. ``build`` gets a value of the PV's type, with the present value if ``get``, and returns the value to write.

    ``get`` may be a function: it gets the PV's type, and says whether the present value is needed.
    """

    __slots__ = ("_getting", "build", "get", "request", "sent")

    def __init__(
        self,
        channel: Channel,
        waiter: Waiter,
        request: Value,
        build: Callable[[Value], Value],
        *,
        get: bool | Callable[[StructType], bool],
    ) -> None:
        super().__init__(channel, waiter)
        self.request = request
        self.build = build
        self.get = get
        self.sent = False
        self._getting = False

    def start(self) -> None:
        """Initialise the operation."""
        if not self._refused(changes=True):
            self._begin(c.CMD_PUT, self.request)

    def ready(self, status: Status) -> None:
        """Read the present value first if ``get`` asks for it; otherwise write."""
        if self._failed(status):
            return
        operation = self.operation
        assert operation is not None
        kind = operation.type
        assert kind is not None
        if self.get if isinstance(self.get, bool) else self.get(kind):
            self._getting = True
            operation.get()
        else:
            self._put(Value(kind))

    def _put(self, present: Value) -> None:
        present.changed = 0
        assert self.operation is not None
        try:
            self.operation.put(self.build(present))
        except Exception as error:  # noqa: BLE001 - a fault of the caller's function must not harm the connection
            self.fail(error)
            return
        except BaseException as error:
            # sys.exit(), an interrupt, a cancellation: the request must not begin anew on another connection.
            self.fail(
                OperationError(f"{self.channel.name}: the function that makes the value raised {error!r}")
            )
            if (
                isinstance(error, (KeyboardInterrupt, SystemExit))
                and threading.current_thread() is threading.main_thread()
            ):
                raise
            return
        self.sent = True

    def reply(self, status: Status, value: Value | None) -> None:
        """Write after the answer to the read; finish after the answer to the write."""
        if self._failed(status):
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

    def disconnected(self, why: str, *, moving: bool = False) -> None:
        """Fail if the value was sent: the server may have written it."""
        super().disconnected(why, moving=moving)
        self._getting = False
        if self.sent:
            # It is unknown whether the put was done; to repeat it might do it twice.
            self.fail(
                ChannelClosedError(
                    f"{self.channel.name}: lost the server during the put, which may be done or not: {why}"
                )
            )


class RPCRequest(ChannelRequest):
    """A call with arguments (RPC)."""

    __slots__ = ("argument", "request", "sent")

    def __init__(self, channel: Channel, waiter: Waiter, request: Value, argument: Value | None) -> None:
        super().__init__(channel, waiter)
        self.request = request
        self.argument = argument
        self.sent = False

    def start(self) -> None:
        """Initialise the operation."""
        if not self._refused(changes=True):
            self._begin(c.CMD_RPC, self.request)

    def ready(self, status: Status) -> None:
        """Send the call: the operation is initialised."""
        if not self._failed(status):
            assert self.operation is not None
            try:
                self.operation.call(self.argument)
            except ApplianceError as error:
                self.fail(error)
                return
            self.sent = True

    def reply(self, status: Status, value: Value | None) -> None:
        """Hand the result over."""
        if not self._failed(status):
            assert self.operation is not None
            self.operation.close()
            self.operation = None
            self._finish(value)

    def disconnected(self, why: str, *, moving: bool = False) -> None:
        """Fail if the call was sent: the server may have executed it."""
        super().disconnected(why, moving=moving)
        if self.sent:
            self.fail(
                ChannelClosedError(
                    f"{self.channel.name}: lost the server during the call, which may be done or not: {why}"
                )
            )


class Info(NamedTuple):
    """The answer to `appliance.Context.info`.

    Example:
        >>> info = await ctx.info("demo:mode")
        >>> info.type.id, info.peer.method
        ('epics:nt/NTEnum:1.0', 'anonymous')
    """

    type: TypeDesc
    """The type of the PV or of the field."""
    server: str
    """The server's address and port."""
    peer: Credentials
    """The server's identity."""


class FieldRequest(ChannelRequest):
    """A request for the type of a PV or of a field (GET_FIELD)."""

    __slots__ = ("field",)

    def __init__(self, channel: Channel, waiter: Waiter, field: str) -> None:
        super().__init__(channel, waiter)
        self.field = field

    def start(self) -> None:
        """Ask for the type of the field."""
        channel = self.channel
        assert channel.wire is not None
        assert channel.link is not None
        operation = channel.wire.get_field(self.field)
        operation.context = self
        self.operation = operation
        channel.link.schedule_flush()

    def field_reply(self, status: Status, kind: TypeDesc | None) -> None:
        """Handle the answer: the type, or an error."""
        self.operation = None
        if self._failed(status):
            return
        link = self.channel.link
        assert link is not None
        self._finish(Info(kind if kind is not None else StructType(()), link.peer, link.credentials))

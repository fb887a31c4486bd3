"""Monitors: a bounded queue between the server, which sends, and the caller, who reads."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar, Final, Generic, NamedTuple, Self, TypeVar

from appliance.client.channel import Channel, ChannelRequest, Waiter
from appliance.errors import ApplianceError, ChannelClosedError, RemoteError
from appliance.pva import commands as c
from appliance.pva.status import Status
from appliance.pvdata.value import Value

__all__ = ["Connected", "Disconnected", "Monitor"]

_log: Final = logging.getLogger(__name__)

FLAPS: Final = 8
"""Room beyond the queue's size for news of lost and restored connections."""


class Connected(NamedTuple):
    """The channel is connected (again); values follow. A monitor with ``notify`` gives it.

    Example:
        >>> updates = ctx.monitor("demo:setpoint", notify=True)
        >>> await anext(updates)
        Connected(server='127.0.0.1:...')
        >>> updates.close()
    """

    server: str
    """The server's address and port."""


class Disconnected(NamedTuple):
    """The channel was lost; the monitor continues when it is back. A monitor with ``notify`` gives it.

    Example:
        >>> updates = ctx.monitor("demo:setpoint", notify=True)
        >>> connected, value = await anext(updates), await anext(updates)
        >>> server.remove_pv("demo:setpoint")
        >>> await anext(updates)
        Disconnected(why=...)
        >>> updates.close()
    """

    why: str
    """The reason."""


Item = Value | Connected | Disconnected
"""An item of a monitor; the last two only with ``notify``."""


_Item = TypeVar("_Item")


class Monitor(ChannelRequest, Generic[_Item]):
    """An asynchronous iterator over a PV's updates; `appliance.Context.monitor` makes it.

    Each value is complete; its ``changed`` bits say what this update brought. A caller that is slower than the
    server skips intermediate values, never the latest one; with ``pipeline`` the server waits for the caller
    instead. Lost connections are restored without the caller's help; with ``notify`` the monitor reports them as
    ``Disconnected`` and ``Connected``. If ``on_update`` is given, it is called with each update and the iterator is not
    used. Its last argument is the ApplianceError that ended the monitor, unless the caller has closed it.

    Example:
        >>> async with ctx.monitor("demo:setpoint", notify=True) as updates:
        ...     async for item in updates:
        ...         if isinstance(item, Value):
        ...             break
        ...         print(type(item).__name__)
        Connected
        >>> item["value"], item.is_marked("value")
        (4.0, True)
    """

    __slots__ = (
        "_ended",
        "_event",
        "_queue",
        "_stale",
        "_taken",
        "notify",
        "on_update",
        "overruns",
        "pipeline",
        "queue_size",
        "request",
        "squashed",
    )

    LASTS: ClassVar[bool] = True
    RAW: ClassVar[bool] = False
    """Whether updates come as octets, to ``octets``, unless their type holds an ``any``."""

    def __init__(
        self,
        channel: Channel,
        request: Value,
        *,
        queue_size: int,
        pipeline: bool,
        notify: bool,
        on_update: Callable[[Any], None] | None,
    ) -> None:
        super().__init__(channel, Waiter(channel.end.loop))
        self.request = request
        self.queue_size = max(2, queue_size)
        self.pipeline = pipeline
        self.notify = notify
        self.on_update = on_update
        self.squashed = 0
        """Updates that were merged here because the caller was too slow."""
        self.overruns = 0
        """Updates that report that the server has merged some."""
        self._queue: deque[Item] = deque()
        self._event: asyncio.Future[None] | None = None
        self._ended: Exception | None = None
        self._taken = 0
        self._stale = 0
        """Values in the queue from an earlier connection; they give the present connection no credit."""

    # -- ChannelRequest ------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin the subscription on the server: the channel is ready."""
        channel = self.channel
        assert channel.wire is not None
        assert channel.link is not None
        operation = channel.wire.operation(
            c.CMD_MONITOR, self.request, window=self.queue_size if self.pipeline else 0, raw=self.RAW
        )
        operation.context = self
        self.operation = operation
        self._taken = 0
        self._stale = sum(isinstance(item, Value) for item in self._queue)
        channel.link.schedule_flush()

    def ready(self, status: Status) -> None:
        """Start the updates after a good answer to INIT; end with its error after a bad one."""
        if not status.ok:
            try:
                status.raise_for(self.channel.name)
            except ApplianceError as error:
                self.operation = None
                self._end(error)
            return
        assert self.operation is not None
        if self.notify:
            assert self.channel.link is not None
            self._put(Connected(self.channel.link.peer))
        self.operation.start()

    def update(self, bits: int, store: list[Any], overrun: int, size: int = 0) -> None:
        """Queue an update, or pass it to ``on_update``."""
        if overrun:
            self.overruns += 1
        operation = self.operation
        assert operation is not None
        kind = operation.type
        assert kind is not None
        if self.on_update is not None:
            self._call(Value.from_store(kind, store, bits))
            if self.pipeline and self.operation is not None:
                self._count()
            return
        queue = self._queue
        if len(queue) >= self.queue_size and isinstance(last := queue[-1], Value) and last.type == kind:
            self.squashed += 1
            queue[-1] = Value.from_store(kind, store, last.changed | bits)
            if self.pipeline:
                self._count()
            return
        self._put(Value.from_store(kind, store, bits))

    def finished(self, status: Status) -> None:
        """End: the server has ended the subscription."""
        self.operation = None
        self._end(None if status.ok else RemoteError(f"{self.channel.name}: {status.message}"))

    def disconnected(self, why: str, *, moving: bool = False) -> None:
        """Wait for the next connection; with ``notify`` the caller is told."""
        super().disconnected(why, moving=moving)
        if self.notify:
            self._put(Disconnected(why))

    def fail(self, error: Exception) -> None:
        """End the subscription with ``error``."""
        self._abandon()
        self._end(error)

    def _end(self, error: Exception | None) -> None:
        self.channel.remove(self)
        if self._ended is None:
            self._ended = error or _END
            if self.on_update is not None:
                self._call(self._ended)
            self._wake()

    # -- the caller ----------------------------------------------------------------------------------

    def _put(self, item: Item) -> None:
        if self.on_update is not None:
            self._call(item)
            return
        queue = self._queue
        if len(queue) >= self.queue_size + FLAPS:
            # The connection comes and goes while nobody reads: the oldest item is the least useful.
            oldest = queue.popleft()
            if isinstance(oldest, Value) and self._stale:
                self._stale -= 1
        queue.append(item)
        self._wake()

    def _call(self, item: Item | Exception) -> None:
        """Call the caller's function with an update; its faults must not harm the connection."""
        assert self.on_update is not None
        try:
            self.on_update(item)
        except Exception:  # noqa: BLE001 - see above
            _log.exception("the function that takes updates of %s failed", self.channel.name)

    def _wake(self) -> None:
        event = self._event
        if event is not None and not event.done():
            event.set_result(None)

    def _count(self) -> None:
        """Grant the server as many updates as the caller has taken, half a queue at a time."""
        self._taken += 1
        if self._taken * 2 >= self.queue_size and self.operation is not None:
            self.operation.acknowledge(self._taken)
            self._taken = 0
            assert self.channel.link is not None
            self.channel.link.schedule_flush()

    @property
    def waiting(self) -> int:
        """Updates that can be taken now, without waiting."""
        return len(self._queue)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> _Item:
        """Return the next update.

        Raises:
            StopAsyncIteration: The subscription has ended.
            ApplianceError: The reason why it failed.
        """
        queue = self._queue
        while not queue:
            ended = self._ended
            if ended is not None:
                if ended is _END:
                    raise StopAsyncIteration
                raise ended
            self._event = asyncio.get_running_loop().create_future()
            try:
                await self._event
            finally:
                self._event = None
        item = queue.popleft()
        if self.pipeline and isinstance(item, Value):
            if self._stale:
                self._stale -= 1
            else:
                self._count()
        return item  # type: ignore[return-value]  # only with ``notify`` there is anything but values

    def close(self) -> None:
        """End the subscription; its iterator stops. ``async with`` does it.

        Example:
            >>> updates = ctx.monitor("demo:setpoint")
            >>> (await anext(updates))["value"]
            4.0
            >>> updates.close()
        """
        if self._ended is None:
            self._ended = _END
            self.cancel()
            self._wake()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


_END: Final = ChannelClosedError("the subscription has ended")

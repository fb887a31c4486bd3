"""PVs of other servers for links: subscriptions and puts of the IOC's own client."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, ClassVar, Final, NamedTuple

from appliance.client.channel import Channel, Waiter
from appliance.client.context import Context
from appliance.client.inputs import PAUSE_POLL_S
from appliance.client.monitor import Connected, Disconnected, Monitor
from appliance.client.requests import PutRequest
from appliance.errors import ApplianceError, ChannelClosedError, OperationError, internal_error
from appliance.ioc.links.batch import Batch
from appliance.ioc.links.channel import LinkChannel
from appliance.ioc.links.latest import Assembly, Latest
from appliance.pva.events import MonitorOctets
from appliance.pva.status import Status
from appliance.pvdata.value import Value

__all__ = ["Opened", "RemoteClient", "RemoteSource"]

_log: Final = logging.getLogger(__name__)
_RETRY_S: Final = 5.0
"""Seconds until a subscription or a client that has failed is tried again."""
_OTHER_CLIENT: Final = "another keychain is used from now on"
_PAUSED: Final = "the connection waits for the status of a certificate"


class _PutWaiter(Waiter):
    """Receives the end of a put."""

    __slots__ = ("done",)

    def __init__(self, done: Callable[[Exception | None], None]) -> None:
        self.done = done

    def result(self, _value: Any) -> None:
        """Take the good end."""
        self.done(None)

    def error(self, error: Exception) -> None:
        """Take the bad end."""
        self.done(error)


class _Subscription(Monitor[Any]):
    """A subscription whose updates stay octets until somebody needs more of them than a number."""

    __slots__ = ("_assembly", "_kept", "_source")

    RAW: ClassVar[bool] = True

    def __init__(self, source: RemoteSource, channel: Channel, request: Value, queue_size: int) -> None:
        super().__init__(
            channel, request, queue_size=queue_size, pipeline=False, notify=True, on_update=source.take
        )
        self._source = source
        self._assembly: Assembly | None = None
        self._kept: Latest | None = None
        """The latest value of a pause of the connection."""

    def start(self) -> None:
        """Begin the subscription on the server; its first update is whole."""
        self._assembly = self._kept = None
        super().start()

    def ready(self, status: Status) -> None:
        """Start the updates."""
        operation = self.operation
        if status.ok and operation is not None and operation.type is not None:
            self._assembly = Assembly(operation.type)
            operation.gathered = operation.raw
        super().ready(status)

    def octets(self, event: MonitorOctets) -> None:
        """Pass updates on."""
        self.overruns += bool(event.overrun)
        for body in event.bodies:
            self._take(body, event.big)

    def gathered(self, body: bytes) -> None:
        """Pass an update on."""
        self._take(body, False)

    def _take(self, body: bytes, big: bool) -> None:
        """Pass an update on; a defect ends this subscription for a while, and not the connection with those of others."""
        assembly = self._assembly
        if assembly is None:
            return
        try:
            self._pass(assembly.add(body, big))
        except Exception:  # noqa: BLE001 - see above
            self._assembly = self._kept = None
            self._source.broken()

    def _pass(self, value: Latest) -> None:
        """Pass a value on. What comes during a pause of the connection waits, and only the latest of it counts."""
        link = self.channel.link
        if link is not None and link.held is not None:
            self._kept = value
            return
        source = self._source
        source.last = value
        if not source.is_held:
            source.channel.take(value)

    def resumed(self) -> None:
        """Pass on the latest value of the pause, which is over."""
        kept, self._kept = self._kept, None
        if kept is not None:
            self._pass(kept)


class RemoteSource:
    """One PV of another server.

    Args:
        channel: Its links.
        context: The client.
    """

    def __init__(self, channel: LinkChannel, context: Context) -> None:
        self.channel = channel
        self._context = context
        self._monitor: Monitor[Any] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._again: asyncio.TimerHandle | None = None
        self._putting: dict[PutRequest, asyncio.TimerHandle | None] = {}
        """What runs, and when it is given up: never if a record waits for it."""
        self.last: Latest | None = None
        """The latest value of the present connection."""
        self.is_held = False
        """Whether the connection pauses, so that values are not used."""
        self._has_room = asyncio.Event()

    def start(self) -> None:
        """Subscribe."""
        self._again = None
        key = self.channel.key
        pipeline = "true" if key.pipeline else "false"
        # As pvxs: the members of a group belong together for the records that read them.
        options = f"record[queueSize={key.queue_size},pipeline={pipeline},atomic=true]"
        if key.pipeline:
            # The server sends more when an update was taken, so updates are taken only while there is room.
            self._monitor = self._context.monitor(key.name, options, notify=True)
            self._reading = asyncio.get_running_loop().create_task(self._read(self._monitor))
        else:
            channel = self._context.channel(key.name)
            request = self._context._prepared(options).value
            self._monitor = _Subscription(self, channel, request, key.queue_size)
            channel.add(self._monitor)

    async def _read(self, monitor: Monitor[Any]) -> None:
        try:
            async for item in monitor:
                self.take(item)
                while self.channel.is_full:
                    self._has_room.clear()
                    if self.channel.is_full:
                        await self._has_room.wait()
            self.take(ChannelClosedError("the server ended the subscription"))
        except ApplianceError as error:
            self.take(error)
        except Exception:  # noqa: BLE001 - nobody else would notice, and links would keep the old value
            self.broken()

    def room(self) -> None:
        """Go on: an update was taken out of the queue."""
        self._has_room.set()

    def take_value(self, value: Latest) -> None:
        """Take a value."""
        self.last = value
        if not self.is_held:
            self.channel.take(value)

    def take(self, item: Any) -> None:
        """Take an item of the subscription."""
        if isinstance(item, Value):
            self.take_value(Latest(item.type, item.store))  # type: ignore[arg-type]  # a PV is a structure
        elif isinstance(item, Disconnected):
            self.last = None
            self.channel.lost(item.why)
        elif isinstance(item, Exception):
            self.last = None
            self.channel.lost(str(item))
            if self._monitor is not None:
                _log.warning("PVA links to %s: %s", self.channel.key.name, item)
                self._again = asyncio.get_running_loop().call_later(_RETRY_S, self.start)
        elif isinstance(item, Connected):
            self.is_held = False

    def broken(self) -> None:
        """End the subscription for a while: a defect, which is being handled, has stopped the use of its updates."""
        _log.exception("PVA links to %s: an update could not be used", self.channel.key.name)
        if self._monitor is not None:
            self._monitor.close()
        self.take(OperationError(internal_error("the log")))

    def look(self) -> None:
        """Follow a pause of the connection: no updates come then, so the last value may be wrong."""
        monitor = self._monitor
        if monitor is None:
            return
        held = monitor.channel.is_paused
        if held is not self.is_held:
            self.is_held = held
            if held:
                self.channel.lost(_PAUSED)
            elif self.last is not None:
                self.take_value(self.last)

    @property
    def why(self) -> str:
        """Why there is no connection; empty if there is one."""
        monitor = self._monitor
        if monitor is None or self.last is not None:
            return ""
        return monitor.channel.why_waiting()

    # -- puts --------------------------------------------------------------------------------------------------------

    def put(self, batch: Batch) -> None:
        """Begin a put."""
        faults: dict[Any, str] = {}

        def build(value: Value) -> Value:
            faults.update(batch.write(value))
            return value

        def done(error: Exception | None) -> None:
            if request not in self._putting:
                return
            if (limit := self._putting.pop(request)) is not None:
                limit.cancel()
            lost = isinstance(error, ChannelClosedError)
            self.channel.put_done(batch, "" if error is None else str(error), lost=lost, faults=faults)

        def give_up() -> None:
            if request in self._putting:
                del self._putting[request]
                request.cancel()
                why = f"{self.channel.key.name}: no answer to a put for {limit_s:.0f} s"
                self.channel.put_done(batch, why, unanswered=True)

        channel = self._context.channel(self.channel.key.name)
        prepared = self._context._prepared(batch.request).value
        request = PutRequest(channel, _PutWaiter(done), prepared, build, get=batch.needs_present)
        # A server that says nothing at all for so long loses its connection.
        limit_s = self._context.config.idle_timeout_s
        waits_for_ever = bool(batch.waiting)
        self._putting[request] = (
            None if waits_for_ever else asyncio.get_running_loop().call_later(limit_s, give_up)
        )
        channel.add(request)

    def abandon(self) -> None:
        """Stop the puts that run."""
        putting, self._putting = self._putting, {}
        for request, limit in putting.items():
            if limit is not None:
                limit.cancel()
            request.cancel()

    def close(self) -> None:
        """End the subscription."""
        self.abandon()
        monitor, self._monitor = self._monitor, None
        if self._again is not None:
            self._again.cancel()
        if self._reading is not None:
            self._reading.cancel()
        if monitor is not None:
            monitor.close()
            self._context.give_back(self.channel.key.name)


class Opened(NamedTuple):
    """A client that is open, and what closes it."""

    context: Context
    stack: AsyncExitStack


async def _open(opener: Callable[[], AbstractAsyncContextManager[Context]]) -> Opened:
    stack = AsyncExitStack()
    return Opened(await stack.enter_async_context(opener()), stack)


class RemoteClient:
    """The client of all links, opened when the first link needs it.

    Args:
        opener: Opens the client.
    """

    def __init__(self, opener: Callable[[], AbstractAsyncContextManager[Context]]) -> None:
        self._opener = opener
        self._opened: Opened | None = None
        self._task: asyncio.Task[None] | None = None
        self._waiting: dict[LinkChannel, None] = {}
        self._sources: dict[LinkChannel, RemoteSource] = {}

    def connect(self, channel: LinkChannel) -> None:
        """Connect a channel, at once or when the client is open."""
        if self._opened is None:
            channel.lost("the client is not open yet")
            self._waiting[channel] = None
            if self._task is None:
                self._task = asyncio.get_running_loop().create_task(self._run(), name="PVA links")
            return
        source = self._sources[channel] = RemoteSource(channel, self._opened.context)
        channel.source = source
        source.start()

    def forget(self, channel: LinkChannel) -> None:
        """Drop a channel, which closes its source itself."""
        self._waiting.pop(channel, None)
        self._sources.pop(channel, None)

    def why(self, channel: LinkChannel) -> str:
        """Return why a channel is not connected."""
        source = self._sources.get(channel)
        return (source.why if source is not None else "") or channel.why

    async def _run(self) -> None:
        """Open the client; then follow the pauses of its connections."""
        while self._opened is None:
            opener = self._opener
            try:
                opened = await _open(opener)
            except Exception as error:  # noqa: BLE001 - nobody else would notice, and no link would ever be connected
                if isinstance(error, ApplianceError):
                    why = str(error)
                    _log.error("PVA links: %s", why)
                else:
                    why = internal_error("the log")
                    _log.exception("PVA links: internal error")
                for channel in self._waiting:
                    channel.lost(why)
                await asyncio.sleep(_RETRY_S)
                continue
            if opener is self._opener:
                self._opened = opened
            else:
                # The settings have changed meanwhile.
                await opened.stack.aclose()
        waiting, self._waiting = self._waiting, {}
        for channel in waiting:
            self.connect(channel)
        while True:
            for source in list(self._sources.values()):
                try:
                    source.look()
                except Exception:  # noqa: BLE001 - the other links need this task
                    source.broken()
            await asyncio.sleep(PAUSE_POLL_S)

    async def open_another(self, opener: Callable[[], AbstractAsyncContextManager[Context]]) -> Opened | None:
        """Open a client with other settings, for :meth:`use`; None while no link needs one.

        Raises:
            ApplianceError: It cannot be opened; all stays as it is.
        """
        return None if self._opened is None else await _open(opener)

    async def use(
        self, opener: Callable[[], AbstractAsyncContextManager[Context]], opened: Opened | None
    ) -> None:
        """Use a client with other settings from now on; each link connects again, once."""
        self._opener = opener
        former = self._opened
        if former is None:
            # It is opened with these settings when it is needed.
            if opened is not None:
                await opened.stack.aclose()
            return
        if opened is None:
            # It was opened with the former settings after open_another had been called.
            opened = await _open(opener)
        self._opened = opened
        for channel, source in list(self._sources.items()):
            channel.lost(_OTHER_CLIENT)
            source.close()
            self.connect(channel)
        await former.stack.aclose()

    async def close(self) -> None:
        """Close the client."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if self._opened is not None:
            await self._opened.stack.aclose()

"""One PV as the client sees it: searched for, connected, lost and found again."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from enum import Enum
from typing import Any, ClassVar, Protocol

from appliance.client.end import ClientEnd, ServerAddress
from appliance.errors import AccessDeniedError, ApplianceError, ChannelClosedError, OperationError
from appliance.pva import commands as c
from appliance.pva.client_channel import ClientChannel
from appliance.pva.client_operation import ClientOperation
from appliance.pva.credentials import Credentials
from appliance.pva.events import MonitorOctets, ReplyOctets
from appliance.pva.status import Status
from appliance.pvdata.value import Value
from appliance.transport.gate import Verdict

__all__ = ["Channel", "ChannelLink", "ChannelRequest", "ChannelState", "Finder", "Waiter"]


class Finder(Protocol):
    """The part of the search that a channel needs. Each name has a search instance ID."""

    def want(self, instance: int, *, later: bool = False, resume: bool = False) -> None:
        """Find a server for a name: now, or ``later`` when the back-off allows it. ``resume`` restarts the back-off."""

    def settle(self, instance: int) -> None:
        """Restart the back-off at the next search: the channel is active."""

    def remove(self, instance: int) -> None:
        """Forget a name."""


class ChannelLink(Protocol):
    """The part of a connection that its channels and their requests need."""

    @property
    def address(self) -> ServerAddress:
        """The address of the server."""

    @property
    def peer(self) -> str:
        """The server's address and port as text."""

    @property
    def guid(self) -> bytes:
        """The server's GUID; empty if it is not known."""

    @property
    def credentials(self) -> Credentials:
        """The identity of the server."""

    @property
    def held(self) -> Verdict | None:
        """The reason why the connection pauses; None if it does not pause."""

    def remove(self, channel: Channel) -> None:
        """Forget ``channel``: it is gone, or it is on another connection."""

    def schedule_flush(self) -> None:
        """Send all waiting messages at the end of this turn of the event loop."""

    def flush_at_end(self) -> None:
        """Send all waiting messages at the end of the read, on another connection, that caused them."""

    def refusal(self, *, changes: bool) -> str:
        """Return why a request is forbidden at present; "" if it is allowed."""

    def why_not_ready(self) -> str:
        """Return how far the connection has come, and what may be wrong."""


class Waiter:
    """Receives the result or the error of one request."""

    __slots__ = ("future",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.future: asyncio.Future[Any] = loop.create_future()

    def result(self, value: Any) -> None:
        """Deliver the result."""
        if not self.future.done():
            self.future.set_result(value)

    def error(self, error: Exception) -> None:
        """Deliver the error."""
        if self.future.done():
            return
        if isinstance(error, StopIteration):
            # No future takes it. As Python does for a coroutine that raises it (PEP 479):
            wrapped = RuntimeError("a function of the caller raised StopIteration")
            wrapped.__cause__ = error
            error = wrapped
        self.future.set_exception(error)


class ChannelRequest:
    """A request to a channel. A subclass defines how it starts and how it handles the answers."""

    __slots__ = ("channel", "operation", "waiter")

    LASTS: ClassVar[bool] = False
    """Whether the request has no end, so that it loses nothing when its connection is replaced."""

    def __init__(self, channel: Channel, waiter: Waiter) -> None:
        self.channel = channel
        self.waiter = waiter
        self.operation: ClientOperation | None = None

    @property
    def is_busy(self) -> bool:
        """Whether the loss of the connection would lose something, so that a move to TLS has to wait."""
        return not self.LASTS

    def start(self) -> None:
        """Send the first message: the channel is active."""
        raise NotImplementedError

    def ready(self, status: Status) -> None:
        """Continue after the answer to INIT."""

    def reply(self, status: Status, value: Value | None) -> None:
        """Handle the answer to the request."""

    def octets(self, event: MonitorOctets) -> None:
        """Handle updates of a raw subscription, also while the connection pauses: see `Channel.is_paused`."""
        raise NotImplementedError

    def gathered(self, body: bytes) -> None:
        """Handle an update of a raw subscription whose operation is ``gathered``, as ``octets`` does."""
        raise NotImplementedError

    def reply_octets(self, event: ReplyOctets) -> None:
        """Handle the answer to a raw request."""
        raise NotImplementedError

    def warned(self, text: str) -> None:
        """Handle a warning of the server about this request; it is in the log already."""

    def access_changed(self) -> None:
        """Handle that `Channel.permissions` have changed; only requests that last are told."""

    def resumed(self) -> None:
        """Continue after a pause of the connection; only requests that last are told."""

    def disconnected(self, why: str, *, moving: bool = False) -> None:
        """Drop the operation: the channel was lost. ``start`` is called again when the channel is back.

        Args:
            why: What happened.
            moving: Whether we ended a plain connection ourselves, because the server speaks TLS now: the channel will be
                back at once.
        """
        if self.operation is not None:
            self.operation.context = None
            self.operation = None

    def fail(self, error: Exception) -> None:
        """End the request with an error."""
        self.channel.remove(self)
        self._abandon()
        self.waiter.error(error)

    def cancel(self) -> None:
        """End the request: nobody waits for it any more."""
        self.channel.remove(self)
        self._abandon()

    # -- for subclasses ------------------------------------------------------------------------------

    def _begin(self, command: int, request: Value, *, window: int = 0, raw: bool = False) -> ClientOperation:
        channel = self.channel
        assert channel.wire is not None
        assert channel.link is not None
        operation = channel.wire.operation(command, request, window=window, raw=raw)
        operation.context = self
        self.operation = operation
        channel.link.schedule_flush()
        return operation

    def _refused(self, *, changes: bool) -> bool:
        """Fail if the connection pauses and forbids the request; return whether it failed."""
        link = self.channel.link
        assert link is not None
        if link.held is None:
            return False
        why = link.refusal(changes=changes)
        if why:
            self.fail(OperationError(f"{self.channel.name}: {why}"))
        return bool(why)

    def _failed(self, status: Status) -> bool:
        """Fail if the server reports an error; return whether it does."""
        if status.ok:
            return False
        try:
            status.raise_for(self.channel.name)
        except AccessDeniedError as error:
            why = self.channel.why_plain()
            self.fail(AccessDeniedError(f"{error}; {why}") if why else error)
        except ApplianceError as error:
            self.fail(error)
        return True

    def _finish(self, value: Any) -> None:
        self.channel.remove(self)
        self.waiter.result(value)

    def _abandon(self) -> None:
        operation = self.operation
        self.operation = None
        if operation is not None:
            operation.context = None
            operation.close()
            link = self.channel.link
            if link is not None:
                link.schedule_flush()


class ChannelState(Enum):
    """The state of a channel."""

    SEARCHING = "searching"
    CONNECTING = "connecting"
    """A server has answered; its connection is not validated yet."""
    CREATING = "creating"
    ACTIVE = "active"
    CLOSED = "closed"


class Channel:
    """One PV; all users of the same name share it.

    Args:
        end: What the parts of this client share.
        finder: Finds a server for the name.
        name: The PV's name.
        instance: The search instance ID of the name.
        server: The server that has the PV; no search is made.
    """

    __slots__ = (
        "__weakref__",
        "end",
        "finder",
        "flapping",
        "idle",
        "instance",
        "last_used",
        "link",
        "name",
        "requests",
        "server",
        "state",
        "trouble",
        "wire",
    )

    def __init__(
        self, end: ClientEnd, finder: Finder, name: str, instance: int, server: ServerAddress | None = None
    ) -> None:
        self.end = end
        self.finder = finder
        self.name = name
        self.instance = instance
        self.server = server
        self.state = ChannelState.SEARCHING
        self.link: ChannelLink | None = None
        """The connection that the channel is on, or is about to be on."""
        self.wire: ClientChannel | None = None
        """The channel in the protocol; there while the state is ACTIVE."""
        self.requests: dict[ChannelRequest, None] = {}
        """All requests that use the channel: one-time requests until they are answered, monitors until they are closed."""
        self.idle: defaultdict[str, list[ClientOperation]] = defaultdict(list)
        """Initialised GET operations that are not in use, by the text of their pvRequest."""
        self.last_used = 0.0
        self.flapping = False
        """Whether the server was lost by a fault of its own, which may come again with each connection."""
        self.trouble = ""
        """The latest reason why there is no connection; a request that times out reports it."""

    @property
    def peer(self) -> Credentials | None:
        """The identity of the server; None if there is no connection."""
        return self.link.credentials if self.link is not None else None

    @property
    def permissions(self) -> int:
        """What the server permits: a union of ``PERMIT_*``."""
        return self.wire.permissions if self.wire is not None else c.PERMIT_ALL

    @property
    def is_paused(self) -> bool:
        """Whether the connection waits until the status of a certificate is good again."""
        return self.link is not None and self.link.held is not None

    # -- who wants it --------------------------------------------------------------------------------

    def add(self, request: ChannelRequest) -> None:
        """Start ``request`` as soon as the channel is active."""
        self.requests[request] = None
        if self.state is ChannelState.ACTIVE:
            request.start()
        elif self.state is ChannelState.SEARCHING and len(self.requests) == 1:
            self.finder.want(self.instance, resume=True)

    def remove(self, request: ChannelRequest) -> None:
        """Forget ``request``: it does not need the channel any more."""
        self.requests.pop(request, None)
        if not self.requests:
            self.last_used = self.end.now()

    # -- what becomes of it --------------------------------------------------------------------------

    def join(self, link: ChannelLink) -> None:
        """Use ``link``: it leads to a server that has the PV."""
        self.link = link
        self.state = ChannelState.CONNECTING

    def await_creation(self) -> None:
        """Wait for the server's answer: CREATE_CHANNEL was sent."""
        self.state = ChannelState.CREATING

    def created(self, wire: ClientChannel, status: Status) -> None:
        """Handle the server's answer to CREATE_CHANNEL."""
        if not status.ok:
            assert self.link is not None
            self.trouble = f"{self.link.peer} refused the channel: {status.message}"
            self.link.remove(self)
            self.search_again(later=True)
            return
        self.wire = wire
        self.state = ChannelState.ACTIVE
        if not self.flapping:
            self.finder.settle(self.instance)
        self.trouble = ""
        for request in list(self.requests):
            request.start()

    def lost(self, why: str, *, failed: bool = False, moving: bool = False) -> None:
        """Search again: the channel or its connection is gone, or we end the connection and are ``moving`` to another.

        If the connection ``failed``, before it was ready or because the server sent what cannot be decoded, the pauses between
        searches grow (SPVA 15.1). Otherwise each answer would lead to the same failure at once.
        """
        if self.state is ChannelState.CLOSED:
            return
        was_active = self.state is ChannelState.ACTIVE
        self.link = None
        self.wire = None
        self.trouble = why
        self.idle.clear()
        self.state = ChannelState.SEARCHING
        for request in list(self.requests):
            request.disconnected(why, moving=moving)
        if was_active:
            self.flapping = failed
        # A server may answer searches but refuse connections. It must not be asked in a tight loop.
        self.search_again(later=failed or not was_active)

    def search_again(self, *, later: bool) -> None:
        """Return to the search if a request still needs the channel."""
        self.state = ChannelState.SEARCHING
        self.link = None
        if self.requests:
            self.finder.want(self.instance, later=later)

    def close(self, *, tell: bool = True) -> None:
        """Close the channel here and at the server; open requests fail.

        Without ``tell``, the server learns it from the end of the connection. An answer would come to a socket that
        is closed already, and that would reset the connection instead of ending it.
        """
        if self.state is ChannelState.CLOSED:
            return
        self.state = ChannelState.CLOSED
        self.finder.remove(self.instance)
        wire, link = self.wire, self.link
        self.wire = self.link = None
        if wire is not None and tell:
            wire.close()
        if link is not None:
            link.remove(self)
            link.schedule_flush()
        for request in list(self.requests):
            request.fail(ChannelClosedError(f"{self.name}: the channel was closed"))
        self.requests.clear()
        self.idle.clear()

    # -- why -----------------------------------------------------------------------------------------

    def why_waiting(self) -> str:
        """Return why a request of this channel has no answer yet."""
        link = self.link
        if self.state is ChannelState.ACTIVE:
            return f"{link.peer if link is not None else 'the server'} did not answer"
        if self.state is ChannelState.CREATING and link is not None:
            return (
                f"{link.peer} answered the search and took the connection, but never answered the request to "
                "create the channel; check that the server has this PV, and read its log"
            )
        if self.trouble:
            return self.trouble
        if link is not None:
            return link.why_not_ready()
        if not self.end.require_tls:
            return "no server answered the search"
        if self.end.tls is None:
            return "TLS is required here, but this client has no usable certificate at present; it connects to nothing"
        return (
            "no server answered the search over TLS, and TLS is required here; a server that has the PV without TLS "
            "is not used ('appliance doctor' finds it)"
        )

    def why_plain(self) -> str:
        """Return why this channel uses plain TCP, if the gate knows it; otherwise ""."""
        link, gate = self.link, self.end.gate
        return "" if link is None or link.address.tls or gate is None else gate.plight(link.guid)

    def __repr__(self) -> str:
        return f"<Channel {self.name!r} {self.state.value}>"

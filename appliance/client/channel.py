"""One PV as the client sees it: searched for, connected, lost and found again."""

from __future__ import annotations

from collections import defaultdict
from enum import Enum
from typing import TYPE_CHECKING, Any

from appliance.errors import ChannelClosedError
from appliance.pva.client_channel import ClientChannel
from appliance.pva.client_operation import ClientOperation
from appliance.pva.credentials import Credentials
from appliance.pva.status import Status

if TYPE_CHECKING:
    from appliance.client.link import ServerLink
    from appliance.client.requests import Request

__all__ = ["Channel", "ChannelState", "refused_without_tls"]


def refused_without_tls(address: str) -> str:
    """Tell why a server that offers plain TCP only is not used."""
    return (
        f"{address} does not speak TLS, which is required here; give that server a keychain, or take tls_required out of "
        "this client's TLS options"
    )


class ChannelState(Enum):
    """How far the channel is."""

    SEARCHING = "searching"
    CONNECTING = "connecting"
    """A server has answered; its connection is not validated yet."""
    CREATING = "creating"
    ACTIVE = "active"
    CLOSED = "closed"


class Channel:
    """See the module's text. Channels belong to the Context and are shared by all that use the same name."""

    __slots__ = (
        "__weakref__",
        "attempts",
        "context",
        "due",
        "guid",
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

    def __init__(self, context: Any, name: str, server: tuple[str, int, bool] | None, instance: int) -> None:
        self.context = context
        self.name = name
        self.server = server
        """Where the channel must be, without a search: host, port, whether by TLS."""
        self.instance = instance
        """Search instance ID."""
        self.state = ChannelState.SEARCHING
        self.link: ServerLink | None = None
        self.wire: ClientChannel | None = None
        self.requests: dict[Request, None] = {}
        """Everything that wants the channel: one-time requests until they are answered, subscriptions for good."""
        self.idle: defaultdict[Any, list[ClientOperation]] = defaultdict(list)
        self.attempts = 0
        self.due = 0.0
        self.guid = b""
        """Of the server that last answered the search (SPVA 12.5)."""
        self.last_used = 0.0
        self.trouble = ""
        """The latest reason why there is no connection; told when a request times out."""

    @property
    def peer(self) -> Credentials | None:
        """The server's identity; None while not connected."""
        return self.link.credentials if self.link is not None else None

    def add(self, request: Request) -> None:
        """Serve ``request`` as soon as the channel is there."""
        self.requests[request] = None
        if self.state is ChannelState.ACTIVE:
            request.start()
        elif self.state is ChannelState.SEARCHING and len(self.requests) == 1:
            self.context.searcher.want(self, resume=True)

    def remove(self, request: Request) -> None:
        """``request`` needs the channel no more."""
        self.requests.pop(request, None)
        if not self.requests:
            self.last_used = self.context.loop.time()

    def created(self, wire: ClientChannel, status: Status) -> None:
        """The server has answered CREATE_CHANNEL."""
        if not status.ok:
            assert self.link is not None
            self.trouble = f"{self.link.peer} refused the channel: {status.message}"
            self.link.forget(self)
            self.search_again(later=True)
            return
        self.wire = wire
        self.state = ChannelState.ACTIVE
        self.attempts = 0
        self.trouble = ""
        for request in list(self.requests):
            request.start()

    def lost(self, why: str, *, failed: bool = False) -> None:
        """The channel or its connection is gone: search for it again.

        After a connection that ``failed`` before it was ready, with growing pauses (SPVA 15.1): the answer to the
        next search would lead to the same failure as fast as machines can shake hands.
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
            request.disconnected(why)
        # A server that answers searches and takes no connection must not be asked in a tight loop.
        self.search_again(later=failed or not was_active)

    def search_again(self, *, later: bool) -> None:
        """Go back to the search, if there is anything to search for."""
        self.state = ChannelState.SEARCHING
        self.link = None
        if self.requests:
            self.context.searcher.want(self, later=later)

    def close(self, *, tell: bool = True) -> None:
        """End the channel here and at the server; requests that are left fail.

        Without ``tell`` the server learns it from the end of the connection: its answer would come to a socket that
        is closed, which resets the connection instead of ending it.
        """
        if self.state is ChannelState.CLOSED:
            return
        self.state = ChannelState.CLOSED
        self.context.searcher.drop(self)
        wire, link = self.wire, self.link
        self.wire = self.link = None
        if wire is not None and tell:
            wire.close()
        if link is not None:
            link.forget(self)
            link.schedule_flush()
        for request in list(self.requests):
            request.fail(ChannelClosedError(f"{self.name}: the channel was closed"))
        self.requests.clear()
        self.idle.clear()

    def __repr__(self) -> str:
        return f"<Channel {self.name!r} {self.state.value}>"

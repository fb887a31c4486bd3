"""One client at the server: its identity, its channels and the updates that wait for it."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, assert_never

from appliance.certs.status import StatusClass
from appliance.errors import CertificateError
from appliance.pva.credentials import Credentials
from appliance.pva.events import (
    AuthenticationReceived,
    ChannelClosed,
    ChannelRequested,
    Execute,
    FieldRequested,
    MonitorWindow,
    OperationCancelled,
    OperationClosed,
    OperationRequested,
    RemoteMessage,
    SearchReceived,
    ServerEvent,
)
from appliance.pva.search import SearchResponse
from appliance.pva.server import ServerConnection
from appliance.pva.server_channel import ServerChannel
from appliance.pva.server_operation import ServerOperation
from appliance.pva.status import OK, Status
from appliance.pvdata.value import Value
from appliance.server.channel import Channel
from appliance.server.operation import Subscription
from appliance.server.quota import Share
from appliance.server.source import Handler
from appliance.transport.gate import Verdict
from appliance.transport.stream import StreamLink

if TYPE_CHECKING:
    from appliance.server.server import Server

__all__ = ["Peer"]

_log: Final = logging.getLogger(__name__)
_MAX_ACCOUNT: Final = 256
MAX_MESSAGES: Final = 20
"""Messages for the log that one connection may send."""
ROLES_PATIENCE_S: Final = 2.0
"""Seconds for which a client waits for its groups; far less than what it takes a client to give up."""


class Peer:
    """See the module's text."""

    __slots__ = (
        "_dirty",
        "_messages",
        "_pumping",
        "connection",
        "credentials",
        "held",
        "is_anonymous",
        "link",
        "server",
        "share",
        "validated",
    )

    def __init__(self, server: Server, connection: ServerConnection, link: StreamLink) -> None:
        self.server = server
        self.connection = connection
        self.link = link
        self.credentials = Credentials()
        self.validated = False
        self.share: Share | None = None
        """What the client's address has of the server, this connection included."""
        self.is_anonymous = False
        """Whether it counts among its address's anonymous connections."""
        self.held: Verdict | None = None
        """Why the client's requests wait, where they do: the status of a certificate is not good at present."""
        self._dirty: list[Subscription] = []
        self._pumping = False
        self._messages = 0
        connection.context = self
        link.context = self

    # -- identity ------------------------------------------------------------------------------------

    def identify(self) -> bool:
        """Take the identity that TLS proved, if there is one; False when the link must close."""
        link = self.link
        if link.engine is None:
            self.credentials = Credentials(peer=link.peer, interface=link.interface)
            return True
        from appliance.tls.credentials import peer_credentials

        try:
            self.credentials = peer_credentials(link.engine, peer=link.peer, interface=link.interface)
        except CertificateError as error:
            link.close(error)
            return False
        return True

    def authenticate(self, method: str, payload: Value | None) -> None:
        """Judge the client's choice of method (section 6.2)."""
        offered = self.connection.auth_methods
        if method not in offered:
            self.connection.validated(
                Status.error(
                    f"authentication method {method[:32]!r} is not offered; use {' or '.join(offered)}"
                )
            )
            return
        here = self.credentials
        if method == "ca":
            account = payload.get("user", "") if payload is not None else ""
            if (
                not isinstance(account, str)
                or not account
                or len(account) > _MAX_ACCOUNT
                or not account.isprintable()
            ):
                self.credentials = here._replace(method="anonymous", account="")
            elif here.method != "x509":
                # A name that was proved is not exchanged for one that is merely claimed.
                self.credentials = here._replace(method="ca", account=account)
        elif here.method == "x509":
            pass  # proved is proved, whatever the client calls it
        else:
            # Also who says x509 without a certificate: PVXS does when its keychain holds a trust anchor only.
            self.credentials = here._replace(method="anonymous", account="")
        if self.credentials.method == "anonymous":
            why = self._counts_as_anonymous()
            if why:
                self.connection.validated(Status.error(why))
            else:
                self.server.admit(self)
            return
        roles = self.server.roles.known(self.credentials.account)
        if roles is None:
            self._ask_for_roles()
            return
        self.credentials = self.credentials._replace(roles=roles)
        self.server.admit(self)

    def _counts_as_anonymous(self) -> str:
        """Take one of its address's places for anonymous clients; tell why not where there is none left."""
        share = self.share
        if share is None:
            return ""
        most = self.server.shares.quota.anonymous_connections
        if share.anonymous >= most:
            return f"your address has {most} anonymous connections already; close some, or say who you are"
        self.is_anonymous = True
        share.anonymous += 1
        return ""

    def has_enough_channels(self) -> str:
        """Tell why the client's address gets no more channels, or "" while it does."""
        share = self.share
        if share is None:
            return ""
        quota = self.server.shares.quota
        if self.is_anonymous and share.anonymous_channels >= quota.anonymous_channels:
            return f"your address has {quota.anonymous_channels} channels of anonymous clients already; close some, or say who you are"
        if share.channels >= quota.channels:
            return f"your address has {quota.channels} channels already; close some"
        return ""

    def count_channel(self, more: int) -> None:
        """Count a channel that was opened, or with -1 one that is gone."""
        share = self.share
        if share is not None:
            share.channels += more
            if self.is_anonymous:
                share.anonymous_channels += more

    def count_subscription(self, handler: Handler) -> str:
        """Count one more subscription of a PV; tell why not where the client's address has too many of it."""
        share = self.share
        if share is None:
            return ""
        quota = self.server.shares.quota
        most = quota.anonymous_subscriptions if self.is_anonymous else quota.subscriptions
        count = share.watching.get(handler, 0)
        if count >= most:
            return f"your address watches this PV {most} times already; share one subscription among those that show it"
        share.watching[handler] = count + 1
        return ""

    def forget_subscription(self, handler: Handler) -> None:
        """Count one less."""
        share = self.share
        if share is not None:
            count = share.watching.get(handler, 0) - 1
            if count > 0:
                share.watching[handler] = count
            else:
                share.watching.pop(handler, None)

    def _ask_for_roles(self) -> None:
        """Admit the client when its groups are known, or without any when that takes too long."""
        server = self.server
        account = self.credentials.account
        loop = asyncio.get_running_loop()
        patient = True

        def too_long() -> None:
            nonlocal patient
            patient = False
            if self.link in server.peers:
                _log.warning(
                    "the groups of %.64r are not known after %g s: %s goes without roles until they are",
                    account,
                    ROLES_PATIENCE_S,
                    self.link.peer,
                )
                server.admit(self)

        def tell(roles: frozenset[str]) -> None:
            timer.cancel()
            if self.link not in server.peers:
                return
            self.credentials = self.credentials._replace(roles=roles)
            if patient:
                server.admit(self)
            elif roles:
                server.review_access(lambda channel: channel.owner is self)

        timer = loop.call_later(ROLES_PATIENCE_S, too_long)
        server.roles.ask(account, tell, loop)

    def admitted(self, status: Status = OK) -> None:
        """The server's verdict: go on, or not."""
        if not self.validated and not self.link.is_closing:
            self.validated = status.ok
            held = self.connection.held
            self.connection.validated(status)
            if held:
                self.link.proceed()
            else:
                self.link.schedule_flush()

    def hold(self, verdict: Verdict) -> None:
        """Pause: updates wait in their queues, and what would change something is refused."""
        self.held = verdict
        if verdict.status is StatusClass.UNKNOWN:
            # A prepared answer is given without asking anybody.
            for channel in self.connection.channels.values():
                for operation in channel.operations.values():
                    operation.prepared = None

    def resume(self) -> None:
        """Go on."""
        self.held = None
        if self._dirty and not self._pumping:
            self._pumping = True
            self.server.pump_soon(self)

    # -- events --------------------------------------------------------------------------------------

    def events(self, events: list[ServerEvent]) -> list[ServerEvent] | None:
        """Act on what the client sent, in order; return what has to wait until others have had their turn."""
        link = self.link
        due = link.due
        if link.ended_here:
            # It was shut out meanwhile, perhaps since its certificate was revoked: only what ended is told.
            events = [item for item in events if type(item) in _ENDS]
        for done, item in enumerate(events):
            if done and due():
                return events[done:]
            if type(item) is Execute:
                operation = item.operation
                operation.channel.context.execute(operation, item.argument)
            elif type(item) is OperationRequested:
                operation = item.operation
                operation.channel.context.requested(operation)
            elif type(item) is MonitorWindow:
                item.operation.channel.context.window(item.operation)
            elif type(item) is OperationClosed:
                self._on_closed_operation(item.operation)
            elif type(item) is ChannelRequested:
                self.server.open_channel(self, item.channel)
            elif type(item) is ChannelClosed:
                self._on_closed_channel(item.channel)
            elif type(item) is OperationCancelled:
                item.operation.channel.context.cancelled(item.operation, item.successor)
            elif type(item) is FieldRequested:
                item.operation.channel.context.introspect(item.operation, item.field)
            elif type(item) is AuthenticationReceived:
                self.authenticate(item.method, item.payload)
            elif type(item) is SearchReceived:
                self._on_search(item)
            elif type(item) is RemoteMessage:
                self._on_message(item)
            else:
                assert_never(item)
        return None

    def _on_closed_operation(self, wire: ServerOperation) -> None:
        channel: Channel | None = wire.channel.context
        if channel is not None:
            channel.closed(wire)
            wire.context = None  # without a cycle it is gone now, and not when garbage is collected

    def _on_closed_channel(self, wire: ServerChannel) -> None:
        channel: Channel | None = wire.context
        if channel is not None:
            self.server.channel_closed(channel)
            wire.context = None

    def _on_search(self, event: SearchReceived) -> None:
        request = event.request
        protocol, port = self.server.choose_protocol(request.protocols)
        if not protocol:
            return
        host = self.link.peer_address[0]
        found = tuple(instance for instance, name in request.names if self.server.claims(name, host))
        if found or request.must_reply:
            self.connection.search_response(
                SearchResponse(self.server.guid, request.sequence, None, port, protocol, bool(found), found)
            )

    def _on_message(self, event: RemoteMessage) -> None:
        # A client may send as many as it likes, even before it has said who it is.
        self._messages += 1
        if self._messages <= MAX_MESSAGES:
            _log.info("message from %s: %s", self.link.peer, event.text[:512])
        elif self._messages == MAX_MESSAGES + 1:
            _log.info("further messages from %s are not logged", self.link.peer)

    # -- updates -------------------------------------------------------------------------------------

    def dirty(self, subscription: Subscription) -> None:
        """Send what ``subscription`` has at the end of this turn of the event loop."""
        self._dirty.append(subscription)
        if not self._pumping:
            self._pumping = True
            self.server.pump_soon(self)

    def pump(self) -> None:
        """Send what the socket takes; the rest stays in its queues."""
        self._pumping = False
        link = self.link
        if not self._dirty or link.is_closing or self.held is not None:
            return
        todo = self._dirty
        if not link.writable:
            return  # link_writable comes back here
        self._dirty = []
        left = self._dirty
        due = link.due
        for index, subscription in enumerate(todo):
            if subscription.pump():
                left.extend(todo[index:])
                break
            if not index & 63 and index and due():
                left.extend(todo[index + 1 :])
                break
        link.flush()
        if left and link.writable and not self._pumping:
            self._pumping = True
            self.server.pump_soon(self)

    def refused(self, channel: Channel, right: str) -> None:
        """Access security refused a request: the server's log of refusals wants to know."""
        self.server.refused(channel, right)

    def __repr__(self) -> str:
        return f"<Peer {self.credentials.method}/{self.credentials.account}@{self.link.peer}>"


_ENDS: Final[frozenset[type]] = frozenset((OperationClosed, ChannelClosed))

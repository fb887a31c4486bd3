"""One client at the server: its connection, its identity, its channels and the updates that wait for it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, assert_never

from appliance.errors import ApplianceError, CertificateError, SecurityError, TransportError
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
from appliance.pva.search import SearchRequest, SearchResponse
from appliance.pva.server_channel import ServerChannel
from appliance.pva.server_connection import ServerConnection
from appliance.pva.server_operation import ServerOperation
from appliance.pva.status import OK, Status
from appliance.server.access import AccessControl
from appliance.server.admission import RolesWait, choose_identity
from appliance.server.channel import Pumped
from appliance.server.end import ServerEnd
from appliance.server.quota import Allowance
from appliance.server.served_channel import ServedChannel
from appliance.server.source import Handler, Later
from appliance.transport.admission import Admission
from appliance.transport.gate import Verdict
from appliance.transport.stream import StreamLink

if TYPE_CHECKING:  # plain TCP has no use for OpenSSL
    from appliance.tls.context import TLSContext

__all__ = ["Host", "Peer"]

_log: Final = logging.getLogger(__name__)
MAX_MESSAGES: Final = 20
"""Messages for the log that one connection may send."""
MAX_PENDING: Final = 10_000
"""Channels of one connection that wait for their handlers."""


class Host(Protocol):
    """The server, as the connection of one client sees it."""

    def accepts(self, *, tls: bool) -> bool:
        """Whether new connections of this kind are wanted at present."""

    def answer_search(
        self, request: SearchRequest, host: str, later: Callable[[SearchResponse], None] | None = None
    ) -> tuple[SearchResponse, ...]:
        """Return the answers to a search from the address ``host``; ``later`` sends one that comes late."""

    def open(self, name: str, peer: Credentials) -> Handler | Later:
        """Return the handler of the PV ``name``, perhaps later. Raises ApplianceError with the reason for the client."""

    def ended(self, peer: Peer) -> None:
        """Forget a connection that has ended."""


class Peer:
    """One client's connection: it passes requests to the channels, and sends answers and updates.

    It owns the link and everything that ends with it.

    Args:
        host: The server.
        end: The parts that all connections of the server share.
        tls: The TLS context for this client; None for plain TCP.
    """

    __slots__ = (
        "_admission",
        "_deadline",
        "_dirty",
        "_end",
        "_host",
        "_messages",
        "_pending",
        "_pumping",
        "_roles",
        "access",
        "allowance",
        "connection",
        "credentials",
        "held",
        "stream",
        "validated",
    )

    def __init__(self, host: Host, end: ServerEnd, tls: TLSContext | None) -> None:
        methods: tuple[str, ...] = ("anonymous", "ca")
        engine = None
        if tls is not None:
            from appliance.tls.engine import TLSEngine

            engine = TLSEngine(tls, server_side=True)
            methods = ("anonymous", "ca", "x509")
        self._host = host
        self._end = end
        self.access: AccessControl = end.access
        self.allowance = Allowance(end.shares)
        """What the client's address may still use."""
        self.connection = ServerConnection(
            auth_methods=methods, limits=end.limits, segment_size=end.segment_size
        )
        self.connection.context = self
        self.stream = StreamLink(self.connection, self, engine)
        self.credentials = Credentials()
        self.validated = False
        """Whether the client was let in."""
        self.held: Verdict | None = None
        """The reason for a pause: the status of a certificate is not good at present. None if there is no pause."""
        self._admission: Admission | None = None
        self._roles: RolesWait | None = None
        self._dirty: list[Pumped] = []
        self._pumping = False
        self._messages = 0
        self._pending: dict[ServerChannel, Later] | None = None
        """Channels that wait for their handlers."""
        self._deadline = end.loop.call_later(end.entrance.timings.handshake_s, self._too_slow)

    def channels(self) -> Iterator[ServedChannel]:
        """Return all open channels."""
        for wire in self.connection.channels.values():
            if wire.context is not None:
                yield wire.context

    # -- StreamOwner ---------------------------------------------------------------------------------

    def link_made(self, link: StreamLink) -> bool:
        """Whether there is room for one more connection of this address."""
        return self.allowance.join(link.peer_address.host, link)

    def link_up(self, link: StreamLink) -> None:
        """Note the identity that TLS proved, if there is one."""
        engine = link.engine
        if not self._host.accepts(tls=engine is not None):
            link.abort()
            return
        if engine is None:
            self.credentials = Credentials(peer=link.peer, interface=link.interface)
            _log.debug("%s connected", link.peer)
            return
        from appliance.tls.credentials import describe, peer_credentials

        try:
            proved = peer_credentials(engine, peer=link.peer, interface=link.interface)
            self.credentials = proved._replace(via=link.via) if link.via else proved
        except CertificateError as error:
            link.close(error)
            return
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug(
                "%s: TLS handshake complete: %s, %s; the client is %s",
                link.peer,
                engine.version,
                engine.cipher,
                describe(self.credentials),
            )

    def link_writable(self, link: StreamLink) -> None:
        """Send waiting updates: there is room again."""
        self.pump()

    def link_down(self, link: StreamLink, reason: ApplianceError | None) -> None:
        """Free everything that belongs to the connection: it is gone."""
        self._host.ended(self)
        self._deadline.cancel()
        if self._roles is not None:
            self._roles.end()
            self._roles = None
        admission, self._admission = self._admission, None
        if admission is not None:
            admission.end()
        self.connection.context = None
        pending, self._pending = self._pending, None
        for later in (pending or {}).values():
            later.cancel()
        self._dirty.clear()  # it leads back here: without the cycle all is freed now, and not by the garbage collector
        self.allowance.leave()
        if reason is None:
            _log.debug("%s disconnected", link.peer)
            return
        # A client that leaves with an update on its way to it resets the connection. This is routine. Refused clients
        # were logged already.
        usual = link.reset if self.validated else admission is not None
        _log.log(logging.DEBUG if usual else logging.INFO, "%s disconnected: %s", link.peer, reason)

    def _too_slow(self) -> None:
        # A client that waits for a certificate's status has the time that the gate gives it.
        if not self.validated and self._admission is None:
            link = self.stream
            timeout_s = self._end.entrance.timings.handshake_s
            link.abort(TransportError(f"{link.peer} did not validate its connection in {timeout_s:.0f} s"))

    # -- admission -----------------------------------------------------------------------------------

    def _on_authentication(self, event: AuthenticationReceived) -> None:
        connection = self.connection
        try:
            self.credentials = choose_identity(
                self.credentials, connection.auth_methods, event.method, event.payload
            )
        except SecurityError as error:
            connection.validated(Status.error(str(error)))
            return
        if self.credentials.method == "anonymous":
            full = self.allowance.count_anonymous()
            if full:
                connection.validated(Status.error(full))
            else:
                self._ask_gate()
            return
        end = self._end
        entrance = end.entrance
        account = self.credentials.account
        roles = entrance.roles.known(account)
        if roles is not None:
            self.roles_known(roles)
            return
        self._roles = RolesWait(self, entrance.roles, entrance.timings.roles_s, end.loop)
        self._roles.begin(account)

    def roles_known(self, roles: frozenset[str]) -> None:
        """Set the client's groups, and continue its admission."""
        self.credentials = self.credentials._replace(roles=roles)
        self._ask_gate()

    def roles_missing(self, waited_s: float) -> None:
        """Continue the admission without groups."""
        _log.warning(
            "the groups of %.64r are not known after %g s: %s has no roles until the host's user database answers; check that service",
            self.credentials.account,
            waited_s,
            self.stream.peer,
        )
        self._ask_gate()

    def roles_late(self, roles: frozenset[str]) -> None:
        """Set the groups of a client that is admitted already, and judge its rights again."""
        self.credentials = self.credentials._replace(roles=roles)
        if roles:
            for channel in list(self.channels()):
                channel.review()

    def _ask_gate(self) -> None:
        """Let the gate judge the client, whose identity is known. Without a gate or without TLS, admit it at once."""
        gate = self._end.entrance.gate
        engine = self.stream.engine
        if gate is None or engine is None:
            self.admit()
            return
        admission = self._admission = Admission(self)
        admission.begin(gate, self.credentials, engine)

    def _answer(self, status: Status) -> None:
        """Send the client the verdict on its connection."""
        link = self.stream
        if self.validated or link.is_closing:
            return
        self.validated = status.ok
        held = self.connection.held
        self.connection.validated(status)
        if held:
            link.proceed()
        else:
            link.schedule_flush()

    def admit(self) -> None:
        """Let the client in."""
        self._answer(OK)

    def refuse(self, verdict: Verdict) -> None:
        """Refuse the client, and tell it why."""
        why = verdict.message
        level = (
            logging.WARNING if self._end.entrance.refusals.is_news(self.credentials, why) else logging.DEBUG
        )
        self._log_verdict(level, "peer-refused", "is not admitted", why)
        self._answer(Status.error(why))
        self.stream.close(TransportError(why), linger=True)

    def cut(self, verdict: Verdict) -> None:
        """Close the connection at once."""
        self._log_verdict(logging.WARNING, "peer-disconnected", "is disconnected", verdict.message)
        self.stream.cut(TransportError(verdict.message))

    def pause(self, verdict: Verdict) -> None:
        """Pause: updates wait in their queues, and requests that ``verdict`` forbids are refused."""
        self._log_verdict(logging.WARNING, "peer-paused", "is paused", verdict.message)
        self.held = verdict
        if not verdict.lets_read:
            # A prepared answer is given without asking anybody.
            for operation in self.connection.operations.values():
                operation.prepared = None

    def resume(self) -> None:
        """Continue after a pause."""
        self.held = None
        if self._dirty and not self._pumping:
            self._pumping = True
            self._end.pump.soon(self)

    def _log_verdict(self, level: int, event: str, what: str, why: str) -> None:
        _log.log(level, "%r %s: %s", self, what, why, extra={"event": event, **self.credentials.facts()})

    # -- events --------------------------------------------------------------------------------------

    def link_events(self, link: StreamLink, events: list[ServerEvent]) -> list[ServerEvent] | None:
        """Handle the client's messages in order; return those that wait until others had their turn."""
        due = link.due
        if link.ended_here:
            # The client was cut off, perhaps because its certificate was revoked: handle only what ended.
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
                self.open_channel(item.channel)
            elif type(item) is ChannelClosed:
                self._on_closed_channel(item.channel)
            elif type(item) is OperationCancelled:
                item.operation.channel.context.cancelled(item.operation, item.successor)
            elif type(item) is FieldRequested:
                item.operation.channel.context.introspect(item.operation, item.field)
            elif type(item) is AuthenticationReceived:
                self._on_authentication(item)
            elif type(item) is SearchReceived:
                self._on_search(item)
            elif type(item) is RemoteMessage:
                self._on_message(item)
            else:
                assert_never(item)
        return None

    def _on_closed_operation(self, wire: ServerOperation) -> None:
        channel: ServedChannel | None = wire.channel.context
        if channel is not None:
            channel.closed(wire)
            wire.context = None  # without the cycle it is freed now, and not by the garbage collector

    def open_channel(self, wire: ServerChannel) -> None:
        """Answer CREATE_CHANNEL."""
        if self.held is not None:
            wire.reject(self.held.message)
            return
        full = self.allowance.refuses_channel()
        if full:
            wire.reject(full)
            return
        try:
            handler = self._host.open(wire.name, self.credentials)
        except ApplianceError as error:
            wire.reject(str(error))
            return
        if isinstance(handler, Later):
            self._open_later(wire, handler)
        else:
            self._serve(wire, handler)

    def _open_later(self, wire: ServerChannel, later: Later) -> None:
        """Answer CREATE_CHANNEL when there is a handler, or when there is none."""
        pending = self._pending
        if pending is None:
            pending = self._pending = {}
        if len(pending) >= MAX_PENDING:
            later.cancel()
            wire.reject(
                f"{MAX_PENDING} channels of this connection wait for servers that have their PVs; wait for these first"
            )
            return
        pending[wire] = later
        later.then(partial(self._opened, wire))

    def _opened(self, wire: ServerChannel, outcome: Handler | ApplianceError) -> None:
        pending = self._pending
        if pending is None or pending.pop(wire, None) is None:
            return  # the client has gone
        if isinstance(outcome, ApplianceError):
            wire.reject(str(outcome))
        elif self.held is not None:
            wire.reject(self.held.message)
        elif full := self.allowance.refuses_channel():
            wire.reject(full)
        else:
            self._serve(wire, outcome)
        self.stream.schedule_flush()

    def _serve(self, wire: ServerChannel, handler: Handler) -> None:
        rights = self.access.rights(wire.name, self.credentials)
        if rights.read:
            self.access.lost_readers.discard(wire.name, self.credentials)
        ServedChannel(self, wire, handler, rights)
        wire.accept(rights.permissions)

    def _on_closed_channel(self, wire: ServerChannel) -> None:
        channel: ServedChannel | None = wire.context
        if channel is not None:
            channel.gone()
            wire.context = None

    def _on_search(self, event: SearchReceived) -> None:
        for answer in self._host.answer_search(
            event.request, self.stream.peer_address.host, self._answer_late
        ):
            self.connection.search_response(answer)

    def _answer_late(self, answer: SearchResponse) -> None:
        """Send an answer that comes late, unless the client has gone."""
        self.connection.search_response(answer)
        self.stream.schedule_flush()

    def _on_message(self, event: RemoteMessage) -> None:
        # A client may send any number of them, even before its identity is known.
        self._messages += 1
        if self._messages <= MAX_MESSAGES:
            _log.info("message from %s: %s", self.stream.peer, event.text[:512])
        elif self._messages == MAX_MESSAGES + 1:
            _log.info("further messages from %s are not logged", self.stream.peer)

    # -- updates -------------------------------------------------------------------------------------

    def dirty(self, waiting: Pumped) -> None:
        """Send what ``waiting`` has at the end of this turn of the event loop."""
        self._dirty.append(waiting)
        if not self._pumping:
            self._pumping = True
            self._end.pump.soon(self)

    def pump(self) -> None:
        """Send what the socket accepts; the rest stays in its queues."""
        self._pumping = False
        link = self.stream
        if not self._dirty or link.is_closing or self.held is not None:
            return
        todo = self._dirty
        if not link.writable:
            return  # link_writable comes back here
        self._dirty = []
        left = self._dirty
        due = link.due
        for index, waiting in enumerate(todo):
            try:
                has_more = waiting.pump()
            except Exception as error:  # noqa: BLE001 - a defect of one must not keep the others from sending
                waiting.broken(error)
                has_more = False
            if has_more:
                # It goes to the end: one that always has more must not keep the others from sending.
                left.extend(todo[index + 1 :])
                left.append(waiting)
                break
            if not index & 63 and index and due():
                left.extend(todo[index + 1 :])
                break
        link.flush()
        if left and link.writable and not self._pumping:
            self._pumping = True
            self._end.pump.soon(self)

    def broken(self, error: Exception) -> None:
        """Close the connection: a defect has stopped its output."""
        self.stream.broken(error)

    def __repr__(self) -> str:
        return f"<Peer {self.credentials.method}/{self.credentials.account}@{self.stream.peer}>"


_ENDS: Final[frozenset[type]] = frozenset((OperationClosed, ChannelClosed))

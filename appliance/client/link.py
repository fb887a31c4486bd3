"""One connection to one server; all channels at that server share it."""

from __future__ import annotations

import asyncio
import logging
import os
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Protocol, assert_never

from appliance.client.channel import Channel, ChannelRequest
from appliance.client.crowd import REST_S, Crowd
from appliance.client.end import ClientEnd, ServerAddress
from appliance.client.monitor import Monitor
from appliance.client.pause import Kept
from appliance.client.requests import FieldRequest
from appliance.errors import (
    ApplianceError,
    CertificateError,
    ChannelClosedError,
    RemoteProtocolError,
    SecurityError,
    TransportError,
)
from appliance.pva import commands as c
from appliance.pva.client_channel import ClientChannel
from appliance.pva.client_connection import ClientConnection
from appliance.pva.credentials import Credentials
from appliance.pva.events import (
    AccessChanged,
    AuthenticationOffered,
    ChannelClosed,
    ChannelCreated,
    ClientEvent,
    FieldReply,
    MonitorFinished,
    MonitorOctets,
    MonitorUpdate,
    OperationClosed,
    OperationReady,
    OperationReply,
    RemoteMessage,
    ReplyOctets,
    SearchAnswered,
    UpdatesTogether,
    Validated,
)
from appliance.pva.search import SearchRequest, SearchResponse
from appliance.pva.states import AUTHENTICATING, CLOSED, READY
from appliance.transport.address import format_address
from appliance.transport.admission import Admission
from appliance.transport.gate import Verdict
from appliance.transport.stream import EARLY, StreamLink

if TYPE_CHECKING:  # plain TCP has no use for OpenSSL
    from appliance.tls.context import TLSContext

__all__ = ["LinkOwner", "ServerLink"]

_log: Final = logging.getLogger(__name__)
_remote_log: Final = logging.getLogger("appliance.client.remote")
_LEVELS: Final = {
    c.MESSAGE_INFO: logging.INFO,
    c.MESSAGE_WARNING: logging.WARNING,
    c.MESSAGE_ERROR: logging.ERROR,
    c.MESSAGE_FATAL: logging.CRITICAL,
}


class LinkOwner(Protocol):
    """Receives the events of a link that concern the whole client."""

    def link_ready(self, link: ServerLink) -> None:
        """Handle that the connection is validated: channels can be created."""

    def link_ended(self, link: ServerLink, reason: ApplianceError | None, *, was_ready: bool) -> None:
        """Handle that the connection is gone, or could not be made. Its channels are told after this."""

    def search_answered(self, link: ServerLink, response: SearchResponse) -> None:
        """Handle an answer to a search from this server, a name server."""


class ServerLink:
    """One connection to one server, made when the first channel needs it.

    Args:
        end: What the parts of this client share.
        owner: Called when the link is ready and when it has ended.
        address: Where the server is.
        tls: The TLS context, if it is not the client's.
    """

    __slots__ = (
        "_admission",
        "_crowd",
        "_end",
        "_kept",
        "_methods",
        "_owner",
        "_tls",
        "_waiting",
        "address",
        "channels",
        "connection",
        "credentials",
        "expected",
        "guid",
        "held",
        "name",
        "peer",
        "ready",
        "stream",
    )

    def __init__(
        self, end: ClientEnd, owner: LinkOwner, address: ServerAddress, tls: TLSContext | None = None
    ) -> None:
        self._end = end
        self._tls = tls
        self._owner = owner
        self.address = address
        self.peer = format_address((address.host, address.port))
        self.name = f"{'TLS ' if address.tls else ''}{self.peer}"
        """What the log calls the link."""
        self.guid = b""
        """The server's GUID, from the search response that led here."""
        self.expected = False
        """Whether we ended the connection ourselves; then nobody is told."""
        self.credentials = Credentials(peer=self.peer)
        self.connection: ClientConnection | None = None
        self.stream: StreamLink | None = None
        """The socket; None while there is none."""
        self.ready = False
        """Whether the connection is validated."""
        self.held: Verdict | None = None
        """The reason for a pause: the status of a certificate is not good at present. None if there is no pause."""
        self.channels: dict[Channel, None] = {}
        """The channels of this connection; they are created when it is ready."""
        self._waiting: list[Channel] = []
        self._kept = Kept()
        """What came during a pause."""
        self._crowd = Crowd()
        """Whether updates that are passed on come so fast that they are better read together."""
        self._methods: tuple[str, ...] = ()
        """The authentication methods that the server offers."""
        self._admission: Admission | None = None
        """Follows the status of both certificates; None if nobody judges them."""

    async def connect(self) -> None:
        """Connect; failure ends the link and sends its channels back to the search."""
        end = self._end
        patience = end.config.idle_timeout_s
        engine = None
        try:
            if self.address.tls:
                tls = self._tls or end.tls
                if tls is None:
                    raise TransportError(
                        f"{self.peer} needs TLS, but this client has no usable certificate at present"
                    )
                from appliance.tls.engine import TLSEngine

                engine = TLSEngine(tls, server_side=False)
            self.connection = ClientConnection(limits=end.limits, segment_size=end.segment_size)
            self.connection.types.octets = end.octets
            self.stream = stream = StreamLink(self.connection, self, engine)
            _log.debug("%s: connecting", self.name)
            async with asyncio.timeout(patience):
                await end.loop.create_connection(lambda: stream, self.address.host, self.address.port)
        except TimeoutError:
            self._ended(TransportError(f"cannot connect to {self.peer}: no answer in {patience:.0f} s"))
        except UnicodeError:
            self._ended(TransportError(f"cannot connect to {self.peer}: it cannot be the name of a host"))
        except OSError as error:
            # asyncio writes the address into strerror; only uvloop writes the reason there.
            code = error.errno
            why = os.strerror(code) if code is not None and code > 0 else error.strerror or error
            self._ended(TransportError(f"cannot connect to {self.peer}: {why}"))
        except ApplianceError as error:
            self._ended(error)

    # -- channels ------------------------------------------------------------------------------------

    def add(self, channel: Channel) -> None:
        """Create ``channel`` as soon as the connection is ready."""
        self.channels[channel] = None
        channel.join(self)
        if self.ready and self.held is None:
            self._create(channel)
        else:
            self._waiting.append(channel)

    def _create(self, channel: Channel) -> None:
        assert self.connection is not None
        wire = self.connection.create_channel(channel.name)
        wire.context = channel
        channel.await_creation()
        self.schedule_flush()

    def _create_waiting(self) -> None:
        if self.connection is None or self.connection.state is not READY:
            return  # the connection has ended, and `link_down` is still to come
        waiting, self._waiting = self._waiting, []
        for channel in waiting:
            if channel in self.channels:
                self._create(channel)

    def remove(self, channel: Channel) -> None:
        """Forget ``channel``: it is gone, or it is on another connection."""
        self.channels.pop(channel, None)

    def schedule_flush(self) -> None:
        """Send all waiting messages at the end of this turn of the event loop."""
        if self.stream is not None:
            self.stream.schedule_flush()

    def flush_at_end(self) -> None:
        """Send all waiting messages at the end of the read that caused them."""
        stream = self.stream
        if stream is not None and (not stream.flushes_at_end or stream.connection.outbox.size > EARLY):
            stream.flush_at_end()

    def search(self, request: SearchRequest) -> None:
        """Send a search to this server, a name server."""
        if self.ready and self.connection is not None:
            self.connection.search(request)
            self.schedule_flush()

    @property
    def is_usable(self) -> bool:
        """Whether channels can still be created here: False between a close and its completion."""
        stream = self.stream
        return stream is None or not self.ready or not stream.is_closing

    def refusal(self, *, changes: bool) -> str:
        """Return why a request is forbidden at present; "" if it is allowed."""
        held = self.held
        if held is None or not held.forbids(changes=changes):
            return ""
        return f"{self.peer} is paused: {held.message}"

    def why_not_ready(self) -> str:
        """Return how far the connection has come, and what may be wrong."""
        stream = self.stream
        if stream is None or not stream.is_up:
            return f"the connection to {self.peer} is not established"
        if not self.address.tls and not stream.heard:
            return (
                f"{self.peer} accepted the connection and says nothing, as a TLS port does; "
                f"if it is a TLS port, write pvas://{self.peer}"
            )
        return f"{self.peer} was connected, but the connection is not ready"

    def close(self, reason: ApplianceError | None = None, *, expected: bool = False) -> None:
        """End the link. If the end is ``expected``, nobody is told."""
        self.expected = self.expected or expected
        if self.stream is not None:
            self.stream.close(reason)

    def suspect(self) -> None:
        """Ask the server for an echo: a message says that it was restarted.

        Anyone can forge beacons and search responses. They may cost an echo, but never a working connection.
        """
        stream = self.stream
        if stream is None or not self.ready:
            return
        heard = stream.heard
        stream.connection.echo()
        stream.schedule_flush()

        def judge() -> None:
            if self.stream is stream and stream.heard == heard:
                stream.abort(TransportError(f"{self.peer} was restarted"))

        self._end.clock.call_later(self._end.timings.suspicion_s, judge)

    # -- StreamOwner ---------------------------------------------------------------------------------

    def link_made(self, link: StreamLink) -> bool:
        """Accept the connection."""
        return True

    def link_up(self, link: StreamLink) -> None:
        """Note the identity of the server: TCP is connected and, with TLS, the server has proved its identity."""
        if link.engine is None:
            self.credentials = Credentials(peer=self.peer, interface=link.interface)
            _log.debug("%s: connected from %s", self.name, link.interface)
            return
        from appliance.tls.credentials import peer_credentials

        try:
            self.credentials = peer_credentials(link.engine, peer=self.peer, interface=link.interface)
        except CertificateError as error:
            link.close(error)
            return
        if _log.isEnabledFor(logging.DEBUG):
            from appliance.tls.credentials import describe

            engine = link.engine
            _log.debug(
                "%s: TLS handshake complete: %s, %s; the server is %s",
                self.name,
                engine.version,
                engine.cipher,
                describe(self.credentials),
            )

    def link_events(self, link: StreamLink, events: list[ClientEvent]) -> None:
        """Handle the messages of the server."""
        passed = 0
        for event in events:
            try:
                if type(event) is MonitorUpdate:
                    monitor: Monitor[Any] | None = event.operation.context
                    if monitor is not None:
                        if self.held is None:
                            monitor.update(event.bits, event.store, event.overrun, event.size)
                        else:
                            self._kept.keep(monitor, event)
                elif type(event) is MonitorOctets:
                    request: ChannelRequest | None = event.operation.context
                    passed += 1
                    if request is not None:
                        request.octets(event)
                elif type(event) is UpdatesTogether:
                    passed += 1
                    for operation, body in event.items:
                        request = operation.context
                        if request is not None:
                            try:
                                request.gathered(body)
                            except ChannelClosedError as error:
                                self._closed_later(error)
                elif type(event) is ReplyOctets:
                    request = event.operation.context
                    if request is not None:
                        request.reply_octets(event)
                elif type(event) is OperationReply:
                    request = event.operation.context
                    if request is not None:
                        request.reply(event.status, event.value)
                elif type(event) is OperationReady:
                    request = event.operation.context
                    if request is not None:
                        request.ready(event.status)
                elif type(event) is ChannelCreated:
                    self._on_channel(event)
                elif type(event) is ChannelClosed:
                    self._on_channel_closed(event)
                elif type(event) is MonitorFinished:
                    monitor = event.operation.context
                    if monitor is not None:
                        monitor.finished(event.status)
                elif type(event) is FieldReply:
                    asked: FieldRequest | None = event.operation.context
                    if asked is not None:
                        asked.field_reply(event.status, event.type)
                elif type(event) is SearchAnswered:
                    self._owner.search_answered(self, event.response)
                elif type(event) is RemoteMessage:
                    self._on_message(event)
                elif type(event) is AuthenticationOffered:
                    self._methods = event.methods
                    self._ask_gate()
                elif type(event) is Validated:
                    self._on_validated(event)
                elif type(event) is OperationClosed:
                    pass  # the channel's end informs its requests
                elif type(event) is AccessChanged:
                    self._on_access(event)
                else:
                    assert_never(event)
            except ChannelClosedError as error:
                self._closed_later(error)
        if passed and passed == len(events) and self._crowd.is_dense(monotonic()):
            link.rest(REST_S)

    def _closed_later(self, error: ChannelClosedError) -> None:
        """Go on: the channel was closed later in the same read. That event follows, and the request ends or begins anew."""
        _log.debug("%s: %s", self.name, error)

    def link_writable(self, link: StreamLink) -> None:
        """Do nothing: a client sends little and never waits for room."""

    def link_down(self, link: StreamLink, reason: ApplianceError | None) -> None:
        """End: the connection is gone."""
        self._ended(reason)

    def _ended(self, reason: ApplianceError | None) -> None:
        was_ready = self.ready
        failed = not was_ready
        gate = self._end.gate
        ours = self._end.closed
        if failed and gate is not None and reason is None and self.credentials.is_tls and not ours:
            # The server found a fault in our certificate, or could not check it.
            gate.gave_up(self.guid)
        if failed and self._end.avoids_tls(self.guid):
            failed = False  # the next search is for TCP, so there is no need to wait
        self.ready = False
        self.held = None
        self._kept.clear()
        self.stream = None
        admission, self._admission = self._admission, None
        if admission is not None:
            admission.end()
        why = str(reason) if reason is not None else f"{self.peer} closed the connection"
        level = logging.INFO if reason is None or self.expected else logging.WARNING
        _log.log(level, "%s: %s", self.name, why)
        failed = failed or isinstance(reason, RemoteProtocolError)
        channels = list(self.channels)
        self.channels.clear()
        self._waiting.clear()
        self._owner.link_ended(self, reason, was_ready=was_ready)
        for channel in channels:
            channel.lost(why, failed=failed, moving=self.expected)

    # -- events --------------------------------------------------------------------------------------

    def _on_validated(self, event: Validated) -> None:
        if not event.status.ok:
            assert self.stream is not None
            if self._end.gate is not None and self.address.tls:
                self._end.gate.gave_up(self.guid)
            self.stream.close(
                TransportError(
                    f"{self.peer} refused the connection: {event.status.message or 'no reason given'}"
                )
            )
            return
        self.ready = True
        _log.debug("%s: the connection is ready", self.name)
        self._create_waiting()
        self._owner.link_ready(self)

    def _on_channel(self, event: ChannelCreated) -> None:
        channel: Channel | None = event.channel.context
        if channel is not None and channel.link is self:
            channel.created(event.channel, event.status)
        else:  # nobody wants the channel any more: the server must not keep it
            event.channel.close()
            self.schedule_flush()

    def _on_channel_closed(self, event: ChannelClosed[ClientChannel]) -> None:
        channel: Channel | None = event.channel.context
        if channel is not None and channel.wire is event.channel:
            self.remove(channel)
            connection = self.connection
            if connection is None or connection.state is not CLOSED:
                channel.lost(f"{self.peer} closed the channel")
                return
            reason = self.stream.reason if self.stream is not None else None
            channel.lost(
                str(reason) if reason is not None else f"{self.peer} closed the connection",
                failed=isinstance(reason, RemoteProtocolError),
                moving=self.expected,
            )

    @staticmethod
    def _on_access(event: AccessChanged) -> None:
        channel: Channel | None = event.channel.context
        if channel is not None and channel.wire is event.channel:
            for request in list(channel.requests):
                if request.LASTS:
                    request.access_changed()

    def _on_message(self, event: RemoteMessage) -> None:
        operation = self.connection.operations.get(event.ioid) if self.connection is not None else None
        name = operation.channel.name if operation is not None else "-"
        _remote_log.log(
            _LEVELS.get(event.kind, logging.CRITICAL), "%s : %s : %s", self.peer, name, event.text[:1024]
        )
        if operation is not None and operation.context is not None and event.kind == c.MESSAGE_WARNING:
            operation.context.warned(event.text)

    def _ask_gate(self) -> None:
        """Let the gate judge the server. Without a gate or without TLS, admit it at once."""
        gate = self._end.gate
        engine = self.stream.engine if self.stream is not None else None
        if gate is None or engine is None:
            self.admit()
            return
        admission = self._admission = Admission(self)
        admission.begin(gate, self.credentials, engine, guid=self.guid)

    # -- AdmissionOwner ------------------------------------------------------------------------------

    @property
    def validated(self) -> bool:
        """Whether the server has validated the connection."""
        return self.ready

    def admit(self) -> None:
        """Send our identity: the server is admitted."""
        connection = self.connection
        assert connection is not None
        if connection.state is not AUTHENTICATING:
            return
        if self._admission is not None:
            _log.debug("%s: the status of both certificates is good", self.name)
        tls = self._end.tls
        if (
            "x509" in self._methods
            and self.address.tls
            and tls is not None
            and tls.keychain.certificate is not None
        ):
            connection.authenticate("x509")
        elif "ca" in self._methods:
            connection.authenticate("ca", self._end.claimed_identity())
        else:
            connection.authenticate("anonymous")
        self.schedule_flush()

    def refuse(self, verdict: Verdict) -> None:
        """End the connection before it is validated: its status cannot become good (SPVA 7.3.1)."""
        self.close(SecurityError(f"{self.peer}: {verdict.message}"))

    def pause(self, verdict: Verdict) -> None:
        """Keep updates back, and make no requests that ``verdict`` forbids."""
        _log.warning("%s is paused: %s", self.name, verdict.message)
        self.held = verdict

    def resume(self) -> None:
        """Continue after a pause, with the latest updates of the pause."""
        if self.held is None:
            _log.debug("%s: the status of both certificates is good", self.name)
        else:
            # As loud as the pause, because who has read of that waits for this.
            _log.warning("%s goes on: the status of both certificates is good again", self.name)
        self.held = None
        self._kept.release(self.channels)
        self._create_waiting()

    def cut(self, verdict: Verdict) -> None:
        """End the connection at once: a certificate is bad."""
        if self.stream is not None:
            self.stream.cut(SecurityError(f"{self.peer}: {verdict.message}"))

    def broken(self, error: Exception) -> None:
        """End the connection at once: a defect has stopped its work."""
        if self.stream is not None:
            self.stream.broken(error)

    def __repr__(self) -> str:
        return f"<ServerLink {self.name} {len(self.channels)} channels>"

"""One connection to one server, shared by all channels that the server has for us."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, assert_never

from appliance.client.channel import Channel, ChannelState
from appliance.client.monitor import Subscription
from appliance.client.requests import FieldRequest
from appliance.errors import ApplianceError, CertificateError, SecurityError, TransportError
from appliance.pva.client import ClientConnection
from appliance.pva.client_channel import ClientChannel
from appliance.pva.credentials import Credentials
from appliance.pva.events import (
    AccessChanged,
    AuthenticationOffered,
    ChannelClosed,
    ChannelCreated,
    ClientEvent,
    FieldReply,
    MonitorFinished,
    MonitorUpdate,
    OperationClosed,
    OperationReady,
    OperationReply,
    RemoteMessage,
    SearchAnswered,
    Validated,
)
from appliance.pva.search import SearchRequest
from appliance.pva.states import ConnectionState
from appliance.transport.address import format_address
from appliance.transport.gate import Verdict
from appliance.transport.stream import StreamLink

if TYPE_CHECKING:
    from appliance.client.context import Context

__all__ = ["ServerLink"]

_log: Final = logging.getLogger(__name__)
_remote_log: Final = logging.getLogger("appliance.client.remote")
_LEVELS: Final = {0: logging.INFO, 1: logging.WARNING, 2: logging.ERROR, 3: logging.CRITICAL}

SUSPICION_S: Final = 2.0
"""Seconds in which a server that seems to have been restarted must answer an echo."""

Address = tuple[str, int, bool]
"""Host, port, whether by TLS."""


class ServerLink:
    """See the module's text. Made when the first channel needs it; the Context keeps it by its address."""

    __slots__ = (
        "_kept",
        "_unwatch",
        "address",
        "channels",
        "connection",
        "context",
        "credentials",
        "expected",
        "guid",
        "held",
        "is_name_server",
        "name",
        "peer",
        "ready",
        "stream",
        "waiting",
    )

    def __init__(self, context: Context, address: Address) -> None:
        self.context = context
        self.address = address
        self.peer = format_address(address[:2])
        self.name = f"{'TLS ' if address[2] else ''}{self.peer}"
        self.guid = b""
        """As told by the search response that led here."""
        self.is_name_server = False
        self.expected = False
        """Its end is our own doing and no news for anybody."""
        self.credentials = Credentials(peer=self.peer)
        self.connection: ClientConnection | None = None
        self.stream: StreamLink | None = None
        self.ready = False
        self.held: Verdict | None = None
        """Why the connection pauses, where it does: the status of a certificate is not good at present."""
        self._kept: dict[Subscription, tuple[int, list[Any], int]] = {}
        self.waiting: list[Channel] = []
        self.channels: dict[Channel, None] = {}
        self._unwatch: Callable[[], None] | None = None

    async def connect(self) -> None:
        """Connect; failure ends the link and sends its channels back to the search."""
        host, port, tls = self.address
        loop = self.context.loop
        engine = None
        try:
            if tls:
                context = self.context.tls
                if context is None:
                    raise TransportError(
                        f"{self.peer} wants TLS, and this client has no usable certificate at present"
                    )
                from appliance.tls.engine import TLSEngine

                engine = TLSEngine(context, server_side=False)
            self.connection = ClientConnection(
                limits=self.context.limits, segment_size=self.context.segment_size
            )
            self.connection.types.octets = self.context.octets
            self.stream = StreamLink(self.connection, self, engine)
            stream = self.stream
            _log.debug("%s: connecting", self.name)
            async with asyncio.timeout(self.context.config.idle_timeout_s):
                await loop.create_connection(lambda: stream, host, port)
        except TimeoutError:
            self.stream = None
            self._ended(
                TransportError(
                    f"cannot connect to {self.peer}: no answer in {self.context.config.idle_timeout_s:.0f} s"
                )
            )
        except OSError as error:
            self.stream = None
            # asyncio puts the address into strerror, and only uvloop the reason.
            code = error.errno
            why = os.strerror(code) if code is not None and code > 0 else error.strerror or error
            self._ended(TransportError(f"cannot connect to {self.peer}: {why}"))
        except ApplianceError as error:
            self.stream = None
            self._ended(error)

    # -- channels ------------------------------------------------------------------------------------

    def want(self, channel: Channel) -> None:
        """Create ``channel`` as soon as the connection is ready."""
        channel.link = self
        self.channels[channel] = None
        if self.ready and self.held is None:
            self._create(channel)
        else:
            channel.state = ChannelState.CONNECTING
            self.waiting.append(channel)

    def _create(self, channel: Channel) -> None:
        assert self.connection is not None
        channel.state = ChannelState.CREATING
        wire = self.connection.create_channel(channel.name)
        wire.context = channel
        self.schedule_flush()

    def forget(self, channel: Channel) -> None:
        """``channel`` is gone or elsewhere."""
        self.channels.pop(channel, None)
        channel.link = None

    def schedule_flush(self) -> None:
        """Send what waits at the end of this turn of the event loop."""
        if self.stream is not None:
            self.stream.schedule_flush()

    def search(self, request: SearchRequest) -> None:
        """Ask this server by name, as a name server."""
        if self.ready and self.connection is not None:
            self.connection.search(request)
            self.schedule_flush()

    @property
    def is_usable(self) -> bool:
        """Whether channels can still be created here: False between a close and its completion."""
        stream = self.stream
        return stream is None or not self.ready or not stream.is_closing

    def close(self, reason: ApplianceError | None = None) -> None:
        """End the link."""
        if self.stream is not None:
            self.stream.close(reason)

    def suspect(self) -> None:
        """Have the server prove that it is still there, soon: somebody says that it was restarted.

        Beacons and search responses are anyone's to forge: they may cost an echo, never a connection that works.
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

        self.context.loop.call_later(SUSPICION_S, judge)

    # -- StreamOwner ---------------------------------------------------------------------------------

    def link_made(self, link: StreamLink) -> bool:
        """TCP is connected."""
        return True

    def link_up(self, link: StreamLink) -> None:
        """TCP is connected and, with TLS, the server has proved who it is."""
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
        """What the server says."""
        for event in events:
            if type(event) is MonitorUpdate:
                subscription = event.operation.context
                if subscription is not None:
                    if self.held is None:
                        subscription.update(event.bits, event.store, event.overrun)
                    else:
                        self._keep(subscription, event)
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
                self._on_finished(event)
            elif type(event) is FieldReply:
                self._on_field(event)
            elif type(event) is SearchAnswered:
                self._on_search(event)
            elif type(event) is RemoteMessage:
                self._on_message(event)
            elif type(event) is AuthenticationOffered:
                self._on_offer(event)
            elif type(event) is Validated:
                self._on_validated(event)
            elif type(event) is OperationClosed:
                pass  # the channel's end tells its requests
            elif type(event) is AccessChanged:
                pass  # the permissions are read where they matter, from the channel
            else:
                assert_never(event)

    def link_writable(self, link: StreamLink) -> None:
        """There is room to send; ours is a trickle and never waits for it."""

    def link_down(self, link: StreamLink, reason: ApplianceError | None) -> None:
        """The connection is gone."""
        self._ended(reason)

    def _ended(self, reason: ApplianceError | None) -> None:
        was_ready = self.ready
        failed = not was_ready
        gate = self.context.gate
        ours = self.context.closing
        if failed and gate is not None and reason is None and self.credentials.is_tls and not ours:
            # It has found something wrong with our certificate, or could not find out.
            gate.gave_up(self.guid)
        if failed and gate is not None and gate.avoids(self.guid):
            failed = False  # the next search is for TCP: no need to wait
        self.ready = False
        self.held = None
        self._kept.clear()
        self.stream = None
        if self._unwatch is not None:
            self._unwatch()
            self._unwatch = None
        why = str(reason) if reason is not None else f"{self.peer} closed the connection"
        level = logging.INFO if reason is None or self.expected else logging.WARNING
        _log.log(level, "%s: %s", self.name, why)
        channels = list(self.channels)
        self.channels.clear()
        self.waiting.clear()
        self.context.link_ended(self, reason, was_ready=was_ready)
        for channel in channels:
            channel.lost(why, failed=failed)

    # -- events --------------------------------------------------------------------------------------

    def _on_offer(self, event: AuthenticationOffered) -> None:
        gate = self.context.gate
        stream = self.stream
        assert stream is not None
        if gate is None or stream.engine is None:
            self._authenticate(event.methods)
            return
        connection = self.connection
        assert connection is not None

        def verdict(found: Verdict) -> None:
            if self.stream is not stream or connection.state is ConnectionState.CLOSED:
                return
            if connection.state is ConnectionState.AUTHENTICATING:
                if found.good:
                    _log.debug("%s: the status of both certificates is good", self.name)
                    self._authenticate(event.methods)
                else:
                    # The give-up rule (SPVA 7.3.1): it will not become good on this connection.
                    stream.close(SecurityError(f"{self.peer}: {found.message}"))
            elif found.bad:
                stream.cut(SecurityError(f"{self.peer}: {found.message}"))
            elif found.good:
                _log.debug("%s: the status of both certificates is good", self.name)
                self._resume()
            else:
                _log.warning("%s is paused: %s", self.name, found.message)
                self.held = found

        unwatch = gate.watch(self.credentials, verdict, engine=stream.engine, guid=self.guid)
        if self.stream is stream:
            self._unwatch = unwatch
        else:
            unwatch()

    def _keep(self, subscription: Subscription, event: MonitorUpdate) -> None:
        """Put an update aside until the pause is over; the latest value is what counts."""
        before = self._kept.get(subscription)
        bits, overrun = event.bits, event.overrun
        if before is not None:
            overrun |= before[2] | (before[0] & bits)
            bits |= before[0]
        self._kept[subscription] = (bits, event.store, overrun)

    def _resume(self) -> None:
        """The pause is over."""
        self.held = None
        kept, self._kept = self._kept, {}
        for subscription, (bits, store, overrun) in kept.items():
            if subscription.operation is not None:
                subscription.update(bits, store, overrun)
        self._create_waiting()

    def why_not_ready(self) -> str:
        """Say how far the connection has come, and what may be wrong."""
        stream = self.stream
        if stream is None or not stream.is_up:
            return f"the connection to {self.peer} is not established"
        if not self.address[2] and not stream.heard:
            return (
                f"{self.peer} accepted the connection and says nothing, as a TLS port does: "
                f"by TLS it is pvas://{self.peer}"
            )
        return f"{self.peer} was connected, but the connection is not ready"

    def refusal(self, *, changes: bool) -> str:
        """Tell why a request must not be made at present, or "" where it may."""
        held = self.held
        if held is None or (not changes and held.lets_read):
            return ""
        return f"{self.peer} is paused: {held.message}"

    def _authenticate(self, methods: tuple[str, ...]) -> None:
        connection = self.connection
        assert connection is not None
        tls = self.context.tls
        if "x509" in methods and self.address[2] and tls is not None and tls.keychain.certificate is not None:
            connection.authenticate("x509")
        elif "ca" in methods:
            connection.authenticate("ca", self.context.identity())
        else:
            connection.authenticate("anonymous")
        self.schedule_flush()

    def _on_validated(self, event: Validated) -> None:
        if not event.status.ok:
            assert self.stream is not None
            if self.context.gate is not None and self.address[2]:
                self.context.gate.gave_up(self.guid)
            self.stream.close(
                TransportError(
                    f"{self.peer} refused the connection: {event.status.message or 'no reason given'}"
                )
            )
            return
        self.ready = True
        _log.debug("%s: the connection is ready", self.name)
        self._create_waiting()
        self.context.link_ready(self)
        if self.is_name_server:
            self.context.searcher.introduce(self)

    def _create_waiting(self) -> None:
        waiting = self.waiting
        self.waiting = []
        for channel in waiting:
            if channel in self.channels:
                self._create(channel)

    def _on_channel(self, event: ChannelCreated) -> None:
        channel: Channel | None = event.channel.context
        if channel is not None and channel.link is self:
            channel.created(event.channel, event.status)
        else:  # given up meanwhile: the server must not keep it for nobody
            event.channel.close()
            self.schedule_flush()

    def _on_channel_closed(self, event: ChannelClosed[ClientChannel]) -> None:
        channel: Channel | None = event.channel.context
        if channel is not None and channel.wire is event.channel:
            self.forget(channel)
            connection = self.connection
            if connection is None or connection.state is not ConnectionState.CLOSED:
                channel.lost(f"{self.peer} closed the channel")
                return
            reason = self.stream.reason if self.stream is not None else None
            channel.lost(str(reason) if reason is not None else f"{self.peer} closed the connection")

    def _on_finished(self, event: MonitorFinished) -> None:
        subscription: Subscription | None = event.operation.context
        if subscription is not None:
            subscription.finished(event.status)

    def _on_field(self, event: FieldReply) -> None:
        request: FieldRequest | None = event.operation.context
        if request is not None:
            request.field_reply(event.status, event.type)

    def _on_search(self, event: SearchAnswered) -> None:
        self.context.searcher.answered(event.response, self.address[0], via=self.peer, link=self.address)

    def _on_message(self, event: RemoteMessage) -> None:
        operation = self.connection.operations.get(event.ioid) if self.connection is not None else None
        name = operation.channel.name if operation is not None else "-"
        _remote_log.log(
            _LEVELS.get(event.kind, logging.CRITICAL), "%s : %s : %s", self.peer, name, event.text[:1024]
        )

    def __repr__(self) -> str:
        return f"<ServerLink {self.name} {len(self.channels)} channels>"

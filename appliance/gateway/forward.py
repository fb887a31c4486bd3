"""One name at one client side, as one server side shows it: requests of clients become requests to the server."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, ClassVar, Final, Protocol

from appliance.gateway.accounts import InFlight
from appliance.gateway.certificates import CertificateNames
from appliance.gateway.own import OwnField, OwnRequest
from appliance.gateway.putlog import Watched
from appliance.gateway.shared_get import SharedGet
from appliance.gateway.shared_monitor import OwnMonitor, SharedMonitor
from appliance.gateway.upstream import Upstream, request_key, with_options
from appliance.pva import commands as c
from appliance.pva.credentials import Credentials
from appliance.pva.octets import RawArgument
from appliance.pvdata.pvrequest import request_options, truth
from appliance.pvdata.value import Value
from appliance.server.channel import Channel
from appliance.server.octet_subscription import OctetSubscription
from appliance.server.operation import Operation, Subscription
from appliance.server.served_channel import ServedChannel
from appliance.server.source import Handler

__all__ = ["ForwardedPV", "Terms"]

_OURS: Final = frozenset({"queueSize", "pipeline", "cache"})
"""Options that say what a client wants of the gateway, and not of the PV."""
_UNCACHED: Final = "Gateway disallows uncachable monitor"
"""The words of p4p's gateway, which clients may look for."""


class Terms(Protocol):
    """What one server side has decided about the PVs that it forwards."""

    @property
    def get_holdoff_s(self) -> float:
        """Seconds between two reads of one PV at its server."""

    @property
    def flight(self) -> InFlight:
        """Counts the requests that wait for answers of servers."""

    @property
    def queue_size(self) -> int:
        """``record[queueSize]`` of shared subscriptions."""

    def may_bypass(self, name: str, peer: Credentials) -> bool:
        """Whether a client may have a subscription of its own at the server (UNCACHED)."""

    @property
    def certificates(self) -> CertificateNames:
        """The names whose requests must not be passed on as the gateway's own."""

    def watch_put(self, operation: Operation, real: str, value: Value | RawArgument | None) -> Watched | None:
        """Log a put that must be logged, before it is sent; raises OperationError if it must not be sent."""


class ForwardedPV(Handler):
    """A PV of a server behind the gateway. It lives as long as the gateway keeps the name.

    Args:
        upstream: The name at the client side.
        terms: What the server side has decided.
    """

    __slots__ = ("_guarded", "_terms", "channels", "upstream")

    SUBSCRIPTION: ClassVar[type[Subscription]] = OctetSubscription

    def __init__(self, upstream: Upstream, terms: Terms) -> None:
        self.upstream = upstream
        self.channels: dict[Channel, None] = {}
        """The clients' channels."""
        self._terms = terms
        self._guarded = terms.certificates.covers(upstream.name)

    # -- Dependent -----------------------------------------------------------------------------------

    @property
    def in_use(self) -> bool:
        """Whether a client has a channel of it."""
        return bool(self.channels)

    def lost(self) -> None:
        """Close all channels: the server of the PV is gone."""
        for channel in list(self.channels):
            channel.close()

    def review(self) -> None:
        """Judge again what the clients may do: the server has changed what it permits the gateway."""
        for channel in list(self.channels):
            assert isinstance(channel, ServedChannel)
            channel.review()

    # -- Handler: channels ---------------------------------------------------------------------------

    def attached(self, channel: Channel) -> None:
        """Note a client's channel."""
        self.channels[channel] = None

    def detached(self, channel: Channel) -> None:
        """Forget a client's channel."""
        self.channels.pop(channel, None)

    def counted_as(self) -> Hashable:
        """Count the subscriptions of one name together, on whichever server side."""
        return self.upstream

    # -- Handler: requests ---------------------------------------------------------------------------

    def init(self, operation: Operation) -> None:
        """Begin a request at the server; GETs of the same pvRequest share one."""
        upstream = self.upstream
        options = request_options(operation.request)
        if operation.command == c.CMD_GET and not (_processes(options) or self._bypasses(operation, options)):
            request = with_options(operation.request, _OURS, {})
            holdoff_s = self._terms.get_holdoff_s
            key = (request_key(request), holdoff_s)
            shared = upstream.gets.get(key)
            if shared is None:
                shared = upstream.gets[key] = SharedGet(upstream, key, request, holdoff_s)
                upstream.channel.add(shared)
            operation.state = shared
            shared.init(operation)
            return
        if self._guarded and operation.command != c.CMD_RPC and self._taken(operation, None):
            return
        full = operation.channel.owner.allowance.count_forwarded()
        if full:
            operation.fail(full)
            return
        if not self._guarded:  # what is asked of a certificate service is looked into
            operation.take_octets()
        operation.state = own = OwnRequest(upstream, operation, self._terms.flight)
        upstream.channel.add(own)

    def _bypasses(self, operation: Operation, options: dict[str, str]) -> bool:
        return truth(options.get("cache")) is False and self._terms.may_bypass(operation.name, operation.peer)

    def _taken(self, operation: Operation, argument: Value | None) -> bool:
        """Handle what a certificate service would take for an act of the gateway; return whether it is handled."""
        return self._terms.certificates.takes(operation, self.upstream.channel, argument)

    def get(self, operation: Operation) -> None:
        """Read; a GET that has the record processed before needs the right to write."""
        state: SharedGet | OwnRequest = operation.state
        if isinstance(state, OwnRequest) and operation.command == c.CMD_GET and _processes(operation.options):
            channel = operation.channel
            if not channel.rights.write:
                channel.refused("write")
                operation.fail(channel.denial("write"))
                return
            state.trapped = self._terms.watch_put(operation, self.upstream.name, None)
            state.get_processed(operation)
            return
        state.get(operation)

    def put(self, operation: Operation, value: Value) -> None:
        """Write."""
        self._count(operation)
        operation.state.trapped = self._terms.watch_put(operation, self.upstream.name, value)
        operation.state.put(operation, value)

    def put_get(self, operation: Operation, value: Value) -> None:
        """Write, and answer with what is there then."""
        self._count(operation)
        operation.state.trapped = self._terms.watch_put(operation, self.upstream.name, value)
        operation.state.put(operation, value)

    def process(self, operation: Operation) -> None:
        """Process."""
        self._count(operation)
        operation.state.trapped = self._terms.watch_put(operation, self.upstream.name, None)
        operation.state.process(operation)

    def rpc(self, operation: Operation, argument: Value | None) -> None:
        """Call."""
        if self._guarded and self._taken(operation, argument):
            return
        self._count(operation)
        operation.state.call(operation, argument)

    def argument_octets(self, operation: Operation, argument: RawArgument) -> None:
        """Write or call; the value passes undecoded."""
        self._count(operation)
        if operation.command == c.CMD_RPC:
            operation.state.call_octets(operation, argument)
            return
        operation.state.trapped = self._terms.watch_put(operation, self.upstream.name, argument)
        operation.state.put_octets(operation, argument)

    def introspect(self, operation: Operation, field: str) -> None:
        """Ask the server for the type, unless it has told the whole one before."""
        known = self.upstream.kind
        if known is not None and not field:
            operation.reply_field(known)
            return
        operation.state = asked = OwnField(self.upstream, operation, field)
        self.upstream.channel.add(asked)

    def _count(self, operation: Operation) -> None:
        self.upstream.requests += 1
        operation.channel.owner.allowance.requests += 1

    def cancelled(self, operation: Operation) -> None:
        """Give up the request in progress."""
        state: Any = operation.state
        if isinstance(state, OwnRequest):
            state.cancelled()
        elif isinstance(state, SharedGet):
            state.cancelled(operation)

    def closed(self, operation: Operation) -> None:
        """End what stands for the operation at the server."""
        state: Any = operation.state
        if isinstance(state, SharedGet):
            state.closed(operation)
        elif state is not None:
            if isinstance(state, OwnRequest):
                operation.channel.owner.allowance.forget_forwarded()
            state.closed()

    # -- Handler: subscriptions ----------------------------------------------------------------------

    def subscribe(self, subscription: Subscription) -> None:
        """Begin a subscription at the server, or join the one that other clients have."""
        assert isinstance(subscription, OctetSubscription)
        upstream = self.upstream
        options = request_options(subscription.request)
        key: object = subscription
        plain = subscription.request
        if truth(options.get("cache")) is not False:
            plain = with_options(plain, _OURS, {})
            key = request_key(plain)
        elif not self._terms.may_bypass(subscription.name, subscription.peer):
            subscription.channel.refused("uncached")
            subscription.fail(_UNCACHED)
            return
        known: SharedMonitor | None = upstream.monitors.get(key)
        if known is not None:
            subscription.state = known
            known.subscribe(subscription)
            return
        shared: SharedMonitor
        if key is not subscription:
            size = max(self._terms.queue_size, subscription.queue_size)
            request = with_options(plain, _OURS, {"queueSize": str(size)})
            shared = SharedMonitor(upstream, key, request)
        elif subscription.wire.pipeline:
            size = subscription.queue_size
            options = {"queueSize": str(size), "pipeline": "true"}
            shared = OwnMonitor(upstream, subscription, with_options(plain, frozenset(), options))
        else:
            shared = SharedMonitor(upstream, key, plain)
        subscription.state = upstream.monitors[key] = shared
        shared.subscribe(subscription)
        upstream.channel.add(shared)

    def unsubscribe(self, subscription: Subscription) -> None:
        """Leave the subscription at the server; the last client ends it."""
        shared: SharedMonitor | None = subscription.state
        if shared is not None:
            assert isinstance(subscription, OctetSubscription)
            shared.unsubscribe(subscription)


def _processes(options: dict[str, str]) -> bool:
    """Whether a GET asks for the record to be processed; servers on pvDatabase do that. What is not clearly "no" counts as yes."""
    text = options.get("process")
    return text is not None and truth(text) is not False

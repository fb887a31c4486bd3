"""Requests that go one to one to the server of a PV: PUT, PUT_GET, PROCESS, RPC, GET_FIELD, and GETs that are not shared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from appliance.client.channel import ChannelRequest, ChannelState
from appliance.client.requests import FieldRequest
from appliance.errors import ApplianceError
from appliance.gateway.accounts import InFlight
from appliance.gateway.putlog import Watched
from appliance.gateway.upstream import NOBODY, TOO_SLOW, Upstream
from appliance.pva import commands as c
from appliance.pva.client_operation import ClientOperation
from appliance.pva.events import ReplyOctets
from appliance.pva.octets import RawArgument
from appliance.pva.status import Status
from appliance.pvdata.types import StructType, TypeDesc
from appliance.pvdata.value import Value
from appliance.server.operation import Operation

__all__ = ["OwnField", "OwnRequest"]

_TYPED: Final = frozenset({c.CMD_GET, c.CMD_PUT, c.CMD_PUT_GET})
_DOES: Final = {c.CMD_PUT: "put", c.CMD_PUT_GET: "put", c.CMD_PROCESS: "processing", c.CMD_RPC: "call"}
MOST_WARNINGS: Final = 16
"""Warnings of a server that are passed on for one operation: it could send any number."""
LOST: Final = "the server of this PV is lost"

Act = Callable[[ClientOperation], None]


class OwnRequest(ChannelRequest):
    """One operation of one client, and the operation at the server that stands for it. Both live equally long.

    Args:
        upstream: The name.
        asked: The client's operation, whose INIT waits for an answer.
        flight: Counts the requests that wait for answers.
    """

    __slots__ = (
        "_act",
        "_answered",
        "_flight",
        "_size",
        "_unlogged",
        "_upstream",
        "_warnings",
        "asked",
        "kind",
        "trapped",
        "waits",
    )

    def __init__(self, upstream: Upstream, asked: Operation, flight: InFlight) -> None:
        super().__init__(upstream.channel, NOBODY)
        self._upstream = upstream
        self._flight = flight
        self._size = 0
        """Octets of the request in progress."""
        self.asked = asked
        self.kind: StructType | None = None
        """The type that the client was told."""
        self.waits = False
        """Whether a request of the client is in progress, so that INIT is not what an error answers."""
        self.trapped: Watched | None = None
        """The put in progress, if it is logged."""
        self._warnings = 0
        self._answered = False
        """Whether the client's INIT is answered."""
        self._act: Act | None = None
        """The client's request, which waits until the operation at the server is initialised anew."""
        self._unlogged: tuple[Act, bool] | None = None
        """The client's request, which waits until its record is in the put log, and whether it may change something."""

    @property
    def is_busy(self) -> bool:
        """Whether a request waits for its answer; between two requests nothing would be lost."""
        return self.waits or not self._answered

    # -- from the client -----------------------------------------------------------------------------

    def get(self, operation: Operation) -> None:
        """Read the PV."""
        self.trapped = None
        self._do(operation, ClientOperation.get, changes=False)

    def get_processed(self, operation: Operation) -> None:
        """Read the PV, whose record is processed before: the pvRequest says so."""
        self._do(operation, ClientOperation.get, changes=True)

    def put(self, operation: Operation, value: Value) -> None:
        """Write ``value`` (PUT, PUT_GET)."""
        self._do(operation, lambda wire: wire.put(value), changes=True)

    def put_octets(self, operation: Operation, argument: RawArgument) -> None:
        """Write a value as it came (PUT, PUT_GET)."""
        self._do(operation, lambda wire: wire.put_octets(argument), changes=True)

    def call_octets(self, operation: Operation, argument: RawArgument) -> None:
        """Call with an argument as it came."""
        self._do(operation, lambda wire: wire.call_octets(argument), changes=True)

    def process(self, operation: Operation) -> None:
        """Process the record."""
        self._do(operation, ClientOperation.process, changes=True)

    def call(self, operation: Operation, argument: Value | None) -> None:
        """Call."""
        self._do(operation, lambda wire: wire.call(argument), changes=True)

    def _do(self, operation: Operation, act: Act, *, changes: bool) -> None:
        self.asked = operation
        owner = operation.channel.owner
        full = owner.allowance.refuses_request() or self._flight.begin(owner)
        if full:
            self._fail(full)
            return
        self.waits = True
        trapped = self.trapped
        if trapped is not None and trapped.waits:
            self._unlogged = act, changes
            trapped.on_logged = self._logged
            return
        self._go_on(act, changes=changes)

    def _logged(self, trapped: Watched, why: str) -> None:
        """Go on with a put, whose record is in the put log now; refuse it if there is a reason."""
        if self.trapped is not trapped or self._unlogged is None:
            return  # the client gave it up, or the server is lost
        (act, changes), self._unlogged = self._unlogged, None
        if why:
            self._done()
            self._fail(why)
            return
        self._go_on(act, changes=changes)

    def _go_on(self, act: Act, *, changes: bool) -> None:
        link = self.channel.link
        if link is None or self.channel.state is not ChannelState.ACTIVE:
            self._act = act  # the channel moves to TLS, and calls `start` then
            return
        if link.held is not None and (why := link.refusal(changes=changes)):
            self._done()
            self._fail(why)
            return
        wire = self.operation
        if wire is None:  # the former one was cancelled
            self._act = act
            self.start()
            return
        self._send(wire, act)

    def _send(self, wire: ClientOperation, act: Act) -> None:
        before = wire.outbox.size
        try:
            act(wire)
        except ApplianceError as error:
            self._done()
            self._fail(str(error))
            return
        self._size = size = wire.outbox.size - before
        owner = self.asked.channel.owner
        self._flight.weigh(owner, size)
        owner.allowance.count_request(size)
        self._upstream.us_tx += size
        self._upstream.ds_rx += size
        link = self.channel.link
        assert link is not None
        link.schedule_flush()

    def _done(self) -> None:
        """Count the request in progress no more."""
        if self.waits:
            self.waits = False
            owner = self.asked.channel.owner
            self._flight.end(owner, self._size)
            owner.allowance.count_request(-self._size)
            self._size = 0

    def _fail(self, why: str) -> None:
        """Answer the client with an error, and log it if the request is logged."""
        self._untrap(why)
        self.asked.fail(why)

    def _untrap(self, why: str) -> None:
        trapped, self.trapped = self.trapped, None
        if trapped is not None:
            trapped.failed(why)

    def cancelled(self) -> None:
        """Cancel the request in progress; the next one initialises a new operation at the server."""
        self._forget()
        wire, self.operation = self.operation, None
        if wire is not None:
            wire.context = None
            wire.cancel()
            wire.close()
            if self.channel.link is not None:
                self.channel.link.schedule_flush()

    def _forget(self) -> None:
        """Forget the request in progress. The log of puts must not keep one that was never sent as done."""
        if self._act is not None or self._unlogged is not None:
            self._act = self._unlogged = None
            self._untrap("the client gave it up before it was sent")
        self.trapped = None
        self._done()

    def closed(self) -> None:
        """End: the client's operation has ended."""
        self._forget()
        self.cancel()

    # -- ChannelRequest ------------------------------------------------------------------------------

    def start(self) -> None:
        """Initialise the operation at the server, with the client's pvRequest."""
        self._begin(self.asked.command, self.asked.request, raw=True)

    def ready(self, status: Status) -> None:
        """Answer the client's INIT, or send the request that waits."""
        asked, wire = self.asked, self.operation
        assert wire is not None
        if not status.ok:
            self.operation = None
            self._done()
            self._fail(status.message or "the server gave no reason")
            return
        differs = wire.get_type != wire.type
        if differs and not wire.raw:
            self._fail(
                "this server answers the PUT_GET with another type, which has an any: the gateway does not support that"
            )
            return
        if self._answered:
            act, self._act = self._act, None
            if wire.type != self.kind:
                self._done()
                self._fail("the type of this PV has changed; open the channel again")
                self._upstream.renew()
            elif act is not None:
                self._send(wire, act)
            return
        self._answered = True
        self.kind = wire.type
        if asked.command in _TYPED:
            assert wire.type is not None
            asked.ready_as_is(wire.type, wire.get_type if differs else None)
        else:
            asked.ready()

    def warned(self, text: str) -> None:
        """Pass a warning of the server on to the client, the first ones of each operation."""
        self._warnings += 1
        if self._warnings <= MOST_WARNINGS:
            self.asked.warn(text)

    def reply_octets(self, event: ReplyOctets) -> None:
        """Answer the client with the octets that came."""
        self._done()
        size = len(event.tail)
        self._upstream.us_rx += size
        self._upstream.ds_tx += size
        if self.trapped is not None:
            if not event.status.ok:
                self._untrap(event.status.message or "the server gave no reason")
            self.trapped = None
        if self._too_slow(size):
            return
        kind = event.operation.get_type
        self.asked.reply_octets(event.status, event.tail, big=event.big, kind=kind)

    def _too_slow(self, octets: int) -> bool:
        """Answer without the value if too much waits for the client already."""
        asked = self.asked
        if not asked.is_behind(octets):
            return False
        asked.fail(
            TOO_SLOW if asked.command == c.CMD_GET else f"it was done, but its answer is not sent: {TOO_SLOW}"
        )
        return True

    def reply(self, status: Status, value: Value | None) -> None:
        """Answer the client."""
        asked = self.asked
        self._done()
        wire = self.operation
        if not status.ok:
            self._fail(status.message or "the server gave no reason")
            return
        self.trapped = None
        if wire is not None and wire.wants_value:
            if self._too_slow(0):
                return
            before = asked.wire.outbox.size
            if asked.command == c.CMD_RPC:
                asked.reply(value)
            else:
                assert value is not None
                asked.reply_store(value.store, value.changed)
            size = asked.wire.outbox.size - before
            self._upstream.us_rx += size
            self._upstream.ds_tx += size
        else:
            asked.done()

    def disconnected(self, why: str, *, moving: bool = False) -> None:
        """Tell the client that nobody knows what became of its request."""
        super().disconnected(why, moving=moving)
        if not moving:
            self.channel.remove(self)
        unsent = self._act is not None or self._unlogged is not None
        if self.waits and not (unsent and moving):
            self._done()
            what = None if unsent else _DOES.get(self.asked.command)
            self._act = self._unlogged = None
            self._fail(f"the server was lost during the {what}, which may be done or not" if what else LOST)

    def fail(self, error: Exception) -> None:
        """Answer the client with the reason for the end."""
        self._done()
        self._unlogged = None
        super().fail(error)
        self._fail(str(error))


class OwnField(FieldRequest):
    """A client's question for the type of a PV or of a field (GET_FIELD)."""

    __slots__ = ("_upstream", "asked")

    def __init__(self, upstream: Upstream, asked: Operation, field: str) -> None:
        super().__init__(upstream.channel, NOBODY, field)
        self._upstream = upstream
        self.asked = asked

    def field_reply(self, status: Status, kind: TypeDesc | None) -> None:
        """Answer the client."""
        self.operation = None
        self.channel.remove(self)
        if not status.ok:
            self.asked.fail(status.message or "the server gave no reason")
        else:
            if not self.field:
                self._upstream.kind = kind
            self.asked.reply_field(kind if kind is not None else StructType(()))

    def disconnected(self, why: str, *, moving: bool = False) -> None:
        """Tell the client that the server is lost."""
        super().disconnected(why, moving=moving)
        if not moving:
            self.channel.remove(self)
            self.asked.fail(LOST)

    def closed(self) -> None:
        """End: the client does not want the answer any more."""
        self.cancel()

    def fail(self, error: Exception) -> None:
        """Answer the client with the reason for the end."""
        super().fail(error)
        self.asked.fail(str(error))

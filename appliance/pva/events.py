"""The events that a connection reports to its owner. Each event names the object that it is about.

``ServerEvent`` and ``ClientEvent`` list what either role has to act on. Whoever reads events branches on
``type(event) is ...`` and ends with ``assert_never``: so mypy finds the event that was forgotten. All classes are final for that.

They are written out rather than made by ``dataclasses``, which would cost a tool more time at its start than all
of them take in its life: see docs/decisions/0060-events-as-objects.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeAlias, TypeVar, final

if TYPE_CHECKING:
    from appliance.pva.client_channel import ClientChannel
    from appliance.pva.client_operation import ClientOperation
    from appliance.pva.octets import RawArgument
    from appliance.pva.search import SearchRequest, SearchResponse
    from appliance.pva.server_channel import ServerChannel
    from appliance.pva.server_operation import ServerOperation
    from appliance.pva.status import Status
    from appliance.pvdata.types import TypeDesc
    from appliance.pvdata.value import Value

__all__ = [
    "AccessChanged",
    "AuthenticationOffered",
    "AuthenticationReceived",
    "ChannelClosed",
    "ChannelCreated",
    "ChannelRequested",
    "ClientEvent",
    "Event",
    "Execute",
    "FieldReply",
    "FieldRequested",
    "MonitorFinished",
    "MonitorOctets",
    "MonitorUpdate",
    "MonitorWindow",
    "OperationCancelled",
    "OperationClosed",
    "OperationReady",
    "OperationReply",
    "OperationRequested",
    "RemoteMessage",
    "ReplyOctets",
    "SearchAnswered",
    "SearchReceived",
    "ServerEvent",
    "Validated",
]

ChannelT = TypeVar("ChannelT", "ServerChannel", "ClientChannel")
OperationT = TypeVar("OperationT", "ServerOperation", "ClientOperation")


class Event:  # noqa: PLW1641 - an event has its moment and is in no set
    """Something that has happened on a connection. Two events are equal if all that they say is."""

    __slots__ = ()
    __match_args__: ClassVar[tuple[str, ...]] = ()

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__match_args__)

    def __repr__(self) -> str:
        said = ", ".join([f"{name}={getattr(self, name)!r}" for name in self.__match_args__])
        return f"{type(self).__name__}({said})"


# -- at both ends --------------------------------------------------------------------------------------


@final
class RemoteMessage(Event):
    """The peer has something for the log (section 12.4)."""

    __slots__ = __match_args__ = ("ioid", "kind", "text")

    def __init__(self, ioid: int, kind: int, text: str) -> None:
        self.ioid = ioid
        self.kind = kind
        self.text = text


@final
class ChannelClosed(Event, Generic[ChannelT]):
    """The channel is gone; its operations were reported closed before."""

    __slots__ = __match_args__ = ("channel",)

    def __init__(self, channel: ChannelT) -> None:
        self.channel: ChannelT = channel


@final
class OperationClosed(Event, Generic[OperationT]):
    """The operation is gone."""

    __slots__ = __match_args__ = ("operation",)

    def __init__(self, operation: OperationT) -> None:
        self.operation: OperationT = operation


# -- at a server ---------------------------------------------------------------------------------------


@final
class AuthenticationReceived(Event):
    """The client chose ``method``; answer with ``ServerConnection.validated``."""

    __slots__ = __match_args__ = ("method", "payload")

    def __init__(self, method: str, payload: Value | None) -> None:
        self.method = method
        self.payload = payload


@final
class SearchReceived(Event):
    """A search over the stream; answer with ``ServerConnection.search_response``."""

    __slots__ = __match_args__ = ("request",)

    def __init__(self, request: SearchRequest) -> None:
        self.request = request


@final
class ChannelRequested(Event):
    """Answer with ``channel.accept`` or ``channel.reject``."""

    __slots__ = __match_args__ = ("channel",)

    def __init__(self, channel: ServerChannel) -> None:
        self.channel = channel


@final
class OperationRequested(Event):
    """INIT; answer with ``operation.ready`` or ``operation.fail``."""

    __slots__ = __match_args__ = ("operation",)

    def __init__(self, operation: ServerOperation) -> None:
        self.operation = operation


@final
class Execute(Event):
    """A request of an initialised operation; answer with one of the ``operation.reply*`` methods or ``fail``.

    ``argument`` is the Value of a PUT or PUT_GET (its ``changed`` bits say what was sent) or of an RPC. If the operation takes
    octets, it is a `RawArgument`.
    """

    __slots__ = __match_args__ = ("operation", "argument")

    def __init__(self, operation: ServerOperation, argument: Value | RawArgument | None) -> None:
        self.operation = operation
        self.argument = argument


@final
class MonitorWindow(Event):
    """The subscription was started, stopped or acknowledged: more, or no more, may be sent now."""

    __slots__ = __match_args__ = ("operation",)

    def __init__(self, operation: ServerOperation) -> None:
        self.operation = operation


@final
class OperationCancelled(Event):
    """The client no longer wants the request in progress, which can no longer be answered.

    The operation lives on as ``successor``; that of a MONITOR, which is stopped, is the same object.
    """

    __slots__ = __match_args__ = ("operation", "successor")

    def __init__(self, operation: ServerOperation, successor: ServerOperation) -> None:
        self.operation = operation
        self.successor = successor


@final
class FieldRequested(Event):
    """GET_FIELD; answer with ``operation.reply_field`` or ``operation.fail``."""

    __slots__ = __match_args__ = ("operation", "field")

    def __init__(self, operation: ServerOperation, field: str) -> None:
        self.operation = operation
        self.field = field


# -- at a client ---------------------------------------------------------------------------------------


@final
class AuthenticationOffered(Event):
    """The server's offer; answer with ``ClientConnection.authenticate``."""

    __slots__ = __match_args__ = ("methods",)

    def __init__(self, methods: tuple[str, ...]) -> None:
        self.methods = methods


@final
class Validated(Event):
    """The server's verdict. The connection is READY if it is ok."""

    __slots__ = __match_args__ = ("status",)

    def __init__(self, status: Status) -> None:
        self.status = status


@final
class SearchAnswered(Event):
    """A name server's answer over the stream."""

    __slots__ = __match_args__ = ("response",)

    def __init__(self, response: SearchResponse) -> None:
        self.response = response


@final
class ChannelCreated(Event):
    """The answer to ``create_channel``."""

    __slots__ = __match_args__ = ("channel", "status")

    def __init__(self, channel: ClientChannel, status: Status) -> None:
        self.channel = channel
        self.status = status


@final
class AccessChanged(Event):
    """The server judged our permissions again (section 13)."""

    __slots__ = __match_args__ = ("channel",)

    def __init__(self, channel: ClientChannel) -> None:
        self.channel = channel


@final
class OperationReady(Event):
    """The answer to INIT. ``operation.type`` is set if the status is ok."""

    __slots__ = __match_args__ = ("operation", "status")

    def __init__(self, operation: ClientOperation, status: Status) -> None:
        self.operation = operation
        self.status = status


@final
class OperationReply(Event):
    """The answer to a request. ``value`` is there for GET, PUT_GET and RPC if the status is ok."""

    __slots__ = __match_args__ = ("operation", "status", "value")

    def __init__(self, operation: ClientOperation, status: Status, value: Value | None) -> None:
        self.operation = operation
        self.status = status
        self.value = value


@final
class MonitorUpdate(Event):
    """One update: ``bits`` says which fields ``store`` brought, ``overrun`` which of them lost a predecessor.

    ``store`` is complete: fields that the update did not bring are what they were before. ``size`` is how many octets came.
    """

    __match_args__ = ("operation", "bits", "store", "overrun")
    __slots__ = (*__match_args__, "size")

    def __init__(
        self, operation: ClientOperation, bits: int, store: list[Any], overrun: int, size: int = 0
    ) -> None:
        self.operation = operation
        self.bits = bits
        self.store = store
        self.overrun = overrun
        self.size = size


@final
class MonitorOctets(Event):
    """Updates of a raw MONITOR, measured and not decoded; ``bodies`` are what follows the sub-command of each.

    One event has as many updates of one operation as came in one read one after the other, if they are alike: in the same
    byte order, with the same fields ``bits`` (the bit set as it was sent), and without an overrun. One with an ``overrun`` (in
    leaf form) is alone. Each body ends with its overrun bit set. So updates of *different* PVs that came in one read may
    change places; those of one PV never do.
    """

    __slots__ = __match_args__ = ("operation", "big", "bits", "overrun", "bodies")

    def __init__(
        self, operation: ClientOperation, big: bool, bits: int, overrun: int, bodies: list[bytes]
    ) -> None:
        self.operation = operation
        self.big = big
        self.bits = bits
        self.overrun = overrun
        self.bodies = bodies


@final
class UpdatesTogether(Event):
    """Updates of raw MONITORs that are ``gathered``, of any number of operations, in the order in which they came.

    Each item is an operation and a body as in `MonitorOctets`, little-endian and without an overrun. Its bit set is that of the latest
    `MonitorOctets` of the operation whose fields all have a fixed size.
    """

    __slots__ = __match_args__ = ("items",)

    def __init__(self, items: list[tuple[ClientOperation, bytes]]) -> None:
        self.items = items


@final
class ReplyOctets(Event):
    """The answer with a value to a request of a raw operation: measured and not decoded.

    ``tail`` is what follows the Status: for a GET and a PUT_GET the bit set ``bits`` and the value, for an RPC the type, in
    full, and the value (its ``bits`` are 1).
    """

    __slots__ = __match_args__ = ("operation", "status", "big", "bits", "tail")

    def __init__(self, operation: ClientOperation, status: Status, big: bool, bits: int, tail: bytes) -> None:
        self.operation = operation
        self.status = status
        self.big = big
        self.bits = bits
        self.tail = tail


@final
class MonitorFinished(Event):
    """The server ended the subscription."""

    __slots__ = __match_args__ = ("operation", "status")

    def __init__(self, operation: ClientOperation, status: Status) -> None:
        self.operation = operation
        self.status = status


@final
class FieldReply(Event):
    """The answer to GET_FIELD."""

    __slots__ = __match_args__ = ("operation", "status", "type")

    def __init__(self, operation: ClientOperation, status: Status, kind: TypeDesc | None) -> None:
        self.operation = operation
        self.status = status
        self.type = kind


ServerEvent: TypeAlias = (
    "RemoteMessage | AuthenticationReceived | SearchReceived | ChannelRequested | ChannelClosed[ServerChannel]"
    " | OperationRequested | Execute | MonitorWindow | OperationCancelled | OperationClosed[ServerOperation]"
    " | FieldRequested"
)
"""What a server has to act on."""

ClientEvent: TypeAlias = (
    "RemoteMessage | AuthenticationOffered | Validated | SearchAnswered | ChannelCreated"
    " | ChannelClosed[ClientChannel] | AccessChanged | OperationReady | OperationReply | MonitorUpdate"
    " | MonitorOctets | UpdatesTogether | ReplyOctets | MonitorFinished | FieldReply | OperationClosed[ClientOperation]"
)
"""What a client has to act on."""

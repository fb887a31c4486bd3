"""What a connection tells its owner. Each event names the object that it is about.

Server and client share ``RemoteMessage`` and ``Event``; the rest belongs to one role.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from appliance.pva.client import ClientChannel, ClientOperation
    from appliance.pva.search import SearchRequest, SearchResponse
    from appliance.pva.server import ServerChannel, ServerOperation
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
    "Event",
    "Execute",
    "FieldReply",
    "FieldRequested",
    "MonitorFinished",
    "MonitorUpdate",
    "MonitorWindow",
    "OperationCancelled",
    "OperationClosed",
    "OperationReady",
    "OperationReply",
    "OperationRequested",
    "RemoteMessage",
    "SearchAnswered",
    "SearchReceived",
    "Validated",
]


class RemoteMessage(NamedTuple):
    """The peer has something for the log (section 12.4)."""

    ioid: int
    kind: int
    text: str


# -- at a server ---------------------------------------------------------------------------------------


class AuthenticationReceived(NamedTuple):
    """The client chose ``method``; answer with ``ServerConnection.validated``."""

    method: str
    payload: Value | None


class SearchReceived(NamedTuple):
    """A search over the stream; answer with ``ServerConnection.search_response``."""

    request: SearchRequest


class ChannelRequested(NamedTuple):
    """Answer with ``channel.accept`` or ``channel.reject``."""

    channel: ServerChannel


class ChannelClosed(NamedTuple):
    """The channel is gone; its operations were reported closed before."""

    channel: ServerChannel | ClientChannel


class OperationRequested(NamedTuple):
    """INIT; answer with ``operation.ready`` or ``operation.fail``."""

    operation: ServerOperation


class Execute(NamedTuple):
    """A request of an initialised operation; answer with one of the ``operation.reply*`` methods or ``fail``.

    ``argument`` is the Value of a PUT or PUT_GET (its ``changed`` bits say what was sent) or of an RPC.
    """

    operation: ServerOperation
    argument: Value | None


class MonitorWindow(NamedTuple):
    """The subscription was started, stopped or acknowledged: more, or no more, may be sent now."""

    operation: ServerOperation


class OperationCancelled(NamedTuple):
    """The client no longer wants the request in progress, which can no longer be answered.

    The operation lives on as ``successor``; that of a MONITOR, which is stopped, is the same object.
    """

    operation: ServerOperation
    successor: ServerOperation


class OperationClosed(NamedTuple):
    """The operation is gone."""

    operation: ServerOperation | ClientOperation


class FieldRequested(NamedTuple):
    """GET_FIELD; answer with ``operation.reply_field`` or ``operation.fail``."""

    operation: ServerOperation
    field: str


# -- at a client ---------------------------------------------------------------------------------------


class AuthenticationOffered(NamedTuple):
    """The server's offer; answer with ``ClientConnection.authenticate``."""

    methods: tuple[str, ...]


class Validated(NamedTuple):
    """The server's verdict. The connection is READY if it is ok."""

    status: Status


class SearchAnswered(NamedTuple):
    """A name server's answer over the stream."""

    response: SearchResponse


class ChannelCreated(NamedTuple):
    """The answer to ``create_channel``."""

    channel: ClientChannel
    status: Status


class AccessChanged(NamedTuple):
    """The server judged our permissions again (section 13)."""

    channel: ClientChannel


class OperationReady(NamedTuple):
    """The answer to INIT. ``operation.type`` is set if the status is ok."""

    operation: ClientOperation
    status: Status


class OperationReply(NamedTuple):
    """The answer to a request. ``value`` is there for GET, PUT_GET and RPC if the status is ok."""

    operation: ClientOperation
    status: Status
    value: Value | None


class MonitorUpdate(NamedTuple):
    """One update: ``bits`` says which fields ``store`` brought, ``overrun`` which of them lost a predecessor.

    ``store`` is complete: fields that the update did not bring are what they were before.
    """

    operation: ClientOperation
    bits: int
    store: list[Any]
    overrun: int


class MonitorFinished(NamedTuple):
    """The server ended the subscription."""

    operation: ClientOperation
    status: Status


class FieldReply(NamedTuple):
    """The answer to GET_FIELD."""

    operation: ClientOperation
    status: Status
    type: TypeDesc | None


Event: TypeAlias = (
    RemoteMessage
    | AuthenticationReceived
    | SearchReceived
    | ChannelRequested
    | ChannelClosed
    | OperationRequested
    | Execute
    | MonitorWindow
    | OperationCancelled
    | OperationClosed
    | FieldRequested
    | AuthenticationOffered
    | Validated
    | SearchAnswered
    | ChannelCreated
    | AccessChanged
    | OperationReady
    | OperationReply
    | MonitorUpdate
    | MonitorFinished
    | FieldReply
)

"""The state tables, cell by cell, through the public methods of both ends."""

from __future__ import annotations

import itertools

import pytest

from appliance.errors import ChannelClosedError, DecodeError, LocalProtocolError, RemoteProtocolError
from appliance.pva import commands as c
from appliance.pva.client_connection import ClientConnection
from appliance.pva.selection import encode_answer, encode_update
from appliance.pva.server_connection import ServerConnection
from appliance.pva.states import (
    CLIENT_ACCEPTS,
    MONITOR_TRANSITIONS,
    REQUEST_TRANSITIONS,
    SERVER_ACCEPTS,
    SERVER_HOLDS,
    ConnectionState,
    OperationInput,
    OperationState,
)
from appliance.pva.status import OK
from appliance.pvdata import Value
from tests.helpers.wire import SCALAR, Responder, Wire, feed, frame, ready_client, ready_server, take, u32

C, I, X, D = OperationState.CREATING, OperationState.IDLE, OperationState.EXECUTING, OperationState.DEAD
IN = OperationInput
CELLS = list(itertools.product(OperationState, OperationInput))
REPLY = encode_answer(SCALAR, 0b10, [None, 1.0, None, 0, ""], big=False)
UPDATE = encode_update(SCALAR, 0b10, 0, [None, 1.0, None, 0, ""], big=False)


def name(cell) -> str:
    return f"{cell[0].value}-{cell[1].value}"


# -- the server's end ----------------------------------------------------------------------------------


def server_operation(command: int, state: OperationState):
    """An operation of one channel, in ``state``; its ioid and sid are 1."""
    connection = ready_server()
    feed(connection, frame(c.CMD_CREATE_CHANNEL, b"\1\0" + u32(1) + b"\1d"))
    connection.pending[1].accept()
    feed(connection, frame(command, u32(1) + u32(1) + b"\x08\xff"))
    operation = connection.operations[1]
    if state is not C:
        operation.ready(SCALAR)
    if state is X:
        feed(connection, frame(command, u32(1) + u32(1) + (b"\x44" if command == c.CMD_MONITOR else b"\0")))
    if state is D:
        feed(connection, frame(c.CMD_DESTROY_REQUEST, u32(1) + u32(1)))
    assert operation.state is state
    take(connection)
    return connection, operation


def to_server(connection, command: int, sub: int) -> None:
    feed(connection, frame(command, u32(1) + u32(1) + bytes((sub,))))


def addressed(connection, command: int) -> None:
    feed(connection, frame(command, u32(1) + u32(1)))


def apply_at_server(command: int, connection, operation, what: OperationInput) -> None:
    monitor = command == c.CMD_MONITOR
    match what:
        case IN.READY:
            operation.ready(SCALAR)
        case IN.FAILED_INIT:
            operation.fail("no")
        case IN.EXECUTE:
            to_server(connection, command, 0x40)
        case IN.REPLY:
            if monitor:
                operation.send_update(UPDATE)
            else:
                operation.reply_tail_once(REPLY)
        case IN.FINAL_REPLY:
            if monitor:
                operation.finish()
            else:
                operation.last = True  # what a request with the destroy bit leaves behind
                operation.reply_tail_once(REPLY)
        case IN.START:
            to_server(connection, command, 0x44)
        case IN.STOP:
            to_server(connection, command, 0x04)
        case IN.CANCEL:
            addressed(connection, c.CMD_CANCEL_REQUEST)
        case IN.DESTROY:
            addressed(connection, c.CMD_DESTROY_REQUEST)


# What a cell that the table does not have does at the server: an error, or nothing. The client's faults are
# remote errors, the layer above's are local ones; what two ends may do at the same time is neither.
_SERVER_REQUEST = {
    (I, IN.READY): LocalProtocolError,
    (X, IN.READY): LocalProtocolError,
    (C, IN.EXECUTE): RemoteProtocolError,
    (C, IN.START): RemoteProtocolError,
    (C, IN.STOP): RemoteProtocolError,
}
_SERVER_MONITOR = {
    **_SERVER_REQUEST,
    (C, IN.REPLY): LocalProtocolError,
    (I, IN.REPLY): LocalProtocolError,
}
# Inputs that are another input in that state: START and STOP of a GET are requests with odd bits, fail() of a
# request in progress is its reply, and of a running subscription its end.
_SERVER_REQUEST_ALIASES = {
    (I, IN.START): X,
    (I, IN.STOP): X,
    (X, IN.FAILED_INIT): I,
}
_SERVER_MONITOR_ALIASES = {(I, IN.FAILED_INIT): D, (X, IN.FAILED_INIT): D}


@pytest.mark.parametrize("cell", CELLS, ids=name)
@pytest.mark.parametrize(
    ("command", "table", "errors", "aliases"),
    [
        (c.CMD_GET, REQUEST_TRANSITIONS, _SERVER_REQUEST, _SERVER_REQUEST_ALIASES),
        (c.CMD_MONITOR, MONITOR_TRANSITIONS, _SERVER_MONITOR, _SERVER_MONITOR_ALIASES),
    ],
    ids=["request", "monitor"],
)
def test_each_cell_at_the_server(command, table, errors, aliases, cell):
    state, what = cell
    connection, operation = server_operation(command, state)
    error = errors.get(cell)
    if error is not None:
        assert cell not in table
        with pytest.raises(error):
            apply_at_server(command, connection, operation, what)
        if error is RemoteProtocolError:
            assert connection.state is ConnectionState.CLOSED
            assert operation.state is D
        else:
            assert operation.state is state
            assert connection.state is ConnectionState.READY
        return
    apply_at_server(command, connection, operation, what)
    if cell == (X, IN.CANCEL) and command != c.CMD_MONITOR:
        assert operation.state is D, "what is cancelled is never answered"
        operation = connection.operations[operation.ioid]
    assert operation.state is table.get(cell, aliases.get(cell, state))
    assert connection.state is ConnectionState.READY
    assert (operation.ioid in connection.operations) is (operation.state is not D)
    if (
        cell not in table
        and cell not in aliases
        and what in (IN.READY, IN.REPLY, IN.FINAL_REPLY, IN.FAILED_INIT)
    ):
        assert take(connection) == b""  # late answers go nowhere


# -- the client's end ----------------------------------------------------------------------------------


def client_operation(command: int, state: OperationState, *, ended_by_server: bool = False):
    wire = Wire().handshake()
    channel = wire.open()
    if state is C:
        operation = channel.operation(command, Value(SCALAR))
        take(wire.client)
        return wire.client, operation
    operation = wire.operation(channel, command)
    if state is X:
        operation.start() if command == c.CMD_MONITOR else operation.get()
    if state is D:
        if ended_by_server:
            wire.server.channels[channel.sid].close()
            wire.pump()
        else:
            operation.close()
    take(wire.client)
    wire.client.pending_events()
    assert operation.state is state
    return wire.client, operation


def from_server(connection, command: int, ioid: int, sub: int, rest: bytes) -> None:
    feed(connection, frame(command, u32(ioid) + bytes((sub,)) + rest, server=True))


TYPE = b"\x80\0\x01\x05value\x43"


def apply_at_client(command: int, connection, operation, what: OperationInput) -> None:
    monitor = command == c.CMD_MONITOR
    ioid = operation.ioid
    match what:
        case IN.READY:
            from_server(connection, command, ioid, 8, b"\xff" + TYPE)
        case IN.FAILED_INIT:
            from_server(connection, command, ioid, 8, b"\x02\x02no\0")
        case IN.EXECUTE:
            operation.get()
        case IN.REPLY:
            from_server(connection, command, ioid, 0, UPDATE if monitor else REPLY)
        case IN.FINAL_REPLY:
            from_server(connection, command, ioid, 0x10, b"\xff" if monitor else REPLY)
        case IN.START:
            operation.start()
        case IN.STOP:
            operation.stop()
        case IN.CANCEL:
            operation.cancel()
        case IN.DESTROY:
            operation.close()


_TWICE = {(state, what): RemoteProtocolError for state in (I, X) for what in (IN.READY, IN.FAILED_INIT)}
_CLIENT_REQUEST = {
    **_TWICE,
    (C, IN.REPLY): RemoteProtocolError,
    (C, IN.FINAL_REPLY): RemoteProtocolError,
    **{(state, IN.EXECUTE): LocalProtocolError for state in (C, X, D)},
    **{(state, what): LocalProtocolError for state in OperationState for what in (IN.START, IN.STOP)},
}
_CLIENT_MONITOR = {
    **_TWICE,
    (C, IN.REPLY): RemoteProtocolError,
    (C, IN.FINAL_REPLY): RemoteProtocolError,
    **{(state, IN.EXECUTE): LocalProtocolError for state in OperationState},
    **{(state, what): LocalProtocolError for state in (C, D) for what in (IN.START, IN.STOP)},
}
# A client does not know whether a cancelled request is still answered, so its state stays; a reply without a
# request is one that crossed; a client never asks for a final reply of a request, so that is any reply.
_CLIENT_REQUEST_ALIASES = {(X, IN.CANCEL): X, (X, IN.FINAL_REPLY): I}
_CLIENT_MONITOR_ALIASES = {(X, IN.CANCEL): X}


@pytest.mark.parametrize("cell", CELLS, ids=name)
@pytest.mark.parametrize(
    ("command", "table", "errors", "aliases"),
    [
        (c.CMD_GET, REQUEST_TRANSITIONS, _CLIENT_REQUEST, _CLIENT_REQUEST_ALIASES),
        (c.CMD_MONITOR, MONITOR_TRANSITIONS, _CLIENT_MONITOR, _CLIENT_MONITOR_ALIASES),
    ],
    ids=["request", "monitor"],
)
def test_each_cell_at_the_client(command, table, errors, aliases, cell):
    state, what = cell
    connection, operation = client_operation(command, state)
    error = errors.get(cell)
    if error is not None:
        assert cell not in table
        with pytest.raises(error):
            apply_at_client(command, connection, operation, what)
        if error is RemoteProtocolError:
            assert connection.state is ConnectionState.CLOSED
            assert operation.state is D
        else:
            assert operation.state is state
            assert take(connection) == b""  # a local error says nothing to the server
        return
    apply_at_client(command, connection, operation, what)
    assert operation.state is aliases.get(cell, table.get(cell, state))
    assert connection.state is ConnectionState.READY
    assert (operation.ioid in connection.operations) is (operation.state is not D)


@pytest.mark.parametrize("command", [c.CMD_GET, c.CMD_MONITOR])
def test_what_the_server_ended_is_no_fault_of_the_caller(command):
    """A server may end things between two events of one read: callers that act on the first must not break."""
    connection, operation = client_operation(command, D, ended_by_server=True)
    for call in (operation.start, operation.stop, operation.cancel, operation.close):
        if command == c.CMD_MONITOR or call not in (operation.start, operation.stop):
            call()
    if command == c.CMD_MONITOR:
        operation.acknowledge(1)
    else:
        with pytest.raises(ChannelClosedError, match="the server ended the GET"):
            operation.get()
    with pytest.raises(ChannelClosedError, match="the channel is closed"):
        operation.channel.operation(c.CMD_GET, Value(SCALAR))
    assert take(connection) == b""


@pytest.mark.parametrize(
    ("command", "calls"),
    [
        (c.CMD_GET, ["put", "call", "process", "acknowledge", "start", "stop"]),
        (c.CMD_PUT, ["call", "process", "acknowledge", "start"]),
        (c.CMD_RPC, ["get", "process", "acknowledge", "start"]),
        (c.CMD_PROCESS, ["get", "call", "acknowledge", "start"]),
        (c.CMD_MONITOR, ["get", "put", "call", "process"]),
    ],
)
def test_an_operation_has_only_the_requests_of_its_command(command, calls):
    wire = Wire().handshake()
    operation = wire.operation(wire.open(), command)
    arguments = {"put": Value(SCALAR), "call": None, "acknowledge": 1}
    for call in calls:
        with pytest.raises(LocalProtocolError):
            getattr(operation, call)(*([arguments[call]] if call in arguments else []))
        assert operation.state is I
    assert take(wire.client) == b""


# -- connections ---------------------------------------------------------------------------------------


def server_in(state: ConnectionState) -> ServerConnection:
    connection = ServerConnection()
    if state is ConnectionState.CLOSED:
        connection.receive_eof()
    elif state is not ConnectionState.VALIDATING:
        feed(connection, frame(c.CMD_CONNECTION_VALIDATION, bytes(8) + b"\0\xff"))
        if state is ConnectionState.READY:
            connection.validated(OK)
    take(connection)
    return connection


def client_in(state: ConnectionState) -> ClientConnection:
    if state is ConnectionState.READY:
        return ready_client()
    connection = ClientConnection()
    if state is ConnectionState.CLOSED:
        connection.receive_eof()
    elif state is ConnectionState.AUTHENTICATING:
        feed(connection, frame(c.CMD_CONNECTION_VALIDATION, bytes(7), server=True))
        connection.authenticate("anonymous")
    take(connection)
    return connection


@pytest.mark.parametrize("command", range(30))
@pytest.mark.parametrize("state", ConnectionState, ids=lambda state: state.value)
@pytest.mark.parametrize(
    ("make", "accepts", "server"),
    [(server_in, SERVER_ACCEPTS, False), (client_in, CLIENT_ACCEPTS, True)],
    ids=["server", "client"],
)
def test_each_command_in_each_state(make, accepts, server, state, command):
    """Not allowed: an error during the handshake, skipped afterwards (section 16.3). Allowed: acted upon, which an
    empty message shows by what is wrong with it. A closed connection hears nothing."""
    connection = make(state)
    message = frame(command, b"", server=server)
    tolerates_empty = command in (c.CMD_ECHO, c.CMD_AUTHNZ, c.CMD_MULTIPLE_DATA) or (
        server and command in (c.CMD_ARRAY, c.CMD_DESTROY_REQUEST, c.CMD_CANCEL_REQUEST)
    )
    if state is ConnectionState.CLOSED:
        assert connection.receive_data(message) == []
        assert take(connection) == b""
        return
    if command in accepts[state]:
        if tolerates_empty:
            assert connection.receive_data(message) == []
            assert connection.state is state
        elif command == c.CMD_CONNECTION_VALIDATION and state is ConnectionState.READY:
            with pytest.raises(RemoteProtocolError, match="second time"):
                connection.receive_data(message)
        else:
            with pytest.raises(DecodeError):
                connection.receive_data(message)
            assert connection.state is ConnectionState.CLOSED
    elif not server and state is ConnectionState.AUTHENTICATING and command in SERVER_HOLDS:
        assert connection.receive_data(message) == []
        assert connection.held
    elif command <= c.CMD_ORIGIN_TAG and state is not ConnectionState.READY:
        with pytest.raises(RemoteProtocolError, match="is not allowed while"):
            connection.receive_data(message)
        assert connection.state is ConnectionState.CLOSED
    else:
        assert connection.receive_data(message) == []
        assert connection.state is state
        assert take(connection) == b""


def test_a_closed_server_takes_late_answers_without_a_word():
    """Verdicts that come from elsewhere may come when the client has gone."""
    connection = ServerConnection()
    feed(connection, frame(c.CMD_CONNECTION_VALIDATION, bytes(8) + b"\0\xff"))
    responder = Responder(connection)
    connection.receive_eof()
    take(connection)
    connection.validated(OK)
    connection = ready_server()
    events = feed(connection, frame(c.CMD_CREATE_CHANNEL, b"\2\0" + u32(1) + b"\1d" + u32(2) + b"\1e"))
    closed = connection.receive_eof()
    assert [event.channel.name for event in closed] == ["d", "e"]
    responder = Responder(connection)
    responder(events)
    events[0].channel.accept()
    events[1].channel.reject("late")
    events[0].channel.set_permissions(0)
    events[0].channel.close()
    assert take(connection) == b""
    assert not connection.channels


def test_answers_that_nobody_asked_for_are_local_errors():
    connection = ready_server()
    with pytest.raises(LocalProtocolError, match="needs a connection that is authenticating"):
        connection.validated(OK)
    (event,) = feed(connection, frame(c.CMD_CREATE_CHANNEL, b"\1\0" + u32(1) + b"\1d"))
    event.channel.accept()
    for answer in (event.channel.accept, lambda: event.channel.reject("no")):
        with pytest.raises(LocalProtocolError, match="already"):
            answer()
    client = ClientConnection()
    for call in (lambda: client.authenticate("ca"), lambda: client.create_channel("x")):
        with pytest.raises(LocalProtocolError):
            call()
    client = ready_client()
    channel = client.create_channel("x")
    with pytest.raises(LocalProtocolError, match="has not been created yet"):
        channel.get_field()


def test_types_are_given_where_the_command_has_one_and_only_there():
    connection, operation = server_operation(c.CMD_GET, C)
    with pytest.raises(LocalProtocolError, match="GET needs a type"):
        operation.ready()
    assert operation.state is C
    operation.ready(SCALAR)
    feed(connection, frame(c.CMD_RPC, u32(1) + u32(2) + b"\x08\xff"))
    with pytest.raises(LocalProtocolError, match="RPC has no type"):
        connection.operations[2].ready(SCALAR)

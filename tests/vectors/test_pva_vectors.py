"""Recorded sessions with PVXS and pvAccessCPP: we understand theirs, and what we say is what they were content with."""

from __future__ import annotations

import pytest

from appliance.errors import AccessDeniedError
from appliance.pva import commands as c
from appliance.pva.client_connection import ClientConnection
from appliance.pva.events import AuthenticationReceived, Execute, OperationRequested
from appliance.pva.server_connection import ServerConnection
from appliance.pva.status import OK, Status
from appliance.pvdata import FLOAT64, INT32, StructType
from tests.helpers.recording import Replay, load, use_server
from tests.helpers.wire import Responder, bytewise, take, whole

CHUNKS = pytest.mark.parametrize("chunks", [whole, bytewise], ids=["whole", "bytewise"])


def test_a_session_with_a_server_of_pvxs():
    """Sections 6, 8 and 9 as p4p's server speaks them."""
    client = ClientConnection()
    told = use_server(client, Replay(client, load("pva_server_pvxs.hex")), more=False)
    assert told["methods"] == ("anonymous", "ca")
    assert told["verdict"] == told["created"] == told["get init"] == told["put init"] == told["put"] == OK
    assert told["field"].id == "epics:nt/NTScalar:1.0"
    assert (told["get"]["value"], told["get"].changed) == (1.5, 0b10)
    assert told["put get"]["value"] == 2.5
    assert (told["first"].store[1], told["second"].store[1]) == (2.5, 3.5)
    assert told["piped"].bits == 0b10
    assert told["rpc init"] == OK
    assert told["rpc"] == Status(2, "RPC not supported")
    assert told["refused"] == Status(3, "Refused to create Channel", "pvx:serv:refusechan:")


def test_a_session_with_a_server_of_pvaccesscpp():
    """The same as pvapy's server speaks it: types by ID, types narrowed to what the pvRequest selects."""
    client = ClientConnection()
    told = use_server(client, Replay(client, load("pva_server_cpp.hex")), more=True)
    assert told["field"] == StructType((("value", FLOAT64), ("n", StructType((("m", INT32),)))))
    assert told["get"].type == StructType((("value", FLOAT64),))
    assert (told["get"]["value"], told["put get"]["value"]) == (1.5, 2.5)
    assert told["first"].store == [None, 2.5, None, 7]
    assert (told["second"].bits, told["second"].store[1]) == (0b10, 3.5)
    assert told["rpc init"] == Status(2, "ChannelRPC not supported")
    assert told["put_get init"] == Status(2, "invalid pvRequest")
    assert told["process"] == OK


def replay_client(name: str, chunks) -> Responder:
    connection = ServerConnection()
    responder = Responder(connection)
    turns = load(name)
    assert turns[0][0] == "S"
    out = take(connection)
    for side, octets in turns:
        if side == "C":
            for piece in chunks(octets):
                responder(connection.receive_data(piece))
                while connection.stalled:
                    out += take(connection)
                    responder(connection.receive_data(b""))
        out += take(connection)
    said = b"".join(octets for side, octets in turns if side == "S")
    assert without_ports(out) == without_ports(said)
    return responder


def without_ports(octets: bytes) -> bytes:
    """Blank the TCP port in the answers to searches: it was another one each time."""
    out = bytearray(octets)
    pos = 0
    while pos < len(out):
        size = 0 if out[pos + 2] & 1 else int.from_bytes(out[pos + 4 : pos + 8], "little")
        if out[pos + 3] == c.CMD_SEARCH_RESPONSE:
            out[pos + 40 : pos + 42] = b"\0\0"
        pos += 8 + size
    return bytes(out)


@CHUNKS
@pytest.mark.parametrize("name", ["pva_client_pvxs.hex", "pva_client_cpp.hex"])
def test_a_session_of_an_independent_client(name, chunks):
    """p4p's and pvapy's client got, put, subscribed and called, and were content with these answers."""
    responder = replay_client(name, chunks)
    (identity,) = [event for event in responder.events if type(event) is AuthenticationReceived]
    assert identity.method == "ca"
    assert set(identity.payload["user"]) == set(identity.payload["host"]) == {"x"}
    executed = {event.operation.command for event in responder.events if type(event) is Execute}
    assert {c.CMD_GET, c.CMD_PUT, c.CMD_RPC} <= executed
    assert c.CMD_MONITOR in {e.operation.command for e in responder.events if type(e) is OperationRequested}
    if name == "pva_client_cpp.hex":
        assert c.CMD_PUT_GET in executed
    assert not responder.connection.channels or responder.connection.receive_eof()


def test_a_get_of_what_a_put_get_would_write_is_a_read():
    """pvAccessCPP's putGet starts by sub-commands 0x40 and 0x80, which ask for present values."""
    connection = ServerConnection()
    seen = []
    responder = Responder(connection)
    for side, octets in load("pva_client_cpp.hex"):
        if side == "C":
            events = connection.receive_data(octets)
            seen += [
                (e.operation.sub, e.operation.is_get, e.argument is None) for e in events if is_put_get(e)
            ]
            responder(events)
            take(connection)
    assert seen == [(c.SUB_GET, True, True), (c.SUB_ACK, True, True), (0, False, False)]


def is_put_get(event) -> bool:
    return type(event) is Execute and event.operation.command == c.CMD_PUT_GET


def test_a_refused_put_is_recognised_in_the_recordings():
    with pytest.raises(AccessDeniedError):
        Status.error("Put not permitted").raise_for("d")

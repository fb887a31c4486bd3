"""Recordings of whole sessions with independent peers: made once on the loopback, replayed by tests for ever.

A recording is a text file of lines ``C <hex>`` (the client said) and ``S <hex>`` (the server said), in order.
``python -m tests.helpers.recording`` makes them anew; it needs p4p (PVXS) and pvapy (pvAccessCPP).
"""

from __future__ import annotations

import contextlib
import getpass
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from appliance.pva import commands as c
from appliance.pva.client_connection import ClientConnection
from appliance.pva.connection import Connection
from appliance.pva.events import (
    AuthenticationOffered,
    ChannelClosed,
    ChannelCreated,
    FieldReply,
    MonitorUpdate,
    OperationReady,
    OperationReply,
    Validated,
)
from appliance.pva.search import SearchRequest
from appliance.pva.server_connection import ServerConnection
from appliance.pvdata import STRING, StructType, Value
from appliance.pvdata.primitives import encode_string
from tests.helpers.ports import free_port
from tests.helpers.wire import Responder, request, take

VECTORS = Path(__file__).parent.parent / "vectors"
_LINE = 64

Turns = list[tuple[str, bytes]]


def load(name: str) -> Turns:
    """Read a recording; what one side said without interruption is one item."""
    turns: Turns = []
    for line in (VECTORS / name).read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        side, octets = line[0], bytes.fromhex(line[2:])
        if turns and turns[-1][0] == side:
            turns[-1] = (side, turns[-1][1] + octets)
        else:
            turns.append((side, octets))
    return turns


def save(name: str, title: str, turns: Turns) -> None:
    lines = [f"# {title}"]
    for side, octets in turns:
        lines += [f"{side} {octets[pos : pos + _LINE].hex()}" for pos in range(0, len(octets), _LINE)]
    (VECTORS / name).write_text("\n".join(lines) + "\n")


class Live:
    """Carries what a client's end says to a real server, and the answers back, and writes both down."""

    def __init__(self, connection: Connection, port: int) -> None:
        self.connection = connection
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=5)
        self.turns: Turns = []

    def __call__(self, kind: type, count: int = 1) -> list:
        """Send what waits; return the events up to the ``count``-th of ``kind``."""
        out = take(self.connection)
        if out:
            self.turns.append(("C", out))
            self.socket.sendall(out)
        events: list = []
        while sum(type(event) is kind for event in events) < count:
            data = self.socket.recv(65536)
            if not data:
                raise EOFError(f"the server closed the connection instead of {kind.__name__}")
            self.turns.append(("S", data))
            events += self.connection.receive_data(data)
        return events


class Replay:
    """The same from a recording; what our end says must be what it said then."""

    def __init__(self, connection: Connection, turns: Turns) -> None:
        self.connection = connection
        self.turns = list(turns)

    def __call__(self, kind: type, count: int = 1) -> list:
        out = take(self.connection)
        if out:
            side, said = self.turns.pop(0)
            assert (side, out.hex(" ")) == ("C", said.hex(" "))
        events: list = []
        while sum(type(event) is kind for event in events) < count:
            side, said = self.turns.pop(0)
            assert side == "S"
            events += self.connection.receive_data(said)
        return events


def use_server(client: ClientConnection, exchange, *, more: bool) -> dict:
    """Do with a server's PV ``pv`` (a double that is 1.5) all that servers have; ``more``: PUT_GET and PROCESS too."""
    told: dict = {}
    told["methods"] = exchange(AuthenticationOffered)[-1].methods
    identity = Value(StructType((("user", STRING), ("host", STRING))))
    identity["user"] = "operator"
    identity["host"] = "workstation"
    client.authenticate("ca", identity)
    told["verdict"] = exchange(Validated)[0].status
    channel = client.create_channel("pv")
    told["created"] = exchange(ChannelCreated)[-1].status

    def begin(command: int, text: str = "", window: int = 0):
        operation = channel.operation(command, request(text), window=window)
        return operation, exchange(OperationReady)[-1].status

    def reply():
        return exchange(OperationReply)[-1]

    channel.get_field()
    told["field"] = exchange(FieldReply)[-1].type
    get, told["get init"] = begin(c.CMD_GET, "field(value)")
    get.get()
    told["get"] = reply().value
    put, told["put init"] = begin(c.CMD_PUT, "field(value)")
    value = Value(put.type)
    value["value"] = 2.5
    put.put(value)
    told["put"] = reply().status
    put.get()
    told["put get"] = reply().value
    monitor, told["monitor init"] = begin(c.CMD_MONITOR)
    monitor.start()
    told["first"] = exchange(MonitorUpdate)[-1]
    value["value"] = 3.5
    put.put(value)
    events = exchange(MonitorUpdate)
    if not any(type(event) is OperationReply for event in events):
        exchange(OperationReply)
    told["second"] = next(event for event in events if type(event) is MonitorUpdate)
    monitor.close()
    piped, told["pipeline init"] = begin(c.CMD_MONITOR, "field(value)record[pipeline=true,queueSize=4]", 4)
    piped.start()
    told["piped"] = exchange(MonitorUpdate)[-1]
    piped.acknowledge(1)
    piped.close()
    rpc, told["rpc init"] = begin(c.CMD_RPC)
    if told["rpc init"].ok:
        rpc.call(value)
        told["rpc"] = reply().status
    if more:
        put_get, told["put_get init"] = begin(c.CMD_PUT_GET)
        if told["put_get init"].ok:
            value = Value(put_get.type)
            value["value"] = 4.5
            put_get.put(value)
            told["put_get"] = reply().value
        process, told["process init"] = begin(c.CMD_PROCESS)
        if told["process init"].ok:
            process.process()
            told["process"] = reply().status
    get.close()
    refused = client.create_channel("no such pv")
    if not more:
        told["refused"] = exchange(ChannelCreated)[-1].status
        assert told["refused"].ok or refused.cid not in client.channels
    channel.close()
    exchange(ChannelClosed, 0)
    return told


_P4P_SERVER = """
import sys, time
from p4p.server import Server
from p4p.server.thread import SharedPV
from p4p.nt import NTScalar
pv = SharedPV(nt=NTScalar('d'), initial=1.5)
@pv.put
def put(pv, op):
    pv.post(op.value())
    op.done()
conf = {'EPICS_PVAS_SERVER_PORT': sys.argv[1], 'EPICS_PVAS_BROADCAST_PORT': sys.argv[2],
        'EPICS_PVAS_INTF_ADDR_LIST': '127.0.0.1', 'EPICS_PVAS_AUTO_BEACON_ADDR_LIST': 'NO'}
with Server(providers=[{'pv': pv}], conf=conf, useenv=False):
    print('up', flush=True)
    sys.stdin.read()
"""
_PVAPY_SERVER = """
import os, sys
os.environ.update(EPICS_PVAS_SERVER_PORT=sys.argv[1], EPICS_PVAS_BROADCAST_PORT=sys.argv[2],
                  EPICS_PVAS_INTF_ADDR_LIST='127.0.0.1', EPICS_PVAS_AUTO_BEACON_ADDR_LIST='NO')
import pvaccess as pva
server = pva.PvaServer('pv', pva.PvObject({'value': pva.DOUBLE, 'n': {'m': pva.INT}}, {'value': 1.5, 'n': {'m': 7}}))
print('up', flush=True)
sys.stdin.read()
"""
_P4P_CLIENT = """
import queue, sys
from p4p.client.thread import Context, RemoteError
conf = {'EPICS_PVA_NAME_SERVERS': '127.0.0.1:' + sys.argv[1], 'EPICS_PVA_ADDR_LIST': '', 'EPICS_PVA_AUTO_ADDR_LIST': 'NO',
        'EPICS_PVA_BROADCAST_PORT': sys.argv[2]}
with Context('pva', conf=conf, useenv=False, nt=False) as ctx:
    assert ctx.get('d')['value'] == 0.0
    ctx.put('d', {'value': 2.0})
    assert ctx.get('d', request='field(value)')['value'] == 2.0
    try:
        ctx.put('d', {'value': -1.0})
    except RemoteError as e:
        assert 'Put not permitted' in str(e)
    else:
        raise AssertionError
    seen = queue.Queue()
    with ctx.monitor('d', seen.put, request='record[pipeline=true,queueSize=4]'):
        assert seen.get(timeout=5)['value'] == 2.0
        for number in range(6):
            ctx.put('d', {'value': 10.0 + number})
            assert seen.get(timeout=5)['value'] == 10.0 + number
    from p4p.nt import NTURI
    uri = NTURI([('a', 'd')]).wrap('d', kws={'a': 5.0})
    assert ctx.rpc('d', uri).query.a == 5.0
"""
_PVAPY_CLIENT = """
import os, sys, time, queue
os.environ.update(EPICS_PVA_ADDR_LIST='127.0.0.1', EPICS_PVA_AUTO_ADDR_LIST='NO', EPICS_PVA_BROADCAST_PORT=sys.argv[2],
                  EPICS_PVA_NAME_SERVERS='127.0.0.1:' + sys.argv[1])
import pvaccess as pva
ch = pva.Channel('d')
assert ch.get('')['value'] == 0.0
ch.put(2.0)
assert ch.get('field(value)')['value'] == 2.0
try:
    ch.put(-1.0)
except pva.PvaException as e:
    assert 'Put not permitted' in str(e), e
else:
    raise AssertionError
assert ch.putGet(3.0)['value'] == 3.0
seen = queue.Queue()
ch.subscribe('me', lambda v: seen.put(v['value']))
ch.startMonitor('')
assert seen.get(timeout=5) == 3.0
ch.put(4.0)
assert seen.get(timeout=5) == 4.0
ch.stopMonitor()
rpc = pva.RpcClient('d')
assert rpc.invoke(pva.PvObject({'a': pva.DOUBLE}, {'a': 5.0}))['a'] == 5.0
time.sleep(.1)
os._exit(0)
"""


@contextlib.contextmanager
def peer(program: str, *arguments: object):
    """Run a peer until the block ends; the block begins when the peer says that it is up."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        yield process
    finally:
        process.kill()
        process.wait()


def record_server(program: str, *, more: bool) -> Turns:
    """Our client's end with a real server."""
    port = free_port()
    with peer(program, port, free_port()):
        deadline = time.monotonic() + 10
        while True:
            try:
                live = Live(client := ClientConnection(), port)
                break
            except ConnectionRefusedError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        print(use_server(client, live, more=more))
        last = take(client)
        if last:
            live.turns.append(("C", last))
        live.socket.close()
        return live.turns


class RecordingServer:
    """Our server's end for real clients, one thread each: ``Responder`` decides what is answered."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        self.udp_port = self.udp.getsockname()[1]
        self.sessions: list[Turns] = []
        self.threads = [threading.Thread(target=run, daemon=True) for run in (self._accept, self._search)]
        for thread in self.threads:
            thread.start()

    def _accept(self) -> None:
        while True:
            sock, _ = self.listener.accept()
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            self.threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        turns: Turns = []
        self.sessions.append(turns)
        connection = ServerConnection()
        responder = Responder(connection)
        responder.port = self.port
        data = b""
        while True:
            responder(connection.receive_data(data))
            out = take(connection)
            if out:
                turns.append(("S", out))
                sock.sendall(out)
            if connection.stalled:
                data = b""
                continue
            data = sock.recv(65536)
            if not data:
                return
            turns.append(("C", data))

    def _search(self) -> None:
        from appliance.pva.search import SearchResponse, decode_datagram, pack_message
        from tests.helpers.wire import GUID

        while True:
            data, address = self.udp.recvfrom(65536)
            for message in decode_datagram(data):
                if isinstance(message, SearchRequest) and message.names:
                    answer = SearchResponse(
                        GUID,
                        message.sequence,
                        None,
                        self.port,
                        "tcp",
                        True,
                        tuple(n for n, _ in message.names),
                    )
                    port = message.reply_port or address[1]
                    self.udp.sendto(pack_message(4, answer.encode(), from_server=True), (address[0], port))


def record_client(program: str, udp_port: int = 0) -> Turns:
    """A real client with our server's end; PVXS wants a UDP port of its own and finds us by our TCP port."""
    server = RecordingServer()
    subprocess.run(
        [sys.executable, "-c", program, str(server.port), str(udp_port or server.udp_port)],
        check=True,
        timeout=60,
    )
    time.sleep(0.2)
    return neutral(max(server.sessions, key=lambda turns: sum(len(octets) for _, octets in turns)))


def neutral(turns: Turns) -> Turns:
    """Blot out who made the recording, and where."""
    for text in (getpass.getuser(), socket.gethostname()):
        raw = encode_string(text)
        blot = raw[:1] + b"x" * (len(raw) - 1)
        turns = [(side, octets.replace(raw, blot)) for side, octets in turns]
    return turns


def main() -> None:
    save(
        "pva_server_pvxs.hex",
        "our client with a server of p4p 4.3 (PVXS)",
        record_server(_P4P_SERVER, more=False),
    )
    save(
        "pva_server_cpp.hex",
        "our client with a server of pvapy 5.6 (pvAccessCPP)",
        record_server(_PVAPY_SERVER, more=True),
    )
    save(
        "pva_client_pvxs.hex",
        "a client of p4p 4.3 (PVXS) with our server",
        record_client(_P4P_CLIENT, free_port()),
    )
    save(
        "pva_client_cpp.hex",
        "a client of pvapy 5.6 (pvAccessCPP) with our server",
        record_client(_PVAPY_CLIENT),
    )


if __name__ == "__main__":
    main()

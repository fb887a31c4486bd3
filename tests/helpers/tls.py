"""Driving TLS engines in tests: two against each other, or one over a real socket."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from appliance.errors import TLSError
from appliance.tls.context import TLSContext
from appliance.tls.engine import TLSEngine

TIMEOUT_S = 30


def exchange(
    server: TLSEngine, client: TLSEngine, *, step: int | None = None
) -> tuple[TLSError | None, TLSError | None]:
    """Carry bytes both ways until neither end has any left; ``step`` bytes at a time.

    Returns why the server and the client failed, if they did.
    """
    failures: list[TLSError | None] = [None, None]
    while True:
        moved = False
        for index, (source, target) in enumerate(((client, server), (server, client))):
            data = source.data_to_send()
            moved = moved or bool(data)
            size = step or max(len(data), 1)
            try:
                for start in range(0, len(data), size):
                    assert target.receive_data(data[start : start + size]) == []
            except TLSError as exc:
                failures[index] = failures[index] or exc
        if not moved:
            return failures[0], failures[1]


def engines(server: TLSContext, client: TLSContext) -> tuple[TLSEngine, TLSEngine]:
    """A server's and a client's engine, the client started."""
    pair = TLSEngine(server, True), TLSEngine(client, False)
    pair[1].start()
    return pair


def connected(server: TLSContext, client: TLSContext) -> tuple[TLSEngine, TLSEngine]:
    """A server's and a client's engine after a handshake that succeeded."""
    pair = engines(server, client)
    assert exchange(*pair) == (None, None)
    assert pair[0].handshake_complete
    assert pair[1].handshake_complete
    return pair


class Driver:
    """One engine over one blocking socket."""

    def __init__(self, sock: socket.socket, engine: TLSEngine) -> None:
        sock.settimeout(TIMEOUT_S)
        self.sock = sock
        self.engine = engine
        self.received = bytearray()
        if not engine.server_side:
            engine.start()
        self.flush()

    def flush(self) -> None:
        data = self.engine.data_to_send()
        if data:
            self.sock.sendall(data)

    def pump(self) -> bool:
        """Read once; ``False`` at the network's end."""
        data = self.sock.recv(65536)
        if not data:
            self.engine.receive_eof()
            return False
        try:
            for chunk in self.engine.receive_data(data):
                self.received += chunk
        finally:
            self.flush()
        return True

    def handshake(self) -> None:
        while not self.engine.handshake_complete:
            assert self.pump(), "the connection ended in the handshake"

    def send(self, data: bytes) -> None:
        self.engine.send(data)
        self.flush()

    def read_until(self, end: bytes) -> bytes:
        while end not in self.received:
            assert self.pump(), f"the connection ended; received {bytes(self.received)!r}"
        return bytes(self.received)


@contextmanager
def openssl_server(*options: object) -> Iterator[int]:
    """``openssl s_server`` for one connection on a free port; what it gets it sends back, each line reversed."""
    command = ["openssl", "s_server", "-accept", "127.0.0.1:0", "-rev", "-naccept", "1", *map(str, options)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith(b"ACCEPT"):
                    yield int(line.rsplit(b":", 1)[1])
                    break
            else:
                raise AssertionError(f"openssl s_server did not start: {command}")
        finally:
            process.kill()


def openssl_client(port: int, options: Sequence[object], text: bytes = b"") -> subprocess.Popen[bytes]:
    """``openssl s_client`` to a port of this machine; ``text`` is its standard input."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", *map(str, options)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdin is not None
    process.stdin.write(text)
    process.stdin.flush()
    return process

"""A neutral driver: raw PVAccess over a blocking socket, with none of the package's own code in it.

It costs the server under test as little as a client can, and both servers the same.
"""

from __future__ import annotations

import selectors
import socket
import ssl
import statistics
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

SEARCH, SEARCH_RESPONSE, CREATE_CHANNEL = 3, 4, 7
GET, MONITOR, RPC = 10, 13, 20
EMPTY_REQUEST = b"\x80\x00\x01\x05field\x80\x00\x00"


def nothing() -> None:
    pass


def text(value: str) -> bytes:
    raw = value.encode()
    return bytes((len(raw),)) + raw


class Driver:
    """One connection, anonymous."""

    def __init__(self, port: int, *, tls: bool | ssl.SSLContext = False) -> None:
        sock: socket.socket = socket.create_connection(("127.0.0.1", port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is True:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            tls.check_hostname = False
            tls.verify_mode = ssl.CERT_NONE
        if tls:
            sock = tls.wrap_socket(sock)
        self.sock = sock
        self.buffer = bytearray()
        self.sids: list[int] = []
        """The server's numbers of the channels that `channels` opened."""
        self.wait_for(1)
        self.send(1, struct.pack("<IHH", 65536, 32767, 0) + text("anonymous") + b"\xff")
        self.wait_for(9)

    def close(self) -> None:
        self.sock.close()

    def send(self, command: int, payload: bytes) -> None:
        self.sock.sendall(struct.pack("<BBBBI", 0xCA, 2, 0, command, len(payload)) + payload)

    def message(self) -> tuple[int, bytes]:
        buffer = self.buffer
        while True:
            if len(buffer) >= 8:
                _, _, flags, command, size = struct.unpack_from("<BBBBI", buffer)
                if flags & 1:
                    del buffer[:8]
                    continue
                if len(buffer) >= 8 + size:
                    payload = bytes(buffer[8 : 8 + size])
                    del buffer[: 8 + size]
                    return command, payload
            data = self.sock.recv(1 << 20)
            if not data:
                raise EOFError
            buffer += data

    def wait_for(self, command: int) -> bytes:
        while True:
            got, payload = self.message()
            if got == command:
                return payload

    def channel(self, name: str, cid: int) -> int:
        self.send(7, struct.pack("<HI", 1, cid) + text(name))
        payload = self.wait_for(7)
        assert payload[8] == 0xFF, payload
        return int(struct.unpack_from("<II", payload)[1])

    def search(self, names: Sequence[str], *, again_after: float = 0.05, seconds: float = 30.0) -> None:
        """Return when the server has claimed all ``names``; it is asked again for those that are left."""
        left = {number: text(name) for number, name in enumerate(names)}
        deadline = time.perf_counter() + seconds
        while left and time.perf_counter() < deadline:
            for part in batched(left.items(), 500):
                items = b"".join(struct.pack("<I", number) + name for number, name in part)
                head = struct.pack("<IB3x16xH", 1, 0x80, 0) + b"\x01" + text("tcp")
                self.send(SEARCH, head + struct.pack("<H", len(part)) + items)
            again = time.perf_counter() + again_after
            while left and (patience := again - time.perf_counter()) > 0:
                self.sock.settimeout(patience)
                try:
                    command, payload = self.message()
                except TimeoutError:
                    break
                finally:
                    self.sock.settimeout(None)
                if command == SEARCH_RESPONSE:
                    for number in found(payload):
                        left.pop(number, None)
        if left:
            raise RuntimeError(f"{len(left)} of {len(names)} names were not claimed in {seconds} s")

    def channels(self, names: Sequence[str]) -> list[int]:
        """Open all ``names`` at once; gives their server IDs in the order of the names."""
        for number, name in enumerate(names, 1):
            self.send(CREATE_CHANNEL, struct.pack("<HI", 1, number) + text(name))
        opened: dict[int, int] = {}
        while len(opened) < len(names):
            payload = self.wait_for(CREATE_CHANNEL)
            cid, sid = struct.unpack_from("<II", payload)
            if payload[8] != 0xFF:
                raise RuntimeError(payload[9:].decode("utf-8", "replace"))
            opened[cid] = sid
        self.sids = [opened[number] for number in range(1, len(names) + 1)]
        return self.sids

    def init(self, command: int, sid: int, ioid: int) -> None:
        self.send(command, struct.pack("<IIB", sid, ioid, 8) + EMPTY_REQUEST)
        payload = self.wait_for(command)
        assert payload[5] == 0xFF, payload


def batched(items: Iterable[tuple[int, bytes]], size: int) -> Iterator[list[tuple[int, bytes]]]:
    rest = iter(items)
    while part := list(islice(rest, size)):
        yield part


def found(payload: bytes) -> tuple[int, ...]:
    """The search IDs that a SEARCH_RESPONSE claims."""
    at = 12 + 4 + 16 + 2
    at += 1 + payload[at]
    if not payload[at]:
        return ()
    count = struct.unpack_from("<H", payload, at + 1)[0]
    return struct.unpack_from(f"<{count}I", payload, at + 3)


def get_request(sid: int, ioid: int) -> bytes:
    return struct.pack("<BBBBIIIB", 0xCA, 2, 0, GET, 9, sid, ioid, 0)


def pipelined_gets(
    port: int, name: str, *, tls: bool = False, outstanding: int = 1000, seconds: float = 1.0
) -> float:
    """GETs answered per second with ``outstanding`` requests always under way, each of its own operation."""
    driver = Driver(port, tls=tls)
    return answered_gets(driver, [driver.channel(name, 1)] * outstanding, seconds)


def pipelined_distinct(
    port: int,
    names: Sequence[str],
    *,
    tls: bool = False,
    seconds: float = 1.0,
    begun: Callable[[], None] = nothing,
) -> float:
    """The same with one operation for each of ``names``; all names have to have values of one size.

    ``begun`` is called when all operations are there and the counting begins.
    """
    driver = Driver(port, tls=tls)
    driver.search(names)
    return answered_gets(driver, driver.channels(names), seconds, begun)


def answered_gets(
    driver: Driver, sids: Sequence[int], seconds: float, begun: Callable[[], None] = nothing
) -> float:
    outstanding = len(sids)
    for ioid, sid in enumerate(sids, 1):
        driver.init(GET, sid, ioid)
    driver.sock.sendall(get_request(sids[0], 1))
    size = 8 + len(driver.wait_for(GET))
    requests = [get_request(sid, ioid) for ioid, sid in enumerate(sids, 1)]
    halves = [b"".join(requests[: outstanding // 2]), b"".join(requests[outstanding // 2 :])]
    half_size = size * (outstanding // 2)
    into = bytearray(1 << 20)
    begun()
    driver.sock.sendall(halves[0])
    driver.sock.sendall(halves[1])
    got = done = turn = 0
    start = time.perf_counter()
    while True:
        received = driver.sock.recv_into(into)
        if not received:
            raise EOFError("the server closed the connection")
        got += received
        while got >= half_size:
            got -= half_size
            done += outstanding // 2
            elapsed = time.perf_counter() - start
            if elapsed >= seconds:
                driver.close()
                return done / elapsed
            driver.sock.sendall(halves[turn])
            turn ^= 1


def calls(
    port: int, name: str, arguments: Sequence[bytes], in_flight: int, *, tls: bool = False
) -> list[float]:
    """Call ``name`` once per argument (type and value, encoded); gives the seconds that each call took.

    Raises RuntimeError with the server's words for a call that fails.
    """
    driver = Driver(port, tls=tls)
    sid = driver.channel(name, 1)
    for ioid in range(in_flight):
        driver.init(RPC, sid, ioid)
    clock = time.perf_counter
    started = [0.0] * in_flight
    took: list[float] = []
    waiting = iter(arguments)

    def begin(ioid: int) -> None:
        argument = next(waiting, None)
        if argument is not None:
            started[ioid] = clock()
            driver.send(RPC, struct.pack("<IIB", sid, ioid, 0) + argument)

    for ioid in range(min(in_flight, len(arguments))):
        begin(ioid)
    while len(took) < len(arguments):
        payload = driver.wait_for(RPC)
        ioid = int(struct.unpack_from("<I", payload)[0])
        if payload[5] != 0xFF:
            raise RuntimeError(payload[6:].decode("utf-8", "replace"))
        took.append(clock() - started[ioid])
        begin(ioid)
    driver.close()
    return took


def get_latency(port: int, name: str, *, tls: bool = False, count: int = 5000) -> float:
    """Median time of one GET, in microseconds."""
    driver = Driver(port, tls=tls)
    sid = driver.channel(name, 1)
    driver.init(GET, sid, 1)
    request = get_request(sid, 1)
    times = []
    clock = time.perf_counter
    sock = driver.sock
    for _ in range(count):
        start = clock()
        sock.sendall(request)
        sock.recv(65536)
        times.append(clock() - start)
    driver.close()
    return statistics.median(times) * 1e6


def first_get(port: int, names: Sequence[str]) -> float:
    """Median time of the first GET of a name, with its channel and its INIT, in microseconds."""
    driver = Driver(port)
    times = []
    for number, name in enumerate(names, 1):
        start = time.perf_counter()
        sid = driver.channel(name, number)
        driver.init(GET, sid, number)
        driver.sock.sendall(get_request(sid, number))
        payload = driver.wait_for(GET)
        times.append(time.perf_counter() - start)
        assert payload[5] == 0xFF, payload
    driver.close()
    return statistics.median(times) * 1e6


def large_get(port: int, name: str, *, tls: bool = False, count: int = 20) -> float:
    """Octets of a large value read per second, one GET after the other."""
    driver = Driver(port, tls=tls)
    sid = driver.channel(name, 1)
    driver.init(GET, sid, 1)
    request = get_request(sid, 1)
    into = bytearray(1 << 22)
    total = 0
    start = 0.0
    for round_ in range(count + 2):
        if round_ == 2:
            total, start = 0, time.perf_counter()
        driver.sock.sendall(request)
        head = b""
        while len(head) < 8:
            received = driver.sock.recv(8 - len(head))
            if not received:
                raise EOFError("the server closed the connection")
            head += received
        left = struct.unpack_from("<I", head, 4)[0]
        total += left
        while left:
            came = driver.sock.recv_into(into, min(left, len(into)))
            if not came:
                raise EOFError("the server closed the connection")
            left -= came
    elapsed = time.perf_counter() - start
    driver.close()
    return total / elapsed


class Counted(NamedTuple):
    """What all connections together received, per second."""

    updates: float
    octets: float


def count_updates(ports: list[int], names: list[str], *, seconds: float = 2.0) -> float:
    """Updates received per second by one connection per entry of ``ports``, each subscribed to all ``names``."""
    return count_received(ports, names, seconds=seconds).updates


def count_received(
    ports: list[int],
    names: list[str],
    *,
    seconds: float = 2.0,
    tls: bool = False,
    begun: Callable[[], None] = nothing,
) -> Counted:
    """The same with the octets. ``begun`` is called when all are subscribed and the counting begins."""
    drivers = [subscribed(port, names, tls) for port in ports]
    for (
        driver
    ) in drivers:  # not before all are there: who is flooded and does not read yet costs the server time
        begin(driver, len(names))
    selector = selectors.DefaultSelector()
    for driver in drivers:
        driver.sock.setblocking(False)
        selector.register(driver.sock, selectors.EVENT_READ, driver)
    count = octets = 0
    warm = time.perf_counter() + 0.3
    start = 0.0
    size_of = struct.Struct("<I").unpack_from
    while True:
        for key, _ in selector.select(1.0):
            driver = key.data
            buffer = driver.buffer
            octets += read_into(driver.sock, buffer, tls)
            pos, end = 0, len(buffer)
            seen = 0
            while end - pos >= 8:
                after = pos + 8 + size_of(buffer, pos + 4)[0]
                if after > end:
                    break
                pos = after
                seen += 1
            del buffer[:pos]
            count += seen
        now = time.perf_counter()
        if not start:
            if now >= warm:
                count, octets, start = 0, 0, now
                begun()
        elif now - start >= seconds:
            break
    for driver in drivers:
        driver.close()
    return Counted(count / (now - start), octets / (now - start))


def subscribed(port: int, names: list[str], tls: bool) -> Driver:
    """A connection with a subscription to each of ``names``; none of them has begun."""
    driver = Driver(port, tls=tls)
    for number, sid in enumerate(driver.channels(names), 1):
        driver.send(MONITOR, struct.pack("<IIB", sid, number, 8) + EMPTY_REQUEST)
        payload = driver.wait_for(MONITOR)
        assert payload[4] == 8, payload
        assert payload[5] == 0xFF, payload
    return driver


def begin(driver: Driver, subscriptions: int) -> None:
    sids = driver.sids
    for number in range(1, subscriptions + 1):
        driver.send(MONITOR, struct.pack("<IIB", sids[number - 1], number, 0x44))


def read_into(sock: socket.socket, buffer: bytearray, tls: bool) -> int:
    """Append what has come; a TLS socket is emptied, since what it holds decrypted makes no socket readable."""
    before = len(buffer)
    try:
        while True:
            data = sock.recv(1 << 18)
            if not data:
                raise EOFError("the server closed the connection")
            buffer += data
            if not tls:
                break
    except (BlockingIOError, ssl.SSLWantReadError):
        pass
    return len(buffer) - before

"""A large IOC while it starts, and while clients come: when searches are answered, and how long 40 000 subscriptions take.

The peer is the reference IOC (pvxslibs) with the same database.
"""

from __future__ import annotations

import socket
import statistics
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench.bench_ioc_rates import BIG, numbers
from bench.iocs import PEER, cpu_seconds, ioc, message, starting, wait_until_served
from bench.table import Row
from bench.wire import EMPTY_REQUEST, MONITOR, SEARCH, SEARCH_RESPONSE, Driver, text

ROUNDS = 3
PERIOD_S = 0.05
"""How often a name is searched for until it is found."""
SUBSCRIPTIONS = 40_000
AT_ONCE = 256
"""Channels that the client opens before it waits for the answers."""


class Began(NamedTuple):
    """How an IOC began to serve; all in seconds."""

    served: float
    """From the start of the process until it says that its records are served."""
    udp: float
    """From then until a search by UDP was answered; negative if that was before."""
    tcp: float
    """The same of a client that has the IOC as a name server."""


def question(name: str, port: int) -> bytes:
    head = struct.pack("<IB3x16sHB", 1, 0x81, bytes(10) + b"\xff\xff\x7f\x00\x00\x01", port, 1) + text("tcp")
    return message(SEARCH, head + struct.pack("<HI", 1, 1) + text(name))


def claims(payload: bytes) -> bool:
    """Whether a SEARCH_RESPONSE claims a name, in any byte order."""
    return bool(payload[35 + payload[34]])


def first_udp_answer(udp: int, name: str) -> float:
    """When a search was answered that is repeated until then."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(PERIOD_S)
        data = question(name, sock.getsockname()[1])
        while True:
            try:
                sock.sendto(data, ("127.0.0.1", udp))
                while True:
                    answer = sock.recv(65536)
                    if answer[3] == SEARCH_RESPONSE and claims(answer[8:]):
                        return time.perf_counter()
            except (TimeoutError, ConnectionRefusedError):
                time.sleep(0.001)


def first_tcp_answer(tcp: int, name: str) -> float:
    """The same over TCP; a client connects again and again, and stays when it is let in."""
    while True:
        try:
            driver = Driver(tcp)
        except (ConnectionError, EOFError):
            time.sleep(PERIOD_S)
            continue
        driver.search([name], again_after=PERIOD_S, seconds=120.0)
        driver.close()
        return time.perf_counter()


def began(which: str, database: Path) -> Began:
    name = f"b:{BIG - 1}"
    answers: dict[str, float] = {}
    with starting(which, database) as begun:
        ways = {
            "udp": lambda: first_udp_answer(begun.udp, name),
            "tcp": lambda: first_tcp_answer(begun.tcp, name),
        }
        threads = [
            threading.Thread(target=lambda way=way, ask=ask: answers.update({way: ask()}), daemon=True)
            for way, ask in ways.items()
        ]
        for thread in threads:
            thread.start()
        wait_until_served(begun)
        served = time.perf_counter()
        for thread in threads:
            thread.join(60.0)
        return Began(served - begun.begin, answers["udp"] - served, answers["tcp"] - served)


class Subscribed(NamedTuple):
    """How long a client took for its subscriptions to records that change."""

    seconds: float
    cpu: float
    """CPU seconds of the server's process meanwhile."""


class Reader:
    """Reads messages, and passes over updates as cheaply as it can: the client must not be what takes the time."""

    def __init__(self, driver: Driver) -> None:
        self.sock = driver.sock
        self.buffer = driver.buffer
        self.updates = 0

    def read(self) -> list[tuple[int, bytes]]:
        """Return the messages of the next read but updates, which are counted."""
        buffer = self.buffer
        data = self.sock.recv(1 << 20)
        if not data:
            raise EOFError("the server has closed the connection")
        buffer += data
        found = []
        at, end = 0, len(buffer)
        head = HEAD.unpack_from
        while end - at >= 8:
            flags, command, size = head(buffer, at)
            after = at + 8 + (0 if flags & 1 else size)
            if after > end:
                break
            if command == MONITOR and buffer[at + 12] == 0:
                self.updates += 1
            elif not flags & 1:
                found.append((command, bytes(buffer[at + 8 : after])))
            at = after
        del buffer[:at]
        return found


HEAD = struct.Struct("<xxBBI")


def subscribed(which: str, database: Path) -> Subscribed:
    """Subscribe to all records, some at a time, while all that are subscribed already send their updates."""
    with ioc(which, database) as server:
        time.sleep(2.0)
        driver = Driver(server.tcp)
        reader = Reader(driver)
        cpu, begin = cpu_seconds(server.pid), time.perf_counter()
        for first in range(1, SUBSCRIPTIONS + 1, AT_ONCE):
            some = range(first, min(first + AT_ONCE, SUBSCRIPTIONS + 1))
            driver.sock.sendall(
                b"".join(message(7, struct.pack("<HI", 1, cid) + text(f"b:{cid - 1}")) for cid in some)
            )
            sids: dict[int, int] = {}
            ready = 0
            while ready < len(some):
                requests = []
                for command, payload in reader.read():
                    if command == 7:
                        cid, sid = struct.unpack_from("<II", payload)
                        sids[cid] = sid
                        requests.append(message(MONITOR, struct.pack("<IIB", sid, cid, 8) + EMPTY_REQUEST))
                    elif command == MONITOR:
                        ready += 1
                if requests:
                    driver.sock.sendall(b"".join(requests))
            driver.sock.sendall(
                b"".join(message(MONITOR, struct.pack("<IIB", sids[cid], cid, 0x44)) for cid in some)
            )
        found = Subscribed(time.perf_counter() - begin, cpu_seconds(server.pid) - cpu)
        driver.close()
        return found


def run() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "big.db"
        database.write_text(
            "".join(
                f'record(ai, "b:{number}") {{ field(EGU, "V") field(PREC, "3") }}\n' for number in range(BIG)
            )
        )
        starts: dict[str, list[Began]] = {"ours": [], "theirs": []}
        for _ in range(ROUNDS):
            for which, seen in starts.items():
                seen.append(began(which, database))
        for place, what in enumerate(("start", "first answer to a search by UDP", "the same over TCP")):
            ours, theirs = (
                statistics.median(each[0] + (each[place] if place else 0.0) for each in seen)
                for seen in starts.values()
            )
            yield Row(
                f"IOC: {BIG:,} records, {what}", ours, theirs, "s", 0.0, True, peer_name=PEER, goal=15.0
            )
        database.write_text(numbers(SUBSCRIPTIONS))
        clients: dict[str, list[Subscribed]] = {"ours": [], "theirs": []}
        for _ in range(ROUNDS):
            for which, some in clients.items():
                some.append(subscribed(which, database))
        for place, what in enumerate(("subscriptions while all change", "the server's CPU time for them")):
            ours, theirs = (statistics.median(each[place] for each in some) for some in clients.values())
            yield Row(
                f"IOC: {SUBSCRIPTIONS:,} {what}", ours, theirs, "s", 1.0, less_is_better=True, peer_name=PEER
            )

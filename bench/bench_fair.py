"""One client opens very many channels at once: what others notice of it, at our IOC and at the reference IOC (pvxslibs)."""

from __future__ import annotations

import selectors
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from bench.iocs import PEER, ioc, message
from bench.table import Row
from bench.wire import GET, Driver, get_request, text

RECORDS = 50_000
CHANNELS = 20_000
PERIOD_S = 0.05


def run() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "many.db"
        database.write_text("".join(f'record(ai, "b:{number}") {{}}\n' for number in range(RECORDS)))
        figures = {}
        for which in ("ours", "theirs"):
            with ioc(which, database) as server:
                figures[which] = waits(server.tcp)
    ours, theirs = figures["ours"], figures["theirs"]
    for what, mine, other in zip(
        (
            "IOC: worst wait for a GET while another opens 20 000 channels",
            "IOC: worst wait of a newcomer meanwhile",
            "IOC: the 20 000 channels are open after",
            "IOC: worst wait for a GET while they are closed again",
        ),
        ours,
        theirs,
        strict=True,
    ):
        bounded = "worst" in what
        yield Row(
            what,
            mine * 1e3,
            other * 1e3,
            "ms",
            1.0 if bounded else 0.0,
            less_is_better=True,
            peer_name=PEER,
            goal=100.0 if bounded else 60_000.0,
        )


def waits(port: int) -> tuple[float, float, float, float]:
    """Seconds: a GET's worst wait, a newcomer's, until all channels are open, a GET's worst while they close."""
    with Watcher(port) as watcher:
        time.sleep(10 * PERIOD_S)  # a quiet start, from which the worst is reckoned too
        # A process of its own: what it takes must not look like a wait.
        with subprocess.Popen(
            [sys.executable, "-m", "bench.bench_fair", str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as greedy:
            assert greedy.stdin is not None
            assert greedy.stdout is not None
            took = float(greedy.stdout.readline())
            time.sleep(4 * PERIOD_S)
            gets, newcomers = watcher.take()
            greedy.stdin.close()
        time.sleep(20 * PERIOD_S)
        closing, _ = watcher.take()
    return gets, newcomers, took, closing


def be_greedy(port: int) -> None:
    """Open all channels, say how long that took, and stay until the parent has heard enough."""
    driver = Driver(port)
    start = time.perf_counter()
    driver.sock.setblocking(False)
    if open_all(driver) == CHANNELS:
        print(time.perf_counter() - start, flush=True)
    sys.stdin.read()
    driver.close()


def open_all(driver: Driver) -> int:
    """Ask for all channels as fast as the socket takes it, reading meanwhile; count those that were opened."""
    out = memoryview(
        b"".join(message(7, struct.pack("<HI", 1, cid) + text(f"b:{cid}")) for cid in range(1, CHANNELS + 1))
    )
    selector = selectors.DefaultSelector()
    selector.register(driver.sock, selectors.EVENT_READ | selectors.EVENT_WRITE)
    opened, buffer = 0, driver.buffer
    while opened < CHANNELS:
        for _, mask in selector.select(60.0):
            if mask & selectors.EVENT_WRITE:
                out = out[driver.sock.send(out[:65536]) :]
                if not out:
                    selector.modify(driver.sock, selectors.EVENT_READ)
            if mask & selectors.EVENT_READ:
                data = driver.sock.recv(1 << 18)
                if not data:
                    raise EOFError("the server closed the connection")
                buffer += data
        position = 0
        while len(buffer) - position >= 8:
            size = (
                8
                if buffer[position + 2] & 1
                else 8 + int.from_bytes(buffer[position + 4 : position + 8], "little")
            )
            if len(buffer) - position < size:
                break
            opened += buffer[position + 3] == 7
            position += size
        del buffer[:position]
    return opened


class Watcher:
    """Two threads: one reads a record every 50 ms, the other connects anew as often."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.gets = 0.0
        self.newcomers = 0.0
        self.ended = threading.Event()
        self.threads = [threading.Thread(target=self.read), threading.Thread(target=self.connect)]

    def __enter__(self) -> Self:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        for thread in self.threads:
            thread.join()

    def take(self) -> tuple[float, float]:
        """Give the worst since the last call."""
        worst = self.gets, self.newcomers
        self.gets = self.newcomers = 0.0
        return worst

    def read(self) -> None:
        driver = Driver(self.port)
        sid = driver.channel("b:0", 1)
        driver.init(GET, sid, 1)
        while not self.ended.wait(PERIOD_S):
            start = time.perf_counter()
            driver.sock.sendall(get_request(sid, 1))
            driver.wait_for(GET)
            self.gets = max(self.gets, time.perf_counter() - start)
        driver.close()

    def connect(self) -> None:
        while not self.ended.wait(PERIOD_S):
            start = time.perf_counter()
            Driver(self.port).close()
            self.newcomers = max(self.newcomers, time.perf_counter() - start)


if __name__ == "__main__":
    be_greedy(int(sys.argv[1]))

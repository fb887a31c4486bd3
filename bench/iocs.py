"""Soft IOCs, ours and pvxslibs', as processes; and one client that watches many of their PVs."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from bench.servers import free_ports
from bench.wire import EMPTY_REQUEST, Driver, text

PEER = "pvxslibs"
AT_ONCE = 5000
ROOT = Path(__file__).parent.parent


class Ioc(NamedTuple):
    pid: int
    tcp: int
    tls: int
    seconds: float
    """Until its records are served."""


class Starting(NamedTuple):
    """An IOC that has just been started."""

    process: subprocess.Popen[bytes]
    mark: bytes
    """What it prints when its records are served."""
    tcp: int
    udp: int
    tls: int
    begin: float


@contextmanager
def ioc(which: str, database: Path, keychain: str = "", **variables: str) -> Iterator[Ioc]:
    with starting(which, database, keychain, **variables) as begun:
        wait_until_served(begun)
        yield Ioc(begun.process.pid, begun.tcp, begun.tls, time.perf_counter() - begun.begin)


def wait_until_served(begun: Starting) -> None:
    assert begun.process.stdout is not None
    for line in begun.process.stdout:
        if begun.mark in line:
            return
    raise RuntimeError("the IOC did not start")


@contextmanager
def starting(which: str, database: Path, keychain: str = "", **variables: str) -> Iterator[Starting]:
    tcp, udp, tls = free_ports(3)
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("EPICS_")},
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "EPICS_PVAS_INTF_ADDR_LIST": "127.0.0.1",
        "EPICS_PVAS_AUTO_BEACON_ADDR_LIST": "NO",
        "EPICS_PVAS_SERVER_PORT": str(tcp),
        "EPICS_PVAS_BROADCAST_PORT": str(udp),
        "EPICS_PVAS_TLS_PORT": str(tls),
        "EPICS_PVAS_TLS_KEYCHAIN": keychain,
        "EPICS_PVA_AUTO_ADDR_LIST": "NO",
        # As a service without privileges has it. With real-time threads EPICS would take the processors from both servers.
        "EPICS_ALLOW_POSIX_THREAD_PRIORITY_SCHEDULING": "NO",
        **variables,
    }
    if which == "ours":
        words = ["-m", "appliance.cli.softiocpvx", "-S", "-d", str(database)]
        mark = b"serving"
    else:
        words = [str(ROOT / "tests" / "helpers" / "pvxs_ioc.py"), "A=1", str(database), "--"]
        mark = b"READY"
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *words],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        yield Starting(process, mark, tcp, udp, tls, start)
    finally:
        process.kill()
        process.wait()


def resident(pid: int) -> int:
    """Octets of memory that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def message(command: int, payload: bytes) -> bytes:
    return struct.pack("<BBBBI", 0xCA, 2, 0, command, len(payload)) + payload


class Watched(NamedTuple):
    """What one client saw of a server, and what that took the server."""

    updates: float
    """Updates per second that arrived."""
    cpus: float
    """CPU seconds of the server's process per second."""

    @property
    def per_cpu(self) -> float:
        return self.updates / max(self.cpus, 0.001)


def watched(server: Ioc, names: Sequence[str], seconds: float = 5.0) -> Watched:
    """Watch ``names`` with one connection. It is measured from one second after each has had its first update."""
    driver = Driver(server.tcp)
    numbers = range(1, len(names) + 1)
    sids: dict[int, int] = {}
    # Many at once: round trips would take longer than the measurement. Not all: answers that nobody reads are bounded.
    for first in numbers[::AT_ONCE]:
        some = range(first, min(first + AT_ONCE, len(names) + 1))
        driver.sock.sendall(
            b"".join(message(7, struct.pack("<HI", 1, cid) + text(names[cid - 1])) for cid in some)
        )
        sids.update(struct.unpack_from("<II", driver.wait_for(7)) for _ in some)
        driver.sock.sendall(
            b"".join(message(13, struct.pack("<IIB", sids[cid], cid, 8) + EMPTY_REQUEST) for cid in some)
        )
        for _ in some:
            driver.wait_for(13)
    driver.sock.sendall(b"".join(message(13, struct.pack("<IIB", sids[cid], cid, 0x44)) for cid in numbers))
    settle_until = 0.0
    updates = 0
    seen: set[bytes] = set()
    counting = False
    begin = cpu = 0.0
    buffer = bytearray()
    sock = driver.sock
    while True:
        now = time.perf_counter()
        if not settle_until:
            settle_until = now + 1.0 if len(seen) >= len(names) else 0.0
        elif not counting and now > settle_until:
            counting, updates, begin, cpu = True, 0, now, cpu_seconds(server.pid)
        elif counting and now - begin > seconds:
            found = Watched(updates / (now - begin), (cpu_seconds(server.pid) - cpu) / (now - begin))
            driver.close()
            return found
        data = sock.recv(1 << 20)
        if not data:
            raise EOFError("the server has closed the connection")
        buffer += data
        position, end = 0, len(buffer)
        while end - position >= 8:
            size = (
                8 + int.from_bytes(buffer[position + 4 : position + 8], "little")
                if not buffer[position + 2] & 1
                else 8
            )
            if end - position < size:
                break
            if buffer[position + 3] == 13:
                updates += 1
                if not settle_until:
                    seen.add(bytes(buffer[position + 8 : position + 12]))
            position += size
        del buffer[:position]

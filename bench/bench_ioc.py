"""The IOC beside the reference IOC (pvxslibs) with the same records: GETs, many monitors, start-up."""

from __future__ import annotations

import os
import resource
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from bench.servers import free_ports
from bench.table import Row, alternate
from bench.wire import EMPTY_REQUEST, Driver, pipelined_gets, text

RECORDS = 10_000
PEER = "pvxslibs"
ROOT = Path(__file__).parent.parent


class Ioc(NamedTuple):
    pid: int
    tcp: int
    tls: int
    seconds: float
    """Until its records are served."""


@contextmanager
def ioc(which: str, database: Path, keychain: str = "") -> Iterator[Ioc]:
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
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if mark in line:
                break
        else:
            raise RuntimeError(f"the IOC {which} did not start")
        yield Ioc(process.pid, tcp, tls, time.perf_counter() - start)
    finally:
        process.kill()
        process.wait()


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def gets(ours: int, theirs: int, *, tls: bool = False) -> tuple[float, float]:
    return alternate(lambda: pipelined_gets(ours, "b:0", tls=tls), lambda: pipelined_gets(theirs, "b:0"))


def gets_per_cpu(server: Ioc) -> float:
    """What a rate cannot say on a machine that others use as well."""
    before, start = cpu_seconds(server.pid), time.perf_counter()
    rate = pipelined_gets(server.tcp, "b:0", seconds=2.0)
    return rate * (time.perf_counter() - start) / max(cpu_seconds(server.pid) - before, 0.01)


def message(command: int, payload: bytes) -> bytes:
    return struct.pack("<BBBBI", 0xCA, 2, 0, command, len(payload)) + payload


def watched(server: Ioc, count: int, seconds: float = 5.0) -> tuple[float, float]:
    """Updates per second of ``count`` records that arrive, and CPUs that the server takes for them."""
    driver = Driver(server.tcp)
    numbers = range(1, count + 1)
    # All at once: ten thousand round trips would take longer than the measurement.
    driver.sock.sendall(
        b"".join(message(7, struct.pack("<HI", 1, cid) + text(f"b:{cid - 1}")) for cid in numbers)
    )
    sids = dict(struct.unpack_from("<II", driver.wait_for(7)) for _ in numbers)
    driver.sock.sendall(
        b"".join(message(13, struct.pack("<IIB", sids[cid], cid, 8) + EMPTY_REQUEST) for cid in numbers)
    )
    for _ in numbers:
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
            # Every subscription has had its first update at least.
            settle_until = now + 1.0 if len(seen) >= count else 0.0
        elif not counting and now > settle_until:
            counting, updates, begin, cpu = True, 0, now, cpu_seconds(server.pid)
        elif counting and now - begin > seconds:
            rate = updates / (now - begin)
            load = (cpu_seconds(server.pid) - cpu) / (now - begin)
            driver.close()
            return rate, load
        buffer += sock.recv(1 << 20)
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


def run() -> Iterator[Row]:
    from tests.helpers import pki

    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    with tempfile.TemporaryDirectory() as folder:
        site = pki.site()
        keychain = str(pki.write_keychain(Path(folder) / "server.p12", site.server))
        one = Path(folder) / "one.db"
        # A constant, so that all answers have the same size, which the driver counts on.
        one.write_text('record(calc, "b:0") { field(CALC, "1.5") field(PINI, "YES") field(EGU, "V") }\n')
        with ioc("ours", one, keychain) as we, ioc("theirs", one) as they:
            yield Row(
                "IOC: pipelined GETs of a calc record, TCP",
                *gets(we.tcp, they.tcp),
                "GET/s",
                0.7,
                peer_name=PEER,
            )
            yield Row(
                "IOC: the same for each CPU second of the server",
                *alternate(lambda: gets_per_cpu(we), lambda: gets_per_cpu(they)), "GET/CPUs", 0.7, peer_name=PEER,
            )  # fmt: skip
            yield Row(
                "IOC: pipelined GETs of a calc record, TLS", *gets(we.tls, they.tcp, tls=True),
                "GET/s", 0.4, peer_name=f"{PEER}, TCP",
            )  # fmt: skip
        many = Path(folder) / "many.db"
        many.write_text(
            "".join(
                f'record(calc, "b:{number}") {{ field(CALC, "VAL+1") field(SCAN, ".1 second") }}\n'
                for number in range(RECORDS)
            )
        )
        figures = {}
        for which in ("ours", "theirs"):
            with ioc(which, many) as server:
                figures[which] = (*watched(server, RECORDS), server.seconds)
        ours, theirs = figures["ours"], figures["theirs"]
        yield Row(
            "IOC: 10 000 records at 10 Hz, updates delivered",
            ours[0],
            100_000,
            "update/s",
            0.98,
            peer_name="all",
        )
        yield Row("IOC: the same", ours[0], theirs[0], "update/s", 0.98, peer_name=PEER)
        yield Row(
            "IOC: CPUs that it takes", ours[1], theirs[1], "CPU", 2.0, less_is_better=True, peer_name=PEER
        )
        yield Row(
            "IOC: start with 10 000 records", ours[2], 3.0, "s", 1.0, less_is_better=True, peer_name="wanted"
        )

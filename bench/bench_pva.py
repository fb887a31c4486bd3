"""The protocol stack: our server and our client against p4p's (PVXS) in the same run."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.servers import LARGE_NAME, NAMES, Running, running
from bench.table import Row, alternate
from bench.wire import count_updates, get_latency, large_get, pipelined_gets


def run() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        keychain = make_keychain(Path(folder))
        with running("ours", "static", keychain) as we, running("p4p", "static") as they:
            yield from servers(we, they)
            yield from clients(they)
            yield from tools(they)
    yield from posting()


def make_keychain(folder: Path) -> str:
    from tests.helpers import pki

    site = pki.site()
    return str(pki.write_keychain(folder / "server.p12", site.server))


def servers(we: Running, they: Running) -> Iterator[Row]:
    name = NAMES[0]
    yield Row(
        "server: pipelined GETs, TCP",
        *alternate(lambda: pipelined_gets(we.tcp, name), lambda: pipelined_gets(they.tcp, name)),
        "GET/s",
        0.8,
    )
    yield Row(
        "server: pipelined GETs, TLS",
        *alternate(lambda: pipelined_gets(we.tls, name, tls=True), lambda: pipelined_gets(we.tcp, name)),
        "GET/s",
        0.7,
        peer_name="our TCP",
    )
    yield Row(
        "server: median latency of one GET",
        *alternate(lambda: get_latency(we.tcp, name), lambda: get_latency(they.tcp, name)),
        "us",
        1.5,
        less_is_better=True,
    )
    yield Row(
        "server: 8 MB array GET, TCP",
        *alternate(lambda: large_get(we.tcp, LARGE_NAME), lambda: large_get(they.tcp, LARGE_NAME)),
        "octet/s",
        0.8,
    )
    yield Row(
        "server: 8 MB array GET, TLS",
        *alternate(lambda: large_get(we.tls, LARGE_NAME, tls=True), lambda: large_get(we.tcp, LARGE_NAME)),
        "octet/s",
        0.4,
        peer_name="our TCP",
    )


def client_rate(which: str, mode: str, server: Running) -> float:
    result = subprocess.run(
        [sys.executable, "-m", "bench.clients", which, mode, str(server.udp)],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return float(result.stdout.split()[-1])


def clients(server: Running) -> Iterator[Row]:
    yield Row(
        "client: 1000 GETs in parallel",
        *alternate(
            lambda: client_rate("ours", "parallel", server), lambda: client_rate("p4p", "parallel", server)
        ),
        "GET/s",
        12,
    )
    yield Row(
        "client: sequential GETs",
        *alternate(
            lambda: client_rate("ours", "sequential", server),
            lambda: client_rate("p4p", "sequential", server),
        ),
        "GET/s",
        4,
    )


def tools(server: Running) -> Iterator[Row]:
    environment = {
        "PATH": "/usr/bin:/bin",
        "EPICS_PVA_ADDR_LIST": "127.0.0.1",
        "EPICS_PVA_AUTO_ADDR_LIST": "NO",
        "EPICS_PVA_BROADCAST_PORT": str(server.udp),
    }

    def whole(command: list[str]) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - start)
        return statistics.median(times) * 1e3

    yield Row(
        "pvxget of one PV, whole process",
        *alternate(
            lambda: whole([sys.executable, "-m", "appliance.cli.pvxget", NAMES[0]]),
            lambda: whole([sys.executable, "-m", "p4p.client.cli", "get", NAMES[0]]),
        ),
        "ms",
        0.6,
        less_is_better=True,
    )


def posting() -> Iterator[Row]:
    def measure(which: str, mode: str) -> float:
        with running(which, mode) as server:
            if mode == "posting":
                return count_updates([server.tcp], NAMES)
            return count_updates([server.tcp] * 200, NAMES[:1])

    yield Row(
        "server: 1000 PVs posting, updates delivered",
        *alternate(lambda: measure("ours", "posting"), lambda: measure("p4p", "posting")),
        "update/s",
        10,
    )
    yield Row(
        "server: one PV to 200 subscribers, updates delivered",
        *alternate(lambda: measure("ours", "fanout"), lambda: measure("p4p", "fanout")),
        "update/s",
        2,
    )

"""Several nodes of the certificate service on one PostgreSQL. What each row means: docs/benchmarks.md."""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from appliance.certs.profiles import generate_key
from appliance.pva.typed import encode_typed
from bench import revocation
from bench.table import Row
from bench.wire import calls
from tests.helpers.cms import Process, ccr
from tests.helpers.node_processes import Cluster
from tests.helpers.postgres import Server

CREATE = "CERT:CREATE"
OPEN = "--certs-dont-require-approval"
IN_FLIGHT = 32
COUNT = 1500
ROUNDS = 3
WRITING = 37428
"""The writers' lock (docs/decisions/0100)."""
ENOUGH_CORES = 4
"""So many are needed for two nodes, their database and the clients, before two nodes can be faster than one."""


def run() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as name, Server(fast=False) as server:
        folder = Path(name)
        (folder / "sqlite").mkdir()
        with Process(folder / "sqlite", OPEN) as sqlite, _started(folder, server) as cluster:
            sqlite.ready()
            yield from _requests(sqlite, cluster)
            yield from _revocations(cluster, folder)


@contextlib.contextmanager
def _started(folder: Path, server: Server) -> Iterator[Cluster]:
    cluster = Cluster(folder, server, OPEN)
    try:
        yield cluster.start()
    finally:
        cluster.close()


# -- requests ----------------------------------------------------------------------------------------


def _requests(sqlite: Process, cluster: Cluster) -> Iterator[Row]:
    turn = iter(range(1000))
    keys = [generate_key("ec-p256") for _ in range(256)]
    a, b = (node.tcp_port for node in cluster.nodes.values())

    def rate(*ports: int) -> float:
        word = f"std{next(turn)}-"
        asked = [
            b"".join(encode_typed(ccr(f"{word}{n}", key=keys[n % len(keys)]), big=False))
            for n in range(COUNT)
        ]
        return _rate(ports, asked)

    rate(sqlite.tcp_port), rate(a, b)
    rows: dict[str, list[float]] = {"sqlite": [], "one": [], "two": []}
    held = []
    for _ in range(ROUNDS):
        # In turn, so that a machine that changes its speed changes it for all.
        rows["sqlite"].append(rate(sqlite.tcp_port))
        rows["one"].append(rate(a))
        with _Sampler(cluster) as sampler:
            rows["two"].append(rate(a, b))
        held.append(sampler.share)
    sqlite_s, one, two = (statistics.median(found) for found in rows.values())
    cores = os.cpu_count() or 1
    what = f"cluster: CCRs (std), {IN_FLIGHT} in flight"
    yield Row(f"{what}, SQLite", sqlite_s, 0, "CCR/s", 0)
    yield Row(f"{what}, PostgreSQL, one node", one, sqlite_s, "CCR/s", 0.6, peer_name="SQLite")
    wanted = 1.5 if cores >= ENOUGH_CORES else 0
    yield Row(
        f"{what}, PostgreSQL, two nodes, {cores} cores", two, one, "CCR/s", wanted, peer_name="one node"
    )
    yield Row("cluster: the writers' lock is held meanwhile", 100 * statistics.median(held), 0, "%", 0)


def _rate(ports: Sequence[int], asked: Sequence[bytes]) -> float:
    """Certificates per second, the requests and those in flight shared between the nodes."""
    threads = [
        threading.Thread(target=calls, args=(port, CREATE, asked[n :: len(ports)], IN_FLIGHT // len(ports)))
        for n, port in enumerate(ports)
    ]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(asked) / (time.perf_counter() - start)


class _Sampler:
    """How often the writers' lock is held, seen beside the load."""

    def __init__(self, cluster: Cluster) -> None:
        self._connection = cluster.server.connect(cluster.database)
        self._stop = threading.Event()
        self._looks = self._held = 0
        self._thread = threading.Thread(target=self._work)

    def _work(self) -> None:
        query = (
            "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted "
            f"AND classid = 0 AND objid = {WRITING})"
        )
        while not self._stop.wait(0.01):
            self._held += bool(self._connection.execute(query).fetchone()[0])
            self._looks += 1

    @property
    def share(self) -> float:
        return self._held / max(1, self._looks)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._connection.close()


# -- revocation --------------------------------------------------------------------------------------


class _Across(NamedTuple):
    """The administrator is with one node, and the status comes from the other."""

    config_dir: Path
    tls_port: int
    tcp_port: int


def _revocations(cluster: Cluster, folder: Path) -> Iterator[Row]:
    first, second = cluster.nodes.values()
    assert first.process is not None
    across = _Across(first.process.config_dir, first.tls_port, second.tcp_port)
    times: list[float] = []
    for number in range(2):
        place = folder / f"revoked{number}"
        place.mkdir()
        closed = revocation.measure(across, place)
        times += closed.each_client
    times.sort()
    for part, seconds in {"p50": statistics.median(times), "p99": times[int(len(times) * 0.99) - 1]}.items():
        what = f"cluster: revoked at one node to closed by the other, {part} of {len(times)}"
        yield Row(what, seconds, 0, "s", 0, less_is_better=True, goal=1)

"""The gateway against p4p's, in the same run and before the same upstream: a p4p server."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from bench.bench_pva import make_keychain
from bench.gateways import gateway
from bench.iocs import cpu_seconds
from bench.servers import LARGE_NAME, MANY, NAMES, Running, running
from bench.table import Row, alternate
from bench.wire import Driver, count_received, get_latency, pipelined_distinct

PEER = "p4p's pvagw"
ROUNDS = 3
COUNTED = 2.0
"""Seconds for which updates are counted."""


def run() -> Iterator[Row]:
    yield from gets()
    yield from updates()
    yield from arrays()
    yield from opening()
    yield from idle_memory()
    yield from tls()


@contextmanager
def chain(which: str, mode: str) -> Iterator[tuple[Running, Running]]:
    """An upstream of its own and the gateway before it."""
    with running("p4p", mode) as upstream, gateway(which, upstream) as way:
        yield upstream, way


def both(measure: Callable[[str], float], rounds: int = ROUNDS) -> tuple[float, float]:
    return alternate(lambda: measure("ours"), lambda: measure("p4p"), rounds)


def gets() -> Iterator[Row]:
    def latency(which: str) -> float:
        with chain(which, "static") as (_, way):
            known(way, NAMES[:1])
            return get_latency(way.tcp, NAMES[0])

    yield Row(
        "gateway: median latency of one GET", *both(latency), "us", 1.0, less_is_better=True, peer_name=PEER
    )
    ours, theirs = [], []
    for _ in range(ROUNDS):
        ours.append(pipelined("ours"))
        theirs.append(pipelined("p4p"))
    we, they = (Answered(*map(statistics.median, zip(*side, strict=True))) for side in (ours, theirs))
    what = "gateway: pipelined GETs of 1000 PVs"
    yield Row(what, we.rate, they.rate, "GET/s", 2, peer_name=PEER)
    yield Row(f"{what}, per CPU second", we.per_cpu_second, they.per_cpu_second, "GET/s", 2, peer_name=PEER)


class Answered(NamedTuple):
    rate: float
    per_cpu_second: float
    """What a rate cannot say on a machine that others use as well: p4p's gateway has several threads."""


def pipelined(which: str) -> Answered:
    with chain(which, "static") as (_, way):
        at_start = 0.0

        def begun() -> None:
            nonlocal at_start
            at_start = cpu_seconds(way.pid)

        rate = pipelined_distinct(way.tcp, NAMES, seconds=COUNTED, begun=begun)
        return Answered(rate, rate * COUNTED / max(cpu_seconds(way.pid) - at_start, 0.01))


def known(way: Running, names: list[str]) -> None:
    """p4p's gateway refuses a channel whose name it never searched, so both are asked first."""
    driver = Driver(way.tcp)
    driver.search(names)
    driver.close()


class Forwarded(NamedTuple):
    rate: float
    per_cpu_second: float
    direct: float
    """What a client of the upstream itself receives."""


def forwarded(which: str, pvs: int, clients: int) -> Forwarded:
    with chain(which, f"post:{pvs}") as (upstream, way):
        names = NAMES[:pvs]
        known(way, names)
        at_start = 0.0

        def begun() -> None:
            nonlocal at_start
            at_start = cpu_seconds(way.pid)

        rate = count_received([way.tcp] * clients, names, seconds=COUNTED, begun=begun).updates
        used = cpu_seconds(way.pid) - at_start
        direct = count_received([upstream.tcp] * clients, names, seconds=1.0).updates
        return Forwarded(rate, rate * COUNTED / max(used, 0.01), direct)


def updates() -> Iterator[Row]:
    for pvs, clients in ((100, 1), (10, 50)):
        ours, theirs = [], []
        for _ in range(ROUNDS):
            ours.append(forwarded("ours", pvs, clients))
            theirs.append(forwarded("p4p", pvs, clients))
        we, they = middle(ours), middle(theirs)
        what = f"{pvs} PVs to {clients} client{'s' if clients > 1 else ''}"
        yield Row(f"gateway: updates, {what}", we.rate, they.rate, "update/s", 4, peer_name=PEER)
        yield Row(f"gateway: updates, {what}", we.rate, we.direct, "update/s", 1, peer_name="no gateway")
        yield Row(
            f"gateway: updates, {what}, per CPU second",
            we.per_cpu_second,
            they.per_cpu_second,
            "update/s",
            1.5,
            peer_name=PEER,
        )


def middle(of: list[Forwarded]) -> Forwarded:
    return Forwarded(*(statistics.median(column) for column in zip(*of, strict=True)))


def arrays() -> Iterator[Row]:
    def rate(which: str, clients: int) -> float:
        with chain(which, "arrays") as (_, way):
            known(way, [LARGE_NAME])
            return count_received([way.tcp] * clients, [LARGE_NAME]).octets

    for clients in (1, 5):
        yield Row(
            f"gateway: 8 MB arrays to {clients} client{'s' if clients > 1 else ''}",
            *both(lambda which, clients=clients: rate(which, clients)),  # type: ignore[misc]
            "octet/s",
            1,
            peer_name=PEER,
        )


def opening() -> Iterator[Row]:
    def seconds(which: str) -> float:
        with chain(which, "static") as (_, way):
            driver = Driver(way.tcp)
            start = time.perf_counter()
            driver.search(NAMES)
            driver.channels(NAMES)
            took = time.perf_counter() - start
            driver.close()
            return took

    yield Row(
        "gateway: opening 1000 channels, fresh", *both(seconds), "s", 0.5, less_is_better=True, peer_name=PEER
    )


def idle_memory() -> Iterator[Row]:
    def octets(which: str) -> float:
        with chain(which, "many") as (_, way):
            known(way, MANY[-1:])
            before = resident(way.pid)
            driver = Driver(way.tcp)
            driver.search(MANY)
            driver.channels(MANY)
            time.sleep(2)
            after = resident(way.pid)
            driver.close()
            return (after - before) / len(MANY)

    yield Row(
        "gateway: memory of an idle channel, 10,000 channels",
        *both(octets, 1),
        "octet",
        1,
        less_is_better=True,
        peer_name=PEER,
    )


def resident(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"process {pid} has ended")


def tls() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        keychain = make_keychain(Path(folder))

        def rate(keychain: str) -> float:
            with running("ours", "post:10", keychain) as upstream, gateway("ours", upstream, keychain) as way:
                port = way.tls if keychain else way.tcp
                return count_received([port] * 50, NAMES[:10], tls=bool(keychain)).updates

        yield Row(
            "gateway: updates, 10 PVs to 50 clients, TLS on both sides",
            *alternate(lambda: rate(keychain), lambda: rate("")),
            "update/s",
            0.5,
            peer_name="our TCP",
        )

"""Soft IOCs for p4p's API: the same program on ours and on p4p, with one subscriber, or none."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

from bench.servers import NAMES, free_ports
from bench.table import Row
from bench.wire import count_received

ROUNDS = 3
SECONDS = 1.5


class Posted(NamedTuple):
    posts: float
    by_cpu: float
    updates: float


def run() -> Iterator[Row]:
    yield from compare("soft IOC, posts to one PV", "plain", 1, 4)
    yield from compare("soft IOC, posts with time and severity", "full", 1, 4)
    yield from compare("soft IOC, posts to 1000 PVs", "plain", 1000, 4)
    yield from compare("soft IOC, posts to one PV, no subscriber", "plain", 1, 4, watched=False)
    yield from compare("soft IOC, posts of an 8 MB array", "array", 1, 1)


def compare(what: str, kind: str, count: int, wanted: float, *, watched: bool = True) -> Iterator[Row]:
    """Give rows by the clock, by the program's own CPU time, and of the updates that the subscriber got."""
    results: dict[str, list[Posted]] = {"appliance.p4p": [], "p4p": []}
    for _ in range(ROUNDS):
        for package, measured in results.items():
            measured.append(measure(package, kind, count, watched=watched))
    ours, theirs = (
        Posted(*map(statistics.median, zip(*measured, strict=True))) for measured in results.values()
    )
    yield Row(what, ours.posts, theirs.posts, "post/s", wanted)
    yield Row(f"{what}, by CPU", ours.by_cpu, theirs.by_cpu, "post/s", wanted)
    if watched:
        yield Row(f"{what}: updates delivered", ours.updates, theirs.updates, "update/s", 1)


def measure(package: str, kind: str, count: int, *, watched: bool) -> Posted:
    (tcp,) = free_ports(1)
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.soft_iocs", package, kind, str(count), str(tcp)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if package == "p4p" else None,  # a line for each client that leaves
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def tell() -> None:
        process.stdin.write("\n")
        process.stdin.flush()

    try:
        if process.stdout.readline().strip() != "ready":
            raise RuntimeError(f"the soft IOC on {package} did not start")
        updates = 0.0
        if watched:
            updates = count_received([tcp], NAMES[:count], seconds=SECONDS, begun=tell).updates
        else:
            tell()
            time.sleep(SECONDS)
        tell()
        posts, by_cpu = process.stdout.readline().split()
        return Posted(float(posts), float(by_cpu), updates)
    finally:
        process.kill()
        process.wait()

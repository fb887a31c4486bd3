"""Programs for p4p's API: the same program on ours and on p4p, against the same server."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Iterator

from bench.programs import WATCHED
from bench.servers import Running, running
from bench.table import Row

ROUNDS = 3


def run() -> Iterator[Row]:
    with running("p4p", "static") as server:
        yield from compare("blocking get", "get", server, "GET/s", 2)
        yield from compare("blocking get of 1000 names", "parallel", server, "GET/s", 4)
    with running("ours", "mailbox") as server:
        yield from compare("blocking put", "put", server, "PUT/s", 1)
    with running("ours", f"post:{WATCHED}") as server:
        yield from compare(f"monitors of {WATCHED} PVs, updates received", "monitor", server, "update/s", 1)
    with running("ours", "arrays") as server:
        yield from compare("8 MB arrays received", "arrays", server, "array/s", 1)


def compare(what: str, mode: str, server: Running, unit: str, wanted: float) -> Iterator[Row]:
    """Give two rows: by the clock, and by the program's own CPU time."""
    results: dict[str, list[tuple[float, float]]] = {"appliance.p4p": [], "p4p": []}
    for _ in range(ROUNDS):
        for package, measured in results.items():
            measured.append(measure(package, mode, server))
    for index, suffix in ((0, ""), (1, " per second of CPU time")):
        ours, theirs = (statistics.median(each[index] for each in measured) for measured in results.values())
        yield Row(f"{what}{suffix}", ours, theirs, unit, wanted)


def measure(package: str, mode: str, server: Running) -> tuple[float, float]:
    result = subprocess.run(
        [sys.executable, "-m", "bench.programs", package, mode, str(server.udp)],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    rate, by_cpu = result.stdout.split()[-2:]
    return float(rate), float(by_cpu)

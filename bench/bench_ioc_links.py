"""What PVA links do per CPU second of the IOC that has them, beside the reference IOC's (pvxslibs' pvalink).

The other end of the links is the same for both: our IOC, whose CPU time does not count. Records count for themselves: each
processing adds one to a ``calc``, at the end of a link in the linking IOC, and at the target of a link in the other one.
"""

from __future__ import annotations

import statistics
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench.iocs import PEER, Ioc, Watched, cpu_seconds, ioc
from bench.table import Row
from bench.wire import GET, Driver, get_request

ROUNDS = 3
COUNT = 1000
SECONDS = 4.0
OFFERED = 10 * COUNT
MOVING = 0.01
"""The part of the offered rate at which links count as working; one of the servers may be far from all."""
PER_CPU = 1.0
"""The ratio of updates or puts per CPU second that is wanted."""


class Links(NamedTuple):
    what: str
    far: str
    """The database of the other end."""
    near: str
    """The database with the links."""
    counted_far: bool
    """Whether the records that count are at the other end."""


SOURCES = "".join(
    f'record(calc, "s:{number}") {{ field(CALC, "VAL+1") field(SCAN, ".1 second") }}\n'
    for number in range(COUNT)
)


def inputs(proc: str) -> str:
    """Each update processes its record, which counts."""
    return "".join(
        f'record(calc, "n:{number}") {{ field(CALC, "VAL+1") '
        f'field(INPA, {{pva:{{pv:"s:{number}", proc:"{proc}", sevr:"MS"}}}}) }}\n'
        for number in range(COUNT)
    )


OUTPUTS = "".join(
    f'record(calcout, "o:{number}") {{ field(CALC, "VAL+1") field(SCAN, ".1 second") '
    f'field(OUT, {{pva:{{pv:"n:{number}.A", proc:"PP"}}}}) }}\n'
    for number in range(COUNT)
)
TARGETS = "".join(f'record(calc, "n:{number}") {{ field(CALC, "VAL+1") }}\n' for number in range(COUNT))
KINDS = (
    Links("1000 inputs with CP at 10 Hz", SOURCES, inputs("CP"), counted_far=False),
    Links("1000 inputs with CPP at 10 Hz", SOURCES, inputs("CPP"), counted_far=False),
    Links("1000 outputs at 10 Hz", TARGETS, OUTPUTS, counted_far=True),
)


class Counter:
    """How often the records that count were processed."""

    def __init__(self, server: Ioc) -> None:
        self.driver = Driver(server.tcp)
        for number, sid in enumerate(self.driver.channels([f"n:{number}" for number in range(COUNT)]), 1):
            self.driver.init(GET, sid, number)

    def read(self) -> float:
        driver = self.driver
        driver.sock.sendall(b"".join(get_request(sid, number) for number, sid in enumerate(driver.sids, 1)))
        return sum(value(driver.wait_for(GET)) for _ in driver.sids)


def value(answer: bytes) -> float:
    """The value, which stands first: after the request, its subcommand, the status, and the bits with their length."""
    return float(struct.unpack_from("<d", answer, 7 + answer[6])[0])


def measure(which: str, links: Links, far: Ioc, database: Path) -> Watched:
    with ioc(which, database, EPICS_PVA_NAME_SERVERS=f"127.0.0.1:{far.tcp}") as near:
        counter = Counter(far if links.counted_far else near)
        wait_until_moving(counter)
        cpu, begin, first = cpu_seconds(near.pid), time.perf_counter(), counter.read()
        time.sleep(SECONDS)
        last, end = counter.read(), time.perf_counter()
        cpus = cpu_seconds(near.pid) - cpu
        counter.driver.close()
        return Watched((last - first) / (end - begin), cpus / (end - begin))


def wait_until_moving(counter: Counter) -> None:
    """Return when records count, as fast as the linking IOC can, and three seconds after they have begun."""
    deadline = time.perf_counter() + 30.0
    while time.perf_counter() < deadline:
        before = counter.read()
        time.sleep(1.0)
        if counter.read() - before > MOVING * OFFERED:
            time.sleep(2.0)
            return
    raise RuntimeError("the links do not move")


def compared(links: Links, folder: Path) -> Iterator[Row]:
    """Linking IOCs in turn, before the same other end; medians."""
    far_database, near_database = folder / "far.db", folder / "near.db"
    far_database.write_text(links.far)
    near_database.write_text(links.near)
    found: dict[str, list[Watched]] = {"ours": [], "theirs": []}
    with ioc("ours", far_database) as far:
        for _ in range(ROUNDS):
            for which, seen in found.items():
                seen.append(measure(which, links, far, near_database))
    rates = [statistics.median(each.updates for each in seen) for seen in found.values()]
    yield Row(f"links: {links.what}, done", *rates, "/s", 0.98, peer_name=PEER)
    per_cpu = [statistics.median(each.per_cpu for each in seen) for seen in found.values()]
    yield Row("links: the same for each CPU second", *per_cpu, "/CPUs", PER_CPU, peer_name=PEER)


def run() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        for links in KINDS:
            yield from compared(links, Path(folder))

"""Programs for p4p's API, on p4p and on ours: ``python -m bench.programs p4p|appliance.p4p MODE UDP``.

They print what they did per second, and per second of their own CPU time.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

from bench.servers import LARGE_NAME, NAMES

SECONDS = 1.5
WATCHED = 100
"""PVs that are monitored."""


def repeat(step: Callable[[], int]) -> tuple[int, float, float]:
    """Repeat for a while; give what was done, in which time and CPU time."""
    done = 0
    start, cpu = time.perf_counter(), time.process_time()
    while (elapsed := time.perf_counter() - start) < SECONDS:
        done += step()
    return done, elapsed, time.process_time() - cpu


def get(ctxt: Any) -> tuple[int, float, float]:
    def step() -> int:
        ctxt.get(NAMES[0])
        return 1

    return repeat(step)


def parallel(ctxt: Any) -> tuple[int, float, float]:
    def step() -> int:
        ctxt.get(NAMES)
        return len(NAMES)

    return repeat(step)


def put(ctxt: Any) -> tuple[int, float, float]:
    def step() -> int:
        ctxt.put(NAMES[0], 2.5)
        return 1

    return repeat(step)


def updates(ctxt: Any, names: list[str], weight: int = 1) -> tuple[int, float, float]:
    """Count the calls of callbacks."""
    counts = [0] * len(names)
    begun = threading.Event()

    def watch(index: int) -> Any:
        def callback(_: object) -> None:
            counts[index] += 1
            begun.set()

        return ctxt.monitor(names[index], callback)

    held = [watch(index) for index in range(len(names))]
    begun.wait(20)
    time.sleep(0.3)  # all are connected
    before = sum(counts)
    start, cpu = time.perf_counter(), time.process_time()
    time.sleep(SECONDS)
    done = sum(counts) - before
    elapsed, used = time.perf_counter() - start, time.process_time() - cpu
    del held
    return done * weight, elapsed, used


def monitor(ctxt: Any) -> tuple[int, float, float]:
    return updates(ctxt, NAMES[:WATCHED])


def arrays(ctxt: Any) -> tuple[int, float, float]:
    return updates(ctxt, [LARGE_NAME])


MODES = {each.__name__: each for each in (get, parallel, put, monitor, arrays)}


def main() -> None:
    package, mode, udp = sys.argv[1:4]
    settings = {
        "EPICS_PVA_ADDR_LIST": "127.0.0.1",
        "EPICS_PVA_AUTO_ADDR_LIST": "NO",
        "EPICS_PVA_BROADCAST_PORT": udp,
    }
    ctxt = import_module(f"{package}.client.thread").Context("pva", conf=settings, useenv=False)
    ctxt.get(NAMES, timeout=20)
    done, elapsed, cpu = MODES[mode](ctxt)
    print(done / elapsed, done / cpu, flush=True)
    # Not in order: while a server posts without pause, p4p sometimes never comes to the end of its Context.
    os._exit(0)


if __name__ == "__main__":
    main()

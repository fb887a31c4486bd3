"""A soft IOC for p4p's API, on p4p and on ours: ``python -m bench.soft_iocs p4p|appliance.p4p KIND COUNT TCP``.

KIND is ``plain`` (numbers), ``full`` (numbers with time and severity) or ``array`` (8 MB). It begins to post at a line of its
standard input, ends at the next one, and prints posts per second, and per second of its own CPU time.
"""

from __future__ import annotations

import sys
import threading
import time
from importlib import import_module
from typing import Any

from bench.servers import LARGE, NAMES


def poster(kind: str, pvs: list[Any]) -> Any:
    """A function that posts to each PV once."""
    number = 0.0
    if kind == "array":
        import numpy as np

        array = np.arange(LARGE, dtype=float)
        return lambda: [pv.post(array) for pv in pvs]

    def plain() -> None:
        nonlocal number
        for pv in pvs:
            number += 1.0
            pv.post(number)

    def full() -> None:
        nonlocal number
        for pv in pvs:
            number += 1.0
            pv.post(number, timestamp=number, severity=1)

    return {"plain": plain, "full": full}[kind]


def main() -> None:
    package, kind, count, tcp = sys.argv[1:5]
    nt = import_module(f"{package}.nt").NTScalar("ad" if kind == "array" else "d")
    shared_pv = import_module(f"{package}.server.thread").SharedPV
    pvs = [shared_pv(nt=nt, initial=[] if kind == "array" else 0.0) for _ in range(int(count))]
    settings = {
        "EPICS_PVAS_SERVER_PORT": tcp,
        "EPICS_PVAS_BROADCAST_PORT": "0",
        "EPICS_PVAS_INTF_ADDR_LIST": "127.0.0.1",
        "EPICS_PVAS_AUTO_BEACON_ADDR_LIST": "NO",
    }
    provider = dict(zip(NAMES, pvs, strict=False))
    with import_module(f"{package}.server").Server(providers=[provider], conf=settings, useenv=False):
        print("ready", flush=True)
        sys.stdin.readline()
        ended = threading.Event()
        threading.Thread(target=lambda: (sys.stdin.readline(), ended.set()), daemon=True).start()
        post = poster(kind, pvs)
        times = max(1, 1000 // len(pvs)) if kind != "array" else 1
        done = 0
        start, cpu = time.perf_counter(), time.process_time()
        while not ended.is_set():
            for _ in range(times):
                post()
            done += times * len(pvs)
        elapsed, used = time.perf_counter() - start, time.process_time() - cpu
        print(done / elapsed, done / used, flush=True)


if __name__ == "__main__":
    main()

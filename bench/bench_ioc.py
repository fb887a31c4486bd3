"""The IOC beside the reference IOC (pvxslibs) with the same records: GETs, many monitors, start-up."""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.iocs import PEER, Ioc, cpu_seconds, ioc, watched
from bench.table import Row, alternate
from bench.wire import pipelined_gets

RECORDS = 10_000


def gets(ours: int, theirs: int, *, tls: bool = False) -> tuple[float, float]:
    return alternate(lambda: pipelined_gets(ours, "b:0", tls=tls), lambda: pipelined_gets(theirs, "b:0"))


def gets_per_cpu(server: Ioc) -> float:
    """What a rate cannot say on a machine that others use as well."""
    before, start = cpu_seconds(server.pid), time.perf_counter()
    rate = pipelined_gets(server.tcp, "b:0", seconds=2.0)
    return rate * (time.perf_counter() - start) / max(cpu_seconds(server.pid) - before, 0.01)


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
                figures[which] = (
                    *watched(server, [f"b:{number}" for number in range(RECORDS)]),
                    server.seconds,
                )
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

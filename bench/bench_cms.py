"""The certificate management service: a process on real sockets, against what is wanted of it."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from appliance.certs.status import CertState
from appliance.cms.service import Service
from appliance.cms.store import Record, Transaction
from bench.table import Row
from bench.wire import get_latency, pipelined_gets
from tests.helpers.cms import Process, ccr, client, effective

CERTIFICATES = 100_000
WANTED = "wanted"


def run() -> Iterator[Row]:
    with (
        tempfile.TemporaryDirectory() as folder,
        Process(Path(folder), "--certs-dont-require-approval") as process,
    ):
        process.ready()
        alone, many, name = asyncio.run(requests(process))
        yield Row("cms: CCRs (std), 1 in flight", alone, 100, "CCR/s", 1, peer_name=WANTED)
        yield Row("cms: CCRs (std), 32 in flight", many, 1500, "CCR/s", 1, peer_name=WANTED)
        rate = max(pipelined_gets(process.tcp_port, name) for _ in range(3))
        yield Row("cms: status GETs, pipelined", rate, 100_000, "GET/s", 1, peer_name=WANTED)
        latency = get_latency(process.tcp_port, name)
        yield Row("cms: status GET, median", latency, 100, "us", 1, less_is_better=True, peer_name=WANTED)
    yield Row(
        f"cms: time to READY with {CERTIFICATES:,} certificates",
        ready(),
        5,
        "s",
        1,
        less_is_better=True,
        peer_name=WANTED,
    )


async def requests(process: Process) -> tuple[float, float, str]:
    rates = []
    async with client(process.tcp_port) as context:
        for in_flight, count in ((1, 300), (32, 4000)):
            arguments = iter([ccr(f"u{in_flight}-{number}") for number in range(count)])

            async def work(arguments: Iterator[object] = arguments) -> None:
                for argument in arguments:
                    await context.rpc("CERT:CREATE", argument, timeout=None)

            start = time.perf_counter()
            await asyncio.gather(*(work() for _ in range(in_flight)))
            rates.append(count / (time.perf_counter() - start))
        reply = await context.rpc("CERT:CREATE", ccr("asked"))
        await context.get(reply["status_pv"])
    return rates[0], rates[1], reply["status_pv"]


def ready() -> float:
    """Seconds from the start of the process until it serves."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        with Process(directory) as process:
            process.ready()
            process.stop()
        fill(process)
        start = time.perf_counter()
        with Process(directory) as process:
            process.ready()
            return time.perf_counter() - start


def fill(process: Process) -> None:
    settings = effective(process.config_dir, db=str(process.db))
    service = Service.open(settings, clock=lambda: datetime.now(UTC))
    now = int(time.time())

    def job(transaction: Transaction) -> None:
        for number in range(CERTIFICATES):
            record = Record(
                serial=(1 << 62) + number,
                subject=f"user{number}\x1flab\x1f\x1f",
                usage="client",
                method="std",
                not_before=now,
                not_after=now + 86400,
                renew_by=0,
                state=CertState.VALID,
                state_date=now,
                approved=True,
                delivered=1,
            )
            more = {
                "cn": f"user{number}",
                "o": "lab",
                "ou": "",
                "c": "",
                "identity": "",
                "skid": "",
                "created": now,
            }
            transaction.add(record, more)

    service.store.run(job)
    service.close()

"""A million certificates: how soon a service is ready, and what its lists cost, on both engines. Rows: docs/benchmarks.md."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from appliance.certs.keychain import load_keychain
from appliance.client.context import Context
from appliance.client.uri import uri_value
from appliance.cms.audit import verify_audit
from appliance.cms.copying import back_up, copy_database
from appliance.cms.schema import HEAD
from appliance.cms.service import CertificateService
from bench.table import Row
from tests.helpers.cms import Process, client, effective
from tests.helpers.many_certificates import DAY_S, fill
from tests.helpers.postgres import Server

CERTIFICATES = 1_000_000
PAGE = 1000
HOW_OFTEN = 5


KEPT = Path("build") / f"million-{HEAD}"
"""The service with its database, which is made once for all runs with the same schema."""


def run() -> Iterator[Row]:
    with Server(fast=False) as server:
        folder = KEPT.resolve()
        made = folder / "made"
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        with Process(folder) as process:
            process.ready(300)
            process.stop()
        db = str(process.db)
        if not made.exists():
            add(process, db)
            made.touch()
        asyncio.run(first_start(process, folder, db))
        yield from engine(folder, "SQLite", db)
        seconds, _ = timed(lambda: verify_audit(db))
        yield row("SQLite: pvacms --audit-verify", seconds)
        url = server.url(server.empty())
        seconds, _ = timed(lambda: copy_database(db, url, datetime.now(UTC)))
        yield row("pvacms --copy-db from SQLite to PostgreSQL", seconds, goal=600)
        asyncio.run(first_start(process, folder, url))
        yield from engine(folder, "PostgreSQL", url)
        backup = folder / "backup.db"
        backup.unlink(missing_ok=True)
        seconds, _ = timed(lambda: back_up(url, str(backup)))
        backup.unlink()
        yield row("PostgreSQL: pvacms --backup", seconds, goal=600)


def row(what: str, seconds: float, goal: float = 0) -> Row:
    return Row(
        f"cms, {CERTIFICATES:,} certificates: {what}", seconds, 0, "s", 0, less_is_better=True, goal=goal
    )


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def add(process: Process, db: str) -> None:
    service = CertificateService.open(effective(process.config_dir, db=db), clock=lambda: datetime.now(UTC))
    issuer = service.names.issuer_id
    service.store.run(lambda t: fill(t.connection, CERTIFICATES, issuer, now=int(time.time())))
    service.close()


async def first_start(process: Process, folder: Path, db: str) -> None:
    """Compare a hundred thousand revocations with the journal, which a service does once for a database that it has not seen."""
    settings = effective(process.config_dir, db=db, server={"xdg_data_home": str(folder / "data")})
    service = CertificateService.open(settings, clock=lambda: datetime.now(UTC))
    try:
        service.lifecycle.load()
        service.store.start()
        for _ in range(2):  # the second one is about what the first one has seen
            await service.lifecycle.revocations.checkpoint()
    finally:
        service.close()


def engine(folder: Path, name: str, db: str) -> Iterator[Row]:
    start = time.perf_counter()
    with Process(folder, "-d", db) as process:
        process.ready(300)
        yield row(f"{name}: time to READY", time.perf_counter() - start, goal=5)
        yield row(f"{name}: computed until READY", cpu_of(process), goal=2)
        for what, seconds, goal in asyncio.run(lists(process)):
            yield row(f"{name}: {what}", seconds, goal)
        megabytes = memory_of(process) / 1e6
        yield Row(
            f"cms, {CERTIFICATES:,} certificates: {name}: memory after all of this",
            megabytes,
            0,
            "MB",
            0,
            less_is_better=True,
        )


def cpu_of(process: Process) -> float:
    """Seconds that a process has computed, by the clock that Linux has for each."""
    return time.clock_gettime((~process.process.pid << 3) | 2)


def memory_of(process: Process) -> int:
    """Octets of a process in memory."""
    fields = (Path("/proc") / str(process.process.pid) / "statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


async def lists(process: Process) -> list[tuple[str, float, float]]:
    now = int(time.time())
    found: list[tuple[str, float, float]] = []
    keychain = load_keychain((process.config_dir / "admin.p12").read_bytes())
    async with client(process.tls_port, keychain) as admin:
        for what, query, goal in (
            ("first page of all", {}, 1.0),
            ("a page of one state", {"state": "REVOKED"}, 1.0),
            ("a page by name", {"name": "host05"}, 1.0),
            ("a page by expiry", {"expires_after": str(now + 300 * DAY_S)}, 1.0),
            ("a page by part of the subject", {"subject": "host0777"}, 2.0),
        ):
            times = []
            before = cpu_of(process)
            for _ in range(HOW_OFTEN):
                start = time.perf_counter()
                await page(admin, query)
                times.append(time.perf_counter() - start)
            found.append((f"{what}, slowest of {HOW_OFTEN}", max(times), goal))
            found.append((f"{what}, computed by the service", (cpu_of(process) - before) / HOW_OFTEN, 0.1))
        for what, query in (
            ("all pages", {}),
            ("all pages of a part of the subject", {"subject": f"host{CERTIFICATES * 7 // 9:07d}"}),
        ):
            start = time.perf_counter()
            number = 0
            async for rows in pages(admin, query):
                number += rows
            assert number >= (CERTIFICATES if not query else 1)
            found.append((what, time.perf_counter() - start, 0.0))
    return found


async def page(admin: Context, query: dict[str, str]) -> Any:
    return await admin.rpc("CERT:LIST", uri_value("CERT:LIST", query), timeout=60)


async def pages(admin: Context, query: dict[str, str]) -> AsyncIterator[int]:
    place = ""
    while True:
        table = await page(admin, query | ({"after": place} if place else {}))
        yield len(table["value.cert_id"])
        place = table["next"]
        if not place:
            return

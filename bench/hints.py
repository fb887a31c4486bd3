"""Certificates whose renewal becomes due in the same second, each with a subscriber, and GETs of a status meanwhile."""

from __future__ import annotations

import multiprocessing
import struct
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from appliance.certs.status import CertState
from appliance.cms.service import CertificateService
from appliance.cms.transaction import CertRecord, Transaction
from bench.wire import GET, MONITOR, Driver, begin, get_request, subscribed
from tests.helpers.cms import Process, effective

CERTIFICATES = 10_000
LEADS_S = (45.0, 100.0, 200.0)
"""From the filling of the database to the hints: the service starts, and signs the first status of each. The first that is
enough is used.
"""
LONGEST_S = 30.0
"""For the hints to come."""
OUTSTANDING = 1000
ECHO = 2
FIRST = 1 << 62


class Hints(NamedTuple):
    """What was measured."""

    seconds: float
    """From the moment at which all renewals are due to the last hint."""
    gets: float
    """GETs of a status per second from then to the last hint."""
    gets_before: float
    """GETs of a status per second before."""


def measure(folder: Path) -> Hints:
    for lead_s in LEADS_S:
        (within := folder / f"{lead_s:g}").mkdir()
        seen = attempt(within, lead_s)
        if seen is not None:
            return seen
    raise RuntimeError(
        f"the machine is too slow for this bench: not all had subscribed after {LEADS_S[-1]} s"
    )


def attempt(folder: Path, lead_s: float) -> Hints | None:
    """Measure; None if the hints were due before all had subscribed."""
    with Process(folder) as process:
        process.ready()
        process.stop()
    moment = int(time.time() + lead_s)
    fill(process, moment)
    with Process(folder) as process:
        process.ready()
        names = [f"CERT:STATUS:{process.issuer}:{FIRST + number}" for number in range(CERTIFICATES)]
        driver = subscribed(process.tcp_port, names, False)
        begin(driver, len(names))
        try:
            hear(driver, time.perf_counter() + lead_s)
        except TimeoutError:
            return None
        due = time.perf_counter() + moment - time.time()
        if due - time.perf_counter() < 4:
            return None
        ours, theirs = multiprocessing.Pipe()
        asking = multiprocessing.Process(
            target=ask, args=(process.tcp_port, names[0], due + LONGEST_S, theirs), daemon=True
        )
        asking.start()
        while (left := due - time.perf_counter()) > 0:
            driver.send(ECHO, b"")  # a connection from which nothing comes is closed
            time.sleep(min(left, 5.0))
        last = hear(driver, due + LONGEST_S)
        driver.close()
        ours.send(None)
        answered = ours.recv()
        asking.join()
    return Hints(last - due, rate(answered, due, last), rate(answered, due - 3, due))


def hear(driver: Driver, deadline: float) -> float:
    """Wait until each subscription had an update; return when the last of them came."""
    left = CERTIFICATES
    heard = bytearray(CERTIFICATES + 1)
    while left:
        driver.sock.settimeout(max(0.1, deadline - time.perf_counter()))
        command, payload = driver.message()
        if command == MONITOR:
            ioid = struct.unpack_from("<I", payload)[0]
            left -= not heard[ioid]
            heard[ioid] = 1
    return time.perf_counter()


def ask(port: int, name: str, until: float, pipe: multiprocessing.connection.Connection) -> None:
    """Send GETs until told to end, and then tell when each batch of them was answered."""
    driver = Driver(port)
    sid = driver.channel(name, 1)
    for ioid in range(OUTSTANDING):
        driver.init(GET, sid, ioid)
    batch = b"".join(get_request(sid, ioid) for ioid in range(OUTSTANDING))
    answered = []
    while time.perf_counter() < until and not pipe.poll():
        driver.sock.sendall(batch)
        for _ in range(OUTSTANDING):
            driver.wait_for(GET)
        answered.append(time.perf_counter())
    driver.close()
    pipe.send(answered)


def rate(answered: Sequence[float], start: float, end: float) -> float:
    """GETs per second between two times, from the first batch that was answered in between to the last."""
    between = [when for when in answered if start <= when <= end]
    return OUTSTANDING * (len(between) - 1) / (between[-1] - between[0]) if len(between) > 1 else 0.0


def fill(process: Process, moment: int) -> None:
    """Record certificates whose renewal is due at ``moment``."""
    settings = effective(process.config_dir, db=str(process.db))
    service = CertificateService.open(settings, clock=lambda: datetime.now(UTC))
    now = int(time.time())

    def job(transaction: Transaction) -> None:
        for number in range(CERTIFICATES):
            record = CertRecord(
                serial=FIRST + number,
                subject=f"user{number}\x1flab\x1f\x1f",
                usage="client",
                method="std",
                not_before=now,
                not_after=now + 86400,
                renew_by=2 * moment - now,
                state=CertState.VALID,
                state_date=now,
                approved=True,
                delivered=1,
                renewed_at=now,
            )
            more = {"cn": f"user{number}", "o": "lab", "ou": "", "c": "", "created": now}
            transaction.add(record, more)

    service.store.run(job)
    service.close()

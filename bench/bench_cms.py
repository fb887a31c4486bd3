"""The certificate management service: processes on real sockets. What each row means: docs/benchmarks.md."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from appliance.certs.profiles import build_ca, generate_key, subject_name
from appliance.certs.signer import KeySigner
from appliance.certs.status import CertState
from appliance.cms.service import CertificateService
from appliance.cms.transaction import CertRecord, Transaction
from appliance.pva.typed import encode_typed
from appliance.pvdata import Value
from bench import hints, revocation, tokens
from bench.servers import NAMES, running
from bench.table import Row, alternate
from bench.wire import calls, first_get, get_latency, pipelined_gets
from tests.helpers.cms import Process, ccr, effective, pem

CERTIFICATES = 100_000
CREATE = "CERT:CREATE"
BEFORE_NODES = 0.0534
"""CCRs (std, a key for each) of the service at commit 6c618b4, in the CPU time of one bare certificate: the median of nine pairs of
1500, in turns with those of the service that followed.
"""


def run() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with tokens.issuer(folder / "issuer") as issuer:
            config = folder / "cms.yml"
            # Renewals are of the same service as the requests that they are compared with.
            config.write_text(f"{issuer.config()}cert_renewal_client: 1h\n")
            with Process(folder, "--config", str(config), "--certs-dont-require-approval") as process:
                process.ready()
                yield from requests(process, issuer, folder)
                yield from status(process)
                yield from closing(process, folder)
    yield from renewals_due()
    yield Row(
        f"cms: time to READY with {CERTIFICATES:,} certificates",
        ready(),
        0,
        "s",
        0,
        less_is_better=True,
        goal=5,
    )


# -- requests ----------------------------------------------------------------------------------------


def requests(process: Process, issuer: tokens.Issuer, folder: Path) -> Iterator[Row]:
    turn = iter(range(1000))
    # No site has ten thousand names of one key.
    keys = [generate_key("ec-p256") for _ in range(256)]

    def std(in_flight: int, count: int) -> float:
        word = f"std{next(turn)}-"
        asked = [ccr(f"{word}{n}", key=keys[n % len(keys)]) for n in range(count)]
        return rate(process.tcp_port, asked, in_flight)

    def jwt(in_flight: int, count: int) -> float:
        # The first call after the service's start fetches the issuer's keys; tokens go over TLS only.
        proofs = issuer.tokens(f"jwt{next(turn)}-", count)
        asked = [with_token(token, keys[n % len(keys)]) for n, token in enumerate(proofs)]
        return rate(process.tls_port, asked, in_flight, tls=True)

    std(32, 64)
    jwt(1, 2)
    alone, other = "a durable append and a bare certificate", "bare certificates"
    for what, measure, wanted in (("std", std, 0.1), ("jwt, TLS", jwt, 0.05)):
        pair = alternate(lambda measure=measure: measure(1, 100), lambda: bare(100, folder / "append"))
        yield Row(f"cms: CCRs ({what}), 1 in flight", *pair, "CCR/s", wanted, peer_name=alone)
    for what, measure, wanted, goal in (("std", std, 0.05, 1500), ("jwt, TLS", jwt, 0.03, 0)):
        pair = alternate(lambda measure=measure: measure(32, 1500), lambda: bare(1500))
        yield Row(f"cms: CCRs ({what}), 32 in flight", *pair, "CCR/s", wanted, peer_name=other, goal=goal)

    def renewals() -> float:
        word = f"renewed{next(turn)}-"
        # Each with a key of its own, as holders have them.
        asked = [ccr(f"{word}{n}", key=generate_key("ec-p256")) for n in range(1500)]
        created.append(rate(process.tcp_port, asked, 32))
        return rate(process.tcp_port, asked, 32)

    created: list[float] = []
    pair = alternate(renewals, lambda: created.pop(0))
    what = "the same requests for the first time"
    yield Row("cms: renewals (std), 32 in flight", *pair, "CCR/s", 2, peer_name=what)

    def own_keys(in_flight: int, count: int) -> float:
        word = f"own{next(turn)}-"
        asked = [ccr(f"{word}{n}", key=generate_key("ec-p256")) for n in range(count)]
        return rate(process.tcp_port, asked, in_flight)

    def in_cpu_time(measure: Callable[[int, int], float]) -> float:
        before = cpu_seconds(process.process.pid)
        measure(32, 1000)
        return 1000 / (cpu_seconds(process.process.pid) - before)

    def of_bare(measure: Callable[[int, int], float]) -> tuple[float, float]:
        return alternate(lambda: in_cpu_time(measure), lambda: bare(1000, clock=time.process_time), rounds=5)

    unit = "32 in flight, per second of its CPU time"
    ours, certificates = of_bare(std)
    what = f"cms: CCRs (std, {len(keys)} keys), {unit}"
    yield Row(what, ours, certificates, "CCR/s", 0.1, peer_name=other, goal=1500)
    ours, certificates = of_bare(own_keys)
    what = f"cms: CCRs (std, a key for each), {unit}"
    yield Row(what, ours, certificates, "CCR/s", 0.1, peer_name=other, goal=1500)
    # An old service cannot run here. How it stood to the peer is known, so the peer of this run tells what it would do.
    yield Row(
        what, ours, certificates * BEFORE_NODES, "CCR/s", 1.5, peer_name="the service before it had nodes"
    )


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rate(port: int, arguments: Sequence[Value], in_flight: int, *, tls: bool = False) -> float:
    encoded = [b"".join(encode_typed(argument, big=False)) for argument in arguments]
    start = time.perf_counter()
    calls(port, CREATE, encoded, in_flight, tls=tls)
    return len(encoded) / (time.perf_counter() - start)


def with_token(token: str, key: PrivateKeyTypes) -> Value:
    from appliance.authn.ccr import CertRequest, request_value
    from appliance.authn.proof import PROOF_FIELD, make_proof

    request = CertRequest("jwt", "client", pem(key))
    proof = make_proof(request, key, made=int(time.time()), token=token)
    return request_value(CREATE, request._replace(verifier={"token": token, PROOF_FIELD: proof}))


def bare(count: int, append_to: Path | None = None, clock: Callable[[], float] = time.perf_counter) -> float:
    """Certificates per second that `cryptography` builds and signs; each after a synced append to a file, if given."""
    now = datetime.now(UTC).replace(microsecond=0)
    key, public = generate_key("ec-p256"), generate_key("ec-p256").public_key()
    ca = build_ca(
        KeySigner(key),
        subject=subject_name("CA"),
        not_before=now,
        not_after=now + timedelta(days=9),
        serial=1,
    )
    file = None if append_to is None else os.open(append_to, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    start = clock()
    for number in range(count):
        if file is not None:
            os.write(file, bytes(1024))
            os.fdatasync(file)
        (
            x509.CertificateBuilder()
            .subject_name(subject_name(f"user{number}", organization="lab"))
            .issuer_name(ca.subject)
            .public_key(public)
            .serial_number(1 + number)
            .not_valid_before(now)
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
    elapsed = clock() - start
    if file is not None:
        os.close(file)
    return count / elapsed


# -- status ------------------------------------------------------------------------------------------


def status(process: Process) -> Iterator[Row]:
    port = process.tcp_port
    prefix = f"CERT:STATUS:{process.issuer}"
    known = issued(process)
    name = f"{prefix}:{known[0]}"
    with running("p4p", "static") as peer:
        yield Row(
            "cms: status GETs, pipelined",
            *alternate(lambda: pipelined_gets(port, name), lambda: pipelined_gets(peer.tcp, NAMES[0])),
            "GET/s",
            0.8,
            goal=100_000,
        )
        yield Row(
            "cms: status GET, median latency",
            *alternate(lambda: get_latency(port, name), lambda: get_latency(peer.tcp, NAMES[0])),
            "us",
            1.5,
            less_is_better=True,
        )
        chunk = iter(range(0, 1_000_000, 200))
        yield Row(
            "cms: first GET of an unknown serial, median",
            *alternate(
                lambda: first_get(port, [f"{prefix}:{n}" for n in span(next(chunk))]),
                lambda: first_get(peer.tcp, NAMES[1:201]),
            ),
            "us",
            0,
            less_is_better=True,
            goal=10_000,
        )
        chunks = iter(known[1 + i : 201 + i] for i in range(0, 600, 200))
        yield Row(
            "cms: first GET of a known certificate (signs), median",
            *alternate(
                lambda: first_get(port, [f"{prefix}:{n}" for n in next(chunks)]),
                lambda: first_get(peer.tcp, NAMES[1:201]),
            ),
            "us",
            0,
            less_is_better=True,
            goal=10_000,
        )


def span(start: int) -> range:
    return range(1 + start, 201 + start)


def issued(process: Process) -> list[int]:
    import sqlite3

    with sqlite3.connect(f"file:{process.db}?mode=ro", uri=True) as connection:
        rows = connection.execute("SELECT serial FROM certs WHERE cn LIKE 'std%' LIMIT 700")
        return [int(serial) for (serial,) in rows]


# -- revocation --------------------------------------------------------------------------------------


def closing(process: Process, folder: Path) -> Iterator[Row]:
    closed = revocation.measure(process, folder)
    for whose, times in (("a client's", closed.each_client), ("the server's", closed.server)):
        figures = {"p50": statistics.median(times), "p99": times[-2 if len(times) >= 100 else -1]}
        for part, seconds in figures.items():
            what = f"cms: {whose} certificate revoked to closed, {part} of {len(times)}"
            yield Row(what, seconds, 0, "s", 0, less_is_better=True, goal=1)


# -- hints -------------------------------------------------------------------------------------------


def renewals_due() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as name:
        seen = hints.measure(Path(name))
    what = f"cms: {hints.CERTIFICATES:,} hints of one second, to the last"
    yield Row(what, seen.seconds, 0, "s", 0, less_is_better=True, goal=2)
    yield Row(
        "cms: status GETs meanwhile", seen.gets, seen.gets_before, "GET/s", 0.5, peer_name="before the hints"
    )


# -- start -------------------------------------------------------------------------------------------


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
    service = CertificateService.open(settings, clock=lambda: datetime.now(UTC))
    now = int(time.time())

    def job(transaction: Transaction) -> None:
        for number in range(CERTIFICATES):
            record = CertRecord(
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

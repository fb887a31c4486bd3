"""How long a revoked certificate's connections live: a certificate service, a server that follows it, 100 clients."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from appliance.certs.keychain import Keychain, dump_keychain, load_keychain
from appliance.certs.profiles import generate_key
from bench.guarded import NAME
from bench.servers import free_ports
from bench.wire import Driver
from tests.helpers.cms import ccr, client, keychain_of

CONNECTIONS = 100


class Served(Protocol):
    """A certificate service: a `Process`, or two nodes of one."""

    @property
    def config_dir(self) -> Path: ...
    @property
    def tls_port(self) -> int:
        """Where the administrator is."""
        ...

    @property
    def tcp_port(self) -> int:
        """Where the guarded server finds the statuses."""
        ...


class Closed(NamedTuple):
    """Seconds from the administrator's PUT to the end of a connection, sorted."""

    each_client: list[float]
    """One client's certificate after the other was revoked."""
    server: list[float]
    """The server's certificate was revoked."""


def measure(process: Served, directory: Path) -> Closed:
    return asyncio.run(_measure(process, directory))


async def _measure(process: Served, directory: Path) -> Closed:
    admin = load_keychain((process.config_dir / "admin.p12").read_bytes())
    key = generate_key("ec-p256")
    async with client(process.tls_port, admin) as administrator:

        async def issue(name: str, usage: int) -> tuple[Keychain, str]:
            reply = await administrator.rpc("CERT:CREATE", ccr(name, usage=usage, key=key))
            return keychain_of(reply, key), reply["status_pv"]

        keychain, server_pv = await issue("guarded", 2)
        path = directory / "guarded.p12"
        path.touch(mode=0o600)
        path.write_bytes(dump_keychain(keychain))
        with guarded(path, process.tcp_port) as port:
            drivers = []
            for number in range(CONNECTIONS):
                mine, status_pv = await issue(f"guest{number}", 1)
                drivers.append((connect(port, write_pem(directory / "guest.pem", mine)), status_pv))
            each = []
            for driver, status_pv in drivers:
                each.append(await until_closed(administrator, status_pv, [driver]))
            anonymous = [connect(port) for _ in range(CONNECTIONS)]
            server = await until_closed(administrator, server_pv, anonymous)
    return Closed(sorted(times[0] for times in each), sorted(server))


async def until_closed(administrator: object, status_pv: str, drivers: list[Driver]) -> list[float]:
    loop = asyncio.get_running_loop()
    watching = loop.run_in_executor(None, ends, drivers)
    start = time.perf_counter()
    await administrator.put(status_pv, {"state": "REVOKED"})  # type: ignore[attr-defined]
    return [end - start for end in await watching]


def ends(drivers: list[Driver]) -> list[float]:
    """The times at which the connections ended."""
    import selectors

    selector = selectors.DefaultSelector()
    for driver in drivers:
        driver.sock.setblocking(False)
        selector.register(driver.sock, selectors.EVENT_READ)
    times: list[float] = []
    limit = time.perf_counter() + 30
    while len(times) < len(drivers):
        ready = selector.select(limit - time.perf_counter())
        if not ready:
            raise RuntimeError(f"{len(drivers) - len(times)} connections outlived a revoked certificate")
        for chosen, _ in ready:
            sock = chosen.fileobj
            try:
                while sock.recv(65536):  # type: ignore[union-attr]
                    pass
            except ssl.SSLWantReadError:
                continue
            except OSError:
                pass  # an end of the rude kind
            times.append(time.perf_counter())
            selector.unregister(sock)
            sock.close()  # type: ignore[union-attr]
    return times


def connect(port: int, identity: Path | None = None) -> Driver:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if identity is not None:
        context.load_cert_chain(identity)
    driver = Driver(port, tls=context)
    driver.channel(NAME, 1)
    return driver


def write_pem(path: Path, keychain: Keychain) -> Path:
    path.touch(mode=0o600)
    path.write_bytes(
        keychain.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        + b"".join(c.public_bytes(Encoding.PEM) for c in (keychain.certificate, *keychain.chain))
    )
    return path


@contextlib.contextmanager
def guarded(keychain: Path, cms: int) -> Iterator[int]:
    tcp, tls = free_ports(2)
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.guarded", str(keychain), str(cms), str(tcp), str(tls)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # a line for each connection that is closed
        text=True,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if line.strip() != "ready":
            raise RuntimeError(f"the server did not start: {line!r}")
        yield tls
    finally:
        process.terminate()
        process.wait()

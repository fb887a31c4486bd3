"""A certificate management service for tests: in this process with a clock of its own, or as a process."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import msgspec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from appliance.authn.ccr import parse_request, request_type
from appliance.authn.proof import PROOF_FIELD, make_proof
from appliance.certs.keychain import Keychain, load_keychain, make_keychain
from appliance.certs.profiles import generate_key
from appliance.client.context import Context
from appliance.cms.config import CMSConfig, CMSSettings
from appliance.cms.service import CertificateService
from appliance.config.address import Endpoint
from appliance.config.pva import ClientConfig, ServerConfig
from appliance.config.secret import FilePath
from appliance.pvdata import Value
from appliance.tls.context import client_context
from tests.helpers.postgres import Engine, raw

ENGINE = Engine("sqlite")
"""Gives a service its database; the fixture ``engine`` replaces it."""


def where(directory: Path) -> str:
    """The database of the service that keeps everything below ``directory``."""
    return ENGINE.db(directory)


def database(directory: Path) -> contextlib.AbstractContextManager[Any]:
    """A connection to that database, beside the service."""
    return raw(where(directory))


def contents(directory: Path) -> bytes:
    """All that the database of ``directory`` has."""
    if ENGINE.name == "sqlite":
        return Path(where(directory)).read_bytes()
    with database(directory) as db:
        tables = db.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        rows = [db.execute(f"SELECT t::text FROM {name} t").fetchall() for (name,) in tables]
    return repr(rows).encode()


class Clock:
    """A wall clock that a test sets."""

    def __init__(self, at: datetime | None = None) -> None:
        self.offset = timedelta()
        self.fixed = at

    def __call__(self) -> datetime:
        return (self.fixed or datetime.now(UTC)) + self.offset

    def advance(self, **duration: float) -> None:
        self.offset += timedelta(**duration)


def effective(directory: Path, *, server: dict[str, Any] | None = None, **settings: Any) -> CMSConfig:
    """Settings of a service that keeps everything below ``directory`` and listens on free ports of 127.0.0.1."""
    settings.setdefault("ccr_per_minute", 0.0)
    values = {
        "db": ENGINE.db(directory),
        "acf": FilePath(directory / "pvacms.acf"),
        "cert_auth_tls_keychain": FilePath(directory / "cert_auth.p12"),
        "admin_tls_keychain": FilePath(directory / "admin.p12"),
        **settings,
    }
    config = ServerConfig(
        intf_addr_list=(Endpoint("127.0.0.1"),),
        auto_beacon_addr_list=False,
        server_port=0,
        tls_port=0,
        broadcast_port=0,
        tls_keychain=str(directory / "pvacms.p12"),
        xdg_config_home=str(directory),
        xdg_data_home=str(directory),
    )._replace(**(server or {}))
    return CMSConfig(msgspec.structs.replace(CMSSettings(), **values), config, [], None, [])


@contextlib.asynccontextmanager
async def running(directory: Path, clock: Clock | None = None, *, admin: str | None = None, **settings: Any):
    """A service that serves; its clock moves only when the test calls ``tick``.

    With an authority that somebody else has made it makes an administrator only if ``admin`` names one.
    """
    service = CertificateService.open(effective(directory, **settings), clock=clock or Clock())
    try:
        service.first_start(ensure=admin)
        await service.start()
        yield service
    finally:
        await service.stop()


@contextlib.asynccontextmanager
async def client(port: int, keychain: Keychain | None = None, **config: Any):
    """A client of the server at ``port`` of 127.0.0.1: over TLS with a keychain, else over plain TCP."""
    tls = None if keychain is None else client_context(keychain, want_staple=False)
    settings = ClientConfig(
        auto_addr_list=False,
        name_servers=(Endpoint("127.0.0.1", port, tls=keychain is not None),),
        **config,
    )
    async with Context(settings, tls=tls, beacons=False) as context:
        yield context


def plain(service: CertificateService):
    return client(service.server.tcp_port)


def secure(service: CertificateService, keychain: Keychain):
    return client(service.server.tls_port, keychain)


def admin_keychain(directory: Path) -> Keychain:
    return load_keychain((directory / "admin.p12").read_bytes())


def pem(key: Any) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


KEY = generate_key("ec-p256")
KEY_PEM = pem(KEY)


def ccr(
    name: str = "alice",
    *,
    usage: int = 1,
    pub_key: str | None = None,
    key: Any = None,
    clock: Any = None,
    **query: Any,
) -> Value:
    """A certificate creation request as authnstd sends it, with the proof that the requester holds ``key``.

    With ``pub_key`` it comes from an implementation that sends no proof. ``clock`` is the requester's.
    """
    proving = pub_key is None
    key = key or KEY
    fields = {"type": "std", "name": name, "organization": "lab", "usage": usage, **query}
    fields["pub_key"] = pem(key) if pub_key is None else pub_key
    kind = request_type(*([PROOF_FIELD] if proving else []), time_zone="time_zone" in query)
    value = Value(kind, {"scheme": "pva", "path": "CERT:CREATE"})
    for field, content in fields.items():
        value[f"query.{field}"] = content
    if proving and usage in (1, 2, 3, 8, 11) and fields["pub_key"]:
        made = int((clock or Clock())().timestamp())
        value[f"query.verifier.{PROOF_FIELD}"] = make_proof(parse_request(value), key, made=made)
    value.mark()
    return value


def jwt_request(token: str, pub_key: str = KEY_PEM, usage: int = 1) -> Value:
    """A request with a token, from an implementation that sends no proof beside it."""
    value = Value(request_type("token"), {"scheme": "pva", "path": "CERT:CREATE"})
    fields = {"type": "jwt", "usage": usage, "pub_key": pub_key, "verifier.token": token}
    for field, content in fields.items():
        value[f"query.{field}"] = content
    value.mark()
    return value


def keychain_of(reply: Any, key: Any = KEY) -> Keychain:
    """A keychain from a reply to a CCR."""
    from cryptography import x509

    return make_keychain(key, x509.load_pem_x509_certificates(reply["cert"].encode()))


async def settled(service: CertificateService, *, until: Any = None) -> None:
    """Let the service's clock do what is due, and wait until it is recorded."""
    import asyncio

    while service.tick():
        await asyncio.sleep(0)
    await service.lifecycle.settle()


class Process:
    """``pvacms`` as a process."""

    def __init__(
        self,
        directory: Path,
        *arguments: str,
        prefix: tuple[str, ...] = (),
        program: tuple[str, ...] = ("-m", "appliance.cli.pvacms"),
        **environ: str,
    ) -> None:
        self.directory = directory
        self.lines: list[str] = []
        self.log: list[str] = []
        self.tcp_port = self.tls_port = 0
        self.issuer = ""
        self._out: queue.Queue[str | None] = queue.Queue()
        self._err: queue.Queue[str | None] = queue.Queue()
        self.process = subprocess.Popen(
            [*prefix, sys.executable, *program, *arguments],
            env={
                **{k: v for k, v in os.environ.items() if not k.startswith("EPICS_")},
                "XDG_CONFIG_HOME": str(directory / "config"),
                "XDG_DATA_HOME": str(directory / "data"),
                "EPICS_PVACMS_SERVER_PORT": "0",
                "EPICS_PVACMS_TLS_PORT": "0",
                "EPICS_PVACMS_BROADCAST_PORT": "0",
                "EPICS_PVAS_INTF_ADDR_LIST": "127.0.0.1",
                "EPICS_PVAS_AUTO_BEACON_ADDR_LIST": "NO",
                "EPICS_PVACMS_CCR_PER_MINUTE": "0",
                **environ,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for pipe, target in ((self.process.stdout, self._out), (self.process.stderr, self._err)):
            threading.Thread(target=_copy, args=(pipe, target), daemon=True).start()

    @property
    def config_dir(self) -> Path:
        return self.directory / "config" / "pva" / "1.5"

    @property
    def db(self) -> Path:
        return self.directory / "data" / "pva" / "1.5" / "certs.db"

    def ready(self, limit_s: float = 60.0) -> Process:
        """Wait until it serves."""
        end = time.monotonic() + limit_s
        while not self.tcp_port:
            line = self._err.get(timeout=max(0.1, end - time.monotonic()))
            if line is None:
                raise AssertionError(f"pvacms ended: {self.log}")
            self.log.append(line)
            found = re.search(r"TCP port (\d+) and TLS port (\d+)", line)
            if found:
                self.tcp_port, self.tls_port = int(found[1]), int(found[2])
        while not self.issuer:
            line = self._out.get(timeout=max(0.1, end - time.monotonic()))
            assert line is not None
            self.lines.append(line)
            found = re.search(r"PVACMS \[([0-9a-f]{8})\] Service Running", line)
            if found:
                self.issuer = found[1]
        return self

    def log_line(self, pattern: str, limit_s: float = 60.0) -> str:
        """Wait for a line of the log."""
        end = time.monotonic() + limit_s
        for line in self.log:
            if re.search(pattern, line):
                return line
        while True:
            line = self._err.get(timeout=max(0.1, end - time.monotonic()))
            if line is None:
                raise AssertionError(f"pvacms ended: {self.log}")
            self.log.append(line)
            if re.search(pattern, line):
                return line

    def wait(self, limit_s: float = 60.0) -> tuple[int, str, str]:
        """Wait for its end: status, standard output, standard error."""
        status = self.process.wait(limit_s)
        for source, target in ((self._out, self.lines), (self._err, self.log)):
            while (line := source.get(timeout=60)) is not None:
                target.append(line)
        return status, "".join(self.lines), "".join(self.log)

    def stop(self) -> tuple[int, str, str]:
        if self.process.poll() is None:
            self.process.terminate()
        return self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def _copy(pipe: Any, target: queue.Queue[str | None]) -> None:
    with pipe:
        for line in pipe:
            target.put(line)
    target.put(None)

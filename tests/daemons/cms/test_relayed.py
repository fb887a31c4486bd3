"""The certificate service behind a relay: limits, audit and access security name the client and not the relay."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from appliance.client import Context
from appliance.cms.service import CertificateService
from appliance.config.loader import load_document
from appliance.config.pva import ClientConfig
from appliance.errors import AccessDeniedError, ConfigurationError, RemoteError
from appliance.server.quota import who
from appliance.tls.context import client_context
from appliance.transport.address import SocketAddress
from appliance.transport.splice import Splices
from tests.helpers.cms import admin_keychain, ccr, database, effective, running

pytestmark = pytest.mark.usefixtures("engine")

HOST = "127.0.0.1"
OPEN = {"require_client_approval": False}


class Relay:
    """A relay before a service."""

    def __init__(self, service: CertificateService) -> None:
        self._service = service
        self.splices = Splices(self)
        self.port = 0
        self.silent: list[tuple[SocketAddress, str]] = []

    async def target(self) -> SocketAddress:
        assert self._service.server is not None
        return SocketAddress(HOST, self._service.server.tls_port)

    def unreachable(self, address: SocketAddress) -> None:
        raise AssertionError(address)

    def unanswered(self, address: SocketAddress, here: str) -> None:
        self.silent.append((address, here))

    def admits(self, host: str) -> bool:
        return bool(host)

    def host_key(self, host: str) -> str:
        return who(host)


@contextlib.asynccontextmanager
async def relayed(service: CertificateService) -> AsyncIterator[Relay]:
    made = Relay(service)
    front = await asyncio.get_running_loop().create_server(made.splices.accept, HOST, 0)
    made.port = front.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        front.close()
        made.splices.close()


class Client(NamedTuple):
    """A client that asks the relay and nobody else."""

    context: Context
    server: tuple[str, int, bool]

    async def create(self, name: str) -> Any:
        return await self.context.rpc("CERT:CREATE", ccr(name), server=self.server)


@contextlib.asynccontextmanager
async def client(
    port: int, keychain: Any, source: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Client]:
    """A client that connects from the address ``source`` of this host."""
    loop = asyncio.get_running_loop()
    connect = type(loop).create_connection

    async def from_source(protocol: Any, host: str, to: int) -> Any:
        return await connect(loop, protocol, host, to, local_addr=(source if to == port else HOST, 0))

    with monkeypatch.context() as patch:
        patch.setattr(loop, "create_connection", from_source)
        tls = client_context(keychain, want_staple=False)
        async with Context(ClientConfig(auto_addr_list=False), tls=tls, beacons=False) as context:
            yield Client(context, (HOST, port, True))


async def test_the_rate_limit_is_the_clients_and_not_the_relays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        running(tmp_path, ccr_per_minute=6.0, ccr_burst=2, proxy_from=(HOST,), **OPEN) as service,
        relayed(service) as relay,
    ):
        admin = admin_keychain(tmp_path)
        async with client(relay.port, admin, "127.0.0.21", monkeypatch) as greedy:
            for name in ("one", "two"):
                await greedy.create(name)
            with pytest.raises(RemoteError, match="rate limited"):
                await greedy.create("three")
            async with client(relay.port, admin, "127.0.0.22", monkeypatch) as other:
                assert (await other.create("four"))["state"] == "VALID"


async def test_audit_and_log_name_the_client_and_the_log_the_relay_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with running(tmp_path, proxy_from=("127.0.0.0/24",)) as service, relayed(service) as relay:
        admin = admin_keychain(tmp_path)
        async with client(relay.port, admin, "127.0.0.21", monkeypatch) as context:
            reply = await context.create("bob")
            assert reply["state"] == "PENDING_APPROVAL"
            await context.context.put(reply["status_pv"], {"state": "APPROVED"}, server=context.server)
    (issued,) = [record for record in caplog.records if getattr(record, "event", "") == "certificate-issued"]
    assert issued.peer.startswith("127.0.0.21:")  # type: ignore[attr-defined]
    assert issued.via.startswith("127.0.0.1:")  # type: ignore[attr-defined]
    with database(tmp_path) as db:
        rows = [row[0] for row in db.execute("select record from audit").fetchall()]
    peers = [record.get("peer", "") for record in map(json.loads, rows)]
    assert any(peer.startswith("127.0.0.21:") for peer in peers)


async def test_access_security_judges_the_host_of_the_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, proxy_from=(HOST,), **OPEN) as service, relayed(service) as relay:
        acf = tmp_path / "pvacms.acf"
        rule = "HAG(INNER) {127.0.0.23}\nASG(CERT_CREATE) { RULE(1,WRITE) { HAG(INNER) } }\n"
        acf.write_text(acf.read_text() + rule)
        await service.reload(effective(tmp_path, proxy_from=(HOST,), **OPEN))
        admin = admin_keychain(tmp_path)
        async with client(relay.port, admin, "127.0.0.23", monkeypatch) as context:
            assert (await context.create("inner"))["state"] == "VALID"
        async with client(relay.port, admin, "127.0.0.24", monkeypatch) as context:
            with pytest.raises(AccessDeniedError):
                await context.create("outer")


async def test_without_the_setting_no_relay_is_believed_and_a_reload_changes_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with running(tmp_path, **OPEN) as service, relayed(service) as relay:
        admin = admin_keychain(tmp_path)
        async with client(relay.port, admin, HOST, monkeypatch) as context:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.0):
                    await context.create("nobody")
        assert "name its address in proxy_from" in caplog.text
        await service.reload(effective(tmp_path, proxy_from=(HOST,), **OPEN))
        async with client(relay.port, admin, "127.0.0.24", monkeypatch) as context:
            await context.create("somebody")
            assert service.server is not None
            peers = [peer.credentials.peer for peer in service.server.peers.values()]
            assert [peer for peer in peers if peer.startswith("127.0.0.24:")]
        await service.reload(effective(tmp_path, **OPEN))
        assert service.server.proxied is None


@pytest.mark.parametrize(
    ("item", "why"),
    [("gateway.lab", "neither an address nor a network"), ("0.0.0.0/0", "means every address")],
)
def test_a_wrong_proxy_from_is_refused_with_its_line(tmp_path: Path, item: str, why: str) -> None:
    from appliance.cms.config import CMSSettings

    path = tmp_path / "pvacms.yml"
    path.write_text(f"log_level: INFO\nproxy_from: [{item}]\n")
    with pytest.raises(ConfigurationError, match=why) as refused:
        load_document(str(path), CMSSettings)
    assert "pvacms.yml" in str(refused.value)
    assert "proxy_from" in str(refused.value)

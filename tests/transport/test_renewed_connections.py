"""Another authority certifies the keys of both ends: each connection is replaced once, and when that is for good."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from appliance.certmon.endpoints import open_client, open_server
from appliance.certs.keychain import Keychain, make_keychain
from appliance.certs.ocsp import OCSPSigner
from appliance.certs.profiles import build_certificate, subject_name
from appliance.certs.status import CertState
from appliance.client import Connected, Context, Disconnected
from appliance.server import Server
from tests.helpers.live import client_config, keychain_file, number, replace_keychain, server_config, until
from tests.helpers.pki import DAY, NOW, Authority, site
from tests.helpers.status_service import StatusService

PATIENT_S = 60
OLD, NEW = site().ca, Authority("G2")
SIGNER = OCSPSigner(NEW.signer, NEW.certificate, ())


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes days is done several times a second; what must not happen by chance on a busy machine has time."""
    monkeypatch.setattr("appliance.certmon.live_keychain.POLL_S", 0.05)
    monkeypatch.setattr("appliance.certmon.tls_manager._SHORTEST_LEFT_S", 0.8)
    monkeypatch.setattr("appliance.certmon.gate.PATIENCE_S", 30)
    monkeypatch.setattr("appliance.certmon.tls_manager.PATIENCE_S", 30)
    monkeypatch.setattr("appliance.certmon.gate.SERVER_PATIENCE_S", 30)


def before(name: str, usage: str) -> Keychain:
    """A keychain of the old authority that trusts the new one too."""
    made = OLD.keychain(name, usage, status=True)
    assert made.key is not None
    assert made.certificate is not None
    return make_keychain(made.key, [made.certificate, OLD.certificate, NEW.certificate])


def after(former: Keychain, name: str, usage: str) -> Keychain:
    """The same key, certified by the new authority."""
    assert former.key is not None
    serial = NEW.next_serial
    NEW.next_serial += 1
    certificate = build_certificate(
        NEW.issuer,
        subject=subject_name(name, organization="localhost"),
        public_key=former.key.public_key(),
        usage=usage,
        not_before=NOW - DAY,
        not_after=NOW + DAY,
        serial=serial,
        status_pv=f"CERT:STATUS:{NEW.issuer_id}:{serial:020}",
    )
    return make_keychain(former.key, [certificate, NEW.certificate, OLD.certificate])


class World:
    """A status service of both authorities, and the two ends' keychains before and after."""

    def __init__(self, directory: Path, service: StatusService) -> None:
        self.directory = directory
        self.service = service
        self.old = {"server": before("softioc", "server"), "client": before("operator", "client")}
        self.new = {
            "server": after(self.old["server"], "softioc", "server"),
            "client": after(self.old["client"], "operator", "client"),
        }
        soon = int((datetime.now(UTC) + timedelta(seconds=1)).timestamp())
        for keychain in self.old.values():
            service.set(keychain, CertState.VALID, renewal_due=True, renew_by=soon)
        for keychain in self.new.values():
            service.set(keychain, CertState.VALID, signer=SIGNER)
        self.said: list[str] = []
        self.accepted = 0
        self.file = ""

    @contextlib.asynccontextmanager
    async def ends(self, client: Keychain | None = None) -> AsyncIterator[tuple[Server, Context]]:
        """A server and a client with the old keychains, or with another one of the client, and its monitor."""
        keychain_file(self.directory, "server", self.old["server"])
        self.file = str(keychain_file(self.directory, "client", client or self.old["client"]))
        async with open_server(
            server_config(self.directory / "server.p12"),
            prepare=lambda server: server.add_pv("pv", number(1.0)),
            status_client=self.service.client_config(),
        ) as server:
            config = client_config(server, self.service.udp_port, keychain=self.file)
            async with open_client(config) as context:

                def take(item: Any) -> None:
                    if isinstance(item, Connected):
                        peer = context.channel("pv").peer
                        self.said.append("TLS" if peer is not None and peer.is_tls else "TCP")
                    elif isinstance(item, Disconnected):
                        self.said.append("lost")

                updates = context.monitor("pv", notify=True, on_update=take)
                await until(lambda: self.said, PATIENT_S)
                assert self.said == ["TLS"]
                yield server, context
                updates.close()

    def replace(self, end: str) -> None:
        replace_keychain(self.directory / f"{end}.p12", self.new[end])


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with StatusService(OLD) as service:
        yield World(tmp_path, service)


def issuers(server: Server) -> set[str]:
    """Of the certificates that clients show."""
    return {peer.credentials.issuer_id for peer in server.peers.values()}


async def test_a_client_waits_for_its_server_and_then_moves_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with world.ends() as (server, _):
        world.replace("client")
        await until(lambda: caplog.text.count("has a certificate of the former authority") >= 2, PATIENT_S)
        assert world.said == ["TLS"], "the server would end a new connection as well"
        world.replace("server")
        await until(lambda: world.said[-2:] == ["lost", "TLS"], PATIENT_S)
        await until(lambda: issuers(server) == {NEW.issuer_id}, PATIENT_S)
        for keychain in world.old.values():
            world.service.set(keychain, CertState.EXPIRED)
        await until(lambda: caplog.text.count("the former certificate is EXPIRED") == 2, PATIENT_S)
        assert world.said == ["TLS", "lost", "TLS"]


async def test_a_client_that_changes_after_its_server_moves_once(world: World) -> None:
    async with world.ends() as (server, _):
        world.replace("server")
        await until(
            lambda: server.tls is not None and server.tls.keychain.issuer_id == NEW.issuer_id, PATIENT_S
        )
        world.replace("client")
        await until(lambda: world.said[-2:] == ["lost", "TLS"], PATIENT_S)
        await until(lambda: issuers(server) == {NEW.issuer_id}, PATIENT_S)
        assert world.said == ["TLS", "lost", "TLS"]


async def test_a_server_replaces_connections_whose_clients_have_nothing_to_change(world: World) -> None:
    """A client without a certificate, as those that ask for statuses by TLS alone, and one that has changed already."""
    for client in (OLD.trust_only(), world.new["client"]):
        world.said.clear()
        anchored = client if client.certificate else client._replace(anchors=world.old["client"].anchors)
        async with world.ends(anchored):
            world.replace("server")
            await until(lambda: world.said[-2:] == ["lost", "TLS"], PATIENT_S)
            assert world.said == ["TLS", "lost", "TLS"]


async def test_what_is_left_at_the_end_is_closed_then(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with world.ends() as (_, context):
        world.replace("client")
        await until(lambda: caplog.text.count("has a certificate of the former authority") >= 1, PATIENT_S)
        world.service.set(world.old["client"], CertState.REVOKED)
        await until(lambda: "lost" in world.said, PATIENT_S)
        await until(lambda: world.said[-1] == "TLS", PATIENT_S)
        assert (await context.get("pv", timeout=PATIENT_S))["value"] == 1.0

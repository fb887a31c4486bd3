"""What a monitor notices of a rollover of the authority: real processes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from appliance.certmon.endpoints import open_client
from appliance.certs.keychain import make_keychain
from appliance.certs.profiles import generate_key
from appliance.client import Connected, Disconnected
from appliance.config.pva import resolve_client
from appliance.pvdata import Value
from tests.helpers import pki
from tests.helpers.cms import Process, ccr, client
from tests.helpers.ioc_process import running_ioc
from tests.helpers.live import until
from tests.helpers.ports import free_port

PATIENT_S = 100
CLIENT, IOC = 1, 3
OPEN = "--certs-dont-require-approval"
COUNT = 'record(calc, "count") { field(INPA, "count.VAL NPP") field(CALC, "A+1") field(SCAN, ".1 second") }\n'


class Service:
    """One ``pvacms`` that changes its authority, with ports that it keeps."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ports = {
            "EPICS_PVACMS_SERVER_PORT": str(free_port()),
            "EPICS_PVACMS_TLS_PORT": str(free_port()),
            "EPICS_PVACMS_BROADCAST_PORT": str(free_port()),
        }
        self.address = f"127.0.0.1:{self.ports['EPICS_PVACMS_BROADCAST_PORT']}"
        self.arguments: list[str] = [OPEN]
        self.process: Process

    def start(self) -> None:
        self.process = Process(self.directory, *self.arguments, **self.ports).ready()

    def stop(self) -> None:
        status, _, log = self.process.stop()
        assert status == 0, log

    def introduce(self) -> None:
        """Make the next authority."""
        with Process(self.directory, "--new-authority", **self.ports) as process:
            status, _, log = process.wait()
            assert status == 0, log

    def switch(self, ends: datetime) -> None:
        """Write the settings of the new authority, and start with them."""
        directory = self.process.config_dir
        (new,) = directory.glob("cert_auth-*.p12")
        path = self.directory / "pvacms.yml"
        path.write_text(
            f"cert_auth_tls_keychain: {new}\nformer_authorities:\n"
            f'  - keychain: {directory / "cert_auth.p12"}\n    ends: "{ends:%Y-%m-%dT%H:%M:%SZ}"\n'
        )
        self.arguments = [OPEN, "--config", str(path)]
        self.start()

    async def issue(self, path: Path, name: str, usage: int, key: Any) -> None:
        """Write a keychain, with what an authenticator puts into it: the certificate, and what verifies the others."""
        async with client(self.process.tcp_port) as context:
            reply = await context.rpc("CERT:CREATE", ccr(name, usage=usage, key=key), timeout=PATIENT_S)
            bundle = (await context.get("CERT:ROOT", timeout=PATIENT_S))["bundle"]
        found = x509.load_pem_x509_certificates((reply["cert"] + "\n" + bundle).encode())
        pki.write_keychain(path, make_keychain(key, found))


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path)
    made.start()
    try:
        yield made
    finally:
        made.process.__exit__()


class Watcher:
    """A monitor that writes down what happens to it."""

    def __init__(self, context: Any) -> None:
        self.context = context
        self.said: list[str] = []
        self.last = -1.0

    def take(self, item: Any) -> None:
        if isinstance(item, Connected):
            peer = self.context.channel("count").peer
            self.said.append("TLS" if peer is not None and peer.is_tls else "TCP")
            self.last = -1.0
        elif isinstance(item, Disconnected):
            self.said.append("lost")
        elif isinstance(item, Value):
            if item["value"] <= self.last:
                self.said.append(f"{item['value']} follows {self.last}")
            self.last = item["value"]


@pytest.mark.timeout(6 * PATIENT_S)
@pytest.mark.parametrize("first", ["client", "ioc"])
async def test_a_monitor_moves_once_and_never_to_plain_tcp(
    tmp_path: Path, service: Service, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A facility's clients take up to a minute to begin, and minutes between two tries. This one takes some seconds.
    monkeypatch.setattr("random.uniform", lambda low, high: low + (high - low) / 20)
    (tmp_path / "count.db").write_text(COUNT)
    keys = {"client": generate_key("ec-p256"), "ioc": generate_key("ec-p256")}
    usages = {"client": CLIENT, "ioc": IOC}
    for name, key in keys.items():
        await service.issue(tmp_path / f"{name}.p12", name, usages[name], key)
    async with running_ioc(
        "-S",
        "-d",
        tmp_path / "count.db",
        EPICS_PVAS_TLS_KEYCHAIN=str(tmp_path / "ioc.p12"),
        EPICS_PVAS_TLS_PORT="0",
        EPICS_PVA_ADDR_LIST=service.address,
    ) as ioc:
        settings = {
            "addr_list": f"127.0.0.1:{ioc.udp} {service.address}",
            "auto_addr_list": False,
            "tls_keychain": str(tmp_path / "client.p12"),
        }
        async with open_client(resolve_client(settings, environ={})) as context:
            watcher = Watcher(context)
            context.monitor("count", notify=True, on_update=watcher.take)
            await until(lambda: watcher.last > 0, PATIENT_S)
            assert watcher.said == ["TLS"]
            service.introduce()
            service.stop()
            service.switch(datetime.now(UTC) + timedelta(minutes=10))
            for name in (first, *({"client", "ioc"} - {first})):
                await service.issue(tmp_path / f"{name}.p12", name, usages[name], keys[name])
                if name == "ioc":
                    await ioc.printed("a new keychain is in use")
                else:
                    await until(lambda: context.tls.keychain.issuer_id == service.process.issuer, PATIENT_S)
            await until(lambda: "lost" in watcher.said and watcher.said[-1] == "TLS", PATIENT_S)
            assert watcher.said == ["TLS", "lost", "TLS"]
            service.stop()
            service.switch(datetime.now(UTC) + timedelta(seconds=5))
            # In the moment of the end the last status is over, and the next one is on its way: nobody knows, which ends them too.
            ended = re.compile(r"the former certificate is (EXPIRED|UNKNOWN): its connections are closed")
            await until(lambda: ended.search(ioc.log), PATIENT_S)
            seen = watcher.last
            await until(lambda: watcher.last > seen + 20, PATIENT_S)
            assert watcher.said == ["TLS", "lost", "TLS"]

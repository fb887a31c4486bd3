"""A request for a certificate whose answer is lost is sent once more: safe, because at most one certificate stays valid."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.authn.requester import Requester, Trusting
from appliance.authn.settings import resolve_requester
from appliance.authn.std.requester import std_request
from appliance.certs.keychain import Keychain, dump_keychain, load_keychain
from appliance.cms.wire_types import root_value
from appliance.errors import ChannelClosedError, RemoteError, RequestRefused
from appliance.pvdata import STRING, UINT64, StructType, Value
from appliance.server import Operation, Server, SharedPV
from tests.helpers.cms import running
from tests.helpers.ours import served
from tests.helpers.pki import DAY, NOW, site

S = site()
LONG = S.ca.keychain("client", not_after=NOW + 3650 * DAY)
ANSWER = StructType((("issuer", STRING), ("serial", UINT64), ("state", STRING)))
BUSY = "another node is answering the same request; retry in 1 s"


def requester(directory: Path, **servers: str) -> Requester:
    settings = resolve_requester(
        "client",
        {"keychain": str(directory / "k.p12"), "name": "client", "organization": "lab"},
        {"XDG_CONFIG_HOME": str(directory), "EPICS_PVA_AUTO_ADDR_LIST": "NO", **servers},
    )
    return Requester(settings, Trusting(), say=lambda _: None, timeout_s=60)


async def ask(asking: Requester) -> str:
    outcome = await asking.request(std_request(asking.settings, now=asking.now()), subject=None, force=True)
    return outcome.action


class Script:
    """A service that does one thing after the other with the requests that come: loses or refuses them, or answers."""

    def __init__(self, keychain: Keychain, *steps: str) -> None:
        self.steps = list(steps)
        self.asked: list[Value] = []
        self.server: Server | None = None
        self._told = {"issuer": S.ca.issuer_id, "serial": keychain.serial, "state": "VALID"}

    def pvs(self) -> dict[str, SharedPV]:
        return {
            "CERT:ROOT": SharedPV(root_value(S.ca.issuer_id, S.ca.certificate, ())),
            f"CERT:CREATE:{S.ca.issuer_id}": SharedPV(on_rpc=self._create),
        }

    def _create(self, _pv: SharedPV, _operation: Operation, argument: Value | None) -> Value:
        assert argument is not None
        assert self.server is not None
        self.asked.append(argument)
        step = self.steps.pop(0)
        if step == "lose":
            self.server.close_peers()
        elif step:
            raise RequestRefused(step)
        return Value(ANSWER, self._told)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory with the keychain that the scripted service renews."""
    path = tmp_path / "k.p12"
    path.write_bytes(dump_keychain(LONG))
    path.chmod(0o600)
    return tmp_path


async def run(home: Path, *steps: str, check: Callable[[Script], Any] = lambda _: None) -> str:
    script = Script(LONG, *steps)
    async with served(script.pvs()) as server:
        script.server = server
        try:
            return await ask(requester(home, EPICS_PVA_ADDR_LIST=f"127.0.0.1:{server.udp_port}"))
        finally:
            check(script)


@pytest.mark.parametrize("steps", [("lose", ""), ("lose", BUSY, BUSY, "")], ids=["at once", "after a wait"])
async def test_it_is_sent_once_more_and_waits_for_a_node_that_asks_for_that(home, steps):
    def check(script: Script) -> None:
        assert len(script.asked) == len(steps)
        first, *others = (str(value) for value in script.asked)
        assert set(others) == {first}, "the same request, with the same proof"

    assert await run(home, *steps, check=check) == "renewed"


async def test_it_is_not_sent_a_third_time(home):
    with pytest.raises(ChannelClosedError, match="lost the server during the call"):
        await run(home, "lose", "lose", "")


async def test_a_refusal_is_final_if_no_answer_was_lost(home):
    with pytest.raises(RemoteError, match="retry in 1 s"):
        await run(home, BUSY, "")


async def test_a_connection_that_ends_while_the_service_works_costs_no_certificate(tmp_path, monkeypatch):
    async with running(tmp_path / "service", require_client_approval=False) as service:
        create = service.lifecycle.create
        serials = []

        async def interrupted(request, actor, **more):
            record = await create(request, actor, **more)
            serials.append(record.serial)
            if len(serials) == 1:
                present = set(service.server.peers)
                service.server.close_peers()
                while present & service.server.peers.keys():
                    await asyncio.sleep(0)
            return record

        monkeypatch.setattr(service.lifecycle, "create", interrupted)
        servers = {"EPICS_PVA_NAME_SERVERS": f"127.0.0.1:{service.server.tcp_port}"}
        assert await ask(requester(tmp_path, **servers)) == "created"
        got = load_keychain((tmp_path / "k.p12").read_bytes())
        states = [(await service.lifecycle.find(serial)).state.value for serial in serials]
    assert got.serial == serials[-1]
    assert states == ["REVOKED"] * (len(serials) - 1) + ["VALID"]
    assert len(serials) == 2

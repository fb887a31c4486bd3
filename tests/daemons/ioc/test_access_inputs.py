"""Inputs of access security on another server: rights follow them, and go when they go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance.certmon.endpoints import open_client, open_server
from appliance.certs.status import CertState
from appliance.client import Context
from appliance.client.inputs import ExternalInputs
from appliance.client.monitor import Connected, Disconnected
from appliance.config.pva import resolve_client
from appliance.errors import AccessDeniedError
from appliance.pva import commands as c
from appliance.pvdata import Value
from appliance.pvdata.nt import NTEnum, NTScalar, NTScalarArray
from appliance.pvdata.types import FLOAT64, STRING
from appliance.server import Server, SharedPV
from tests.helpers.ioc_process import IocProcess, running_ioc
from tests.helpers.live import keychain_file, server_config, until
from tests.helpers.pki import site
from tests.helpers.ports import free_port
from tests.helpers.status_service import StatusService

RECORDS = """
record(ao, "guarded") { field(ASG, "GUARDED") field(VAL, "2") field(PINI, "YES") }
record(ao, "inverse") { field(ASG, "INVERSE") field(VAL, "3") field(PINI, "YES") }
record(ao, "hidden") { field(ASG, "HIDDEN") field(VAL, "4") field(PINI, "YES") }
"""
RULES = """
ASG(DEFAULT) { RULE(1, READ) }
ASG(GUARDED) {
    INPA("remote:mode")
    RULE(1, READ)
    RULE(1, WRITE) { CALC("A=1") }
}
ASG(INVERSE) {
    INPA("remote:mode")
    RULE(1, READ)
    RULE(1, WRITE) { CALC("A#1") }
}
ASG(HIDDEN) {
    INPA("remote:mode")
    RULE(1, READ) { CALC("A=1") }
}
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "records.db").write_text(RECORDS)
    (tmp_path / "rules.acf").write_text(RULES)
    return tmp_path


def mode(value: Any = 0.0, severity: int = 0) -> Value:
    return Value(NTScalar(FLOAT64), {"value": value, "alarm.severity": severity})


@asynccontextmanager
async def guarded(
    files: Path, udp: int, **variables: str | None
) -> AsyncIterator[tuple[IocProcess, Context]]:
    """The IOC, whose inputs are searched for at ``udp``, and a client whose channels are open."""
    variables = {"EPICS_PVA_ADDR_LIST": f"127.0.0.1:{udp}", **variables}
    async with (
        running_ioc(
            "-v", "-S", "--enforce-read", "-a", files / "rules.acf", "-d", files / "records.db", **variables
        ) as ioc,
        ioc.client() as client,
    ):
        await client.get("guarded")
        await client.get("inverse")
        yield ioc, client


def may_write(client: Context, name: str) -> bool:
    """What ACL_CHANGE has told the client last."""
    wire = client.channel(name).wire
    assert wire is not None
    return bool(wire.permissions & c.PERMIT_PUT)


async def refused(client: Context, name: str) -> bool:
    try:
        await client.put(name, 7.0, timeout=30)
    except AccessDeniedError:
        return True
    return False


@asynccontextmanager
async def serving(pv: SharedPV, udp: int, keychain: Path | str = "", **options: str) -> AsyncIterator[Server]:
    """The other server."""
    config = server_config(keychain, **options)._replace(broadcast_port=udp)
    async with open_server(config, prepare=lambda server: server.add_pv("remote:mode", pv)) as server:
        yield server


async def test_rights_follow_the_value_of_a_pv_on_another_server(files: Path) -> None:
    udp = free_port()
    pv = SharedPV.mailbox(mode())
    async with serving(pv, udp), guarded(files, udp) as (_, client):
        # A#1 holds only once the value is known.
        await until(lambda: may_write(client, "inverse"))
        assert not may_write(client, "guarded")
        assert await refused(client, "guarded")
        for _ in range(3):
            pv.post(mode(1.0))
            await until(lambda: may_write(client, "guarded") and not may_write(client, "inverse"))
            assert not await refused(client, "guarded")
            assert await refused(client, "inverse")
            pv.post(mode(0.0))
            await until(lambda: may_write(client, "inverse") and not may_write(client, "guarded"))
            assert await refused(client, "guarded")
            assert not await refused(client, "inverse")


async def test_an_invalid_input_grants_nothing_until_it_is_valid_again(files: Path) -> None:
    udp = free_port()
    pv = SharedPV.mailbox(mode(1.0))
    async with serving(pv, udp), guarded(files, udp) as (_, client):
        await until(lambda: may_write(client, "guarded"))
        pv.post(mode(1.0, severity=3))
        await until(lambda: not may_write(client, "guarded"))
        assert not may_write(client, "inverse")
        assert await refused(client, "guarded")
        pv.post(mode(1.0, severity=2))
        await until(lambda: may_write(client, "guarded"))


async def test_an_input_that_is_lost_takes_the_rights_away_and_gives_them_back_when_it_returns(
    files: Path,
) -> None:
    udp = free_port()
    pv = SharedPV.mailbox(mode(1.0))
    async with guarded(files, udp) as (ioc, client):
        assert await refused(client, "guarded"), "the input has never been seen"
        assert await refused(client, "inverse")
        async with serving(pv, udp):
            await until(lambda: may_write(client, "guarded"), 40.0)
            await ioc.printed("input remote:mode of access security is connected to 127.0.0.1:")
            assert not await refused(client, "guarded")
        await until(lambda: not may_write(client, "guarded"))
        assert not may_write(client, "inverse"), "what is not known is not different from 1 either"
        assert await refused(client, "guarded")
        await ioc.printed("input remote:mode of access security is disconnected .*do not hold")
        async with serving(SharedPV.mailbox(mode(0.0)), udp):
            await until(lambda: may_write(client, "inverse"), 40.0)
            assert await refused(client, "guarded"), "the new value counts, not the one from before"


async def test_a_monitor_ends_when_the_input_that_let_it_read_is_lost(files: Path) -> None:
    udp = free_port()
    async with guarded(files, udp) as (_, client):
        async with serving(SharedPV.mailbox(mode(1.0)), udp):
            with pytest.raises(AccessDeniedError):
                await client.get("hidden")
            # The client's search for the server of its input may have backed off by now.
            async with asyncio.timeout(40):
                while True:
                    try:
                        await client.get("hidden", timeout=30)
                        break
                    except AccessDeniedError:
                        await asyncio.sleep(0.02)
            subscription = client.monitor("hidden", notify=True)
            assert isinstance(await anext(subscription), Connected)
            assert (await anext(subscription))["value"] == 4.0
        async with asyncio.timeout(30):
            while not isinstance(await anext(subscription), Disconnected):
                pass


@pytest.mark.parametrize(
    ("value", "grants"),
    [
        (Value(NTEnum(), {"value": {"index": 1, "choices": ["OFF", "ON"]}}), True),
        (Value(NTScalar(STRING), {"value": "1"}), True),
        (Value(NTScalar(STRING), {"value": "open"}), False),
        (Value(NTScalarArray(FLOAT64), {"value": np.array([1.0, 1.0])}), False),
        (mode(float("nan")), False),
    ],
    ids=["enum", "number in text", "text", "array", "nan"],
)
async def test_inputs_of_other_types_grant_only_what_they_clearly_say(
    files: Path, value: Value, grants: bool
) -> None:
    udp = free_port()
    (files / "rules.acf").write_text(
        "ASG(DEFAULT) { RULE(1, READ) }\nASG(INVERSE) { RULE(1, WRITE) }\n"
        'ASG(GUARDED) { INPA("remote:mode") RULE(1, READ) RULE(1, WRITE) { CALC("A=1") } }\n'
    )
    async with serving(SharedPV.mailbox(value), udp), guarded(files, udp) as (ioc, client):
        await ioc.printed("input remote:mode of access security is connected")
        if grants:
            await until(lambda: may_write(client, "guarded"))
        assert await refused(client, "guarded") is not grants


@pytest.mark.parametrize("whose", ["client", "ioc"])
async def test_over_tls_the_input_comes_from_the_server_that_proved_itself(files: Path, whose: str) -> None:
    """With the keychain of the IOC as a client, or else with the one that it serves with."""
    udp = free_port()
    server_file = keychain_file(files, "other", site().server)
    ioc_file = keychain_file(files, "ioc", site().client if whose == "client" else site().ioc)
    pv = SharedPV.mailbox(mode(1.0))
    secure: dict[str, str | None] = {"XDG_DATA_HOME": str(files), "XDG_CONFIG_HOME": str(files)}
    if whose == "client":
        secure["EPICS_PVA_TLS_KEYCHAIN"] = str(ioc_file)
    else:
        secure |= {
            "EPICS_PVA_TLS_KEYCHAIN": None,
            "EPICS_PVAS_TLS_KEYCHAIN": str(ioc_file),
            "EPICS_PVAS_TLS_PORT": str(free_port()),
        }
    async with guarded(files, udp, **secure) as (ioc, client):
        async with serving(pv, udp, server_file) as server:
            await until(lambda: may_write(client, "guarded"), 40.0)
            (peer,) = (peer for peer in server.peers.values() if peer.credentials.is_tls)
            assert (peer.credentials.method, peer.credentials.account) == ("x509", whose)
            pv.post(mode(0.0))
            await until(lambda: not may_write(client, "guarded"))
            pv.post(mode(1.0))
            await until(lambda: may_write(client, "guarded"))
        await until(lambda: not may_write(client, "guarded"))
        await ioc.printed("input remote:mode of access security is disconnected")


async def test_inputs_that_must_come_over_tls_never_come_in_the_clear(files: Path) -> None:
    udp = free_port()
    ioc_file = keychain_file(files, "ioc", site().ioc)
    server_file = keychain_file(files, "other", site().server)
    (files / "ioc.yml").write_text(
        "databases: [{file: records.db}]\nacf: {file: rules.acf, inputs_require_tls: true}\n"
        f"pva: {{tls_keychain: {ioc_file}, tls_port: 0}}\n"
    )
    variables: dict[str, str | None] = {
        "EPICS_PVA_ADDR_LIST": f"127.0.0.1:{udp}",
        "EPICS_PVA_TLS_KEYCHAIN": None,
        "XDG_CONFIG_HOME": str(files),
        "XDG_DATA_HOME": str(files),
    }
    async with running_ioc("--config", files / "ioc.yml", **variables) as ioc, ioc.client() as client:
        await client.get("guarded")
        async with serving(SharedPV.mailbox(mode(1.0)), udp):
            await ioc.printed("input remote:mode of access security is not connected")
            assert await refused(client, "guarded")
        async with serving(SharedPV.mailbox(mode(1.0)), udp, server_file):
            await until(lambda: may_write(client, "guarded"), 40.0)
            assert not await refused(client, "guarded")


async def test_an_input_whose_certificate_is_in_doubt_counts_as_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SPVA 8.4: the connection stays and pauses; a value from before the pause is no longer known to be so."""
    monkeypatch.setattr("appliance.client.inputs.PAUSE_POLL_S", 0.05)
    pv = SharedPV.mailbox(mode(1.0))
    keychain = site().ca.keychain("other", "server", status=True)
    file = keychain_file(tmp_path, "other", keychain)
    client_file = keychain_file(tmp_path, "ioc", site().client)
    values: dict[str, float | None] = {}
    async with StatusService(site().ca, valid=timedelta(seconds=2)) as cms:
        cms.set(keychain, CertState.VALID)
        async with open_server(
            server_config(file, "no_revocation_check"),
            prepare=lambda server: server.add_pv("remote:mode", pv),
        ) as server:
            for variable, text in {
                "EPICS_PVA_ADDR_LIST": f"127.0.0.1:{server.udp_port} 127.0.0.1:{cms.udp_port}",
                "EPICS_PVA_AUTO_ADDR_LIST": "NO",
                "EPICS_PVA_TLS_KEYCHAIN": str(client_file),
                "EPICS_PVA_NO_STATUS_CACHE": "YES",
            }.items():
                monkeypatch.setenv(variable, text)
            inputs = ExternalInputs(values.__setitem__, lambda: open_client(resolve_client()))
            inputs.follow(["remote:mode"])
            try:
                assert values == {"remote:mode": None}
                await until(lambda: values["remote:mode"] == 1.0)
                (peer,) = server.peers
                await cms.stop()
                await until(lambda: values["remote:mode"] is None)
                assert list(server.peers) == [peer], "the connection stays"
                pv.post(mode(2.0))
                cms.valid = timedelta(minutes=30)
                cms.set(keychain, CertState.VALID)
                await cms.start()
                await until(lambda: values["remote:mode"] is not None, 30.0)
                await until(lambda: values["remote:mode"] == 2.0)
            finally:
                await inputs.close()


async def test_rules_that_are_read_while_the_client_is_exchanged_are_followed() -> None:
    told: list[tuple[str, float | None]] = []
    closing, go = asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def opener() -> AsyncIterator[Context]:
        async with Context(
            resolve_client({"addr_list": "127.0.0.1:9", "auto_addr_list": False}, environ={}).config
        ) as client:
            yield client
            closing.set()
            await go.wait()

    inputs = ExternalInputs(lambda name, value: told.append((name, value)), opener)
    inputs.follow(["old"])
    async with asyncio.timeout(30):
        while inputs._opening is None or not inputs._opening.done():
            await asyncio.sleep(0.01)
        exchange = asyncio.create_task(inputs.reopen())
        await closing.wait()
        inputs.follow(["new"])
        assert ("new", None) in told
        go.set()
        await exchange
        assert inputs._tasks.keys() == {"new"}
        await inputs.close()

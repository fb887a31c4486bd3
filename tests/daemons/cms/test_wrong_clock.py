"""A node or a service has a wrong clock: what it would write is for good, and what it would sign is true at another time."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.x509 import ocsp

from appliance.certs.profiles import generate_key
from appliance.certs.status import CertState
from appliance.client import Disconnected
from appliance.cms.hostclock import BELIEVED_S, steady_s
from appliance.errors import ApplianceError, RemoteError
from tests.daemons.cms.test_database_server import URL, Node, health
from tests.helpers.cms import (
    KEY,
    Clock,
    Process,
    admin_keychain,
    ccr,
    client,
    keychain_of,
    plain,
    running,
    settled,
)
from tests.helpers.live import until
from tests.helpers.postgres import PASSWORD, Engine

YEAR = "+400d"


def clock(file: Path) -> dict[str, str]:
    """Variables for a process whose clock is off by what a file says, from one moment to the next; its timers are not."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    return {
        "LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(file), "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }  # fmt: skip


@pytest.fixture
def site(tmp_path, postgres):
    """The directories of two nodes, the file of the second one's clock, and the name of their database."""
    name = postgres.empty()
    first, second = (Node(tmp_path, node, URL.format(port=postgres.port, name=name)) for node in "ab")
    file = tmp_path / "clock"
    file.write_text("+0")
    yield first, second, file, name
    postgres.drop(name)


def process(node: Node, file: Path) -> Process:
    return Process(node.directory, "--config", str(node.config), **clock(file))


def states(postgres, name):
    rows = postgres.sql("SELECT cn, state FROM certs WHERE usage <> 'cms'", name)
    return dict(rows)


async def test_a_node_with_a_wrong_clock_does_not_start(site, postgres):
    first, second, file, name = site
    with first.process() as a:
        a.ready(90)
        before = states(postgres, name)
        assert before["admin"] == "VALID"
        second.takes_authority_of(first)
        for offset, where in ((YEAR, "ahead of"), ("-400d", "behind")):
            file.write_text(offset)
            with process(second, file) as b:
                status, _, said = b.wait(90)
            assert status == 1
            assert re.search(
                rf"clock \(20[0-9T:-]+Z\) is \d+ s {where} the database's \(20[0-9T:-]+Z\); correct the one that is wrong",
                said,
            )
            assert "Traceback" not in said
            assert PASSWORD not in said
        assert states(postgres, name) == before
        assert a.stop()[0] == 0


async def test_a_clock_that_is_set_while_the_node_runs_ends_no_certificate(site, postgres):
    first, second, file, name = site
    with first.process() as a:
        a.ready(90)
        second.takes_authority_of(first)
        with process(second, file) as b:
            b.ready(90)
            admin = admin_keychain(first.directory / "config/pva/1.5")
            async with client(b.tls_port, admin) as at_b, client(b.tcp_port) as plain:
                waits = await plain.rpc("CERT:CREATE", ccr("alice"), timeout=60)
                # Who asks for it later is left to the other node.
                await at_b.info(waits["status_pv"], timeout=60)
                before = states(postgres, name)
                assert before == {"admin": "VALID", "alice": "PENDING_APPROVAL"}

                file.write_text(YEAR)
                said = await health(plain, lambda value: "clock" in value["alarm.message"])
                assert "ahead of the database's" in said["alarm.message"]
                with pytest.raises(
                    RemoteError,
                    match="correct the one that is wrong; this host's was set; until then ask another",
                ):
                    await plain.rpc("CERT:CREATE", ccr("bob"), timeout=60)
                with pytest.raises(RemoteError, match="until then ask another node"):
                    await at_b.put(waits["status_pv"], {"state": "APPROVED"}, timeout=60)
                # Some looks at what the clock has changed: there is one in each second.
                await health(plain, lambda value: value["uptime_secs"] > said["uptime_secs"] + 4)
                assert states(postgres, name) == before
                # Who must revoke can do so here, too.
                await at_b.put(waits["status_pv"], {"state": "DENIED"}, timeout=60)
                assert states(postgres, name)["alice"] == "REVOKED"

                file.write_text("+0")
                await health(plain, lambda value: value["value.index"] == 1)
                again = await plain.rpc("CERT:CREATE", ccr("bob"), timeout=60)
                assert keychain_of(again, KEY).certificate is not None
                assert states(postgres, name)["admin"] == "VALID"
            assert b.stop()[0] == 0
        assert a.stop()[0] == 0


OPEN = {f"require_{usage}_approval": "false" for usage in ("client", "server", "ioc")}


def signed_at(update):
    """When the status in an update was signed, by the clock of who signed it; None for what is no status."""
    if not hasattr(update, "get"):
        return None
    return ocsp.load_der_ocsp_response(bytes(update["ocsp_response"])).this_update_utc


def is_now(when):
    return abs((when - datetime.now(UTC)).total_seconds()) < 3600


async def test_a_running_node_with_a_wrong_clock_signs_no_status_and_comes_back_by_itself(tmp_path, postgres):
    name = postgres.empty()
    url = URL.format(port=postgres.port, name=name)
    first = Node(tmp_path, "a", url, **OPEN)
    second = Node(tmp_path, "b", url, cert_status_validity_mins="12s", **OPEN)
    file = tmp_path / "clock"
    file.write_text("+0")
    with first.process() as a:
        a.ready(90)
        second.takes_authority_of(first)
        with process(second, file) as b:
            b.ready(90)
            async with client(b.tcp_port) as at_b, client(b.tcp_port) as other, client(a.tcp_port) as at_a:
                alice = await at_b.rpc("CERT:CREATE", ccr("alice"), timeout=60)
                unwatched = await at_a.rpc("CERT:CREATE", ccr("bob"), timeout=60)
                await at_b.info(unwatched["status_pv"], timeout=60)
                async with at_b.monitor(alice["status_pv"], notify=True) as updates:
                    heard = [await asyncio.wait_for(anext(updates), 60)]
                    while signed_at(heard[-1]) is None:
                        heard.append(await asyncio.wait_for(anext(updates), 60))
                    file.write_text(YEAR)
                    said = (await health(at_b, lambda value: "clock" in value["alarm.message"]))[
                        "alarm.message"
                    ]
                    assert said.endswith("; this host's was set")
                    with pytest.raises(
                        RemoteError, match=r"no status is signed at the moment: .*; ask another node"
                    ):
                        await at_b.get(unwatched["status_pv"], timeout=60)
                    # What was signed before serves until it ends, which is twelve seconds: then the client is sent to others.
                    while not isinstance(heard[-1], Disconnected):
                        heard.append(await asyncio.wait_for(anext(updates), 60))
                    assert all(is_now(when) for each in heard if (when := signed_at(each)) is not None)
                    # A node lives that can answer, so this one leaves it to that one.
                    with pytest.raises(ApplianceError):
                        await other.get(unwatched["status_pv"], timeout=2)
                    assert (await at_a.get(unwatched["status_pv"], timeout=60))["state"] == "VALID"

                    file.write_text("+0")
                    while isinstance(
                        update := await asyncio.wait_for(anext(updates), 60), Disconnected
                    ) or not hasattr(update, "get"):
                        pass
                    assert update["state"] == "VALID"
                    assert is_now(signed_at(update))
                await health(at_b, lambda value: value["value.index"] == 1)
            assert b.stop()[0] == 0
        assert a.stop()[0] == 0
    postgres.drop(name)


async def test_where_only_the_databases_clock_is_wrong_statuses_go_on_and_the_health_names_both_times(
    tmp_path, postgres, monkeypatch
):
    monkeypatch.setattr("tests.helpers.cms.ENGINE", Engine("postgresql", postgres))
    async with (
        running(tmp_path, node="a", require_client_approval=False) as service,
        plain(service) as anyone,
    ):
        made = await anyone.rpc("CERT:CREATE", ccr("alice"))
        nodes = service.nodes
        heard = nodes.clock.heard
        monkeypatch.setattr(nodes.clock, "heard", lambda ahead_s: heard(ahead_s + 400 * 86400))
        await until(nodes.clock.fault, 60)
        assert (await anyone.get(made["status_pv"]))["state"] == "VALID", (
            "it is signed for the first time now"
        )
        assert is_now(signed_at(await anyone.get(made["status_pv"])))
        with pytest.raises(RemoteError, match="the database's was set; until then ask another node"):
            await anyone.rpc("CERT:CREATE", ccr("bob"))
        await service.health.check()
        said = (await anyone.get("CERT:HEALTH"))["alarm.message"]
        times = [datetime.fromisoformat(text) for text in re.findall(r"20[0-9T:-]+Z", said)]
        assert [is_now(when) for when in times] == [True, False]
        assert (times[1] - times[0]).days in (399, 400)


def rows(directory):
    database = sqlite3.connect(f"file:{directory}?mode=ro", uri=True)
    try:
        return {
            cn: (state, at)
            for cn, state, at in database.execute(
                "SELECT cn, state, state_date FROM certs WHERE usage <> 'cms'"
            )
        }
    finally:
        database.close()


async def test_a_service_with_a_file_that_starts_with_an_earlier_clock_than_before_waits_for_the_right_one(
    tmp_path,
):
    file = tmp_path / "clock"
    file.write_text("+0")
    more = {f"EPICS_PVACMS_REQUIRE_{usage}_APPROVAL": "NO" for usage in ("CLIENT", "SERVER", "IOC")}
    more |= {"EPICS_PVACMS_HEALTH_INTERVAL_S": "0.2", **clock(file)}
    # The authority is older than the wrong time, as it is in life.
    file.write_text("-30d")
    with Process(tmp_path, **more) as process:
        process.ready(90)
        assert process.stop()[0] == 0
    file.write_text("+0")
    with Process(tmp_path, **more) as process:
        process.ready(90)
        async with client(process.tcp_port) as anyone:
            alice = await anyone.rpc("CERT:CREATE", ccr("alice"), timeout=60)
        assert process.stop()[0] == 0
    file.write_text("-20d")
    with Process(tmp_path, **more) as process:
        process.ready(90)
        async with client(process.tcp_port) as anyone:
            said = await health(anyone, lambda value: "clock" in value["alarm.message"])
            assert re.search(
                r"clock was set from 20\S+ to 20\S+; if that is wrong, correct it", said["alarm.message"]
            )
            with pytest.raises(RemoteError, match=r"clock was set from .* by itself in \d+ s$"):
                await anyone.rpc("CERT:CREATE", ccr("bob"), timeout=60)
            with pytest.raises(RemoteError, match="no status is signed at the moment"):
                await anyone.get(alice["status_pv"], timeout=60)
            file.write_text("+0")
            assert (await health(anyone, lambda value: value["value.index"] == 1))["db_ok"]
            status = await anyone.get(alice["status_pv"], timeout=60)
            assert (status["state"], is_now(signed_at(status))) == ("VALID", True)
            await anyone.rpc("CERT:CREATE", ccr("bob"), timeout=60)
        assert process.stop()[0] == 0


@pytest.mark.parametrize("offset", [YEAR, "-400d"])
async def test_a_service_with_a_file_notices_that_its_clock_is_set_and_revokes_nevertheless(tmp_path, offset):
    file = tmp_path / "clock"
    file.write_text("+0")
    more = {f"EPICS_PVACMS_REQUIRE_{usage}_APPROVAL": "NO" for usage in ("CLIENT", "SERVER", "IOC")}
    with Process(tmp_path, EPICS_PVACMS_HEALTH_INTERVAL_S="0.2", **more, **clock(file)) as process:
        process.ready(90)
        admin = admin_keychain(process.config_dir)
        async with client(process.tls_port, admin) as secure, client(process.tcp_port) as anyone:
            made = {name: await anyone.rpc("CERT:CREATE", ccr(name), timeout=60) for name in ("alice", "bob")}
            await secure.info(made["bob"]["status_pv"], timeout=60)
            file.write_text(offset)
            said = await health(anyone, lambda value: "clock" in value["alarm.message"])
            assert re.search(
                r"this host's clock was set from 20\S+ to 20\S+; if that is wrong, correct it",
                said["alarm.message"],
            )
            with pytest.raises(RemoteError, match=r"clock was set from .* by itself in \d+ s$"):
                await anyone.rpc("CERT:CREATE", ccr("carol"), timeout=60)
            with pytest.raises(
                RemoteError, match=r"no status is signed at the moment: .*; ask again when it is right"
            ):
                await anyone.get(made["alice"]["status_pv"], timeout=60)
            async with anyone.monitor(made["alice"]["status_pv"]) as updates:
                waits = asyncio.ensure_future(anext(updates))
                await secure.put(made["bob"]["status_pv"], {"state": "REVOKED"}, timeout=60)
                bob = await anyone.get(made["bob"]["status_pv"], timeout=60)
                assert bob["state"] == "REVOKED"
                assert is_now(signed_at(bob)), "what is final is signed, by the clock that nobody sets"
                await health(anyone, lambda value: value["uptime_secs"] > said["uptime_secs"] + 3)
                recorded = rows(process.db)
                assert {name: state for name, (state, _) in recorded.items()} == {
                    "admin": "VALID", "alice": "VALID", "bob": "REVOKED"
                }  # fmt: skip
                assert abs(recorded["bob"][1] - time.time()) < 3600
                assert not waits.done()
                file.write_text("+0")
                update = await asyncio.wait_for(waits, 60)
                assert update["state"] == "VALID"
                assert is_now(signed_at(update))
            await health(anyone, lambda value: value["value.index"] == 1)
            await anyone.rpc("CERT:CREATE", ccr("carol", key=generate_key("ec-p256")), timeout=60)
        status, _, log = process.stop()
        assert status == 0
        assert "this host's clock is right again" in log


async def test_a_service_with_a_file_goes_on_by_itself_with_a_clock_that_stays_set(tmp_path):
    clock, wall, steady = Clock(), [0.0], [0.0]
    async with running(tmp_path, clock, require_client_approval=False) as service, plain(service) as anyone:
        host = service.host_clock
        host._wall, host._steady = lambda: time.time() + wall[0], lambda: steady_s() + steady[0]
        made = await anyone.rpc("CERT:CREATE", ccr("alice"))
        async with anyone.monitor(made["status_pv"]) as updates:
            assert (await asyncio.wait_for(anext(updates), 60))["state"] == "VALID"
            clock.advance(days=400)
            wall[0] += 400 * 86400
            await settled(service)
            assert (await service.lifecycle.find(made["serial"])).state is CertState.VALID
            with pytest.raises(RemoteError, match="clock was set"):
                await anyone.rpc("CERT:CREATE", ccr("bob"))
            clock.advance(seconds=BELIEVED_S)
            wall[0], steady[0] = wall[0] + BELIEVED_S, steady[0] + BELIEVED_S
            await settled(service)
            assert (await asyncio.wait_for(anext(updates), 60))["state"] == "EXPIRED"
            assert (await service.lifecycle.find(made["serial"])).state is CertState.EXPIRED

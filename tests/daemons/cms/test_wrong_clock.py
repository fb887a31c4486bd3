"""One of several nodes has a wrong clock: what it would write is for good, and at all nodes."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.errors import RemoteError
from tests.daemons.cms.test_database_server import URL, Node, health
from tests.helpers.cms import KEY, Process, admin_keychain, ccr, client, keychain_of
from tests.helpers.postgres import PASSWORD

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
            assert f"s {where} the database's; correct the one that is wrong" in said
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
                before = states(postgres, name)
                assert before == {"admin": "VALID", "alice": "PENDING_APPROVAL"}

                file.write_text(YEAR)
                said = await health(plain, lambda value: "clock" in value["alarm.message"])
                assert "ahead of the database's" in said["alarm.message"]
                with pytest.raises(
                    RemoteError, match="correct the one that is wrong; until then ask another"
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

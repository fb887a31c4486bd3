"""A fail-over to a standby of PostgreSQL: real servers, a real stream, and a name that means the new primary afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator

import pytest

from appliance.certs.keychain import load_keychain
from appliance.certs.profiles import generate_key
from appliance.cms.audit import verify_audit
from appliance.errors import RemoteError
from tests.daemons.cms.test_database_server import URL, Node, health
from tests.helpers.cms import Process, ccr, client
from tests.helpers.postgres import Server
from tests.helpers.proxy import Proxy

pytestmark = pytest.mark.timeout(300)  # two servers with real disks, and waits for them of a minute each
OPEN = {"require_client_approval": "false", "db_wait_s": "60"}


class Pair:
    """A primary, its standby, and a name for whichever of them is the primary."""

    def __init__(self, primary: Server, standby: Server, proxy: Proxy) -> None:
        self.primary, self.standby, self.proxy = primary, standby, proxy
        self.database = primary.empty()
        self.url = URL.format(port=proxy.port, name=self.database)

    def wait_for(self, query: str, wanted: object) -> None:
        end = time.monotonic() + 60
        while (found := self.primary.sql(query)) != [(wanted,)]:
            assert time.monotonic() < end, found
            time.sleep(0.02)

    def synchronous(self) -> None:
        self.primary.sql("ALTER SYSTEM SET synchronous_standby_names = '*'")
        self.primary.sql("SELECT pg_reload_conf()")
        self.wait_for("SELECT sync_state FROM pg_stat_replication", "sync")

    def fail_over(self) -> None:
        """The primary's host is gone, the standby takes over, and the name is its name now."""
        self.proxy.cut()
        self.primary.kill()
        if not self.standby.is_running:
            self.standby.start()
        self.standby.promote()
        self.proxy.lead_to(self.standby.port)
        self.proxy.mend()

    @property
    def actions(self) -> list[tuple[str, dict[str, str]]]:
        """The audit of the standby."""
        rows = self.standby.sql("SELECT action, record FROM audit ORDER BY seq", self.database)
        return [(action, json.loads(record)) for action, record in rows]


@pytest.fixture
def pair() -> Iterator[Pair]:
    with contextlib.ExitStack() as stack:
        primary = stack.enter_context(Server(fast=False))
        standby = primary.standby()
        stack.callback(standby.close)
        standby.start()
        yield Pair(primary, standby, stack.enter_context(Proxy(primary.port)))


async def create(node: Process, name: str):
    async with client(node.tcp_port) as anyone:
        return await anyone.rpc("CERT:CREATE", ccr(name, key=generate_key("ec-p256")), timeout=60)


async def state(node: Process, reply) -> str:
    """Ask until it is known: what was lost is written again before anything is said, which is after the writer works again."""
    async with client(node.tcp_port) as anyone, asyncio.timeout(60):
        while True:
            try:
                return (await anyone.get(reply["status_pv"], timeout=60))["state"]
            except RemoteError as error:
                if "cannot be known at the moment" not in str(error):
                    raise


async def revoke(node: Process, reply) -> None:
    admin = load_keychain((node.config_dir / "admin.p12").read_bytes())
    async with client(node.tls_port, admin) as administrator:
        await administrator.put(reply["status_pv"], {"state": "REVOKED"}, timeout=60)


async def test_with_synchronous_commit_nothing_that_was_answered_is_lost(tmp_path, pair):
    pair.synchronous()
    with Node(tmp_path, "a", pair.url, **OPEN).process() as node:
        node.ready(90)
        alice, bob = await create(node, "alice"), await create(node, "bob")
        await revoke(node, bob)
        await asyncio.to_thread(pair.fail_over)
        carol = await create(node, "carol")
        assert [await state(node, reply) for reply in (alice, bob, carol)] == ["VALID", "REVOKED", "VALID"]
        async with client(node.tcp_port) as anyone:
            assert not (await health(anyone, db_ok=True))["alarm.message"]
        assert node.stop()[0] == 0
    assert [action for action, _ in pair.actions if action == "restored"] == []
    assert verify_audit(pair.standby.url(pair.database)).intact


async def test_with_asynchronous_commit_the_service_tells_what_was_lost_and_makes_revocations_good(
    tmp_path, pair
):
    with Node(tmp_path, "a", pair.url, **OPEN).process() as node:
        node.ready(90)
        alice = await create(node, "alice")
        pair.wait_for("SELECT replay_lsn = pg_current_wal_lsn() FROM pg_stat_replication", True)
        pair.standby.stop()  # from here on the primary alone knows
        await revoke(node, alice)
        lost = await create(node, "lost")
        await asyncio.to_thread(pair.fail_over)
        carol = await create(node, "carol")
        assert [await state(node, reply) for reply in (alice, lost, carol)] == ["REVOKED", "UNKNOWN", "VALID"]
        async with client(node.tcp_port) as anyone:
            said = await health(anyone, lambda value: "older than before" in value["alarm.message"])
        assert "what was issued shortly before may be unknown" in said["alarm.message"]
        assert node.log_line("the database has another history than the one that this service has seen")
        assert node.stop()[0] == 0
    told = dict(pair.actions)
    assert "restored" in told, "the audit says it, with the last record that was seen"
    assert int(told["restored"]["last"]) > 0
    assert verify_audit(pair.standby.url(pair.database)).intact


async def test_a_standby_that_is_gone_stops_a_synchronous_primary_and_a_commit_without_it_is_told(
    tmp_path, pair
):
    """PostgreSQL waits for the standby without limit. Nobody else does."""
    pair.synchronous()
    with Node(tmp_path, "a", pair.url, **(OPEN | {"db_wait_s": "2"})).process() as node:
        node.ready(90)
        pair.standby.stop()
        async with client(node.tcp_port) as anyone:
            with pytest.raises(RemoteError, match=r"nothing was done|not known whether this was done"):
                await anyone.rpc("CERT:CREATE", ccr("alice"), timeout=60)
            assert (await health(anyone, db_ok=False))["alarm.message"]
            # What an administrator does: let go what waits, and go on with one server.
            waits = "FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
            assert pair.primary.sql(f"SELECT pg_cancel_backend(pid) {waits}")
            pair.primary.sql("ALTER SYSTEM SET synchronous_standby_names = ''")
            pair.primary.sql("SELECT pg_reload_conf()")
            said = await health(anyone, lambda value: "was not confirmed" in value["alarm.message"])
            assert "so a fail-over may lose it; look at the standby" in said["alarm.message"]
        assert await state(node, await create(node, "bob")) == "VALID"
        assert node.stop()[0] == 0

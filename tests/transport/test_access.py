"""Who a peer is and what it may do, with real sockets and, where it matters, real TLS."""

from __future__ import annotations

import asyncio
import getpass
from typing import Any

import pytest

from appliance.client import Context, Monitor
from appliance.client.monitor import Connected, Disconnected
from appliance.config.pva import resolve_client, resolve_server
from appliance.errors import AccessDeniedError, ConfigurationError
from appliance.pva.credentials import Credentials
from appliance.pvdata.nt import NTScalar
from appliance.pvdata.types import FLOAT64
from appliance.pvdata.value import Value
from appliance.server import ALL_RIGHTS, Operation, Rights, Server, SharedPV
from appliance.server.access import LostReaders
from appliance.tls.context import client_context, server_context
from tests.helpers.live import never_comes, until
from tests.helpers.ours import client_config, client_of, double, gallery, served
from tests.helpers.pki import site


class Policy:
    """What all may do; a test changes it while they do it."""

    def __init__(self, rights: Rights = ALL_RIGHTS) -> None:
        self.now = rights
        self.asked: list[tuple[str, Credentials]] = []

    def rights(self, name: str, peer: Credentials) -> Rights:
        self.asked.append((name, peer))
        return self.now


async def ended(updates: Monitor) -> None:
    async for _ in updates:
        pass


@pytest.mark.parametrize("write", [True, False])
async def test_a_monitor_is_disconnected_when_the_right_to_read_is_taken_away_and_comes_back_with_it(
    write: bool, caplog: pytest.LogCaptureFixture
) -> None:
    # Without the right to write there is no bit of ACL_CHANGE that changes: the end must come all the same.
    policy = Policy(Rights(read=True, write=write))
    pv = double(1.0)
    async with (
        served({"a:pv": pv}, policy=policy) as server,
        client_of(server) as ctx,
        asyncio.timeout(30),
    ):
        updates = ctx.monitor("a:pv", notify=True)
        assert isinstance(await anext(updates), Connected)
        assert (await anext(updates))["value"] == 1.0
        for value in (2.0, 3.0):
            policy.now = Rights(write=write)
            server.review_access()
            pv.post(666.0)
            assert isinstance(await anext(updates), Disconnected)
            await until(lambda: ctx.channel("a:pv").wire is not None and ctx.channel("a:pv").wire.operations)
            with pytest.raises(AccessDeniedError, match="read access denied"):
                await ctx.get("a:pv")
            server.review_access()  # judged again, and still not allowed
            pv.post(value)
            policy.now = Rights(read=True, write=write)
            server.review_access()
            assert isinstance(await anext(updates), Connected)
            assert (await anext(updates))["value"] == value
        assert "goes on when reading is allowed again" in caplog.text
        assert not server.access.lost_readers._known


async def test_a_client_that_lost_the_right_to_read_comes_back_over_another_connection_too() -> None:
    """Phoebus closes a connection without channels."""
    policy = Policy()
    async with served({"a:pv": double(1.0)}, policy=policy) as server, asyncio.timeout(30):
        async with client_of(server) as first:
            async with first.monitor("a:pv") as updates:
                await anext(updates)
                policy.now = Rights()
                server.review_access()
                await until(lambda: server.access.lost_readers._known)
        async with client_of(server) as second, second.monitor("a:pv") as updates:
            await until(lambda: any(peer.connection.operations for peer in server.peers.values()))
            policy.now = ALL_RIGHTS
            server.review_access()
            assert (await anext(updates))["value"] == 1.0


async def test_who_begins_to_watch_what_it_may_not_read_is_told_so() -> None:
    async with (
        served({"a:pv": double()}, policy=Policy(Rights(write=True))) as server,
        client_of(server) as ctx,
    ):
        async with asyncio.timeout(30):
            with pytest.raises(AccessDeniedError, match="read access denied"):
                await ended(ctx.monitor("a:pv"))


def test_readers_that_lost_their_right_are_remembered_in_bounds() -> None:
    lost = LostReaders()
    peers = [Credentials("ca", f"user{number}", "127.0.0.1:1") for number in range(10_001)]
    for peer in peers:
        lost.add("pv", peer)
    assert not lost.has("pv", peers[0])
    assert lost.has("pv", peers[-1]._replace(peer="127.0.0.1:2"))
    assert not lost.has("pv", peers[-1]._replace(account="other"))
    assert not lost.has("pv", peers[-1]._replace(peer="127.0.0.2:1"))


async def test_what_waits_for_a_reader_who_may_no_longer_read_is_dropped() -> None:
    policy = Policy()
    pv = double(1.0)
    async with served({"a:pv": pv}, policy=policy) as server, client_of(server) as ctx:
        updates = ctx.monitor("a:pv", "record[queueSize=2,pipeline=true]")
        assert (await anext(updates))["value"] == 1.0
        for value in (2.0, 3.0, 4.0, 666.0):  # the client has room for two, the rest waits
            pv.post(value)
        policy.now = Rights(write=True)
        server.review_access()
        pv.post(5.0)
        policy.now = ALL_RIGHTS
        await until(lambda: any(peer.connection.operations for peer in server.peers.values()))
        server.review_access()
        seen = []
        async with asyncio.timeout(30):
            async for update in updates:
                seen.append(update["value"])
                if seen[-1] == 5.0:
                    break
        assert 666.0 not in seen


async def test_a_monitor_that_is_refused_at_its_start_is_told_and_a_new_one_is_live_when_the_rule_changes() -> (
    None
):
    policy = Policy()
    policy.now = Rights(write=True)
    async with served({"a:pv": double(1.0)}, policy=policy) as server, client_of(server) as ctx:
        refused = ctx.monitor("a:pv")
        with pytest.raises(AccessDeniedError, match="read access denied"):
            await anext(refused)
        policy.now = ALL_RIGHTS
        server.review_access()
        assert not any(peer.connection.operations for peer in server.peers.values())
        with pytest.raises((AccessDeniedError, StopAsyncIteration)):
            await anext(refused)
        assert (await anext(ctx.monitor("a:pv")))["value"] == 1.0


async def test_rights_change_under_a_running_client() -> None:
    policy = Policy()
    async with served(gallery("a:"), policy=policy) as server, client_of(server) as ctx:
        await ctx.put("a:int", 1)
        assert await ctx.rpc("a:add", {"lhs": 1.0, "rhs": 1.0}) is not None
        channel = ctx.channel("a:int")
        assert channel.wire is not None
        before = channel.wire.permissions
        policy.now = Rights(read=True)
        server.review_access()
        with pytest.raises(AccessDeniedError, match="write access denied"):
            await ctx.put("a:int", 2)
        with pytest.raises(AccessDeniedError, match="RPC access denied"):
            await ctx.rpc("a:add", {"lhs": 1.0, "rhs": 1.0})
        assert channel.wire.permissions == 0 != before
        assert (await ctx.get("a:int"))["value"] == 1
        assert server.access.refusals == 2
        policy.now = ALL_RIGHTS
        server.review_access()
        await ctx.put("a:int", 3)
        assert (await ctx.get("a:int"))["value"] == 3


async def test_an_initialised_put_is_refused_once_the_right_is_gone() -> None:
    policy = Policy()
    async with served({"a:pv": double(1.0)}, policy=policy) as server, client_of(server) as ctx:

        def revoke(present: Value) -> Value:
            policy.now = Rights(read=True)
            server.review_access()
            present["value"] = 2.0
            return present

        with pytest.raises(AccessDeniedError):
            await ctx.put("a:pv", revoke, get=True)
        assert (await ctx.get("a:pv"))["value"] == 1.0


async def test_a_policy_that_fails_gives_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def rights(self, name: str, peer: Credentials) -> Rights:
            raise RuntimeError("no such group")

    async with served({"a:pv": double()}, policy=Broken()) as server, client_of(server) as ctx:
        with pytest.raises(AccessDeniedError):
            await ctx.get("a:pv")
    assert "no access" in caplog.text


async def test_a_handler_sees_the_account_that_a_plain_client_claims() -> None:
    seen: list[Credentials] = []

    def note(pv: SharedPV, operation: Operation, value: Value) -> None:
        seen.append(operation.peer)

    policy = Policy()
    pv = SharedPV(Value(NTScalar(FLOAT64)), on_put=note)
    async with served({"a:pv": pv}, policy=policy) as server, client_of(server) as ctx:
        await ctx.put("a:pv", 1.0)
        (peer,) = seen
        assert (peer.method, peer.account) == ("ca", getpass.getuser())
        assert not peer.is_tls
        assert peer.interface == f"127.0.0.1:{server.tcp_port}"
        assert peer.peer.startswith("127.0.0.1:")
        assert getpass.getuser() in peer.roles
        assert policy.asked[0] == ("a:pv", peer)


async def test_a_client_without_a_name_is_anonymous(monkeypatch: pytest.MonkeyPatch) -> None:
    async with served({"a:pv": double()}) as server, client_of(server) as ctx:
        identity = ctx._end.claimed_identity()
        identity["user"] = ""
        await ctx.get("a:pv")
        (peer,) = server.peers.values()
        assert (peer.credentials.method, peer.credentials.account) == ("anonymous", "")
        assert not peer.credentials.roles


def tls_server(**options: Any) -> Server:
    """A server with a certificate; not yet started."""
    return served(gallery("t:"), tls=server_context(site().server, require_client_cert=False), **options)


def tls_client(server: Server) -> Context:
    """A client with a certificate that finds ``server``; not yet started."""
    return client_of(server, tls=client_context(site().client, want_staple=False))


async def test_tls_proves_both_ends_to_each_other() -> None:
    async with tls_server() as server:
        async with tls_client(server) as ctx:
            info = await ctx.info("t:double")
            assert info.server == f"127.0.0.1:{server.tls_port}"
            assert (info.peer.method, info.peer.account, info.peer.is_tls) == ("x509", "softioc", True)
            (peer,) = server.peers.values()
            assert (peer.credentials.method, peer.credentials.account) == ("x509", "client")
            assert peer.credentials.authority == "EPICS Root Certificate Authority"
            values = await ctx.get(["t:int", "t:string", "t:big"], timeout=30)
            assert values[2]["value"][-1] == 1_048_575
            async with ctx.monitor("t:int") as updates:
                await anext(updates)
                await ctx.put("t:int", 5)
                assert (await anext(updates))["value"] == 5


async def test_one_server_serves_plain_and_tls_clients() -> None:
    async with tls_server() as server:
        async with tls_client(server) as secure, client_of(server) as plain:
            assert (await secure.info("t:int")).peer.is_tls
            assert not (await plain.info("t:int")).peer.is_tls


async def test_a_server_of_another_authority_is_not_trusted() -> None:
    world = site()
    stranger = world.other_ca.keychain("stranger", "client")
    async with tls_server() as server:
        ctx = Context(
            client_config(server.udp_port), tls=client_context(stranger, want_staple=False), beacons=False
        )
        async with ctx:
            await never_comes(lambda: ctx.get("t:int", timeout=0.5), r"certificate|verif")
        async with asyncio.timeout(30):
            while server.peers:
                await asyncio.sleep(0.01)


async def test_the_server_stops_in_time_with_half_open_tls_clients() -> None:
    server = tls_server()
    await server.start()
    writers = [(await asyncio.open_connection("127.0.0.1", server.tls_port))[1] for _ in range(5)]
    writers[0].write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")  # the beginning of a ClientHello
    async with asyncio.timeout(30):
        while len(server.peers) < 5:
            await asyncio.sleep(0.01)
        await server.stop()
    assert not server.peers
    for writer in writers:
        writer.close()


async def test_settings_rule_in_the_order_argument_file_variable_default() -> None:
    async with served({"a:pv": double(7.0)}) as server:
        environ = {
            "EPICS_PVA_ADDR_LIST": "127.0.0.1",
            "EPICS_PVA_AUTO_ADDR_LIST": "NO",
            "EPICS_PVA_BROADCAST_PORT": "1",
            "EPICS_PVA_CONN_TMO": "3",
        }
        effective = resolve_client(
            {"broadcast_port": server.udp_port},
            {"conn_tmo": 6, "broadcast_port": 2, "tls_keychain": ""},
            environ,
            home="/nonexistent",
        )
        async with Context(effective.config, beacons=False) as ctx:
            assert (await ctx.get("a:pv"))["value"] == 7.0
            assert ctx._links._liveness.timeout_s == 8.0
        sources = effective.sources
        assert sources["broadcast_port"] == "argument"
        assert sources["addr_list"] == "EPICS_PVA_ADDR_LIST"
        assert sources["tls_port"] == "default"
        assert f"EPICS_PVA_BROADCAST_PORT={server.udp_port}" in effective.render()


async def test_a_server_reads_its_own_variables_before_the_common_ones() -> None:
    environ = {
        "EPICS_PVAS_INTF_ADDR_LIST": "127.0.0.1",
        "EPICS_PVAS_SERVER_PORT": "0",
        "EPICS_PVA_SERVER_PORT": "1",
        "EPICS_PVAS_BROADCAST_PORT": "0",
        "EPICS_PVA_BROADCAST_PORT": "1",
        "EPICS_PVAS_AUTO_BEACON_ADDR_LIST": "NO",
    }
    config = resolve_server(environ=environ, home="/nonexistent").config
    async with served({"a:pv": double(1.0)}, config=config) as server, client_of(server) as ctx:
        assert server.tcp_port > 1
        assert (await ctx.get("a:pv"))["value"] == 1.0
    with pytest.raises(ConfigurationError):
        resolve_server(environ={"EPICS_PVAS_INTF_ADDR_LIST": "not an address!:x"}, home="/nonexistent")

"""A node that is killed, seen from clients; and what only one node of several does."""

from __future__ import annotations

import pytest

from appliance.certs.keychain import load_keychain
from appliance.client.context import Context
from appliance.config.address import Endpoint
from appliance.config.pva import ClientConfig
from appliance.pvdata import Value
from appliance.tls.context import client_context
from tests.daemons.cms.test_database_server import URL, Node, refused
from tests.helpers.cluster import cluster
from tests.helpers.cms import ccr, client
from tests.helpers.live import until

OPEN = {"require_client_approval": "false"}
LATE = 60.0


@pytest.mark.parametrize("tls", [False, True], ids=["pva", "pvas"])
async def test_a_client_with_name_servers_moves_from_a_killed_node_to_the_other_and_hears_no_unknown(
    tmp_path, postgres, tls
):
    name = postgres.empty()
    db = URL.format(port=postgres.port, name=name)
    first = Node(tmp_path, "a", db, **OPEN)
    with first.process() as a:
        a.ready(90)
        admin = load_keychain((a.config_dir / "admin.p12").read_bytes())
        with Node(tmp_path, "b", db, **OPEN).takes_authority_of(first).process() as b:
            b.ready(90)
            async with client(a.tcp_port) as at_a:
                reply = await at_a.rpc("CERT:CREATE", ccr("alice"))
            ports = [node.tls_port if tls else node.tcp_port for node in (a, b)]
            config = ClientConfig(
                auto_addr_list=False,
                name_servers=tuple(Endpoint("127.0.0.1", port, tls=tls) for port in ports),
            )
            heard: list[Value] = []
            context = Context(
                config, tls=client_context(admin, want_staple=False) if tls else None, beacons=False
            )
            async with context:
                context.monitor(reply["status_pv"], on_update=heard.append)
                await until(lambda: heard, LATE)
                channel = context.channel(reply["status_pv"])
                assert channel.peer.is_tls is tls
                answers = heard[-1]["pvacms_node_id"]
                port = int(str(channel.peer.peer).rpartition(":")[2])
                gone, left = (a, b) if port == ports[0] else (b, a)
                gone.process.kill()
                await until(lambda: heard[-1]["pvacms_node_id"] not in ("", answers), LATE)
                assert {value["state"] for value in heard} == {"VALID"}
                async with client(left.tls_port, admin) as administrator:
                    await administrator.put(reply["status_pv"], {"state": "REVOKED"})
                await until(lambda: heard[-1]["state"] == "REVOKED", LATE)
                assert {value["state"] for value in heard} == {"VALID", "REVOKED"}
            assert left.stop()[0] == 0
    postgres.drop(name)


def test_the_name_of_a_node_that_works_is_not_given_twice(tmp_path, postgres):
    name = postgres.empty()
    db = URL.format(port=postgres.port, name=name)
    first = Node(tmp_path, "a", db)
    with first.process() as a:
        a.ready(90)
        (tmp_path / "other").mkdir()
        second = Node(tmp_path / "other", "a", db).takes_authority_of(first)
        assert "another pvacms is node 'a' of the database" in (said := refused(second))
        assert "or give this one another name with the setting node" in said
        assert a.stop()[0] == 0
    postgres.drop(name)


async def test_only_the_first_of_the_nodes_that_live_looks_after_the_database(tmp_path, postgres):
    db = postgres.url(postgres.new())
    kept = tmp_path / "backups"
    kept.mkdir(mode=0o700)
    async with cluster(tmp_path, db, "a", "b", backup_dir=str(kept)) as (a, b):
        await until(lambda: b.service.nodes.alive == ["a", "b"], LATE)
        await b.service.upkeep.backup()
        assert [*kept.iterdir()] == []
        await a.service.upkeep.backup()
        assert len([*kept.iterdir()]) == 1
        await a.stop()
        await until(lambda: b.service.nodes.alive == ["b"], LATE)
        for file in kept.iterdir():
            file.unlink()
        await b.service.upkeep.backup()
        assert len([*kept.iterdir()]) == 1

"""Nodes of this release and of the next one live together on one database; a release later that has an end."""

from __future__ import annotations

import pytest

from appliance.certs.keychain import load_keychain
from appliance.certs.profiles import generate_key
from appliance.client.uri import uri_value
from appliance.cms.audit import verify_audit
from tests.daemons.cms.test_database_server import URL, Node, refused
from tests.helpers.cms import Process, ccr, client
from tests.helpers.next_schema import VERSION, contract
from tests.helpers.postgres import raw

OPEN = {"require_client_approval": "false"}
NEXT = ("-m", "tests.helpers.next_schema")


async def create(node: Process, name: str):
    async with client(node.tcp_port) as anyone:
        return await anyone.rpc("CERT:CREATE", ccr(name, key=generate_key("ec-p256")))


async def revoke(node: Process, reply, keychain) -> None:
    async with client(node.tls_port, keychain) as administrator:
        await administrator.put(reply["status_pv"], {"state": "REVOKED"})


async def listed(node: Process, keychain) -> dict[int, str]:
    async with client(node.tls_port, keychain) as administrator:
        found = (await administrator.rpc("CERT:LIST", uri_value("CERT:LIST", {})))["value"]
    return {
        int(each.partition(":")[2]): state
        for each, state in zip(found["cert_id"], found["state"], strict=True)
    }


@pytest.mark.usefixtures("postgres")
async def test_nodes_of_two_releases_issue_revoke_and_list_together(tmp_path, postgres):
    name = postgres.empty()
    where = postgres.url(name)
    db = URL.format(port=postgres.port, name=name)
    old, new = Node(tmp_path, "a", db, **OPEN), Node(tmp_path, "b", db, **OPEN)
    with old.process() as a:
        a.ready()
        admin = load_keychain((a.config_dir / "admin.p12").read_bytes())
        by_old = [await create(a, "one"), await create(a, "two")]
        new.takes_authority_of(old)
        with Process(new.directory, "--config", str(new.config), program=NEXT) as b:
            b.ready()
            with raw(where) as rows:
                assert rows.execute("SELECT version_num FROM alembic_version").fetchone() == (VERSION,)
            by_new = [await create(b, "three"), await create(b, "four")]
            by_old.append(await create(a, "five"))
            await revoke(a, by_new[0], admin)
            await revoke(b, by_old[0], admin)
            wanted = {reply["serial"]: "VALID" for reply in (*by_old, *by_new)}
            wanted |= {by_old[0]["serial"]: "REVOKED", by_new[0]["serial"]: "REVOKED"}
            for node in (a, b):
                found = await listed(node, admin)
                assert {serial: found[serial] for serial in wanted} == wanted
            assert a.stop()[0] == 0
            # The upgrade may be taken back: a node of this release starts with the expanded schema.
            with old.process() as again:
                again.ready()
                assert again.log_line(
                    f"the schema version '{VERSION}' of a later pvacms, which this one may still use"
                )
                await create(again, "six")
                assert again.stop()[0] == 0
            contract(where)
            said = refused(old)
            assert f"has the schema version '{VERSION}', which needs a later pvacms" in said
            await create(b, "seven")
            assert b.stop()[0] == 0
    assert verify_audit(where).intact
    postgres.drop(name)

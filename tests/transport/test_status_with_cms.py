"""The whole chain with the real certificate management service: issued, approved, used, revoked, closed."""

import asyncio

from appliance.certmon.endpoints import open_client, open_server
from appliance.certs.profiles import generate_key
from tests.helpers.cms import admin_keychain, ccr, keychain_of, pem, plain, running, secure
from tests.helpers.live import client_config, keychain_file, number, promptly, server_config, until

CLIENT, SERVER = 1, 2


async def issued(context, name, usage):
    """A certificate from the service: its keychain and status PV."""
    key = generate_key("ec-p256")
    reply = await context.rpc("CERT:CREATE", ccr(name, usage=usage, pub_key=pem(key)))
    return keychain_of(reply, key), reply["status_pv"]


async def test_from_request_to_revocation(tmp_path):
    async with (
        running(tmp_path) as service,
        plain(service) as anyone,
        secure(service, admin_keychain(tmp_path)) as admin,
    ):
        server_keychain, server_status = await issued(anyone, "softioc", SERVER)
        client_keychain, client_status = await issued(anyone, "operator", CLIENT)
        cms = service.server.udp_port
        server_file = keychain_file(tmp_path, "server", server_keychain)
        client_file = keychain_file(tmp_path, "client", client_keychain)
        pv = number(1.0)
        async with (
            open_server(
                server_config(server_file),
                prepare=lambda server: server.add_pv("pv", pv),
                status_client=client_config(cms),
            ) as server,
            open_client(client_config(server, cms, keychain=client_file)) as context,
        ):
            updates = []
            context.monitor("pv", on_update=updates.append)
            await until(lambda: updates)

            def is_tls():
                peer = context.channel("pv").peer
                return peer is not None and peer.is_tls

            assert not is_tls(), "both wait for approval, and nobody waits for them"
            await admin.put(server_status, {"state": "APPROVED"})
            await until(lambda: server.tls is not None)
            await admin.put(client_status, {"state": "APPROVED"})
            await until(is_tls)
            (link,) = [link for link in server.peers if link.engine is not None]
            pv.post(2.0)
            await until(lambda: updates[-1]["value"] == 2.0)

            await admin.put(client_status, {"state": "REVOKED"})
            await promptly(lambda: link not in server.peers)
            await until(lambda: context.tls is None)
            pv.post(3.0)
            await until(lambda: updates[-1]["value"] == 3.0)
            assert not is_tls()


async def test_the_service_may_be_restarted_under_live_connections(tmp_path):
    """Its own certificate has no status extension: nothing is circular."""
    options = {"require_client_approval": False, "require_server_approval": False}
    async with running(tmp_path, **options) as service:
        async with plain(service) as anyone:
            server_keychain, _ = await issued(anyone, "softioc", SERVER)
            client_keychain, _ = await issued(anyone, "operator", CLIENT)
        cms = service.server.udp_port
        server_file = keychain_file(tmp_path, "server", server_keychain)
        client_file = keychain_file(tmp_path, "client", client_keychain)
        async with (
            open_server(
                server_config(server_file),
                prepare=lambda server: server.add_pv("pv", number(1.0)),
                status_client=client_config(cms),
            ) as server,
            open_client(client_config(server, cms, keychain=client_file)) as context,
        ):
            await context.get("pv")
            assert context.channel("pv").peer.is_tls
            await service.stop()
            await asyncio.sleep(0.1)
            await context.put("pv", 5.0)
            assert (await context.get("pv"))["value"] == 5.0
            assert context.channel("pv").peer.is_tls

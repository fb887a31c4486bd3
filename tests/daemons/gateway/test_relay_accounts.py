"""The relay of a running gateway: each client has a share of its own at the service, and its octets are counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.errors import RemoteError
from tests.daemons.cms.test_relayed import OPEN, client
from tests.helpers.cms import admin_keychain, running
from tests.helpers.gateways import client_to, direct, gateway_to
from tests.helpers.ports import free_port
from tests.transport.test_bounds import until

HOST = "127.0.0.1"


async def test_one_host_that_asks_too_often_does_not_use_up_the_share_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    async with running(tmp_path, ccr_per_minute=6.0, ccr_burst=2, proxy_from=(HOST,), **OPEN) as service:
        upstream = {"pva": {"name_servers": f"{HOST}:{service.server.tcp_port}"}}
        async with gateway_to(client=upstream, relay={"tls_port": port}, status_prefix="GW:") as gateway:
            relay = gateway.servers["outer"].relay
            assert relay is not None
            await until(lambda: not relay.trouble)
            admin = admin_keychain(tmp_path)
            async with client(port, admin, "127.0.0.21", monkeypatch) as greedy:
                for name in ("one", "two"):
                    await greedy.create(name)
                with pytest.raises(RemoteError, match="rate limited"):
                    await greedy.create("three")
                async with client(port, admin, "127.0.0.22", monkeypatch) as other:
                    assert (await other.create("four"))["state"] == "VALID"
                    listed = [line for line in gateway.overview.clients() if line.account == "(relay)"]
                    assert {line.name.partition(":")[0] for line in listed} == {"127.0.0.21", "127.0.0.22"}
                    assert all(line.tx > 1000 and line.rx > 1000 for line in listed)
            await until(lambda: not relay.splices.open)
            await gateway.status.refresh()
            async with client_to(gateway) as reader:
                table = await reader.get("GW:ds:byhost:tx", server=direct(gateway))
            assert "(relay)" in list(table["value.account"])


async def test_a_relay_without_a_service_is_a_trouble_that_health_names() -> None:
    port = free_port()
    upstream = {"pva": {"name_servers": f"{HOST}:{free_port()}"}}
    async with gateway_to(client=upstream, relay={"tls_port": port}) as gateway:
        troubles = [text for _, text in gateway.overview.troubles()]
        assert "the relay of the server side outer has not found the certificate service" in troubles

"""A new root takes over from the old one at a live site: every keychain changes once, by itself, and no monitor loses more than that.

Everything is real but the processes: the certificate service, a server and a client over TLS, and the keepers of their keychains.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from appliance.certmon.endpoints import open_client, open_server
from appliance.certs.keychain import load_keychain
from appliance.client import Disconnected
from appliance.cms.ceremony import new_authority
from appliance.cms.config import FormerAuthority
from appliance.config.address import Endpoint
from appliance.config.secret import FilePath
from appliance.pvdata import Value
from tests.helpers.cms import effective, plain
from tests.helpers.keepers import Home, keeping, ticking
from tests.helpers.live import HOST, client_config, number, server_config, until

OPEN = {"require_client_approval": False, "require_server_approval": False, "require_ioc_approval": False}
LATE = 60.0
"""Seconds for what takes a few: the machine may be busy."""
SOON = timedelta(seconds=3)


def keychain(path: Path) -> Any:
    return load_keychain(path.read_bytes())


@pytest.mark.timeout(240)
async def test_keychains_go_over_by_themselves_and_a_monitor_reconnects_once(tmp_path: Path) -> None:
    site = tmp_path / "cms"
    pv, updates = number(0.0), []
    async with AsyncExitStack() as ends, AsyncExitStack() as before:
        service = await before.enter_async_context(ticking(site, **OPEN))
        assert service.server is not None
        ports = {"server_port": service.server.tcp_port, "tls_port": service.server.tls_port}
        ioc, operator, left = (
            Home(service, tmp_path, usage, name)
            for usage, name in (("ioc", "ioc"), ("client", "operator"), ("client", "forgotten"))
        )
        for home in (ioc, operator, left):
            await home.make()
        old = service.authority.root
        name_server = (Endpoint(HOST, ports["server_port"]),)
        server = await ends.enter_async_context(
            open_server(
                server_config(ioc.path, "client_cert=require"),
                prepare=lambda server: server.add_pv("pv", pv),
                status_client=client_config(name_servers=name_server),
            )
        )
        context = await ends.enter_async_context(
            open_client(client_config(server, keychain=operator.path, name_servers=name_server))
        )
        context.monitor("pv", notify=True, on_update=updates.append)
        await until(lambda: value(updates) == 0.0 and context.channel("pv").peer.is_tls, LATE)
        start = len(updates)
        # The service is restarted: its clients keep what it has said.
        await before.aclose()
        new_authority(effective(site).settings, datetime.now(UTC))
        (new,) = site.glob("cert_auth-*.p12")
        root = keychain(new).certificate
        # Most go in the first tenth of this, and these as soon as they may.
        at = (datetime.now(UTC) + timedelta(seconds=600)).isoformat()
        former = FormerAuthority(keychain=FilePath(site / "cert_auth.p12"), ends=at)
        settings = {"cert_auth_tls_keychain": FilePath(new), "former_authorities": (former,), **OPEN}
        async with (
            ticking(site, server=ports, **settings) as service,
            keeping(ioc.requester, maker=ioc.names) as of_ioc,
            keeping(operator.requester, maker=operator.names),
        ):
            for home in (ioc, operator):
                await until(lambda home=home: keychain(home.path).anchors == (root,), LATE)
                found = keychain(home.path)
                assert found.issuer_id == service.names.issuer_id
                assert set(found.crossed) == set(service.authority.issuer.crossed)
            await until(lambda: server.tls is not None and server.tls.keychain.anchors == (root,), LATE)
            await until(lambda: context.tls is not None and context.tls.keychain.anchors == (root,), LATE)
            pv.post(1.0)
            await until(lambda: value(updates) == 1.0, LATE)
            assert not lost(updates[start:]), "the old certificates are good, and the keys the same"
            assert context.channel("pv").peer.is_tls
            # A program that nobody has changed, with the old keychain, still reads: it knows the new server by what that sends.
            async with open_client(
                client_config(server, keychain=left.path, name_servers=name_server)
            ) as stays:
                assert (await stays.get("pv"))["value"] == 1.0
                assert stays.channel("pv").peer.is_tls
                assert stays.channel("pv").peer.issuer_id == service.names.issuer_id
                assert keychain(left.path).anchors == (old,)
            async with plain(service) as anyone:
                assert (await anyone.get(keychain(left.path).status_pv))["renewal_due"] is True
            # Its timer asks when it looks the next time.
            await left.make(if_due=True)
            assert keychain(left.path).anchors == (root,)
            assert of_ioc.kept[0].facts.cadence is None, "and the new certificate need not be renewed"
        assert not lost(updates[start:])
        former = FormerAuthority(keychain=former.keychain, ends=(datetime.now(UTC) + SOON).isoformat())
        async with ticking(site, server=ports, **settings | {"former_authorities": (former,)}) as service:
            # The end of the old authority is the end of what both have shown: they connect anew, once.
            await until(lambda: bool(lost(updates[start:])), LATE)
            pv.post(2.0)
            await until(lambda: value(updates) == 2.0, LATE)
            assert context.channel("pv").peer.issuer_id == service.names.issuer_id
            assert len(lost(updates[start:])) == 1


def lost(updates: list[Any]) -> list[Disconnected]:
    """The connections that were lost."""
    return [item for item in updates if isinstance(item, Disconnected)]


def value(updates: list[Any]) -> float | None:
    """The last value that came."""
    found = next((item for item in reversed(updates) if isinstance(item, Value)), None)
    return None if found is None else found["value"]

"""The relay in the event loop of a test: which searches lead to it, and what becomes of requests that do not."""

from __future__ import annotations

import asyncio
import logging
import socket
from pathlib import Path
from typing import Any

import pytest

from appliance.client import Context
from appliance.cms.service import CertificateService
from appliance.errors import RemoteError, TransportError
from appliance.pva.search import SearchRequest
from appliance.tls.context import client_context
from tests.helpers.cms import admin_keychain, ccr, jwt_request, running
from tests.helpers.gateways import client_to, direct, gateway_to, server_of
from tests.helpers.ours import client_config
from tests.helpers.ports import free_port
from tests.transport.test_bounds import until

HOST = "127.0.0.1"


def to(service: CertificateService) -> dict[str, Any]:
    """A client side that finds the service."""
    assert service.server is not None
    return {"pva": {"name_servers": f"{HOST}:{service.server.tcp_port}"}}


def with_relay(**more: Any) -> dict[str, Any]:
    return {"relay": {"tls_port": free_port(), **more}}


def search(*names: str, protocols: tuple[str, ...] = ("tls", "tcp")) -> SearchRequest:
    return SearchRequest(1, tuple(enumerate(names)), protocols)


async def test_a_search_over_tls_leads_to_the_relay_and_one_over_tcp_to_the_gateway(tmp_path: Path) -> None:
    async with running(tmp_path, proxy_from=(HOST,)) as service:
        options = with_relay()
        async with gateway_to(client=to(service), **options) as gateway:
            server, relay = server_of(gateway), gateway.servers["outer"].relay
            assert relay is not None
            assert relay.port == options["relay"]["tls_port"]
            status = service.names.status(1)
            await until(lambda: bool(server.answer_search(search("CERT:CREATE"), HOST)))
            (answer,) = server.answer_search(search("CERT:CREATE", status, "CERT:LIST"), HOST)
            assert (answer.protocol, answer.port, answer.guid) == ("tls", relay.port, relay.guid)
            assert answer.guid != server.guid
            assert sorted(answer.instances) == [0, 1, 2]
            assert not server.answer_search(search("CERT:CREATE", protocols=("tcp",)), HOST)
            async with client_to(gateway) as client:
                assert (await client.get("CERT:ROOT"))["issuer"] == service.names.issuer_id
            (answer,) = server.answer_search(search("CERT:ROOT", "CERT:CREATE"), HOST)[1:]
            assert (answer.protocol, answer.port, answer.guid) == ("tcp", server.tcp_port, server.guid)


async def test_end_to_end_means_the_services_own_certificate_and_the_clients(tmp_path: Path) -> None:
    async with running(tmp_path, proxy_from=(HOST,)) as service:
        admin = admin_keychain(tmp_path)
        tls = client_context(admin, want_staple=False)
        async with (
            gateway_to(client=to(service), **with_relay()) as gateway,
            Context(
                client_config(server_of(gateway).udp_port), tls=tls, require_tls=True, beacons=False
            ) as client,
        ):
            reply = await client.rpc("CERT:CREATE", ccr("bob"), timeout=30)
            assert reply["state"] == "PENDING_APPROVAL"
            await client.put(reply["status_pv"], {"state": "APPROVED"})
            peer = client.channel(reply["status_pv"]).peer
            assert peer.account == "PVACMS Service"
            assert (await client.get(reply["status_pv"]))["state"] == "VALID"


async def test_while_there_is_no_service_nobody_answers_and_then_the_relay_does(tmp_path: Path) -> None:
    port = free_port()
    options = with_relay()
    client = {"pva": {"name_servers": f"{HOST}:{port}"}}
    async with gateway_to(client=client, **options) as gateway:
        server = server_of(gateway)
        await asyncio.sleep(0)
        assert server.answer_search(search("CERT:CREATE"), HOST) == ()
    async with running(tmp_path, proxy_from=(HOST,)) as service:
        async with gateway_to(client=to(service), **options) as gateway:
            server = server_of(gateway)
            await until(lambda: bool(server.answer_search(search("CERT:CREATE"), HOST)))


async def test_the_pv_list_hides_the_relays_names_too(tmp_path: Path) -> None:
    pvlist = tmp_path / "pvlist"
    pvlist.write_text("CERT:.* ALLOW\nCERT:CREATE.* DENY FROM 192.0.2.7\nALIAS:CREATE ALIAS CERT:CREATE\n")
    async with running(tmp_path / "cms", proxy_from=(HOST,)) as service:
        names = ["CERT:CREATE", "ALIAS:CREATE", "OTHER:CREATE"]
        options = with_relay(names=names)
        async with gateway_to(client=to(service), pvlist=str(pvlist), **options) as gateway:
            server = server_of(gateway)
            await until(lambda: bool(server.answer_search(search("CERT:CREATE"), HOST)))
            assert server.answer_search(search("CERT:CREATE"), "192.0.2.7") == ()
            assert server.answer_search(search("ALIAS:CREATE"), HOST) == (), "the service does not know it"
            assert server.answer_search(search("OTHER:CREATE"), HOST) == ()
            relay = gateway.servers["outer"].relay
            assert relay is not None
            assert relay.admits(HOST)
            assert not relay.admits("192.0.2.7"), "not at the port either"


async def test_what_would_be_the_gateways_act_is_refused_on_the_ordinary_way(tmp_path: Path) -> None:
    async with running(tmp_path, require_client_approval=False) as service:
        async with gateway_to(client=to(service)) as gateway, client_to(gateway) as client:
            anchor = await client.rpc("CERT:CREATE", ccr(pub_key=""), timeout=30)
            assert anchor["cert"]
            with pytest.raises(RemoteError, match="needs TLS from you to the certificate service itself"):
                await client.rpc("CERT:CREATE", jwt_request("a.b.c"))
            assert (await client.rpc("CERT:CREATE", ccr("eve")))["state"] == "VALID"
            with pytest.raises(RemoteError, match="this gateway has no relay for that"):
                await client.put(service.names.status(1), {"state": "REVOKED"}, server=direct(gateway))
            name = service.names.status(1)
            undecoded = f"\x16{chr(len(name))}{name}"  # as peers of 2025 read it in certificates
            with pytest.raises(RemoteError, match="needs TLS from you"):
                await client.put(undecoded, {"state": "REVOKED"}, server=direct(gateway), timeout=30)
            with pytest.raises(RemoteError, match="needs TLS from you"):
                await client.rpc("CERT:LIST", {"limit": "1"})


async def test_a_taken_port_is_an_error_and_not_another_port(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        relay = {"tls_port": taken.getsockname()[1]}
        with pytest.raises(
            TransportError, match=r"^servers\.outer\.relay\.tls_port: cannot listen on .* for the relay"
        ):
            async with gateway_to(client={"pva": {"name_servers": f"{HOST}:1"}}, relay=relay):
                pass


async def test_a_service_that_does_not_name_the_gateway_is_told_of_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with running(tmp_path) as service:
        tls = client_context(admin_keychain(tmp_path), want_staple=False)
        async with (
            gateway_to(client=to(service), **with_relay()) as gateway,
            Context(
                client_config(server_of(gateway).udp_port), tls=tls, require_tls=True, beacons=False
            ) as client,
        ):
            with pytest.raises(TimeoutError):
                await client.rpc("CERT:CREATE", ccr("bob"), timeout=1.5)
            await until(lambda: f"its proxy_from does not name {HOST}" in caplog.text)


async def test_gateways_in_a_row_pass_the_real_client_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with running(tmp_path, proxy_from=(HOST,)) as service:
        tls = client_context(admin_keychain(tmp_path), want_staple=False)
        inner_options = with_relay(proxy_from=[HOST])
        async with gateway_to(client=to(service), **inner_options) as inner:
            await until(lambda: bool(server_of(inner).answer_search(search("CERT:CREATE"), HOST)))
            between = {"pva": {"name_servers": f"{HOST}:{server_of(inner).tcp_port}"}}
            async with (
                gateway_to(client=between, **with_relay()) as outer,
                Context(
                    client_config(server_of(outer).udp_port), tls=tls, require_tls=True, beacons=False
                ) as client,
            ):
                reply = await client.rpc("CERT:CREATE", ccr("bob"), timeout=30)
                assert reply["state"] == "PENDING_APPROVAL"
                ours = client.channel("CERT:CREATE").link
                assert ours is not None
                (issued,) = [r for r in caplog.records if getattr(r, "event", "") == "certificate-issued"]
                assert issued.peer == ours.credentials.interface  # type: ignore[attr-defined]


async def test_a_service_that_has_moved_is_found_again(tmp_path: Path) -> None:
    udp = free_port()
    tls = None
    upstream = {"pva": {"addr_list": f"{HOST}:{udp}", "broadcast_port": udp}}
    async with gateway_to(client=upstream, **with_relay()) as gateway:
        relay = gateway.servers["outer"].relay
        assert relay is not None
        ports = []
        for name in ("one", "two"):
            server = {"broadcast_port": udp}
            async with running(tmp_path, proxy_from=(HOST,), server=server) as service:
                assert service.server is not None
                ports.append(service.server.tls_port)
                tls = tls or client_context(admin_keychain(tmp_path), want_staple=False)
                config = client_config(server_of(gateway).udp_port)
                async with Context(config, tls=tls, require_tls=True, beacons=False) as client:
                    reply = await client.rpc("CERT:CREATE", ccr(name), timeout=30)
                    assert reply["state"] == "PENDING_APPROVAL"
        assert ports[0] != ports[1]


async def test_of_several_nodes_that_are_named_another_one_is_used_when_one_is_gone(tmp_path: Path) -> None:
    ports = [free_port() for _ in range(2)]
    options = with_relay(service=[f"pvas://{HOST}:{port}" for port in ports])
    tls = None
    async with gateway_to(client={"pva": {"name_servers": f"{HOST}:1"}}, **options) as gateway:
        config = client_config(server_of(gateway).udp_port)
        for number, port in enumerate((*reversed(ports), ports[1])):
            async with running(tmp_path, proxy_from=(HOST,), server={"tls_port": port}):
                tls = tls or client_context(admin_keychain(tmp_path), want_staple=False)
                async with Context(config, tls=tls, require_tls=True, beacons=False) as client:
                    reply = await client.rpc("CERT:CREATE", ccr(f"client{number}"), timeout=30)
                    assert reply["state"] == "PENDING_APPROVAL"

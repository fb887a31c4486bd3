"""A client that must not use plain TCP, whoever answers its search and whatever its caller says."""

import asyncio
import socket

import pytest

from appliance.client.context import Context
from appliance.config.address import Endpoint
from appliance.errors import CertificateError, OperationTimeoutError
from appliance.server import Server
from appliance.tls.context import client_context, server_context
from tests.helpers.live import HOST, client_config, never_comes, number, server_config
from tests.helpers.pki import site

S = site()


def required(config):
    tls = client_context(S.ca.trust_only(), want_staple=False)
    return Context(config, tls=tls, require_tls=True, beacons=False)


def serving(keychain=None):
    tls = None if keychain is None else server_context(keychain, require_client_cert=False)
    server = Server(server_config(), tls=tls)
    server.add_pv("pv", number(3.5))
    return server


async def test_a_server_with_tls_is_used_over_tls():
    async with serving(S.server) as server, required(client_config(server)) as client:
        assert (await client.get("pv"))["value"] == 3.5
        assert client.channel("pv").peer.is_tls
        assert client.channel("pv").peer.account == "softioc"


async def test_a_server_without_tls_is_not_used_at_all():
    async with serving() as server, required(client_config(server)) as client:
        await never_comes(lambda: client.get("pv", timeout=0.5), "TLS, which is required")
        assert not server.peers


async def test_a_search_lists_tcp_as_well_since_pvxs_reads_no_names_without_it():
    """PVXS (all versions to 1.5, UDP search): names are taken only if ``tcp`` is among the protocols."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as port:
        port.bind((HOST, 0))
        port.setblocking(False)
        async with required(client_config(port.getsockname()[1])) as client:
            asking = asyncio.ensure_future(client.get("pv", timeout=30))
            datagram = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(port, 2048), 30)
            asking.cancel()
    assert b"\x02\x03tls\x03tcp\x01\x00" in datagram
    assert datagram.endswith(b"\x02pv")


async def test_the_callers_own_address_is_held_to_it_too():
    async with serving(S.server) as server, required(client_config()) as client:
        await never_comes(
            lambda: client.get("pv", timeout=0.5, server=(HOST, server.tcp_port, False)),
            "TLS, which is required",
        )
        assert not server.peers
        value = await client.get("pv", server=(HOST, server.tls_port, True))
        assert value["value"] == 3.5


async def test_a_plain_name_server_is_asked_but_its_answer_of_plain_tcp_is_not_taken():
    config = client_config()
    async with serving() as server:
        config = config._replace(name_servers=(Endpoint(HOST, server.tcp_port),))
        async with required(config) as client:
            with pytest.raises(OperationTimeoutError):
                await client.get("pv", timeout=0.5)
            assert server.peers, "it was asked"
            assert not list(server.channels())
    async with serving(S.server) as server:
        config = config._replace(name_servers=(Endpoint(HOST, server.tcp_port),))
        async with required(config) as client:
            assert (await client.get("pv"))["value"] == 3.5
            assert client.channel("pv").peer.is_tls


async def test_a_name_server_with_a_tls_of_its_own_is_asked_and_gets_no_channel():
    """The client's own TLS accepts one service only; the name server may be another."""

    def nobody(staple, chain):
        raise CertificateError("it is not the service")

    strict = client_context(S.ca.trust_only(), want_staple=True, check_staple=nobody)
    search = client_context(S.ca.trust_only(), want_staple=False)
    async with serving(S.server) as server:
        config = client_config()._replace(name_servers=(Endpoint(HOST, server.tls_port, tls=True),))
        async with Context(config, tls=strict, require_tls=True, beacons=False, search_tls=search) as client:
            with pytest.raises(OperationTimeoutError):
                await client.get("pv", timeout=1.0)
            assert server.peers, "it was asked"
            assert not list(server.channels())
        async with Context(config, tls=search, require_tls=True, beacons=False, search_tls=search) as client:
            assert (await client.get("pv"))["value"] == 3.5

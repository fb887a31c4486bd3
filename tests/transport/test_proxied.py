"""A server behind a relay: it sees the client where a named relay says who that is, and believes nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from appliance.config.networks import Networks
from appliance.server import Server
from appliance.server.admission import AdmissionTimings
from appliance.server.quota import Quota
from appliance.tls.context import server_context
from appliance.transport.address import SocketAddress
from appliance.transport.proxied import ProxiedAccept
from appliance.transport.proxy_header import SIGNATURE, pack
from tests.helpers.live import HOST, number, server_config
from tests.helpers.pki import site
from tests.helpers.raw import ANONYMOUS
from tests.transport.test_bounds import until

S = site()
RELAY = "127.0.0.9"
CLIENT = SocketAddress("192.0.2.7", 40000)
TO = SocketAddress("192.0.2.1", 5077)


@contextlib.asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[Server]:
    options.setdefault("proxied", Networks([RELAY]).__contains__)
    server = Server(server_config(), tls=server_context(S.server, require_client_cert=False), **options)
    server.add_pv("pv", number(3.5))
    async with server:
        yield server


async def tcp(server: Server, source: str = RELAY) -> socket.socket:
    sock = socket.socket()
    sock.setblocking(False)
    sock.bind((source, 0))
    await asyncio.get_running_loop().sock_connect(sock, (HOST, server.tls_port))
    return sock


async def begin_tls(sock: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return await asyncio.open_connection(sock=sock, ssl=context, server_hostname="")


async def ended(sock: socket.socket) -> None:
    """Wait until the server has closed the connection."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(ConnectionError):
        while await asyncio.wait_for(loop.sock_recv(sock, 4096), 30):
            pass
    sock.close()


async def test_a_named_relay_says_who_the_client_is() -> None:
    # The relay is on this host, so it may speak for it too; the client's address is one that is only told.
    async with serving() as server:
        sock = await tcp(server)
        here = sock.getsockname()
        octets = pack(CLIENT, TO)
        for part in (octets[:1], octets[1:15], octets[15:]):
            await asyncio.get_running_loop().sock_sendall(sock, part)
            await asyncio.sleep(0)
        _, writer = await begin_tls(sock)
        writer.write(ANONYMOUS)
        await until(lambda: any(peer.validated for peer in server.peers.values()))
        (peer,) = server.peers.values()
        assert peer.credentials.peer == "192.0.2.7:40000"
        assert peer.stream.peer_address == CLIENT
        assert peer.credentials.facts()["via"] == f"{RELAY}:{here[1]}"
        writer.close()
        await until(lambda: not server.peers)
        assert not len(server.shares)


async def test_header_and_first_flight_of_tls_may_come_together() -> None:
    async with serving() as server:
        sock = await tcp(server)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        engine = context.wrap_bio(incoming, outgoing)
        with contextlib.suppress(ssl.SSLWantReadError):
            engine.do_handshake()
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(sock, pack(CLIENT, TO) + outgoing.read())
        incoming.write(await asyncio.wait_for(loop.sock_recv(sock, 65536), 30))
        engine.do_handshake()
        await loop.sock_sendall(sock, outgoing.read())
        await until(lambda: any(peer.stream.is_up for peer in server.peers.values()))
        sock.close()


async def test_a_named_hosts_own_connections_have_no_header() -> None:
    async with serving() as server:
        sock = await tcp(server)
        here = sock.getsockname()
        _, writer = await begin_tls(sock)
        await until(lambda: any(peer.stream.is_up for peer in server.peers.values()))
        (peer,) = server.peers.values()
        assert peer.credentials.peer == f"{RELAY}:{here[1]}"
        assert "via" not in peer.credentials.facts()
        writer.close()


async def test_local_means_the_relay_itself() -> None:
    async with serving() as server:
        sock = await tcp(server)
        here = sock.getsockname()
        await asyncio.get_running_loop().sock_sendall(sock, pack(None, None))
        _, writer = await begin_tls(sock)
        await until(lambda: any(peer.stream.is_up for peer in server.peers.values()))
        (peer,) = server.peers.values()
        assert peer.credentials.peer == f"{RELAY}:{here[1]}"
        writer.close()


@pytest.mark.parametrize("proxied", [Networks([RELAY]).__contains__, None])
async def test_a_header_from_a_stranger_ends_the_connection_with_a_sentence(
    proxied: Callable[[str], bool] | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with serving(proxied=proxied) as server:
        sock = await tcp(server, "127.0.0.8")
        await asyncio.get_running_loop().sock_sendall(sock, pack(CLIENT, TO))
        await ended(sock)
    assert "its address is not one that may send it" in caplog.text
    assert "proxy_from" in caplog.text
    assert "192.0.2.7" not in caplog.text


MALFORMED = {
    "version 3": (SIGNATURE + b"\x31", "names a version of the PROXY protocol that is not known"),
    "not TLS either": (b"\r\n\r\nGET / HTTP", "does not begin with the signature"),
    "no address": (pack(CLIENT, TO)[:16] + bytes(12), "cannot be the address of a client"),
}


@pytest.mark.parametrize("what", MALFORMED)
async def test_a_malformed_header_ends_the_connection_with_a_sentence(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    octets, why = MALFORMED[what]
    async with serving() as server:
        sock = await tcp(server)
        await asyncio.get_running_loop().sock_sendall(sock, octets)
        await ended(sock)
        assert not server.peers
    assert f"a connection from {RELAY}:" in caplog.text
    assert why in caplog.text


async def test_half_a_header_or_nothing_at_all_has_its_time(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(timings=AdmissionTimings(handshake_s=0.2)) as server:
        silent, half = await tcp(server), await tcp(server)
        await asyncio.get_running_loop().sock_sendall(half, pack(CLIENT, TO)[:20])
        await asyncio.gather(ended(silent), ended(half))
        assert not server._relayed
    assert caplog.text.count("neither a PROXY header nor TLS in 0 s") == 2


async def test_a_relay_that_leaves_in_the_middle_is_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as server:
        sock = await tcp(server)
        await asyncio.get_running_loop().sock_sendall(sock, pack(CLIENT, TO)[:20])
        await until(lambda: bool(server._relayed))
        sock.close()
        await until(lambda: not server._relayed)
    assert "has gone in the middle of a PROXY header" in caplog.text


async def test_what_waits_for_its_header_ends_with_the_server() -> None:
    async with serving() as server:
        sock = await tcp(server)
        await until(lambda: bool(server._relayed))
    await ended(sock)


async def test_quotas_and_deadlines_count_the_client_and_not_the_relay(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    timings = AdmissionTimings(handshake_s=0.3)
    async with serving(quota=Quota(connections=2), timings=timings) as server:
        loop = asyncio.get_running_loop()
        held = []
        for host in ("192.0.2.7", "192.0.2.7", "192.0.2.7", "192.0.2.8"):
            sock = await tcp(server)
            await loop.sock_sendall(sock, pack(SocketAddress(host, 40000), TO) + b"\x16")
            held.append(sock)
        await asyncio.gather(*map(ended, held))
    assert caplog.text.count("further connections from 192.0.2.7 are refused: this address has 2") == 1
    assert "further connections from 192.0.2.8" not in caplog.text
    assert f"further connections from {RELAY}" not in caplog.text
    assert "192.0.2.7:40000 did not validate its connection" in caplog.text
    assert "192.0.2.8:40000 did not validate its connection" in caplog.text


async def test_plain_tcp_knows_no_header() -> None:
    async with serving() as server:
        sock = socket.socket()
        sock.setblocking(False)
        sock.bind((RELAY, 0))
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, (HOST, server.tcp_port))
        await loop.sock_sendall(sock, pack(CLIENT, TO))
        await ended(sock)


class Arrival(asyncio.Transport):
    """A connection that has just come, from an address of another host."""

    def __init__(self, host: str) -> None:
        super().__init__({"peername": (host, 50000)})
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True


@pytest.mark.parametrize("client", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
async def test_a_relay_on_another_host_cannot_stand_for_this_one(
    client: str, caplog: pytest.LogCaptureFixture
) -> None:
    accept = ProxiedAccept(lambda: pytest.fail("begun"), lambda host: True, 5.0, set())
    arrival = Arrival("192.0.2.1")
    accept.connection_made(arrival)
    accept.data_received(pack(SocketAddress(client, 1), TO))
    assert arrival.aborted
    assert "is an address of this host, and the relay is on another one" in caplog.text

"""What other implementations do that the specification does not say, seen through real sockets."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import time
from pathlib import Path

import pytest

from appliance.client import Context
from appliance.client.end import ServerAddress
from appliance.errors import OperationTimeoutError
from appliance.pva.search import SearchResponse
from appliance.pvdata import FLOAT64, INT64, STRING, StructType, Value
from appliance.pvdata.nt import NTScalar
from appliance.server import SharedPV
from appliance.server.admission import AdmissionTimings
from appliance.server.peer import Peer
from appliance.server.roles import Roles
from appliance.tls.context import client_context, server_context
from tests.helpers.live import until
from tests.helpers.ours import client_config, client_of, double, served, server_config
from tests.helpers.pki import site, write_pem
from tests.transport.test_roles_lookup import Directory


def frame(command: int, body: bytes) -> bytes:
    return struct.pack("<BBBBI", 0xCA, 2, 0, command, len(body)) + body


CHOICE = frame(
    1, struct.pack("<IHH", 65536, 32767, 0) + b"\x02ca\x80\x00\x02\x04user\x60\x04host\x60\x03joe\x03box"
)
CREATED = b"\xff"


def create(number: int) -> bytes:
    return frame(7, struct.pack("<HI", 1, number) + b"\x02pv")


async def test_channels_asked_for_before_the_verdict_are_created_after_it_however_many() -> None:
    """PVXS 1.5 with certificate status does not wait for the verdict; what waits is bounded by not being read."""
    directory = Directory("operators")
    count = 50_000
    async with served({"pv": double(1.0)}) as server, asyncio.timeout(60):
        server.entrance.roles = Roles(directory)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.tcp_port)
        writer.write(CHOICE + b"".join(create(number) for number in range(count)))
        (peer,) = server.peers.values()
        await until(lambda: peer.connection.held)
        assert peer.stream.heard < 1 << 19
        assert len(peer.connection._rx or b"") < 1 << 19
        assert not peer.validated
        assert not peer.connection.pending
        directory.answers.set()
        created = 0
        while created < count:
            head = await reader.readexactly(8)
            body = b"" if head[2] & 1 else await reader.readexactly(struct.unpack_from("<I", head, 4)[0])
            if head[3] == 7:
                assert body[8:] == CREATED
                created += 1
        assert peer.validated
        writer.close()


async def test_a_client_that_leaves_before_the_verdict_is_forgotten() -> None:
    directory = Directory()
    async with (
        served({"pv": double(1.0)}, timings=AdmissionTimings(roles_s=0.2)) as server,
        asyncio.timeout(30),
    ):
        server.entrance.roles = Roles(directory)
        _, writer = await asyncio.open_connection("127.0.0.1", server.tcp_port)
        writer.write(CHOICE + create(1))
        (peer,) = server.peers.values()
        await until(lambda: peer.connection.held)
        writer.transport.abort()
        await until(lambda: not server.peers)
        directory.answers.set()


async def test_a_name_server_that_answers_with_port_zero_means_its_own_connection() -> None:
    """Phoebus' server does, and PVXS reads it so."""
    async with served({"pv": double(4.0)}) as server:
        server.choose_protocol = lambda offered: ("tcp", 0)  # type: ignore[method-assign]
        config = client_config(name_servers=f"127.0.0.1:{server.tcp_port}")
        async with Context(config, beacons=False) as client:
            assert (await client.get("pv", timeout=30))["value"] == 4.0
            assert len(server.peers) == 1


async def test_a_datagram_with_port_zero_leads_nowhere() -> None:
    async with served({"pv": double(4.0)}) as server:
        server.choose_protocol = lambda offered: ("tcp", 0)  # type: ignore[method-assign]
        async with client_of(server) as client:
            with pytest.raises(OperationTimeoutError, match="no server answered"):
                await client.get("pv", timeout=0.3)


async def test_port_zero_over_a_plain_connection_is_never_taken_for_tls() -> None:
    tls = client_context(site().client, want_staple=False)
    config = client_config(name_servers="127.0.0.1:1")
    async with Context(config, beacons=False, tls=tls, require_tls=True) as client:
        asking = asyncio.ensure_future(client.get("pv", timeout=0.3))
        await asyncio.sleep(0)
        (channel,) = client._links.channels
        answer = SearchResponse(bytes(12), 1, None, 0, "tls", True, (channel.instance,))
        client._links.searcher.answered(answer, "127.0.0.1", server=ServerAddress("127.0.0.1", 1, tls=False))
        with pytest.raises(OperationTimeoutError, match="does not speak TLS"):
            await asking


async def test_a_server_that_never_creates_the_channel_is_named_as_the_cause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Phoebus' server does not answer CREATE_CHANNEL for a name that it does not know."""
    monkeypatch.setattr(Peer, "open_channel", lambda peer, wire: None)
    async with served({"pv": double(4.0)}) as server:
        async with client_of(server) as client:
            with pytest.raises(
                OperationTimeoutError, match="never answered the request to create the channel"
            ):
                await client.get("pv", timeout=3.0)


async def test_an_expired_client_reads_why_it_is_refused_though_it_is_still_writing(tmp_path: Path) -> None:
    """Phoebus writes certificate and Finished apart: a reset in between would hide the alert from it."""
    certificate, key, _ = write_pem(tmp_path, site().ca.expired())
    tls = server_context(site().server, require_client_cert=False)
    async with served({"pv": double(4.0)}, tls=tls) as server, asyncio.timeout(30):
        outgoing, incoming = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.load_cert_chain(certificate, key)
        engine = context.wrap_bio(incoming, outgoing)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.tls_port)
        with pytest.raises(ssl.SSLWantReadError):
            engine.do_handshake()
        writer.write(outgoing.read())
        while True:
            incoming.write(await reader.read(65536))
            try:
                engine.do_handshake()
                break
            except ssl.SSLWantReadError:
                continue
        flight = outgoing.read()
        (link,) = server.peers
        writer.write(flight[:-20])
        await until(lambda: link.is_closing)
        writer.write(flight[-20:])
        for _ in range(3):  # a peer that has not read the alert yet goes on writing
            writer.write(b"\x17\x03\x03\x00\x01x")
            await writer.drain()
            await asyncio.sleep(0)
        incoming.write(await reader.read(65536))
        with pytest.raises(ssl.SSLError, match=r"(?i)certificate.expired"):
            engine.read(1)
        assert await reader.read() == b""
        assert link in server.peers
        writer.close()
        await until(lambda: not server.peers)


@pytest.mark.parametrize("how", ["silent", "talkative"])
async def test_a_refused_peer_that_does_not_end_is_cut_off(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.transport.lingering.LINGER_S", 0.2 if how == "silent" else 60.0)
    tls = server_context(site().server, require_client_cert=False)
    async with served({"pv": double(4.0)}, tls=tls) as server, asyncio.timeout(30):
        sock = socket.create_connection(("127.0.0.1", server.tls_port))
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(sock, b"this is no TLS record at all")
        await until(lambda: any(link.is_closing for link in server.peers))
        if how == "talkative":
            with pytest.raises(ConnectionError):
                while True:
                    await loop.sock_sendall(sock, bytes(4096))
                    await asyncio.sleep(0.001)
        await until(lambda: not server.peers)
        sock.close()


async def test_a_beacon_that_tells_of_a_change_has_the_server_asked_for_tls() -> None:
    """Beacons name no transport but "tcp"."""
    pki = site()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as port:
        port.bind(("127.0.0.1", 0))
        udp = port.getsockname()[1]
    config = server_config(udp, beacon_addr_list="127.255.255.255", beacon_period=0.1)
    client = Context(client_config(udp), tls=client_context(pki.client, want_staple=False))
    async with served({"pv": double(4.0)}, config=config) as server, client, asyncio.timeout(30):
        async with client.monitor("pv") as updates:
            await anext(updates)
            assert not client.channel("pv").peer.is_tls  # type: ignore[union-attr]
            await server.set_tls(server_context(pki.server, require_client_cert=False))
            await until(lambda: client.channel("pv").peer is not None and client.channel("pv").peer.is_tls)


async def test_a_mailbox_has_the_time_of_the_put_where_the_client_sets_none() -> None:
    """As PVXS' mailbox; a struct or a clock of another shape is left alone."""
    odd = StructType((("value", FLOAT64), ("timeStamp", STRING)))
    bare = StructType((("value", FLOAT64), ("timeStamp", StructType((("secondsPastEpoch", INT64),)))))
    pvs = {"pv": double(1.0), "odd": SharedPV.mailbox(odd), "bare": SharedPV.mailbox(bare)}
    async with served(pvs) as server, client_of(server) as client:
        before = time.time()
        await client.put("pv", 2.5)
        stamp = (await client.get("pv"))["timeStamp"]
        seconds = stamp["secondsPastEpoch"] + stamp["nanoseconds"] * 1e-9
        assert before - 0.001 <= seconds <= time.time() + 0.001
        await client.put("pv", {"value": 3.0, "timeStamp": {"secondsPastEpoch": 7}})
        stamp = (await client.get("pv"))["timeStamp"]
        assert stamp["secondsPastEpoch"] == 7
        async with client.monitor("pv") as updates:
            await anext(updates)
            await client.put("pv", 4.0)
            assert (await anext(updates))["timeStamp.secondsPastEpoch"] >= int(before)
        for name in ("odd", "bare"):
            await client.put(name, 5.0)
            assert (await client.get(name))["value"] == 5.0
        assert (await client.get("bare"))["timeStamp.secondsPastEpoch"] >= int(before)


async def test_a_pv_that_nobody_watches_any_more_is_told_so() -> None:
    told: list[str] = []
    pv = SharedPV(
        Value(NTScalar(FLOAT64), {"value": 1.0}),
        on_first=lambda pv: told.append("first"),
        on_last=lambda pv: told.append("last"),
    )
    async with served({"pv": pv}) as server, client_of(server) as client, asyncio.timeout(30):
        for count in (1, 2):
            async with client.monitor("pv") as updates:
                await anext(updates)
            await until(lambda count=count: told == ["first", "last"] * count)

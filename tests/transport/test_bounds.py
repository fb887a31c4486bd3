"""Whatever a peer sends, others go on: bounds in time, in number and in memory."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable

import pytest

from appliance.pva import commands as c
from appliance.pva.search import SearchRequest, SearchResponse, decode_datagram, pack_message
from appliance.pvdata.fielddesc import TypeReader
from appliance.pvdata.nt import NTScalar
from appliance.pvdata.pace import MAX_VALUES
from appliance.pvdata.types import FLOAT64
from appliance.pvdata.value import Value
from appliance.server import Operation, SharedPV, WildcardSource
from tests.helpers.ours import client_of, double, served
from tests.helpers.turns import GIVES_WAY, Hostile, frame, longest_turn

ALL_TURN = 2 * GIVES_WAY
"""Lines of a turn of the loop in which one connection's messages are parsed and others' requests are answered."""
WIDTH = 60_000
"""Fields of a wide type."""
LARGE = 32_000_000
"""Octets of a large array."""
PIECE = 1 << 20
"""Octets that are copied between two chances to pause."""


def u32(number: int) -> bytes:
    return struct.pack("<I", number)


def size(number: int) -> bytes:
    return bytes((number,)) if number < 254 else b"\xfe" + u32(number)


def in_value(kind: bytes, value: bytes) -> bytes:
    """A structure with one field ``value``."""
    return b"\x80\0\x01\x05value" + kind + value


def names(count: int, prefix: str = "") -> list[bytes]:
    made = [f"{prefix}{number:x}".encode() for number in range(count)]
    return [bytes((len(name),)) + name for name in made]


def wide(count: int, prefix: str = "f") -> bytes:
    """The description of a structure of so many octets."""
    return b"\x80\0" + size(count) + b"".join(name + b"\x20" for name in names(count, prefix))


NESTED = b"\x82" * 30 + b"\x43" + bytes(8)

ARGUMENTS: dict[str, Callable[[], bytes]] = {
    "any[] of bounded strings": lambda: in_value(b"\x8a", size(20_000) + b"\x01\x83\x05\x00" * 20_000),
    "any[] of ever new types": lambda: in_value(
        b"\x8a",
        size(5_000) + b"".join(b"\x01\x80\0\x01" + name + b"\x20\x07" for name in names(5_000, "n")),
    ),
    "any[] of empty any[]": lambda: in_value(b"\x8a", size(20_000) + b"\x01\x8a\x00" * 20_000),
    "any in any": lambda: in_value(b"\x8a", size(2_000) + (b"\x01" + NESTED) * 2_000),
    "null elements": lambda: in_value(b"\x8a", size(100_000) + bytes(100_000)),
    "structures": lambda: in_value(
        b"\x88\x80\0\x03\x01a\x20\x01b\x60\x01c\x08", size(20_000) + b"\x01\x07\x01x\x00" * 20_000
    ),
    "unions": lambda: in_value(b"\x89\x81\0\x02\x01a\x20\x01b\x60", size(20_000) + b"\x01\x01\x01x" * 20_000),
    "strings": lambda: in_value(b"\x68", size(100_000) + b"\x01x" * 100_000),
    "a wide type": lambda: wide(WIDTH) + bytes(WIDTH),
    "a wide type inside any": lambda: in_value(b"\x82", wide(WIDTH) + bytes(WIDTH)),
    "numbers the other way round": lambda: in_value(
        b"\x4b", b"\xfe" + struct.pack(">I", LARGE // 8) + bytes(LARGE)
    ),
    "truths": lambda: in_value(b"\x08", size(LARGE) + bytes(LARGE)),
}

STORED_AT_ONCE = {"a wide type": WIDTH, "a wide type inside any": WIDTH}
"""Fields whose values are stored in one go, so that nobody sees a half of them: two short lines for each."""
BIG = {"numbers the other way round"}
"""Messages whose numbers must be turned round."""
COPIED = {*BIG, "truths"}


def answering() -> SharedPV:
    def answer(pv: SharedPV, operation: Operation, argument: Value | None) -> Value:
        return Value(NTScalar(FLOAT64), {"value": 1.5})

    return SharedPV(on_rpc=answer)


@pytest.mark.parametrize("what", ARGUMENTS)
async def test_parsing_gives_the_loop_back_whatever_a_message_holds(what: str) -> None:
    argument = ARGUMENTS[what]()
    async with served({"call": answering(), "pv": double()}) as server:
        hostile = await asyncio.to_thread(Hostile, server.tcp_port, "call")
        await asyncio.to_thread(hostile.rpc_init)
        with longest_turn() as longest:
            sending = asyncio.create_task(asyncio.to_thread(hostile.call, argument, big=what in BIG))
            reply = await asyncio.to_thread(hostile.wait_for, 20)
            await sending
        assert reply[5] == 0xFF, reply
        assert longest.longest < GIVES_WAY + 2 * STORED_AT_ONCE.get(what, 0)
        if what in COPIED:
            assert longest.breathes >= LARGE // PIECE
        hostile.close()


async def test_a_message_with_too_many_values_ends_the_connection_and_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    count = MAX_VALUES + 100
    argument = in_value(b"\x8a", size(count) + bytes(count))
    caplog.set_level("INFO")
    async with served({"call": answering()}) as server:
        hostile = await asyncio.to_thread(Hostile, server.tcp_port, "call")
        await asyncio.to_thread(hostile.rpc_init)
        await asyncio.to_thread(hostile.call, argument)
        with pytest.raises((EOFError, ConnectionError)):
            await asyncio.to_thread(hostile.wait_for, 20)
        await until(lambda: not server.peers)
    assert f"a message holds more than {MAX_VALUES} values" in caplog.text


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(0.01)


def open_many(hostile: Hostile, count: int, prefix: str = "w:") -> None:
    """Ask for all channels, in two messages that hold half of the names each, and read the answers."""
    items = [u32(cid) + name for cid, name in enumerate(names(count, prefix), 1)]
    half = count // 2
    for part in (items[:half], items[half:]):
        hostile.sock.sendall(frame(7, struct.pack("<H", len(part)) + b"".join(part)))
    hostile.wait_for(7, count)


def many() -> WildcardSource:
    one = double()
    return WildcardSource("w:*", lambda *_: one)


async def test_others_are_served_while_one_opens_and_loses_20_000_channels() -> None:
    async with served({"pv": double()}) as server:
        server.add_source("many", many())
        hostile = await asyncio.to_thread(Hostile, server.tcp_port)
        async with client_of(server) as ctx:
            await ctx.get("pv")
            with longest_turn() as opened:
                opening = asyncio.create_task(asyncio.to_thread(open_many, hostile, 20_000))
                answered = 0
                while not opening.done():
                    await ctx.get("pv")
                    answered += 1
                await opening
            # The opening takes a thousand turns and a GET takes four: several fit into it on any machine.
            assert answered > 5
            assert opened.longest < ALL_TURN
            assert sum(1 for _ in server.channels()) == 20_001
            with longest_turn() as closed:
                hostile.close()
                while len(server.peers) > 1:
                    await ctx.get("pv")
            assert closed.longest < ALL_TURN
            assert sum(1 for _ in server.channels()) == 1


async def test_one_connection_after_the_other_searches_for_60_000_names() -> None:
    asked = [u32(number) + name for number, name in enumerate(names(60_000, "absent"))]
    search = frame(
        3,
        u32(1)
        + bytes(4)
        + bytes(16)
        + bytes(2)
        + b"\x01\x03tcp"
        + struct.pack("<H", 60_000)
        + b"".join(asked),
    )
    async with served({"pv": double()}) as server:
        hostile = await asyncio.to_thread(Hostile, server.tcp_port)
        with longest_turn() as longest:
            await asyncio.to_thread(hostile.sock.sendall, search)
            await asyncio.to_thread(hostile.sock.sendall, frame(2, b"echo"))
            await asyncio.to_thread(hostile.wait_for, 2)
        assert longest.longest < ALL_TURN
        hostile.close()


async def test_what_is_closed_with_the_server_is_closed_when_stop_returns() -> None:
    closed = []

    class Counting(SharedPV):
        def detached(self, channel: object) -> None:
            closed.append(channel)

    one = Counting(Value(NTScalar(FLOAT64), {"value": 0.0}))
    async with served({}) as server:
        server.add_source("many", WildcardSource("w:*", lambda *_: one))
        hostile = await asyncio.to_thread(Hostile, server.tcp_port)
        await asyncio.to_thread(open_many, hostile, 20_000)
    assert len(closed) == 20_000
    hostile.close()


async def test_the_types_that_a_peer_defines_are_bounded_by_their_memory(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    before = TypeReader.held
    async with served({"call": answering()}) as server:
        hostile = await asyncio.to_thread(Hostile, server.tcp_port, "call")
        await asyncio.to_thread(hostile.rpc_init)
        with pytest.raises((EOFError, ConnectionError)):
            for number in range(4):
                kind = b"\xfd" + struct.pack("<H", number) + wide(60_000, f"t{number}")
                await asyncio.to_thread(hostile.call, kind + bytes(60_000))
                await asyncio.to_thread(hostile.wait_for, 20)
                assert TypeReader.held > before
        await until(lambda: not server.peers)
        assert TypeReader.held == before
        hostile.close()
    assert "the types that the peer defines take more than" in caplog.text


async def test_small_types_that_all_peers_define_are_bounded_together(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "appliance.pvdata.primitives.DecodeLimits.ALL_CACHED_OCTETS", TypeReader.held + 100_000
    )
    caplog.set_level("INFO")
    async with served({"call": answering()}) as server:
        told = []
        clients = []
        for client in range(8):
            hostile = await asyncio.to_thread(Hostile, server.tcp_port, "call")
            clients.append(hostile)
            await asyncio.to_thread(hostile.rpc_init)
            await asyncio.to_thread(hostile.call, b"\xfd\0\0" + wide(100, f"c{client}") + bytes(100))
            try:
                await asyncio.to_thread(hostile.wait_for, 20)
            except (EOFError, ConnectionError):
                told.append(client)
                break
        assert told
        for hostile in clients:
            hostile.close()
    assert "the types that all peers define take more than" in caplog.text


DATAGRAM = 65_000
RATE = 3_000_000


def datagram(what: str) -> bytes:
    if what == "many names":
        asked = [u32(number) + name for number, name in enumerate(names(6_500, "x"))]
        body = (
            u32(1)
            + bytes(4)
            + bytes(16)
            + struct.pack("<H", 9)
            + b"\x01\x03tcp"
            + struct.pack("<H", len(asked))
        )
        return frame(3, body + b"".join(asked))
    one = frame(3, u32(1) + b"\x01" + bytes(3) + bytes(16) + struct.pack("<H", 9) + b"\x01\x03tcp" + bytes(2))
    return one * (DATAGRAM // len(one))


@pytest.mark.parametrize("what", ["many names", "many messages"])
async def test_the_bound_per_turn_holds_whatever_a_datagram_holds(what: str) -> None:
    data = datagram(what)
    assert 40_000 < len(data) < 65_507
    ended = threading.Event()

    def flood(port: int) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            while not ended.wait(len(data) / RATE):
                sock.sendto(data, ("127.255.255.255", port))

    async with served({"pv": double()}) as server, client_of(server) as ctx:
        await ctx.get("pv")
        with longest_turn() as longest:
            flooding = asyncio.create_task(asyncio.to_thread(flood, server.udp_port))
            for _ in range(50):
                await ctx.get("pv")
                await asyncio.sleep(0.01)
            ended.set()
            await flooding
        assert longest.longest < GIVES_WAY


async def test_a_name_in_a_long_datagram_is_found() -> None:
    asked = [(number, f"absent:{number}") for number in range(3000)]
    request = SearchRequest(7, (*asked, (4711, "pv")), ("tcp",))
    loop = asyncio.get_running_loop()
    async with served({"pv": double()}) as server:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sock.bind(("127.0.0.1", 0))
            told = request._replace(reply_port=sock.getsockname()[1])
            sock.sendto(
                pack_message(c.CMD_SEARCH, told.encode(), from_server=False),
                ("127.255.255.255", server.udp_port),
            )
            async with asyncio.timeout(30):
                (answer,) = decode_datagram(await loop.sock_recv(sock, 65536))
        assert isinstance(answer, SearchResponse)
        assert answer.instances == (4711,)

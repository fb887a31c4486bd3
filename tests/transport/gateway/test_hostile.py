"""A server that sends nonsense costs its own PVs their connection; a client that does costs itself its own. Others go on."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable

import pytest

from appliance.client import Context
from appliance.client.monitor import Disconnected
from appliance.pva.commands import CMD_GET, CMD_MONITOR, CMD_PUT
from appliance.pva.selection import encode_update
from appliance.pvdata.nt import NTScalar
from appliance.pvdata.types import STRING
from appliance.pvdata.value import Value
from appliance.server import Handler, Operation, Subscription
from appliance.server.operation import Update
from tests.helpers.gateways import client_to, gateway_to, server_of
from tests.helpers.ours import double, served
from tests.helpers.raw import RawClient, message, text

KIND = NTScalar(STRING)
VALUE = 1 << KIND.offsets["value"]


def from_server(command: int, body: bytes, size: int | None = None) -> bytes:
    return struct.pack("<BBBBI", 0xCA, 2, 0x40, command, len(body) if size is None else size) + body


def update(ioid: int, body: bytes) -> bytes:
    return from_server(CMD_MONITOR, struct.pack("<IB", ioid, 0) + body)


GOOD = encode_update(KIND, VALUE, 0, [None, "abc", *[None] * 20], big=False)

NONSENSE: dict[str, Callable[[int], bytes]] = {
    "cut": lambda ioid: update(ioid, GOOD[:-3]),
    "empty": lambda ioid: update(ioid, b""),
    "a text longer than its message": lambda ioid: update(ioid, b"\x01\x02\xfe\xff\xff\xff\x7fabc\x00"),
    "a field that the type has not": lambda ioid: update(ioid, b"\x08" + b"\xff" * 8 + b"\x00"),
    "a bit set without end": lambda ioid: update(ioid, b"\xfe\xff\xff\xff\x7f"),
    "something behind the update": lambda ioid: update(ioid, GOOD + b"more"),
    "no magic": lambda ioid: b"GET / HTTP/1.1\r\n\r\n",
    "a message of 2 GB": lambda ioid: from_server(CMD_MONITOR, b"x" * 4096, size=(1 << 31) - 1),
    "a type without end": lambda ioid: from_server(
        CMD_GET, struct.pack("<IB", ioid, 8) + b"\xff" + b"\x80\x00\x01\x01a" * 2000
    ),
    "a channel of its own": lambda ioid: from_server(7, struct.pack("<II", 99, 99) + b"\xff"),
    "the end of an operation": lambda ioid: update(ioid, b"")[:-1] + b"\x10\xff",
}


HARMLESS = {"something behind the update", "a channel of its own", "the end of an operation"}
"""What a client reads over, or what a server may say."""


class Sender(Handler):
    """Serves a text, and sends what it is told to."""

    def __init__(self) -> None:
        self.subscriptions: list[Subscription] = []
        self.puts = 0

    def subscribe(self, subscription: Subscription) -> None:
        subscription.ready(KIND)
        self.subscriptions.append(subscription)
        subscription.post(Update(KIND, Value(KIND, {"value": "good"}).store, KIND.leaf_mask))

    def init(self, operation: Operation) -> None:
        operation.ready(KIND)

    def get(self, operation: Operation) -> None:
        operation.reply(Value(KIND, {"value": "good"}))

    def put(self, operation: Operation, value: Value) -> None:
        del value
        self.puts += 1
        operation.done()

    def send(self, data: bytes) -> None:
        subscription = self.subscriptions[-1]
        outbox = subscription.wire.outbox
        outbox.chunks.append(data)
        outbox.size += len(data)
        subscription.channel.stream.flush()


@pytest.mark.parametrize("what", NONSENSE)
async def test_nonsense_of_one_server_ends_its_channels_and_nothing_else(what: str):
    sender = Sender()
    number = double(1.0)
    async with (
        served({"bad": sender}) as hostile,
        served({"good": number}) as server,
        gateway_to(hostile, server) as gateway,
        client_to(gateway) as client,
    ):
        async with (
            client.monitor("bad", notify=True) as bad,
            client.monitor("good", notify=True) as good,
            asyncio.timeout(30),
        ):
            while not isinstance(await anext(bad), Value):
                pass
            while not isinstance(await anext(good), Value):
                pass
            peers = set(server_of(gateway).peers)
            sender.send(NONSENSE[what](sender.subscriptions[-1].wire.ioid))
            served_before = len(sender.subscriptions)
            ended = what not in HARMLESS
            if ended:
                while not isinstance(await anext(bad), Disconnected):
                    pass
                # The PV is found again, as after any loss of a server.
                while not isinstance(await anext(bad), Value):
                    pass
                assert len(sender.subscriptions) > served_before
            for step in range(5):
                number.post(float(step + 10))
                event = await anext(good)
                assert isinstance(event, Value)  # never a Disconnected
                assert event["value"] == step + 10
            assert set(server_of(gateway).peers) == peers


async def test_a_malformed_put_ends_its_clients_connection_and_reaches_no_server():
    sender = Sender()
    async with (
        served({"bad": sender, "good": double(1.0)}) as server,
        gateway_to(server) as gateway,
        client_to(gateway) as client,
        await RawClient.connect(server_of(gateway).tcp_port) as raw,
    ):
        await client.get("good", timeout=30)
        sid = await raw.channel("bad")
        await raw.send(
            message(CMD_PUT, struct.pack("<IIB", sid, 7, 8) + b"\x80\x00\x01\x05field\x80\x00\x00")
        )
        while (await raw.message())[0] != CMD_PUT:
            pass
        await raw.send(message(CMD_PUT, struct.pack("<IIB", sid, 7, 0) + b"\x01\x02\xfe\xff\xff\xff\x7fabc"))
        while await raw.read_some(4096):
            pass
        assert sender.puts == 0
        assert (await client.get("good"))["value"] == 1.0
        await client.put("bad", {"value": "x"})
        assert sender.puts == 1


async def test_channels_of_names_that_no_server_has_are_forgotten_with_their_client():
    async with (
        served({"good": double(1.0)}) as server,
        gateway_to(server, bounds={"names": 1000, "idle_name_s": 0.2}) as gateway,
        client_to(gateway) as client,
    ):
        await client.get("good", timeout=30)
        raw = await RawClient.connect(server_of(gateway).tcp_port)
        for number in range(1500):
            await raw.send(message(7, struct.pack("<HI", 1, number) + text(f"none:{number}")))
        inner = gateway.clients["inner"]
        async with asyncio.timeout(30):
            while sum(len(upstream.waiting) for upstream in inner) < 300:
                await asyncio.sleep(0)
            assert len(inner.known) <= 1000
            assert (await client.get("good"))["value"] == 1.0
            await raw.close()
            while any(upstream.waiting for upstream in inner) or len(inner.known) > 1:
                await asyncio.sleep(0.01)


async def test_ever_new_pvrequests_share_nothing_and_end_with_their_client():
    async with (
        served({"good": double(1.0)}) as server,
        gateway_to(server) as gateway,
        client_to(gateway) as client,
    ):
        other: Context = client_to(gateway)
        await other.start()
        await asyncio.gather(
            *(other.get("good", f"record[x{number}=1]field(value)", timeout=30) for number in range(200))
        )
        assert (await client.get("good"))["value"] == 1.0
        upstream = gateway.clients["inner"].known["good"]
        await other.close()
        async with asyncio.timeout(30):
            while len(upstream.gets) > 1:
                await asyncio.sleep(0)

"""One client that is slow, greedy or hostile, or a server that is silent, costs the others nothing but their turn."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging

import numpy as np
import pytest

from appliance.client import Context
from appliance.errors import RemoteError
from appliance.gateway.accounts import InFlight
from appliance.gateway.shared_get import SharedGet
from appliance.pva.search import SearchRequest
from appliance.pvdata.nt import NTScalar, NTScalarArray
from appliance.pvdata.types import FLOAT64, UINT8
from appliance.pvdata.value import Value
from appliance.server import Handler, Operation, SharedPV
from tests.helpers.crowd import Watcher
from tests.helpers.gateways import client_to, direct, gateway_to, server_of
from tests.helpers.live import until
from tests.helpers.ours import double, served
from tests.helpers.raw import RawClient

IMAGE = 256 * 1024


def image(number: int) -> np.ndarray:
    return np.full(IMAGE, number, dtype=np.uint8)


def images() -> SharedPV:
    return SharedPV(Value(NTScalarArray(UINT8), {"value": image(0)}))


class Silent(Handler):
    """Takes puts and answers none."""

    def __init__(self) -> None:
        self.kind = NTScalar(FLOAT64)
        self.taken: list[Operation] = []

    def init(self, operation: Operation) -> None:
        operation.ready(self.kind)

    def get(self, operation: Operation) -> None:
        self.taken.append(operation)

    def put(self, operation: Operation, value: Value) -> None:
        del value
        self.taken.append(operation)


async def test_a_client_that_stops_reading_is_bounded_and_named_and_others_get_every_update(
    caplog: pytest.LogCaptureFixture,
):
    pvs = {"one": images(), "two": images()}
    async with (
        served(pvs) as server,
        gateway_to(server, status_prefix="GW:", bounds={"client_octets": "1MiB"}) as gateway,
        client_to(gateway) as client,
        await RawClient.connect(server_of(gateway).tcp_port, receive_buffer=4096) as slow,
    ):
        for name in pvs:
            await slow.monitor(name, queue_size=1000)
        slow.pause()
        async with client.monitor("one") as updates:
            assert (await anext(updates))["value"][0] == 0
            for number in range(1, 101):
                for pv in pvs.values():
                    pv.post({"value": image(number)})
                assert (await anext(updates))["value"][0] == number
            (peer,) = [peer for peer in server_of(gateway).peers.values() if peer.allowance.waiting]
            # Each subscription keeps its latest value whatever the bound is.
            assert peer.allowance.waiting <= (1 << 20) + 2 * (IMAGE + 100)
            assert peer.allowance.dropped > 100
            with caplog.at_level(logging.WARNING):
                await gateway.status.refresh()
                await gateway.status.refresh()
            said = [record.message for record in caplog.records if "reads too slowly" in record.message]
            assert len(said) == 1
            assert [record.event for record in caplog.records if record.message in said] == ["client-slow"]
            assert said[0].startswith(f"anonymous@{peer.stream.peer} reads too slowly: ")
            health = await client.get("GW:health", server=direct(gateway))
            assert health["value.index"] == 1
            assert peer.stream.peer in health["alarm.message"]
        waiting = peer.allowance
    await asyncio.sleep(0)
    assert waiting.waiting == 0


@pytest.mark.parametrize("how", ["shared", "of its own"])
async def test_answers_for_a_client_that_does_not_read_are_bounded(how: str):
    pvs = {f"image:{number}": images() for number in range(40)}
    async with (
        served(pvs) as server,
        gateway_to(server, bounds={"client_octets": "1MiB"}) as gateway,
        client_to(gateway) as client,
        await RawClient.connect(server_of(gateway).tcp_port, receive_buffer=4096) as slow,
    ):
        request = "" if how == "shared" else "record[cache=false]"
        asks = [await slow.get_init(name, request) for name in pvs]
        (peer,) = server_of(gateway).peers.values()
        slow.pause()
        await slow.send(b"".join(asks))  # all are read before the first answer comes
        async with asyncio.timeout(30):
            while len({rate.name for rate in (await gateway.overview.rates()).us_pvs.rx}) == 0:
                await asyncio.sleep(0)
            while gateway.flight.count or any(
                shared._under_way
                for upstream in gateway.clients["inner"]
                for shared in upstream.gets.values()
            ):
                await asyncio.sleep(0)
        assert peer.stream.waiting < (1 << 20) + 2 * IMAGE
        assert (await client.get("image:7"))["value"][0] == 0
        assert len((await client.get("image:8"))["value"]) == IMAGE


async def test_answers_for_all_connections_of_a_host_are_bounded_together(monkeypatch):
    pvs = {f"image:{number}": images() for number in range(40)}
    bounds = {"client_octets": "1MiB", "host_octets": "2MiB"}
    asked: list[Operation] = []
    get = SharedGet.get

    def count(self: SharedGet, operation: Operation) -> None:
        asked.append(operation)
        get(self, operation)

    def idle() -> bool:
        shared = [one for upstream in gateway.clients["inner"] for one in upstream.gets.values()]
        return not any(one._under_way or one._coming for one in shared)

    async with (
        served(pvs) as server,
        gateway_to(server, bounds=bounds) as gateway,
        client_to(gateway) as client,
        contextlib.AsyncExitStack() as stack,
    ):
        assert (await client.get("image:7"))["value"][0] == 0
        monkeypatch.setattr(SharedGet, "get", count)
        outer = server_of(gateway)
        for number in range(1, 9):
            slow = await stack.enter_async_context(
                await RawClient.connect(outer.tcp_port, receive_buffer=4096)
            )
            asks = [await slow.get_init(name) for name in pvs]
            slow.pause()
            await slow.send(b"".join(asks))
            await until(lambda wanted=40 * number: len(asked) == wanted and idle())
        waiting = [peer.stream.waiting for peer in outer.peers.values()]
        # Besides the bound: what is found out late, and one answer for each that has nothing yet.
        assert (1 << 20) < sum(waiting) < (2 << 20) * 17 // 16 + 9 * (IMAGE + 100)
        assert (await client.get("image:7"))["value"][0] == 0


async def test_a_storm_of_requests_leaves_others_their_share():
    async with (
        served({"a": double(), "b": double(2.0)}) as server,
        gateway_to(server) as gateway,
        client_to(gateway) as client,
        await RawClient.connect(server_of(gateway).tcp_port) as greedy,
    ):
        await client.get("b", timeout=30)
        ask = await greedy.get_init("a")
        octets = 0

        async def storm() -> None:
            while True:
                await greedy.send(ask * 500)

        async def read() -> None:
            nonlocal octets
            while True:
                octets += len(await greedy.read_some(65536))

        tasks = [asyncio.create_task(storm()), asyncio.create_task(read())]
        try:
            while octets < 65536:
                await asyncio.sleep(0)
            begun = octets
            loop = asyncio.get_running_loop()
            turns = 0
            counting = True

            def tick() -> None:
                nonlocal turns
                turns += 1
                if counting:
                    loop.call_soon(tick)

            loop.call_soon(tick)
            for _ in range(30):
                assert (await client.get("b"))["value"] == 2.0
            # A turn is some milliseconds long at most, whatever clients send; of these turns a GET needs few.
            assert turns < 30 * 20
            counting = False
            assert octets > begun
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_server_that_never_answers_holds_only_those_who_ask_it():
    silent = Silent()
    async with (
        served({"silent": silent}) as first,
        served({"b": double(2.0)}) as second,
        gateway_to(first, second) as gateway,
        client_to(gateway) as client,
        client_to(gateway) as other,
    ):
        gateway.servers["outer"].flight.per_connection = 20
        stuck = [asyncio.create_task(client.put("silent", {"value": 1.0}, timeout=None)) for _ in range(20)]
        while len(silent.taken) < 20:
            await asyncio.sleep(0)
        with pytest.raises(
            RemoteError, match=r"20 requests of this connection with .* wait for answers of servers"
        ):
            await client.put("silent", {"value": 1.0})
        reading = asyncio.create_task(other.get("silent", timeout=None))
        for _ in range(20):
            assert (await other.get("b", timeout=30))["value"] == 2.0
        await other.put("b", 3.0)
        assert (await client.get("b"))["value"] == 3.0
        for task in (*stuck, reading):
            task.cancel()
        await asyncio.gather(*stuck, reading, return_exceptions=True)
        async with asyncio.timeout(30):
            while gateway.flight.count:
                await asyncio.sleep(0)
        assert (await other.get("b"))["value"] == 3.0


async def test_requests_in_flight_are_given_back_when_a_client_disappears():
    silent = Silent()
    async with served({"silent": silent}) as server, gateway_to(server) as gateway:
        client: Context = client_to(gateway)
        await client.start()
        stuck = [asyncio.create_task(client.put("silent", {"value": 1.0}, timeout=None)) for _ in range(5)]
        while len(silent.taken) < 5:
            await asyncio.sleep(0)
        flight: InFlight = gateway.flight
        assert flight.count == 5
        await client.close()
        await asyncio.gather(*stuck, return_exceptions=True)
        async with asyncio.timeout(30):
            while flight.count:
                await asyncio.sleep(0)
        assert len(flight) == 0


async def test_a_host_that_searches_for_ever_new_names_takes_none_from_others():
    async with (
        served({f"pv{number}": double() for number in range(5)}) as server,
        gateway_to(server, bounds={"names": 64, "new_names_per_host": 40}) as gateway,
        client_to(gateway) as client,
    ):
        async with client.monitor("pv0") as updates:
            await anext(updates)
            outer = server_of(gateway)
            for number in range(2000):
                request = SearchRequest(number, ((number, f"none:{number}"),), ("tcp",))
                outer.answer_search(request, "10.9.8.7", lambda _: None)
            assert len(gateway.clients["inner"].known) <= 64
            assert gateway.new_names.refused >= 1900
            for number in range(1, 5):
                await client.get(f"pv{number}", timeout=30)
            assert gateway.clients["inner"].known["pv0"].active


async def test_what_passes_is_counted_by_pv_and_by_client():
    async with (
        served({"one": images(), "b": double()}) as server,
        gateway_to(server) as gateway,
        client_to(gateway) as client,
        client_to(gateway) as other,
    ):
        async with client.monitor("one") as updates, other.monitor("one") as more:
            await anext(updates)
            await anext(more)
            for _ in range(3):
                await client.put("b", 1.0)
            for _ in range(2):
                await client.get("b")
            rates = await gateway.overview.rates()
            by_pv = {rate.name: rate for rate in rates.us_pvs.rx}
            assert by_pv["one"].rx * rates.seconds >= IMAGE
            sent = {rate.name: rate for rate in rates.ds_pvs.tx}
            assert sent["one"].tx * rates.seconds >= 2 * IMAGE
            assert {rate.name: rate for rate in rates.us_pvs.tx}["b"].tx > 0
            most = rates.ds_pvs.requests[0]
            assert (most.name, round(most.requests * rates.seconds)) == ("b", 5)
            (busy,) = rates.ds_hosts.requests
            assert round(busy.requests * rates.seconds) == 5


@pytest.mark.parametrize("reads", [True, False])
async def test_a_client_with_many_channels_leaves_no_cycles_behind(reads: bool):
    """In a process with many objects the collector examines all of them once in an hour only."""
    pvs = {f"pv:{number}": images() if not reads else double() for number in range(200)}
    async with served(pvs) as server, gateway_to(server, bounds={"client_octets": "1MiB"}) as gateway:
        port = server_of(gateway).tcp_port
        stays = await Watcher.connect(port, list(pvs))
        await stays.ready
        (first,) = server_of(gateway).peers.values()
        gc.collect()
        gc.disable()
        try:
            guest = await Watcher.connect(port, list(pvs))
            await guest.ready
            if not reads:
                guest.stop_reading()
            for pv in pvs.values():
                pv.post({"value": image(1)} if not reads else 1.0)
            (other,) = [peer for peer in server_of(gateway).peers.values() if peer is not first]
            async with asyncio.timeout(30):
                while not (guest.octets if reads else other._dirty):
                    await asyncio.sleep(0)
                del other
                guest.abort()
                while len(server_of(gateway).peers) > 1:
                    await asyncio.sleep(0)
            assert gc.collect() < 2 * len(pvs)
        finally:
            gc.enable()
        stays.abort()

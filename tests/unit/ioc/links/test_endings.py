"""Defects and ends in the middle of what links do: nothing that waits is forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from appliance.client import Context
from appliance.ioc.dbcore.link_support import OUT_LINK, LinkPlace
from appliance.ioc.links import channel as channel_module
from appliance.ioc.links import remote
from appliance.ioc.links.channel import ChannelKey, LinkChannel
from appliance.ioc.links.latest import Latest
from appliance.ioc.links.remote import RemoteClient
from appliance.ioc.links.worker import Work, Worker
from appliance.pvdata.nt import NTScalar
from appliance.pvdata.types import INT32
from appliance.pvdata.value import Value
from appliance.server import Server, SharedPV
from tests.helpers.ours import client_config, server_config


class Pieces:
    """Work that takes several pieces."""

    def __init__(self, pieces: int) -> None:
        self.left = pieces

    def work(self) -> bool:
        self.left -= 1
        return self.left > 0


async def test_the_worker_ends_after_all_pieces_of_what_it_has_to_do() -> None:
    worker = Worker()
    worker.start()
    works = [Pieces(pieces) for pieces in (1, 3, 2)]
    for work in works:
        worker.push(work)
    await worker.close()
    assert [work.left for work in works] == [0, 0, 0]


async def test_a_defect_in_one_completion_leaves_no_other_record_waiting(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    completed: list[str] = []

    def complete(place: LinkPlace, _why: str) -> None:
        if place.name == "rec1.OUT":
            raise ZeroDivisionError
        completed.append(place.name)

    monkeypatch.setattr(channel_module, "complete_put", complete)
    worker = Worker()
    worker.start()
    places = [LinkPlace(number, number, f"rec{number}", "OUT", OUT_LINK) for number in range(4)]
    worker.push(channel_module._Completion((place, "") for place in places))
    await worker.close()
    assert completed == ["rec0.OUT", "rec2.OUT", "rec3.OUT"]
    assert "ZeroDivisionError" in caplog.text


class Owner:
    """Calls at once what is to be called on the loop; the work of records does not matter here."""

    def push(self, work: Work) -> None:
        pass

    def on_loop(self, function: Callable[[], None]) -> None:
        function()


class Changing(LinkChannel):
    """A channel that has a defect for one value, and tells when something has changed."""

    def __init__(self, name: str, *, pipeline: bool) -> None:
        super().__init__(ChannelKey(name, 4, pipeline, False), Owner())
        self.changed = asyncio.Event()
        self.defects = 0

    def take(self, item: Latest) -> None:
        if item.store[1] == 13 and not self.defects:
            self.defects += 1
            raise ZeroDivisionError
        super().take(item)
        self.changed.set()

    def lost(self, why: str) -> None:
        super().lost(why)
        self.changed.set()

    async def until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not done():
                await self.changed.wait()
                self.changed.clear()

    @property
    def number(self) -> Any:
        return self.latest.store[1] if self.connected and self.latest is not None else None


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again soon."""
    monkeypatch.setattr(remote, "_RETRY_S", 0.05)


def opener_of(server: Server) -> Any:
    return lambda: Context(client_config(server.udp_port), beacons=False)


@pytest.mark.parametrize("pipeline", [False, True])
async def test_a_defect_in_taking_a_value_ends_the_subscription_for_a_while_only(
    pipeline: bool, soon: None, caplog: pytest.LogCaptureFixture
) -> None:
    async with Server(server_config()) as server:
        pv = SharedPV(Value(NTScalar(INT32), 1))
        server.add_pv("pv", pv)
        client = RemoteClient(opener_of(server))
        channel = Changing("pv", pipeline=pipeline)
        client.connect(channel)
        await channel.until(lambda: channel.number == 1)
        pv.post(13)
        await channel.until(lambda: channel.number != 1)
        assert channel.number is None, "nobody takes the old value for the newest"
        assert channel.why == "internal error; the log has the details"
        await channel.until(lambda: channel.number == 13)
        assert "ZeroDivisionError" in caplog.text
        client.forget(channel)
        channel.close()
        await client.close()


async def test_a_client_that_a_defect_keeps_from_opening_is_tried_again(
    soon: None, caplog: pytest.LogCaptureFixture
) -> None:
    async with Server(server_config()) as server:
        server.add_pv("pv", SharedPV(Value(NTScalar(INT32), 1)))
        tries = 0

        @asynccontextmanager
        async def opener() -> AsyncIterator[Context]:
            nonlocal tries
            tries += 1
            if tries < 3:
                raise ZeroDivisionError
            async with Context(client_config(server.udp_port), beacons=False) as context:
                yield context

        client = RemoteClient(opener)
        channel = Changing("pv", pipeline=False)
        client.connect(channel)
        await channel.until(lambda: channel.why == "internal error; the log has the details")
        await channel.until(lambda: channel.number == 1)
        assert "ZeroDivisionError" in caplog.text
        client.forget(channel)
        channel.close()
        await client.close()

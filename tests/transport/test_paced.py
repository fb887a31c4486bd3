"""Subscriptions with a limit of their rate, in each of the clients, against a server of our own and on a clock that a test moves."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest

import appliance
from appliance import blocking
from appliance.client.end import ClientEnd
from appliance.p4p.client import asyncio as p4p_asyncio
from appliance.p4p.client import raw, thread
from appliance.server.server import Server
from appliance.threads import engine
from tests.helpers.clock import FakeClock
from tests.helpers.live import HOST, client_config, number, server_config, until
from tests.helpers.served import Served, served

PATIENCE_S = 30.0
RATE = 10.0
LAST = 500.0


class Ticking:
    """The clock of a client, which goes by one interval each time that somebody looks for the last value."""

    def __init__(self, end: ClientEnd) -> None:
        self.clock = FakeClock()
        self.ticks = 0
        end.use_clock(self.clock)

    def tick(self) -> None:
        self.ticks += 1
        self.clock.advance(1 / RATE)


def judge(got: list[float], ticks: int) -> None:
    """Check what a client got: the first value, the last one, and in each interval no more than one."""
    assert got[0] == 1.0
    assert got[-1] == LAST
    assert got == sorted(set(got))
    assert len(got) <= 1 + ticks


@pytest.fixture
async def server():
    there = Server(server_config())
    there.add_pv("n", number(1.0))
    async with there:
        yield there


def post_all(server: Server) -> None:
    pv: Any = server._static.pvs["n"]
    for value in range(2, int(LAST) + 1):
        pv.post(float(value))


async def test_the_native_client_calls_a_function_no_faster(server):
    async with asyncio.timeout(PATIENCE_S), appliance.Context(client_config(server)) as ctx:
        await ctx.get("n", timeout=None)
        ticking = Ticking(ctx._end)
        got: list[float] = []
        with_limit = ctx.monitor("n", max_rate=RATE, on_update=lambda value: got.append(value["value"]))
        await until(lambda: got)
        every: list[float] = []
        without = ctx.monitor(
            "n", "record[queueSize=1000]", on_update=lambda value: every.append(value["value"])
        )
        await until(lambda: every)
        post_all(server)
        await until(lambda: every[-1] == LAST)
        assert got == [1.0], "nothing comes while the clock stands"
        await until(lambda: ticking.tick() or got[-1] == LAST)
        judge(got, ticking.ticks)
        with_limit.close()
        without.close()


async def test_the_native_clients_iterator_gives_the_latest(server):
    async with asyncio.timeout(PATIENCE_S), appliance.Context(client_config(server)) as ctx:
        await ctx.get("n", timeout=None)
        ticking = Ticking(ctx._end)
        got = []
        async with ctx.monitor("n", max_rate=RATE) as updates:
            got.append((await anext(updates))["value"])
            post_all(server)
            while got[-1] != LAST:
                await until(lambda: ticking.tick() or updates.waiting)
                got.append((await anext(updates))["value"])
        judge(got, ticking.ticks)


async def test_p4ps_client_for_asyncio_calls_no_faster(server):
    conf = {"EPICS_PVA_ADDR_LIST": f"{HOST}:{server.udp_port}", "EPICS_PVA_AUTO_ADDR_LIST": "NO"}
    async with asyncio.timeout(PATIENCE_S):
        with p4p_asyncio.Context("pva", conf=conf, useenv=False) as ctxt:
            await ctxt.get("n")
            ticking = Ticking(ctxt._ctxt.running()._end)
            got: list[float] = []

            async def take(value: Any) -> None:
                got.append(float(value))

            with ctxt.monitor("n", take, limitHz=RATE):
                await until(lambda: got)
                post_all(server)
                await until(lambda: ticking.tick() or got[-1] == LAST)
            judge(got, ticking.ticks)


# -- the clients that block ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site():
    with served() as there:
        yield there


def afresh(site: Served) -> None:
    if "n" in site.server._static.pvs:
        site.do(site.server.remove_pv, "n")
    site.do(site.server.add_pv, "n", number(1.0))


def watch(
    site: Served, end: ClientEnd, began: Callable[[], object], got: list[float], read: Callable[[], object]
) -> None:
    """Post, and move the clock until the last value has come."""
    ticking = engine().call(Ticking, end)
    subscription = began()
    pause = threading.Event()

    def wait_for(condition: Callable[[], object]) -> None:
        for _ in range(int(PATIENCE_S / 0.005)):
            if condition():
                return
            pause.wait(0.005)
        assert condition()

    def look() -> bool:
        engine().call(ticking.tick)
        read()
        return got[-1] == LAST

    wait_for(lambda: read() or got)
    site.do(post_all, site.server)
    wait_for(look)
    judge(got, ticking.ticks)
    subscription.close()  # type: ignore[attr-defined]


def test_p4ps_client_for_threads_calls_no_faster(site):
    afresh(site)
    with thread.Context("pva", conf=site.conf, useenv=False) as ctxt:
        ctxt.get("n", timeout=PATIENCE_S)
        got: list[float] = []

        def begin() -> object:
            return ctxt.monitor("n", lambda value: got.append(float(value)), limitHz=RATE)

        watch(site, ctxt._ctxt.native._end, begin, got, lambda: None)


def test_p4ps_raw_client_has_no_more_to_read_and_a_late_reader_costs_no_credit(site):
    afresh(site)
    with thread.Context("pva", conf=site.conf, useenv=False) as other:
        other.get("n", timeout=PATIENCE_S)
        got: list[float] = []
        made: list[raw.Subscription] = []
        ctxt = raw.Context("pva", conf=site.conf, useenv=False)

        def begin() -> object:
            made.append(ctxt.monitor("n", lambda: None, "record[queueSize=4,pipeline=true]", limitHz=RATE))
            return made[0]

        looks = itertools.count()

        def read() -> None:
            if next(looks) % 3:
                return  # late: what comes meanwhile is merged, and the server may send on
            values = []
            while made and (item := made[0].pop()) is not None:
                values.append(float(item))
            assert len(values) <= 1
            got.extend(values)

        # The search needs the clock that goes.
        answered = threading.Event()
        first = ctxt.get("n", lambda answer: answered.set())
        assert answered.wait(PATIENCE_S)
        watch(site, ctxt._ctxt.native._end, begin, got, read)
        first.close()
        ctxt.close()


def test_the_client_that_blocks_reads_no_faster(site):
    afresh(site)
    config = appliance.resolve_client(environ=site.conf).config
    with blocking.Context(config) as ctx:
        ctx.get("n", timeout=PATIENCE_S)
        got: list[float] = []
        made: list[blocking.Monitor[Any]] = []

        def begin() -> object:
            made.append(ctx.monitor("n", max_rate=RATE))
            return made[0]

        def read() -> None:
            if made and (not got or made[0]._updates.waiting):
                got.append(made[0].read(timeout=PATIENCE_S)["value"])

        watch(site, ctx._context._end, begin, got, read)


# -- what is refused -------------------------------------------------------------------------------------


async def coroutine(value: object) -> None:
    pass


@pytest.mark.parametrize("rate", [0, -1.0, float("nan"), "ten"])
async def test_a_rate_that_means_nothing_is_refused_by_each_client(server, rate):
    conf = {"EPICS_PVA_ADDR_LIST": HOST, "EPICS_PVA_AUTO_ADDR_LIST": "NO"}
    refused = pytest.raises((TypeError, ValueError), match="number of updates per second above 0, or None")
    async with appliance.Context(client_config(server)) as ctx:
        with refused:
            ctx.monitor("n", max_rate=rate)
    with p4p_asyncio.Context("pva", conf=conf, useenv=False) as ctxt, refused:
        ctxt.monitor("n", coroutine, limitHz=rate)

    def blocks() -> None:
        for client in (thread.Context, raw.Context):
            with client("pva", conf=conf, useenv=False) as theirs, refused:
                theirs.monitor("n", print, limitHz=rate)
        with blocking.Context(client_config(server)) as ours, refused:
            ours.monitor("n", max_rate=rate)

    await asyncio.to_thread(blocks)

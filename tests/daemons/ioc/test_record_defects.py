"""A defect in reading or sending one record: the clients of the others get all updates, and its own are told that it has ended."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from tests.helpers.isolated import isolated
from tests.helpers.records_here import Client, run, served

COUNT = 20
GOOD = [f"r{number}" for number in range(COUNT)]
RECORDS = "".join(f'record(longout, "{name}") {{}}\n' for name in [*GOOD, "bad"])


class Defect:
    """From now on, sending the record ``bad`` fails."""

    def __init__(self) -> None:
        from appliance.ioc.number_feed import NumberFeed

        self.is_there = False
        sender = NumberFeed._sender

        def patched(feed: Any, subscription: Any, overrun: int = 0) -> Any:
            send = sender(feed, subscription, overrun)

            def sent(*numbers: Any) -> bool:
                if self.is_there and feed.channel.name.startswith("bad"):
                    raise ZeroDivisionError
                assert send is not None
                return send(*numbers)

            return sent

        NumberFeed._sender = patched  # type: ignore[method-assign]


def has_ended(client: Client, ioid: int) -> bool:
    return b"internal error; the server's log has the details" in client.ended.get(ioid, b"")


@isolated
def test_records_that_change_in_the_same_batch_are_sent(tmp_path: Path) -> None:
    async def test() -> None:
        defect = Defect()
        names = [*GOOD[: COUNT // 2], "bad", *GOOD[COUNT // 2 :]]
        last = len(names)
        bad = names.index("bad") + 1
        async with served(RECORDS, names) as ioc:
            client = await asyncio.to_thread(Client, ioc.port)
            await asyncio.to_thread(client.watch, names)
            await asyncio.to_thread(client.until, lambda it: len(it.got) == last)
            for number in range(1, 4):
                defect.is_there = number == 3
                for name in names:
                    ioc.channels[name].put(number)
                await ioc.settled()
            others = [ioid for ioid in range(1, last + 1) if ioid != bad]
            await asyncio.to_thread(
                client.until, lambda it: has_ended(it, bad) and all(it.last(ioid) == 3 for ioid in others)
            )
            assert client.last(bad) == 2
            assert list(client.ended) == [bad]
            await ioc.put(dict.fromkeys(names, 4))
            await asyncio.to_thread(client.until, lambda it: all(it.last(ioid) == 4 for ioid in others))

    run(test)


@isolated
def test_a_defect_of_what_handles_many_at_once_loses_no_update(tmp_path: Path) -> None:
    async def test() -> None:
        from appliance.ioc import number_feed
        from appliance.ioc.number_board import Board

        number_feed._MANY = number_feed._FEW = 1  # type: ignore[misc]
        calls = 0
        send = Board._send

        def defective(board: Any, *arguments: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise ZeroDivisionError
            send(board, *arguments)

        Board._send = defective  # type: ignore[method-assign]
        async with served(RECORDS, GOOD) as ioc:
            client = await asyncio.to_thread(Client, ioc.port)
            await asyncio.to_thread(client.watch, GOOD)
            await asyncio.to_thread(client.until, lambda it: len(it.got) == COUNT)
            for number in range(1, 6):
                for name in GOOD:
                    ioc.channels[name].put(number)
                await ioc.settled()
                await asyncio.to_thread(
                    client.until,
                    lambda it, n=number: all(it.last(ioid) == n for ioid in range(1, COUNT + 1)),  # type: ignore[misc]
                )
            assert calls == 2, "the board is used no more"
            assert list(ioc.stream.boards.values()) == [None]
            assert not client.ended

    run(test)


@isolated
def test_records_that_wait_for_a_slow_client_are_sent(tmp_path: Path) -> None:
    async def test() -> None:
        defect = Defect()
        names = ["bad", *GOOD]
        async with served(RECORDS, names) as ioc:
            client = await asyncio.to_thread(Client, ioc.port)
            await asyncio.to_thread(client.watch, names)
            await asyncio.to_thread(client.until, lambda it: len(it.got) == len(names))
            await ioc.clog(names)
            await ioc.put(dict.fromkeys(names, 7))
            defect.is_there = True
            await asyncio.to_thread(
                client.until,
                lambda it: has_ended(it, 1) and all(it.last(ioid) == 7 for ioid in range(2, len(names) + 1)),
            )
            assert list(client.ended) == [1]
            assert not any(link.is_closing for link in ioc.server.peers)

    run(test)


@isolated
def test_a_defect_in_sending_to_one_client_does_not_end_another(tmp_path: Path) -> None:
    async def test() -> None:
        from appliance.server.operation import Subscription

        records = (
            'record(waveform, "array") { field(FTVL, "DOUBLE") field(NELM, "10") }\nrecord(ao, "number") {}\n'
        )
        async with served(records, ["array", "number"]) as ioc:
            clients = [await asyncio.to_thread(Client, ioc.port) for _ in range(3)]
            for client in clients:
                await asyncio.to_thread(client.watch, ["array", "number"])
                await asyncio.to_thread(client.until, lambda it: len(it.got) == 2)
            await ioc.put({"array": [1.0, 2.0], "number": 1.0})
            for client in clients:
                await asyncio.to_thread(client.until, lambda it: it.last(2, "<d") == 1.0)
            send_octets = Subscription.send_octets
            calls = {"octets": 0}

            def defective(subscription: Any, *arguments: Any, **more: Any) -> bool:
                calls["octets"] += 1
                if calls["octets"] == 2:
                    raise ZeroDivisionError
                return send_octets(subscription, *arguments, **more)

            Subscription.send_octets = defective  # type: ignore[method-assign]
            for value in ([3.0, 4.0], [5.0, 6.0], [7.0, 8.0]):
                await ioc.put({"array": value})
            await ioc.put({"number": 2.0})
            for client in clients:
                await asyncio.to_thread(client.until, lambda it: it.last(2, "<d") == 2.0)
            assert [list(client.ended) for client in clients].count([1]) == 1
            assert [list(client.ended) for client in clients].count([]) == 2
            assert calls["octets"] >= 7

    run(test)


@isolated
def test_a_defect_in_sending_a_group_to_one_client_does_not_cost_another_an_update(tmp_path: Path) -> None:
    async def test() -> None:
        import struct
        from functools import partial

        from appliance.ioc.groups.definitions import Groups
        from appliance.ioc.groups.feed import GroupFeed
        from appliance.server import Handler, Subscription

        def has(octets: bytes, client: Client) -> bool:
            return any(octets in rest for _, rest in client.got[1])

        class Grouped(Handler):
            def subscribe(self, subscription: Subscription) -> None:
                subscription.ready(feed.group.type)

            def flow(self, subscription: Subscription) -> None:
                if subscription not in feed.subscriptions:
                    feed.join(subscription)

            def unsubscribe(self, subscription: Subscription) -> None:
                feed.subscriptions.pop(subscription, None)

        records = """
            record(ao, "a") { info(Q:group, { "group": { "a": { "+channel": "VAL", "+trigger": "*" } } }) }
            record(ao, "b") { info(Q:group, { "group": { "b": { "+channel": "VAL" } } }) }
        """
        async with served(records, ["a"]) as ioc:
            (group,) = Groups().groups.values()
            feed = GroupFeed(group, ioc.stream)
            ioc.server.add_pv("group", Grouped())
            clients = [await asyncio.to_thread(Client, ioc.port) for _ in range(3)]
            for client in clients:
                await asyncio.to_thread(client.watch, ["group"])
                await asyncio.to_thread(client.until, lambda it: len(it.got) == 1)
            post = Subscription.post
            calls = 0

            def defective(subscription: Any, update: Any) -> None:
                nonlocal calls
                calls += 1
                if calls == 2:
                    raise ZeroDivisionError
                post(subscription, update)

            Subscription.post = defective  # type: ignore[method-assign]
            for value in (3.0, 4.0):
                await ioc.put({"a": value})
            for number, client in enumerate(clients):
                if number == 1:
                    await asyncio.to_thread(client.until, lambda it: has_ended(it, 1))
                    continue
                for value in (3.0, 4.0):
                    there = partial(has, struct.pack("<d", value))
                    await asyncio.to_thread(client.until, there)
                assert len(client.got[1]) == 3, "each update comes once"
            feed.close()

    run(test)


@isolated
def test_a_time_with_impossible_nanoseconds_ends_no_subscription(tmp_path: Path) -> None:
    """Device support, or a server of Channel Access with TSEL, may give a record such a time. It goes to clients as QSRV sends it."""

    async def test() -> None:
        import ctypes

        import numpy as np

        from appliance.client import Context
        from appliance.ioc.dbcore.records import common_place
        from tests.helpers.ours import client_config

        values: dict[str, list[Any]] = {
            "number": [1, 2, 3],
            "text": ["a", "b", "c"],
            "array": [np.full(10, value) for value in (1.0, 2.0, 3.0)],
            "choice": [1, 0, 1],
            "long": ["x" * 50, "y" * 50, "z" * 50],
        }
        # EPICS leaves a time of device support (TSE -2) as it is.
        records = """
            record(longout, "number") { field(TSE, "-2") }
            record(stringout, "text") { field(TSE, "-2") }
            record(waveform, "array") { field(TSE, "-2") field(FTVL, "DOUBLE") field(NELM, "10") }
            record(bo, "choice") { field(TSE, "-2") field(ZNAM, "off") field(ONAM, "on") }
            record(lso, "long") { field(TSE, "-2") field(SIZV, "100") }
        """
        async with served(records, list(values)) as ioc:
            config = client_config(name_servers=f"127.0.0.1:{ioc.port}")
            async with Context(config, beacons=False) as ctx:
                for name in values:
                    async with asyncio.timeout(60), ctx.monitor(name) as updates:
                        await anext(updates)
                        for number, value in enumerate(values[name]):
                            place = ioc.channels[name].record_address + common_place("TIME")
                            wrong = 0xFFFFFFFF - number
                            ctypes.c_uint32.from_address(place + 4).value = wrong
                            await ioc.put({name: value})
                            for got in (await anext(updates), await ctx.get(name)):
                                assert got["timeStamp.nanoseconds"] == wrong - (1 << 32), name

    run(test)

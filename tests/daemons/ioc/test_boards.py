"""Records that change together and are handled at once: what their clients get is what they get one by one."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.helpers.isolated import isolated
from tests.helpers.records_here import Client, Served, run, served

RECORDS = 'record(ao, "one") { field(HIHI, "1000") field(HHSV, "MAJOR") }\n'
SIMPLE = 0b1110000010
"""The fields of an update that changes the value and the time only."""
LOST_NOTHING = b"\0"


async def watching(ioc: Served, requests: Sequence[str]) -> tuple[Client, Any]:
    """Return a client with one subscription for each request, and the server's end of its connection."""
    before = set(ioc.server.peers)
    client = await asyncio.to_thread(Client, ioc.port)
    await asyncio.to_thread(client.watch, ["one"] * len(requests), requests)
    await asyncio.to_thread(client.until, lambda it: len(it.got) == len(requests))
    (link,) = set(ioc.server.peers) - before
    return client, link


async def got(client: Client, value: float, ioid: int = 1) -> list[tuple[int, float, bytes]]:
    """Return the fields, the value and the tail of what came until a value has come."""
    await asyncio.to_thread(client.until, lambda it: it.last(ioid, "<d") == value)
    found = [
        (bits, struct.unpack_from("<d", rest)[0], rest[-1 if rest[-1:] == LOST_NOTHING else -3 :])
        for bits, rest in client.got[ioid]
    ]
    client.got.clear()
    return found


async def on_a_board(ioc: Served, *clients: Client) -> list[Any]:
    """Let the record change until it is handled with others; return the feeds."""
    from appliance.ioc import number_feed

    for value in (1.0, 2.0, 3.0):
        await ioc.put({"one": value})
        for client in clients:
            for ioid in list(client.got) or [1]:
                await asyncio.to_thread(client.until, lambda it, i=ioid, v=value: it.last(i, "<d") == v)  # type: ignore[misc]
    await ioc.settled()
    for client in clients:
        client.got.clear()
    return [
        sink
        for _, keys in ioc.stream.hub._rings.values()
        for sink in keys.values()
        if isinstance(sink, number_feed.NumberFeed)
    ]


@isolated
def test_two_subscriptions_of_one_client_that_is_behind_get_another_alarm_once(tmp_path: Path) -> None:
    async def test() -> None:
        from appliance.ioc import number_board, number_feed

        number_feed._MANY = 1  # type: ignore[misc]
        number_board.REST_S = 0.0  # type: ignore[misc]
        async with served(RECORDS, ["one"]) as ioc:
            client, link = await watching(ioc, ["field()", "field()"])
            (feed,) = await on_a_board(ioc, client)
            assert feed._board is not None
            link.writable = False
            await ioc.put({"one": 1000.0})
            assert feed._board is None
            link.writable = True
            link.owner.pump()
            await asyncio.to_thread(client.until, lambda it: it.last(1, "<d") == it.last(2, "<d") == 1000.0)
            assert [len(updates) for updates in client.got.values()] == [1, 1]
            await on_a_board(ioc, client)
            assert feed._board is not None

    run(test)


@isolated
def test_a_connection_that_was_busy_gets_no_rows_for_a_while(tmp_path: Path) -> None:
    async def test() -> None:
        from appliance.ioc import number_board, number_feed

        number_feed._MANY = 1  # type: ignore[misc]
        number_board.REST_S = 3600.0  # type: ignore[misc]
        async with served(RECORDS, ["one"]) as ioc:
            client, link = await watching(ioc, ["field()"])
            (feed,) = await on_a_board(ioc, client)
            assert feed._board is not None
            (watcher,) = feed.watchers.values()
            link.writable = False
            ioc.channels["one"].put(77.0)
            ioc.stream.deliver([feed])
            assert feed._board is None
            link.resume_writing()
            await on_a_board(ioc, client)
            assert feed._board is None, "each change of place costs more than an update"
            watcher.backlog.rests_until = 0.0
            await on_a_board(ioc, client)
            assert feed._board is not None

    run(test)


@isolated
def test_beside_a_client_that_is_behind_another_has_lost_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        from appliance.ioc import number_feed

        number_feed._MANY = 1  # type: ignore[misc]
        async with served(RECORDS, ["one"]) as ioc:
            slow, link = await watching(ioc, ["field()"])
            fast, _ = await watching(ioc, ["field()"])
            (feed,) = await on_a_board(ioc, slow, fast)
            assert feed._board is not None
            link.writable = False
            for value in (5.0, 6.0):
                await ioc.put({"one": value})
                assert await got(fast, value) == [(SIMPLE, value, LOST_NOTHING)]
            link.writable = True
            link.owner.pump()
            ((bits, value, tail),) = await got(slow, 6.0)
            assert (bits, value) == (SIMPLE, 6.0)
            assert tail != LOST_NOTHING

    run(test)


@isolated
def test_a_client_with_a_queue_gets_what_its_queue_holds(tmp_path: Path) -> None:
    async def test() -> None:
        from appliance.ioc import number_feed

        number_feed._MANY = 1  # type: ignore[misc]
        async with served(RECORDS, ["one"]) as ioc:
            client, link = await watching(ioc, ["record[queueSize=10]field()"])
            await on_a_board(ioc, client)
            link.writable = False
            for value in (5.0, 6.0, 7.0):
                await ioc.put({"one": value})
            link.writable = True
            link.owner.pump()
            assert await got(client, 7.0) == [(SIMPLE, value, LOST_NOTHING) for value in (5.0, 6.0, 7.0)]

    run(test)


@isolated
def test_an_event_whose_change_is_known_already_tells_nothing_to_a_client_that_is_behind(
    tmp_path: Path,
) -> None:
    async def test() -> None:
        from appliance.ioc import number_feed

        number_feed._MANY = 1  # type: ignore[misc]
        async with served(RECORDS, ["one"]) as ioc:
            client, link = await watching(ioc, ["field()"])
            feeds = await on_a_board(ioc, client)
            link.writable = False
            ioc.stream.deliver(feeds)
            await ioc.settled()
            link.writable = True
            link.owner.pump()
            await ioc.put({"one": 9.0})
            assert await got(client, 9.0) == [(SIMPLE, 9.0, LOST_NOTHING)]

    run(test)


@isolated
def test_nothing_is_sent_to_a_subscription_that_was_ended_before_its_feed_knows(tmp_path: Path) -> None:
    async def test() -> None:
        from appliance.ioc import number_feed

        number_feed._MANY = 1  # type: ignore[misc]
        async with served(RECORDS, ["one"]) as ioc:
            client, link = await watching(ioc, ["field()"])
            (feed,) = await on_a_board(ioc, client)
            assert feed._board is not None
            # As the end of a right to read does it.
            for channel in list(link.owner.channels()):
                for wire in list(channel.wire.operations.values()):
                    wire.context.clear()
                channel.close()
            ioc.channels["one"].put(77.0)
            before = len(link.connection.outbox.chunks)
            ioc.stream.deliver([feed])
            assert link.connection.events
            assert len(link.connection.outbox.chunks) == before

    run(test)


@isolated
def test_requests_that_wait_leave_records_on_their_board_unless_they_stop_updates(tmp_path: Path) -> None:
    async def test() -> None:
        from appliance.ioc import number_feed
        from appliance.pva import commands as c
        from appliance.pva.events import MonitorWindow, OperationClosed, OperationRequested
        from appliance.pva.server_operation import stops_updates
        from appliance.pva.states import EXECUTING, IDLE

        number_feed._MANY = 1  # type: ignore[misc]
        async with served(RECORDS, ["one"]) as ioc:
            client, link = await watching(ioc, ["field()"])
            (feed,) = await on_a_board(ioc, client)
            assert feed._board is not None
            (watcher,) = feed.watchers.values()
            wire = watcher.subscription.wire
            # What a client that subscribes to more asks for, which others of this connection are still worked on.
            link.waits = True
            link._backlog = [OperationRequested(wire), MonitorWindow(wire)]
            before = len(link.connection.outbox.chunks)
            ioc.channels["one"].put(77.0)
            ioc.stream.deliver([feed])
            assert feed._board is not None
            assert len(link.connection.outbox.chunks) == before + 1
            # The client stops this one, and its handler has not heard of it.
            wire._receive_monitor(c.SUB_PROCESS, b"", 0, 0, big=False)
            assert wire.state is IDLE
            link._backlog += link.connection.pending_events()
            before = len(link.connection.outbox.chunks)
            ioc.channels["one"].put(78.0)
            ioc.stream.deliver([feed])
            assert feed._board is None
            assert len(link.connection.outbox.chunks) == before
            wire.state = EXECUTING
            assert not any(map(stops_updates, link.unhandled))
            link._backlog = []
            link.waits = False
            await got(client, 78.0)
            wire.connection.drop_operation(wire)
            assert [type(event) for event in link.unhandled] == [OperationClosed]
            assert all(map(stops_updates, link.unhandled))

    run(test)


@isolated
def test_a_few_alike_among_many_stay_off_boards(tmp_path: Path) -> None:
    async def test() -> None:
        from appliance.ioc import number_feed

        number_feed._MANY = 2  # type: ignore[misc]
        records = RECORDS + 'record(longout, "two") {}\n'
        async with served(records, ["one", "two"]) as ioc:
            client = await asyncio.to_thread(Client, ioc.port)
            await asyncio.to_thread(client.watch, ["one", "two"])
            await asyncio.to_thread(client.until, lambda it: len(it.got) == 2)
            for value in (1, 2, 3):
                await ioc.put({"one": value, "two": value})
            await asyncio.to_thread(client.until, lambda it: it.last(1, "<d") == 3.0 and it.last(2) == 3)
            assert not ioc.stream.boards

    run(test)

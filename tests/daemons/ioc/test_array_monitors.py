"""Updates of arrays are made where EPICS writes the numbers: the same octets as in the general way, and nothing in them changes later."""

from __future__ import annotations

import asyncio
import itertools
import socket
import struct
from pathlib import Path
from typing import Any

from tests.helpers.isolated import isolated
from tests.helpers.records_here import Client, run, served

RECORDS = """
record(waveform, "doubles") { field(NELM, "400") field(FTVL, "DOUBLE") field(EGU, "V") field(SIMS, "MINOR") }
record(waveform, "floats") { field(NELM, "20") field(FTVL, "FLOAT") }
record(waveform, "shorts") { field(NELM, "20") field(FTVL, "SHORT") }
record(waveform, "octets") { field(NELM, "300") field(FTVL, "UCHAR") }
record(aao, "longs") { field(NELM, "20") field(FTVL, "ULONG") }
record(aao, "int64s") { field(NELM, "20") field(FTVL, "INT64") }
record(longout, "end") {}
"""
NAMES = ["doubles", "floats", "shorts", "octets", "longs", "int64s"]
TYPES = dict(zip(NAMES, ["f8", "f4", "i2", "u1", "u4", "i8"], strict=True))


@isolated
def test_the_octets_are_those_of_the_general_way(tmp_path: Path) -> None:
    import numpy as np
    from hypothesis import HealthCheck, example, given, settings
    from hypothesis import strategies as st

    lengths = st.sampled_from([0, 1, 2, 10, 20, 253, 254, 300, 400])
    changes = st.tuples(st.sampled_from(NAMES), lengths, st.integers(0, 200), st.booleans())

    async def test() -> None:
        written = [*NAMES, "doubles.SIMM", "doubles.DESC", "end"]
        async with served(RECORDS, written) as ioc:
            # A filter that lets all pass makes it a client of the general feed.
            twice = [each for name in NAMES for each in (name, f'{name}.VAL{{"arr":{{"s":0}}}}')]
            client = await asyncio.to_thread(Client, ioc.port)
            await asyncio.to_thread(client.watch, [*twice, "end"])
            await asyncio.to_thread(client.until, lambda it: len(it.got) == len(twice) + 1)
            from appliance.ioc import array_feed, feed

            kinds = [type(sink) for _, keys in ioc.stream.hub._rings.values() for sink in keys.values()]
            assert kinds.count(array_feed.ArrayFeed) == kinds.count(feed.Feed) == len(NAMES)
            ends = itertools.count(1)
            loop = asyncio.get_running_loop()
            compared = [0]

            async def step(steps: list[tuple[str, int, int, bool]]) -> None:
                for name, length, value, simulated in steps:
                    array = np.full(min(length, ioc.channels[name].elements), value, TYPES[name])
                    await ioc.put({"doubles.SIMM": int(simulated), name: array})
                last = next(ends)
                await ioc.put({"end": last})
                await asyncio.to_thread(client.until, lambda it: it.last(len(twice) + 1) == last)
                for number, name in enumerate(NAMES):
                    fast, general = client.got[2 * number + 1], client.got[2 * number + 2]
                    assert fast == general, name
                    compared[0] += len(fast)
                    fast.clear()
                    general.clear()

            @settings(deadline=None, max_examples=25, database=None, suppress_health_check=list(HealthCheck))
            @given(st.lists(changes, min_size=1, max_size=4))
            @example([("doubles", 400, 1, False), ("doubles", 400, 1, False), ("doubles", 254, 2, False)])
            @example([("doubles", 400, 1, True), ("doubles", 400, 2, True), ("doubles", 0, 0, False)])
            @example([(name, 20, 7, False) for name in NAMES])
            def same(steps: list[tuple[str, int, int, bool]]) -> None:
                asyncio.run_coroutine_threadsafe(step(steps), loop).result(90)

            await asyncio.to_thread(same)
            assert compared[0] > 25

    run(test)


def array_of(update: tuple[int, bytes]) -> tuple[float, ...]:
    """The numbers of an update of ``value``."""
    _, rest = update
    size, at = (rest[0], 1) if rest[0] < 254 else (int.from_bytes(rest[1:5], "little"), 5)
    return struct.unpack_from(f"<{size}d", rest, at)


@isolated
def test_arrays_that_wait_to_be_sent_do_not_change(tmp_path: Path) -> None:
    """Clients read slowly, one has a queue, and one begins late: each gets whole arrays, in order, and the last one.

    All that a connection has to send is noted when it is handed to the socket, and is the same when it has left.
    """
    import numpy as np
    import uvloop

    from appliance.pva.outbox import Outbox

    count = 4000
    """So many numbers are not copied on their way to the socket, and some arrays of them wait there."""
    handed: list[tuple[memoryview, bytes]] = []
    take = Outbox.take

    def noted(outbox: Outbox) -> Any:
        chunks = take(outbox)
        handed.extend((view, bytes(view)) for view in map(memoryview, chunks) if view.nbytes > 8 * count)
        return chunks

    Outbox.take = noted  # type: ignore[method-assign]

    async def test() -> None:
        records = f'record(waveform, "large") {{ field(NELM, "{count}") field(FTVL, "DOUBLE") }}'
        async with served(records, ["large"]) as ioc:
            numbers = itertools.count(1)
            queued: list[tuple[Any, bytes]] = []

            async def change() -> float:
                number = float(next(numbers))
                await ioc.put({"large": np.full(count, number)})
                for link in ioc.server.peers:
                    for operation in link.connection.operations.values():
                        for update in operation.context.queue:
                            value = update.store[1]
                            queued.append((value, value.tobytes()))
                return number

            clients: list[Any] = []
            for request in ("field()", "record[queueSize=6]field()", "field()"):
                client = await asyncio.to_thread(Client, ioc.port)
                # With less, the system waits long before it sends more of a large message.
                client.driver.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
                await asyncio.to_thread(client.watch, ["large"], [request])
                clients.append(client)
                ioc.shrink()
                for _ in range(6):
                    await change()
            async with asyncio.timeout(120):
                while any(link.writable for link in ioc.server.peers):
                    await change()
            # All of them are behind now.
            for _ in range(10):
                last = await change()
            for client in clients:
                await asyncio.to_thread(
                    client.until, lambda it: bool(it.got) and array_of(it.got[1][-1])[:1] == (last,)
                )
                arrays = [array_of(update) for update in client.got[1] if update[0] & 3]
                seen = [array[0] for array in arrays if array]
                assert all(len(set(array)) <= 1 for array in arrays)
                assert seen == sorted(seen)
                assert len(set(seen)) == len(seen)
            assert len(handed) > 10
            assert all(view == octets for view, octets in handed)
            assert len({octets for _, octets in queued}) > 5
            assert all(value.tobytes() == octets for value, octets in queued)

    # The daemon's event loop: what it cannot send at once it keeps as it is, without a copy.
    run(test, uvloop.new_event_loop)


@isolated
def test_clients_with_other_requests_get_what_they_asked_for(tmp_path: Path) -> None:
    import numpy as np

    async def test() -> None:
        records = 'record(waveform, "w") { field(NELM, "400") field(FTVL, "DOUBLE") field(SIMS, "MAJOR") }'
        async with served(records, ["w", "w.SIMM", "w.EGU"]) as ioc:
            requests = ["field(value)", "field(timeStamp)", "field(alarm)", "field()", "record[DBE=1]field()"]
            client = await asyncio.to_thread(Client, ioc.port)
            await asyncio.to_thread(client.watch, ["w"] * len(requests), requests)
            await asyncio.to_thread(client.until, lambda it: len(it.got) == len(requests))
            for number in range(1, 4):
                await ioc.put({"w": np.full(300, float(number))})
            await ioc.put({"w.EGU": "mV"})
            await ioc.put({"w.SIMM": 1, "w": np.full(300, 9.0)})

            def has_all(it: Client) -> bool:
                """Whether the alarm has come, and each has as many arrays."""
                arrays = [len([bits for bits, _ in it.got[each] if bits & 3]) for each in (1, 4, 5)]
                return len(it.got[4]) > 4 and it.got[4][-1][0] & 0b111000 > 0 and len(set(arrays)) == 1

            await asyncio.to_thread(client.until, has_all)
            assert [array_of(update)[0] for update in client.got[1][1:4]] == [1.0, 2.0, 3.0]
            value, time = 1 << 1, 0b111 << 7
            assert [bits for bits, _ in client.got[2][1:4]] in ([time] * 3, [1 << 6] * 3)
            assert [len(client.got[each][2][1]) for each in (1, 4)] == [
                5 + 2400 + 1,
                5 + 2400 + 16 + 1,
            ], "the value and the bit set of lost changes; the time too"
            assert client.got[4][2][0] == value | time
            # An alarm is told only to those who want to know it.
            assert not any(bits & 0b111000 for bits, _ in client.got[5][1:])

    run(test)


@isolated
def test_arrays_are_read_as_one_by_one(tmp_path: Path) -> None:
    import numpy as np
    import pytest

    from appliance.errors import OperationError
    from appliance.ioc import dbcore
    from appliance.ioc.dbcore import array_read

    dbcore.boot()
    dbcore.load_records_text(RECORDS)
    dbcore.ioc_init()
    channels = [dbcore.DBChannel(name) for name in NAMES]
    for channel in channels:
        channel.put(np.arange(10, dtype=TYPES[channel.name]))
    others = [dbcore.DBChannel(name) for name in ("end", "doubles.EGU", 'shorts.VAL{"arr":{"s":1}}')]
    assert all(map(dbcore.can_read_array, channels))
    assert not any(map(dbcore.can_read_array, others))
    readers = [dbcore.ArrayReader(channel) for channel in channels]
    for at_once in (1, 1000, 1 << 20):
        array_read._AT_ONCE = at_once  # type: ignore[misc]
        for channel, came in zip(channels, dbcore.read_arrays(readers), strict=True):
            one, other = channel.get(), came.reading()
            assert one[1:] == other[1:]
            assert one.value.dtype == other.value.dtype
            assert one.value.tolist() == other.value.tolist() == list(range(10))
            assert not other.value.flags.writeable
            assert len(came.memory) < 2 * (came.end + array_read.ROOM_BEHIND), "no memory for missing numbers"
    channels[0].close()
    with pytest.raises(OperationError, match="doubles is closed"):
        dbcore.read_arrays(readers)
    assert array_read._locks
    dbcore.forget_locks()
    assert not array_read._locks
    for channel in (*channels[1:], *others):
        channel.close()
    dbcore.shutdown()

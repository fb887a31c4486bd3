"""Clients that are behind: what their events cost, and that each record's last value arrives."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path
from typing import Any

from tests.helpers.isolated import isolated
from tests.helpers.records_here import MONITOR, Client, encoded_request, run, served

COUNT = 50
NUMBERS = [f"r{number}" for number in range(COUNT)]
RECORDS = "".join(f'record(longout, "r{number}") {{}}\n' for number in range(COUNT)) + (
    'record(ao, "alarmed") { field(HIHI, "1000") field(HHSV, "MAJOR") }\nrecord(stringout, "text") {}\n'
    'record(ao, "alone") { field(HIHI, "1000") field(HHSV, "MAJOR") }\n'
)


class Counts:
    """How often records were read for updates, and how many Updates were made."""

    def __init__(self) -> None:
        from appliance.ioc import feed, number_feed

        self.read = self.made = 0
        for kind in (feed.Feed, number_feed.NumberFeed):
            self._count(kind)
        self._count_rows()

    def _count_rows(self) -> None:
        from appliance.ioc.dbcore.number_rows import NumberRows

        read = NumberRows.read

        def counted_read(table: Any, rows: Any) -> Any:
            self.read += len(rows)
            return read(table, rows)

        NumberRows.read = counted_read  # type: ignore[assignment,method-assign]

    def _count(self, kind: Any) -> None:
        read, update = kind.__dict__["_read_and_post"].__func__, kind.update

        def counted_read(cls: Any, feeds: list[Any]) -> None:
            self.read += len(feeds)
            read(cls, feeds)

        def counted_update(feed: Any, bits: int, overrun: int = 0) -> Any:
            self.made += 1
            return update(feed, bits, overrun)

        kind._read_and_post = classmethod(counted_read)
        kind.update = counted_update


@isolated
def test_events_of_a_client_that_does_not_read_are_not_even_read_and_the_last_values_arrive(
    tmp_path: Path,
) -> None:
    check_a_client_that_does_not_read(many=1000)


@isolated
def test_many_events_of_a_client_that_does_not_read_are_not_read_either(tmp_path: Path) -> None:
    check_a_client_that_does_not_read(many=1)


def check_a_client_that_does_not_read(many: int) -> None:
    """``many`` are so many changes that they are handled at once."""

    async def test() -> None:
        from appliance.ioc import number_feed

        number_feed._MANY = many  # type: ignore[misc]
        from appliance.ioc.behind import Watched

        names = [f"r{number}" for number in range(COUNT)]
        async with served(RECORDS, [*NUMBERS, "alarmed", "text", "alone"]) as ioc:
            client = await asyncio.to_thread(Client, ioc.port)
            await asyncio.to_thread(client.watch, names)
            await asyncio.to_thread(client.until, lambda it: len(it.got) == COUNT)
            await ioc.clog(NUMBERS)
            await ioc.put(dict.fromkeys(names, 0))
            counts = Counts()
            unread = Watched.unread
            for number in range(1, 1001):
                for name in names:
                    ioc.channels[name].put(number * 7)
                await asyncio.sleep(0)
            await ioc.settled()
            assert Watched.unread - unread >= COUNT
            # Not one of 50 000 changes was read or made into an update.
            assert (counts.read, counts.made) == (0, 0)
            await asyncio.to_thread(
                client.until, lambda it: all(it.last(ioid) == 7000 for ioid in range(1, COUNT + 1))
            )
            assert counts.read <= 2 * COUNT
            # Each update that was late says that its record changed more than once.
            assert all(client.got[ioid][-1][1][-2:] != b"\0\0" for ioid in range(1, COUNT + 1))
            await asyncio.to_thread(client.driver.close)
            while len(ioc.stream.backlogs):
                await asyncio.sleep(0.01)

    run(test)


@isolated
def test_a_slow_client_of_a_record_does_not_hold_up_another_and_misses_no_alarm(tmp_path: Path) -> None:
    check_a_slow_client_beside_another(many=1000)


@isolated
def test_a_slow_client_of_many_records_does_not_hold_up_another_and_misses_no_alarm(tmp_path: Path) -> None:
    check_a_slow_client_beside_another(many=1)


def check_a_slow_client_beside_another(many: int) -> None:
    """``many`` are so many changes that they are handled at once."""

    async def test() -> None:
        from appliance.ioc import number_feed

        number_feed._MANY = many  # type: ignore[misc]
        names = ["alarmed", "text", "alone", *(f"r{number}" for number in range(COUNT))]
        async with served(RECORDS, [*NUMBERS, "alarmed", "text", "alone"]) as ioc:
            slow = await asyncio.to_thread(Client, ioc.port)
            await asyncio.to_thread(slow.watch, names)
            await asyncio.to_thread(slow.until, lambda it: len(it.got) == len(names))
            await ioc.put({"alarmed": 1.0, "text": "before", "alone": 1.0})
            await ioc.put({"alone": 2.0})
            await ioc.clog(NUMBERS)
            fast = await asyncio.to_thread(Client, ioc.port)
            await asyncio.to_thread(fast.watch, ["alarmed"])
            for number in range(2000, 2010):
                await ioc.put({"alarmed": float(number)})
                await asyncio.to_thread(fast.until, lambda it, n=number: it.last(1, "<d") == n)  # type: ignore[misc]
            for text in ("several", "", "the last"):
                await ioc.put({"text": text})
            # Nobody reads this one meanwhile.
            await ioc.put({"alone": 1000.0})
            await ioc.put({"alone": 1001.0})
            # One that comes now gets the present value, and takes nothing from the one that waits for it.
            late = await asyncio.to_thread(Client, ioc.port)
            await asyncio.to_thread(late.watch, ["alone"])
            await asyncio.to_thread(late.until, lambda it: it.last(1, "<d") == 1001.0)
            slow.got.clear()
            await asyncio.to_thread(slow.until, lambda it: it.last(1, "<d") == 2009.0)
            await asyncio.to_thread(slow.until, lambda it: 2 in it.got)
            bits, rest = slow.got[2][-1]
            assert rest[:9] == b"\x08the last"
            assert rest[-2:] == bytes((1, bits & 0xFF)) or bits > 0xFF
            await asyncio.to_thread(slow.until, lambda it: it.last(3, "<d") == 1001.0)
            assert slow.got[3][-1][0] & 0b111010 == 0b111010
            # It changed twice: the update says so.
            assert slow.got[3][-1][1][-2:] != b"\0\0"
            # value 1, alarm.severity 3, status 4, message 5
            assert slow.got[1][-1][0] & 0b111010 == 0b111010
            assert sum(len(updates) for updates in fast.got.values()) >= 10

    run(test)


@isolated
def test_a_client_that_acknowledges_nothing_costs_its_queue_and_no_more(tmp_path: Path) -> None:
    async def test() -> None:
        options = encoded_request("record[pipeline=true,queueSize=3]field()")
        async with served(RECORDS, [*NUMBERS, "alarmed", "text", "alone"]) as ioc:
            client = await asyncio.to_thread(Client, ioc.port)

            def watch() -> None:
                (sid,) = client.driver.channels(["r0"])
                client.driver.send(
                    MONITOR, struct.pack("<IIB", sid, 1, 0x88) + options + struct.pack("<I", 3)
                )
                client.driver.wait_for(MONITOR)
                client.driver.send(MONITOR, struct.pack("<IIB", sid, 1, 0x44))

            await asyncio.to_thread(watch)
            await asyncio.to_thread(client.read)
            counts = Counts()
            for number in range(1, 101):
                await ioc.put({"r0": number})
            # Two more fill the window of three, and three the queue. The rest only marks the record.
            assert counts.made <= 4
            assert counts.read <= 8
            (sid,) = client.driver.sids
            while client.last(1) != 100:
                await asyncio.to_thread(client.driver.send, MONITOR, struct.pack("<IIBI", sid, 1, 0x80, 1))
                await asyncio.to_thread(client.read)
            values = [struct.unpack_from("<i", rest)[0] for bits, rest in client.got[1] if bits & 3]
            assert values == [0, 1, 2, 3, 4, 5, 100], values

    run(test)

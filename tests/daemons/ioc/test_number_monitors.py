"""Monitors of plain numbers, whose updates are made from the record's memory: what comes, marked as what."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from appliance.client import Monitor
from appliance.pvdata import Value
from tests.helpers.ioc_process import running_ioc
from tests.helpers.isolated import isolated

RECORDS = """
record(ao, "ao") { field(HIHI, "80") field(HHSV, "MAJOR") field(EGU, "V") field(PREC, "2") }
record(longout, "longout") {}
record(int64out, "int64out") {}
record(bo, "bo") { field(ZNAM, "off") field(ONAM, "on") }
record(mbbo, "mbbo") { field(ZRVL, "0") field(ONVL, "1") field(TWVL, "2") field(TWST, "two") }
record(stringout, "text") {}
record(calc, "calc") { field(CALC, "VAL+1") }
"""
TIME = {"timeStamp.secondsPastEpoch", "timeStamp.nanoseconds", "timeStamp.userTag"}
ALARM = {"alarm.severity", "alarm.status", "alarm.message"}


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "numbers.db"
    path.write_text(RECORDS)
    return path


async def update(subscription: Monitor) -> Value:
    async with asyncio.timeout(30):
        while not isinstance(item := await anext(subscription), Value):
            pass
        return item


def marked(value: Value) -> set[str]:
    kind = value.type
    return {kind.paths[leaf] for leaf in kind.leaves if value.is_marked(kind.paths[leaf])}


@pytest.mark.parametrize(
    ("name", "field", "values"),
    [
        ("ao", "value", [1.5, -1e300, 2.25]),
        ("longout", "value", [7, -(1 << 31), (1 << 31) - 1]),
        ("int64out", "value", [1 << 62, -(1 << 62), 1]),
        ("bo", "value.index", [1, 0, 1]),
        ("mbbo", "value.index", [2, 1, 2]),
        ("text", "value", ["a", "", "x" * 39, "\u20ac 1", "b", "cc", "dddd", "eeeee", "a"]),
    ],
)
async def test_each_kind_of_value_comes_with_its_time_and_nothing_else(
    database: Path, name: str, field: str, values: list[Any]
) -> None:
    async with running_ioc("-S", "-d", database) as ioc, ioc.client() as client:
        await client.put(name, {field: values[1]})  # a record that was never processed is in alarm
        async with client.monitor(name) as subscription:
            await update(subscription)
            for value in values:
                await client.put(name, {field: value})
                told = await update(subscription)
                got = await client.get(name)
                assert told[field] == value == got[field]
                assert {path: told[path] for path in TIME} == {path: got[path] for path in TIME}
                assert marked(told) == {field, *TIME}


async def test_alarms_and_properties_come_when_they_change(database: Path) -> None:
    async with running_ioc("-S", "-d", database) as ioc, ioc.client() as client:
        await client.put("ao", 1.0)
        async with client.monitor("ao") as subscription:
            await update(subscription)
            await client.put("ao", 90.0)
            told = await update(subscription)
            assert marked(told) == {"value", *TIME, *ALARM}
            assert (told["alarm.severity"], told["alarm.message"]) == (2, "HIHI")
            await client.put("ao", 91.0)
            assert marked(await update(subscription)) == {"value", *TIME}
            await client.put("ao.EGU", "mV")
            told = await update(subscription)
            assert told["display.units"] == "mV"
            assert not marked(told) & {"value", *TIME, *ALARM}
            await client.put("ao.HIHI", 95.0)
            while "value" not in marked(told):
                told = await update(subscription)
                assert told["valueAlarm.highAlarmLimit"] == 95.0
            assert (told["alarm.severity"], told["display.units"]) == (0, "mV")


async def test_clients_of_one_record_get_what_each_asked_for(database: Path) -> None:
    async with running_ioc("-S", "-d", database) as ioc, ioc.client() as client, ioc.client() as other:
        await client.put("ao", 1.0)
        async with (
            client.monitor("ao") as all_of_it,
            other.monitor("ao", "field(value)") as values,
            other.monitor("ao", "field(alarm)") as alarms,
        ):
            for subscription in (all_of_it, values, alarms):
                await update(subscription)
            for number in (2.0, 3.0, 99.0):
                await client.put("ao", number)
                assert (await update(all_of_it))["value"] == number
                told = await update(values)
                assert told["value"] == number
                assert marked(told) == {"value"}
            # The first of what this one hears is the last of what happened.
            assert (await update(alarms))["alarm.severity"] == 2


async def test_a_client_that_is_behind_gets_the_latest_and_is_told_what_it_missed(database: Path) -> None:
    async with (
        running_ioc("-S", "-d", database) as ioc,
        ioc.client() as client,
        client.monitor("ao", "record[queueSize=2,pipeline=true]", notify=True) as slow,
        client.monitor("ao.VAL") as beside,
    ):
        told = await update(slow)
        async with asyncio.timeout(60):
            for number in range(1, 51):
                await client.put("ao", float(number))
                # EPICS makes one event of changes that come too fast. Of these, each has its own.
                while (await anext(beside))["value"] != number:
                    pass
        while told["value"] != 50.0:
            told = await update(slow)
        assert slow.overruns


@isolated
def test_memory_is_looked_at_anew_once_for_many_records(tmp_path: Path) -> None:
    import random

    import numpy as np

    from appliance.ioc import dbcore
    from appliance.ioc.dbcore.number_rows import NumberRows

    dbcore.boot()
    count = 3000
    dbcore.load_records_text(
        "".join(f'record(ao, "r:{number}") {{ field(VAL, "{number}") }}\n' for number in range(count))
    )
    dbcore.ioc_init()
    looked: list[int] = []
    look_at = NumberRows._look_at

    def counted(self: NumberRows, address: int) -> None:
        looked.append(address)
        look_at(self, address)

    NumberRows._look_at = counted  # type: ignore[method-assign]
    views = [dbcore.NumberView(dbcore.DBChannel(f"r:{number}")) for number in range(count)]
    order = list(range(count))
    random.Random(15).shuffle(order)
    rows = NumberRows(views[order[0]])
    row_of = {number: rows.add(views[number]) for number in order}
    span = max(view.address for view in views) - min(view.address for view in views)
    assert len(looked) <= 2 + span // (16 << 20)
    seen = rows.read(np.array([row_of[number] for number in range(count)], np.intp))
    assert [rows.parts(octets)[0][-1] for octets in seen] == [float(number) for number in range(count)]
    for view in views:
        view.channel.close()
    dbcore.shutdown()

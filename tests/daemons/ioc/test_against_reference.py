"""Field for field: our IOC beside pvxslibs' QSRV2 with the same databases, asked by the same client."""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance.client import Context
from appliance.errors import ApplianceError
from appliance.pvdata import Value, render_type
from tests.helpers.ioc_process import EXAMPLE_FILES, EXAMPLES, loading, running_ioc, running_reference

pytestmark = pytest.mark.interop

DATABASES = [*EXAMPLE_FILES, *map(Path(__file__).with_name, ("all_types.db", "demo_types.db"))]
GROUP_FILES = [EXAMPLES / "image.json"]
COUNTING = ("calcExample", "aiExample", "compressExample", "structExample")
GROUPS = [
    "test:structExample", "test:tableExample", "tst:Array", "tst:Array2",
    "t:g:enum", "t:g:constants", "t:g:split", "t:g:mixed", "d:wave", "d:list", "d:table",
]  # fmt: skip
FIELDS = [
    "DESC",
    "SCAN",
    "PINI",
    "PREC",
    "HOPR",
    "EGU",
    "INP",
    "OUT",
    "FLNK",
    "STAT",
    "SEVR",
    "DTYP",
    "PACT",
]
MORE = [
    "t:wf:double.VAL[1:3]", 't:ai{"dbnd":{"d":1.5}}', 't:wf:short{"arr":{"s":0,"e":2}}', "t:calc.A", "t:calc.CALC",
    "tst:extra:alias", "tst:extra:alias.ZNAM", "t:mbbi.ZRST", "t:mbbi.RVAL", "t:longin.HIGH", "t:ai.HIHI",
    "t:lso.LEN", "t:wf:text.NORD", "t:printf.FMT", "t:dfanout.OUTA", "t:sel.SELM", "t:int64in.LOLO", "t:asub.A", "t:ai.LINR",
]  # fmt: skip


BEYOND = (str(2**63 - 1), str(-(2**63)))
"""The highest limit of 64 bits, here and as the reference's processor makes it of a double."""


def names() -> list[str]:
    """All records, fields of some, filters, groups."""
    records = [
        name.replace("$(user)", "test").replace("$(N)", "tst")
        for file in DATABASES
        for name in re.findall(r'^record\((?!"\*")\w+, "([^"]+)"', file.read_text(), re.MULTILINE)
    ]
    fields = [f"{record}.{field}" for record in records if record.startswith("t:") for field in FIELDS]
    return [*records, *fields, *MORE, *GROUPS]


def shown(value: Value) -> dict[str, Any]:
    """Every leaf and whether it is marked, without what differs by nature: the time."""
    found: dict[str, Any] = {}

    def walk(item: Any, path: str) -> None:
        if isinstance(item, dict):
            for name, inner in item.items():
                walk(inner, f"{path}.{name}" if path else name)
        elif isinstance(item, list) and any(isinstance(each, dict) for each in item):
            for index, each in enumerate(item):
                walk(each, f"{path}[{index}]")
        elif not path.endswith(("secondsPastEpoch", "nanoseconds", "userTag")):
            found[path] = repr(item)

    walk(value.to_dict(), "")
    kind = value.type
    found["marked"] = sorted(
        kind.paths[number] for number in kind.leaves if value.is_marked(kind.paths[number])
    )
    found["type"] = render_type(kind)
    return found


async def first(subscription: Any) -> Value:
    """The next value of a subscription."""
    async with asyncio.timeout(30):
        while True:
            item = await anext(subscription)
            if isinstance(item, Value):
                return item


async def seen(client: Context, name: str) -> dict[str, Any]:
    """What a client sees of a PV by GET and by MONITOR; not there counts as well."""
    try:
        got = await client.get(name, timeout=30)
    except ApplianceError as error:
        return {"error": type(error).__name__}
    async with client.monitor(name) as subscription:
        watched = await first(subscription)
    return {"get": shown(got), "monitor": shown(watched)}


@pytest.fixture
async def both() -> Any:
    async with AsyncExitStack() as stack:
        ours = await stack.enter_async_context(running_ioc(*loading(DATABASES, GROUP_FILES)))
        theirs = await stack.enter_async_context(running_reference(DATABASES, GROUP_FILES))
        yield (
            await stack.enter_async_context(ours.client()),
            await stack.enter_async_context(theirs.client()),
        )


async def present(client: Context, wanted: list[str], timeout: float = 3) -> list[str]:
    """Those of the names that an IOC has."""
    found: list[str] = []

    async def look(name: str) -> None:
        try:
            await client.info(name, timeout=timeout)
        except ApplianceError:
            return
        found.append(name)

    await asyncio.gather(*(look(name) for name in wanted))
    return [name for name in wanted if name in found]


async def test_every_pv_and_group_is_the_same_by_info_get_and_monitor(both: tuple[Context, Context]) -> None:
    wanted = names()
    here, there = await asyncio.gather(*(present(client, wanted) for client in both))
    # On a busy machine three seconds can be too short: what only one of the two seems to have is asked for again, for longer.
    doubtful = [name for name in wanted if (name in here) != (name in there)]
    late = await asyncio.gather(*(present(client, doubtful, 30) for client in both))
    assert late[0] == late[1]
    here = [name for name in wanted if name in here or name in late[0]]
    assert set(GROUPS) < set(here)
    assert len(here) > 400
    differences = {}
    for name in here:
        ours, theirs = await asyncio.gather(*(seen(client, name) for client in both))
        if name == "t:g:mixed":
            # Its fields without a trigger are missing in the reference's first update, and zero at the client.
            mine, other = ours.pop("monitor"), theirs.pop("monitor")
            assert set(other["marked"]) < set(mine["marked"])
            assert mine["list[1].b"] == ours["get"]["list[1].b"] == "1"
        for way, leaves in theirs.items():
            if way != "error" and way in ours:
                leaves.update(
                    (key, ours[way][key]) for key in leaves if (ours[way].get(key), leaves[key]) == BEYOND
                )
        if ours != theirs and not any(word in name for word in COUNTING):
            differences[name] = {
                way: {
                    key: (ours[way].get(key), theirs[way].get(key))
                    for key in theirs[way]
                    if ours[way].get(key) != theirs[way].get(key)
                }
                for way in theirs
                if way in ours and way != "error" and ours[way] != theirs[way]
            } or (ours, theirs)
    assert differences == {}


PUTS: list[tuple[str, Any, str]] = [
    ("t:ao", 3.25, ""),
    ("t:ao", 17.0, "record[process=true]"),
    ("t:ao", 2.0, "record[process=false]"),
    ("t:ao", 4.5, "record[block=true]"),
    ("t:ao.DESC", "new description", ""),
    ("t:ao.HOPR", 99.0, ""),
    ("t:ao.OUT", "t:longout NPP", ""),
    ("t:bo", {"value.index": 1}, ""),
    ("t:mbbo", {"value.index": 1}, "record[block=true]"),
    ("t:longout", 7, ""),
    ("t:longin", 55, ""),
    ("t:int64out", -(1 << 40), ""),
    ("t:stringout", "some text", ""),
    ("t:lso", "x" * 100, ""),
    ("t:wf:double", np.array([1.5, 2.5, float("nan")]), ""),
    ("t:wf:uint64", np.array([1, 2**64 - 1], "u8"), ""),
    ("t:wf:string", ["a", "bc"], ""),
    ("t:wf:text", "a long text", ""),
    ("t:aao", ["p", "q"], "record[block=true]"),
    ("t:calc.PROC", 1, ""),
    ("t:calc", 2.0, "record[process=true]"),
    ("t:disp", 5, ""),
    ("t:ai.HIHI", 10.0, ""),
    ("t:ai", 50.0, ""),
    ("t:mbbi.ZRST", "changed", ""),
    ("t:ai.SCAN", {"value.index": 6}, ""),
    ("d:shift", 45.5, "record[block=true]"),
    ("d:sine.PROC", 1, ""),
    ("d:tag.PROC", 1, ""),
]
GROUP_PUTS: list[tuple[str, dict[str, Any], str]] = [
    ("test:tableExample", {"value.A": np.array([1.0, 2.0]), "value.B": np.array([3.0])}, ""),
    ("test:tableExample", {"value.A": np.array([7.0])}, "record[process=false]"),
    ("t:g:enum", {"value.index": 0}, ""),
    ("t:g:split", {"a.value": 5.5, "b.value.index": 0}, ""),
    ("t:g:split", {"a.value": 6.5}, "record[atomic=true]"),
    ("t:g:mixed", {"a.value": 9.0}, "record[process=true]"),
    ("t:g:mixed", {"readonly": 3.0}, ""),
    ("tst:Array", {"attribute": [None]}, ""),
    ("d:wave", {"angle": 3.0}, ""),
    ("d:list", {"value.index": 2}, ""),
    ("d:table", {"value.x": np.array([1.5, 2.5]), "value.y": np.array([7, 8], "i4")}, ""),
    ("d:table", {"value.y": np.array([9], "i4")}, "record[block=true]"),
    ("d:table", {"value.x": np.array([4.5])}, "record[process=true]"),
]  # fmt: skip


async def outcome(client: Context, name: str, value: Any, request: str) -> str:
    """How a PUT ended."""
    try:
        await client.put(name, value, request=request, timeout=30)
    except ApplianceError:
        return "refused"
    return "done"


async def drained(subscription: Any, quiet_s: float) -> set[str]:
    """What is marked in all updates until nothing has come for a while."""
    marked: set[str] = set()
    try:
        while True:
            async with asyncio.timeout(quiet_s):
                item = await anext(subscription)
            if isinstance(item, Value):
                marked.update(shown(item)["marked"])
    except TimeoutError:
        return marked


async def updates(client: Context, name: str, value: Any, request: str) -> tuple[str, list[dict[str, Any]]]:
    """A PUT, and what a monitor of the same PV marks because of it."""
    async with client.monitor(name) as subscription:
        await first(subscription)
        # The reference may send the first value of a group in several parts.
        await drained(subscription, 0.3)
        ended = await outcome(client, name, value, request)
        marked = await drained(subscription, 0.3)
    if "." in name:
        # Beside the value field the reference marks the alarm with the events of some fields and not of others;
        # we mark it whenever it has changed.
        marked = {path for path in marked if not path.startswith("alarm.")}
    return ended, [shown(await client.get(name, timeout=30)), {"marked": sorted(marked)}]


@pytest.mark.parametrize("puts", [PUTS, GROUP_PUTS], ids=["records", "groups"])
async def test_puts_have_the_same_effect_and_the_same_updates(
    both: tuple[Context, Context], puts: list[Any]
) -> None:
    differences = []
    for name, value, request in puts:
        ours, theirs = await asyncio.gather(*(updates(client, name, value, request) for client in both))
        if ours[0] != theirs[0]:
            differences.append((name, request, ours[0], theirs[0]))
        for mine, other in zip(ours[1], theirs[1], strict=True):
            differences += [
                (name, request, key, mine.get(key), other.get(key))
                for key in mine.keys() | other.keys()
                if mine.get(key) != other.get(key)
            ]
    assert not differences, "\n".join(map(str, differences))

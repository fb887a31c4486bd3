"""``-F tree`` shows unions and anys as PVXS shows them, empty ones above all; the judge is PVXS in p4p."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from appliance.pvdata import INT32, STRING, ArrayType, StructType, UnionType, Value, nt
from appliance.pvdata.store import AnyValue, UnionValue
from appliance.pvdata.types import ANY
from appliance.server import SharedPV
from tests.helpers.tools import demo_server, environment, run

pytestmark = pytest.mark.interop

EMPTY = AnyValue(None, None)
WITHIN = AnyValue(ANY, EMPTY)
"""An any that holds an any, which is empty: what areaDetector's codec.parameters may be."""
CHOICE = UnionType([("a", INT32), ("b", STRING)])
OF_ANY = UnionType([("x", ANY)])
INNER = StructType([("p", ANY), ("q", CHOICE)])
KIND = StructType(
    [
        ("parameters", ANY),
        ("any_of_any", ANY),
        ("number", ANY),
        ("anys", ArrayType(ANY)),
        ("choice", CHOICE),
        ("chosen", CHOICE),
        ("choices", ArrayType(CHOICE)),
        ("of_any", OF_ANY),
        ("of_any_within", OF_ANY),
        ("inner", INNER),
        ("inners", ArrayType(INNER)),
        ("nothing", ArrayType(INNER)),
    ]
)
P4P = """
import sys
from p4p.client.thread import Context
with Context("pva", nt=False) as context:
    print(context.get(sys.argv[1], timeout=30), end="")
"""


def store() -> Value:
    value = Value(KIND)
    inner = Value(INNER)
    inner.store[inner.type.offsets["p"]] = WITHIN
    inner.changed = 1
    numbers = KIND.offsets
    for name, item in (
        ("parameters", EMPTY),
        ("any_of_any", WITHIN),
        ("number", AnyValue(INT32, 5)),
        ("anys", [EMPTY, AnyValue(STRING, "x"), WITHIN]),
        ("choice", UnionValue(None, None)),
        ("chosen", UnionValue("a", 3)),
        ("choices", [UnionValue("b", "y"), UnionValue(None, None), None]),
        ("of_any", UnionValue("x", EMPTY)),
        ("of_any_within", UnionValue("x", WITHIN)),
        ("inner.p", WITHIN),
        ("inners", [inner, None]),
    ):
        value.store[numbers[name]] = item
    value.changed = 1
    return value


async def test_what_is_empty_is_shown_as_pvxs_shows_it(tmp_path: Path) -> None:
    async with demo_server() as server:
        array = Value(nt.NTNDArray())
        array.store[array.type.offsets["codec.parameters"]] = WITHIN
        array.changed = 1
        for name, value in (("unions", store()), ("array", array)):
            server.add_pv(name, SharedPV(value))
        env = environment(server.udp_port, tmp_path, EPICS_PVA_SERVER_PORT=str(server.tcp_port))
        for name in ("unions", "array"):
            ours = await run("pvxget", "-F", "tree", "-#", "0", name, env=env)
            assert ours.status == 0, ours.err
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", P4P, name, env={**os.environ, **env}, stdout=asyncio.subprocess.PIPE
            )
            async with asyncio.timeout(60):
                theirs, _ = await process.communicate()
            shown = "".join(line[4:] for line in ours.out.splitlines(keepends=True)[1:])
            assert shown.strip() == theirs.decode().strip()
            if name == "unions":
                assert "    any parameters null\n" in ours.out
                assert "    union of_any.x any null\n" in ours.out
        assert "any parameters any null\n" in ours.out

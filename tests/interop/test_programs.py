"""Programs written for p4p talk with each other, whichever of the two run on p4p and whichever on ours."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.helpers.peers import Peer, PeerError, client_environment, server_environment
from tests.helpers.pki import site, write_keychain
from tests.helpers.ports import free_port

pytestmark = pytest.mark.interop
MODULES = {"p4p": (), "ours": ("-m", "appliance.p4p")}
SIZE = 1_048_576
TABLE = {"name": ["q1", "q2"], "current": [1.5, 2.0], "turns": [10, 20]}


class Pair(NamedTuple):
    """A server program and a client program; each on p4p or on ours."""

    client: Peer
    server: Peer
    is_tls: bool


def pair(client: str, server: str, directory: Path | None) -> Iterator[Pair]:
    port = free_port()
    serving = server_environment(port, EPICS_PVAS_TLS_PORT=0)
    asking = client_environment(port)
    if directory is not None:
        # Nothing can go over plain TCP by mistake.
        serving["EPICS_PVAS_TLS_OPTIONS"] = asking["EPICS_PVA_TLS_OPTIONS"] = "tls_required"
        serving["EPICS_PVAS_TLS_KEYCHAIN"] = str(write_keychain(directory / "server.p12", site().server))
        asking["EPICS_PVA_TLS_KEYCHAIN"] = str(write_keychain(directory / "client.p12", site().client))
    with (
        Peer("program_server.py", environ=serving, module=MODULES[server]) as there,
        Peer("program_client.py", environ=asking, module=MODULES[client]) as here,
    ):
        yield Pair(here, there, directory is not None)


COMBINATIONS = [
    ("p4p", "p4p", "tcp"),
    ("p4p", "ours", "tcp"),
    ("ours", "p4p", "tcp"),
    ("ours", "ours", "tcp"),
    ("ours", "ours", "tls"),
]


@pytest.fixture(scope="module", params=COMBINATIONS, ids="-".join)
def programs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    client, server, way = request.param
    yield from pair(client, server, tmp_path_factory.mktemp("keys") if way == "tls" else None)


def updates_of(pv: str, **wanted: Any) -> Any:
    def fits(event: dict[str, Any]) -> bool:
        return event["pv"] == pv and all(event.get(name) == value for name, value in wanted.items())

    return fits


def test_each_program_runs_on_what_it_was_started_with(
    programs: Pair, request: pytest.FixtureRequest
) -> None:
    ours = request.node.callspec.params["programs"][0] == "ours"
    assert programs.client.ask("whose") == ("appliance.p4p.wrapper" if ours else "p4p.wrapper")


def test_get_gives_the_python_types_of_normative_types(programs: Pair) -> None:
    ask = programs.client.ask
    number = ask("get", pv="prog:number")
    assert (number["type"], number["value"], number["severity"]) == ("ntfloat", 1.5, 0)
    assert ask("get", pv="prog:whole") | {"timestamp": 0} == {
        "type": "ntint",
        "value": 42,
        "severity": 0,
        "timestamp": 0,
    }
    assert ask("get", pv="prog:text")["value"] == "grüße ☃"
    assert ask("get", pv="prog:strings")["value"] == ["a", "", "ü"]
    assert ask("get", pv="prog:choice")["value"] in (0, 1, 2)
    assert ask("get", pv="prog:table")["value"]["value"] == TABLE
    image = ask("get", pv="prog:image")
    assert image["type"] == "ntndarray"
    assert image["value"]["shape"] == [3, 4]
    assert image["value"]["sum"] == 66.0
    assert ask("get", pv="prog:rgb")["value"]["shape"] == [4, 5, 3]


def test_get_of_several_keeps_their_order_and_gives_errors_in_their_places(programs: Pair) -> None:
    found = programs.client.ask("get", pv=["prog:whole", "prog:text", "prog:whole"])
    assert [item["value"] for item in found] == [42, "grüße ☃", 42]
    found = programs.client.ask("get", pv=["prog:number", "prog:none"], throw=False, timeout=1.0)
    assert found[1]["type"] in ("TimeoutError", "NoneType")


def test_get_without_conversion_gives_the_structure(programs: Pair) -> None:
    raw = programs.client.ask("raw", pv="prog:number")
    assert raw["id"] == "epics:nt/NTScalar:1.0"
    assert raw["keys"] == ["alarm", "display", "timeStamp", "value", "valueAlarm"]
    assert "value" in raw["changed"]


def test_the_asyncio_client_gets_the_same(programs: Pair) -> None:
    found = programs.client.ask("aget", pv=["prog:whole", "prog:text", "prog:image"])
    assert [item["type"] for item in found] == ["ntint", "ntstr", "ntndarray"]


def test_a_pv_that_nobody_serves_times_out_with_its_name(programs: Pair) -> None:
    assert programs.client.ask("times_out", pv="prog:none").startswith("prog:none")


def test_put_converts_and_is_read_back_with_its_time(programs: Pair) -> None:
    ask = programs.client.ask
    for pv, value, back in (
        ("prog:number", 2.5, 2.5),
        ("prog:number", "3.25", 3.25),
        ("prog:number", 1.5, 1.5),
        ("prog:whole", 41, 41),
        ("prog:whole", 42, 42),
        ("prog:text", "žluťoučký", "žluťoučký"),
        ("prog:text", "grüße ☃", "grüße ☃"),
        ("prog:strings", ["x"], ["x"]),
        ("prog:strings", ["a", "", "ü"], ["a", "", "ü"]),
        ("prog:choice", "HALF", 2),
        ("prog:choice", 0, 0),
    ):
        ask("put", pv=pv, value=value)
        assert ask("get", pv=pv)["value"] == back
    assert ask("get", pv="prog:number")["timestamp"] > 1.7e9


def test_put_of_a_table_and_of_images(programs: Pair) -> None:
    ask = programs.client.ask
    for columns in ({"name": ["s"], "current": [3.5], "turns": [7]}, TABLE):
        ask("put", pv="prog:table", value={"value": columns})
        assert ask("get", pv="prog:table")["value"]["value"] == columns
    for shape, dtype in (([5, 2], "float64"), ([2, 2, 3], "uint8"), ([3, 4], "uint16")):
        ask("put_image", pv="prog:image", shape=shape, dtype=dtype)
        image = ask("get", pv="prog:image")["value"]
        assert (image["shape"], image["dtype"]) == (shape, dtype)


def test_arrays_of_eight_megabytes_go_both_ways(programs: Pair) -> None:
    ask = programs.client.ask
    value = ask("get", pv="prog:long")["value"]
    assert value["shape"] == [SIZE]
    factor = value["last"] / (SIZE - 1)
    assert value["sum"] == SIZE * (SIZE - 1) / 2 * factor
    ask("put_array", pv="prog:long", count=SIZE)
    assert ask("get", pv="prog:long")["value"]["last"] == 2.0 * (SIZE - 1)


def test_errors_of_handlers_reach_the_client(programs: Pair) -> None:
    for pv, reason in (
        ("prog:refusing", "RemoteError: interlock is active"),
        ("prog:raising", "RemoteError: a fault in the handler"),
        ("prog:readonly", "RemoteError: Put not supported"),
    ):
        with pytest.raises(PeerError) as refused:
            programs.client.ask("put", pv=pv, value=1.0)
        assert str(refused.value) == reason


async def test_a_put_that_is_answered_late_waits_and_one_that_is_given_up_harms_nobody(
    programs: Pair,
) -> None:
    def kept(event: dict[str, Any]) -> bool:
        return event["event"] == "kept"

    with pytest.raises(PeerError, match="TimeoutError"):
        await programs.client.do("put", pv="prog:slow", value=1.0, timeout=0.5)
    assert (await programs.server.saw(kept))["value"] == 1.0
    await programs.server.do("answer")
    for value, error in ((2.0, None), (3.0, "too late")):
        number = programs.client.send("put", pv="prog:slow", value=value)
        assert (await programs.server.saw(kept))["value"] == value
        await programs.server.do("answer", error=error)
        if error is None:
            assert programs.client.answer(number) is None
        else:
            with pytest.raises(PeerError, match=f"RemoteError: {error}"):
                programs.client.answer(number)


def test_the_handler_knows_who_writes(programs: Pair) -> None:
    programs.client.ask("put", pv="prog:who", value="?")
    account, name, *roles = programs.client.ask("get", pv="prog:who")["value"].split()
    assert name == "prog:who"
    assert account == ("client" if programs.is_tls else getpass.getuser())
    assert roles or programs.is_tls


def test_rpc_by_proxy_returns_a_number_or_a_table_and_the_services_errors(programs: Pair) -> None:
    ask = programs.client.ask
    assert ask("call", method="add", lhs=1.0, rhs=2.5) | {"timestamp": 0, "severity": 0} == {
        "type": "ntfloat", "value": 3.5, "timestamp": 0, "severity": 0
    }  # fmt: skip
    assert ask("call", method="rows", count=2)["value"]["value"] == TABLE
    for method, reason in (
        ("refuse", "RemoteError: not today"),
        ("crash", "RemoteError: Error handling RPC"),
    ):
        with pytest.raises(PeerError) as refused:
            ask("call", method=method)
        assert str(refused.value) == reason


def test_rpc_by_hand_carries_arguments_of_every_scalar_kind(programs: Pair) -> None:
    arguments = {"i": -(2**40), "d": 0.1, "s": "ü", "b": True}
    assert programs.client.ask("echo", **arguments) == arguments
    with pytest.raises(PeerError, match=r"RemoteError: RPC not supported"):
        programs.client.ask("call_on", pv="prog:refusing")


async def test_a_monitor_tells_its_connection_and_each_update_that_a_client_or_the_server_makes(
    programs: Pair,
) -> None:
    client, server = programs.client, programs.server
    await client.do("monitor", pv="prog:number")
    await client.saw(updates_of("prog:number", event="Disconnected"))
    await client.saw(updates_of("prog:number", event="update", value=1.5, type="ntfloat", severity=0))
    await server.do("post", pv="number", value=7.0, severity=2, message="high")
    await client.saw(updates_of("prog:number", event="update", value=7.0, severity=2))
    await client.do("put", pv="prog:number", value=1.5)
    await client.saw(updates_of("prog:number", event="update", value=1.5))
    assert await server.do("connected") >= 1
    await client.do("unmonitor", pv="prog:number")


async def test_a_monitor_of_images_choices_and_tables_gives_what_get_gives(programs: Pair) -> None:
    client = programs.client
    for name in ("image", "choice", "table", "strings"):
        await client.do("monitor", pv=f"prog:{name}")
        event = await client.saw(updates_of(f"prog:{name}", event="update"))
        found = await client.do("get", pv=f"prog:{name}")
        assert {key: event[key] for key in found} == found
        await client.do("unmonitor", pv=f"prog:{name}")


async def test_a_monitor_outlives_a_pv_that_closes_and_opens(programs: Pair) -> None:
    client, server = programs.client, programs.server
    await client.do("monitor", pv="prog:closed")
    await client.saw(updates_of("prog:closed", event="Disconnected"))
    await server.do("reopen", pv="closed", value=1.0)
    await client.saw(updates_of("prog:closed", event="update", value=1.0))
    await server.do("close", pv="closed")
    await client.saw(updates_of("prog:closed", event="Disconnected"))
    await server.do("reopen", pv="closed", value=2.0)
    await client.saw(updates_of("prog:closed", event="update", value=2.0))
    await server.do("close", pv="closed")
    await client.do("unmonitor", pv="prog:closed")


async def test_a_burst_from_many_threads_ends_with_the_last_value(programs: Pair) -> None:
    client, server = programs.client, programs.server
    await client.do("monitor", pv="prog:readonly")
    await client.saw(updates_of("prog:readonly", event="update"))
    await server.do("burst", pv="readonly", count=2000)
    await client.saw(updates_of("prog:readonly", event="update", value=2000.0))
    await client.do("unmonitor", pv="prog:readonly")


@pytest.mark.parametrize("combination", COMBINATIONS, ids="-".join)
async def test_a_monitor_tells_that_its_server_has_gone(
    combination: tuple[str, str, str], tmp_path: Path
) -> None:
    client, server, way = combination
    for programs in pair(client, server, tmp_path if way == "tls" else None):
        await programs.client.do("monitor", pv="prog:whole")
        await programs.client.saw(updates_of("prog:whole", event="update"))
        await programs.server.do("stop")
        await programs.client.saw(updates_of("prog:whole", event="Disconnected"))

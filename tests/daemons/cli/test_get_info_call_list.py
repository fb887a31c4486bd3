"""pvxget, pvxinfo, pvxcall and pvxlist as processes. What is expected was printed by pvxs's own tools (1.5.3)."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appliance.pvdata import FLOAT64, Value
from appliance.pvdata.nt import NTScalar
from appliance.server import Server, SharedPV
from tests.helpers.tools import demo_server, environment, finish, interrupt, run, start


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with demo_server() as running:
        yield running


@pytest.fixture
def env(server: Server, tmp_path: Path) -> dict[str, str]:
    return environment(server.udp_port, tmp_path, EPICS_PVA_SERVER_PORT=str(server.tcp_port))


DEMO = 'demo\n    value double = 4.25\n    alarm.message string = "hi \\"x\\""\n'
ENUM = 'enum\n    value.index int32_t = 1\n    value.choices string[] = {2}["OFF", "ON"]\n'
TREE = """\
demo
    struct "epics:nt/NTScalar:1.0" {
        double value = 4.25
        struct "alarm_t" {
            int32_t severity = 0
            int32_t status = 0
            string message = "hi \\"x\\""
        } alarm
        struct "time_t" {
            int64_t secondsPastEpoch = 0
            int32_t nanoseconds = 0
            int32_t userTag = 0
        } timeStamp
        struct {
            double limitLow = 0
            double limitHigh = 0
            string description = ""
            string units = ""
        } display
    }
"""
ENUM_TYPE = """\
struct "epics:nt/NTEnum:1.0" {
    struct "enum_t" {
        int32_t index
        string[] choices
    } value
    struct "alarm_t" {
        int32_t severity
        int32_t status
        string message
    } alarm
    struct "time_t" {
        int64_t secondsPastEpoch
        int32_t nanoseconds
        int32_t userTag
    } timeStamp
    struct {
        string description
    } display
}
"""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["demo"], DEMO),
        (["-F", "tree", "demo"], TREE),
        (["-Ftree", "demo"], TREE),
        (["-#", "3", "wave"], "wave\n    value int32_t[] = {30}[0, 1, 2, ...]\n"),
        (["-r", "field(value)", "demo"], "demo\n    value double = 4.25\n"),
        (["text"], 'text\n    value string = "h\\xc3\\xa9llo\\n"\n'),
        (["-F", "bogus", "demo"], DEMO),
    ],
)
async def test_get_prints_what_pvxs_prints(arguments: list[str], expected: str, env: dict[str, str]) -> None:
    done = await run("pvxget", *arguments, env=env)
    assert (done.status, done.out) == (0, expected)


@pytest.mark.parametrize(
    ("name", "why"),
    [("", "the PV name is empty"), ("x" * 1301, "has 1301 octets; a search datagram takes 1300")],
)
async def test_a_name_that_cannot_be_searched_for_does_not_hide_the_others(
    name: str, why: str, env: dict[str, str]
) -> None:
    done = await run("pvxget", name, "demo", env=env)
    assert (done.status, done.out) == (1, DEMO)
    assert why in done.err


async def test_the_longest_name_is_searched_for(env: dict[str, str]) -> None:
    done = await run("pvxget", "-w", "0.5", "x" * 1300, "demo", env=env)
    assert (done.status, done.out) == (1, DEMO)
    assert "no server answered the search" in done.err


@pytest.mark.parametrize(
    ("arguments", "variables"), [(["-F", "nt"], {}), ([], {"SPVA_FORMAT": "nt"})], ids=["option", "setting"]
)
async def test_the_short_form_is_one_line_for_people(
    arguments: list[str], variables: dict[str, str], server: Server, env: dict[str, str]
) -> None:
    when = 1_795_919_533
    room = Value(
        NTScalar(FLOAT64, display=True),
        {
            "value": 21.5,
            "display.units": "°C",
            "timeStamp.secondsPastEpoch": when,
            "alarm.severity": 1,
            "alarm.message": "HIGH",
        },
    )
    server.add_pv("room:T", SharedPV(room))
    done = await run("pvxget", *arguments, "room:T", env={**env, "LC_ALL": "C.UTF-8", **variables})
    local = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))
    assert (done.status, done.err) == (0, "")
    assert done.out == f"{'room:T':<30}  {local}.000  21.5  °C  MINOR HIGH\n"
    done = await run("pvxget", *arguments, "enum", env={**env, **variables})
    assert done.out.split()[-1] == "ON"


async def test_several_pvs_and_options_between_them(env: dict[str, str]) -> None:
    done = await run("pvxget", "demo", "-w", "9", "enum", env=env)
    assert done.status == 0
    assert sorted([DEMO, ENUM]) == sorted(re.split(r"(?m)^(?=\w)", done.out)[1:])
    assert done.err == ""


async def test_arrays_are_cut_at_twenty_and_zero_means_all(env: dict[str, str]) -> None:
    cut = await run("pvxget", "wave", env=env)
    assert cut.out.endswith("18, 19, ...]\n")
    whole = await run("pvxget", "-#", "0", "wave", env=env)
    assert whole.out.endswith("28, 29]\n")


async def test_an_unknown_format_is_a_warning(env: dict[str, str]) -> None:
    assert (
        await run("pvxget", "-F", "bogus", "demo", env=env)
    ).err == "Warning: ignoring unknown format 'bogus'; known are delta, tree, nt\n"


async def test_a_timeout_says_which_and_why_and_does_not_hide_the_others(env: dict[str, str]) -> None:
    done = await run("pvxget", "-w", "0.4", "nope", "demo", env=env)
    assert done.status == 1
    assert done.out == DEMO
    assert done.err == (
        "Error: nope: timeout after 0.4 s: no server answered the search\nTimeout with 1 outstanding\n"
    )


async def test_the_effective_configuration_goes_to_standard_error(
    env: dict[str, str], tmp_path: Path
) -> None:
    done = await run("pvxget", "-v", "demo", env=env)
    assert done.out == DEMO
    assert done.err == (
        "Effective config\n"
        "EPICS_PVA_ADDR_LIST=127.0.0.1\n"
        "EPICS_PVA_AUTO_ADDR_LIST=NO\n"
        f"EPICS_PVA_BROADCAST_PORT={env['EPICS_PVA_BROADCAST_PORT']}\n"
        "EPICS_PVA_CONN_TMO=30\n"
        f"EPICS_PVA_SERVER_PORT={env['EPICS_PVA_SERVER_PORT']}\n"
        "EPICS_PVA_TLS_OPTIONS=on_expiration=fallback-to-tcp on_no_cms=fallback-to-tcp\n"
        "EPICS_PVA_TLS_PORT=5076\n"
        f"XDG_CONFIG_HOME={tmp_path}/config/pva/1.5\n"
        f"XDG_DATA_HOME={tmp_path}/data/pva/1.5\n"
    )


async def test_what_is_wrong_with_the_configuration_is_a_warning(env: dict[str, str]) -> None:
    done = await run("pvxget", "demo", env={**env, "EPICS_PVA_CONN_TMO": "soon"})
    assert done.status == 0
    assert done.err.startswith("Warning: EPICS_PVA_CONN_TMO='soon' ignored: ")


async def test_json_is_one_object_a_line_and_nothing_else(env: dict[str, str]) -> None:
    done = await run("pvxget", "-v", "-w", "0.5", "--json", "demo", "nope", env=env)
    answers = {item["name"]: item for item in map(json.loads, done.out.splitlines())}
    assert answers["demo"]["value"]["value"] == 4.25
    assert answers["demo"]["value"]["alarm"] == {"severity": 0, "status": 0, "message": 'hi "x"'}
    assert answers["nope"] == {
        "name": "nope",
        "error": "nope: timeout after 0.5 s: no server answered the search",
    }
    assert done.status == 1


async def test_json_has_only_the_fields_that_were_asked_for(env: dict[str, str]) -> None:
    done = await run("pvxget", "--json", "-r", "field(value,alarm.severity)", "demo", env=env)
    assert json.loads(done.out) == {"name": "demo", "value": {"value": 4.25, "alarm": {"severity": 0}}}


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "the following arguments are required: pvname"),
        (["-w", "x", "demo"], "argument -w/--timeout: expected seconds, zero or more, not 'x'"),
        (["-w", "nan", "demo"], "argument -w/--timeout: expected seconds, zero or more, not 'nan'"),
        (["-#", "-1", "demo"], "argument -#: expected a number of elements, zero or more, not '-1'"),
        (["--nope", "demo"], "unrecognized arguments: --nope"),
    ],
)
async def test_a_wrong_command_line_ends_with_status_1(
    arguments: list[str], why: str, env: dict[str, str]
) -> None:
    done = await run("pvxget", *arguments, env=env)
    assert (done.status, done.out) == (1, "")
    assert done.err.endswith(f"Error: {why}\n")


async def test_a_request_that_cannot_be_parsed_is_one_line(env: dict[str, str]) -> None:
    done = await run("pvxget", "-r", "fie(ld", "demo", env=env)
    assert done.status == 1
    assert done.err.startswith("Error: demo: pvRequest 'fie(ld'")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("tool", ["pvxget", "pvxinfo", "pvxput", "pvxcall"])
async def test_ctrl_c_ends_with_status_2_and_says_so_only_when_asked(tool: str, env: dict[str, str]) -> None:
    more = ["1"] if tool == "pvxput" else []
    process = await start(tool, "-v", "-w", "60", "nope", *more, env=env)
    assert process.stderr is not None
    config = await process.stderr.readuntil(b"data/pva/1.5\n")
    assert b"Effective config" in config
    done = await interrupt(process)
    assert (done.status, done.out, done.err) == (2, "", "Interrupted\n")


async def test_info_prints_server_and_type(server: Server, env: dict[str, str]) -> None:
    done = await run("pvxinfo", "enum", env=env)
    assert (done.status, done.err) == (0, "")
    assert done.out == f"enum from 127.0.0.1:{server.tcp_port}\n{ENUM_TYPE}"


async def test_info_v_prints_who_answers_in_front(server: Server, env: dict[str, str]) -> None:
    done = await run("pvxinfo", "-v", "enum", env=env)
    address = f"127.0.0.1:{server.tcp_port}"
    assert done.out == f"# anonymous/@{address}\nenum from {address}\n{ENUM_TYPE}"


async def test_info_in_json_has_the_type_as_a_tree(server: Server, env: dict[str, str]) -> None:
    done = await run("pvxinfo", "--json", "tree", env=env)
    answer = json.loads(done.out)
    assert answer["server"] == f"127.0.0.1:{server.tcp_port}"
    assert answer["peer"]["tls"] is False
    inner = {
        "kind": "struct",
        "id": "inner_t",
        "fields": [{"name": "a", "type": "int32_t"}, {"name": "b", "type": "string"}],
    }
    assert answer["type"]["fields"] == [{"name": "x", "type": inner}, {"name": "y", "type": "double"}]


async def test_info_of_nothing_is_a_timeout(env: dict[str, str]) -> None:
    done = await run("pvxinfo", "-w", "0.3", "nope", env=env)
    assert (done.status, done.out) == (1, "")
    assert done.err.endswith("\nTimeout\n")


async def test_info_d_describes_the_host(env: dict[str, str]) -> None:
    done = await run("pvxinfo", "-D", env=env)
    assert done.status == 0
    assert "addr_list             = 127.0.0.1  (EPICS_PVA_ADDR_LIST)" in done.out


async def test_call_sends_text_arguments_and_prints_the_answer(env: dict[str, str]) -> None:
    done = await run("pvxcall", "echo", "b=2", "a=x=y", env=env)
    assert (done.status, done.err) == (0, "")
    assert done.out == (
        'struct "epics:nt/NTURI:1.0" {\n'
        '    string scheme = ""\n'
        '    string authority = ""\n'
        '    string path = "echo"\n'
        "    struct {\n"
        '        string b = "2"\n'
        '        string a = "x=y"\n'
        "    } query\n"
        "}\n"
    )


async def test_call_in_json(env: dict[str, str]) -> None:
    done = await run("pvxcall", "--json", "echo", "a=1", env=env)
    assert json.loads(done.out)["value"]["query"] == {"a": "1"}


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["bad", "a=1"], "Error: bad: not today\n"),
        (["echo", "a"], 'Error: expected <fld>=<value> not "a"\n'),
        (["echo", "a=1", "a=2"], "Error: duplicate argument name a\n"),
    ],
)
async def test_a_call_that_fails_is_one_line(arguments: list[str], why: str, env: dict[str, str]) -> None:
    done = await run("pvxcall", *arguments, env=env)
    assert (done.status, done.out, done.err) == (1, "", why)


async def test_list_asks_servers(env: dict[str, str], server: Server) -> None:
    names = "bad\ndemo\necho\nenum\nreadonly\ntext\ntree\nwave\n"
    assert (await run("pvxlist", "127.0.0.1", env=env)).out == names
    assert (await run("pvxlist", "-v", "127.0.0.1", env=env)).out == f"# From 127.0.0.1\n{names}"
    done = await run("pvxlist", "-i", f"127.0.0.1:{server.tcp_port}", env=env)
    assert re.fullmatch(r'127\.0\.0\.1:\d+ version="[^"]+" lang="python"\n', done.out)
    answer = json.loads((await run("pvxlist", "--json", "127.0.0.1", env=env)).out)
    assert answer == {"server": "127.0.0.1", "names": names.split()}


async def test_list_discovers_servers(env: dict[str, str], server: Server) -> None:
    address = f"127.0.0.1:{server.tcp_port}"
    done = await run("pvxlist", "-w", "0.7", env=env)
    assert (done.status, done.out) == (0, f"{address}\n")
    done = await run("pvxlist", "-v", "-w", "0.7", env=env)
    form = (
        rf"\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{{9}} ONLINE  guid: 0x{server.guid.hex()} proto: tcp"
        rf" server: {address} ver: 2 via: 127\.0\.0\.1:{server.udp_port}\n"
    )
    assert re.fullmatch(form, done.out)
    news = json.loads((await run("pvxlist", "--json", "-w", "0.7", env=env)).out)
    assert (news["event"], news["server"], news["guid"]) == ("online", address, server.guid.hex())


async def test_discovery_without_a_timeout_ends_by_ctrl_c_with_status_0(
    env: dict[str, str], server: Server
) -> None:
    process = await start("pvxlist", "-w", "0", env=env)
    assert process.stdout is not None
    async with asyncio.timeout(30):
        assert await process.stdout.readline() == f"127.0.0.1:{server.tcp_port}\n".encode()
    done = await interrupt(process)
    assert (done.status, done.err) == (0, "")


async def test_list_says_why_a_server_cannot_be_asked(env: dict[str, str]) -> None:
    done = await run("pvxlist", "-w", "0.5", "127.0.0.1:1", "no:port:here", env=env)
    assert done.status == 1
    assert (
        "From 127.0.0.1:1 : timeout after 0.5 s: cannot connect to 127.0.0.1:1: Connection refused\n"
        in done.err
    )
    assert (await run("pvxlist", "-i", env=env)).err == "Error: -i requires at least one server\n"


async def test_a_reader_that_goes_away_ends_the_tool_quietly(env: dict[str, str]) -> None:
    read, write = os.pipe()
    os.close(read)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "appliance.cli.pvxget",
        "demo",
        env=env,
        stdout=write,
        stderr=asyncio.subprocess.PIPE,
        cwd="/",
    )
    os.close(write)
    done = await finish(process)
    assert (done.status, done.err) == (141, "")


async def test_debug_logs_to_standard_error_as_text(env: dict[str, str]) -> None:
    done = await run("pvxget", "-d", "demo", env=env)
    assert done.out == DEMO
    assert not done.err.startswith("{")


async def test_eight_hundred_pvs_at_once(env: dict[str, str], server: Server) -> None:
    from appliance.pvdata import FLOAT64, Value
    from appliance.pvdata.nt import NTScalar
    from appliance.server import SharedPV

    names = [f"many:{number}" for number in range(800)]
    for name in names:
        server.add_pv(name, SharedPV(Value(NTScalar(FLOAT64), {"value": 1.0})))
    done = await run("pvxget", "--json", *names, env=env)
    assert done.status == 0, done.err
    assert {json.loads(line)["name"] for line in done.out.splitlines()} == set(names)


@pytest.mark.parametrize(("arguments", "spec"), [(["-d"], ""), ([], "pvxs.*=DEBUG")])
async def test_debugging_shows_searches_answers_connections_and_messages(
    env: dict[str, str], server: Server, arguments: list[str], spec: str
) -> None:
    done = await run("pvxget", *arguments, "demo", env={**env, "PVXS_LOG": spec})
    assert done.out == DEMO
    peer = f"127.0.0.1:{server.tcp_port}"
    for sign in (
        r"client\.search: search \d+ over tcp: demo",
        rf"127\.0\.0\.1:{server.udp_port} <- SEARCH \(\d+ octets\)",
        rf"-> SEARCH_RESPONSE: the server {peer}, over tcp, has demo",
        rf"{peer}: connecting",
        rf"{peer}: connected from 127\.0\.0\.1:\d+",
        rf"{peer} -> CONNECTION_VALIDATION \(\d+ octets\)",
        rf"{peer} <- CREATE_CHANNEL \(\d+ octets\)",
        rf"{peer}: the connection is ready",
        rf"{peer} <- GET \(\d+ octets\)",
        rf"{peer} -> GET \(\d+ octets\)",
    ):
        assert re.search(sign, done.err), f"{sign}\n{done.err}"


async def test_a_port_that_says_nothing_may_be_a_tls_port(env: dict[str, str]) -> None:
    """A TLS port waits for the client to begin; so does a plain client."""

    # The kernel takes connections for whoever listens; nobody here reads or writes them.
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        done = await run("pvxlist", "-w", "1", f"127.0.0.1:{port}", env=env)
    assert done.status == 1
    assert done.err == (
        f"From 127.0.0.1:{port} : timeout after 1 s: 127.0.0.1:{port} accepted the connection and says nothing, "
        f"as a TLS port does; if it is a TLS port, write pvas://127.0.0.1:{port}\n"
    )

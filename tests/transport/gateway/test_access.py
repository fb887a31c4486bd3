"""Access through the gateway over the wire: real identities, real TLS, rights that change while clients are connected."""

from __future__ import annotations

import asyncio
import getpass
import grp
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from appliance.cli import acf_test
from appliance.client import Context
from appliance.client.monitor import Connected, Disconnected
from appliance.daemon.audit import verify_file
from appliance.errors import AccessDeniedError, AccessFileError, OperationError, RemoteError
from appliance.pva import commands as c
from appliance.pvdata.nt import NTEnum, NTScalar, NTScalarArray, NTTable
from appliance.pvdata.pvrequest import PVRequest
from appliance.pvdata.types import FLOAT64, STRING, StructType
from appliance.pvdata.value import Value
from appliance.server import Handler, Operation, Rights, SharedPV
from appliance.server.access import ALL_RIGHTS
from appliance.server.roles import Roles
from appliance.tls.context import client_context
from tests.helpers.gateways import client_side, client_to, gateway_to, gateway_with, server_of, server_side
from tests.helpers.live import keychain_file, until
from tests.helpers.ours import double, served
from tests.helpers.pki import site
from tests.helpers.raw import RawClient, claimed
from tests.helpers.requests import Asked
from tests.unit.gateway.test_access import SELECT, TABLE

USER = getpass.getuser()
GROUP = grp.getgrgid(os.getgid()).gr_name


def callee() -> SharedPV:
    """A PV that can be written and called."""

    def answer(pv: SharedPV, operation: Operation, argument: Value | None) -> Value:
        return Value(NTScalar(FLOAT64), {"value": 42.0})

    return SharedPV(
        Value(NTScalar(FLOAT64), {"value": 0.0}), on_put=lambda pv, op, value: pv.post(value), on_rpc=answer
    )


def rules(folder: Path, text: str, pvlist: str = "") -> dict[str, Any]:
    """The keys of a server side with these rules."""
    (folder / "gw.acf").write_text(text)
    found: dict[str, Any] = {"access": {"file": str(folder / "gw.acf")}}
    if pvlist:
        (folder / "gw.pvlist").write_text(pvlist)
        found["pvlist"] = str(folder / "gw.pvlist")
    return found


async def may(client: Context, name: str) -> str:
    """What a client may do with a PV of `callee`, in words."""
    done = []
    try:
        await client.get(name, timeout=30)
        done.append("read")
    except (AccessDeniedError, RemoteError):
        pass
    try:
        await client.put(name, 1.0, timeout=30)
        done.append("put")
    except AccessDeniedError:
        pass
    try:
        await client.rpc(name, {"a": 1}, timeout=30)
        done.append("rpc")
    except AccessDeniedError:
        pass
    return " ".join(done)


def asked(folder: Path, capsys: pytest.CaptureFixture[str], group: str, *who: str) -> str:
    """What ``acf-test --gateway`` says of the same."""
    acf_test.main([str(folder / "gw.acf"), "--gateway", "--json", "--asg", group, *who])
    said = json.loads(capsys.readouterr().out)
    return " ".join(["read", *(["put"] if said["write"] else []), *(["rpc"] if said["rpc"] else [])])


APART = f"""
UAG(me) {{ {USER} }} UAG(group) {{ "role/{GROUP}" }} UAG(others) {{ nobody-else }} HAG(here) {{ 127.0.0.1 }} HAG(there) {{ 10.9.9.9 }}
ASG(DEFAULT) {{ RULE(1, READ) }}
ASG(PUT) {{ RULE(1, READ) RULE(1, PUT) {{ UAG(me) HAG(here) }} }}
ASG(RPC) {{ RULE(1, RPC) {{ UAG(group) }} }}
ASG(WRITE) {{ RULE(1, WRITE) {{ METHOD("ca") PROTOCOL(tcp) }} }}
ASG(OTHERS) {{ RULE(1, READ) RULE(1, WRITE) {{ UAG(others) }} }}
ASG(THERE) {{ RULE(1, READ) RULE(1, WRITE) {{ HAG(there) }} }}
ASG(PROVED) {{ RULE(1, READ) RULE(1, WRITE) {{ METHOD("x509") }} }}
"""
GROUPS = {"PUT": "read put", "RPC": "read rpc", "WRITE": "read put rpc", "OTHERS": "read", "THERE": "read", "PROVED": "read", "DEFAULT": "read"}  # fmt: skip


async def test_put_and_rpc_are_granted_apart_by_user_role_host_and_method(tmp_path, capsys):
    more = rules(tmp_path, APART, "\n".join(f"{group}:(.*) ALIAS u:\\1 {group}" for group in GROUPS))
    async with served({"u:pv": callee()}) as server, gateway_to(server, **more) as gateway:
        async with client_to(gateway) as client:
            for group, wanted in GROUPS.items():
                assert await may(client, f"{group}:pv") == wanted, group
                who = ["--user", USER, "--method", "ca", "--host", "127.0.0.1", "--role", GROUP]
                assert asked(tmp_path, capsys, group, *who) == wanted, group


async def test_the_level_of_the_pv_list_counts_as_in_epics(tmp_path):
    """p4p's gateway 4.x does not look at it."""
    more = rules(tmp_path, "ASG(DEFAULT) { RULE(0, WRITE) }", "u:.* ALLOW\nv:(.*) ALIAS u:\\1 DEFAULT 1\n")
    async with served({"u:pv": callee()}) as server, gateway_to(server, **more) as gateway:
        async with client_to(gateway) as client:
            assert await may(client, "u:pv") == "read put rpc"
            assert await may(client, "v:pv") == "read"


@pytest.mark.parametrize("enforced", [False, True])
async def test_reading_is_granted_to_everybody_unless_enforce_read(tmp_path, enforced):
    more = rules(tmp_path, "ASG(DEFAULT) { RULE(1, NONE) }")
    async with (
        served({"u:pv": callee()}) as server,
        gateway_to(server, enforce_read=enforced, **more) as gateway,
    ):
        async with client_to(gateway) as client:
            assert await may(client, "u:pv") == ("" if enforced else "read")


async def test_read_only_refuses_puts_and_calls(tmp_path):
    async with served({"u:pv": callee()}) as server, gateway_to(server, read_only=True) as gateway:
        async with client_to(gateway) as client:
            assert await may(client, "u:pv") == "read"


async def test_as_test_the_log_and_the_refusal_tell_that_the_gateway_is_read_only(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    more = {"read_only": True, "status_prefix": "GW:"}
    async with served({"u:pv": callee()}) as server, gateway_to(server, **more) as gateway:
        async with client_to(gateway) as client:
            answer = await client.rpc("GW:asTest", {"pv": "u:pv"})
            assert (answer["permission.put"], answer["permission.rpc"]) == (False, False)
            for denied, request in (
                ("write", client.put("u:pv", 1.0)),
                ("RPC", client.rpc("u:pv", {"a": 1})),
            ):
                with pytest.raises(
                    AccessDeniedError, match=f"{denied} access denied: read_only is set in the gateway's conf"
                ):
                    await request
    lines = [record.message for record in caplog.records if getattr(record, "event", "") == "access-refused"]
    for line, right in zip(lines, ("write", "rpc"), strict=True):
        assert line.endswith(
            f"was refused {right} access to u:pv: read_only is set in the gateway's configuration"
        )


@pytest.mark.parametrize("granted", [True, False])
async def test_a_subscription_of_its_own_needs_uncached(tmp_path, granted, caplog):
    caplog.set_level(logging.WARNING)
    more = rules(tmp_path, f"ASG(DEFAULT) {{ RULE(1, READ) {'RULE(1, UNCACHED)' if granted else ''} }}")
    async with served({"u:pv": double(1.5)}) as server, gateway_to(server, **more) as gateway:
        async with client_to(gateway) as client, client.monitor("u:pv", "record[cache=false]") as updates:
            if granted:
                assert (await anext(updates))["value"] == 1.5
            else:
                with pytest.raises(RemoteError, match="Gateway disallows uncachable monitor"):
                    await anext(updates)
                assert "was refused uncached access to u:pv" in caplog.text


@pytest.mark.parametrize(("rules_", "group", "user", "host", "roles", "value", "wanted"), TABLE)
async def test_p4p_s_rules_over_the_wire(tmp_path, rules_, group, user, host, roles, value, wanted):
    """The table of the unit test, with real addresses and with names that clients claim."""

    def local(text: str) -> str:
        return text.replace("10.0.0.", "127.0.0.").replace("10.9.9.9", "127.0.0.99")

    more = rules(tmp_path, local(rules_), f".* ALLOW {group}\n") if rules_ is not None else {}
    served_ = {"u:pv": callee(), SELECT: double(value or 0.0)}
    async with served(served_) as server, gateway_to(server, **more) as gateway:
        ours = server_of(gateway)
        ours.entrance.roles = Roles(lambda account: frozenset(roles))
        inputs = gateway.servers["outer"].access.inputs
        await until(lambda: all(row.connected for row in inputs()))
        async with await RawClient.connect(
            ours.tcp_port, validation=claimed(user), source=local(host)
        ) as client:
            permitted = await asyncio.wait_for(client.permissions("u:pv"), 30)
        assert bool(permitted & c.PERMIT_PUT) is ("put" in wanted.split())
        assert bool(permitted & c.PERMIT_RPC) is ("rpc" in wanted.split())


# -- TLS -----------------------------------------------------------------------------------------------


TLS_RULES = """
AUTHORITY(SITE, "EPICS Root Certificate Authority")
AUTHORITY(OTHER, "Another Certificate Authority")
SAG(hosts) { DNS("*.control.example") }
UAG(client) { client } UAG(op) { "CN=operator, O=localhost" }
ASG(TLS) { RULE(1, READ) RULE(1, WRITE) { PROTOCOL(tls) } }
ASG(NAME) { RULE(1, READ) RULE(1, WRITE) { UAG(client) METHOD("x509") } }
ASG(SUBJECT) { RULE(1, READ) RULE(1, WRITE) { UAG(op) } }
ASG(SITE) { RULE(1, READ) RULE(1, WRITE) { AUTHORITY(SITE) } }
ASG(OTHER) { RULE(1, READ) RULE(1, WRITE) { AUTHORITY(OTHER) } }
ASG(SAN) { RULE(1, READ) RULE(1, WRITE) { SAG(hosts) } }
"""
TLS_GROUPS = ("TLS", "NAME", "SUBJECT", "SITE", "OTHER", "SAN")


@pytest.mark.parametrize(
    ("who", "granted"),
    [
        ("client", {"TLS", "NAME", "SITE"}),
        ("operator", {"TLS", "SUBJECT", "SITE", "SAN"}),
        ("plain", set()),
    ],
)
async def test_certificate_rules_are_judged_by_the_clients_own_certificate(tmp_path, who, granted):
    world = site()
    keychain = {
        "client": world.client,
        "operator": world.ca.keychain("operator", "client", san=(("dns", "desk.control.example"),)),
        "plain": None,
    }[who]
    server_file = keychain_file(tmp_path, "gateway", world.server)
    more = rules(tmp_path, TLS_RULES, "\n".join(f"{group}:(.*) ALIAS u:\\1 {group}" for group in TLS_GROUPS))
    tls = {"tls_keychain": str(server_file), "tls_options": "no_revocation_check", "no_status_cache": True}
    async with served({"u:pv": callee()}) as server, gateway_to(server, pva=tls, **more) as gateway:
        context = None if keychain is None else client_context(keychain, want_staple=False)
        async with client_to(gateway, tls=context) as client:
            found = {group for group in TLS_GROUPS if "put" in await may(client, f"{group}:pv")}
            (peer,) = server_of(gateway).peers.values()
            assert peer.credentials.method == ("ca" if keychain is None else "x509")
            assert found == granted
        (inner,) = server.peers.values()
        assert inner.credentials.account == USER, "the server behind it sees the gateway, and nobody else"


# -- changes -------------------------------------------------------------------------------------------


async def test_rights_follow_an_input_and_the_client_is_told(tmp_path):
    """The input is read through the client side, whatever the PV list says of it."""
    more = rules(
        tmp_path, 'ASG(DEFAULT) { INPA("mode") RULE(1, READ) RULE(1, PUT) { CALC("A=1") } }', "u:.* ALLOW\n"
    )
    mode = double(1.0)
    async with served({"u:pv": callee(), "mode": mode}) as server, gateway_to(server, **more) as gateway:
        async with client_to(gateway) as client, client.monitor("u:pv", notify=True) as updates:
            assert isinstance(await anext(updates), Connected)
            channel = client.channel("u:pv")
            await until(lambda: channel.permissions == c.PERMIT_PUT | c.PERMIT_PUT_GET)
            mode.post(0.0)
            await until(lambda: channel.permissions == 0)
            with pytest.raises(AccessDeniedError):
                await client.put("u:pv", 5.0)
            mode.post(1.0)
            await until(lambda: channel.permissions != 0)
            await client.put("u:pv", 5.0)
            assert (await anext(updates))["value"] in {0.0, 5.0}, "the subscription went on"


async def test_an_input_that_is_lost_takes_the_right_away(tmp_path):
    more = rules(tmp_path, 'ASG(DEFAULT) { INPA("mode") RULE(1, READ) RULE(1, PUT) { CALC("A=0") } }')
    async with served({"u:pv": callee()}) as server:
        inputs = served({"mode": double(0.0)})
        await inputs.start()
        async with (
            gateway_with(
                {"inner": client_side(server), "modes": client_side(inputs)},
                {"outer": server_side("inner", access={**more["access"], "inputs": "modes"})},
            ) as gateway,
            client_to(gateway) as client,
        ):
            channel = client.channel("u:pv")
            await client.get("u:pv")
            await until(lambda: channel.permissions == c.PERMIT_PUT | c.PERMIT_PUT_GET)
            await inputs.stop()
            await until(lambda: channel.permissions == 0)


class Policy:
    """What the server behind the gateway permits; a test changes it."""

    def __init__(self) -> None:
        self.now = ALL_RIGHTS

    def rights(self, name: str, peer: Any) -> Rights:
        return self.now


async def test_what_the_server_permits_the_gateway_reaches_the_clients():
    policy = Policy()
    async with (
        served({"u:pv": callee()}, policy=policy) as server,
        gateway_to(server, status_prefix="GW:") as gateway,
    ):
        async with client_to(gateway) as client:
            await client.get("u:pv")
            channel = client.channel("u:pv")
            assert channel.permissions == c.PERMIT_ALL
            for rights, wanted in (
                (Rights(read=True, rpc=True), c.PERMIT_RPC),
                (Rights(read=True, write=True), c.PERMIT_PUT | c.PERMIT_PUT_GET),
                (Rights(read=True), 0),
                (ALL_RIGHTS, c.PERMIT_ALL),
            ):
                policy.now = rights
                server.review_access()
                await until(lambda wanted=wanted: channel.permissions == wanted)
                told = await client.rpc("GW:asTest", {"pv": "u:pv"})
                assert (told["permission.put"], told["permission.rpc"]) == (rights.write, rights.rpc)
                assert await may(client, "u:pv") == " ".join(
                    word for word, granted in zip(("read", "put", "rpc"), rights[:3], strict=True) if granted
                )


async def test_a_reader_that_loses_reading_is_disconnected_and_comes_back(tmp_path):
    more = rules(tmp_path, 'ASG(DEFAULT) { INPA("mode") RULE(1, READ) { CALC("A=1") } }')
    mode = double(1.0)
    async with served({"u:pv": double(1.0), "mode": mode}) as server:
        async with gateway_to(server, enforce_read=True, **more) as gateway, client_to(gateway) as client:
            async with client.monitor("u:pv", notify=True) as updates:
                # Until the input is there, nobody may read.
                while not isinstance(await anext(updates), Value):
                    pass
                mode.post(0.0)
                assert isinstance(await anext(updates), Disconnected)
                mode.post(1.0)
                while not isinstance(await anext(updates), Value):
                    pass


# -- the put log ---------------------------------------------------------------------------------------


async def test_trapped_puts_are_logged_with_the_real_user_and_sealed(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    text = f"UAG(me) {{ {USER} }} ASG(DEFAULT) {{ RULE(1, WRITE) }} ASG(LOGGED) {{ RULE(1, READ) RULE(1, WRITE, TRAPWRITE) {{ UAG(me) }} }}"
    more = rules(tmp_path, text, "u:.* ALLOW\nlog:(.*) ALIAS u:\\1 LOGGED\n")

    def refuse(pv: SharedPV, operation: Operation, value: Value) -> None:
        raise RemoteError("interlock is active")

    pvs = {"u:pv": callee(), "u:locked": SharedPV(Value(NTScalar(FLOAT64)), on_put=refuse)}
    log = tmp_path / "puts.log"
    async with served(pvs) as server, gateway_to(server, put_log=str(log), **more) as gateway:
        async with client_to(gateway) as client:
            await client.put("u:pv", 1.0)
            await client.put("log:pv", 2.5)
            await client.rpc("log:pv", {"a": 1})
            with pytest.raises(RemoteError, match="interlock is active"):
                await client.put("log:locked", 3.0)
            (peer,) = server_of(gateway).peers
    records = [json.loads(line) for line in log.read_text().splitlines()]
    common = {"account": USER, "method": "ca", "authority": "", "organization": "", "host": str(peer), "protocol": "tcp", "gateway": "outer", "event": "put"}  # fmt: skip
    found = [
        {key: value for key, value in record.items() if key not in ("time", "hash")} for record in records
    ]
    assert [{key: value for key, value in record.items() if key != "host"} for record in found] == [
        {key: value for key, value in {**common, **more_}.items() if key != "host"}
        for more_ in (
            {"pv": "log:pv", "real": "u:pv", "new": 2.5, "result": "accepted"},
            {"pv": "log:locked", "real": "u:locked", "new": 3.0, "result": "accepted"},
            {
                "pv": "log:locked",
                "real": "u:locked",
                "new": 3.0,
                "result": "failed",
                "error": "interlock is active",
            },
        )
    ]
    assert verify_file(log).intact
    lines = [record.message for record in caplog.records if record.name == "appliance.gateway.putlog"]
    assert [line.split(" ", 3)[3] for line in lines] == [
        "log:pv as u:pv -> double = 2.5",
        "log:locked as u:locked -> double = 3",
        "log:locked as u:locked -> double = 3 failed: interlock is active",
    ]
    assert lines[0].split()[2].startswith(f"ca/{USER}@127.0.0.1:")


LOGGED = "ASG(DEFAULT) { RULE(1, WRITE, TRAPWRITE) }"


def puts(folder: Path) -> list[tuple[str, Any, str, str]]:
    """The records of a put log: event, value, result and error."""
    records = [json.loads(line) for line in (folder / "puts.log").read_text().splitlines()]
    return [
        (record["event"], record.get("new"), record["result"], record.get("error", "")) for record in records
    ]


class Anything(Handler):
    """A PV that answers every request, except that a put of 13 is never answered."""

    def __init__(self, kind: StructType) -> None:
        self.value = Value(kind)

    def init(self, operation: Operation) -> None:
        if operation.command == c.CMD_PROCESS:
            operation.ready()
        else:
            operation.ready(self.value.type)

    def get(self, operation: Operation) -> None:
        operation.reply(self.value)

    def put(self, operation: Operation, value: Value) -> None:
        written = value.get("value")
        if not (isinstance(written, float) and written == 13.0):
            operation.done()

    def put_get(self, operation: Operation, value: Value) -> None:
        operation.reply(self.value)

    def process(self, operation: Operation) -> None:
        operation.done()


async def test_put_get_and_process_are_logged_too(tmp_path):
    pv = Anything(NTScalar(FLOAT64))
    more = rules(tmp_path, LOGGED)
    async with (
        served({"pv": pv}) as server,
        gateway_to(server, put_log=str(tmp_path / "puts.log"), **more) as gateway,
    ):
        async with client_to(gateway) as client:
            await client.get("pv")
            channel = client.channel("pv")
            put_get = Asked(channel, c.CMD_PUT_GET, PVRequest("").value)
            kind = (await put_get.ready_).type
            await put_get.do(lambda wire: wire.put(Value(kind, {"value": 4.0})))
            process = Asked(channel, c.CMD_PROCESS, PVRequest("").value)
            await process.ready_
            await process.do(lambda wire: wire.process())
    assert puts(tmp_path) == [("put", 4.0, "accepted", ""), ("process", None, "accepted", "")]


class Reader(Handler):
    """A PV that answers a GET when it is told to, and notes what asks for processing."""

    def __init__(self) -> None:
        self.value = Value(NTScalar(FLOAT64), {"value": 7.0})
        self.waiting: list[Operation] = []
        self.at_once = True

    def init(self, operation: Operation) -> None:
        operation.ready(self.value.type)

    def get(self, operation: Operation) -> None:
        self.waiting.append(operation)
        if self.at_once:
            operation.reply(self.value)


@pytest.mark.parametrize("how", ["true", "passive", "TRUE"])
async def test_a_get_that_processes_needs_the_right_to_write_and_is_logged(tmp_path, how):
    pv = Reader()
    asks = f"record[process={how}]field(value)"
    more = rules(
        tmp_path,
        "ASG(DEFAULT) { RULE(1, READ) } ASG(W) { RULE(1, WRITE, TRAPWRITE) }",
        ".* ALLOW\nw:.* ALLOW W\n",
    )
    async with served({"r:pv": pv, "w:pv": pv}) as server:
        async with (
            gateway_to(server, put_log=str(tmp_path / "puts.log"), **more) as gateway,
            client_to(gateway) as client,
        ):
            with pytest.raises(RemoteError, match="denied"):
                await client.get("r:pv", request=asks, timeout=30)
            assert pv.waiting == []
            assert (await client.get("r:pv", request="record[process=false]field(value)"))["value"] == 7.0
            assert (await client.get("w:pv", request=asks, timeout=30))["value"] == 7.0
            assert pv.waiting[-1].options["process"] == how
        assert puts(tmp_path) == [("process", None, "accepted", "")]
        async with gateway_to(server, read_only=True) as gateway, client_to(gateway) as client:
            before = len(pv.waiting)
            with pytest.raises(RemoteError, match="denied"):
                await client.get("w:pv", request=asks, timeout=30)
            assert len(pv.waiting) == before


async def test_a_read_that_waits_is_refused_when_the_right_to_read_goes(tmp_path):
    pv = Reader()
    more = rules(tmp_path, "ASG(DEFAULT) { RULE(1, READ) }")
    async with served({"pv": pv}) as server, gateway_to(server, enforce_read=True, **more) as gateway:
        async with client_to(gateway) as client:
            await client.get("pv", timeout=30)
            pv.at_once = False
            pv.waiting.clear()
            waiting = asyncio.create_task(client.get("pv", timeout=30))
            await until(lambda: bool(pv.waiting))
            rules(tmp_path, "ASG(DEFAULT) { RULE(1, NONE) }")
            await gateway.reload(gateway.config)
            pv.waiting[0].reply(pv.value)
            with pytest.raises(RemoteError, match="denied"):
                await waiting


async def test_values_of_any_kind_are_logged_within_bounds(tmp_path):
    enum, table = NTEnum(), NTTable().add_column(FLOAT64, "x").add_column(STRING, "y").create().type
    wide = StructType(tuple((f"f{n:02}", FLOAT64) for n in range(40)))
    pvs = {"enum": Anything(enum), "table": Anything(table), "wide": Anything(wide), "array": Anything(NTScalarArray(FLOAT64)), "text": Anything(NTScalar(STRING))}  # fmt: skip
    more = rules(tmp_path, LOGGED)
    async with (
        served(pvs) as server,
        gateway_to(server, put_log=str(tmp_path / "puts.log"), **more) as gateway,
    ):
        async with client_to(gateway) as client:
            await client.put("enum", Value(enum, {"value.index": 1}))
            await client.put("table", Value(table, {"value": {"x": [1.0] * 100, "y": ["a"]}}))
            await client.put("wide", Value(wide, {f"f{n:02}": float(n) for n in range(40)}))
            await client.put("array", Value(NTScalarArray(FLOAT64), {"value": [2.0] * 1000}))
            await client.put("text", Value(NTScalar(STRING), {"value": "x" * 100_000 + "\n"}))
    found = [new for _, new, _, _ in puts(tmp_path)]
    assert found[0] == 1
    assert found[1] == {"value.x": [1.0] * 16 + ["... (100 elements)"], "value.y": ["a"]}
    assert len(found[2]) == 17
    assert found[2]["..."] == "more fields"
    assert found[3] == [2.0] * 16 + ["... (1000 elements)"]
    assert found[4] == "x" * 256 + "... (100001 characters)"


async def test_a_put_whose_server_is_lost_meanwhile_is_logged_as_failed(tmp_path):
    server = served({"pv": Anything(NTScalar(FLOAT64))})
    await server.start()
    more = rules(tmp_path, LOGGED)
    async with (
        gateway_to(server, put_log=str(tmp_path / "puts.log"), **more) as gateway,
        client_to(gateway) as client,
    ):
        await client.put("pv", 1.0)
        waiting = asyncio.ensure_future(client.put("pv", 13.0, timeout=30))
        await until(lambda: len(puts(tmp_path)) == 2)
        await server.stop()
        with pytest.raises(OperationError):
            await waiting
        await until(lambda: len(puts(tmp_path)) == 3)
    assert [result for _, _, result, _ in puts(tmp_path)] == ["accepted", "accepted", "failed"]
    assert "which may be done or not" in puts(tmp_path)[2][3]


@pytest.mark.parametrize("required", [True, False])
async def test_a_put_that_cannot_be_logged_is_refused_if_the_log_is_required(tmp_path, required, caplog):
    more = rules(tmp_path, "ASG(DEFAULT) { RULE(1, WRITE, TRAPWRITE) }")
    log = tmp_path / "puts.log"
    pv = callee()
    async with (
        served({"u:pv": pv}) as server,
        gateway_to(server, put_log=str(log), put_log_required=required, **more) as gateway,
        client_to(gateway) as client,
    ):
        await client.put("u:pv", 1.0)
        assert gateway.overview.troubles() == []
        log.unlink()
        if required:
            with pytest.raises(RemoteError, match="the put log cannot be written"):
                await client.put("u:pv", 2.0)
        else:
            await client.put("u:pv", 2.0)
        assert (await client.get("u:pv"))["value"] == (1.0 if required else 2.0)
        ((_, trouble),) = gateway.overview.troubles()
        assert trouble.startswith("the put log of the server side outer cannot be written: ")
    assert "the put log misses a record" in caplog.text


async def test_refusals_are_in_the_log(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    more = rules(tmp_path, "ASG(DEFAULT) { RULE(1, READ) }")
    async with served({"u:pv": callee()}) as server, gateway_to(server, **more) as gateway:
        async with client_to(gateway) as client:
            assert await may(client, "u:pv") == "read"
    found = [(record.right, record.pv, record.account, record.gateway) for record in caplog.records if getattr(record, "event", "") == "access-refused"]  # fmt: skip
    assert found == [("write", "u:pv", USER, "outer"), ("rpc", "u:pv", USER, "outer")]
    reasons = [
        record.message.partition("access to ")[2] for record in caplog.records if hasattr(record, "right")
    ]
    assert reasons == [f"u:pv: no rule grants it: {tmp_path}/gw.acf:1: RULE(1,READ): grants READ"] * 2


async def test_a_client_that_is_refused_again_and_again_does_not_fill_the_log(tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.WARNING)
    more = rules(tmp_path, "ASG(DEFAULT) { RULE(1, READ) }")

    async def refused() -> None:
        with pytest.raises(AccessDeniedError):
            await client.put("u:pv", 1.0)

    def lines() -> list[str]:
        return [
            record.message for record in caplog.records if getattr(record, "event", "") == "access-refused"
        ]

    async with served({"u:pv": callee()}) as server, gateway_to(server, **more) as gateway:
        async with client_to(gateway) as client:
            for _ in range(20):
                await refused()
            assert len(lines()) == 1
            monkeypatch.setattr("appliance.gateway.putlog._TOLD_FOR_S", 0.0)
            await refused()
            assert lines()[1:] == [lines()[1]]
            assert lines()[1].endswith(
                "access to u:pv, and 19 more times since the last such line: "
                f"no rule grants it: {tmp_path}/gw.acf:1: RULE(1,READ): grants READ"
            )
            assert server_of(gateway).access.refusals == 21


# -- files that are expensive to match -----------------------------------------------------------------


async def test_a_pv_list_of_hurtful_patterns_does_not_hold_up_a_client(tmp_path):
    """With Python's matcher each of these names would take longer than the age of the universe."""
    hurtful = "(?:a*)*b DENY\n(?:a|aa)+c DENY\n(?:a?){60}a{60}d DENY\n.* ALLOW\n"
    more = rules(tmp_path, "ASG(DEFAULT) { RULE(1, WRITE) }", hurtful)
    async with served({"a" * 200: double(4.5)}) as server, gateway_to(server, **more) as gateway:
        async with client_to(gateway) as client:
            assert (await client.get("a" * 200, timeout=30))["value"] == 4.5
            assert (await client.get(["a" * 200] * 3, timeout=30))[0]["value"] == 4.5


# -- reading the files again ---------------------------------------------------------------------------


async def test_a_reload_changes_rights_without_dropping_channels_that_stay_allowed(tmp_path):
    more = rules(tmp_path, "ASG(DEFAULT) { RULE(1, READ) }", "u:.* ALLOW\n")
    async with (
        served({"u:pv": callee(), "u:other": callee()}) as server,
        gateway_to(server, **more) as gateway,
    ):
        async with client_to(gateway) as client, client.monitor("u:pv", notify=True) as updates:
            assert isinstance(await anext(updates), Connected)
            assert (await anext(updates))["value"] == 0.0
            await client.get("u:other")
            (channels,) = [list(peer.channels()) for peer in server_of(gateway).peers.values()]
            kept = next(channel for channel in channels if channel.name == "u:pv")
            assert await may(client, "u:pv") == "read"

            rules(tmp_path, "ASG(DEFAULT) { RULE(1, WRITE) }", "u:pv ALLOW\n")
            await gateway.reload(gateway.config)
            channel = client.channel("u:pv")
            await until(lambda: channel.permissions == c.PERMIT_ALL)
            assert await may(client, "u:pv") == "read put rpc"
            assert [found for peer in server_of(gateway).peers.values() for found in peer.channels()] == [
                kept
            ]
            assert (await anext(updates))["value"] == 1.0, "the subscription went on"


async def test_a_reload_of_a_wrong_file_changes_nothing(tmp_path):
    more = rules(tmp_path, "ASG(DEFAULT) { RULE(1, WRITE) }", "u:.* ALLOW\n")
    async with served({"u:pv": callee()}) as server, gateway_to(server, **more) as gateway:
        async with client_to(gateway) as client:
            assert await may(client, "u:pv") == "read put rpc"
            for name, text in (("gw.acf", "ASG(DEFAULT) { RULE(1, WRITE }"), ("gw.pvlist", "u:.* ALLWO\n")):
                before = (tmp_path / name).read_text()
                (tmp_path / name).write_text(text)
                with pytest.raises(AccessFileError, match=f"{name}:1"):
                    await gateway.reload(gateway.config)
                (tmp_path / name).write_text(before)
                assert await may(client, "u:pv") == "read put rpc"


async def test_a_reload_follows_other_inputs(tmp_path):
    more = rules(tmp_path, 'ASG(DEFAULT) { INPA("one") RULE(1, PUT) { CALC("A=1") } }')
    async with served({"u:pv": callee(), "one": double(0.0), "two": double(1.0)}) as server:
        async with gateway_to(server, **more) as gateway, client_to(gateway) as client:
            assert await may(client, "u:pv") == "read"
            rules(tmp_path, 'ASG(DEFAULT) { INPA("two") RULE(1, PUT) { CALC("A=1") } }')
            await gateway.reload(gateway.config)
            await until(lambda: client.channel("u:pv").permissions != 0)
            assert await may(client, "u:pv") == "read put"
            assert [row.connected for row in gateway.servers["outer"].access.inputs()] == [True]

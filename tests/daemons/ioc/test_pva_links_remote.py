"""PVA links to other servers: loss and return, other types, completion, TLS, many links, death of a server under load."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance.certmon.endpoints import open_client, open_server
from appliance.certs.status import CertState
from appliance.config.pva import resolve_client
from appliance.errors import AccessDeniedError, ApplianceError, RemoteError
from appliance.ioc.links.channel import ChannelKey, LinkChannel
from appliance.ioc.links.remote import RemoteClient
from appliance.pvdata import Value
from appliance.pvdata.nt import NTEnum, NTScalar, NTScalarArray
from appliance.pvdata.types import FLOAT64, INT32, STRING, ArrayType, StructType, UnionType
from appliance.server import Operation, Server, SharedPV
from tests.helpers.ioc_process import running_ioc
from tests.helpers.ioc_records import Records
from tests.helpers.live import keychain_file, server_config, until
from tests.helpers.pki import site
from tests.helpers.ports import free_port
from tests.helpers.status_service import StatusService

INVALID = 3


@asynccontextmanager
async def linked(file: Path, text: str, udp: int, **variables: str | None) -> AsyncIterator[Records]:
    """An IOC whose links are searched for at ``udp``."""
    file.write_text(text)
    found = {"EPICS_PVA_ADDR_LIST": f"127.0.0.1:{udp}", **variables}
    async with running_ioc("-d", file, **found) as ioc, ioc.client() as client:
        yield Records(ioc, client)


@asynccontextmanager
async def serving(
    pvs: Mapping[str, SharedPV], udp: int, keychain: Path | str = "", **options: str
) -> AsyncIterator[Server]:
    """The other server."""

    def prepare(server: Server) -> None:
        for name, pv in pvs.items():
            server.add_pv(name, pv)

    config = server_config(keychain, **options)._replace(broadcast_port=udp)
    async with open_server(config, prepare=prepare) as server:
        yield server


def number(value: float, severity: int = 0) -> Value:
    return Value(
        NTScalar(FLOAT64),
        {"value": value, "alarm.severity": severity, "alarm.message": "told" if severity else ""},
    )


async def test_a_lost_pv_is_a_link_alarm_until_it_is_back(tmp_path: Path) -> None:
    udp = free_port()
    text = """
    record(ai, "in") { field(INP, {pva:{pv:"far", proc:"CP", sevr:"MS"}}) }
    record(ao, "out") { field(OUT, {pva:"far"}) }
    record(ao, "patient") { field(OUT, {pva:{pv:"far", retry:true}}) }
    """
    async with linked(tmp_path / "a.db", text, udp) as records:
        await records.put("out", 1.0)
        assert await records.get("out.SEVR") == INVALID
        pv = SharedPV.mailbox(number(5.0))
        async with serving({"far": pv}, udp):
            await records.becomes("in", 5.0)
            assert await records.get("in.SEVR") == 0
            pv.post(number(6.0, severity=2))
            await records.becomes("in.SEVR", 2)
            assert (await records.client.get("in"))["alarm.message"] == "told"
            await records.put("out", 7.0)
            assert await records.get("out.SEVR") == 0
            await records.becomes("in", 7.0)
        await records.becomes("in.SEVR", INVALID)
        alarm = (await records.client.get("in"))["alarm"]
        assert alarm["message"] == "INP Disconn"
        assert await records.get("in") == 7.0
        with pytest.raises(RemoteError, match=r"cannot process out: .*, with the alarm 'field OUT'"):
            await records.client.put("out", 8.0)
        assert await records.get("out.SEVR") == INVALID
        await records.put("patient", 9.0)
        assert await records.get("patient.SEVR") == 0
        await records.shows("dbpvar", "out", 1, "", "far conn=F 1 disconnects, 1 type changes, .*: ")
        again = SharedPV.mailbox(number(0.0))
        async with serving({"far": again}, udp):
            await records.becomes("in", 9.0)
            assert await records.get("in.SEVR") == 0
            await records.put("out", 10.0)
            await records.becomes("in", 10.0)


async def test_a_server_may_come_back_with_another_type(tmp_path: Path) -> None:
    udp = free_port()
    text = """
    record(ai, "in") { field(INP, {pva:{pv:"far", proc:"CP"}}) }
    record(stringin, "text") { field(INP, {pva:{pv:"far", proc:"CP"}}) }
    record(waveform, "wave") { field(FTVL, "DOUBLE") field(NELM, "4") field(INP, {pva:{pv:"far", proc:"CP"}}) }
    record(longout, "out") { field(OUT, {pva:"far"}) }
    """
    union = StructType(
        [("value", UnionType([("doubleValue", ArrayType(FLOAT64))]))], "epics:nt/NTNDArray:1.0"
    )
    image = Value(union)
    image["value->doubleValue"] = [4.0, 5.0]
    enum = {"value": {"index": 0, "choices": ["zero", "one"]}}
    kinds: list[tuple[Value, float, str, list[float]]] = [
        (number(1.5), 1.5, "1.5", [1.5]),
        (Value(NTScalar(STRING), {"value": "2.5"}), 2.5, "2.5", [2.5]),
        (Value(NTScalarArray(INT32), {"value": np.array([3, 4], "i4")}), 3.0, "3", [3.0, 4.0]),
        (Value(NTEnum(), enum), 0.0, "zero", [0.0]),
        (image, 4.0, "4", [4.0, 5.0]),
    ]
    async with linked(tmp_path / "a.db", text, udp) as records:
        for value, first, shown, all_of_them in kinds:
            pv = SharedPV.mailbox(value)
            async with serving({"far": pv}, udp):
                await records.becomes("text", shown)
                await records.becomes("in", first)
                await records.becomes("wave", lambda found, wanted=all_of_them: list(found) == wanted)
                assert await records.get("in.SEVR") == 0
                if value is not image:
                    await records.put("out", 1)
                    await records.becomes("text", "one" if value.type.id.endswith("NTEnum:1.0") else "1")
            await records.becomes("in.SEVR", INVALID)
        await records.shows("dbpvar", "in", 2, "", "far conn=F 5 disconnects, 5 type changes")


TARGETS = """
record(calcout, "slow") { field(CALC, "A") field(ODLY, "0.2") field(OUT, "done PP") }
record(calcout, "never") { field(CALC, "A") field(ODLY, "100000") }
record(longin, "done") {}
"""


async def test_a_number_with_a_fraction_chooses_what_its_whole_part_names(tmp_path: Path) -> None:
    udp = free_port()
    text = """
    record(stringin, "in") { field(INP, {pva:{pv:"far", proc:"CP"}}) }
    record(ao, "out") { field(OUT, {pva:"far"}) }
    """
    pv = SharedPV.mailbox(Value(NTEnum(), {"value.index": 0, "value.choices": ["zero", "one", "two"]}))
    async with serving({"far": pv}, udp), linked(tmp_path / "a.db", text, udp) as records:
        await records.becomes("in", "zero")
        for number_, wanted in ((1.7, "one"), (2.0, "two"), (-0.5, "zero")):
            await records.put("out", number_)
            await records.becomes("in", wanted)


async def test_what_only_calls_itself_an_enumeration_is_an_alarm_and_no_traceback(tmp_path: Path) -> None:
    udp = free_port()
    text = """
    record(ai, "in") { field(INP, {pva:{pv:"far", proc:"CP"}}) }
    record(ai, "again") { field(INP, {pva:"far"}) field(SCAN, ".1 second") }
    record(ao, "out") { field(OUT, {pva:"far"}) }
    """
    async with linked(tmp_path / "a.db", text, udp) as records:
        for index, choices in ((STRING, ArrayType(STRING)), (ArrayType(INT32), FLOAT64), (INT32, FLOAT64)):
            value = Value(
                StructType([("value", StructType([("index", index), ("choices", choices)], "enum_t"))])
            )
            async with serving({"far": SharedPV.mailbox(value)}, udp):
                await records.shows("dbpvar", "in", 2, "", "far conn=T")
                await records.becomes("again.AMSG", lambda said: "has no value" in said)
                await records.put("out", 1.0)
                assert await records.get("in.SEVR") == INVALID
            await records.becomes("again.AMSG", "INP Disconn")
            async with serving({"far": SharedPV.mailbox(number(7.0))}, udp):
                await records.becomes("in", 7.0)
                await records.becomes("again", 7.0)
            await records.becomes("again.AMSG", "INP Disconn")
        assert "Traceback" not in records.ioc.log


async def test_a_link_asks_for_the_members_of_a_group_together_whatever_the_group_itself_says(
    tmp_path: Path,
) -> None:
    udp = free_port()
    asked: list[dict[str, str]] = []

    class Noting(SharedPV):
        def subscribe(self, subscription: Any) -> None:
            asked.append(subscription.options)
            super().subscribe(subscription)

    text = 'record(ai, "in") { field(INP, {pva:{pv:"far", proc:"CP"}}) }'
    pv = Noting(number(3.0))
    async with serving({"far": pv}, udp), linked(tmp_path / "a.db", text, udp) as records:
        await records.becomes("in", 3.0)
    assert asked[0]["atomic"] == "true"


async def test_a_record_waits_for_the_end_of_processing_on_another_server(tmp_path: Path) -> None:
    """With completion the record behind the forward link sees what the processing has done; without it, not."""
    (tmp_path / "there.db").write_text(TARGETS)
    text = """
    record(longout, "waits") { field(DTYP, "Async Soft Channel") field(OUT, {pva:{pv:"slow.A", proc:true}}) field(FLNK, "seen") }
    record(longin, "seen") { field(INP, {pva:"done"}) }
    record(longout, "hurries") { field(OUT, {pva:{pv:"slow.A", proc:true}}) }
    record(longout, "hangs") { field(DTYP, "Async Soft Channel") field(OUT, {pva:{pv:"never.A", proc:true}}) }
    """
    async with running_ioc("-S", "-d", tmp_path / "there.db") as there:
        async with linked(tmp_path / "a.db", text, there.udp) as records:
            for name in ("waits", "seen", "hurries", "hangs"):
                await records.connected(name)
            await records.put("waits", 5)
            assert await records.get("waits.PACT") == 0
            assert await records.get("waits.SEVR") == 0
            async with there.client() as client:
                assert (await client.get("done"))["value"] == 5
                await records.put("hurries", 6)
                await Records(there, client).becomes("done", 6)
            await records.client.put("hangs", 7)
            await records.becomes("hangs.PACT", 1)
            await records.shows("dbpvar", "hangs", 2, "", r"never.A conn=T .* Put")
            there.process.kill()
            await records.becomes("hangs.AMSG", "never.A Disconn")
            assert await records.get("hangs.PACT") == 0
            assert await records.get("hangs.SEVR") == INVALID


class Silent(SharedPV):
    """Answers puts only if it is told to, and notes what came."""

    def __init__(self, initial: Value) -> None:
        super().__init__(initial)
        self.came: list[float] = []
        self.answers = False

    def put(self, operation: Operation, value: Value) -> None:
        self.came.append(float(value["value"]))
        if self.answers:
            self.post(value)
            operation.done()


async def test_a_put_that_a_server_never_answers_is_given_up_with_an_alarm_and_the_latest_value_goes_next(
    tmp_path: Path,
) -> None:
    udp = free_port()
    pv = Silent(number(0.0))
    text = """
    record(ao, "out") { field(OUT, {pva:{pv:"far"}}) }
    record(ao, "again") { field(OUT, {pva:{pv:"other", retry:true}}) }
    record(calc, "go") { field(FLNK, {pva:{pv:"third", proc:true}}) }
    """
    other, third = Silent(number(0.0)), Silent(number(0.0))
    served = {"far": pv, "other": other, "third": third}
    # Four seconds of patience instead of forty.
    linked_ioc = linked(tmp_path / "a.db", text, udp, EPICS_PVA_CONN_TMO="3")
    async with serving(served, udp), linked_ioc as records:
        await records.connected("out", "again", "go")
        for value in (1.0, 2.0, 3.0):
            await records.put("out", value)
        assert await records.get("out.SEVR") == 0
        await records.put("again", 7.0)
        await records.process("go")
        # Nobody writes to the record again, and it tells all the same.
        await records.becomes("out.AMSG", "far: no answer to a put for 4 s")
        assert await records.get("out.SEVR") == INVALID
        await records.becomes("go.SEVR", INVALID)
        await until(lambda: pv.came == [1.0, 3.0], 30.0)
        await records.ioc.printed("PVA link out.OUT: cannot write far: far: no answer to a put for 4 s")
        await records.shows("dbpvar", "out", 2, "", "latest put: far: no answer to a put")
        # While it is in doubt, each value is sent, with the alarm.
        await records.put("out", 4.0)
        assert await records.get("out.SEVR") == INVALID
        pv.answers = True
        await until(lambda: pv.current["value"] == 4.0, 30.0)
        await until(lambda: pv.came[-1] == 4.0, 30.0)
        await records.shows("dbpvar", "out", 2, "", r"far conn=T .* \(\d+ failed\)\s")
        await records.put("out", 5.0)
        assert await records.get("out.SEVR") == 0
        await until(lambda: pv.current["value"] == 5.0, 30.0)
        # What a link with 'retry' writes is written again.
        assert other.came[:2] == [7.0, 7.0]
        other.answers = True
        await until(lambda: other.current["value"] == 7.0, 30.0)


async def test_what_was_written_and_did_not_arrive_is_an_alarm_of_the_record_that_did_not_wait(
    tmp_path: Path,
) -> None:
    def even(pv: SharedPV, _operation: Operation, value: Value) -> None:
        if value["value"] % 2:
            raise ApplianceError("even numbers only")
        pv.post(value)

    udp = free_port()
    pv = SharedPV(number(0.0), on_put=even)
    whole = SharedPV.mailbox(Value(NTScalar(INT32), 5))
    text = """
    record(ao, "out") { field(OUT, {pva:{pv:"far"}}) }
    record(ao, "big") { field(OUT, {pva:{pv:"whole"}}) }
    record(ao, "lost") { field(OUT, {pva:{pv:"silent"}}) }
    record(longin, "in") { field(INP, {pva:{pv:"far"}}) }
    record(longin, "fast") { field(INP, {pva:{pv:"far", sevr:false}}) }
    """
    served = {"far": pv, "whole": whole, "silent": Silent(number(0.0))}
    async with linked(tmp_path / "a.db", text, udp) as records:
        async with serving(served, udp):
            await records.connected("out", "big", "lost", "in", "fast")
            await records.put("out", 3.0)
            await records.becomes("out.AMSG", lambda found: "even numbers only" in found)
            assert await records.get("out.SEVR") == INVALID
            await records.put("out", 4.0)
            await until(lambda: pv.current["value"] == 4.0, 30.0)
            assert await records.get("out.SEVR") == 0
            for value, said in ((1e30, "1e+30"), (float("nan"), "nan"), (float("-inf"), "-inf")):
                await records.put("big", value)
                await records.becomes(
                    "big.AMSG", lambda found, said=said: f"{said} does not fit int32" in found
                )
                await records.put("big", 6.0)
                await until(lambda: whole.current["value"] == 6, 30.0)
                await records.becomes("big.SEVR", 0)
            for name in ("in", "fast"):
                await records.process(name)
                assert await records.get(name) == 4
            pv.post(number(1e30))
            for name in ("in", "fast"):
                async with asyncio.timeout(30):
                    while await records.get(f"{name}.SEVR") != INVALID:
                        await records.process(name)
                assert await records.get(f"{name}.AMSG") == "INP: 1e+30 does not fit int32"
                assert await records.get(name) == 4
            await records.put("lost", 1.0)
            assert await records.get("lost.SEVR") == 0
        await records.becomes("lost.AMSG", "silent Disconn")


async def test_a_pipelined_link_gets_the_last_value_of_many(tmp_path: Path) -> None:
    udp = free_port()
    text = """
    record(ai, "in") { field(INP, {pva:{pv:"far", proc:"CP", pipeline:true, Q:3}}) field(FLNK, "count") }
    record(calc, "count") { field(CALC, "VAL+1") }
    """
    pv = SharedPV.mailbox(number(0.0))
    async with serving({"far": pv}, udp), linked(tmp_path / "a.db", text, udp) as records:
        await records.becomes("count", 1)
        for burst in range(5):
            for each in range(100):
                pv.post(number(burst * 100.0 + each))
            await records.becomes("in", burst * 100.0 + 99)
        assert await records.get("count") >= 6


async def test_a_thousand_links(tmp_path: Path) -> None:
    count = 1000
    (tmp_path / "there.db").write_text(
        "\n".join(f'record(longin, "src:{each}") {{ field(VAL, "{each}") }}' for each in range(count))
    )
    text = "\n".join(
        f'record(longin, "in:{each}") {{ field(INP, {{pva:{{pv:"src:{each}", proc:"CP"}}}}) field(FLNK, "sum") }}'
        for each in range(count)
    )
    text += '\nrecord(calc, "sum") { field(CALC, "VAL+1") }\nrecord(longout, "out") { field(OUT, {pva:"src:7"}) }\n'
    async with running_ioc("-S", "-d", tmp_path / "there.db") as there:
        async with linked(tmp_path / "a.db", text, there.udp) as records:
            await records.becomes("sum", lambda found: found >= count)
            await records.shows(
                "dbpvar", "", 0, "", f"  {count}/{count} channels connected used by {count + 1} links"
            )
            values = await records.client.get([f"in:{each}" for each in range(count)], timeout=30)
            assert [value["value"] for value in values] == list(range(count))
            await records.put("out", 4711)
            await records.becomes("in:7", 4711)


async def test_the_death_of_a_server_under_load_leaves_alarms_and_its_return_takes_them_away(
    tmp_path: Path,
) -> None:
    count = 100
    (tmp_path / "there.db").write_text(
        "\n".join(
            f'record(calc, "src:{each}") {{ field(CALC, "VAL+1") field(SCAN, ".1 second") }}\nrecord(longin, "tgt:{each}") {{}}'
            for each in range(count)
        )
    )
    text = "\n".join(
        f'record(calcout, "in:{each}") {{ field(INPA, {{pva:{{pv:"src:{each}", proc:"CP", sevr:"MSI"}}}}) field(CALC, "A") '
        f'field(OUT, {{pva:"tgt:{each}"}}) }}'
        for each in range(count)
    )

    def all_in(records: Records, severity: int) -> Any:
        async def check() -> bool:
            values = await records.client.get([f"in:{each}" for each in range(count)], timeout=30)
            return all(value["alarm.severity"] == severity for value in values)

        return check

    async def waits(check: Any) -> None:
        async with asyncio.timeout(60):
            while not await check():
                await asyncio.sleep(0.05)

    async with AsyncExitStack() as stack:
        there = await stack.enter_async_context(running_ioc("-S", "-d", tmp_path / "there.db"))
        records = await stack.enter_async_context(linked(tmp_path / "a.db", text, there.udp))
        again = {"EPICS_PVAS_BROADCAST_PORT": str(there.udp), "EPICS_PVAS_SERVER_PORT": str(there.tcp)}
        for _ in range(2):
            await waits(all_in(records, 0))
            await records.becomes("in:0", lambda found: found > 3)
            there.process.kill()
            await there.ended()
            await waits(all_in(records, INVALID))
            there = await stack.enter_async_context(running_ioc("-S", "-d", tmp_path / "there.db", **again))
        await waits(all_in(records, 0))
        async with there.client(addr_list=f"127.0.0.1:{again['EPICS_PVAS_BROADCAST_PORT']}") as client:
            await Records(there, client).becomes("tgt:99", lambda found: found > 3)
        assert "Traceback" not in records.ioc.log


@pytest.mark.parametrize("whose", ["client", "ioc"])
async def test_both_ends_of_a_link_prove_themselves_over_tls(tmp_path: Path, whose: str) -> None:
    udp = free_port()
    server_file = keychain_file(tmp_path, "other", site().server)
    ioc_file = keychain_file(tmp_path, "ioc", site().client if whose == "client" else site().ioc)
    secure: dict[str, str | None] = {"XDG_DATA_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    if whose == "client":
        secure["EPICS_PVA_TLS_KEYCHAIN"] = str(ioc_file)
    else:
        secure |= {
            "EPICS_PVA_TLS_KEYCHAIN": None,
            "EPICS_PVAS_TLS_KEYCHAIN": str(ioc_file),
            "EPICS_PVAS_TLS_PORT": str(free_port()),
        }
    text = """
    record(ai, "in") { field(INP, {pva:{pv:"far", proc:"CP"}}) }
    record(ao, "out") { field(OUT, {pva:"far"}) }
    """
    pv = SharedPV.mailbox(number(1.0))
    async with (
        serving({"far": pv}, udp, server_file) as server,
        linked(tmp_path / "a.db", text, udp, **secure) as records,
    ):
        await records.becomes("in", 1.0)
        (peer,) = (peer for peer in server.peers.values() if peer.credentials.is_tls)
        assert (peer.credentials.method, peer.credentials.account) == ("x509", whose)
        await records.put("out", 2.0)
        await records.becomes("in", 2.0)


async def test_an_ioc_that_requires_tls_links_to_nothing_in_the_clear(tmp_path: Path) -> None:
    udp = free_port()
    ioc_file = keychain_file(tmp_path, "ioc", site().ioc)
    server_file = keychain_file(tmp_path, "other", site().server)
    (tmp_path / "records.db").write_text(
        'record(ai, "in") { field(INP, {pva:{pv:"far", proc:"CP"}}) }\nrecord(ai, "own") { field(INP, {pva:{pv:"in", proc:"CP"}}) }\n'
    )
    (tmp_path / "ioc.yml").write_text(
        f"databases: [{{file: records.db}}]\nconsole: {tmp_path / 'console'}\n"
        f"pva: {{tls_keychain: {ioc_file}, tls_port: 0, tls_options: tls_required}}\n"
    )
    variables: dict[str, str | None] = {
        "EPICS_PVA_ADDR_LIST": f"127.0.0.1:{udp}",
        "EPICS_PVA_TLS_KEYCHAIN": None,
        "EPICS_PVAS_TLS_KEYCHAIN": None,
        "XDG_CONFIG_HOME": str(tmp_path),
        "XDG_DATA_HOME": str(tmp_path),
    }
    client_file = keychain_file(tmp_path, "client", site().client)
    async with running_ioc("--config", tmp_path / "ioc.yml", **variables) as ioc:
        config = resolve_client(
            {"addr_list": f"127.0.0.1:{ioc.udp}", "auto_addr_list": False, "tls_keychain": str(client_file)},
            environ={},
        )
        async with open_client(config) as client:
            records = Records(ioc, client)
            plain = SharedPV.mailbox(number(1.0))
            async with serving({"far": plain}, udp) as server:
                await records.get("in")
                assert await records.get("in.UDF") == 1
                assert not server.peers
            async with serving({"far": SharedPV.mailbox(number(2.0))}, udp, server_file):
                await records.becomes("in", 2.0)
                await records.becomes("own", 2.0)


async def test_pvxreconfigure_gives_links_and_inputs_the_new_keychain_with_one_connection_more(
    tmp_path: Path,
) -> None:
    udp = free_port()
    server_file = keychain_file(tmp_path, "other", site().server)
    first = keychain_file(tmp_path, "first", site().ioc)
    second = keychain_file(tmp_path, "second", site().ca.keychain("later", "ioc"))
    (tmp_path / "records.db").write_text(
        'record(ai, "in") { field(INP, {pva:{pv:"far", proc:"CP"}}) }\n'
        'record(ao, "out") { field(OUT, {pva:"far"}) }\n'
        'record(ai, "own") { field(INP, {pva:{pv:"in", proc:"CP"}}) }\n'
    )
    (tmp_path / "rules.acf").write_text(
        'ASG(DEFAULT) { INPA("mode") RULE(1, READ) RULE(1, WRITE) { CALC("A=1") } }\n'
    )
    settings = (
        "databases: [{file: records.db}]\nacf: {file: rules.acf}\nconsole: console\n"
        f"pva: {{tls_keychain: KEYCHAIN, tls_port: {free_port()}}}\n"
    )
    (tmp_path / "ioc.yml").write_text(settings.replace("KEYCHAIN", str(first)))
    variables: dict[str, str | None] = {
        "EPICS_PVA_ADDR_LIST": f"127.0.0.1:{udp}",
        "EPICS_PVA_TLS_KEYCHAIN": None,
        "EPICS_PVAS_TLS_KEYCHAIN": None,
        "XDG_CONFIG_HOME": str(tmp_path),
        "XDG_DATA_HOME": str(tmp_path),
    }
    pvs = {"far": SharedPV.mailbox(number(1.0)), "mode": SharedPV.mailbox(number(1.0))}

    def names(server: Server) -> set[str]:
        return {peer.credentials.account for peer in server.peers.values() if peer.credentials.is_tls}

    async with (
        serving(pvs, udp, server_file) as server,
        running_ioc("--config", "ioc.yml", cwd=tmp_path, **variables) as ioc,
        ioc.client() as client,
    ):
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "console"))

        async def typed(line: str) -> str:
            writer.write(line.encode() + b"\n")
            return (await asyncio.wait_for(reader.readuntil(b"epics> "), 60)).decode()

        await reader.readuntil(b"epics> ")
        records = Records(ioc, client)
        await records.becomes("in", 1.0)
        assert names(server) == {"ioc"}
        # Nothing has changed: nothing connects again.
        assert "Reconfiguring" in await typed("pvxreconfigure")
        assert "far conn=T 0 disconnects, 1 type changes" in await typed('dbpvar "" 2')
        # A keychain that cannot be used changes nothing either.
        (tmp_path / "ioc.yml").write_text(settings.replace("KEYCHAIN", "nowhere.p12"))
        assert "(failed)" in await typed("pvxreconfigure")
        assert "far conn=T 0 disconnects, 1 type changes" in await typed('dbpvar "" 2')
        (tmp_path / "ioc.yml").write_text(settings.replace("KEYCHAIN", str(second)))
        assert "Reconfiguring" in await typed("pvxreconfigure")
        await until(lambda: names(server) == {"later"})
        await records.becomes("in.SEVR", 0)
        async with asyncio.timeout(30):
            while "far conn=T 1 disconnects, 2 type changes" not in (said := await typed('dbpvar "" 2')):
                assert "far conn=F" in said
        assert "in conn=T 0 disconnects, 1 type changes" in said
        pvs["far"].post(number(3.0))
        await records.becomes("own", 3.0)
        async with asyncio.timeout(30):
            while True:
                try:
                    await records.put("out", 4.0)
                    break
                except AccessDeniedError:
                    # The input of the rule is on its way.
                    await asyncio.sleep(0.05)
        await records.becomes("in", 4.0)
        writer.close()


async def test_settings_that_change_while_the_client_is_opened_are_those_that_count() -> None:
    opened: list[str] = []
    gates = {"first": asyncio.Event(), "second": asyncio.Event()}

    def opener(name: str) -> Any:
        @asynccontextmanager
        async def opening() -> AsyncIterator[Any]:
            await gates[name].wait()
            opened.append(name)
            yield object()

        return opening

    client = RemoteClient(opener("first"))
    channel = LinkChannel(ChannelKey("pv", 4, False, False), _Owner())
    client.connect(channel)
    client.forget(channel)
    # None is open yet, so no other one is opened; then the first one is.
    assert await client.open_another(opener("second")) is None
    gates["first"].set()
    await until(lambda: opened == ["first"])
    gates["second"].set()
    await client.use(opener("second"), None)
    assert opened == ["first", "second"]
    await client.close()


class _Owner:
    """A channel without an IOC."""

    def push(self, work: Any) -> None:
        raise AssertionError("no record is to be processed")

    def on_loop(self, function: Any) -> None:
        asyncio.get_running_loop().call_soon(function)


async def test_a_link_whose_certificate_is_in_doubt_counts_as_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SPVA 8.4: the connection stays and pauses; a value from before the pause is no longer known to be so."""
    monkeypatch.setattr("appliance.ioc.links.remote.PAUSE_POLL_S", 0.05)
    pv = SharedPV.mailbox(number(1.0))
    keychain = site().ca.keychain("other", "server", status=True)
    file = keychain_file(tmp_path, "other", keychain)
    client_file = keychain_file(tmp_path, "ioc", site().client)
    async with StatusService(site().ca, valid=timedelta(seconds=2)) as cms:
        cms.set(keychain, CertState.VALID)
        async with serving({"far": pv}, free_port(), file, tls_options="no_revocation_check") as server:
            environ = {
                "EPICS_PVA_ADDR_LIST": f"127.0.0.1:{server.udp_port} 127.0.0.1:{cms.udp_port}",
                "EPICS_PVA_AUTO_ADDR_LIST": "NO",
                "EPICS_PVA_TLS_KEYCHAIN": str(client_file),
                "EPICS_PVA_NO_STATUS_CACHE": "YES",
            }
            client = RemoteClient(lambda: open_client(resolve_client(environ=environ)))
            channel = LinkChannel(ChannelKey("far", 4, False, False), _Owner())
            client.connect(channel)
            try:
                await until(lambda: channel.connected)
                (peer,) = server.peers
                await cms.stop()
                await until(lambda: not channel.connected)
                assert "status of a certificate" in channel.why
                assert list(server.peers) == [peer], "the connection stays"
                pv.post(number(2.0))
                cms.valid = timedelta(minutes=30)
                cms.set(keychain, CertState.VALID)
                await cms.start()
                await until(lambda: channel.connected)
                await until(lambda: channel.latest is not None and channel.latest.store[1] == 2.0)
            finally:
                await client.close()

"""Records about the state of the IOC: names, values, limits; in the configuration and loaded by a script."""

from __future__ import annotations

import asyncio
import os
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from appliance.client import Context
from appliance.errors import AccessDeniedError, RemoteError
from appliance.ioc.stats import SHIPPED, up_time
from tests.helpers.ca_client import ca_client
from tests.helpers.ioc_process import running_ioc
from tests.helpers.ports import free_port

NAMES = re.findall(r'record\((\w+), "\$\(IOC\):(\w+)"\)', (SHIPPED / "iocStats.db").read_text())


async def until(client: Context, name: str, wanted: Any) -> Any:
    """Wait for a value; what it was at last."""
    async with asyncio.timeout(30):
        async for value in client.monitor(name):
            if wanted(value["value"]):
                return value
    raise AssertionError(name)


def text(value: Any) -> str:
    return bytes(int(each) & 0xFF for each in value["value"]).split(b"\0")[0].decode()


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0, "00:00:00"), (3661.9, "01:01:01"), (86400, "1 day, 00:00:00"), (200000, "2 days, 07:33:20")],
)
def test_a_time_is_written_as_the_module_writes_it(seconds: float, written: str) -> None:
    assert up_time(seconds) == written


async def test_one_line_of_the_configuration_gives_all_records(tmp_path: Path) -> None:
    (tmp_path / "st.cmd").write_text("# nothing\n")
    (tmp_path / "ioc.yml").write_text(
        "stats: {prefix: 'LAB:ioc1', engineer: Ada, location: Hall 1}\nscript: st.cmd\n"
    )
    async with running_ioc("--config", "ioc.yml", cwd=tmp_path) as ioc, ioc.client() as client:
        pid = ioc.process.pid
        await until(client, "LAB:ioc1:CB_Q_SIZE", bool)
        assert (await client.get("LAB:ioc1:PROCESS_ID"))["value"] == pid
        assert (await client.get("LAB:ioc1:PARENT_ID"))["value"] == os.getpid()
        assert (await client.get("LAB:ioc1:RECORD_CNT"))["value"] == len(NAMES)
        assert (await client.get("LAB:ioc1:ENGINEER"))["value"] == "Ada"
        assert (await client.get("LAB:ioc1:LOCATION"))["value"] == "Hall 1"
        assert (await client.get("LAB:ioc1:HOSTNAME"))["value"] == socket.gethostname()[:39]
        assert (await client.get("LAB:ioc1:EPICS_VERS"))["value"].startswith("EPICS 7.")
        assert text(await client.get("LAB:ioc1:APP_DIR")) == str(tmp_path)
        # Its functions stand in the place of those of EPICS Base, which says nothing about it.
        assert "could not register" not in ioc.log
        assert text(await client.get("LAB:ioc1:ST_SCRIPT")) == str(tmp_path / "st.cmd")
        first, second = [(await client.get(f"LAB:ioc1:APP_DIR{part}"))["value"] for part in (1, 2)]
        assert (first + second)[:78] == str(tmp_path)[:78]
        assert (await client.get("LAB:ioc1:FD_MAX"))["value"] > 0
        used = (await client.get("LAB:ioc1:FD_CNT"))["value"]
        assert 0 < used <= len(list(Path(f"/proc/{pid}/fd").iterdir())) + 20
        left = await client.get("LAB:ioc1:FD_FREE")
        assert left["value"] == (await client.get("LAB:ioc1:FD_MAX"))["value"] - used
        assert (await client.get("LAB:ioc1:MEM_USED"))["value"] > 1e7
        assert (
            (await client.get("LAB:ioc1:MEM_MAX"))["value"]
            >= (await client.get("LAB:ioc1:MEM_FREE"))["value"]
            > 0
        )
        assert (await client.get("LAB:ioc1:CPU_CNT"))["value"] == os.cpu_count()
        assert (await client.get("LAB:ioc1:SUSP_TASK_CNT"))["value"] == 0
        assert (await client.get("LAB:ioc1:CB_Q_SIZE"))["value"] >= 1000
        assert (await client.get("LAB:ioc1:CBLOW_Q_OVERRUNS"))["value"] == 0
        assert (await client.get("LAB:ioc1:SCANONCE_Q_SIZE"))["value"] > 0
        written = re.compile(r"\d\d/\d\d/\d{4} \d\d:\d\d:\d\d")
        now = (await until(client, "LAB:ioc1:TOD", bool))["value"]
        begun = (await client.get("LAB:ioc1:STARTTOD"))["value"]
        assert written.fullmatch(now)
        assert written.fullmatch(begun)
        for name in ("UPTIME", "HEARTBEAT"):
            before = (await client.get(f"LAB:ioc1:{name}"))["value"]
            assert (await until(client, f"LAB:ioc1:{name}", lambda value, before=before: value > before))[
                "value"
            ]
        await client.put("LAB:ioc1:CA_UPD_TIME", 1.0)
        assert (await until(client, "LAB:ioc1:PVA_CLNT_CNT", bool))["value"] == 1
        assert (await client.get("LAB:ioc1:PVA_TLS_CNT"))["value"] == 0
        assert (await until(client, "LAB:ioc1:PVA_CONN_CNT", lambda value: value > 10))["value"] > 10
        await client.put("LAB:ioc1:LOAD_UPD_TIME", 1.0)
        load = await until(client, "LAB:ioc1:LOAD", lambda value: value > 0)
        assert load["display.units"] == "%"
        assert 0 < (await until(client, "LAB:ioc1:SYS_CPU_LOAD", bool))["value"] <= 100
        alarm = await client.get("LAB:ioc1:IOC_CPU_LOAD")
        assert alarm["valueAlarm.highAlarmLimit"] == 80
        assert all([await client.get(f"LAB:ioc1:{name}") for _, name in NAMES])
        assert await ioc.stop() == 0
        assert "Traceback" not in ioc.log


async def test_a_script_loads_the_file_by_its_name_and_a_site_can_have_its_own(tmp_path: Path) -> None:
    (tmp_path / "st.cmd").write_text(
        'dbLoadRecords("iocStats.db", "IOC=S1")\ndbLoadRecords("mine.db")\niocInit\n'
    )
    (tmp_path / "mine.db").write_text(
        'record(ai, "mine:fd") { info(iocStats, "fd") }\nrecord(ai, "mine:no") { info(iocStats, "nonsense") }\n'
    )
    variables = {"ENGINEER": "Grace", "LOCATION": None}
    async with running_ioc("-S", "st.cmd", cwd=tmp_path, **variables) as ioc, ioc.client() as client:
        assert (await until(client, "S1:ENGINEER", bool))["value"] == "Grace"
        assert (await client.get("mine:fd"))["value"] > 0
        assert "mine:no: info(iocStats, 'nonsense') names no value" in ioc.log
    (tmp_path / "iocStats.db").write_text('record(ai, "own:$(IOC)") { field(VAL, "7") field(PINI, "YES") }\n')
    async with running_ioc("-S", "st.cmd", cwd=tmp_path) as ioc, ioc.client() as client:
        assert (await client.get("own:S1"))["value"] == 7.0


async def test_clients_of_channel_access_are_counted(tmp_path: Path) -> None:
    (tmp_path / "ioc.yml").write_text("stats: {prefix: S}\nchannel_access: true\n")
    port = free_port()
    variables = {
        "EPICS_CAS_SERVER_PORT": str(port),
        "EPICS_CAS_INTF_ADDR_LIST": "127.0.0.1",
        "EPICS_CAS_AUTO_BEACON_ADDR_LIST": "NO",
    }
    async with running_ioc("--config", "ioc.yml", cwd=tmp_path, **variables) as ioc, ioc.client() as client:
        await client.put("S:CA_UPD_TIME", 1.0)
        async with ca_client(port, free_port()) as ask:
            assert await ask("get S:CPU_CNT") == os.cpu_count()
            assert (await until(client, "S:CA_CLNT_CNT", bool))["value"] >= 1
            assert (await until(client, "S:CA_CONN_CNT", bool))["value"] >= 1


async def processes(client: Context, name: str) -> bool:
    """Whether a record's support reports no failure."""
    try:
        await client.put(f"{name}.PROC", 1)
    except RemoteError:
        return False
    return True


async def test_a_record_has_the_access_security_file_read_again(tmp_path: Path) -> None:
    rules = tmp_path / "rules.acf"
    rules.write_text("HAG(here) {127.0.0.1}\nASG(DEFAULT) { RULE(1, READ) RULE(1, WRITE) { HAG(here) } }\n")
    (tmp_path / "mine.db").write_text(
        'record(ao, "mine") {}\n'
        # As databases for other IOCs have it.
        'record(sub, "own:READACF") { field(INAM, "asSubInit") field(SNAM, "asSubProcess") field(BRSV, "MAJOR") }\n'
    )
    (tmp_path / "ioc.yml").write_text(
        "stats: {prefix: S}\nacf: {file: rules.acf}\ndatabases: [{file: mine.db}]\n"
    )
    async with running_ioc("--config", "ioc.yml", cwd=tmp_path) as ioc, ioc.client() as client:
        await client.put("mine", 1.0)
        for name, severity in (("S:READACF", 3), ("own:READACF", 2)):
            before = len(ioc.log)
            rules.write_text("nonsense")
            await client.put(name, 1.0)
            await ioc.printed(
                "the access security file was not read again: .*rules.acf:1:1: unknown keyword", before
            )
            async with asyncio.timeout(30):
                async for value in client.monitor(name):
                    if value["alarm.severity"] == severity:
                        break
            assert value["value"] == 0
            # The former rules hold.
            await client.put("mine", 2.0)
            rules.write_text("ASG(DEFAULT) { RULE(1, READ) RULE(1, WRITE) }\nASG(OTHER) { RULE(1, NONE) }\n")
            before = len(ioc.log)
            await client.put(name, 1.0)
            await ioc.printed("its rules apply to reading and writing", before)
            async with asyncio.timeout(30):
                while not await processes(client, name):
                    await asyncio.sleep(0.05)
            assert (await client.get(name))["alarm.severity"] == 0
        # Other values only process the record.
        before = ioc.log.count("its rules apply")
        await client.put("S:READACF", 5.0)
        await client.put("S:READACF.PROC", 1)
        await client.put("mine", 3.0)
        assert ioc.log.count("its rules apply") == before
        rules.write_text("ASG(DEFAULT) { RULE(1, READ) }\n")
        await client.put("S:READACF", 1.0)
        async with asyncio.timeout(30):
            while True:
                try:
                    await client.put("mine", 4.0)
                except AccessDeniedError:
                    break
                await asyncio.sleep(0.05)
        # Who may not write the record cannot have the file read.
        with pytest.raises(AccessDeniedError):
            await client.put("S:READACF", 1.0)


async def test_the_time_between_two_scans_is_measured_by_the_scans(tmp_path: Path) -> None:
    (tmp_path / "st.cmd").write_text('dbLoadRecords("iocAdminScanMon.db", "IOC=S")\niocInit\n')
    async with running_ioc("-S", "st.cmd", cwd=tmp_path) as ioc, ioc.client() as client:
        await until(client, "S:10HZ_UPD_TIME", lambda value: value > 0)
        for name, period in (("10HZ", 0.1), ("1HZ", 1.0), ("01HZ", 10.0)):
            await client.put(f"S:{name}_TIME.SCAN", "Passive")
            times = []
            for _ in range(3):
                await client.put(f"S:{name}_TIME.PROC", 1, "record[block=true]")
                times.append((await client.get(f"S:{name}_TIME"))["value"])
                value = await client.get(f"S:{name}_UPD_TIME")
            assert value["value"] == pytest.approx(times[2] - times[1], abs=1e-6)
            assert value["valueAlarm.highAlarmLimit"] == pytest.approx(1.05 * period)
        for name in ("01HZ", "02HZ", "05HZ"):
            assert (await client.get(f"S:{name}_UPD_TIME"))["display.units"] == "second"
        assert (await client.get("S:SCANMON_SEVR"))["value"] == 0
        assert "ERROR" not in ioc.log

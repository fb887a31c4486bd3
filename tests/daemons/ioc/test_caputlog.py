"""An IOC whose startup script starts caPutLog, with a log server on TCP; and the same by the configuration."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import numpy as np
import pytest

from appliance.client import Context
from appliance.errors import ApplianceError
from tests.helpers.ioc_process import IocProcess, running_ioc, starting_ioc
from tests.helpers.log_server import LogServer

RECORDS = """
record(ao, "LAB:ao") { field(VAL, "1") field(DRVH, "100") field(PINI, "YES") }
record(ao, "LAB:plain") { field(ASG, "QUIET") }
record(stringout, "LAB:so") { field(VAL, "before") }
record(bo, "LAB:bo") { field(ZNAM, "off") field(ONAM, "on") }
record(waveform, "LAB:wf") { field(FTVL, "DOUBLE") field(NELM, "4") }
record(lso, "LAB:lso") { field(SIZV, "200") }
record(ao, "LAB:off") { field(DISP, "1") }
record(ao, "LAB:end")
"""
RULES = "ASG(DEFAULT) { RULE(1, READ) RULE(1, WRITE, TRAPWRITE) }\nASG(QUIET) { RULE(1, WRITE) }\n"
SCRIPT = """
dbLoadRecords records.db
asSetFilename rules.acf
iocLogPrefix "ioc1 "
iocInit
"""
LINE = re.compile(
    rb"ioc1 (?P<time>\d\d-[A-Z][a-z]{2}-\d\d \d\d:\d\d:\d\d) 127\.0\.0\.1 (?P<user>\S+) (?P<pv>\S+) (?P<change>new=.*)\n"
)


@asynccontextmanager
async def ioc_with(folder: Path, script: str) -> AsyncIterator[tuple[IocProcess, Context]]:
    (folder / "records.db").write_text(RECORDS)
    (folder / "rules.acf").write_text(RULES)
    (folder / "st.cmd").write_text(script)
    async with running_ioc("st.cmd", cwd=folder) as ioc, ioc.client() as client:
        yield ioc, client
        assert "Traceback" not in ioc.log


async def wait(server: LogServer, count: int) -> list[bytes]:
    return await asyncio.to_thread(server.wait, count)


async def test_puts_reach_the_log_server_that_caputloginit_names(tmp_path: Path) -> None:
    with closing(LogServer()) as server:
        async with ioc_with(tmp_path, f'{SCRIPT}caPutLogInit "127.0.0.1:{server.port}" 2\n') as (ioc, client):
            await client.put("LAB:ao", 42.5)
            await client.put("LAB:plain", 5)
            await client.put("LAB:so", 'a "b"\nnew=7')
            await client.put("LAB:bo", "on")
            await client.put("LAB:wf", np.array([1.5, 2.5]))
            with pytest.raises(ApplianceError, match="DISP"):
                await client.put("LAB:off", 1)
            await client.put("LAB:end", 1)
            await client.put("LAB:end", 2)
            ioc.type("caPutLogShow\n")
            await ioc.printed(r"caPutLog mode: 2 = no filter \(every single put\)")
            await ioc.printed(rf"log client: 127\.0\.0\.1:{server.port} connected")
            lines = [LINE.fullmatch(line) for line in await wait(server, 5)]
    found = [(line["pv"].decode(), line["change"].decode()) for line in lines if line is not None]
    assert found == [
        ("LAB:ao", "new=42.5 old=1"),
        ("LAB:so", r'new="a \"b\"\nnew=7" old="before"'),
        ("LAB:bo", "new=1 old=0"),
        ("LAB:wf", 'new=1.5 old=""'),
        ("LAB:end", "new=1 old=0"),
    ]
    # What the IOC has when it ends is sent before it ends.
    assert len(server.wait(6)) == 6


async def test_commands_change_what_is_logged_while_the_ioc_runs(tmp_path: Path) -> None:
    with closing(LogServer()) as server:
        async with ioc_with(tmp_path, f'{SCRIPT}caPutLogInit "127.0.0.1:{server.port}" 2\n') as (ioc, client):
            ioc.type("caPutLogReconf -1\ncaPutLogShow\n")
            await ioc.printed("caPutLog mode: -1 = disabled")
            await client.put("LAB:ao", 2)
            ioc.type('caPutLogSetTimeFmt "T"\ncaPutLogSetBurstTimeout 60\ncaPutLogReconf 2\ncaPutLogShow\n')
            await ioc.printed("caPutLog mode: 2 =")
            await client.put("LAB:ao", 3)
            await client.put("LAB:ao", 4)
            (line,) = await wait(server, 1)
            assert re.fullmatch(rb"ioc1 T 127\.0\.0\.1 \S+ LAB:ao new=3 old=2\n", line)
            ioc.type("caPutLogReconf 7\n")
            await ioc.printed("7 is no configuration of caPutLog")
            ioc.type('caPutJsonLogInit "127.0.0.1:1"\n')
            await ioc.printed("there is one form at a time")


async def test_json_is_the_form_of_caputjsonloginit(tmp_path: Path) -> None:
    with closing(LogServer()) as server:
        script = (
            f'{SCRIPT}caPutJsonLogAddMetadata beamline B07\ncaPutJsonLogInit "127.0.0.1:{server.port}" 2\n'
        )
        async with ioc_with(tmp_path, script) as (_, client):
            await client.put("LAB:wf", np.array([1.5, 2.5]))
            await client.put("LAB:lso.$", np.frombuffer(b"long " * 20 + b"\0", "i1"))
            await client.put("LAB:end", 1)
            line, second = await wait(server, 2)
    long = json.loads(second[second.index(b"{") :])
    assert (long["pv"], long["new"], long["new-size"]) == ("LAB:lso.$", ["long " * 20], 101)
    prefix, _, text = line.partition(b"{")
    found = json.loads(b"{" + text)
    assert prefix == b"ioc1 "
    assert (found["host"], found["method"], found["beamline"]) == ("127.0.0.1", "ca", "B07")
    assert (found["pv"], found["new"], found["new-size"], found["old"], found["old-size"]) == (
        "LAB:wf", [1.5, 2.5], 2, [], 0,
    )  # fmt: skip


async def test_the_server_may_be_named_by_the_variable(tmp_path: Path) -> None:
    with closing(LogServer()) as server:
        script = f'epicsEnvSet EPICS_CA_PUT_LOG_ADDR "127.0.0.1:{server.port}"\n{SCRIPT}caPutLogInit "" 2\n'
        async with ioc_with(tmp_path, script) as (_, client):
            await client.put("LAB:ao", 2)
            await client.put("LAB:end", 1)
            await wait(server, 1)


@pytest.mark.parametrize(
    ("script", "line", "sentence"),
    [
        ("caPutLogInit localhost\niocInit\n", 1, "caPutLogInit: access security is not active yet: use it after iocInit"),
        ("iocInit\ncaPutLogInit localhost\n", 2, "there is no access security file, so no put is selected"),
        ("asSetFilename rules.acf\niocInit\ncaPutLogInit\n", 3, r"usage: caPutLogInit\(.*or set EPICS_CA_PUT_LOG_ADDR"),
        ("asSetFilename rules.acf\niocInit\ncaPutLogInit host:port\n", 3, "'host:port' is no log server: write HOST or HOST:PORT"),
        ("asSetFilename rules.acf\niocInit\ncaPutLogInit localhost 9\n", 3, "9 is no configuration of caPutLog"),
        ("asSetFilename rules.acf\niocInit\ncaPutLogReconf 1\n", 3, "it was not started: use caPutLogInit"),
        ("caPutJsonLogAddMetadata user me\niocInit\n", 1, "'user' is a property that each line has"),
    ],
)  # fmt: skip
async def test_a_wrong_command_ends_the_start_with_file_and_line(
    tmp_path: Path, script: str, line: int, sentence: str
) -> None:
    (tmp_path / "records.db").write_text(RECORDS)
    (tmp_path / "rules.acf").write_text(RULES)
    (tmp_path / "st.cmd").write_text("dbLoadRecords records.db\n" + script)
    async with starting_ioc("st.cmd", cwd=tmp_path) as ioc:
        assert await ioc.ended() == 1
        assert re.search(rf"st\.cmd:{line + 1}: .*{sentence}", ioc.log), ioc.log
        assert "Traceback" not in ioc.log


async def test_the_configuration_names_servers_and_a_file(tmp_path: Path) -> None:
    with closing(LogServer()) as server:
        (tmp_path / "records.db").write_text(RECORDS)
        (tmp_path / "rules.acf").write_text(RULES)
        (tmp_path / "ioc.yml").write_text(
            "databases: [{file: records.db}]\nacf: {file: rules.acf}\nca_put_log:\n"
            f'  servers: ["127.0.0.1:{server.port}"]\n  file: puts.log\n  mode: unfiltered\n  format: json\n'
        )
        async with running_ioc("--config", "ioc.yml", cwd=tmp_path) as ioc, ioc.client() as client:
            await client.put("LAB:ao", 2)
            await client.put("LAB:end", 1)
            (line,) = await wait(server, 1)
        first, last = map(json.loads, (tmp_path / "puts.log").read_text().splitlines())
    assert json.loads(line) == first
    assert (first["pv"], first["new"], first["old"], last["pv"]) == ("LAB:ao", 2.0, 1.0, "LAB:end")


async def test_what_has_no_effect_is_said(tmp_path: Path) -> None:
    with closing(LogServer()) as server:
        at = f"127.0.0.1:{server.port}"
        script = (
            f'epicsEnvSet EPICS_AS_PUT_LOG_PV "nowhere"\ncaPutJsonLogAddMetadata beamline B07\n{SCRIPT}'
            f'caPutLogInit "{at}" -1\n'
        )
        async with ioc_with(tmp_path, script) as (ioc, _):
            await ioc.printed(
                "caPutLogInit: EPICS_AS_PUT_LOG_PV has no effect: puts are logged to servers and"
            )
            await ioc.printed("caPutLogInit: nothing is logged: the configuration is -1")
            await ioc.printed("caPutLogInit: the property 'beamline' has no effect: lines of text have none")
            ioc.type("caPutLogSetBurstTimeout 0\n")
            await ioc.printed(r"caPutLogSetBurstTimeout: 0\.0 is no time: it is 5\.0 s now")
            assert "TRAPWRITE" not in ioc.log
        (tmp_path / "rules.acf").write_text("ASG(DEFAULT) { RULE(1, WRITE) }\n")
        (tmp_path / "st.cmd").write_text(f'{SCRIPT}caPutJsonLogInit "{at}" 0\n')
        async with running_ioc("st.cmd", cwd=tmp_path) as ioc:
            await ioc.printed(
                "caPutJsonLogInit: no put is logged: no rule of the access security file has TRAPWRITE"
            )
            ioc.type("caPutLogSetTimeFmt %H\n")
            await ioc.printed("caPutLogSetTimeFmt: the form of date and time has no effect: lines of JSON")
            ioc.type("var caPutLogDebug 1\n")
            await ioc.printed("this IOC has no variable 'caPutLogDebug'")


@pytest.mark.parametrize("rules", [None, "ASG(DEFAULT) { RULE(1, WRITE) }\n", RULES])
async def test_logs_of_puts_that_stay_empty_are_told(tmp_path: Path, rules: str | None) -> None:
    (tmp_path / "records.db").write_text(RECORDS)
    (tmp_path / "rules.acf").write_text(rules or "")
    (tmp_path / "ioc.yml").write_text(
        "databases: [{file: records.db}]\nput_log: sealed.log\nca_put_log: {file: puts.log}\n"
        + ("acf: {file: rules.acf}\n" if rules else "")
    )
    async with running_ioc("--config", "ioc.yml", cwd=tmp_path) as ioc:
        why = "no rule of the access" if rules else "there is no access"
        told = f"put_log and ca_put_log: no put is logged: {why} security file"
        assert (told in ioc.log) is (rules != RULES), ioc.log


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ("{}", "ca_put_log: name servers, or a file"),
        ("{servers: ['a:b']}", "'a:b' is no log server: write HOST or HOST:PORT"),
        (
            "{file: nowhere/puts.log}",
            "nowhere/puts.log: ca_put_log.file: cannot be written: No such file or directory",
        ),
        ("{file: puts.log, mode: some}", "ca_put_log.mode"),
        (
            "{file: puts.log, mode: unfiltered, burst_timeout: 9}",
            "ca_put_log.burst_timeout: it has no effect",
        ),
    ],
)
async def test_wrong_settings_are_one_sentence(tmp_path: Path, settings: str, sentence: str) -> None:
    (tmp_path / "records.db").write_text(RECORDS)
    (tmp_path / "rules.acf").write_text(RULES)
    (tmp_path / "ioc.yml").write_text(
        f"databases: [{{file: records.db}}]\nacf: {{file: rules.acf}}\nca_put_log: {settings}\n"
    )
    async with starting_ioc("--config", "ioc.yml", cwd=tmp_path) as ioc:
        assert await ioc.ended() == 1
        assert sentence in ioc.log
        assert "Traceback" not in ioc.log

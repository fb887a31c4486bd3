"""Channel Access obeys the access security file, asked by EPICS Base's own client."""

from __future__ import annotations

import asyncio
import getpass
import json
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.ca_client import ca_client, server_variables
from tests.helpers.ioc_process import IocProcess, running_ioc, starting_ioc
from tests.helpers.ports import free_port

RECORDS = """
record(ao, "open") { field(ASG, "OPEN") field(VAL, "1") field(PINI, "YES") }
record(ao, "fixed") { field(VAL, "2") field(PINI, "YES") }
record(ao, "mine") { field(ASG, "MINE") field(VAL, "3") field(PINI, "YES") }
record(ao, "proved") { field(ASG, "PROVED") field(VAL, "4") field(PINI, "YES") }
record(ao, "secret") { field(ASG, "NOBODY") field(VAL, "5") field(PINI, "YES") }
record(ao, "guarded") { field(ASG, "GUARDED") field(VAL, "6") field(PINI, "YES") }
record(ao, "remote") { field(ASG, "REMOTE") field(VAL, "7") field(PINI, "YES") }
record(ao, "elsewhere") { field(ASG, "ELSEWHERE") field(VAL, "8") field(PINI, "YES") }
record(ao, "undefined") { field(ASG, "NOT_IN_THE_FILE") field(VAL, "9") field(PINI, "YES") }
record(bo, "gate") { field(ASG, "OPEN") field(VAL, "0") field(PINI, "YES") }
"""
RULES = """
AUTHORITY(SITE, "EPICS Root Certificate Authority")
UAG(me) { "%s" }
UAG(proved) { "x509/%s", "role/%s" }
HAG(here) { 127.0.0.1 }
HAG(elsewhere) { 10.99.99.99 }
ASG(DEFAULT) { RULE(1, READ) }
ASG(OPEN) { RULE(1, RPC, TRAPWRITE) }
ASG(MINE) { RULE(1, READ) RULE(1, WRITE) { UAG(me) HAG(here) METHOD(ca) PROTOCOL(tcp) } }
ASG(PROVED) {
    RULE(1, READ)
    RULE(1, WRITE) { METHOD(x509) }
    RULE(1, WRITE) { AUTHORITY(SITE) }
    RULE(1, WRITE) { PROTOCOL(tls) }
    RULE(1, WRITE) { UAG(proved) }
}
ASG(NOBODY) { RULE(1, NONE) }
ASG(GUARDED) { INPA("gate") RULE(1, READ) RULE(1, WRITE) { CALC("A=1") } }
ASG(REMOTE) { INPA("some:other:pv") RULE(1, READ) RULE(1, WRITE) { CALC("A#1") } }
ASG(ELSEWHERE) { RULE(1, READ) RULE(1, WRITE) { HAG(elsewhere) } }
""" % ((getpass.getuser(),) * 3)
YAML = """
version: 1.0
uags:
  - name: me
    users: [ME]
asgs:
  - name: DEFAULT
    rules: [{level: 1, access: READ}]
  - name: MINE
    rules: [{level: 1, access: READ}, {level: 1, access: WRITE, uags: [me]}]
  - name: PROVED
    rules: [{level: 1, access: READ}, {level: 1, access: WRITE, uags: [me], protocols: [tls]}]
""".replace("[ME]", f"[{getpass.getuser()}]")
DENIED = "Write access denied"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "records.db").write_text(RECORDS)
    (tmp_path / "rules.acf").write_text(RULES)
    return tmp_path


@asynccontextmanager
async def both(files: Path, text: str, **variables: str) -> AsyncIterator[tuple[IocProcess, Any]]:
    """The IOC with a configuration, and a Channel Access client of it."""
    config = files / "ioc.yml"
    config.write_text(f"channel_access: true\n{text}")
    port = free_port()
    async with (
        running_ioc("--config", config, cwd=files, **server_variables(port), **variables) as ioc,
        ca_client(port, free_port()) as ask,
    ):
        yield ioc, ask


WITH_RULES = "databases: [{file: records.db}]\nacf: {file: rules.acf}\n"


async def test_channel_access_is_granted_what_a_mere_claim_is_worth(files: Path) -> None:
    async with both(files, WITH_RULES) as (_, ask):
        assert await ask("put open 11") == 11.0
        assert await ask("get open") == 11.0
        assert await ask("put mine 12") == 12.0
        for name in ("fixed", "proved", "guarded", "remote", "elsewhere", "undefined"):
            assert DENIED in await ask(f"put {name} 99"), name
            assert await ask(f"get {name}") != 99.0
        assert DENIED in await ask("put secret 99")
        assert "Read access denied" in await ask("get secret")


async def test_puts_over_channel_access_are_logged_where_the_rule_asks_for_it(files: Path) -> None:
    async with both(files, WITH_RULES + "put_log: puts.log\n") as (ioc, ask):
        assert await ask("put open 41.5") == 41.5
        assert await ask("put mine 12") == 12.0
        assert await ask("put open 42.5") == 42.5
        await ioc.printed("41.5 -> 42.5")
        await ioc.stop()
    records = [json.loads(line) for line in (files / "puts.log").read_text().splitlines()]
    assert [(each["record"], each["field"], each["old"], each["new"]) for each in records] == [
        ("open", "VAL", 1.0, 41.5),
        ("open", "VAL", 41.5, 42.5),
    ]
    assert {each["result"] for each in records} == {"accepted"}
    for each in records:
        assert (each["account"], each["method"], each["protocol"]) == (getpass.getuser(), "ca", "ca")
        assert each["host"].startswith("127.0.0.1")


async def test_the_yaml_form_counts_for_channel_access_too(files: Path) -> None:
    (files / "rules.acf").write_text(YAML)
    async with both(files, WITH_RULES) as (_, ask):
        assert await ask("put mine 12") == 12.0
        assert DENIED in await ask("put fixed 99")
        assert DENIED in await ask("put proved 99")
        assert DENIED in await ask("put guarded 99")


async def test_rights_over_channel_access_follow_the_records_that_rules_read(files: Path) -> None:
    async with both(files, WITH_RULES) as (_, ask):
        assert await ask("await guarded r") == "r"
        await ask("put gate 1")
        assert await ask("await guarded rw") == "rw"
        assert await ask("put guarded 21") == 21.0
        await ask("put gate 0")
        assert await ask("await guarded r") == "r"


async def test_a_reload_counts_for_channel_access_too_and_one_that_fails_changes_nothing(files: Path) -> None:
    async with both(files, WITH_RULES) as (ioc, ask):
        assert await ask("await mine rw") == "rw"
        (files / "rules.acf").write_text("ASG(DEFAULT) { RULE(1, WRITE) ")
        ioc.process.send_signal(signal.SIGHUP)
        await ioc.printed("reload failed")
        assert await ask("await mine rw") == "rw"
        assert await ask("await fixed r") == "r"
        (files / "rules.acf").write_text("ASG(DEFAULT) { RULE(1, WRITE) }\nASG(MINE) { RULE(1, READ) }\n")
        ioc.process.send_signal(signal.SIGHUP)
        assert await ask("await mine r") == "r"
        assert await ask("await fixed rw") == "rw"
        (files / "rules.acf").write_text('ASG(DEFAULT) { RULE(1, READ) }\nASG("a\tb") { RULE(1, READ) }\n')
        ioc.process.send_signal(signal.SIGHUP)
        await ioc.printed("rename it, or switch Channel Access off")
        assert await ask("await fixed rw") == "rw", "the former rules stay in force as a whole"


async def test_a_file_that_a_script_names_counts_as_well(files: Path) -> None:
    (files / "st.cmd").write_text('asSetFilename("rules.acf")\ndbLoadRecords("records.db")\niocInit\n')
    async with both(files, "script: st.cmd\n") as (_, ask):
        assert DENIED in await ask("put fixed 99")
        assert await ask("put mine 12") == 12.0


async def test_rules_may_be_set_on_a_running_ioc_that_had_none(files: Path) -> None:
    async with both(files, "databases: [{file: records.db}]\nconsole: console\n") as (ioc, ask):
        assert await ask("put fixed 31") == 31.0
        reader, writer = await asyncio.open_unix_connection(files / "console")
        writer.write(b'asSetFilename("rules.acf")\nasInit\nexit\n')
        await reader.read()
        writer.close()
        assert await ask("await fixed r") == "r"
        assert DENIED in await ask("put fixed 99")
        assert ioc.process.returncode is None


async def test_a_definition_that_brings_channel_access_brings_the_rules_with_it(files: Path) -> None:
    definition = files / "site.dbd"
    definition.write_text('include "base.dbd"\n')
    port = free_port()
    async with (
        running_ioc(
            "-S",
            "-D",
            definition,
            "-a",
            files / "rules.acf",
            "-d",
            files / "records.db",
            **server_variables(port),
        ),
        ca_client(port, free_port()) as ask,
    ):
        assert DENIED in await ask("put fixed 99")
        assert await ask("get fixed") == 2.0


async def test_channel_access_can_be_switched_off_by_its_variable(files: Path) -> None:
    port = free_port()
    (files / "ioc.yml").write_text("channel_access: true\n" + WITH_RULES)
    variables = {**server_variables(port), "EPICS_IOC_IGNORE_SERVERS": "rsrv"}
    async with running_ioc("--config", files / "ioc.yml", cwd=files, **variables) as ioc:
        with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            pass
        async with ioc.client() as client:
            assert (await client.get("fixed"))["value"] == 2.0


@pytest.mark.parametrize(
    ("rules", "words"),
    [("ASG(DEFAULT) { RULE(1, REED) }", "rules.acf:1:"), ('ASG("a\tb") { RULE(1, READ) }', "rename it")],
)
async def test_rules_that_channel_access_could_not_obey_stop_the_start(
    files: Path, rules: str, words: str
) -> None:
    (files / "rules.acf").write_text(rules)
    (files / "ioc.yml").write_text("channel_access: true\n" + WITH_RULES)
    for arguments in (["--config", "ioc.yml"], ["--config", "ioc.yml", "--check-config"]):
        async with starting_ioc(*arguments, cwd=files, **server_variables(free_port())) as ioc:
            assert await ioc.ended() == 1
            assert words in ioc.log
            assert "Traceback" not in ioc.log

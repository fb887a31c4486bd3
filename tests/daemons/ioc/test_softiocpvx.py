"""``softIocPVX`` as a process: command line, shell, daemon form, console, access security."""

from __future__ import annotations

import asyncio
import json
import signal
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from appliance.client import Context, Disconnected
from appliance.errors import ApplianceError
from appliance.pvdata import Value
from appliance.server.quota import Quota
from tests.helpers.ioc_process import (
    EXAMPLE_FILES,
    EXAMPLES,
    environment,
    loading,
    running_ioc,
    starting_ioc,
)
from tests.helpers.turns import Hostile

RECORDS = """
record(ao, "free") { field(ASG, "OPEN") field(VAL, "1") field(PINI, "YES") }
record(ao, "guarded") { field(ASG, "GUARDED") field(VAL, "2") field(PINI, "YES") }
record(ao, "fixed") { field(ASG, "RO") field(VAL, "3") field(PINI, "YES") }
record(ao, "secret") { field(ASG, "NOBODY") field(VAL, "4") field(PINI, "YES") }
record(bo, "gate") { field(ASG, "OPEN") field(ZNAM, "closed") field(ONAM, "open") field(VAL, "0") field(PINI, "YES") }
record(ao, "member") { field(ASG, "OPEN") info(Q:group, { "grp": { "m": {+channel:"VAL", +putorder:1} } }) }
record(ao, "closed") { field(ASG, "RO") info(Q:group, { "grp": { "c": {+channel:"VAL", +putorder:2} } }) }
record(calcout, "slow") { field(ASG, "OPEN") field(CALC, "A") field(ODLY, "0.3") }
"""
RULES = """
ASG(DEFAULT) { RULE(1, READ) }
ASG(OPEN) { RULE(1, WRITE, TRAPWRITE) }
ASG(RO) { RULE(1, READ) }
ASG(NOBODY) { RULE(1, NONE) }
ASG(GUARDED) {
    INPA("gate")
    RULE(1, READ)
    RULE(1, WRITE) { CALC("A=1") }
}
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "records.db").write_text(RECORDS)
    (tmp_path / "rules.acf").write_text(RULES)
    return tmp_path


async def put(client: Context, name: str, value: Any, request: str = "") -> str:
    """The error of a PUT, nothing when it was done."""
    try:
        await client.put(name, value, request=request, timeout=30)
    except ApplianceError as error:
        return str(error)
    return ""


async def until(check: Any) -> None:
    """Wait for something that another process does."""
    async with asyncio.timeout(30):
        while not await check():
            await asyncio.sleep(0.02)


async def test_the_examples_are_served_with_the_banner_of_the_reference() -> None:
    async with running_ioc(*loading(EXAMPLE_FILES, [EXAMPLES / "image.json"])) as ioc, ioc.client() as client:
        assert ioc.log.startswith("INFO: ")
        assert "is loaded, permitted, and ENABLED.\n" in ioc.log
        assert "## EPICS" in ioc.log
        value = await client.get("test:enumExample")
        assert value["value.choices"] == ("zero", "one", "two")
        image = await client.get("tst:Array2")
        assert len(image["value->"]) == 100 * 100
        await client.put("tst:ArraySize0_RBV", 512, request="record[block=true]")
        await client.put("tst:ArraySize1_RBV", 512, request="record[block=true]")
        image = await client.get("tst:Array")
        assert len(image["value->"]) == 512 * 512
        assert image["dimension[1].size"] == 512


async def test_a_taken_port_is_replaced_by_a_free_one_with_a_warning(files: Path) -> None:
    async with running_ioc("-S", "-d", files / "records.db") as first:
        taken = {"EPICS_PVAS_SERVER_PORT": str(first.tcp)}
        async with (
            running_ioc("-S", "-d", files / "records.db", **taken) as second,
            second.client() as client,
        ):
            assert f"Server unable to bind TCP port {first.tcp}, falling back to 127.0.0.1:" in second.log
            assert (await client.get("free"))["value"] == 1.0


async def test_a_put_that_blocks_is_answered_after_processing(files: Path) -> None:
    async with running_ioc("-S", "-d", files / "records.db") as ioc, ioc.client() as client:
        loop = asyncio.get_running_loop()
        start = loop.time()
        await client.put("slow.A", 1.0, request="record[block=true]")
        assert loop.time() - start > 0.25
        await client.put("slow.ODLY", 3600.0)
        await client.put("slow.A", 2.0)  # is not answered an hour later


async def test_a_put_that_blocks_and_processes_does_so_whatever_the_field_and_scan(tmp_path: Path) -> None:
    (tmp_path / "b.db").write_text(
        """
        record(longout, "np") { field(SCAN, "Event") field(FLNK, "counter") }
        record(calc, "counter") { field(CALC, "VAL+1") }
        record(calcout, "slow") { field(SCAN, "Event") field(CALC, "A") field(ODLY, "0.3") field(FLNK, "counter") }
        """
    )
    block = "record[block=true,process=true]"
    async with running_ioc("-S", "-d", tmp_path / "b.db") as ioc, ioc.client() as client:

        async def count() -> float:
            return (await client.get("counter"))["value"]

        await client.put("np", 3, request=block)
        assert ((await client.get("np"))["value"], await count()) == (3, 1.0)
        await client.put("np.DESC", "text", request=block)
        assert ((await client.get("np.DESC"))["value"], await count()) == ("text", 2.0)
        await client.put("np.OUT", "counter.A", request=block)
        assert (await client.get("np.OUT"))["value"].startswith("counter.A ")
        assert await count() == 3.0
        await client.put("slow.A", 7.0, request=block)
        assert ((await client.get("slow"))["value"], await count()) == (7.0, 4.0)
        await client.put("np", {}, request="record[block=true]")
        assert await count() == 5.0
        await client.put("np", 4, request="record[block=true]")
        await client.put("np", 5, request="record[block=true,process=false]")
        assert ((await client.get("np"))["value"], await count()) == (5, 5.0)
        await client.put("np.DISP", 1)
        assert "DISP is set" in await put(client, "np", 6, request=block)
        assert ((await client.get("np"))["value"], await count()) == (5, 5.0)


async def test_refused_puts_are_told_in_the_words_of_epics(files: Path) -> None:
    arguments = [word for word in loading([files / "records.db"]) if word != "-S"]
    async with running_ioc(*arguments) as ioc, ioc.client() as client:
        for name, value, words in (
            ("free.SEVR", {"value.index": 1}, "cannot write free.SEVR: field may not be modified"),
            ("free.SCAN", {"value.index": 55}, "cannot write free.SCAN: illegal choice 55"),
        ):
            for request in ("", "record[block=true]"):
                assert words in await put(client, name, value, request=request)
        await client.put("free.DESC$", "long text")
        assert (await client.get("free.DESC$"))["value"] == "long text"
        assert (await client.get("free.DESC"))["value"] == "long text"
        ioc.type("dbpf free.SEVR 1\ndbpf gate nonsense\n")
        await ioc.printed("field may not be modified")
        await ioc.printed("illegal choice")
    assert "Error (" not in ioc.log


async def test_the_shell_runs_commands_and_ends_the_ioc() -> None:
    arguments = [word for word in loading(EXAMPLE_FILES) if word != "-S"]
    async with running_ioc(*arguments) as ioc:
        ioc.type("dbpr test:longExample\n")
        await ioc.printed("VAL *: *102042")
        ioc.type("pvxgl 1 test:table*\n")
        await ioc.printed(r"value\.A plain test:vectorExampleD1\.VAL putorder=1")
        ioc.type("asdbdump\n")
        await ioc.printed("access security is off")
        ioc.type("exit\n")
        assert await ioc.ended() == 0


async def test_a_script_initialises_the_ioc_itself(files: Path) -> None:
    (files / "grp.json").write_text('{"more": {"v": {"+channel": "$(R).VAL"}}}')
    script = files / "st.cmd"
    script.write_text(
        'asSetFilename("rules.acf")\ndbLoadRecords("records.db")\ndbLoadGroup("grp.json", "R=free")\niocInit\n'
        'dbpf("free", "7")\n'
    )
    async with running_ioc("-S", "st.cmd", cwd=files) as ioc, ioc.client() as client:
        assert (await client.get("more"))["v.value"] == 7.0
        assert "denied" in await put(client, "fixed", 1)


async def test_a_setting_that_a_script_makes_too_late_is_named_without_its_value(files: Path) -> None:
    (files / "late.cmd").write_text(
        'epicsEnvSet("EPICS_PVAS_TLS_KEYCHAIN", "/x/server.p12;secret")\n'
        'epicsEnvSet("OTHER", "1")\ndbLoadRecords("records.db")\niocInit()\n'
    )
    async with running_ioc("-S", "late.cmd", cwd=files) as ioc:
        told = await ioc.printed(
            r"[^\n]*EPICS_PVAS_TLS_KEYCHAIN was set in the IOC shell, which is too late[^\n]*"
        )
        assert "secret" not in told[0]
        assert "OTHER was set" not in ioc.log


async def test_the_exit_record_ends_the_ioc_with_a_status(files: Path) -> None:
    async with running_ioc("-S", "-x", "ioc1", "-d", files / "records.db") as ioc, ioc.client() as client:
        assert (await client.get("ioc1:BaseVersion")).type.id == "epics:nt/NTScalar:1.0"
        await client.put("ioc1:exit.A", 3.0)
        putting = asyncio.create_task(client.put("ioc1:exit.PROC", 1, timeout=None))
        assert await ioc.ended() == 1
        putting.cancel()  # nobody is left who would answer


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-S", "-d", "nowhere.db"], "nowhere.db"),
        (["-S", "-d", "records.db", "-a", "nowhere.acf"], "nowhere.acf"),
        (["-S", "-d", "records.db", "-a", "bad.acf"], "bad.acf:1:"),
        (["-S", "-d", "records.db", "-G", "bad.json"], "bad.json:2:"),
        (["-S"], "Nothing to do"),
        (["-S", "empty.cmd"], "without iocInit"),
        (["--config", "bad.yml"], "databses"),
    ],
)
async def test_what_cannot_be_loaded_stops_the_start_with_one_sentence(
    files: Path, arguments: list[str], words: str
) -> None:
    (files / "bad.acf").write_text("ASG(DEFAULT) { RULE(1, REED) }\n")
    (files / "bad.json").write_text('{"g": {\n "a": +}}')
    (files / "empty.cmd").write_text("\n")
    (files / "bad.yml").write_text("databses: []\n")
    async with starting_ioc(*arguments, cwd=files) as ioc:
        assert await ioc.ended() == 1
        assert words in ioc.log
        assert "Traceback" not in ioc.log


@pytest.mark.parametrize("how", ["variable", "file"])
async def test_a_keychain_that_is_named_and_missing_ends_the_ioc_with_one_sentence(
    files: Path, how: str
) -> None:
    keychain = files / "none.p12"
    (files / "ioc.yml").write_text(f"databases: [{{file: records.db}}]\npva: {{tls_keychain: {keychain}}}\n")
    arguments = ["--config", "ioc.yml"] if how == "file" else ["-S", "-d", "records.db"]
    env = {} if how == "file" else {"EPICS_PVAS_TLS_KEYCHAIN": f"{keychain};geheim"}
    async with starting_ioc(*arguments, cwd=files, **env) as ioc:
        assert await ioc.ended() == 1
        assert f"{keychain}: cannot read: No such file or directory; without its keychain" in ioc.log
        assert "Traceback" not in ioc.log
        assert "geheim" not in ioc.log


async def test_rules_hold_for_records_fields_and_groups(files: Path) -> None:
    async with (
        running_ioc("-S", "--enforce-read", "-a", files / "rules.acf", "-d", files / "records.db") as ioc,
        ioc.client() as client,
    ):
        assert await put(client, "free", 2.0) == ""
        assert "denied" in await put(client, "fixed", 2.0)
        assert "denied" in await put(client, "fixed.DESC", "x")
        assert (await client.get("fixed"))["value"] == 3.0
        with pytest.raises(ApplianceError, match="denied"):
            await client.get("secret", timeout=30)
        assert await put(client, "grp", {"m.value": 5.0}) == ""
        assert "c: write access denied" in await put(client, "grp", {"m.value": 6.0, "c.value": 6.0})
        assert (await client.get("grp"))["m.value"] == 5.0, "nothing of a refused put is written"
        await ioc.printed(r"refused write access to fixed")


SEED_RULES = """
UAG(DEFAULT) { "george" }
UAG(BAR) { "michael" }
AUTHORITY(EPICS_ROOT, "EPICS Root Certificate Authority")
ASG(RO) { RULE(1,READ,TRAPWRITE) }
ASG(SPECIAL) {
    RULE(1,WRITE,TRAPWRITE) { UAG(DEFAULT) UAG(BAR) AUTHORITY(EPICS_ROOT) METHOD(x509) PROTOCOL(tls) }
}
"""


async def test_the_command_line_of_the_reference_does_not_judge_reading(files: Path) -> None:
    (files / "seed.acf").write_text(SEED_RULES)
    words = loading(EXAMPLE_FILES)
    async with running_ioc(*words, "-a", files / "seed.acf") as ioc, ioc.client() as client:
        environ = environment(ioc.udp, ioc.tcp)
        for tool, *arguments in (
            ("pvxinfo", "-v", "test:enumExample"),
            ("pvxget", "-F", "tree", "test:structExample"),
        ):
            done = await asyncio.create_subprocess_exec(
                sys.executable, "-m", f"appliance.cli.{tool}", *arguments,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environ,
            )  # fmt: skip
            out, err = await asyncio.wait_for(done.communicate(), 30)
            assert done.returncode == 0, err
            assert arguments[-1].encode() in out
        async with client.monitor("test:enumExample") as updates:
            await anext(updates)
        assert "denied" in await put(client, "test:enumExample", {"value.index": 1})
        await ioc.printed("its rules apply to writing only")
        await ioc.printed(
            r"with --enforce-read, nobody could read test:.* and \d+ more: ASG\(DEFAULT\) grants reading"
        )


async def test_with_enforce_read_reading_is_judged_and_the_log_says_who_is_hidden(files: Path) -> None:
    (files / "seed.acf").write_text(SEED_RULES)
    words = loading(EXAMPLE_FILES)
    async with running_ioc(*words, "-a", files / "seed.acf", "--enforce-read") as ioc, ioc.client() as client:
        for name in ("test:enumExample", "test:structExample"):
            with pytest.raises(ApplianceError, match="read access denied"):
                await client.get(name, timeout=30)
        await ioc.printed("its rules apply to reading and writing")
        await ioc.printed(r"nobody can read test:.* and \d+ more: ASG\(DEFAULT\) grants reading to nobody")


@pytest.mark.parametrize(("more", "readable"), [("", False), ("enforce_read: false\n", True)])
async def test_the_configuration_file_has_reading_judged_unless_it_says_otherwise(
    files: Path, more: str, readable: bool
) -> None:
    (files / "ioc.yml").write_text(f"databases: [{{file: records.db}}]\nacf: {{file: rules.acf}}\n{more}")
    async with running_ioc("--config", "ioc.yml", cwd=files) as ioc, ioc.client() as client:
        if readable:
            assert (await client.get("secret"))["value"] == 4.0
        else:
            with pytest.raises(ApplianceError, match="read access denied"):
                await client.get("secret", timeout=30)
        assert "denied" in await put(client, "secret", 1.0)


async def test_rules_follow_their_inputs_and_the_records_group(files: Path) -> None:
    async with (
        running_ioc("-S", "--enforce-read", "-a", files / "rules.acf", "-d", files / "records.db") as ioc,
        ioc.client() as client,
    ):
        assert "denied" in await put(client, "guarded", 5.0)
        assert await put(client, "gate", {"value.index": 1}) == ""

        async def allowed() -> bool:
            return await put(client, "guarded", 5.0) == ""

        await until(allowed)
        assert await put(client, "free.ASG", "RO") == ""

        async def refused() -> bool:
            return await put(client, "free", 9.0) != ""

        await until(refused)


async def test_losing_the_right_to_read_takes_a_monitor_its_channel(files: Path) -> None:
    async with (
        running_ioc("-S", "--enforce-read", "-a", files / "rules.acf", "-d", files / "records.db") as ioc,
        ioc.client() as client,
    ):
        async with client.monitor("free", notify=True) as subscription, asyncio.timeout(30):
            while not isinstance(await anext(subscription), Value):
                pass
            assert await put(client, "free.ASG", "NOBODY") == ""
            while not isinstance(await anext(subscription), Disconnected):
                pass
        assert ioc.process.returncode is None


async def test_a_file_that_is_wrong_keeps_the_former_rules(files: Path) -> None:
    rules = files / "rules.acf"
    arguments = ["-a", rules, "-d", files / "records.db"]
    async with running_ioc(*arguments) as ioc, ioc.client() as client:
        assert "denied" in await put(client, "fixed", 1.0)
        rules.write_text("ASG(RO) { RULE(1, WRITE) ")
        ioc.type("asInit\n")
        await ioc.printed(r"asInit: .*rules\.acf:1:")
        assert "denied" in await put(client, "fixed", 1.0)
        rules.write_text("ASG(RO) { RULE(1, WRITE) }")
        ioc.type("asInit\nasprules\n")
        await ioc.printed(r"ASG\(RO\)\s+RULE\(1,WRITE\)")
        assert await put(client, "fixed", 1.0) == ""


async def test_the_daemon_reports_a_reload_that_failed_as_a_record_of_its_log(files: Path) -> None:
    config, rules = files / "ioc.yml", files / "rules.acf"
    config.write_text(f"databases:\n  - file: {files / 'records.db'}\nacf:\n  file: {rules}\n")
    async with (
        running_ioc("--config", config, EPICS_PVAS_SERVER_PORT="nonsense") as ioc,
        ioc.client() as client,
    ):
        assert "denied" in await put(client, "fixed", 1.0)
        rules.write_text("ASG(RO) { RULE(1, REED) }\n")
        ioc.process.send_signal(signal.SIGHUP)
        await ioc.printed(r"reload failed.*\n")
        assert "denied" in await put(client, "fixed", 1.0), "the former rules stay"
        await ioc.stop()
    records = [json.loads(line) for line in ioc.log.splitlines() if "REED" in line or "nonsense" in line]
    assert [record["level"] for record in records] == ["WARNING", "ERROR"]
    assert "the former settings stay" in records[1]["message"]
    assert f"{rules}:1:" in records[1]["message"]


async def test_logged_puts_say_who_from_where_what_old_and_new(files: Path) -> None:
    config = files / "ioc.yml"
    log = files / "puts.log"
    config.write_text(
        f"databases:\n  - file: {files / 'records.db'}\nacf:\n  file: {files / 'rules.acf'}\nput_log: {log}\n"
    )
    async with running_ioc("--config", config) as ioc, ioc.client() as client:
        await client.put("free", 41.5)
        await client.put("grp", {"m.value": 8.0})
        assert "free.OUT" in await put(client, "free.OUT", '{"nonsense":1}')
        await ioc.stop()
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(each["record"], each.get("old"), each["new"], each["result"]) for each in records] == [
        ("free", 1.0, 41.5, "accepted"),
        ("member", 0.0, 8.0, "accepted"),
        ("free", "", '{"nonsense":1}', "accepted"),
        ("free", None, '{"nonsense":1}', "failed"),
    ]
    assert records[0]["host"].startswith("127.0.0.1:")
    assert records[0]["method"] == "ca"
    assert records[0]["account"]
    assert records[0]["protocol"] == "tcp"
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


async def test_the_console_belongs_to_a_group_and_runs_commands(files: Path) -> None:
    console = files / "console"
    (files / "ioc.yml").write_text(f"databases:\n  - file: {files / 'records.db'}\nconsole: {console}\n")
    async with running_ioc("--config", files / "ioc.yml") as ioc:
        assert stat.S_IMODE(console.stat().st_mode) == 0o660
        reader, writer = await asyncio.open_unix_connection(console)

        async def ask(command: str) -> str:
            writer.write(command.encode() + b"\n")
            answer = await asyncio.wait_for(reader.readuntil(b"epics> "), 30)
            return answer.decode()

        assert await asyncio.wait_for(reader.readuntil(b"epics> "), 30) == b"epics> "
        assert "free" in await ask("dbl")
        assert "4" in await ask("dbgf secret")
        assert "TCP port" in await ask("pvxsr 2")
        assert "(failed)" in await ask("nonsense")
        writer.write(b"exit\n")
        assert await asyncio.wait_for(reader.read(), 30) == b""
        writer.close()
        await ioc.printed("dbgf secret")
        assert await ioc.stop() == 0
    assert not console.exists()


async def test_configuration_can_be_checked_printed_and_described(files: Path) -> None:
    config = files / "ioc.yml"
    config.write_text(
        f"databases:\n  - file: {files / 'records.db'}\n    macros: {{user: a}}\npva:\n  server_port: 5075\n"
    )
    for option, words in (
        ("--check-config", "ioc.yml: good"),
        ("--print-config", "server_port: 5075"),
    ):
        async with starting_ioc("--config", config, option) as ioc:
            assert await ioc.ended() == 0
            assert words in ioc.log
    config.write_text(config.read_text() + f"  tls_keychain: {files / 'none.p12'}\n")
    async with starting_ioc("--config", config, "--check-config") as ioc:
        assert await ioc.ended() == 0
        assert "Warning: " in ioc.log
        assert (
            "none.p12: cannot read: No such file or directory; without its keychain this server does not start"
            in ioc.log
        )
    async with starting_ioc("--print-schema") as ioc:
        assert await ioc.ended() == 0
        assert "databases" in json.loads(ioc.log)["$defs"]["IocConfig"]["properties"]
    async with starting_ioc("-V") as ioc:
        assert await ioc.ended() == 0
        assert "EPICS" in ioc.log


async def test_a_terminated_ioc_ends_cleanly_while_clients_watch(files: Path) -> None:
    async with running_ioc(*loading(EXAMPLE_FILES)) as ioc, ioc.client() as client:
        async with client.monitor("test:calcExample") as one, client.monitor("test:structExample") as two:
            await anext(one)
            await anext(two)
            assert await ioc.stop() == 0
    assert "Traceback" not in ioc.log


@pytest.mark.parametrize(
    ("variables", "script", "reason"),
    [
        ({"PVXS_QSRV_ENABLE": "NO"}, "", "PVXS_QSRV_ENABLE=NO"),
        ({"EPICS_IOC_IGNORE_SERVERS": "rsrv qsrv2"}, "", "EPICS_IOC_IGNORE_SERVERS=rsrv qsrv2"),
        (
            {"EPICS_IOC_IGNORE_SERVERS": "qsrv2", "PVXS_QSRV_ENABLE": "YES"},
            "",
            "EPICS_IOC_IGNORE_SERVERS=qsrv2",
        ),
        ({}, 'epicsEnvSet("PVXS_QSRV_ENABLE", "no")\n', "PVXS_QSRV_ENABLE=no"),
    ],
)
async def test_the_switches_of_qsrv_keep_records_from_being_served(
    files: Path, variables: dict[str, str], script: str, reason: str
) -> None:
    (files / "st.cmd").write_text(script)
    async with running_ioc("-d", files / "records.db", files / "st.cmd", **variables) as ioc:
        await ioc.printed(f"{reason}: no record is served over PVAccess")
        assert ("ENABLED" in ioc.log) is (not variables)
        ioc.type("dbgf free\npvxsr\n")
        await ioc.printed(r"DBF_DOUBLE: *1\b")
        await ioc.printed(f"records are not served: {reason}")
        async with ioc.client() as client:
            with pytest.raises(ApplianceError):
                await client.get("free", timeout=0.5)
            port = int((await ioc.printed(r"TCP port (\d+)"))[1])
            answer = await client.rpc("server", {"op": "channels"}, server=("127.0.0.1", port, False))
            assert "free" not in answer["value"]


@pytest.mark.parametrize(
    "variables",
    [
        {"PVXS_QSRV_ENABLE": "yes"},
        {"PVXS_QSRV_ENABLE": "maybe"},
        {"EPICS_IOC_IGNORE_SERVERS": "rsrv qsrv qsrv22"},
    ],
)
async def test_other_values_of_the_switches_leave_records_served(
    files: Path, variables: dict[str, str]
) -> None:
    async with running_ioc("-S", "-d", files / "records.db", **variables) as ioc, ioc.client() as client:
        assert "ENABLED" in ioc.log
        assert (await client.get("free"))["value"] == 1.0
        assert ("is neither YES nor NO" in ioc.log) is ("maybe" in variables.values())


async def test_subscriptions_are_bounded_for_a_record_under_all_its_names_and_filters(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_text('record(ao, "r") {}\nrecord(ao, "q") {}\n')
    quota = Quota()
    async with running_ioc("-S", "-d", tmp_path / "a.db") as ioc:
        names = [f'r.VAL{{"dbnd":{{"abs":{number}}}}}' for number in range(quota.anonymous_subscriptions + 1)]
        hostile = await asyncio.to_thread(Hostile, ioc.tcp, *names, "r.DESC", "q")
        *first, last, field, other = hostile.sids
        answers = await asyncio.to_thread(
            lambda: [hostile.monitor(sid, ioid)[0] for ioid, sid in enumerate(first, 1)]
        )
        assert set(answers) == {0xFF}
        for ioid, sid in ((5001, last), (5002, field)):
            assert b"times already" in await asyncio.to_thread(hostile.monitor, sid, ioid)
        assert (await asyncio.to_thread(hostile.monitor, other, 5003))[0] == 0xFF
        hostile.close()

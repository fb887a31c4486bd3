"""``appliance doctor`` with set-ups that puzzle people: each is named, with its cause and its cure."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from appliance.certmon.cache import StatusCache
from appliance.pvdata import INT32, Value
from appliance.pvdata.nt import NTScalar
from appliance.server import Server, SharedPV
from appliance.tls.context import server_context
from tests.daemons.cli.test_doctor import Ask, ask, certified, env, keychain_file, of, server
from tests.helpers.pki import NOW, PASSWORD, site, write_keychain
from tests.helpers.tools import ROOT, demo_server, environment, finish

__all__ = ["ask", "env", "server"]  # fixtures


def faketime(offset: str) -> dict[str, str]:
    """Variables for a process whose clock is off; its timers are not."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    return {"LD_PRELOAD": str(library), "FAKETIME": offset, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


def at(server: Server) -> dict[str, str]:
    return {"EPICS_PVA_BROADCAST_PORT": str(server.udp_port)}


# -- network ---------------------------------------------------------------------------------------------

SERVER = """
import asyncio, sys
from appliance.tls.context import server_context
from tests.helpers.pki import site, write_keychain
from tests.helpers.tools import demo_server
from pathlib import Path
async def main():
    write_keychain(Path(sys.argv[1]), site().client, b"")
    async with demo_server(tls=server_context(site().server, require_client_cert=False)) as server:
        print(server.udp_port, server.tls_port, flush=True)
        await asyncio.to_thread(sys.stdin.read)
asyncio.run(main())
"""


@pytest.fixture
def own_network() -> Iterator[list[str]]:
    """A network of the test's own with nothing but loopback; gives the words that run a command in it."""
    name = f"doctor{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield ["ip", "netns", "exec", name]
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


async def test_a_tls_port_that_a_firewall_drops_is_named(own_network: list[str], tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir(mode=0o700)
    running = await asyncio.create_subprocess_exec(
        *own_network, sys.executable, "-c", SERVER, str(keys / "client.p12"), cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert running.stdout is not None
    try:
        udp_port, tls_port = map(int, (await running.stdout.readline()).split())
        rules = (
            f"table inet t {{ chain c {{ type filter hook input priority 0; tcp dport {tls_port} drop; }}; }}"
        )
        subprocess.run([*own_network, "nft", "-f", "-"], input=rules.encode(), check=True)
        doctor = await asyncio.create_subprocess_exec(
            *own_network, sys.executable, "-m", "appliance.cli.main", "doctor", "-w", "1", "demo",
            env=environment(udp_port, tmp_path, EPICS_PVA_TLS_KEYCHAIN=str(keys / "client.p12")),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        done = await finish(doctor)
    finally:
        running.kill()
        await running.wait()
    assert done.status == 1
    assert f"PROBLEM  pv: 127.0.0.1:{tls_port} (TLS): no connection within 1 s" in done.out
    assert f"open TCP port {tls_port} in the firewall of 127.0.0.1" in done.out


async def test_two_servers_with_one_pv_are_both_named(ask: Ask, server: Server) -> None:
    async with demo_server() as plain:
        other = f"127.0.0.1:{plain.tcp_port}"
        text = of(
            await ask("demo", status=0, EPICS_PVA_ADDR_LIST=f"127.0.0.1 127.0.0.1:{plain.udp_port}"),
            "pv",
            "warning",
        )
    assert "2 servers have demo" in text
    assert other in text
    assert f"127.0.0.1:{server.tcp_port}" in text
    assert "stop one of them, rename its PV, or search only one of them (EPICS_PVA_ADDR_LIST)" in text


async def test_a_wrong_udp_port_is_told_from_no_server(own_network: list[str], tmp_path: Path) -> None:
    code = SERVER.replace("demo_server(", "usual_server(").replace(
        "async def main():",
        """
from contextlib import asynccontextmanager
from appliance.config.pva import ServerConfig
from appliance.config.address import Endpoint
from appliance.server import Server
from tests.helpers.tools import demo_pvs
@asynccontextmanager
async def usual_server(tls):
    config = ServerConfig(intf_addr_list=(Endpoint("127.0.0.1"),), auto_beacon_addr_list=False)
    server = Server(config)
    for name, pv in demo_pvs().items():
        server.add_pv(name, pv)
    async with server:
        yield server
async def main():""",
    )
    (tmp_path / "keys").mkdir(mode=0o700)
    running = await asyncio.create_subprocess_exec(
        *own_network, sys.executable, "-c", code, str(tmp_path / "keys/client.p12"), cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert running.stdout is not None
    try:
        udp_port = int((await running.stdout.readline()).split()[0])
        assert udp_port == 5076
        doctor = await asyncio.create_subprocess_exec(
            *own_network, sys.executable, "-m", "appliance.cli.main", "doctor", "-w", "1",
            env=environment(5075, tmp_path),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        done = await finish(doctor)
    finally:
        running.kill()
        await running.wait()
    assert done.status == 1
    assert "PROBLEM  servers: none answered a search at UDP 5075, and 1 answered at UDP 5076" in done.out
    assert "unset EPICS_PVA_BROADCAST_PORT" in done.out


# -- identities ------------------------------------------------------------------------------------------


async def test_a_server_of_another_authority_is_named(ask: Ask, tmp_path: Path) -> None:
    path = keychain_file(tmp_path, site().client)
    foreign = server_context(site().other_ca.keychain("softioc", "server"), require_client_cert=False)
    async with demo_server(tls=foreign) as other:
        text = of(await ask("demo", status=1, EPICS_PVA_TLS_KEYCHAIN=path, **at(other)), "pv", "problem")
    assert "Another Certificate Authority" in text
    assert "different certificate authorities" in text
    assert "from the same certificate service" in text


async def test_a_plain_server_is_a_warning_where_the_keychain_is_good(ask: Ask, tmp_path: Path) -> None:
    path = keychain_file(tmp_path, site().client)
    async with demo_server() as plain:
        text = of(await ask("demo", status=0, EPICS_PVA_TLS_KEYCHAIN=path, **at(plain)), "pv", "warning")
    assert "over plain TCP, although this client has a keychain" in text
    assert "the server does not offer TLS" in text
    assert "appliance doctor --server" in text


async def test_a_clock_that_is_ahead_is_blamed_and_not_the_certificate_service(
    ask: Ask, server: Server, tmp_path: Path
) -> None:
    path = keychain_file(tmp_path, certified(server))
    report = await ask(status=1, EPICS_PVA_TLS_KEYCHAIN=path, **faketime("+3h"))
    text = of(report, "clock", "problem")
    assert "this machine's clock is ahead by 2 h or more" in text
    assert "date -u" in text
    assert not any(item["check"] == "status" and item["level"] == "problem" for item in report["findings"])


async def test_a_clock_that_is_behind_is_blamed(ask: Ask, server: Server, tmp_path: Path) -> None:
    path = keychain_file(tmp_path, certified(server))
    text = of(await ask(status=1, EPICS_PVA_TLS_KEYCHAIN=path, **faketime("-3h")), "clock", "problem")
    assert "the certificate service's clock is 3 h ahead of this machine's" in text or "2 h ahead" in text
    assert text.endswith("synchronise both clocks (timedatectl, chronyc tracking)")


async def test_it_says_until_when_a_kept_status_counts(ask: Ask, tmp_path: Path) -> None:
    keychain = site().ca.keychain("client", "client", status=True)
    kept = tmp_path / "kept"
    StatusCache(str(kept)).write(site().ca.issuer_id, keychain.serial, site().ca.status(keychain.serial))
    report = await ask(
        status=1,
        EPICS_PVA_TLS_KEYCHAIN=keychain_file(tmp_path, keychain),
        EPICS_PVA_STATUS_CACHE_DIR=str(kept),
    )
    text = of(report, "status", "problem")
    assert "the last answer, GOOD, is stored in" in text
    assert f"is valid until {NOW + timedelta(minutes=30):%Y-%m-%d %H:%M:%S} UTC" in text
    assert "check that the certificate service (pvacms) runs" in text


# -- configuration ---------------------------------------------------------------------------------------


async def test_a_misspelt_variable_is_named_and_its_value_is_not_shown(ask: Ask) -> None:
    report = await ask(status=0, EPICS_PVA_TLS_KEYCHIAN="/home/u/secret-place.p12", EPICS_PVA_NONSENSE="1")
    text = of(report, "configuration", "warning")
    assert "no program reads EPICS_PVA_TLS_KEYCHIAN" in text
    assert "it looks like EPICS_PVA_TLS_KEYCHAIN, which is not set" in text
    assert "no program reads EPICS_PVA_NONSENSE" in text
    assert "secret-place" not in str(report)


async def test_a_misspelt_variable_is_not_to_replace_one_that_is_set(ask: Ask) -> None:
    text = of(await ask(status=0, EPICS_PVA_ADR_LIST="192.0.2.1"), "configuration", "warning")
    assert "it looks like EPICS_PVA_ADDR_LIST, which is set as well" in text
    assert text.endswith("unset EPICS_PVA_ADR_LIST")
    assert "export" not in text


@pytest.mark.parametrize(
    "name", ["EPICS_CA_ADDR_LIST", "EPICS_HOST_ARCH", "EPICS_PVACMS_DB", "EPICS_PVAS_AUTH_NAME", "EPICS_BASE"]
)
async def test_variables_of_other_programs_are_not_called_misspelt(name: str, ask: Ask) -> None:
    report = await ask(status=0, **{name: "x"})
    assert f"no program reads {name}" not in str(report)


async def test_an_empty_password_file_is_named_with_its_variable(ask: Ask, tmp_path: Path) -> None:
    path = keychain_file(tmp_path, site().client, PASSWORD)
    empty = tmp_path / "empty"
    empty.touch(mode=0o600)
    report = await ask(status=1, EPICS_PVA_TLS_KEYCHAIN=path, EPICS_PVA_TLS_KEYCHAIN_PWD_FILE=str(empty))
    text = of(report, "password", "problem")
    assert str(empty) in text
    assert "is empty" in text
    assert "EPICS_PVA_TLS_KEYCHAIN_PWD_FILE" in text
    assert text.endswith("write the password there, into the first line if that is a file")


async def test_a_name_cannot_pose_as_several_parts(ask: Ask, server: Server, tmp_path: Path) -> None:
    keychain = site().ca.keychain("operator, O=control-room, OU=shift", "client")
    report = await ask(status=0, EPICS_PVA_TLS_KEYCHAIN=keychain_file(tmp_path, keychain))
    assert r"CN=operator\, O=control-room\, OU=shift" in of(report, "chain", "ok")
    assert "CN=operator, O=control-room" not in str(report)


async def test_a_directory_of_an_older_version_is_named(ask: Ask, tmp_path: Path) -> None:
    old = tmp_path / "config/pva/1.3"
    old.mkdir(parents=True, mode=0o700)
    write_keychain(old / "client.p12", site().client)
    report = await ask(status=0)
    text = of(report, "configuration", "note")
    assert f"{old} is of an older version, and files that are only there are used there" in text
    assert f"mv {old} {tmp_path}/config/pva/1.5" in text
    assert str(old / "client.p12") in of(report, "keychain", "ok")


# -- a server's own set-up -------------------------------------------------------------------------------


async def test_a_server_checks_its_own_setup(ask: Ask, server: Server, tmp_path: Path) -> None:
    keychain = site().ca.keychain("softioc", "server", status=True)
    server.add_pv(keychain.status_pv, SharedPV(Value(NTScalar(INT32))))
    directory = tmp_path / "keys"
    directory.mkdir(mode=0o700)
    path = str(write_keychain(directory / "server.p12", site().server))
    settings = {
        "EPICS_PVAS_TLS_KEYCHAIN": path,
        "EPICS_PVAS_SERVER_PORT": str(server.tcp_port),
        "EPICS_PVAS_TLS_PORT": str(server.tls_port),
        "EPICS_PVAS_BROADCAST_PORT": str(server.udp_port),
        "EPICS_PVAS_INTF_ADDR_LIST": "127.0.0.1",
    }
    report = await ask("--server", "demo", status=0, **settings)
    assert "good for a server" in of(report, "usage", "ok")
    assert f"TCP port {server.tcp_port} of 127.0.0.1 is in use" in of(report, "ports", "note")
    assert f"127.0.0.1:{server.tls_port} (TLS)" in of(report, "pv", "ok")


async def test_a_server_that_does_not_offer_tls_though_it_should(ask: Ask, tmp_path: Path) -> None:
    path = keychain_file(tmp_path, site().server)
    async with demo_server() as plain:
        settings = {
            "EPICS_PVAS_TLS_KEYCHAIN": path,
            "EPICS_PVAS_BROADCAST_PORT": str(plain.udp_port),
            "EPICS_PVAS_INTF_ADDR_LIST": "127.0.0.1 203.0.113.7",
        }
        report = await ask("--server", "demo", "nope", status=1, **settings)
    text = of(report, "pv", "problem")
    assert "but not over TLS" in text
    assert "no server of this host answers a search for nope" in text
    assert "EPICS_PVAS_INTF_ADDR_LIST names it" in of(report, "interfaces", "problem")


async def test_a_clients_keychain_is_not_for_a_server(ask: Ask, tmp_path: Path) -> None:
    path = keychain_file(tmp_path, site().client)
    report = await ask("--server", status=1, EPICS_PVAS_TLS_KEYCHAIN=path)
    assert "not for a server" in of(report, "usage", "problem")


async def test_an_iocs_file_is_taken_for_its_own_setup(ask: Ask, tmp_path: Path) -> None:
    path = keychain_file(tmp_path, site().server)
    (tmp_path / "t.db").write_text('record(ai, "t") {}\n')
    config = tmp_path / "ioc.yml"
    config.write_text(f"databases:\n  - file: t.db\npva:\n  tls_keychain: {path}\n  server_port: 80\n")
    report = await ask("--server", "--config", str(config), status=0)
    assert f"{path} ({config}:4)" in of(report, "keychain", "ok")


async def test_a_file_without_server_is_refused(env: dict[str, str], tmp_path: Path) -> None:
    from tests.helpers.tools import run

    done = await run("main", "doctor", "--config", str(tmp_path / "ioc.yml"), env=env)
    assert done.status == 1
    assert "--config needs --server" in done.err


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"EPICS_PVA_BROADCAST_PORT": "5999"}, "EPICS_PVA_BROADCAST_PORT is 5999"),
        (
            {"EPICS_PVA_BROADCAST_PORT": "5076", "EPICS_PVA_ADDR_LIST": "127.0.0.1:5999"},
            "EPICS_PVA_ADDR_LIST names 127.0.0.1:5999",
        ),
    ],
)
async def test_where_nobody_answers_an_unusual_port_is_named_as_what_may_be_wrong(
    own_network: list[str], tmp_path: Path, changed: dict[str, str], named: str
) -> None:
    doctor = await asyncio.create_subprocess_exec(
        *own_network, sys.executable, "-m", "appliance.cli.main", "doctor", "-w", "1",
        env=environment(5076, tmp_path, **changed),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    done = await finish(doctor)
    assert f"perhaps the port is wrong: {named}" in done.out
    assert "or a firewall drops the searches" in done.out

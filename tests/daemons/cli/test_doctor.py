"""``appliance doctor`` as a process, with the faults that users have."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from appliance.certs.keychain import Keychain
from appliance.certs.status import CertState, OCSPState
from appliance.server import Server, SharedPV
from appliance.tls.context import server_context
from tests.helpers.cert_status import encode_status
from tests.helpers.pki import NOW, PASSWORD, site, write_keychain
from tests.helpers.tools import demo_server, environment, run


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with demo_server(tls=server_context(site().server, require_client_cert=False)) as running:
        yield running


@pytest.fixture
def env(server: Server, tmp_path: Path) -> dict[str, str]:
    return environment(server.udp_port, tmp_path)


Ask = Callable[..., Awaitable[dict[str, Any]]]


@pytest.fixture
def ask(env: dict[str, str]) -> Ask:
    async def run_doctor(*arguments: str, status: int, **variables: str) -> dict[str, Any]:
        done = await run("main", "doctor", "--json", "-w", "1", *arguments, env={**env, **variables})
        assert done.status == status, done
        assert done.err == ""
        report = json.loads(done.out)
        assert report["problems"] == sum(finding["level"] == "problem" for finding in report["findings"])
        assert (report["problems"] > 0) == (status == 1)
        for finding in report["findings"]:
            if finding["level"] in ("problem", "warning"):
                assert all(finding[part] for part in ("what", "why", "do")), finding
        return report

    return run_doctor


def of(report: dict[str, Any], check: str, level: str) -> str:
    """The text of the findings of one check and level, which must be there."""
    found = [item for item in report["findings"] if (item["check"], item["level"]) == (check, level)]
    assert found, report["findings"]
    return " | ".join(f"{item['what']} / {item['why']} / {item['do']}" for item in found)


def keychain_file(tmp_path: Path, keychain: Keychain, password: bytes = b"") -> str:
    directory = tmp_path / "keys"
    directory.mkdir(mode=0o700, exist_ok=True)
    return str(write_keychain(directory / "client.p12", keychain, password))


def certified(
    server: Server, state: str = "VALID", ocsp: OCSPState = OCSPState.GOOD, **times: Any
) -> Keychain:
    """A client's keychain whose status the server tells."""
    keychain = site().ca.keychain("client", "client", status=True)
    der = site().ca.status(keychain.serial, ocsp, **times)
    tell(server, keychain, der, state)
    return keychain


def tell(server: Server, keychain: Keychain, answer: bytes, state: str = "VALID") -> None:
    """Let the server tell the status of a certificate with a signed answer."""
    value = encode_status(
        CertState(state), keychain.serial, answer, this_update=NOW, next_update=NOW + timedelta(minutes=30)
    )
    server.add_pv(keychain.status_pv, SharedPV(value))


async def test_a_client_without_keychain_is_healthy_and_plain(ask: Ask) -> None:
    report = await ask("demo", status=0)
    assert "plain TCP" in of(report, "keychain", "note")
    assert "1 answered" in of(report, "servers", "ok")
    assert "demo is served by" in of(report, "pv", "ok")


async def test_a_good_keychain_is_good_in_every_respect(ask: Ask, server: Server, tmp_path: Path) -> None:
    path = keychain_file(tmp_path, certified(server))
    report = await ask(status=0, EPICS_PVA_TLS_KEYCHAIN=path)
    for check in ("keychain", "password", "chain", "expiry", "usage", "status"):
        of(report, check, "ok")
    assert "CN=client" in of(report, "chain", "ok")
    assert "VALID" in of(report, "status", "ok")


async def test_people_get_what_why_and_what_to_do(env: dict[str, str]) -> None:
    done = await run(
        "main", "doctor", "-w", "1", env={**env, "EPICS_PVA_TLS_KEYCHAIN": "/nonexistent/client.p12"}
    )
    assert done.status == 1
    lines = done.out.splitlines()
    at = lines.index("PROBLEM  keychain: /nonexistent/client.p12: No such file or directory")
    assert lines[at + 1].startswith("         why: this path comes from EPICS_PVA_TLS_KEYCHAIN")
    assert lines[at + 2].startswith("         do:  correct the path")
    assert lines[-1].startswith("1 problem, ")


@pytest.mark.parametrize(("mode", "level", "status"), [(0o644, "problem", 1), (0o640, "warning", 0)])
async def test_a_keychain_that_others_can_read(
    mode: int, level: str, status: int, ask: Ask, server: Server, tmp_path: Path
) -> None:
    path = keychain_file(tmp_path, certified(server))
    Path(path).chmod(mode)
    report = await ask(status=status, EPICS_PVA_TLS_KEYCHAIN=path)
    assert f"chmod 600 {path}" in of(report, "keychain", level)


async def test_a_directory_in_which_others_can_write(ask: Ask, server: Server, tmp_path: Path) -> None:
    path = keychain_file(tmp_path, certified(server))
    Path(path).parent.chmod(0o777)
    report = await ask(status=1, EPICS_PVA_TLS_KEYCHAIN=path)
    assert "chmod go-w" in of(report, "keychain", "problem")


async def test_a_missing_and_a_wrong_password(ask: Ask, tmp_path: Path) -> None:
    path = keychain_file(tmp_path, site().client, PASSWORD)
    report = await ask(status=1, EPICS_PVA_TLS_KEYCHAIN=path)
    assert "no password file is set" in of(report, "password", "problem")
    secret = tmp_path / "secret"
    secret.touch(mode=0o600)
    secret.write_text("wrong-password")
    report = await ask(status=1, EPICS_PVA_TLS_KEYCHAIN=path, EPICS_PVA_TLS_KEYCHAIN_PWD_FILE=str(secret))
    assert str(secret) in of(report, "password", "problem")
    assert "wrong-password" not in json.dumps(report)


async def test_a_file_that_is_no_keychain(ask: Ask, tmp_path: Path) -> None:
    path = tmp_path / "client.p12"
    path.touch(mode=0o600)
    path.write_bytes(b"not a keychain")
    assert "PKCS#12" in of(await ask(status=1, EPICS_PVA_TLS_KEYCHAIN=str(path)), "keychain", "problem")


async def test_an_expired_certificate(ask: Ask, tmp_path: Path) -> None:
    path = keychain_file(tmp_path, site().ca.expired())
    assert "expired at" in of(await ask(status=1, EPICS_PVA_TLS_KEYCHAIN=path), "expiry", "problem")


async def test_a_certificate_that_ends_soon(ask: Ask, tmp_path: Path) -> None:
    keychain = site().ca.keychain(not_before=NOW - timedelta(days=90), not_after=NOW + timedelta(hours=5))
    report = await ask(status=0, EPICS_PVA_TLS_KEYCHAIN=keychain_file(tmp_path, keychain))
    assert "expires at" in of(report, "expiry", "warning")


async def test_a_certificate_from_the_future_points_at_the_clock(ask: Ask, tmp_path: Path) -> None:
    keychain = site().ca.keychain(not_before=NOW + timedelta(hours=1), not_after=NOW + timedelta(days=2))
    report = await ask(status=1, EPICS_PVA_TLS_KEYCHAIN=keychain_file(tmp_path, keychain))
    assert "not valid before" in of(report, "clock", "problem")


async def test_a_server_certificate_is_not_for_a_client(ask: Ask, tmp_path: Path) -> None:
    report = await ask(status=1, EPICS_PVA_TLS_KEYCHAIN=keychain_file(tmp_path, site().server))
    assert "not for a client" in of(report, "usage", "problem")


async def test_a_keychain_of_trust_anchors_only(ask: Ask, tmp_path: Path) -> None:
    report = await ask(status=0, EPICS_PVA_TLS_KEYCHAIN=keychain_file(tmp_path, site().ca.trust_only()))
    assert "anonymous" in of(report, "chain", "note")


async def test_a_status_that_nobody_tells(ask: Ask, tmp_path: Path) -> None:
    keychain = site().ca.keychain("client", "client", status=True)
    report = await ask(status=1, EPICS_PVA_TLS_KEYCHAIN=keychain_file(tmp_path, keychain))
    assert "pvacms" in of(report, "status", "problem")


@pytest.mark.parametrize(
    ("state", "ocsp", "remedy"),
    [
        ("REVOKED", OCSPState.REVOKED, "request a certificate"),
        ("PENDING_APPROVAL", OCSPState.UNKNOWN, "pvxcert -A"),
        ("VALID", OCSPState.UNKNOWN, "request a certificate"),
    ],
)
async def test_a_status_that_is_not_valid(
    state: str, ocsp: OCSPState, remedy: str, ask: Ask, server: Server, tmp_path: Path
) -> None:
    path = keychain_file(tmp_path, certified(server, state, ocsp))
    assert remedy in of(await ask(status=1, EPICS_PVA_TLS_KEYCHAIN=path), "status", "problem")


async def test_a_status_signed_by_somebody_else(ask: Ask, server: Server, tmp_path: Path) -> None:
    keychain = site().ca.keychain("client", "client", status=True)
    forged = site().other_ca.status(keychain.serial)
    tell(server, keychain, forged)
    report = await ask(status=1, EPICS_PVA_TLS_KEYCHAIN=keychain_file(tmp_path, keychain))
    assert "does not verify" in of(report, "status", "problem")


async def test_a_certificate_service_whose_clock_is_ahead(ask: Ask, server: Server, tmp_path: Path) -> None:
    keychain = certified(server, this_update=NOW + timedelta(hours=2))
    report = await ask(status=1, EPICS_PVA_TLS_KEYCHAIN=keychain_file(tmp_path, keychain))
    assert "the certificate service's clock is" in of(report, "clock", "problem")


async def test_search_destinations_and_name_servers(ask: Ask, server: Server) -> None:
    report = await ask(
        status=1,
        EPICS_PVA_ADDR_LIST="127.0.0.1 nohost.invalid",
        EPICS_PVA_NAME_SERVERS=f"127.0.0.1:{server.tcp_port} 127.0.0.1:1",
    )
    assert "by the interface with 127.0.0.1" in of(report, "search", "ok")
    assert "nohost.invalid cannot be resolved" in of(report, "search", "problem")
    assert f"127.0.0.1:{server.tcp_port} answers" in of(report, "name servers", "ok")
    assert "Connection refused" in of(report, "name servers", "problem")


async def test_searches_that_go_nowhere(ask: Ask) -> None:
    assert "go nowhere" in of(await ask(status=1, EPICS_PVA_ADDR_LIST=""), "search", "problem")


async def test_nobody_answers_and_a_pv_that_is_not_there(ask: Ask, tmp_path: Path) -> None:
    with_silence = await ask("nope", status=1, EPICS_PVA_BROADCAST_PORT="9")
    assert "firewall" in of(with_silence, "servers", "warning")
    assert "no server answered" in of(with_silence, "pv", "problem")


async def test_an_interface_that_is_not_ours(ask: Ask) -> None:
    report = await ask(status=1, EPICS_PVA_INTF_ADDR_LIST="203.0.113.7")
    assert "203.0.113.7 is not an address of this machine" in of(report, "interfaces", "problem")


async def test_configuration_warnings_and_a_home_that_does_not_count(ask: Ask, tmp_path: Path) -> None:
    stray = tmp_path / ".config/pva/1.5/client.p12"
    stray.parent.mkdir(parents=True)
    stray.touch()
    report = await ask(status=0, EPICS_PVA_CONN_TMO="soon", HOME=str(tmp_path))
    text = of(report, "configuration", "warning")
    assert "EPICS_PVA_CONN_TMO='soon' ignored" in text
    assert f"{stray} is not used" in text


async def test_one_port_for_both_is_a_problem(ask: Ask, server: Server, tmp_path: Path) -> None:
    path = keychain_file(tmp_path, certified(server))
    report = await ask(status=1, EPICS_PVA_TLS_KEYCHAIN=path, EPICS_PVA_TLS_PORT="5075")
    assert "both the plain port and the TLS port" in of(report, "ports", "problem")


async def test_the_pv_tells_whether_its_server_is_proved(ask: Ask, server: Server, tmp_path: Path) -> None:
    path = keychain_file(tmp_path, site().client)
    report = await ask("demo", status=0, EPICS_PVA_TLS_KEYCHAIN=path)
    assert "TLS, softioc certified by EPICS Root Certificate Authority" in of(report, "pv", "ok")


async def test_where_plain_tcp_is_refused_a_plain_server_is_told_from_none(
    ask: Ask, env: dict[str, str], server: Server, tmp_path: Path
) -> None:
    report = await ask("demo", status=1, EPICS_PVA_TLS_OPTIONS="tls_required")
    assert "connects nowhere" in of(report, "keychain", "problem")
    path = keychain_file(tmp_path, site().client)
    async with demo_server() as plain:
        report = await ask(
            "demo",
            status=1,
            EPICS_PVA_TLS_KEYCHAIN=path,
            EPICS_PVA_TLS_OPTIONS="tls_required",
            **{
                key: value.replace(str(server.udp_port), str(plain.udp_port))
                for key, value in env.items()
                if key in ("EPICS_PVA_ADDR_LIST", "EPICS_PVA_BROADCAST_PORT")
            },
        )
    assert "over plain TCP only" in of(report, "pv", "problem")


async def test_it_takes_a_few_seconds_at_most(ask: Ask) -> None:
    async with asyncio.timeout(30):
        await ask("nope1", "nope2", status=1)


async def test_a_revoked_client_is_the_cause_and_the_server_is_not_blamed(
    ask: Ask, server: Server, tmp_path: Path
) -> None:
    path = keychain_file(tmp_path, certified(server, "REVOKED", OCSPState.REVOKED))
    report = await ask("demo", status=1, EPICS_PVA_TLS_KEYCHAIN=path)
    pv = of(report, "pv", "warning")
    assert "this client's own certificate is not good" in pv
    assert "is REVOKED" in pv
    assert "doctor --server" not in json.dumps(report)


async def test_a_client_that_refuses_plain_tcp_does_not_read_the_pv_while_its_certificate_is_revoked(
    ask: Ask, server: Server, tmp_path: Path
) -> None:
    path = keychain_file(tmp_path, certified(server, "REVOKED", OCSPState.REVOKED))
    report = await ask("demo", status=1, EPICS_PVA_TLS_KEYCHAIN=path, EPICS_PVA_TLS_OPTIONS="tls_required")
    pv = of(report, "pv", "problem")
    assert "over plain TCP, which this client refuses (tls_required)" in pv
    assert "this client's own certificate is not good" in pv
    assert "is REVOKED" in pv
    assert "give that server a keychain" not in json.dumps(report)


async def test_an_identifier_is_found_as_everything_else_spells_it(
    ask: Ask, server: Server, env: dict[str, str], tmp_path: Path
) -> None:
    """The status PV's name has the serial with twenty digits."""
    keychain = site().ca.keychain("client", "client", status=True, serial=8132)
    der = site().ca.status(keychain.serial, OCSPState.GOOD)
    tell(server, keychain, der)
    path = keychain_file(tmp_path, keychain)
    told = (await ask(status=0, EPICS_PVA_TLS_KEYCHAIN=path))["findings"]
    status = [item["what"] for item in told if "STATUS" in item["what"]]
    assert status
    assert all(keychain.cert_id in text for text in status), status
    done = await run("pvxget", "-d", "demo", env={**env, "EPICS_PVA_TLS_KEYCHAIN": path})
    lines = [line for line in done.err.splitlines() if ":STATUS:" in line]
    assert lines
    assert all(keychain.cert_id in line for line in lines), lines

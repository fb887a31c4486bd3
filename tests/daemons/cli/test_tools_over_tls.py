"""The tools with a keychain: the identity line, fall-back, and no secret in sight."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appliance.server import Server
from appliance.tls.context import server_context
from tests.daemons.cli.test_doctor import tell
from tests.helpers.pki import PASSWORD, site, write_keychain
from tests.helpers.tools import demo_server, environment, run


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with demo_server(tls=server_context(site().server, require_client_cert=False)) as running:
        yield running


@pytest.fixture
def env(server: Server, tmp_path: Path) -> dict[str, str]:
    directory = tmp_path / "config/pva/1.5"
    directory.mkdir(parents=True)
    write_keychain(directory / "client.p12", site().client)
    return environment(server.udp_port, tmp_path)


async def test_info_v_shows_configuration_and_identity_as_the_transcripts_do(
    server: Server, env: dict[str, str], tmp_path: Path
) -> None:
    done = await run("pvxinfo", "-v", "enum", env=env)
    assert done.status == 0, done.err
    address = f"127.0.0.1:{server.tls_port}"
    identity, where, kind, *_ = done.out.splitlines()
    ca = site().ca
    assert identity == (
        f"# TLS x509:{ca.issuer_id}:{site().server.serial}:EPICS Root Certificate Authority/softioc@{address}"
    )
    assert where == f"enum from {address}"
    assert kind == 'struct "epics:nt/NTEnum:1.0" {'
    config = done.err.splitlines()
    assert config[0] == "Effective config"
    assert f"EPICS_PVA_TLS_KEYCHAIN={tmp_path}/config/pva/1.5/client.p12" in config
    assert config[-1] == f"XDG_DATA_HOME={tmp_path}/data/pva/1.5"


async def test_json_tells_who_the_server_is(env: dict[str, str]) -> None:
    done = await run("pvxinfo", "--json", "enum", env=env)
    peer = json.loads(done.out)["peer"]
    assert (peer["tls"], peer["method"], peer["account"]) == (True, "x509", "softioc")
    assert peer["authority"] == ["EPICS Root Certificate Authority"]
    assert peer["serial"] == str(site().server.serial)


@pytest.mark.parametrize(
    ("tool", "arguments", "begins"),
    [
        ("pvxget", ["demo"], "demo\n    value double = 4.25\n"),
        ("pvxput", ["demo", "3"], ""),
        ("pvxcall", ["echo", "a=1"], 'struct "epics:nt/NTURI:1.0" {\n'),
    ],
)
async def test_every_tool_works_over_tls(
    tool: str, arguments: list[str], begins: str, server: Server, env: dict[str, str]
) -> None:
    server_without_tcp = {**env, "EPICS_PVA_SERVER_PORT": "1"}
    done = await run(tool, *arguments, env=server_without_tcp)
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith(begins)


async def test_a_server_over_tls_is_listed_with_its_scheme_and_can_be_asked_so(
    server: Server, env: dict[str, str]
) -> None:
    done = await run("pvxlist", "-w", "0.7", env=env)
    assert done.out == f"pvas://127.0.0.1:{server.tls_port}\n"
    done = await run("pvxlist", done.out.strip(), env=env)
    assert (done.status, done.err) == (0, "")
    assert "demo" in done.out.splitlines()


async def test_an_empty_keychain_variable_means_plain_tcp(server: Server, env: dict[str, str]) -> None:
    done = await run("pvxinfo", "-v", "enum", env={**env, "EPICS_PVA_TLS_KEYCHAIN": ""})
    assert f"enum from 127.0.0.1:{server.tcp_port}\n" in done.out


@pytest.mark.parametrize("behind_the_name", [False, True])
async def test_a_password_is_read_from_its_file_or_behind_the_keychain_and_shown_nowhere(
    env: dict[str, str], tmp_path: Path, behind_the_name: bool
) -> None:
    keychain = write_keychain(tmp_path / "own.p12", site().client, PASSWORD)
    secret = tmp_path / "own.pass"
    secret.touch(mode=0o600)
    secret.write_bytes(PASSWORD + b"\n")
    variables = {"EPICS_PVA_TLS_KEYCHAIN": str(keychain), "EPICS_PVA_TLS_KEYCHAIN_PWD_FILE": str(secret)}
    if behind_the_name:
        variables = {"EPICS_PVA_TLS_KEYCHAIN": f"{keychain};{PASSWORD.decode()}"}
    done = await run("pvxinfo", "-v", "-d", "enum", env={**env, **variables})
    assert done.status == 0, done.err
    assert done.out.startswith("# TLS x509:")
    assert PASSWORD.decode() not in done.out + done.err


@pytest.mark.parametrize("tool", ["pvxget", "pvxinfo", "pvxmonitor", "pvxput", "pvxcall"])
async def test_a_keychain_that_is_named_and_cannot_be_used_ends_the_tool_with_one_line(
    env: dict[str, str], tmp_path: Path, tool: str
) -> None:
    keychain = write_keychain(tmp_path / "own.p12", site().client, PASSWORD)
    arguments = ["demo", "1"] if tool == "pvxput" else ["demo"]
    for value in (str(tmp_path / "none.p12"), f"{keychain};geheim"):
        done = await run(tool, *arguments, env={**env, "EPICS_PVA_TLS_KEYCHAIN": value})
        assert (done.status, done.out) == (1, "")
        (line,) = done.err.splitlines()
        assert line.startswith(f"Error: {value.partition(';')[0]}: ")
        assert "on_no_keychain=fallback-to-tcp" in line
        assert "geheim" not in line
    asked_for = {"EPICS_PVA_TLS_KEYCHAIN": value, "EPICS_PVA_TLS_OPTIONS": "on_no_keychain=fallback-to-tcp"}
    done = await run("pvxinfo", "-v", "demo", env={**env, **asked_for})
    assert done.status == 0, done.err
    assert "# TLS" not in done.out


async def test_a_server_of_another_authority_is_not_spoken_to(env: dict[str, str], tmp_path: Path) -> None:
    stranger = site().other_ca.keychain("softioc", "server")
    async with demo_server(tls=server_context(stranger, require_client_cert=False)) as other:
        done = await run(
            "pvxget", "-w", "1", "demo", env={**env, "EPICS_PVA_BROADCAST_PORT": str(other.udp_port)}
        )
    assert (done.status, done.out) == (1, "")
    assert "trust anchor" in done.err
    assert os.fspath(tmp_path) not in done.err


async def test_debugging_shows_the_handshake_and_who_the_server_is(
    server: Server, env: dict[str, str]
) -> None:
    done = await run("pvxget", "-d", "enum", env=env)
    assert done.status == 0, done.err
    peer = f"127.0.0.1:{server.tls_port}"
    assert f"TLS {peer}: connecting" in done.err
    assert f"TLS {peer}: TLS handshake complete: TLSv1.3, TLS_" in done.err
    assert f"EPICS Root Certificate Authority/softioc@{peer}" in done.err
    assert f"{peer} <- GET (" in done.err


async def test_debugging_shows_the_status_of_both_certificates(env: dict[str, str], tmp_path: Path) -> None:
    ca = site().ca
    own = ca.keychain("softioc", "server", status=True)
    keychain = ca.keychain("client", "client", status=True)
    path = str(write_keychain(tmp_path / "own.p12", keychain))
    async with demo_server(tls=server_context(own, require_client_cert=False)) as server:
        for each in (own, keychain):
            tell(server, each, ca.status(each.serial))
        variables = {"EPICS_PVA_TLS_KEYCHAIN": path, "EPICS_PVA_BROADCAST_PORT": str(server.udp_port)}
        done = await run("pvxget", "-d", "enum", env={**env, **variables})
    assert done.status == 0, done.err
    for each in (own, keychain):
        assert f"({each.cert_id}): UNKNOWN -> VALID" in done.err


async def test_info_v_says_which_directory_of_an_older_version_is_used(
    server: Server, env: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "config/pva/1.5").rename(tmp_path / "config/pva/1.3")
    done = await run("pvxinfo", "-v", "enum", env=env)
    assert f"EPICS_PVA_TLS_KEYCHAIN={tmp_path}/config/pva/1.3/client.p12\n" in done.err
    assert f"# {tmp_path}/config/pva/1.3 is of an older version" in done.err
    assert f"enum from 127.0.0.1:{server.tls_port}\n" in done.out


async def test_the_list_of_a_tls_port_hints_at_how_tls_is_written(
    server: Server, env: dict[str, str]
) -> None:
    peer = f"127.0.0.1:{server.tls_port}"
    plain = await run("pvxlist", "-w", "1", peer, env=env)
    assert plain.status == 1
    assert f"pvas://{peer}" in plain.err
    listed = await run("pvxlist", f"pvas://{peer}", env=env)
    assert (listed.status, "enum" in listed.out.split()) == (0, True), listed.err

"""``tls_required`` among the TLS options: neither end falls back to plain TCP, and both say why and what to do."""

import asyncio
import contextlib
import logging
from datetime import timedelta

import pytest

from appliance.certmon.endpoints import open_client, open_server
from appliance.cli.common import open_context
from appliance.client import Context
from appliance.config.address import Endpoint
from appliance.config.pva import Effective
from appliance.errors import KeychainError, OperationTimeoutError
from appliance.server import Server
from appliance.tls.context import server_context
from appliance.transport.udp import UDPPort
from tests.helpers.live import (
    HOST,
    client_config,
    keychain_file,
    never_comes,
    number,
    replace_keychain,
    server_config,
    until,
)
from tests.helpers.pki import DAY, NOW, site

S = site()
ALONE = "tls_required no_revocation_check"


@pytest.fixture(autouse=True)
def quick_look(monkeypatch):
    """What is looked at once a second is looked at more often, so that tests need not wait."""
    monkeypatch.setattr("appliance.certmon.live_keychain.POLL_S", 0.05)


def prepare(server):
    server.add_pv("pv", number(3.5))


@contextlib.asynccontextmanager
async def secure(tmp_path):
    keychain = keychain_file(tmp_path, "server", S.server)
    async with open_server(server_config(keychain, ALONE), prepare=prepare) as server:
        yield server


async def test_two_ends_that_require_tls_use_it(tmp_path):
    keychain = keychain_file(tmp_path, "client", S.client)
    async with (
        secure(tmp_path) as server,
        open_client(client_config(server, keychain=keychain, tls_options=ALONE)) as client,
    ):
        assert (await client.get("pv"))["value"] == 3.5
        assert client.channel("pv").peer.is_tls


async def test_a_client_refuses_a_plain_server_and_says_why_and_what_to_do(tmp_path):
    keychain = keychain_file(tmp_path, "client", S.client)
    async with open_server(server_config(), prepare=prepare) as server:
        async with open_client(client_config(server, keychain=keychain, tls_options=ALONE)) as client:
            await never_comes(
                lambda: client.get("pv", timeout=0.4), r"does not speak TLS.*keychain.*tls_required"
            )
            with pytest.raises(
                OperationTimeoutError, match=r"over TLS, and TLS is required here.*appliance doctor"
            ):
                await client.get("nobody's", timeout=0.4)
            await never_comes(
                lambda: client.get("pv", timeout=0.4, server=(HOST, server.tcp_port, False)),
                r"does not speak TLS.*keychain.*tls_required",
            )
        assert not server.peers


async def test_a_server_that_requires_tls_has_no_port_for_plain_tcp(tmp_path):
    async with secure(tmp_path) as server:
        assert server.tcp_port == 0
        assert server.choose_protocol(("tcp",)) == ("", 0)
        assert server.choose_protocol(()) == ("", 0)
        assert server.choose_protocol(("tcp", "tls")) == ("tls", server.tls_port)
        async with Context(client_config(server), beacons=False) as plain:
            with pytest.raises(OperationTimeoutError, match="no server answered"):
                await plain.get("pv", timeout=0.4)
            with pytest.raises(OperationTimeoutError):
                await plain.get("pv", timeout=0.4, server=(HOST, server.tls_port, False))


@pytest.mark.parametrize("required", [False, True])
async def test_one_beacon_of_tcp_announces_a_server_whatever_it_speaks(required):
    """As PVXS sends it; Phoebus logs a warning for every other word. Without plain TCP it names the port of TLS."""
    seen = []
    complete = asyncio.Event()

    def hear(message, origin):
        seen.append((message.protocol, message.port))
        complete.set()

    listener = UDPPort(hear)
    config = server_config()._replace(beacon_addr_list=(Endpoint(HOST, listener.port),))
    tls = server_context(S.server, require_client_cert=False)
    try:
        async with Server(config, tls=tls, require_tls=required) as server:
            await asyncio.wait_for(complete.wait(), 30)
            assert seen == [("tcp", server.tls_port if required else server.tcp_port)]
    finally:
        listener.close()


@pytest.mark.parametrize("opening", ["client", "tool", "server"])
async def test_without_a_keychain_the_error_names_the_setting(opening):
    opened = {
        "client": lambda: open_client(client_config(1, tls_options=ALONE)),
        "tool": lambda: open_context(Effective(client_config(1, tls_options=ALONE), {}, [])),
        "server": lambda: open_server(server_config(tls_options=ALONE)),
    }[opening]
    variable = "EPICS_PVAS_TLS_KEYCHAIN" if opening == "server" else "EPICS_PVA_TLS_KEYCHAIN"
    with pytest.raises(KeychainError, match=f"no keychain.*tls_required.*set {variable} "):
        async with opened():
            pass


async def test_a_client_whose_keychain_is_missing_ends_with_the_reason(tmp_path):
    missing = tmp_path / "client.p12"
    with pytest.raises(KeychainError, match=r"client\.p12.*tls_required"):
        async with open_client(client_config(1, keychain=missing, tls_options=ALONE)):
            pass


async def test_a_server_whose_keychain_cannot_be_read_ends_with_the_reason(tmp_path):
    """Only a file that is not there yet is worth to wait for."""
    file = tmp_path / "server.p12"
    file.touch(0o600)
    with pytest.raises(KeychainError, match=r"server\.p12.*tls_required"):
        async with open_server(server_config(file, ALONE)):
            pass


async def test_a_server_waits_for_its_keychain_and_answers_nobody_meanwhile(tmp_path):
    file = tmp_path / "server.p12"
    async with (
        open_server(server_config(file, ALONE), prepare=prepare) as server,
        open_client(
            client_config(server, keychain=keychain_file(tmp_path, "client", S.client), tls_options=ALONE)
        ) as client,
    ):
        assert server.standby
        assert (server.tcp_port, server.tls_port) == (0, 0)
        waiting = asyncio.ensure_future(client.get("pv", timeout=30))
        keychain_file(tmp_path, "server", S.server)
        assert (await waiting)["value"] == 3.5
        assert not server.standby


async def test_when_the_certificate_expires_a_server_answers_nobody(tmp_path, caplog):
    """Without the option it would go on in the clear."""
    brief = S.ca.keychain("softioc", "server", not_after=NOW.now(NOW.tzinfo) + timedelta(seconds=2))
    file = keychain_file(tmp_path, "server", brief)
    keychain = keychain_file(tmp_path, "client", S.client)
    async with (
        open_server(server_config(file, ALONE), prepare=prepare) as server,
        open_client(client_config(server, keychain=keychain, tls_options=ALONE)) as client,
        Context(client_config(server), beacons=False) as plain,
    ):
        await client.get("pv")
        with caplog.at_level(logging.WARNING):
            await until(lambda: server.standby)
        assert "standby" in caplog.text
        assert server.tls is None
        for refused in (client, plain):
            with pytest.raises(OperationTimeoutError):
                await refused.get("pv", timeout=0.3)
        replace_keychain(file, S.server)
        assert (await client.get("pv", timeout=30))["value"] == 3.5


async def test_a_client_whose_certificate_is_not_valid_yet_connects_nowhere_until_it_is(tmp_path):
    soon = S.ca.keychain(
        "operator", not_before=NOW.now(NOW.tzinfo) + timedelta(seconds=2), not_after=NOW + DAY
    )
    keychain = keychain_file(tmp_path, "client", soon)
    async with (
        secure(tmp_path) as secured,
        open_server(server_config(), prepare=lambda server: server.add_pv("plain", number())) as open_to_all,
        open_client(client_config(secured, open_to_all, keychain=keychain, tls_options=ALONE)) as client,
    ):
        assert client.tls is None
        await never_comes(
            lambda: client.get("plain", timeout=0.3), r"TLS is required here.*no usable certificate"
        )
        assert (await client.get("pv", timeout=30))["value"] == 3.5
        assert not open_to_all.peers

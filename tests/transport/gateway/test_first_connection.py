"""The first connection through a gateway with TLS on both sides and followed statuses waits for nothing that later ones do not wait for.

Users of another gateway see the first one time out. How quick it is cannot be measured on a busy machine. So timers are stopped:
whatever would only go on after a time-out, a repeated search or a look once a second does not go on at all.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.certmon.endpoints import open_client, open_server
from appliance.certs.status import CertState
from appliance.client.search import Searcher
from appliance.server import Server
from tests.helpers.gateways import client_side, gateway_with, server_of, server_side
from tests.helpers.live import client_config, keychain_file, server_config
from tests.helpers.ours import double
from tests.helpers.pki import site
from tests.helpers.status_service import StatusService
from tests.transport.gateway.test_name_servers import only_by_name_server

S = site()
SHORT_S = 0.05
"""The longest timer that still runs: those that gather what belongs together are shorter, repetitions and time-outs are longer."""
HOURS_S = 10_000.0


@contextlib.contextmanager
def stopped_timers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let no timer of the running loop end that is longer than SHORT_S, and let no search be repeated."""
    monkeypatch.setattr(Searcher, "_interval", lambda self, attempts: HOURS_S)
    loop = asyncio.get_running_loop()
    call_at = loop.call_at

    def never(when: float, callback: Any, *args: Any, **more: Any) -> asyncio.TimerHandle:
        return call_at(when if when - loop.time() <= SHORT_S else when + HOURS_S, callback, *args, **more)

    loop.call_at = never  # type: ignore[method-assign]
    try:
        yield
    finally:
        loop.call_at = call_at  # type: ignore[method-assign]


@pytest.mark.parametrize("way", ["search", "name server"])
async def test_the_first_connection_through_a_tls_gateway_needs_no_timer_and_neither_do_later_ones(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
):
    certificates = {
        name: S.ca.keychain(name, usage, status=True)
        for name, usage in (("softioc", "server"), ("gateway", "ioc"), ("ann", "client"), ("ben", "client"))
    }
    files = {name: str(keychain_file(tmp_path, name, chain)) for name, chain in certificates.items()}

    def prepare(server: Server) -> None:
        for number in range(2):
            server.add_pv(f"pv{number}", double(float(number)))

    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(stopped_timers(monkeypatch))
        service = await stack.enter_async_context(StatusService(S.ca))
        for chain in certificates.values():
            service.set(chain, CertState.VALID)
        ioc = await stack.enter_async_context(
            open_server(
                server_config(files["softioc"]), prepare=prepare, status_client=service.client_config()
            )
        )
        own = {"tls_keychain": files["gateway"], "no_status_cache": True}
        gateway = await stack.enter_async_context(
            gateway_with(
                {"inner": client_side(ioc, service.udp_port, pva=own)},
                {"outer": server_side("inner", pva=own)},
            )
        )
        outer = server_of(gateway)
        for number, name in enumerate(("ann", "ben")):
            config = (
                client_config(outer.udp_port, keychain=files[name])
                if way == "search"
                else only_by_name_server(
                    f"pvas://127.0.0.1:{outer.tls_port}", tls_keychain=files[name], no_status_cache=True
                )
            )
            async with open_client(config, beacons=False) as client:
                value = await client.get(f"pv{number}", timeout=None)
                assert value["value"] == float(number)
                peer = client.channel(f"pv{number}").peer
                assert peer is not None
                assert (peer.account, peer.is_tls) == ("gateway", True)
                # Each has come with its own certificate, whose status the gateway did not know before. The client
                # follows statuses without one.
                peers = [link.credentials for link in outer.peers.values()]
                proved = {each.account for each in peers if each.method == "x509"}
                assert name in proved <= {"ann", "ben"}

"""A certificate that is renewed ten times under a live monitor: no connection closes, no file changes.

Everything is real but the processes: the certificate service with its clock, a server and a client over TLS, and the keeper of the
client's keychain. Nothing here depends on how fast the machine is: a renewal that comes late suspends the connection and closes nothing.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from appliance.authn.std.requester import std_request
from appliance.certmon.endpoints import open_client, open_server
from appliance.certs.status import CertState
from appliance.client import Context, Disconnected
from appliance.config.duration import Duration
from appliance.errors import OperationError
from tests.helpers.keepers import Home, keeping, ticking
from tests.helpers.live import client_config, number, server_config, until


async def read(context: Context) -> Any:
    """GET. Between the end of the last status and the next one nobody knows, and nothing is answered."""
    async with asyncio.timeout(LATE):
        while True:
            try:
                return (await context.get("pv"))["value"]
            except OperationError as error:
                if "UNKNOWN" not in str(error):
                    raise
                await asyncio.sleep(0.01)


OPEN = {"require_client_approval": False, "require_server_approval": False}
LATE = 60.0
"""Seconds for what takes a few: the machine may be busy."""


def identity(path: Path) -> tuple[int, int, bytes]:
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, path.read_bytes()


@pytest.mark.timeout(240)
async def test_a_monitor_runs_through_ten_renewals_and_a_suspension_without_one_disconnect(
    tmp_path: Path,
) -> None:
    async with ticking(tmp_path / "cms", cert_renewal_client=Duration(seconds=2), **OPEN) as service:
        assert service.server is not None
        cms = service.server.udp_port
        of_server = Home(service, tmp_path, "server", "softioc")
        await of_server.requester.request(
            std_request(of_server.requester.settings, now=of_server.requester.now()), subject=None
        )
        home = Home(service, tmp_path, "client", "operator")
        async with keeping(home.requester, maker=home.names) as keeper:
            (kept,) = keeper.kept
            await until(lambda: keeper.complete and kept.facts.cadence, LATE)
            before, serial = identity(home.path), kept.keychain and kept.keychain.serial
            pv = number(0.0)
            async with (
                open_server(
                    server_config(of_server.path),
                    prepare=lambda server: server.add_pv("pv", pv),
                    status_client=client_config(cms),
                ) as server,
                open_client(client_config(server, cms, keychain=home.path)) as context,
            ):
                updates: list[Any] = []
                context.monitor("pv", notify=True, on_update=updates.append)
                await until(lambda: context.channel("pv").peer and context.channel("pv").peer.is_tls, LATE)
                await until(lambda: updates and isinstance(updates[-1], type(pv.current)), LATE)
                (link,) = [peer for peer in server.peers if peer.engine is not None]
                start = len(updates)
                dates = {kept.facts.renew_by}

                def moved() -> bool:
                    dates.add(kept.facts.renew_by)
                    return len(dates) > 10

                def posted(value: float) -> None:
                    pv.post(value)

                for count in range(1, 11):
                    posted(float(count))
                    await until(lambda count=count: moved() or len(dates) > count, LATE)
                await until(lambda: updates[-1]["value"] == 10.0, LATE)

                home.names.has_proof = False
                await until(lambda: kept.facts.state is CertState.PENDING_RENEWAL, LATE)
                await until(lambda: server.peers[link].held is not None, LATE)
                seen = len(updates)
                posted(11.0)
                assert await read(context) == 11.0, "a GET may go on"
                assert len(updates) == seen, "and the monitor pauses"
                home.names.has_proof = True
                keeper.look_now()
                await until(lambda: updates[-1]["value"] == 11.0, LATE)

                assert not [item for item in updates[start:] if isinstance(item, Disconnected)]
                assert [peer for peer in server.peers if peer.engine is not None] == [link]
        assert identity(home.path) == before
        assert kept.keychain is not None
        assert kept.keychain.serial == serial

"""Certificate status: how fast a revocation closes connections, and what following costs a new connection."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvloop

from bench.table import Row

CONNECTIONS = 100
CONNECTS = 60


def run() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        rows = uvloop.run(measure(Path(folder)))
    yield from rows


async def measure(folder: Path) -> list[Row]:
    from appliance.certs.status import CertState
    from tests.helpers.pki import site
    from tests.helpers.status_service import StatusService

    ca = site().ca
    rows = []
    async with StatusService(ca) as cms:
        for whose in ("server's", "clients'"):
            delays = sorted(await revocation(folder, cms, ca, CertState, own_server=whose == "server's"))
            for name, share in (("p50", 0.5), ("p99", 0.99)):
                rows.append(
                    Row(
                        f"{whose} revocation to closed, {CONNECTIONS} connections, {name}",
                        delays[min(len(delays) - 1, int(len(delays) * share))] * 1e3,
                        1000.0,
                        "ms",
                        1.0,
                        less_is_better=True,
                        peer_name="the limit",
                    )
                )
        followed, blind = await connects(folder, cms, ca, CertState)
        rows.append(
            Row(
                "TLS connect and first GET, status followed at both ends",
                followed * 1e3,
                blind * 1e3,
                "ms",
                2.0,
                less_is_better=True,
                peer_name="no status",
            )
        )
    return rows


async def revocation(folder: Path, cms: Any, ca: Any, states: Any, *, own_server: bool) -> list[float]:
    """Seconds from the revocation to the end of each connection, as the server sees it."""
    from appliance.certmon.endpoints import open_client, open_server
    from tests.helpers.live import client_config, keychain_file, number, server_config, until

    mine = ca.keychain("softioc", "server", status=True)
    cms.set(mine, states.VALID)
    keychains = [ca.keychain(f"client{index}", "client", status=True) for index in range(CONNECTIONS)]
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(
            open_server(
                server_config(keychain_file(folder, "server", mine)),
                prepare=lambda server: server.add_pv("pv", number()),
                status_client=cms.client_config(),
            )
        )
        for index, keychain in enumerate(keychains):
            cms.set(keychain, states.VALID)
            file = keychain_file(folder, f"client{index}", keychain)
            context = await stack.enter_async_context(
                open_client(client_config(server, cms.udp_port, keychain=file), beacons=False)
            )
            context.monitor("pv")
        await until(
            lambda: (
                sum(link.engine is not None and peer.validated for link, peer in server.peers.items())
                == CONNECTIONS
            ),
            60,
        )
        closed: list[float] = []

        def ended(peer: Any) -> None:
            if peer.stream.engine is not None:
                closed.append(time.perf_counter())

        server.on_ended = ended
        for keychain in [mine] if own_server else keychains:
            cms.set(keychain, states.REVOKED)
        started = time.perf_counter()
        await until(lambda: len(closed) >= CONNECTIONS, 30)
        return [when - started for when in closed[:CONNECTIONS]]


async def connects(folder: Path, cms: Any, ca: Any, states: Any) -> tuple[float, float]:
    """Median seconds of opening a client and reading a PV over TLS, with status and without."""
    from appliance.certmon.endpoints import open_client, open_server
    from tests.helpers.live import client_config, keychain_file, number, server_config

    mine, other = (
        ca.keychain("softioc", "server", status=True),
        ca.keychain("operator", "client", status=True),
    )
    cms.set(mine, states.VALID)
    cms.set(other, states.VALID)
    server_file, client_file = keychain_file(folder, "s", mine), keychain_file(folder, "c", other)
    medians = []
    for options in ("", "no_revocation_check"):
        async with open_server(
            server_config(server_file, options),
            prepare=lambda server: server.add_pv("pv", number()),
            status_client=cms.client_config(),
        ) as server:
            times = []
            for _ in range(CONNECTS):
                started = time.perf_counter()
                config = client_config(server, cms.udp_port, keychain=client_file, tls_options=options)
                async with open_client(config, beacons=False) as context:
                    await context.get("pv")
                    assert context.channel("pv").peer.is_tls
                    times.append(time.perf_counter() - started)
            medians.append(statistics.median(times))
    return medians[0], medians[1]

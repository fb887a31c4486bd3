"""The servers under test, each a process of its own: ``python -m bench.servers ours|p4p MODE TCP UDP [TLS KEYCHAIN]``.

MODE is ``static`` (1000 scalars and an 8 MB array), ``mailbox`` (the same, for writing), ``many`` (10 000 scalars), ``posting`` (1000 PVs updated without pause),
``fanout`` (one PV updated without pause), ``post:COUNT`` (COUNT PVs updated without pause) or ``arrays`` (the 8 MB array
updated 200 times per second, which is more than a client can take).
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

NAMES = [f"bench:{number}" for number in range(1000)]
MANY = [f"bench:{number}" for number in range(10_000)]
LARGE_NAME = "bench:large"
LARGE = 1_000_000
ARRAY_PERIOD = 0.005


class Running(NamedTuple):
    tcp: int
    udp: int
    tls: int
    pid: int


def posted(mode: str) -> int:
    """How many of the scalars are updated without pause."""
    if mode.startswith("post:"):
        return int(mode.removeprefix("post:"))
    return {"posting": len(NAMES), "fanout": 1}.get(mode, 0)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for sock in sockets:
        sock.bind(("127.0.0.1", 0))
    ports = [int(sock.getsockname()[1]) for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


@contextlib.contextmanager
def running(which: str, mode: str, keychain: str = "") -> Iterator[Running]:
    tcp, udp, tls = free_ports(3)
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.servers", which, mode, str(tcp), str(udp), str(tls), keychain],
        stdout=subprocess.PIPE,
        stderr=None if which == "ours" else subprocess.DEVNULL,  # a line for each client that leaves
        text=True,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if line.strip() != "ready":
            raise RuntimeError(f"the {which} server did not start: {line!r}")
        yield Running(tcp, udp, tls, process.pid)
    finally:
        process.terminate()
        process.wait()


def ours(mode: str, tcp: int, udp: int, tls: int, keychain: str) -> None:
    import asyncio

    import numpy as np
    import uvloop

    from appliance.config.pva import resolve_server
    from appliance.pvdata.nt import NTScalar, NTScalarArray
    from appliance.pvdata.types import FLOAT64
    from appliance.pvdata.value import Value
    from appliance.server import Server, SharedPV

    settings = {
        "server_port": tcp,
        "tls_port": tls,
        "broadcast_port": udp,
        "intf_addr_list": "127.0.0.1",
        "auto_beacon_addr_list": False,
    }
    context = None
    if keychain:
        from pathlib import Path

        from appliance.certs.keychain import load_keychain
        from appliance.tls.context import server_context

        context = server_context(load_keychain(Path(keychain).read_bytes()), require_client_cert=False)

    async def main() -> None:
        server = Server(resolve_server(settings, environ={}).config, tls=context)
        kind = NTScalar(FLOAT64)
        names = MANY if mode == "many" else NAMES
        make = SharedPV.mailbox if mode == "mailbox" else SharedPV
        pvs = [make(Value(kind, {"value": 1.5})) for _ in names]
        for name, pv in zip(names, pvs, strict=True):
            server.add_pv(name, pv)
        array = np.arange(LARGE, dtype=float)
        large = SharedPV(Value(NTScalarArray(FLOAT64), {"value": array}))
        server.add_pv(LARGE_NAME, large)
        async with server:
            print("ready", flush=True)
            number = 0.0
            # p4p's poster is a thread of its own, which keeps the queues full; ours shares its thread with the
            # event loop, so it fills the four places of a queue before the loop gets its turn.
            chosen = pvs[: posted(mode)] * (4 if mode == "fanout" else 1)
            while chosen:
                number += 1.0
                for pv in chosen:
                    pv.post(number)
                await asyncio.sleep(0)
            while mode == "arrays":
                large.post(array)
                await asyncio.sleep(ARRAY_PERIOD)
            await server.wait_closed()

    uvloop.run(main())


def p4p(mode: str, tcp: int, udp: int) -> None:
    import time

    import numpy as np
    from p4p.nt import NTScalar
    from p4p.server import Server
    from p4p.server.thread import SharedPV

    names = MANY if mode == "many" else NAMES
    pvs = [SharedPV(nt=NTScalar("d"), initial=1.5) for _ in names]
    provider = dict(zip(names, pvs, strict=True))
    array = np.arange(LARGE, dtype=float)
    large = provider[LARGE_NAME] = SharedPV(nt=NTScalar("ad"), initial=array)
    settings = {
        "EPICS_PVAS_SERVER_PORT": str(tcp),
        "EPICS_PVAS_BROADCAST_PORT": str(udp),
        "EPICS_PVAS_INTF_ADDR_LIST": "127.0.0.1",
        "EPICS_PVAS_AUTO_BEACON_ADDR_LIST": "NO",
    }
    with Server(providers=[provider], conf=settings, useenv=False):
        print("ready", flush=True)
        number = 0.0
        chosen = pvs[: posted(mode)]
        while chosen:
            number += 1.0
            for pv in chosen:
                pv.post(number)
        while mode == "arrays":
            large.post(array)
            time.sleep(ARRAY_PERIOD)
        while True:
            time.sleep(60)


if __name__ == "__main__":
    which, mode, tcp, udp, tls, keychain = sys.argv[1:7]
    if which == "ours":
        ours(mode, int(tcp), int(udp), int(tls), keychain)
    else:
        p4p(mode, int(tcp), int(udp))

"""The clients under test: ``python -m bench.clients ours|p4p parallel|sequential UDP`` prints GETs per second."""

from __future__ import annotations

import sys
import time

from bench.servers import NAMES

SECONDS = 1.5


def ours(mode: str, udp: int) -> float:
    import uvloop

    from appliance.client import Context
    from appliance.config.pva import resolve_client

    settings = {"addr_list": "127.0.0.1", "auto_addr_list": False, "broadcast_port": udp}

    async def main() -> float:
        async with Context(resolve_client(settings, environ={}).config, beacons=False) as context:
            await context.get(NAMES, timeout=20)
            done = 0
            start = time.perf_counter()
            while (elapsed := time.perf_counter() - start) < SECONDS:
                if mode == "parallel":
                    await context.get(NAMES)
                    done += len(NAMES)
                else:
                    await context.get(NAMES[0])
                    done += 1
            return done / elapsed

    return float(uvloop.run(main()))


def p4p(mode: str, udp: int) -> float:
    from p4p.client.thread import Context

    settings = {
        "EPICS_PVA_ADDR_LIST": "127.0.0.1",
        "EPICS_PVA_AUTO_ADDR_LIST": "NO",
        "EPICS_PVA_BROADCAST_PORT": str(udp),
    }
    with Context("pva", conf=settings, useenv=False) as context:
        context.get(NAMES, timeout=20)
        done = 0
        start = time.perf_counter()
        while (elapsed := time.perf_counter() - start) < SECONDS:
            if mode == "parallel":
                context.get(NAMES)
                done += len(NAMES)
            else:
                context.get(NAMES[0])
                done += 1
        return done / elapsed


if __name__ == "__main__":
    which, mode, udp = sys.argv[1:4]
    print((ours if which == "ours" else p4p)(mode, int(udp)))

"""Print the updates of PVs as they come, until Ctrl-C.

    python examples/watch.py demo:temperature demo:setpoint

The program may start before the server. A server that stops and comes back is followed.
"""

import argparse
import asyncio
import contextlib
import sys
from datetime import UTC, datetime

from appliance import ApplianceError, Context, Value
from appliance.client import Connected, Disconnected


def when(pv: Value) -> str:
    """Return the time of an update; the server, or the IOC's record, has set it."""
    seconds = pv["timeStamp.secondsPastEpoch"] + pv["timeStamp.nanoseconds"] * 1e-9
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


async def watch(ctx: Context, name: str) -> None:
    """Print the updates of one PV."""
    # With notify, the monitor also tells when the server comes and goes.
    async with ctx.monitor(name, notify=True) as updates:
        async for update in updates:
            if isinstance(update, Connected):
                print(f"{name} is connected to {update.server}", flush=True)
            elif isinstance(update, Disconnected):
                print(f"{name} is disconnected: {update.why}", flush=True)
            else:
                value = update["value.index"] if "value.index" in update else update["value"]
                print(when(update), name, value, flush=True)


async def main(names: list[str]) -> None:
    """Watch all PVs at the same time, over one connection to each server."""
    async with Context() as ctx, asyncio.TaskGroup() as tasks:
        for name in names:
            tasks.create_task(watch(ctx, name))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Print the updates of PVs until Ctrl-C.")
    parser.add_argument("pv", nargs="+", help="name of a PV")
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C ends the program
        try:
            asyncio.run(main(parser.parse_args().pv))
        except* ApplianceError as errors:  # for instance: access is denied
            sys.exit("\n".join(map(str, errors.exceptions)))

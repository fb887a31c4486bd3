"""Write the updates of PVs to a CSV file, until Ctrl-C.

    python examples/archive.py archive.csv demo:temperature demo:setpoint

Each update is one line: time (UTC), name, value, alarm severity. A file that exists is continued.
"""

import argparse
import asyncio
import contextlib
import csv
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from appliance import ApplianceError, Context

# Up to 1000 updates wait here, and with "pipeline" the server sends more only when there is room: a disk that
# is slow for a moment costs no update.
REQUEST = "field(value,alarm,timeStamp)record[queueSize=1000,pipeline=true]"


async def archive(ctx: Context, name: str, write: Callable[[list[object]], object]) -> None:
    """Write the updates of one PV."""
    async with ctx.monitor(name, REQUEST) as updates:
        async for pv in updates:
            seconds = pv["timeStamp.secondsPastEpoch"] + pv["timeStamp.nanoseconds"] * 1e-9
            moment = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")
            value = pv["value.index"] if "value.index" in pv else pv["value"]
            write([moment, name, value, pv["alarm.severity"]])


async def main(path: Path, names: list[str]) -> None:
    """Archive all PVs into one file."""
    is_new = not path.exists()
    with path.open("a", newline="", buffering=1) as file:  # each line is in the file at once
        writer = csv.writer(file)
        if is_new:
            writer.writerow(["time", "pv", "value", "severity"])
        async with Context() as ctx, asyncio.TaskGroup() as tasks:
            for name in names:
                tasks.create_task(archive(ctx, name, writer.writerow))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the updates of PVs to a CSV file until Ctrl-C.")
    parser.add_argument("file", type=Path, help="CSV file; it is made if it is not there")
    parser.add_argument("pv", nargs="+", help="name of a PV")
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C ends the program
        try:
            asyncio.run(main(arguments.file, arguments.pv))
        except* ApplianceError as errors:  # for instance: access is denied
            sys.exit("\n".join(map(str, errors.exceptions)))

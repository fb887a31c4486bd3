"""Serve a table (NTTable): one row for each magnet, with new readings every second, until Ctrl-C.

    python examples/table.py --prefix demo:

Look at it with ``pvxget demo:magnets``, or in a table of Phoebus.
"""

import argparse
import asyncio
import contextlib
import random
import sys
import time

from appliance import ApplianceError, Server, SharedPV
from appliance.pvdata import FLOAT64, INT32, STRING
from appliance.pvdata.nt import NTTable, now_to_time

MAGNETS = ["Q1", "Q2", "D1", "D2"]


async def main(prefix: str, period: float) -> None:
    """Serve the table, and change it every ``period`` seconds."""
    columns = NTTable()
    columns.add_column(STRING, "name", "Magnet")
    columns.add_column(FLOAT64, "current", "Current [A]")
    columns.add_column(INT32, "readings", "Readings")
    table = columns.create()  # a value whose labels are set
    table.assign({"value": {"name": MAGNETS, "current": [0.0] * 4, "readings": [0] * 4}})
    pv = SharedPV(table)  # read only; SharedPV.mailbox(table) takes what clients write

    server = Server()
    server.add_pv(f"{prefix}magnets", pv)
    async with server:
        print(f"serving {prefix}magnets", flush=True)
        reading = 0
        while True:
            reading += 1
            currents = [round(random.gauss(100, 0.5), 3) for _ in MAGNETS]
            # Only these columns are sent to the clients; names and labels have not changed.
            changed = {"current": currents, "readings": [reading] * len(MAGNETS)}
            pv.post({"value": changed, "timeStamp": now_to_time(time.time())})
            await asyncio.sleep(period)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve a table until Ctrl-C.")
    parser.add_argument("--prefix", default="demo:", help="begin of the PV's name (default: demo:)")
    parser.add_argument("--period", type=float, default=1.0, help="seconds between readings (default: 1)")
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C ends the program
        try:
            asyncio.run(main(arguments.prefix, arguments.period))
        except ApplianceError as error:  # for instance: the keychain cannot be read
            sys.exit(str(error))

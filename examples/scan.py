"""Scan with bluesky: step a set point, and read a temperature at each step. The devices are ophyd-async's.

    python -m appliance.p4p examples/scan.py demo:setpoint demo:temperature --from 20 --to 30 --steps 5

ophyd-async uses p4p, which has no TLS. Started as above, it uses ``appliance.p4p`` in its place, without any change.
It needs bluesky and ophyd-async.
"""

import argparse
from typing import Any

from bluesky import RunEngine
from bluesky.plans import scan
from bluesky.utils import RunEngineInterrupted
from ophyd_async.core import StandardReadable, StandardReadableFormat, init_devices
from ophyd_async.epics.core import epics_signal_r, epics_signal_rw


class Heater(StandardReadable):
    """A set point, which can be moved, and a temperature, which is read."""

    def __init__(self, setpoint: str, temperature: str, name: str = "") -> None:
        with self.add_children_as_readables(StandardReadableFormat.HINTED_SIGNAL):
            self.setpoint = epics_signal_rw(float, f"pva://{setpoint}")
            self.temperature = epics_signal_r(float, f"pva://{temperature}")
        super().__init__(name)


def show(name: str, document: Any) -> None:
    """Print what bluesky tells about the scan."""
    if name == "event":
        values = " ".join(f"{key}={value:.3f}" for key, value in document["data"].items())
        print(f"step {document['seq_num']}: {values}", flush=True)
    elif name == "stop":
        print(f"the scan has ended: {document['exit_status']}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Scan with bluesky.")
    parser.add_argument("setpoint", help="name of the PV to step")
    parser.add_argument("temperature", help="name of the PV to read")
    parser.add_argument("--from", type=float, default=20.0, dest="first", help="first value (default: 20)")
    parser.add_argument("--to", type=float, default=30.0, dest="last", help="last value (default: 30)")
    parser.add_argument("--steps", type=int, default=5, help="number of values (default: 5)")
    arguments = parser.parse_args()
    run = RunEngine()
    with init_devices():
        heater = Heater(arguments.setpoint, arguments.temperature, name="heater")
    try:
        run(scan([heater], heater.setpoint, arguments.first, arguments.last, arguments.steps), show)
    except RunEngineInterrupted:  # Ctrl-C pauses a scan at its next step; this one then ends
        run.stop()

"""A soft IOC in Python: a heater with a set point, an on/off switch, and a temperature that follows them.

    python examples/soft_ioc.py --prefix demo:

It runs until Ctrl-C. The PVs are ``demo:temperature``, ``demo:setpoint`` and ``demo:mode``.
"""

import argparse
import contextlib
import time

from appliance.p4p.nt import NTEnum, NTScalar
from appliance.p4p.server import Server, ServerOperation
from appliance.p4p.server.thread import SharedPV

CELSIUS = {"units": "°C", "limitLow": 0.0, "limitHigh": 100.0}

temperature = SharedPV(nt=NTScalar("d", display=True), initial={"value": 20.0, "display": CELSIUS})
setpoint = SharedPV(nt=NTScalar("d", display=True, control=True), initial={"value": 20.0, "display": CELSIUS})
mode = SharedPV(nt=NTEnum(), initial={"index": 0, "choices": ["OFF", "ON"]})


@setpoint.put
def put_setpoint(pv: SharedPV, op: ServerOperation) -> None:
    """Take what a client writes. Without such a function a PV is read only."""
    value = op.value()
    if 0 <= value <= 100:
        pv.post(value, timestamp=time.time())
        op.done()
    else:
        op.done(error="the set point must be between 0 and 100")


@mode.put
def put_mode(pv: SharedPV, op: ServerOperation) -> None:
    """Take what a client writes, and say who it was."""
    print(f"{op.account() or 'somebody'} at {op.peer()} sets the mode to {op.value()}", flush=True)
    pv.post(op.value(), timestamp=time.time())
    op.done()


def simulate() -> None:
    """Move the temperature towards its goal."""
    goal = setpoint.current() if mode.current() == 1 else 20.0
    now = temperature.current()
    temperature.post(now + (goal - now) * 0.1, timestamp=time.time())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A soft IOC in Python, until Ctrl-C.")
    parser.add_argument("--prefix", default="demo:", help="begin of the PVs' names (default: demo:)")
    parser.add_argument("--period", type=float, default=0.5, help="seconds between updates (default: 0.5)")
    arguments = parser.parse_args()
    pvs = {"temperature": temperature, "setpoint": setpoint, "mode": mode}
    names = {arguments.prefix + name: pv for name, pv in pvs.items()}
    with Server(providers=[names]), contextlib.suppress(KeyboardInterrupt):  # Ctrl-C ends the program
        print("serving", *names, flush=True)
        while True:
            time.sleep(arguments.period)
            simulate()

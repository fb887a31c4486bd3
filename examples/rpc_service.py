"""A service that is called with arguments and answers with a value or a table (RPC).

    python examples/rpc_service.py --prefix demo:

It runs until Ctrl-C. Call it with ``pvxcall demo:add lhs=1 rhs=2`` or ``pvxcall demo:orbit points=5``.
"""

import argparse
import contextlib
import math
from typing import Any

from appliance.p4p.nt import NTScalar, NTTable
from appliance.p4p.rpc import RemoteError, quickRPCServer, rpc


class Service:
    """Each method is one PV. Its parameters are the arguments of the call; they arrive as numbers or as text."""

    @rpc(NTScalar("d"))
    def add(self, lhs: Any, rhs: Any) -> float:
        """Add two numbers."""
        try:
            return float(lhs) + float(rhs)
        except ValueError as error:
            # A RemoteError tells the caller what is wrong. Any other error is logged here, and its text is not sent.
            raise RemoteError(str(error)) from None

    @rpc(NTTable([("s", "d"), ("x", "d")]))
    def orbit(self, points: Any = 10) -> list[dict[str, float]]:
        """Return a table: a list of its rows."""
        count = int(points)
        if not 1 <= count <= 1000:
            raise RemoteError("points must be between 1 and 1000")
        return [{"s": float(s), "x": math.sin(s)} for s in range(count)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="An RPC service, until Ctrl-C.")
    parser.add_argument("--prefix", default="demo:", help="begin of the PVs' names (default: demo:)")
    prefix = parser.parse_args().prefix
    print(f"serving {prefix}add {prefix}orbit", flush=True)
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C ends the program
        quickRPCServer(provider="Service", prefix=prefix, target=Service())

"""Write a PV, and print what it was before and what it is now.

    python examples/write.py demo:setpoint 21.5
    python examples/write.py demo:mode OFF
    python examples/write.py demo:waveform 1 2 3

Values are given as text. They become what the PV holds: a number, text, or a choice of an enumeration.
"""

import argparse
import asyncio
import contextlib
import sys
from typing import Any

from appliance import ApplianceError, Context, Value


def text(pv: Value) -> str:
    """Return the value of a PV as text; an enumeration has an index and the names of its choices."""
    if "value.choices" in pv:
        return str(pv["value.choices"][pv["value.index"]])
    return str(pv["value"])


async def write(name: str, value: Any) -> None:
    """Read, write, read again."""
    async with Context() as ctx:
        before = await ctx.get(name)
        # Besides a value, put takes a dictionary of fields: {"value": 3, "alarm.severity": 1}.
        await ctx.put(name, value)
        after = await ctx.get(name)
    print(f"{name}: {text(before)} -> {text(after)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a PV.")
    parser.add_argument("pv", help="name of the PV")
    parser.add_argument("value", nargs="+", help="the value; several values for an array")
    arguments = parser.parse_args()
    new = arguments.value[0] if len(arguments.value) == 1 else arguments.value
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C ends the program
        try:
            asyncio.run(write(arguments.pv, new))
        except ApplianceError as error:  # for instance: the server refuses the value, and says why
            sys.exit(str(error))

"""Read PVs once, and print their values.

    python examples/read.py demo:temperature demo:mode

The address of the server and the keychain come from the environment (``EPICS_PVA_ADDR_LIST``,
``EPICS_PVA_TLS_KEYCHAIN``), as for all EPICS tools.
"""

import argparse
import asyncio
import contextlib
import sys

from appliance import ApplianceError, Context, Value


def text(pv: Value) -> str:
    """Return the value of a PV as text; an enumeration has an index and the names of its choices."""
    if "value.choices" in pv:
        choices, index = pv["value.choices"], pv["value.index"]
        return str(choices[index]) if 0 <= index < len(choices) else str(index)
    units = f" {pv['display.units']}" if "display.units" in pv else ""
    return f"{pv['value']}{units}"


async def read(names: list[str], timeout: float) -> int:
    """Print each PV. Return the exit status: 1 if one of them cannot be read."""
    async with Context() as ctx:
        # One call reads all of them at the same time. Errors stand in the places of the values.
        answers = await ctx.get(names, timeout=timeout, return_exceptions=True)
    for name, answer in zip(names, answers, strict=True):
        if isinstance(answer, ApplianceError):
            print(answer, file=sys.stderr)
        else:
            print(name, text(answer))
    return int(any(isinstance(answer, ApplianceError) for answer in answers))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Read PVs once, and print their values.")
    parser.add_argument("pv", nargs="+", help="name of a PV")
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds to wait (default: 5)")
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C ends the program
        try:
            sys.exit(asyncio.run(read(arguments.pv, arguments.timeout)))
        except ApplianceError as error:  # for instance: the keychain cannot be read
            sys.exit(str(error))

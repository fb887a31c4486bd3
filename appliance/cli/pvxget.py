"""``pvxget``: read PVs."""

from __future__ import annotations

import sys

from appliance.cli.common import (
    FAILED,
    OK,
    Output,
    Parser,
    add_common,
    add_format,
    add_json,
    all_of,
    array_limit,
    complain,
    effective_config,
    open_context,
    run_tool,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from appliance.client import Context

__all__ = ["main", "parser"]

_EPILOG = """\
examples:
  pvxget test:calcExample
      every field that the server set, as PVXS prints it
  pvxget -F nt test:calcExample test:enumExample
      one short line for each: time, value or choice, units, alarm
  pvxget -F tree -r 'field(value,alarm)' test:structExample
      the fields that are asked for, nested
  pvxget --json -w 1 test:calcExample
      for scripts
"""


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = Parser(prog="pvxget", description="Read PVs and print their values.", epilog=_EPILOG)
    made.add_argument("names", metavar="pvname", nargs="+", help="PV to read.")
    made.add_argument(
        "-r", dest="request", metavar="REQ", default="", help="pvRequest condition, e.g. field(value)."
    )
    add_format(made)
    add_json(made)
    add_common(made)
    return made


async def _work(options: argparse.Namespace) -> int:
    fmt, limit = array_limit(options)
    out = Output(json=options.json)
    effective = effective_config(options)
    timeout = options.timeout
    failed = late = 0
    good: list[str] = []

    from appliance.cli.names import remember
    from appliance.errors import ApplianceError, OperationTimeoutError

    async def one(context: Context, name: str) -> None:
        nonlocal failed, late
        try:
            value = await context.get(name, options.request, timeout=timeout)
        except ApplianceError as error:
            failed += 1
            late += isinstance(error, OperationTimeoutError)
            out.failure(name, error)
        else:
            good.append(name)
            out.value(name, value, options.request, fmt, limit)

    async with open_context(effective) as context:
        if len(options.names) == 1:
            await one(context, options.names[0])
        else:
            await all_of(one(context, name) for name in options.names)
    remember(good)
    if late:
        complain(f"Timeout with {late} outstanding")
    return FAILED if failed else OK


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    return run_tool(parser(), argv, _work)


if __name__ == "__main__":
    sys.exit(main())

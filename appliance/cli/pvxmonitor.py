"""``pvxmonitor``: print PVs as they change."""

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
    keep_running,
    open_context,
    run_tool,
    selected,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from typing import Any

    from appliance.client import Context
    from appliance.pvdata.value import Value

__all__ = ["main", "parser"]

_EPILOG = """\
examples:
  pvxmonitor test:calcExample
      every update: the fields that changed
  pvxmonitor -F nt test:calcExample test:enumExample
      every update as one short line
  pvxmonitor -r 'field(value)record[queueSize=100,pipeline=true]' test:fast
      a longer queue, with flow control
"""


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = Parser(
        prog="pvxmonitor",
        description="Subscribe to PVs and print every update, until interrupted.",
        epilog=_EPILOG,
    )
    made.add_argument("names", metavar="pvname", nargs="+", help="PV to subscribe to.")
    made.add_argument(
        "-r",
        dest="request",
        metavar="REQ",
        default="",
        help="pvRequest condition, e.g. field(value)record[queueSize=100,pipeline=true].",
    )
    add_format(made)
    add_json(made)
    add_common(made, timeout="Accepted for compatibility: a subscription waits for ever.")
    return made


async def _work(options: argparse.Namespace) -> int:
    if options.timeout != parser().get_default("timeout"):
        complain("Warning: -w has no effect: a subscription waits for ever; Ctrl-C ends it")
    fmt, limit = array_limit(options)
    out = Output(json=options.json)
    effective = effective_config(options)

    async with open_context(effective) as context:
        keep_running()
        results = await all_of(_follow(context, name, options, out, fmt, limit) for name in options.names)
    return FAILED if False in results else OK


async def _follow(
    context: Context, name: str, options: argparse.Namespace, out: Output, fmt: str, limit: int
) -> bool:
    from appliance.cli.names import remember
    from appliance.client.monitor import Connected, Disconnected
    from appliance.errors import ApplianceError

    item: Any
    try:
        async with context.monitor(name, options.request, notify=True) as subscription:
            async for item in subscription:
                if isinstance(item, Connected):
                    remember([name])
                    _tell(out, name, f"Connected to {item.server}", event="connected", server=item.server)
                elif isinstance(item, Disconnected):
                    _tell(out, name, "Disconnected", event="disconnected", why=item.why)
                elif options.json:
                    _json_update(out, name, item, options.request)
                else:
                    out.value(name, item, options.request, fmt, limit)
    except ApplianceError as error:
        out.failure(name, error)
        return False
    if options.verbose:
        complain(f"{name} Finished")
    if options.json:
        out.object(name=name, event="finished")
    return True


def _tell(out: Output, name: str, text: str, **fields: str) -> None:
    from datetime import datetime

    complain(f"{datetime.now():%Y-%m-%d %H:%M:%S.%f}000 {name} {text}")  # noqa: DTZ005 - local time, as pvxs shows it
    if out.json:
        out.object(name=name, **fields)


def _json_update(out: Output, name: str, value: Value, request: str) -> None:
    from appliance.pvdata.bitset import iter_bits

    if value.changed & 1:
        changed = value.keys()
    else:
        changed = [value.type.paths[number] for number in iter_bits(value.changed)]
    out.object(name=name, event="update", value=selected(value, request), changed=changed)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    return run_tool(parser(), argv, _work)


if __name__ == "__main__":
    sys.exit(main())

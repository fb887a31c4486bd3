"""``pvxcall``: call a PV (RPC)."""

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

    from appliance.pvdata.value import Value

__all__ = ["main", "parser"]

_EPILOG = """\
examples:
  pvxcall test:adder a=1 b=2.5
      the answer of the PV to these arguments
  pvxcall --json test:adder a=1 b=2.5
      for scripts
"""


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = Parser(
        prog="pvxcall", description="Call a PV with arguments (RPC) and print the answer.", epilog=_EPILOG
    )
    made.add_argument("name", metavar="pvname", help="PV to call.")
    made.add_argument("arguments", metavar="name=value", nargs="*", help="Argument; it is sent as text.")
    add_format(made, default="tree")
    add_json(made)
    add_common(made)
    return made


def arguments_of(items: Sequence[str]) -> dict[str, str]:
    """Read words of the form ``name=value``.

    Raises:
        ConfigurationError: A word has another form, or one name is given twice.
    """
    from appliance.errors import ConfigurationError

    arguments: dict[str, str] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise ConfigurationError(f'expected <fld>=<value> not "{item}"')
        if name in arguments:
            raise ConfigurationError(f"duplicate argument name {name}")
        arguments[name] = value
    return arguments


def _uri(path: str, query: dict[str, str]) -> Value:
    """Return the NTURI that pvxs's tool sends: no scheme, no authority, all arguments as text."""
    from appliance.pvdata.nt import NTURI
    from appliance.pvdata.types import STRING
    from appliance.pvdata.value import Value

    return Value(NTURI([(name, STRING) for name in query]), {"path": path, "query": query})


async def _work(options: argparse.Namespace) -> int:
    from appliance.errors import ApplianceError, OperationTimeoutError

    fmt, limit = array_limit(options, "tree")
    out = Output(json=options.json)
    query = arguments_of(options.arguments)
    effective = effective_config(options)
    async with open_context(effective) as context:
        try:
            value = await context.rpc(options.name, _uri(options.name, query), timeout=options.timeout)
        except ApplianceError as error:
            out.failure(options.name, error)
            if isinstance(error, OperationTimeoutError):
                complain("Timeout")
            return FAILED
    if options.json:
        from appliance.pvdata.jsonio import to_plain

        out.object(name=options.name, value=None if value is None else to_plain(value))
    elif value is not None and fmt == "nt":
        from appliance.cli.common import shown

        out.write(shown(options.name, value, "", fmt, limit))
    elif value is not None:
        from appliance.pvdata.render import render

        out.write(render(value, fmt, limit))
    return OK


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    return run_tool(parser(), argv, _work)


if __name__ == "__main__":
    sys.exit(main())

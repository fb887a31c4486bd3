"""``pvxput``: write a PV."""

from __future__ import annotations

import sys

from appliance.cli.common import (
    FAILED,
    OK,
    Output,
    Parser,
    add_common,
    add_json,
    complain,
    effective_config,
    indented,
    open_context,
    run_tool,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from appliance.pvdata.value import Value

__all__ = ["main", "parser"]

_EPILOG = """\
A single value without "=" goes to the field "value"; a single JSON object goes
to the whole structure.
A value that begins with {, [ or " is JSON; others are text that must fit the
field.

examples:
  pvxput test:spec 12.5
  pvxput test:enumExample one
      a choice by its text or its number
  pvxput test:wave '[1,2,3]'
      an array
  pvxput test:structExample value=4 alarm.message=moved
      several fields at once
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = Parser(prog="pvxput", description="Write a PV.", epilog=_EPILOG)
    made.add_argument("name", metavar="pvname", help="PV to write.")
    made.add_argument("values", metavar="value", nargs="+", help="<value>, <json> or <field>=<value> ...")
    made.add_argument(
        "-r", dest="request", metavar="REQ", default="", help="pvRequest condition, e.g. record[block=true]."
    )
    add_json(made)
    add_common(made)
    return made


def assignments(values: Sequence[str]) -> dict[str, str]:
    """Sort the command line's values into fields; the empty name stands for the whole structure.

    Raises ConfigurationError for what is no assignment, or one field given twice.
    """
    from appliance.errors import ConfigurationError

    if len(values) == 1 and (values[0].startswith("{") or "=" not in values[0]):
        return {"" if values[0].startswith("{") else "value": values[0]}
    fields: dict[str, str] = {}
    for item in values:
        field, equals, value = item.partition("=")
        if not equals or not field:
            raise ConfigurationError(f'expected <fld>=<value> not "{item}"')
        if field in fields:
            raise ConfigurationError(f"field {field} is given twice")
        fields[field] = value
    return fields


def builder(fields: dict[str, str], show: Callable[[Value], None] | None) -> Callable[[Value], Value]:
    """Make the function that turns the present value into the one to write.

    It raises PVDataError naming the field, the text and the reason.
    """
    from appliance.errors import PVDataError

    def build(present: Value) -> Value:
        for field in sorted(fields):
            text = fields[field]
            try:
                item = _json(text) if text[:1] in ("{", "[", '"') else text
                if field:
                    present[field] = item
                else:
                    present.assign(item)
            except PVDataError as error:
                why = str(error).removeprefix(f"{field}: ")
                raise PVDataError(
                    f'Unable to assign {field or "the structure"} from "{text}" : {why}'
                ) from None
        if show is not None:
            show(present)
        return present

    return build


def _json(text: str) -> object:
    from json import loads

    from appliance.errors import PVDataError

    try:
        value: object = loads(text)
    except (ValueError, RecursionError) as error:
        raise PVDataError(f"not JSON: {error}") from None
    return value


def _show(value: Value) -> None:
    from appliance.pvdata.render import render

    print(f"Writing fields:\n{indented(render(value, limit=0))}", flush=True)


async def _work(options: argparse.Namespace) -> int:
    from appliance.errors import ApplianceError, ConfigurationError, OperationTimeoutError

    out = Output(json=options.json)
    try:
        fields = assignments(options.values)
    except ConfigurationError as error:
        complain(f"Error: {error}")
        return FAILED
    effective = effective_config(options)
    build = builder(fields, _show if options.verbose and not options.json else None)
    async with open_context(effective) as context:
        try:
            await context.put(options.name, build, options.request, get=True, timeout=options.timeout)
        except ApplianceError as error:
            out.failure(options.name, error)
            if isinstance(error, OperationTimeoutError):
                complain("Timeout")
            return FAILED
    from appliance.cli.names import remember

    remember([options.name])
    if options.json:
        out.object(name=options.name, written=sorted(fields))
    return OK


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    return run_tool(parser(), argv, _work)


if __name__ == "__main__":
    sys.exit(main())

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
field. Text that looks like one of these needs JSON's quotes.

examples:
  pvxput test:spec 12.5
  pvxput test:enumExample one
      a choice by its text or its number
  pvxput test:wave '[1,2,3]'
      an array
  pvxput test:text '"a=b"'; pvxput rec.INP '"{const:7}"'
      text that looks like an assignment or like JSON
  pvxput test:structExample value=4 alarm.message=moved
      several fields at once
"""
_NEGATIVE = r"-(?:0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[iI][nN][fF](?:inity)?|[nN][aA][nN])"


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
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
    """Sort the command line's values by fields; the empty name means the whole structure.

    Raises:
        ConfigurationError: A word is not an assignment, or one field is given twice.
    """
    from appliance.errors import ConfigurationError

    if len(values) == 1 and (values[0][:1] in ("{", "[", '"') or "=" not in values[0]):
        return {"" if values[0].startswith("{") else "value": values[0]}
    fields: dict[str, str] = {}
    for item in values:
        field, equals, value = item.partition("=")
        if not equals or not field:
            hint = (
                "" if any("=" in each for each in values) else f"; an array is one value: {_as_array(values)}"
            )
            raise ConfigurationError(f'expected <fld>=<value> not "{item}"{hint}')
        if field in fields:
            raise ConfigurationError(f"field {field} is given twice")
        fields[field] = value
    return fields


def _as_array(values: Sequence[str]) -> str:
    """Return the words of a command line as one array for a shell."""
    import re
    from json import dumps
    from shlex import quote

    is_number = all(re.fullmatch(r"-?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", value) for value in values)
    text = ",".join(values if is_number else map(dumps, values))
    return quote(f"[{text}]")


def _protected(argv: Sequence[str]) -> list[str]:
    """Keep the parser from reading a negative number as an option: a blank in front makes it a value."""
    import re

    return [f" {word}" if re.fullmatch(_NEGATIVE, word) else word for word in argv]


def _given(words: Sequence[str]) -> list[str]:
    """Undo :func:`_protected`."""
    import re

    return [word[1:] if re.fullmatch(f" {_NEGATIVE}", word) else word for word in words]


def builder(fields: dict[str, str], show: Callable[[Value], None] | None) -> Callable[[Value], Value]:
    """Return the function that turns the present value into the one to write.

    It raises PVDataError with the field, the text and the reason.
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
                    f'Unable to assign {field or "the structure"} from "{text}" : {why}{_hint(fields, field, present)}'
                ) from None
        if show is not None:
            show(present)
        return present

    return build


def _hint(fields: dict[str, str], field: str, present: Value) -> str:
    """Return how to write, as text, what was read as JSON, or as a field and its value."""
    from json import dumps
    from shlex import quote

    text = fields[field]
    if text[:1] in ("{", "[", '"'):
        if isinstance(present.get(field or "value"), str) or not _is_json(text):
            whole = dumps(text) if len(fields) == 1 and field in ("", "value") else f"{field}={dumps(text)}"
            return f"; to write exactly this text: {quote(whole)}"
        return ""
    is_field = field in present and not isinstance(present.get("value"), str)
    if len(fields) == 1 and field not in ("", "value") and not is_field:
        return f"; to write exactly this text: {quote(dumps(f'{field}={text}'))}"
    return ""


def _is_json(text: str) -> bool:
    try:
        _json(text)
    except ValueError:
        return False
    return True


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
        fields = assignments(_given(options.values))
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
    return run_tool(parser(), _protected(sys.argv[1:] if argv is None else argv), _work)


if __name__ == "__main__":
    sys.exit(main())

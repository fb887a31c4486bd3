"""The generated part of docs/reference/tools.md: ``python -m tests.helpers.tools_page`` writes it anew."""

from __future__ import annotations

import argparse
from pathlib import Path

from appliance.cli import main, pvxcall, pvxget, pvxinfo, pvxlist, pvxmonitor, pvxput

PAGE = Path(__file__).parents[2] / "docs/reference/tools.md"
BEGIN, END = "<!-- generated from the parsers: begin -->\n", "<!-- generated from the parsers: end -->\n"


def sections() -> str:
    """One section a command, as ``-h`` prints it on a wide terminal."""
    parsers = [module.parser() for module in (pvxget, pvxput, pvxmonitor, pvxinfo, pvxlist, pvxcall, main)]
    commands = next(
        action for action in parsers[-1]._actions if isinstance(action, argparse._SubParsersAction)
    )
    # A command without -h is another program's, with a page of its own.
    parsers += [made for made in commands.choices.values() if made.add_help]
    return "\n".join(f"## {made.prog}\n\n```text\n{_help(made)}```\n" for made in parsers)


def _help(made: argparse.ArgumentParser) -> str:
    kind = made.formatter_class
    made.formatter_class = lambda prog: kind(prog, max_help_position=26, width=100)  # type: ignore[assignment,return-value]
    return made.format_help()


def page(text: str) -> str:
    """``text`` with its generated part as it should be."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{sections()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))

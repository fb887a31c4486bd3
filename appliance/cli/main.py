"""``appliance``: the commands for the whole system, not for one PV."""

from __future__ import annotations

import argparse
import sys

from appliance.cli.common import Parser, add_completion, add_version, run_tool
from appliance.cli.doctor import command as doctor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main", "parser"]

_EPILOG = """\
examples:
  appliance quickstart
      the whole stack on this machine; `make quickstart` does the same
  appliance doctor test:calcExample
      why this PV cannot be reached, or who serves it
"""


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = Parser(prog="appliance", description="Secure PVAccess appliance.", epilog=_EPILOG)
    add_version(made)
    add_completion(made)
    commands = made.add_subparsers(metavar="command", required=True)
    # A module with add_arguments(parser) and an asynchronous work(options) is a command.
    check = commands.add_parser(
        "doctor",
        help="Tell what is wrong with a client's or a server's set-up, why, and what to do.",
        description="Check the set-up of this user's PVAccess clients, or of a server: configuration, keychain and its "
        "password, chain, dates, usage and status, the clock, ports, search destinations and name servers.",
        epilog=doctor.EPILOG,
    )
    commands.add_parser(
        "quickstart",
        help="Start the whole stack on this machine and walk the quick start's story.",
        add_help=False,
    )
    doctor.add_arguments(check)
    check.set_defaults(work=doctor.work)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return run_tool(parser(), argv, None)


if __name__ == "__main__":
    sys.exit(main())

"""``pvagw``: the gateway as a command and as a daemon."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from appliance.daemon.commandline import Parser, add_completion, add_daemon_options, add_version
from appliance.daemon.run import EXIT_FAILURE, EXIT_OK, Daemon, run
from appliance.errors import ApplianceError

if TYPE_CHECKING:
    from appliance.gateway.config import GatewayConfig, Sides

__all__ = ["main"]

_NAME: Final = "pvagw"
_EXAMPLES: Final = """\
examples:
  pvagw gateway.yml
      run until it is stopped
  pvagw --config /etc/spva/gateway/main.yml --check-config
      only check the file
"""
_log: Final = logging.getLogger(__name__)
_STATUS_S: Final = 2.0
"""Seconds between two updates of the service manager's status line."""


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=_NAME,
        usage="pvagw [options] FILE\n       pvagw [options] --config FILE",
        description="A gateway for Secure PVAccess.",
        epilog=_EXAMPLES,
    )
    add_version(parser)
    add_completion(parser)
    add_daemon_options(parser, config="the configuration, in YAML", verbose="log more")
    parser.add_argument("file", nargs="?", metavar="FILE", help="the same as --config FILE")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``pvagw``; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        if options.print_schema:
            return _print_schema()
        if (options.config is None) is (options.file is None):
            parser.error("name one configuration file: pvagw FILE, or --config FILE")
        return _with_config(options, options.config or options.file)
    except ApplianceError as error:
        sys.stderr.write(f"Error: {error}\n")
        return EXIT_FAILURE


def _print_schema() -> int:
    from appliance.config import loader
    from appliance.gateway.config import GatewayConfig

    sys.stdout.write(loader.schema_text(GatewayConfig))
    return EXIT_OK


def _with_config(options: argparse.Namespace, file: str) -> int:
    from appliance.config import loader
    from appliance.gateway.config import GatewayConfig, resolve_sides

    document = loader.load_document(file, GatewayConfig)
    sides = resolve_sides(document.value, document.section)
    if options.check_config:
        sys.stderr.write(f"{file}: good\n")
        return EXIT_OK
    if options.print_config:
        sys.stdout.write(loader.dump(document.value))
        for kind, group in (("clients", sides.clients), ("servers", sides.servers)):
            for name, effective in group.items():
                sys.stdout.write(f"\n# {kind}.{name}, after defaults\n")
                sys.stdout.writelines(f"#   {line}\n" for line in effective.explain().splitlines())
        return EXIT_OK
    return _run(document.value, sides, "DEBUG" if options.verbose else document.value.log_level)


def _run(config: GatewayConfig, sides: Sides, level: str) -> int:
    from appliance.daemon import logging as daemon_logging

    for fault in daemon_logging.configure(level=level, fmt="auto"):
        _log.warning("%s", fault)
    for group in (sides.clients, sides.servers):
        for name, effective in group.items():
            for warning in effective.warnings:
                _log.warning("%s: %s", name, warning)

    async def serve(daemon: Daemon) -> None:
        from appliance.gateway.gateway import Gateway

        gateway = Gateway(config, sides)
        try:
            await gateway.start()
            told = gateway.summary()
            daemon.ready(told)
            stopping = asyncio.ensure_future(daemon.wait())
            while not (await asyncio.wait([stopping], timeout=_STATUS_S))[0]:
                before, told = told, gateway.summary()
                if told != before:
                    daemon.status(told)
        finally:
            await gateway.stop()

    return run(serve, name=_NAME)


if __name__ == "__main__":
    sys.exit(main())

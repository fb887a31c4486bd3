"""``pvagw``: the gateway as a command and as a daemon."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from appliance.daemon.run import EXIT_FAILURE, EXIT_OK, Daemon, run
from appliance.errors import ApplianceError, ConfigurationError
from appliance.gateway.options import NAME, parser

if TYPE_CHECKING:
    import argparse

    from appliance.gateway.config import GatewayConfig, Sides
    from appliance.gateway.p4p_json import Loaded

__all__ = ["main"]

_log: Final = logging.getLogger(__name__)
_STATUS_S: Final = 2.0
"""Seconds between two updates of the service manager's status line."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``pvagw``; returns the exit status."""
    command_line = parser()
    options = command_line.parse_args(argv)
    try:
        if options.print_schema:
            return _print_schema()
        if (options.config is None) is (options.file is None):
            command_line.error("name one file: pvagw FILE, or --config FILE")
        file = options.config or options.file
        if options.example_config or options.example_systemd:
            return _write_example(options, file)
        return _with_config(options, file)
    except ApplianceError as error:
        sys.stderr.write(f"Error: {error}\n")
        return EXIT_FAILURE


def _print_schema() -> int:
    from appliance.config import loader
    from appliance.gateway.config import GatewayConfig

    sys.stdout.write(loader.schema_text(GatewayConfig))
    return EXIT_OK


def _write_example(options: argparse.Namespace, file: str) -> int:
    from appliance.gateway.options import EXAMPLE, unit, write_example

    if options.example_config:
        write_example(file, EXAMPLE, usual="/etc/pvagw/NAME.yml")
    else:
        write_example(file, unit(file), usual="/etc/systemd/system/pvagw@.service")
    return EXIT_OK


def _with_config(options: argparse.Namespace, file: str) -> int:
    from appliance.gateway.p4p_json import load_config

    loaded = load_config(file)
    if options.convert:
        from appliance.gateway.convert import converted

        sys.stdout.write(converted(loaded))
        return EXIT_OK
    sides = loaded.sides()
    if options.check_config:
        return _check(loaded, sides)
    if options.print_config:
        return _print_config(loaded, sides)
    return _run(options, loaded, sides)


def _check(loaded: Loaded, sides: Sides) -> int:
    from appliance.gateway.check import check

    try:
        found = check(loaded, sides)
    except ConfigurationError as error:
        raise loaded.placed(error) from error
    for warning in found.warnings:
        sys.stderr.write(f"Warning: {warning}\n")
    for fault in found.faults:
        sys.stderr.write(f"Error: {loaded.placed(fault)}\n")
    if found.faults:
        return EXIT_FAILURE
    # As p4p's gateway does, so that scripts can copy all files of a configuration.
    sys.stdout.writelines(f"{name}\n" for name in found.names)
    sys.stdout.flush()
    sys.stderr.write(f"{loaded.document.file}: good\n")
    return EXIT_OK


def _print_config(loaded: Loaded, sides: Sides) -> int:
    from appliance.config import loader

    sys.stdout.write(loader.dump(loaded.config))
    sys.stdout.write(
        "\n# Variables for addresses, ports and keychains (EPICS_PVA*) are not read: both sides would get the same.\n"
    )
    for kind, group in (("clients", sides.clients), ("servers", sides.servers)):
        for name, effective in group.items():
            sys.stdout.write(f"\n# {kind}.{name}, after defaults\n")
            sys.stdout.writelines(f"#   {line}\n" for line in effective.explain().splitlines())
    return EXIT_OK


def _begin_log(options: argparse.Namespace, loaded: Loaded) -> None:
    from appliance.daemon import logging as daemon_logging
    from appliance.gateway.options import level, log_as

    faults = daemon_logging.configure(level=level(options, loaded.config.log_level), fmt="auto")
    if options.logging is not None:
        from appliance.gateway.json_lines import read_json_file

        log_as(read_json_file(options.logging), options.logging)
    for fault in faults:
        _log.warning("%s", fault)
    if options.no_ban_local:
        _log.info("--no-ban-local has no effect: the gateway never uses its own servers")
    for warning in loaded.warnings:
        _log.warning("%s", warning)


def _run(options: argparse.Namespace, loaded: Loaded, sides: Sides) -> int:
    from appliance.gateway.check import borrowed_keychains

    _begin_log(options, loaded)
    config = loaded.config
    for group in (sides.clients, sides.servers):
        for name, effective in group.items():
            for warning in effective.warnings:
                _log.warning("%s: %s", name, warning)

    for warning in borrowed_keychains(sides):
        _log.warning("%s", warning)

    async def serve(daemon: Daemon) -> None:
        from appliance.gateway.gateway import Gateway

        gateway = Gateway(config, sides)

        async def reload() -> None:
            await gateway.reload(await asyncio.to_thread(_config_again, loaded.document.file))

        daemon.on_reload(reload)
        try:
            try:
                await gateway.start()
            except ConfigurationError as error:
                raise loaded.placed(error) from error
            told = gateway.summary()
            daemon.ready(told)
            stopping = asyncio.ensure_future(daemon.wait())
            while not (await asyncio.wait([stopping], timeout=_STATUS_S))[0]:
                before, told = told, gateway.summary()
                if told != before:
                    daemon.status(told)
        finally:
            await gateway.stop()

    return run(serve, name=NAME)


def _config_again(file: str) -> GatewayConfig:
    from appliance.gateway.p4p_json import load_config

    again = load_config(file)
    again.sides()  # so that a fault in the settings of a side is found too
    for warning in again.warnings:
        _log.warning("%s", warning)
    return again.config


if __name__ == "__main__":
    sys.exit(main())

"""The command line of ``appliance doctor``."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

__all__ = ["add_arguments", "work"]

EPILOG = """\
exit status:
  0  nothing is wrong; there may be warnings
  1  there are problems, or the command line is wrong
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``doctor`` takes."""
    from appliance.cli.common import add_common

    parser.add_argument("names", metavar="pvname", nargs="*", help="PV that should be found, and by whom.")
    parser.add_argument(
        "--json", action="store_true", help="One JSON object on standard output, and nothing else."
    )
    add_common(parser)


async def work(options: argparse.Namespace) -> int:
    """Check everything; returns the exit status."""
    import os
    from datetime import UTC, datetime

    from appliance.cli.common import FAILED, OK, open_context
    from appliance.cli.doctor import identity, network
    from appliance.cli.doctor.report import PROBLEM, Report
    from appliance.client.context import Context
    from appliance.config.pva import resolve_client

    if not options.debug and "PVXS_LOG" not in os.environ:
        # What the client would log is what the findings say.
        import logging

        logging.getLogger("appliance").setLevel(logging.CRITICAL + 1)
    report = Report()
    effective = resolve_client()
    config = effective.config
    if options.verbose:
        print(effective.explain(), file=sys.stderr)
    now = datetime.now(UTC)
    timeout = options.timeout
    identity.check_configuration(effective, report, os.environ)
    keychain = identity.check_keychain(effective, report)
    if keychain is not None:
        identity.check_certificates(keychain, report, now)
    identity.check_clock(report, now)
    network.check_ports(config, report)
    network.check_interfaces(config, report)
    await network.check_search(config, report)
    # The status of certificates is asked for over plain TCP, and so are servers whether they are there.
    async with Context(config._replace(tls_keychain=""), beacons=False) as plain:
        await network.check_servers(config, plain, report)
        if keychain is not None:
            await identity.check_status(keychain, config, plain, report, datetime.now(UTC), timeout)
    if config.name_servers or options.names:
        # Where plain TCP is refused, a PV that is there without TLS could not be told from one that is not there.
        required = config.tls_options.tls_required
        effective.config = config._replace(tls_options=config.tls_options._replace(tls_required=False))
        async with open_context(effective) as context:
            await network.check_name_servers(config, context, report, timeout)
            for name in options.names:
                await network.check_pv(name, context, report, timeout, tls_required=required)
    if options.json:
        from json import dumps

        print(dumps(report.plain(), indent=2, ensure_ascii=False))
    else:
        for line in report.lines():
            print(line if line.isprintable() else repr(line)[1:-1])
    return FAILED if report.count(PROBLEM) else OK

"""The command line of ``appliance doctor``."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from appliance.certs.keychain import Keychain
    from appliance.cli.doctor.report import Report
    from appliance.config.pva import Effective

__all__ = ["add_arguments", "work"]

EPILOG = """\
exit status:
  0  nothing is wrong; there may be warnings
  1  there are problems, or the command line is wrong

examples:
  appliance doctor
      this user's settings, keychain, clock and network
  appliance doctor test:calcExample
      also whether the PV is found, and who serves it
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``doctor``."""
    from appliance.cli.common import add_common

    parser.add_argument("names", metavar="pvname", nargs="*", help="PV that should be found, and by whom.")
    parser.add_argument(
        "--server",
        action="store_true",
        help="Check a server of this host instead: run it as the server's user, with its environment.",
    )
    parser.add_argument(
        "--config", metavar="FILE", help="With --server: the YAML file of an IOC (softIocPVX --config)."
    )
    parser.add_argument(
        "--json", action="store_true", help="One JSON object on standard output, and nothing else."
    )
    add_common(parser)


async def work(options: argparse.Namespace) -> int:
    """Check everything; returns the exit status."""
    import os

    from appliance.cli.common import FAILED, OK
    from appliance.cli.doctor import variables
    from appliance.cli.doctor.programs import check_programs, check_release
    from appliance.cli.doctor.report import PROBLEM, Report
    from appliance.errors import ConfigurationError

    if options.config is not None and not options.server:
        raise ConfigurationError("--config needs --server: a client has no configuration file")

    if not options.debug and "PVXS_LOG" not in os.environ:
        # The findings say what the client would log.
        import logging

        logging.getLogger("appliance").setLevel(logging.CRITICAL + 1)
    report = Report()
    check_release(report)
    variables.check_spelling(report, os.environ)
    await (_check_server if options.server else _check_client)(options, report)
    check_programs(report, os.environ, server=options.server)
    if options.json:
        from json import dumps

        print(dumps(report.plain(), indent=2, ensure_ascii=False))
    else:
        for line in report.lines():
            print(line if line.isprintable() else repr(line)[1:-1])
    return FAILED if report.count(PROBLEM) else OK


async def _check_client(options: argparse.Namespace, report: Report) -> None:
    from datetime import UTC, datetime

    from appliance.cli.common import open_context
    from appliance.cli.doctor import network
    from appliance.cli.doctor.identity import check_status
    from appliance.cli.doctor.pv import check_pv
    from appliance.client.context import Context
    from appliance.config.pva import resolve_client

    effective = resolve_client()
    config = effective.config
    timeout = options.timeout
    keychain = _check_identity(effective, "client", options, report)
    network.check_ports(config, report)
    network.check_interfaces(config.intf_addr_list, "EPICS_PVA_INTF_ADDR_LIST", report)
    await network.check_search(config, report)
    # The certificate service, and servers as such, are asked over plain TCP.
    async with Context(config._replace(tls_keychain=""), beacons=False) as plain:
        await network.check_servers(config, plain, report)
        if keychain is not None:
            await check_status(keychain, config, plain, report, datetime.now(UTC), timeout)
    if config.name_servers or options.names:
        # If plain TCP is refused, a PV without TLS cannot be told from one that does not exist.
        required = config.tls_options.tls_required
        own_fault = report.own_fault() if keychain is not None else ""
        effective.config = config._replace(tls_options=config.tls_options._replace(tls_required=False))
        async with open_context(effective) as context:
            await network.check_name_servers(config, context, report, timeout)
            for name in options.names:
                await check_pv(
                    name,
                    context,
                    report,
                    timeout,
                    tls_required=required,
                    has_keychain=keychain is not None,
                    own_fault=own_fault,
                )


async def _check_server(options: argparse.Namespace, report: Report) -> None:
    from datetime import UTC, datetime

    from appliance.cli.doctor import network, server
    from appliance.cli.doctor.identity import check_status
    from appliance.client.context import Context
    from appliance.config.pva import resolve_client

    effective = server.resolve(options.config)
    config = effective.config
    keychain = _check_identity(effective, "server", options, report)
    server.check_tcp_ports(config, report)
    network.check_udp_port(
        config.broadcast_port or network.USUAL_PORT,
        "searches",
        "clients that search this host by its address do not find the server",
        report,
    )
    network.check_interfaces(config.intf_addr_list, "EPICS_PVAS_INTF_ADDR_LIST", report)
    await server.check_beacons(config, report)
    if keychain is not None:
        # A server asks for its certificate's status as a client of this environment does.
        client = resolve_client().config._replace(tls_keychain="")
        async with Context(client, beacons=False) as context:
            await check_status(keychain, config, context, report, datetime.now(UTC), options.timeout)
    if options.names:
        async with Context(server.as_client(config), beacons=False) as context:
            await server.check_running(
                config, options.names, context, report, has_keychain=keychain is not None
            )


def _check_identity(
    effective: Effective[Any], role: str, options: argparse.Namespace, report: Report
) -> Keychain | None:
    import os
    from datetime import UTC, datetime

    from appliance.cli.doctor import identity

    if options.verbose:
        print(effective.explain(), file=sys.stderr)
    now = datetime.now(UTC)
    identity.check_configuration(effective, report, os.environ, role)
    identity.check_directories(effective, report)
    keychain = identity.check_keychain(effective, report, role)
    if keychain is not None:
        identity.check_certificates(keychain, report, now, role)
    identity.check_clock(report, now)
    return keychain

"""Checks of a server's own configuration, for ``appliance doctor --server`` on the server's host."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Final

from appliance.cli.doctor.network import check_destination
from appliance.cli.doctor.report import Report
from appliance.config.address import Endpoint
from appliance.config.pva import ClientConfig, Effective, ServerConfig, resolve_server
from appliance.errors import ApplianceError

if TYPE_CHECKING:
    from appliance.client.context import Context

__all__ = ["as_client", "check_beacons", "check_running", "check_tcp_ports", "resolve"]

_ANYWHERE: Final = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound


def resolve(path: str | None) -> Effective[ServerConfig]:
    """Return the settings of an IOC's YAML file and the environment, or of the environment alone.

    Raises:
        ConfigurationError: The file or a setting cannot be used.
    """
    if path is None:
        return resolve_server()
    from appliance.config.loader import load_document
    from appliance.ioc.config import IocConfig

    return resolve_server(yaml=load_document(path, IocConfig).section("pva"))


def as_client(config: ServerConfig) -> ClientConfig:
    """Return the settings of a client that searches only this host's own servers, over plain TCP."""
    own = tuple(
        Endpoint(endpoint.host) for endpoint in config.intf_addr_list if endpoint.host not in _ANYWHERE
    )
    return ClientConfig(
        addr_list=own or (Endpoint("127.0.0.1"),),
        auto_addr_list=False,
        broadcast_port=config.broadcast_port or 5076,
        server_port=config.server_port or 5075,
        tls_port=config.tls_port,
        cert_pv_prefix=config.cert_pv_prefix,
        tls_options=config.tls_options,
        status_cache_dir=config.status_cache_dir,
        no_status_cache=config.no_status_cache,
        xdg_config_home=config.xdg_config_home,
        xdg_data_home=config.xdg_data_home,
    )


def check_tcp_ports(config: ServerConfig, report: Report) -> None:
    """Check whether the TCP ports are free, or who may use them."""
    ports = [("TCP", config.server_port)]
    if config.tls_keychain or config.tls_keychain_default:
        ports.append(("TLS", config.tls_port))
    hosts = [endpoint.host for endpoint in config.intf_addr_list] or ["0.0.0.0"]  # noqa: S104 - as the server does
    for what, port in ports:
        if not port:
            report.note("ports", f"{what}: any free port, so a firewall rule cannot name it")
            continue
        for host in hosts:
            fault = _bind(host, port)
            if fault == errno.EADDRINUSE:
                report.note(
                    "ports",
                    f"{what} port {port} of {host} is in use",
                    "by this server, if it runs; otherwise by another program, and the server will take any free port",
                    f"ss -ltnp 'sport = :{port}' tells which program has it",
                )
            elif fault == errno.EACCES:
                report.problem(
                    "ports",
                    f"{what} port {port} of {host}: not permitted",
                    "ports below 1024 are for root",
                    "set EPICS_PVAS_SERVER_PORT and EPICS_PVAS_TLS_PORT to ports above 1023",
                )
            elif not fault:
                report.ok("ports", f"{what} port {port} of {host} is free")
    if len(ports) > 1 and config.tls_port and config.tls_port == config.server_port:
        report.problem(
            "ports",
            f"TCP {config.server_port} is both the plain port and the TLS port",
            "a server cannot listen twice on one port",
            "set EPICS_PVAS_TLS_PORT to 5076",
        )


def _bind(host: str, port: int) -> int:
    """Return the error number of listening there; 0 if that works. Other checks find bad addresses."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            probe.listen(1)
    except OSError as error:
        return error.errno or errno.EADDRNOTAVAIL
    return 0


async def check_beacons(config: ServerConfig, report: Report) -> None:
    """Check every address that beacons go to."""
    if not config.auto_beacon_addr_list and not config.beacon_addr_list:
        report.note(
            "beacons",
            "none are sent",
            "clients find a server that starts later only when they search again, up to 30 s later",
            "set EPICS_PVAS_BEACON_ADDR_LIST, if that is too long",
        )
    for endpoint in config.beacon_addr_list:
        await check_destination(
            endpoint, config.broadcast_port or 5076, "beacons", "EPICS_PVAS_BEACON_ADDR_LIST", report
        )


async def check_running(
    config: ServerConfig, names: list[str], context: Context, report: Report, *, has_keychain: bool
) -> None:
    """Check that the running server answers for its PVs, and over TLS if it has a keychain."""
    for name in names:
        try:
            places = await context.locate(name)
        except ApplianceError as error:
            report.problem("pv", str(error), "a search cannot contain this name", "correct the name")
            continue
        if not places:
            report.problem(
                "pv",
                f"no server of this host answers a search for {name}",
                "the server does not run, does not have this PV, or listens to another UDP port or address",
                "start it, and look at its log; 'pvxlist' on this host tells which servers answer",
            )
            continue
        shown = ", ".join(f"{place.host}:{place.port}{' (TLS)' if place.tls else ''}" for place in places[:8])
        if has_keychain and not any(place.tls for place in places):
            report.problem(
                "pv",
                f"{name} is offered at {shown}, but not over TLS",
                "the running server has another keychain or another configuration than this one, or its certificate is "
                "not good at present",
                f"restart it with EPICS_PVAS_TLS_KEYCHAIN={config.tls_keychain}, and read the findings on its status",
            )
        else:
            report.ok("pv", f"{name} is offered at {shown}")

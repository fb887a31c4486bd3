"""Checks of ports, interfaces, search destinations, name servers, and of servers that answer."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Final

from appliance.cli.doctor.report import Report
from appliance.config.address import Endpoint
from appliance.config.pva import ClientConfig
from appliance.errors import ApplianceError, TransportError
from appliance.transport.interfaces import broadcast_addresses, interface_addresses
from appliance.transport.udp import UDPPort, resolve_datagram_address

if TYPE_CHECKING:
    from appliance.client.context import Context

__all__ = [
    "check_destination",
    "check_interfaces",
    "check_name_servers",
    "check_ports",
    "check_search",
    "check_servers",
    "check_udp_port",
]

DISCOVERY_S: Final = 1.0
"""Seconds within which servers must answer to count as reachable."""
USUAL_PORT: Final = 5076
"""The UDP port at which servers receive searches, unless their configuration says otherwise."""
QUIET_S: Final = 0.3
"""Seconds without another answer after which no more are expected."""


def check_udp_port(port: int, purpose: str, loss: str, report: Report) -> None:
    """Check that the search port can be shared; ``purpose`` is its use, ``loss`` what fails without it."""
    try:
        UDPPort(lambda *_: None, port=port, shared=True).close()
    except TransportError as error:
        report.warning(
            "ports",
            f"UDP {port}: {error}",
            f"another program uses the port exclusively: {loss}",
            f"ss -ulpn sport = :{port} tells which one; it should share the port (SO_REUSEPORT)",
        )
    else:
        report.ok("ports", f"UDP {port} can be listened on for {purpose}")


def check_ports(config: ClientConfig, report: Report) -> None:
    """Check that beacons can be heard, and that the port numbers make sense."""
    check_udp_port(
        config.broadcast_port, "beacons", "beacons are not heard, and new servers are found later", report
    )
    if config.tls_enabled and config.tls_port == config.server_port:
        report.problem(
            "ports",
            f"TCP {config.server_port} is both the plain port and the TLS port",
            "a server cannot listen twice on one port",
            "set EPICS_PVA_TLS_PORT to 5076",
        )


def check_interfaces(endpoints: tuple[Endpoint, ...], variable: str, report: Report) -> None:
    """Check that the addresses of ``variable``, to which this end is bound, belong to this machine."""
    own = {str(item.address) for item in interface_addresses()}
    for endpoint in endpoints:
        if endpoint.host not in own and endpoint.host != "0.0.0.0" and own:  # noqa: S104 - compared, not bound
            report.problem(
                "interfaces",
                f"{endpoint.host} is not an address of this machine",
                f"{variable} names it; this machine has {', '.join(sorted(own))}",
                "correct or unset it",
            )


async def check_search(config: ClientConfig, report: Report) -> None:
    """Check every destination of searches: its name, its route, and the interface to it."""
    automatic: list[str] = []
    if config.auto_addr_list:
        automatic = broadcast_addresses(frozenset(endpoint.host for endpoint in config.intf_addr_list))
        if automatic == ["127.255.255.255"]:
            report.warning(
                "search",
                "no interface has a broadcast address: only servers on this machine are found",
                "EPICS_PVA_AUTO_ADDR_LIST is YES, and there is nothing but loopback",
                "bring the network up, or name servers in EPICS_PVA_ADDR_LIST or EPICS_PVA_NAME_SERVERS",
            )
    elif not config.addr_list and not config.name_servers:
        report.problem(
            "search",
            "searches go nowhere",
            "EPICS_PVA_AUTO_ADDR_LIST is NO, EPICS_PVA_ADDR_LIST and EPICS_PVA_NAME_SERVERS are empty",
            "set one of them",
        )
    for endpoint in (*config.addr_list, *map(Endpoint, automatic)):
        await check_destination(endpoint, config.broadcast_port, "search", "EPICS_PVA_ADDR_LIST", report)


async def check_destination(endpoint: Endpoint, port: int, check: str, variable: str, report: Report) -> None:
    """Check one UDP destination: its name, its route, and the interface to it.

    ``port`` is for an endpoint without one; ``variable`` names the endpoint's list.
    """
    address = await resolve_datagram_address(endpoint, port)
    if address is None:
        report.problem(
            check,
            f"{endpoint.host} cannot be resolved",
            f"{variable} names it, and neither the hosts file nor DNS knows it (IPv4)",
            f"check the spelling, and: getent ahostsv4 {endpoint.host}",
        )
        return
    name = f"{address.host}:{address.port}"
    if endpoint.host != address.host:
        name = f"{endpoint.host} ({name})"
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            probe.connect(address)
            local, _ = probe.getsockname()
    except OSError as error:
        report.problem(
            check,
            f"{name}: {error.strerror}",
            "the kernel has no route to it",
            f"check the routes: ip route get {address.host}",
        )
        return
    report.ok(check, f"{name} by the interface with {local}")


async def check_name_servers(config: ClientConfig, context: Context, report: Report, timeout: float) -> None:
    """Check that every name server accepts a connection and speaks PVAccess."""
    for endpoint in config.name_servers:
        port = endpoint.port or (config.tls_port if endpoint.tls else config.server_port)
        try:
            answer = await context.rpc(
                "server", {"op": "info"}, server=(endpoint.host, port, endpoint.tls), timeout=timeout
            )
        except ApplianceError as error:
            report.problem(
                "name servers",
                f"{endpoint}: {str(error).removeprefix('server: ')}",
                "EPICS_PVA_NAME_SERVERS names it; PVs that only it knows are not found",
                f"check that it runs and that no firewall blocks TCP port {port}",
            )
            continue
        version = str(answer["version"]) if answer is not None and "version" in answer else "version unknown"
        report.ok("name servers", f"{endpoint} answers: {version}")


async def _who_answers(context: Context) -> list[str]:
    """Return the servers that answer a search without a name."""
    found: dict[str, None] = {}
    with contextlib.suppress(TimeoutError):
        loop = asyncio.get_running_loop()
        end = loop.time() + DISCOVERY_S
        async with asyncio.timeout(DISCOVERY_S) as patience:
            async for news in context.discover():
                if news.online:
                    found[f"{news.server} ({news.protocol})"] = None
                    patience.reschedule(min(end, loop.time() + QUIET_S))
    return list(found)


async def _who_answers_at_the_usual_port(config: ClientConfig) -> list[str]:
    """Return the servers that would answer if this client searched at the usual port."""
    from appliance.client.context import Context

    usual = tuple(endpoint._replace(port=None) for endpoint in config.addr_list)
    if config.broadcast_port == USUAL_PORT and usual == config.addr_list:
        return []
    changed = config._replace(broadcast_port=USUAL_PORT, addr_list=usual, name_servers=(), tls_keychain="")
    async with Context(changed, beacons=False) as context:
        return await _who_answers(context)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


async def check_servers(config: ClientConfig, context: Context, report: Report) -> None:
    """Check that servers answer."""
    if not config.addr_list and not config.auto_addr_list:
        return  # there is no destination; `check_search` has said so
    found = await _who_answers(context)
    if found:
        report.ok("servers", f"{len(found)} answered: {_some(found)}")
        return
    elsewhere = await _who_answers_at_the_usual_port(config)
    if elsewhere:
        report.problem(
            "servers",
            f"none answered a search at UDP {config.broadcast_port}, and {len(elsewhere)} answered at UDP {USUAL_PORT}: "
            f"{_some(elsewhere)}",
            f"servers listen for searches at the usual port {USUAL_PORT}, but this client sends them to another one",
            "unset EPICS_PVA_BROADCAST_PORT, and remove port numbers from EPICS_PVA_ADDR_LIST, or set them to "
            f"{USUAL_PORT}",
        )
        return
    tell = report.note if config.name_servers else report.warning
    listed = [str(endpoint) for endpoint in config.addr_list if endpoint.port not in (None, USUAL_PORT)]
    odd = (
        [f"EPICS_PVA_BROADCAST_PORT is {config.broadcast_port}"]
        if config.broadcast_port != USUAL_PORT
        else []
    )
    odd += [f"EPICS_PVA_ADDR_LIST names {_some(listed)}"] if listed else []
    if odd:
        tell(
            "servers",
            f"none answered a search within {DISCOVERY_S:g} s, also not at UDP {USUAL_PORT}",
            f"perhaps the port is wrong: {' and '.join(odd)}, and servers listen at {USUAL_PORT} by default "
            "(EPICS_PVAS_BROADCAST_PORT); or no server runs at these destinations, or a firewall drops the searches",
            f"set the port to that of the servers (default {USUAL_PORT}); then check the destinations "
            "above: that UDP port must be open on the servers",
        )
        return
    tell(
        "servers",
        f"none answered a search within {DISCOVERY_S:g} s",
        "no server runs at these destinations, or a firewall drops the searches, or the destinations are wrong",
        f"check the destinations above; UDP port {config.broadcast_port} must be open on the servers, "
        "and answers come back to a port that this client chooses",
    )

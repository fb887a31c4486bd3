"""Checks of one PV: which servers have it, whether their ports can be reached, and how a client reads it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from appliance.cli.doctor.report import Report
from appliance.errors import ApplianceError

if TYPE_CHECKING:
    from appliance.client.context import Context
    from appliance.client.requests import Info
    from appliance.client.search import Located

__all__ = ["check_pv"]

CONNECT_S: Final = 1.0
"""Seconds within which a port must accept a TCP connection to count as reachable."""
_MAX_PROBES: Final = 8
"""Number of servers whose ports are tried: anyone on the network can answer a search."""
_AUTHORITY: Final = "does not trust"
"""Part of the error about a peer whose certificate leads to an authority that is not among the trust anchors."""

_OWN_WHY: Final = "this client's own certificate is not good at present, so it does not use TLS"
_OWN_CURE: Final = "solve that first, as its finding above says; nothing is known to be wrong with the server"


async def check_pv(
    name: str,
    context: Context,
    report: Report,
    timeout: float,
    *,
    tls_required: bool,
    has_keychain: bool,
    own_fault: str = "",
) -> None:
    """Check that a PV is found and by which servers, that their ports can be reached, and how the PV is read.

    Args:
        name: The PV's name.
        context: A running client with this user's own configuration.
        report: Gets the findings.
        timeout: Seconds for the connection.
        tls_required: Whether this user's configuration refuses plain TCP; ``context`` itself does not.
        has_keychain: Whether this client has a keychain that can be opened.
        own_fault: The finding that keeps this client's own certificate from being accepted, if any.
    """
    try:
        places = await context.locate(name)
    except ApplianceError as error:
        report.problem("pv", str(error), "a search cannot contain this name", "correct the name")
        return
    dead = await _try_ports(name, places, report)
    _tell_of_several(name, places, report)
    try:
        info = await context.info(name, timeout=timeout)
    except ApplianceError as error:
        _explain(str(error), report, dead_port=dead, own_fault=own_fault if places else "")
        return
    _tell_how(
        name, info, places, report, tls_required=tls_required, has_keychain=has_keychain, own_fault=own_fault
    )


async def _try_ports(name: str, places: list[Located], report: Report) -> bool:
    """Report ports that do not accept a connection; return whether one does."""
    tried = places[:_MAX_PROBES]
    faults = await asyncio.gather(*(_try_port(place) for place in tried))
    open_ports = [_address(place) for place, fault in zip(tried, faults, strict=True) if not fault]
    for place, fault in zip(tried, faults, strict=True):
        if fault:
            rest = f"; {', '.join(open_ports)} can be reached" if open_ports else ""
            report.problem(
                "pv",
                f"{_address(place)}{' (TLS)' if place.tls else ''}: {fault}",
                f"a server answers the search for {name} with this port, but a firewall on the way drops or "
                f"rejects connections to it, or the server has just ended{rest}",
                f"open TCP port {place.port} in the firewall of {place.host} and of each network in between",
            )
    return any(faults)


async def _try_port(place: Located) -> str:
    """Return what is wrong with a connection to a server; empty if it can be made."""
    try:
        async with asyncio.timeout(CONNECT_S):
            _, writer = await asyncio.open_connection(place.host, place.port)
    except TimeoutError:
        return f"no connection within {CONNECT_S:g} s"
    except OSError as error:
        return error.strerror or str(error)
    writer.transport.abort()
    return ""


def _tell_of_several(name: str, places: list[Located], report: Report) -> None:
    servers: dict[bytes, list[str]] = {}
    for place in places:
        servers.setdefault(place.guid, []).append(_address(place))
    if len(servers) > 1:
        report.warning(
            "pv",
            f"{len(servers)} servers have {name}: {'; '.join(', '.join(found) for found in servers.values())}",
            "a client uses the one that answers first, so two clients may read different values",
            "stop one of them, rename its PV, or search only one of them (EPICS_PVA_ADDR_LIST); a gateway and the "
            "server behind it may both answer: then keep clients out of one of the two networks",
        )


def _explain(why: str, report: Report, *, dead_port: bool, own_fault: str) -> None:
    if _AUTHORITY in why:
        report.problem(
            "pv",
            why,
            "the keychains of this client and of the server come from different certificate authorities",
            "request both certificates from the same certificate service; pvxcert -f FILE shows who issued a keychain",
        )
        return
    if own_fault and not dead_port:
        report.problem("pv", why, f"{_OWN_WHY} ({own_fault})", _OWN_CURE)
        return
    report.problem(
        "pv",
        why,
        "no connection could be made to a port that the server named"
        if dead_port
        else "the reason is the last error that this client saw",
        "see the port's finding above"
        if dead_port
        else "check the name's spelling, that its server runs, and the findings above; if a gateway stands between, its PV list must allow "
        "the name: pvxcall STATUSPREFIX:asTest pv=NAME asks it",
    )


def _tell_how(
    name: str,
    info: Info,
    places: list[Located],
    report: Report,
    *,
    tls_required: bool,
    has_keychain: bool,
    own_fault: str,
) -> None:
    peer = info.peer
    offers_tls = any(place.tls for place in places)
    if peer.is_tls:
        by = peer.authority.splitlines()[0] if peer.authority else "nobody"
        report.ok("pv", f"{name} is served by {info.server} over TLS, {peer.account} certified by {by}")
    elif own_fault and tls_required:
        report.problem(
            "pv",
            f"{name} is served by {info.server} over plain TCP, which this client refuses (tls_required)",
            f"{_OWN_WHY} ({own_fault})",
            _OWN_CURE,
        )
    elif own_fault:
        # It is not known whether the server would offer TLS, because this client does not search for it.
        report.warning(
            "pv",
            f"{name} is served by {info.server} over plain TCP, although this client has a keychain",
            f"{_OWN_WHY} ({own_fault})",
            _OWN_CURE,
        )
    elif tls_required:
        report.problem(
            "pv",
            f"{name} is served by {info.server} over plain TCP only, at present",
            "the TLS option tls_required refuses plain TCP",
            "give that server a keychain, or remove tls_required from EPICS_PVA_TLS_OPTIONS",
        )
    elif has_keychain:
        why = (
            "the server also offers TLS, but it was not used: the certificate of one of the two sides is not good at present"
            if offers_tls
            else "the server does not offer TLS: it has no keychain, or its certificate is not good at present"
        )
        report.warning(
            "pv",
            f"{name} is served by {info.server} over plain TCP, although this client has a keychain",
            f"{why}. Nothing proves the server's identity, and the server does not know this client",
            "on the server's host, run 'appliance doctor --server' with the server's own environment",
        )
    else:
        report.ok(
            "pv", f"{name} is served by {info.server} over plain TCP: the server's identity is not proved"
        )


def _address(place: Located) -> str:
    return f"[{place.host}]:{place.port}" if ":" in place.host else f"{place.host}:{place.port}"

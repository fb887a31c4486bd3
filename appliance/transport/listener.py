"""Listening sockets, which fall back to a free port as pvxs does."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Callable
from typing import Final

from appliance.config.address import Endpoint
from appliance.errors import TransportError
from appliance.transport.address import format_address, is_multicast

__all__ = ["listen"]

_BACKLOG: Final = 512


async def listen(
    accept: Callable[[], asyncio.BaseProtocol],
    endpoints: tuple[Endpoint, ...],
    port: int,
    what: str,
    log: logging.Logger,
    *,
    strict: bool = False,
) -> tuple[int, list[asyncio.Server]]:
    """Listen on addresses of this host.

    Unless ``strict``, a port that is taken or not permitted is replaced by a free one, with a warning in the words of pvxs.

    Args:
        accept: Makes the protocol of a new connection.
        endpoints: The addresses; none means every address. Multicast groups among them are passed over.
        port: The port of endpoints that name none.
        what: What the port is for, for the log: TCP or TLS.
        log: Takes the warning.
        strict: Whether it must be this port.

    Returns:
        The port that is really listened on, and the listening sockets.

    Raises:
        TransportError: An address cannot be listened on at all.
    """
    loop = asyncio.get_running_loop()
    addresses: list[tuple[str, int]] = []
    for endpoint in endpoints:
        host = endpoint.host
        try:
            found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it cannot be the name of a host"
            raise TransportError(
                f"the interface address {host} does not resolve: {why}; correct intf_addr_list (EPICS_PVAS_INTF_ADDR_LIST)"
            ) from error
        *_, address = found[0]
        first = str(address[0])
        if is_multicast(first):
            continue  # a multicast group is for searches only
        addresses.append((first, endpoint.port or port))
    if not addresses:
        if endpoints:
            raise TransportError(
                "the list of interface addresses has multicast groups only; add an address of this host to EPICS_PVAS_INTF_ADDR_LIST"
            )
        addresses.append(("::" if _has_ipv6() else "0.0.0.0", port))  # noqa: S104 - "every address" is asked for
    sockets = (
        [_bind(host, to, what, log, fallback=None) for host, to in addresses]
        if strict
        else _bind_all(addresses, port, what, log)
    )
    actual: int = sockets[0].getsockname()[1]
    servers: list[asyncio.Server] = []
    try:
        for sock in sockets:
            servers.append(await loop.create_server(accept, sock=sock, backlog=_BACKLOG))  # noqa: PERF401 - closed below if one fails
    except BaseException:
        for server in servers:
            server.close()
        for sock in sockets:
            sock.close()
        raise
    return actual, servers


def _has_ipv6() -> bool:
    if not socket.has_ipv6:
        return False
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
        sock.bind(("::", 0))
        return True
    return False


_ATTEMPTS: Final = 8


def _bind_all(
    addresses: list[tuple[str, int]], port: int, what: str, log: logging.Logger
) -> list[socket.socket]:
    """Bind every address; those that ask for ``port`` get the same one, because a search response names only one."""
    shared = port
    for attempt in range(_ATTEMPTS):
        sockets: list[socket.socket] = []
        try:
            for host, wanted in addresses:
                alone = wanted != port
                fallback = alone or not sockets or attempt == _ATTEMPTS - 1
                sock = _bind(host, wanted if alone else shared, what, log, fallback=fallback)
                sockets.append(sock)
                if not alone:
                    shared = sock.getsockname()[1]
        except BlockingIOError:
            # Taken on a later address only: try another port on all of them.
            for sock in sockets:
                sock.close()
            shared = 0
        except BaseException:
            for sock in sockets:
                sock.close()
            raise
        else:
            return sockets
    raise AssertionError("unreachable: the last attempt falls back")


def _bind(host: str, port: int, what: str, log: logging.Logger, *, fallback: bool | None) -> socket.socket:
    """Bind and listen; raise BlockingIOError if the port is taken and not replaced, with None TransportError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            sock.bind((host, port))
            # Two sockets with SO_REUSEADDR may both bind; only listen() tells that the port is taken.
            sock.listen(_BACKLOG)
        except OSError as error:
            if fallback is None or not port or error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            sock.close()
            if not fallback:
                raise BlockingIOError(error.errno, error.strerror) from error
            sock = _bind(host, 0, what, log, fallback=True)
            log.warning(
                "Server unable to bind %s port %d, falling back to %s",
                what,
                port,
                format_address(sock.getsockname()),
            )
    except BlockingIOError:
        raise
    except OSError as error:
        sock.close()
        hint = "; no interface of this host has this address" if error.errno == errno.EADDRNOTAVAIL else ""
        raise TransportError(
            f"cannot listen on {host} port {port} for {what}: {error.strerror or error}{hint}"
        ) from error
    return sock

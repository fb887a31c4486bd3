"""The PVs of a certificate service: which of their requests a gateway must not pass on as its own."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from typing import Any, Final

from appliance.authn.ratelimit import RateLimiter, peer_key, retry_sentence
from appliance.client.context import Context
from appliance.config.pva import ClientConfig
from appliance.errors import ApplianceError, RemoteError
from appliance.pva import commands as c
from appliance.pvdata.value import Value
from appliance.server.operation import Operation

__all__ = ["CertificateNames", "PlainWay"]

_log: Final = logging.getLogger(__name__)
_MAX_CALLS: Final = 64
"""Requests for certificates that are passed on over plain TCP at the same time."""
_TIMEOUT_S: Final = 30.0

_KINDS: Final = ("CREATE", "STATUS", "LIST")
"""The service's PVs that do something for who is permitted to, behind the prefix of the site."""
_PER_MINUTE: Final = 10.0
"""Requests for certificates of one host that pass without a relay; for the service they all come from the gateway."""


class _Names:
    __slots__ = ("_exact", "_longer")

    def __init__(self, names: Iterable[str]) -> None:
        self._exact = frozenset(names)
        self._longer = tuple(f"{name}:" for name in self._exact)

    def __contains__(self, name: str) -> bool:
        return name in self._exact or name.startswith(self._longer)


class CertificateNames:
    """Names that need TLS between the client and the certificate service itself.

    The service judges who connects. What a gateway passes on as its own request counts as the gateway's: its certificate would
    approve, revoke, and vouch for keys of others.

    Args:
        prefix: The first part of the names of the service's PVs.
        relayed: The names that the gateway has a relay for; with ``:`` and more behind one, a name is meant too.
    """

    def __init__(self, prefix: str, relayed: Iterable[str] = ()) -> None:
        self._relayed = _Names(relayed)
        self._names = _Names({*relayed, *(f"{prefix}:{kind}" for kind in _KINDS)})
        self._limiter = RateLimiter(_PER_MINUTE, int(_PER_MINUTE), clock=time.monotonic)
        self.plain: PlainWay | None = None
        """The way for requests that need no identity, where the gateway has one of its own."""

    def covers(self, name: str) -> bool:
        """Whether this is one of the names."""
        return name in self._names

    def relays(self, name: str) -> bool:
        """Whether the gateway has a relay for the name."""
        return name in self._relayed

    def refuses(self, name: str, command: int, argument: Value | None, peer: str, *, as_gateway: bool) -> str:
        """Return why a request is not passed on; "" if it is.

        Args:
            name: The name, which is covered.
            command: What is asked for.
            argument: The argument of a call.
            peer: The client's address and port.
            as_gateway: Whether the gateway has proved its own identity to the service.
        """
        if command in (c.CMD_GET, c.CMD_MONITOR, c.CMD_GET_FIELD):
            return ""
        if command != c.CMD_RPC or "CREATE" not in name.split(":"):
            return self._end_to_end(name)
        if argument is None:
            return ""  # the service says that it is empty
        from appliance.authn.ccr import parse_request

        try:
            request = parse_request(argument)
        except ApplianceError as error:
            return str(error)  # another service may understand it, and take it for an act of the gateway
        if not request.pub_key:
            return ""  # the trust anchor is for everybody
        if request.token or (as_gateway and self.plain is None):
            return self._end_to_end(name)
        wait_s = self._limiter.take(peer_key(peer))
        return retry_sentence(wait_s) if wait_s else ""

    def takes(self, operation: Operation, name: str, argument: Value | None, *, as_gateway: bool) -> bool:
        """Refuse a request, or pass it on another way, if it must not go the ordinary one; return whether that was done."""
        why = self.refuses(name, operation.command, argument, operation.peer.peer, as_gateway=as_gateway)
        if why:
            operation.fail(why)
            return True
        plain = self.plain
        if not as_gateway or plain is None or operation.command != c.CMD_RPC or not _has_key(argument):
            return False
        _log.info("a request of %r for a certificate is passed on over plain TCP", operation.peer)
        plain.call(operation, name, argument)
        return True

    def _end_to_end(self, name: str) -> str:
        how = (
            "search for it over TLS: then the gateway's relay passes your connection on"
            if name in self._relayed
            else "this gateway has no relay for that; ask its administrator, or connect to the service itself"
        )
        return f"{name[:128]} needs TLS from you to the certificate service itself: {how}"


def _has_key(argument: Value | None) -> bool:
    from appliance.authn.ccr import parse_request

    try:
        return bool(parse_request(argument).pub_key)
    except ApplianceError:
        return False


class PlainWay:
    """Passes requests for certificates on over plain TCP, where the gateway proves nothing, so that nothing counts as its own act.

    C++ programs ask for certificates without TLS. What they send needs no secrecy, and the service judges it by its contents.

    Args:
        config: The settings of the client side.
        options: For Context.
    """

    def __init__(self, config: ClientConfig, **options: Any) -> None:
        self._config = config._replace(tls_keychain="")
        self._options = options
        self._context: Context | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def call(self, operation: Operation, name: str, argument: Value | None) -> None:
        """Call ``name`` and answer ``operation`` with what comes."""
        if len(self._tasks) >= _MAX_CALLS:
            operation.fail(retry_sentence(1.0))
            return
        task = asyncio.get_running_loop().create_task(self._call(operation, name, argument))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _call(self, operation: Operation, name: str, argument: Value | None) -> None:
        try:
            context = self._context
            if context is None:
                context = self._context = Context(self._config, beacons=False, **self._options)
                await context.start()
            answer = await context.rpc(name, argument, timeout=_TIMEOUT_S)
        except RemoteError as error:
            operation.fail(str(error).removeprefix(f"{name}: "))
        except ApplianceError as error:
            operation.fail(str(error))
        else:
            operation.reply(answer)

    async def close(self) -> None:
        """Give up what is under way."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._context is not None:
            await self._context.close()

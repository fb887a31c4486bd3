"""The PVs of a certificate service: which of their requests a gateway must not pass on as its own."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from typing import Any, Final

from appliance.authn.ratelimit import RateLimiter, peer_key, retry_sentence
from appliance.client.channel import Channel
from appliance.client.context import Context
from appliance.config.pva import ClientConfig
from appliance.errors import ApplianceError, RemoteError
from appliance.pva import commands as c
from appliance.pvdata.types import StructType
from appliance.pvdata.value import Value
from appliance.server.operation import Operation

__all__ = ["CertificateNames", "PlainWay"]

_log: Final = logging.getLogger(__name__)
_MAX_CALLS: Final = 64
"""Requests for certificates that are passed on over plain TCP at the same time."""
_TIMEOUT_S: Final = 30.0

_KINDS: Final = ("CREATE", "STATUS", "LIST", "SCHEDULE")
"""The service's PVs that do something for who is permitted to, behind the prefix of the site."""
_IA5STRING: Final = "\x16"
_PER_MINUTE: Final = 10.0
"""Requests for certificates of one host that pass without a relay; for the service they all come from the gateway."""


class _Names:
    __slots__ = ("_exact", "_longer")

    def __init__(self, names: Iterable[str]) -> None:
        self._exact = frozenset(names)
        self._longer = tuple(f"{name}:" for name in self._exact)

    def __contains__(self, name: str) -> bool:
        if name[:1] == _IA5STRING:
            # The service also answers to a status PV's name as peers of 2025 read it in certificates.
            from appliance.certs.x509 import canonical_pv_name

            name = canonical_pv_name(name)
        return name in self._exact or name.startswith(self._longer)


class CertificateNames:
    """Names that need TLS between the client and the certificate service itself.

    The service judges who connects. What a gateway passes on as its own request counts as the gateway's: its certificate would
    approve, revoke, and vouch for keys of others.

    Args:
        prefixes: The first parts of the names of services' PVs.
        relayed: The names that the gateway has a relay for; with ``:`` and more behind one, a name is meant too.
    """

    def __init__(self, prefixes: Iterable[str], relayed: Iterable[str] = ()) -> None:
        self._relayed = _Names(relayed)
        self._names = _Names({*relayed, *(f"{prefix}:{kind}" for prefix in prefixes for kind in _KINDS)})
        self._limiter = RateLimiter(_PER_MINUTE, int(_PER_MINUTE), clock=time.monotonic)
        self.plain: dict[ClientConfig, PlainWay] = {}
        """The ways for requests that need no identity, by client sides where the gateway has one of its own."""

    def covers(self, name: str) -> bool:
        """Whether this is one of the names."""
        return name in self._names

    def relays(self, name: str) -> bool:
        """Whether the gateway has a relay for the name."""
        return name in self._relayed

    def refuses(
        self,
        name: str,
        command: int,
        argument: Value | None,
        peer: str,
        *,
        as_gateway: bool,
        plain: bool = False,
    ) -> str:
        """Return why a request is not passed on; "" if it is.

        Args:
            name: The name, which is covered.
            command: What is asked for.
            argument: The argument of a call.
            peer: The client's address and port.
            as_gateway: Whether the gateway has proved its own identity to the service.
            plain: Whether there is another way where it proves nothing.
        """
        if command in (c.CMD_GET, c.CMD_MONITOR, c.CMD_GET_FIELD):
            return ""
        if command != c.CMD_RPC or "CREATE" not in name.split(":"):
            return self._end_to_end(name)
        if argument is not None and _has_secret(argument):
            return self._end_to_end(name)
        from appliance.authn.ccr import parse_request

        try:
            request = parse_request(argument)
        except ApplianceError as error:
            return str(error) if as_gateway else ""  # the service would say the same
        if not request.pub_key:
            return ""  # the trust anchor is for everybody
        if request.type != "std" or (as_gateway and not plain):
            return self._end_to_end(name)
        wait_s = self._limiter.take(peer_key(peer))
        return retry_sentence(wait_s) if wait_s else ""

    def takes(self, operation: Operation, channel: Channel, argument: Value | None) -> bool:
        """Refuse a request, or pass it on another way, if it must not go the ordinary one; return whether that was done.

        Args:
            operation: The client's request.
            channel: The channel at the service.
            argument: The argument of a call.
        """
        name = channel.name
        as_gateway = channel.end.tls is not None
        plain = self.plain.get(channel.end.config)
        why = self.refuses(
            name,
            operation.command,
            argument,
            operation.peer.peer,
            as_gateway=as_gateway,
            plain=plain is not None,
        )
        if why:
            operation.fail(why)
            return True
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


def _has_secret(argument: Value) -> bool:
    """Whether a request has more for its verifier than the proof that the requester holds the key."""
    from appliance.authn.ccr import is_empty
    from appliance.authn.proof import PROOF_FIELD

    query: Any = argument.get("query") if "query" in argument else argument
    if not isinstance(getattr(query, "type", None), StructType) or "verifier" not in query:
        return False
    verifier: Any = query.get("verifier")
    kind = getattr(verifier, "type", None)
    if not isinstance(kind, StructType):
        return True  # no form that anybody knows
    return any(name != PROOF_FIELD and not is_empty(verifier[name]) for name, _ in kind.fields)


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

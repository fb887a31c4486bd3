"""The PVs of a certificate service: which of their requests a gateway must not pass on as its own."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Final

from appliance.authn.ratelimit import RateLimiter, peer_key, retry_sentence
from appliance.errors import ApplianceError
from appliance.pva import commands as c
from appliance.pvdata.value import Value

__all__ = ["CertificateNames"]

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
        from appliance.authn.ccr import parse_request

        try:
            request = parse_request(argument)
        except ApplianceError:
            return ""  # the service says what is wrong with it
        if not request.pub_key:
            return ""  # the trust anchor is for everybody
        if request.token or as_gateway:
            return self._end_to_end(name)
        wait_s = self._limiter.take(peer_key(peer))
        return retry_sentence(wait_s) if wait_s else ""

    def _end_to_end(self, name: str) -> str:
        how = (
            "search for it over TLS: then the gateway's relay passes your connection on"
            if name in self._relayed
            else "this gateway has no relay for that; ask its administrator, or connect to the service itself"
        )
        return f"{name[:128]} needs TLS from you to the certificate service itself: {how}"

"""The admission of a client: its identity, its groups, and the status of its certificate.

What follows from a verdict about a certificate is the same at both ends: `appliance.transport.admission`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, Protocol

from appliance.errors import SecurityError
from appliance.pva.credentials import Credentials
from appliance.pva.limits import show_changed
from appliance.pvdata.value import Value
from appliance.server.roles import Roles
from appliance.transport.gate import PeerGate

__all__ = ["DEFAULT_TIMINGS", "AdmissionTimings", "Entrance", "RefusalLog", "RolesWait", "choose_identity"]

_MAX_ACCOUNT: Final = 256
_TOLD_FOR_S: Final = 60.0
_MAX_TOLD: Final = 1000


class AdmissionTimings(NamedTuple):
    """How long a server waits for a client that is not let in yet, in seconds."""

    handshake_s: float = 10.0
    """The wait until it validates its connection."""
    roles_s: float = 2.0
    """The wait for its groups; far shorter than the patience of a client."""

    def __repr__(self) -> str:
        return show_changed(self)


DEFAULT_TIMINGS: Final = AdmissionTimings()


class RefusalLog:
    """Remembers logged refusals: some clients come back with one certificate several times a second.

    Args:
        clock: Gives the time in seconds.
    """

    __slots__ = ("_clock", "_told")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told: dict[tuple[str, int, str], float] = {}

    def is_news(self, peer: Credentials, why: str) -> bool:
        """Whether this refusal of a certificate was not logged in the last minute; it counts as logged now."""
        told = self._told
        refusal = (peer.issuer_id, peer.serial, why)
        now = self._clock()
        if now - told.get(refusal, -_TOLD_FOR_S) < _TOLD_FOR_S:
            return False
        if len(told) >= _MAX_TOLD:
            told.clear()
        told[refusal] = now
        return True


class Entrance:
    """What one server asks before it lets a client in.

    Args:
        gate: Judges the certificates of clients; None where nothing but their identity counts.
        timings: How long clients are waited for.
    """

    __slots__ = ("gate", "refusals", "roles", "timings")

    def __init__(self, gate: PeerGate | None = None, timings: AdmissionTimings = DEFAULT_TIMINGS) -> None:
        self.gate = gate
        self.timings = timings
        self.roles = Roles()
        """The groups of clients' accounts."""
        self.refusals = RefusalLog()


def choose_identity(
    proved: Credentials, offered: Iterable[str], method: str, payload: Value | None
) -> Credentials:
    """Return who a client is by its choice of method (section 6.2).

    Args:
        proved: What TLS has proved.
        offered: The methods that this server offers.
        method: The one that the client has chosen.
        payload: What came with it: a name, where the client claims one.

    Returns:
        Who the client is. A name that was proved is not exchanged for one that is merely claimed.

    Raises:
        SecurityError: The method is not offered.
    """
    if method not in offered:
        raise SecurityError(
            f"authentication method {method[:32]!r} is not offered; use {' or '.join(offered)}"
        )
    if method == "ca":
        account = payload.get("user", "") if payload is not None else ""
        if (
            not isinstance(account, str)
            or not account
            or len(account) > _MAX_ACCOUNT
            or not account.isprintable()
        ):
            return proved._replace(method="anonymous", account="")
        return proved if proved.method == "x509" else proved._replace(method="ca", account=account)
    if proved.method == "x509":
        return proved  # a proved name stays, whichever method the client chose
    # A client without a certificate may choose x509 too: PVXS does if its keychain holds a trust anchor only.
    return proved._replace(method="anonymous", account="")


class RolesOwner(Protocol):
    """A client that waits for its groups. Called in the event loop, `roles_known` or `roles_late` first."""

    def roles_known(self, roles: frozenset[str]) -> None:
        """Let the client in, with these groups."""

    def roles_missing(self, waited_s: float) -> None:
        """Let the client in without groups: they are not known after ``waited_s`` seconds."""

    def roles_late(self, roles: frozenset[str]) -> None:
        """Set the groups of the client, which was let in without them."""


class RolesWait:
    """One client's wait for its groups, which ends when they are known or after a while.

    Args:
        owner: Told once how the wait ended, and later of groups that came too late.
        roles: Looks the groups up.
        patience_s: Seconds after which the client goes on without.
        loop: Measures the time.
    """

    __slots__ = ("_ended", "_loop", "_owner", "_patience_s", "_roles", "_timer")

    def __init__(
        self, owner: RolesOwner, roles: Roles, patience_s: float, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._owner = owner
        self._roles = roles
        self._patience_s = patience_s
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        """Runs while there is patience."""
        self._ended = False

    def begin(self, account: str) -> None:
        """Ask for the groups of ``account``, which are not remembered."""
        self._timer = self._loop.call_later(self._patience_s, self._too_long)
        self._roles.ask(account, self._tell, self._loop)

    def end(self) -> None:
        """Stop the wait: the client is gone."""
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_long(self) -> None:
        self._timer = None
        self._owner.roles_missing(self._patience_s)

    def _tell(self, roles: frozenset[str]) -> None:
        if self._ended:
            return
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
            self._owner.roles_known(roles)
        else:
            self._owner.roles_late(roles)

"""The interface between the server and access security: the server asks, a policy decides."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from appliance.pva import commands as c
from appliance.pva.credentials import Credentials

__all__ = ["ALL_RIGHTS", "NO_RIGHTS", "AccessControl", "AccessPolicy", "LostReaders", "Rights"]

_log: Final = logging.getLogger(__name__)
_DENIED: Final = {
    "read": "read access denied by access security",
    "write": "write access denied by access security",
    "rpc": "RPC access denied by access security",
}
_DENIED_TO_ALL: Final = {"write": "write access denied", "rpc": "RPC access denied"}
MAX_LOST_READERS: Final = 10_000
"""Pairs of a reader and a PV that are remembered; the oldest is forgotten first."""


class Rights(NamedTuple):
    """What a peer may do with a PV, and the reason why not.

    Example:
        >>> from appliance.server import Rights
        >>> Rights(read=True, why="rule READONLY").write
        False
    """

    read: bool = False
    """Whether it may read and monitor."""
    write: bool = False
    """Whether it may write."""
    rpc: bool = False
    """Whether it may call."""
    why: str = ""
    """For the log: which rules apply."""
    unchangeable: str = ""
    """Why nobody may change anything, whoever it is. A refused client is told: it says nothing about the rules."""

    @property
    def permissions(self) -> int:
        """The bits of ACL_CHANGE (section 8.2)."""
        return (
            (c.PERMIT_PUT if self.write else 0)
            | (c.PERMIT_PUT_GET if self.write and self.read else 0)
            | (c.PERMIT_RPC if self.rpc else 0)
        )


ALL_RIGHTS: Final = Rights(read=True, write=True, rpc=True)
NO_RIGHTS: Final = Rights()


class AccessPolicy(Protocol):
    """Decides what a peer may do; `appliance.Server.review_access` makes it decide again.

    Example:
        >>> from appliance.server import Rights
        >>> class OnlyReading:
        ...     def rights(self, name, peer):
        ...         return Rights(read=True)
        >>> second = Server(policy=OnlyReading())
    """

    def rights(self, name: str, peer: Credentials) -> Rights:
        """Return what a client may do. An exception counts as `NO_RIGHTS`.

        Args:
            name: The PV's name.
            peer: Who asks; its groups are in ``roles``.

        Returns:
            The rights.
        """


class LostReaders:
    """The clients that lost the right to read a PV while they had a subscription.

    Such a client had its channel taken away, which every client shows as disconnected, and opens it again at once: its
    subscription waits until reading is allowed again; the subscriptions of others are refused. A client may come back over
    another connection, so this is not kept with the connection.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, ...], None] = OrderedDict()

    @staticmethod
    def _key(name: str, peer: Credentials) -> tuple[str, ...]:
        return name, peer.method, peer.account, peer.authority, peer.peer.rpartition(":")[0]

    def add(self, name: str, peer: Credentials) -> None:
        """Remember that ``peer`` lost the right to read ``name``."""
        key = self._key(name, peer)
        self._known[key] = None
        self._known.move_to_end(key)
        if len(self._known) > MAX_LOST_READERS:
            self._known.popitem(last=False)

    def discard(self, name: str, peer: Credentials) -> None:
        """Forget that ``peer`` lost the right to read ``name``: it may read again."""
        if self._known:
            self._known.pop(self._key(name, peer), None)

    def has(self, name: str, peer: Credentials) -> bool:
        """Whether ``peer`` lost the right to read ``name`` while it had a subscription."""
        return bool(self._known) and self._key(name, peer) in self._known


class AccessControl:
    """What one server asks access security, and what it remembers of the answers.

    Args:
        policy: Decides; None gives everybody all rights.
    """

    __slots__ = ("lost_readers", "on_refused", "plight", "policy", "refusals")

    def __init__(self, policy: AccessPolicy | None = None) -> None:
        self.policy = policy
        self.lost_readers = LostReaders()
        self.refusals = 0
        """Requests that were refused."""
        self.plight = ""
        """Added to a refusal over plain TCP: why no client can prove its identity at present."""
        self.on_refused: Callable[[str, Credentials, str], None] | None = None
        """Called for each refused request with the PV's name, the client and the missing right."""

    def rights(self, name: str, peer: Credentials) -> Rights:
        """Return what ``peer`` may do with ``name``: nothing if the policy fails."""
        if self.policy is None:
            return ALL_RIGHTS
        try:
            return self.policy.rights(name, peer)
        except Exception:  # noqa: BLE001 - any doubt is less access
            _log.exception("access security failed for %s and the client %s: no access", name, peer.account)
            return NO_RIGHTS

    def denial(self, right: str, peer: Credentials, rights: Rights = NO_RIGHTS) -> str:
        """Return the message that refuses ``right``; it says why this may be temporary.

        Args:
            right: ``read``, ``write`` or ``rpc``.
            peer: The client.
            rights: What the client may do.
        """
        if rights.unchangeable and right != "read":
            return f"{_DENIED_TO_ALL[right]}: {rights.unchangeable}"
        why = _DENIED[right]
        return why if peer.is_tls or not self.plight else f"{why}; {self.plight}"

    def refused(self, name: str, peer: Credentials, right: str) -> None:
        """Count a refused request, and call ``on_refused``."""
        self.refusals += 1
        if self.on_refused is not None:
            self.on_refused(name, peer, right)

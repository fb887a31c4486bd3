"""Which names a server side serves to whom, and under which name they are looked for."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Final, Generic, NamedTuple, TypeVar

from appliance.acf import PVList
from appliance.acf.match import canonical_host

__all__ = ["BanSizes", "Route", "Router"]

MAX_HOSTS: Final = 1_000
MAX_NAMES: Final = 10_000
MAX_PAIRS: Final = 100_000

_K = TypeVar("_K", bound=Hashable)


class Route(NamedTuple):
    """Where a name leads: the name to look for, and the access security group and level of it."""

    real_name: str
    asg: str = "DEFAULT"
    asl: int = 0


class BanSizes(NamedTuple):
    """How many denials are remembered."""

    hosts: int
    names: int
    pairs: int


class _Remembered(Generic[_K]):
    """A bounded set that drops its oldest."""

    __slots__ = ("_known", "_most")

    def __init__(self, most: int) -> None:
        self._known: dict[_K, None] = {}
        self._most = most

    def __contains__(self, key: object) -> bool:
        return key in self._known

    def __len__(self) -> int:
        return len(self._known)

    def add(self, key: _K) -> None:
        if key not in self._known and len(self._known) >= self._most:
            del self._known[next(iter(self._known))]
        self._known[key] = None


class Router:
    """The PV list of one server side, and what it has denied lately.

    Names of the gateway's own PVs lead nowhere: a client must not get another server's PV under such a name.

    Args:
        pvlist: The PV list; None serves every name as itself.
        banned_hosts: Addresses whose searches are not answered.
        own: Names of the gateway's own PVs.
    """

    def __init__(
        self, pvlist: PVList | None = None, banned_hosts: Iterable[str] = (), own: Iterable[str] = ()
    ) -> None:
        self._own = set(own)
        self._hosts = frozenset(canonical_host(host) for host in banned_hosts)
        self.use(pvlist)

    def use(self, pvlist: PVList | None) -> None:
        """Use another PV list from now on; what was denied before is forgotten."""
        self._pvlist = pvlist
        self._names: _Remembered[str] = _Remembered(MAX_NAMES)
        self._pairs: _Remembered[tuple[str, str]] = _Remembered(MAX_PAIRS)

    def reserve(self, names: Iterable[str]) -> None:
        """Add names of the gateway's own PVs."""
        self._own.update(names)

    def own_route(self, name: str, host: str) -> Route:
        """Return the access security group and level of one of the gateway's own PVs: what the PV list says, else DEFAULT.

        The PV list cannot hide or rename them.
        """
        found = None if self._pvlist is None else self._pvlist.lookup(name, host)
        if found is None or found.real_name != name:
            return Route(name)
        return Route(name, found.asg, found.asl)

    def is_own(self, name: str) -> bool:
        """Whether ``name`` is one of the gateway's own PVs."""
        return name in self._own

    @property
    def own(self) -> frozenset[str]:
        """The names of the gateway's own PVs."""
        return frozenset(self._own)

    def route(self, name: str, host: str) -> Route | None:
        """Return where ``name`` leads for a client at ``host``; None if it is denied.

        Args:
            name: The name that the client gives.
            host: The client's address; "" asks what everybody gets who is not denied by address.
        """
        if name in self._own or (self._hosts and canonical_host(host) in self._hosts):
            return None
        pvlist = self._pvlist
        if pvlist is None:
            return Route(name)
        if name in self._names or (name, host) in self._pairs:
            return None
        found = pvlist.lookup(name, host)
        if found is not None:
            return Route(found.real_name, found.asg, found.asl)
        if not host or pvlist.lookup(name, "") is None:
            self._names.add(name)  # an address can only be denied more than everybody
        else:
            self._pairs.add((name, host))
        return None

    @property
    def sizes(self) -> BanSizes:
        """How many denials are remembered."""
        return BanSizes(len(self._hosts), len(self._names), len(self._pairs))

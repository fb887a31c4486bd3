"""What clients and PVs cost: octets and requests, counted where they pass.

Hot paths add to plain integers, once for a batch. Sums and rates are made only at a refresh.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from heapq import nlargest
from operator import attrgetter
from typing import Final, NamedTuple

__all__ = [
    "Accounts",
    "Connection",
    "Counts",
    "InFlight",
    "PVAccount",
    "Rate",
    "Rates",
    "Slow",
    "Top",
    "Totals",
]

LARGEST: Final = 10
"""Rows of a table, as in p4p's gateway."""
MAX_GONE: Final = 10_000
"""Names, and connections, that are remembered until the next refresh after they have ended."""
OTHERS: Final = "(others)"
"""The row of those that were not remembered."""


class PVAccount:
    """The octets and requests of one name since the last refresh.

    ``us`` is the side of its server, ``ds`` that of its clients; ``tx`` is what the gateway sends there. Whoever
    forwards adds to the fields. A name is known once at each client side, so this class has as few parts as possible.
    """

    __slots__ = ("ds_rx", "ds_tx", "requests", "us_rx", "us_tx")

    def __init__(self) -> None:
        self.us_tx = 0
        self.us_rx = 0
        self.ds_tx = 0
        self.ds_rx = 0
        self.requests = 0
        """Requests of clients."""


class Connection(NamedTuple):
    """The counts of one connection since it was made."""

    key: Hashable
    """What tells it from all others, also from a later one of the same peer."""
    name: str
    """The peer's address and port."""
    account: str = ""
    """The client's account; empty for a server."""
    tx: int = 0
    """Octets sent."""
    rx: int = 0
    """Octets received."""
    requests: int = 0
    dropped: int = 0
    """Updates that were merged into later ones, because the peer reads too slowly."""
    waiting: int = 0
    """Octets of updates that wait for the peer."""


class Rate(NamedTuple):
    """One row: octets and requests per second."""

    name: str
    account: str
    tx: float
    rx: float
    requests: float


class Top(NamedTuple):
    """The largest rows by what is sent, by what is received, and by requests."""

    tx: tuple[Rate, ...] = ()
    rx: tuple[Rate, ...] = ()
    requests: tuple[Rate, ...] = ()


class Slow(NamedTuple):
    """A client that lost updates."""

    name: str
    account: str
    dropped: int
    """Updates since the last refresh."""
    waiting: int
    """Octets that wait for it."""


class Totals(NamedTuple):
    """Counts since the gateway has started."""

    us_tx: int = 0
    us_rx: int = 0
    ds_tx: int = 0
    ds_rx: int = 0
    requests: int = 0
    dropped: int = 0


class Rates(NamedTuple):
    """What happened between two refreshes, per second."""

    seconds: float
    us_pvs: Top
    ds_pvs: Top
    us_hosts: Top
    ds_hosts: Top
    ds_total: float
    """What all clients are sent, in octets per second."""
    ds_count: int
    """Clients that were sent something."""
    slow: tuple[Slow, ...]
    """Clients that lost updates, those that lost most first."""


class Accounts:
    """The accounts of one gateway.

    A refresh is ``fold`` for all names, in slices if there are many, then ``rates``.

    Args:
        now: The time, in seconds of a clock that never goes back.
    """

    def __init__(self, now: float) -> None:
        self._since = now
        self._pvs: dict[str, list[int]] = {}
        """By name: the counts of `PVAccount` since the last refresh."""
        self._before: dict[Hashable, Connection] = {}
        """The connections as the last refresh saw them."""
        self._gone_us: dict[tuple[str, str], tuple[int, int, int]] = {}
        self._gone_ds: dict[tuple[str, str], tuple[int, int, int]] = {}
        self._ended = Totals()
        """The counts of all connections that have ended."""

    # -- what ends -----------------------------------------------------------------------------------

    def fold(self, pvs: Iterable[tuple[str, PVAccount]]) -> None:
        """Take over what was counted for some names, and set their counts to zero; also when a name is forgotten."""
        table = self._pvs
        for name, account in pvs:
            if not (account.us_rx or account.ds_tx or account.us_tx or account.ds_rx or account.requests):
                continue
            row = table.get(name)
            if row is None:
                # Names are chosen by clients, and between two refreshes any number of them may come and go.
                if len(table) >= MAX_GONE * 10:
                    name = OTHERS
                row = table.setdefault(name, [0, 0, 0, 0, 0])
            row[0] += account.us_tx
            row[1] += account.us_rx
            row[2] += account.ds_tx
            row[3] += account.ds_rx
            row[4] += account.requests
            account.us_tx = account.us_rx = account.ds_tx = account.ds_rx = account.requests = 0

    def server_gone(self, last: Connection) -> None:
        """Keep the counts of a connection to a server that has ended."""
        _keep(self._gone_us, last, self._before.pop(last.key, None))
        ended = self._ended
        self._ended = ended._replace(us_tx=ended.us_tx + last.tx, us_rx=ended.us_rx + last.rx)

    def client_gone(self, last: Connection) -> None:
        """Keep the counts of a client's connection that has ended."""
        _keep(self._gone_ds, last, self._before.pop(last.key, None))
        ended = self._ended
        self._ended = ended._replace(
            ds_tx=ended.ds_tx + last.tx,
            ds_rx=ended.ds_rx + last.rx,
            requests=ended.requests + last.requests,
            dropped=ended.dropped + last.dropped,
        )

    # -- reading -------------------------------------------------------------------------------------

    def totals(self, servers: Iterable[Connection], clients: Iterable[Connection]) -> Totals:
        """Return the counts since the start, given the connections that there are."""
        us_tx, us_rx, ds_tx, ds_rx, requests, dropped = self._ended
        for line in servers:
            us_tx += line.tx
            us_rx += line.rx
        for line in clients:
            ds_tx += line.tx
            ds_rx += line.rx
            requests += line.requests
            dropped += line.dropped
        return Totals(us_tx, us_rx, ds_tx, ds_rx, requests, dropped)

    def rates(self, now: float, servers: Iterable[Connection], clients: Iterable[Connection]) -> Rates:
        """Return the rates since the last refresh, and begin a new one."""
        seconds = max(now - self._since, 1e-3)
        self._since = now
        before, self._before = self._before, {}
        us_hosts, _ = self._lines(servers, before, self._gone_us, seconds)
        ds_hosts, slow = self._lines(clients, before, self._gone_ds, seconds)
        self._gone_us, self._gone_ds = {}, {}
        pvs, self._pvs = self._pvs, {}
        slow.sort(key=attrgetter("dropped"), reverse=True)
        return Rates(
            seconds,
            _top([_rate(name, "", row[0], row[1], 0, seconds) for name, row in pvs.items()]),
            _top([_rate(name, "", row[2], row[3], row[4], seconds) for name, row in pvs.items()]),
            _top(us_hosts),
            _top(ds_hosts),
            sum(rate.tx for rate in ds_hosts),
            sum(1 for rate in ds_hosts if rate.tx),
            tuple(slow),
        )

    def _lines(
        self,
        lines: Iterable[Connection],
        before: dict[Hashable, Connection],
        gone: dict[tuple[str, str], tuple[int, int, int]],
        seconds: float,
    ) -> tuple[list[Rate], list[Slow]]:
        rates = [_rate(*who, *counts, seconds) for who, counts in gone.items()]
        slow = []
        for line in lines:
            last = before.get(line.key)
            tx, rx, requests, dropped = line.tx, line.rx, line.requests, line.dropped
            if last is not None:
                tx -= last.tx
                rx -= last.rx
                requests -= last.requests
                dropped -= last.dropped
            self._before[line.key] = line
            if tx or rx:
                rates.append(_rate(line.name, line.account, tx, rx, requests, seconds))
            if dropped:
                slow.append(Slow(line.name, line.account, dropped, line.waiting))
        return rates, slow


def _rate(name: str, account: str, tx: int, rx: int, requests: int, seconds: float) -> Rate:
    return Rate(name, account, tx / seconds, rx / seconds, requests / seconds)


def _keep(
    gone: dict[tuple[str, str], tuple[int, int, int]], last: Connection, before: Connection | None
) -> None:
    key = (last.name, last.account)
    if key not in gone and len(gone) >= MAX_GONE:
        key = (OTHERS, "")
    tx, rx, requests = gone.get(key, (0, 0, 0))
    if before is not None:
        tx -= before.tx
        rx -= before.rx
        requests -= before.requests
    gone[key] = (tx + last.tx, rx + last.rx, requests + last.requests)


def _top(rates: list[Rate]) -> Top:
    return Top(
        *(
            tuple(nlargest(LARGEST, (rate for rate in rates if part(rate)), key=part))
            for part in map(attrgetter, Top._fields)
        )
    )


class Counts(NamedTuple):
    """How many things the gateway has at present."""

    active: int = 0
    """Names that are connected and that a client uses."""
    inactive: int = 0
    """Names that are connected and that no client uses."""
    unconnected: int = 0
    """Names that are searched for."""
    monitors: int = 0
    """Subscriptions at servers that clients share."""
    gets: int = 0
    """GETs at servers that clients share."""
    banned_hosts: int = 0
    banned_pvs: int = 0
    banned_pairs: int = 0
    """Denials of a PV to a host that are remembered."""


class InFlight:
    """Requests that wait for a server's answer. A server that never answers costs only those who ask it.

    Args:
        octets: Octets of requests that one client's connection may have.
        per_connection: Requests that it may have.
        in_all: Requests that the process may have.
    """

    __slots__ = ("_by_connection", "count", "in_all", "octets", "per_connection", "refused")

    def __init__(self, octets: int, per_connection: int = 10_000, in_all: int = 50_000) -> None:
        self.octets = octets
        self.per_connection = per_connection
        self.in_all = in_all
        self.count = 0
        """Requests that wait."""
        self.refused = 0
        """Requests that were refused since the start."""
        self._by_connection: dict[object, list[int]] = {}
        """For each connection that has some: how many, and their octets."""

    def begin(self, connection: object) -> str:
        """Count one more request of ``connection``; return why it is refused, or ""."""
        own = self._by_connection.get(connection)
        if own is None:
            if self.count < self.in_all:
                self._by_connection[connection] = [1, 0]
                self.count += 1
                return ""
        elif own[0] >= self.per_connection or own[1] >= self.octets:
            self.refused += 1
            return (
                f"{own[0]} requests of this connection with {own[1]} octets wait for answers of servers behind the gateway; "
                "wait for answers before you send more"
            )
        elif self.count < self.in_all:
            own[0] += 1
            self.count += 1
            return ""
        self.refused += 1
        return f"{self.count} requests of all clients wait for answers of servers behind the gateway; try again later"

    def weigh(self, connection: object, octets: int) -> None:
        """Count the octets of a request that has begun."""
        self._by_connection[connection][1] += octets

    def end(self, connection: object, octets: int = 0) -> None:
        """Count one request less, which had ``octets``."""
        own = self._by_connection[connection]
        self.count -= 1
        if own[0] == 1:
            del self._by_connection[connection]
        else:
            own[0] -= 1
            own[1] -= octets

    def __len__(self) -> int:
        return len(self._by_connection)

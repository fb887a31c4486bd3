"""The types and values of the gateway's own PVs, and what its log says of heavy clients and PVs.

Names, types and labels are those of p4p's gateway (``p4p.gw``), so that screens made for it go on. ``channels`` and
``health`` are additional.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from appliance.acf.match import host_of_peer
from appliance.acf.model import Decision
from appliance.gateway.accounts import Counts, Rate, Rates
from appliance.pva.credentials import Credentials
from appliance.pvdata.nt import ALARM, TIME, NTEnum, NTScalar, NTScalarArray, NTTable, now_to_time
from appliance.pvdata.types import BOOL, FLOAT64, INT32, STRING, UINT32, UINT64, ArrayType, StructType
from appliance.pvdata.value import Value

__all__ = [
    "AS_DEBUG",
    "BAD",
    "BY_CLIENT",
    "BY_NAME",
    "CHANNELS",
    "COUNT",
    "DEGRADED",
    "HEALTH",
    "NAMES",
    "OK",
    "PERMISSION",
    "REFERENCES",
    "SECONDS",
    "STATS",
    "TEXT",
    "Heaviness",
    "Judgement",
    "References",
    "Row",
    "channels_value",
    "debug_table",
    "health_value",
    "permission_value",
    "rate_table",
    "stats_value",
]

TEXT: Final = NTScalar(STRING)
NAMES: Final = NTScalarArray(STRING)
COUNT: Final = NTScalar(INT32)
SECONDS: Final = NTScalar(FLOAT64)
_NUMBER: Final = NTScalar(UINT64)

STATS: Final = StructType(
    [
        ("ccacheSize", _NUMBER),
        ("mcacheSize", _NUMBER),
        ("gcacheSize", _NUMBER),
        ("banHostSize", _NUMBER),
        ("banPVSize", _NUMBER),
        ("banHostPVSize", _NUMBER),
    ],
    "epics:p2p/Stats:1.0",
)
PERMISSION: Final = StructType(
    [
        ("pv", STRING),
        ("account", STRING),
        ("peer", STRING),
        ("roles", ArrayType(STRING)),
        ("asg", STRING),
        ("asl", INT32),
        ("permission", StructType([("put", BOOL), ("rpc", BOOL), ("uncached", BOOL), ("audit", BOOL)])),
    ],
    "epics:p2p/Permission:1.0",
)
_AS_DEBUG: Final = NTTable((("asg", STRING), ("var", STRING), ("value", FLOAT64), ("connected", BOOL)))
AS_DEBUG: Final = _AS_DEBUG.build()
_REFERENCES: Final = (
    NTTable()
    .add_column(STRING, "type", "Type")
    .add_column(UINT32, "count", "Count")
    .add_column(INT32, "delta", "Delta")
)
REFERENCES: Final = _REFERENCES.build()
_UNITS: Final = {"tx": "TX (B/s)", "rx": "RX (B/s)", "requests": "Requests/s"}


def _by(*columns: tuple[str, str]) -> dict[str, NTTable]:
    tables = {}
    for way, label in _UNITS.items():
        table = tables[way] = NTTable()
        for name, heading in columns:
            table.add_column(STRING, name, heading)
        table.add_column(FLOAT64, "rate", label)
    return tables


_TABLES: Final = {
    "pv": _by(("name", "PV")),
    "server": _by(("name", "Server")),
    "client": _by(("account", "Account"), ("name", "Client")),
}
BY_NAME: Final = _TABLES["pv"]["tx"].build()
BY_CLIENT: Final = _TABLES["client"]["tx"].build()
CHANNELS: Final = StructType(
    [
        ("active", UINT64),
        ("inactive", UINT64),
        ("unconnected", UINT64),
        ("alarm", ALARM),
        ("timeStamp", TIME),
    ],
    "epics:p2p/Channels:1.0",
)
HEALTH: Final = NTEnum()

OK: Final = 0
DEGRADED: Final = 1
BAD: Final = 2
_SEVERITY: Final = {OK: 0, DEGRADED: 1, BAD: 2}
"""The alarm severity of a state of health: none, minor, major."""
_MESSAGE: Final = 256
"""Characters of an alarm's message."""


class Row(NamedTuple):
    """One input of access security."""

    asg: str
    var: str
    value: float
    connected: bool


class Judgement(NamedTuple):
    """What access security says of one PV and one client."""

    asg: str
    asl: int
    decision: Decision


def stats_value(counts: Counts) -> Value:
    """Return the value of ``stats``."""
    value = Value(STATS)
    for name, number in (
        ("ccacheSize", counts.active + counts.inactive + counts.unconnected),
        ("mcacheSize", counts.monitors),
        ("gcacheSize", counts.gets),
        ("banHostSize", counts.banned_hosts),
        ("banPVSize", counts.banned_pvs),
        ("banHostPVSize", counts.banned_pairs),
    ):
        value[f"{name}.value"] = number
    return value


def channels_value(counts: Counts, now: float) -> Value:
    """Return the value of ``channels``."""
    value = Value(CHANNELS)
    value.assign(
        {
            "active": counts.active,
            "inactive": counts.inactive,
            "unconnected": counts.unconnected,
            "alarm": {"severity": 0, "status": 0, "message": ""},
            "timeStamp": now_to_time(now),
        }
    )
    return value


def health_value(troubles: Iterable[tuple[int, str]], now: float) -> Value:
    """Return the value of ``health``.

    Args:
        troubles: `DEGRADED` or `BAD`, and a sentence, for each thing that is wrong.
        now: The time, in seconds since 1970.
    """
    known = sorted(troubles, key=lambda trouble: -trouble[0])
    state = known[0][0] if known else OK
    value = Value(HEALTH)
    value.assign(
        {
            "value": {"index": state, "choices": ("OK", "DEGRADED", "BAD")},
            "alarm": {
                "severity": _SEVERITY[state],
                "status": 1 if state else 0,
                "message": "; ".join(text for _, text in known)[:_MESSAGE],
            },
            "timeStamp": now_to_time(now),
            "display": {"description": "health of the gateway"},
        }
    )
    return value


def _stamped(table: NTTable, columns: Mapping[str, object], now: float) -> Value:
    value = table.create()
    for name, column in columns.items():
        value[f"value.{name}"] = column
    value["timeStamp"] = now_to_time(now)
    return value


def rate_table(group: str, way: str, rates: Iterable[Rate], now: float) -> Value:
    """Return one table of rates.

    Args:
        group: ``pv``, ``server`` or ``client``.
        way: ``tx``, ``rx`` or ``requests``.
        rates: The rows, the largest first.
        now: The time, in seconds since 1970.
    """
    rows = tuple(rates)
    columns: dict[str, object] = {}
    if group == "client":
        columns["account"] = [rate.account for rate in rows]
    columns["name"] = [rate.name for rate in rows]
    columns["rate"] = [getattr(rate, way) for rate in rows]
    return _stamped(_TABLES[group][way], columns, now)


def debug_table(rows: Iterable[Row], now: float) -> Value:
    """Return the answer of ``asDebug``: the inputs of access security."""
    rows = list(rows)
    return _stamped(
        _AS_DEBUG,
        {
            "asg": [row.asg for row in rows],
            "var": [row.var for row in rows],
            "value": [row.value for row in rows],
            "connected": [row.connected for row in rows],
        },
        now,
    )


def permission_value(pv: str, peer: Credentials, judgement: Judgement) -> Value:
    """Return the answer of ``asTest``: what ``peer`` may do with ``pv``."""
    decision = judgement.decision
    value = Value(PERMISSION)
    value.assign(
        {
            "pv": pv,
            "account": peer.account,
            "peer": host_of_peer(peer.peer),
            "roles": sorted(peer.roles),
            "asg": judgement.asg,
            "asl": judgement.asl,
            "permission": {
                "put": decision.write,
                "rpc": decision.rpc,
                "uncached": decision.uncached,
                "audit": decision.trapwrite,
            },
        }
    )
    return value


class References:
    """Makes the values of ``refs``: of each value only what has changed since the one before."""

    def __init__(self) -> None:
        self._before: dict[str, int] = {}

    def value(self, counts: Mapping[str, int], now: float) -> Value:
        """Return the table of those kinds of things of which there are more or fewer than before."""
        before, self._before = self._before, dict(counts)
        changed = [
            (kind, counts.get(kind, 0), counts.get(kind, 0) - before.get(kind, 0))
            for kind in sorted({*counts, *before})
            if kind not in before or counts.get(kind, 0) != before[kind]
        ]
        return _stamped(
            _REFERENCES,
            {
                "type": [kind for kind, _, _ in changed],
                "count": [count for _, count, _ in changed],
                "delta": [delta for _, _, delta in changed],
            },
            now,
        )


_HEAVY_FROM: Final = 1_000_000.0
"""Octets per second to all clients below which nobody is called heavy."""
_AGAIN_S: Final = 60.0
"""Seconds until the log says the same of the same client or PV again."""
_MAX_TOLD: Final = 10_000
_NAMED: Final = 10
"""Slow clients that one refresh names; of further ones only the number is logged."""


class Heaviness:
    """Says in the log who is heavy and who is too slow, of each client and PV at most once a minute."""

    def __init__(self) -> None:
        self._told: dict[str, float] = {}

    def _is_news(self, what: str, now: float) -> bool:
        told = self._told
        if now - told.get(what, -_AGAIN_S) < _AGAIN_S:
            return False
        if len(told) >= _MAX_TOLD:
            self._told = told = {
                known: when for known, when in list(told.items())[_MAX_TOLD // 2 :] if now - when < _AGAIN_S
            }
        told[what] = now
        return True

    def heavy(self, rates: Rates, now: float) -> list[str]:
        """Return a sentence for each client and PV with more than half of what all clients are sent."""
        total = rates.ds_total
        if total < _HEAVY_FROM:
            return []
        found = []
        for kind, top in (("client", rates.ds_hosts), ("PV", rates.ds_pvs)):
            if kind == "client" and rates.ds_count < 2:
                continue
            for rate in top.tx[:1]:
                who = _who(rate.account, rate.name) if kind == "client" else rate.name
                if rate.tx > total / 2 and self._is_news(f"{kind} {who}", now):
                    what = "is sent" if kind == "client" else "is"
                    found.append(
                        f"the {kind} {who} {what} {min(rate.tx / total, 1.0):.0%} of all that clients are sent: "
                        f"{rate.tx / 1e6:.1f} of {total / 1e6:.1f} MB/s"
                    )
        return found

    def slow(self, rates: Rates, now: float) -> list[str]:
        """Return a sentence for each client that lost updates."""
        news = [item for item in rates.slow if self._is_news(f"slow {item.name}", now)]
        found = [
            f"{_who(item.account, item.name)} reads too slowly: {item.dropped} updates were merged into later ones in "
            f"{rates.seconds:.0f} s, {item.waiting} octets wait for it; let it subscribe to less, or look at its "
            "network and host"
            for item in news[:_NAMED]
        ]
        if len(news) > _NAMED:
            found.append(f"{len(news) - _NAMED} more clients read too slowly")
        return found


def _who(account: str, name: str) -> str:
    return f"{account or 'anonymous'}@{name}"

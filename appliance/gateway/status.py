"""The gateway's own PVs, below the ``status_prefix`` of each server side.

What they show is that of the whole process; only ``asTest`` and ``asDebug`` are those of their server side.
"""

from __future__ import annotations

import asyncio
import faulthandler
import io
import logging
import socket
import tempfile
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple, Protocol

from appliance.acf.match import canonical_host, host_of_peer, is_address
from appliance.config.hints import unknown
from appliance.errors import OperationError
from appliance.gateway import report
from appliance.gateway.accounts import Counts
from appliance.gateway.metrics import Sample
from appliance.gateway.overview import Overview
from appliance.pva.credentials import Credentials
from appliance.pvdata.nt import now_to_time
from appliance.pvdata.types import StructType
from appliance.pvdata.value import Value
from appliance.server.operation import Operation
from appliance.server.sharedpv import SharedPV
from appliance.server.source import StaticSource

__all__ = ["STATUS_PVS", "Judge", "Lookups", "Status", "StatusPV"]

_log: Final = logging.getLogger(__name__)

REFRESH_S: Final = 30.0
POKE_S: Final = 1.0
"""Seconds between two refreshes that clients may ask for."""
MAX_TEXT: Final = 256 * 1024
"""Characters of the answer of ``threads``."""
_MAX_ROLES: Final = 256
_TEST: Final = ("pv", "user", "peer", "roles", "method", "authority", "protocol")
_MAX_LOOKUPS: Final = 2
_MAX_NAME: Final = 200


class StatusPV(NamedTuple):
    """One PV of the gateway: how the reference describes it."""

    name: str
    type: StructType
    meaning: str
    is_p4ps: bool = True
    """Whether p4p's gateway has it too."""


_RATE: Final = "the ten largest"
STATUS_PVS: Final = (
    StatusPV("clients", report.NAMES, "Address and port of each client."),
    StatusPV("cache", report.NAMES, "The names that are used or looked for, as their servers know them."),
    StatusPV(
        "stats",
        report.STATS,
        "Sizes: names, shared subscriptions, shared GETs, and remembered denials by host, by PV and by both.",
    ),
    StatusPV(
        "channels",
        report.CHANNELS,
        "Names that are connected and in use, connected and not in use, and without a server.",
        is_p4ps=False,
    ),
    StatusPV(
        "health",
        report.HEALTH,
        "OK, DEGRADED or BAD, with an alarm whose message says what is wrong.",
        is_p4ps=False,
    ),
    StatusPV(
        "refs",
        report.REFERENCES,
        "Parts of the gateway by kind; an update has the kinds whose number has changed.",
    ),
    StatusPV("threads", report.TEXT, "RPC only: what each thread and each task does at present."),
    StatusPV("poke", report.COUNT, "A PUT of any number refreshes all these PVs now."),
    StatusPV("StatsTime", report.SECONDS, "Seconds that the last refresh took."),
    StatusPV("us:bypv:tx", report.BY_NAME, f"Octets per second to servers, {_RATE} PVs."),
    StatusPV("us:bypv:rx", report.BY_NAME, f"Octets per second from servers, {_RATE} PVs."),
    StatusPV("ds:bypv:tx", report.BY_NAME, f"Octets per second to clients, {_RATE} PVs."),
    StatusPV("ds:bypv:rx", report.BY_NAME, f"Octets per second from clients, {_RATE} PVs."),
    StatusPV(
        "ds:bypv:requests", report.BY_NAME, f"Requests of clients per second, {_RATE} PVs.", is_p4ps=False
    ),
    StatusPV("us:byhost:tx", report.BY_NAME, f"Octets per second to servers, {_RATE} connections."),
    StatusPV("us:byhost:rx", report.BY_NAME, f"Octets per second from servers, {_RATE} connections."),
    StatusPV("ds:byhost:tx", report.BY_CLIENT, f"Octets per second to clients, {_RATE} connections."),
    StatusPV("ds:byhost:rx", report.BY_CLIENT, f"Octets per second from clients, {_RATE} connections."),
    StatusPV(
        "ds:byhost:requests",
        report.BY_CLIENT,
        f"Requests of clients per second, {_RATE} connections.",
        is_p4ps=False,
    ),
    StatusPV(
        "asTest",
        report.TEXT,
        "RPC only: what a client may do: by the rules, `read_only`, and what the PV's server permits the gateway. Arguments: `pv`, and if it is not for yourself `user`, `peer`, `roles`, "
        "`method`, `authority`, `protocol`.",
    ),
    StatusPV("asDebug", report.TEXT, "RPC only: the inputs of access security, with their values."),
)
"""All PVs of the gateway, in the order of the reference page."""
_TABLES: Final = tuple(
    (f"{side}:by{by}:{way}", group, f"{side}_{'pvs' if by == 'pv' else 'hosts'}", way)
    for side, by, group, ways in (
        ("us", "pv", "pv", ("tx", "rx")),
        ("ds", "pv", "pv", ("tx", "rx", "requests")),
        ("us", "host", "server", ("tx", "rx")),
        ("ds", "host", "client", ("tx", "rx", "requests")),
    )
    for way in ways
)
"""Name, columns, field of `Rates` and field of `Top` of each table."""
_ONLY_RPC: Final = "Only RPC supported."
_TEXTS: Final = {"threads": "RPC only", "asTest": _ONLY_RPC, "asDebug": _ONLY_RPC}
_PER_SIDE: Final = frozenset({"asTest", "asDebug"})


class Judge(Protocol):
    """Access security of one server side."""

    def judge(self, name: str, peer: Credentials) -> report.Judgement | None:
        """Return what ``peer`` may do with the PV ``name``; None if the PV list denies it."""

    def inputs(self) -> Iterable[report.Row]:
        """Return the inputs of access security."""


class Status:
    """The values of the gateway's PVs, which are refreshed every 30 seconds.

    Args:
        overview: Looks at the gateway.
    """

    def __init__(self, overview: Overview) -> None:
        self._overview = overview
        self._references = report.References()
        self._heaviness = report.Heaviness()
        self._task: asyncio.Task[None] | None = None
        self._refreshing = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._refreshed = -POKE_S
        self._pvs = {pv.name: SharedPV(_first(pv)) for pv in STATUS_PVS if pv.name not in _PER_SIDE}
        self._pvs["threads"].on_rpc = _threads
        self._pvs["poke"].on_put = self._poke

    def source(self, prefix: str, judge: Judge) -> StaticSource:
        """Return the source of the PVs of one server side.

        Args:
            prefix: The first part of their names.
            judge: Access security of the side.
        """
        source = StaticSource()
        for name, shared in self._pvs.items():
            source.pvs[prefix + name] = shared
        side = _Side(judge)
        for pv in STATUS_PVS:
            if pv.name in _PER_SIDE:
                source.pvs[prefix + pv.name] = SharedPV(
                    _first(pv), on_rpc=side.test if pv.name == "asTest" else side.debug
                )
        return source

    # -- refreshing ----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Refresh now, and every 30 seconds from now on."""
        await self.refresh()
        self._task = self._loop.create_task(self._run(), name="status PVs")

    async def stop(self) -> None:
        """Refresh no more."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_S)
            try:
                await self.refresh()
            except Exception:  # noqa: BLE001 - the gateway goes on without fresh status PVs
                _log.exception("the status PVs could not be refreshed")

    async def _poke(self, pv: SharedPV, operation: Operation, value: Value) -> None:
        del operation
        asked = self._loop.time()
        async with self._refreshing:
            if self._refreshed < asked:  # of clients that ask at the same time, the first one does it for all
                await asyncio.sleep(self._refreshed + POKE_S - asked)
                await self._refresh()
        pv.post({"value": value["value"], "timeStamp": now_to_time(time.time())})

    async def refresh(self) -> None:
        """Post the present numbers, and say in the log who is heavy or too slow."""
        async with self._refreshing:
            await self._refresh()

    async def _refresh(self) -> None:
        loop = self._loop
        began = self._refreshed = loop.time()
        overview = self._overview
        rates = await overview.rates()
        counts = await overview.counts()
        now = time.time()
        post = self._post
        for name, group, field, way in _TABLES:
            rows = getattr(getattr(rates, field), way)
            post(name, report.rate_table(group, way, rows, now))
        post("clients", {"value": overview.client_names(), "timeStamp": now_to_time(now)})
        post("cache", {"value": overview.known_names(), "timeStamp": now_to_time(now)})
        post("stats", report.stats_value(counts))
        post("channels", report.channels_value(counts, now))
        post("refs", self._references.value(overview.references(counts), now))
        post("health", report.health_value(overview.troubles(), now))
        for line in self._heaviness.slow(rates, began):
            _log.warning("%s", line, extra={"event": "client-slow"})
        for line in self._heaviness.heavy(rates, began):
            _log.info("%s", line, extra={"event": "client-heavy"})
        post("StatsTime", {"value": loop.time() - began, "timeStamp": now_to_time(now)})

    def _post(self, name: str, value: Any) -> None:
        self._pvs[name].post(value)

    async def sample(self) -> Sample:
        """Return what the metrics are made of."""
        overview = self._overview
        counts: Counts = await overview.counts()
        troubles = overview.troubles()
        return Sample(
            overview.totals(),
            counts,
            sum(1 for _ in overview.clients()),
            sum(1 for _ in overview.servers()),
            overview.flight.count,
            overview.flight.refused,
            overview.new_names.refused,
            max((state for state, _ in troubles), default=report.OK),
        )


def _first(pv: StatusPV) -> Value:
    value = Value(pv.type)
    if pv.name in _TEXTS:
        value["value"] = _TEXTS[pv.name]
    return value


def _threads(pv: SharedPV, operation: Operation, argument: Value | None) -> Value:
    """Answer with what all threads and tasks do."""
    del pv, operation
    _query(argument, ())
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file=file)
        file.seek(0)
        threads = file.read(MAX_TEXT)
    out = io.StringIO(threads)
    out.seek(0, io.SEEK_END)
    for task in asyncio.all_tasks():
        if out.tell() > MAX_TEXT:
            break
        out.write(f"\nTask {task.get_name()}:\n")
        task.print_stack(limit=10, file=out)
    return Value(report.TEXT, {"value": out.getvalue()[:MAX_TEXT], "timeStamp": now_to_time(time.time())})


class _Side:
    """The calls that concern access security of one server side."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._lookups = Lookups()

    async def test(self, pv: SharedPV, operation: Operation, argument: Value | None) -> Value:
        """Answer what a client may do with a PV: ``asTest``."""
        del pv
        asked = _query(argument, _TEST)
        name = asked.get("pv") or ""
        if not name:
            raise OperationError("the argument pv is missing; name the PV to test, for example pv=DEMO:PV")
        peer = await _who(operation.peer, asked, self._lookups)
        judgement = self._judge.judge(name, peer)
        if judgement is None:
            raise OperationError(
                f"Denied: the PV list denies {name[:_MAX_NAME]} to {host_of_peer(peer.peer)}"
            )
        return report.permission_value(name, peer, judgement)

    def debug(self, pv: SharedPV, operation: Operation, argument: Value | None) -> Value:
        """Answer with the inputs: ``asDebug``."""
        del pv, operation
        _query(argument, ())
        return report.debug_table(self._judge.inputs(), time.time())


def _query(argument: Value | None, known: Sequence[str]) -> dict[str, Any]:
    """Return the arguments of an RPC, from an NTURI or from a plain structure. Others than those that are known are refused."""
    if argument is None:
        return {}
    given: Any = argument.to_dict()
    is_uri = isinstance(argument.type, StructType) and argument.type.id.startswith("epics:nt/NTURI:")
    query = given.get("query", {} if is_uri else given)
    if not isinstance(query, dict):
        raise OperationError("the arguments are no structure; call it with NAME=VALUE")
    for name in query:
        if name not in known:
            why = (
                unknown(f"argument {name[:64]!r}", name, known)
                if known
                else f"it takes no argument {name[:64]!r}"
            )
            raise OperationError(why)
    return query


async def _who(caller: Credentials, asked: dict[str, Any], lookups: Lookups) -> Credentials:
    """Return the client that an ``asTest`` is about: the caller, as far as no argument says otherwise."""
    user = str(asked.get("user") or "")
    roles = asked.get("roles")
    host = str(asked.get("peer") or "")
    method = str(asked.get("method") or "")
    authority = str(asked.get("authority") or "")
    protocol = str(asked.get("protocol") or "")
    if method not in ("", "ca", "x509", "anonymous") or protocol not in ("", "tcp", "tls"):
        raise OperationError("method is one of ca, x509 and anonymous, protocol one of tcp and tls")
    who = caller
    if user or method or authority or protocol:
        method = method or ("x509" if authority or protocol == "tls" else "ca")
        # A certificate proves the authority; a name without one is taken as one of the server's own authority.
        who = Credentials(
            method=method,
            account=user or caller.account,
            peer=caller.peer,
            authority=authority,
            is_tls=protocol == "tls" if protocol else method == "x509",
            home="" if method == "x509" else None,
        )
    if roles:
        names = [roles] if isinstance(roles, str) else list(roles)
        if len(names) > _MAX_ROLES:
            raise OperationError(f"roles: at most {_MAX_ROLES} names can be given")
        who = who._replace(roles=frozenset(str(name) for name in names))
    if host:
        who = who._replace(peer=f"{await lookups.address(host)}:0")
    return who


class Lookups:
    """Looks up the names of hosts that clients ask about, few at a time: each takes a thread, and a reload needs one too."""

    def __init__(self) -> None:
        self._under_way = 0

    async def address(self, host: str) -> str:
        """Return the address of a host, in the form that stands before a port.

        Raises:
            OperationError: It has none, or too many names are looked up already.
        """
        address = canonical_host(host)
        if not is_address(address):
            address = await self._look_up(host[:255])
        return f"[{address}]" if ":" in address else address

    async def _look_up(self, host: str) -> str:
        if self._under_way >= _MAX_LOOKUPS:
            raise OperationError(
                "peer: too many names are looked up at present; write the address in numbers, or ask again later"
            )
        self._under_way += 1
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_DGRAM)
        except (OSError, UnicodeError):
            raise OperationError(f"peer: {host[:64]!r} has no address; write it in numbers") from None
        finally:
            self._under_way -= 1
        return str(found[0][4][0])

"""CERT:HEALTH and CERT:METRICS.

Source: SPVA specification 10.2; structures as in the reference of 2026.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Final

from appliance.certs.status import CertState
from appliance.cms.dialect import is_sqlite
from appliance.cms.issuing import Issuing
from appliance.cms.lifecycle import Lifecycle
from appliance.cms.model import utc
from appliance.cms.nodes import Nodes
from appliance.cms.publisher import Publisher
from appliance.cms.pvs import Counters
from appliance.cms.reading import counts
from appliance.cms.store import Store
from appliance.cms.transaction import Transaction
from appliance.cms.wire_types import HEALTH, METRICS
from appliance.errors import ApplianceError
from appliance.pvdata import Value
from appliance.pvdata.nt import now_to_time
from appliance.server import SharedPV

__all__ = ["Health"]

_MAJOR: Final = 2
_MINOR: Final = 1
_PROBE_S: Final = 2.0
_COUNTED_AT_ONCE: Final = 20_000
"""Records of the audit up to which certificates are counted by each check. Where there are more, that is done beside it."""
_COUNT_SHARE: Final = 100
"""A count waits for so many times as long as the last one has taken."""
_TOLD_S: Final = 3600.0
"""Seconds for which the health says that the database has lost something."""
_CLOCK_S: Final = 5.0
"""Seconds that the clocks of this host and of the database may differ."""


class Health:
    """Checks the service and reports on two PVs."""

    def __init__(
        self,
        store: Store,
        lifecycle: Lifecycle,
        issuing: Issuing,
        publisher: Publisher,
        counters: Counters,
        nodes: Nodes | None = None,
    ) -> None:
        self._nodes = nodes
        self._store = store
        self._lifecycle = lifecycle
        self._issuing = issuing
        self._publisher = publisher
        self._counters = counters
        self._started = time.monotonic()
        self.states: Counter[CertState] | None = None
        """The number of certificates by state, when they were counted last; None: not yet."""
        self._counting: asyncio.Task[None] | None = None
        self._count_at = float("-inf")
        self._problem = self._warning = ""
        self._db_ok = self._ca_valid_now = False
        self.files: dict[str, str] = {}
        """Files that the next start needs, with a description of each."""
        self.others: list[Callable[[], str]] = []
        """Further checks. Each returns what is wrong, or nothing."""
        self.warnings: list[Callable[[], str]] = []
        """What is not wrong yet. Each returns what somebody has to do, or nothing."""
        self.numbers: dict[str, Callable[[], int]] = {}
        """Further fields of CERT:METRICS, with what tells their values."""
        self.backup = ""
        """Why the last backup failed."""
        self.damage = ""
        """What the last check of the whole database found."""
        health = Value(HEALTH)
        health["value.choices"] = ("Not OK", "OK")
        health["display.description"] = "health of the certificate management service"
        # The C++ pvxcert reads both fields in any case; a single service is a cluster of one member.
        health["cluster_mode"] = store.database.is_server
        health["cluster_members"] = 1
        metrics = Value(METRICS)
        metrics["display.description"] = "Number of active (VALID) certificates"
        metrics["display.units"] = "certs"
        self.health = SharedPV(health)
        self.metrics = SharedPV(metrics)

    def _gone(self) -> str:
        for path, what in self.files.items():
            if not os.path.exists(path):  # noqa: PTH110 - a microsecond, and pathlib costs start-up time
                return f"{what} {path} is missing; the service still uses what it read from it: put it back before the next start"
        return ""

    async def check(self) -> None:
        """Check, and post the result."""
        now = self._lifecycle.clock()
        try:
            problem = await self._probed()
        except ApplianceError as error:
            problem = str(error)
        db_ok = not problem and self._store.healthy and not self.damage
        if not db_ok and not problem:
            problem = self.damage or self._lost() or "the database could not be written"
        ca_valid = self._ca_valid(now)
        if not ca_valid:
            problem = problem or "the certificate authority is not valid now"
        self._lifecycle.catch_up_journal()
        if not problem and self._lifecycle.journal.missing:
            problem = "the revocation journal cannot be written"
        problem = problem or self._of_the_server()
        problem = problem or self._lifecycle.journal.lost or self._gone() or self.backup
        problem = problem or next((said for look in self.others if (said := look())), "")
        self._problem, self._db_ok, self._ca_valid_now = problem, db_ok, ca_valid
        self._warning = "" if problem else next((said for look in self.warnings if (said := look())), "")
        self._post()

    def _post(self) -> None:
        """Tell what is known."""
        now, problem, warning = self._lifecycle.clock(), self._problem, self._warning
        states: Counter[CertState] = Counter() if self.states is None else self.states
        seconds = now.timestamp()
        uptime = int(time.monotonic() - self._started)
        stamp = now_to_time(seconds)
        alarm = {
            "severity": _MAJOR if problem else _MINOR if warning else 0,
            "status": 1 if problem or warning else 0,
            "message": (problem or warning)[:256],
        }
        self.health.post(
            {
                "value": {"index": 0 if problem else 1},
                "alarm": alarm,
                "timeStamp": stamp,
                "db_ok": self._db_ok,
                "ca_valid": self._ca_valid_now,
                "uptime_secs": uptime,
                "cert_count": states.total(),
                "last_check": f"{now:%Y-%m-%dT%H:%M:%SZ}",
                **self._members(),
            }
        )
        counters = self._counters
        self.metrics.post(
            {
                "value": states[CertState.VALID],
                "timeStamp": stamp,
                "certs_created": self._lifecycle.created,
                "certs_revoked": self._lifecycle.revoked,
                "avg_ccr_time_ms": counters.average_ms,
                "db_size_bytes": self._size(),
                "uptime_secs": uptime,
                "ccrs_refused": counters.refused,
                "ccrs_rate_limited": counters.limited,
                "ccrs_in_flight": counters.in_flight,
                "certs_pending_approval": states[CertState.PENDING_APPROVAL],
                "status_signed": self._publisher.signed,
                "db_commits": self._store.commits,
                "renewals": self._lifecycle.renewed,
                "certs_pending_renewal": states[CertState.PENDING_RENEWAL],
                "certs_scheduled_offline": states[CertState.SCHEDULED_OFFLINE],
                "cluster_members": self._alive(),
                **{name: number() for name, number in self.numbers.items()},
            }
        )

    def summary(self) -> str:
        """Return one line for the service manager."""
        states = self.states
        counted = (
            "certificates are being counted"
            if states is None
            else f"{states.total()} certificates, {states[CertState.PENDING_APPROVAL]} wait for approval"
        )
        return f"issuer {self._issuing.names.issuer_id}, {counted}" + ("; NOT OK" if self._problem else "")

    async def _probed(self) -> str:
        """Read and write a little; return what is wrong."""
        if self._store.database.state == "lost":
            return self._lost()
        probe = self._store.submit(_probe, trial=True)
        if self._store.database.is_server:
            # What is lost must be said before all that waits for it has been refused.
            done, _ = await asyncio.wait((probe,), timeout=_PROBE_S)
            if not done:
                probe.cancel()
                return self._lost() or "the database does not answer"
        is_small = await probe <= _COUNTED_AT_ONCE
        if self._counting is None and (is_small or time.monotonic() >= self._count_at):
            self._counting = asyncio.get_running_loop().create_task(self._count(tell=not is_small))
        if is_small and self._counting is not None:
            await asyncio.wait((self._counting,), timeout=_PROBE_S)
        return ""

    async def _count(self, *, tell: bool) -> None:
        begin = time.monotonic()
        try:
            job = partial(counts, issuer=self._store.issuer)
            by_state = await self._lifecycle.readers.read_much(job)
            self.states = Counter({CertState(state): number for state, number in by_state.items()})
        except (ApplianceError, ValueError):
            return  # the next probe says what is wrong
        finally:
            self._counting = None
            now = time.monotonic()
            self._count_at = now + _COUNT_SHARE * (now - begin)
        if tell:
            self._post()

    def stop(self) -> None:
        """Begin nothing more."""
        if self._counting is not None:
            self._counting.cancel()

    def _lost(self) -> str:
        database = self._store.database
        if database.state == "up":
            return ""
        # Anybody reads this. Where the server is, and what it answers, is for the log.
        return f"the database is lost since {utc(int(database.lost_since)):%Y-%m-%dT%H:%M:%SZ}; the service's log says why"

    def _of_the_server(self) -> str:
        """Return what is wrong between this node and the database server, though it works."""
        restored = self._store.restored_at
        if restored and time.time() - restored < _TOLD_S:
            return (
                f"at {utc(int(restored)):%Y-%m-%dT%H:%M:%SZ} the database was older than before: what was issued shortly before may be "
                "unknown, revocations and used tokens were recorded again"
            )
        if time.monotonic() - self._store.unreplicated_at < _TOLD_S:
            return "a commit was not confirmed by the database's standby, so a fail-over may lose it; look at the standby"
        off = 0.0 if self._nodes is None else self._nodes.clock_offset_s
        if abs(off) > _CLOCK_S:
            return f"this host's clock is {abs(off):.0f} s {'behind' if off > 0 else 'ahead of'} the database's; correct it"
        return ""

    def _members(self) -> dict[str, object]:
        """Return what CERT:HEALTH says of the nodes."""
        if self._nodes is None:
            return {}
        shown: list[dict[str, object]] = []
        for member in self._nodes.members:
            major, minor, patch = member.version
            is_self = member.node == self._nodes.name
            shown.append(
                {
                    "node_id": member.node_id,
                    "version_major": major,
                    "version_minor": minor,
                    "version_patch": patch,
                    "connected": self._store.database.state == "up" if is_self else member.is_alive,
                    "name": member.node,
                    "last_seen": f"{utc(member.seen_at):%Y-%m-%dT%H:%M:%SZ}",
                }
            )
        return {"cluster_members": self._alive(), "members": shown}

    def _alive(self) -> int:
        """Return how many nodes live; a service with a file is one."""
        return 1 if self._nodes is None else len(self._nodes.alive) or 1

    def _ca_valid(self, now: datetime) -> bool:
        issuer = self._issuing.issuer
        return all(
            certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc
            for certificate in (issuer.certificate, *issuer.chain)
        )

    def _size(self) -> int:
        size = 0
        if is_sqlite(self._store.where):
            for suffix in ("", "-wal"):
                with contextlib.suppress(OSError):
                    size += os.stat(self._store.where + suffix).st_size  # noqa: PTH116
        return size


def _probe(transaction: Transaction) -> int:
    """Write a little: a full disk then shows before a requester meets it. Return the length of the audit."""
    import sqlalchemy as sa

    from appliance.cms.schema import meta

    transaction.flush()
    connection = transaction.connection
    stamp = str(int(time.time()))
    if connection.execute(sa.update(meta).where(meta.c.key == "probe").values(value=stamp)).rowcount == 0:
        connection.execute(sa.insert(meta).values(key="probe", value=stamp))
    return transaction.audit_head[0]

"""CERT:HEALTH and CERT:METRICS.

Source: SPVA specification 10.2; structures as in the reference of 2026.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import Final

from appliance.certs.status import CertState
from appliance.cms.dialect import is_sqlite
from appliance.cms.issuing import Issuing
from appliance.cms.lifecycle import Lifecycle
from appliance.cms.publisher import Publisher
from appliance.cms.pvs import Counters
from appliance.cms.store import Store
from appliance.cms.transaction import Transaction, counts
from appliance.cms.wire_types import HEALTH, METRICS
from appliance.errors import ApplianceError
from appliance.pvdata import Value
from appliance.pvdata.nt import now_to_time
from appliance.server import SharedPV

__all__ = ["Health"]

_MAJOR: Final = 2


class Health:
    """Checks the service and reports on two PVs."""

    def __init__(
        self, store: Store, lifecycle: Lifecycle, issuing: Issuing, publisher: Publisher, counters: Counters
    ) -> None:
        self._store = store
        self._lifecycle = lifecycle
        self._issuing = issuing
        self._publisher = publisher
        self._counters = counters
        self._started = time.monotonic()
        self._states: Counter[CertState] = Counter()
        self._ok = True
        self.files: dict[str, str] = {}
        """Files that the next start needs, with a description of each."""
        self.others: list[Callable[[], str]] = []
        """Further checks. Each returns what is wrong, or nothing."""
        self.numbers: dict[str, Callable[[], int]] = {}
        """Further fields of CERT:METRICS, with what tells their values."""
        self.backup = ""
        """Why the last backup failed."""
        self.damage = ""
        """What the last check of the whole database found."""
        health = Value(HEALTH)
        health["value.choices"] = ("Not OK", "OK")
        health["display.description"] = "health of the certificate management service"
        # There is no cluster. The C++ pvxcert reads both fields in any case; a single service is a cluster of one member.
        health["cluster_mode"] = False
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
            by_state = await self._store.submit(_probe, trial=True)
            self._states = Counter({CertState(state): number for state, number in by_state.items()})
            problem = ""
        except ApplianceError as error:
            problem = str(error)
        db_ok = not problem and self._store.healthy and not self.damage
        if not db_ok and not problem:
            problem = self.damage or "the database could not be written"
        ca_valid = self._ca_valid(now)
        if not ca_valid:
            problem = problem or "the certificate authority is not valid now"
        self._lifecycle.catch_up_journal()
        if not problem and self._lifecycle.journal.missing:
            problem = "the revocation journal cannot be written"
        problem = problem or self._lifecycle.journal.lost or self._gone() or self.backup
        problem = problem or next((said for look in self.others if (said := look())), "")
        self._ok = not problem
        seconds = now.timestamp()
        uptime = int(time.monotonic() - self._started)
        stamp = now_to_time(seconds)
        alarm = {
            "severity": _MAJOR if problem else 0,
            "status": 1 if problem else 0,
            "message": problem[:256],
        }
        self.health.post(
            {
                "value": {"index": 0 if problem else 1},
                "alarm": alarm,
                "timeStamp": stamp,
                "db_ok": db_ok,
                "ca_valid": ca_valid,
                "uptime_secs": uptime,
                "cert_count": self._states.total(),
                "last_check": f"{now:%Y-%m-%dT%H:%M:%SZ}",
            }
        )
        states = self._states
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
                **{name: number() for name, number in self.numbers.items()},
            }
        )

    def summary(self) -> str:
        """Return one line for the service manager."""
        states = self._states
        return (
            f"issuer {self._issuing.names.issuer_id}, {states.total()} certificates, "
            f"{states[CertState.PENDING_APPROVAL]} wait for approval" + ("" if self._ok else "; NOT OK")
        )

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


def _probe(transaction: Transaction) -> dict[str, int]:
    """Count, and also write: a full disk then shows before a requester meets it."""
    import sqlalchemy as sa

    from appliance.cms.schema import meta

    transaction.flush()
    connection = transaction.connection
    stamp = str(int(time.time()))
    if connection.execute(sa.update(meta).where(meta.c.key == "probe").values(value=stamp)).rowcount == 0:
        connection.execute(sa.insert(meta).values(key="probe", value=stamp))
    return counts(transaction)

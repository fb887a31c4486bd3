"""Databases with many certificates, as years of service leave them: every state, an audit record for each row."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import sqlalchemy as sa

from appliance.certs.schedule import Schedule, parse_windows
from appliance.certs.status import CertState
from appliance.cms.schema import audit, certs
from appliance.daemon.audit import GENESIS, canonical, chain

DAY_S = 86_400
_STATES = (
    *[CertState.VALID] * 60,
    *[CertState.EXPIRED] * 20,
    *[CertState.REVOKED] * 10,
    *[CertState.PENDING] * 3,
    *[CertState.PENDING_RENEWAL] * 3,
    *[CertState.SCHEDULED_OFFLINE] * 2,
    *[CertState.PENDING_APPROVAL] * 2,
)
_SAN = ("", "", "", '[["dns","softioc.example.org"]]')


def rows(count: int, issuer: str, *, now: int, seed: int = 1) -> Iterator[dict[str, Any]]:
    """Yield rows of the table ``certs``, the oldest first. No state is one that the clock has left at ``now``."""
    rng = random.Random(seed)
    elsewhen = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")[
        (datetime.fromtimestamp(now, UTC).isoweekday() + 3) % 7
    ]
    shift = Schedule(parse_windows(f"{elsewhen},08:00,17:00"), by="admin").to_text()
    for number in range(count):
        state = rng.choice(_STATES)
        created = now - DAY_S - (count - number) // 10
        ends = now + DAY_S * (30 + rng.randrange(700))
        if state is CertState.EXPIRED:
            ends = created + 30 + rng.randrange(1000)
        renews = 0
        if state is CertState.PENDING_RENEWAL:
            renews = now - 60
        elif state is CertState.VALID and number % 4 == 0:
            renews = now + DAY_S * (1 + rng.randrange(20))
        name, place = f"host{number:07d}", f"hall{number % 23}"
        yield {
            "serial": rng.getrandbits(63) or 1,
            "issuer": issuer,
            "subject": f"{name}\x1flab\x1f{place}\x1f",
            "cn": name,
            "o": "lab",
            "ou": place,
            "c": "",
            "usage": ("client", "server", "ioc")[number % 3],
            "method": "std",
            "identity": "",
            "skid": f"{rng.getrandbits(160):040x}",
            "not_before": now + DAY_S if state is CertState.PENDING else created,
            "not_after": ends,
            "renew_by": renews,
            "state": state.value,
            "state_date": created,
            "approved": state is not CertState.PENDING_APPROVAL,
            "delivered": 1,
            "created": created,
            "key_id": f"{rng.getrandbits(256):064x}",
            "barred": state is CertState.REVOKED and number % 2 == 0,
            "no_status": False,
            "renewed_at": created if renews else 0,
            "cadence": 0,
            "san": _SAN[number % 4],
            "schedule": shift if state is CertState.SCHEDULED_OFFLINE else "",
        }


def fill(connection: sa.Connection, count: int, issuer: str, *, now: int, seed: int = 1) -> None:
    """Add ``count`` certificates, each with its record in the audit. Call it inside a transaction."""
    head = connection.execute(
        sa.select(audit.c.seq, audit.c.hash).order_by(audit.c.seq.desc()).limit(1)
    ).first()
    seq, sealed = (0, GENESIS) if head is None else (head.seq, head.hash)
    indexes = list(certs.indexes) if count >= 100_000 else []
    for index in indexes:
        index.drop(connection)
    made = rows(count, issuer, now=now, seed=seed)
    while some := list(islice(made, 5000)):
        connection.execute(sa.insert(certs), some)
        records = []
        for row in some:
            seq += 1
            columns = {"seq": seq, "at": row["created"], "action": "create", "serial": str(row["serial"])}
            record = {
                **columns,
                "method": "std",
                "account": "",
                "peer": "",
                "subject": f"CN={row['cn']}, O=lab",
            }
            sealed = chain(sealed, record)
            records.append({**columns, "record": canonical(record).decode(), "hash": sealed})
        connection.execute(sa.insert(audit), records)
    for index in indexes:
        index.create(connection)

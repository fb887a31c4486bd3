"""CERT:LIST: certificates for administrators. It is this service's own."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from appliance.certs.schedule import Schedule
from appliance.certs.status import STATE_CHOICES, CertState
from appliance.certs.x509 import cert_id
from appliance.cms.lifecycle import Lifecycle
from appliance.cms.model import names_of
from appliance.cms.policy import Names, Policy
from appliance.cms.pvs import CalledPV, Tasks
from appliance.cms.rows import shown_schedule
from appliance.cms.schema import certs
from appliance.cms.transaction import Transaction
from appliance.errors import RequestRefused
from appliance.pvdata import STRING, UINT64, Value
from appliance.pvdata.nt import NTTable, now_to_time
from appliance.server import Operation

__all__ = ["ListPV"]

_LIST_MAX: Final = 10_000
_LIST_DEFAULT: Final = 1000
_ORDER: Final = (
    CertState.PENDING_APPROVAL,
    CertState.PENDING_RENEWAL,
    CertState.PENDING,
    CertState.VALID,
    CertState.SCHEDULED_OFFLINE,
    CertState.EXPIRED,
    CertState.REVOKED,
)
_LISTED: Final = {
    "serial": "", "state": "state", "cn": "name", "o": "organization", "ou": "organization_unit", "c": "country",
    "usage": "usage", "method": "type", "not_before": "not_before", "not_after": "not_after",
    "state_date": "status_date", "created": "created", "no_status": "", "san": "", "schedule": "",
    "renew_by": "renew_by",
}  # fmt: skip
"""Columns of the database that CERT:LIST shows, with the field of each; empty if it is shown in another form."""
_EXTENSION: Final = {None: "unknown", False: "yes", True: "no"}
"""Whether a certificate names its status PV, by what the database says of ``no_status``."""

LIST: Final = NTTable(
    [
        ("cert_id", STRING),
        ("state", STRING),
        ("name", STRING),
        ("organization", STRING),
        ("organization_unit", STRING),
        ("country", STRING),
        ("usage", STRING),
        ("type", STRING),
        ("not_before", UINT64),
        ("not_after", UINT64),
        ("status_date", UINT64),
        ("created", UINT64),
        ("status_extension", STRING),
        ("san", STRING),
        ("schedule", STRING),
        ("renew_by", UINT64),
    ]
)


class ListPV(CalledPV):
    """CERT:LIST: certificates for administrators, those that wait for approval first."""

    __slots__ = ("_lifecycle", "_names", "_policy", "_tasks", "on_refused")

    def __init__(self, lifecycle: Lifecycle, names: Names, policy: Policy, tasks: Tasks) -> None:
        super().__init__(LIST.build(), "call this PV: RPC with the optional queries state, subject and limit")
        self._lifecycle = lifecycle
        self._names = names
        self._policy = policy
        self._tasks = tasks

    def rpc(self, operation: Operation, argument: Value | None) -> None:
        """Answer with a table."""
        if not self._policy.administers(operation.peer):
            raise RequestRefused("only administrators may list certificates")
        query: Any = argument
        if query is not None and "query" in query:
            query = query["query"]
        states = _states(_query(query, "state"))
        subject = _query(query, "subject")[:256]
        limit = _query(query, "limit") or str(_LIST_DEFAULT)
        if not limit.isascii() or not limit.isdecimal() or len(limit) > 9 or not 0 < int(limit) <= _LIST_MAX:
            raise RequestRefused(f"limit must be a number from 1 to {_LIST_MAX}")
        self._tasks.start(operation, self._list(operation, states, subject, int(limit)))

    async def _list(self, operation: Operation, states: list[str], subject: str, limit: int) -> None:
        rank = sa.case(
            {state.value: index for index, state in enumerate(_ORDER)}, value=certs.c.state, else_=99
        )
        columns = [certs.c[name] for name in _LISTED]

        def job(transaction: Transaction) -> list[tuple[Any, ...]]:
            transaction.flush()
            query = sa.select(*columns).where(certs.c.issuer == transaction._issuer)
            if states:
                query = query.where(certs.c.state.in_(states))
            if subject:
                found = [certs.c[n].icontains(subject, autoescape=True) for n in ("cn", "o", "ou", "c")]
                query = query.where(sa.or_(*found))
            query = query.order_by(rank, certs.c.created.desc()).limit(limit)
            return [tuple(row) for row in transaction.connection.execute(query)]

        rows = await self._lifecycle.store.submit(job)
        value = LIST.create()
        listed = dict(zip(_LISTED, zip(*rows, strict=True) if rows else [()] * len(columns), strict=True))
        for column, field in _LISTED.items():
            if field:
                value[f"value.{field}"] = list(listed[column])
        value["value.cert_id"] = [cert_id(self._names.issuer_id, serial) for serial in listed["serial"]]
        value["value.status_extension"] = [_EXTENSION[without] for without in listed["no_status"]]
        value["value.san"] = [", ".join(map(str, names_of(text))) for text in listed["san"]]
        value["value.schedule"] = [
            shown_schedule(Schedule.from_text(text)) if text else "" for text in listed["schedule"]
        ]
        value["timeStamp"] = now_to_time(self._lifecycle.clock().timestamp())
        operation.reply(value)


def _query(query: Any, field: str) -> str:
    value = "" if query is None else query.get(field, default="")
    if isinstance(value, str | int) and not isinstance(value, bool):
        return str(value)
    raise RequestRefused(f"the query {field} must be text")


def _states(text: str) -> list[str]:
    states = [word.strip().upper() for word in text.split(",") if word.strip()]
    for state in states:
        if state not in STATE_CHOICES:
            raise RequestRefused(f"the state {state[:32]!r} is not known; use {', '.join(STATE_CHOICES)}")
    return states

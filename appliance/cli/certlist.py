"""``pvxcert list``: the certificates that a service has issued, as its administrators see them."""

from __future__ import annotations

from appliance.cli.common import OK, Output, complain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime
    from typing import Any

    from appliance.client.context import Context

__all__ = ["EXPIRING", "STATES", "Filters", "list_certificates"]

EXPIRING = 8
"""Exit status of ``--expiring`` if there is any such certificate."""
STATES = (
    "PENDING_APPROVAL",
    "PENDING",
    "VALID",
    "PENDING_RENEWAL",
    "SCHEDULED_OFFLINE",
    "EXPIRED",
    "REVOKED",
    "UNKNOWN",
)
_OVER = frozenset({"EXPIRED", "REVOKED"})
_DATES = ("not_before", "not_after", "status_date", "created", "renew_by")
"""Columns that are times: POSIX seconds on the wire, 0 for none."""
_COLUMNS = (
    ("state", "STATE"),
    ("cert_id", "CERTIFICATE ID"),
    ("usage", "USAGE"),
    ("type", "TYPE"),
    ("not_before", "VALID FROM"),
    ("not_after", "EXPIRES ON"),
    ("status_extension", "STATUS"),
    ("renew_by", "RENEW BY"),
    ("schedule", "SCHEDULE"),
    ("san", "SAN"),
    ("subject", "SUBJECT"),
)
_IF_ANY = frozenset({"renew_by", "schedule", "san"})
"""Columns that are shown only if a certificate has something there."""


class Filters:
    """Which certificates to list.

    Args:
        states: Any of these; empty means all.
        subject: A part of the subject, in any case.
        limit: Greatest number; 0 means all.
        expiring: Those in use or to come that end before this date.
    """

    __slots__ = ("expiring", "limit", "states", "subject")

    def __init__(self, states: list[str], subject: str, limit: int, expiring: datetime | None = None) -> None:
        self.states = states
        self.subject = subject
        self.limit = limit
        self.expiring = expiring

    def query(self) -> dict[str, str]:
        """Return what to ask the service. It does not know ``expiring``, so a limit together with it is applied here."""
        query: dict[str, str] = {}
        if self.states:
            query["state"] = ",".join(self.states)
        if self.subject:
            query["subject"] = self.subject
        if self.limit and self.expiring is None:
            query["limit"] = str(self.limit)
        return query

    def select(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the wanted rows; with ``expiring`` those that end first come first."""
        if self.expiring is None:
            return rows
        end = self.expiring.timestamp()
        found = [
            row
            for row in rows
            if row.get("state") not in _OVER
            and isinstance(row.get("not_after"), int)
            and row["not_after"] <= end
        ]
        found.sort(key=lambda row: int(row["not_after"]))
        return found[: self.limit] if self.limit else found


async def list_certificates(
    context: AbstractAsyncContextManager[Context],
    name: str,
    filters: Filters,
    *,
    as_json: bool,
    timeout: float,
) -> int:
    """Ask the PV ``name`` and print the answer; return the exit status."""
    from appliance.errors import OperationTimeoutError, RemoteError

    try:
        async with context as asking:
            table = await asking.rpc(name, filters.query(), timeout=timeout)
    except OperationTimeoutError as error:
        raise OperationTimeoutError(
            f"{error}. Not every certificate service has a list of its certificates"
        ) from error
    if table is None:
        raise RemoteError(f"{name}: the answer is empty")
    rows = filters.select(_rows(table))
    if as_json:
        out = Output(json=True)
        for row in rows:
            out.object(**{key: _iso(value) if key in _DATES else value for key, value in row.items()})
    else:
        _print_table(rows)
    return EXPIRING if rows and filters.expiring is not None else OK


def _iso(seconds: Any) -> str | None:
    """Return a date of the wire in ISO 8601, None for 0 and for what is not a date."""
    from datetime import UTC, datetime

    try:
        return datetime.fromtimestamp(int(seconds), UTC).isoformat() if seconds else None
    except (TypeError, ValueError, OverflowError, OSError):
        return None


def _rows(table: Any) -> list[dict[str, Any]]:
    from appliance.certs.x509 import parse_cert_id, shown_id
    from appliance.errors import PVDataError, RemoteError

    try:
        view = table["value"]
        columns = {name: list(view[name]) for name in view.keys()}  # noqa: SIM118 - a View, no dictionary
    except (PVDataError, TypeError) as error:
        raise RemoteError(f"the list of certificates cannot be read: {error}") from error
    if len({len(column) for column in columns.values()}) > 1 or "cert_id" not in columns:
        raise RemoteError("the list of certificates is not a table")
    rows = []
    for index in range(len(columns["cert_id"])):
        row: dict[str, Any] = {name: _plain_item(column[index]) for name, column in columns.items()}
        try:
            row["cert_id"] = shown_id(*parse_cert_id(str(row["cert_id"])))
        except Exception:  # noqa: BLE001 - shown as it came: a list with one odd row is still a list
            row["cert_id"] = str(row["cert_id"])
        rows.append(row)
    return rows


def _plain_item(item: Any) -> Any:
    return item.item() if hasattr(item, "item") else item


def _print_table(rows: list[dict[str, Any]]) -> None:
    from appliance.authn.report import printable
    from appliance.certs.x509 import shown_subject

    if not rows:
        complain("no certificates")
        return
    columns = [
        (key, title) for key, title in _COLUMNS if key not in _IF_ANY or any(row.get(key) for row in rows)
    ]
    table = [[title for _, title in columns]]
    for row in rows:
        subject = shown_subject(
            (short, str(row[key]))
            for short, key in (
                ("CN", "name"),
                ("C", "country"),
                ("O", "organization"),
                ("OU", "organization_unit"),
            )
            if row.get(key)
        )
        cells = {**row, "subject": subject}
        cells |= {name: _date(row.get(name)) for name in ("not_before", "not_after")}
        cells["renew_by"] = _date(row["renew_by"]) if row.get("renew_by") else ""
        table.append([printable(str(cells.get(key, ""))) for key, _ in columns])
    widths = [max(len(line[i]) for line in table) for i in range(len(columns) - 1)]
    for line in table:
        print(
            "  ".join(
                [*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]]
            ).rstrip()
        )


def _date(seconds: Any) -> str:
    from datetime import UTC, datetime

    from appliance.certs.status import format_date

    try:
        return format_date(datetime.fromtimestamp(int(seconds), UTC))
    except (TypeError, ValueError, OverflowError, OSError):
        return ""

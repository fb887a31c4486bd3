"""``pvxcert list``: the certificates that a service has issued, as its administrators see them."""

from __future__ import annotations

import argparse

from appliance.cli.common import OK, Output, complain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime
    from typing import Any

    from appliance.client.context import Context

__all__ = [
    "EXPIRING",
    "STATES",
    "Filters",
    "Table",
    "add_list_options",
    "check_issuer",
    "contradiction",
    "list_certificates",
]

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
_PAGE = 1000
"""Certificates in the answer to a query without a limit."""
_LARGEST_PAGE = 10_000
_FLAGS = {
    "name": "--name",
    "issuer": "--issuer",
    "expires_after": "--expires-after",
    "expires_before": "--expires-before",
}
"""Queries that services know since they have pages, with the options that ask them."""
_NOBODY = "no server answered the search"
"""What a time-out says if the PV was not found; otherwise it says why its server cannot be used."""
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


def add_list_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``pvxcert list``."""
    listing = parser.add_argument_group("list")
    listing.add_argument(
        "--state",
        metavar="STATE",
        action="append",
        default=[],
        choices=STATES,
        help=f"Only these states; may be repeated. One of {', '.join(STATES)}.",
    )
    listing.add_argument(
        "--expiring",
        metavar="DURATION",
        default="",
        help="Only those that end within this time, like 30d, and are not over; status 8 if there is any.",
    )
    listing.add_argument("--pending", action="store_true", help="The same as --state PENDING_APPROVAL.")
    listing.add_argument(
        "--subject", metavar="TEXT", default="", help="Only subjects that contain the text, in any case."
    )
    listing.add_argument(
        "--name", metavar="TEXT", default="", help="Only names (CN) that begin with the text, sorted by name."
    )
    listing.add_argument(
        "--expires-after",
        metavar="DATE",
        type=_when,
        help="Only those that end at this date or later, the earliest first: 2027-01-31, or 2027-01-31T12:00:00; UTC unless "
        "it says otherwise.",
    )
    listing.add_argument(
        "--expires-before", metavar="DATE", type=_when, help="Only those that end before this date."
    )
    listing.add_argument("--limit", metavar="N", type=_limit, default=0, help="At most so many certificates.")
    listing.add_argument("--all", action="store_true", help="All certificates, and not only the first 1000.")


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 0 < len(text) < 10 and int(text)):
        raise argparse.ArgumentTypeError(f"expected a number of certificates, at least 1, not {text!r}")
    return int(text)


def _when(text: str) -> datetime:
    from datetime import UTC, datetime

    try:
        when = datetime.fromisoformat(text)
        return when if when.tzinfo else when.replace(tzinfo=UTC)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a date such as 2027-01-31 or 2027-01-31T12:00:00, not {text[:64]!r}"
        ) from None


def contradiction(options: argparse.Namespace, *, is_list: bool) -> str:
    """Return why the options of ``list`` cannot be used like this; empty if they can."""
    dates = options.expires_after or options.expires_before
    texts = options.subject or options.name
    filters = options.state or options.pending or texts or dates or options.limit or options.expiring
    if (filters or options.all) and not is_list:
        return (
            "--state, --pending, --subject, --name, --limit, --all, --expiring, --expires-after and --expires-before are for: "
            "pvxcert list"
        )
    if options.expiring and dates:
        return "--expiring counts from now; it cannot be used with --expires-after or --expires-before"
    if options.all and options.limit:
        return "--all and --limit contradict each other"
    return ""


def check_issuer(text: str) -> None:
    """Raise ConfigurationError for what is no issuer ID."""
    if len(text) != 8 or not frozenset("0123456789abcdef").issuperset(text.lower()):
        from appliance.errors import ConfigurationError

        raise ConfigurationError(
            f"{text[:64]!r} is not an issuer ID; write eight hex digits such as 47530d89"
        )


class Filters:
    """Which certificates to list.

    Args:
        states: Any of these; empty means all.
        subject: A part of the subject, in any case.
        limit: Greatest number; 0 means one page, or all with ``everything`` and ``expiring``.
        expiring: Those in use or to come that end before this date.
        name: The beginning of the name (CN).
        issuer: Those of this authority, by its issuer ID.
        ends_after: Those that end at this date or later.
        ends_before: Those that end before this date.
        everything: Go through all pages.
    """

    __slots__ = ("_newer", "everything", "expiring", "limit", "states", "subject")

    def __init__(
        self,
        states: list[str],
        subject: str,
        limit: int,
        expiring: datetime | None = None,
        *,
        name: str = "",
        issuer: str = "",
        ends_after: datetime | None = None,
        ends_before: datetime | None = None,
        everything: bool = False,
    ) -> None:
        self.states = states
        self.subject = subject
        self.limit = limit
        self.expiring = expiring
        self.everything = everything or bool(limit) or expiring is not None
        found = {
            "name": name,
            "issuer": issuer,
            "expires_after": ends_after.isoformat() if ends_after else "",
            "expires_before": ends_before.isoformat() if ends_before else "",
        }
        self._newer = {query: text for query, text in found.items() if text}

    @classmethod
    def of(cls, options: argparse.Namespace) -> Filters:
        """Return what a command line asks for.

        Raises:
            ConfigurationError: A value cannot be used.
        """
        expiring = None
        if options.expiring:
            from appliance.config.duration import parse_duration

            expiring = parse_duration(options.expiring).after(_now())
        if options.issuer:
            check_issuer(options.issuer)
        return cls(
            [*options.state, *(["PENDING_APPROVAL"] if options.pending else [])],
            options.subject,
            options.limit,
            expiring,
            name=options.name,
            issuer=options.issuer.lower(),
            ends_after=options.expires_after,
            ends_before=options.expires_before,
            everything=options.all,
        )

    def query(self, left: int) -> dict[str, str]:
        """Return what to ask the service for the next page.

        Args:
            left: The certificates that are still wanted; 0 means all.
        """
        query = dict(self._newer)
        states = self.states
        if self.expiring is not None:
            from datetime import timedelta

            states = states or [state for state in STATES if state not in _OVER and state != "UNKNOWN"]
            query["expires_before"] = self.expiring.isoformat()
            # What is not over has not ended yet. A day, for a clock that differs.
            query["expires_after"] = (min(self.expiring, _now()) - timedelta(days=1)).isoformat()
        elif left:
            # An older service does not know dates, so with `expiring` the limit is applied here.
            query["limit"] = str(min(left, _LARGEST_PAGE))
        if states:
            query["state"] = ",".join(states)
        if self.subject:
            query["subject"] = self.subject
        return query

    def select(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the wanted rows of a page; with ``expiring`` those that end first come first."""
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
        return found

    def check(self, table: Any, name: str) -> None:
        """Raise RemoteError if the service is older than a filter that is used."""
        from appliance.errors import RemoteError

        if self._newer and "next" not in table:
            asked = ", ".join(_FLAGS[query] for query in self._newer)
            raise RemoteError(
                f"{name}: this certificate service is older than this tool and does not know {asked}; leave it out, or update "
                "the service"
            )


async def list_certificates(
    context: AbstractAsyncContextManager[Context],
    name: str,
    filters: Filters,
    *,
    as_json: bool,
    timeout: float,
) -> int:
    """Ask the PV ``name`` and print what comes, page by page; return the exit status."""
    from appliance.errors import AccessDeniedError, OperationTimeoutError

    printed = 0
    is_whole = False
    out = Output(json=True) if as_json else None
    table = Table()
    try:
        async with context as asking:
            async for rows, more in _pages(asking, name, filters, timeout):
                printed += len(rows)
                if out is None:
                    table.print(rows, is_all=not more and printed == len(rows))
                    continue
                for row in rows:
                    out.object(**{key: _iso(value) if key in _DATES else value for key, value in row.items()})
        is_whole = True
    except BrokenPipeError:
        is_whole = True  # whoever reads it has had enough
        raise
    except AccessDeniedError as error:
        raise AccessDeniedError(
            f"{error}. Only the administrators that the service's access security file names may list its certificates"
        ) from error
    except OperationTimeoutError as error:
        if printed or _NOBODY not in str(error):
            raise
        raise OperationTimeoutError(
            f"{error}. Not every certificate service has a list of its certificates"
        ) from error
    finally:
        if printed and not is_whole:
            complain(f"The list is not complete: it ends after {printed} certificates")
    if not printed and not as_json:
        complain("no certificates")
    return EXPIRING if printed and filters.expiring is not None else OK


async def _pages(
    context: Context, name: str, filters: Filters, timeout: float
) -> AsyncIterator[tuple[list[dict[str, Any]], bool]]:
    """Yield the wanted rows of each page, and whether others follow."""
    from appliance.errors import RemoteError

    place, left = "", filters.limit
    found, total = 0, ""
    while True:
        query = filters.query(left or (_PAGE - found if found and not filters.everything else 0))
        if place:
            query["after"] = place
        table = await context.rpc(name, query, timeout=timeout)
        if table is None:
            raise RemoteError(f"{name}: the answer is empty")
        filters.check(table, name)
        rows = _rows(table)
        is_full = len(rows) == int(query.get("limit", _PAGE))
        rows = filters.select(rows)
        if left:
            rows = rows[:left]
            left -= len(rows)
        found += len(rows)
        total = total or _total(table)
        former, place = place, str(table["next"]) if "next" in table else ""
        if place and place == former:
            raise RemoteError(f"{name}: the service answers the same page again and again")
        is_done = bool(filters.limit) and not left
        # A page may be short, because the service looks at so many certificates for it and no more.
        if is_done or not (place and (filters.everything or found < _PAGE)):
            yield rows, False
            if is_done:
                return
            if place:
                complain(f"There are more certificates{total}; add --all to see all of them, or a filter")
            elif is_full and "next" not in table:
                complain("Warning: this certificate service has no pages; there may be more certificates")
            return
        yield rows, True


def _total(table: Any) -> str:
    """Return how many certificates the list has, if the service has counted them."""
    how = str(table["total_is"]) if "total_is" in table and "total" in table else ""
    about = {"exact": "", "estimate": "about "}.get(how)
    return "" if about is None else f" ({about}{int(table['total'])} in all)"


def _now() -> datetime:
    from datetime import UTC, datetime

    return datetime.now(UTC)


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


class Table:
    """Prints rows as they come, with the heading above the first ones. Columns become only wider."""

    __slots__ = ("_columns", "_widths")

    def __init__(self) -> None:
        self._columns: list[tuple[str, str]] = []
        self._widths: list[int] = []

    def print(self, rows: list[dict[str, Any]], *, is_all: bool) -> None:
        """Print rows; ``is_all`` if no others follow, so that columns without content can be left out."""
        if not rows:
            return
        table = []
        if not self._columns:
            self._columns = [
                (key, title)
                for key, title in _COLUMNS
                if not is_all or key not in _IF_ANY or any(row.get(key) for row in rows)
            ]
            self._widths = [0] * (len(self._columns) - 1)
            table.append([title for _, title in self._columns])
        table += [self._line(row) for row in rows]
        self._widths = [max(known, *(len(line[i]) for line in table)) for i, known in enumerate(self._widths)]
        for line in table:
            cells = [cell.ljust(width) for cell, width in zip(line, self._widths, strict=False)]
            print("  ".join([*cells, line[-1]]).rstrip())

    def _line(self, row: dict[str, Any]) -> list[str]:
        from appliance.authn.report import printable
        from appliance.certs.x509 import shown_subject

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
        return [printable(str(cells.get(key, ""))) for key, _ in self._columns]


def _date(seconds: Any) -> str:
    from datetime import UTC, datetime

    from appliance.certs.status import format_date

    try:
        return format_date(datetime.fromtimestamp(int(seconds), UTC))
    except (TypeError, ValueError, OverflowError, OSError):
        return ""

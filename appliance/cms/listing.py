"""CERT:LIST: certificates for administrators, in pages. It is this service's own."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from appliance.certs.schedule import Schedule
from appliance.certs.status import STATE_CHOICES, CertState
from appliance.certs.x509 import cert_id
from appliance.cms.lifecycle import Lifecycle
from appliance.cms.model import names_of
from appliance.cms.policy import Names, Policy
from appliance.cms.pvs import CalledPV, Tasks
from appliance.cms.reading import Readers
from appliance.cms.rows import shown_schedule
from appliance.cms.schema import certs
from appliance.epoch import LAST_SECOND
from appliance.errors import RequestRefused
from appliance.pvdata import STRING, UINT64, StructType, Value
from appliance.pvdata.nt import NTTable, now_to_time
from appliance.server import Operation

__all__ = ["ListPV", "Place", "Wanted", "count_all", "find_page"]

_LIST_MAX: Final = 10_000
_LIST_DEFAULT: Final = 1000
_LOOKED_AT: Final = 20_000
"""Rows that one page looks at, at most, to find those that fit."""
_COUNTED: Final = 100_000
"""Certificates that are counted for the first page of a list, at most: some milliseconds."""
_LARGEST: Final = (1 << 63) - 1
_LONGEST: Final = 256
"""Characters of a text that is searched for."""
_LONGEST_PLACE: Final = 2048
_CREATED: Final = "created"
_EXPIRY: Final = "expiry"
_NAME: Final = "name"
_VERSION: Final = "v1:"
_EXACT: Final = "exact"
_ESTIMATE: Final = "estimate"
_RANK: Final = (
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

_TABLE: Final = NTTable(
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
LIST: Final = StructType(
    [*_TABLE.build().fields, ("next", STRING), ("total", UINT64), ("total_is", STRING)], _TABLE.build().id
)
"""``next`` is where the next page begins. ``total_is`` says whether ``total``, the length of the whole list, is ``exact`` or an
``estimate`` (some time old); empty: it was not counted."""


# ---------------------------------------------------------------------- the search


class Place(NamedTuple):
    """A place in a list: behind the row with these values. It is no secret and proves nothing."""

    order: str
    section: int
    key: int | str
    serial: int

    def to_text(self) -> str:
        """Return the text that a client gives back to get the next page."""
        data = json.dumps(self, separators=(",", ":")).encode()
        return _VERSION + base64.urlsafe_b64encode(data).decode("ascii")

    @classmethod
    def from_text(cls, text: str) -> Place:
        """Read what `to_text` returned.

        Raises:
            RequestRefused: It is something else.
        """
        if not text.startswith(_VERSION) or len(text) > _LONGEST_PLACE:
            raise RequestRefused(_NO_PLACE)
        try:
            order, section, key, serial = json.loads(
                base64.b64decode(text.removeprefix(_VERSION), b"-_", validate=True)
            )
        except (ValueError, TypeError, RecursionError, binascii.Error):
            raise RequestRefused(_NO_PLACE) from None
        is_place = (
            order in (_CREATED, _EXPIRY, _NAME)
            and _within(section, len(_RANK) - 1)
            and _within(serial, _LARGEST)
            and (_is_storable(key) if order == _NAME else _within(key, LAST_SECOND))
        )
        if not is_place:
            raise RequestRefused(_NO_PLACE)
        return cls(order, section, key, serial)


_NO_PLACE: Final = "the query after must be the text next of an earlier answer to the same query"


def _is_storable(text: object) -> bool:
    """Whether the databases can be asked for a text."""
    if not isinstance(text, str) or "\0" in text:
        return False
    return text.isascii() or not any("\ud800" <= each <= "\udfff" for each in text)


def _within(number: object, largest: int) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number <= largest


class Wanted(NamedTuple):
    """Which certificates to list, and in which order."""

    issuer: str
    states: tuple[str, ...] = ()
    """Any of these; empty: all."""
    subject: str = ""
    """A part of CN, O, OU or C, in any case."""
    name: str = ""
    """The beginning of CN."""
    ends_from: int = 0
    """First second (POSIX) of ``not_after`` that is wanted."""
    ends_before: int = LAST_SECOND + 1
    """First second after those that are wanted."""
    order: str = _CREATED
    limit: int = _LIST_DEFAULT
    after: Place | None = None

    def ranked(self) -> list[str]:
        """Return the states that are wanted, those that wait for somebody first."""
        return [state.value for state in _RANK if not self.states or state.value in self.states]


class _At(NamedTuple):
    key: int | str
    serial: int


class _Section(NamedTuple):
    """Rows that follow each other in one index: ``fixed`` is what the index finds, ``rest`` what each row is asked.

    Keys are from ``low`` on and below ``high``, where these are set.
    """

    key: sa.ColumnElement[Any]
    falls: bool
    fixed: list[sa.ColumnElement[bool]]
    rest: list[sa.ColumnElement[bool]]
    low: Any = None
    high: Any = None

    def between(self, after: _At | None = None, edge: _At | None = None) -> list[sa.ColumnElement[bool]]:
        """Return what is true of the rows behind ``after`` up to ``edge``.

        The keys have one bound on each side, as near as it can be: SQLite uses no more, and PostgreSQL estimates nothing else.
        """
        first, last = (edge, after) if self.falls else (after, edge)
        where = list(self.fixed)
        low = [key for key in (self.low, None if first is None else first.key) if key is not None]
        if low:
            where.append(self.key >= max(low))
        if last is not None:
            where.append(self.key <= last.key)
        elif self.high is not None:
            where.append(self.key < self.high)
        here = sa.tuple_(self.key, certs.c.serial)
        if after is not None:
            place = sa.tuple_(sa.literal(after.key), sa.literal(after.serial))
            where.append(here < place if self.falls else here > place)
        if edge is not None:
            place = sa.tuple_(sa.literal(edge.key), sa.literal(edge.serial))
            where.append(here >= place if self.falls else here <= place)
        return where

    @property
    def order(self) -> list[sa.ColumnElement[Any]]:
        columns = (self.key, certs.c.serial)
        return [column.desc() if self.falls else column.asc() for column in columns]


def find_page(
    connection: sa.Connection, wanted: Wanted, *, looked_at: int = _LOOKED_AT
) -> tuple[list[tuple[Any, ...]], Place | None]:
    """Read one page of a list.

    A page ends when it is full, or when ``looked_at`` rows were looked at. So it may be short, or empty, and the list goes on.

    Args:
        connection: A connection to the database, in a transaction.
        wanted: What to list.
        looked_at: Rows that are looked at, at most, where no index finds only those that fit.

    Returns:
        The rows, with the columns of CERT:LIST, and the place where the next page begins; None at the end.
    """
    sections = _sections(connection, wanted)
    columns = [certs.c[name] for name in _LISTED]
    found: list[tuple[int, sa.Row[Any]]] = []
    begin = 0 if wanted.after is None else wanted.after.section
    for number, section in enumerate(sections):
        if number < begin:
            continue
        after = wanted.after if number == begin else None
        start = None if after is None else _At(after.key, after.serial)
        where, edge = section.between(start), None
        if section.rest:
            seen = _count(connection, where, looked_at)
            if seen == looked_at:
                edge = _at(connection, section, where, looked_at - 1)
                where = section.between(start, edge)
            looked_at -= seen
        query = sa.select(section.key.label("_key"), *columns).where(*where, *section.rest)
        # One more than is shown tells whether there are more.
        query = query.order_by(*section.order).limit(wanted.limit + 1 - len(found))
        found += [(number, row) for row in connection.execute(query)]
        if len(found) > wanted.limit:
            last_section, last = found[wanted.limit - 1]
            place = Place(wanted.order, last_section, last[0], last.serial)
            return [tuple(row[1:]) for _, row in found[: wanted.limit]], place
        if edge is not None:
            return [tuple(row[1:]) for _, row in found], Place(wanted.order, number, *edge)
    return [tuple(row[1:]) for _, row in found], None


def count_all(connection: sa.Connection, wanted: Wanted, *, most: int = _COUNTED) -> int | None:
    """Return how many certificates a list has; None if they are more than ``most``, or if no index tells."""
    total = 0
    for section in _sections(connection, wanted._replace(after=None)):
        if section.rest:
            return None
        total += _count(connection, section.between(), most + 1 - total)
        if total > most:
            return None
    return total


def _count(connection: sa.Connection, where: Sequence[sa.ColumnElement[bool]], most: int) -> int:
    rows = sa.select(certs.c.serial).where(*where).limit(most).subquery()
    return int(connection.execute(sa.select(sa.func.count()).select_from(rows)).scalar_one())


def _at(
    connection: sa.Connection, section: _Section, where: Sequence[sa.ColumnElement[bool]], offset: int
) -> _At:
    query = sa.select(section.key, certs.c.serial).where(*where).order_by(*section.order)
    return _At(*connection.execute(query.limit(1).offset(offset)).one())


def _sections(connection: sa.Connection, wanted: Wanted) -> list[_Section]:
    """Return the parts of the list in their order, each with what one index can find."""
    mine = certs.c.issuer == wanted.issuer
    subject = [certs.c[n].icontains(wanted.subject, autoescape=True) for n in ("cn", "o", "ou", "c")]
    rest = [sa.or_(*subject)] if wanted.subject else []
    # An empty text or a zero is added where no index shall be used: the planner would, and then sort a million rows.
    ends = certs.c.not_after + 0
    expiry = [ends >= wanted.ends_from] if wanted.ends_from else []
    expiry += [ends < wanted.ends_before] if wanted.ends_before <= LAST_SECOND else []
    states = [certs.c.state.concat("").in_(wanted.ranked())] if wanted.states else []
    cn = certs.c.cn if wanted.order == _NAME else certs.c.cn.concat("")
    # The order of code points, which the beginning of a name needs; SQLite has it anyway.
    cn = cn if connection.dialect.name == "sqlite" else sa.collate(cn, "C")
    begins = [cn >= wanted.name, cn < _behind_all(wanted.name)] if wanted.name else []
    if wanted.order == _EXPIRY:
        rest = [*states, *begins, *rest]
        return [_Section(certs.c.not_after, False, [mine], rest, wanted.ends_from, wanted.ends_before)]
    if wanted.order == _NAME:
        low, high = (wanted.name, _behind_all(wanted.name)) if wanted.name else (None, None)
        return [_Section(cn, False, [mine], [*states, *expiry, *rest], low, high)]
    rest = [*expiry, *begins, *rest]
    return [
        _Section(certs.c.created, True, [mine, certs.c.state == state], rest) for state in wanted.ranked()
    ]


def _behind_all(beginning: str) -> str:
    """Return the first text, in the order of code points, that is behind all with this beginning."""
    kept = beginning.rstrip("\U0010ffff")
    if not kept:
        return "\U0010ffff" * (len(beginning) + _LONGEST)
    last = ord(kept[-1]) + 1
    return kept[:-1] + chr(0xE000 if 0xD800 <= last < 0xE000 else last)


# ---------------------------------------------------------------------- the PV


class ListPV(CalledPV):
    """CERT:LIST: certificates for administrators, those that wait for approval first."""

    __slots__ = ("_counted", "_lifecycle", "_names", "_policy", "_readers", "_tasks", "on_refused")

    def __init__(
        self,
        lifecycle: Lifecycle,
        readers: Readers,
        names: Names,
        policy: Policy,
        tasks: Tasks,
        counted: Callable[[], Mapping[CertState, int] | None],
    ) -> None:
        hint = "call this PV: RPC with the optional queries state, subject, name, expires_after, expires_before and limit"
        super().__init__(LIST, hint)
        self._lifecycle = lifecycle
        self._readers = readers
        self._names = names
        self._policy = policy
        self._tasks = tasks
        self._counted = counted

    def rpc(self, operation: Operation, argument: Value | None) -> None:
        """Answer with a table."""
        if not self._policy.administers(operation.peer):
            raise RequestRefused("only administrators may list certificates")
        query: Any = argument
        if query is not None and "query" in query:
            query = query["query"]
        self._tasks.start(operation, self._list(operation, _wanted(query, self._names.issuer_id)))

    async def _list(self, operation: Operation, wanted: Wanted) -> None:
        def job(connection: sa.Connection) -> tuple[list[tuple[Any, ...]], Place | None, int | None]:
            rows, after = find_page(connection, wanted)
            if wanted.after is not None:
                return rows, after, None
            return rows, after, len(rows) if after is None else count_all(connection, wanted)

        rows, after, total = await self._readers.read_much(job)
        value = _answer(wanted.issuer, rows, after, self._lifecycle.clock())
        states = self._counted()
        if total is not None:
            value["total"], value["total_is"] = total, _EXACT
        elif states is not None and wanted.after is None and self._is_of_states(wanted):
            value["total"] = sum(states.get(CertState(state), 0) for state in wanted.ranked())
            value["total_is"] = _ESTIMATE
        operation.reply(value)

    def _is_of_states(self, wanted: Wanted) -> bool:
        """Whether nothing but the state decides what is in the list."""
        return wanted._replace(states=(), order=_CREATED, limit=_LIST_DEFAULT) == Wanted(
            self._names.issuer_id
        )


def _answer(issuer_id: str, rows: Sequence[tuple[Any, ...]], after: Place | None, now: datetime) -> Value:
    value = Value(LIST)
    value["labels"] = _TABLE.create()["labels"]
    listed = dict(zip(_LISTED, zip(*rows, strict=True) if rows else [()] * len(_LISTED), strict=True))
    for column, field in _LISTED.items():
        if field:
            value[f"value.{field}"] = list(listed[column])
    value["value.cert_id"] = [cert_id(issuer_id, serial) for serial in listed["serial"]]
    value["value.status_extension"] = [_EXTENSION[without] for without in listed["no_status"]]
    value["value.san"] = [", ".join(map(str, names_of(text))) for text in listed["san"]]
    value["value.schedule"] = [
        shown_schedule(Schedule.from_text(text)) if text else "" for text in listed["schedule"]
    ]
    value["timeStamp"] = now_to_time(now.timestamp())
    value["next"] = "" if after is None else after.to_text()
    return value


def _wanted(query: Any, issuer_id: str) -> Wanted:
    limit = _query(query, "limit") or str(_LIST_DEFAULT)
    if not limit.isascii() or not limit.isdecimal() or len(limit) > 9 or not 0 < int(limit) <= _LIST_MAX:
        raise RequestRefused(f"limit must be a number from 1 to {_LIST_MAX}")
    issuer = _query(query, "issuer").strip().lower() or issuer_id
    if len(issuer) != 8 or not frozenset("0123456789abcdef").issuperset(issuer):
        raise RequestRefused("the query issuer must be an issuer ID: eight hex digits such as 47530d89")
    name = _query(query, "name")
    if len(name) > _LONGEST:
        raise RequestRefused(f"the query name is longer than {_LONGEST} characters, so no certificate has it")
    ends_from, ends_before = _date(query, "expires_after"), _date(query, "expires_before")
    # What is found by an index comes in its order, so that a page need not look at rows that do not fit.
    natural = _NAME if name else _CREATED if ends_from is None and ends_before is None else _EXPIRY
    order = _query(query, "order") or natural
    if order not in (_CREATED, _EXPIRY, _NAME):
        raise RequestRefused(f"the order {order[:32]!r} is not known; use {_CREATED}, {_EXPIRY} or {_NAME}")
    place = _query(query, "after")
    after = Place.from_text(place) if place else None
    if after is not None and after.order != order:
        raise RequestRefused(_NO_PLACE)
    return Wanted(
        issuer,
        _states(_query(query, "state")),
        _query(query, "subject")[:_LONGEST],
        name,
        0 if ends_from is None else ends_from,
        LAST_SECOND + 1 if ends_before is None else ends_before,
        order,
        int(limit),
        after,
    )


def _query(query: Any, field: str) -> str:
    value = "" if query is None else query.get(field, default="")
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise RequestRefused(f"the query {field} must be text")
    text = str(value)
    if not _is_storable(text):
        raise RequestRefused(f"the query {field} must be text in UTF-8, without NUL characters")
    return text


def _date(query: Any, field: str) -> int | None:
    text = _query(query, field).strip()
    if not text:
        return None
    try:
        if text.isascii() and text.isdecimal():
            seconds = int(text[:20])
        else:
            when = datetime.fromisoformat(text)
            seconds = int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError):
        seconds = -1
    if not 0 <= seconds <= LAST_SECOND:
        raise RequestRefused(
            f"the query {field} must be a date such as 2027-01-31 or 2027-01-31T12:00:00Z, or POSIX seconds, not "
            f"{text[:64]!r}"
        )
    return seconds


def _states(text: str) -> tuple[str, ...]:
    states = [word.strip().upper() for word in text.split(",") if word.strip()]
    for state in states:
        if state not in STATE_CHOICES:
            raise RequestRefused(f"the state {state[:32]!r} is not known; use {', '.join(STATE_CHOICES)}")
    return tuple(states)

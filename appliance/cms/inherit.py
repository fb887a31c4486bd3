"""What a request gets from earlier certificates of its subject and its key: an approval, their place, or a refusal.

A name is only claimed. What counts is a proof: the private key of an earlier certificate, a connection with it, or a
token of the same identity. See docs/explanation/trust-model.md, "What rests on what".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Final

from appliance.certs.schedule import Schedule
from appliance.certs.status import CertState
from appliance.cms.key_uses import KeyUse
from appliance.cms.model import NewCertificate, san_text
from appliance.cms.transaction import IN_DOUBT, CertRecord
from appliance.errors import RequestRefused

__all__ = [
    "BARRED",
    "LATE",
    "LOST",
    "Deliveries",
    "answer_lost",
    "approved_before",
    "came_of_token",
    "changes_authority",
    "has_just_been_answered",
    "is_alike",
    "key_problem",
    "may_supersede",
    "other_holder",
    "proves_the_name",
]

BARRED: Final = "the key is that of a certificate that was revoked, and is never certified again"

LOST: Final = "requested again by the holder of its key: its answer was lost"
_ANSWERED_S: Final = 10
"""After so many seconds a node that lives has given its answer."""
LATE: Final = "requested again by the holder of its key: it had given up before its answer came"
_GIVEN_UP_S: Final = 60
"""So long after its certificate a requester that has given up may ask again."""

_SHORTEST_MONTH: Final = timedelta(days=28)
_MONTHS_DIFFER: Final = timedelta(days=4)
"""So far two lives of equally many months or years may differ, and some minutes."""
_CLOCKS_DIFFER: Final = timedelta(minutes=15)


def key_problem(request: NewCertificate, uses: Iterable[KeyUse]) -> str:
    """Return why a key is not certified for this request; empty if it may be."""
    for use in uses:
        if use.barred:
            return f"{BARRED}; request with a new key (move the keychain away)"
        if use.usage == "cms":
            return "the key is the certificate service's own; request with a key of your own"
        if use.subject != request.key and not request.proved:
            # Otherwise an attacker could have somebody's key certified in his own name and revoked, which would bar the key.
            return (
                "the key is that of another subject's certificate, and the request does not prove that you hold it; "
                "request with a new key"
            )
    return ""


def approved_before(request: NewCertificate, known: Iterable[CertRecord]) -> bool:
    """Whether the last certificate that counts was approved, and the request asks for no more than an administrator saw.

    That is the usage, the alternative names, the length of its life and the hours that the holder asked for.

    Those count that the requester proves to be his; with ``inherit_unproven`` all that the standard authenticator obtained, unless
    the request has alternative names.
    """
    if not request.inherit:
        return False
    mine = [record for record in known if record.state is not CertState.PENDING_APPROVAL]
    if request.inherit_unproven and not request.identity and not request.san:
        mine = [record for record in mine if record.method == "std"]
    else:
        mine = [record for record in mine if request.is_of(record)]
    if not mine:
        return False
    last = max(mine, key=lambda record: (record.state_date, record.not_after))
    if request.san and last.san != san_text(request.san):
        return False
    if request.not_after - request.not_before > _longest_like(last) or _has_more_hours(request, last):
        return False
    return last.approved and last.usage in (request.usage, "ioc")


def _longest_like(last: CertRecord) -> timedelta:
    """Return how long the next certificate may live: as long as the approved one, in calendar months."""
    life = timedelta(seconds=last.not_after - last.not_before)
    return life + (_MONTHS_DIFFER if life >= _SHORTEST_MONTH else _CLOCKS_DIFFER)


def _has_more_hours(request: NewCertificate, last: CertRecord) -> bool:
    """Whether the request leaves out hours that the approved certificate's holder had asked for. An administrator's come by themselves."""
    had = Schedule.from_text(last.schedule)
    asked = request.schedule
    return had.by == "holder" and bool(had.windows) and (had.windows, had.zone) != (asked.windows, asked.zone)


def other_holder(request: NewCertificate, live: Iterable[CertRecord]) -> str:
    """Return why a token does not get a name that another identity holds; empty if none does.

    An identity is an issuer with a subject, but the certificate names only the issuer's host.
    """
    if request.identity and any(r.identity and r.identity != request.identity for r in live):
        return (
            "the name belongs to another identity: a token of another issuer on the same host, or of another account, has a "
            "certificate for this name that is not revoked or expired"
        )
    return ""


def proves_the_name(request: NewCertificate, known: Iterable[CertRecord]) -> bool:
    """Whether a token, or an earlier certificate that an administrator approved, proves that the name is the requester's."""
    return bool(request.identity) or any(record.approved and request.is_of(record) for record in known)


def changes_authority(request: NewCertificate, old: CertRecord, issuer: str) -> bool:
    """Whether the holder of a former authority's certificate asks for one of the present authority ``issuer``.

    The old one stays: connections use it until the new one is in the keychain. Whoever cannot prove that it is his meets the
    usual rule, or names without a proof could be had by the first who asks.
    """
    return old.issuer != issuer and request.is_of(old)


def may_supersede(
    request: NewCertificate, old: CertRecord, state: CertState, *, granted: bool, proven: bool
) -> str:
    """Return why a live certificate of the same subject gives way to the request; empty if it does not.

    Args:
        request: The request.
        old: The live certificate.
        state: Its state.
        granted: Whether the request needs no approval, or has one.
        proven: See `proves_the_name`.
    """
    if state is CertState.PENDING_APPROVAL:
        if request.is_of(old):
            return "requested again by the same requester"
        if proven:
            return "somebody else has proved that the name is theirs"
    if old.delivered == IN_DOUBT and not request.roll_over and (request.is_of(old) or (granted and proven)):
        # Nobody knows whether it was delivered before the last stop, and two must not be live. Only a proof counts: the key
        # alone is known to everybody whom the certificate was shown, and they could end what its holder uses.
        return "requested again; its delivery was interrupted"
    return ""


class Deliveries:
    """The answers that are on their way. Jobs add to them and the event loop takes away.

    Attributes:
        answering: Serial numbers that this node has recorded, and whose requesters it has not answered yet.
        is_alive: Whether another node lives, by its name.
    """

    def __init__(self) -> None:
        self.answering: set[int] = set()
        self.is_alive: Callable[[str], bool] = lambda _node: False


def is_alike(request: NewCertificate, record: CertRecord) -> bool:
    """Whether a certificate of the same subject could be the answer to a request: the same key, usage, authenticator and identity."""
    return (request.skid, request.usage, request.method, request.identity) == (
        record.skid,
        record.usage,
        record.method,
        record.identity,
    )


def came_of_token(request: NewCertificate, record: CertRecord) -> bool:
    """Whether a certificate may have come of the first use of a token that is repeated. An older one has not."""
    return is_alike(request, record) and max(record.state_date, record.renewed_at) >= request.repeated


def answer_lost(
    request: NewCertificate, record: CertRecord, *, at: int, node: str, deliveries: Deliveries
) -> str:
    """Return why a certificate gives way because its requester asks again and seems not to have it; empty if it does not.

    Only who holds its key is believed. So whether the other node really died decides about convenience, and about no right.

    Args:
        request: The request.
        record: A live certificate of the same subject.
        at: The present time (POSIX seconds).
        node: Name of this node.
        deliveries: What is being answered.

    Raises:
        RequestRefused: It is being answered; the text says when to ask again.
    """
    if (
        not request.proved
        or record.delivered == 1
        or record.serial == request.peer_serial  # the connection shows it
        or not is_alike(request, record)
    ):
        return ""
    if record.delivered == IN_DOUBT:
        return LOST
    if record.node == node:
        if record.serial in deliveries.answering:
            raise RequestRefused("the same request is being answered; retry in 1 s")
        return ""  # it was answered, and that is recorded soon
    if deliveries.is_alive(record.node) and at - record.state_date < _ANSWERED_S:
        raise RequestRefused("another node is answering the same request; retry in 2 s")
    return LOST


def has_just_been_answered(request: NewCertificate, record: CertRecord, at: int) -> bool:
    """Whether a certificate that was sent a moment ago is asked for again by the holder of its key.

    The answer may have left when its requester gave up; it would need an administrator to have another one. The caller looks
    whether the proof was made after the one that the certificate was requested with: a recorded one ends nothing.

    Args:
        request: The request.
        record: A live certificate of the same subject, which is not renewed by the request.
        at: The present time (POSIX seconds).
    """
    return (
        request.proved
        and request.proof_made > 0
        and record.delivered == 1
        and record.serial != request.peer_serial  # the connection shows that it has come
        and abs(at - record.state_date) <= _GIVEN_UP_S  # clocks of two nodes differ
        and is_alike(request, record)
    )

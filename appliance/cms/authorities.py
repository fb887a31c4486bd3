"""The authorities whose certificates a database has: the present one, and former ones until they end.

The table of the database is what all nodes know. A node adds what it holds itself; an authority that no command has
introduced may not join a database that has others already.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Final, NamedTuple

import sqlalchemy as sa
from cryptography import x509

from appliance.certs.crossed import is_same_authority
from appliance.certs.profiles import CertificateAuthority
from appliance.certs.x509 import is_self_signed, issuer_id, load_pem_text, pem_chain, signed_by, subject_text
from appliance.cms import schema
from appliance.cms.model import SERVICE, posix, shown_time, utc
from appliance.cms.transaction import LIVE, Transaction
from appliance.errors import CertificateError, ConfigurationError

__all__ = [
    "Authority",
    "Held",
    "KnownAuthority",
    "attention",
    "bundle",
    "check_belongs",
    "check_not_over",
    "end_is_near",
    "end_of",
    "followed",
    "introduce",
    "known_authorities",
    "left_of",
    "successor_of",
]

_TABLE: Final = schema.authorities
_NEAR: Final = timedelta(days=30)


class Authority(NamedTuple):
    """A certificate authority whose key this service has."""

    issuer: CertificateAuthority
    root: x509.Certificate
    created: bool = False
    ends: datetime | None = None
    """When its certificates end, whatever they say themselves; None for the present authority."""

    @property
    def issuer_id(self) -> str:
        """First eight hex digits of the issuing CA's subject key identifier."""
        return issuer_id(self.issuer.certificate)


class Held(NamedTuple):
    """What a service has beside the present authority."""

    former: tuple[Authority, ...] = ()
    """Authorities that have not ended yet, with their keys."""
    bundle: tuple[x509.Certificate, ...] = ()
    """What verifies the certificates of all: the present root first."""
    since: datetime = datetime(1970, 1, 1, tzinfo=UTC)
    """From when the present authority issues."""
    left: Mapping[str, int] = MappingProxyType({})
    """How many certificates of each other authority live."""


class KnownAuthority(NamedTuple):
    """What the database knows of an authority."""

    issuer_id: str
    chain: tuple[x509.Certificate, ...]
    """Its certificate and those above it, the root last."""
    crossed: tuple[x509.Certificate, ...]
    ends: int | None
    """POSIX time; None: no end is set."""
    since: int
    """From when it issues (POSIX time); 0: a command has introduced it, and it does not issue yet."""

    @property
    def name(self) -> str:
        """Its subject, for people."""
        return subject_text(self.chain[0].subject) if self.chain else "unknown"


def known_authorities(connection: sa.Connection) -> dict[str, KnownAuthority]:
    """Return the authorities of a database, by identifier.

    Raises:
        ConfigurationError: A row is damaged.
    """
    found = {}
    for row in connection.execute(sa.select(_TABLE).order_by(_TABLE.c.since, _TABLE.c.issuer)):
        try:
            chain, crossed = (_certificates(text) for text in (row.chain, row.crossed))
        except CertificateError as error:
            raise ConfigurationError(
                f"the database's row of the authority {row.issuer} is damaged: {error}; restore a backup"
            ) from error
        found[row.issuer] = KnownAuthority(row.issuer, chain, crossed, row.ends, row.since)
    return found


def _certificates(text: str) -> tuple[x509.Certificate, ...]:
    return tuple(load_pem_text(text.encode())) if text else ()


def check_belongs(transaction: Transaction, authority: Authority) -> None:
    """Refuse a database that belongs to other authorities.

    Raises:
        ConfigurationError: Nothing has introduced this authority to the database, which knows another one.
    """
    mine = authority.issuer_id
    known = known_authorities(transaction.connection)
    if mine in known:
        return
    # A database of before the table of authorities has only the certificates.
    issuers = set(known) or set(transaction.connection.scalars(sa.select(schema.certs.c.issuer).distinct()))
    if issuers and mine not in issuers:
        theirs = ", ".join(
            f"{ident} {known[ident].name if ident in known else ''}".strip() for ident in sorted(issuers)
        )
        raise ConfigurationError(
            f"the database belongs to the authority {theirs}, and this service has the key of {mine} "
            f"{subject_text(authority.issuer.certificate.subject)}: name the database, or the authority's keychain, that belongs "
            "to the other. A new authority is introduced with pvacms --install-chain or --new-authority"
        )


def check_not_over(authority: Authority, known: Mapping[str, KnownAuthority], now: datetime) -> None:
    """Refuse to issue with an authority that has ended.

    Raises:
        ConfigurationError: Another one has taken over.
    """
    ends = known[authority.issuer_id].ends
    if ends is not None and ends <= posix(now):
        raise ConfigurationError(
            f"the authority {authority.issuer_id} {subject_text(authority.issuer.certificate.subject)} ended at "
            f"{shown_time(utc(ends))}, and another one has taken over: name that one, as the other nodes do"
        )


def introduce(
    transaction: Transaction, authorities: Iterable[Authority], now: datetime, *, present: str
) -> dict[str, KnownAuthority]:
    """Write authorities into the database's table, record in the audit what is new, and return what the table has then.

    An end moves the clock of the authority's certificates. The end of the one that issues here is taken back only by a node that
    holds the one that has taken over: one with old settings does not know of it.

    Args:
        transaction: The open transaction.
        authorities: Those that a node holds.
        now: The present time, aware.
        present: Identifier of the one that issues.
    """
    known = known_authorities(transaction.connection)
    at = posix(now)
    # Whoever takes over is the later one, also within a second, and after a clock was set back: other nodes follow it by that.
    began = max([at, *(each.since + 1 for each in known.values())])
    changed = False
    authorities = tuple(authorities)
    held = {authority.issuer_id for authority in authorities}
    for each in authorities:
        before = known.get(each.issuer_id)
        authority = each
        if (
            each.ends is None
            and before is not None
            and before.ends is not None
            and successor_of(before, known, held) is not None
        ):
            authority = each._replace(ends=utc(before.ends))
        issuer, ident = authority.issuer, authority.issuer_id
        values = {
            "chain": pem_chain(issuer.certificate, *issuer.chain),
            "crossed": pem_chain(*issuer.crossed),
            "ends": None if authority.ends is None else posix(authority.ends),
            "since": (before.since if before is not None else 0) or (began if ident == present else 0),
        }
        if before is None:
            transaction.connection.execute(sa.insert(_TABLE).values(issuer=ident, **values))
        elif (pem_chain(*before.chain), pem_chain(*before.crossed), before.ends, before.since) == tuple(
            values.values()
        ):
            continue
        else:
            transaction.connection.execute(sa.update(_TABLE).where(_TABLE.c.issuer == ident).values(**values))
        changed = True
        if before is not None and before.ends != values["ends"]:
            _move_clock(transaction, ident, authority.ends)
        facts = {
            **SERVICE.facts(),
            "authority": ident,
            "name": subject_text(issuer.certificate.subject),
            "issues": "yes" if ident == present else "no",
            "ends": "" if authority.ends is None else shown_time(authority.ends),
        }
        transaction.audit(at, "authority", None, facts)
    return known_authorities(transaction.connection) if changed else known


def successor_of(
    authority: KnownAuthority, known: Mapping[str, KnownAuthority], held: Collection[str]
) -> KnownAuthority | None:
    """Return the later authority that has taken over, unless that is among those that are held."""
    later = [
        each
        for each in known.values()
        if each.since > authority.since and each.ends is None and each.issuer_id not in held
    ]
    return max(later, key=lambda each: each.since, default=None) if authority.ends is not None else None


def followed(authority: KnownAuthority, by: KnownAuthority) -> str:
    """Return the sentence of a node whose authority issues no more."""
    return (
        f"this node issues nothing, because the authority {by.issuer_id} {by.name} has taken over from its own "
        f"({authority.issuer_id}): give it the settings that the other nodes have, and restart it"
    )


def end_is_near(ends: int | None, now: datetime) -> bool:
    """Whether an authority has not ended, and ends within 30 days."""
    return ends is not None and posix(now) < ends and utc(ends) - now < _NEAR


def attention(
    known: Mapping[str, KnownAuthority],
    left: Mapping[str, int],
    held: Collection[str],
    present: str,
    now: datetime,
) -> list[str]:
    """Return what somebody has to do about the authorities, one sentence each.

    Args:
        known: What the database knows.
        left: How many certificates of each other authority live.
        held: Former authorities whose keys are here.
        present: The one that issues here.
        now: The present time, aware.
    """
    found: list[str] = []
    own = known.get(present)
    by = None if own is None else successor_of(own, known, {present, *held})
    if own is not None and by is not None:
        found.append(followed(own, by))
    for ident, number in left.items():
        each = known.get(ident)
        if not number or each is None or each is by or (each.ends is not None and each.ends <= posix(now)):
            continue
        of = f"{number} certificates of the former authority {ident} {each.name} are in use"
        if ident not in held:
            found.append(f"{of}, and this service has not its key: nobody learns their status from it")
        elif end_is_near(each.ends, now):
            found.append(f"{of}, and it ends at {shown_time(utc(each.ends or 0))}")
    return found


def left_of(connection: sa.Connection, ident: str) -> int:
    """Return how many certificates of an authority are not at their end."""
    certs = schema.certs
    live = sa.select(sa.func.count()).where(
        certs.c.issuer == ident, certs.c.state.in_([s.value for s in LIVE])
    )
    return int(connection.execute(live).scalar_one())


def _move_clock(transaction: Transaction, ident: str, ends: datetime | None) -> None:
    """Have the sweep look at an authority's certificates when it ends; 0 has it compute their times anew."""
    transaction.flush()
    certs = schema.certs
    mine = (certs.c.issuer == ident, certs.c.next_at.is_not(None))
    change = sa.update(certs).where(*mine)
    if ends is None:
        transaction.connection.execute(change.values(next_at=0))
    else:
        end = posix(ends)
        transaction.connection.execute(change.where(certs.c.next_at > end).values(next_at=end))


def end_of(
    issuer: CertificateAuthority, present: Iterable[x509.Certificate], wanted: datetime | None
) -> datetime:
    """Return when a former authority's certificates end.

    Args:
        issuer: The former authority.
        present: The cross-certificates of the present root.
        wanted: What the configuration says; None: with the cross-certificate for its root, or with itself.
    """
    root = issuer.chain[-1] if issuer.chain else issuer.certificate
    own = min(c.not_valid_after_utc for c in (issuer.certificate, *issuer.chain))
    if wanted is not None:
        return min(wanted, own)
    crossed = [c.not_valid_after_utc for c in present if is_same_authority(c, root)]
    return min(own, max(crossed, default=own))


def bundle(
    present: x509.Certificate,
    authorities: Iterable[KnownAuthority],
    now: datetime,
    *,
    held: Collection[x509.Certificate] = (),
) -> tuple[x509.Certificate, ...]:
    """Return what verifies the certificates of all authorities that have not ended: roots and cross-certificates, the present root first.

    Other hosts trust these roots, so the database's word is not enough: the present root vouches for each, or its file is here.

    Args:
        present: The present root.
        authorities: What the database knows.
        now: The present time, aware.
        held: Roots of former authorities whose files are here.
    """
    at = posix(now)
    alive = [each for each in authorities if each.ends is None or at < each.ends]
    crossed = [c for each in alive for c in each.crossed if not is_self_signed(c)]
    vouched = (present, *held, *(c for c in crossed if signed_by(c, present)))
    roots = [
        root
        for root in (each.chain[-1] for each in alive if each.chain)
        if is_self_signed(root) and any(is_same_authority(root, known) for known in vouched)
    ]
    return tuple(dict.fromkeys((present, *crossed, *roots)))

"""Make a certificate from a request: one path for all authenticators.

Source: SPVA specification 9. A verifier turns the request into a Grant. The grant is recorded and committed; only then
does the CA's key sign. What the requester asks for counts only within the grant.
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from types import MappingProxyType
from typing import Final, Literal, NamedTuple, Protocol

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_public_key

from appliance.authn.ccr import CertRequest
from appliance.authn.grant import USAGES, Grant
from appliance.authn.jwt.naming import ReservedNames
from appliance.authn.proof import UsedProofs, check_proof, made_at
from appliance.authn.std.verifier import StdRequest, verify
from appliance.certs.crossed import sent_above
from appliance.certs.profiles import (
    CertificateAuthority,
    build_certificate,
    check_public_key,
    finish_certificate,
    prepare_certificate,
    subject_name,
)
from appliance.certs.public_keys import key_identity
from appliance.certs.san import San, canonical, in_certificate
from appliance.certs.schedule import Schedule
from appliance.certs.tbs import encoded_key, key_identifier
from appliance.certs.x509 import UNREADABLE, cert_id, encode_pv_name, pem_chain, quiet
from appliance.cms.lifecycle import Lifecycle
from appliance.cms.model import Actor, NewCertificate, shown_time
from appliance.cms.policy import Names
from appliance.cms.signing import signed
from appliance.cms.soundness import Soundness
from appliance.cms.transaction import CertRecord
from appliance.config.duration import Duration
from appliance.config.zones import time_zone
from appliance.errors import CertificateError, ConfigurationError, RequestRefused, SigningError, TokenRefused
from appliance.pva.credentials import Credentials

__all__ = ["Issued", "Issuing", "Rules", "UsageRules", "new_serial", "pem_chain"]

_log: Final = logging.getLogger(__name__)
_NO_KEY: Final = "the authority's key cannot be reached, so nothing is issued at present; ask again later"
_SERIAL_BITS: Final = 63
"""Databases have signed 64-bit integers. Two random serial numbers of this length are never equal."""


_RANDOMS: Final = 64
_randoms: list[int] = []
"""Random numbers kept ready: a serial number must be unpredictable until it is used, and is no secret afterwards."""


class UsageRules(NamedTuple):
    """The rules for one usage."""

    approval: bool = True
    custom_durations: bool = True
    validity: Duration = Duration(months=6)
    longest: Duration = Duration(months=12)
    """No certificate of this usage lives longer, unless ``validity`` is longer itself."""
    renewal: Duration = Duration()
    """How long a certificate that no token vouches for is in use before it must be renewed; 0: it need not be."""

    def latest(self, now: datetime) -> datetime:
        """Return the latest end of a certificate that is issued now."""
        return max(self.longest.after(now), self.validity.after(now))


class Rules(NamedTuple):
    """What the configuration says about certificates."""

    usages: Mapping[str, UsageRules] = MappingProxyType(dict.fromkeys(USAGES, UsageRules()))
    status_extension: Literal["yes", "no", "requester", "default"] = "default"
    """Whether certificates name their status PV: always (``yes``), never (``no``), always unless the requester asks for none
    (``requester``), or always, and a request for none is refused (``default``).
    """
    inherit_approval: bool = True
    inherit_unproven: bool = False
    raw_pv_names: bool = False
    san: Literal["approve", "refuse"] = "approve"
    """What becomes of alternative names that nothing proves: an administrator approves them, or the request is refused."""


class Issued(NamedTuple):
    """A certificate and what the requester is told with it."""

    record: CertRecord
    certificate: x509.Certificate | None
    """None if the requester's own certificate was renewed: it stays as it is."""
    pem: str
    """The certificate and the chain above it; empty if it was renewed."""
    cert_id: str
    status_pv: str

    @property
    def renewed(self) -> bool:
        """Whether the request renewed the certificate that its requester has."""
        return self.certificate is None


class TokenVerifier(Protocol):
    """`appliance.authn.jwt.verifier.JWTVerifier`."""

    async def verify(
        self,
        token: str,
        *,
        usage: str,
        public_key: bytes | str,
        peer: str,
        now: datetime,
        is_tls: bool,
        san: Sequence[San] = (),
        key_id: str = "",
    ) -> Grant: ...


class Issuing:
    """Issues certificates. ``rules`` and ``reserved`` may be replaced when the configuration is read again."""

    def __init__(
        self,
        issuer: CertificateAuthority,
        lifecycle: Lifecycle,
        names: Names,
        rules: Rules,
        *,
        tokens: TokenVerifier | None = None,
        reserved: Callable[[], frozenset[str]] = frozenset,
        former: Sequence[CertificateAuthority] = (),
    ) -> None:
        self.issuer = issuer
        self.lifecycle = lifecycle
        self.names = names
        self.rules = rules
        self.tokens = tokens
        self.reserved = reserved
        self.proven_organizations: Callable[[], frozenset[str]] = frozenset
        """Organizations (O) that tokens prove. Without a token, a claim to one needs approval."""
        self.own_keys: Callable[[], frozenset[str]] = frozenset
        """Keys of the service itself, by `key_identity`; those of the authorities are known."""
        self._authority_keys = frozenset(
            key_identity(certificate.public_key())
            for authority in (issuer, *former)
            for certificate in (authority.certificate, *authority.chain)
        )
        self._soundness = Soundness()
        self._used_proofs = UsedProofs()
        chain = (issuer.certificate, *issuer.chain)
        self._chain_pem = pem_chain(*sent_above(chain, issuer.crossed))

    async def issue(
        self, ccr: CertRequest, peer: Credentials, *, wanted: Callable[[], bool] = lambda: True
    ) -> Issued:
        """Issue a certificate for a request of ``peer``, or renew the one that it has.

        Args:
            ccr: The request.
            peer: Who sent it.
            wanted: Whether the requester still waits. A certificate that nobody takes is revoked.

        Returns:
            The certificate.

        Raises:
            RequestRefused: The request is not permitted; the text is for the requester.
            CertificateError: The request asks for an impossible certificate.
            SigningError: The authority's key did not sign. The certificate is revoked again.
            StoreError: The database could not be used.
        """
        if self.issuer.signer.trouble:
            # Not in the audit: every requester asks again until the key is back.
            raise RequestRefused(_NO_KEY)
        actor = Actor(peer.method, peer.account, peer.peer)
        try:
            key, key_id, skid = _public_key(ccr.pub_key)
            self._check_request(ccr, key_id)
            now = self.lifecycle.clock().timestamp()
            proved = check_proof(ccr.proof, ccr, key, now=now, token=ccr.token, used=self._used_proofs)
            await self._soundness.check(key, key_id)
            san = _names(ccr.san)
            grant = await self._verify(ccr, san, peer, key_id if proved else "")
            subject = _subject(*(grant.subject.get(part, "") for part in ("CN", "C", "O", "OU")))
            by = peer.serial if peer.method == "x509" and peer.is_tls else 0
            made = made_at(ccr.proof) if proved else 0
            known = _Known(
                key, key_id, skid, proved, made, by if peer.issuer_id == self.names.issuer_id else 0
            )
            issued = await self._apply(ccr, san, grant, known, subject, actor)
        except TokenRefused as refusal:
            facts = {**refusal.facts, "reason": refusal.reason, "why": str(refusal), "type": ccr.type}
            await self.lifecycle.note("refuse", None, actor, facts)
            raise
        except (CertificateError, _Refusal) as refusal:
            facts = {"why": str(refusal), "type": ccr.type, "name": ccr.name, "usage": ccr.usage}
            await self.lifecycle.note("refuse", None, actor, facts)
            raise
        if not wanted() and not issued.renewed:
            await self.lifecycle.withdraw(
                issued.record, "the requester disconnected before the certificate was ready"
            )
        return issued

    def _check_request(self, ccr: CertRequest, key_id: str) -> None:
        if key_id in self._authority_keys or key_id in self.own_keys():
            raise _Refusal("the key is the certificate service's own; request with a key of your own")
        if ccr.no_status and self.rules.status_extension == "default":
            raise _Refusal(
                "certificates without a status are not issued here, because nobody would learn of a revocation; ask "
                "for one with a status (without --no-status). The service's setting certs_require_subscription decides"
            )
        if ccr.schedule and not self._with_status(ccr):
            raise _Refusal(
                "a schedule works through the certificate's status, and this certificate would have none; leave --schedule or "
                "--no-status away. The service's setting certs_require_subscription decides"
            )

    def _with_status(self, ccr: CertRequest) -> bool:
        wish = self.rules.status_extension
        return wish in ("yes", "default") or (wish == "requester" and not ccr.no_status)

    async def _verify(
        self, ccr: CertRequest, san: tuple[San, ...], peer: Credentials, proved_key: str
    ) -> Grant:
        now = self.lifecycle.clock()
        if ccr.type == "jwt":
            if self.tokens is None:
                raise _Refusal("tokens are not accepted here: no issuer of tokens is configured")
            if not ccr.token:
                raise _Refusal("the request has no token")
            return await self.tokens.verify(
                ccr.token,
                usage=ccr.usage,
                public_key=ccr.pub_key,
                peer=peer.peer,
                now=now,
                is_tls=peer.is_tls,
                san=san,
                key_id=proved_key,
            )
        if ccr.type != "std":
            known = {"krb": " (Kerberos)", "ldap": " (LDAP)"}.get(ccr.type, "")
            raise _Refusal(
                f"certificate requests of the type {ccr.type[:32]!r}{known} are not accepted here: this service has no such "
                "authenticator; ask with authnstd (type 'std') or authnjwt (type 'jwt')"
            )
        usage = self.rules.usages[ccr.usage]
        latest = self.issuer.certificate.not_valid_after_utc
        grant = verify(
            StdRequest(
                ccr.name,
                ccr.organization,
                ccr.organizational_unit,
                ccr.country,
                ccr.usage,
                ccr.not_before,
                ccr.not_after,
            ),
            now=now,
            default_end=min(usage.validity.after(now), latest),
            custom_durations=usage.custom_durations,
            approval_needed=usage.approval,
        )
        if grant.not_after > latest:
            raise CertificateError(
                f"the certificate would outlive the certificate authority, which ends at "
                f"{latest:%Y-%m-%d %H:%M:%S} UTC; ask for a shorter time"
            )
        if san:
            if self.rules.san == "refuse":
                raise _Refusal(
                    "alternative names that no token proves are not issued here (the service's setting san); ask without them "
                    "(--san, EPICS_PVA_AUTH_SAN)"
                )
            # Access rules grant rights by them, so somebody has to look at them.
            grant = grant._replace(approval_needed=True, san=san)
        if ccr.name in _reserved_names(self.reserved()):
            # A name with privileges is never issued without approval.
            return grant._replace(approval_needed=True, audit={"reserved": "yes"})
        if ccr.organization.casefold() in self.proven_organizations():
            # Nor is a name in an organization that needs a token.
            return grant._replace(approval_needed=True, audit={"reserved": "organization of a token issuer"})
        return grant

    async def _apply(
        self,
        ccr: CertRequest,
        san: tuple[San, ...],
        grant: Grant,
        known: _Known,
        subject: x509.Name,
        actor: Actor,
    ) -> Issued:
        authority = self.issuer.certificate
        key = known.key
        now = self.lifecycle.clock()
        usage = self.rules.usages[ccr.usage]
        with_status = self._with_status(ccr)
        not_before = max(grant.not_before, authority.not_valid_before_utc)
        asked, renew_by, cadence = grant.not_after, grant.renew_by, 0
        if grant.identity is None:
            start = max(now, not_before)
            cadence = int(usage.renewal.total_s(start))
            renew_by = start + timedelta(seconds=cadence) if cadence else None
        if renew_by is not None and not with_status:
            # Nobody would learn that it was not renewed.
            asked, renew_by, cadence = min(asked, renew_by), None, 0
        not_after = min(asked, usage.latest(now), authority.not_valid_after_utc)
        if renew_by is not None and renew_by >= not_after:
            renew_by = None
        if not_after <= not_before:
            raise CertificateError(
                f"the certificate would begin at {shown_time(not_before)}, but certificates for {ccr.usage} end at "
                f"{shown_time(not_after)} at the latest; ask for an earlier begin"
            )
        facts = dict(grant.audit)
        if not_after < asked:
            facts["asked_not_after"] = shown_time(asked)
        if not set(in_certificate(san)) <= set(in_certificate(grant.san)):
            raise CertificateError("the request has alternative names that its proof does not cover")
        if ccr.no_status and with_status:
            facts["asked_no_status"] = "passed over"
        serial = new_serial()
        request = NewCertificate(
            serial=serial,
            subject={part: grant.subject.get(part, "") for part in ("CN", "O", "OU", "C")},
            usage=ccr.usage,
            method=grant.method,
            identity="" if grant.identity is None else f"{grant.identity.issuer}|{grant.identity.subject}",
            skid=known.skid,
            not_before=not_before,
            not_after=not_after,
            approval_needed=grant.approval_needed,
            inherit=self.rules.inherit_approval and not grant.audit.get("reserved"),
            roll_over=grant.identity is not None,
            facts=facts,
            key_id=known.key_id,
            proved=known.proved,
            proof_made=known.proof_made,
            peer_serial=known.peer_serial,
            inherit_unproven=self.rules.inherit_unproven,
            no_status=not with_status,
            renew_by=renew_by,
            cadence=cadence,
            san=san,
            san_proved=grant.san,
            schedule=_schedule(ccr),
            repeated=grant.repeated,
        )
        config_pv = None
        if ccr.config_uri_base:
            config_pv = f"{ccr.config_uri_base}:CONFIG:{self.names.issuer_id}:{request.skid[:8]}"
            encode_pv_name(config_pv)
        record = await self.lifecycle.create(request, actor, will_answer=True)
        status_pv = self.names.status(record.serial)
        if record.serial != serial:
            return Issued(record, None, "", cert_id(self.names.issuer_id, record.serial), status_pv)
        try:
            signer = self.issuer.signer
            body = prepare_certificate(
                self.issuer,
                subject=subject,
                public_key=key,
                usage=ccr.usage,
                not_before=not_before.astimezone(UTC).replace(microsecond=0),
                not_after=not_after.astimezone(UTC).replace(microsecond=0),
                serial=serial,
                status_pv=status_pv if with_status else None,
                config_pv=config_pv,
                san=in_certificate(san),
                raw_pv_names=self.rules.raw_pv_names,
            )
            certificate = finish_certificate(body, signer.algorithm, await signed(signer, body))
        except (CertificateError, SigningError) as error:
            await self.lifecycle.withdraw(record, f"it could not be signed: {error}")
            if isinstance(error, SigningError):
                # Which token, and what it says of its PIN, is for the log and the audit.
                raise SigningError(_NO_KEY) from error
            raise
        pem = certificate.public_bytes(Encoding.PEM).decode("ascii") + self._chain_pem
        return Issued(record, certificate, pem, cert_id(self.names.issuer_id, serial), status_pv)

    def own_certificate(
        self,
        record: CertRecord,
        subject: x509.Name,
        key: CertificatePublicKeyTypes,
        usage: str,
        *,
        status: bool,
    ) -> x509.Certificate:
        """Sign a certificate that the service itself asked for and that is already recorded."""
        return build_certificate(
            self.issuer,
            subject=subject,
            public_key=key,
            usage=usage,
            not_before=datetime.fromtimestamp(record.not_before, UTC),
            not_after=datetime.fromtimestamp(record.not_after, UTC),
            serial=record.serial,
            status_pv=self.names.status(record.serial) if status else None,
            raw_pv_names=self.rules.raw_pv_names,
        )


class _Known(NamedTuple):
    """A public key and what is known of its sender."""

    key: CertificatePublicKeyTypes
    key_id: str
    skid: str
    proved: bool
    proof_made: int
    peer_serial: int


class _Refusal(RequestRefused):
    """A refusal that the store has not recorded yet."""


def _public_key(pem: str) -> tuple[CertificatePublicKeyTypes, str, str]:
    """Return a key, its `key_identity` and its identifier. Who renews sends the same key again and again, so it is remembered."""
    return _remembered_key(pem) if len(pem) <= _MOST_REMEMBERED else _read_key(pem)


def _read_key(pem: str) -> tuple[CertificatePublicKeyTypes, str, str]:
    try:
        with quiet():
            key = load_pem_public_key(pem.encode("ascii"))
    except (*UNREADABLE, UnicodeEncodeError) as error:
        raise CertificateError("the public key cannot be read; send it in PEM form") from error
    problem = check_public_key(key)  # type: ignore[arg-type]
    if problem:
        raise CertificateError(f"the public key is not acceptable: {problem}")
    skid = key_identifier(encoded_key(key)).hex()  # type: ignore[arg-type]
    return key, key_identity(key), skid  # type: ignore[return-value, arg-type]


_MOST_REMEMBERED: Final = 2048
"""Longest key, as text, that is remembered: an RSA key of 8192 bits takes 1500 characters, and text around it any number."""
_remembered_key = lru_cache(maxsize=4096)(_read_key)


@lru_cache(maxsize=4096)
def _subject(name: str, country: str, organization: str, unit: str) -> x509.Name:
    """Return a subject. Who renews asks with the same one again and again."""
    return subject_name(name, country=country, organization=organization, organizational_unit=unit)


@lru_cache(maxsize=8)
def _reserved_names(names: frozenset[str]) -> ReservedNames:
    return ReservedNames(names)


def _names(asked: Sequence[San]) -> tuple[San, ...]:
    try:
        return canonical(asked)
    except ValueError as error:
        raise _Refusal(str(error)) from None


def _schedule(ccr: CertRequest) -> Schedule:
    try:
        time_zone(ccr.time_zone)
    except ConfigurationError as error:
        raise _Refusal(error.why) from None
    return Schedule(ccr.schedule, ccr.time_zone if ccr.schedule else "")


def new_serial() -> int:
    """Return a random serial number of 63 bits, never 0."""
    if not _randoms:
        # The system call lets the store's thread run, so one call fetches many numbers.
        _randoms.extend(struct.unpack(f"<{_RANDOMS}Q", os.urandom(8 * _RANDOMS)))
    return _randoms.pop() >> (65 - _SERIAL_BITS) | 1 << (_SERIAL_BITS - 1)

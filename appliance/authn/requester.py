"""The requester's part of every authenticator: make a key, send a request, check the answer, write a keychain.

The private key never leaves this process except into the keychain file. What proves the identity is sent only to a peer
that has proved to be the certificate service (see `appliance.authn.sending.cms_only`), never before.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from appliance.authn.ccr import CertReply, CertRequest
from appliance.authn.due import Due, cadence, due_by_age, due_by_status, ended_early
from appliance.authn.proof import PROOF_FIELD, make_proof
from appliance.authn.sending import Line, ask_offer, ask_status
from appliance.authn.settings import RequesterSettings, keychain_usages
from appliance.authn.trust import (
    KnownAnchors,
    Trust,
    decide,
    load_anchor_file,
    load_pem,
    make_directory,
    trust_only,
)
from appliance.authn.waiting import forget, keeps_its_place, look_beside, put_beside
from appliance.certs.keychain import (
    Keychain,
    check_keychain,
    dump_keychain,
    dump_trust_anchors,
    ended_anchor_warnings,
    load_key,
    load_keychain,
    make_keychain,
)
from appliance.certs.pkcs12 import signing_time
from appliance.certs.profiles import EXTENDED_KEY_USAGES, check_public_key, generate_key
from appliance.certs.status import CertState, format_date
from appliance.certs.x509 import (
    UNREADABLE,
    common_name,
    find_extension,
    san,
    serial_number,
    shown_id,
    subject_text,
)
from appliance.config.files import check_replaceable, read_private, replace_private
from appliance.errors import (
    ApplianceError,
    CertificateError,
    ConfigurationError,
    KeychainError,
    RemoteError,
    SecurityError,
)

if TYPE_CHECKING:
    from appliance.authn.status import CheckedStatus

__all__ = [
    "Existing",
    "NotHeldError",
    "Outcome",
    "Requester",
    "Trusting",
    "check_issued",
]

DEFAULT_KEY_ALGORITHM: Final = "rsa-2048"
_MAX_KEYCHAIN: Final = 1 << 18
_DUPLICATE: Final = "Duplicate Certificate Subject"
"""The text with which certificate services, also those of others, refuse a name that has a live certificate."""
_FUTURE: Final = timedelta(days=1)
"""How far in the future a certificate may begin. Clocks differ, but not by days."""
_PRESENT_S: Final = 2.0
"""Seconds to wait for the status of the keychain that is already there."""


class Trusting(NamedTuple):
    """How the certificate service must prove its identity."""

    file: str = ""
    """A file of trust anchors, PEM or PKCS#12."""
    fingerprint: str = ""
    """``sha256:...`` of the trust anchor."""
    first_use: bool = True
    """Whether an unknown anchor may be trusted."""


class Existing(NamedTuple):
    """What is at the path of the keychain."""

    keychain: Keychain | None = None
    key: PrivateKeyTypes | None = None
    trouble: str = ""
    """Why the existing file cannot be used."""
    unusable: str = ""
    """Why its certificates cannot be used, although its key can."""
    issued: datetime | None = None
    """When its certificate was issued, if the file says so."""

    @property
    def certificate(self) -> x509.Certificate | None:
        """Its certificate, if it has one."""
        return None if self.keychain is None else self.keychain.certificate

    def is_current(self, now: datetime) -> bool:
        """Whether it holds a certificate that has not expired."""
        certificate = self.certificate
        return certificate is not None and now <= certificate.not_valid_after_utc


class Outcome(NamedTuple):
    """The result of a request."""

    action: str
    """``created``, ``renewed`` (the service renewed the existing certificate, the file stays), ``kept`` (the file stays),
    ``waiting`` (the file stays, and the new certificate is beside it until it is approved), ``not due``, or ``anchor``.
    """
    path: str
    cert_id: str = ""
    state: CertState = CertState.UNKNOWN
    keychain: Keychain | None = None
    renew_by: datetime | None = None
    """When the certificate must be renewed, as the service has answered; None if it need not be, or nothing was asked."""


def check_issued(
    reply: CertReply,
    *,
    key: PrivateKeyTypes,
    anchors: tuple[x509.Certificate, ...],
    usage: str,
    subject: x509.Name | None,
    now: datetime,
    crossed: tuple[x509.Certificate, ...] = (),
) -> Keychain:
    """Make the keychain from an answer, but only if it is what was requested.

    Args:
        reply: The certificate service's answer.
        key: The key for which the certificate must be.
        anchors: Trust anchors, to one of which it must lead.
        usage: What it must be for, and for nothing else.
        subject: The name that it must have; None accepts what the service took from the proof.
        now: The present time, aware; the certificate must be current.
        crossed: Cross-certificates of the anchors, for the keychain.

    Raises:
        SecurityError: Something is not trustworthy; the text says what.
    """
    try:
        found = make_keychain(key, load_pem(reply.cert.encode("utf-8", "replace")))
        leaf = found.certificate
        assert leaf is not None
        root = found.chain[-1] if found.chain else leaf
        if root not in anchors:
            raise SecurityError(
                f"it was signed under {subject_text(root.subject)}, which is not trusted here"
            )
        purposes = find_extension(leaf, x509.ExtendedKeyUsage)
        if purposes is None or frozenset(purposes) != EXTENDED_KEY_USAGES[usage]:
            raise SecurityError(f"it is not for the usage {usage} that was asked for")
        if subject is not None and _parts(leaf.subject) != _parts(subject):
            raise SecurityError(
                f"its subject is {subject_text(leaf.subject)} and not {subject_text(subject)} as asked for"
            )
        if not common_name(leaf.subject):
            raise SecurityError("its subject has no common name")
        if reply.serial and reply.serial != serial_number(leaf):
            raise SecurityError(
                f"its serial number is {serial_number(leaf)} and not {reply.serial} as the service says"
            )
        weak = check_public_key(leaf.public_key())
        if weak:
            raise SecurityError(f"it is for {weak}")
        start, end = leaf.not_valid_before_utc, leaf.not_valid_after_utc
        if end <= now or start > now + _FUTURE or end <= start:
            raise SecurityError(
                f"it is valid from {format_date(start)} to {format_date(end)}, and this host's time is {format_date(now)}; check the "
                "clocks of this host and of the certificate service"
            )
        keychain = Keychain(key, leaf, found.chain, anchors, crossed)
        for end_of_connection in keychain_usages(usage):
            # A start slightly in the future is a difference of clocks, or a PENDING certificate. Both are acceptable.
            check_keychain(keychain, now=max(now, start), usage=end_of_connection)
    except (ApplianceError, *UNREADABLE) as error:
        raise SecurityError(
            f"the certificate from the certificate service is not acceptable, so nothing was written: {error}"
        ) from error
    return keychain


def _parts(name: x509.Name) -> list[tuple[str, str]]:
    return sorted((a.oid.dotted_string, str(a.value)) for a in name)


def utc_now() -> datetime:
    """Return the present time, aware."""
    return datetime.now(UTC)


class NotHeldError(SecurityError):
    """The service renewed a certificate that the keychain does not have. Perhaps it was issued, and the answer was lost."""


class Requester:
    """Makes or replaces one keychain.

    ``say`` gets what the user must see in addition to the result; ``timeout_s`` limits each question to the service.
    """

    def __init__(
        self,
        settings: RequesterSettings,
        trusting: Trusting,
        *,
        say: Callable[[str], None],
        timeout_s: float,
        key_algorithm: str | None = None,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self.settings = settings
        self.trusting = trusting
        self.say = say
        self.timeout_s = timeout_s
        self.key_algorithm = key_algorithm
        self.now = now

    # -- what is there ---------------------------------------------------------------------------------

    def look(self) -> Existing:
        """Read the existing keychain.

        Raises:
            ConfigurationError: The file cannot be read at all.
        """
        path = self.settings.keychain
        try:
            os.stat(path)  # noqa: PTH116 - start-up time
        except FileNotFoundError:
            # Also if a link points to a file that does not exist yet: `_write` makes the file there.
            return Existing()
        except (OSError, ValueError):
            pass  # the read below says why
        read = read_private(path, _MAX_KEYCHAIN, strict=False)
        if read.finding:
            self.say(f"Warning: {read.finding}")
        password = self.settings.password
        try:
            keychain = load_keychain(read.data, password)
        except KeychainError as error:
            trouble = str(error)
        else:
            for warning in ended_anchor_warnings(keychain, self.now()):
                self.say(f"Warning: {path}: {warning}")
            return Existing(keychain, keychain.key, issued=signing_time(read.data))
        try:
            return Existing(None, load_key(read.data, password), unusable=trouble)
        except KeychainError:
            return Existing(trouble=trouble)

    def certificate_there(self) -> x509.Certificate | None:
        """Return the certificate of the existing keychain; None if there is none or it cannot be read."""
        told, self.say = self.say, lambda _: None
        try:
            return self.look().certificate
        except ApplianceError:
            return None
        finally:
            self.say = told

    def refuse_unreadable(self, existing: Existing) -> None:
        """Raise KeychainError if the file exists and not even its key can be read."""
        if existing.trouble:
            raise KeychainError(
                f"{self.settings.keychain}: {existing.trouble}; it was not changed: move it away, or replace it with --force"
            )

    def check_identity(self, existing: Existing, subject: x509.Name | None) -> None:
        """Refuse to replace a keychain with one for another subject, except with --force."""
        certificate = existing.certificate
        if certificate is None or subject is None or _parts(certificate.subject) == _parts(subject):
            return
        raise KeychainError(
            f"{self.settings.keychain}: it is the keychain of {subject_text(certificate.subject)}, and {subject_text(subject)} "
            "is asked for; nothing was requested: name another keychain, ask for the same name, or replace it with --force"
        )

    def renewal_due(self, existing: Existing) -> Due:
        """Return whether a request is due, as far as the keychain itself says."""
        certificate = existing.certificate
        if certificate is None or existing.keychain is None:
            return Due(True, None, existing.unusable)
        try:
            found = due_by_age(certificate, existing.issued, self.now())
            for end in keychain_usages(self.settings.usage):
                check_keychain(
                    existing.keychain, now=max(self.now(), certificate.not_valid_before_utc), usage=end
                )
        except ApplianceError:
            return Due(True)
        return found

    async def due(self, existing: Existing) -> Due:
        """Return whether a request is due.

        The certificate service is asked first: a cadence that it has set decides, and it may have ended the certificate early.

        Raises:
            KeychainError: The keychain cannot be read, so nobody can say whether a renewal is due.
        """
        return (await self._due(existing))[0]

    async def _due(self, existing: Existing) -> tuple[Due, CheckedStatus | None]:
        self.refuse_unreadable(existing)
        found = self.renewal_due(existing)
        certificate = existing.certificate
        if certificate is None or found.when is None:
            return found, None
        report = await self.report(existing)
        asked = existing.keychain is not None and bool(existing.keychain.status_pv)
        guess = found._replace(is_guess=asked and report is None)
        return due_by_status(certificate, report, self.now()) or guess, report

    # -- requests --------------------------------------------------------------------------------------

    async def request(
        self,
        make: Callable[[str], CertRequest | Awaitable[CertRequest]],
        *,
        subject: x509.Name | None,
        line: Line | None = None,
        force: bool = False,
        if_due: bool = False,
        new_key: bool = False,
    ) -> Outcome:
        """Obtain a certificate and write the keychain, unless what is there is good.

        Args:
            make: Turns the public key (PEM) into the request.
            subject: What the certificate must say; None if the service decides.
            line: The connection to the service; None makes one for this request, which has no secret.
            force: Replace what is there, whatever it is.
            if_due: Leave a certificate alone until its renewal is due.
            new_key: Make a new key, and so a new certificate, even if the one that is there is good.

        Returns:
            What was done.

        Raises:
            ApplianceError: It failed; the existing keychain is unchanged.
        """
        if line is None:
            async with Line() as own:
                return await self.request(
                    make, subject=subject, line=own, force=force, if_due=if_due, new_key=new_key
                )
        existing = self.look()
        path = self.settings.keychain
        if not force:
            self.refuse_unreadable(existing)
            self.check_identity(existing, subject)
            found = None if new_key else await self.take_waiting(existing, may_ask=not if_due)
            if found is not None:
                return found
        report: CheckedStatus | None = None
        asked = False
        if if_due:
            due, report = await self._due(existing)
            asked = due.when is not None or report is not None
            if not due.due:
                self.say(f"{path}: {due.sentence}")
                return self._present("not due", existing)
            if due.why and (report is None or report.state is not CertState.REVOKED):
                self.say(f"{path}: {due.why}; a new one is requested")
        if not asked:
            report = await self.report(existing)
        state = CertState.UNKNOWN if report is None else report.state
        over = ended_early(report)
        if over:
            if not if_due:
                self.say(f"{path}: {over}; a new one is requested")
        elif state is CertState.REVOKED:
            if if_due:
                raise SecurityError(
                    f"{path}: its certificate was revoked, and an automatic renewal does not undo that; if the "
                    "reason is gone, request a new one without --if-due"
                )
            self.say(f"{path}: its certificate is revoked; a new one is requested, with a new key")
            new_key = True
        elif state is CertState.PENDING_RENEWAL:
            self.say(f"{path}: the renewal of its certificate is overdue (PENDING_RENEWAL); it is requested")
        elif existing.is_current(self.now()) and not (force or if_due or new_key):
            return self._present("kept", existing)._replace(state=state)
        if existing.key is not None and not new_key and self.key_algorithm is not None:
            self.say(
                f"Warning: --key-algorithm has no effect: {path} already has a key, which is kept; "
                "for another kind of key, use --new-key"
            )
        try:
            return await self.obtain(
                make,
                existing,
                subject=subject,
                line=line,
                new_key=new_key,
                any_name=force or if_due,
                beside=not force and not over and keeps_its_place(state),
            )
        except RemoteError as error:
            if over or not (if_due and existing.is_current(self.now()) and _DUPLICATE in str(error)):
                raise
            certificate = existing.certificate
            assert certificate is not None
            # For a timer this is no failure: it cannot change anything, and the existing keychain is good.
            self.say(
                f"{path}: the service issues this name no second certificate while the present one is valid, until "
                f"{format_date(certificate.not_valid_after_utc)}; ask again after that, or have it revoked"
            )
            return self._present("not due", existing)

    async def obtain(
        self,
        make: Callable[[str], CertRequest | Awaitable[CertRequest]],
        existing: Existing,
        *,
        subject: x509.Name | None,
        line: Line,
        new_key: bool = False,
        any_name: bool = False,
        beside: bool = False,
    ) -> Outcome:
        """Send the request now: the service renews the certificate, or issues one and the keychain is written.

        Args:
            make: See `request`.
            existing: What is at the keychain's path. Its key is kept.
            subject: See `request`.
            line: The connection to the service.
            new_key: Make a new key.
            any_name: Accept a certificate with another name than the one that is there, if the service decides the name.
            beside: If the new certificate waits for approval, write it beside the keychain as long as that has a good one.

        Raises:
            ApplianceError: It failed; the existing keychain is unchanged.
        """
        path = self.settings.keychain
        self._check_destination()
        key = None if new_key else existing.key
        if key is not None and check_public_key(key.public_key()):  # type: ignore[arg-type]
            self.say(f"{path}: its key is weak by today's standards; a new one is made")
            key = None
        if key is None:
            key = await asyncio.to_thread(generate_key, self.key_algorithm or DEFAULT_KEY_ALGORITHM)
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        made = make(public.decode("ascii"))
        request = made if isinstance(made, CertRequest) else await made
        proof = make_proof(
            request, key, made=int(self.now().timestamp()), token=request.verifier.get("token", "")
        )
        request = request._replace(verifier={**request.verifier, PROOF_FIELD: proof})
        trust = await self.establish(existing)
        self._rehearse(trust)
        reply = await line.send(self.settings, request, trust, timeout_s=self.timeout_s)
        if not reply.cert:
            return self._renewed(reply, existing, public)
        keychain = check_issued(
            reply,
            key=key,
            anchors=trust.anchors,
            usage=self.settings.usage,
            subject=subject,
            now=self.now(),
            crossed=trust.crossed,
        )
        identifier = shown_id(keychain.issuer_id, keychain.serial)
        if not any_name:
            # The name in a token's certificate is known only when the certificate arrives.
            self._check_token_identity(existing, keychain, identifier)
        if reply.state in (CertState.REVOKED, CertState.EXPIRED):
            raise SecurityError(
                f"the certificate service says that the new certificate {identifier} is {reply.state}"
            )
        self._tell_if_shorter(request, keychain)
        self._tell_if_names_are_missing(existing, keychain)
        self._tell_if_other_schedule(reply)
        data = dump_keychain(keychain, self.settings.password, issued=self.now())
        waits = beside and reply.state is CertState.PENDING_APPROVAL and self._is_good(existing)
        try:
            if waits:
                self._warn(put_beside(path, data))
            else:
                self._write(data)
        except ConfigurationError as error:
            raise ConfigurationError(
                f"{error}; but the certificate {identifier} was issued: have it revoked before you ask again"
            ) from error
        assert keychain.certificate is not None
        by = cadence(reply.renew_by, keychain.certificate)
        return Outcome("waiting" if waits else "created", path, identifier, reply.state, keychain, by)

    def _tell_if_other_schedule(self, reply: CertReply) -> None:
        """Say which schedule is in force, if it is not the one that was asked for: an administrator's is."""
        settings = self.settings
        if settings.time_zone and not reply.knows_zones:
            self.say(
                "Warning: this certificate service knows no time zones and takes the hours for UTC; give them in UTC, without "
                "--time-zone, or have an administrator change them (pvxcert -S)"
            )
            return
        asked = (set(settings.schedule), settings.time_zone)
        if settings.schedule and (set(reply.schedule), reply.time_zone) != asked:
            shown = "; ".join(map(str, reply.schedule)) or "none"
            zone = reply.time_zone or "UTC"
            self.say(
                f"The schedule in force is not the one asked for: {shown} ({zone}); an administrator changes it with pvxcert -S"
            )

    def _tell_if_shorter(self, request: CertRequest, keychain: Keychain) -> None:
        assert keychain.certificate is not None
        end = keychain.certificate.not_valid_after_utc
        if request.not_after and end.timestamp() < request.not_after - 60:
            asked = format_date(datetime.fromtimestamp(request.not_after, UTC))
            self.say(
                f"The request asked for a certificate until {asked}; the service issued one until {format_date(end)}"
            )

    def _tell_if_names_are_missing(self, existing: Existing, keychain: Keychain) -> None:
        """Say which alternative names of the certificate before are not in the new one: access rules may have granted rights by them."""
        assert keychain.certificate is not None
        try:
            before = () if existing.certificate is None else san(existing.certificate)
            missing = sorted(set(before) - set(san(keychain.certificate)))
        except CertificateError:
            return
        if missing:
            shown = ", ".join(f"{kind}={name}" for kind, name in missing)
            self.say(
                f"Warning: the new certificate does not have the alternative names of the one before: {shown}; ask for them with --san"
            )

    def _renewed(self, reply: CertReply, existing: Existing, public: bytes) -> Outcome:
        """Handle an answer that renews a certificate instead of issuing one: the keychain stays.

        Raises:
            NotHeldError: The renewed certificate is not the one in the keychain.
            SecurityError: It is not valid any more.
        """
        path = self.settings.keychain
        named = shown_id(reply.issuer, reply.serial)
        keychain, certificate = existing.keychain, existing.certificate
        same = (
            keychain is not None
            and certificate is not None
            and existing.is_current(self.now())
            and reply.serial == certificate.serial_number
            and reply.issuer in ("", keychain.issuer_id)
            and certificate.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            == public
        )
        if not same:
            raise NotHeldError(
                f"the certificate service issued nothing: it renewed the certificate {named}, which has this name but is not "
                f"the one in {path}; nothing was written. Renew it where its keychain is. If it never arrived there, ask with "
                f"authnjwt --new-key, or have it revoked (pvxcert --revoke {named}) and ask again"
            )
        if reply.state in (CertState.REVOKED, CertState.EXPIRED):
            raise SecurityError(f"the certificate service says that the certificate {named} is {reply.state}")
        assert certificate is not None
        until = cadence(reply.renew_by, certificate)
        dated = f", until {format_date(until)}" if until is not None else ""
        self.say(
            f"{path}: the certificate service renewed the certificate {named} in it{dated}; the keychain stays as it is"
        )
        self._tell_if_other_schedule(reply)
        return self._present("renewed", existing)._replace(state=reply.state, renew_by=until)

    async def trust_anchor(self, *, force: bool = False) -> Outcome:
        """Write a keychain that holds the trust anchor only.

        Raises:
            ApplianceError: It failed; the text says why.
        """
        existing = self.look()
        path = self.settings.keychain
        if (existing.key is not None or existing.trouble) and not force:
            raise KeychainError(
                f"{path} holds a key, or cannot be read; a trust anchor alone would destroy it: move it away, or use --force"
            )
        self._check_destination()
        trust = await self.establish(existing)
        self._write(dump_trust_anchors([trust.anchor], self.settings.password, crossed=trust.crossed))
        return Outcome("anchor", path, keychain=trust_only([trust.anchor], trust.crossed))

    async def establish(self, existing: Existing) -> Trust:
        """Ask the service for its anchor and compare it with what is known here.

        Raises:
            ApplianceError: It failed; the text says why.
        """
        settings, trusting = self.settings, self.trusting
        given = load_anchor_file(trusting.file) if trusting.file else ()
        keychain = existing.keychain.anchors if existing.keychain is not None else self._sibling_anchors()
        known = KnownAnchors(settings.client.config_file, settings.prefix, settings.issuer)
        crossed = existing.keychain.crossed if existing.keychain is not None else ()
        anchors = (*given, *keychain, *known.load(), *crossed) if settings.client.tls_alone else ()
        offer = await ask_offer(settings, anchors, now=self.now(), timeout_s=self.timeout_s)
        return decide(
            offer,
            given=given,
            wanted=trusting.fingerprint,
            keychain=keychain,
            known=known,
            first_use=trusting.first_use,
            now=self.now(),
            say=self.say,
        )

    # -- the network -----------------------------------------------------------------------------------

    async def report(self, existing: Existing) -> CheckedStatus | None:
        """Return the status of the existing certificate, if the service answers in a short time."""
        keychain = existing.keychain
        if keychain is None:
            return None
        return await ask_status(
            self.settings, keychain, now=self.now(), timeout_s=min(self.timeout_s, _PRESENT_S)
        )

    def _check_token_identity(self, existing: Existing, keychain: Keychain, identifier: str) -> None:
        certificate, issued = existing.certificate, keychain.certificate
        if certificate is None or issued is None:
            return
        # The service's rules decide the other parts of the name, and may change between two certificates of one person.
        if common_name(certificate.subject) == common_name(issued.subject):
            return
        raise KeychainError(
            f"{self.settings.keychain}: it is the keychain of {subject_text(certificate.subject)}, but the new certificate "
            f"{identifier} is for {subject_text(issued.subject)}; nothing was written, and the new key is lost: name "
            "another keychain, or replace this one with --force"
        )

    # -- files -----------------------------------------------------------------------------------------

    def _present(self, action: str, existing: Existing) -> Outcome:
        keychain = existing.keychain
        assert keychain is not None
        return Outcome(
            action,
            self.settings.keychain,
            shown_id(keychain.issuer_id, keychain.serial),
            CertState.UNKNOWN,
            keychain,
        )

    def _sibling_anchors(self) -> tuple[x509.Certificate, ...]:
        """Return what the same account's other keychain trusts, if it can be read; otherwise nothing."""
        path, password = self.settings.sibling
        if not path or path == self.settings.keychain:
            return ()
        try:
            return load_keychain(read_private(path, _MAX_KEYCHAIN).data, password).anchors
        except ApplianceError:
            return ()

    def _check_destination(self) -> None:
        """Check that the keychain can be written, before a certificate is issued that could not be stored."""
        path = self.settings.keychain
        make_directory(os.path.dirname(path) or ".")  # noqa: PTH120 - start-up time
        check_replaceable(path)

    def _rehearse(self, trust: Trust) -> None:
        """Check, before a request, that a keychain with these anchors and this password can be read again.

        Raises:
            ApplianceError: It failed; the text says why.
        """
        password = self.settings.password
        try:
            check_keychain(
                load_keychain(dump_trust_anchors(trust.anchors, password, crossed=trust.crossed), password),
                now=self.now(),
                usage="client",
            )
        except KeychainError as error:
            raise KeychainError(
                f"{self.settings.keychain}: a keychain with these trust anchors and this password could not "
                f"be used: {error}; nothing was requested"
            ) from error

    def _is_good(self, existing: Existing) -> bool:
        """Whether the keychain that is there can be used, by itself and its dates."""
        return existing.is_current(self.now()) and self.renewal_due(existing).when is not None

    async def take_waiting(self, existing: Existing, *, may_ask: bool = False) -> Outcome | None:
        """Put the certificate that waits beside the keychain into its place, if it is valid now.

        Args:
            existing: What is at the keychain's path.
            may_ask: Whether a new request is right if that one was denied.

        Returns:
            ``created`` if it was; ``waiting`` if it has to wait on; None if nothing waits there.

        Raises:
            SecurityError: It was denied or revoked, and ``may_ask`` is false.
            ApplianceError: The file beside cannot be read, or the keychain cannot be written.
        """
        path = self.settings.keychain
        beside = look_beside(path, self.settings.password)
        if beside is None:
            return None
        report = await ask_status(
            self.settings, beside.keychain, now=self.now(), timeout_s=min(self.timeout_s, _PRESENT_S)
        )
        state = beside.verdict(report)
        if state in (CertState.REVOKED, CertState.EXPIRED):
            if not may_ask:
                raise SecurityError(
                    f"{path}: the certificate {beside.cert_id}, which waited for approval in {beside.path}, was denied or revoked, and "
                    "an automatic renewal does not ask again; if the reason is gone, request a new one without --if-due or -D"
                )
            self.say(
                f"{path}: the certificate {beside.cert_id}, which waited for approval, was denied; it is removed"
            )
            forget(path)
            return None
        certificate = beside.keychain.certificate
        assert certificate is not None
        by = None if report is None else cadence(report.report.renew_by, certificate)
        if state is CertState.VALID or not self._is_good(existing):
            self._write(beside.data)
            return Outcome("created", path, beside.cert_id, state, beside.keychain, by)
        return Outcome("waiting", path, beside.cert_id, state, beside.keychain, by)

    def _write(self, data: bytes) -> None:
        self._warn(replace_private(self.settings.keychain, data))
        forget(self.settings.keychain)

    def _warn(self, sentences: Iterable[str]) -> None:
        for sentence in sentences:
            self.say(f"Warning: {sentence}")

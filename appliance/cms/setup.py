"""The first start, and the self-tests of every start.

What is missing is made: certificate authority, own keychain, administrator's keychain, access security file. What exists
is checked before it is used; a failure is one sentence.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

import sqlalchemy as sa
from cryptography import x509

from appliance.authn.grant import backdated
from appliance.certs.crossed import pairs, sent_beside
from appliance.certs.keychain import (
    Keychain,
    chain_above,
    check_keychain,
    dump_keychain,
    load_keychain,
    make_keychain,
)
from appliance.certs.ocsp import OCSPSigner, verify_response
from appliance.certs.profiles import (
    CertificateAuthority,
    build_ca,
    build_certificate,
    check_ca,
    generate_key,
    subject_name,
)
from appliance.certs.public_keys import key_identity
from appliance.certs.signer import KeySigner, Signer
from appliance.certs.status import CertState, OCSPState
from appliance.certs.x509 import (
    find_extension,
    is_self_signed,
    load_pem_text,
    pem_chain,
    public_key,
    shown_id,
    signed_by,
    status_pv,
    subject_text,
)
from appliance.cms.authorities import (
    Authority,
    Held,
    KnownAuthority,
    attention,
    bundle,
    check_belongs,
    check_not_over,
    end_of,
    introduce,
    left_of,
)
from appliance.cms.config import CMSSettings, parse_password_file
from appliance.cms.issuing import Issuing, new_serial
from appliance.cms.model import (
    SERVICE,
    posix,
    shown_name,
    shown_time,
    state_now,
    subject_key,
    utc,
)
from appliance.cms.schema import audit, certs
from appliance.cms.signing import open_signer
from appliance.cms.store import Store
from appliance.cms.transaction import CertRecord, Transaction
from appliance.config.files import (
    make_directories,
    read_private,
    read_trusted,
    replace_private,
    write_public,
)
from appliance.config.pva import ServerConfig
from appliance.config.secret import Secret
from appliance.errors import (
    ApplianceError,
    CertificateError,
    ConfigurationError,
    KeychainError,
    SecurityError,
)
from appliance.tls.paths import check_path

__all__ = [
    "JOURNAL",
    "Authority",
    "any_certificate",
    "check_not_lost",
    "ensure_administrator",
    "ensure_authority",
    "ensure_own_keychain",
    "hold",
    "outlives",
    "renew_own_keychain",
    "self_test",
]

_LIMIT: Final = 1 << 18
JOURNAL: Final = ".revoked"
"""The end of the name of the journal of revocations, beside the database's."""
_DAY: Final = timedelta(days=1)


def say(text: str) -> None:
    """Print a line that people and scripts wait for."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def make_directory(path: str) -> None:
    """Make the directory for a file, for its owner only.

    Raises:
        ConfigurationError: It cannot be made.
    """
    directory = os.path.dirname(os.path.abspath(path))  # noqa: PTH100, PTH120 - text in, text out
    make_directories(directory)


def _load(path: str, password: Secret, what: str) -> Keychain:
    read = read_private(path, _LIMIT)
    try:
        return load_keychain(read.data, password)
    except KeychainError as error:
        raise ConfigurationError(f"{what}: {error}", file=path) from error


def _save(path: str, keychain: Keychain, password: Secret) -> None:
    make_directory(path)
    for warning in replace_private(path, dump_keychain(keychain, password)):
        say(warning)
    say(f"Keychain file created   : {path}")


def check_not_lost(db: str) -> None:
    """Refuse to start a new database if there was one before.

    Raises:
        ConfigurationError: The database is missing, but its journal of revocations exists.
    """
    if not os.path.lexists(db) and os.path.lexists(db + JOURNAL):
        raise ConfigurationError(
            f"the database is missing, but its journal of revocations exists ({db}{JOURNAL}): with an empty database every "
            "certificate would be UNKNOWN, also the administrators'. Put it back, or restore a backup; to start anew, move the "
            "journal away as well",
            file=db,
        )


def any_certificate(transaction: Transaction) -> bool:
    """Whether the database has certificates, of any authority."""
    return transaction.connection.execute(sa.select(certs.c.serial).limit(1)).first() is not None


def last_recorded(transaction: Transaction) -> int:
    """Return when the last record of the audit was made, in POSIX seconds; 0 if there is none."""
    head = sa.select(audit.c.at).order_by(audit.c.seq.desc()).limit(1)
    return int(transaction.connection.execute(head).scalar() or 0)


def ensure_authority(settings: CMSSettings, now: datetime, *, may_make: bool = True) -> Authority:
    """Read the certificate authority's keychain, or make it.

    Raises:
        ConfigurationError: A setting or a file cannot be used.
        SecurityError: Something is not trustworthy; the text says what.
    """
    if settings.ca_key:
        return _authority_in_token(settings, now, may_make=may_make)
    path = settings.cert_auth_tls_keychain
    password = parse_password_file(
        settings.cert_auth_tls_keychain_pwd_file, "cert_auth_tls_keychain_pwd_file"
    )
    created = not os.path.lexists(path)
    if created and not may_make:
        raise ConfigurationError(
            "the certificate authority's keychain is missing, but the database has certificates of an authority; a new authority "
            "would make them all useless: put the keychain back, restore it from its backup, or copy it from another node; to start anew, name another database",
            file=path,
        )
    if created:
        key = generate_key(settings.key_algorithm)
        certificate = _new_root(settings, KeySigner(key), now)
        _save(path, make_keychain(key, [certificate]), password)
    keychain = _load(path, password, "the certificate authority's keychain")
    if keychain.certificate is None or keychain.key is None:
        raise ConfigurationError(
            "the certificate authority's keychain holds no key, so nothing can be signed; name the keychain "
            "with the key, or start with an empty directory to make a new authority",
            file=path,
        )
    root = keychain.chain[-1] if keychain.chain else keychain.certificate
    crossed = _crossed(keychain.crossed, root)
    issuer = CertificateAuthority(KeySigner(keychain.key), keychain.certificate, keychain.chain, crossed)  # type: ignore[arg-type]
    return Authority(issuer, root, created)


def _crossed(
    certificates: Sequence[x509.Certificate], root: x509.Certificate
) -> tuple[x509.Certificate, ...]:
    return tuple(dict.fromkeys(c for pair in pairs(certificates, root) for c in pair))


def _new_root(settings: CMSSettings, signer: Signer, now: datetime) -> x509.Certificate:
    subject = subject_name(
        settings.cert_auth_name,
        country=settings.cert_auth_country,
        organization=settings.cert_auth_organization,
        organizational_unit=settings.cert_auth_organizational_unit,
    )
    start = now.replace(microsecond=0)
    end = settings.cert_auth_validity.after(start)
    return build_ca(
        signer, subject=subject, not_before=backdated(start, end), not_after=end, serial=new_serial()
    )


def _authority_in_token(settings: CMSSettings, now: datetime, *, may_make: bool) -> Authority:
    path = settings.ca_certificate
    created = not os.path.lexists(path)
    if created and not may_make:
        raise ConfigurationError(
            "the authority's certificate is missing, but the database has certificates of an authority; another certificate "
            "would make them all useless: put the file back, or restore it from its backup",
            file=path,
        )
    try:
        found = [] if created else load_pem_text(read_trusted(path, _LIMIT))
        chain = chain_above(found[0], found[1:]) if found else ()
        root = chain[-1] if chain else found[0] if found else None
        crossed = () if root is None else _crossed(found[1:], root)
        below = [c for c in found[1:] if signed_by(c, found[0]) and c not in crossed and c != found[0]]
        if below:
            raise ConfigurationError(
                f"{subject_text(below[0].subject)} comes behind {subject_text(found[0].subject)}, which has issued it: put the "
                "authority's own certificate first, and those above it behind it",
                file=path,
            )
    except SecurityError as error:
        raise ConfigurationError(f"the authority's certificate: {error}", file=path) from error
    signer = open_signer(
        settings.ca_key, settings.ca_key_pin, public_key=public_key(found[0]) if found else None
    )
    try:
        if created:
            found = [_new_root(settings, signer, now)]
            make_directory(path)
            write_public(path, pem_chain(*found).encode())
            say(f"Certificate file created: {path}")
    except BaseException:
        signer.close()
        raise
    issuer = CertificateAuthority(signer, found[0], chain, crossed)
    return Authority(issuer, chain[-1] if chain else found[0], created)


def hold(store: Store, settings: CMSSettings, authority: Authority, now: datetime) -> Held:
    """Read former authorities, and tell the database what is held.

    Args:
        store: The database. Afterwards it knows all authorities.
        settings: Name the former ones.
        authority: The present one.
        now: The present time, aware.

    Raises:
        ConfigurationError: A file cannot be used, or the database belongs to other authorities.
        SecurityError: Something is not trustworthy; the text says what.
    """
    former: list[Authority] = []
    try:
        for setting in settings.former_authorities:
            held = ensure_authority(settings.of_former(setting), now, may_make=False)
            ends = end_of(held.issuer, authority.issuer.crossed, setting.ending())
            former.append(held._replace(ends=ends))
        _check_former(authority, former)

        def job(transaction: Transaction) -> tuple[dict[str, KnownAuthority], dict[str, int]]:
            check_belongs(transaction, authority)
            known = introduce(transaction, (authority, *former), now, present=authority.issuer_id)
            check_not_over(authority, known, now)
            # One that was introduced and has not issued anything is left out.
            return known, {
                ident: left_of(transaction.connection, ident)
                for ident in known
                if ident != authority.issuer_id
            }

        known, left = store.run(job)
    except BaseException:
        for held in former:
            held.issuer.signer.close()
        raise
    store.known = {ident: each.ends for ident, each in known.items()}
    alive = tuple(each for each in former if each.ends is not None and now < each.ends)
    for each in former:
        if each not in alive:
            each.issuer.signer.close()
            say(f"Former authority ended  : {each.issuer_id}; remove it from former_authorities")
    for text in attention(known, left, {each.issuer_id for each in former}, authority.issuer_id, now):
        say(f"Warning: {text}")
    since = utc(known[authority.issuer_id].since)
    roots = [each.root for each in alive]
    return Held(alive, bundle(authority.root, known.values(), now, held=roots), since, left)


def _check_former(authority: Authority, former: Sequence[Authority]) -> None:
    seen = {authority.issuer_id: "the present authority"}
    for each in former:
        if each.issuer_id in seen:
            raise ConfigurationError(
                f"{each.issuer_id} {subject_text(each.issuer.certificate.subject)} is {seen[each.issuer_id]}; name each authority once",
                key="former_authorities",
            )
        seen[each.issuer_id] = "named twice"


def self_test(authority: Authority, now: datetime) -> None:
    """Check the authority before it is used: profile, dates, chain, a signature made and verified.

    Raises:
        SecurityError: The authority cannot be used; the text says why.
    """
    issuer = authority.issuer
    certificate = issuer.certificate
    name = subject_text(certificate.subject)
    check_ca(certificate)
    for link in (certificate, *issuer.chain):
        if not link.not_valid_before_utc <= now < link.not_valid_after_utc:
            raise CertificateError(
                f"the certificate authority {subject_text(link.subject)} is valid from "
                f"{link.not_valid_before_utc:%Y-%m-%d} to {link.not_valid_after_utc:%Y-%m-%d}, and this host's date is "
                f"{now:%Y-%m-%d}; check the clock, or make a new authority"
            )
        if find_extension(link, x509.NameConstraints) is not None:
            say(
                f"Warning: the certificate of {subject_text(link.subject)} permits some names only (name constraints). Peers refuse "
                "certificates with other names, and this service issues them nevertheless"
            )
    if not is_self_signed(authority.root):
        raise CertificateError(f"the chain above {name} does not end in a self-signed certificate")
    if issuer.signer.public_key() != certificate.public_key():
        raise KeychainError(f"the key in the keychain is not that of the certificate authority {name}")
    signer = OCSPSigner(issuer.signer, certificate, sent_beside(certificate, issuer.chain, issuer.crossed))
    der = signer.sign(1, OCSPState.UNKNOWN, this_update=now, next_update=now + timedelta(minutes=1))
    verify_response(der, issuer=certificate, serial=1, now=now)
    trial = build_certificate(
        issuer,
        subject=subject_name("self-test"),
        public_key=generate_key("ec-p256").public_key(),
        usage="client",
        not_before=now.replace(microsecond=0),
        not_after=min(now + timedelta(minutes=1), certificate.not_valid_after_utc).replace(microsecond=0),
        serial=1,
    )
    try:
        trial.verify_directly_issued_by(certificate)
    except Exception as error:
        raise KeychainError(f"a signature by the certificate authority {name} does not verify") from error
    try:
        # What its peers will do. It also finds a limit of an authority above that nobody would respect otherwise.
        check_path(trial, (certificate, *issuer.chain), now=now)
    except CertificateError as error:
        raise CertificateError(
            f"nobody would accept a certificate by the certificate authority {name}: {error}"
        ) from error


def _record_own(
    transaction: Transaction,
    certificate_subject: Mapping[str, str],
    *,
    serial: int,
    usage: str,
    skid: str,
    start: int,
    begin: int,
    end: int,
    key_id: str,
    no_status: bool,
    method: str,
) -> CertRecord:
    """Record a certificate that the service makes for itself.

    Args:
        transaction: The open transaction.
        certificate_subject: The certificate's name: CN, O, OU, C.
        serial: Its serial number.
        usage: What it is for.
        skid: Its key's identifier, in hex.
        start: The present time (POSIX seconds).
        begin: Start of its validity (POSIX seconds).
        end: End of its validity (POSIX seconds).
        key_id: What tells its key from others (`appliance.certs.public_keys.key_identity`).
        no_status: Whether it names no status PV.
        method: How the request came about, for the audit.
    """
    record = CertRecord(
        serial=serial,
        subject=subject_key(certificate_subject),
        usage=usage,
        method=method,
        not_before=begin,
        not_after=end,
        renew_by=0,
        state=CertState.VALID,
        state_date=start,
        approved=True,
        delivered=1,
        skid=skid,
        no_status=no_status,
    )
    parts = {"cn": "CN", "o": "O", "ou": "OU", "c": "C"}
    more = {column: certificate_subject.get(part, "") for column, part in parts.items()}
    record = transaction.add(record, {**more, "created": start, "key_id": key_id})
    facts = {**SERVICE.facts(), "subject": shown_name(certificate_subject), "usage": usage}
    facts |= {
        "not_before": shown_time(utc(begin)), "not_after": shown_time(utc(end)), "no_status": "yes" if no_status else "no"
    }  # fmt: skip
    transaction.audit(start, "create", serial, {**facts, "state": "VALID", "why": method})
    return record


class OwnRequest(NamedTuple):
    """A certificate that the service makes for itself: first `job` is committed, then `finish` signs."""

    job: Callable[[Transaction], CertRecord]
    finish: Callable[[CertRecord], Keychain]


def _own_request(
    issuing: Issuing,
    subject: Mapping[str, str],
    *,
    usage: str,
    lifetime_end: datetime,
    algorithm: str,
    status: bool,
    method: str,
) -> OwnRequest:
    now = issuing.lifecycle.clock().replace(microsecond=0)
    key = generate_key(algorithm)
    name = subject_name(
        subject["CN"], country=subject["C"], organization=subject["O"], organizational_unit=subject["OU"]
    )
    end = min(lifetime_end, issuing.issuer.certificate.not_valid_after_utc)
    skid = x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest.hex()
    serial = new_serial()

    def job(transaction: Transaction) -> CertRecord:
        return _record_own(
            transaction,
            subject,
            serial=serial,
            usage=usage,
            skid=skid,
            start=posix(now),
            begin=max(posix(backdated(now, end)), posix(issuing.issuer.certificate.not_valid_before_utc)),
            end=posix(end),
            key_id=key_identity(key.public_key()),
            no_status=not status,
            method=method,
        )

    def finish(record: CertRecord) -> Keychain:
        certificate = issuing.own_certificate(record, name, key.public_key(), usage, status=status)
        issuer = issuing.issuer
        return make_keychain(key, [certificate, issuer.certificate, *issuer.chain, *issuer.crossed])

    return OwnRequest(job, finish)


def _service_request(settings: CMSSettings, issuing: Issuing) -> OwnRequest:
    subject = {
        "CN": settings.pvacms_name,
        "O": settings.pvacms_organization,
        "OU": settings.pvacms_organizational_unit,
        "C": settings.pvacms_country,
    }
    return _own_request(
        issuing,
        subject,
        usage="cms",
        lifetime_end=issuing.lifecycle.clock() + 365 * _DAY,
        algorithm=settings.key_algorithm,
        status=False,
        method="pvacms",
    )


def outlives(keychain: Keychain, issuing: Issuing) -> bool:
    """Whether the service's certificate is valid for another week, or as long as its authority."""
    assert keychain.certificate is not None
    end = keychain.certificate.not_valid_after_utc
    return end - issuing.lifecycle.clock() > 7 * _DAY or end >= issuing.issuer.certificate.not_valid_after_utc


async def renew_own_keychain(settings: CMSSettings, server: ServerConfig, issuing: Issuing) -> Keychain:
    """Replace the service's keychain while it serves.

    Raises:
        ApplianceError: It failed; the text says why.
    """
    # A key is made and signatures may take their time, while everybody else is served.
    request = await asyncio.to_thread(_service_request, settings, issuing)
    record = await issuing.lifecycle.store.submit(request.job)
    try:
        keychain = await asyncio.to_thread(request.finish, record)
        content = dump_keychain(keychain, server.tls_keychain_password)
        await asyncio.to_thread(replace_private, server.tls_keychain, content)
    except ApplianceError as error:
        await issuing.lifecycle.withdraw(
            record, f"the service's own certificate could not be renewed: {error}"
        )
        raise
    return keychain


def ensure_own_keychain(settings: CMSSettings, server: ServerConfig, issuing: Issuing) -> Keychain:
    """Read the service's own keychain, or make it. One that has nearly expired, or is of another CA, is replaced.

    Its certificate has no status extension, because this service itself would give the status.
    """
    path = server.tls_keychain
    now = issuing.lifecycle.clock()
    authority = issuing.issuer.certificate
    if os.path.lexists(path):
        keychain = _load(path, server.tls_keychain_password, "the service's keychain")
        mine = keychain.issuer == authority
        if mine and keychain.certificate is not None and not status_pv(keychain.certificate):
            if outlives(keychain, issuing):
                check_keychain(keychain, now=now, usage="server")
                return keychain
        elif not mine and keychain.issuer_id not in issuing.lifecycle.store.authorities:
            raise ConfigurationError(
                "the service's keychain was issued by another certificate authority than the one in use; "
                "remove it to have a new one made",
                file=path,
            )
    request = _service_request(settings, issuing)
    keychain = request.finish(issuing.lifecycle.store.run(request.job))
    _save(path, keychain, server.tls_keychain_password)
    return keychain


def ensure_administrator(settings: CMSSettings, issuing: Issuing, name: str, *, must_be_new: bool) -> bool:
    """Make an administrator's keychain unless it exists.

    With ``must_be_new`` an existing one is an error.

    Returns:
        Whether it was made.

    Raises:
        ConfigurationError: A file cannot be used.
        SecurityError: The certificate cannot be made.
    """
    path = settings.admin_tls_keychain
    if os.path.lexists(path):
        if must_be_new:
            raise ConfigurationError(
                f"the keychain of an administrator exists already; move it away, or name another with -a: {path}"
            )
        return False
    country = settings.cert_auth_country
    subject = {"CN": name, "O": "", "OU": "", "C": country}
    key = subject_key(subject)
    lifecycle = issuing.lifecycle
    now = lifecycle.clock()
    alive = [
        record
        for record in lifecycle.store.run(lambda transaction: transaction.of_subject(key))
        if state_now(record, now) not in (CertState.REVOKED, CertState.EXPIRED)
    ]
    if alive:
        why = (
            f"{shown_name(subject)} already has a certificate "
            f"({shown_id(alive[0].issuer, alive[0].serial)}); "
            "have that one revoked first; if nobody can, because it is the only administrator's and is lost, choose another "
            "name here, and revoke it with the new keychain"
        )
        if must_be_new:
            raise ConfigurationError(why)
        sys.stderr.write(f"pvacms: no keychain is made for the administrator: {why}\n")
        return False
    request = _own_request(
        issuing,
        subject,
        usage="client",
        lifetime_end=now + 366 * _DAY,
        # PVXS 1.3.1 loads its own chain for RSA keys only, and uses plain TCP with any other key. An administrator with its
        # pvxcert would then be refused, because it proves no identity.
        algorithm=settings.key_algorithm if settings.key_algorithm.startswith("rsa-") else "rsa-2048",
        status=True,
        method="administrator",
    )
    keychain = request.finish(lifecycle.store.run(request.job))
    _save(
        path,
        keychain,
        parse_password_file(settings.admin_tls_keychain_pwd_file, "admin_tls_keychain_pwd_file"),
    )
    return True

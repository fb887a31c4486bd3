"""Commands for authorities: requests to an offline root, chains that come back, a new root beside the old one.

Nothing here switches a service over. Each command writes files, checks them as a start does, tells the database which
authority there will be, and says which settings to change.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from appliance.authn.grant import backdated
from appliance.certs.crossed import Pair, faults_of_introduction, is_same_authority, pairs
from appliance.certs.keychain import Keychain, chain_above, dump_keychain
from appliance.certs.profiles import (
    CertificateAuthority,
    build_ca,
    build_request,
    generate_key,
    subject_name,
)
from appliance.certs.signer import KeySigner, Signer
from appliance.certs.x509 import (
    UNREADABLE,
    authority_name,
    is_ca,
    is_self_signed,
    load_pem_text,
    pem_chain,
    public_key,
    subject_text,
)
from appliance.cms.authorities import (
    Authority,
    KnownAuthority,
    bundle,
    check_belongs,
    introduce,
    known_authorities,
    left_of,
)
from appliance.cms.config import CMSSettings, parse_password_file
from appliance.cms.dialect import Login, is_sqlite
from appliance.cms.issuing import new_serial
from appliance.cms.model import posix, shown_time, utc
from appliance.cms.setup import ensure_authority, make_directory, say, self_test
from appliance.cms.signing import open_signer
from appliance.cms.store import Store
from appliance.cms.transaction import Transaction
from appliance.config.files import read_private, read_regular, write_private, write_public
from appliance.config.secret import Secret
from appliance.errors import ConfigurationError, SecurityError

__all__ = ["install_chain", "make_request", "new_authority", "print_bundle"]

_LIMIT: Final = 1 << 18
_MOST: Final = 16
_REQUEST: Final = ".request"
"""The end of the name of the file with the key of a request, beside the authority's keychain."""


# ---------------------------------------------------------------------- a request, and what comes back


def make_request(settings: CMSSettings, path: str) -> None:
    """Write a request for the certificate of an intermediate authority (PKCS #10, PEM); ``-`` is standard output.

    The key is made if there is none yet, and stays beside the authority's keychain until the chain is installed.

    Raises:
        ConfigurationError: A setting or a file cannot be used.
        SecurityError: The request cannot be signed.
    """
    subject = subject_name(
        settings.cert_auth_name,
        country=settings.cert_auth_country,
        organization=settings.cert_auth_organization,
        organizational_unit=settings.cert_auth_organizational_unit,
    )
    signer: Signer
    if settings.ca_key:
        signer = open_signer(settings.ca_key, settings.ca_key_pin)
    else:
        signer = KeySigner(_request_key(settings, make=True))
    with contextlib.closing(signer):
        der = build_request(signer, subject=subject, path_length=0)
    text = x509.load_der_x509_csr(der).public_bytes(Encoding.PEM)
    if path == "-":
        sys.stdout.write(text.decode())
        return
    make_directory(path)
    write_public(path, text)
    say(f"Certificate request     : {path}")
    say(
        "Have the root sign it, for an authority: openssl x509 -req ... -copy_extensions copyall keeps what it asks for"
    )
    say("Then: pvacms --install-chain FILE ..., with what the root has signed and the root's certificate")


def _request_key(settings: CMSSettings, *, make: bool = False) -> CertificateIssuerPrivateKeyTypes:
    """Read the key of a request, or make it."""
    path, password = settings.cert_auth_tls_keychain + _REQUEST, _password(settings)
    secret = password.reveal().encode() or None
    if not os.path.lexists(path):
        if not make:
            raise ConfigurationError(
                "there is no key that waits for a certificate; make a request first, with pvacms --make-csr FILE",
                file=path,
            )
        key = generate_key(settings.key_algorithm)
        make_directory(path)
        encryption = BestAvailableEncryption(secret) if secret else NoEncryption()
        plain = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
        write_private(path, plain, owner=_owner(path))
        say(f"Key of the request      : {path}")
        return key
    read = read_private(path, _LIMIT)
    try:
        return load_pem_private_key(read.data, secret)  # type: ignore[return-value]
    except UNREADABLE as error:
        raise ConfigurationError(
            f"the key of the request cannot be read with the password of the authority's keychain: {error}",
            file=path,
        ) from error


def _owner(path: str) -> tuple[int, int] | None:
    """Return whose a new secret is: if root runs the command, the service's, whose directory it is."""
    if os.geteuid() != 0:
        return None
    directory = os.stat(os.path.dirname(path) or ".")  # noqa: PTH116, PTH120 - text in
    return directory.st_uid, directory.st_gid


def _password(settings: CMSSettings) -> Secret:
    return parse_password_file(settings.cert_auth_tls_keychain_pwd_file, "cert_auth_tls_keychain_pwd_file")


def install_chain(settings: CMSSettings, files: Sequence[str], now: datetime) -> None:
    """Make the authority from the key of the request and the certificates that came back.

    Args:
        settings: Name the authority's files, which are not overwritten if they are there.
        files: PEM: the authority's certificate, those above it, and the cross-certificates of a new root, in any order.
        now: The present time, aware.

    Raises:
        ConfigurationError: A setting or a file cannot be used.
        SecurityError: The authority cannot be used; the text says why.
    """
    found = _certificates(files, alone=True)
    signer: Signer
    if settings.ca_key:
        signer = open_signer(settings.ca_key, settings.ca_key_pin)
    else:
        key = _request_key(settings)
        signer = KeySigner(key)
    with contextlib.ExitStack() as opened:
        opened.callback(signer.close)
        authority = _assembled(signer, found)
        self_test(authority, now)
        former = _present(settings, now)
        # The command did this before and was interrupted, or somebody has put the file where the settings of after the switch name it.
        is_there = (
            former is not None
            and bool(settings.former_authorities)
            and former.issuer.certificate == authority.issuer.certificate
        )
        if former is None or is_there:
            if former is not None:
                former.issuer.signer.close()
            former = _named(settings, now)
        if former is not None:
            opened.callback(former.issuer.signer.close)
        if former is not None:
            _check_database(settings)
        with _database(settings, former) as store:
            if former is not None and store is not None:
                store.run(partial(check_belongs, authority=former))
                known = store.run(lambda transaction: known_authorities(transaction.connection))
                authority = _with_known(authority, former, known.values(), now)
                _check_introduced(authority, former, now)
                _check_nobody_is_cut_off(store, authority, former, known.values(), now)
            path = settings.authority_file
            if os.path.lexists(path) and not is_there:
                path = _beside(path, authority.issuer_id)
            issuer = authority.issuer
            if is_there:
                say(f"Certificates are there  : {path}")
            elif settings.ca_key:
                make_directory(path)
                write_public(path, pem_chain(issuer.certificate, *issuer.chain, *issuer.crossed).encode())
                say(f"Certificates written    : {path}")
            else:
                _save_new(path, key, authority, _password(settings))
            _finish(settings, authority, former, path, now, store)
            if not settings.ca_key:
                os.unlink(settings.cert_auth_tls_keychain + _REQUEST)  # noqa: PTH108 - text in


def _certificates(files: Sequence[str], *, alone: bool = False) -> list[x509.Certificate]:
    """Read certificates of authorities; ``alone``: nothing secret may be beside them."""
    found: dict[x509.Certificate, None] = {}
    for path in files:
        data = read_regular(path, _LIMIT)
        try:
            read = load_pem_text(data)
        except SecurityError as error:
            raise ConfigurationError(str(error), file=path) from error
        if alone and b"PRIVATE KEY-----" in data:
            raise ConfigurationError(
                "there is a private key in it, which nobody needs here: if it is the root's, this host must not have it; take it out, and "
                "give the certificates alone",
                file=path,
            )
        if not read:
            raise ConfigurationError("it holds no certificate in PEM form", file=path)
        found.update(dict.fromkeys(read))
    if len(found) > _MOST:
        raise ConfigurationError(f"there are {len(found)} certificates; at most {_MOST} are read")
    for certificate in found:
        if not is_ca(certificate):
            raise ConfigurationError(
                f"{subject_text(certificate.subject)} is no certificate of an authority (basic constraints do not say CA); have the "
                "request signed for an authority"
            )
    return list(found)


def _assembled(signer: Signer, found: Sequence[x509.Certificate]) -> Authority:
    own = [c for c in found if public_key(c) == signer.public_key()]
    # A root's key also has a certificate that the old root has signed.
    certificate = next((c for c in own if is_self_signed(c)), None) or next(iter(own), None)
    if certificate is None:
        raise ConfigurationError(
            "none of the certificates is for the key of the request; give the certificate that was made from it, and those above it"
        )
    others = [c for c in found if c != certificate]
    chain = chain_above(certificate, others)
    root = chain[-1] if chain else certificate
    pair = pairs(others, root)
    crossed = tuple(dict.fromkeys(c for each in pair for c in each))
    for stray in others:
        # The old root itself may come with what it has signed.
        known = (
            stray in chain or stray in crossed or any(is_same_authority(stray, p.old_with_new) for p in pair)
        )
        if not known:
            raise ConfigurationError(
                f"the certificate of {subject_text(stray.subject)}, issued by {subject_text(stray.issuer)}, is neither above the "
                "authority nor one of two cross-certificates of its root; leave it out, or give what is missing"
            )
    return Authority(CertificateAuthority(signer, certificate, chain, crossed), root)


def _present(settings: CMSSettings, now: datetime) -> Authority | None:
    """Return the authority that is there already, as far as it can be read."""
    if not os.path.lexists(settings.authority_file):
        return None
    return ensure_authority(settings, now, may_make=False)


def _named(settings: CMSSettings, now: datetime) -> Authority | None:
    """Return the present authority if the settings are those of after the switch: a new place for the key, and it as a former one."""
    if not settings.former_authorities:
        return None
    return ensure_authority(settings.of_former(settings.former_authorities[0]), now, may_make=False)


def _check_database(settings: CMSSettings) -> None:
    """Refuse to make another authority before the service has used the present one: it would be the database's first."""
    if is_sqlite(settings.db) and not os.path.lexists(settings.db):
        raise ConfigurationError(
            "there is no database yet, and another authority is introduced to it; start pvacms once with the present one",
            file=settings.db,
        )


def _check_introduced(authority: Authority, former: Authority, now: datetime) -> None:
    """Refuse a new root that the old one does not introduce: every end would have to learn of it first."""
    new, old = authority.root, former.root
    if is_same_authority(new, old):
        return
    crossed = authority.issuer.crossed
    if any(is_same_authority(c, old) for c in crossed):
        faults = [
            faults_of_introduction(c, new=new, old=old, now=now) for c in crossed if is_same_authority(c, new)
        ]
        if all(faults):
            say(
                f"Warning: authenticators refuse this new root until somebody confirms it at each (--trust-anchor-fingerprint): "
                f"{'; '.join(faults[0])}"
            )
        return
    raise ConfigurationError(
        f"the root {subject_text(new.subject)} is another one than the present {subject_text(old.subject)}, and there are no "
        "cross-certificates, so no end would trust it. Make both, where the roots' keys are, and give them too: "
        "openssl x509 -x509toreq -in NEW.pem -signkey NEW.key -copy_extensions copyall | openssl x509 -req -CA OLD.pem -CAkey "
        "OLD.key -days 1000 -copy_extensions copyall -out new-with-old.pem; and openssl x509 -x509toreq -in OLD.pem -signkey OLD.key "
        "-copy_extensions copyall | openssl x509 -req -CA NEW.pem -CAkey NEW.key -days 365 -copy_extensions copyall -out "
        "old-with-new.pem; the second one's end is the old root's end"
    )


def _crosses_known(
    former: Authority, known: Iterable[KnownAuthority], root: x509.Certificate, now: datetime
) -> tuple[Pair, ...]:
    """Return the cross-certificates of ``root`` that the present authority or the database has, and that have not ended."""
    found = (*former.issuer.crossed, *(c for each in known for c in each.crossed))
    return pairs([c for c in found if now < c.not_valid_after_utc], root)


def _with_known(
    authority: Authority, former: Authority, known: Iterable[KnownAuthority], now: datetime
) -> Authority:
    """Add the cross-certificates of its root that are known, so that the root's own change goes on as it was begun.

    What is given comes first: it may be for a longer time.
    """
    given = authority.issuer.crossed
    taken = [
        pair
        for pair in _crosses_known(former, known, authority.root, now)
        if not any(is_same_authority(pair.old_with_new, c) for c in given)
    ]
    for old in dict.fromkeys(pair.old_with_new for pair in taken):
        say(
            f"Cross-certificates taken: those of the root and the former root {subject_text(old.subject)}, until "
            f"{old.not_valid_after_utc:%Y-%m-%d}"
        )
    crossed = tuple(dict.fromkeys((*given, *(c for pair in taken for c in pair))))
    return authority._replace(issuer=authority.issuer._replace(crossed=crossed))


def _check_nobody_is_cut_off(
    store: Store, authority: Authority, former: Authority, known: Iterable[KnownAuthority], now: datetime
) -> None:
    """Refuse a root that a still earlier one does not introduce: a cross-certificate leads one step, from root to root."""
    known, at = tuple(known), posix(now)
    vouched = (authority.root, *authority.issuer.crossed)
    for pair in _crosses_known(former, known, former.root, now):
        old = pair.old_with_new
        if any(is_same_authority(c, old) for c in vouched):
            continue
        alive = [
            each
            for each in known
            if each.chain and is_same_authority(each.chain[-1], old) and (each.ends is None or at < each.ends)
        ]
        for each in alive:
            left = store.run(partial(_left_of, ident=each.issuer_id))
            if left:
                until = old.not_valid_after_utc if each.ends is None else utc(each.ends)
                raise ConfigurationError(
                    f"{left} certificates of the former authority {each.issuer_id} {each.name} are in use, and it ends at "
                    f"{shown_time(until)}: the new root and that one's have no cross-certificates, so these ends would be cut off "
                    "now. Wait until then; or give that authority an earlier end (ends in former_authorities) and restart the "
                    "service; or make both cross-certificates of the two roots, if that key is still there, and use --install-chain"
                )


def _left_of(transaction: Transaction, ident: str) -> int:
    return left_of(transaction.connection, ident)


def _beside(path: str, ident: str) -> str:
    stem, dot, end = path.rpartition(".")
    beside = f"{stem}-{ident}{dot}{end}" if dot and "/" not in end else f"{path}-{ident}"
    if os.path.lexists(beside):
        raise ConfigurationError("the file exists already; move it away", file=beside)
    return beside


def _save_new(
    path: str, key: CertificateIssuerPrivateKeyTypes, authority: Authority, password: Secret
) -> None:
    issuer = authority.issuer
    keychain = Keychain(key, issuer.certificate, issuer.chain, (authority.root,), issuer.crossed)
    make_directory(path)
    write_private(path, dump_keychain(keychain, password), owner=_owner(path))
    say(f"Keychain file created   : {path}")


# ---------------------------------------------------------------------- a new root


def new_authority(settings: CMSSettings, now: datetime) -> None:
    """Make a new root, the old one's certificate for it, and its certificate for the old one. Nothing is switched.

    Raises:
        ConfigurationError: A setting or a file cannot be used, or the root's key is not here.
        SecurityError: Something is not trustworthy; the text says what.
    """
    if settings.ca_key:
        raise ConfigurationError(
            "the authority's key is in a token; make a new one there, name it in ca_key, a new file in ca_certificate and the present authority in former_authorities, and use --make-csr and --install-chain",
            key="ca_key",
        )
    former = _present(settings, now)
    if former is None:
        raise ConfigurationError(
            "there is no authority yet; the first start of pvacms makes one", file=settings.authority_file
        )
    if former.issuer.chain:
        raise ConfigurationError(
            "the authority is an intermediate one, and its root's key is not here; use --make-csr, have the root sign it, and "
            "install what comes back with --install-chain"
        )
    _check_database(settings)
    self_test(former, now)
    old = former.issuer
    key = generate_key(settings.key_algorithm)
    signer = KeySigner(key)
    start = now.replace(microsecond=0)
    end = settings.cert_auth_validity.after(start)
    root = build_ca(
        signer,
        subject=subject_name(
            settings.cert_auth_name,
            country=settings.cert_auth_country,
            organization=settings.cert_auth_organization,
            organizational_unit=settings.cert_auth_organizational_unit,
        ),
        # Trust goes to a later root only, so two roots must not begin in one second.
        not_before=max(backdated(start, end), old.certificate.not_valid_before_utc + timedelta(seconds=1)),
        not_after=end,
        serial=new_serial(),
    )
    new = CertificateAuthority(signer, root)
    last = max(rules.latest(start) for rules in settings.rules().usages.values())
    pair = Pair(
        build_ca(
            signer,
            subject=root.subject,
            not_before=root.not_valid_before_utc,
            not_after=min(old.certificate.not_valid_after_utc, end),
            serial=new_serial(),
            issuer=old,
        ),
        build_ca(
            old.signer,
            subject=old.certificate.subject,
            not_before=root.not_valid_before_utc,
            not_after=min(old.certificate.not_valid_after_utc, last, end),
            serial=new_serial(),
            issuer=new,
        ),
    )
    authority = Authority(new._replace(crossed=tuple(pair)), root)
    self_test(authority, now)
    path = _beside(settings.cert_auth_tls_keychain, authority.issuer_id)
    with _database(settings, former) as store:
        if store is not None:
            known = store.run(lambda transaction: known_authorities(transaction.connection))
            _check_nobody_is_cut_off(store, authority, former, known.values(), now)
        _save_new(path, key, authority, _password(settings))
        _finish(settings, authority, former, path, now, store)


@contextlib.contextmanager
def _database(settings: CMSSettings, present: Authority | None) -> Iterator[Store | None]:
    """Open the database of the present authority, beside services that use it; nothing if there is no such authority."""
    if present is None:
        yield None
        return
    login = None if is_sqlite(settings.db) else Login(settings.db_password, settings.db_tls_ca)
    store = Store(settings.db, present.issuer_id, login=login)
    store.open(beside=True)
    try:
        yield store
    finally:
        store.close()


def _finish(
    settings: CMSSettings,
    authority: Authority,
    former: Authority | None,
    path: str,
    now: datetime,
    store: Store | None,
) -> None:
    """Tell the database, and the administrator."""
    ident = authority.issuer_id
    say(f"Authority               : {ident} {subject_text(authority.issuer.certificate.subject)}")
    if former is None or store is None:
        say("Start pvacms to use it. The first administrator is made with --admin-keychain-ensure NAME")
        return
    store.run(lambda transaction: introduce(transaction, (former, authority), now, present=former.issuer_id))
    if ident == former.issuer_id:
        say(
            f"It has the present authority's key: put the file in the place of {settings.authority_file} on each node, and restart it"
        )
        return
    old = [c for c in authority.issuer.crossed if is_same_authority(c, former.root)]
    ends = min(c.not_valid_after_utc for c in (*old, former.issuer.certificate))
    if _names(authority) != _names(former):
        say(f"First let {settings.acf} name both authorities, or administrators are refused after the switch")
    if path == settings.authority_file:
        say(
            "Nothing was switched. To use it, have these settings and the file on each node, and restart it; in former_authorities:"
        )
    else:
        say(
            "Nothing was switched. To use it, have the file on each node, change these settings there, and restart it:"
        )
        say(f"  cert_auth_tls_keychain: {path}")
        say("  former_authorities:")
        say(f"    - keychain: {settings.cert_auth_tls_keychain}")
        if settings.cert_auth_tls_keychain_pwd_file:
            say(f"      keychain_pwd_file: {settings.cert_auth_tls_keychain_pwd_file}")
    say(f'      ends: "{ends:%Y-%m-%dT%H:%M:%SZ}"')
    if path != settings.authority_file and settings.former_authorities:
        kept = ", ".join(each.keychain or each.ca_certificate for each in settings.former_authorities)
        say(f"    # and, until they have ended, those that are there already: {kept}")


def _names(authority: Authority) -> list[str]:
    """Return the names that rules with AUTHORITY look for."""
    return [authority_name(c) for c in (authority.issuer.certificate, *authority.issuer.chain)]


def print_bundle(settings: CMSSettings, now: datetime) -> None:
    """Write what verifies this service's certificates to standard output, in PEM form: the present root first.

    Raises:
        ConfigurationError: A setting or a file cannot be used.
        SecurityError: Something is not trustworthy; the text says what.
    """
    authority = _present(settings, now)
    if authority is None:
        raise ConfigurationError("there is no authority yet", file=settings.authority_file)
    with contextlib.closing(authority.issuer.signer):
        known: dict[str, KnownAuthority] = {}
        if not is_sqlite(settings.db) or os.path.lexists(settings.db):
            with _database(settings, authority) as store:
                if store is not None:
                    known = store.run(lambda transaction: known_authorities(transaction.connection))
        known.setdefault(
            authority.issuer_id,
            KnownAuthority(
                authority.issuer_id,
                (authority.issuer.certificate, *authority.issuer.chain),
                authority.issuer.crossed,
                None,
                0,
            ),
        )
        held = _former_roots(settings, now)
        sys.stdout.write(pem_chain(*bundle(authority.root, known.values(), now, held=held)))


def _former_roots(settings: CMSSettings, now: datetime) -> list[x509.Certificate]:
    """Return the roots of the former authorities, from their files. No token is asked."""
    found: list[x509.Certificate] = []
    for each in settings.former_authorities:
        of = settings.of_former(each)
        if of.ca_key:
            found += (c for c in _certificates([of.ca_certificate]) if is_self_signed(c))
        else:
            found.append(ensure_authority(of, now, may_make=False).root)
    return found

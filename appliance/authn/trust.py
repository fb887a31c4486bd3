"""Decide which certificate authority a requester trusts before it has a keychain of its own.

Known anchors come first: a file or a fingerprint that the site gave, the keychain that is being renewed, the anchor kept
from an earlier request. Without any, the first answer is trusted, its fingerprint shown, and its anchor kept, as ssh
does with a host's key. An anchor that differs from what is known is refused, unless a known anchor itself has signed it
(`appliance.certs.crossed`). A fingerprint names one anchor, so it introduces no other.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.authn.ccr import MAX_PEM_CHARS
from appliance.certs.crossed import Pair, faults_of_introduction, is_same_authority, pairs
from appliance.certs.keychain import Keychain, Password, load_keychain
from appliance.certs.x509 import (
    is_ca,
    is_self_signed,
    issuer_id,
    load_pem_text,
    signed_by,
    subject_text,
)
from appliance.config.files import make_directories, read_trusted, write_public
from appliance.errors import (
    ApplianceError,
    CertificateError,
    ConfigurationError,
    KeychainError,
    SecurityError,
)

if TYPE_CHECKING:
    from appliance.pvdata.value import Value

__all__ = [
    "KnownAnchors",
    "Offer",
    "Trust",
    "decide",
    "fingerprint",
    "load_anchor_file",
    "parse_fingerprint",
    "read_offer",
    "trust_only",
]

_MAX_FILE: Final = 256 * 1024
_MAX_CERTIFICATES: Final = 16
_PREFIX: Final = "sha256:"


def fingerprint(certificate: x509.Certificate) -> str:
    """Return ``sha256:`` and the hash of the whole certificate in hex, the hash of ``openssl x509 -fingerprint -sha256``."""
    return _PREFIX + certificate.fingerprint(SHA256()).hex()


def parse_fingerprint(text: str) -> str:
    """Return a fingerprint, pasted with or without colons and capitals, as `fingerprint` writes it.

    Raises:
        ConfigurationError: A setting or a file cannot be used.
    """
    digits = text.strip().lower().removeprefix("sha256 fingerprint=").removeprefix(_PREFIX).replace(":", "")
    if len(digits) != 64 or not all(c in "0123456789abcdef" for c in digits):
        raise ConfigurationError(
            f"{text[:100]!r} is not a fingerprint; write sha256: and 64 hex digits, as "
            "'openssl x509 -noout -fingerprint -sha256' shows them"
        )
    return _PREFIX + digits


def trust_only(anchors: Iterable[x509.Certificate], crossed: Iterable[x509.Certificate] = ()) -> Keychain:
    """Return a keychain that authenticates servers and proves nothing."""
    return Keychain(None, None, (), tuple(anchors), tuple(crossed))


def load_pem(text: bytes) -> list[x509.Certificate]:
    """Return the certificates of a PEM text, up to a small limit.

    Raises:
        CertificateError: The certificate or key is not acceptable; the text says why.
    """
    if len(text) > MAX_PEM_CHARS:
        raise CertificateError(f"the certificates have {len(text)} characters, which is far too many")
    found = load_pem_text(text)
    if len(found) > _MAX_CERTIFICATES:
        raise CertificateError(f"there are {len(found)} certificates; at most {_MAX_CERTIFICATES} are read")
    return found


def load_anchor_file(path: str, password: Password = None) -> tuple[x509.Certificate, ...]:
    """Return the trust anchors of a file in PEM or PKCS#12 form.

    A person who can write the file decides whom this host trusts, so a file that every user may change is refused.

    Raises:
        ConfigurationError: A setting or a file cannot be used.
        KeychainError: The keychain cannot be read or used.
    """
    data = read_trusted(path, _MAX_FILE)
    if b"-----BEGIN" not in data:
        try:
            return load_keychain(data, password).anchors
        except KeychainError as error:
            raise KeychainError(f"{path}: {error}") from error
    try:
        anchors = tuple(c for c in load_pem(data) if _is_anchor(c))
    except CertificateError as error:
        raise KeychainError(f"{path}: {error}") from error
    if not anchors:
        raise KeychainError(
            f"{path}: it holds no self-signed certificate of a certificate authority, and only such a certificate is a "
            "trust anchor"
        )
    return anchors


def _is_anchor(certificate: x509.Certificate) -> bool:
    return is_ca(certificate) and is_self_signed(certificate)


class KnownAnchors:
    """The file that keeps the anchor that was trusted on first use, in PEM form."""

    def __init__(self, config_file: Callable[[str], str], prefix: str, issuer: str) -> None:
        """``config_file`` gives the path of a file of the configuration."""
        special = [] if prefix == "CERT" else ["".join(c if c.isalnum() else "_" for c in prefix)[:100]]
        name = "-".join(["trust-anchor", *special, *([issuer] if issuer else [])])
        self.path = config_file(f"{name}.pem")

    def load(self) -> tuple[x509.Certificate, ...]:
        """Return the anchors that were kept, none if there is no file.

        Raises:
            ConfigurationError: A setting or a file cannot be used.
            KeychainError: The keychain cannot be read or used.
        """
        if not os.path.lexists(self.path):
            return ()
        return load_anchor_file(self.path)

    def keep(self, anchor: x509.Certificate) -> None:
        """Remember an anchor in place of any other.

        Raises:
            ConfigurationError: A setting or a file cannot be used.
        """
        make_directory(os.path.dirname(self.path))  # noqa: PTH120 - start-up time
        text = f"# {subject_text(anchor.subject)}\n# {fingerprint(anchor)}\n"
        write_public(self.path, text.encode("utf-8", "replace") + anchor.public_bytes(Encoding.PEM))


def make_directory(path: str) -> None:
    """Create a directory that only its owner may enter, unless it exists.

    Raises:
        ConfigurationError: A setting or a file cannot be used.
    """
    make_directories(path)


class Offer(NamedTuple):
    """What the certificate service says its anchor is; not verified."""

    anchor: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    """All received certificates, the issuing one first."""
    issuer: str
    """The issuer ID in the names of the service's PVs."""
    crossed: tuple[x509.Certificate, ...] = ()
    """What else came with them: the cross-certificates of the anchor, and the former roots that have not ended."""


def read_offer(value: Value, *, now: datetime) -> Offer:
    """Read CERT:ROOT's structure.

    Raises:
        SecurityError: For anything but a current, self-signed CA certificate.
    """
    text, named = value.get("cert"), value.get("issuer")
    if not isinstance(text, str) or not text:
        raise SecurityError(
            "the certificate service's answer holds no trust anchor; check that it is a PVACMS"
        )
    chain = tuple(load_pem(text.encode("utf-8", "replace")))
    anchor = next((c for c in reversed(chain) if _is_anchor(c)), None)
    if anchor is None:
        raise SecurityError(
            "the certificate service offers a trust anchor that is not a self-signed certificate of a certificate authority"
        )
    if not anchor.not_valid_before_utc <= now <= anchor.not_valid_after_utc:
        raise SecurityError(
            f"the trust anchor {subject_text(anchor.subject)} is valid from {anchor.not_valid_before_utc:%Y-%m-%d %H:%M} to "
            f"{anchor.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, and this host's time is {now:%Y-%m-%d %H:%M}; check this host's clock"
        )
    named = named.lower() if isinstance(named, str) else ""
    if len(named) != 8 or not all(c in "0123456789abcdef" for c in named):
        named = issuer_id(chain[0])
    for signer in chain:
        if (
            issuer_id(signer) == named
            and not signer.not_valid_before_utc <= now <= signer.not_valid_after_utc
        ):
            raise SecurityError(
                f"the certificate service signs with {subject_text(signer.subject)}, which is valid from "
                f"{signer.not_valid_before_utc:%Y-%m-%d %H:%M} to {signer.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, and this host's "
                f"time is {now:%Y-%m-%d %H:%M}. Its certificates would not be accepted, so nothing was requested; check this "
                "host's clock, else ask the service's administrator"
            )
    return Offer(anchor, chain, named, _bundle(value))


def _bundle(value: Value) -> tuple[x509.Certificate, ...]:
    """Return what services of later releases add to the anchor; nothing if it cannot be read, because nobody has to have it."""
    text = value.get("bundle", default="")
    if not isinstance(text, str) or not text:
        return ()
    try:
        return tuple(load_pem(text.encode("utf-8", "replace")))
    except CertificateError:
        return ()


class Trust(NamedTuple):
    """Whom to trust, and why."""

    anchors: tuple[x509.Certificate, ...]
    """All anchors that may be trusted; the service's own is among them, and no earlier root that it vouches for."""
    anchor: x509.Certificate
    issuer: str
    why: str
    """One of ``file``, ``fingerprint``, ``keychain``, ``kept``, ``first use``, ``rollover``."""
    crossed: tuple[x509.Certificate, ...] = ()
    """The cross-certificates of ``anchor`` and the site's former roots that have not ended."""


def decide(
    offer: Offer,
    *,
    given: tuple[x509.Certificate, ...] = (),
    wanted: str = "",
    keychain: tuple[x509.Certificate, ...] = (),
    known: KnownAnchors,
    first_use: bool,
    now: datetime,
    say: Callable[[str], None],
) -> Trust:
    """Compare what the service offers with what is known.

    Args:
        offer: What the service offers.
        given: The anchors from ``--trust-anchor``.
        wanted: The fingerprint that the site gave.
        keychain: The anchors of the keychain that is being replaced.
        known: The anchors kept from earlier requests.
        first_use: Whether an unknown anchor may be trusted.
        now: The present time, aware.
        say: Gets what the user must see.

    Returns:
        Whom to trust, and why.

    Raises:
        SecurityError: The anchor is not trusted; the text has both fingerprints.
    """
    trust = _decided(
        offer,
        given=given,
        wanted=wanted,
        keychain=keychain,
        known=known,
        first_use=first_use,
        now=now,
        say=say,
    )
    # A former root that has ended is vouched for, so it is no anchor any more. But nothing is to lead to it: who checks no status
    # knows of no other end.
    over = {c for pair in pairs(offer.crossed, offer.anchor) if _has_ended(pair, offer) for c in pair}
    return trust._replace(crossed=tuple(c for c in trust.crossed if c not in over))


def _has_ended(pair: Pair, offer: Offer) -> bool:
    """Whether the former root of two cross-certificates has ended: the service keeps them then, and shows the root itself no more."""
    roots = (c for c in offer.crossed if is_self_signed(c))
    return not any(is_same_authority(root, pair.old_with_new) for root in roots)


def _decided(
    offer: Offer,
    *,
    given: tuple[x509.Certificate, ...],
    wanted: str,
    keychain: tuple[x509.Certificate, ...],
    known: KnownAnchors,
    first_use: bool,
    now: datetime,
    say: Callable[[str], None],
) -> Trust:
    anchor, shown = offer.anchor, fingerprint(offer.anchor)
    crossed = tuple(dict.fromkeys(c for pair in pairs(offer.crossed, anchor) for c in pair))
    if given:
        if anchor not in given:
            return _introduced(
                offer, given, crossed, "the file given by --trust-anchor holds", now=now, say=say
            )
        return Trust(_lasting(given, anchor, crossed), anchor, offer.issuer, "file", crossed)
    if wanted:
        if shown != wanted:
            raise SecurityError(
                f"the certificate service's trust anchor is not the one that was asked for: it offers {shown} "
                f"({subject_text(anchor.subject)}), and --trust-anchor-fingerprint says {wanted}; nothing was sent to it. "
                "Somebody may be impersonating the certificate service: ask its administrator"
            )
        known.keep(anchor)
        return Trust((anchor,), anchor, offer.issuer, "fingerprint", crossed)
    if keychain:
        if anchor not in keychain:
            return _introduced(offer, keychain, crossed, "the keychain trusts", now=now, say=say)
        return Trust(_lasting(keychain, anchor, crossed), anchor, offer.issuer, "keychain", crossed)
    kept = known.load()
    if kept:
        if anchor not in kept:
            trust = _introduced(offer, kept, crossed, f"{known.path} keeps", now=now, say=say)
            known.keep(anchor)
            return trust
        return Trust(_lasting(kept, anchor, crossed), anchor, offer.issuer, "kept", crossed)
    if not first_use:
        raise SecurityError(
            f"no trust anchor is known here, and trust on first use is not allowed; the certificate service offers {shown}: "
            "compare that with what its administrator says, and give it with --trust-anchor-fingerprint"
        )
    say(f"Trust anchor of the certificate service, trusted on first use: {subject_text(anchor.subject)}")
    say(f"  fingerprint {shown}")
    try:
        known.keep(anchor)
        say(f"  kept in {known.path}; compare the fingerprint with what your administrator published")
    except ApplianceError as error:
        say(f"  it could not be kept ({error}), so the next request will trust on first use again")
    return Trust((anchor,), anchor, offer.issuer, "first use", crossed)


def _lasting(
    known: tuple[x509.Certificate, ...], anchor: x509.Certificate, crossed: tuple[x509.Certificate, ...]
) -> tuple[x509.Certificate, ...]:
    """Return the anchors without earlier roots that ``anchor`` vouches for: they end with its cross-certificates for them."""
    return tuple(
        each
        for each in known
        if each.not_valid_before_utc >= anchor.not_valid_before_utc
        or not any(is_same_authority(c, each) for c in crossed)
    )


def _introduced(
    offer: Offer,
    known: tuple[x509.Certificate, ...],
    crossed: tuple[x509.Certificate, ...],
    where: str,
    *,
    now: datetime,
    say: Callable[[str], None],
) -> Trust:
    """Accept a new root that a known one has signed, in its place.

    Raises:
        SecurityError: No known anchor has signed the new root.
    """
    anchor = offer.anchor
    why = ""
    for old in known:
        for cross in offer.crossed:
            if not (is_same_authority(cross, anchor) and signed_by(cross, old)):
                continue
            faults = faults_of_introduction(cross, new=anchor, old=old, now=now)
            if faults:
                why = (
                    f". The root {subject_text(old.subject)} has signed the new one, but {'; '.join(faults)}"
                )
                continue
            # What was trusted beside the old root stays. The old root goes if the new one vouches for it, because that ends.
            covered = any(is_same_authority(c, old) for c in crossed)
            others = tuple(each for each in known if each is not old or not covered)
            say(
                f"The certificate service has a new trust anchor, {subject_text(anchor.subject)}, which the trusted one "
                f"{subject_text(old.subject)} has signed"
            )
            say(f"  fingerprint {fingerprint(anchor)}")
            return Trust(
                (anchor, *others), anchor, offer.issuer, "rollover", tuple(dict.fromkeys((*crossed, cross)))
            )
    raise _changed(offer, known, where, why)


def _changed(offer: Offer, known: tuple[x509.Certificate, ...], where: str, why: str = "") -> SecurityError:
    shown = fingerprint(offer.anchor)
    return SecurityError(
        f"the certificate service's trust anchor has changed: it offers {shown} ({subject_text(offer.anchor.subject)}), but "
        f"{where} {', '.join(map(fingerprint, known))}; nothing was sent to it{why}. Somebody may be impersonating the certificate "
        f"service. If its administrator confirms the new one, use --trust-anchor-fingerprint {shown}"
    )

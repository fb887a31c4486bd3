"""Cross-certificates: two roots of one site that vouch for each other while the site goes from the old one to the new one.

Source: RFC 4210 section 4.4, RFC 5280.

*New with old* has the name and the key of the new root, and the old root has signed it: who trusts only the old root verifies new
certificates by it, because their holders send it. *Old with new* has the name and the key of the old root, and the new root has
signed it: who trusts only the new root verifies old certificates by it, until it ends.

A cross-certificate is believed only because a root that is trusted already has signed it, and it leads to one root and no further.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from appliance.certs.profiles import check_public_key
from appliance.certs.x509 import (
    UNREADABLE,
    extension_values,
    find_extension,
    is_ca,
    is_self_signed,
    public_key,
    quiet,
    signed_by,
)
from appliance.errors import CertificateError

__all__ = [
    "Pair",
    "belonging",
    "faults_of_introduction",
    "is_same_authority",
    "pairs",
    "sent_above",
    "sent_beside",
]

_KNOWN: Final = frozenset(
    kind.oid
    for kind in (
        x509.BasicConstraints,
        x509.KeyUsage,
        x509.SubjectKeyIdentifier,
        x509.AuthorityKeyIdentifier,
        x509.AuthorityInformationAccess,
        x509.CRLDistributionPoints,
    )
)
"""Extensions of an authority that do not limit it, apart from the two that are looked into."""
_HASHES: Final = (hashes.SHA256, hashes.SHA384, hashes.SHA512)


class Pair(NamedTuple):
    """The two cross-certificates of two roots."""

    new_with_old: x509.Certificate
    old_with_new: x509.Certificate


def is_same_authority(one: x509.Certificate, other: x509.Certificate) -> bool:
    """Whether two certificates have the same name and the same key."""
    try:
        return one.subject == other.subject and _spki(one) == _spki(other)
    except (CertificateError, *UNREADABLE):
        return False


def belonging(
    certificates: Iterable[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    chain: Sequence[x509.Certificate],
) -> tuple[x509.Certificate, ...]:
    """Return those certificates of authorities that belong to a keychain beside its chain and its anchors.

    They have the name and key of an anchor, or an anchor has signed them.
    """
    return tuple(
        c
        for c in dict.fromkeys(certificates)
        if c not in anchors
        and c not in chain
        and is_ca(c)
        and not is_self_signed(c)
        and any(is_same_authority(c, anchor) or signed_by(c, anchor) for anchor in anchors)
    )


def pairs(certificates: Iterable[x509.Certificate], root: x509.Certificate) -> tuple[Pair, ...]:
    """Return the cross-certificates of ``root`` and each former root that it vouches for.

    What is returned is true if ``root`` is: it has signed the certificate of the former root's key, and that key has signed the
    other one.

    Args:
        certificates: Where to look.
        root: The present root.
    """
    crossed = [c for c in dict.fromkeys(certificates) if is_ca(c) and not is_self_signed(c)]
    old_with_new = [c for c in crossed if signed_by(c, root) and not is_same_authority(c, root)]
    return tuple(
        Pair(new, old)
        for old in old_with_new
        for new in crossed
        if is_same_authority(new, root) and signed_by(new, old)
    )


def sent_above(
    chain: Sequence[x509.Certificate], crossed: Sequence[x509.Certificate]
) -> tuple[x509.Certificate, ...]:
    """Return what a peer gets above a certificate: its chain, and in front of the root the cross-certificates for the root's key.

    OpenSSL takes the first issuer that fits and does not go back. So behind the root they would be of no use to a peer that does
    not know this root.
    """
    if not chain:
        return ()
    *below, root = chain
    return (*below, *(c for c in crossed if is_same_authority(c, root)), root)


def sent_beside(
    certificate: x509.Certificate, chain: Sequence[x509.Certificate], crossed: Sequence[x509.Certificate]
) -> tuple[x509.Certificate, ...]:
    """Return what is sent with an authority's certificate. A root is sent as itself first, and then as former roots have signed it."""
    if chain:
        return sent_above(chain, crossed)
    return tuple(c for c in crossed if is_same_authority(c, certificate))


def faults_of_introduction(
    cross: x509.Certificate, *, new: x509.Certificate, old: x509.Certificate, now: datetime
) -> list[str]:
    """Return why who trusts ``old`` must not trust ``new`` because of ``cross``; nothing if all is well.

    The new root replaces the old one as a trust anchor, so it must be limited at least as much as the cross-certificate and the
    old root. Whatever is not known to be no limit is one.

    Args:
        cross: The new root's name and key, signed by the old root.
        new: The new root, self-signed.
        old: The old root, self-signed and trusted.
        now: The present time, aware.
    """
    try:
        return list(_faults(cross, new, old, now))
    except (CertificateError, *UNREADABLE) as error:
        return [f"it cannot be read: {error}"]


def _faults(
    cross: x509.Certificate, new: x509.Certificate, old: x509.Certificate, now: datetime
) -> Iterable[str]:
    if not is_same_authority(cross, new):
        yield "it has another name or key than the new root"
    if not signed_by(cross, old):
        yield "the root that is trusted did not sign it"
    if new.not_valid_before_utc <= old.not_valid_before_utc:
        yield "its root is not later than the one that is trusted"
    for what, certificate in (("it", cross), ("the new root", new), ("the trusted root", old)):
        if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
            yield f"{what} is not valid now"
        usage = find_extension(certificate, x509.KeyUsage)
        if not is_ca(certificate) or (usage is not None and not usage.key_cert_sign):
            yield f"{what} may not sign certificates"
    if not is_self_signed(new):
        yield "the new root is not self-signed"
    if not isinstance(cross.signature_hash_algorithm, (*_HASHES, type(None))):
        yield "its signature is weak"
    weak = check_public_key(public_key(new))
    if weak:
        yield f"it is for {weak}"
    with quiet():
        limits = {*extension_values(cross), *extension_values(old)} - _KNOWN
    if limits:
        yield f"it or the trusted root has limits that the new root would not have ({', '.join(sorted(o.dotted_string for o in limits))})"
    if _path_length(cross) == 0:
        # So is the certificate of an authority that issues to ends. Whoever has its key could make a root of it, for ever.
        yield "it permits no authority below (path length 0), so it is not that of a root"
    longest = _longest_path(cross, old)
    own = _path_length(new)
    if longest is not None and (own is None or own > longest):
        yield "it or the trusted root limits the authorities below, and the new root does not"


def _longest_path(cross: x509.Certificate, old: x509.Certificate) -> int | None:
    """Return how many authorities may be below the new root, as the cross-certificate and the old root limit them."""
    above = _path_length(old)
    if above is not None and cross.subject != cross.issuer:
        above -= 1
    known = [length for length in (above, _path_length(cross)) if length is not None]
    return min(known, default=None)


def _path_length(certificate: x509.Certificate) -> int | None:
    found = find_extension(certificate, x509.BasicConstraints)
    return None if found is None else found.path_length


def _spki(certificate: x509.Certificate) -> bytes:
    return public_key(certificate).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

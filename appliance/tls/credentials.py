"""A peer's identity, from the certificate that it proved in the TLS handshake.

Source: SPVA specification 5.3 and 11.1; the printed form is that of pvxs.
"""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from appliance.certs.keychain import Keychain
from appliance.certs.x509 import (
    authority_name,
    common_name,
    issuer_id,
    public_key,
    san,
    serial_number,
    shown_value,
    status_pv,
    subject_parts,
)
from appliance.pva.credentials import Credentials
from appliance.tls.engine import TLSEngine

__all__ = ["describe", "peer_credentials"]


def peer_credentials(engine: TLSEngine, *, peer: str, interface: str) -> Credentials:
    """Return the identity of the other end of ``engine``.

    It is ``anonymous`` if the peer sent no certificate, or one without a usable common name. ``authority`` goes from the direct
    issuer up to the root, one common name a line (11.1; pvxs prints the root first). A root authority with the name of this
    end's own that is another one has its identifier behind its name.

    Raises:
        CertificateError: An extension that decides about access cannot be read.
    """
    chain = engine.peer_chain
    account = common_name(chain[0].subject) if chain else ""
    if not account:
        return Credentials(
            method="anonymous", peer=peer, interface=interface, is_tls=engine.handshake_complete
        )
    leaf = chain[0]
    issuers = chain[1:] or chain
    home = _home(engine.keychain, issuers[-1])
    names = [authority_name(each) for each in issuers]
    if home is None and names[-1] == _root_name(engine.keychain):
        # Most authorities have the default name, so one beside our own that is also trusted is told apart by its key.
        names[-1] += f" [{issuer_id(issuers[-1])}]"
    return Credentials(
        method="x509",
        account=account,
        peer=peer,
        interface=interface,
        authority="\n".join(names),
        is_tls=True,
        issuer_id=issuer_id(issuers[0]),
        serial=serial_number(leaf),
        san=san(leaf),
        status_pv=status_pv(leaf),
        subject=subject_parts(leaf.subject),
        home=home,
    )


def _home(own: Keychain, root: x509.Certificate) -> str | None:
    """Return the organisation of this end's certificate; None if it has none, or is of another root authority."""
    if own.certificate is None or _key(own.chain[-1] if own.chain else own.certificate) != _key(root):
        return None
    return "\n".join(text for attribute, text in subject_parts(own.certificate.subject) if attribute == "O")


def _root_name(own: Keychain) -> str:
    roots = own.chain or ((own.certificate,) if own.certificate is not None else ())
    return authority_name(roots[-1]) if roots else ""


def _key(certificate: x509.Certificate) -> bytes:
    return public_key(certificate).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def describe(credentials: Credentials) -> str:
    """Return one line as pvxs prints it: ``TLS x509:47530d89:3826361579604613181:EPICS Root CA/client@10.0.0.2:34381``.

    Several authorities are shown from the root down, joined by ``->``.
    """
    parts = [credentials.method]
    if credentials.issuer_id:
        parts.append(credentials.issuer_id)
    if credentials.serial:
        parts.append(str(credentials.serial))
    if credentials.authority:
        parts.append(" -> ".join(shown_value(name) for name in reversed(credentials.authority.split("\n"))))
    tls = "TLS " if credentials.is_tls else ""
    return f"{tls}{':'.join(parts)}/{shown_value(credentials.account)}@{credentials.peer}"

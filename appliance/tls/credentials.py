"""A peer's identity, from the certificate that it proved in the TLS handshake.

Source: SPVA specification 5.3 and 11.1; the printed form is that of pvxs.
"""

from __future__ import annotations

from appliance.certs.x509 import (
    authority_name,
    common_name,
    issuer_id,
    san,
    serial_number,
    shown_value,
    status_pv,
)
from appliance.pva.credentials import Credentials
from appliance.tls.engine import TLSEngine

__all__ = ["describe", "peer_credentials"]


def peer_credentials(engine: TLSEngine, *, peer: str, interface: str) -> Credentials:
    """Who is at the other end of ``engine``.

    ``anonymous`` where the peer sent no certificate, or one without a usable common name. ``authority`` goes from
    the direct issuer up to the root, one common name a line (11.1; pvxs prints the root first).
    Raises CertificateError when an extension that decides about access cannot be read.
    """
    chain = engine.peer_chain
    account = common_name(chain[0].subject) if chain else ""
    if not account:
        return Credentials(
            method="anonymous", peer=peer, interface=interface, is_tls=engine.handshake_complete
        )
    leaf = chain[0]
    issuers = chain[1:] or chain
    return Credentials(
        method="x509",
        account=account,
        peer=peer,
        interface=interface,
        authority="\n".join(map(authority_name, issuers)),
        is_tls=True,
        issuer_id=issuer_id(issuers[0]),
        serial=serial_number(leaf),
        san=san(leaf),
        status_pv=status_pv(leaf),
    )


def describe(credentials: Credentials) -> str:
    """One line as pvxs prints it: ``TLS x509:47530d89:3826361579604613181:EPICS Root CA/client@10.0.0.2:34381``.

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

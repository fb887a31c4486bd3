"""The identity of the peer of a connection, as far as this end knows it."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Credentials"]


class Credentials(NamedTuple):
    """A peer's identity.

    ``method`` is ``anonymous``, ``ca`` (a name the peer merely claims) or ``x509`` (proved by a certificate
    inside TLS). Only with ``x509`` do ``authority``, ``issuer_id``, ``serial`` and ``san`` carry anything.
    Source: SPVA specification, peer identity; pvxs ``server::ClientCredentials``.

    Example:
        >>> from appliance.client import Credentials
        >>> alice = Credentials("x509", "alice", is_tls=True, subject=(("CN", "alice"), ("O", "lab.example")))
        >>> alice.account, alice.organization
        ('alice', 'lab.example')
    """

    method: str = "anonymous"
    """``anonymous``, ``ca`` or ``x509``."""
    account: str = ""
    """The name: proved with ``x509``, claimed with ``ca``."""
    peer: str = ""
    """The peer's address and port as text."""
    interface: str = ""
    """The local address that the connection came in by."""
    authority: str = ""
    """Common names of the issuing chain, from the direct issuer to the root, one a line."""
    roles: frozenset[str] = frozenset()
    """Groups that this host's own user database gives ``account``; never taken from the peer."""
    is_tls: bool = False
    """Whether the connection is encrypted."""
    issuer_id: str = ""
    """First eight hex digits of the issuing CA's subject key identifier."""
    serial: int = 0
    """The certificate's serial number."""
    san: tuple[tuple[str, str], ...] = ()
    """Subject alternative names as (kind, text), kind one of ``dns``, ``ip``, ``uri``."""
    status_pv: str = ""
    """Name of the PV with the certificate's status; empty if the certificate names none."""
    subject: tuple[tuple[str, str], ...] = ()
    """The certificate's subject as (attribute, text), attribute one of ``CN``, ``O``, ``OU``, ``C`` ..."""
    home: str | None = None
    """Organisation (O) of this end's own certificate if the peer's has the same root authority; else None."""
    via: str = ""
    """Address and port of the relay that the connection came by, which named the peer; empty if there is none."""

    @property
    def organization(self) -> str:
        """The organisation (O) that the peer's certificate proves; empty if it names none."""
        return "\n".join(text for attribute, text in self.subject if attribute == "O")

    def facts(self) -> dict[str, str]:
        """Return the identity as extra fields of log records."""
        facts = {
            "peer": self.peer,
            "account": self.account,
            "method": self.method,
            "protocol": "tls" if self.is_tls else "tcp",
        }
        if self.via:
            facts["via"] = self.via
        if self.method == "x509":
            from appliance.certs.x509 import shown_id

            facts["authority"] = self.authority.split("\n")[0]
            facts["organization"] = self.organization
            facts["peer_cert_id"] = shown_id(self.issuer_id, self.serial)
        return facts

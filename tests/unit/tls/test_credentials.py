"""Who a peer is: SPVA specification 5.3 and 11.1."""

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from appliance.certs.x509 import STATUS_PV_OID
from appliance.errors import CertificateError
from appliance.pva.credentials import Credentials
from appliance.tls.context import client_context, server_context
from appliance.tls.credentials import describe, peer_credentials
from tests.helpers.hand_made import hand_made
from tests.helpers.pki import site
from tests.helpers.tls import connected

S = site()
SERVER = server_context(S.server, require_client_cert=False)


def seen_by_server(keychain) -> Credentials:
    server, _ = connected(SERVER, client_context(keychain, want_staple=False))
    return peer_credentials(server, peer="10.0.0.2:40000", interface="10.0.0.1")


def test_a_certificate_gives_an_x509_identity():
    keychain = S.ca.keychain(
        "client",
        "client",
        status=True,
        serial=3826361579604613181,
        san=[("dns", "host.example.org"), ("ip", "10.0.0.2"), ("ip", "2001:db8::1"), ("uri", "urn:x")],
    )
    assert seen_by_server(keychain) == Credentials(
        method="x509",
        account="client",
        peer="10.0.0.2:40000",
        interface="10.0.0.1",
        authority="EPICS Root Certificate Authority",
        is_tls=True,
        issuer_id=S.ca.issuer_id,
        serial=3826361579604613181,
        san=(("dns", "host.example.org"), ("ip", "10.0.0.2"), ("ip", "2001:db8::1"), ("uri", "urn:x")),
        status_pv=f"CERT:STATUS:{S.ca.issuer_id}:03826361579604613181",
        subject=(("CN", "client"), ("O", "localhost")),
        home="localhost",
    )


def test_whose_authority_is_another_is_not_at_home():
    # Its name is the same, as that of most sites is.
    partner = site.__wrapped__()
    server, _ = connected(
        server_context(
            S.server._replace(anchors=(*S.server.anchors, *partner.server.anchors)), require_client_cert=False
        ),
        client_context(
            partner.client._replace(anchors=(*partner.client.anchors, *S.server.anchors)), want_staple=False
        ),
    )
    found = peer_credentials(server, peer="10.0.0.2:40000", interface="10.0.0.1")
    assert (found.method, found.organization, found.home) == ("x509", "localhost", None)
    assert found.authority == f"EPICS Root Certificate Authority [{partner.ca.issuer_id}]"


def test_the_server_is_known_to_the_client_as_well():
    _, client = connected(SERVER, client_context(S.client, want_staple=False))
    found = peer_credentials(client, peer="h:5076", interface="")
    assert (found.method, found.account, found.serial) == ("x509", "softioc", S.server.serial)


def test_without_a_certificate_a_peer_is_anonymous():
    found = seen_by_server(S.ca.trust_only())
    assert found == Credentials(method="anonymous", peer="10.0.0.2:40000", interface="10.0.0.1", is_tls=True)


def test_authority_goes_from_the_issuer_to_the_root():
    found = seen_by_server(S.ca.intermediate("Section CA").keychain("client", "client"))
    assert found.authority == "Section CA\nEPICS Root Certificate Authority"


def test_a_description_reads_as_pvxs_prints_it():
    found = Credentials(
        method="x509",
        account="client",
        peer="172.17.0.2:34381",
        authority="EPICS Root Certificate Authority",
        is_tls=True,
        issuer_id="47530d89",
        serial=3826361579604613181,
    )
    assert describe(found) == (
        "TLS x509:47530d89:3826361579604613181:EPICS Root Certificate Authority/client@172.17.0.2:34381"
    )
    deeper = found._replace(authority="Section CA\nRoot CA")
    assert (
        describe(deeper)
        == "TLS x509:47530d89:3826361579604613181:Root CA -> Section CA/client@172.17.0.2:34381"
    )
    assert describe(Credentials(method="ca", account="me", peer="h:1")) == "ca/me@h:1"


@pytest.mark.parametrize("name", ["root\nadmin", "root\0", "a\x1b[2J"])
def test_a_name_with_control_characters_is_nobody(name):
    keychain = hand_made(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
    assert seen_by_server(keychain).method == "anonymous"


def test_a_certificate_without_a_common_name_is_nobody():
    keychain = hand_made(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "o")]))
    assert seen_by_server(keychain).method == "anonymous"


def test_a_status_extension_that_cannot_be_read_lets_nobody_in():
    """4.3: such a certificate asks for status checks that would never happen."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "client")])
    keychain = hand_made(name, [x509.UnrecognizedExtension(STATUS_PV_OID, b"\x16\x05CERT")])
    with pytest.raises(CertificateError, match="status PV's name"):
        seen_by_server(keychain)

"""Access security files that are written, and administrators that are added to them."""

import pytest

from appliance.acf import Principal
from appliance.authn.ccr import parse_request
from appliance.authn.jwt.config import JWTConfig, TrustedIssuer
from appliance.certs.keychain import make_keychain
from appliance.cms.authorities import Authority
from appliance.cms.config import CMSSettings
from appliance.cms.default_acf import add_administrator, ensure_acf
from appliance.cms.policy import Names, Policy, read_acf
from appliance.cms.service import CertificateService, several_issuers
from appliance.config.secret import Secret
from appliance.errors import ConfigurationError, RequestRefused
from appliance.pva.credentials import Credentials
from tests.helpers import pki
from tests.helpers.cms import Clock, ccr, effective

CA = pki.site().ca
BELOW = CA.intermediate()


def authority(ca):
    return Authority(ca.issuer, ca.chain[-1] if ca.chain else ca.certificate, created=True)


def principal(ca, name, method="x509"):
    chain = [ca.certificate, *ca.chain]
    names = tuple(c.subject.rfc4514_string().partition("CN=")[2].partition(",")[0] for c in chain)
    return Principal(name, method, names, protocol="tls")


@pytest.mark.parametrize("name", ["pvacms.acf", "pvacms.yaml"])
@pytest.mark.parametrize("ca", [CA, BELOW], ids=["root", "intermediate"])
def test_the_default_file_lets_everybody_read_and_the_administrator_write(tmp_path, name, ca):
    path = str(tmp_path / name)
    assert ensure_acf(path, authority(ca), "admin")
    assert not ensure_acf(path, authority(ca), "other")
    acf = read_acf(path)
    assert acf.decide("DEFAULT", 0, Principal()).access == "READ"
    assert not acf.decide("DEFAULT", 1, Principal("admin", "ca")).write
    assert acf.decide("DEFAULT", 1, principal(ca, "admin")).write
    assert not acf.decide("DEFAULT", 1, principal(ca, "alice")).write
    assert add_administrator(path, "alice")
    assert not add_administrator(path, "alice")
    assert add_administrator(path, "Anna O'Hara")
    acf = read_acf(path)
    for member in ("admin", "alice", "Anna O'Hara"):
        assert acf.decide("DEFAULT", 1, principal(ca, member)).write, member


def test_without_the_group_no_administrator_is_added(tmp_path):
    path = tmp_path / "x.acf"
    path.write_text("ASG(DEFAULT) { RULE(1,READ) }\n")
    with pytest.raises(ConfigurationError, match="CMS_ADMIN"):
        add_administrator(str(path), "alice")


def test_a_file_that_gives_everybody_write_makes_nobody_an_administrator_without_a_certificate(tmp_path):
    path = tmp_path / "x.acf"
    path.write_text("ASG(DEFAULT) { RULE(1,WRITE) }\n")
    policy = Policy(read_acf(str(path)), Names("CERT", "01234567"))
    for peer in (
        Credentials(),
        Credentials("ca", "admin"),
        Credentials("ca", "admin", is_tls=True),
        Credentials("x509", "a"),
    ):
        assert not policy.administers(peer)
        assert not policy.rights("CERT:STATUS:01234567:5", peer).write
        assert not policy.rights("CERT:LIST", peer).rpc
    assert policy.administers(Credentials("x509", "a", is_tls=True))


def test_an_administrators_name_that_another_organization_vouches_for_administers_nothing(tmp_path):
    path = str(tmp_path / "x.acf")
    ensure_acf(path, authority(CA), "admin")
    add_administrator(path, "alice")
    text = (tmp_path / "x.acf").read_text().replace("alice", 'alice, "CN=bob, O=b.example"')
    (tmp_path / "x.acf").write_text(text)
    policy = Policy(read_acf(path), Names("CERT", "01234567"), frozenset({"a.example"}))

    def administers(name, organization):
        subject = (("CN", name), *((("O", organization),) if organization else ()))
        root = "EPICS Root Certificate Authority"
        peer = Credentials("x509", name, is_tls=True, authority=root, subject=subject, home="certs.epics.org")
        return policy.administers(peer)

    assert administers("admin", "")
    assert administers("alice", "certs.epics.org")
    assert administers("alice", "a.example")
    assert not administers("alice", "b.example")
    assert administers("bob", "b.example")
    assert not administers("bob", "a.example")
    assert policy.administrators() == {"admin", "alice", "bob"}
    (tmp_path / "x.acf").write_text(text.replace("CN=bob", "CN=carol"))
    policy.acf = read_acf(path)
    assert policy.administrators() == {"admin", "alice", "carol"}


def test_the_organization_of_one_issuer_is_at_home_and_of_several_none_unless_it_is_listed():
    def issuer(host, **more):
        return TrustedIssuer(
            mode="shared_secret",
            issuer=host,
            audience=("a",),
            algorithms=("HS256",),
            shared_secret=Secret("x" * 32),
            **more,
        )

    one, two = issuer("https://a.example"), issuer("https://b.example/realm")
    assert CMSSettings(jwt=JWTConfig(issuers=(one,))).at_home() == {"a.example"}
    assert CMSSettings(jwt=JWTConfig(issuers=(one, two))).at_home() == frozenset()
    (warning,) = several_issuers(CMSSettings(jwt=JWTConfig(issuers=(one, two))))
    assert "a.example, b.example" in warning
    listed = CMSSettings(jwt=JWTConfig(issuers=(one, two)), organizations=("a.example",))
    assert listed.at_home() == {"a.example"}
    assert several_issuers(listed)
    assert not several_issuers(CMSSettings(jwt=JWTConfig(issuers=(one, two)), organizations=("*",)))
    assert not several_issuers(CMSSettings(jwt=JWTConfig(issuers=(one,))))
    # Two realms of one host are two organizations.
    realms = JWTConfig(issuers=(two, issuer("https://b.example/other")))
    assert sorted(realms.organizations().values()) == ["b.example/other", "b.example/realm"]
    named = JWTConfig(issuers=(two, issuer("https://b.example/other", organization="lab")))
    assert sorted(named.organizations().values()) == ["b.example", "lab"]


def test_requests_can_be_limited_by_a_group_of_their_own(tmp_path):
    path = tmp_path / "x.acf"
    path.write_text(
        "UAG(ok) {bob}\nASG(DEFAULT) { RULE(1,READ) }\nASG(CERT_CREATE) { RULE(1,WRITE) { UAG(ok) } }\n"
    )
    policy = Policy(read_acf(str(path)), Names("CERT", "01234567"))
    assert policy.rights("CERT:CREATE", Credentials("ca", "bob")).rpc
    assert not policy.rights("CERT:CREATE", Credentials("ca", "eve")).rpc
    assert policy.rights("CERT:ROOT", Credentials("ca", "eve")).read


@pytest.mark.parametrize(
    ("name", "serial"),
    [
        ("CERT:STATUS:01234567:5", 5),
        ("CERT:STATUS:01234567:00000000000000000005", 5),
        ("\x16\x16CERT:STATUS:01234567:5", 5),
        (f"CERT:STATUS:01234567:{1 << 64}", None),
        ("CERT:STATUS:01234567:\u0665", None),
        ("CERT:STATUS:01234567:5 ", None),
        ("CERT:STATUS:76543210:5", None),
        ("XCERT:STATUS:01234567:5", None),
    ],
)
def test_names_of_status_pvs(name, serial):
    assert Names("CERT", "01234567").serial_of(name) == serial


async def test_an_intermediate_authority_serves_its_chain(tmp_path):
    ca = make_keychain(BELOW.key, [BELOW.certificate, *BELOW.chain])
    pki.write_keychain(tmp_path / "cert_auth.p12", ca)
    service = CertificateService.open(effective(tmp_path, require_client_approval=False), clock=Clock())
    try:
        service.first_start()
        service.store.start()
        issued = await service.issuing.issue(parse_request(ccr()), Credentials(peer="x"))
        assert issued.pem.count("BEGIN CERTIFICATE") == 3
        assert service.names.issuer_id == BELOW.issuer_id
    finally:
        service.close()


@pytest.mark.parametrize(
    "query",
    [
        {"pub_key": "x", "usage": [1]},
        {"pub_key": ["x"], "usage": 1},
        {"pub_key": "x" * 20_000, "usage": 1},
        {"pub_key": "x", "usage": -1},
        {"pub_key": "x", "usage": 1, "name": 5},
        {"pub_key": "x", "usage": 1, "not_after": -1},
        {"pub_key": "x", "usage": 1, "no_status": "yes"},
    ],
)
def test_a_field_of_a_wrong_kind_is_named(query):
    from appliance.client.uri import uri_value

    with pytest.raises(RequestRefused):
        parse_request(uri_value("CERT:CREATE", query))

"""A certificate service whose authority is an intermediate one: the root's key is elsewhere."""

import subprocess
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from appliance.certmon.endpoints import open_client, open_server
from appliance.certs.keychain import dump_keychain, load_keychain, make_keychain
from appliance.certs.ocsp import verify_response
from appliance.certs.profiles import generate_key
from tests.helpers import pki
from tests.helpers.cms import admin_keychain, ccr, keychain_of, plain, running, secure
from tests.helpers.live import client_config, keychain_file, number, server_config, until

ROOT = pki.Authority("Site Root")
POLICY = ROOT.intermediate("Site Policy CA", path_length=1)
AUTHORITIES = {"two": ROOT.intermediate("Site Issuing CA"), "three": POLICY.intermediate("Site Issuing CA")}
NAMES = {
    "two": "Site Issuing CA\nSite Root",
    "three": "Site Issuing CA\nSite Policy CA\nSite Root",
}
CLIENT, SERVER, IOC = 1, 2, 3
OPEN = {f"require_{usage}_approval": False for usage in ("client", "server", "ioc")}


@pytest.fixture(params=AUTHORITIES, ids=lambda depth: f"chain-of-{depth}")
def depth(request):
    return request.param


@pytest.fixture
def authority(depth, tmp_path):
    """An authority whose keychain is where the service looks for it."""
    made = AUTHORITIES[depth]
    keychain = make_keychain(made.key, [made.certificate, *made.chain])
    pki.write_keychain(tmp_path / "cert_auth.p12", keychain)
    return made


async def issued(context, name, usage=CLIENT):
    key = generate_key("ec-p256")
    return keychain_of(await context.rpc("CERT:CREATE", ccr(name, usage=usage, key=key)), key)


async def test_the_service_tells_its_root_and_its_whole_chain(authority, tmp_path):
    async with running(tmp_path) as service, plain(service) as context:
        root, issuer = await context.get("CERT:ROOT"), await context.get("CERT:ISSUER")
        assert root["issuer"] == issuer["issuer"] == authority.issuer_id
        assert x509.load_pem_x509_certificates(root["cert"].encode()) == [ROOT.certificate]
        assert x509.load_pem_x509_certificates(issuer["cert"].encode()) == [
            authority.certificate,
            *authority.chain,
        ]
        assert (root["name"], issuer["name"]) == ("Site Root", "Site Issuing CA")
        anchor = await context.rpc("CERT:CREATE", ccr(pub_key=""))
        assert x509.load_pem_x509_certificates(anchor["cert"].encode()) == [ROOT.certificate]


async def test_what_it_issues_has_the_whole_chain_and_openssl_verifies_it(authority, tmp_path):
    async with running(tmp_path, **OPEN) as service, plain(service) as context:
        keychain = await issued(context, "alice")
        assert keychain.chain == (authority.certificate, *authority.chain)
        assert keychain.anchors == (ROOT.certificate,)
        assert keychain.issuer_id == authority.issuer_id == service.names.issuer_id
        assert load_keychain(dump_keychain(keychain))[1:] == keychain[1:]
        status = await context.get(keychain.status_pv)
        answer = bytes(status["ocsp_response"])
    verify_response(answer, issuer=authority.certificate, serial=keychain.serial, now=datetime.now(UTC))
    assert list(ocsp.load_der_ocsp_response(answer).certificates) == [authority.certificate, *authority.chain]
    files = {
        "root.pem": [ROOT.certificate],
        "above.pem": keychain.chain[:-1],
        "leaf.pem": [keychain.certificate],
        "issuer.pem": [authority.certificate],
    }
    for name, certificates in files.items():
        (tmp_path / name).write_bytes(b"".join(c.public_bytes(Encoding.PEM) for c in certificates))
    (tmp_path / "ocsp.der").write_bytes(answer)
    for command in (
        "verify -x509_strict -purpose sslclient -CAfile root.pem -untrusted above.pem leaf.pem",
        # A client in C has the root only; what is above the signer comes with the answer.
        "ocsp -respin ocsp.der -issuer issuer.pem -cert leaf.pem -CAfile root.pem",
    ):
        done = subprocess.run(
            ["openssl", *command.split()],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "OK" in done.stdout + done.stderr
    assert "leaf.pem: good" in done.stdout


async def test_its_administrator_is_known_by_the_whole_chain(authority, depth, tmp_path):
    """The access security file of the first start has AUTHORITY rules for the root, and for each authority below it."""
    async with (
        running(tmp_path, admin="admin") as service,
        plain(service) as anyone,
        secure(service, admin_keychain(tmp_path)) as admin,
    ):
        keychain = await issued(anyone, "alice")
        await admin.put(keychain.status_pv, {"state": "APPROVED"})
        assert (await anyone.get(keychain.status_pv))["state"] == "VALID"
        (peer,) = [p.credentials for p in service.server.peers.values() if p.credentials.is_tls]
        assert peer.authority == NAMES[depth]
        assert service.policy.administers(peer)
        # The same name from an authority that is not the one in the rule, though the root is the same.
        assert not service.policy.administers(peer._replace(authority="Site Root"))
        assert not service.policy.administers(peer._replace(authority="Other CA\nSite Root"))


async def test_servers_and_clients_verify_each_other_and_follow_their_statuses(authority, depth, tmp_path):
    async with running(tmp_path, admin="admin", **OPEN) as service, plain(service) as anyone:
        ioc = keychain_file(tmp_path, "ioc", await issued(anyone, "ioc", IOC))
        operator = await issued(anyone, "operator")
        cms = service.server.udp_port
        async with (
            open_server(
                server_config(ioc),
                prepare=lambda server: server.add_pv("pv", number(1.0)),
                status_client=client_config(cms),
            ) as server,
            open_client(
                client_config(server, cms, keychain=keychain_file(tmp_path, "client", operator))
            ) as context,
            secure(service, admin_keychain(tmp_path)) as admin,
        ):
            await context.get("pv")
            assert context.channel("pv").peer.is_tls
            (peer,) = [p.credentials for p in server.peers.values() if p.credentials.is_tls]
            assert (peer.account, peer.authority) == ("operator", NAMES[depth])
            assert peer.home is not None, "an operator of the own root, so a plain name in a UAG means them"
            await admin.put(operator.status_pv, {"state": "REVOKED"})
            await until(lambda: not any(p.credentials.is_tls for p in server.peers))

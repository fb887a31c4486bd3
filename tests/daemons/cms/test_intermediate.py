"""A certificate service whose authority is an intermediate one: the root's key is elsewhere."""

import asyncio
import subprocess
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509 import ocsp

from appliance.certmon.endpoints import open_client, open_server
from appliance.certs.keychain import dump_keychain, load_keychain, make_keychain
from appliance.certs.ocsp import verify_response
from appliance.certs.profiles import build_ca, build_certificate, generate_key, subject_name
from appliance.cms.service import CertificateService
from appliance.config.secret import FilePath, Secret
from appliance.errors import CertificateError, ConfigurationError
from tests.helpers import pki
from tests.helpers.cms import (
    Clock,
    Process,
    admin_keychain,
    ccr,
    client,
    effective,
    keychain_of,
    plain,
    running,
    secure,
)
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


def posing_as(authority, above):
    """Another site's authority below the same root, or below one of it: the same name, and an identifier that it has chosen."""
    made = above.intermediate("Site Issuing CA")
    identifier = x509.SubjectKeyIdentifier.from_public_key(authority.key.public_key())
    builder = (
        x509.CertificateBuilder()
        .subject_name(authority.certificate.subject)
        .issuer_name(above.certificate.subject)
        .public_key(made.key.public_key())
        .serial_number(78)
        .not_valid_before(pki.NOW - pki.DAY)
        .not_valid_after(pki.NOW + 300 * pki.DAY)
        .add_extension(identifier, critical=False)
    )
    for extension in made.certificate.extensions:
        if not isinstance(extension.value, x509.SubjectKeyIdentifier):
            builder = builder.add_extension(extension.value, critical=extension.critical)
    made.certificate = builder.sign(above.key, SHA256())
    return made


def named_admin(authority, serial):
    """A certificate with the name of an administrator of this site."""
    key = generate_key("ec-p256")
    certificate = build_certificate(
        authority.issuer,
        subject=subject_name("admin", country="US"),
        public_key=key.public_key(),
        usage="client",
        not_before=pki.NOW - pki.DAY,
        not_after=pki.NOW + pki.DAY,
        serial=serial,
        status_pv=f"CERT:STATUS:{authority.issuer_id}:{serial:020d}",
    )
    return make_keychain(key, [certificate, authority.certificate, *authority.chain])


@pytest.mark.parametrize("serial", ["the administrator's", "the root's", "that of the one above"])
@pytest.mark.parametrize("identifier", ["its own", "the same"])
async def test_an_authority_of_the_same_name_below_the_same_root_administers_nothing(
    authority, depth, identifier, serial, tmp_path, caplog
):
    """A name, the first digits of an identifier and a serial number are what anybody may choose; the key is not."""
    caplog.set_level("INFO")
    above = POLICY if depth == "three" else ROOT
    other = posing_as(authority, above) if identifier == "the same" else above.intermediate("Site Issuing CA")
    async with running(tmp_path, admin="admin") as service, plain(service) as anyone:
        request = await issued(anyone, "alice")
        number = {
            "the administrator's": admin_keychain(tmp_path).serial,
            "the root's": ROOT.certificate.serial_number,
            "that of the one above": above.certificate.serial_number,
        }[serial]
        async with secure(service, named_admin(other, number)) as stranger:
            trying = asyncio.ensure_future(stranger.put(request.status_pv, {"state": "APPROVED"}, timeout=60))
            await until(lambda: trying.done() or "not issued by this certificate service" in caplog.text)
            assert not trying.done()
            trying.cancel()
        assert (await anyone.get(request.status_pv))["state"] == "PENDING_APPROVAL"
        async with secure(service, admin_keychain(tmp_path)) as admin:
            await admin.put(request.status_pv, {"state": "APPROVED"})


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
            await until(lambda: not any(p.credentials.is_tls for p in server.peers.values()))


# ---------------------------------------------------------------------- the root is offline


ROOT_FILES = {"root.pem": ROOT, "policy.pem": POLICY}


def sign_offline(directory, *, above="root", options="-days 900", extensions="copyall"):
    """What the holder of the root's key does with ``ca.csr``, with openssl."""
    for file, authority in ROOT_FILES.items():
        keychain = make_keychain(authority.key, [authority.certificate, *authority.chain])
        (directory / file).write_bytes(authority.certificate.public_bytes(Encoding.PEM))
        (directory / file.replace("pem", "key")).write_bytes(
            keychain.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
    command = f"x509 -req -in ca.csr -CA {above}.pem -CAkey {above}.key -copy_extensions {extensions} -out ca.pem {options}"
    subprocess.run(["openssl", *command.split()], cwd=directory, check=True, capture_output=True, timeout=60)


def once(directory, *arguments, **environ):
    with Process(directory, *arguments, **environ) as process:
        return process.wait()


@pytest.mark.parametrize("above", ["root", "policy"])
async def test_a_request_goes_to_the_offline_root_and_the_chain_comes_back(tmp_path, above):
    password = tmp_path / "password"
    password.touch(mode=0o600)
    password.write_text("secret\n")
    names = {
        "EPICS_CERT_AUTH_NAME": "Site Issuing CA",
        "EPICS_CERT_AUTH_TLS_KEYCHAIN_PWD_FILE": str(password),
    }
    status, out, err = once(tmp_path, "--make-csr", str(tmp_path / "ca.csr"), **names)
    assert (status, err) == (0, "")
    assert "--install-chain" in out
    request = x509.load_pem_x509_csr((tmp_path / "ca.csr").read_bytes())
    assert request.is_signature_valid
    assert request.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    (waiting,) = (tmp_path / "config/pva/1.5").glob("*.request")
    assert waiting.stat().st_mode & 0o777 == 0o600
    assert b"ENCRYPTED" in waiting.read_bytes()
    once(tmp_path, "--make-csr", str(tmp_path / "again.csr"), **names)
    again = x509.load_pem_x509_csr((tmp_path / "again.csr").read_bytes())
    assert again.public_key() == request.public_key(), "asked again, with the same key"

    sign_offline(tmp_path, above=above)
    files = [str(tmp_path / "root.pem"), str(tmp_path / "ca.pem")] + [str(tmp_path / "policy.pem")] * (
        above == "policy"
    )
    status, out, err = once(tmp_path, "--install-chain", *files, **names)
    assert (status, err) == (0, ""), err
    assert not waiting.exists()
    keychain = load_keychain((tmp_path / "config/pva/1.5/cert_auth.p12").read_bytes(), b"secret")
    assert keychain.chain[-1] == ROOT.certificate
    assert len(keychain.chain) == (2 if above == "policy" else 1)
    with Process(tmp_path, "--admin-keychain-ensure", "admin", **names) as process:
        process.ready()
        assert process.issuer == keychain.cert_id.partition(":")[0] or process.issuer
        async with client(process.tcp_port) as context:
            reply = await context.rpc("CERT:CREATE", ccr("alice"))
            assert keychain_of(reply).chain == (keychain.certificate, *keychain.chain)
    # What is there is not overwritten.
    once(tmp_path, "--make-csr", str(tmp_path / "ca.csr"), **names)
    sign_offline(tmp_path)
    status, out, err = once(
        tmp_path, "--install-chain", str(tmp_path / "root.pem"), str(tmp_path / "ca.pem"), **names
    )
    assert (status, err) == (0, ""), err
    assert (
        load_keychain((tmp_path / "config/pva/1.5/cert_auth.p12").read_bytes(), b"secret")[1:] == keychain[1:]
    )
    assert "former_authorities:" in out


@pytest.mark.parametrize(
    ("how", "give", "why"),
    [
        ({}, ["ca.pem"], "chain is incomplete"),
        ({}, ["root.pem"], "none of the certificates is for the key of the request"),
        ({"extensions": "none"}, ["ca.pem", "root.pem"], "is no certificate of an authority"),
        ({"options": "-days -1"}, ["ca.pem", "root.pem"], "check the clock"),
        ({}, ["ca.pem", "root.pem", "policy.pem"], "is neither above the authority nor one of two cross-certificates"),
        ({"above": "policy", "extensions": "copyall"}, ["ca.pem", "root.pem"], "chain is incomplete"),
        ({}, ["root.key"], "certificates cannot be read as PEM"),
        ({}, ["nothing.pem"], "cannot read"),
    ],
)  # fmt: skip
def test_what_cannot_be_installed_is_refused_with_one_sentence_and_changes_nothing(tmp_path, how, give, why):
    assert once(tmp_path, "--make-csr", str(tmp_path / "ca.csr"))[0] == 0
    sign_offline(tmp_path, **how)
    directory = tmp_path / "config/pva/1.5"
    before = {path: path.read_bytes() for path in directory.iterdir()}
    status, out, err = once(tmp_path, "--install-chain", *(str(tmp_path / name) for name in give))
    assert (status, out) == (1, "")
    assert err.count("\n") == 1
    assert why in err
    assert {path: path.read_bytes() for path in directory.iterdir()} == before


def test_a_private_key_among_the_certificates_is_refused(tmp_path):
    """Somebody has brought the root's key along, which stays offline."""
    assert once(tmp_path, "--make-csr", str(tmp_path / "ca.csr"))[0] == 0
    sign_offline(tmp_path)
    both = tmp_path / "both.pem"
    both.write_bytes(b"".join((tmp_path / name).read_bytes() for name in ("ca.pem", "root.key", "root.pem")))
    status, out, err = once(tmp_path, "--install-chain", str(both))
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "both.pem: there is a private key in it, which nobody needs here" in err
    assert not (tmp_path / "config/pva/1.5/cert_auth.p12").exists()


def test_an_authority_whose_certificates_nobody_would_accept_does_not_start(tmp_path):
    """The authority above it permits no authority below: OpenSSL at each peer would refuse what it signs."""
    short = ROOT.intermediate("Site Policy CA", path_length=0)
    below = short.intermediate("Site Issuing CA", path_length=None)
    pki.write_keychain(
        tmp_path / "cert_auth.p12", make_keychain(below.key, [below.certificate, *below.chain])
    )
    with pytest.raises(CertificateError, match=r"nobody would accept a certificate .*path length"):
        CertificateService.open(effective(tmp_path), clock=Clock())


# ---------------------------------------------------------------------- PEM files


@pytest.mark.parametrize("passphrase", ["", "secret"])
async def test_key_and_chain_may_be_pem_files(authority, tmp_path, passphrase):
    key, chain, pin = tmp_path / "ca.key", tmp_path / "ca.pem", tmp_path / "pin"
    encryption = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    for path, content in (
        (key, authority.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)),
        (pin, f"{passphrase}\n".encode()),
        (chain, b"".join(c.public_bytes(Encoding.PEM) for c in (authority.certificate, *authority.chain))),
    ):
        path.touch(mode=0o600)
        path.write_bytes(content)
    (tmp_path / "cert_auth.p12").unlink()
    settings = {
        "cert_auth_tls_keychain": FilePath(),
        "ca_key": str(key),
        "ca_key_pin": Secret.from_file(pin),
        "ca_certificate": FilePath(chain),
        **OPEN,
    }
    async with running(tmp_path, **settings) as service, plain(service) as context:
        keychain = await issued(context, "alice")
        assert keychain.chain == (authority.certificate, *authority.chain)
        status = await context.get(keychain.status_pv)
        verify_response(
            bytes(status["ocsp_response"]),
            issuer=authority.certificate,
            serial=keychain.serial,
            now=datetime.now(UTC),
        )

    def refused():
        with pytest.raises(ConfigurationError) as error:
            CertificateService.open(effective(tmp_path, **settings), clock=Clock())
        return str(error.value)

    settings["ca_key_pin"] = Secret("another")
    assert "can be read with ca_key_pin" in refused()
    other = generate_key("ec-p256").private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    settings["ca_key_pin"] = Secret()
    key.write_bytes(other)
    assert "its key is not that of the certificate" in refused()
    key.chmod(0o644)
    assert "chmod 600" in refused()


# ---------------------------------------------------------------------- files that people make by hand


def text_of(*certificates):
    return b"".join(c.public_bytes(Encoding.PEM) for c in certificates)


def limited(constraints):
    """An intermediate of the root that may give some names only."""
    made = pki.Authority("Site Issuing CA")
    plain = ROOT.intermediate("Site Issuing CA")
    builder = (
        x509.CertificateBuilder()
        .subject_name(plain.certificate.subject)
        .issuer_name(ROOT.certificate.subject)
        .public_key(made.key.public_key())
        .serial_number(77)
        .not_valid_before(pki.NOW - pki.DAY)
        .not_valid_after(pki.NOW + 300 * pki.DAY)
        .add_extension(constraints, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(made.key.public_key()), critical=False)
    )
    for extension in plain.certificate.extensions:
        if not isinstance(extension.value, x509.SubjectKeyIdentifier):
            builder = builder.add_extension(extension.value, critical=extension.critical)
    made.certificate, made.chain = builder.sign(ROOT.key, SHA256()), (ROOT.certificate,)
    return made


def deep(levels):
    """An authority with so many authorities below the root."""
    made = ROOT
    for level in range(levels):
        made = made.intermediate(f"Level {level}", path_length=None)
    return made


def ended(authority):
    """An authority below one whose certificate has ended."""
    above = authority.intermediate("Site Policy CA", path_length=1)
    above.certificate = build_ca(
        above.signer,
        subject=above.certificate.subject,
        not_before=pki.NOW - 20 * pki.DAY,
        not_after=pki.NOW - pki.DAY,
        serial=5,
        issuer=authority.issuer,
        path_length=1,
    )
    return above.intermediate("Site Issuing CA")


def weak():
    """An authority below a root whose key is too small for today's TLS."""
    key, made = rsa.generate_private_key(65537, 1024), pki.Authority("Site Issuing CA")

    def signed(common_name, of):
        names = [
            x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, n)]) for n in (common_name, "Old Root")
        ]
        builder = x509.CertificateBuilder(*reversed(names), of.public_key(), 7)
        builder = builder.not_valid_before(pki.NOW - pki.DAY).not_valid_after(pki.NOW + 300 * pki.DAY)
        return builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(
            key, SHA256()
        )

    made.certificate, made.chain = signed("Site Issuing CA", made.key), (signed("Old Root", key),)
    return made


THREE = AUTHORITIES["three"]
IN_ORDER = text_of(THREE.certificate, *THREE.chain)
RSA = pki.Authority("Site Root", algorithm="rsa-2048")
FORMS = {
    "line ends of Windows": (THREE, IN_ORDER.replace(b"\n", b"\r\n")),
    "a mark of the byte order": (THREE, b"\xef\xbb\xbf" + IN_ORDER),
    "some twice": (THREE, IN_ORDER + text_of(*THREE.chain, THREE.certificate)),
    "those above in another order": (THREE, text_of(THREE.certificate, *reversed(THREE.chain))),
    "a root with another kind of key": (RSA.intermediate(), b""),
    "as long as peers accept": (deep(5), b""),
    "an authority for clients and servers": (
        limited(
            x509.ExtendedKeyUsage(
                [x509.ExtendedKeyUsageOID.CLIENT_AUTH, x509.ExtendedKeyUsageOID.SERVER_AUTH]
            )
        ),
        b"",
    ),
}
WRONG = {
    "empty": (THREE, b"", "cannot be read as PEM: there is nothing in it"),
    "no PEM": (THREE, b"hello\n", "there is no -----BEGIN CERTIFICATE----- in it"),
    "DER": (THREE, THREE.certificate.public_bytes(Encoding.DER), "it is in DER form; make PEM of it: openssl"),
    "cut off": (THREE, IN_ORDER[:200], "cannot be read as PEM"),
    "a gap": (THREE, text_of(THREE.certificate, ROOT.certificate), "the issuer CN=Site Policy CA of CN=Site Issuing CA is missing"),
    "no root": (THREE, text_of(THREE.certificate, POLICY.certificate), "the issuer CN=Site Root.* is missing"),
    "an end above": (ended(ROOT), b"", "CN=Site Policy CA is valid from .* check the clock"),
    "no authority permitted below": (
        ROOT.intermediate("Short").intermediate("Below", path_length=None), b"", "path length constraint exceeded",
    ),
    "longer than peers accept": (deep(6), b"", "nobody would accept .* 6 authorities below the root, and peers accept at most 5"),
    "a root with a small key": (weak(), b"", "nobody would accept .* key of CN=Old Root has 1024 bits, and peers accept 2048 and more"),
    "an authority for servers only": (
        limited(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH])), b"",
        "nobody would accept .* extended key usage of CN=Site Issuing CA .* is not for a client; have it made without",
    ),
    "an authority for other uses": (
        limited(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.OCSP_SIGNING])), b"", "nobody would accept .* is not for a client",
    ),
    "names that it never gives": (
        limited(x509.NameConstraints([x509.DirectoryName(x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "site")]))], None)),
        b"", "nobody would accept .* permitted subtree violation",
    ),
}  # fmt: skip


def files_of(directory, authority, text):
    """Settings with the key and the chain in PEM files."""
    key, chain = directory / "ca.key", directory / "ca.pem"
    key.touch(mode=0o600)
    key.write_bytes(authority.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    chain.write_bytes(text)
    return {
        "cert_auth_tls_keychain": FilePath(),
        "ca_key": str(key),
        "ca_certificate": FilePath(chain),
        "db": str(directory / "certs.db"),
    }


@pytest.mark.parametrize("form", FORMS)
def test_a_chain_file_is_read_in_every_form_that_means_the_same(tmp_path, form):
    authority, text = FORMS[form]
    settings = effective(
        tmp_path, **files_of(tmp_path, authority, text or text_of(authority.certificate, *authority.chain))
    )
    service = CertificateService.open(settings, clock=Clock())
    try:
        assert service.authority.issuer.chain == authority.chain
    finally:
        service.close()


@pytest.mark.parametrize("fault", WRONG)
def test_a_chain_that_cannot_be_used_ends_the_start_with_one_sentence(tmp_path, fault):
    authority, text, why = WRONG[fault]
    if not text and fault != "empty":
        text = text_of(authority.certificate, *authority.chain)
    with pytest.raises((ConfigurationError, CertificateError), match=why) as refused:
        CertificateService.open(effective(tmp_path, **files_of(tmp_path, authority, text)), clock=Clock())
    assert "http" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_authoritys_own_certificate_comes_first_in_its_file(tmp_path):
    below = AUTHORITIES["two"]
    settings = files_of(tmp_path, ROOT, text_of(ROOT.certificate, below.certificate))
    with pytest.raises(
        ConfigurationError, match=r"Issuing CA comes behind CN=Site Root.* own certificate first"
    ):
        CertificateService.open(effective(tmp_path, **settings), clock=Clock())


def test_an_authority_that_may_give_some_names_only_is_used_with_a_warning(tmp_path, capsys):
    made = limited(x509.NameConstraints([x509.DNSName("site.example")], None))
    settings = files_of(tmp_path, made, text_of(made.certificate, *made.chain))
    CertificateService.open(effective(tmp_path, **settings), clock=Clock()).close()
    assert "permits some names only (name constraints)" in capsys.readouterr().out

"""PKCS#12 keychains: SPVA specification 4.1.1."""

import itertools
import subprocess
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, NoEncryption, pkcs12
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.certs.der import integer, oid, read_tlv, sequence
from appliance.certs.keychain import (
    Keychain,
    check_keychain,
    dump_keychain,
    dump_trust_anchors,
    ended_anchor_warnings,
    load_key,
    load_keychain,
    make_keychain,
)
from appliance.certs.pkcs12 import signing_time
from appliance.certs.profiles import build_ca, generate_key
from appliance.certs.x509 import cert_id
from appliance.errors import KeychainError
from tests.helpers.pki import DAY, NOW, PASSWORD, Authority, site, write_pem


class Hidden:
    def reveal(self) -> str:
        return PASSWORD.decode()


def spki(key) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def openssl(*arguments, data: bytes = b"") -> str:
    done = subprocess.run(["openssl", *map(str, arguments)], input=data, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode() + done.stderr.decode()


@pytest.mark.parametrize("password", [b"", PASSWORD])
@pytest.mark.parametrize("algorithm", ["ec-p256", "rsa-2048", "ed25519"])
def test_what_is_written_is_read_back(algorithm, password):
    keychain = site().ca.intermediate().keychain("softioc", "ioc", algorithm=algorithm, status=True)
    back = load_keychain(dump_keychain(keychain, password), password)
    assert back[1:] == keychain[1:]
    assert spki(back.key) == spki(keychain.key)
    assert [c.subject for c in back.chain] == [c.subject for c in keychain.chain]
    assert back.status_pv == f"CERT:STATUS:{cert_id(back.issuer_id, back.serial)}"


def test_no_password_and_an_empty_one_are_the_same():
    data = dump_keychain(site().client, b"")
    assert load_keychain(data, None)[1:] == load_keychain(data, b"")[1:] == site().client[1:]


def test_a_secret_is_asked_to_reveal_its_text():
    assert load_keychain(dump_keychain(site().client, Hidden()), PASSWORD)[1:] == site().client[1:]


@pytest.mark.parametrize("password", ["", "secret"])
def test_openssl_reads_what_is_written(tmp_path, password):
    keychain = site().ca.keychain("softioc", "ioc")
    path = tmp_path / "k.p12"
    path.write_bytes(dump_keychain(keychain, password.encode()))
    text = openssl("pkcs12", "-in", path, "-passin", f"pass:{password}", "-nodes", "-info")
    assert "MAC: sha256" in text
    assert text.count("PBES2, PBKDF2, AES-256-CBC") == 2
    assert text.count("BEGIN CERTIFICATE") == 2
    assert "BEGIN PRIVATE KEY" in text
    local_key_ids = [line for line in text.splitlines() if "localKeyID" in line]
    assert len(local_key_ids) == 2, "key and certificate are linked"
    assert len(set(local_key_ids)) == 1
    assert text.count("friendlyName: softioc") == 2
    assert text.count("2.16.840.1.113894.746875.1.1") == 1, "Java's trusted key usage marks the CA alone"


@pytest.mark.parametrize("password", ["", "secret"])
def test_the_moment_of_issue_is_kept_with_the_key(tmp_path, password):
    """The certificate does not tell it: a token's nbf may lie years before."""
    moment = datetime(2026, 3, 1, 12, 30, 15, 999_999, tzinfo=UTC)
    path = tmp_path / "k.p12"
    path.write_bytes(dump_keychain(site().client, password.encode(), issued=moment))
    assert signing_time(path.read_bytes()) == moment.replace(microsecond=0)
    assert load_keychain(path.read_bytes(), password.encode())[1:] == site().client[1:]
    text = openssl("pkcs12", "-in", path, "-passin", f"pass:{password}", "-nodes")
    assert "signingTime" in text
    assert text.count("localKeyID") == 2
    assert signing_time(dump_keychain(site().client)) is None


@pytest.mark.parametrize(
    "tail", [b"", b"\x31", b"\x31\x02\x18\x00", b"\x31\x03\x18\x01x", b"\x31\x11\x18\x0f20269901000000Z"]
)
def test_a_moment_of_issue_that_is_none_is_not_there(tail):
    assert signing_time(oid("1.2.840.113549.1.9.5") + tail) is None


def test_trust_anchors_carry_javas_attribute_and_nothing_secret(tmp_path):
    path = tmp_path / "t.p12"
    path.write_bytes(dump_trust_anchors([site().ca.certificate, site().other_ca.certificate]))
    text = openssl("pkcs12", "-in", path, "-passin", "pass:", "-nodes")
    assert text.count("2.16.840.1.113894.746875.1.1") == 2
    assert "PRIVATE" not in text
    keychain = load_keychain(path.read_bytes())
    assert keychain.is_trust_only
    assert set(keychain.anchors) == {site().ca.certificate, site().other_ca.certificate}
    assert keychain.cert_id == keychain.status_pv == keychain.subject == ""


@pytest.mark.parametrize(
    "options",
    [
        ["-passout", "pass:"],
        ["-passout", "pass:secret"],
        ["-passout", "pass:secret", "-nomac"],
        ["-passout", "pass:", "-keypbe", "NONE", "-certpbe", "NONE"],
        ["-passout", "pass:secret", "-legacy"],
    ],
    ids=" ".join,
)
def test_what_openssl_writes_is_read(tmp_path, options):
    cert, key, ca = write_pem(tmp_path, site().client)
    out = tmp_path / "o.p12"
    openssl("pkcs12", "-export", "-inkey", key, "-in", cert, "-certfile", ca, "-out", out, *options)
    assert load_keychain(out.read_bytes(), options[1][5:].encode())[1:] == site().client[1:]


def test_javas_truststore_as_cryptography_writes_it_is_read():
    entry = pkcs12.PKCS12Certificate(site().ca.certificate, b"ca")
    data = pkcs12.serialize_java_truststore([entry], serialization.BestAvailableEncryption(b"changeit"))
    assert load_keychain(data, b"changeit").anchors == (site().ca.certificate,)


def test_an_unlinked_leaf_is_found_by_its_key():
    chain = [site().client.certificate, site().ca.certificate]
    keychain = make_keychain(site().client.key, chain)
    assert keychain.certificate == chain[0]
    plain = pkcs12.serialize_key_and_certificates(
        None, keychain.key, None, chain, serialization.NoEncryption()
    )
    assert load_keychain(plain).certificate == chain[0]


def test_a_ca_and_its_key_are_a_keychain():
    ca = site().ca
    keychain = load_keychain(dump_keychain(make_keychain(ca.key, [ca.certificate])))
    assert keychain.certificate == ca.certificate
    assert keychain.chain == ()
    assert keychain.anchors == (ca.certificate,)
    assert keychain.issuer_id == ca.issuer_id


def test_the_key_can_be_kept_alone():
    key = generate_key("ec-p256")
    alone = pkcs12.serialize_key_and_certificates(b"key", key, None, None, BestAvailableEncryption(PASSWORD))
    open_ = pkcs12.serialize_key_and_certificates(b"key", key, None, None, NoEncryption())
    assert spki(load_key(alone, PASSWORD)) == spki(key)
    assert spki(load_key(dump_keychain(site().client))) == spki(site().client.key)
    with pytest.raises(KeychainError, match="no certificate for it; request"):
        load_keychain(open_)
    with pytest.raises(KeychainError, match="no private key"):
        load_key(dump_trust_anchors([site().ca.certificate]))


@pytest.mark.parametrize("show", [repr, str, "{}".format])
def test_the_key_is_never_shown(show):
    keychain = site().client
    number = keychain.key.private_numbers().private_value
    assert "PrivateKey" not in show(keychain)
    assert str(number) not in show(keychain)
    assert show(keychain).startswith("<Keychain CN=client, O=localhost ")
    assert "PrivateKey" not in repr(site().ca.issuer)


def refused(data, password=None) -> str:
    with pytest.raises(KeychainError) as caught:
        load_keychain(data, password)
    return str(caught.value)


def test_refusals_say_what_to_do():
    s = site()
    data = dump_keychain(s.client, PASSWORD)
    assert "empty" in refused(b"")
    assert "not a PKCS#12 keychain" in refused(b"-----BEGIN CERTIFICATE-----")
    assert "larger than" in refused(b"\x30" * (1 << 19))
    assert "password is wrong" in refused(data, b"wrong")
    assert "none was given" in refused(data)
    assert "damaged" in refused(data[:-40] + b"\0" * 40, PASSWORD)
    alone = pkcs12.serialize_key_and_certificates(
        None, s.client.key, s.client.certificate, None, serialization.NoEncryption()
    )
    assert "no trust anchor" in refused(alone)
    foreign = pkcs12.serialize_key_and_certificates(
        None, s.client.key, s.client.certificate, [s.other_ca.certificate], serialization.NoEncryption()
    )
    assert "chain is incomplete" in refused(foreign)
    keyless = pkcs12.serialize_java_truststore(
        [pkcs12.PKCS12Certificate(c, None) for c in (s.client.certificate, s.ca.certificate)],
        serialization.NoEncryption(),
    )
    assert "without its private key" in refused(keyless)


def test_a_chain_of_the_right_name_and_the_wrong_key_is_refused():
    impostor = Authority()
    assert impostor.certificate.subject == site().ca.certificate.subject
    with pytest.raises(KeychainError, match="incomplete"):
        make_keychain(site().client.key, [site().client.certificate, impostor.certificate])


def test_key_and_certificate_must_belong_together():
    with pytest.raises(KeychainError, match="does not belong"):
        make_keychain(site().server.key, [site().client.certificate, site().ca.certificate])


def test_a_trust_anchor_must_be_a_self_signed_ca():
    with pytest.raises(KeychainError, match="not a self-signed CA"):
        dump_trust_anchors([site().client.certificate])
    with pytest.raises(KeychainError, match="no trust anchor"):
        dump_trust_anchors([])


def test_check_refuses_what_a_peer_would_refuse():
    s = site()
    check_keychain(s.client, now=NOW, usage="client")
    check_keychain(s.ioc, now=NOW, usage="client")
    check_keychain(s.ioc, now=NOW, usage="server")
    trust_only = s.ca.trust_only()
    check_keychain(trust_only, now=NOW, usage="client")
    for keychain, now, usage, why in (
        (trust_only, NOW, "server", "needs its own certificate"),
        (s.client, NOW, "server", "cannot be used for a server"),
        (s.server, NOW, "client", "cannot be used for a client"),
        (s.client, NOW + 2 * DAY, "client", "expired at"),
        (s.client, NOW - 2 * DAY, "client", "not valid before"),
        (trust_only, NOW + 4000 * DAY, "client", "trust anchor .* expired"),
        (make_keychain(s.ca.key, [s.ca.certificate]), NOW, "server", "belongs to a certificate authority"),
    ):
        with pytest.raises(KeychainError, match=why):
            check_keychain(keychain, now=now, usage=usage)


GOOD = dump_keychain(site().client)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=300))
def test_random_bytes_give_only_a_keychain_error(data):
    with pytest.raises(KeychainError):
        load_keychain(data)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_keychains_give_only_a_keychain_error(changes):
    data = bytearray(GOOD)
    for place, byte in changes:
        data[place] = byte
    try:
        keychain = load_keychain(bytes(data))
    except KeychainError:
        return
    assert isinstance(keychain, Keychain)


PLAIN = pkcs12.serialize_key_and_certificates(
    None, site().client.key, site().client.certificate, [site().ca.certificate], serialization.NoEncryption()
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(PLAIN) - 1), st.integers(0, 255)), min_size=1, max_size=3))
def test_damaged_certificates_inside_give_only_a_keychain_error(changes):
    """Without a MAC the damage reaches the certificates."""
    _, body, _ = read_tlv(PLAIN)
    version, _, rest = read_tlv(body)
    assert version == 2
    _, safe, _ = read_tlv(rest)
    data = bytearray(safe)
    for place, byte in changes:
        data[place % len(data)] = byte
    try:
        load_keychain(sequence(integer(3), sequence(bytes(data))))
    except KeychainError:
        return


# ------------------------------------------------------------- several ways to an anchor


def crossed(root: Authority, below: Authority, **more) -> x509.Certificate:
    """The certificate of ``below`` as another authority has signed it."""
    dates = {"not_before": NOW - 30 * DAY, "not_after": NOW + 3000 * DAY, **more}
    subject = below.certificate.subject
    return build_ca(below.signer, subject=subject, serial=99, issuer=root.issuer, **dates)


def old_root() -> Authority:
    old = Authority("Old Root")
    old.certificate = build_ca(
        old.signer,
        subject=old.certificate.subject,
        not_before=NOW - 900 * DAY,
        not_after=NOW - DAY,
        serial=3,
    )
    return old


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("with_old_root", [True, False])
def test_of_several_ways_to_an_anchor_one_that_holds_is_taken_in_any_order(order, with_old_root):
    """An authority that is there twice: self-signed, and cross-signed by a root that has ended, or is not there."""
    old, new = old_root(), Authority("New Root")
    own = new.keychain("ioc1")
    there = [crossed(old, new), new.certificate, old.certificate if with_old_root else site().ca.certificate]
    keychain = make_keychain(own.key, [own.certificate, *(there[i] for i in order)])
    assert keychain.chain == (new.certificate,)
    check_keychain(keychain, now=NOW, usage="client")


def test_a_way_through_a_cross_signed_authority_is_taken_where_it_is_the_only_one():
    old, new = Authority("Old Root"), Authority("New Root")
    own, bridge = new.keychain("ioc1"), crossed(old, new)
    assert make_keychain(own.key, [own.certificate, bridge, old.certificate]).chain == (
        bridge,
        old.certificate,
    )


def test_authorities_that_sign_each_other_in_a_circle_are_an_incomplete_chain():
    one, other = Authority("One"), Authority("Other")
    own = one.keychain("ioc1")
    circle = [crossed(other, one), crossed(one, other), site().ca.certificate]
    with pytest.raises(KeychainError, match="incomplete"):
        make_keychain(own.key, [own.certificate, *circle])


def test_a_trust_anchor_outside_the_own_chain_that_has_ended_is_ignored_with_a_warning():
    own, old = site().client, old_root().certificate
    keychain = make_keychain(own.key, [own.certificate, site().ca.certificate, old])
    check_keychain(keychain, now=NOW, usage="client")
    (warning,) = ended_anchor_warnings(keychain, NOW)
    assert "CN=Old Root" in warning
    assert "is ignored" in warning
    trusting = load_keychain(dump_trust_anchors([site().ca.certificate, old]))
    check_keychain(trusting, now=NOW, usage="client")
    with pytest.raises(KeychainError, match=r"trust anchor .* expired"):
        check_keychain(load_keychain(dump_trust_anchors([old])), now=NOW, usage="client")

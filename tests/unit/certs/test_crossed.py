"""Cross-certificates in keychains, and which of them may introduce a new root: RFC 4210 section 4.4."""

import subprocess
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from appliance.certs.crossed import Pair, faults_of_introduction, is_same_authority, pairs
from appliance.certs.keychain import dump_keychain, dump_trust_anchors, load_keychain, make_keychain
from appliance.certs.pkcs12 import Bag, write_pkcs12
from appliance.certs.profiles import build_ca, subject_name
from tests.helpers.pki import DAY, NOW, Authority

OLD = Authority("Site Root", begun=3000 * DAY)
NEW = Authority("Site Root G2")
OTHER = Authority("Another Root")
NEW_WITH_OLD, OLD_WITH_NEW = OLD.crossed(NEW), NEW.crossed(OLD)


def keychain(*beside):
    client = NEW.keychain()
    return make_keychain(client.key, [client.certificate, NEW.certificate, *beside])


def test_cross_certificates_are_no_anchors_and_no_chain_and_survive_the_file():
    found = keychain(NEW_WITH_OLD, OLD_WITH_NEW)
    assert found.anchors == found.chain == (NEW.certificate,)
    assert set(found.crossed) == {NEW_WITH_OLD, OLD_WITH_NEW}
    back = load_keychain(dump_keychain(found, b"x"), b"x")
    assert back[1:4] == found[1:4]
    assert set(back.crossed) == set(found.crossed)
    alone = load_keychain(dump_trust_anchors(found.anchors, crossed=found.crossed))
    assert alone.is_trust_only
    assert (alone.anchors, set(alone.crossed)) == ((NEW.certificate,), set(found.crossed))
    assert found.anchors_alone().crossed == found.crossed


@pytest.mark.parametrize("name", ["Site Root", "Site Root G2"], ids=["equal-names", "other-names"])
def test_the_one_for_the_roots_key_is_sent_in_front_of_the_root(name):
    new = Authority(name)
    new_with_old, old_with_new = OLD.crossed(new), new.crossed(OLD)
    below = new.intermediate()
    below.beside = (old_with_new, new_with_old)
    found = below.keychain()
    assert found.chain == (below.certificate, new.certificate)
    assert found.sent_above == (below.certificate, new_with_old, new.certificate)


def test_a_certificate_of_another_root_does_not_come_into_a_keychain():
    below = OTHER.intermediate()
    assert keychain(below.certificate, OTHER.crossed(OLD)).crossed == ()


def test_the_key_of_a_root_finds_its_self_signed_certificate_among_the_crossed_ones():
    bags = [Bag(c.public_bytes(Encoding.DER)) for c in (NEW_WITH_OLD, NEW.certificate, OLD_WITH_NEW)]
    plain = NEW.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    found = load_keychain(write_pkcs12(bags, Bag(plain), b""))
    assert found.certificate == NEW.certificate
    assert set(found.crossed) == {NEW_WITH_OLD, OLD_WITH_NEW}


def test_java_is_told_to_trust_the_root_and_not_what_is_crossed(tmp_path):
    (tmp_path / "k.p12").write_bytes(dump_keychain(keychain(NEW_WITH_OLD, OLD_WITH_NEW)))
    text = subprocess.run(
        ["openssl", "pkcs12", "-in", tmp_path / "k.p12", "-passin", "pass:", "-nodes"],
        check=True, capture_output=True, text=True, timeout=60,
    ).stdout  # fmt: skip
    assert text.count("BEGIN CERTIFICATE") == 4
    assert text.count("2.16.840.1.113894.746875.1.1") == 1


def test_pairs_are_those_that_both_roots_have_signed():
    everything = [
        OTHER.crossed(NEW),
        NEW_WITH_OLD,
        OTHER.certificate,
        OLD_WITH_NEW,
        NEW.intermediate().certificate,
    ]
    assert pairs(everything, NEW.certificate) == (Pair(NEW_WITH_OLD, OLD_WITH_NEW),)
    assert pairs([NEW_WITH_OLD], NEW.certificate) == ()
    assert pairs([OLD_WITH_NEW, OTHER.crossed(NEW)], NEW.certificate) == ()
    forged = Authority("Site Root")
    assert pairs([NEW_WITH_OLD, forged.crossed(OLD)], NEW.certificate) == ()


def test_two_certificates_are_of_one_authority_by_name_and_key():
    assert is_same_authority(NEW_WITH_OLD, NEW.certificate)
    assert not is_same_authority(NEW_WITH_OLD, OLD.certificate)
    assert not is_same_authority(Authority("Site Root").certificate, OLD.certificate)


# ---------------------------------------------------------------------- who may introduce whom


def faults(cross, new=NEW, old=OLD, now=NOW):
    return "; ".join(faults_of_introduction(cross, new=new.certificate, old=old.certificate, now=now))


def limited(extension, *, key=NEW, signer=OLD):
    """A cross-certificate with one more extension."""
    return (
        x509.CertificateBuilder()
        .subject_name(key.certificate.subject)
        .issuer_name(signer.certificate.subject)
        .public_key(key.key.public_key())
        .serial_number(7)
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(extension, critical=False)
        .sign(signer.key, hashes.SHA256())
    )


def test_a_root_introduces_a_later_one_by_its_own_key():
    assert faults(NEW_WITH_OLD) == ""


def test_one_that_another_root_has_signed_introduces_nobody():
    assert "did not sign it" in faults(OTHER.crossed(NEW))
    impostor = Authority("Site Root", begun=3000 * DAY)
    assert "did not sign it" in faults(impostor.crossed(NEW)), "the name of the trusted root, and another key"


def test_an_intermediate_of_the_trusted_root_introduces_nobody():
    assert "did not sign it" in faults(OLD.intermediate(path_length=None).crossed(NEW)), "one hop"


def test_one_for_another_key_introduces_nobody():
    namesake = Authority("Site Root G2")
    assert "another name or key" in faults(OLD.crossed(namesake))
    assert "another name or key" in faults(OLD_WITH_NEW, new=NEW, old=NEW)


def test_the_new_root_does_not_introduce_the_old_one_again():
    """Who has the key of the old one, the reason for a new one perhaps, could lead everybody back to it."""
    assert "not later" in faults(OLD_WITH_NEW, new=OLD, old=NEW)


@pytest.mark.parametrize(
    "extension",
    [
        x509.NameConstraints([x509.DNSName("site.example")], None),
        x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH]),
        x509.PolicyConstraints(0, None),
        x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"),
    ],
    ids=["names", "purposes", "policies", "unknown"],
)
def test_one_with_a_limit_that_the_new_root_would_not_have_introduces_nobody(extension):
    assert "limits that the new root would not have" in faults(limited(extension))


def test_a_limit_of_the_path_must_hold_for_the_new_root_too():
    assert "limits the authorities below" in faults(OLD.crossed(NEW, path_length=1))
    short = Authority("Site Root G2")
    short.certificate = build_ca(
        short.signer, subject=subject_name("Site Root G2"), not_before=NOW - DAY, not_after=NOW + DAY, serial=1, path_length=1
    )  # fmt: skip
    assert faults(OLD.crossed(short, path_length=1), new=short) == ""
    assert "limits the authorities below" in faults(OLD.crossed(short, path_length=0), new=short)


def test_one_that_may_not_sign_certificates_introduces_nobody():
    usage = x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    assert "may not sign certificates" in faults(limited(usage))


@pytest.mark.parametrize("now", [NOW - 3 * DAY, NOW + 366 * DAY])
def test_one_that_is_not_valid_now_introduces_nobody(now):
    assert "is not valid now" in faults(NEW_WITH_OLD, now=now)


def test_the_end_of_a_cross_certificate_is_its_own():
    assert faults(OLD.crossed(NEW, not_after=NOW + timedelta(seconds=1))) == ""

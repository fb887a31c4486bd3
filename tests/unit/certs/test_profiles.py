"""Certificates and their profiles: SPVA specification 4.2 to 4.8, 7.1."""

import subprocess
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from appliance.certs.der import DERError, integer, oid, read_tlv, tlv
from appliance.certs.profiles import (
    EXTENDED_KEY_USAGES,
    KEY_ALGORITHMS,
    build_ca,
    build_certificate,
    check_ca,
    check_certificate,
    check_public_key,
    generate_key,
    subject_name,
)
from appliance.certs.x509 import (
    CONFIG_PV_OID,
    STATUS_PV_OID,
    canonical_pv_name,
    cert_id,
    common_name,
    config_pv,
    decode_pv_name,
    decode_time,
    encode_pv_name,
    encode_time,
    issuer_id,
    parse_cert_id,
    renew_by,
    san,
    shown_subject,
    shown_value,
    status_pv,
    subject_text,
)
from appliance.errors import CertificateError
from tests.helpers.hand_made import hand_made
from tests.helpers.pki import DAY, NOW, Authority, site, write_pem

S = site()
KEY = generate_key("ec-p256").public_key()
PV = "CERT:STATUS:47530d89:03826361579604613181"


def build(**changes) -> x509.Certificate:
    arguments = {
        "subject": subject_name("client", organization="localhost"),
        "public_key": KEY,
        "usage": "client",
        "not_before": NOW - DAY,
        "not_after": NOW + DAY,
        "serial": 42,
    }
    return build_certificate(S.ca.issuer, **{**arguments, **changes})


def openssl(*arguments, data: bytes = b"") -> str:
    done = subprocess.run(["openssl", *map(str, arguments)], input=data, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


# ---------------------------------------------------------------------- what is issued


@pytest.mark.parametrize("algorithm", KEY_ALGORITHMS)
@pytest.mark.parametrize("usage", ["client", "server", "ioc"])
def test_openssl_verifies_what_is_issued(tmp_path, algorithm, usage):
    if algorithm == "rsa-4096":
        algorithm = "rsa-2048"
    keychain = S.ca.intermediate().keychain("softioc", usage, algorithm=algorithm, status=True)
    cert, _, ca = write_pem(tmp_path, keychain)
    below = tmp_path / "below.pem"
    below.write_bytes(keychain.chain[0].public_bytes(Encoding.PEM))
    purposes = {"client": ["sslclient"], "server": ["sslserver"], "ioc": ["sslclient", "sslserver"]}[usage]
    for purpose in purposes:
        text = openssl(
            "verify", "-x509_strict", "-purpose", purpose, "-CAfile", ca, "-untrusted", below, cert
        )
        assert text.endswith(": OK\n")
    other = {"client": "sslserver", "server": "sslclient"}.get(usage)
    if other:
        done = subprocess.run(
            ["openssl", "verify", "-purpose", other, "-CAfile", ca, "-untrusted", below, cert],
            capture_output=True,
            check=False,
        )
        assert done.returncode != 0


@pytest.mark.parametrize("algorithm", ["rsa-2048", "ec-p256", "ec-p384", "ed25519"])
def test_every_kind_of_ca_signs(tmp_path, algorithm):
    keychain = Authority(algorithm=algorithm).keychain("ioc", "ioc")
    cert, _, ca = write_pem(tmp_path, keychain)
    assert openssl("verify", "-x509_strict", "-CAfile", ca, cert).endswith(": OK\n")


def test_extensions_are_those_of_the_profile():
    text = openssl(
        "x509",
        "-noout",
        "-text",
        "-inform",
        "DER",
        data=build(usage="ioc", status_pv=PV).public_bytes(Encoding.DER),
    )
    for line in (
        "X509v3 Basic Constraints: critical",
        "CA:FALSE",
        "Digital Signature, Key Agreement",
        "TLS Web Server Authentication, TLS Web Client Authentication",
        "X509v3 Subject Key Identifier",
        "X509v3 Authority Key Identifier",
        "1.3.6.1.4.1.37427.1",
    ):
        assert line in text


def test_key_usage_follows_the_key():
    """RFC 5480 3, RFC 8410 5."""
    for algorithm, wanted in (
        ("rsa-2048", {"digital_signature", "key_encipherment"}),
        ("ec-p256", {"digital_signature", "key_agreement"}),
        ("ed25519", {"digital_signature"}),
    ):
        usage = build(public_key=generate_key(algorithm).public_key()).extensions.get_extension_for_class(
            x509.KeyUsage
        )
        names = ("digital_signature", "key_encipherment", "key_agreement", "key_cert_sign", "crl_sign")
        assert {name for name in names if getattr(usage.value, name)} == wanted


def test_names_read_as_in_the_reference():
    """The order of encoding, as its transcripts print it."""
    assert subject_text(S.client.certificate.subject) == "CN=client, O=localhost"
    assert subject_text(S.client.certificate.issuer) == (
        "CN=EPICS Root Certificate Authority, C=US, O=certs.epics.org, OU=EPICS Certificate Authority"
    )
    text = subject_text(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a\nCN=root")]))
    assert text == "CN=a\\0ACN=root"
    assert common_name(S.client.certificate.subject) == "client"


# ---------------------------------------------------------------------- identifiers


def test_the_issuer_id_is_the_start_of_the_subject_key_identifier():
    text = openssl(
        "x509", "-noout", "-ext", "subjectKeyIdentifier", "-inform", "DER",
        data=S.ca.certificate.public_bytes(Encoding.DER),
    )  # fmt: skip
    assert text.split()[-1].replace(":", "").lower().startswith(issuer_id(S.ca.certificate))
    assert len(issuer_id(S.ca.certificate)) == 8


def test_a_ca_without_that_extension_gets_the_identifier_that_its_key_would_give():
    key = S.ca.key
    name = subject_name("bare")
    bare = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + DAY)
        .sign(key, hashes.SHA256())
    )
    assert issuer_id(bare) == issuer_id(S.ca.certificate)


def test_certificate_identifiers_are_read_padded_or_not():
    assert cert_id("47530d89", 3826361579604613181) == "47530d89:03826361579604613181"
    for text in (
        "47530d89:3826361579604613181",
        "47530D89:03826361579604613181",
        " 47530d89:3826361579604613181\n",
    ):
        assert parse_cert_id(text) == ("47530d89", 3826361579604613181)
    assert parse_cert_id(cert_id("00000000", 2**64 - 1)) == ("00000000", 2**64 - 1)


@pytest.mark.parametrize(
    "text",
    ["", ":", "47530d89", "47530d89:", "47530d8:1", "4753zd89:1", "47530d89:-1", "47530d89:1:2", "47530d89:1e3",
     f"47530d89:{2**64}", "47530d89:" + "0" * 21, "47530d89:\u0663"],
)  # fmt: skip
def test_other_texts_are_no_certificate_identifiers(text):
    with pytest.raises(CertificateError, match="such as 47530d89:"):
        parse_cert_id(text)


# ---------------------------------------------------------------------- the private extensions


def test_the_status_pv_is_an_ia5string_as_openssl_sees_it(tmp_path):
    """4.3. Golden bytes: tag 16, length, the name."""
    der = build(status_pv=PV, config_pv="CERT:CONFIG:47530d89:1").public_bytes(Encoding.DER)
    text = openssl("asn1parse", "-inform", "DER", data=der)
    lines = text.splitlines()
    place = next(i for i, line in enumerate(lines) if "1.3.6.1.4.1.37427.1" in line)
    value = lines[place + 1]
    assert "OCTET STRING" in value, "not critical: no BOOLEAN between"
    assert value.endswith(f"[HEX DUMP]:16{len(PV):02X}{PV.encode().hex().upper()}")
    offset = int(value.split(":")[0])
    inner = openssl("asn1parse", "-inform", "DER", "-strparse", str(offset), data=der)
    assert f"IA5STRING         :{PV}" in inner


def test_bare_ascii_is_written_where_that_is_asked_for():
    certificate = build(status_pv=PV, raw_pv_names=True)
    assert certificate.extensions.get_extension_for_oid(STATUS_PV_OID).value.value == PV.encode()
    assert status_pv(certificate) == PV


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("name", ["A", PV, "x" * 127])
def test_both_forms_are_read(raw, name):
    certificate = build(status_pv=name, config_pv=name, raw_pv_names=raw)
    assert status_pv(certificate) == config_pv(certificate) == name


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=127))
def test_the_name_that_a_peer_takes_undecoded_is_recognised(name):
    """Peers of 2025 search for the extension's bytes, those of 2026 for the decoded name."""
    assert canonical_pv_name(encode_pv_name(name).decode()) == name
    assert canonical_pv_name(encode_pv_name(name, raw=True).decode()) == name
    assert decode_pv_name(encode_pv_name(name)) == decode_pv_name(encode_pv_name(name, raw=True)) == name


@pytest.mark.parametrize("name", ["", "a b", "a\n", "\x16\x01a", "\xe9", "x" * 128])
def test_names_that_some_peer_cannot_read_are_not_written(name):
    with pytest.raises(CertificateError, match="1 to 127 printable ASCII"):
        encode_pv_name(name)


def test_a_certificate_without_the_extension_names_no_pv():
    assert status_pv(build()) == config_pv(build()) == ""
    assert renew_by(build()) is None


@pytest.mark.parametrize(
    "raw",
    [b"", b"\x16", b"\x16\x00", b"\x16\x05CERT", b"\x16\x04CERTX", b"\x16\x81\x04CERT", b"\x16\x80CERT\0\0", b"\x04\x04CERT",
     b"CERT\0", b"CERT PV", b"\xc3\xa9", b"x" * 501, b"\x16\x84\xff\xff\xff\xffA"],
)  # fmt: skip
def test_hostile_status_extensions_are_refused(raw):
    certificate = hand_made(extensions=[x509.UnrecognizedExtension(STATUS_PV_OID, raw)]).certificate
    with pytest.raises(CertificateError, match="status PV's name in the certificate CN=odd cannot be read"):
        status_pv(certificate)


@given(st.binary(max_size=600))
def test_random_extension_bytes_give_a_name_or_the_stated_error(raw):
    try:
        name = decode_pv_name(raw)
    except DERError:
        return
    assert name.isascii()
    assert name.isprintable()
    assert " " not in name
    assert raw.endswith(name.encode())


def test_renew_by_is_an_asn1_time():
    due = NOW + timedelta(hours=1)
    assert renew_by(build(renew_by=due)) == due
    assert encode_time(datetime(2025, 3, 8, 15, 23, 21, tzinfo=UTC)) == b"\x17\x0d250308152321Z"
    assert encode_time(datetime(2050, 1, 2, 3, 4, 5, tzinfo=UTC)) == b"\x18\x0f20500102030405Z"
    east = timezone(timedelta(hours=2))
    assert encode_time(datetime(2025, 3, 8, 17, 23, 21, tzinfo=east)) == b"\x17\x0d250308152321Z"
    assert openssl("asn1parse", "-inform", "DER", data=encode_time(due)).count("UTCTIME") == 1


@given(st.datetimes(min_value=datetime(1950, 1, 1), max_value=datetime(9999, 12, 31), timezones=st.just(UTC)))  # noqa: DTZ001
def test_times_survive_their_encoding(when):
    assert decode_time(encode_time(when)) == when.replace(microsecond=0)


@given(st.binary(max_size=40))
def test_random_times_give_a_time_or_the_stated_error(raw):
    for data in (raw, tlv(0x17, raw), tlv(0x18, raw)):
        with suppress(DERError):
            assert decode_time(data).tzinfo is UTC


# ---------------------------------------------------------------------- alternative names


def test_alternative_names_are_written_and_read():
    entries = (("dns", "host.example.org"), ("ip", "10.0.0.2"), ("ip", "2001:db8::1"), ("uri", "urn:epics:x"))
    assert san(build(san=entries)) == entries
    assert san(build()) == ()


def test_kinds_that_nobody_matches_are_left_out():
    names = x509.SubjectAlternativeName([x509.RFC822Name("a@b.c"), x509.DNSName("h")])
    assert san(hand_made(extensions=[names]).certificate) == (("dns", "h"),)


@pytest.mark.parametrize(
    "entry", [("ip", "not an address"), ("email", "a@b.c"), ("dns", "h\xf6st"), ("ip", "10.0.0.0/8")]
)
def test_alternative_names_that_make_no_sense_are_refused(entry):
    with pytest.raises(CertificateError):
        build(san=[entry])


# ---------------------------------------------------------------------- the check before signing


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"usage": "ca"}, "not known; use one of client"),
        ({"serial": 0}, "serial number"),
        ({"serial": 1 << 64}, "serial number"),
        ({"not_after": NOW - 2 * DAY}, "ends .* before it begins"),
        ({"not_before": datetime(2025, 1, 1)}, "aware times"),  # noqa: DTZ001
        ({"not_after": NOW + 4000 * DAY}, "outlive its CA"),
        ({"public_key": S.ca.key.public_key()}, "key is the CA's"),
        ({"public_key": ec.generate_private_key(ec.SECP521R1()).public_key()}, "curve secp521r1"),
        ({"status_pv": "a b"}, "1 to 127"),
        ({"renew_by": NOW + 2 * DAY}, "renew-by date is outside"),
        ({"san": [("dns", f"h{i}") for i in range(101)]}, "more than 100"),
        ({"subject": x509.Name([])}, "0 CN"),
        ({"subject": x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, n) for n in "ab"])}, "2 CN"),
        ({"subject": x509.Name([x509.NameAttribute(NameOID.EMAIL_ADDRESS, "a@b.c")])}, "only CN, C, O and OU"),
        ({"subject": x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a\nb")])}, "control characters"),
    ],
)  # fmt: skip
def test_what_breaks_the_profile_is_not_signed(changes, why):
    with pytest.raises(CertificateError, match=why):
        build(**changes)


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({"common_name": ""}, "empty"),
        ({"common_name": "x" * 65}, "at most 64"),
        ({"common_name": " x"}, "blanks at its ends"),
        ({"common_name": "x\0"}, "control characters"),
        ({"common_name": "a\udcff"}, r"is not UTF-8: 'a\\udcff'"),
        ({"common_name": "a\u200b"}, r"cannot be printed: 'a\\u200b'"),
        ({"common_name": "x", "country": "USA"}, "at most 2"),
        ({"common_name": "x", "country": "us"}, "two capital letters"),
        ({"common_name": "x", "organization": "y" * 65}, "at most 64"),
        ({"common_name": "x", "organizational_unit": "a\nb"}, "control characters"),
    ],
)
def test_subjects_that_make_no_sense_are_refused(parts, why):
    with pytest.raises(CertificateError, match=why):
        subject_name(**parts)


def test_weak_keys_are_refused():
    """4.8."""
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024).public_key()
    assert "1024 bits" in check_public_key(weak)
    odd = rsa.generate_private_key(public_exponent=3, key_size=2048).public_key()
    assert "exponent 3" in check_public_key(odd)
    for algorithm in ("rsa-2048", "ec-p256", "ec-p384", "ed25519"):
        assert check_public_key(generate_key(algorithm).public_key()) is None
    with pytest.raises(CertificateError, match="use one of rsa-2048"):
        generate_key("dsa")


def test_a_finished_certificate_is_checked_against_its_profile():
    certificate = build(usage="ioc")
    check_certificate(certificate, issuer=S.ca.certificate, usage="ioc")
    check_ca(S.ca.certificate)
    with pytest.raises(CertificateError, match="not that of client"):
        check_certificate(certificate, issuer=S.ca.certificate, usage="client")
    with pytest.raises(CertificateError, match=r"issuer is not the subject.*authority key identifier"):
        check_certificate(certificate, issuer=S.other_ca.intermediate().certificate, usage="ioc")
    with pytest.raises(CertificateError, match=r"do not say CA.*signing certificates"):
        check_ca(certificate)
    with pytest.raises(CertificateError, match="its issuer is not a CA"):
        check_certificate(certificate, issuer=S.client.certificate, usage="ioc")
    bare = hand_made().certificate
    with pytest.raises(CertificateError, match=r"no subject key identifier.*no basic constraints.*key usage"):
        check_certificate(bare, issuer=S.ca.certificate, usage="client")
    assert set(EXTENDED_KEY_USAGES) == {"client", "server", "ioc", "cms"}


def test_a_ca_without_a_name_is_not_made():
    with pytest.raises(CertificateError, match="0 CN"):
        build_ca(S.ca.signer, subject=x509.Name([]), not_before=NOW, not_after=NOW + DAY, serial=1)


# ---------------------------------------------------------------------- DER


def test_der_pieces_are_those_of_x690():
    assert oid("1.3.6.1.4.1.37427.1") == bytes.fromhex("06092b0601040182a43301")
    assert integer(0) == b"\x02\x01\x00"
    assert integer(128) == b"\x02\x02\x00\x80"
    assert tlv(4, bytes(200))[:3] == b"\x04\x81\xc8"
    assert tlv(4, bytes(70000))[:5] == b"\x04\x83\x01\x11\x70"


@given(st.integers(0, 30), st.binary(max_size=70000), st.binary(max_size=4))
def test_der_elements_are_read_back(tag, value, rest):
    assert read_tlv(tlv(tag, value) + rest) == (tag, value, rest)


@given(st.binary(max_size=30))
def test_random_der_gives_an_element_or_the_stated_error(data):
    try:
        tag, value, rest = read_tlv(data)
    except DERError:
        return
    assert tlv(tag, value) + rest == data


def test_the_configuration_pv_has_its_own_extension():
    certificate = build(config_pv="CERT:CONFIG:47530d89:abc")
    assert certificate.extensions.get_extension_for_oid(CONFIG_PV_OID).critical is False
    assert config_pv(certificate) == "CERT:CONFIG:47530d89:abc"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("operator, O=control-room, OU=shift", r"operator\, O=control-room\, OU=shift"),
        ("a+b", r"a\+b"),
        ('say "x"', r"say \"x\""),
        (r"back\slash", r"back\\slash"),
        ("a<b>c;d", r"a\<b\>c\;d"),
        ("#hash", r"\#hash"),
        (" blanks ", r"\ blanks\ "),
        (" ", r"\ "),
        ("line\nend", r"line\0Aend"),
        ("\u202eright to left", r"\E2\80\AEright to left"),
        ("Größe", "Größe"),
    ],
)
def test_a_names_value_is_shown_as_one_value(value, shown):
    """RFC 4514 2.4: who asks for a name cannot have it shown as two parts, or as two lines."""
    assert shown_value(value) == shown
    assert shown_subject([("CN", value), ("OU", ""), ("C", "US")]) == f"CN={shown}, C=US"


def test_a_street_is_shown_by_the_word_of_rfc_4514():
    street = x509.Name([x509.NameAttribute(x509.NameOID.STREET_ADDRESS, "Weg 1, links")])
    assert subject_text(street) == r"STREET=Weg 1\, links"

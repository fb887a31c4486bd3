"""Certificates that somebody else has made: whatever they hold, there is an answer or one of our errors, and no warning.

All warnings are errors here, as pytest is configured.
"""

import base64
import subprocess
import warnings

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, pkcs12
from cryptography.x509.oid import NameOID
from hypothesis import example, given, settings
from hypothesis import strategies as st

from appliance.authn import report, trust
from appliance.authn.sending import cms_only
from appliance.authn.status import verified_chain
from appliance.certmon.status_source import reference
from appliance.certs.keychain import check_keychain, load_keychain, make_keychain
from appliance.certs.ocsp import OCSPSigner, verify_response
from appliance.certs.profiles import check_ca, check_certificate, generate_key
from appliance.certs.signer import KeySigner
from appliance.certs.status import OCSPState
from appliance.certs.x509 import (
    adopt,
    common_name,
    is_ca,
    is_self_signed,
    load_der,
    public_key,
    renew_by,
    san,
    signed_by,
    status_pv,
    subject_key_identifier,
    subject_text,
)
from appliance.errors import ApplianceError, CertificateError, CertificateStatusError
from tests.helpers.pki import DAY, NOW, site

IOC = site().ca.keychain("softioc", "ioc", status=True, san=[("dns", "ioc.example")])
DER = IOC.certificate.public_bytes(Encoding.DER)


def pem(der: bytes) -> bytes:
    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"


def everything_that_is_asked(der: bytes):
    """All that the program does with a certificate which came from elsewhere, one question at a time."""
    ca = site().ca.certificate
    yield lambda: cms_only(None, (der,))
    (found,) = trust.load_pem(pem(der))
    yield lambda: report.dump_lines(found)
    yield lambda: report.anchor_lines(found)
    yield lambda: report.usage_of(found)
    yield lambda: common_name(found.subject) + subject_text(found.issuer)
    yield lambda: (is_ca(found), is_self_signed(found), san(found), status_pv(found), renew_by(found))
    yield lambda: subject_key_identifier(found)
    yield lambda: reference((found, ca))
    yield lambda: verified_chain([found], [ca])
    yield lambda: check_ca(found)
    yield lambda: check_certificate(found, issuer=ca, usage="ioc")
    yield lambda: repr(make_keychain(IOC.key, [found, ca]))
    yield lambda: repr(make_keychain(IOC.key, [IOC.certificate, ca, found]))
    yield lambda: report.details_lines(make_keychain(IOC.key, [found, ca]))
    yield lambda: check_keychain(make_keychain(IOC.key, [found, ca]), now=NOW, usage="client")


def ask(der: bytes) -> None:
    questions = everything_that_is_asked(der)
    while True:
        try:
            question = next(questions)
        except (StopIteration, CertificateError):
            return
        try:
            question()
        except ApplianceError:
            continue


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(DER) - 1), st.integers(0, 255)), min_size=1, max_size=3))
@example([(15, 0x80)]).via("a serial number that is negative")
@example([(DER.index(b"\x13\x02US"), 0x0C), (DER.index(b"\x13\x02US") + 2, 0xFF)]).via(
    "text that is not UTF-8"
)
def test_a_damaged_certificate_gives_only_our_errors(changes):
    data = bytearray(DER)
    for place, byte in changes:
        data[place] = byte
    ask(bytes(data))


STATUS = site().ca.status(IOC.serial)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(STATUS) - 1), st.integers(0, 255)), min_size=1, max_size=3))
def test_a_damaged_status_gives_only_our_error(changes):
    data = bytearray(STATUS)
    for place, byte in changes:
        data[place] = byte
    try:
        verify_response(bytes(data), issuer=site().ca.certificate, serial=IOC.serial, now=NOW)
    except CertificateStatusError:
        return


def odd_ca() -> tuple[PrivateKeyTypes, bytes]:
    """An authority with a name beyond the lengths of RFC 5280, which OpenSSL accepts in what it verifies."""
    key = generate_key("ec-p256")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        name = x509.Name(
            [
                x509.NameAttribute(NameOID.COUNTRY_NAME, "USA", _validate=False),
                x509.NameAttribute(NameOID.COMMON_NAME, "é" * 64, _validate=False),
            ]
        )
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(5)
            .not_valid_before(NOW - DAY)
            .not_valid_after(NOW + DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, SHA256())
        )
    return key, made.public_bytes(Encoding.DER)


def test_names_longer_than_the_standard_has_are_read_without_a_warning():
    _, der = odd_ca()
    assert subject_text(load_der(der).subject) == "C=USA, CN=" + "é" * 64
    ask(der)


def test_a_keychain_reads_names_longer_than_the_standard_has():
    _, der = odd_ca()
    data = pkcs12.serialize_key_and_certificates(
        None, IOC.key, IOC.certificate, [site().ca.certificate, load_der(der)], NoEncryption()
    )
    assert "C=USA" in repr(load_keychain(data))


def test_a_status_of_an_authority_with_a_long_name_is_read_without_a_warning():
    key, der = odd_ca()
    ca = load_der(der)
    status = OCSPSigner(KeySigner(key), ca).sign(7, OCSPState.GOOD, this_update=NOW, next_update=NOW + DAY)
    assert verify_response(status, issuer=load_der(der), serial=7, now=NOW).serial == 7


@pytest.fixture
def odd(tmp_path):
    """Certificates by OpenSSL: one with the serial number 0, and an authority with a Diffie-Hellman key."""

    def openssl(*arguments: object) -> None:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=60)

    key = tmp_path / "ca.key"
    key.write_bytes(site().ca.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    ca = tmp_path / "ca.pem"
    ca.write_bytes(site().ca.certificate.public_bytes(Encoding.PEM))
    openssl(
        "req", "-x509", "-new", "-key", key, "-subj", "/CN=zero", "-set_serial", 0, "-out", tmp_path / "0"
    )
    openssl("genpkey", "-algorithm", "DH", "-pkeyopt", "group:ffdhe2048", "-out", tmp_path / "dh.key")
    openssl("pkey", "-in", tmp_path / "dh.key", "-pubout", "-out", tmp_path / "dh.pub")
    extensions = tmp_path / "extensions"
    extensions.write_text("basicConstraints=critical,CA:TRUE\n")
    openssl(
        "x509", "-new", "-subj", "/CN=softioc", "-force_pubkey", tmp_path / "dh.pub", "-CA", ca, "-CAkey", key,
        "-extfile", extensions, "-days", 2, "-out", tmp_path / "dh",
    )  # fmt: skip
    return tmp_path


@pytest.mark.parametrize("name", ["0", "dh"])
def test_what_the_library_will_drop_one_day_is_read_without_a_warning(odd, name):
    (certificate,) = trust.load_pem((odd / name).read_bytes())
    ask(certificate.public_bytes(Encoding.DER))
    assert public_key(certificate) is not None
    assert not signed_by(IOC.certificate, certificate)


def test_adopted_is_what_was_given():
    assert adopt(IOC.certificate) is IOC.certificate

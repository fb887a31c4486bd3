"""OCSP answers: SPVA specification 7.2, 8.4, 13.1; RFC 6960."""

import subprocess
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.certs.ocsp import OCSPSigner, StatusAnswer, verify_response
from appliance.certs.status import OCSPState
from appliance.errors import CertificateError, CertificateStatusError
from tests.helpers.pki import NOW, Authority, site, write_pem

S = site()
CA = S.ca
MINUTE = timedelta(minutes=1)
SERIAL = S.client.serial


def verify(der, **changes) -> StatusAnswer:
    return verify_response(der, **{"issuer": CA.certificate, "serial": SERIAL, "now": NOW, **changes})


def why(der, **changes) -> str:
    with pytest.raises(CertificateStatusError) as caught:
        verify(der, **changes)
    return str(caught.value)


def foreign(**changes) -> ocsp.OCSPResponseBuilder:
    """An answer made without our signer."""
    arguments = {
        "cert": S.client.certificate,
        "issuer": CA.certificate,
        "algorithm": hashes.SHA1(),
        "cert_status": ocsp.OCSPCertStatus.GOOD,
        "this_update": NOW,
        "next_update": NOW + 30 * MINUTE,
        "revocation_time": None,
        "revocation_reason": None,
    }
    builder = ocsp.OCSPResponseBuilder().add_response(**{**arguments, **changes})
    return builder.responder_id(ocsp.OCSPResponderEncoding.NAME, CA.certificate)


def der(builder, key=CA.key, algorithm=hashes.SHA256()) -> bytes:  # noqa: B008
    return builder.sign(key, algorithm).public_bytes(Encoding.DER)


@pytest.mark.parametrize("state", OCSPState)
@pytest.mark.parametrize("algorithm", ["ec-p256", "rsa-2048", "ec-p384", "ed25519"])
def test_what_is_signed_verifies(state, algorithm):
    ca = CA if algorithm == "ec-p256" else Authority(algorithm=algorithm)
    revoked = NOW - timedelta(days=1)
    signer = OCSPSigner(ca.signer, ca.certificate)
    data = signer.sign(
        2**64 - 1, state, this_update=NOW, next_update=NOW + 30 * MINUTE, revocation_date=revoked
    )
    answer = verify_response(data, issuer=ca.certificate, serial=2**64 - 1, now=NOW + MINUTE)
    assert answer == StatusAnswer(
        state,
        2**64 - 1,
        NOW,
        NOW + 30 * MINUTE,
        revoked if state is OCSPState.REVOKED else None,
        data,
    )


@pytest.mark.parametrize(
    ("state", "printed"),
    [
        (OCSPState.GOOD, "cert.pem: good"),
        (OCSPState.REVOKED, "cert.pem: revoked"),
        (OCSPState.UNKNOWN, "cert.pem: unknown"),
    ],
)
def test_openssl_verifies_what_is_signed(tmp_path, state, printed):
    """openssl asks by SHA-1 CertID, as the peers do."""
    cert, _, ca = write_pem(tmp_path, S.client)
    path = tmp_path / "status.der"
    path.write_bytes(CA.status(SERIAL, state))
    command = [
        "openssl",
        "ocsp",
        "-respin",
        path,
        "-issuer",
        ca,
        "-cert",
        cert,
        "-CAfile",
        ca,
        "-resp_text",
        "-no_nonce",
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, check=False)
    output = done.stdout.decode() + done.stderr.decode()
    assert "Response verify OK" in output
    assert printed in output
    assert "WARNING" not in output
    for line in ("Basic OCSP Response", "Hash Algorithm: sha1", "Signature Algorithm: ecdsa-with-SHA256"):
        assert line in output
    assert "BEGIN CERTIFICATE" in output, "peers look for the CA inside the answer"


def test_what_openssl_signs_is_verified(tmp_path):
    _, _, ca = write_pem(tmp_path, S.client)
    key = tmp_path / "ca.key"
    from cryptography.hazmat.primitives.serialization import NoEncryption, PrivateFormat

    key.write_bytes(CA.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    index = tmp_path / "index.txt"
    index.write_text(f"V\t401231235959Z\t\t{SERIAL:X}\tunknown\t/CN=client\n")
    request, answer = tmp_path / "req.der", tmp_path / "resp.der"
    common = ["-issuer", ca, "-serial", str(SERIAL), "-no_nonce"]
    for command in (
        ["openssl", "ocsp", *common, "-reqout", request],
        ["openssl", "ocsp", "-index", index, "-CA", ca, "-rsigner", ca, "-rkey", key, "-reqin", request,
         "-respout", answer, "-nmin", "30"],
    ):  # fmt: skip
        done = subprocess.run(list(map(str, command)), capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
    # OpenSSL goes by the clock, and NOW may be long ago.
    found = verify(answer.read_bytes(), now=datetime.now(UTC) + MINUTE)
    assert found.state is OCSPState.GOOD


def test_other_certid_hashes_are_understood():
    for algorithm in (hashes.SHA1(), hashes.SHA256(), hashes.SHA384(), hashes.SHA512()):
        assert verify(der(foreign(algorithm=algorithm))).state is OCSPState.GOOD


def test_a_responder_may_be_named_by_its_key():
    builder = ocsp.OCSPResponseBuilder(response=foreign()._response)
    assert (
        verify(der(builder.responder_id(ocsp.OCSPResponderEncoding.HASH, CA.certificate))).state
        is OCSPState.GOOD
    )


def test_an_intermediate_answers_for_what_it_issued():
    below = CA.intermediate()
    data = below.status(7)
    assert verify(data, issuer=below.certificate, serial=7).state is OCSPState.GOOD
    assert "not made by the issuing CA" in why(data, serial=7)


# ---------------------------------------------------------------------- refusals, each with its reason


def test_the_end_is_exact_and_the_beginning_has_leeway():
    """8.4: past its end a status is UNKNOWN whatever it said."""
    data = CA.status(SERIAL)
    assert verify(data, now=NOW + 30 * MINUTE - timedelta(seconds=1))
    assert "a fresh one is needed" in why(data, now=NOW + 30 * MINUTE)
    assert verify(data, now=NOW - MINUTE)
    assert "check the clocks" in why(data, now=NOW - MINUTE - timedelta(seconds=1))
    assert "check the clocks" in why(data, now=NOW - timedelta(seconds=1), leeway=timedelta(0))


def test_answers_about_something_else_are_refused():
    assert f"about serial {SERIAL}, not 5" in why(CA.status(SERIAL), serial=5)
    assert "not made by the issuing CA" in why(S.other_ca.status(SERIAL))
    mixed = foreign(issuer=S.other_ca.certificate)
    assert "a certificate of another CA" in why(der(mixed))


def test_a_ca_of_the_same_name_is_not_the_ca():
    impostor = Authority()
    assert impostor.certificate.subject == CA.certificate.subject
    assert "signature is not that of the CA" in why(impostor.status(SERIAL))
    forged = OCSPSigner(impostor.signer, impostor.certificate)
    forged._certificates = OCSPSigner(CA.signer, CA.certificate)._certificates
    data = forged.sign(SERIAL, OCSPState.GOOD, this_update=NOW, next_update=NOW + MINUTE)
    assert "signature is not that of the CA" in why(data)


def test_a_delegated_responder_is_not_accepted():
    delegate = CA.keychain("cms", "cms")
    builder = ocsp.OCSPResponseBuilder(response=foreign()._response)
    builder = builder.responder_id(ocsp.OCSPResponderEncoding.NAME, delegate.certificate)
    assert "not made by the issuing CA" in why(
        der(builder.certificates([delegate.certificate]), key=delegate.key)
    )


def test_an_answer_without_an_end_is_refused():
    assert "how long it is valid" in why(der(foreign(next_update=None)))


def test_a_weak_signature_hash_is_refused():
    assert "too weak" in why(der(foreign(), algorithm=hashes.SHA224()))


def test_an_unsuccessful_response_is_refused_by_name():
    for status in (ocsp.OCSPResponseStatus.TRY_LATER, ocsp.OCSPResponseStatus.UNAUTHORIZED):
        data = ocsp.OCSPResponseBuilder.build_unsuccessful(status).public_bytes(Encoding.DER)
        assert status.name in why(data)


def test_an_unknown_critical_extension_is_refused():
    odd = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    with pytest.raises(CertificateStatusError):
        verify(der(foreign().add_extension(odd, critical=True)))
    assert verify(der(foreign().add_extension(x509.OCSPNonce(b"12345678"), critical=False)))


def test_emptiness_and_size_are_refused():
    assert "0 bytes" in why(b"")
    assert "65537 bytes" in why(bytes(65537))


def test_several_answers_in_one_response_are_refused(tmp_path):
    """Nothing says which of them counts; openssl makes one here."""
    from cryptography.hazmat.primitives.serialization import NoEncryption, PrivateFormat

    _, _, ca = write_pem(tmp_path, S.client)
    key, index = tmp_path / "ca.key", tmp_path / "index.txt"
    key.write_bytes(CA.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    index.write_text("")
    request, answer = tmp_path / "req.der", tmp_path / "resp.der"
    for command in (
        ["openssl", "ocsp", "-issuer", ca, "-serial", str(SERIAL), "-serial", "5", "-no_nonce", "-reqout", request],
        ["openssl", "ocsp", "-index", index, "-CA", ca, "-rsigner", ca, "-rkey", key, "-reqin", request,
         "-respout", answer, "-nmin", "30"],
    ):  # fmt: skip
        assert subprocess.run(list(map(str, command)), capture_output=True, check=False).returncode == 0
    assert "2 answers" in why(answer.read_bytes(), now=datetime.now(UTC) + MINUTE)


def test_a_status_that_ends_before_it_begins_is_not_signed():
    signer = OCSPSigner(CA.signer, CA.certificate)
    with pytest.raises(CertificateStatusError, match="end before it begins"):
        signer.sign(1, OCSPState.GOOD, this_update=NOW, next_update=NOW)
    with pytest.raises(CertificateStatusError, match="end before it begins"):
        signer.sign(1, OCSPState.GOOD, this_update=NOW, next_update=NOW + timedelta(milliseconds=900))
    with pytest.raises(CertificateStatusError, match="cannot be signed"):
        signer.sign(-1, OCSPState.GOOD, this_update=NOW, next_update=NOW + MINUTE)


def test_a_signer_needs_the_cas_own_key_and_hides_it():
    with pytest.raises(CertificateError, match="does not belong"):
        OCSPSigner(S.other_ca.signer, CA.certificate)
    assert "PrivateKey" not in repr(OCSPSigner(CA.signer, CA.certificate))


GOOD = CA.status(SERIAL)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=400))
def test_random_bytes_give_only_the_stated_error(data):
    with pytest.raises(CertificateStatusError):
        verify(data)


@settings(max_examples=500, deadline=None)
@given(place=st.integers(0, len(GOOD) - 1), bit=st.integers(0, 7))
def test_no_changed_bit_gets_another_meaning_through(place, bit):
    """Bits outside of what is signed may differ; what the answer says may not."""
    data = bytearray(GOOD)
    data[place] ^= 1 << bit
    try:
        answer = verify(bytes(data))
    except CertificateStatusError:
        return
    assert answer._replace(der=b"") == verify(GOOD)._replace(der=b"")

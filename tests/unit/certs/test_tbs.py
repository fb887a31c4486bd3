"""What is signed is written without the key: the same octets as `cryptography` writes, with any signer."""

import subprocess
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.certs import profiles, tbs
from appliance.certs.ocsp import OCSPSigner
from appliance.certs.profiles import (
    EXTENDED_KEY_USAGES,
    build_ca,
    build_certificate,
    build_request,
    finish_certificate,
    generate_key,
    prepare_certificate,
    subject_name,
)
from appliance.certs.signer import SIGNATURES, KeySigner
from appliance.certs.status import OCSPState
from appliance.certs.x509 import CONFIG_PV_OID, RENEW_BY_OID, STATUS_PV_OID, encode_pv_name, encode_time
from appliance.errors import CertificateError, CertificateStatusError
from tests.helpers.pki import DAY, NOW, Authority

ALGORITHMS = ("ec-p256", "ec-p384", "rsa-2048", "ed25519")
AUTHORITIES = {algorithm: Authority(algorithm=algorithm) for algorithm in ALGORITHMS}
KEYS = {algorithm: generate_key(algorithm).public_key() for algorithm in ALGORITHMS}
HASHES = {"ec-p384": hashes.SHA384(), "ed25519": None}
CA = AUTHORITIES["ec-p256"]

TEXT = st.text(st.characters(codec="utf-8", categories=("L", "N", "P")), min_size=1, max_size=16)
MOMENTS = st.datetimes(datetime(1960, 1, 1), datetime(2200, 1, 1)).map(lambda d: d.replace(tzinfo=UTC))  # noqa: DTZ001 - made aware
PV_NAMES = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=127)


def name_of(**parts: str) -> x509.Name:
    return subject_name(parts.pop("CN"), **parts)


NAMES = st.builds(
    name_of,
    CN=TEXT,
    organization=TEXT,
    organizational_unit=TEXT | st.just(""),
    country=st.sampled_from(["", "US"]),
)
GENERAL_NAMES = st.lists(
    st.sampled_from(
        [("dns", "ioc.example"), ("ip", "192.0.2.7"), ("ip", "2001:db8::1"), ("uri", "spiffe://x/y")]
    ),
    max_size=4,
)


@settings(max_examples=300, deadline=None)
@given(
    algorithm=st.sampled_from(ALGORITHMS),
    key=st.sampled_from(ALGORITHMS),
    subject=NAMES,
    usage=st.sampled_from(list(EXTENDED_KEY_USAGES)),
    begin=st.integers(0, 3000).map(lambda seconds: NOW - timedelta(seconds=seconds)),
    left=st.integers(1, 3000 * 86400).map(lambda seconds: NOW + timedelta(seconds=seconds)),
    serial=st.integers(1, 2**64 - 1),
    status_pv=st.none() | PV_NAMES,
    config_pv=st.none() | PV_NAMES,
    renews=st.booleans(),
    names=GENERAL_NAMES,
    raw=st.booleans(),
)
def test_a_certificate_has_the_octets_that_cryptography_writes(
    algorithm, key, subject, usage, begin, left, serial, status_pv, config_pv, renews, names, raw
):
    ca, public = AUTHORITIES[algorithm], KEYS[key]
    due = left if renews else None
    body = prepare_certificate(
        ca.issuer,
        subject=subject,
        public_key=public,
        usage=usage,
        not_before=begin,
        not_after=left,
        serial=serial,
        status_pv=status_pv,
        config_pv=config_pv,
        renew_by=due,
        san=names,
        raw_pv_names=raw,
    )
    identifier = x509.SubjectKeyIdentifier.from_public_key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(ca.certificate.subject)
        .public_key(public)
        .serial_number(serial)
        .not_valid_before(begin)
        .not_valid_after(left)
        .add_extension(
            x509.AuthorityKeyIdentifier(identifier(ca.key.public_key()).digest, None, None), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(profiles._key_usage(*profiles._key_bits(public)), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage(sorted(EXTENDED_KEY_USAGES[usage], key=lambda o: o.dotted_string)),
            critical=False,
        )
        .add_extension(identifier(public), critical=False)
    )
    if names:
        builder = builder.add_extension(
            x509.SubjectAlternativeName(profiles._general_names(names)), critical=False
        )
    for oid, value in (
        (STATUS_PV_OID, status_pv and encode_pv_name(status_pv, raw=raw)),
        (CONFIG_PV_OID, config_pv and encode_pv_name(config_pv, raw=raw)),
        (RENEW_BY_OID, due and encode_time(due)),
    ):
        if value:
            builder = builder.add_extension(x509.UnrecognizedExtension(oid, value), critical=False)
    judge = builder.sign(ca.key, HASHES.get(algorithm, hashes.SHA256()))
    assert body == judge.tbs_certificate_bytes
    # Where the signature is no random number, the whole is the same.
    ours = finish_certificate(body, ca.signer.algorithm, ca.signer.sign(body))
    ours.verify_directly_issued_by(ca.certificate)
    if algorithm in ("rsa-2048", "ed25519"):
        assert ours.public_bytes(Encoding.DER) == judge.public_bytes(Encoding.DER)


@settings(max_examples=200, deadline=None)
@given(begin=MOMENTS, length=st.integers(1, 10**9), subject=NAMES)
def test_dates_of_any_year_are_written_as_cryptography_writes_them(begin, length, subject):
    end = begin + timedelta(seconds=length)
    key = KEYS["ec-p256"]
    body = tbs.certificate_body(
        "ed25519",
        serial=1,
        issuer=subject.public_bytes(),
        not_before=begin,
        not_after=end,
        subject=subject.public_bytes(),
        key=tbs.encoded_key(key),
        extensions=[
            tbs.extension(x509.BasicConstraints.oid, x509.BasicConstraints(False, None).public_bytes())
        ],
    )
    judge = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key)
        .serial_number(1)
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(False, None), critical=False)
        .sign(AUTHORITIES["ed25519"].key, None)
    )
    assert body == judge.tbs_certificate_bytes


@settings(max_examples=200, deadline=None)
@given(
    algorithm=st.sampled_from(ALGORITHMS),
    state=st.sampled_from(OCSPState),
    serial=st.integers(1, 2**64 - 1),
    length=st.integers(1, 10**8),
    revoked=MOMENTS,
    chained=st.booleans(),
)
def test_an_answer_has_the_octets_that_cryptography_writes(
    algorithm, state, serial, length, revoked, chained
):
    ca = AUTHORITIES[algorithm]
    chain = (CA.certificate,) if chained else ()
    signer = OCSPSigner(ca.signer, ca.certificate, chain)
    statuses = {
        OCSPState.GOOD: ocsp.OCSPCertStatus.GOOD,
        OCSPState.REVOKED: ocsp.OCSPCertStatus.REVOKED,
        OCSPState.UNKNOWN: ocsp.OCSPCertStatus.UNKNOWN,
    }
    name_hash = hashes.Hash(hashes.SHA1())
    name_hash.update(ca.certificate.subject.public_bytes())
    # It says "made now" by its own clock; so "now" is when it is true.
    judge = (
        ocsp.OCSPResponseBuilder(
            responder_id=(ca.certificate, ocsp.OCSPResponderEncoding.NAME), certs=[ca.certificate, *chain]
        )
        .add_response_by_hash(
            issuer_name_hash=name_hash.finalize(),
            issuer_key_hash=x509.SubjectKeyIdentifier.from_public_key(ca.key.public_key()).digest,
            serial_number=serial,
            algorithm=hashes.SHA1(),
            cert_status=statuses[state],
            this_update=NOW,
            next_update=NOW + timedelta(seconds=length),
            revocation_time=revoked.replace(microsecond=0) if state is OCSPState.REVOKED else None,
            revocation_reason=None,
        )
        .sign(ca.key, HASHES.get(algorithm, hashes.SHA256()))
    )
    body = signer.prepare(
        serial, state, this_update=NOW, next_update=NOW + timedelta(seconds=length), revocation_date=revoked
    )
    made = f"{judge.produced_at_utc:%Y%m%d%H%M%SZ}".encode()
    when = f"{NOW:%Y%m%d%H%M%SZ}".encode()
    expected = judge.tbs_response_bytes.replace(made, when, 1)
    assert body == expected
    whole = judge.public_bytes(Encoding.DER)
    assert signer.finish(judge.tbs_response_bytes, judge.signature) == whole


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_openssl_reads_a_request_for_an_authority(tmp_path, algorithm):
    ca = AUTHORITIES[algorithm]
    subject = subject_name("Lab Issuing", organization="lab", country="US")
    der = build_request(ca.signer, subject=subject, path_length=0)
    done = subprocess.run(
        ["openssl", "req", "-inform", "DER", "-noout", "-text", "-verify"],
        input=der,
        capture_output=True,
        check=False,
    )
    text = done.stdout.decode() + done.stderr.decode()
    assert done.returncode == 0, text
    assert "self-signature verify OK" in text
    for line in (
        "CN = Lab Issuing",
        "X509v3 Basic Constraints: critical",
        "CA:TRUE, pathlen:0",
        "Certificate Sign, CRL Sign",
    ):
        assert line in text
    read = x509.load_der_x509_csr(der)
    assert read.is_signature_valid
    assert read.public_key() == ca.key.public_key()


def test_a_request_for_a_name_that_no_certificate_may_have_is_not_made():
    odd = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, "a"), x509.NameAttribute(NameOID.LOCALITY_NAME, "b")]
    )
    with pytest.raises(CertificateError, match="only CN, C, O and OU"):
        build_request(CA.signer, subject=odd)


@pytest.mark.parametrize("above", ALGORITHMS)
@pytest.mark.parametrize("below", ALGORITHMS)
def test_an_authority_of_any_kind_signs_one_of_any_kind(tmp_path, above, below):
    """Only the public half of the lower one is used: its private half may be in a token somewhere else."""
    root, lower = AUTHORITIES[above], AUTHORITIES[below]

    class PublicHalf(KeySigner):
        def sign(self, body):
            raise AssertionError

    made = build_ca(
        PublicHalf(lower.key),
        subject=subject_name("Below"),
        not_before=NOW - DAY,
        not_after=NOW + DAY,
        serial=5,
        issuer=root.issuer,
        path_length=0,
    )
    made.verify_directly_issued_by(root.certificate)
    assert made.public_key() == lower.key.public_key()
    paths = [tmp_path / name for name in ("root.pem", "below.pem")]
    for path, certificate in zip(paths, (root.certificate, made), strict=True):
        path.write_bytes(certificate.public_bytes(Encoding.PEM))
    done = subprocess.run(
        ["openssl", "verify", "-x509_strict", "-CAfile", *map(str, paths)], capture_output=True, check=False
    )
    assert done.stdout.endswith(b": OK\n"), done.stderr


class Recording(KeySigner):
    """Keeps what it was asked to sign."""

    def __init__(self, key):
        super().__init__(key)
        self.asked = []

    def sign(self, body):
        self.asked.append(body)
        return super().sign(body)


def arguments(**changes):
    return {
        "subject": subject_name("client"),
        "public_key": KEYS["ec-p256"],
        "usage": "client",
        "not_before": NOW - DAY,
        "not_after": NOW + DAY,
        "serial": 7,
        **changes,
    }


def test_only_what_was_checked_is_signed_and_only_once(monkeypatch):
    signer = Recording(CA.key)
    checked = []
    check = profiles.check_certificate

    def note(certificate, **more):
        checked.append(certificate.tbs_certificate_bytes)
        check(certificate, **more)

    monkeypatch.setattr(profiles, "check_certificate", note)
    certificate = build_certificate(CA.issuer._replace(signer=signer), **arguments())
    assert signer.asked == checked == [certificate.tbs_certificate_bytes]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"not_after": NOW + 9999 * DAY}, "outlive its CA"),
        ({"public_key": CA.key.public_key()}, "its key is the CA's"),
        ({"not_before": datetime(1940, 1, 1, tzinfo=UTC)}, "dates before 1950"),
        ({"subject": x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, " x")])}, "blanks at its ends"),
        ({"renew_by": NOW + 2 * DAY}, "outside the validity"),
        ({"serial": 1 << 64}, "serial number must be"),
    ],
    ids=["too-long", "own-key", "too-early", "blanks", "renew-by", "serial"],
)
def test_nothing_is_signed_that_breaks_the_profile(changes, why):
    signer = Recording(CA.key)
    with pytest.raises(CertificateError, match=why):
        build_certificate(CA.issuer._replace(signer=signer), **arguments(**changes))
    assert signer.asked == []


def test_no_authority_is_signed_that_breaks_the_profile():
    signer = Recording(CA.key)
    blank = x509.Name([])
    for changes, why in (
        ({"subject": blank}, "0 CN"),
        ({"not_before": datetime(1940, 1, 1, tzinfo=UTC)}, "1950"),
    ):
        more = {
            "subject": subject_name("x"),
            "not_before": NOW,
            "not_after": NOW + DAY,
            "serial": 1,
            **changes,
        }
        with pytest.raises(CertificateError, match=why):
            build_ca(signer, **more)
    assert signer.asked == []


def test_an_answer_about_an_impossible_serial_is_not_made():
    with pytest.raises(CertificateStatusError, match="cannot be signed"):
        OCSPSigner(CA.signer, CA.certificate).prepare(
            -1, OCSPState.GOOD, this_update=NOW, next_update=NOW + DAY
        )


# ---------------------------------------------------------------------- signers


def test_a_key_in_memory_signs_at_once_and_never_shows_itself():
    signer = KeySigner(CA.key)
    assert (signer.is_quick, signer.trouble, signer.algorithm) == (True, "", "ecdsa-sha256")
    assert repr(signer) == "<KeySigner ecdsa-sha256>"
    assert set(SIGNATURES) == {KeySigner(ca.key).algorithm for ca in AUTHORITIES.values()}


def test_keys_that_cannot_sign_certificates_are_refused():
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    with pytest.raises(CertificateError, match="cannot sign with a key of the type X25519PublicKey"):
        KeySigner(X25519PrivateKey.generate())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("serial", [1, 127, 128, (1 << 63) + 5], ids=["1", "127", "128", "64-bits"])
def test_parts_of_a_certificate_are_found_where_the_library_finds_them(algorithm, serial):
    certificate = build_certificate(CA.issuer, **arguments(public_key=KEYS[algorithm], serial=serial))
    found = tbs.parts(certificate.tbs_certificate_bytes)
    assert found.serial == certificate.serial_number
    assert found.issuer == certificate.issuer.public_bytes()
    assert found.subject == certificate.subject.public_bytes()
    assert found.key == tbs.encoded_key(certificate.public_key())


@pytest.mark.parametrize("other", ["serial", "subject", "key"])
def test_a_certificate_that_was_written_for_somebody_else_is_not_acceptable(other):
    names = {"subject": subject_name("client"), "key": KEYS["ec-p256"], "serial": 7}
    given = {**names, other: {"serial": 8, "subject": subject_name("admin"), "key": KEYS["ed25519"]}[other]}
    certificate = build_certificate(CA.issuer, **arguments())

    def check(serial, subject, key):
        holder = profiles.Holder(serial, subject, subject.public_bytes(), key, tbs.encoded_key(key))
        profiles.check_certificate(certificate, issuer=CA.certificate, usage="client", holder=holder)

    check(**names)
    with pytest.raises(CertificateError, match="is not the one that it was made for"):
        check(**given)

"""One look at a status: believed as far as it is signed, and printed in the blocks of the quick start."""

from datetime import UTC, datetime, timedelta

import pytest

from appliance.authn.report import (
    anchor_lines,
    details_lines,
    dump_lines,
    status_facts,
    status_lines,
    usage_of,
)
from appliance.authn.status import find_issuer, read_status, verified_chain
from appliance.certs.keychain import make_keychain
from appliance.certs.ocsp import OCSPSigner
from appliance.certs.profiles import build_certificate, generate_key, subject_name
from appliance.certs.status import CertState, ocsp_state
from appliance.errors import CertificateStatusError
from appliance.pvdata import INT32, StructType, Value
from tests.helpers.cert_status import encode_status
from tests.helpers.pki import DAY, NOW, site

S = site()
SERIAL = S.client.serial
HALF_HOUR = timedelta(minutes=30)


def told(state, *, signed=None, serial=SERIAL, signer=S.ca, at=NOW):
    """A status PV's value: ``state`` beside an OCSP answer that says ``signed``."""
    der = OCSPSigner(signer.signer, signer.certificate).sign(
        serial,
        ocsp_state(signed or state),
        this_update=at,
        next_update=at + HALF_HOUR,
        revocation_date=at,
    )
    return encode_status(state, serial, der, this_update=at, next_update=at + HALF_HOUR)


def verdict(value, *, issuer=S.ca.certificate, now=NOW, certificate=None):
    return read_status(value, issuer=issuer, serial=SERIAL, now=now, certificate=certificate)


@pytest.mark.parametrize("state", [s for s in CertState if s is not CertState.UNKNOWN])
def test_what_the_authority_signed_is_believed(state):
    found = verdict(told(state))
    assert (found.state, found.verified, found.why) == (state, True, "")


FORGED = {
    "no-signature": told(CertState.VALID).clone(),
    "other-signer": told(CertState.VALID, signer=S.other_ca),
    "other-serial": told(CertState.VALID, serial=SERIAL + 1),
    "run-out": told(CertState.VALID, at=NOW - timedelta(hours=1)),
    "from-the-future": told(CertState.VALID, at=NOW + timedelta(hours=1)),
    "rubbish": told(CertState.VALID).clone(),
}
FORGED["no-signature"]["ocsp_response"] = []
FORGED["rubbish"]["ocsp_response"] = list(b"rubbish")


@pytest.mark.parametrize("case", FORGED)
def test_without_a_good_signature_nothing_is_believed(case):
    found = verdict(FORGED[case])
    assert found.state is CertState.UNKNOWN
    assert found.claimed is CertState.VALID
    assert not found.verified
    assert found.why
    assert status_facts(found)["issued"] is None


def test_without_an_authority_nothing_is_believed():
    found = verdict(told(CertState.VALID), issuer=None)
    assert (found.state, found.verified) == (CertState.UNKNOWN, False)
    assert "no known trust anchor" in found.why


def test_a_word_can_only_make_less_of_what_is_signed():
    assert verdict(told(CertState.VALID, signed=CertState.REVOKED)).state is CertState.REVOKED
    assert verdict(told(CertState.VALID, signed=CertState.PENDING)).state is CertState.UNKNOWN
    assert verdict(told(CertState.EXPIRED, signed=CertState.VALID)).state is CertState.EXPIRED


def test_the_certificates_own_end_counts():
    old = S.ca.expired().certificate
    assert verdict(told(CertState.VALID), certificate=old).state is CertState.EXPIRED


def test_a_pv_that_is_no_status_is_called_so():
    with pytest.raises(CertificateStatusError, match="not a status PV"):
        verdict(Value(StructType([("x", INT32)])))


def test_an_intermediate_counts_only_below_an_anchor():
    below = S.ca.intermediate()
    foreign = S.other_ca.intermediate()
    chain = verified_chain([below.certificate, foreign.certificate, S.client.certificate], [S.ca.certificate])
    assert chain == (below.certificate,)
    assert find_issuer(below.issuer_id, chain) == below.certificate
    assert find_issuer(foreign.issuer_id, chain) is None
    assert verified_chain([S.other_ca.certificate], [S.ca.certificate]) == ()


def quick_start():
    """The certificate of the quick start, byte for byte where it shows."""
    certificate = build_certificate(
        S.ca.issuer,
        subject=subject_name("softioc", organization="localhost"),
        public_key=(key := generate_key("ec-p256")).public_key(),
        usage="server",
        not_before=datetime(2025, 3, 8, 15, 23, 21, tzinfo=UTC),
        not_after=datetime(2025, 3, 9, 15, 23, 9, tzinfo=UTC),
        serial=3826361579604613180,
    )
    return make_keychain(key, [certificate, S.ca.certificate])


def test_the_details_are_printed_as_in_the_quick_start():
    assert "\n".join(details_lines(quick_start())) == (
        "Certificate Details:\n"
        "============================================\n"
        f"Certificate ID : {S.ca.issuer_id}:3826361579604613180\n"
        "Entity Subject : CN=softioc, O=localhost\n"
        "Issuer Subject : CN=EPICS Root Certificate Authority, C=US, O=certs.epics.org, OU=EPICS Certificate Authority\n"
        "Valid From     : Sat Mar 08 15:23:21 2025 UTC\n"
        "Expires On     : Sun Mar 09 15:23:09 2025 UTC\n"
        "--------------------------------------------"
    )


def test_the_status_is_printed_as_in_the_quick_start():
    at = datetime(2025, 3, 8, 15, 47, 14, tzinfo=UTC)
    found = verdict(told(CertState.VALID, at=at), now=at)
    assert "\n".join(status_lines("47530d89:3826361579604613180", found)) == (
        "Certificate Status:\n"
        "============================================\n"
        "Certificate ID: 47530d89:3826361579604613180\n"
        "Status        : VALID\n"
        "Status Issued : Sat Mar 08 15:47:14 2025 UTC\n"
        "Status Expires: Sat Mar 08 16:17:14 2025 UTC\n"
        "--------------------------------------------"
    )
    revoked = status_lines("i:1", verdict(told(CertState.REVOKED, at=at), now=at))
    assert revoked[-2] == "Revocation Date: Sat Mar 08 15:47:14 2025 UTC"


def test_unsigned_text_of_a_service_cannot_play_with_the_terminal():
    value = told(CertState.VALID, signer=S.other_ca)
    value["ocsp_status_date"] = "\x1b[2J\nStatus        : VALID"
    lines = status_lines("i:1", verdict(value))
    assert all(line.isprintable() for line in lines)
    assert [line for line in lines if line.startswith("Status        ")] == ["Status        : UNKNOWN"]


def test_a_dump_names_what_is_in_the_certificate():
    keychain = S.ca.keychain(
        "full",
        "ioc",
        status=True,
        config_pv="CERT:CONFIG:x",
        renew_by=NOW + DAY / 2,
        san=[("dns", "ioc.lab")],
    )
    text = "\n".join(dump_lines(keychain.certificate))
    for part in (
        "EC secp256r1",
        "(ioc)",
        "dns=ioc.lab",
        keychain.status_pv,
        "CERT:CONFIG:x",
        "Renew By",
        "CA             : no",
    ):
        assert part in text
    assert "Renew By       : " in "\n".join(details_lines(keychain))
    assert "Config URI     : CERT:CONFIG:x" in details_lines(keychain)
    assert any(line.startswith("Fingerprint    : sha256:") for line in anchor_lines(S.ca.certificate))
    assert [usage_of(k.certificate) for k in (S.client, S.server, S.ioc)] == ["client", "server", "ioc"]
    assert usage_of(S.ca.certificate) == "ca"

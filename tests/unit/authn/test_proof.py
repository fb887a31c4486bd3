"""The proof of possession in a request: for every kind of key, over every field, and for a while only."""

import pytest

from appliance.authn.ccr import CertRequest
from appliance.authn.proof import FRESH_S, MAX_PROOF, check_proof, make_proof
from appliance.certs.profiles import KEY_ALGORITHMS, generate_key
from appliance.errors import CertificateError

REQUEST = CertRequest("std", "client", "PEM", "alice", "CH", "lab", "shift", 1, 2, "CERT", no_status=False)
KEYS = {algorithm: generate_key(algorithm) for algorithm in KEY_ALGORITHMS}
EC = KEYS["ec-p256"]


@pytest.mark.parametrize("algorithm", KEY_ALGORITHMS)
def test_every_kind_of_key_proves_its_possession_and_no_other_key_does(algorithm):
    key = KEYS[algorithm]
    proof = make_proof(REQUEST, key, made=1000, token="t")
    assert len(proof) <= MAX_PROOF
    assert check_proof(proof, REQUEST, key.public_key(), now=1000, token="t")
    with pytest.raises(CertificateError, match="false"):
        check_proof(proof, REQUEST, generate_key(algorithm).public_key(), now=1000, token="t")


@pytest.mark.parametrize(
    "change",
    [
        {"type": "jwt"}, {"usage": "server"}, {"pub_key": "PEN"}, {"name": "alic"}, {"country": "US"},
        {"organization": "labs"}, {"organizational_unit": ""}, {"not_before": 0}, {"not_after": 3},
        {"config_uri_base": ""}, {"no_status": True}, {"name": "alicelab", "organization": ""},
        {"organization": "labshift", "organizational_unit": ""},
    ],
    ids=str,
)  # fmt: skip
def test_every_field_is_sealed(change):
    proof = make_proof(REQUEST, EC, made=1000)
    with pytest.raises(CertificateError, match="false"):
        check_proof(proof, REQUEST._replace(**change), EC.public_key(), now=1000)
    with pytest.raises(CertificateError, match="false"):
        check_proof(proof, REQUEST, EC.public_key(), now=1000, token="another")


@pytest.mark.parametrize(
    ("age", "good"), [(0, True), (FRESH_S, True), (FRESH_S + 1, False), (-FRESH_S - 1, False)]
)
def test_a_proof_counts_for_a_while_only(age, good):
    proof = make_proof(REQUEST, EC, made=10_000)
    assert check_proof(proof, REQUEST, EC.public_key(), now=10_000 + age) is good


@pytest.mark.parametrize("proof", ["", "2.1.x", "x"])
def test_no_proof_and_one_of_a_later_version_prove_nothing(proof):
    assert not check_proof(proof, REQUEST, EC.public_key(), now=0)


@pytest.mark.parametrize(
    "proof", ["1", "1.", "1.-1.AA", "1.1.", "1.1.####", "1.9999999999999.AA", "1.1." + "A" * 3000]
)
def test_rubbish_is_refused(proof):
    with pytest.raises(CertificateError):
        check_proof(proof, REQUEST, EC.public_key(), now=1)


def test_the_time_of_the_proof_cannot_be_changed():
    version, _, signature = make_proof(REQUEST, EC, made=1000).split(".")
    with pytest.raises(CertificateError, match="false"):
        check_proof(f"{version}.5000.{signature}", REQUEST, EC.public_key(), now=5000)

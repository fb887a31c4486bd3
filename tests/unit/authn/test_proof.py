"""The proof of possession in a request: for every kind of key, over every field, and for a while only."""

import pytest

from appliance.authn.ccr import CertRequest
from appliance.authn.proof import FRESH_S, MAX_PROOF, UsedProofs, check_proof, make_proof
from appliance.certs.profiles import KEY_ALGORITHMS, generate_key
from appliance.certs.san import San
from appliance.certs.schedule import Window
from appliance.cms.nodes import BEAT_S, SILENT_S
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


NAMED = REQUEST._replace(
    schedule=(Window("1", 480, 1020), Window("2", 480, 1020)), time_zone="Europe/Berlin",
    san=(San("dns", "ioc7.lab"), San("ip", "10.0.0.7")),
)  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"name": "alic"}, {"schedule": ()}, {"schedule": NAMED.schedule[:1]}, {"time_zone": ""}, {"san": ()},
        {"san": NAMED.san[:1]}, {"san": (*NAMED.san, San("dns", "a"))}, {"san": (San("dns", "10.0.0.7"), NAMED.san[0])},
        {"schedule": (Window("1", 480, 1021), NAMED.schedule[1])}, {"schedule": (), "time_zone": "", "san": ()},
    ],
    ids=str,
)  # fmt: skip
def test_schedule_and_alternative_names_are_sealed(change):
    proof = make_proof(NAMED, EC, made=1000)
    assert proof.startswith("2.1000.")
    assert check_proof(proof, NAMED, EC.public_key(), now=1000)
    # Their order means nothing.
    turned = NAMED._replace(schedule=NAMED.schedule[::-1], san=NAMED.san[::-1])
    assert check_proof(proof, turned, EC.public_key(), now=1000)
    with pytest.raises(CertificateError, match="false"):
        check_proof(proof, NAMED._replace(**change), EC.public_key(), now=1000)


@pytest.mark.parametrize("part", ["schedule", "time_zone", "san"])
def test_a_proof_that_leaves_them_out_proves_nothing_beside_them(part):
    """Somebody on the way adds names to a request whose proof an older requester made."""
    proof = make_proof(REQUEST, EC, made=1000)
    assert proof.startswith("1.1000.")
    added = REQUEST._replace(**{part: getattr(NAMED, part)})
    assert check_proof(proof, added, EC.public_key(), now=1000) is False
    for version in "12":
        renamed = f"{version}{make_proof(added, EC, made=1000)[1:]}"
        assert (version == "2") is check_proof(renamed, added, EC.public_key(), now=1000)


@pytest.mark.parametrize(
    ("age", "good"), [(0, True), (FRESH_S, True), (FRESH_S + 1, False), (-FRESH_S - 1, False)]
)
def test_a_proof_counts_for_a_while_only(age, good):
    proof = make_proof(REQUEST, EC, made=10_000)
    assert check_proof(proof, REQUEST, EC.public_key(), now=10_000 + age) is good


@pytest.mark.parametrize("proof", ["", "3.1.x", "x"])
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


def test_a_request_whose_answer_was_lost_may_be_sent_until_its_node_is_known_to_be_dead():
    used = UsedProofs()
    proof = make_proof(REQUEST, EC, made=1000)
    for after_s in (0.0, SILENT_S / 2, SILENT_S, SILENT_S + BEAT_S):
        assert check_proof(proof, REQUEST, EC.public_key(), now=1000 + after_s, used=used)


def test_a_proof_counts_once_whatever_its_signature_looks_like():
    used = UsedProofs(most=2)

    def good(made, *, now=1000.0):
        # A key of an elliptic curve makes another signature each time.
        return check_proof(make_proof(REQUEST, EC, made=made), REQUEST, EC.public_key(), now=now, used=used)

    assert good(1000)
    # Who asks twice in one second signs the same twice.
    assert good(1000, now=1014.0)
    assert not good(1000, now=1016.0)
    # Wherever the clock goes.
    assert not good(1000, now=980.0)
    assert good(1001)
    # One that is not fresh is not remembered, so a stranger's old ones push nothing out.
    assert not good(1002, now=9000.0)
    assert not good(1000, now=1100.0)
    assert good(1002, now=1100.0)
    assert good(1003, now=1100.0)
    assert len(used._seen) == 2

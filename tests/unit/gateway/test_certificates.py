"""Which requests to a certificate service a gateway passes on as its own."""

from __future__ import annotations

import numpy as np
import pytest

from appliance.gateway.certificates import CertificateNames
from appliance.pva import commands as c
from appliance.pvdata.types import INT32, STRING, UINT8, UINT16, ArrayType, StructType, TypeDesc
from appliance.pvdata.value import Value
from tests.helpers.cms import KEY_PEM, ccr, jwt_request

PEER = "192.0.2.7:40000"


def refusal(
    name: str, command: int, argument: Value | None = None, *, as_gateway: bool = False, relay: bool = True
) -> str:
    names = CertificateNames(["CERT"], ("CERT:CREATE", "CERT:STATUS") if relay else ())
    assert names.covers(name)
    return names.refuses(name, command, argument, PEER, as_gateway=as_gateway)


def test_names_are_covered_with_what_follows_a_colon_and_nothing_else() -> None:
    names = CertificateNames(["SITE"], ("LAB:CERT:CREATE",))
    for name in (
        "SITE:CREATE",
        "SITE:STATUS:0123abcd:1",
        "SITE:LIST",
        "SITE:LIST:0123abcd",
        "LAB:CERT:CREATE",
    ):
        assert names.covers(name), name
    undecoded = "SITE:STATUS:0123abcd:00000000000000000001"
    assert names.covers(f"\x16{chr(len(undecoded))}{undecoded}"), "the service answers to it"
    for name in ("SITE:ROOT", "SITE:STATUSES", "SITE:CREATED", "CERT:CREATE", "SITE", ""):
        assert not names.covers(name), name
    assert names.relays("LAB:CERT:CREATE:0123abcd")
    assert not names.relays("SITE:CREATE"), "covered even where the relay is for other names"


@pytest.mark.parametrize("command", [c.CMD_GET, c.CMD_MONITOR, c.CMD_GET_FIELD])
def test_reading_passes(command: int) -> None:
    assert refusal("CERT:STATUS:0123abcd:1", command, as_gateway=True) == ""


@pytest.mark.parametrize("command", [c.CMD_PUT, c.CMD_PUT_GET, c.CMD_PROCESS, c.CMD_RPC])
@pytest.mark.parametrize("as_gateway", [True, False])
def test_what_an_administrator_does_never_counts_as_the_gateways_act(command: int, as_gateway: bool) -> None:
    for name in ("CERT:STATUS:0123abcd:1", "CERT:LIST", "CERT:SCHEDULE", "CERT:SCHEDULE:0123abcd"):
        why = refusal(name, command, as_gateway=as_gateway)
        assert "needs TLS from you to the certificate service itself" in why
    assert "the gateway's relay passes your connection on" in refusal("CERT:STATUS:0123abcd:1", command)
    assert "this gateway has no relay" in refusal("CERT:STATUS:0123abcd:1", command, relay=False)


def test_a_token_and_a_key_under_the_gateways_identity_are_not_passed_on() -> None:
    token = jwt_request("secret.secret.secret")
    for as_gateway in (True, False):
        why = refusal("CERT:CREATE", c.CMD_RPC, token, as_gateway=as_gateway)
        assert "needs TLS from you" in why
        assert "secret" not in why
    assert "needs TLS from you" in refusal("CERT:CREATE:0123abcd", c.CMD_RPC, ccr("gateway"), as_gateway=True)
    names = CertificateNames(["CERT"])
    assert names.refuses("CERT:CREATE", c.CMD_RPC, ccr("one"), PEER, as_gateway=True, plain=True) == ""
    assert names.refuses("CERT:CREATE", c.CMD_RPC, token, PEER, as_gateway=True, plain=True)
    assert names.refuses("CERT:CREATE", c.CMD_RPC, None, PEER, as_gateway=True, plain=True)


def test_the_trust_anchor_passes_to_the_service() -> None:
    for as_gateway in (True, False):
        assert refusal("CERT:CREATE", c.CMD_RPC, ccr(pub_key=""), as_gateway=as_gateway) == ""


def test_what_is_no_request_is_not_passed_on_under_the_gateways_identity() -> None:
    nonsense = Value(StructType((("query", INT32),)), {"query": 1})
    for argument in (None, nonsense):
        assert refusal("CERT:CREATE", c.CMD_RPC, argument) == "", "the service says what is wrong"
        assert "the request" in refusal("CERT:CREATE", c.CMD_RPC, argument, as_gateway=True)


@pytest.mark.parametrize(
    "secret", [("krb", "token", ArrayType(UINT8)), ("ldap", "password", STRING), ("std", "token", STRING)]
)
def test_secrets_of_other_authenticators_are_not_passed_on_either(secret: tuple[str, str, TypeDesc]) -> None:
    kind, field, type_ = secret
    verifier = StructType(((field, type_),))
    text = (
        ("type", STRING),
        ("name", STRING),
        ("pub_key", STRING),
        ("usage", UINT16),
        ("verifier", verifier),
    )
    value = Value(StructType((("query", StructType(text)),)))
    value.assign({"query": {"type": kind, "name": "eve", "pub_key": KEY_PEM, "usage": 1}})
    value[f"query.verifier.{field}"] = np.array([1, 2], "u1") if kind == "krb" else "s3cret"
    why = refusal("CERT:CREATE", c.CMD_RPC, value)
    assert "needs TLS from you" in why
    assert "s3cret" not in why


def test_requests_without_a_secret_pass_where_the_gateway_proves_nothing_and_each_host_has_its_share() -> (
    None
):
    names = CertificateNames(["CERT"])
    for _ in range(10):
        assert names.refuses("CERT:CREATE", c.CMD_RPC, ccr(), PEER, as_gateway=False) == ""
    assert "rate limited" in names.refuses("CERT:CREATE", c.CMD_RPC, ccr(), PEER, as_gateway=False)
    assert names.refuses("CERT:CREATE", c.CMD_RPC, ccr(), "192.0.2.8:1", as_gateway=False) == ""

"""The certificate creation request on the wire, and answers that are not what they should be (specification 9.1, 9.2)."""

import pytest

from appliance.authn.ccr import (
    MAX_PEM_CHARS,
    REPLY_TYPE,
    CertReply,
    CertRequest,
    parse_request,
    read_reply,
    request_type,
    request_value,
)
from appliance.certs.status import CertState
from appliance.errors import RemoteError, RequestRefused
from appliance.pvdata import INT32, STRING, UINT64, StructType, Value

SECRET = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0.c2VjcmV0"


def test_a_standard_request_has_the_fields_of_the_peers_in_their_order():
    query = request_type().members["query"]
    assert [name for name, _ in query.fields] == [
        "type", "name", "country", "organization", "organization_unit", "usage", "not_before", "not_after",
        "pub_key", "config_uri_base", "no_status", "verifier", "schedule", "san",
    ]  # fmt: skip


@pytest.mark.parametrize(("usage", "number"), [("client", 1), ("server", 2), ("ioc", 3)])
def test_the_service_reads_what_the_requester_wrote(usage, number):
    request = CertRequest(
        "jwt", usage, "PEM", "n", "CH", "o", "u", 1, 2, "CERT", no_status=True, verifier={"token": SECRET}
    )
    value = request_value("CERT:CREATE", request)
    assert value["path"] == "CERT:CREATE"
    assert value["query.usage"] == number
    read = parse_request(value)
    assert read == request


def test_what_would_have_no_effect_is_refused_and_an_empty_field_is_not():
    query = dict(request_type().fields)["query"]
    more = StructType(
        [*query.fields, ("not_afer", UINT64), ("limits", StructType([("hours", UINT64)])), ("note", STRING)]
    )
    kind = StructType([("path", STRING), ("query", more)])
    value = Value(kind, {"query": {"pub_key": "PEM", "usage": 1}})
    assert parse_request(value).pub_key == "PEM"
    for field, content, hint in (
        ("not_afer", 5, "did you mean not_after"), ("limits.hours", 5, "known are .*schedule"), ("note", "x", "no effect here"),
    ):  # fmt: skip
        asks = Value(kind, {"query": {"pub_key": "PEM", "usage": 1}})
        asks[f"query.{field}"] = content
        with pytest.raises(RequestRefused, match=hint):
            parse_request(asks)


def test_a_request_shows_no_proof_in_its_repr():
    request = CertRequest("jwt", "client", "PEM", "n", verifier={"token": SECRET})
    assert SECRET not in repr(request)
    assert SECRET not in f"{request}"


def test_an_answer_is_read():
    value = Value(REPLY_TYPE, {"cert": "PEM", "state": "VALID", "issuer": "ABCD0123", "serial": 7})
    reply = read_reply(value)
    assert reply == CertReply(CertState.VALID, "abcd0123", 7, "PEM", "")
    of_others = StructType([("cert", STRING), ("state", STRING)])
    assert read_reply(Value(of_others, {"cert": "PEM", "state": "VALID"})).knows_zones is False


@pytest.mark.parametrize(
    "value",
    [
        None,
        Value(StructType([])),
        Value(StructType([("cert", INT32)]), {"cert": 3}),
        Value(StructType([("cert", STRING)]), {"cert": "x" * (MAX_PEM_CHARS + 1)}),
        Value(StructType([("cert", STRING), ("state", STRING)]), {"state": "x" * 65}),
        Value(StructType([("cert", STRING), ("state", STRING)]), {"state": "VALID"}),
    ],
    ids=["nothing", "empty", "number", "huge", "long-state", "neither certificate nor number"],
)
def test_an_answer_that_is_none_is_a_clear_error(value):
    with pytest.raises(RemoteError, match="certificate service"):
        read_reply(value)


def test_a_state_of_a_later_version_is_unknown_and_odd_serials_are_nothing():
    kind = StructType([("cert", STRING), ("state", STRING), ("serial", STRING)])
    reply = read_reply(Value(kind, {"cert": "c", "state": "FROZEN", "serial": "seven"}))
    assert (reply.state, reply.serial) == (CertState.UNKNOWN, 0)

"""The rules that EPICS Base gets for Channel Access, judged by EPICS Base itself, beside our own verdict."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.acf import AccessSecurity, Principal, load_acf
from appliance.errors import AccessFileError
from appliance.ioc.ca_rules import rules_for_channel_access
from tests.helpers.aslib_oracle import AsLib

LOCAL, REMOTE = "here:pv", "there:pv"
HOSTS = ["10.0.0.1", "127.0.0.1", "192.168.1.7"]
CLAIMS = ["alice", "bob", "mallory", "x509/alice", "role/shift", "ca/bob", "anonymous"]
CONDITIONS = [
    "UAG(people)", "UAG(proved)", "UAG(people, proved)", "UAG(empty)", "HAG(near)", "HAG(unknown)", "SAG(iocs)",
    "METHOD(ca)", "METHOD(x509)", "METHOD(x509, ca)", "METHOD(anonymous)", "AUTHORITY(SITE)", "PROTOCOL(tls)",
    "PROTOCOL(tcp)", "PROTOCOL(tcp, tls)", 'CALC("A=1")', 'CALC("B=1")', 'CALC("A=1 && B=1")', 'CALC("C=1")', 'CALC("B#1")',
]  # fmt: skip
HEAD = """
AUTHORITY(SITE, "EPICS Root Certificate Authority")
UAG(people) { alice, "ca/bob" }
UAG(proved) { "x509/alice", "role/shift" }
UAG(empty)
HAG(near) { 10.0.0.1, 127.0.0.1 }
HAG(unknown) { "no.such.host.invalid" }
SAG(iocs) { DNS(ioc1) }
"""


@pytest.fixture(scope="module")
def aslib() -> Iterator[AsLib]:
    with AsLib() as oracle:
        yield oracle


def load(text: str) -> AccessSecurity:
    return load_acf(text, resolve=lambda host: [])


@st.composite
def files(draw: Any) -> str:
    lines = [HEAD]
    for asg in draw(st.lists(st.sampled_from(["DEFAULT", "ONE", "TWO WORDS"]), unique=True)):
        lines.append(f'ASG("{asg}") {{ INPA("{LOCAL}") INPB("{REMOTE}")')
        for _ in range(draw(st.integers(0, 4))):
            access = draw(st.sampled_from(["NONE", "READ", "WRITE", "RPC"]))
            trap = draw(st.sampled_from(["", ", TRAPWRITE"]))
            body = draw(
                st.lists(st.sampled_from(CONDITIONS), max_size=3, unique_by=lambda text: text.split("(")[0])
            )
            lines.append(
                f"RULE({draw(st.integers(0, 2))}, {access}{trap})"
                + (f" {{ {' '.join(body)} }}" if body else "")
            )
        lines.append("}")
    return "\n".join(lines)


_value = st.sampled_from([None, 0.0, 1.0, 2.0])


@settings(max_examples=200, deadline=None)
@given(
    files(),
    st.lists(
        st.tuples(
            st.sampled_from(["DEFAULT", "ONE", "TWO WORDS", "undefined"]),
            st.integers(0, 1),
            st.sampled_from(CLAIMS),
            st.sampled_from(HOSTS),
            _value,
            _value,
        ),
        min_size=1,
        max_size=12,
    ),
)
def test_channel_access_never_gets_more_than_a_claim_over_tcp_and_without_foreign_inputs_the_same(
    aslib: AsLib, text: str, questions: list[Any]
) -> None:
    security = load(text)
    given_rules = rules_for_channel_access(security, lambda name: name == LOCAL)
    answers = aslib.ask(
        given_rules, [(asg, asl, user, host, {"A": here}) for asg, asl, user, host, here, _ in questions]
    )
    assert answers is not None, f"EPICS Base refuses\n{given_rules}"
    for (asg, asl, user, host, here, there), (access, trap) in zip(questions, answers, strict=True):
        principal = Principal(account=user, method="ca", host=host, protocol="tcp")
        ours = security.decide(asg, asl, principal, {"A": here, "B": there})
        allowed = 2 if ours.write else 1 if ours.read else 0
        assert access <= allowed, (user, host, asg, given_rules)
        unknown = security.decide(asg, asl, principal, {"A": here, "B": None})
        if "/" not in user:
            assert access == (2 if unknown.write else 1 if unknown.read else 0), (
                user,
                host,
                asg,
                given_rules,
            )
            assert not (access == 2 and unknown.trapwrite) or trap, "what must be logged is logged"


def test_who_claims_a_name_with_a_slash_is_nobody(aslib: AsLib) -> None:
    security = load(HEAD + "ASG(DEFAULT) { RULE(1, WRITE) { UAG(proved) } }")
    rules = rules_for_channel_access(security, lambda _: True)
    questions = [("DEFAULT", 0, user, "10.0.0.1", {}) for user in ("x509/alice", "role/shift", "alice")]
    assert aslib.ask(rules, questions) == [[0, 0]] * 3


def test_what_a_later_rule_for_rpc_has_logged_is_logged(aslib: AsLib) -> None:
    security = load("ASG(DEFAULT) { RULE(1, WRITE) RULE(1, RPC, TRAPWRITE) }")
    rules = rules_for_channel_access(security, lambda _: True)
    assert aslib.ask(rules, [("DEFAULT", 0, "alice", "10.0.0.1", {})]) == [[2, 1]]


def test_without_a_file_everybody_may_do_everything(aslib: AsLib) -> None:
    rules = rules_for_channel_access(AccessSecurity.unrestricted(), lambda _: True)
    assert aslib.ask(rules, [("ANY", 1, "mallory", "10.9.9.9", {})]) == [[2, 0]]
    nobody = rules_for_channel_access(AccessSecurity({}), lambda _: True)
    assert aslib.ask(nobody, [("ANY", 0, "mallory", "10.9.9.9", {})]) == [[0, 0]]


@pytest.mark.parametrize("name", ['a\\"b', "a\tb"])
def test_a_group_whose_name_epics_base_cannot_read_is_refused(name: str) -> None:
    security = AccessSecurity({name: load("ASG(x) { RULE(1, READ) }").group("x")._replace(name=name)})
    with pytest.raises(AccessFileError, match="rename it"):
        rules_for_channel_access(security, lambda _: True)

"""The classic language against EPICS Base's own access security library."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.acf import Principal, load_acf
from appliance.errors import AccessFileError
from tests.helpers.aslib_oracle import AsLib


@pytest.fixture(scope="module")
def aslib():
    with AsLib() as oracle:
        yield oracle


USERS = ["alice", "bob", "carol", "Dave"]
HOSTS = ["ioc1", "console", "10.0.0.1", "Archiver.example.org"]
UAGS = ["ops", "engineers", "nobody"]
HAGS = ["room", "field", "nowhere"]
CALCS = ["A=1", "A", "B>A", "A&&B", "(A+B)/2", "A?B:0", "!A", "B-A=1"]

_users = st.lists(st.sampled_from(USERS), min_size=1, max_size=3, unique=True)
_hosts = st.lists(st.sampled_from(HOSTS), min_size=1, max_size=3, unique=True)


@st.composite
def acf(draw):
    lines = [f"UAG({name}) {{{', '.join(draw(_users))}}}" for name in UAGS[:2]]
    lines += [f"HAG({name}) {{{', '.join(draw(_hosts))}}}" for name in HAGS[:2]]
    lines += ["UAG(nobody)", "HAG(nowhere) # empty"]
    for asg in draw(st.lists(st.sampled_from(["DEFAULT", "ONE", "TWO"]), unique=True)):
        lines.append(f'ASG({asg}) {{\n INPA(some:pv)\n INPB("other:pv")')
        for _ in range(draw(st.integers(0, 4))):
            trap = draw(st.sampled_from(["", ",TRAPWRITE", ",NOTRAPWRITE"]))
            rule = (
                f" RULE({draw(st.integers(0, 2))},{draw(st.sampled_from(['NONE', 'READ', 'WRITE']))}{trap})"
            )
            body = []
            if draw(st.booleans()):
                body.append(f"UAG({','.join(draw(st.lists(st.sampled_from(UAGS), min_size=1, max_size=2)))})")
            if draw(st.booleans()):
                body.append(f"HAG({','.join(draw(st.lists(st.sampled_from(HAGS), min_size=1, max_size=2)))})")
            if draw(st.booleans()):
                body.append(f'CALC("{draw(st.sampled_from(CALCS))}")')
            lines.append(rule + (" {\n" + "\n".join(body) + "}" if body else ""))
        lines.append("}")
    return "\n".join(lines)


_value = st.sampled_from([None, 0.0, 0.5, 0.995, 1.0, 1.2, 2.0, -1.0])
_question = st.tuples(
    st.sampled_from(["DEFAULT", "ONE", "TWO", "unknown"]),
    st.integers(0, 2),
    st.sampled_from([*USERS, "mallory"]),
    st.sampled_from([*HOSTS, "elsewhere"]),
    st.fixed_dictionaries({"A": _value, "B": _value}),
)


@settings(max_examples=250, deadline=None)
@given(acf(), st.lists(_question, min_size=1, max_size=12))
def test_every_decision_agrees_with_epics_base(aslib, text, questions):
    base = aslib.ask(text, questions)
    assert base is not None, text
    security = load_acf(text)
    for (asg, asl, user, host, inputs), (access, trap) in zip(questions, base, strict=True):
        who = Principal(account=user, method="ca", host=host)
        decision = security.decide(asg, asl, who, inputs)
        assert (decision.read + decision.write, decision.trapwrite) == (access, bool(trap)), (
            text,
            who,
            inputs,
        )
        assert decision.rpc is False


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("ASG(DEFAULT)", True),
        ("ASG(DEFAULT) ASG(DEFAULT) {RULE(1,READ)}", True),
        ("ASG(DEFAULT) {RULE(1,READ)} ASG(DEFAULT)", False),
        ("ASG(A) ASG(A)", False),
        ("UAG(A) {x} UAG(A) {y}", False),
        ("HAG(A) {x} HAG(A) {y}", False),
        ("UAG(A) {}", False),
        ("ASG(A) {}", False),
        ("ASG(A) {RULE(1,READ) {}}", False),
        ("UAG(A) {x,}", False),
        ("UAG(A) {x y}", False),
        ("UAG(A) {role/x}", False),
        ('UAG(A) {"role/x"}', True),
        ("ASG(A) {RULE(1,READ) {UAG(x)}}", False),
        ("ASG(A) {RULE(1,READ) {HAG(x)}}", False),
        ("ASG(A) {RULE(READ)}", False),
        ("ASG(A) {RULE(x,READ)}", False),
        ("ASG(A) {RULE(1,READ,MAYBE)}", False),
        ("ASG(A) {RULE(1,READ,TRAPWRITE)}", True),
        ('ASG(A) {INPA(p) RULE(1,READ) {CALC("A:=1")}}', False),
        ('ASG(A) {INPA(p) RULE(1,READ) {CALC("A=")}}', False),
        ("ASG(A) {INPA(p) RULE(1,READ) {CALC(A)}}", True),
        ("ASG(A) {INPU(p)}", True),
        ("ASG(A) {INPV(p)}", False),
        ('ASG("A B") {RULE(0,NONE)}', True),
        ('UAG("a', False),
        ('UAG("a\nb")', False),
        ("UAG(A) {b} garbage", False),
        ("", False),
        ("# only a comment\n", False),
        ("ASG(A) {RULE(-1,READ)}", False),
        ("ASG(A) { # comment }\n RULE(1,READ) }", True),
        ("UAG(A)\t{\r\n x }", True),
    ],
)
def test_files_that_epics_base_refuses_are_refused(aslib, text, valid):
    assert (aslib.ask(text) is not None) is valid
    try:
        load_acf(text)
    except AccessFileError:
        assert not valid
    else:
        assert valid


@pytest.mark.parametrize(
    ("text", "inputs", "base", "ours"),
    [
        ('ASG(A) {RULE(1,WRITE) {CALC("1")}}', {}, 0, 2),
        ('ASG(A) {INPA(p) RULE(1,WRITE) {CALC("A=1 && B=0")}}', {"A": 1.0}, 2, 0),
        ("ASG(A) {RULE(1,READ) RULE(1,WRITE) {FUTURE(x)}}", {}, 1, None),
        ("FUTURE(x) {y} ASG(A) {RULE(1,READ)}", {}, 1, None),
        ("ASG(A) {RULE(1,READ) {UAG(u)}} UAG(u) {alice}", {}, None, 1),
    ],
)
def test_differences_that_the_reference_page_names_are_as_it_says(aslib, text, inputs, base, ours):
    answer = aslib.ask(text, [("A", 0, "alice", "host", inputs)])
    assert (answer and answer[0][0]) == base
    if ours is None:
        with pytest.raises(AccessFileError):
            load_acf(text)
    else:
        decision = load_acf(text).decide("A", 0, Principal("alice", "ca", host="host"), inputs)
        assert decision.read + decision.write == ours

"""Reading the classic form: what is accepted, and where errors are said to be."""

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.acf import AccessSecurity, Principal, load_acf
from appliance.acf.lexer import MAX_TEXT
from appliance.errors import AccessFileError
from tests.helpers.turns import lines_run


@pytest.mark.parametrize(
    ("text", "line", "column", "why"),
    [
        ("GENERIC(a)", 1, 1, "unknown keyword 'GENERIC'"),
        ("ASG(A)\n  uag(b) {c}", 2, 3, "UAG"),
        ("ASG(A) {\n RULE(1,READ) {\n  FUTURE(x)\n }\n}", 3, 3, "unknown keyword 'FUTURE' in a RULE"),
        ("ASG(A) {\n  INPV(x)\n}", 2, 3, "unknown keyword 'INPV'"),
        ("ASG(A) {\n  UAG(x)\n}", 2, 3, "unknown keyword 'UAG' in ASG"),
        ("ASG(A) {\n RULE(1,READ)\nASG(B) {}", 3, 1, r"'ASG' in ASG\(A\) \(a '}' is missing before it"),
        ("ASG(A) {\n RULE(1,READ) {\n UAG(x)\n RULE(1,WRITE)\n}", 4, 2, "a '}' is missing before it"),
        ("ASG(A) { RULE(1, EXECUTE) }", 1, 18, "NONE, READ, WRITE or RPC, not 'EXECUTE'"),
        ("ASG(A) { RULE(1, write) }", 1, 18, "write WRITE"),
        ("ASG(A) { RULE(1, PUT) }", 1, 18, "not 'PUT'"),
        ("ASG(A) { RULE(one, READ) }", 1, 15, "whole number"),
        ("ASG(A) { RULE(-1, READ) }", 1, 15, "not -1"),
        ("ASG(A) { RULE(99999999999, READ) }", 1, 15, "whole number"),
        ("ASG(A) { RULE(1, READ, LOG) }", 1, 24, "TRAPWRITE"),
        ("ASG(A) { RULE(1, READ) { PROTOCOL(udp) } }", 1, 35, "tls or tcp"),
        ('ASG(A) { RULE(1, READ) { METHOD("") } }', 1, 33, "METHOD needs a name"),
        ("ASG(A) { RULE(1, READ) { UAG(B) } }", 1, 30, r"UAG\(B\) is not defined"),
        ("ASG(A) { RULE(1, READ) { HAG(B) } }", 1, 30, r"HAG\(B\) is not defined"),
        ("ASG(A) { RULE(1, READ) { SAG(B) } }", 1, 30, r"SAG\(B\) is not defined"),
        ("ASG(A) { RULE(1, READ) { AUTHORITY(B) } }", 1, 36, "AUTHORITY B is not declared"),
        ('ASG(A) { RULE(1, READ) { CALC("A=") } }', 1, 31, "operand is missing"),
        ("ASG(A) { RULE(1, READ) { CALC(A=1) } }", 1, 31, "quotes"),
        ('ASG(A) { RULE(1, READ) { CALC("A") CALC("B") } }', 1, 41, "one CALC"),
        ("ASG(A) { INPA(x) INPA(y) }", 1, 18, "INPA is given twice"),
        ('ASG(A) { INPA("") }', 1, 10, "name of a PV"),
        ("UAG(A) {x}\nUAG(A) {y}", 2, 1, "defined twice"),
        ("ASG(A)\nASG(A)", 2, 1, "defined twice"),
        ("ASG(DEFAULT) {RULE(1,READ)}\nASG(DEFAULT)", 2, 1, "defined twice"),
        ('AUTHORITY(A, "x")\nAUTHORITY(A, "y")', 2, 1, "defined twice"),
        ('AUTHORITY("a") {AUTHORITY("x")} AUTHORITY("b") {AUTHORITY("x")}\nASG(A) {RULE(1,READ){AUTHORITY("x")}}',
         2, 32, "more than one"),
        ('AUTHORITY("")', 1, 1, "common name"),
        ('UAG("")', 1, 1, "needs a name"),
        ('UAG(A) {x, ""}', 1, 12, "empty user"),
        ("UAG(A) {role/x}", 1, 9, "quotes"),
        ("UAG(A) {x@y}", 1, 9, "quotes"),
        ('UAG(A) {"CN=bob,L=lab"}', 1, 9, "conditions on a certificate"),
        ("UAG(A) {x y}", 1, 11, "expected ',' or '}' after 'x', found 'y'"),
        ("UAG(A) {x,}", 1, 11, "expected a user name"),
        ("UAG(A) {}", 1, 9, "expected a user name"),
        ("UAG(A) {x", 1, 10, "the end of the file"),
        ("UAG A", 1, 5, r"expected '\(' after UAG"),
        ("UAG(A", 1, 6, "the end of the file"),
        ('UAG("A)\n', 1, 5, "not closed"),
        ("ASG(A) {\n\n   é }", 3, 4, "not allowed outside quotes"),
        ("ASG(A) {RULE(1,READ) {}}", 1, 23, "expected one of UAG"),
        ("SAG(A) {10.0.0.1}", 1, 9, "IP, DNS"),
        ("SAG(A) {IP(10.0.0.256)}", 1, 12, "neither an IP address"),
        ("SAG(A) {IP(10.0.0.0/33)}", 1, 12, "neither an IP address"),
        ("SAG(A) {IP(2001:db8::/32)}", 1, 12, "IPv6 networks"),
        ("SAG(A) {DNS(a b)}", 1, 15, "expected"),
        ('SAG(A) {DNS("a b")}', 1, 13, "DNS name"),
        ("SAG(A) {IP()}", 1, 12, "expected an address"),
        ("ASG(A) # x\n{ RULE(1, $(LEVEL)) }", 2, 11, "macro 'LEVEL' is not defined"),
        ("ASG(A) { RULE(1, ${LEVEL }", 1, 18, r"not closed|not defined"),
        ("ASG($(LONG)) {\n} ", 2, 1, "expected one of RULE"),
        ("ASG($(LONG)) x", 1, 14, "unknown keyword 'x'"),
    ],
)  # fmt: skip
def test_an_error_has_its_place_and_its_reason(text, line, column, why):
    with pytest.raises(AccessFileError, match=why) as caught:
        load_acf(text, file="some.acf", macros={"LONG": "A_rather_long_name_for_a_group"})
    assert (caught.value.file, caught.value.line, caught.value.column) == ("some.acf", line, column)
    assert str(caught.value).startswith(f"some.acf:{line}:{column}: ")


@pytest.mark.parametrize("text", ["", "  \n", "# nothing\n", "\ufeff"])
def test_a_file_that_defines_nothing_is_refused(text):
    with pytest.raises(AccessFileError, match="defines nothing"):
        load_acf(text)


def test_everything_that_the_grammar_has_is_read():
    security = load_acf("""
        # a comment with $(UNDEFINED) and "quotes
        AUTHORITY(ROOT, "Root CA") { AUTHORITY("Unnamed") { AUTHORITY(LEAF, "Leaf CA") } }
        UAG(u) {alice, "bob smith", 123, UAG}   UAG(empty)
        HAG(h) {HOST.example.org, 10.0.0.1, "a b"}   HAG(none)
        SAG(s) {IP(10.0.0.0/8), DNS(*.x.org), DNS("y.org")}   SAG(void)
        ASG(DEFAULT)
        ASG("a group") {
            INPA("$(P=SYS):MODE") INPU(other.VAL)
            RULE(0, NONE)
            RULE(+1, RPC, NOTRAPWRITE) {
                UAG(u, empty) UAG(empty) HAG(h) SAG(s) METHOD(ca, "x509") AUTHORITY(LEAF, "Root CA") PROTOCOL(tls)
                CALC("A=1")
            }
        }
    """)
    assert security.uags["u"] == {"alice", "bob smith", "123", "UAG"}
    assert security.hags["h"] == {"host.example.org", "10.0.0.1", "a b"}
    assert security.sags["s"] == (("10.0.0.0/8",), ("*.x.org", "y.org"))
    assert security.authorities["LEAF"].path == ("Root CA", "Unnamed", "Leaf CA")
    group = security.groups["a group"]
    assert dict(group.inputs) == {"A": "SYS:MODE", "U": "other.VAL"}
    rule = group.rules[1]
    assert (rule.level, rule.access, rule.trapwrite, rule.line) == (1, "RPC", False, 11)
    assert (rule.uags, rule.hags, rule.sags) == (("u", "empty"), ("h",), ("s",))
    assert (rule.methods, rule.protocols) == (("ca", "x509"), ("tls",))
    assert [ref.path for ref in rule.authorities] == [("Root CA", "Unnamed", "Leaf CA"), ("Root CA",)]
    assert security.warnings == ()


def test_groups_may_be_defined_after_the_rules_that_name_them():
    security = load_acf("ASG(A) {RULE(1,READ) {UAG(u)}} UAG(u) {x}")
    assert security.decide("A", 0, Principal("x", "ca")).read


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ('ASG(A) {RULE(1,READ) {METHOD("krb5")}}', "METHOD 'krb5'"),
        ('ASG(A) {RULE(1,READ) {AUTHORITY("Some CA")}}', "'Some CA' is not declared"),
        ('ASG(A) {RULE(1,READ) {CALC("VAL>=0")}}', "VAL"),
        ('ASG(A) {RULE(1,READ) {CALC("A")}}', "INPA"),
        ('ASG(A) {RULE(1,NONE) {PROTOCOL("TCP")}}', "takes nothing away"),
        ("UAG(A) {x, x}", "twice"),
    ],
)
def test_what_is_legal_but_odd_is_a_warning(text, warning):
    (found,) = load_acf(text).warnings
    assert warning in found


@pytest.mark.parametrize(
    ("text", "macros", "user"),
    [
        ("UAG(u) {$(USER)}", {"USER": "bob"}, "bob"),
        ("UAG(u) {${USER}}", {"USER": "bob"}, "bob"),
        ("UAG(u) {$(USER=eve)}", {}, "eve"),
        ("UAG(u) {$(USER=eve)}", {"USER": "bob"}, "bob"),
        ("UAG(u) {${USER=$(OTHER)}}", {"OTHER": "ann"}, "ann"),
        ("UAG(u) {${USER=${OTHER=zed}}}", {}, "zed"),
        ('UAG(u) {"$(FIRST) $(LAST)"}', {"FIRST": "a", "LAST": "b"}, "a b"),
        ("UAG(u) {$(A)}", {"A": "$(B)", "B": "deep"}, "deep"),
        ("UAG(u) {$($(WHICH))}", {"WHICH": "B", "B": "chosen"}, "chosen"),
        ("UAG(u) {$(USER=)x}", {}, "x"),
        ('UAG(u) {"a$b"}', {}, "a$b"),
    ],
)
def test_macros_are_expanded(text, macros, user):
    assert load_acf(text, macros=macros).uags["u"] == {user}


def test_macros_that_never_end_are_refused():
    with pytest.raises(AccessFileError, match="without end"):
        load_acf("UAG(u) {$(A)}", macros={"A": "$(B)", "B": "$(A)"})
    with pytest.raises(AccessFileError, match="without end"), lines_run() as work:
        load_acf("UAG(u) {$(A25)}", macros={f"A{i}": f"$(A{i - 1})" * 2 if i else "" for i in range(26)})
    assert work.lines < 10_000_000, "a part of the 67 million expansions"
    with pytest.raises(AccessFileError, match="expand to more"):
        load_acf(
            "UAG(u) {$(A9)}", macros={f"A{i}": f"$(A{i - 1})" * 10 if i else "x" * 100 for i in range(10)}
        )


def test_quotes_and_comments_do_not_confuse_macros():
    security = load_acf('UAG(u) {"a#$(X)"} # $(NOT\nUAG(v) {"\\"$(X)"}', macros={"X": "1"})
    assert security.uags["u"] == {"a#1"}
    assert security.uags["v"] == {'\\"1'}


def test_a_file_that_is_too_large_is_refused_at_once():
    with pytest.raises(AccessFileError, match="larger"):
        load_acf("#" * (MAX_TEXT + 1))


def test_authorities_nest_only_so_deep():
    with pytest.raises(AccessFileError, match="deep"):
        load_acf("AUTHORITY(a) {" * 50 + "}" * 50)


def test_a_large_file_is_read_and_judged_quickly():
    users = ", ".join(f"user{i}" for i in range(2000))
    groups = "\n".join(
        f"ASG(G{i}) {{ RULE(1,READ) RULE(1,WRITE) {{ UAG(all) METHOD(ca) }} }}" for i in range(2000)
    )
    with lines_run() as work:
        security = load_acf(f"UAG(all) {{ {users} }}\n{groups}")
        for i in range(2000):
            assert security.decide(f"G{i}", 0, Principal("user7", "ca")).write
    assert work.lines < 4_000_000, "a thousand lines for each group, and not a look at all groups"


_words = st.sampled_from(
    ["UAG", "HAG", "SAG", "ASG", "RULE", "CALC", "METHOD", "AUTHORITY", "PROTOCOL", "INPA", "IP", "DNS", "(", ")", "{", "}",
     ",", "x", "1", "READ", "WRITE", "RPC", "NONE", "TRAPWRITE", "tls", "x509", '"A=1"', '"', "#", "\n", "$(M)", "$(N=", "\\", " "]
)  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(
    st.lists(_words, max_size=40).map(" ".join)
    | st.lists(_words, max_size=40).map("".join)
    | st.text(max_size=80)
)
def test_any_text_is_an_access_security_file_or_an_access_file_error(text):
    with contextlib.suppress(AccessFileError):
        assert isinstance(load_acf(text, macros={"M": "m"}), AccessSecurity)

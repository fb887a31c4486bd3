"""The gateway's pvlist, and its expressions in bounded time."""

import contextlib
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.acf import PVList
from appliance.acf.match import glob_match
from appliance.acf.pattern import MAX_NAME, Pattern
from appliance.errors import AccessFileError
from tests.helpers.turns import lines_run

SITE = r"""
EVALUATION ORDER ALLOW, DENY
# everything may be read
.*                 ALLOW
CAM:[0-9]+:Image.* DENY
BEAM:.*            ALLOW CANWRITE
BEAM:.*            DENY FROM 10.0.0.66
BEAM:.*            deny from 10.0.0.67 10.0.0.68
RING:.*            DENY 10.0.0.66
BEAM:L1:.*         allow RESTRICTED 1
X(.*)              ALIAS Y\1 CANWRITE
OLD                ALIAS NEW
a:([^:]*):b:([^:]*) ALIAS A:\2:B:\1 SWAPPED 1
BACK(.)            ALIAS \\\1
"""


@pytest.mark.parametrize(
    ("name", "host", "answer"),
    [
        ("other", "10.0.0.1", ("other", "DEFAULT", 0)),
        ("CAM:17:ImageMode", "10.0.0.1", None),
        ("CAM:x:ImageMode", "10.0.0.1", ("CAM:x:ImageMode", "DEFAULT", 0)),
        ("BEAM:CURRENT", "10.0.0.1", ("BEAM:CURRENT", "CANWRITE", 0)),
        ("BEAM:CURRENT", "10.0.0.66", None),
        ("BEAM:CURRENT", "::ffff:10.0.0.66", None),
        ("BEAM:CURRENT", "10.0.0.68", None),
        ("RING:X", "10.0.0.66", None),
        ("RING:X", "10.0.0.67", ("RING:X", "DEFAULT", 0)),
        ("BEAM:L1:X", "10.0.0.1", ("BEAM:L1:X", "RESTRICTED", 1)),
        ("Xthing", "10.0.0.1", ("Ything", "CANWRITE", 0)),
        ("X", "10.0.0.1", ("Y", "CANWRITE", 0)),
        ("OLD", "10.0.0.1", ("NEW", "DEFAULT", 0)),
        ("OLDER", "10.0.0.1", ("OLDER", "DEFAULT", 0)),
        ("a:one:b:two", "10.0.0.1", ("A:two:B:one", "SWAPPED", 1)),
        ("BACK1", "10.0.0.1", ("\\1", "DEFAULT", 0)),
        ("other\n", "10.0.0.1", None),
        ("x" * (MAX_NAME + 1), "10.0.0.1", None),
    ],
)
def test_a_name_is_looked_up_as_gateways_do(name, host, answer):
    pvlist = PVList(SITE)
    for _ in range(2):
        assert pvlist.lookup(name, host) == answer


def test_without_text_every_name_is_served():
    assert PVList().lookup("any", "1.2.3.4") == ("any", "DEFAULT", 0)


def test_what_nothing_matches_is_denied():
    assert PVList("A ALLOW").lookup("B", "1.2.3.4") is None
    assert PVList("").lookup("B", "1.2.3.4") is None


def test_a_denial_wins_wherever_it_stands():
    for lines in ("A.* DENY\nA.* ALLOW", "A.* ALLOW\nA.* DENY"):
        assert PVList(lines).lookup("AB", "1.2.3.4") is None


def test_a_denied_link_local_address_is_denied_on_every_interface_unless_it_names_one():
    names = PVList(".* ALLOW\nA DENY FROM fe80::1\nB DENY FROM fe80::2%eth0\n")
    for host in ("fe80::1", "fe80::1%eth0", "FE80:0::1%eth1"):
        assert names.lookup("A", host) is None
        assert names.lookup("B", host) is not None
    assert names.lookup("B", "fe80::2%eth0") is None
    assert names.lookup("B", "fe80::2%eth1") is not None
    assert names.lookup("B", "fe80::2") is not None


def test_denied_hosts_are_resolved_and_one_that_cannot_be_is_an_error():
    pvlist = PVList("A DENY FROM badhost\nA ALLOW", resolve={"badhost": ["10.0.0.9", "::1"]}.get)
    assert pvlist.lookup("A", "10.0.0.9") is None
    assert pvlist.lookup("A", "0:0::1") is None
    assert pvlist.lookup("A", "10.0.0.8") is not None
    for resolve in (None, lambda _: []):
        with pytest.raises(AccessFileError, match=r"f:2:14: host 'badhost' has no address"):
            PVList("# x\nA  DENY FROM badhost", file="f", resolve=resolve)


def test_the_order_that_is_not_supported_is_said_and_does_not_widen():
    pvlist = PVList("EVALUATION ORDER DENY, ALLOW\nA DENY\nA ALLOW", file="f")
    assert pvlist.lookup("A", "1.2.3.4") is None
    assert pvlist.warnings[0].startswith("f:1:1: EVALUATION ORDER DENY, ALLOW is not supported")
    assert PVList("evaluation order allow,deny\nA ALLOW").warnings == ()


@pytest.mark.parametrize(
    ("line", "warned"), [(".* DENY", True), (".* DENY FROM 10.0.0.1", False), ("A.* DENY", False)]
)
def test_a_line_that_denies_all_names_is_a_warning(line, warned):
    warnings = PVList(f"A ALLOW\n{line}", file="f").warnings
    assert [warning.partition(",")[0] for warning in warnings] == [
        "f:2:1: this line denies all names"
    ] * warned


@pytest.mark.parametrize(
    ("line", "column", "why"),
    [
        ("A", 1, "expected ALLOW"),
        ("A PERMIT", 3, "found 'PERMIT'"),
        ("A ALLOW G 2", 11, "0 or 1"),
        ("A ALLOW G x", 11, "0 or 1"),
        ("A ALLOW G 1 more", 13, "unexpected 'more'"),
        ("A ALIAS", 3, "real name"),
        (r"A ALIAS B\1", 9, "no groups"),
        (r"A(.) ALIAS B\2", 12, "1 group$"),
        (r"A ALIAS B\n", 9, "neither"),
        ("A ALIAS B\\", 9, "neither"),
        ("A DENY FROM", 1, "needs a host"),
        ("A( ALLOW", 1, "without"),
        ("  A) ALLOW", 3, "without"),
        ("A[ ALLOW", 1, "without"),
        ("*A ALLOW", 1, "nothing to repeat"),
        ("A** ALLOW", 1, "repetition"),
        ("(A|B):.* ALLOW", 1, "capture group, which has no use with ALLOW"),
        (r"A ALLOW G\1", 9, "in the real name of an ALIAS only"),
        (r"A(.) ALIAS B\0", 12, "neither"),
        (r"(A)\1 ALLOW", 1, "refers back"),
        ("(?=A).* ALLOW", 1, "not supported"),
        ("(?P<n>A) ALLOW", 1, "not supported"),
        (r"A\b ALLOW", 1, "not supported"),
        ("A\\ ALLOW", 1, "not supported"),
        ("A{3,1} ALLOW", 1, "repeats"),
        ("[z-a] ALLOW", 1, "wrong"),
        ("[[:alpha:]] ALLOW", 1, "wrong"),
        ("(a{999}b{999}){999} ALLOW", 1, "too large"),
        ("(" * 40 + ")" * 40 + " ALLOW", 1, "nested"),
        ("x" * 600 + " ALLOW", 1, "longer"),
        ("EVALUATION ORDER DENY, DENY", 1, "expected EVALUATION"),
    ],
)
def test_an_error_has_its_place_and_its_reason(line, column, why):
    with pytest.raises(AccessFileError, match=why) as caught:
        PVList("# first\n" + line + "\n", file="gw.pvlist")
    assert (caught.value.file, caught.value.line, caught.value.column) == ("gw.pvlist", 2, column)


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+b", "(a|a)*b", "(a|aa)+b", "(a*)*b", "(.*)*b", "a?" * 40 + "a" * 40 + "b", "(a+){1,30}b", ".*.*.*.*.*.*b",
     "(x?a)*b", "((a+)+)+b", "(a|b|ab)*c", "a*a*a*a*a*b", "(.+.+)+b", "(a{1,9}){1,9}b"],
)  # fmt: skip
def test_no_expression_takes_long_on_a_name_made_to_hurt_it(pattern):
    pvlist = PVList(f"{pattern} ALIAS X")
    with lines_run() as work:
        assert pvlist.lookup("a" * MAX_NAME, "1.2.3.4") is None
    assert work.lines < 3_000_000


@pytest.mark.parametrize(
    "pattern", ["BEAM:.*", ".*:L1:.*", "[A-Z]+:[^:]*:X", "(A|B):.*", "A{3}B?", r"SR\.\d+"]
)
def test_usual_expressions_take_the_quick_way(pattern):
    assert Pattern(pattern).quick


def test_a_thousand_expressions_are_searched_quickly_and_answers_are_remembered():
    pvlist = PVList("\n".join(f"SYS{i}:.*:.* ALLOW G{i}" for i in range(1000)))
    with lines_run() as work:
        for i in range(100):
            assert pvlist.lookup(f"SYS{i}:A:B", "1.2.3.4").asg == f"G{i}"
    assert work.lines < 1_500_000
    for i in range(20000):
        pvlist._answers[(str(i), "")] = None
    pvlist.lookup("new", "1.2.3.4")
    assert len(pvlist._answers) == 1


_atom = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", r"\d", r"\.", "[]a]", "[^]a]", r"[\]a]", "1", ":"])
_expression = st.recursive(
    _atom,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=4).map("".join),
        st.tuples(inner, inner).map(lambda t: f"({t[0]}|{t[1]})"),
        st.tuples(inner, inner).map(lambda t: f"(?:{t[0]}|{t[1]})"),
        st.tuples(
            _atom,
            st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "*?", "+?", "??", "{0,2}?", "{,2}", "{1,}"]),
        ).map("".join),
        st.tuples(inner, st.sampled_from(["+", "?", "{2}", "{1,3}", "+?", "??"])).map(
            lambda t: f"({t[0]}){t[1]}"
        ),
        inner.map(lambda t: f"({t})"),
    ),
    max_leaves=6,
)


def _walk(pattern):
    """The same expression, made to take the parallel way."""
    forced = Pattern(pattern.text)
    if forced.quick:
        from appliance.acf.pattern import _Program, _Reader

        forced._program = _Program().compile(_Reader(pattern.text).read()[0])
        forced._quick = None
    return forced


@settings(max_examples=800, deadline=None)
@given(_expression, st.lists(st.text("ab1:.]", max_size=8), min_size=1, max_size=4))
def test_both_ways_accept_the_same_names_as_python_does(text, names):
    pattern = Pattern(text)
    expected = re.compile(text)
    for name in names:
        found = expected.fullmatch(name) is not None
        assert (pattern.match(name) is not None) is found
        assert (_walk(pattern).match(name) is not None) is found


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("(.*):(.*)", "a:b:c"), ("(.*?):(.*)", "a:b:c"), ("(a|ab)(c|bcd)", "abcd"), ("(a+)(a*)", "aaa"),
        ("(a+?)(a*)", "aaa"), ("(a)?(b)", "b"), ("(?:(a)|b)+", "ab"), ("(a{1,2})(a{0,3})", "aaa"), ("^(.)(.)$", "xy"),
        ("(((a)b)c)", "abc"), ("([^:]+):((?:x|y)+)", "p:xyx"), ("(a|b)*c", "abac"), ("(ab?)(b?)", "ab"), ("x()y", "xy"),
    ],
)  # fmt: skip
def test_both_ways_capture_the_same_as_python_does(text, name):
    expected = tuple(group or "" for group in re.fullmatch(text, name).groups())
    assert Pattern(text).match(name) == expected
    assert _walk(Pattern(text)).match(name) == expected


@settings(max_examples=400, deadline=None)
@given(st.text("ab()[]{}|*+?.\\^$,:1- \nALOWDENYIS", max_size=40))
def test_any_text_is_a_pvlist_or_an_access_file_error(text):
    with contextlib.suppress(AccessFileError):
        PVList(text).lookup("a", "1.2.3.4")
    with contextlib.suppress(AccessFileError):
        PVList(text.replace(" ", "").replace("\n", "") + " ALLOW").lookup("ab1", "1.2.3.4")


@settings(max_examples=300, deadline=None)
@given(st.text("ab*?.", max_size=8), st.text("ab.", max_size=8))
def test_wildcards_match_as_the_expression_that_they_stand_for(pattern, text):
    expression = "".join({"*": "[^\\n]*", "?": "."}.get(c, re.escape(c)) for c in pattern)
    assert glob_match(pattern, text) is (re.fullmatch(expression, text) is not None)

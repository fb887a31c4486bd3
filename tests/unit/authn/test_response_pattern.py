"""The response pattern: the quick start's semantics, and no way round them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.authn.jwt.pattern import ACCEPTED, ResponsePattern, response_reader
from tests.helpers.turns import lines_run

SEED = '{ *, "valid": "#response#" }'
VALID = (
    '{"claims":{"aud":"default","exp":1755150736,"sub":"softioc"},"header":{"alg":"RS256"},"valid":true}\n'
)
INVALID = '{"error":"Signature has expired","valid":false}\n'


def test_the_quick_starts_pattern_reads_its_validators_answers() -> None:
    """The pattern quotes a value that comes unquoted."""
    pattern = ResponsePattern(SEED)
    assert pattern.accepts(VALID)
    assert pattern.accepts(VALID.replace("true", '"true"'))
    assert not pattern.accepts(INVALID)
    assert not pattern.accepts(INVALID.replace("false", '"false"'))


def test_the_tables_other_examples() -> None:
    pattern = ResponsePattern('{ "payload": { * },  "valid": #response# }')
    assert pattern.accepts('{"payload": {"sub": "x"},\n "valid": YES }')
    assert not pattern.accepts('{"payload": {"sub": "x"},\n "valid": no }')
    assert not pattern.accepts('{"payload": {"sub": "x"},\n "valid": "yes" }')


@pytest.mark.parametrize("word", sorted(ACCEPTED))
def test_the_accepted_words_in_any_case(word: str) -> None:
    for spelling in (word, word.upper(), word.title()):
        assert ResponsePattern("#response#").accepts(spelling)
        assert ResponsePattern("<r>#response#</r>").accepts(f"<r> {spelling} </r>\n")


@pytest.mark.parametrize(
    "word", ["", "no", "false", "0", "f", "n", "2", "validated", "true!", "okay", "11", "\u0131", "TRUE\0"]
)
def test_all_else_means_no(word: str) -> None:
    assert not ResponsePattern("#response#").accepts(word)
    assert not ResponsePattern("<r>#response#</r>").accepts(f"<r>{word}</r>")


def test_the_raw_form_removes_nothing() -> None:
    raw = ResponsePattern("#response#")
    for text in (" true", "true\n", "t rue"):
        assert not raw.accepts(text)
        assert ResponsePattern(" #response# ").accepts(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "valid",
        "#response##response#",
        "*#response#",
        '{"valid":#response#*',
        "*",
        '{*"valid":"#response#"*}',
        "#reponse#",
    ],
)
def test_patterns_that_decide_nothing_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"response|quote"):
        ResponsePattern(text)


def test_literal_text_around_is_required() -> None:
    pattern = ResponsePattern("a*b=#response#;c*d")
    assert pattern.accepts("a..b=1;c..d")
    for text in ("b=1;c..d", "a..b=1;c", "a..b=1;d", "xa..b=1;c..d", "a..b=1;c..dx", "ab=d", "", "a"):
        assert not pattern.accepts(text)


def test_parts_do_not_overlap() -> None:
    assert not ResponsePattern("ab*bc=#response#").accepts("abc=1")
    assert ResponsePattern("ab*bc=#response#").accepts("abbc=1")
    assert not ResponsePattern("x#response#ab*bc").accepts("x1abc")


@pytest.mark.parametrize("planted", ["true", '"true"', "1"])
def test_an_answer_planted_in_the_claims_does_not_count(planted: str) -> None:
    """The response repeats the token's claims, and their author chose them."""
    inner = f'{{"a":1,"valid":{planted}}}'
    for pattern in (
        SEED,
        '{*,"valid":#response#}',
        '{*,"valid":#response#,*}',
        '{*,"valid":"#response#",*}',
        '*"valid":#response#}*',
    ):
        compiled = ResponsePattern(pattern)
        for text in (
            f'{{"claims":{inner},"valid":false}}',
            f'{{"z":0,"valid":false,"claims":{inner}}}',
            f'{{"claims":{inner},"z":0,"valid":false,"y":1}}',
            f'{{"z":0,"valid":false,"claims":{inner},"y":1}}',
        ):
            assert not compiled.accepts(text), (pattern, text)


BOTH_SIDES = '{*"active": #response#,*}'


@pytest.mark.parametrize(
    "text",
    [
        '{"ext":{"active":true,"x":1},"sub":"a","active":false}',
        '{"ext":{"active":true,"x":1},"sub":"a"}',
        '{"ext":{"active":true,"x":1},"active":true,"y":1}',
        '{"ext":[{"active":true,"x":1}],"active":false}',
        '{"active":true,"x":{"active":true,"y":1}}',
        '{"x":1,"active":true,"active":true,"y":1}',
        '{"active":true,"y":1,"\\u0061ctive":false}',
        '{"inactive":false,"y":"\\"active\\":true,","active":false}',
        '[{"x":1,"active":true,"y":1}]',
        '[{"active":true,"y":1},{"active":false}]',
        '\ufeff{"ext":{"active":true,"x":1},"active":false}',
        '{"ext":{"a":NaN,"active":true,"x":1},"active":false}',
        '{"ext":{"active":yes,"x":1},"active":no}',
    ],
)
def test_in_json_a_pattern_means_one_member_of_the_outermost_object(text: str) -> None:
    assert not ResponsePattern(BOTH_SIDES).accepts(text)


@pytest.mark.parametrize(
    "text",
    [
        '{"active":true,"exp":1}',
        '{"exp":1,"active":true,"sub":"a"}',
        '{"ext":{"a":[1,{"b":"}"}]},"active":true,"sub":"a"}',
        '{ "exp" : 1 , "active" : "YES" , "s" : 1 }'.replace('"YES"', "1"),
        '\ufeff{"active":true,"exp":1}',
    ],
)
def test_in_json_a_member_of_the_outermost_object_is_found(text: str) -> None:
    assert ResponsePattern(BOTH_SIDES).accepts(text)


def test_a_response_that_can_be_read_in_two_ways_is_refused_whatever_it_says() -> None:
    pattern = ResponsePattern("*status=#response#;*")
    assert pattern.accepts("a=1;status=ok;b=2;")
    assert not pattern.accepts("a=1;status=ok;status=ok;")
    assert pattern.judge(b"a=1;status=ok;status=ok;") == "ambiguous"


def test_literal_text_up_to_the_answer_may_name_a_deeper_member() -> None:
    pattern = ResponsePattern('{"data":{"valid":#response#},*}')
    assert pattern.accepts('{"data":{"valid":true},"x":1}')
    assert not pattern.accepts('{"data":{"valid":false},"x":{"data":{"valid":true},"y":1}}')
    assert not ResponsePattern('{*"data":{"valid":#response#},*}').accepts('{"data":{"valid":true},"x":1}')


def test_the_end_of_another_name_is_not_the_member() -> None:
    pattern = ResponsePattern('{*active":#response#,*}')
    assert not pattern.accepts('{"inactive":true,"x":1}')
    assert not pattern.accepts('{"active":true,"x":1}')


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        (BOTH_SIDES, "write response_member: active"),
        ('{*,"valid":"#response#",*}', "write response_member: valid"),
        ("*status=#response#;*", "write more of the text"),
        ('{*tive":#response#}', "does not have the whole name of a member"),
    ],
)
def test_a_pattern_that_can_be_read_in_several_ways_is_warned_of(pattern: str, said: str) -> None:
    assert said in ResponsePattern(pattern).warning()


@pytest.mark.parametrize(
    "pattern",
    [
        "#response#",
        SEED,
        '{ "payload": { * },  "valid": #response# }',
        '{"active": #response#, *}',
        "<r>#response#</r>",
    ],
)
def test_the_seeds_patterns_are_not_warned_of(pattern: str) -> None:
    assert ResponsePattern(pattern).warning() == ""


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ('{"exp":1,"active":true}', None),
        ('{"active":true}', None),
        ('{"active":true,"exp":1}', None),
        ('{"ext":{"active":false},"active":true}', None),
        ('{"active":"true"}', None),
        ('{"active":"Yes"}', None),
        ('{"active":1}', None),
        ('\ufeff{"active":true}', None),
        ('{"active":false}', "says_invalid"),
        ('{"active":null}', "says_invalid"),
        ('{"active":"no"}', "says_invalid"),
        ('{"active":0}', "says_invalid"),
        ('{"active":1.0}', "says_invalid"),
        ('{"active":2}', "says_invalid"),
        ('{"active":[true]}', "says_invalid"),
        ('{"active":{"active":true}}', "says_invalid"),
        ('{"Active":true}', "member_missing"),
        ('{"ext":{"active":true}}', "member_missing"),
        ("{}", "member_missing"),
        ('{"active":true,"active":true}', "not_json"),
        ('[{"active":true}]', "not_json"),
        ("true", "not_json"),
        ('{"active":yes}', "not_json"),
        ('{"active":true} x', "not_json"),
        ("", "not_json"),
        ("{" * 100_000, "not_json"),
    ],
)
def test_a_member_of_a_json_answer_is_read_wherever_it_stands(body: str, reason: str | None) -> None:
    assert response_reader("active", "#response#")(body.encode()) == reason


def test_a_body_that_is_not_utf_8_says_nothing() -> None:
    assert response_reader("active", "#response#")(b'{"active":true,"x":"\xff"}') == "not_json"
    assert response_reader("", SEED)(b'{"x":"\xff","valid":true}') == "not_text"


def test_quotes_in_claims_arrive_escaped_and_do_no_harm() -> None:
    text = json.dumps({"error": 'x,"valid":true}', "valid": False})
    assert not ResponsePattern(SEED).accepts(text)
    text = json.dumps({"claims": {"sub": 'x,"valid":false}'}, "valid": True})
    assert ResponsePattern(SEED).accepts(text)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("*a*a*a*a*a*a*b#response#", "a" * 60_000),
        ("*a#response#a*", "a" * 60_000),
        ("*aa#response#aa*aa", "a" * 60_000),
        ('{*,"valid":#response#,*}', '{,"valid":' * 6000),
        ('{*,"valid":#response#,*}', "{" + ',"valid":1' * 6000 + ",}"),
    ],
)
def test_matching_is_linear(pattern: str, text: str) -> None:
    with lines_run() as work:
        ResponsePattern(pattern).accepts(text)
    assert work.lines < 1000, "lines do not grow with the text; each of them looks through it once"


@given(
    st.text(alphabet='ab{}":,*t1 \n', max_size=40),
    st.text(alphabet='ab{}":,*t1 ', max_size=12),
    st.text(alphabet='ab{}":,*t1 ', max_size=12),
)
def test_any_pattern_and_response_give_an_answer(text: str, before: str, after: str) -> None:
    try:
        pattern = ResponsePattern(f"{before}#response#{after}")
    except ValueError:
        return
    assert pattern.accepts(text) in {True, False}


@given(
    st.lists(st.text(alphabet="abc", max_size=5), min_size=1, max_size=4),
    st.lists(st.text(alphabet="abc", max_size=5), min_size=1, max_size=4),
    st.sampled_from(["1", "true", "ok", "no", "0"]),
)
def test_a_response_made_from_the_pattern_is_read_back(
    before: list[str], after: list[str], word: str
) -> None:
    """With a marker that occurs nowhere else there is one reading."""
    pattern = ResponsePattern("*".join(before) + "<#response#>" + "*".join(after))
    text = "xyz".join(before) + f"<{word}>" + "zyx".join(after)
    assert pattern.accepts(text) is (word in ACCEPTED)

"""The calculator of access rules beside EPICS Base's own, on expressions that nobody would write."""

import ctypes
import math
from ctypes import POINTER, byref, c_char_p, c_double, c_long, c_short

import epicscorelibs.path
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from appliance.acf.calc import _BINARY as _ALL_BINARY
from appliance.acf.calc import _CONSTANTS, _PAIR, _UNARY, _VARIADIC, Calc, compile_calc
from appliance.errors import AccessFileError

_com = ctypes.CDLL(epicscorelibs.path.get_lib("Com"))
_com.postfix.restype = _com.calcPerform.restype = c_long
_com.postfix.argtypes = (c_char_p, c_char_p, POINTER(c_short))
_com.calcPerform.argtypes = (POINTER(c_double), POINTER(c_double), c_char_p)

LETTERS = "ABCDEFGHIJKL"
_BINARY = [name for name in _ALL_BINARY if name != "%"]
"""Without the remainder: Base divides INT_MIN by -1 and dies of it. It has its cases in test_calc.py."""
NUMBERS = (
    "0",
    "1",
    "2",
    "3",
    "7",
    "0.5",
    "1e3",
    "0x1F",
    "1e10",
    "1e300",
    "Inf",
    "NaN",
    "4294967295",
    "2147483648",
)
OPERANDS = (*LETTERS, *NUMBERS, *(name for name in _CONSTANTS if name != "VAL"))
FUNCTIONS = (*(name for name in _UNARY if name.isalpha()), *_PAIR, *_VARIADIC)
SIGNS = ("-", "!", "~")
VALUES = [0.0, 1.0, -1.0, 2.5, -7.0, 1e10, -1e10, 0.5, 31.0, 255.0, 1e300, math.nan]


def base_translates(text: str) -> ctypes.Array | None:
    """Base's translation; None where it refuses."""
    code = ctypes.create_string_buffer(len(text) * 21 + 64)
    error = c_short()
    return None if _com.postfix(text.encode(), code, byref(error)) else code


def base_evaluates(code: ctypes.Array, values: list[float]) -> float | None:
    arguments = (c_double * 32)(*values)
    result = c_double()
    return None if _com.calcPerform(arguments, byref(result), code) else result.value


def ours(text: str) -> Calc | None:
    try:
        return compile_calc(text)
    except AccessFileError:
        return None


def same(a: float | None, b: float | None) -> bool:
    if a is None or b is None:
        return a is b
    return a == b or (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=1e-12)


@st.composite
def expressions(draw: st.DrawFn, depth: int = 4) -> str:
    kind = draw(st.integers(0, 6)) if depth else 0
    inner = expressions(depth - 1)
    if kind == 0:
        return draw(st.sampled_from(OPERANDS))
    if kind == 1:
        return f"{draw(inner)} {draw(st.sampled_from(sorted(_BINARY)))} {draw(inner)}"
    if kind == 2:
        return f"({draw(inner)})"
    if kind == 3:
        return f"{draw(st.sampled_from(SIGNS))}{draw(inner)}"
    if kind == 4:
        return f"{draw(inner)} ? {draw(inner)} : {draw(inner)}"
    name = draw(st.sampled_from(FUNCTIONS))
    count = 2 if name in _PAIR else 1 if name in _UNARY else draw(st.integers(1, 4))
    return f"{name}({', '.join(draw(inner) for _ in range(count))})"


words = st.lists(
    st.sampled_from([*OPERANDS, *FUNCTIONS, *SIGNS, *sorted(_BINARY), "(", ")", "(", ")", ",", "?", ":", ":=", ";"]),
    min_size=1, max_size=24,
).map(" ".join)  # fmt: skip
values = st.lists(st.sampled_from(VALUES), min_size=12, max_size=12)


@settings(max_examples=400, deadline=None)
@given(text=expressions(), inputs=values)
def test_what_is_well_formed_has_the_value_that_base_gives_it(text: str, inputs: list[float]) -> None:
    code, calc = base_translates(text), ours(text)
    assert (code is None) == (calc is None), text
    if code is not None and calc is not None:
        mine = calc.evaluate(dict(zip(LETTERS, inputs, strict=True)))
        assert same(mine, base_evaluates(code, inputs)), text


@settings(max_examples=800, deadline=None)
@given(text=words, inputs=values)
@example("FMOD A+(A,A)", [1.0] * 12)
@example("ATAN2 A,(A)", [1.0] * 12)
@example("(A,B)+MAX(C)", [1.0] * 12)
@example("A?(B,C):D+MIN", [1.0] * 12)
@example("MAX(A)?B,C:D", [1.0] * 12)
def test_whatever_is_written_is_refused_or_has_a_value_and_no_more_is_taken_than_base_takes(
    text: str, inputs: list[float]
) -> None:
    calc = ours(text)
    if calc is None:
        return
    mine = calc.evaluate(dict(zip(LETTERS, inputs, strict=True)))
    code = base_translates(text)
    assert code is not None, f"{text}: Base refuses it"
    assert same(mine, base_evaluates(code, inputs)), text


@pytest.mark.parametrize(
    "text",
    ["FMOD A+(A,A)", "ATAN2 A*(A,B)", "FMOD(A)+(B,C)", "1?max(1,2:3)"],
)
def test_an_operator_that_lacks_an_operand_is_refused_at_load(text: str) -> None:
    with pytest.raises(AccessFileError, match="CALC"):
        compile_calc(text)

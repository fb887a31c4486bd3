"""EPICS calc expressions, as far as an access rule may use them.

The language, its precedences and its arithmetic are those of EPICS Base's calculation engine (``postfix.h``), without
two things, because a decision about access must depend only on its inputs: assignment (Base refuses it in rules too) and
``RNDM``. ``VAL``, the previous result, reads 0: decisions keep no history.

Conversion to integers follows x86-64, where EPICS servers run; in C, a number that does not fit is undefined.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from appliance.errors import AccessFileError

__all__ = ["MAX_EXPRESSION", "Calc", "compile_calc"]

MAX_EXPRESSION: Final = 1024
"""Longest expression, in characters."""

_MAX_STACK: Final = 80
"""Depth of Base's evaluation stack; here also of its translation stack, which Base does not check."""

_INF: Final = math.inf
_NAN: Final = math.nan
_INT_MIN: Final = -(1 << 31)


def _int32(x: float) -> int:
    """Cast ``double`` to ``int32_t``."""
    return int(x) if -2147483649.0 < x < 2147483648.0 else _INT_MIN


def _uint32(x: float) -> int:
    """Cast ``double`` to ``uint32_t``: through 64 bits, so that a number that does not fit there gives 0."""
    return int(x) & 0xFFFFFFFF if -9223372036854775808.0 <= x < 9223372036854775808.0 else 0


def _signed(bits: int) -> int:
    bits &= 0xFFFFFFFF
    return bits - (1 << 32) if bits & 0x80000000 else bits


def _bits(x: float) -> int:
    """Integer operand of a bitwise operator; signed."""
    return _int32(x) if x < 0 else _signed(_uint32(x))


def _unsigned_bits(x: float) -> int:
    return _int32(x) & 0xFFFFFFFF if x < 0 else _uint32(x)


def _odd(x: float) -> bool:
    return math.isfinite(x) and math.fmod(x, 2.0) in {1.0, -1.0}


def _power(a: float, b: float) -> float:
    try:
        return math.pow(a, b)
    except OverflowError:
        return -_INF if a < 0 and _odd(b) else _INF
    except ValueError:
        if a == 0:
            return math.copysign(_INF, a) if _odd(b) else _INF
        return _NAN


def _divide(a: float, b: float) -> float:
    if b != 0:
        return a / b
    if a == 0 or math.isnan(a):
        return _NAN
    return math.copysign(_INF, a) * math.copysign(1.0, b)


def _modulo(a: float, b: float) -> float:
    divisor = _int32(b)
    if divisor == 0:
        return _NAN
    dividend = _int32(a)
    rest = abs(dividend) % abs(divisor)
    return float(-rest if dividend < 0 else rest)


def _exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return _INF


def _cosh(x: float) -> float:
    try:
        return math.cosh(x)
    except OverflowError:
        return _INF


def _sinh(x: float) -> float:
    try:
        return math.sinh(x)
    except OverflowError:
        return math.copysign(_INF, x)


def _logarithm(function: Callable[[float], float]) -> Callable[[float], float]:
    def log(x: float) -> float:
        if x > 0:
            return function(x)
        return -_INF if x == 0 else _NAN

    return log


def _domain(function: Callable[..., float]) -> Callable[..., float]:
    """Return a function that gives NaN, as in C, where Python raises."""

    def checked(*operands: float) -> float:
        try:
            return function(*operands)
        except ValueError:
            return _NAN

    return checked


def _rounded(function: Callable[[float], int]) -> Callable[[float], float]:
    def rounded(x: float) -> float:
        return math.copysign(float(function(x)), x) if math.isfinite(x) else x

    return rounded


def _isinf(x: float) -> float:
    return 0.0 if not math.isinf(x) else 1.0 if x > 0 else -1.0


def _maximum(values: list[float]) -> float:
    top = values.pop()
    while values:
        below = values.pop()
        top = top if below < top or math.isnan(top) else below
    return top


def _minimum(values: list[float]) -> float:
    top = values.pop()
    while values:
        below = values.pop()
        top = top if below > top or math.isnan(top) else below
    return top


_UNARY: Final[dict[str, Callable[[float], float]]] = {
    "!": lambda x: float(x == 0),
    "-": lambda x: -x,
    "~": lambda x: float(~_bits(x)),
    "NOT": lambda x: float(~_bits(x)),
    "ABS": abs,
    "ACOS": _domain(math.acos),
    "ASIN": _domain(math.asin),
    "ATAN": math.atan,
    "CEIL": _rounded(math.ceil),
    "COS": _domain(math.cos),
    "COSH": _cosh,
    "EXP": _exp,
    "FLOOR": _rounded(math.floor),
    "ISINF": _isinf,
    "LN": _logarithm(math.log),
    "LOG": _logarithm(math.log10),
    "LOGE": _logarithm(math.log),
    "NINT": lambda x: float(_int32(x + 0.5 if x >= 0 else x - 0.5)),
    "SIN": _domain(math.sin),
    "SINH": _sinh,
    "SQR": _domain(math.sqrt),
    "SQRT": _domain(math.sqrt),
    "TAN": _domain(math.tan),
    "TANH": math.tanh,
}

_PAIR: Final[dict[str, Callable[[float, float], float]]] = {
    "ATAN2": lambda a, b: math.atan2(b, a),
    "FMOD": _domain(math.fmod),
}
"""Functions of two arguments. ATAN2 takes them in the opposite order to C."""

_VARIADIC: Final[dict[str, Callable[[list[float]], float]]] = {
    "FINITE": lambda values: float(all(math.isfinite(v) for v in values)),
    "ISNAN": lambda values: float(any(math.isnan(v) for v in values)),
    "MAX": _maximum,
    "MIN": _minimum,
}

_CONSTANTS: Final[dict[str, float]] = {
    "PI": math.pi,
    "D2R": math.pi / 180.0,
    "R2D": 180.0 / math.pi,
    "VAL": 0.0,
}

_BINARY: Final[dict[str, tuple[int, Callable[[float, float], float]]]] = {
    "||": (1, lambda a, b: float(a != 0 or b != 0)),
    "|": (1, lambda a, b: float(_bits(a) | _bits(b))),
    "OR": (1, lambda a, b: float(_bits(a) | _bits(b))),
    "XOR": (1, lambda a, b: float(_bits(a) ^ _bits(b))),
    "&&": (2, lambda a, b: float(a != 0 and b != 0)),
    "&": (2, lambda a, b: float(_bits(a) & _bits(b))),
    "AND": (2, lambda a, b: float(_bits(a) & _bits(b))),
    "<<": (2, lambda a, b: float(_signed(_bits(a) << (_bits(b) & 31)))),
    ">>": (2, lambda a, b: float(_bits(a) >> (_bits(b) & 31))),
    ">>>": (2, lambda a, b: float(_unsigned_bits(a) >> (_unsigned_bits(b) & 31))),
    "!=": (3, lambda a, b: float(a != b)),
    "#": (3, lambda a, b: float(a != b)),
    "<": (3, lambda a, b: float(a < b)),
    "<=": (3, lambda a, b: float(a <= b)),
    "=": (3, lambda a, b: float(a == b)),
    "==": (3, lambda a, b: float(a == b)),
    ">=": (3, lambda a, b: float(a >= b)),
    ">": (3, lambda a, b: float(a > b)),
    "+": (4, lambda a, b: a + b),
    "-": (4, lambda a, b: a - b),
    "*": (5, lambda a, b: a * b),
    "/": (5, _divide),
    "%": (5, _modulo),
    "**": (6, _power),
    "^": (6, _power),
}

# Base looks names up without a delimiter behind them: the longest that matches wins.
_VARIABLES: Final = tuple("ABCDEFGHIJKLMNOPQRSTU")
_OPERANDS: Final = sorted(
    [*_UNARY, *_PAIR, *_VARIADIC, *_CONSTANTS, *_VARIABLES, "RNDM", "("], key=len, reverse=True
)
_OPERATORS: Final = sorted([*_BINARY, ")", ",", ":", ":=", ";", "?"], key=len, reverse=True)

_HEX: Final = re.compile(r"0[xX][0-9a-fA-F]+")
_NUMBER: Final = re.compile(
    r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|inf(?:inity)?|nan(?:\(\w*\))?", re.IGNORECASE
)
_SMALLEST_NORMAL: Final = 2.2250738585072014e-308

# Instructions: (kind, operand). A jump only goes forward, so evaluation ends.
_PUSH, _FETCH, _CALL1, _CALL2, _CALLN, _IF, _ELSE, _END = range(8)


_TAKES: Final = {_PUSH: 0, _FETCH: 0, _CALL1: 1, _CALL2: 2, _IF: 1, _ELSE: 0, _END: 0}
"""What instructions take from the stack. Calls leave one value."""


class _Variadic(NamedTuple):
    function: Callable[[list[float]], float]
    arity: int


class _Pending:
    """An operator that waits on the translation stack for its operands."""

    __slots__ = ("effect", "kind", "name", "operand", "priority")

    def __init__(self, name: str, kind: int, operand: object, priority: int, effect: int) -> None:
        self.name = name
        self.kind = kind
        self.operand = operand
        self.priority = priority
        self.effect = effect


class Calc:
    """A compiled expression; immutable."""

    __slots__ = ("_code", "letters", "text", "uses_val")

    def __init__(
        self, text: str, code: tuple[tuple[int, object], ...], letters: frozenset[str], *, uses_val: bool
    ) -> None:
        self.text: Final = text
        self._code: Final = code
        self.letters: Final = letters
        """Inputs that the expression reads, of ``A`` to ``U``."""
        self.uses_val: Final = uses_val

    def __repr__(self) -> str:
        return f"Calc({self.text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Calc) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)

    def evaluate(self, inputs: Mapping[str, float | None]) -> float | None:
        """Return the value for these inputs; ``None`` if one that is read is missing or ``None``."""
        values: dict[str, float] = {}
        for letter in self.letters:
            value = inputs.get(letter)
            if value is None:
                return None
            values[letter] = float(value)
        return self._run(values)

    def holds(self, inputs: Mapping[str, float | None]) -> bool:
        """Whether a rule with this condition applies: the value is 1, as exactly as Base requires."""
        value = self.evaluate(inputs)
        return value is not None and 0.99 < value < 1.01

    def _run(self, values: Mapping[str, float]) -> float | None:
        stack: list[float] = []
        code = self._code
        size = len(code)
        at = 0
        while at < size:
            kind, operand = code[at]
            at += 1
            if kind == _PUSH:
                stack.append(operand)  # type: ignore[arg-type]
            elif kind == _FETCH:
                stack.append(values[operand])  # type: ignore[index]
            elif kind == _CALL2:
                right = stack.pop()
                stack[-1] = operand(stack[-1], right)  # type: ignore[operator]
            elif kind == _CALL1:
                stack[-1] = operand(stack[-1])  # type: ignore[operator]
            elif kind == _CALLN:
                variadic: _Variadic = operand  # type: ignore[assignment]
                taken = stack[-variadic.arity :]
                del stack[-variadic.arity :]
                stack.append(variadic.function(taken))
            elif kind == _IF:
                if stack.pop() == 0:
                    at = operand  # type: ignore[assignment]
            elif kind == _ELSE:
                at = operand  # type: ignore[assignment]
        return stack[0] if len(stack) == 1 else None


def compile_calc(text: str) -> Calc:
    """Translate ``text``.

    Raises:
        AccessFileError: The text is wrong. The error has no line and column; the caller knows them.
    """
    if len(text) > MAX_EXPRESSION:
        raise AccessFileError(f"a CALC expression may have {MAX_EXPRESSION} characters; this has {len(text)}")
    return _Translation(text).run()


class _Translation:
    """Infix to postfix with a stack of operators, as in Base, so that both accept the same texts."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.stack: list[_Pending] = []
        self.code: list[tuple[int, object]] = []
        self.depth = 0
        self.conditions = 0
        self.letters: set[str] = set()
        self.uses_val = False

    def fail(self, why: str) -> AccessFileError:
        return AccessFileError(f'CALC("{self.text}"): {why}')

    def run(self) -> Calc:
        operand_needed = True
        while True:
            while self.at < len(self.text) and self.text[self.at] in " \t\n\v\f\r":
                self.at += 1
            if self.at == len(self.text):
                break
            operand_needed = self.operand() if operand_needed else self.operator()
            if self.depth < 0:
                raise self.fail("an operand is missing")
            if self.depth >= _MAX_STACK or len(self.stack) >= _MAX_STACK:
                raise self.fail("too deeply nested")
        while self.stack:
            if self.stack[-1].name == "(":
                raise self.fail("a parenthesis is still open at the end")
            self.emit()
        if self.conditions:
            raise self.fail("'?' without ':'")
        if operand_needed or self.depth != 1:
            raise self.fail("incomplete: an operand is missing" if self.code else "the expression is empty")
        return Calc(self.text, self.linked(), frozenset(self.letters), uses_val=self.uses_val)

    def take(self, names: list[str]) -> str | None:
        for name in names:
            if self.text[self.at : self.at + len(name)].upper() == name:
                self.at += len(name)
                return name
        return None

    def emit(self) -> None:
        top = self.stack.pop()
        operand = _Variadic(_VARIADIC[top.name], 1 - top.effect) if top.kind == _CALLN else top.operand
        self.code.append((top.kind, operand))
        self.depth += top.effect

    def emit_while(self, priority: int) -> None:
        while self.stack and self.stack[-1].priority >= priority:
            self.emit()

    def literal(self) -> float | None:
        if match := _HEX.match(self.text, self.at):
            value = int(match[0], 16)
            if value > 0xFFFFFFFF:
                raise self.fail(f"the number {match[0]} does not fit 32 bits")
            self.at = match.end()
            return float(_signed(value))
        if match := _NUMBER.match(self.text, self.at):
            word = match[0].partition("(")[0]
            number = float(word)
            if word[0] in ".0123456789" and (
                math.isinf(number)
                or (
                    abs(number) < _SMALLEST_NORMAL
                    and re.search("[1-9]", re.split("[eE]", word)[0]) is not None
                )
            ):
                raise self.fail(f"the number {word} cannot be represented")
            self.at = match.end()
            return number
        return None

    def operand(self) -> bool:
        value = self.literal()
        if value is not None:
            self.push(_PUSH, value)
            return False
        start = self.at
        name = self.take(_OPERANDS)
        if name is None:
            raise self.fail(f"an operand was expected at {self.text[start : start + 12]!r}")
        if name == "RNDM":
            raise self.fail("RNDM is refused: a decision about access must not depend on chance")
        if name in _CONSTANTS:
            self.uses_val |= name == "VAL"
            self.push(_PUSH, _CONSTANTS[name])
            return False
        if len(name) == 1 and name.isalpha():
            self.letters.add(name)
            self.push(_FETCH, name)
            return False
        self.emit_while(8)
        if name == "(":
            self.stack.append(_Pending(name, _END, None, 0, 0))
        elif name in _VARIADIC:
            self.stack.append(_Pending(name, _CALLN, None, 7, 0))
        elif name in _PAIR:
            self.stack.append(_Pending(name, _CALL2, _PAIR[name], 7, -1))
        else:
            self.stack.append(_Pending(name, _CALL1, _UNARY[name], 7, 0))
        return True

    def push(self, kind: int, operand: object) -> None:
        self.code.append((kind, operand))
        self.depth += 1

    def operator(self) -> bool:
        start = self.at
        name = self.take(_OPERATORS)
        if name is None:
            raise self.fail(f"an operator was expected at {self.text[start : start + 12]!r}")
        if name in {":=", ";"}:
            raise self.fail("assignment is not allowed in an access rule")
        if name == "?":
            self.emit_while(1)
            self.code.append((_IF, None))
            self.depth -= 1
            self.conditions += 1
            return True
        if name == ":":
            self.emit_while(1)
            self.code.append((_ELSE, None))
            self.depth -= 1
            self.conditions -= 1
            if self.conditions < 0:
                raise self.fail("':' without '?'")
            self.stack.append(_Pending(name, _END, None, 0, 0))
            return True
        if name in {",", ")"}:
            return self.close(name)
        priority, function = _BINARY[name]
        self.emit_while(priority)
        self.stack.append(_Pending(name, _CALL2, function, priority, -1))
        return True

    def close(self, name: str) -> bool:
        while self.stack and self.stack[-1].name != "(":
            self.emit()
        if not self.stack:
            raise self.fail("a comma outside parentheses" if name == "," else "')' without '('")
        if name == ",":
            self.stack[-1].effect -= 1
            return True
        parenthesis = self.stack.pop()
        if self.stack and self.stack[-1].kind == _CALLN:
            self.stack[-1].effect = parenthesis.effect
        return False

    def linked(self) -> tuple[tuple[int, object], ...]:
        """Return the code with each condition pointing behind the branch that it skips."""
        code = list(self.code)
        for index, (kind, _) in enumerate(self.code):
            if kind not in {_IF, _ELSE}:
                continue
            wanted = _ELSE if kind == _IF else _END
            open_conditions = 1
            for target in range(index + 1, len(code)):
                other = code[target][0]
                if other == wanted:
                    open_conditions -= 1
                    if open_conditions == 0:
                        code[index] = (kind, target + 1)
                        break
                if other == _IF:
                    open_conditions += 1
            else:
                raise self.fail("'?' and ':' do not belong together")
        self.verify(code)
        return tuple(code)

    def verify(self, code: list[tuple[int, object]]) -> None:
        """Prove that no path through the code takes more from the stack than there is, and that each leaves one value.

        Translation counts what operators leave, not what they find: FMOD A+(A,A) counts right but finds one operand. Base
        evaluates such a text with whatever lies below its stack.
        """
        depths: list[int | None] = [None] * (len(code) + 1)
        depths[0] = 0
        for at, (kind, operand) in enumerate(code):
            depth = depths[at]
            if depth is None:
                continue
            takes = operand.arity if isinstance(operand, _Variadic) else _TAKES[kind]
            if depth < takes:
                raise self.fail(
                    "an operator lacks an operand; write the arguments of a function in parentheses"
                )
            depth += (kind not in {_IF, _ELSE, _END}) - takes
            if depth >= _MAX_STACK:
                raise self.fail("too deeply nested")
            ways = [operand] if kind == _ELSE else [at + 1, operand] if kind == _IF else [at + 1]
            for way in ways:
                assert isinstance(way, int)
                if depths[way] not in {None, depth}:
                    raise self.fail("the branches of '?' and ':' do not leave one value each")
                depths[way] = depth
        if depths[-1] != 1:
            raise self.fail("incomplete: it does not leave one value")

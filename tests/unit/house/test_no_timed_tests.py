"""No test compares what a clock measured with a short limit: how long something takes is the machine's affair.

Count turns, lines (`tests.helpers.turns`), messages or calls, or wait for an event with a limit of 30 s.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLOCKS = {"monotonic", "perf_counter", "process_time", "thread_time", "time"}
SHORTEST_S = 10.0
"""A limit below this fails on a machine that does other things."""


def clock_in(node: ast.expr, measured: set[str]) -> bool:
    """Whether an expression subtracts from a reading of a clock, or names such a difference."""
    for part in ast.walk(node):
        if isinstance(part, ast.Name) and part.id in measured:
            return True
        if isinstance(part, ast.BinOp) and isinstance(part.op, ast.Sub) and reads_clock(part.left):
            return True
    return False


def reads_clock(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Call)
        and not node.args
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in CLOCKS
    )


def upper_limits(source: str) -> list[int]:
    """The lines of assertions that a measured time is less than a short constant, or than anything that is no constant."""
    found = []
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        measured: set[str] = set()
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and clock_in(node.value, measured):
                measured |= {
                    each.id
                    for target in node.targets
                    for each in ast.walk(target)
                    if isinstance(each, ast.Name)
                }
        for node in ast.walk(function):
            if not isinstance(node, ast.Assert):
                continue
            for part in ast.walk(node.test):
                if (
                    isinstance(part, ast.Compare)
                    and isinstance(part.ops[0], ast.Lt | ast.LtE)
                    and clock_in(part.left, measured)
                ):
                    limit = part.comparators[0]
                    if not (isinstance(limit, ast.Constant) and float(limit.value) >= SHORTEST_S):
                        found.append(part.lineno)
    return found


def test_no_test_asserts_that_something_took_less_than_a_short_time() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sorted(ROOT.rglob("*.py"))
        for line in upper_limits(path.read_text())
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "body",
    [
        "began = time.monotonic()\n    assert time.monotonic() - began < 2",
        "took = loop.time() - began\n    assert took <= 0.5, took",
        "worst = max(worst, time.perf_counter() - last)\n    assert worst < LIMIT_S",
    ],
)
def test_a_timed_test_would_be_seen(body: str) -> None:
    assert upper_limits(f"def test():\n    {body}\n") == [3]


@pytest.mark.parametrize(
    "body", ["took = time.monotonic() - began\n    assert took < 30", "assert time.monotonic() < end"]
)
def test_a_generous_limit_or_a_deadline_is_none(body: str) -> None:
    assert not upper_limits(f"def test():\n    {body}\n")

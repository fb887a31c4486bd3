"""What a program can check of "one fact, one place": no table stands twice in the package."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[3] / "appliance"
SMALLEST = 3
"""Elements from which a literal collection counts as a table."""


def literal(node: ast.expr) -> object | None:
    """The value of a collection of constants, wherever it stands; None for anything else."""
    if isinstance(node, ast.Call) and len(node.args) == 1 and not node.keywords:
        return literal(node.args[0])  # frozenset({...}), MappingProxyType({...})
    if not isinstance(node, ast.Dict | ast.Tuple | ast.List | ast.Set):
        return None
    try:
        value = ast.literal_eval(node)
    except ValueError:
        return None
    if len(value) < SMALLEST:
        return None
    if isinstance(value, dict):
        return ("map", tuple(sorted(map(repr, value.items()))))
    return ("list", tuple(sorted(map(repr, value))))


def tables(path: Path) -> list[tuple[object, str]]:
    found = []
    for node in ast.parse(path.read_text()).body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        name = ast.unparse(target)
        if name in {"__all__", "__slots__"}:
            continue
        value = literal(node.value)
        if value is not None:
            found.append((value, f"{path.relative_to(ROOT.parent)}:{node.lineno} {name}"))
    return found


def test_no_table_stands_twice():
    places = defaultdict(list)
    for path in sorted(ROOT.rglob("*.py")):
        if "migrations" not in path.parts:  # a migration is a record of the past and imports nothing of today
            for value, place in tables(path):
                places[value].append(place)
    twice = [found for found in places.values() if len(found) > 1]
    assert not twice, "\n".join(" = ".join(found) for found in twice)


def test_a_copy_would_be_seen(tmp_path):
    source = tmp_path / "copy.py"
    source.write_text("A = ('x', 'y', 'z')\nB: Final = frozenset({'z', 'x', 'y'})\nC = {1: 2, 3: 4}\n")
    body = ast.parse(source.read_text()).body
    first, second, small = (literal(node.value) for node in body)
    assert first == second
    assert first is not None
    assert small is None

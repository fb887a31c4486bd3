"""No module of the package imports itself by way of another, not even for the type checker only.

import-linter holds the layers. This looks inside them, and at what stands under ``TYPE_CHECKING`` too: an import that
points upward there is a cycle in the reader's head, if not in the interpreter.
"""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3] / "appliance"
MODULES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}


MUTUAL = {
    "pva": "an event names the channel or the operation that made it",
    "pvdata": "a type remembers the codec that was compiled for it",
}
"""Where two classes name each other for the type checker, and why."""


def imported(path: Path, *, typing_too: bool = True) -> set[str]:
    """The modules of the package that a module names in an import at its top level or under ``TYPE_CHECKING``."""
    found = set()
    for node in top_level(ast.parse(path.read_text()).body, typing_too):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif node.module is not None and not node.level:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names
            if not names <= MODULES.keys():  # something of the module itself, not only its submodules
                found.add(node.module)
    return found & MODULES.keys()


def top_level(body: list[ast.stmt], typing_too: bool):
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If | ast.Try) and (
            typing_too or "TYPE_CHECKING" not in ast.unparse(node)[:20]
        ):
            yield from top_level(node.body, typing_too)


def graph(package: str) -> dict[str, set[str]]:
    inside = {name for name in MODULES if name.startswith(f"appliance.{package}.")}
    typing_too = package not in MUTUAL
    return {name: imported(MODULES[name], typing_too=typing_too) & inside for name in inside}


@pytest.mark.parametrize(
    "package", sorted(path.name for path in ROOT.iterdir() if (path / "__init__.py").exists())
)
def test_a_package_has_no_import_cycle(package):
    try:
        tuple(TopologicalSorter(graph(package)).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_a_cycle_for_the_type_checker_would_be_seen(tmp_path):
    source = tmp_path / "upward.py"
    source.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from appliance.client.context import Context\n"
    )
    assert imported(source) == {"appliance.client.context"}

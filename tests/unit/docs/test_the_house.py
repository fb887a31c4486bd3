"""What the documentation says of the code is there: inner layers, walks, and the answers to a newcomer's questions."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
NAMED = re.compile(r"`(?P<file>[\w/]+\.py)`(?: \|)? `(?P<name>[\w.]+)`")
WALKS = ("A GET", "A CCR", "A revocation", "A record's update")


def section(text: str, heading: str) -> str:
    """Give what stands below the heading that begins like this, up to the next one of its rank or a higher one."""
    found = re.search(rf"^(#+) {re.escape(heading)}.*\n", text, re.MULTILINE)
    assert found is not None, f"there is no heading {heading!r}"
    rest = text[found.end() :]
    end = re.search(rf"^#{{1,{len(found[1])}}} ", rest, re.MULTILINE)
    return rest if end is None else rest[: end.start()]


@cache
def names_in(file: Path) -> frozenset[str]:
    """Give the functions, classes and constants of a module, and what its classes define, as ``Class.name``."""
    found: set[str] = set()

    def look(body: list[ast.stmt], prefix: str) -> None:
        for item in body:
            if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef):
                found.add(prefix + item.name)
            elif isinstance(item, ast.ClassDef):
                found.add(prefix + item.name)
                look(item.body, f"{prefix}{item.name}.")
            elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                found.add(prefix + item.target.id)
            elif isinstance(item, ast.Assign):
                found.update(prefix + target.id for target in item.targets if isinstance(target, ast.Name))

    look(ast.parse(file.read_text()).body, "")
    return frozenset(found)


def check_names(text: str, base: Path) -> int:
    """Check that each file named in ``text`` holds the name that is said with it; give how many there are."""
    named = list(NAMED.finditer(text))
    for file, name in (match.groups() for match in named):
        assert (base / file).is_file(), f"{file} is not there"
        assert name in names_in(base / file), f"{file} has no {name}"
    return len(named)


def contracts() -> dict[str, list[set[str]]]:
    """Give the layers of each package that has a contract: from the top, each a set of modules."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    return {
        contract["containers"][0]: [set(re.findall(r"\w+", layer)) for layer in contract["layers"]]
        for contract in settings["contracts"]
        if contract["type"] == "layers"
    }


@pytest.mark.parametrize("package", ["client", "server", "transport", "pva", "certmon", "ioc"])
def test_the_drawing_of_inner_layers_is_the_contract_that_lint_holds(package: str) -> None:
    lines = re.findall(r"^ {4}(\S.*)$", section(ARCHITECTURE, f"Inside `{package}`"), re.MULTILINE)
    drawn = [set(re.split(r" {2,}", line)[0].split(" | ")) for line in lines]
    assert drawn == contracts()[f"appliance.{package}"]


def test_the_drawing_of_all_layers_is_the_contract_that_lint_holds() -> None:
    drawing = " ".join(re.findall(r"^ {4}(\S.*| +\S.*)$", section(ARCHITECTURE, "Layers"), re.MULTILINE))
    assert [set(re.findall(r"\w+", layer)) for layer in drawing.split(">")] == contracts()["appliance"]


@pytest.mark.parametrize("walk", WALKS)
def test_each_line_of_a_walk_names_files_and_what_is_in_them(walk: str) -> None:
    lines = section(ARCHITECTURE, walk).strip().splitlines()
    assert [line.partition(".")[0] for line in lines] == [str(number + 1) for number in range(len(lines))]
    assert 5 <= len(lines) <= 10, "a walk has ten lines at the most"
    for line in lines:
        files = len(re.findall(r"\.py`", line))
        assert files, f"no file is named: {line}"
        assert check_names(line, ROOT / "appliance") == files, f"a file is named without a name in it: {line}"


def test_each_of_twenty_questions_is_answered_by_a_file_and_a_name_in_it() -> None:
    text = section(CONTRIBUTING, "Twenty questions of a newcomer")
    assert len(re.findall(r"^\| [^|]*\? \|", text, re.MULTILINE)) == 20
    assert check_names(text, ROOT) == 20

"""What the documentation says of the code is there: inner layers, walks, and the answers to a newcomer's questions."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

from appliance.pva.connection import OUT_LIMIT
from appliance.pva.limits import Limits
from appliance.pvdata.codec import MAX_PLANS
from appliance.pvdata.pace import MAX_VALUES
from appliance.pvdata.primitives import DecodeLimits
from appliance.server import Server
from appliance.server.access import MAX_LOST_READERS
from appliance.server.operation import QUEUE_LIMIT
from appliance.server.peer import MAX_MESSAGES
from appliance.server.quota import DEFAULT_QUOTA
from appliance.server.sharedpv import MAX_TASKS
from appliance.transport.lingering import LINGER_OCTETS

ROOT = Path(__file__).parents[3]
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
NAMED = re.compile(r"`(?P<file>[\w/]+\.py)`(?: \|)? `(?P<name>[\w.]+)`")
WALKS = ("A GET", "A CCR", "A renewal", "A revocation", "A record's update", "A value through the gateway")


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


def number(count: int) -> str:
    """Write a number as the page does."""
    return f"{count:,}".replace(",", " ") if count >= 10_000 else str(count)


def octets(count: int) -> str:
    return f"{count >> 20} MB" if count >= 1 << 20 else f"{count >> 10} KiB"


def test_the_numbers_of_what_bounds_a_peer_are_those_of_the_code() -> None:
    connections = inspect.signature(Server).parameters["max_connections"].default
    said = {
        f"more than {number(MAX_VALUES)} values": "send a message of very many values",
        f"{octets(DecodeLimits.CACHED_OCTETS)} of memory for one connection, "
        f"{octets(DecodeLimits.ALL_CACHED_OCTETS)} for all connections": "define types",
        f"{octets(Limits().max_request_octets)} of memory": "send ever new pvRequests",
        f"plans for {number(DecodeLimits.BITSET_BYTES * 8)} fields of one type are kept, at most {MAX_PLANS} plans": "send ever new bit",
        f"in a queue of more than {octets(QUEUE_LIMIT)} they are merged earlier; answers stop at {octets(OUT_LIMIT)}": "not read ",
        f"{octets(LINGER_OCTETS)}": "continue to send after",
        f"{number(MAX_LOST_READERS)} pairs": "lose the right to read",
        f"{number(DEFAULT_QUOTA.connections)} from one address, {number(DEFAULT_QUOTA.anonymous_connections)} of them anonymous, "
        f"{number(connections)} altogether": "open very many connections",
        f"{number(Limits().max_channels)} for one connection; {number(DEFAULT_QUOTA.channels)} for one address, "
        f"{number(DEFAULT_QUOTA.anonymous_channels)} for its anonymous clients": "open very many channels",
        f"{number(DEFAULT_QUOTA.subscriptions)} subscriptions of one PV for one address, "
        f"{number(DEFAULT_QUOTA.anonymous_subscriptions)} for an anonymous client": "watch one PV",
        f"{number(MAX_TASKS)} in one process": "cancel, and ask again",
        f"{number(MAX_MESSAGES)} of each connection are logged": "send messages for the log",
    }
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", section(ARCHITECTURE, "What bounds a peer"), re.MULTILINE)
    for bound, what in said.items():
        (happens,) = [text for asked, text in rows if f"{asked} ".startswith(what)]
        assert bound in happens, what


@pytest.mark.parametrize(
    "package", ["client", "server", "transport", "pva", "certmon", "authn", "ioc", "gateway", "p4p"]
)
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

"""What the documentation points to exists, and what it generates is current."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.helpers import reference_pages

ROOT = Path(__file__).parents[3]
PAGES = [
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
]
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^()\s]+)\)")
FENCE = re.compile(r"^```(?P<language>[\w{}-]*)[^\n]*\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
BUILT_IN = {".", "cd", "export", "umask", "source"}
SYSTEM = {
    "ansible-playbook", "cp", "curl", "git", "journalctl", "kill", "make", "pidof", "pip", "pip3", "pkill", "pre-commit", "python", "python3",
    "ruff", "ss", "sudo", "systemctl", "timedatectl",
}  # fmt: skip
"""Programs that are not ours, and that a reader has or is told to install."""


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    text = FENCE.sub("", page.read_text())
    found = set()
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        bare = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        found.add(re.sub(r"[^\w\- ]", "", bare).strip().replace(" ", "-"))
    return found


def entry_points() -> set[str]:
    return set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"])


def commands(text: str) -> list[list[str]]:
    """The words of every command in a block of shell, without the variables set before it."""
    found = []
    for line in re.sub(r"\\\n", " ", text).splitlines():
        for command in re.split(r"&&|\|\||[|;]|\$\(", line.partition(" #")[0]):
            words = command.split()
            while words and re.fullmatch(r"[A-Za-z_]\w*=\S*", words[0]):
                words = words[1:]
            if words and not words[0].startswith("#"):
                found.append([words[0].rpartition("/")[2] or words[0], *words[1:]])
    return found


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_relative_link_leads_to_a_file_and_a_heading_in_it(page: Path) -> None:
    text = FENCE.sub("", page.read_text())
    for target in (found["target"] for found in LINK.finditer(text)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.is_relative_to(ROOT), f"{name(page)}: {target} leads out of the repository"
        assert there.exists(), f"{name(page)}: {target} leads nowhere"
        if anchor:
            assert anchor in anchors(there), f"{name(page)}: {target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_of_a_shell_block_exists(page: Path) -> None:
    known = entry_points() | BUILT_IN | SYSTEM
    for block in FENCE.finditer(page.read_text()):
        if block["language"] == "sh":
            unknown = {words[0] for words in commands(block["text"])} - known
            assert not unknown, (
                f"{name(page)} names {sorted(unknown)}: neither ours nor a known system program"
            )


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_option_of_our_commands_is_in_their_help(page: Path) -> None:
    for block in FENCE.finditer(page.read_text()):
        for program, *words in commands(block["text"]) if block["language"] == "sh" else ():
            if program in reference_pages.PARSERS:
                known = set(re.findall(r"--?[A-Za-z][\w-]*", reference_pages.help_text(program)))
                given = {word.partition("=")[0] for word in words if word.startswith("-") and word != "-"}
                assert given <= known, f"{name(page)}: {program} has no option {sorted(given - known)}"


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs/README.md"
    linked = {(index.parent / found["target"]).resolve() for found in LINK.finditer(index.read_text())}
    for page in (ROOT / "docs").rglob("*.md"):
        only_in_the_site = re.search(r"^```\{(toctree|eval-rst)\}", page.read_text(), re.MULTILINE)
        if page != index and page.parent.name != "decisions" and not only_in_the_site:
            assert page in linked, f"docs/README.md does not lead to {name(page)}"


def test_every_decision_is_in_its_index_with_its_title() -> None:
    index = (ROOT / "docs/decisions/README.md").read_text()
    for page in sorted((ROOT / "docs/decisions").glob("[0-9]*.md")):
        title = page.read_text().partition("\n")[0].removeprefix("# ")
        row = f"| [{page.name[:4]}]({page.name}) | {title} |"
        assert row in index, f"docs/decisions/README.md lacks the row: {row}"


@pytest.mark.parametrize("page", reference_pages.pages(), ids=name)
def test_the_generated_parts_are_current(page: Path) -> None:
    text = page.read_text()
    assert text == reference_pages.page(text), "write it anew: python -m tests.helpers.reference_pages"


def test_every_command_line_and_every_file_has_its_place() -> None:
    there = "\n".join(page.read_text() for page in reference_pages.pages())
    placed = {(found["what"], found["name"]) for found in reference_pages.MARKED.finditer(there)}
    assert placed == {("help", program) for program in reference_pages.PARSERS} | {
        ("keys", program) for program in reference_pages.FILES
    } | {("pvs", "pvagw"), ("metrics", "pvagw")}


def test_every_entry_point_has_a_reference_page() -> None:
    there = "\n".join(page.read_text() for page in reference_pages.DIRECTORY.glob("*.md"))
    for program in entry_points():
        assert f"usage: {program}" in there, f"no reference page shows the command line of {program}"

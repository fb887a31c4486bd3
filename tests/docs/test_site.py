"""The documentation as a site: no broken link, no page that nothing leads to, and each public name described."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import zlib
from importlib import import_module
from pathlib import Path

import pytest

from tests.helpers.public_names import PublicName, modules, p4p_names, public_names

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(600)  # to make the site takes some ten seconds of processor time


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the site as ``make docs`` does; a warning is an error."""
    where = tmp_path_factory.mktemp("site")
    made = subprocess.run(
        [sys.executable, "-m", "sphinx", "-n", "-W", "--keep-going", "-q", "-c", "docs", "-d", where / "cache", ".", where / "site"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=580,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    return where / "site"


def test_the_site_has_all_pages_a_search_and_a_front_page(site: Path) -> None:
    pages = [
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY", "CHANGELOG")),
    ]
    for page in pages:
        assert (site / page.relative_to(ROOT)).with_suffix(".html").is_file(), page
    assert "docs/index.html" in (site / "index.html").read_text()
    assert "authnjwt" in (site / "searchindex.js").read_text()


def test_the_api_reference_describes_each_public_name_and_nothing_else(site: Path) -> None:
    # Four lines of text, then one compressed line for each name: its path, its kind, and where it is.
    *_, packed = (site / "objects.inv").read_bytes().split(b"\n", 4)
    lines = [line.split() for line in zlib.decompress(packed).decode().splitlines()]
    described = {path for path, kind, *_ in lines if kind.startswith("py:") and kind != "py:module"}
    here = [name for name in public_names() if name.home == name.module]
    wanted = {
        path for name in here for path in (name.path, *(f"{name.path}.{member}" for member in name.members))
    }
    p4p = {name.path for name in p4p_names()}
    assert not p4p - described, "exported by a module of p4p's API, and described nowhere"
    # Sphinx notes where an object is defined, too, so that links from annotations find it.
    defined = {
        f"{name.thing.__module__}.{name.thing.__qualname__}"
        for name in here
        if hasattr(name.thing, "__qualname__")
    }
    assert not wanted - described, "on the page of public names, and described nowhere: has it a docstring?"
    assert not {name for name in described if not name.startswith("appliance.p4p.")} - wanted - defined, (
        "described, and not on the page of public names"
    )


@pytest.mark.parametrize("module", modules())
def test_the_page_of_public_names_is_what_the_module_exports(module: str) -> None:
    listed = [name.name for name in public_names() if name.module == module]
    assert len(listed) == len(set(listed))
    assert set(listed) == set(import_module(module).__all__)


@pytest.mark.parametrize("name", public_names(), ids=lambda name: name.path)
def test_a_public_name_is_there_with_its_members_and_is_the_same_in_both_places(name: PublicName) -> None:
    if name.home != name.module:
        assert not name.members, "the members are listed where it is described"
        assert getattr(import_module(name.home), name.name) is name.thing
        assert name.name in import_module(name.home).__all__
    elif inspect.isclass(name.thing):
        text = "".join(
            inspect.getsource(cls) for cls in name.thing.__mro__ if cls.__module__.startswith("appliance")
        )
        for member in name.members:
            there = (
                hasattr(name.thing, member)
                or re.search(rf"self\.{member}\b[^=]*=", text)
                or re.search(rf"^    {member}:", text, re.MULTILINE)
            )
            assert there, member


def test_what_is_exported_at_the_top_is_what_editors_are_told() -> None:
    """The names that are imported late are the same objects as in the block for type checkers."""
    import appliance

    source = inspect.getsource(appliance)
    block = source.partition("if TYPE_CHECKING:")[2].partition("\ndef ")[0]
    told = dict(re.findall(r"^    from (\S+) import ()", block, re.MULTILINE))
    for module in told:
        listed = re.search(rf"from {re.escape(module)} import (\([^)]*\)|[^\n]*)", block)
        assert listed is not None
        for name in re.findall(r"\w+", listed[1]):
            assert getattr(appliance, name) is getattr(import_module(module), name)

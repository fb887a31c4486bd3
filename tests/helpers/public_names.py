"""The names that programs may rely on, as docs/reference/public-names.md lists them."""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).parents[2] / "docs/reference/public-names.md"
_ROW = re.compile(r"^\| `(?P<name>\w+)` \| (?P<what>[^|]+) \| (?P<members>[^|]*?) ?\|$", re.MULTILINE)
_MODULE = re.compile(r"^## (?P<module>appliance[\w.]*)$", re.MULTILINE)
_HOME = re.compile(r"from `([\w.]+)`")


class PublicName(NamedTuple):
    """A row of the page."""

    module: str
    name: str
    what: str
    members: tuple[str, ...]
    home: str
    """The module that describes it; another one than ``module`` if this is a second place to import it from."""

    @property
    def path(self) -> str:
        return f"{self.module}.{self.name}"

    @property
    def thing(self) -> object:
        return getattr(import_module(self.module), self.name)


@cache
def public_names() -> tuple[PublicName, ...]:
    """Read the page."""
    parts = _MODULE.split(PAGE.read_text())[1:]
    found = []
    for module, text in zip(parts[::2], parts[1::2], strict=True):
        for row in _ROW.finditer(text):
            home = _HOME.fullmatch(row["what"])
            members = tuple(re.findall(r"`(\w+)`", row["members"]))
            found.append(PublicName(module, row["name"], row["what"], members, home[1] if home else module))
    return tuple(found)


@cache
def p4p_names() -> tuple[PublicName, ...]:
    """Read the modules of p4p's API from the page; what each exports is public. Each object is described where it comes first."""
    found = []
    seen: set[int] = set()
    for module in re.findall(r"^\| `(appliance\.p4p[\w.]*)` \|", PAGE.read_text(), re.MULTILINE):
        there = import_module(module)
        for name in getattr(there, "__all__", ()):
            thing = getattr(there, name)
            defined = getattr(thing, "__module__", module)
            # An object of another package is not ours to describe; one that a later module defines is described there.
            if (
                not (callable(thing) and id(thing) in seen)
                and defined.startswith("appliance")
                and not (defined != module and defined in P4P_HOMES)
            ):
                seen.add(id(thing))
                found.append(PublicName(module, name, "", (), module))
    return tuple(found)


P4P_HOMES = {"appliance.p4p.wrapper", "appliance.p4p.nt"}


def modules() -> list[str]:
    """Return the public modules, in the page's order."""
    return list(dict.fromkeys(name.module for name in public_names()))


def described(module: str) -> list[PublicName]:
    """Return the names that the API reference describes under ``module``."""
    names = p4p_names() if module.partition(".")[2].startswith("p4p") else public_names()
    return [name for name in names if name.module == module == name.home]

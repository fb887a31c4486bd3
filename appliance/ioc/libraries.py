"""Device support in C that a site has compiled: what its files say is checked before any of its code runs.

A library runs with all rights of the IOC. So it is loaded only from a path in the configuration that nobody else can change. Its
definition files (``.dbd``) are compared with the symbols that it has, and the names of the EPICS libraries that it was linked with
with those that are loaded here. All this is read from the files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from appliance.config.files import protected_file, read_regular
from appliance.errors import ConfigurationError
from appliance.ioc import dbcore
from appliance.ioc.config import LibraryStep
from appliance.ioc.dbcore import sitecode
from appliance.ioc.elf import SharedObject, read_shared_object

__all__ = ["Declared", "SiteLibraries"]

_LIMIT: Final = 512 << 20
_TEXT: Final = 16 << 20
_DEPTH: Final = 16
_TOKEN: Final = re.compile(r'#[^\n]*|^\s*%[^\n]*|"(?:[^"\\\n]|\\.)*"|[{}(),]|[^\s{}(),"#]+|"', re.MULTILINE)
_ARGUMENTS: Final = {
    "device": 2,
    "driver": 0,
    "registrar": 0,
    "function": 0,
    "variable": 0,
    "link": 1,
    "recordtype": 0,
}
"""Which argument of a statement is the name of its support."""
_OWN_BASE: Final = ("pdbbase", "iocInit", "errlogPrintf")
"""Symbols that only EPICS Base itself has."""


class Declared(NamedTuple):
    """One support that a definition file names."""

    kind: str
    """The statement: ``device``, ``driver``, ``registrar``, ``function``, ``variable``, ``link`` or ``recordtype``."""
    name: str
    type: str
    """The type of a variable."""
    file: str
    line: int

    def symbols(self) -> tuple[str, ...]:
        """Return the symbols that EPICS looks for."""
        name = self.name
        return {
            "device": (f"pvar_dset_{name}",),
            "driver": (f"pvar_drvet_{name}",),
            "registrar": (f"pvar_func_{name}",),
            "function": (f"pvar_func_register_func_{name}",),
            "variable": (f"pvar_{self.type}_{name}",),
            "link": (f"pvar_jlif_{name}",),
            "recordtype": (f"pvar_rset_{name}RSET", f"pvar_func_{name}RecordSizeOffset"),
        }[self.kind]

    def export(self) -> str:
        """Return the line of C that makes the symbol."""
        name = self.name
        return {
            "device": f"epicsExportAddress(dset, {name})",
            "driver": f"epicsExportAddress(drvet, {name})",
            "registrar": f"epicsExportRegistrar({name})",
            "function": f"epicsRegisterFunction({name})",
            "variable": f"epicsExportAddress({self.type}, {name})",
            "link": f"epicsExportAddress(jlif, {name})",
            "recordtype": f"epicsExportAddress(rset, {name}RSET)",
        }[self.kind]


class SiteLibraries:
    """The libraries of a configuration; ``check`` runs no code of theirs."""

    def __init__(self, steps: Iterable[LibraryStep]) -> None:
        self.steps = tuple(steps)
        self.declared: list[Declared] = []
        """What their definition files name."""
        self.warnings: list[str] = []
        self._paths: list[str] = []

    @property
    def must_run(self) -> bool:
        """Whether no database can be loaded without their code: they bring types of records or links."""
        return any(each.kind in {"recordtype", "link"} for each in self.declared)

    def check(self) -> None:
        """Check files, versions and symbols, and read the definitions.

        Raises:
            ConfigurationError: A file is missing or somebody else can change it, it was made for another EPICS Base,
                or support is missing that a definition file names.
        """
        objects: list[SharedObject] = []
        for step in self.steps:
            path = protected_file(step.file)
            self._paths.append(path)
            objects.append(read_shared_object(read_regular(path, _LIMIT), step.file))
        ours = _base_libraries()
        for step, found in zip(self.steps, objects, strict=True):
            self._check_version(step, found, ours)
        self._check_undefined(objects)
        symbols = frozenset[str]().union(*(found.defined for found in objects))
        for step in self.steps:
            for file in step.definitions:
                for each in _declarations(file, [os.path.dirname(file) or "."]):  # noqa: PTH120
                    if not _is_base(each):
                        _check_symbols(each, symbols)
                        self.declared.append(each)

    def load(self) -> None:
        """Load the libraries, in their order, then their definitions, and register the support. Their code runs from now on.

        Raises:
            ConfigurationError: The system's loader or EPICS refused something.
        """
        for path in self._paths:
            sitecode.load_library(path)
        self._define()
        if self.steps:
            dbcore.register_support()

    def stand_in(self) -> None:
        """Load the definitions only; support that does nothing takes the place of what they name.

        Raises:
            ConfigurationError: EPICS refused a definition.
        """
        self._define()
        for each in self.declared:
            if each.kind == "device":
                sitecode.stand_in_device(each.name)
            elif each.kind == "driver":
                sitecode.stand_in_driver(each.name)
            elif each.kind == "function":
                sitecode.stand_in_function(each.name)

    def _define(self) -> None:
        base = sitecode.base_folder() / "dbd"
        for step in self.steps:
            for file in step.definitions:
                folder = os.path.dirname(file) or "."  # noqa: PTH120
                dbcore.load_definition(file, search=os.fsencode(f"{folder}:{base}:."))

    def _check_version(self, step: LibraryStep, found: SharedObject, ours: dict[str, SharedObject]) -> None:
        version = sitecode.base_version()
        if any(each.machine != found.machine for each in ours.values()):
            raise ConfigurationError("was compiled for another kind of processor", file=step.file)
        for name in _OWN_BASE:
            if name in found.defined:
                raise ConfigurationError(
                    f"contains an EPICS Base of its own ({name}); link it with the shared libraries of EPICS {version}",
                    file=step.file,
                )
        is_linked = False
        for needed in found.needed:
            mine = ours.get(needed.partition(".so")[0])
            if mine is None:
                continue
            is_linked = True
            if mine.soname != needed:
                raise ConfigurationError(
                    f"was compiled for another version of EPICS Base: it needs {needed}, and this IOC, "
                    f"EPICS {version}, has {mine.soname}; compile it again with the headers and libraries of this IOC",
                    file=step.file,
                )
        if not is_linked and step.definitions:
            self.warnings.append(
                f"{step.file}: it is not linked with EPICS Base, so nobody can tell for which version it was compiled; "
                f"link it with -Wl,--no-as-needed -ldbCore -lCom of EPICS {version}"
            )

    def _check_undefined(self, objects: list[SharedObject]) -> None:
        """Check that each library finds the symbols it needs in EPICS Base or in one before it."""
        known: set[str] = set()
        sonames: set[str] = set()
        for step, found in zip(self.steps, objects, strict=True):
            known |= found.defined
            # One that brings libraries of its own gets its symbols from them, too: the system's loader will say.
            brings = any(name not in sonames and not sitecode.is_loaded(name) for name in found.needed)
            sonames.add(found.soname)
            missing = sorted(name for name in found.undefined - known if not sitecode.has_symbol(name))
            if missing and not brings:
                more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
                raise ConfigurationError(
                    f"needs {missing[0]!r}{more}, which neither EPICS {sitecode.base_version()} nor a library before it in "
                    "'libraries' has; name the library that has it first, or compile this one for this version",
                    file=step.file,
                )


def _check_symbols(each: Declared, symbols: frozenset[str]) -> None:
    for symbol in each.symbols():
        if symbol not in symbols:
            raise ConfigurationError(
                f"{each.kind}({each.name}): no file of 'libraries' has the symbol {symbol}; "
                f"the C code needs the line {each.export()};",
                file=each.file,
                line=each.line,
            )


def _is_base(each: Declared) -> bool:
    return all(sitecode.has_symbol(symbol) for symbol in each.symbols())


def _base_libraries() -> dict[str, SharedObject]:
    """Return EPICS Base's own libraries by their name without version."""
    folder = sitecode.base_folder() / "lib"
    found = {}
    for name in ("libCom", "libca", "libdbCore", "libdbRecStd"):
        path = folder / f"{name}.so"
        if path.is_file():
            found[name] = read_shared_object(path.read_bytes(), str(path))
    return found


def _declarations(file: str, folders: list[str], depth: int = 0) -> Iterator[Declared]:
    """Yield what a definition file declares outside of braces, and what it includes."""
    if depth > _DEPTH:
        raise ConfigurationError(f"definition files include each other more than {_DEPTH} deep", file=file)
    text = read_regular(file, _TEXT).decode("utf-8", "surrogateescape")
    tokens = []
    line, seen = 1, 0
    for match in _TOKEN.finditer(text):
        start = match.end() - len(match.group().lstrip())
        line += text.count("\n", seen, start)
        seen = start
        word = match.group().strip()
        if not word.startswith(("#", "%")):
            tokens.append((word[1:-1] if len(word) > 1 and word[0] == '"' == word[-1] else word, line))
    nested = 0
    for index, (word, at) in enumerate(tokens):
        following = [each for each, _ in tokens[index + 1 : index + 9]]
        nested = max(nested + (word == "{") - (word == "}"), 0)
        if nested:
            continue
        if word == "include" and following:
            found = _included(following[0], folders)
            # Base's own files bring nothing that is not loaded already.
            if found is not None:
                yield from _declarations(found, folders, depth + 1)
        elif word in _ARGUMENTS and following[:1] == ["("]:
            arguments = [
                each for each in following[1 : following.index(")") if ")" in following else 9] if each != ","
            ]
            if len(arguments) > _ARGUMENTS[word]:
                kind = arguments[1] if word == "variable" and len(arguments) > 1 else "int"
                yield Declared(word, arguments[_ARGUMENTS[word]], kind, file, at)


def _included(name: str, folders: list[str]) -> str | None:
    for folder in folders:
        path = Path(folder, name)
        if path.is_file():
            return str(path)
    return None

"""Finds file and line of a record, a field or an info item.

EPICS Base forgets this when it has read a database. But messages about links, groups and crashes of its parser must name
file and line. So the files are read again, only for the message. Text that is not understood costs only the line number.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from appliance.errors import ApplianceError, ConfigurationError
from appliance.ioc.config import LoadStep, is_substitutions
from appliance.ioc.dbcore import environment_value, expand_environment
from appliance.ioc.macros import expand_known, parse_macros
from appliance.ioc.substitutions import Substitutions, parse_substitutions

__all__ = ["FileLine", "Item", "better", "exists", "find", "loaded_by", "read_substitutions", "unclosed"]

_TOKEN: Final = re.compile(r'#[^\n]*|"(?:[^"\\\n]|\\.)*"|[{}(),]|[^\s{}(),"#]+|"')
_LIMIT: Final = 64 << 20
_DEPTH: Final = 16
_UNDEFINED: Final = re.compile(r"the macro (\S+) is not defined")


class FileLine(NamedTuple):
    """A line of a file."""

    file: str
    line: int


class Item(NamedTuple):
    """One item of a record in a database: ``record``, a field's name, or ``info(name)``."""

    record: str
    name: str
    place: FileLine
    text: str
    """The text that follows in the file, with macros expanded."""


def _places(name: str) -> list[Path]:
    """Return where EPICS searches a database."""
    folders = [""] if "/" in name else (environment_value("EPICS_DB_INCLUDE_PATH") or ".").split(":")
    return [Path(folder, name) for folder in folders]


def exists(name: str) -> bool:
    """Whether EPICS finds a database of this name."""
    return any(path.exists() for path in _places(name))


def read_substitutions(step: LoadStep, *, most_names: int | None = None) -> Substitutions:
    """Read a substitution file, and look whether the databases that it names are there.

    Args:
        step: The file.
        most_names: ``dbTemplateMaxVars``, for who loads the file.

    Raises:
        ConfigurationError: It cannot be read, or it is wrong.
    """
    path = Path(step.file)
    try:
        if not path.is_file():
            why = "it is no regular file" if path.exists() else "there is no such file, or no permission"
            raise ConfigurationError(f"cannot be read: {why}", file=step.file)
        with path.open("rb") as stream:
            data = stream.read(_LIMIT + 1)
    except OSError as error:
        raise ConfigurationError(f"cannot be read: {error.strerror or error}", file=step.file) from None
    if len(data) > _LIMIT:
        raise ConfigurationError(
            f"is larger than {_LIMIT} octets, which no substitution file is", file=step.file
        )
    found = parse_substitutions(
        data.decode("utf-8", "surrogateescape"), step.file, step.macros, most_names=most_names
    )
    for load in found.loads:
        name = expand_environment(load.file)
        if not name or ("$" not in name and not exists(name)):
            where = (
                ""
                if "/" in name
                else f" in {environment_value('EPICS_DB_INCLUDE_PATH') or '.'} (EPICS_DB_INCLUDE_PATH)"
            )
            raise ConfigurationError(f"there is no database {name!r}{where}", file=step.file, line=load.line)
    return found


def _open(name: str) -> str | None:
    """Read the text of a database; it is searched where EPICS searches it."""
    for path in _places(name):
        try:
            # What is no file, such as a pipe, may never end.
            if path.is_file() and path.stat().st_size <= _LIMIT:
                return path.read_bytes().decode("utf-8", "surrogateescape")
        except OSError:
            continue
    return None


def _tokens(text: str) -> Iterator[tuple[str, int, int]]:
    line, seen = 1, 0
    for match in _TOKEN.finditer(text):
        line += text.count("\n", seen, match.start())
        seen = match.start()
        if not match.group().startswith("#"):
            yield match.group(), line, match.end()


def _bare(word: str) -> str:
    return word[1:-1] if len(word) > 1 and word[0] == '"' == word[-1] else word


def _items(step: LoadStep, depth: int = 0) -> Iterator[Item]:
    text = _open(step.file)
    if text is None or depth > _DEPTH:
        return
    if is_substitutions(step.file):
        for file, values in _templates(text, step.macros):
            yield from _database(file, values, depth + 1)
    else:
        yield from _database(step.file, parse_macros(step.macros), depth)


def _database(file: str, macros: Mapping[str, str], depth: int) -> Iterator[Item]:
    text = _open(file)
    if text is None or depth > _DEPTH:
        return
    text = expand_known(text, macros)
    tokens = list(_tokens(text))
    record = ""
    nested = 0
    for index, (word, line, end) in enumerate(tokens):
        following = [each for each, _, _ in tokens[index + 1 : index + 5]]
        if word == "{":
            nested += 1
        elif word == "}":
            nested = max(nested - 1, 0)
        elif word == "include" and nested == 0 and following:
            yield from _database(_bare(following[0]), macros, depth + 1)
        elif word in ("record", "grecord") and following[:1] == ["("] and len(following) == 4:
            record = _bare(following[3])
            nested = 0
            yield Item(record, "record", FileLine(file, line), "")
        elif word in ("field", "info") and following[:1] == ["("] and len(following) > 1:
            name = _bare(following[1])
            yield Item(
                record,
                name if word == "field" else f"info({name})",
                FileLine(file, line),
                text[end : end + 65536],
            )


def _templates(text: str, given: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the databases that a substitution file loads, each with its macros."""
    for load in parse_substitutions(text, "", given).loads:
        yield load.file, parse_macros(load.macros)


def find(steps: Iterable[LoadStep], record: str, name: str = "record", near: str = "") -> FileLine | None:
    """Return the last place of a record, of one of its fields or of its ``info(...)`` items; the last one is in force.

    Args:
        steps: the files that were loaded.
        record: the record's name.
        name: ``record``, a field's name, or ``info(NAME)``.
        near: a word in the text that follows; the line of this word is returned.

    """
    found: FileLine | None = None
    for step in steps:
        try:
            for item in _items(step):
                if item.record != record or item.name not in (name, "record"):
                    continue
                if item.name == name or found is None:
                    found = item.place
                    if near and (at := item.text.find(near)) >= 0:
                        found = FileLine(found.file, found.line + item.text.count("\n", 0, at))
        except (ApplianceError, ValueError, IndexError):
            continue
    return found


def unclosed(step: LoadStep) -> FileLine | None:
    """Return the place of a brace that is never closed, in a file or in the files that it names; None if there is none."""
    files = {step.file: None}
    text = _open(step.file)
    if text is not None and is_substitutions(step.file):
        with contextlib.suppress(ApplianceError):
            files.update((file, None) for file, _ in _templates(text, ""))
    for file in files:
        if (line := _unclosed_in(_open(file) or "")) is not None:
            return FileLine(file, line)
    return None


def _unclosed_in(text: str) -> int | None:
    opened: list[int] = []
    for word, line, _ in _tokens(text):
        if word == "{":
            opened.append(line)
        elif word == "}" and opened:
            opened.pop()
        elif word == "record" and opened:
            # A record cannot begin inside braces: the record before it has not ended.
            return opened[0]
    return opened[0] if opened else None


def loaded_by(error: ConfigurationError, step: LoadStep, found: Substitutions) -> ConfigurationError:
    """Add to an error of a database the line of the substitution file that has loaded it, if there is only one that can be meant."""
    if error.file is None or error.file == step.file:
        return error
    loads = [load for load in found.loads if error.file.endswith(load.file.rpartition("/")[2])]
    if (missing := _UNDEFINED.search(error.why)) is not None:
        loads = [load for load in loads if missing[1] not in parse_macros(load.macros)][:1]
    if len(loads) != 1:
        return error
    return ConfigurationError(
        f"{error.why} (loaded by {step.file}:{loads[0].line})",
        file=error.file,
        line=error.line,
        key=error.key,
    )


def better(error: ConfigurationError, step: LoadStep) -> ConfigurationError:
    """Return the error, or a better one with the line if EPICS names no line."""
    if error.line is None and (place := unclosed(step)) is not None:
        return ConfigurationError(
            "a brace is opened here that nothing closes: a '}' is missing", file=place.file, line=place.line
        )
    return error

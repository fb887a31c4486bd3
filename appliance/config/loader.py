"""Configuration files: strict YAML into frozen structs that refuse unknown keys."""

from __future__ import annotations

import os
import re
import typing
from collections.abc import Callable, Hashable, Mapping
from functools import lru_cache, partial
from typing import Any, Final, Generic, NamedTuple, TypeVar

import msgspec
import yaml

from appliance.config.duration import Duration, parse_duration
from appliance.config.files import read_trusted
from appliance.config.hints import shaped, unknown
from appliance.config.secret import FilePath, Secret, resolve_reference
from appliance.config.section import Path, Section, dotted
from appliance.config.tree import MAXIMUM_SIZE, read_tree
from appliance.errors import ConfigurationError

__all__ = [
    "Document",
    "Settings",
    "default",
    "dump",
    "inline",
    "load",
    "load_document",
    "loads",
    "loads_document",
    "schema",
    "schema_text",
    "tree_document",
]

_T = TypeVar("_T")
_AT: Final = re.compile(r" - at `(key in )?\$(?P<path>.*?)`$")
_STEP: Final = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")
_MAXIMUM_FAULTS: Final = 20


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the structs for configuration files and their parts."""


def default(value: Any) -> Any:
    """Return a field's default of a type of this package (Duration, Secret, FilePath), in a form that `schema` understands."""
    return msgspec.field(default_factory=lambda: value)


class Document(Generic[_T]):
    """A loaded file: the struct, and the line of every key."""

    __slots__ = ("file", "lines", "tree", "value")

    def __init__(self, value: _T, tree: Any, file: str, lines: dict[Path, int]) -> None:
        self.value = value
        self.tree = tree
        """The same as plain mappings and lists, as written."""
        self.file = file
        self.lines = lines

    def where(self, *path: str | int) -> str:
        """Return ``file:line`` of a key."""
        line = self.lines.get(path)
        return self.file if line is None else f"{self.file}:{line}"

    def section(self, *path: str | int) -> Section:
        """Return the mapping below ``path`` with its lines, as `resolve_client` and `resolve_server` take it."""
        tree = self.tree if isinstance(self.tree, Mapping) else {}
        written = Section(tree, self.file, self.lines).section(*path)
        if not written.value:
            return written
        read: Any = self.value
        for key in path:
            read = getattr(read, str(key)) if isinstance(read, msgspec.Struct) else read[key]
        # The struct's values, not the text: there, paths and references are resolved.
        values = Section.of(read).value
        return Section(
            {key: values[key] for key in written.value if key in values}, self.file, written.lines, path
        )

    def error(self, why: str, *path: str | int) -> ConfigurationError:
        """Return an error about a key of this file, for rules that a type cannot express."""
        return ConfigurationError(why, file=self.file, line=self.lines.get(path), key=dotted(path))


def load(path: str | os.PathLike[str], kind: type[_T], *, environ: Mapping[str, str] | None = None) -> _T:
    """Read a file into a struct type.

    Raises:
        ConfigurationError: ``file:line: key: why``, with further faults of the file on further lines.
    """
    return load_document(path, kind, environ=environ).value


def loads(text: str, kind: type[_T], *, file: str = "<text>", environ: Mapping[str, str] | None = None) -> _T:
    """Do as `load` for a text; ``file`` is its name in errors."""
    return loads_document(text, kind, file=file, environ=environ).value


def load_document(
    path: str | os.PathLike[str], kind: type[_T], *, environ: Mapping[str, str] | None = None
) -> Document[_T]:
    """Do as `load`, and also return the line of each key."""
    name = os.fspath(path)
    data = read_trusted(name, MAXIMUM_SIZE)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigurationError("not valid UTF-8 text", file=name, line=line) from error
    return loads_document(text, kind, file=name, environ=environ)


def loads_document(
    text: str, kind: type[_T], *, file: str = "<text>", environ: Mapping[str, str] | None = None
) -> Document[_T]:
    """Do as `loads`, and also return the line of each key."""
    tree, lines = read_tree(text, file)
    return tree_document({} if tree is None else tree, lines, kind, file=file, environ=environ)


def tree_document(
    tree: Any,
    lines: dict[Path, int],
    kind: type[_T],
    *,
    file: str = "<text>",
    environ: Mapping[str, str] | None = None,
) -> Document[_T]:
    """Do as `loads_document` for plain values that somebody else has read.

    Args:
        tree: The values.
        lines: The line of each key and list item.
        kind: The struct type.
        file: The file's name, in errors and for relative paths.
        environ: The variables that references may name.
    """
    _check_type(typing.cast("Hashable", kind))
    hook = partial(_decode, file, environ)
    try:
        value = msgspec.convert(tree, kind, dec_hook=hook)
    except (msgspec.ValidationError, ConfigurationError) as error:
        faults: list[_Fault] = []
        _explain(tree, kind, (), hook, faults)
        if not faults:
            faults.append(_fault(error, ()))
        raise _combined([_placed(fault, lines) for fault in faults], file, lines) from error
    return Document(value, tree, file, lines)


def _placed(fault: _Fault, lines: Mapping[Path, int]) -> _Fault:
    """Find the line of a struct's own rule, whose sentence begins with the key that it is about."""
    key, colon, why = fault.why.partition(": ")
    if not colon or " " in key:
        return fault
    depth = len(fault.path)
    for path in sorted(lines, key=len, reverse=True):
        inner = dotted(path[depth:])
        if path[:depth] == fault.path and inner and f"{key}.".startswith(f"{inner}."):
            rest = key[len(inner) + 1 :]
            return _Fault((*path, *rest.split(".")) if rest else path, why)
    return fault


def schema(kind: type) -> dict[str, Any]:
    """Return the JSON schema of a struct type, for editors and for checks before deployment."""
    _check_type(typing.cast("Hashable", kind))
    try:
        return msgspec.json.schema(kind, schema_hook=_schema_hook)
    except TypeError as error:
        msg = f"{error}; write such a default as default(value)"
        raise TypeError(msg) from error


def schema_text(kind: type) -> str:
    """Return `schema` in the form that ``--print-schema`` prints."""
    return msgspec.json.format(msgspec.json.encode(schema(kind))).decode() + "\n"


def dump(value: Any) -> str:
    """Return a struct as YAML that `loads` can read, without fields that are None.

    A Secret becomes the reference to its file.

    Raises:
        ConfigurationError: A Secret came from no file.
    """
    plain = _without_none(msgspec.to_builtins(value, enc_hook=_encode))
    text = _yaml(plain, allow_unicode=True)
    # PyYAML writes these Unicode line ends unchanged, but reads them as a blank.
    return text if frozenset("\x85\u2028\u2029").isdisjoint(text) else _yaml(plain, allow_unicode=False)


def inline(value: Any) -> str:
    """Return plain values as YAML in one line, for a file that is written with comments between its keys."""
    text = yaml.dump(
        [value],
        Dumper=_dumper(),
        sort_keys=False,
        allow_unicode=False,
        width=float("inf"),
        default_flow_style=True,
    )
    return text.strip()[1:-1]


def _yaml(plain: Any, *, allow_unicode: bool) -> str:
    return yaml.dump(plain, Dumper=_dumper(), sort_keys=False, allow_unicode=allow_unicode, width=100)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return value


class _Fault(NamedTuple):
    path: Path
    why: str


def _combined(faults: list[_Fault], file: str, lines: Mapping[Path, int]) -> ConfigurationError:
    def line_of(path: Path) -> int | None:
        while path and path not in lines:
            path = path[:-1]
        return lines.get(path)

    faults.sort(key=lambda fault: line_of(fault.path) or 0)
    first, *others = faults[:_MAXIMUM_FAULTS]
    rest = [
        str(ConfigurationError(why, file=file, line=line_of(path), key=dotted(path))) for path, why in others
    ]
    if len(faults) > _MAXIMUM_FAULTS:
        rest.append(f"{file}: and {len(faults) - _MAXIMUM_FAULTS} more")
    why = "\n".join([first.why, *rest])
    return ConfigurationError(why, file=file, line=line_of(first.path), key=dotted(first.path))


def _fault(error: Exception, path: Path) -> _Fault:
    if isinstance(error, ConfigurationError):
        return _Fault(path, str(error))
    text = str(error)
    match = _AT.search(text)
    if match:
        text = text[: match.start()]
        steps = _STEP.findall(match["path"])
        path = (*path, *(name or (int(index) if index.isdigit() else index) for name, index in steps))
    return _Fault(path, text.replace("`", ""))


_Hook = Callable[[type, Any], Any]


def _explain(value: Any, kind: Any, path: Path, hook: _Hook, faults: list[_Fault]) -> None:
    """Find every fault of a value that did not convert; msgspec reports only the first."""
    try:
        msgspec.convert(value, kind, dec_hook=hook)
    except (msgspec.ValidationError, ConfigurationError) as error:
        before = len(faults)
        _explain_parts(value, kind, path, hook, faults)
        if len(faults) == before:
            fault = _fault(error, path)
            # A rule of the struct itself, or one of our hooks, has its own sentence.
            mine = isinstance(error, msgspec.ValidationError) and fault.path == path
            faults.append(_Fault(fault.path, shaped(fault.why, value, kind, path)) if mine else fault)


def _explain_parts(value: Any, kind: Any, path: Path, hook: _Hook, faults: list[_Fault]) -> None:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        _explain_parts(value, arguments[0], path, hook, faults)
    elif isinstance(value, dict):
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            _explain_struct(value, kind, path, hook, faults)
        elif origin is dict:
            for key, item in value.items():
                _explain(item, arguments[1], (*path, key), hook, faults)
        else:
            structs = [arm for arm in arguments if isinstance(arm, type) and issubclass(arm, msgspec.Struct)]
            if len(structs) == 1:
                _explain_struct(value, structs[0], path, hook, faults)
    elif isinstance(value, list) and (
        origin in {list, frozenset, set} or (origin is tuple and arguments[1:] == (...,))
    ):
        for index, item in enumerate(value):
            _explain(item, arguments[0], (*path, index), hook, faults)


def _explain_struct(value: dict[str, Any], kind: Any, path: Path, hook: _Hook, faults: list[_Fault]) -> None:
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    tag = kind.__struct_config__.tag_field
    for key, item in value.items():
        if key in fields:
            _explain(item, fields[key].type, (*path, key), hook, faults)
        elif key != tag:
            faults.append(_Fault((*path, key), unknown("key", key, fields)))
    missing = [name for name, field in fields.items() if field.required and name not in value]
    if missing:
        faults.append(_Fault(path, f"missing: {', '.join(missing)}"))


@lru_cache(maxsize=256)
def _check_type(kind: Hashable) -> None:
    """Check that every struct in a configuration refuses unknown keys: a misspelt key must never mean a silent default."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        if not kind.__struct_config__.forbid_unknown_fields:
            msg = f"{kind.__name__} must be defined with forbid_unknown_fields=True"
            raise TypeError(msg)
        for field in msgspec.structs.fields(kind):
            _check_type(field.type)
    else:
        for part in typing.get_args(kind):
            if isinstance(part, type) or typing.get_args(part):
                _check_type(part)


def _decode(file: str, environ: Mapping[str, str] | None, kind: type, value: Any) -> Any:
    if kind is Duration and isinstance(value, str | int) and not isinstance(value, bool):
        return parse_duration(value)
    if isinstance(value, str) and kind is FilePath:
        return FilePath(_path(value, file, environ))
    if isinstance(value, str) and kind is Secret:
        path = resolve_reference(value, environ)
        if not value:
            return Secret()
        if path is None:
            raise ConfigurationError(
                "a secret must not stand in the file: write ${credential:NAME} or ${file:/PATH} instead"
            )
        return Secret.from_file(path)
    if kind in {Duration, FilePath, Secret}:
        msg = f"Expected text, got {type(value).__name__}"
    else:
        msg = f"{kind.__name__} cannot be read from a configuration file"
    raise (TypeError if kind not in {Duration, FilePath, Secret} else ValueError)(msg)


def _path(text: str, file: str, environ: Mapping[str, str] | None) -> str:
    if "\0" in text:
        raise ConfigurationError("a path must not hold a NUL character")
    path = resolve_reference(text, environ)
    if path is not None or not text or text.startswith(("/", "~")) or file.startswith("<"):
        return path or os.path.expanduser(text)  # noqa: PTH111 - text in, text out
    # What follows a semicolon is a password, and no path that could be shortened.
    name, semicolon, password = text.partition(";")
    if not name.strip():
        return text
    # Relative to the file that names it, not to the daemon's working directory.
    beside = os.path.join(os.path.dirname(os.path.abspath(file)), name)  # noqa: PTH100, PTH118, PTH120
    return os.path.normpath(beside) + semicolon + password


def _encode(value: Any) -> Any:
    if isinstance(value, Secret):
        if value.source:
            return f"${{file:{value.source}}}"
        if not value:
            return ""
        raise ConfigurationError("a secret that came from no file cannot be written down")
    if isinstance(value, FilePath):
        name, semicolon, _ = value.partition(";")
        return f"{name};<password>" if semicolon else str(value)
    if isinstance(value, Duration):
        return str(value)
    msg = f"{type(value).__name__} cannot be written to a configuration file"
    raise TypeError(msg)


def _schema_hook(kind: type) -> dict[str, Any]:
    if kind is Secret:
        return {"type": "string", "pattern": r"^(\$\{(credential|file):.+\})?$"}
    if kind is FilePath:
        return {"type": "string", "description": "path, or ${credential:NAME}; relative to this file"}
    if kind is Duration:
        return {
            "type": ["string", "integer"],
            "description": "duration: 30 (minutes), 45s, 12h, 1d, 2w, 6M, 1y6M",
        }
    # This tells msgspec that a type is not one of ours.
    raise NotImplementedError


@lru_cache(maxsize=1)
def _dumper() -> type[yaml.SafeDumper]:
    class Dumper(yaml.SafeDumper):
        """Quotes text that our reader would read as a number although YAML 1.1 does not."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    Dumper.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+\.?[0-9]*)(?:[eE][-+]?[0-9]+)$"),
        list("-+.0123456789"),
    )
    return Dumper

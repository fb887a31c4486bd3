"""Suggest what to write instead of a misspelt key, or of a value of the wrong form."""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from appliance.config.secret import FilePath

__all__ = ["shaped", "unknown"]

_LONGEST: Final = 60
_NAMES: Final[dict[Any, str]] = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
_BOUND: Final = re.compile(r"Expected `?(\w+)`? (of length )?(>=|<=|>|<) (\S+)$")
_SIGNS: Final = {">=": "at least", "<=": "at most", ">": "more than", "<": "less than"}
_PARTS: Final = {"str": "character", "array": "item", "object": "key"}
_HELD: Final[dict[str, Any]] = {"str": str, "array": list, "object": dict, "int": int, "float": int | float}
_SHAPES: Final = ((dict, "a mapping"), (list, "a list"), (bool, "true or false"), (str, "text"))


def unknown(what: str, word: object, known: Iterable[str]) -> str:
    """Say that a word is not known, which known word is similar, and which words are known."""
    from difflib import get_close_matches

    names = sorted(known)
    folded = {name.lower().replace("-", "_"): name for name in names}
    like = get_close_matches(str(word)[:_LONGEST].lower().replace("-", "_"), folded, n=1, cutoff=0.7)
    meant = f"did you mean {folded[like[0]]}? Known" if like else "known"
    return f"unknown {what}; {meant} are {', '.join(names)}"


def shaped(why: str, value: Any, kind: Any, path: tuple[str | int, ...]) -> str:
    """Say in terms of YAML that a value has the wrong form, and how to write it; else return ``why`` unchanged.

    Args:
        why: msgspec's sentence, such as "Expected object | null, got str".
        value: The value in the file.
        kind: The type that it should have.
        path: Its place in the file.
    """
    if why.startswith("Invalid enum value"):
        words = _literals(kind)
        return unknown(f"value {_shown(value)}", value, words) if words else why
    bound = _BOUND.match(why)
    if bound is not None and isinstance(
        value, _HELD.get(bound[1], ())
    ):  # not if it is about a key of this mapping
        return _bounded(value, *bound.groups())
    if not why.startswith("Expected ") or ", got " not in why:
        return why
    arms = _arms(kind)
    if not arms:
        return why
    text = f"expected {_wanted(arms)}, not {_got(value)}"
    sample = _sample(kind, value)
    if sample is None:
        return f"{text}; write it in quotes" if isinstance(value, bool) and str in arms else text
    key = path[-1] if path else ""
    return f"{text}; write: {f'{key}: {sample}' if isinstance(key, str) else f'- {sample}'}"


def _bounded(value: Any, kind: str, length: str | None, sign: str, limit: str) -> str:
    """Say which limit of msgspec's "Expected int <= 65535" or "Expected str of length <= 64" the value does not keep."""
    limit = limit.removesuffix(".0")
    if length is None:
        return f"expected a number of {_SIGNS[sign]} {limit}, not {_shown(value)}"
    part = _PARTS.get(kind, "item")
    return f"expected {_SIGNS[sign]} {limit} {part if limit == '1' else part + 's'}, not {len(value)}"


def _wanted(arms: list[Any]) -> str:
    struct = next((arm for arm in arms if _is_struct(arm)), None)
    if struct is not None:
        keys = ", ".join(field.encode_name for field in msgspec.structs.fields(struct))
        return f"a mapping with the keys {keys}"
    names = [
        "a list"
        if _is_list(arm)
        else "a mapping"
        if typing.get_origin(arm) is dict
        else _NAMES.get(arm, "text")
        for arm in arms
    ]
    return " or ".join(dict.fromkeys(names))


def _sample(kind: Any, value: Any) -> str | None:
    """Return how to write ``value`` as a ``kind``, or None if that is not possible."""
    if not isinstance(value, str | int | float):
        return None
    arms = _arms(kind)
    for arm in arms:
        if arm in (str, FilePath) and isinstance(value, str):
            return _shown(value)
        if arm is str and not isinstance(value, bool):
            return f'"{value}"'
        if _is_list(arm):
            inner = _sample(typing.get_args(arm)[0], value)
            return None if inner is None else f"[{inner}]"
        if _is_struct(arm):
            fields = msgspec.structs.fields(arm)
            needed = [field for field in fields if field.required]
            only = needed[0] if len(needed) == 1 else fields[0] if fields and not needed else None
            inner = None if only is None or not _is_text(only.type) else _sample(only.type, value)
            return None if inner is None or only is None else f"{{{only.encode_name}: {inner}}}"
    return None


def _is_text(kind: Any) -> bool:
    return _arms(kind)[:1] in ([str], [FilePath])


def _arms(kind: Any) -> list[Any]:
    """Return the alternatives of a type, without None and without mere limits."""
    if typing.get_origin(kind) is typing.Annotated:
        return _arms(typing.get_args(kind)[0])
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return [part for arm in typing.get_args(kind) for part in _arms(arm)]
    return [] if kind in (None, type(None)) else [kind]


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _is_list(kind: Any) -> bool:
    return typing.get_origin(kind) in (list, tuple, set, frozenset)


def _literals(kind: Any) -> list[str]:
    return [
        str(word)
        for arm in _arms(kind)
        if typing.get_origin(arm) is typing.Literal
        for word in typing.get_args(arm)
    ]


def _got(value: Any) -> str:
    if value is None:
        return "nothing"
    return next((name for kind, name in _SHAPES if isinstance(value, kind)), "a number")


def _shown(value: Any) -> str:
    """Return a short value as YAML takes it, in one line."""
    if isinstance(value, str):
        short = value if len(value) <= _LONGEST else value[: _LONGEST - 3] + "..."
        plain = short.isprintable() and short and all(char.isalnum() or char in "._/-~" for char in short)
        return short if plain and not short[0].isdigit() else json.dumps(short, ensure_ascii=True)
    return json.dumps(value)[:_LONGEST]

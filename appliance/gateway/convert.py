"""A configuration file of p4p's gateway as YAML text."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from appliance.config.keychain_path import refuse_password
from appliance.config.loader import inline
from appliance.config.section import Path, dotted
from appliance.gateway.p4p_json import Loaded

__all__ = ["converted"]


def converted(loaded: Loaded) -> str:
    """Return a configuration as YAML, with the notes as comments at the keys that they are about.

    Only keys that the file gives are written. Names of files stay as they are, relative ones too.

    Args:
        loaded: The configuration; one that is YAML already is written anew, without its comments.
    """
    notes: dict[Path, list[str]] = {}
    for note in loaded.notes:
        notes.setdefault(note.path, []).append(f"{note.key}: {note.text}" if note.key else note.text)
    name = os.path.basename(loaded.document.file).encode("unicode_escape").decode()  # noqa: PTH119 - text in, text out
    head = [
        f"# Made from {name} by pvagw --convert.",
        "# Relative names of files are relative to this file: keep it in the same directory.",
        *_comments(notes.pop((), []), ""),
    ]
    return "\n".join([*head, *_lines(loaded.document.tree, (), notes)]) + "\n"


def _lines(tree: Mapping[str, Any], path: Path, notes: Mapping[Path, list[str]]) -> Iterator[str]:
    blank = "  " * len(path)
    for key, value in tree.items():
        place = (*path, key)
        yield from _comments(notes.get(place, []), blank)
        if isinstance(value, dict) and value:
            yield f"{blank}{inline(key)}:"
            yield from _lines(value, place, notes)
        else:
            if key == "tls_keychain":
                refuse_password(
                    value,
                    dotted(place) or key,
                    "put it into a file of its own (chmod 600), write the keychain alone here, and name the password's file "
                    "with EPICS_PVA_TLS_KEYCHAIN_PWD_FILE or EPICS_PVAS_TLS_KEYCHAIN_PWD_FILE beside it",
                )
            yield f"{blank}{inline(key)}: {inline(value)}"


def _comments(notes: list[str], blank: str) -> Iterator[str]:
    for note in notes:
        # A note quotes the file, and must not become a line of YAML.
        yield f"{blank}# {note.encode('unicode_escape').decode()}"

"""EPICS access security and pvlist: files in, decisions out. Pure.

``load_acf`` (either form) returns an :class:`AccessSecurity`. Ask it with ``decide``, or ``compile_for`` a peer once and ask
for each of its channels whenever an input changes. The caller follows the input PVs, resolves host names and reads files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from appliance.acf.builder import Builder
from appliance.acf.lexer import SourceText
from appliance.acf.match import Resolver
from appliance.acf.model import (
    Access,
    AccessSecurity,
    AuthorityRef,
    Decision,
    Group,
    PeerIdentity,
    Principal,
    PrincipalAccess,
    Rule,
)
from appliance.acf.parser import parse_classic
from appliance.acf.pvlist import PVList, PVListMatch
from appliance.acf.tree import Path, Position, acf_from_tree
from appliance.errors import AccessFileError, ConfigurationError

__all__ = [
    "Access",
    "AccessSecurity",
    "AuthorityRef",
    "Decision",
    "Group",
    "PVList",
    "PVListMatch",
    "PeerIdentity",
    "Position",
    "Principal",
    "PrincipalAccess",
    "Resolver",
    "Rule",
    "acf_from_tree",
    "load_acf",
    "looks_like_yaml",
]

_YAML_KEY: Final = re.compile(r"(?:---|[$A-Za-z_][\w-]*[ \t]*:(?:\s|$))")
_YAML_HEADER: Final = re.compile(r"#\s*EPICS YAML\b", re.IGNORECASE)


def looks_like_yaml(text: str) -> bool:
    """Whether a file has the YAML form: its header comment says so, or it starts with a key and a colon."""
    for line in text.removeprefix("\ufeff").split("\n"):
        line = line.strip()
        if _YAML_HEADER.match(line):
            return True
        if line and not line.startswith("#"):
            return _YAML_KEY.match(line) is not None
    return False


def load_acf(
    text: str,
    *,
    file: str | None = None,
    macros: Mapping[str, str] | None = None,
    resolve: Resolver | None = None,
    gateway: bool = False,
) -> AccessSecurity:
    """Read an access security file of either form.

    Args:
        text: The file's text.
        file: Its name, for messages.
        macros: Values for ``$(NAME)`` and ``${NAME=default}``.
        resolve: Turns entries of HAGs into addresses once, now, which are compared with the peer's address; without it the
            entries are compared as they are written.
        gateway: Read accesses as a gateway does: PUT and UNCACHED exist, and WRITE includes RPC.

    Returns:
        The rules.

    Raises:
        AccessFileError: The file is wrong; the text has file, line, column and the reason.
    """
    if looks_like_yaml(text):
        tree, position = _yaml(text, file)
        return acf_from_tree(
            tree, position=position, file=file, macros=macros, resolve=resolve, gateway=gateway
        )
    source = SourceText(text, file=file, macros=macros)
    return parse_classic(source, Builder(file=file, resolve=resolve, gateway=gateway))


def _yaml(text: str, file: str | None) -> tuple[object, Position]:
    from appliance.config.tree import read_tree

    try:
        tree, lines = read_tree(text, file or "")
    except ConfigurationError as error:
        why = error.why if error.key is None else f"{error.key}: {error.why}"
        raise AccessFileError(why, file=file, line=error.line) from None

    def position(path: Path) -> tuple[int, None] | None:
        line = lines.get(path)
        return None if line is None else (line, None)

    return tree, position

"""The YAML form of an access security file, from data that a loader has parsed.

This package reads no YAML itself. The tree is nested dicts, lists and scalars; ``position`` gives the place of the node at
a path of keys and indexes. Unknown keys are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from appliance.acf.builder import MAX_CHAIN, Builder, GroupDraft, Place, RuleDraft
from appliance.acf.lexer import expand_macros
from appliance.acf.match import Resolver
from appliance.acf.model import AccessSecurity
from appliance.errors import AccessFileError

__all__ = ["Path", "Position", "acf_from_tree"]

Path = tuple[str | int, ...]
Position = Callable[[Path], tuple[int, int | None] | None]
"""Line and column, from 1, of the node at a path; ``None`` for what is not known."""

_INPUT: Final = re.compile(r"INP[A-U]")
_MAX_NODES: Final = 1_000_000


def acf_from_tree(
    tree: object,
    *,
    position: Position | None = None,
    file: str | None = None,
    macros: Mapping[str, str] | None = None,
    resolve: Resolver | None = None,
    gateway: bool = False,
) -> AccessSecurity:
    """Read the YAML form; see :func:`appliance.acf.load_acf` for the options.

    Raises:
        AccessFileError: The text names the place, or the path of keys if ``position`` does not know it.
    """
    builder = Builder(file=file, resolve=resolve, gateway=gateway)
    return _Tree(builder, position, macros or {}).read(tree)


class _Tree:
    def __init__(self, builder: Builder, position: Position | None, macros: Mapping[str, str]) -> None:
        self.builder = builder
        self.position = position
        self.macros = macros
        self.nodes = 0

    # -- nodes

    def place(self, path: Path) -> Place:
        while self.position is not None:
            found = self.position(path)
            if found is not None or not path:
                return found
            path = path[:-1]
        return None

    def error(self, why: str, path: Path) -> AccessFileError:
        place = self.place(path)
        if place is None and path:
            why = f"{'.'.join(str(part) for part in path)}: {why}"
        return self.builder.error(why, place)

    def mapping(
        self, node: object, path: Path, *known: str, required: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        self.nodes += 1
        if self.nodes > _MAX_NODES:
            raise self.error("the file is too large", ())
        if not isinstance(node, dict):
            raise self.error(f"expected keys and values, found {_kind(node)}", path)
        for key in node:
            if key not in known:
                raise self.error(f"unknown key '{key}'; known are {', '.join(known)}", (*path, str(key)))
        for key in required:
            if node.get(key) is None:
                raise self.error(f"'{key}' is missing", path)
        return node

    def items(self, mapping: dict[str, Any], key: str, path: Path) -> list[tuple[Any, Path]]:
        node = mapping.get(key)
        if node is None:
            return []
        if not isinstance(node, list):
            raise self.error(f"expected a list, found {_kind(node)}", (*path, key))
        return [(item, (*path, key, index)) for index, item in enumerate(node)]

    def text(self, node: object, path: Path) -> str:
        self.nodes += 1
        if isinstance(node, bool) or not isinstance(node, str | int | float):
            raise self.error(f"expected text, found {_kind(node)}", path)
        if isinstance(node, float):
            raise self.error(f"{node} must be written in quotes: YAML takes it for a number", path)
        try:
            return expand_macros(str(node), self.macros)
        except AccessFileError as error:
            raise self.error(error.why, path) from None

    def texts(self, mapping: dict[str, Any], key: str, path: Path) -> list[tuple[str, Place]]:
        return [(self.text(item, where), self.place(where)) for item, where in self.items(mapping, key, path)]

    def conditions(self, mapping: dict[str, Any], key: str, path: Path) -> list[tuple[str, Place]]:
        """Return a list in a rule. An empty one could mean everybody or nobody, so it is refused."""
        found = self.texts(mapping, key, path)
        if key in mapping and not found:
            raise self.error(f"'{key}' is empty; list something or leave the key out", (*path, key))
        return found

    # -- grammar

    def read(self, tree: object) -> AccessSecurity:
        root = self.mapping(
            tree,
            (),
            "version",
            "kind",
            "$schema",
            "authorities",
            "uags",
            "hags",
            "sags",
            "asgs",
            required=("asgs",),
        )
        if str(root.get("version", "1")) not in {"1", "1.0"}:
            raise self.error(f"version {root['version']} is not known; this reads version 1", ("version",))
        if root.get("kind", "epics.acf") != "epics.acf":
            raise self.error(f"kind '{root['kind']}' is not epics.acf", ("kind",))
        for node, path in self.items(root, "authorities", ()):
            self.authority(node, path, ())
        for node, path in self.items(root, "uags", ()):
            uag = self.mapping(node, path, "name", "users", required=("name",))
            self.builder.add_uag(self.name(uag, path), self.texts(uag, "users", path), self.place(path))
        for node, path in self.items(root, "hags", ()):
            hag = self.mapping(node, path, "name", "hosts", required=("name",))
            self.builder.add_hag(self.name(hag, path), self.texts(hag, "hosts", path), self.place(path))
        for node, path in self.items(root, "sags", ()):
            sag = self.mapping(node, path, "name", "ip", "dns", required=("name",))
            entries = [("IP", *entry) for entry in self.texts(sag, "ip", path)]
            entries += [("DNS", *entry) for entry in self.texts(sag, "dns", path)]
            self.builder.add_sag(self.name(sag, path), entries, self.place(path))
        for node, path in self.items(root, "asgs", ()):
            self.group(node, path)
        return self.builder.finish()

    def name(self, mapping: dict[str, Any], path: Path) -> str:
        return self.text(mapping["name"], (*path, "name"))

    def authority(self, node: object, path: Path, above: tuple[str, ...]) -> None:
        if len(above) >= MAX_CHAIN:
            raise self.error(f"authorities are nested more than {MAX_CHAIN} deep", path)
        authority = self.mapping(node, path, "id", "name", "authorities", required=("name",))
        identifier = authority.get("id")
        chain = (*above, self.name(authority, path))
        self.builder.add_authority(
            None if identifier is None else self.text(identifier, (*path, "id")), chain, self.place(path)
        )
        for child, where in self.items(authority, "authorities", path):
            self.authority(child, where, chain)

    def group(self, node: object, path: Path) -> None:
        asg = self.mapping(node, path, "name", "links", "inps", "rules", required=("name",))
        group = self.builder.add_group(self.name(asg, path), self.place(path))
        for link, where in self.items(asg, "links", path):
            self.inputs(link, where, group)
        if asg.get("inps") is not None:
            self.inputs(asg["inps"], (*path, "inps"), group)
        for rule, where in self.items(asg, "rules", path):
            self.rule(rule, where, group)

    def inputs(self, node: object, path: Path, group: GroupDraft) -> None:
        if not isinstance(node, dict):
            raise self.error(
                f"expected an input and its PV, such as INPA: some:pv; found {_kind(node)}", path
            )
        for keyword, pv in node.items():
            where = (*path, str(keyword))
            if not isinstance(keyword, str) or not _INPUT.fullmatch(keyword):
                raise self.error(f"unknown input '{keyword}'; inputs are INPA to INPU", where)
            self.builder.add_input(group, keyword, self.text(pv, where), self.place(where))

    def rule(self, node: object, path: Path, group: GroupDraft) -> None:
        rule = self.mapping(
            node, path, "level", "access", "trapwrite", "uags", "hags", "sags", "methods", "authorities", "protocols",
            "calc", required=("level", "access"),
        )  # fmt: skip
        level = rule["level"]
        if isinstance(level, bool) or not isinstance(level, int):
            raise self.error(f"expected a whole number, found {_kind(level)}", (*path, "level"))
        trapwrite = rule.get("trapwrite", False)
        if not isinstance(trapwrite, bool):
            raise self.error(f"expected true or false, found {_kind(trapwrite)}", (*path, "trapwrite"))
        access = (*path, "access")
        draft = self.builder.add_rule(
            group,
            (level, self.place((*path, "level"))),
            (self.text(rule["access"], access), self.place(access)),
            self.place(path),
            trapwrite=trapwrite,
        )
        self.predicates(rule, path, draft)

    def predicates(self, rule: dict[str, Any], path: Path, draft: RuleDraft) -> None:
        for key, target in (("uags", draft.uags), ("hags", draft.hags), ("sags", draft.sags)):
            target.update(self.conditions(rule, key, path))
        for name, place in self.conditions(rule, "methods", path):
            self.builder.add_method(draft, name, place)
        for name, place in self.conditions(rule, "protocols", path):
            self.builder.add_protocol(draft, name, place)
        for name, place in self.conditions(rule, "authorities", path):
            # YAML does not distinguish a quoted name from a bare one, so each may be a common name.
            draft.authorities.setdefault(name, (place, True))
        if "calc" in rule:
            where = (*path, "calc")
            self.builder.add_calc(draft, self.text(rule["calc"], where), self.place(where))


def _kind(node: object) -> str:
    if node is None:
        return "nothing"
    if isinstance(node, dict):
        return "keys and values"
    if isinstance(node, list):
        return "a list"
    return repr(node)[:60]

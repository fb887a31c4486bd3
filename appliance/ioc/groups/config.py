"""Group definitions, merged from the info items of records and from files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from appliance.errors import ConfigurationError
from appliance.ioc.groups.syntax import Tree, parse_json

__all__ = ["KINDS", "DefinitionOrigin", "FieldConfig", "GroupConfig", "GroupConfigs", "GroupError"]

KINDS: Final = ("scalar", "plain", "any", "meta", "proc", "structure", "const")
_WITH_CHANNEL: Final = frozenset(("scalar", "plain", "any", "meta", "proc"))
_INT64: Final = 1 << 63
Report = Callable[[str], None]


class DefinitionOrigin(NamedTuple):
    """Where a part of a definition comes from: a record's info item, or a line of a file."""

    record: str | None
    file: str | None
    line: int | None = None


class GroupError(ConfigurationError):
    """A group that cannot be made, and the definition that causes this."""

    def __init__(self, why: str, *, key: str, origin: DefinitionOrigin | None, near: str = "") -> None:
        super().__init__(why, key=key)
        self.origin = origin
        self.near = near
        """A word of the definition; its line is searched by it."""


class FieldConfig:
    """One mapping."""

    __slots__ = ("channel", "const", "id", "kind", "origin", "put_order", "trigger")

    def __init__(self, origin: DefinitionOrigin | None = None) -> None:
        self.origin = origin
        self.kind = "scalar"
        self.channel = ""
        self.id = ""
        self.trigger: tuple[str, ...] = ()
        self.put_order: int | None = None
        self.const: Any = None


class GroupConfig:
    """One group."""

    __slots__ = ("atomic", "fields", "id", "name", "origin")

    def __init__(self, name: str, origin: DefinitionOrigin | None = None) -> None:
        self.name = name
        self.origin = origin
        self.id = ""
        self.atomic: bool | None = None
        self.fields: dict[str, FieldConfig] = {}

    def ordered(self) -> list[tuple[str, FieldConfig]]:
        """Return the mappings in the order of puts, and of the structure's fields: by put order, then by name."""

        def place(mapping: tuple[str, FieldConfig]) -> tuple[int, str]:
            name, field = mapping
            return (-_INT64 if field.put_order is None else field.put_order), name

        return sorted(self.fields.items(), key=place)

    def fault(self, name: str, why: str) -> GroupError:
        """Return an error about one of the fields."""
        field = self.fields[name]
        return GroupError(why, key=f"{self.name}.{name}", origin=field.origin or self.origin, near=name)

    def check(self, report: Report) -> None:
        """Check the group; report the parts that are ignored.

        Raises:
            GroupError: The group cannot be made.
        """
        for name, field in self.fields.items():
            if field.kind in _WITH_CHANNEL and not field.channel:
                raise self.fault(name, f"field {name!r} of type {field.kind} needs a +channel")
            if field.kind not in _WITH_CHANNEL and field.channel:
                report(f"{self.name}: field {name!r} of type {field.kind} ignores its +channel")
                field.channel = ""
            if not name and field.kind != "meta":
                raise self.fault(name, 'only +type:"meta" can be mapped at the top, ""')

    def triggers(self, report: Report) -> dict[str, tuple[str, ...]]:
        """Return, by field name, the fields of an update when that field's record changes.

        If no field has a trigger, every field triggers itself.
        """
        with_channel = tuple(sorted(name for name, field in self.fields.items() if field.channel))
        if not any(field.trigger for field in self.fields.values()):
            return {name: (name,) for name in with_channel}
        found: dict[str, tuple[str, ...]] = {}
        for name, field in self.fields.items():
            targets: dict[str, None] = {}
            for target in field.trigger:
                if target == "*":
                    targets.update(dict.fromkeys(with_channel))
                elif target not in self.fields:
                    report(f"{self.name}: field {name!r} triggers {target!r}, which does not exist")
                elif self.fields[target].channel:
                    targets[target] = None
            found[name] = tuple(sorted(targets))
        return found


class GroupConfigs:
    """All groups."""

    def __init__(self, report: Report) -> None:
        self.groups: dict[str, GroupConfig] = {}
        self._report = report
        self._record: str | None = None
        self._file: str | None = None

    def add(self, text: str, *, record: str | None = None, file: str | None = None) -> None:
        """Add one definition; in a record's own definition a channel is the name of one of its fields.

        Raises:
            ConfigurationError: The definition is wrong.
        """
        self._record, self._file = record, file
        tree = parse_json(text, file=file)
        if not isinstance(tree, dict):
            raise self._wrong('a group definition is an object: {"name": {...}}', "", tree)
        for name, group in tree.items():
            if not name:
                raise self._wrong("a group needs a name", "", tree)
            if not isinstance(group, dict):
                raise self._wrong("an object of fields is expected", name, tree)
            self._group(name, group, self._origin(tree, name))

    def _origin(self, tree: Any, key: str) -> DefinitionOrigin:
        line = tree.lines.get(key) if isinstance(tree, Tree) else None
        return DefinitionOrigin(self._record, self._file, line)

    def _wrong(self, why: str, key: str, tree: Any) -> GroupError:
        last = key if isinstance(tree, dict) and key in tree else key.rpartition(".")[2]
        return GroupError(why, key=key, origin=self._origin(tree, last), near=last)

    def _group(self, name: str, tree: dict[str, Any], origin: DefinitionOrigin) -> None:
        group = self.groups.setdefault(name, GroupConfig(name, origin))
        for key, value in tree.items():
            if isinstance(value, dict):
                field = group.fields.setdefault(key, FieldConfig())
                field.origin = self._origin(tree, key)
                for option in value:
                    self._option(field, option, f"{name}.{key}.{option}", value)
            elif key == "+id":
                group.id = self._text(f"{name}.+id", tree)
            elif key == "+atomic":
                atomic = self._truth(f"{name}.+atomic", tree)
                if group.atomic is not None and group.atomic != atomic:
                    self._report(
                        f"{name}: +atomic is given twice with different values; {str(atomic).lower()} is used"
                    )
                group.atomic = atomic
            else:
                self._report(f"{name}: the option {key!r} is not known")

    def _option(self, field: FieldConfig, option: str, key: str, tree: dict[str, Any]) -> None:
        value = tree[option]
        if option == "+type":
            if value in KINDS:
                field.kind = value
            else:
                self._report(f"{key}: {value!r} is not a type; there are {', '.join(KINDS)}")
        elif option == "+channel":
            field.channel = ("" if self._record is None else self._record + ".") + self._text(key, tree)
        elif option == "+id":
            field.id = self._text(key, tree)
        elif option == "+trigger":
            names = self._text(key, tree).split(",")
            field.trigger = tuple(dict.fromkeys(name.strip() for name in names if name.strip()))
        elif option == "+putorder":
            if isinstance(value, bool) or not isinstance(value, int) or not -_INT64 <= value < _INT64:
                raise self._wrong("must be a whole number", key, tree)
            field.put_order = max(value, 1 - _INT64)
        elif option == "+const":
            field.const = value
        else:
            self._report(f"{key}: the option is not known")

    def _text(self, key: str, tree: dict[str, Any]) -> str:
        value = tree[key.rpartition(".")[2]]
        if isinstance(value, str):
            return value
        raise self._wrong("must be text", key, tree)

    def _truth(self, key: str, tree: dict[str, Any]) -> bool:
        value = tree[key.rpartition(".")[2]]
        if isinstance(value, (bool, int)):
            return bool(value)
        if isinstance(value, str) and value in ("true", "false"):
            return value == "true"
        raise self._wrong("must be true or false", key, tree)

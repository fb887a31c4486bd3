"""What group definitions say, merged from the info items of records and from files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from appliance.errors import ConfigurationError
from appliance.ioc.groups.syntax import parse_json

__all__ = ["KINDS", "FieldConfig", "GroupConfig", "GroupConfigs"]

KINDS: Final = ("scalar", "plain", "any", "meta", "proc", "structure", "const")
_WITH_CHANNEL: Final = frozenset(("scalar", "plain", "any", "meta", "proc"))
_INT64: Final = 1 << 63
Report = Callable[[str], None]


class FieldConfig:
    """One mapping."""

    __slots__ = ("channel", "const", "id", "kind", "put_order", "trigger")

    def __init__(self) -> None:
        self.kind = "scalar"
        self.channel = ""
        self.id = ""
        self.trigger: tuple[str, ...] = ()
        self.put_order: int | None = None
        self.const: Any = None


class GroupConfig:
    """One group."""

    __slots__ = ("atomic", "fields", "id", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.id = ""
        self.atomic: bool | None = None
        self.fields: dict[str, FieldConfig] = {}

    def ordered(self) -> list[tuple[str, FieldConfig]]:
        """The mappings in the order of puts, and of the structure's fields: by put order, then by name."""
        return sorted(
            self.fields.items(),
            key=lambda item: (-_INT64 if item[1].put_order is None else item[1].put_order, item[0]),
        )

    def check(self, report: Report) -> None:
        """Raise ConfigurationError for a group that cannot be; report what is left out."""
        for name, field in self.fields.items():
            if field.kind in _WITH_CHANNEL and not field.channel:
                raise ConfigurationError(f"field {name!r} of type {field.kind} needs a +channel")
            if field.kind not in _WITH_CHANNEL and field.channel:
                report(f"{self.name}: field {name!r} of type {field.kind} ignores its +channel")
                field.channel = ""
            if not name and field.kind != "meta":
                raise ConfigurationError('only +type:"meta" can be mapped at the top, ""')

    def triggers(self, report: Report) -> dict[str, tuple[str, ...]]:
        """Which fields an update brings when a field's record changes, by field name.

        Where no trigger is given at all every field triggers itself.
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

    def add(self, text: str, *, record: str | None = None, file: str | None = None) -> None:
        """Take in one definition; channels of a record's own are names of its fields.

        Raises ConfigurationError.
        """
        tree = parse_json(text, file=file)
        if not isinstance(tree, dict):
            raise ConfigurationError('a group definition is an object: {"name": {...}}', file=file)
        prefix = "" if record is None else record + "."
        for name, group in tree.items():
            if not name:
                raise ConfigurationError("a group needs a name", file=file)
            if not isinstance(group, dict):
                raise ConfigurationError("an object of fields is expected", file=file, key=name)
            self._group(name, group, prefix, file)

    def _group(self, name: str, tree: dict[str, Any], prefix: str, file: str | None) -> None:
        group = self.groups.setdefault(name, GroupConfig(name))
        for key, value in tree.items():
            if isinstance(value, dict):
                field = group.fields.setdefault(key, FieldConfig())
                for option, setting in value.items():
                    self._option(field, option, setting, prefix, f"{name}.{key}.{option}", file)
            elif key == "+id":
                group.id = _text(value, f"{name}.+id", file)
            elif key == "+atomic":
                atomic = _truth(value, f"{name}.+atomic", file)
                if group.atomic is not None and group.atomic != atomic:
                    self._report(f"{name}: +atomic is given twice and differs; {str(atomic).lower()} is used")
                group.atomic = atomic
            else:
                self._report(f"{name}: the option {key!r} is not known")

    def _option(
        self, field: FieldConfig, option: str, value: Any, prefix: str, key: str, file: str | None
    ) -> None:
        if option == "+type":
            if value in KINDS:
                field.kind = value
            else:
                self._report(f"{key}: {value!r} is not a type; there are {', '.join(KINDS)}")
        elif option == "+channel":
            field.channel = prefix + _text(value, key, file)
        elif option == "+id":
            field.id = _text(value, key, file)
        elif option == "+trigger":
            names = _text(value, key, file).split(",")
            field.trigger = tuple(dict.fromkeys(name.strip() for name in names if name.strip()))
        elif option == "+putorder":
            if isinstance(value, bool) or not isinstance(value, int) or not -_INT64 <= value < _INT64:
                raise ConfigurationError("must be a whole number", file=file, key=key)
            field.put_order = max(value, 1 - _INT64)
        elif option == "+const":
            field.const = value
        else:
            self._report(f"{key}: the option is not known")


def _text(value: Any, key: str, file: str | None) -> str:
    if isinstance(value, str):
        return value
    raise ConfigurationError("must be text", file=file, key=key)


def _truth(value: Any, key: str, file: str | None) -> bool:
    if isinstance(value, (bool, int)):
        return bool(value)
    if isinstance(value, str) and value in ("true", "false"):
        return value == "true"
    raise ConfigurationError("must be true or false", file=file, key=key)

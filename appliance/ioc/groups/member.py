"""One mapping of a group: a channel, and its place in the group's structure."""

from __future__ import annotations

from typing import Any

from appliance.errors import ConfigurationError, PVDataError
from appliance.ioc.dbcore import DBChannel, Reading
from appliance.ioc.groups.config import FieldConfig
from appliance.ioc.groups.layout import META, Place, Step, TypeTree, const_type, parse_path
from appliance.ioc.mapping import NTMapping, nt_mapping, refuse_link, tag_mask, value_type
from appliance.pvdata.store import AnyValue
from appliance.pvdata.types import ANY, STRING, ArrayType, StructType, TypeDesc
from appliance.pvdata.value import Value

__all__ = ["Member"]

_META_MAPPING = NTMapping(STRING, is_enum=False)
"""Its methods for alarm and time stamp fit every structure that has both in this order."""


class Member:
    """One mapping of a group; its channel is open until :meth:`close`."""

    __slots__ = (
        "_any",
        "_meta_base",
        "channel",
        "config",
        "kind",
        "mapping",
        "name",
        "path",
        "place",
        "tag_bits",
        "triggers",
    )

    def __init__(self, name: str, config: FieldConfig) -> None:
        self.name = name
        self.config = config
        self.kind = config.kind
        self.path: tuple[Step, ...] = parse_path(name)
        self.channel: DBChannel | None = DBChannel(config.channel) if config.channel else None
        self.tag_bits = 0
        self.mapping: NTMapping | None = None
        self.triggers: tuple[Member, ...] = ()
        self.place: Place | None = None
        self._any: TypeDesc | None = None
        self._meta_base = 0
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> None:
        channel = self.channel
        if channel is None:
            return
        self.tag_bits = tag_mask(channel)
        if self.kind in ("scalar", "plain", "any"):
            refuse_link(channel)
        if self.kind == "scalar":
            self.mapping = nt_mapping(channel)
        elif self.kind == "any":
            self._any = value_type(channel)

    def close(self) -> None:
        """Close the channel."""
        if self.channel is not None:
            self.channel.close()

    # -- type ----------------------------------------------------------------------------------------

    def describe(self, tree: TypeTree) -> None:
        """Add the fields of this mapping to the type of the group.

        Raises:
            ConfigurationError: Another mapping contradicts this one.
        """
        if self.kind == "proc":
            return
        if self.kind == "meta":
            for step in self.path:
                tree = tree.descend(step)
            tree.merge(META)
            return
        if self.kind == "structure":
            for step in self.path:
                tree = tree.descend(step)
            tree.set_id(self.config.id)
            return
        for step in self.path[:-1]:
            tree = tree.descend(step)
        last = self.path[-1]
        if last.element is not None:
            raise ConfigurationError("only a structure can be an element of an array", key=self.name)
        tree.put(last.name, self._leaf())

    def _leaf(self) -> TypeDesc:
        if self.kind == "const":
            return const_type(self.config.const)
        if self.kind == "any":
            return ANY
        assert self.channel is not None
        if self.mapping is not None:
            return self.mapping.type
        return value_type(self.channel)

    def locate(self, kind: StructType) -> None:
        """Find the place of this mapping in the finished type.

        Raises:
            ConfigurationError: The type has no such place.
        """
        if self.kind in ("proc", "structure"):
            return
        self.place = place = Place.find(kind, self.path)
        if self.kind == "meta":
            assert isinstance(place.kind, StructType)
            self._meta_base = place.base + place.kind.offsets["alarm.severity"] - _META_MAPPING.meta
            offsets = place.kind.offsets
            if offsets["timeStamp.secondsPastEpoch"] != offsets["alarm.severity"] + 4:
                raise ConfigurationError(
                    "alarm and timeStamp are mapped by something else too", key=self.name
                )
        elif self.mapping is not None and place.kind != self.mapping.type:
            raise ConfigurationError("another mapping adds fields to it", key=self.name)

    # -- values --------------------------------------------------------------------------------------

    def fill_static(self, top: list[Any]) -> int:
        """Set the parts that never change: constants, and the form of display."""
        place = self.place
        if place is None:
            return 0
        if self.kind == "const":
            place.store(top)[place.base] = self.config.const
            return place.bits(1)
        if self.mapping is not None:
            assert self.channel is not None
            return place.bits(self.mapping.initialize(place.store(top), place.base, self.channel))
        return 0

    def fill_properties_locked(self, top: list[Any]) -> int:
        """Set the properties; the record must be locked."""
        if self.mapping is None or self.place is None or self.channel is None:
            return 0
        store = self.place.store(top)
        return self.place.bits(
            self.mapping.set_properties(store, self.place.base, self.channel.properties_locked())
        )

    def fill(self, top: list[Any], reading: Reading, *, alarm: bool = True) -> int:
        """Set the mapped ones of value, time stamp and, if wanted, alarm."""
        place = self.place
        if place is None:
            return 0
        store = place.store(top)
        if self.kind == "scalar":
            mapping = self.mapping
            assert mapping is not None
            bits = mapping.set_value(store, place.base, reading.value)
            bits |= mapping.set_time(store, place.base, reading, self.tag_bits)
            if alarm:
                bits |= mapping.set_alarm(store, place.base, reading)
            return place.bits(bits)
        if self.kind == "meta":
            base = self._meta_base
            bits = _META_MAPPING.set_time(store, base, reading, self.tag_bits)
            if alarm:
                bits |= _META_MAPPING.set_alarm(store, base, reading)
            if place.hops:
                return place.bits(bits)
            return bits << base if base >= 0 else bits >> -base
        if self.kind == "any":
            store[place.base] = AnyValue(self._any, reading.value)
        elif self.kind == "plain":
            store[place.base] = reading.value
        else:
            return 0
        return place.bits(1)

    def written(self, value: Value, bits: int) -> tuple[bool, Any]:
        """Whether a client sent something for this mapping, and the value for the record."""
        place = self.place
        if place is None or self.kind in ("meta", "const"):
            return False, None
        store = place.look(value.store)
        if store is None:
            return False, None
        if self.mapping is not None:
            wanted = place.bits(self.mapping.value_bits)
            new = store[place.base + self.mapping.value]
        else:
            wanted = place.bits(1)
            new = store[place.base]
        if not bits & wanted:
            return False, None
        if self.kind == "any":
            if new.type is None:
                return False, None
            new = _plain_any(new)
        return True, new

    def __repr__(self) -> str:
        return f"<Member {self.name or '(top)'} {self.kind} {self.config.channel}>"


def _plain_any(content: AnyValue) -> Any:
    """Return what a client put into an any: a number, text, an array of them, or a structure with such a value."""
    kind, value = content
    if isinstance(value, Value):
        found = value.get("value")
        if isinstance(found, (int, float, str, tuple)) or hasattr(found, "dtype"):
            return found
    elif not isinstance(kind, (StructType,)) and not (
        isinstance(kind, ArrayType) and isinstance(kind.element, StructType)
    ):
        return value
    raise PVDataError("an any must hold a number, text, or an array of them")

"""A group: its members, its type, and how it is read, atomically or member by member."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from appliance.errors import ApplianceError, ConfigurationError, OperationError
from appliance.ioc.dbcore import DBChannel, ManyLock
from appliance.ioc.groups.config import GroupConfig, GroupError
from appliance.ioc.groups.layout import OPTIONS, TypeTree
from appliance.ioc.groups.member import Member
from appliance.pvdata.store import new_store
from appliance.pvdata.types import StructType
from appliance.pvdata.value import _copied

__all__ = ["RecordGroup"]


@contextmanager
def _blaming(config: GroupConfig, name: str) -> Iterator[None]:
    """Add the mapping to an error."""
    try:
        yield
    except GroupError:
        raise
    except ConfigurationError as error:
        raise config.fault(name, error.why) from None
    except ApplianceError as error:
        raise config.fault(name, str(error)) from None


_ATOMIC: Final = "record._options.atomic"


class RecordGroup:
    """One group; its channels are open until :meth:`close`.

    Args:
        config: its merged definitions.
        report: called with each ignored part.

    Raises:
        ConfigurationError: the group cannot be made.
        OperationError: EPICS cannot make a lock of its records.

    """

    __slots__ = (
        "_has_elements",
        "_lock",
        "_static",
        "_static_bits",
        "atomic",
        "members",
        "name",
        "type",
    )

    def __init__(self, config: GroupConfig, report: Callable[[str], None]) -> None:
        self.name = config.name
        self.atomic = config.atomic is not False
        self.members: list[Member] = []
        self._lock: ManyLock | None = None
        try:
            self._build(config, report)
        except BaseException:
            self.close()
            raise

    def _build(self, config: GroupConfig, report: Callable[[str], None]) -> None:
        config.check(report)
        for name, field in config.ordered():
            with _blaming(config, name):
                self.members.append(Member(name, field))
        tree = TypeTree(StructType([("record", OPTIONS)], config.id))
        for member in self.members:
            with _blaming(config, member.name):
                member.describe(tree)
        self.type = tree.structure()
        by_name = {member.name: member for member in self.members}
        for member in self.members:
            with _blaming(config, member.name):
                member.locate(self.type)
        for name, targets in config.triggers(report).items():
            by_name[name].triggers = tuple(by_name[target] for target in targets)
        self._static = new_store(self.type)
        self._static_bits = 0
        for member in self.members:
            with _blaming(config, member.name):
                self._static_bits |= member.fill_static(self._static)
        self._has_elements = any(member.place is not None and member.place.hops for member in self.members)
        channels = self.channels()
        self._lock = ManyLock(channels) if channels else None

    def channels(self) -> list[DBChannel]:
        """Return all channels of the group."""
        return [member.channel for member in self.members if member.channel is not None]

    def close(self) -> None:
        """Close all channels."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        for member in self.members:
            member.close()

    def copy(self, store: list[Any]) -> list[Any]:
        """Return an independent copy of a store."""
        return [_copied(item) for item in store] if self._has_elements else store.copy()

    def read(self, *, atomic: bool) -> tuple[list[Any], int]:
        """Read all members.

        Raises:
            OperationError: EPICS cannot read one of the fields.
        """
        store = self.copy(self._static)
        offsets = self.type.offsets
        store[offsets[_ATOMIC]] = atomic
        bits = self._static_bits | 1 << offsets[_ATOMIC]
        if atomic and self._lock is not None:
            with self._lock:
                for member in self.members:
                    bits |= self._read(member, store)
        else:
            for member in self.members:
                if member.channel is not None:
                    with member.channel.locked():
                        bits |= self._read(member, store)
        return store, bits

    def _read(self, member: Member, store: list[Any]) -> int:
        channel = member.channel
        if channel is None or member.place is None:
            return 0
        try:
            return member.fill_properties_locked(store) | member.fill(store, channel.get_locked())
        except OperationError as error:
            raise OperationError(f"{self.name}.{member.name or '(top)'}: {error}") from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the locks of all its records."""
        if self._lock is None:
            yield
        else:
            with self._lock:
                yield

    def __repr__(self) -> str:
        return f"<RecordGroup {self.name}>"

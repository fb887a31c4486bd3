"""A group as a PV: get, put and monitor, atomic or member by member."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from appliance.errors import AccessDeniedError, ApplianceError, ConfigurationError, OperationError
from appliance.ioc.dbcore import DBChannel, ManyLock
from appliance.ioc.feed import EventStream
from appliance.ioc.groups.config import GroupConfig, GroupError
from appliance.ioc.groups.feed import GroupFeed
from appliance.ioc.groups.layout import OPTIONS, TypeTree
from appliance.ioc.groups.member import Member
from appliance.ioc.options import PutOptions, put_options
from appliance.ioc.putlog import NOTHING
from appliance.pva import commands as c
from appliance.pva.selection import leaves
from appliance.pvdata.pvrequest import truth
from appliance.pvdata.store import new_store
from appliance.pvdata.types import StructType
from appliance.pvdata.value import Value, _copied
from appliance.server.operation import Operation, Subscription
from appliance.server.source import Handler

if TYPE_CHECKING:
    from appliance.ioc.groups.source import GroupSource
    from appliance.ioc.putlog import Watched

__all__ = ["GroupPV"]


@contextmanager
def _blaming(config: GroupConfig, name: str) -> Iterator[None]:
    """Say which mapping an error is about."""
    try:
        yield
    except GroupError:
        raise
    except ConfigurationError as error:
        raise config.fault(name, error.why) from None
    except ApplianceError as error:
        raise config.fault(name, str(error)) from None


_QUEUE_SIZE: Final = "record._options.queueSize"
_ATOMIC: Final = "record._options.atomic"


class GroupPV(Handler):
    """See the module's text. Raises ConfigurationError or OperationError for a group that cannot be."""

    __slots__ = (
        "_feed",
        "_has_elements",
        "_lock",
        "_static",
        "_static_bits",
        "atomic",
        "members",
        "name",
        "source",
        "stream",
        "type",
    )

    def __init__(self, source: GroupSource, stream: EventStream | None, config: GroupConfig) -> None:
        self.source = source
        self.stream = stream
        self.name = config.name
        self.atomic = config.atomic is not False
        self.members: list[Member] = []
        self._feed: GroupFeed | None = None
        self._lock: ManyLock | None = None
        try:
            self._build(config)
        except BaseException:
            self.close()
            raise

    def _build(self, config: GroupConfig) -> None:
        config.check(self.source.report)
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
        for name, targets in config.triggers(self.source.report).items():
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
        """All channels of the group."""
        return [member.channel for member in self.members if member.channel is not None]

    def close(self) -> None:
        """Give all channels back."""
        if self._feed is not None:
            self._feed.close()
            self._feed = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        for member in self.members:
            member.close()

    # -- get -----------------------------------------------------------------------------------------

    def copy(self, store: list[Any]) -> list[Any]:
        """A store that can be changed without changing the other one."""
        return [_copied(item) for item in store] if self._has_elements else store.copy()

    def read(self, *, atomic: bool) -> tuple[list[Any], int]:
        """Read all members. Raises OperationError."""
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

    def init(self, operation: Operation) -> None:
        """Accept GET, PUT and PUT_GET."""
        command = operation.command
        if command == c.CMD_RPC:
            operation.fail("a group cannot be called; use GET and PUT")
        elif command == c.CMD_PROCESS:
            operation.fail("a group cannot be processed; write to it")
        else:
            operation.ready(self.type)
            operation.state = (
                PutOptions(None, block=False, atomic=truth(operation.options.get("atomic")))
                if command == c.CMD_GET
                else put_options(operation)
            )

    def get(self, operation: Operation) -> None:
        """Answer with all members."""
        operation.reply_store(*self.read(atomic=self._is_atomic(operation)))

    def _is_atomic(self, operation: Operation) -> bool:
        options: PutOptions = operation.state
        return self.atomic if options.atomic is None else options.atomic

    def introspect(self, operation: Operation, field: str) -> None:
        """Tell the type of the value or of a field."""
        if field in self.type.offsets:
            operation.reply_field(self.type.leaf_types[self.type.offsets[field]])
        else:
            operation.fail(f"there is no field {field[:64]!r}")

    # -- put -----------------------------------------------------------------------------------------

    def put(self, operation: Operation, value: Value) -> None:
        """Write the members that the client sent, in the order of +putorder."""
        self._put(operation, value)
        operation.done()

    def put_get(self, operation: Operation, value: Value) -> None:
        """Write, then answer with what the group holds afterwards."""
        self._put(operation, value)
        self.get(operation)

    def _put(self, operation: Operation, value: Value) -> None:
        bits = leaves(self.type, value.changed)
        work: list[tuple[Member, bool, Any]] = []
        for member in self.members:
            has_value, new = member.written(value, bits)
            if has_value and member.config.put_order is None:
                operation.warn(f"{member.name}: has no +putorder and is not written")
                has_value = False
            if has_value or member.kind == "proc":
                work.append((member, has_value, new))
        if not work:
            if bits:
                raise OperationError(
                    "no fields of this group were changed: none of those sent can be written"
                )
            return
        # All rights before the first change: a put that is refused half way would leave the group torn.
        for member, _, _ in work:
            assert member.channel is not None
            if not self.source.may_write(operation, member.channel):
                operation.channel.refused("write")
                raise AccessDeniedError(f"{member.name}: write access denied by access security")
            if member.channel.put_disabled:
                raise AccessDeniedError(f"{member.channel.record} refuses puts: its field DISP is set")
        options: PutOptions = operation.state
        changes = [
            self._change(operation, member, new if has_value else NOTHING, options)
            for member, has_value, new in work
        ]
        if self._is_atomic(operation) and self._lock is not None:
            with self._lock:
                _do(changes)
        else:
            for change in changes:
                with change.channel.locked():
                    _do([change])

    def _change(self, operation: Operation, member: Member, new: Any, options: PutOptions) -> _Change:
        channel = member.channel
        assert channel is not None
        process = options.process
        if member.kind == "proc" and process is False:
            # Processing is all that such a mapping is for: process=false speaks of those that are written.
            process = None
        log = self.source.put_log
        watch = log.concerns(operation, channel, new) if log is not None else None
        return _Change(channel, new, process, watch)

    # -- monitor -------------------------------------------------------------------------------------

    def subscribe(self, subscription: Subscription) -> None:
        """Accept; events begin when the client starts the flow."""
        subscription.ready(self.type)

    def flow(self, subscription: Subscription) -> None:
        """Let events come while the client wants them; each start brings everything once."""
        if not subscription.running:
            self.unsubscribe(subscription)
            return
        if self._feed is None:
            self._feed = GroupFeed(self)
        self._feed.join(subscription)

    def unsubscribe(self, subscription: Subscription) -> None:
        """Forget the client; the last one ends the events."""
        feed = self._feed
        if feed is not None:
            feed.subscriptions.pop(subscription, None)
            if not feed.subscriptions:
                feed.close()
                self._feed = None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the locks of all members."""
        if self._lock is None:
            yield
        else:
            with self._lock:
                yield

    def first_read(self, subscription: Subscription) -> tuple[list[Any], int]:
        """What a new subscriber gets first: everything, and what was agreed on."""
        store, bits = self.read(atomic=True)
        number = self.type.offsets[_QUEUE_SIZE]
        store[number] = subscription.queue_size
        return store, bits | 1 << number

    def __repr__(self) -> str:
        return f"<GroupPV {self.name}>"


class _Change(NamedTuple):
    """What a put does to one member."""

    channel: DBChannel
    new: Any
    process: bool | None
    watch: Watched | None


def _do(changes: list[_Change]) -> None:
    """Write and process in order, the records being locked; what is to be logged is logged before the first of them."""
    at = 0
    try:
        for channel, new, _, watch in changes:
            if watch is not None:
                watch.begin(None if new is NOTHING else channel.get_locked().value)
        for at, (channel, new, process, _) in enumerate(changes):  # noqa: B007 - told to those after it
            if new is not NOTHING:
                channel.put_locked(new)
            channel.process_locked(process)
    except ApplianceError as error:
        for change in changes[at:]:
            if change.watch is not None:
                change.watch.failed(error)
        raise

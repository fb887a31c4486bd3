"""A group as a PV: get, put and monitor, atomically or member by member."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from appliance.errors import AccessDeniedError, ApplianceError, OperationError
from appliance.ioc.access import FieldAccess
from appliance.ioc.behind import Subscriber
from appliance.ioc.dbcore import DBChannel
from appliance.ioc.event_stream import EventStream
from appliance.ioc.groups.feed import GroupFeed
from appliance.ioc.groups.group import RecordGroup
from appliance.ioc.groups.member import Member
from appliance.ioc.options import PutOptions, put_options
from appliance.ioc.putlog import NOTHING, PutLog, Watched
from appliance.pva import commands as c
from appliance.pva.credentials import Credentials
from appliance.pva.selection import leaves
from appliance.pvdata.pvrequest import truth
from appliance.pvdata.value import Value
from appliance.server.access import Rights
from appliance.server.operation import Operation, Subscription
from appliance.server.source import Handler

__all__ = ["GroupPV"]


class GroupPV(Handler):
    """One group, for all its clients.

    Args:
        group: the group.
        stream: the source of the events of its records.
        access: decides about the rights to its members.
        put_log: logs puts.

    """

    __slots__ = ("_access", "_feed", "_put_log", "_stream", "group")

    def __init__(self, group: RecordGroup, stream: EventStream, access: FieldAccess, put_log: PutLog) -> None:
        self.group = group
        self._stream = stream
        self._access = access
        self._put_log = put_log
        self._feed: GroupFeed | None = None

    def close(self) -> None:
        """End the events and close all channels."""
        if self._feed is not None:
            self._feed.close()
            self._feed = None
        self.group.close()

    # -- access security -----------------------------------------------------------------------------

    def channels(self) -> Sequence[DBChannel]:
        """Return the fields of all members."""
        return self.group.channels()

    def rights(self, peer: Credentials) -> Rights:
        """Return a client's rights.

        To read a group, a client needs the right to read all members. The right to write one member is enough to try a put;
        each put is judged member by member.
        """
        access = self._access
        members = [
            (member, access.decide(member.channel, peer))
            for member in self.group.members
            if member.channel is not None
        ]
        return Rights(
            read=all(access.may_read(decision) for _, decision in members),
            write=any(
                decision.write
                for member, decision in members
                if member.config.put_order is not None or member.kind == "proc"
            ),
            why="; ".join(f"{member.name}: {decision.access}" for member, decision in members[:32]),
        )

    # -- get -----------------------------------------------------------------------------------------

    def init(self, operation: Operation) -> None:
        """Accept GET, PUT and PUT_GET."""
        command = operation.command
        if command == c.CMD_RPC:
            operation.fail("a group cannot be called; use GET and PUT")
        elif command == c.CMD_PROCESS:
            operation.fail("a group cannot be processed; write to it")
        else:
            operation.ready(self.group.type)
            operation.state = (
                PutOptions(None, block=False, atomic=truth(operation.options.get("atomic")))
                if command == c.CMD_GET
                else put_options(operation)
            )

    def get(self, operation: Operation) -> None:
        """Answer with all members."""
        operation.reply_store(*self.group.read(atomic=self._is_atomic(operation)))

    def _is_atomic(self, operation: Operation) -> bool:
        options: PutOptions = operation.state
        return self.group.atomic if options.atomic is None else options.atomic

    def introspect(self, operation: Operation, field: str) -> None:
        """Answer with the type of the value or of a field."""
        if field in self.group.type.offsets:
            operation.reply_field(self.group.type.leaf_types[self.group.type.offsets[field]])
        else:
            operation.fail(f"there is no field {field[:64]!r}")

    # -- put -----------------------------------------------------------------------------------------

    def put(self, operation: Operation, value: Value) -> None:
        """Write the members that the client sent, in the order of +putorder."""
        self._put(operation, value)
        operation.done()

    def put_get(self, operation: Operation, value: Value) -> None:
        """Write, then answer with the group's new value."""
        self._put(operation, value)
        self.get(operation)

    def _put(self, operation: Operation, value: Value) -> None:
        bits = leaves(self.group.type, value.changed)
        work: list[tuple[Member, bool, Any]] = []
        for member in self.group.members:
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
        # Check all rights before the first change: a put that fails half way would leave the group inconsistent.
        for member, _, _ in work:
            assert member.channel is not None
            if not self._access.decide(member.channel, operation.peer).write:
                operation.channel.refused("write")
                raise AccessDeniedError(f"{member.name}: write access denied by access security")
            if member.channel.put_disabled:
                raise AccessDeniedError(f"{member.channel.record} refuses puts: its field DISP is set")
        options: PutOptions = operation.state
        changes = [
            self._change(operation, member, new if has_value else NOTHING, options)
            for member, has_value, new in work
        ]
        if self._is_atomic(operation):
            with self.group.locked():
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
            # Such a mapping exists only to process: process=false concerns the members that are written.
            process = None
        watch = self._put_log.concerns(operation, channel, new)
        return _Change(channel, new, process, watch)

    # -- monitor -------------------------------------------------------------------------------------

    def subscribe(self, subscription: Subscription) -> None:
        """Accept; events begin when the client starts the flow."""
        subscription.ready(self.group.type)

    def flow(self, subscription: Subscriber) -> None:
        """Switch events on or off for the client; each start sends all fields once."""
        if not subscription.running:
            self.unsubscribe(subscription)
            return
        if self._feed is None:
            self._feed = GroupFeed(self.group, self._stream)
        self._feed.join(subscription)

    def unsubscribe(self, subscription: Subscriber) -> None:
        """Forget the client; the last one ends the events."""
        feed = self._feed
        if feed is not None:
            feed.subscriptions.pop(subscription, None)
            if not feed.subscriptions:
                feed.close()
                self._feed = None

    def __repr__(self) -> str:
        return f"<GroupPV {self.group.name}>"


class _Change(NamedTuple):
    """The effect of a put on one member."""

    channel: DBChannel
    new: Any
    process: bool | None
    watch: Watched | None


def _do(changes: list[_Change]) -> None:
    """Write and process in order, with the records locked; all log records are written before the first change."""
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

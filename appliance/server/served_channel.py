"""The flow of one channel: requests pass access security and reach the PV's handler."""

from __future__ import annotations

import logging
from typing import Final

from appliance.pva import commands as c
from appliance.pva.octets import RawArgument
from appliance.pva.server_channel import ServerChannel
from appliance.pva.server_operation import ServerOperation
from appliance.pva.states import EXECUTING
from appliance.pvdata.value import Value
from appliance.server.access import Rights
from appliance.server.channel import Channel, ChannelOwner
from appliance.server.operation import NOT_COUNTED, Operation, Subscription
from appliance.server.source import Handler

__all__ = ["ServedChannel"]

_log: Final = logging.getLogger(__name__)

_WAITS: Final = (
    "read access denied by access security; the subscription goes on when reading is allowed again"
)


class ServedChannel(Channel):
    """A channel that a handler serves. The connection calls it with what the client wants."""

    __slots__ = ("_waiting", "handler")

    def __init__(self, owner: ChannelOwner, wire: ServerChannel, handler: Handler, rights: Rights) -> None:
        super().__init__(owner, wire, rights)
        self.handler = handler
        self._waiting: dict[Subscription, None] | None = None
        """Subscriptions that wait until the client has the right to read again."""
        wire.context = self
        owner.allowance.count_channel(1)
        handler.attached(self)

    # -- rights --------------------------------------------------------------------------------------

    def _right(self, operation: ServerOperation) -> str:
        """Return the right that the client lacks for the request in progress, or ""."""
        command = operation.command
        rights = self.rights
        if command == c.CMD_RPC:
            return "" if rights.rpc else "rpc"
        if command == c.CMD_PROCESS or (command in (c.CMD_PUT, c.CMD_PUT_GET) and not operation.is_get):
            return "" if rights.write else "write"
        return "" if rights.read else "read"

    def _held(self, operation: ServerOperation, *, changes: bool) -> str:
        """Return why the request needs a good certificate status first, or ""."""
        held = self.owner.held
        if held is None or not held.forbids(changes=changes):
            return ""
        return f"{operation.name} is refused until the certificate's status is good: {held.message}"

    def review(self) -> None:
        """Judge again what the client may do; the result holds for running subscriptions too.

        A subscriber that may no longer read loses the channel. To end the subscription with an error would be clearer,
        but Phoebus ignores that and shows the last value as if it were the present one.
        """
        before = self.rights
        access = self.owner.access
        rights = self.rights = access.rights(self.name, self.peer)
        lost_readers = access.lost_readers
        if rights.read:
            lost_readers.discard(self.name, self.peer)
            waiting, self._waiting = self._waiting, None
            for subscription in waiting or ():
                if subscription.alive:
                    self._subscribe(subscription)
        else:
            watched = False
            for wire in list(self.wire.operations.values()):
                wire.prepared = None
                operation = wire.context
                if isinstance(operation, Subscription) and operation not in (self._waiting or ()):
                    operation.clear()
                    operation.warn(f"{self.name}: {_WAITS}")
                    watched = True
            if watched:
                lost_readers.add(self.name, self.peer)
                self.close()
                return
        if before.permissions != rights.permissions:
            self.wire.set_permissions(rights.permissions)
        # Reading has no bit of its own among the permissions: what ended above must leave in any case.
        self.stream.schedule_flush()

    # -- events --------------------------------------------------------------------------------------

    def requested(self, wire: ServerOperation) -> None:
        """Begin an operation (INIT)."""
        if wire.command == c.CMD_MONITOR:
            subscription = self.handler.SUBSCRIPTION(self, wire)
            if self.rights.read:
                self._subscribe(subscription)
            elif self.owner.access.lost_readers.has(self.name, self.peer):
                if self._waiting is None:
                    self._waiting = {}
                self._waiting[subscription] = None
                subscription.warn(f"{self.name}: {_WAITS}")
            else:
                subscription.fail(self.denial("read"))
            return
        operation = Operation(self, wire)
        if wire.command == c.CMD_GET and not self.rights.read:
            operation.fail(self.denial("read"))
            return
        if self.owner.held is not None:
            why = self._held(wire, changes=wire.command in (c.CMD_RPC, c.CMD_PROCESS))
            if why:
                operation.fail(why)
                return
        try:
            self.handler.init(operation)
        except Exception as error:  # noqa: BLE001
            operation.broken(error)

    def _subscribe(self, subscription: Subscription) -> None:
        try:
            watched = self.handler.counted_as()
            full = self.owner.allowance.count_subscription(watched)
            if full:
                subscription.fail(full)
                return
            subscription.counted_as = watched
            self.handler.subscribe(subscription)
        except Exception as error:  # noqa: BLE001 - a handler's defect must not end the connection
            subscription.broken(error)

    def execute(self, wire: ServerOperation, argument: Value | RawArgument | None) -> None:
        """Handle a request of an initialised operation."""
        operation: Operation = wire.context
        if self.owner.held is not None:
            why = self._held(wire, changes=wire.command != c.CMD_GET and not wire.is_get)
            if why:
                operation.fail(why)
                return
        missing = self._right(wire)
        if missing:
            self.refused(missing)
            operation.fail(self.denial(missing))
            return
        handler = self.handler
        command = wire.command
        try:
            if command == c.CMD_GET or (argument is None and command in (c.CMD_PUT, c.CMD_PUT_GET)):
                handler.get(operation)
            elif command == c.CMD_PUT_GET and argument is not None and not self.rights.read:
                operation.fail(self.denial("read"))
            elif isinstance(argument, RawArgument):
                handler.argument_octets(operation, argument)
            elif command == c.CMD_RPC:
                handler.rpc(operation, argument)
            elif command == c.CMD_PROCESS:
                handler.process(operation)
            elif argument is None:
                operation.fail("the request contains no value; send the fields to change")
            elif command == c.CMD_PUT:
                handler.put(operation, argument)
            else:
                handler.put_get(operation, argument)
        except Exception as error:  # noqa: BLE001
            operation.broken(error)

    def introspect(self, wire: ServerOperation, field: str) -> None:
        """Answer GET_FIELD."""
        operation = Operation(self, wire)
        rights = self.rights
        if not (rights.read or rights.write or rights.rpc):
            operation.fail(self.denial("read"))
            return
        try:
            self.handler.introspect(operation, field)
        except Exception as error:  # noqa: BLE001
            operation.broken(error)

    def window(self, wire: ServerOperation) -> None:
        """Handle that a subscription was started, stopped or acknowledged."""
        subscription: Subscription = wire.context
        running = wire.state is EXECUTING
        if running is not subscription.running:
            subscription.running = running
            try:
                self.handler.flow(subscription)
            except Exception as error:  # noqa: BLE001
                subscription.broken(error)
        if self.owner.held is not None:
            subscription.wait()
            return
        try:
            if not subscription.waits and subscription.pump():
                subscription.waits = True
                self.owner.dirty(subscription)
        except Exception as error:  # noqa: BLE001 - a handler's defect must not end the connection
            subscription.broken(error)

    def cancelled(self, wire: ServerOperation, successor: ServerOperation) -> None:
        """Handle that the client cancelled the request in progress; ``successor`` serves the next ones."""
        operation = wire.context
        try:
            if isinstance(operation, Subscription):
                operation.running = False
                self.handler.flow(operation)
            else:
                self.handler.cancelled(operation)
        except Exception:  # noqa: BLE001 - see requested()
            _log.exception("the handler of %s failed to cancel an operation", self.name)
        if successor is not wire:
            Operation(self, successor).state = operation.state

    def closed(self, wire: ServerOperation) -> None:
        """Free what belongs to an operation that has ended."""
        operation = wire.context
        try:
            if isinstance(operation, Subscription):
                if self._waiting is not None:
                    self._waiting.pop(operation, None)
                operation.finishing = True
                operation.queue.clear()
                watched, operation.counted_as = operation.counted_as, NOT_COUNTED
                if watched is not NOT_COUNTED:
                    self.owner.allowance.forget_subscription(watched)
                self.handler.unsubscribe(operation)
            elif operation is not None:
                self.handler.closed(operation)
        except Exception:  # noqa: BLE001 - see requested()
            _log.exception("the handler of %s failed to close an operation", self.name)

    def gone(self) -> None:
        """Free what belongs to the channel, which has ended with all its operations."""
        self.owner.allowance.count_channel(-1)
        try:
            self.handler.detached(self)
        except Exception:  # noqa: BLE001 - see requested()
            _log.exception("the handler of %s failed to close a channel", self.name)

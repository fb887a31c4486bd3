"""A client does whatever is legal, in any order and however it is cut; both ends always agree."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from appliance.pva import commands as c
from appliance.pva.events import MonitorUpdate, OperationReply
from appliance.pva.states import ConnectionState, OperationState
from appliance.pvdata import Value
from tests.helpers.wire import SCALAR, Wire, cut, request

COMMANDS = [c.CMD_GET, c.CMD_PUT, c.CMD_PUT_GET, c.CMD_PROCESS, c.CMD_RPC, c.CMD_MONITOR]


class Client(RuleBasedStateMachine):
    @initialize(
        sizes=st.lists(st.integers(1, 64), min_size=1, max_size=3),
        big=st.booleans(),
        segments=st.sampled_from([0, 16]),
    )
    def connect(self, sizes, big, segments):
        self.wire = Wire(cut(sizes), big=big, segment_size=segments).handshake()
        self.sent = 0
        self.seen: dict = {}

    @property
    def channels(self):
        return [channel for channel in self.wire.client.channels.values() if channel.open]

    def operations(self, *states):
        return [
            op
            for op in self.wire.client.operations.values()
            if op.state in states and op.command != c.CMD_GET_FIELD
        ]

    def settle(self):
        for event in self.wire.pump():
            if type(event) is MonitorUpdate:
                self.seen[event.operation] = event.store[1]
            elif type(event) is OperationReply:
                assert event.status.ok

    @rule(name=st.sampled_from(["d", "prepared", "nope"]))
    def create(self, name):
        self.wire.client.create_channel(name)

    @precondition(lambda self: self.channels)
    @rule(data=st.data(), command=st.sampled_from(COMMANDS), piped=st.booleans())
    def begin(self, data, command, piped):
        channel = data.draw(st.sampled_from(self.channels))
        piped = piped and command == c.CMD_MONITOR
        channel.operation(
            command, request("record[pipeline=true,queueSize=4]" if piped else ""), window=4 if piped else 0
        )

    @precondition(lambda self: self.channels)
    @rule(data=st.data(), field=st.sampled_from(["", "alarm", "nope"]))
    def ask_for_field(self, data, field):
        data.draw(st.sampled_from(self.channels)).get_field(field)

    @precondition(lambda self: self.operations(OperationState.IDLE))
    @rule(data=st.data())
    def use(self, data):
        operation = data.draw(st.sampled_from(self.operations(OperationState.IDLE)))
        self.sent += 1
        value = Value(SCALAR)
        value["value"] = float(self.sent)
        match operation.command:
            case c.CMD_GET:
                operation.get()
            case c.CMD_PUT | c.CMD_PUT_GET:
                operation.put(value)
            case c.CMD_PROCESS:
                operation.process()
            case c.CMD_RPC:
                operation.call(value)
            case c.CMD_MONITOR:
                operation.start()

    @precondition(lambda self: self.operations(OperationState.EXECUTING))
    @rule(data=st.data())
    def interrupt(self, data):
        operation = data.draw(st.sampled_from(self.operations(OperationState.EXECUTING)))
        if operation.command == c.CMD_MONITOR:
            data.draw(st.sampled_from([operation.stop, operation.cancel, lambda: operation.acknowledge(2)]))()
        else:
            operation.cancel()
            operation.close()

    @precondition(lambda self: self.operations(*OperationState))
    @rule(data=st.data())
    def end(self, data):
        data.draw(st.sampled_from(self.operations(*OperationState))).close()

    @precondition(lambda self: self.wire.client.channels)
    @rule(data=st.data())
    def close_channel(self, data):
        data.draw(st.sampled_from(list(self.wire.client.channels.values()))).close()

    @precondition(lambda self: self.wire.server.channels)
    @rule(data=st.data())
    def server_closes_channel(self, data):
        data.draw(st.sampled_from(list(self.wire.server.channels.values()))).close()

    @precondition(
        lambda self: [op for op in self.wire.server.operations.values() if op.command == c.CMD_MONITOR]
    )
    @rule(data=st.data())
    def server_ends_subscription(self, data):
        monitors = [op for op in self.wire.server.operations.values() if op.command == c.CMD_MONITOR]
        data.draw(st.sampled_from(monitors)).finish()

    @rule()
    def exchange(self):
        self.settle()

    @invariant()
    def nobody_breaks_the_protocol(self):
        if hasattr(self, "wire"):
            assert self.wire.client.state is self.wire.server.state is ConnectionState.READY

    def teardown(self):
        if not hasattr(self, "wire"):
            return
        self.settle()
        client, server = self.wire.client, self.wire.server
        assert {ch.cid: ch.sid for ch in client.channels.values()} == {
            ch.cid: ch.sid for ch in server.channels.values()
        }
        assert client.operations.keys() == server.operations.keys()
        for ioid, operation in client.operations.items():
            assert server.operations[ioid].command == operation.command
        for channel in list(client.channels.values()):
            channel.close()
        self.settle()
        assert not server.channels
        assert not server.operations
        assert server.request_octets == 0


TestClient = Client.TestCase
TestClient.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)

"""The event of a change may come after the change was read, for a first update or for the event before: it is told once."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.isolated import isolated

_RECORDS = """
record(ao, "number") { field(HIGH, "5") field(HSV, "MINOR") }
record(stringout, "text") {}
record(waveform, "array") { field(FTVL, "DOUBLE") field(NELM, "4") }
"""


@isolated
def test_the_change_that_the_first_update_has_does_not_come_again(tmp_path: Path) -> None:
    import asyncio
    from typing import Any

    from appliance.client import Monitor
    from appliance.ioc import dbcore
    from appliance.ioc.event_stream import EventStream
    from appliance.ioc.feed import DEFAULT_EVENTS, Feed
    from appliance.ioc.number_feed import NumberFeed
    from appliance.ioc.record import Record
    from appliance.server import Handler, Server, Subscription
    from tests.helpers.live import until
    from tests.helpers.ours import client_of, server_config

    dbcore.boot()
    dbcore.load_records_text(_RECORDS)
    dbcore.ioc_init()

    class Hurried(Handler):
        """A record that changes at the worst moment of a subscription: its event is on the way when all fields are read."""

        def __init__(self, record: Record, feed: Feed) -> None:
            self.record, self.feed = record, feed
            self.next: Any = None

        def subscribe(self, subscription: Subscription) -> None:
            subscription.ready(self.record.mapping.type)

        def flow(self, subscription: Subscription) -> None:
            if self.next is not None:
                self.record.channel.put(self.next)
                self.next = None
            self.feed.join(subscription)

        def unsubscribe(self, subscription: Subscription) -> None:
            self.feed.leave(subscription)

    async def next_of(updates: Monitor[Any]) -> Any:
        async with asyncio.timeout(60):
            value = (await anext(updates))["value"]
        return list(value) if hasattr(value, "shape") else value

    async def main() -> None:
        stream = EventStream(asyncio.get_running_loop())
        for name, first, second, third in (
            ("number", 1.0, 9.0, 2.0),  # the second one with an alarm
            ("text", "a", "b", "c"),
            ("array", [1.0], [2.0], [3.0, 4.0]),
        ):
            record = Record(name)
            record.channel.put(first)
            feed = NumberFeed(record, stream) if name == "number" else Feed(record, stream, DEFAULT_EVENTS)
            handler = Hurried(record, feed)
            async with Server(server_config()) as server:
                server.add_pv(name, handler)
                async with client_of(server) as early, client_of(server) as late:
                    async with early.monitor(name) as before:
                        assert await next_of(before) == first
                        handler.next = second
                        async with late.monitor(name) as updates:
                            assert await next_of(updates) == second
                            assert await next_of(before) == second, "who was there is told by the event"
                            record.channel.put(third)
                            assert await next_of(updates) == third
                            assert await next_of(before) == third
                            # Another event is handled when the value is there already: its own event follows.
                            taken = stream.hub.events
                            record.channel.put(second)
                            type(feed).post_all([feed])
                            assert await next_of(updates) == await next_of(before) == second
                            await until(lambda taken=taken: stream.hub.events > taken, 60)
                            record.channel.put(first)
                            told = await next_of(updates), await next_of(before)
                            assert told == (first, first), (name, told)
                    # Nobody else is there, and the event comes to one who knows it.
                    await asyncio.sleep(0)
                    handler.next = first
                    async with late.monitor(name) as updates:
                        assert await next_of(updates) == first
                        record.channel.put(second)
                        assert await next_of(updates) == second
            feed.close()
        stream.close()

    asyncio.run(main())
    dbcore.shutdown()


@isolated
def test_a_change_of_a_group_comes_once(tmp_path: Path) -> None:
    import asyncio
    from typing import Any

    from appliance.client import Monitor
    from appliance.ioc import dbcore
    from appliance.ioc.event_stream import EventStream
    from appliance.ioc.groups.definitions import Groups
    from appliance.ioc.groups.feed import GroupFeed
    from appliance.server import Handler, Server, Subscription
    from tests.helpers.live import until
    from tests.helpers.ours import client_of, server_config

    dbcore.boot()
    dbcore.load_records_text(
        """
        record(ao, "a") { info(Q:group, { "group": { "a": { "+channel": "VAL", "+trigger": "*" } } }) }
        record(ao, "b") { info(Q:group, { "group": { "b": { "+channel": "VAL" } } }) }
        """
    )
    dbcore.ioc_init()

    class Grouped(Handler):
        def __init__(self, feed: GroupFeed) -> None:
            self.feed = feed

        def subscribe(self, subscription: Subscription) -> None:
            subscription.ready(self.feed.group.type)

        def flow(self, subscription: Subscription) -> None:
            self.feed.join(subscription)

        def unsubscribe(self, subscription: Subscription) -> None:
            self.feed.subscriptions.pop(subscription, None)

    async def next_of(updates: Monitor[Any]) -> Any:
        async with asyncio.timeout(60):
            return (await anext(updates))["a.value"]

    async def main() -> None:
        stream = EventStream(asyncio.get_running_loop())
        (group,) = Groups().groups.values()
        feed = GroupFeed(group, stream)
        a = dbcore.DBChannel("a")
        a.put(1.0)
        async with Server(server_config()) as server:
            server.add_pv("group", Grouped(feed))
            async with client_of(server) as client, client.monitor("group") as updates:
                assert await next_of(updates) == 1.0
                taken = stream.hub.events
                a.put(2.0)
                for sink in feed._sinks:
                    sink.event()
                assert await next_of(updates) == 2.0
                await until(lambda: stream.hub.events > taken, 60)
                a.put(3.0)
                assert await next_of(updates) == 3.0
        feed.close()
        stream.close()

    asyncio.run(main())
    dbcore.shutdown()

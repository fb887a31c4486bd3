"""A PV with its links: puts are combined and never lost, updates come one by one, the loss of the server ends what waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from appliance.errors import PVDataError
from appliance.ioc.dbcore.link_support import IN_LINK, OUT_LINK, LinkPlace
from appliance.ioc.links.batch import Batch
from appliance.ioc.links.channel import ChannelKey, LinkChannel
from appliance.ioc.links.link import PvaLink
from appliance.ioc.links.options import LinkOptions, Process, Severity
from appliance.ioc.links.worker import Work
from appliance.pvdata.nt import NTEnum, NTScalar
from appliance.pvdata.types import FLOAT64, INT32, StructType
from appliance.pvdata.value import Value

DOUBLE, LONG = 10, 5
KIND = NTScalar(INT32)


class World:
    """What a channel needs: a loop whose calls wait, a worker that does nothing by itself, and a PV that remembers puts."""

    def __init__(self, queue_size: int = 4) -> None:
        self.calls: list[Callable[[], None]] = []
        self.works: list[Work] = []
        self.puts: list[Batch] = []
        self.abandoned = 0
        self.closed = 0
        self.channel = LinkChannel(ChannelKey("pv", queue_size, False, False), self)
        self.channel.source = self

    def push(self, work: Work) -> None:
        self.works.append(work)

    def on_loop(self, function: Callable[[], None]) -> None:
        self.calls.append(function)

    def put(self, batch: Batch) -> None:
        self.puts.append(batch)

    def abandon(self) -> None:
        self.abandoned += 1

    def room(self) -> None:
        pass

    def close(self) -> None:
        self.closed += 1

    def turn(self) -> None:
        """Let the loop do what waits."""
        calls, self.calls = self.calls, []
        for call in calls:
            call()

    def link(self, kind: int = OUT_LINK, **options: Any) -> PvaLink:
        number = len(self.channel.links()) + 1
        place = LinkPlace(number, number, f"rec{number}", "OUT" if kind == OUT_LINK else "INP", kind)
        link = PvaLink(place, LinkOptions("pv", **options), self.channel, lambda _: None)
        self.channel.add(link)
        return link

    def value(self, number: int, severity: int = 0) -> None:
        value = Value(
            KIND, {"value": number, "alarm.severity": severity, "alarm.message": "HIGH" if severity else ""}
        )
        self.channel.deliver(KIND, value.store)

    def completions(self) -> list[tuple[str, str]]:
        """The puts that are ended for records, each with the reason of its failure."""
        return [
            (place.name, why)
            for work in self.works
            if hasattr(work, "_links") and isinstance(work._links, list)
            for place, why in work._links
        ]


def read(link: PvaLink, dbr: int = LONG) -> Any:
    data, count, severity, message, _ = link.read(dbr, None)
    return None if data is None else (int.from_bytes(data, "little"), count, severity, message)


def written(batch: Batch, kind: StructType = KIND) -> Value:
    value = Value(kind)
    batch.write(value)
    return value


def put(link: PvaLink, number: int, *, wait: bool = False) -> bool:
    return link.put(LONG, number.to_bytes(4, "little"), 1, wait=wait)


def test_a_link_reads_the_latest_value_and_is_invalid_without_one() -> None:
    world = World()
    link = world.link(IN_LINK)
    assert not link.is_connected()
    assert link.read(LONG, None).severity == 3
    assert link.read(LONG, None).message == "INP Disconn"
    world.value(5)
    assert link.is_connected()
    assert read(link) == (5, 1, 0, "")
    world.value(6)
    assert read(link) == (6, 1, 0, "")
    world.channel.lost("gone")
    assert read(link) is None
    assert link.read(LONG, None).severity == 3
    world.value(7)
    assert read(link) == (7, 1, 0, "")
    assert (world.channel.disconnects, world.channel.type_changes) == (1, 2)


def test_the_severity_goes_to_the_record_as_the_link_says() -> None:
    world = World()
    links = {each: world.link(IN_LINK, sevr=each) for each in Severity}
    for severity, raised in ((0, (0, 0, 0)), (1, (0, 1, 0)), (2, (0, 2, 0)), (3, (0, 3, 3))):
        world.value(1, severity)
        found = tuple(
            links[each].read(LONG, None).severity for each in (Severity.NMS, Severity.MS, Severity.MSI)
        )
        assert found == raised
    assert links[Severity.NMS].alarm() == (3, "HIGH")


def test_alarm_and_time_are_those_of_the_latest_read() -> None:
    world = World()
    link = world.link(IN_LINK)
    world.value(1, 2)
    assert link.alarm() == (3, "")
    link.read(LONG, None)
    assert link.alarm() == (2, "HIGH")
    world.value(2, 0)
    assert link.alarm() == (2, "HIGH")
    link.read(LONG, None)
    assert link.alarm() == (0, "")


def test_a_field_that_the_pv_lacks_is_said_in_the_alarm() -> None:
    world = World()
    link = world.link(IN_LINK, field="nosuch")
    world.value(1)
    assert not link.is_connected()
    assert link.read(LONG, None).message == "the PV has no field 'nosuch'"
    assert link.field_type() is None


def test_a_record_can_write_only_to_a_connected_pv() -> None:
    world = World()
    plain, patient = world.link(), world.link(retry=True)
    assert not put(plain, 1)
    assert put(patient, 1)
    assert plain.forward() == "OUT Disconn"
    world.turn()
    assert not world.puts
    world.value(0)
    world.turn()
    assert len(world.puts) == 1
    assert world.puts[0].values == {patient: 1}


def test_one_put_at_a_time_and_the_latest_value_wins() -> None:
    world = World()
    link = world.link()
    world.value(0)
    for number in (1, 2, 3):
        assert put(link, number)
    world.turn()
    assert [written(each)["value"] for each in world.puts] == [3]
    put(link, 4)
    put(link, 5)
    world.turn()
    assert len(world.puts) == 1
    world.channel.put_done(world.puts[-1], "")
    world.turn()
    assert [written(each)["value"] for each in world.puts] == [3, 5]
    world.channel.put_done(world.puts[-1], "")
    world.turn()
    assert len(world.puts) == 2


def test_a_put_that_a_record_waits_for_holds_up_nobody_else() -> None:
    world = World()
    patient, busy, other = world.link(), world.link(), world.link()
    world.value(0)
    put(patient, 1, wait=True)
    world.turn()
    put(busy, 2)
    world.turn()
    # The end of this one comes soon, and the next one waits for it.
    put(busy, 3)
    put(other, 4, wait=True)
    world.turn()
    assert [list(each.values.values()) for each in world.puts] == [[1], [2]]
    world.channel.put_done(world.puts[1], "")
    world.turn()
    assert [list(each.values.values()) for each in world.puts] == [[1], [2], [3, 4]]
    assert not world.completions()
    world.channel.put_done(world.puts[2], "")
    assert world.completions() == [("rec3.OUT", "")]
    assert world.channel.is_putting
    world.channel.put_done(world.puts[0], "pv: refused")
    assert world.completions() == [("rec3.OUT", ""), ("rec1.OUT", "pv: refused")]
    assert not world.channel.is_putting


def test_of_several_puts_that_are_lost_the_latest_value_is_tried_again() -> None:
    world = World()
    patient, other = world.link(retry=True), world.link()
    world.value(0)
    put(patient, 1, wait=True)
    world.turn()
    put(other, 5, wait=True)
    world.turn()
    put(patient, 2)
    world.turn()
    assert len(world.puts) == 3
    world.channel.lost("gone")
    assert world.completions() == [("rec2.OUT", "pv Disconn")]
    world.value(0)
    world.turn()
    assert len(world.puts) == 4
    assert world.puts[-1].values == {patient: 2}
    assert world.puts[-1].waiting == {patient}


def test_a_source_that_fails_ends_the_put() -> None:
    world = World()
    link = world.link()
    world.value(0)

    def fail(batch: Batch) -> None:
        raise ValueError("no such thing")

    world.put, before = fail, world.put  # type: ignore[method-assign]
    put(link, 1, wait=True)
    world.turn()
    assert world.completions() == [("rec1.OUT", "ValueError: no such thing")]
    world.put = before  # type: ignore[method-assign]
    put(link, 2)
    world.turn()
    assert written(world.puts[-1])["value"] == 2


def test_a_reader_that_waits_for_room_hears_of_a_queue_that_was_emptied() -> None:
    world = World(queue_size=1)
    rooms: list[None] = []
    world.room = lambda: rooms.append(None)  # type: ignore[method-assign]
    world.link(IN_LINK, proc=Process.CP)
    for number in range(20):
        world.value(number)
        world.channel.lost("gone")
    assert rooms
    assert not world.channel.is_full or len(world.channel._pending) <= 1 + 8


def test_deferred_values_leave_with_the_next_link_that_does_not_defer() -> None:
    kind = StructType([("a", INT32), ("b", INT32), ("c", INT32)])
    world = World()
    links = [world.link(field=name, defer=name != "c") for name in "abc"]
    world.channel.deliver(kind, Value(kind).store)
    put(links[0], 1)
    put(links[1], 2)
    world.turn()
    assert not world.puts
    put(links[2], 3)
    world.turn()
    assert written(world.puts[0], kind).to_dict() == {"a": 1, "b": 2, "c": 3}


def test_a_put_waits_for_the_end_of_processing_only_if_a_record_waits() -> None:
    world = World()
    link = world.link(proc=Process.PP)
    world.value(0)
    put(link, 1)
    world.turn()
    assert world.puts[-1].request == "record[block=false,process=true]"
    world.channel.put_done(world.puts[-1], "")
    assert not world.completions()
    put(link, 2, wait=True)
    world.turn()
    assert world.puts[-1].request == "record[block=true,process=true]"
    world.channel.put_done(world.puts[-1], "")
    assert world.completions() == [("rec1.OUT", "")]


def test_the_reason_of_a_failure_reaches_the_record_that_waits() -> None:
    world = World()
    link = world.link()
    world.value(0)
    put(link, 1, wait=True)
    world.turn()
    world.channel.put_done(world.puts[-1], "pv: access denied")
    assert world.completions() == [("rec1.OUT", "pv: access denied")]
    assert (world.channel.puts, world.channel.put_errors, world.channel.put_error) == (
        1,
        1,
        "pv: access denied",
    )


def test_processing_is_asked_for_as_the_links_say() -> None:
    for procs, forward, request in (
        ((Process.DEFAULT,), False, "passive"),
        ((Process.NPP,), False, "false"),
        ((Process.NPP, Process.DEFAULT), False, "false"),
        ((Process.NPP, Process.PP), False, "true"),
        ((Process.CP,), False, "true"),
        ((Process.CPP,), False, "true"),
        ((), True, "true"),
        ((Process.NPP,), True, "true"),
    ):
        world = World()
        links = [world.link(proc=proc) for proc in procs]
        batch = Batch(dict.fromkeys(links, 1), forward, frozenset())
        assert batch.request == f"record[block=false,process={request}]"


def test_a_forward_link_sends_no_value() -> None:
    world = World()
    link = world.link()
    world.value(0)
    assert not link.forward()
    world.turn()
    assert not world.puts[0].values
    assert world.puts[0].process is True
    assert written(world.puts[0]).changed == 0


def test_the_loss_of_the_server_ends_a_put_and_what_waits_behind_it() -> None:
    world = World()
    first, second = world.link(), world.link()
    world.value(0)
    put(first, 1, wait=True)
    world.turn()
    put(second, 2, wait=True)
    world.channel.lost("gone")
    assert world.abandoned == 1
    assert sorted(world.completions()) == [("rec1.OUT", "pv Disconn"), ("rec2.OUT", "pv Disconn")]
    world.value(0)
    world.turn()
    assert len(world.puts) == 1


def test_what_was_lost_is_tried_again_if_the_link_says_so_with_the_latest_value() -> None:
    world = World()
    patient, plain = world.link(retry=True), world.link()
    world.value(0)
    put(patient, 1, wait=True)
    put(plain, 9)
    world.turn()
    world.channel.lost("gone")
    assert not world.completions()
    put(patient, 2)
    world.value(0)
    world.turn()
    assert world.puts[-1].values == {patient: 2}
    assert world.puts[-1].waiting == {patient}
    world.channel.put_done(world.puts[-1], "")
    assert world.completions() == [("rec1.OUT", "")]


def test_a_client_that_reports_the_loss_before_the_subscription_does_loses_nothing() -> None:
    world = World()
    patient = world.link(retry=True)
    world.value(0)
    put(patient, 1)
    world.turn()
    world.channel.put_done(world.puts[-1], "lost the server during the put", lost=True)
    world.channel.lost("gone")
    world.turn()
    world.value(0)
    world.turn()
    assert world.puts[-1].values == {patient: 1}


def test_a_value_that_does_not_fit_spoils_only_its_own_link() -> None:
    kind = StructType([("a", INT32), ("b", INT32)])
    world = World()
    good, bad = world.link(field="a"), world.link(field="b")
    none = world.link(field="nosuch")
    batch = Batch({good: 1, bad: "many", none: 3}, False, frozenset())
    value = Value(kind)
    faults = batch.write(value)
    assert set(faults) == {bad, none}
    assert value.is_marked("a")
    assert not value.is_marked("b")
    with pytest.raises(PVDataError, match="many"):
        Batch({bad: "many"}, False, frozenset()).write(Value(kind))


def test_the_choices_are_read_only_where_a_text_must_be_found_among_them() -> None:
    world = World()
    link = world.link()
    assert Batch({link: "one"}, False, frozenset()).needs_present(NTEnum())
    assert not Batch({link: 1}, False, frozenset()).needs_present(NTEnum())
    assert not Batch({link: "one"}, False, frozenset()).needs_present(NTScalar(FLOAT64))


def test_updates_for_records_wait_for_the_worker_and_are_merged_when_too_many() -> None:
    world = World(queue_size=2)
    link = world.link(IN_LINK, proc=Process.CP)
    assert link.scans
    for number in (1, 2, 3, 4):
        world.value(number)
    assert world.works == [world.channel] * 2, "the worker is asked once for each that waits"
    assert not link.is_connected()
    assert world.channel.squashed == 2
    assert [item.store[1] for item in world.channel._pending] == [1, 4]


def test_news_of_a_server_that_comes_and_goes_do_not_pile_up() -> None:
    world = World(queue_size=2)
    world.link(IN_LINK, proc=Process.CP)
    for number in range(1000):
        world.value(number)
        world.channel.lost("gone")
        assert len(world.works) == len(world.channel._pending) + world.channel._spare
    assert len(world.channel._pending) <= 2 + 8 + 1
    assert len(world.works) <= 2 * (2 + 8 + 1), "nor does the worker's queue"


def test_only_inputs_are_processed_by_updates() -> None:
    world = World()
    assert not world.link(OUT_LINK, proc=Process.CP).scans
    assert world.link(IN_LINK, proc=Process.CPP).only_passive
    assert not world.link(IN_LINK, proc=Process.PP).scans


def test_records_are_processed_in_the_order_of_monorder_together_where_atomic() -> None:
    world = World()
    for order, atomic in ((3, False), (1, True), (-2, False), (0, True)):
        world.link(IN_LINK, proc=Process.CPP if order == 3 else Process.CP, monorder=order, atomic=atomic)
    together, single = world.channel._plan()
    assert together == [(4, False), (2, False)]
    assert single == [(3, False), (1, True)]


def test_a_link_that_is_changed_ends_what_its_record_waits_for() -> None:
    world = World()
    link, other = world.link(defer=True), world.link()
    world.value(0)
    put(link, 1, wait=True)
    assert not world.channel.remove(link)
    assert world.completions() == [("rec1.OUT", "the link was changed before its put was done")]
    put(other, 2)
    world.turn()
    assert world.puts[0].values == {other: 2}
    assert world.channel.remove(other)


def test_a_link_that_comes_later_is_processed_if_there_is_a_value_already() -> None:
    world = World()
    world.link(IN_LINK)
    world.value(5)
    place = LinkPlace(9, 9, "late", "INP", IN_LINK)
    late = PvaLink(place, LinkOptions("pv", proc=Process.CP), world.channel, lambda _: None)
    assert world.channel.add(late)
    assert read(late) == (5, 1, 0, "")

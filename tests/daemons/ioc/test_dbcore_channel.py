"""Fields: get, put, properties, locks, filters, puts that wait."""

from __future__ import annotations

import asyncio
import math
import queue
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from appliance.errors import AccessDeniedError, OperationError, PVDataError
from tests.helpers.isolated import isolated

if TYPE_CHECKING:
    from appliance.ioc.dbcore import DBChannel

_RECORDS = """
record(ai, "ai") {
  field(DESC, "a pressure") field(EGU, "mbar") field(PREC, "3") field(VAL, "1.5") field(PINI, "YES")
  field(HOPR, "100") field(LOPR, "-100")
  field(HIHI, "80") field(HHSV, "MAJOR") field(HIGH, "60") field(HSV, "MINOR") field(LOLO, "-80") field(LLSV, "MAJOR")
  field(ASG, "SPECIAL") info(Q:form, "Engineering") alias("pressure")
}
record(ao, "ao") { field(DRVH, "10") field(DRVL, "-10") field(OUT, "ai PP") field(FLNK, "count") }
record(calc, "count") { field(CALC, "VAL+1") }
record(calc, "slow") { field(CALC, "VAL+1") field(SCAN, "10 second") }
record(longout, "lo") {}
record(int64out, "big") {}
record(mbbo, "menu") { field(ZRVL, "0") field(ONVL, "1") field(ZRST, "zero") field(ONST, "one") }
record(bo, "bo") { field(ZNAM, "off") field(ONAM, "on") }
record(stringout, "str") { field(VAL, "hello") }
record(lso, "long") { field(SIZV, "200") }
record(waveform, "wave") { field(FTVL, "DOUBLE") field(NELM, "1000") field(EGU, "V") }
record(waveform, "bytes") { field(FTVL, "UCHAR") field(NELM, "16") }
record(waveform, "text") { field(FTVL, "CHAR") field(NELM, "64") info(Q:form, "String") }
record(waveform, "strings") { field(FTVL, "STRING") field(NELM, "4") }
record(waveform, "one") { field(FTVL, "LONG") field(NELM, "1") }
record(calcout, "async") { field(CALC, "A*2") field(ODLY, "0.2") field(OUT, "lo PP") }
record(ao, "disabled") { field(DISP, "1") }
"""


def _start() -> None:
    from appliance.ioc import dbcore

    dbcore.boot()
    dbcore.load_records_text(_RECORDS)
    dbcore.ioc_init()


async def _put_and_wait(channel: DBChannel, value: Any) -> None:
    """Put, and wait until all processing has completed; cancelling the task cancels the wait."""
    from appliance.ioc.dbcore import put_notify

    loop = asyncio.get_running_loop()
    ended: asyncio.Future[str | None] = loop.create_future()

    def end(error: str | None) -> None:
        if not ended.done():
            ended.set_result(error)

    put = put_notify(channel, lambda error: loop.call_soon_threadsafe(end, error), value)
    try:
        error = await ended
    finally:
        put.cancel()
    if error is not None:
        raise OperationError(error)


@isolated
def test_a_channel_tells_what_it_is(tmp_path: Path) -> None:
    from appliance.ioc.dbcore import DBChannel, exists, shutdown

    _start()
    channel = DBChannel("pressure")
    assert (channel.name, channel.record, channel.record_type, channel.field) == (
        "pressure",
        "ai",
        "ai",
        "VAL",
    )
    assert (channel.form, channel.access_group, channel.as_level) == ("Engineering", "SPECIAL", 0)
    assert channel.is_value_field
    assert not channel.is_array
    assert channel.process_passive
    assert (channel.info("Q:form"), channel.info("nosuch")) == ("Engineering", None)
    limit = DBChannel("ai.HIHI")
    assert limit.as_level == 1
    assert not limit.is_value_field
    assert limit.form == "Default"
    DBChannel("ai.ASG").put("OTHER")
    assert channel.access_group == "OTHER"
    assert exists("ai.DESC")
    for name in ("nosuch", "ai.NOSUCH", "", "a" * 5000, "ai\0"):
        assert not exists(name)
        with pytest.raises(OperationError, match="no such record or field"):
            DBChannel(name)
    with pytest.raises(OperationError, match="DBF_NOACCESS"):
        DBChannel("ai.MLOK")
    with pytest.raises(OperationError, match="modifiers"):
        DBChannel('ai.VAL{"nosuch":{}}')
    shutdown()


@isolated
def test_get_takes_value_alarm_and_time_together(tmp_path: Path) -> None:
    from appliance.ioc.dbcore import ALARM_CONDITIONS, DBChannel, shutdown

    _start()
    channel = DBChannel("ai")
    before = time.time()
    channel.put(85.25)
    reading = channel.get()
    assert reading.value == 85.25
    assert (ALARM_CONDITIONS[reading.status], reading.severity) == ("HIHI", 2)
    assert before - 1 <= reading.seconds + reading.nanoseconds / 1e9 <= time.time() + 1
    assert reading.user_tag == 0
    with channel.locked():
        assert channel.get_locked() == reading
    fresh = DBChannel("slow").get()
    assert (ALARM_CONDITIONS[fresh.status], fresh.severity, fresh.seconds) == ("UDF", 3, 631152000)
    shutdown()


@isolated
def test_a_view_of_a_number_sees_what_a_get_tells(tmp_path: Path) -> None:
    from appliance.errors import OperationError
    from appliance.ioc import dbcore
    from appliance.ioc.dbcore import DBChannel, NumberView, can_view_number, can_view_text

    dbcore.boot()
    dbcore.load_records(Path(__file__).with_name("all_types.db"))
    dbcore.ioc_init()
    viewed = set()
    for record in dbcore.records():
        channel = DBChannel(record.name)
        assert not (can_view_number(channel) and can_view_text(channel))
        if not can_view_number(channel) and not can_view_text(channel):
            # The value of an mbbo is an enum or a number, as its states are defined, and an array of one element may be
            # empty (SPC_DBADDR): EPICS has to be asked.
            is_other = channel.is_string or channel.is_array or not channel.is_value_field
            assert is_other or record.record_type in {"mbbo", "waveform"}, record
            with pytest.raises(OperationError, match="plain number"):
                NumberView(channel)
            continue
        viewed.add(record.record_type)
        view = NumberView(channel)
        raw, known = view.look()
        assert dbcore.reading_of(raw) == channel.get(), record
        for field in ("EGU", "HOPR", "ZRST", "ZNAM"):
            if not channel.put_disabled and dbcore.exists(f"{record.name}.{field}"):
                DBChannel(f"{record.name}.{field}").put("7")
                assert view.look()[1] != known, f"{record.name}.{field}"
                break
    assert viewed >= {"ai", "ao", "bi", "bo", "calc", "longin", "longout", "mbbi", "int64in", "sub", "sel"}
    assert viewed >= {"stringin", "stringout"}
    dbcore.shutdown()


@isolated
def test_properties_are_none_where_a_type_has_none(tmp_path: Path) -> None:
    from appliance.ioc.dbcore import DBChannel, Range, shutdown

    _start()
    properties = DBChannel("ai").properties()
    assert (properties.units, properties.precision, properties.choices) == ("mbar", 3, None)
    assert properties.description == "a pressure"
    assert properties.display == Range(-100, 100)
    assert properties.alarm is not None
    low_alarm, low_warning, high_warning, high_alarm = properties.alarm
    assert (low_alarm, high_warning, high_alarm) == (-80, 60, 80)
    assert math.isnan(low_warning)
    assert DBChannel("ao").properties().control == Range(-10, 10)
    menu = DBChannel("menu").properties()
    assert menu.choices == ("zero", "one")
    assert menu.units is None
    assert menu.display is None
    assert "Passive" in (DBChannel("ai.SCAN").properties().choices or ())
    assert DBChannel("lo").properties().precision is None
    shutdown()


@isolated
def test_every_kind_of_value_survives_a_put_and_a_get(tmp_path: Path) -> None:
    import numpy as np

    from appliance.ioc.dbcore import DBChannel, shutdown

    _start()
    for name, value in (
        ("lo", -(2**31)),
        ("big", 2**63 - 1),
        ("ai", -2.5),
        ("menu", 1),
        ("bo", 1),
        ("str", "grün"),
        ("str", ""),
        ("long", "x" * 199),
        ("text", "a long string"),
        ("ai.DESC", "text"),
        ("ai.SCAN", 0),
        ("strings", ("a", "", "ccc")),
        ("strings", ()),
        ("one", 7),
        ("ao.FLNK", "count CA"),
    ):
        channel = DBChannel(name)
        channel.put(value)
        got = channel.get().value
        assert type(got) is type(value), name
        assert got == value, name
    wave = DBChannel("wave")
    assert wave.is_array
    assert wave.get().value.size == 0
    for array in (np.arange(1000.0), np.array([1.0, np.nan]), np.empty(0)):
        wave.put(array)
        got = wave.get().value
        assert got.dtype == np.float64
        assert np.array_equal(got, array, equal_nan=True)
        assert not got.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            got[:1] = 0
    wave.put(np.arange(5, dtype=np.int16))
    assert wave.get().value.tolist() == [0, 1, 2, 3, 4]
    wave.put([1, 2.5])
    assert wave.get().value.tolist() == [1, 2.5]
    raw = DBChannel("bytes")
    raw.put(np.array([0, 255], np.uint8))
    assert raw.get().value.tolist() == [0, 255]
    assert raw.get().value.dtype == np.uint8
    assert DBChannel("ai.DESC$").is_string
    shutdown()


@isolated
def test_a_dollar_makes_text_of_a_field_in_and_out(tmp_path: Path) -> None:
    from appliance.ioc.dbcore import DBChannel, boot, ioc_init, load_records_text, shutdown

    boot()
    load_records_text('record(ai, "a") { field(DESC, "first") } record(lso, "l") { field(SIZV, "100") }')
    ioc_init()
    for name, text in (("a.DESC$", "text"), ("a.DESC$", "x" * 60), ("a.INP$", "l"), ("l.VAL$", "y" * 80)):
        with DBChannel(name) as channel:
            assert channel.is_string
            assert not channel.is_array
            channel.put(text)
            read = channel.get().value
            assert isinstance(read, str)
            # A field of 41 octets has room for 40.
            assert read.split(" ")[0] == text[: 40 if "DESC" in name else None]
    shutdown()


@isolated
def test_words_of_epics_stand_for_its_numbers(tmp_path: Path) -> None:
    from appliance.ioc.dbcore import DBChannel, boot, ioc_init, load_records_text, shutdown
    from appliance.ioc.dbcore.words import _texts, status_text

    boot()
    load_records_text('record(mbbo, "m") { field(ZRST, "zero") } record(ao, "a") {}')
    ioc_init()
    with pytest.raises(OperationError, match=r"^cannot write a\.SEVR: field may not be modified$"):
        DBChannel("a.SEVR").put(1)
    for name in ("m", "a.SCAN", "a.OMSL"):
        with pytest.raises(OperationError, match="illegal choice"):
            DBChannel(name).put("nonsense")
    for name in ("a.SCAN", "a.OMSL", "a.DTYP"):
        with pytest.raises(OperationError, match="illegal choice 99"):
            DBChannel(name).put(99)
    assert len(_texts()) > 100
    assert not [number for number in _texts() if "Error (" in status_text(number[0] << 16 | number[1])]
    shutdown()


@isolated
def test_an_array_of_one_element_can_be_empty(tmp_path: Path) -> None:
    from appliance.ioc.dbcore import DBChannel, shutdown

    _start()
    channel = DBChannel("one")
    assert channel.get().value == 0
    channel.put(5)
    assert channel.get().value == 5
    shutdown()


@isolated
def test_readings_do_not_share_memory_with_later_ones(tmp_path: Path) -> None:
    from appliance.ioc.dbcore import DBChannel, shutdown

    _start()
    wave = DBChannel("wave")
    wave.put([1.0, 2.0])
    first = wave.get().value
    wave.put([3.0, 4.0])
    assert first.tolist() == [1, 2]
    assert wave.get().value.tolist() == [3, 4]
    shutdown()


@isolated
def test_text_is_converted_by_the_database_and_nonsense_refused(tmp_path: Path) -> None:
    import numpy as np

    from appliance.ioc.dbcore import DBChannel, shutdown

    _start()
    menu = DBChannel("menu")
    menu.put("one")
    assert menu.get().value == 1
    with pytest.raises(OperationError, match="cannot write menu"):
        menu.put("seven")
    DBChannel("lo").put("42")
    assert DBChannel("lo").get().value == 42
    for name, value in (
        ("lo", 2**31),
        ("lo", None),
        ("lo", [1]),
        ("lo", math.inf),
        ("menu", -1),
        ("wave", np.zeros((2, 2))),
        ("wave", np.array([1j])),
        ("wave", np.array([True])),
        ("wave", [object()]),
        ("bytes", [256]),
        ("strings", "abc"),
        ("long", 5),
    ):
        with pytest.raises(PVDataError):
            DBChannel(name).put(value)
    with pytest.raises(OperationError, match=r"cannot write ai\.NAME"):
        DBChannel("ai.NAME").put("renamed")
    DBChannel("str").put("y" * 100)
    assert DBChannel("str").get().value == "y" * 39
    shutdown()


class _Watch:
    def __init__(self) -> None:
        self.told: list[object] = []
        self.refuses = False

    def begin(self, old: object) -> None:
        self.told.append(old)
        if self.refuses:
            raise OperationError("not now")

    def failed(self, error: object) -> None:
        self.told.append(f"failed: {error}")


@isolated
def test_links_carry_values_and_can_be_changed_at_run_time(tmp_path: Path) -> None:
    from appliance.ioc.dbcore import DBChannel, shutdown

    _start()
    ao, ai, count = DBChannel("ao"), DBChannel("ai"), DBChannel("count")
    ao.put(4.5)
    assert (ai.get().value, count.get().value) == (4.5, 1)
    link = DBChannel("ao.OUT")
    assert link.is_link
    assert link.is_string
    assert link.get().value == "ai PP NMS"
    watch = _Watch()
    link.put("lo PP", watch=watch)
    assert watch.told == ["ai PP NMS"]
    ao.put(7)
    assert (ai.get().value, DBChannel("lo").get().value) == (4.5, 7)
    with link.locked(), pytest.raises(OperationError, match="link"):
        link.put_locked("ai")
    shutdown()


@isolated
def test_process_option_decides_whether_the_record_processes(tmp_path: Path) -> None:
    from appliance.ioc.dbcore import DBChannel, shutdown

    _start()
    ao, count = DBChannel("ao"), DBChannel("count")
    seen = []
    for process in (None, False, True):
        ao.put(1, process)
        seen.append(count.get().value)
    assert seen == [1, 1, 2]
    description = DBChannel("count.DESC")
    description.put("no pp()")
    assert count.get().value == 2
    description.put("forced", process=True)
    assert count.get().value == 3
    DBChannel("count.PROC").put(1, process=False)
    assert count.get().value == 4, "PROC always processes"
    slow = DBChannel("slow.A")
    slow.put(1)
    assert DBChannel("slow").get().value == 0, "a scanned record waits for its scan"
    shutdown()


@isolated
def test_disp_refuses_all_puts_but_to_itself(tmp_path: Path) -> None:
    from appliance.ioc.dbcore import DBChannel, put_notify, shutdown

    _start()
    channel = DBChannel("disabled")
    assert channel.put_disabled
    with pytest.raises(AccessDeniedError, match="DISP"):
        channel.put(1)
    with channel.locked(), pytest.raises(AccessDeniedError, match="DISP"):
        channel.put_locked(1)
    answers: list[str | None] = []
    put_notify(channel, answers.append, 1.0)
    assert answers[0] is not None
    assert "DISP" in answers[0]
    DBChannel("disabled.DISP").put(0)
    channel.put(1)
    assert channel.get().value == 1
    shutdown()


@isolated
def test_who_watches_a_put_is_told_the_old_value_before_it_is_done_and_may_prevent_it(tmp_path: Path) -> None:
    from appliance.ioc.dbcore import DBChannel, put_notify, shutdown

    _start()
    channel = DBChannel("lo")
    channel.put(2)
    watch = _Watch()
    channel.put(3, watch=watch)
    assert watch.told == [2]
    watch.refuses = True
    with pytest.raises(OperationError, match="not now"):
        channel.put(4, watch=watch)
    answers: list[str | None] = []
    put_notify(channel, answers.append, 5, watch=watch)
    assert answers == ["not now"]
    assert watch.told == [2, 3, "failed: not now", 3, "failed: not now"]
    assert channel.get().value == 3
    shutdown()


@isolated
def test_blocking_put_waits_for_processing_that_takes_time(tmp_path: Path) -> None:
    from appliance.ioc.dbcore import DBChannel, put_notify, shutdown

    _start()

    async def run() -> None:
        channel = DBChannel("async.A")
        start = time.perf_counter()
        await _put_and_wait(channel, 21)
        assert time.perf_counter() - start >= 0.19
        assert DBChannel("lo").get().value == 42
        with channel.locked():
            channel.put(5)
            assert DBChannel("async.PACT").get().value == 1, "a plain put does not wait"
        # a second put waits for its turn and for its own processing
        await asyncio.gather(_put_and_wait(channel, 6), _put_and_wait(DBChannel("async.A"), 8))
        assert DBChannel("lo").get().value in {12, 16}
        task = asyncio.create_task(_put_and_wait(channel, 9))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await _put_and_wait(channel, 10)
        assert DBChannel("lo").get().value == 20
        await _put_and_wait(DBChannel("ao.OUT"), "count")
        assert DBChannel("ao.OUT").get().value == "count NPP NMS"
        with pytest.raises(OperationError, match="cannot write menu"):
            await _put_and_wait(DBChannel("menu"), "seven")
        with pytest.raises(PVDataError):
            await _put_and_wait(channel, None)

    asyncio.run(run())
    answers: queue.Queue[str | None] = queue.Queue()
    put_notify(DBChannel("ao"), answers.put, 1.0)
    assert answers.get(timeout=30) is None
    assert DBChannel("ao").get().value == 1
    shutdown()


@isolated
def test_many_records_are_locked_together(tmp_path: Path) -> None:
    from appliance.ioc import dbcore

    dbcore.boot()
    dbcore.load_records_text("".join(f'record(longout, "r{i}") {{}}\n' for i in range(20)))
    dbcore.ioc_init()
    names = [f"r{i}" for i in range(20)]
    stop = threading.Event()
    torn: list[set[int]] = []

    def read() -> None:
        channels = [dbcore.DBChannel(name) for name in names]
        while not stop.is_set():
            values = {reading.value for reading in dbcore.get_many(channels)}
            if len(values) != 1:
                torn.append(values)

    thread = threading.Thread(target=read)
    thread.start()
    channels = [dbcore.DBChannel(name) for name in names]
    lock = dbcore.ManyLock(channels)
    for value in range(1, 400):
        with lock:
            for channel in channels:
                channel.put_locked(value)
            for channel in channels:
                channel.process_locked(True)
    stop.set()
    thread.join()
    lock.close()
    assert not torn
    assert [reading.value for reading in dbcore.get_many(channels * 200)] == [399] * 4000
    assert dbcore.get_many([]) == []
    assert dbcore.get_many(channels[:1])[0].value == 399
    dbcore.shutdown()


@isolated
def test_filters_and_slices_apply_to_gets(tmp_path: Path) -> None:
    from appliance.ioc.dbcore import DBChannel, get_many, shutdown

    _start()
    DBChannel("wave").put([0.0, 1.0, 2.0, 3.0])
    part = DBChannel("wave.VAL[1:2]")
    assert part.get().value.tolist() == [1, 2]
    assert DBChannel('wave.VAL{"arr":{"s":-1}}').get().value == 3, "one element that is left is a scalar"
    stamped = DBChannel('count.VAL{"ts":{}}')
    assert stamped.get().seconds > 1_700_000_000, "the filter gives the time of the get"
    assert [reading.value.size for reading in get_many([part, DBChannel("wave")])] == [2, 4]
    shutdown()


@isolated
def test_python_subroutines_and_devices_run_under_the_lock_without_deadlock(tmp_path: Path) -> None:
    from appliance.ioc import dbcore

    def image(record: dbcore.RecordView) -> int:
        count = int(record.array("A", record["FTA"], 1)[0])
        pixels = record.array("VALA", record["FTVA"], record["NOVA"])
        if count > pixels.size:
            record.set_invalid()
            return 0
        pixels[:count] = range(count)
        record["NEVA"] = count
        return 0

    def broken(record: dbcore.RecordView) -> int:
        raise RuntimeError(record.name)

    def process(record: dbcore.RecordView) -> int:
        record["VAL"] = int(record.link_number("INP")) * 2
        record["UTAG"] = 77
        return 0

    dbcore.register_device("devDouble", process)
    definition = tmp_path / "double.dbd"
    definition.write_text('device(longin, CONSTANT, devDouble, "Double")\n')
    dbcore.boot(extra=[definition])
    dbcore.register_function("image", image)
    dbcore.register_function("broken", broken)
    dbcore.load_records_text(
        """
        record(aSub, "img") {
          field(SNAM, "image") field(FTA, "ULONG") field(FTVA, "USHORT") field(NOVA, "100")
          field(INPA, "n") field(OUTA, "out PP") field(SCAN, ".1 second")
        }
        record(longout, "n") { field(VAL, "50") }
        record(waveform, "out") { field(FTVL, "USHORT") field(NELM, "100") }
        record(sub, "bad") { field(SNAM, "broken") field(BRSV, "MAJOR") }
        record(longin, "dbl") { field(DTYP, "Double") field(INP, "n") }
        """
    )
    dbcore.ioc_init()
    image_channel, out, bad = dbcore.DBChannel("img"), dbcore.DBChannel("out"), dbcore.DBChannel("bad")
    deadline = time.monotonic() + 20
    # Reading the record that runs Python, as fast as possible, is what would deadlock with the GIL held.
    while out.get().value.size != 50 and time.monotonic() < deadline:
        image_channel.get()
        dbcore.get_many([image_channel, out, bad])
    assert out.get().value.tolist() == list(range(50))
    with pytest.raises(OperationError, match="cannot process bad"):
        dbcore.DBChannel("bad.PROC").put(1)
    assert bad.get().severity == 3
    dbcore.DBChannel("dbl.PROC").put(1)
    double = dbcore.DBChannel("dbl").get()
    assert (double.value, double.user_tag, double.severity) == (100, 77, 0)
    dbcore.shutdown()


@isolated
def test_closed_channels_and_records_stay_apart(tmp_path: Path) -> None:
    from appliance.ioc.dbcore import DBChannel, shutdown

    _start()
    with DBChannel("lo") as channel:
        assert channel.address
    assert channel.address == 0
    channel.close()
    with pytest.raises(OperationError, match="closed"):
        channel.get()
    with pytest.raises(OperationError, match="closed"):
        channel.put(1)
    shutdown()


@isolated
def test_no_put_leaves_a_text_field_of_any_record_type_without_an_end(tmp_path: Path) -> None:
    import ctypes

    from appliance.ioc import dbcore
    from appliance.ioc.dbcore import DBChannel, _c, shutdown
    from appliance.ioc.dbcore.records import fields_of, text_at

    dbcore.boot()
    types = dbcore.record_types()
    dbcore.load_records_text("".join(f'record({each}, "t:{each}") {{}}\n' for each in types))
    dbcore.ioc_init()
    tried = 0
    for each in types:
        for field, place in fields_of(each).items():
            if place.field_type != _c.DBF_STRING:
                continue
            name = f"t:{each}.{field}"
            for wanted, value in (
                (name, "x" * 200),
                (f"{name}$", "A" * 200),
                (f"{name}$", "A" * place.size),
                (f"{name}$", "A" * (place.size - 1)),
                (f"{name}$", ""),
            ):
                channel = DBChannel(wanted)
                try:
                    channel.put(value, False)
                except OperationError:
                    continue  # NAME and others must not be modified
                finally:
                    address = channel.record_address
                    channel.close()
                memory = ctypes.string_at(address + place.offset, place.size)
                assert b"\0" in memory, wanted
                tried += 1
                if value and wanted.endswith("$") and field != "ASG":
                    assert text_at(address, place) == "A" * (place.size - 1), wanted
    assert tried > 200
    shutdown()


@isolated
def test_a_text_field_without_an_end_shows_nothing_of_what_lies_behind_it(tmp_path: Path) -> None:
    import ctypes

    from appliance.ioc import dbcore
    from appliance.ioc.dbcore import DBChannel, NumberReader, NumberView, RecordView, shutdown, view_numbers
    from appliance.ioc.dbcore.records import fields_of

    dbcore.boot()
    dbcore.load_records_text(
        'record(ao, "n") { field(ASG, "SECRET") field(EGU, "V") }\n'
        'record(printf, "f") { field(SIZV, "200") field(IVLS, "HIDDEN") }\n'
        'record(mbbo, "m") { field(ASG, "SECRET") }\n'
    )
    dbcore.ioc_init()

    def fill(name: str, field: str) -> int:
        """As Channel Access may leave it."""
        channel = DBChannel(name)
        place = fields_of(channel.record_type)[field]
        ctypes.memset(channel.record_address + place.offset, ord("A"), place.size)
        channel.close()
        return place.size

    size = fill("n", "DESC")
    fill("n", "EGU")
    number = DBChannel("n")
    assert number.properties().description == "A" * size
    assert len(number.properties().units or "") <= 16
    reader = NumberReader(number)
    assert reader.properties(reader.read_properties()).description == "A" * size
    assert reader.read_all()[1].description == "A" * size
    assert view_numbers([NumberView(number)])
    assert RecordView(number.record_address)["DESC"] == "A" * size
    assert len(DBChannel("n.DESC$").get().value) <= size
    assert set(DBChannel("n.DESC").get().value) == {"A"}
    group = fill("n", "ASG")
    assert number.access_group == "A" * group
    fill("f", "FMT")
    assert set(DBChannel("f.FMT").get().value) == {"A"}
    for field in ("ZRST", "ONST", "FFST"):
        fill("m", field)
    for choice in DBChannel("m").properties().choices or ():
        assert set(choice) <= {"A"}
        assert len(choice) <= 26
    shutdown()

"""The put log's file is written beside the event loop: in order, within bounds, and nothing is left out in silence."""

import asyncio
import json
import logging
import threading

import pytest

from appliance.daemon.audit import AuditLog, verify_file
from appliance.errors import OperationError
from appliance.gateway import put_writer
from appliance.gateway.put_writer import PutWriter
from tests.helpers.live import until


class Disk:
    """Lets writes through when it is told to."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.answers.set()
        self.asked = threading.Event()


@pytest.fixture
def disk(monkeypatch):
    disk = Disk()
    extend = AuditLog.extend

    def slow(self, records):
        disk.asked.set()
        disk.answers.wait()
        return extend(self, records)

    monkeypatch.setattr(AuditLog, "extend", slow)
    yield disk
    disk.answers.set()


def records(path):
    return [json.loads(line)["n"] for line in path.read_text().splitlines()]


def record(n, result="accepted"):
    return {"n": n, "result": result}


async def test_a_put_goes_on_when_its_record_is_in_the_file(tmp_path):
    file = tmp_path / "puts.log"
    writer = PutWriter(str(file), required=True)
    found = []
    for n in range(3):
        writer.begin(record(n), 10, lambda why, n=n: found.append((n, why, n in records(file))))
        writer.add(record(n + 100, "failed"), 10)
        assert not found
    await until(lambda: len(found) == 3)
    assert found == [(n, "", True) for n in range(3)]
    writer.close()
    assert records(file) == [0, 100, 1, 101, 2, 102]
    assert verify_file(file).intact


async def test_what_waits_is_written_at_once_and_a_record_that_cannot_be_written_harms_no_other(
    tmp_path, disk, caplog
):
    file = tmp_path / "puts.log"
    writer = PutWriter(str(file), required=True)
    disk.answers.clear()
    found = {}
    writer.begin(record(0), 10, lambda why: found.update({0: why}))
    await asyncio.to_thread(disk.asked.wait)
    for n in (1, 2, 3):
        more = {"text": "x" * (2 << 20)} if n == 2 else {}
        writer.begin({**record(n), **more}, 10, lambda why, n=n: found.update({n: why}))
    disk.answers.set()
    await until(lambda: len(found) == 4)
    assert found.pop(2).startswith("the put log cannot be written; puts that it must record are refused")
    assert set(found.values()) == {""}
    writer.close()
    assert records(file) == [0, 1, 3]
    assert "an audit record is larger than" in caplog.text


@pytest.mark.parametrize("required", [True, False])
async def test_a_disk_that_answers_no_more_refuses_puts_or_says_so(
    tmp_path, disk, required, monkeypatch, caplog
):
    monkeypatch.setattr(put_writer, "PATIENCE_S", 0.05)
    file = tmp_path / "puts.log"
    writer = PutWriter(str(file), required=required)
    disk.answers.clear()
    found = []
    writer.begin(record(0), 10, found.append)
    await until(lambda: bool(found))
    assert found == [
        "the put log is not written at present; puts that it must record are refused until its disk answers again"
        if required
        else ""
    ]
    assert writer.trouble == f"{file}: the disk has not taken a record for 0.05 s; 1 wait"
    assert f"the put log {file} has not been written for 0.05 s: does its disk answer?" in caplog.text
    if required:
        with pytest.raises(OperationError, match="the put log is not written at present"):
            writer.begin(record(1), 10, found.append)
    else:
        writer.begin(record(1), 10, found.append)
        assert len(found) == 1
        await until(lambda: len(found) == 2)
        assert found[1] == ""
    disk.answers.set()
    await until(lambda: not writer.trouble)
    assert records(file) == ([0] if required else [0, 1])
    writer.begin(record(2), 10, found.append)
    await until(lambda: len(found) == (2 if required else 3))
    assert found[-1] == ""
    writer.close()
    assert verify_file(file).intact


@pytest.mark.parametrize("required", [True, False])
async def test_what_waits_for_the_disk_has_a_bound(tmp_path, disk, required, monkeypatch, caplog):
    monkeypatch.setattr(put_writer, "_OCTETS", 10_000)
    file = tmp_path / "puts.log"
    writer = PutWriter(str(file), required=required)
    disk.answers.clear()
    found = []
    for n in range(2):
        writer.begin(record(n), 5000, found.append)
    if required:
        with pytest.raises(OperationError):
            writer.begin(record(2), 5000, found.append)
    else:
        writer.begin(record(2), 5000, found.append)
        await until(lambda: found == [""])
        assert "the put log misses a record" in caplog.text
    caplog.clear()
    writer.add(record(3, "failed"), 5000)
    assert not caplog.text
    writer.add(record(4, "failed"), 5000)
    assert "the put log misses a record" in caplog.text
    disk.answers.set()
    await until(lambda: not writer._entries)
    writer.close()
    assert records(file) == [0, 1, 3]


async def test_the_end_writes_what_waits_and_says_what_it_cannot_write(tmp_path, disk, monkeypatch, caplog):
    file = tmp_path / "puts.log"
    writer = PutWriter(str(file), required=True)
    for n in range(100):
        writer.begin(record(n), 10, lambda why: None)
    writer.close()
    assert records(file) == list(range(100))
    monkeypatch.setattr(put_writer, "_LAST_S", 0.05)
    dead = PutWriter(str(tmp_path / "dead.log"), required=True)
    disk.answers.clear()
    dead.begin(record(0), 10, lambda why: None)
    dead.close()
    (said,) = [line.message for line in caplog.records if line.levelno == logging.CRITICAL]
    assert said.startswith(f"the put log {tmp_path}/dead.log misses records: its disk does not answer")

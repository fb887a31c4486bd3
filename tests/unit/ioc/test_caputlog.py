"""The put log in the form of caPutLog: what its lines hold, and that no value, name or server can spoil them."""

from __future__ import annotations

import copy
import json
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance.errors import ApplianceError, ConfigurationError
from appliance.ioc.caputlog import CaPutLog, NotedPut, _File, parse_servers
from tests.helpers.log_server import LogServer

NAN, INF = float("nan"), float("inf")


@pytest.fixture
def log() -> Iterator[CaPutLog]:
    made = CaPutLog()
    with closing(made):
        yield made


def put(
    new: Any, old: Any = 0.0, *, pv: str = "ao", account: str = "operator", host: str = "10.0.0.7:51000"
) -> NotedPut:
    return NotedPut(pv, f"{pv.partition('.')[0]}.VAL", account, "x509", host, old, new)


def lines_of(log: CaPutLog, folder: Path, *puts: NotedPut, mode: int = 1) -> list[str]:
    """What the puts become in a file."""
    log.configure(mode)
    log.write_file(str(folder / "puts.log"))
    for each in puts:
        log.note(each)
    log.close()
    text = (folder / "puts.log").read_bytes().decode()
    assert text == "" or text.endswith("\n")
    return text.split("\n")[:-1]


def json_of(log: CaPutLog, folder: Path, *puts: NotedPut, mode: int = 1) -> list[dict[str, Any]]:
    log.is_json = True
    return [json.loads(line) for line in lines_of(log, folder, *puts, mode=mode)]


# -- what a line holds -----------------------------------------------------------------------------------


def test_a_line_of_text_has_time_host_user_name_new_and_old(log: CaPutLog, tmp_path: Path) -> None:
    noted = put(77.5, 1.0)
    (line,) = lines_of(log, tmp_path, noted)
    when = time.strftime("%d-%b-%y %H:%M:%S", time.localtime(noted.when))
    assert line == f"{when} 10.0.0.7 operator ao new=77.5 old=1"


def test_a_line_of_json_has_the_properties_of_caputlog_and_the_proof_of_the_name(
    log: CaPutLog, tmp_path: Path
) -> None:
    log.add_metadata("beamline", "B07")
    (line,) = json_of(log, tmp_path, put(77.5, 1.0))
    assert list(line) == ["date", "time", "host", "user", "method", "beamline", "pv", "new", "old"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", line.pop("date"))
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3}", line.pop("time"))
    assert line == {
        "host": "10.0.0.7", "user": "operator", "method": "x509", "beamline": "B07", "pv": "ao", "new": 77.5, "old": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text", "in_json"),
    [
        (3, "3", 3),
        (True, "1", 1),
        (-7.25, "-7.25", -7.25),
        (1e300, "1e+300", 1e300),
        (NAN, "nan", "Nan"),
        (INF, "inf", "Infinity"),
        (-INF, "-inf", "-Infinity"),
        ("on", '"on"', "on"),
        ('a "b" \\ c', r'"a \"b\" \\ c"', 'a "b" \\ c'),
        ("Grün", '"Grün"', "Grün"),
        (np.array([4.5, 5.0]), "4.5", [4.5, 5.0]),
        (np.array([], "i4"), '""', []),
        (("x", "y"), '"x"', ["x", "y"]),
    ],
)
def test_values_are_written_as_caputlog_writes_them(
    tmp_path: Path, value: Any, text: str, in_json: Any
) -> None:
    with closing(CaPutLog()) as log:
        (line,) = lines_of(log, tmp_path, put(value, "was"))
        assert line.endswith(f' new={text} old="was"')
    (tmp_path / "puts.log").unlink()
    with closing(CaPutLog()) as log:
        (found,) = json_of(log, tmp_path, put(value, "was"))
        assert found["new"] == in_json
        assert found.get("new-size") == (len(in_json) if isinstance(in_json, list) else None)


def test_long_arrays_and_texts_are_cut_and_the_size_tells(log: CaPutLog, tmp_path: Path) -> None:
    many, text = np.arange(10_000.0), "x" * 100_000
    first, second = json_of(log, tmp_path, put(many, ("y",) * 30), put(text, pv="lso"))
    assert first["new"] == list(range(50))
    assert first["new-size"] == 10_000
    assert first["old"] == ["y"] * 10
    assert first["old-size"] == 30
    assert second["new"] == "x" * 400


@pytest.mark.parametrize(
    ("form", "shown"),
    [("%Y-%m-%dT%H:%M:%S.%03f", "2026-11-30T10:00:00.125"), ("%f", "125000000"), ("%2f", "12")],
)
def test_the_form_of_the_time_may_have_fractions_as_in_epics(
    log: CaPutLog, tmp_path: Path, form: str, shown: str
) -> None:
    noted = put(1.0)
    noted.when = time.mktime((2026, 11, 30, 10, 0, 0, 0, 0, -1)) + 0.125
    log.time_format = form
    (line,) = lines_of(log, tmp_path, noted)
    assert line.startswith(shown + " 10.0.0.7 ")


# -- which puts have one ----------------------------------------------------------------------------------


def test_puts_to_one_field_that_follow_each_other_are_one_line_with_least_and_greatest(
    log: CaPutLog, tmp_path: Path
) -> None:
    values = [7.5, 870.5, 8.0]
    olds = [77.5, 7.5, 870.5]
    puts = [put(new, old) for new, old in zip(values, olds, strict=True)]
    (burst, other) = json_of(log, tmp_path, *puts, put(1.0, pv="other"))
    assert (burst["new"], burst["old"], burst["min"], burst["max"], burst["burst"]) == (
        8.0,
        77.5,
        7.5,
        870.5,
        2,
    )
    assert other["pv"] == "other"
    assert "burst" not in other


def test_a_burst_is_of_one_client(log: CaPutLog, tmp_path: Path) -> None:
    found = json_of(
        log, tmp_path, put(999.0, 1.0, account="mallory", host="10.6.6.6:1"), put(1.0, 999.0), put(2.0, 1.0)
    )
    assert [(each["user"], each["host"], each["new"]) for each in found] == [
        ("mallory", "10.6.6.6", 999.0),
        ("operator", "10.0.0.7", 2.0),
    ]


@pytest.mark.parametrize(
    ("host", "shown"), [("10.0.0.7", "10.0.0.7"), ("[fe80::1]:5075", "fe80::1"), ("fe80::1", "fe80::1")]
)
def test_the_host_is_the_whole_address(log: CaPutLog, tmp_path: Path, host: str, shown: str) -> None:
    (found,) = json_of(log, tmp_path, put(1.0, host=host))
    assert found["host"] == shown


class Odd:
    """A value that cannot be compared."""

    def __eq__(self, other: object) -> bool:
        raise ValueError("never")

    __hash__ = None  # type: ignore[assignment]


def test_a_put_that_cannot_be_compared_costs_its_own_line_only(log: CaPutLog, tmp_path: Path) -> None:
    lines = lines_of(log, tmp_path, put(Odd(), Odd()), put(2.0, pv="other"))
    assert [line.split()[4] for line in lines] == ["other"]


@pytest.mark.parametrize("burst_s", [5.0, 600.0])
def test_a_burst_that_goes_on_has_a_line_all_the_same(log: CaPutLog, tmp_path: Path, burst_s: float) -> None:
    log.configure(1, burst_s)
    log.write_file(str(tmp_path / "puts.log"))
    log.is_json = True
    for number in range(1, 1001):
        each = put(float(number), number - 1.0)
        each.at = 1000.0 + number
        while log._puts.full():
            time.sleep(0.001)
        log.note(each)
    log.close()
    found = [json.loads(line) for line in (tmp_path / "puts.log").read_text().splitlines()]
    longest = int(max(burst_s, 60))
    assert [each["new"] for each in found] == [*(range(longest, 1000, longest)), 1000.0]
    assert [each["old"] for each in found] == [0.0, *(each["new"] for each in found[:-1])]
    assert sum(each["burst"] + 1 for each in found) == 1000


def test_a_burst_in_text_has_least_and_greatest(log: CaPutLog, tmp_path: Path) -> None:
    (line,) = lines_of(log, tmp_path, put(5.0, 1.0), put(2.0, 5.0))
    assert line.endswith(" ao new=2 old=1 min=2 max=5")


def test_a_burst_is_over_when_its_time_is(log: CaPutLog) -> None:
    server = LogServer()
    with closing(server):
        log.configure(1, 0.05)
        log.add_servers([("127.0.0.1", server.port)])
        log.note(put(5.0))
        server.wait(1)
        log.note(put(6.0, 5.0))
        assert [line.rsplit(b" ao ")[1] for line in server.wait(2)] == [b"new=5 old=0\n", b"new=6 old=5\n"]


@pytest.mark.parametrize(
    ("mode", "wanted"),
    [(-1, []), (0, [2.0, 4.0]), (1, [1.0, 2.0, 4.0]), (2, [1.0, 2.0, 3.0, 4.0])],
)
def test_the_configuration_says_which_puts_have_a_line(
    log: CaPutLog, tmp_path: Path, mode: int, wanted: list[float]
) -> None:
    puts = [put(1.0, 1.0, pv="a"), put(2.0, 1.0, pv="b"), put(3.0, 0.0, pv="c"), put(4.0, 3.0, pv="c")]
    found = json_of(log, tmp_path, *puts, mode=mode)
    assert [line["new"] for line in found] == wanted


def test_a_change_is_not_hidden_by_a_put_of_the_same_text_after_it(log: CaPutLog, tmp_path: Path) -> None:
    (line,) = json_of(log, tmp_path, put("b", "a"), put("b", "b"), mode=0)
    assert (line["new"], line["old"]) == ("b", "a")


@pytest.mark.parametrize(
    "value",
    [
        NAN,
        np.array([1.0, 2.0]),
        np.array([1.0, NAN]),
        np.array(["a", "b"]),
        "text",
        5,
        ("a", "b"),
        [1.0, NAN],
        {"a": np.array([1, 2]), "b": {"c": NAN}},
    ],
)
def test_the_same_value_is_no_change(log: CaPutLog, tmp_path: Path, value: Any) -> None:
    assert json_of(log, tmp_path, put(copy.deepcopy(value), value), mode=0) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"a": np.array([1, 2])}, {"a": np.array([1, 3])}),
        ({"a": 1}, {"a": 1, "b": 2}),
        ({"a": 1}, {"b": 1}),
        ({"a": 1}, 1),
        (np.array([1.0, NAN]), np.array([1.0, 2.0])),
        (np.array([1.0, 2.0]), np.array([1.0])),
        (np.array([]), np.array([1.0])),
        (np.array([1.0]), "text"),
        (("a", "b"), ("a",)),
    ],
)
def test_another_value_is_a_change(log: CaPutLog, tmp_path: Path, old: Any, new: Any) -> None:
    (line,) = json_of(log, tmp_path, put(new, old), mode=0)
    assert line["pv"] == "ao"


def test_a_put_that_failed_has_no_line_and_changes_no_burst(log: CaPutLog, tmp_path: Path) -> None:
    puts = [put(1.0), put(99.0, 1.0), put(2.0, 1.0), put(3.0, pv="never")]
    puts[1].failed = puts[3].failed = True
    (line,) = json_of(log, tmp_path, *puts)
    assert (line["new"], line["max"], line["burst"]) == (2.0, 2.0, 1)


def test_there_are_no_other_configurations(log: CaPutLog) -> None:
    with pytest.raises(ApplianceError, match=r"3 is no configuration of caPutLog: -1, 0, 1 or 2"):
        log.configure(3)


# -- hostile values and names -----------------------------------------------------------------------------

HOSTILE = [
    "a\nb",
    "a\r\nb",
    "a\u2028b",
    "a\x85b",
    "a\x1b[2Kb",
    "a\x00b",
    "a\u202eb",
    "a\udcffb",
    '" old="x',
    "a\\",
    "\x7f",
]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("where", ["new", "pv", "account"])
@pytest.mark.parametrize("is_json", [False, True])
def test_nothing_that_a_client_sends_makes_a_second_line_or_moves_the_fields(
    log: CaPutLog, tmp_path: Path, text: str, where: str, *, is_json: bool
) -> None:
    log.is_json = is_json
    names = {where: text} if where != "new" else {}
    (line,) = lines_of(log, tmp_path, put(text if where == "new" else "v", "o", **names))
    assert line.isprintable()
    if is_json:
        found = json.loads(line)
        assert found["old"] == "o"
        assert found[{"account": "user"}.get(where, where)] == text
        return
    words = re.fullmatch(r'\S+ \S+ (\S+) (\S+) (\S+) new="((?:[^"\\]|\\.)*)" old="o"', line)
    assert words is not None
    assert words[1] == "10.0.0.7"


@pytest.mark.parametrize("name", ["x" * 5000, "\n" * 5000, "\\" * 5000])
def test_names_however_long_leave_the_value_in_the_line(log: CaPutLog, tmp_path: Path, name: str) -> None:
    (line,) = lines_of(log, tmp_path, put("\x01" * 5000, "y" * 5000, pv=name + "ao", account=name, host=name))
    assert len(line.encode()) < 1024
    assert "new=" in line
    assert line.endswith('y"')


def test_who_has_no_name_is_anonymous_in_text_and_empty_in_json(log: CaPutLog, tmp_path: Path) -> None:
    (line,) = lines_of(log, tmp_path, put(1.0, account=""))
    assert " anonymous ao " in line


@pytest.mark.parametrize("name", ["user", "host", "pv", "new", "burst"])
def test_metadata_cannot_stand_for_what_each_line_has(log: CaPutLog, name: str) -> None:
    with pytest.raises(ApplianceError, match="choose another name"):
        log.add_metadata(name, "me")


# -- servers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("logs", [("logs", 7011)]), ("a:1 b:2", [("a", 1), ("b", 2)]), ("[::1]:7", [("::1", 7)]), ("", [])],
)
def test_servers_are_named_as_caputloginit_names_them(text: str, wanted: list[tuple[str, int]]) -> None:
    assert parse_servers(text) == wanted


@pytest.mark.parametrize("text", ["host:", ":7011", "host:http", "host:0", "host:65536", "host:-1"])
def test_what_is_no_server_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="is no log server: write HOST or HOST:PORT"):
        parse_servers(text)


@pytest.mark.parametrize("host", ["a..b", "x" * 64])
def test_what_can_be_no_name_of_a_host_is_refused(host: str) -> None:
    with pytest.raises(ConfigurationError, match="is no name of a host"):
        parse_servers(f"good {host}:7011")


def test_each_server_gets_each_line_with_the_prefix(log: CaPutLog) -> None:
    with closing(LogServer()) as one, closing(LogServer()) as two:
        log.configure(2)
        log.prefix = "ioc1 "
        log.add_servers([("127.0.0.1", one.port), ("127.0.0.1", two.port)])
        for number in range(50):
            log.note(put(float(number)))
        log.close()
        assert [int(line.split(b"new=")[1].split()[0]) for line in one.wait(50)] == list(range(50))
        assert two.wait(50) == one.lines
        assert all(line.startswith(b"ioc1 ") for line in one.lines)


def test_lines_wait_for_a_server_that_is_not_there_and_reach_it_after_its_restart(
    log: CaPutLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.ioc.caputlog._PAUSE_S", 0.05)
    first = LogServer()
    log.configure(2)
    log.add_servers([("127.0.0.1", first.port)])
    log.note(put(1.0))
    log.note(put(2.0))
    first.wait(1)
    first.close()
    for number in range(3, 9):
        log.note(put(float(number)))
    with closing(LogServer(first.port)) as second:
        # The last put waits for the one after it.
        found = second.wait(6)
        numbers = [int(line.split(b"new=")[1].split()[0]) for line in [*first.lines, *found]]
        assert numbers == [1, 2, 3, 4, 5, 6, 7]


def test_a_server_that_never_comes_costs_one_thousand_lines_and_one_warning(
    log: CaPutLog, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.ioc.caputlog._PAUSE_S", 0.01)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        log.configure(2)
        with caplog.at_level(logging.INFO):
            log.add_servers([nobody.getsockname()])
            for number in range(3000):
                while log._puts.full():
                    time.sleep(0.001)
                log.note(put(float(number)))
            log.close()
        assert log.overflows == 0
        (line,) = [each for each in log.lines() if each.startswith("log client")]
        assert line.endswith("disconnected, 2000 lines lost")
        assert len([each for each in caplog.records if "its lines wait" in each.getMessage()]) == 1


def standing_still(log: CaPutLog, folder: Path) -> threading.Event:
    """Let the log write to a disk that stands still, until the event is set."""
    log.configure(2)
    log.write_file(str(folder / "puts.log"))
    blocked, go = threading.Event(), threading.Event()
    real = log._write

    def slow(burst: Any) -> None:
        blocked.set()
        assert go.wait(30)
        real(burst)

    log._write = slow  # type: ignore[method-assign]
    log.note(put(0.0))
    log.note(put(0.5))
    assert blocked.wait(30)
    return go


def test_too_many_puts_at_once_are_left_out_and_counted_and_nobody_waits(
    log: CaPutLog, tmp_path: Path
) -> None:
    go = standing_still(log, tmp_path)
    for number in range(1500):
        log.note(put(float(number)))
    assert log.overflows == 500
    assert "caPutLog puts without a line: 500" in log.lines()
    go.set()


def test_large_values_that_wait_are_bounded_by_their_octets(log: CaPutLog, tmp_path: Path) -> None:
    go = standing_still(log, tmp_path)
    array = np.zeros(1 << 20)
    for number in range(20):
        log.note(put(array if number % 2 else {"part": {"value": array}}))
    assert log.overflows == 13
    go.set()
    log.close()
    assert log._waiting == 0


# -- the file -----------------------------------------------------------------------------------------------


def test_the_file_is_its_owners_and_no_link_is_followed(log: CaPutLog, tmp_path: Path) -> None:
    log.write_file(str(tmp_path / "puts.log"))
    assert (tmp_path / "puts.log").stat().st_mode & 0o777 == 0o600
    (tmp_path / "link").symlink_to(tmp_path / "puts.log")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        log.write_file(str(tmp_path / "link"))


def test_a_file_that_is_none_is_refused_and_not_waited_for(log: CaPutLog, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        log.write_file(str(tmp_path / "fifo"))
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(ConfigurationError, match="no regular file"):
        log.write_file(str(tmp_path / "fifo"))
    os.close(reader)


def test_a_file_that_is_moved_away_is_made_anew(log: CaPutLog, tmp_path: Path) -> None:
    path = tmp_path / "puts.log"
    log.configure(2)
    log.write_file(str(path))
    log.note(put(1.0))
    log.note(put(2.0))
    deadline = time.monotonic() + 30
    while b"new=1" not in path.read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    path.rename(tmp_path / "puts.log.1")
    log.close()
    assert b"new=2" in path.read_bytes()
    assert b"new=2" not in (tmp_path / "puts.log.1").read_bytes()


def test_a_full_disk_is_one_error_and_the_next_line_is_whole(
    log: CaPutLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import os

    path, real, room = tmp_path / "puts.log", os.write, [10, 0, 0]

    def write(fd: int, data: bytes) -> int:
        if room:
            left = room.pop(0)
            if not left:
                raise OSError(28, "No space left on device")
            return real(fd, data[:left])
        return real(fd, data)

    monkeypatch.setattr("appliance.ioc.caputlog.os.write", write)
    found = lines_of(log, tmp_path, *(put(float(number), pv=f"pv{number}") for number in range(5)))
    assert path.exists()
    assert len(found) == 3
    assert [line.rpartition(" new=")[2] for line in found[1:]] == ["3 old=0", "4 old=0"]
    assert len([each for each in caplog.records if "have no line there" in each.getMessage()]) == 1


def test_a_file_that_was_closed_while_the_disk_stood_still_leaves_others_alone(tmp_path: Path) -> None:
    file = _File(str(tmp_path / "puts"))
    file.write(b"one\n")
    number = file._fd
    file.close()
    other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
    try:
        assert other == number
        with pytest.raises(OSError):
            file.write(b"two\n")
        assert os.fstat(other).st_size == 0
    finally:
        os.close(other)
    assert (tmp_path / "puts").read_bytes() == b"one\n"

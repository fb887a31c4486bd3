"""Records reach journald as fields (systemd's JOURNAL_NATIVE_PROTOCOL), whole and under no other name."""

import array
import fcntl
import json
import logging
import os
import socket
from pathlib import Path

import pytest

from appliance.daemon.journal import JournalSender, encode, field_name
from appliance.daemon.logging import configure

TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl"


def decode(entry: bytes) -> dict[str, str]:
    """What journald makes of an entry, written from the protocol's description alone."""
    fields = {}
    while entry:
        line, _, rest = entry.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if equals:
            entry = rest
        else:
            size = int.from_bytes(rest[:8], "little")
            value, end = rest[8 : 8 + size], rest[8 + size : 9 + size]
            assert end == b"\n"
            entry = rest[9 + size :]
        assert name.decode() not in fields
        fields[name.decode()] = value.decode()
    return fields


class Journald:
    """A socket like journald's."""

    def __init__(self, path):
        self.path = str(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.socket.settimeout(5)

    def receive(self) -> bytes:
        entry, ancillary, _, _ = self.socket.recvmsg(1 << 20, socket.CMSG_SPACE(4))
        if not ancillary:
            return entry
        descriptor = array.array("i", ancillary[0][2])[0]
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
        # sd-journal: journald takes a memory file only when nobody can change it any more.
        assert seals == fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        assert entry == b""
        with os.fdopen(descriptor, "rb") as file:
            file.seek(0)
            return file.read()


@pytest.fixture
def journald(tmp_path):
    journald = Journald(tmp_path / "socket")
    yield journald
    journald.socket.close()


@pytest.fixture
def stream(tmp_path):
    """Stands for the standard error that systemd connects with the journal."""
    with (tmp_path / "stderr").open("w+") as stream:
        yield stream


@pytest.fixture
def log(journald, stream):
    """A daemon's logger under the journal."""
    root, ours = logging.getLogger(), logging.getLogger("appliance")
    handlers, level = root.handlers[:], ours.level
    status = os.fstat(stream.fileno())
    environ = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
    configure("DEBUG", stream=stream, environ=environ, journal_socket=journald.path)
    yield logging.getLogger("appliance.cms.pvs")
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    ours.setLevel(level)
    logging.raiseExceptions = True


def written(stream) -> str:
    stream.flush()
    stream.seek(0)
    return stream.read()


def test_fields_on_the_wire():
    """The protocol's own example form: NAME=value, or for values with line ends NAME, a length of 64 bits, the value."""
    assert encode([("MESSAGE", "one"), ("PRIORITY", "6")]) == b"MESSAGE=one\nPRIORITY=6\n"
    assert encode([("MESSAGE", "two\nlines"), ("SPVA_EVENT", "put")]) == (
        b"MESSAGE\n\x09\x00\x00\x00\x00\x00\x00\x00two\nlines\nSPVA_EVENT=put\n"
    )
    assert encode([("MESSAGE", "Zähler \udcff")]) == b"MESSAGE=Z\xc3\xa4hler \\udcff\n"


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("peer", "SPVA_PEER"),
        ("cert_id", "SPVA_CERT_ID"),
        ("a-b.ü", "SPVA_A_B__"),
        ("x" * 99, "SPVA_" + "X" * 59),
    ],
)
def test_field_names_are_ones_that_journald_takes(key, name):
    """systemd.journal-fields(7): upper case letters, digits and underscores, at most 64."""
    assert field_name(key) == name


def test_a_record_becomes_fields(log, journald, stream):
    log.warning(
        "%s was refused", "alice", extra={"event": "access-refused", "peer": "10.0.0.7:4711", "old": [1, "a"]}
    )
    fields = decode(journald.receive())
    assert fields.pop("CODE_FILE").endswith("test_journal.py")
    assert int(fields.pop("CODE_LINE")) > 100
    assert fields.pop("SYSLOG_IDENTIFIER")
    assert fields == {
        "MESSAGE": "alice was refused",
        "PRIORITY": "4",
        "CODE_FUNC": "test_a_record_becomes_fields",
        "SPVA_LOGGER": "appliance.cms.pvs",
        "SPVA_EVENT": "access-refused",
        "SPVA_PEER": "10.0.0.7:4711",
        "SPVA_OLD": '[1, "a"]',
    }
    assert written(stream) == ""


def test_a_trace_is_one_entry(log, journald):
    try:
        raise ValueError("gone")
    except ValueError:
        log.exception("failed")
    fields = decode(journald.receive())
    assert fields["MESSAGE"].startswith("failed\nTraceback")
    assert fields["MESSAGE"].endswith("ValueError: gone")
    assert fields["PRIORITY"] == "3"


def test_a_peer_cannot_add_fields(log, journald):
    """What a peer chooses is a value with a length, never a line of its own."""
    log.info("%s", "x\nPRIORITY=0", extra={"event": "put", "account": "mallory\nSPVA_ACCOUNT=alice\n_UID=0"})
    fields = decode(journald.receive())
    assert fields["MESSAGE"] == "x\\nPRIORITY=0"
    assert fields["PRIORITY"] == "6"
    assert fields["SPVA_ACCOUNT"] == "mallory\nSPVA_ACCOUNT=alice\n_UID=0"
    assert "_UID" not in fields


def test_no_secret_gets_there(log, journald):
    log.info("got %s", TOKEN, extra={"header": f"Bearer {TOKEN}"})
    assert TOKEN[10:40] not in journald.receive().decode()


def test_what_is_larger_than_a_datagram_arrives_whole(log, journald):
    """A sealed memory file goes in its place, as sd_journal_send(3) does it."""
    sender = JournalSender(journald.path)
    entry = encode([("MESSAGE", "x" * 5_000_000)])
    assert sender.send(entry)
    assert journald.receive() == entry
    sender.close()


@pytest.mark.parametrize("how", ["gone", "closed"])
def test_without_journald_nothing_is_lost(log, journald, stream, how):
    """The stream leads to the journal too: a JSON line, with the priority in front."""
    journald.socket.close()
    if how == "gone":
        Path(journald.path).unlink()
    log.error("still told", extra={"event": "x"})
    line = written(stream)
    assert line.startswith("<3>{")
    assert json.loads(line[3:]) | {"time": ""} == {
        "time": "", "level": "ERROR", "logger": "appliance.cms.pvs", "message": "still told", "event": "x",
    }  # fmt: skip


def test_a_journald_that_does_not_read_holds_nobody_up_for_long(log, journald, stream, monkeypatch):
    monkeypatch.setattr("appliance.daemon.journal._TIMEOUT_S", 0.05)
    sender = JournalSender(journald.path)
    entry = encode([("MESSAGE", "x" * 100_000)])
    assert not all(sender.send(entry) for _ in range(1000))
    sender.close()


@pytest.mark.parametrize(("fmt", "starts"), [("text", "<6>INFO"), ("json", "<6>{")])
def test_who_asks_for_lines_gets_lines(stream, journald, log, fmt, starts):
    status = os.fstat(stream.fileno())
    environ = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
    configure("INFO", fmt, stream=stream, environ=environ, journal_socket=journald.path)
    log.info("hello")
    assert written(stream).startswith(starts)


def test_another_stream_than_the_journals_gets_json_lines(tmp_path, stream, journald, log):
    configure("INFO", stream=stream, environ={"JOURNAL_STREAM": "1:2"}, journal_socket=journald.path)
    log.info("hello")
    assert json.loads(written(stream))["message"] == "hello"

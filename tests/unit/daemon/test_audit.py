import hashlib
import json
import stat
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.daemon.audit import GENESIS, AuditLog, canonical, chain, total, verify, verify_file
from appliance.errors import ApplianceError, ConfigurationError

RECORDS = [
    {"event": "issued", "serial": 1},
    {"serial": 2, "event": "revoked", "by": "Zoë"},
    {"event": "denied", "n": 1.5},
]


def sealed(records):
    result, previous = [], GENESIS
    for record in records:
        previous = chain(previous, record)
        result.append((record, previous))
    return result


def test_the_chain_is_a_hash_over_the_former_hash_and_canonical_json():
    first = hashlib.sha256(bytes(32) + b'{"a":"\xc3\xa9","b":1}').hexdigest()
    assert chain(GENESIS, {"b": 1, "a": "é"}) == first
    assert chain(first, {}) == hashlib.sha256(bytes.fromhex(first) + b"{}").hexdigest()


def test_a_good_chain_is_intact():
    verdict = verify(sealed(RECORDS))
    assert verdict.intact
    assert verdict == (3, sealed(RECORDS)[-1][1], "")
    assert verify(sealed(RECORDS), head=verdict.head).intact
    for _, former in sealed(RECORDS):
        assert verify(sealed(RECORDS), head=former).intact, "a head of earlier on"
    assert verify([]) == (0, GENESIS, "")


@pytest.mark.parametrize("tamper", [
    lambda rows: rows.pop(0), lambda rows: rows.pop(1), lambda rows: rows.reverse(),
    lambda rows: rows.insert(1, rows[0]), lambda rows: rows[1][0].update(serial=3),
    lambda rows: rows.__setitem__(2, (rows[2][0], "0" * 64)), lambda rows: rows.__setitem__(0, (rows[0][0], "nonsense")),
])  # fmt: skip
def test_every_tampering_shows(tamper):
    rows = sealed([dict(record) for record in RECORDS])
    tamper(rows)
    assert not verify(rows).intact


def test_a_cut_off_end_shows_to_whom_keeps_the_head():
    rows = sealed(RECORDS)
    assert verify(rows[:2]).intact
    assert "missing" in verify(rows[:2], head=rows[2][1]).fault


@pytest.mark.parametrize("record", [{"a": float("nan")}, {"a": object()}, {"a": b"x"}, {"a": "\ud800"}])
def test_a_record_without_a_canonical_form_is_refused(record):
    with pytest.raises(ConfigurationError):
        canonical(record)


def test_a_file_is_private_and_goes_on_where_it_ended(tmp_path):
    path = tmp_path / "audit"
    with AuditLog(path) as log:
        log.append(RECORDS[0])
    with AuditLog(path, sync="never") as log:
        assert log.records == 1
        log.append(RECORDS[1])
        head = log.append(RECORDS[2])
    assert verify_file(path, head=head) == (3, sealed(RECORDS)[-1][1], "")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == [
        "issued",
        "revoked",
        "denied",
    ]


def test_a_line_left_half_written_by_a_power_cut_is_taken_off(tmp_path):
    path = tmp_path / "audit"
    with AuditLog(path) as log:
        log.append(RECORDS[0])
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:20])
    assert not verify_file(path).intact
    with AuditLog(path) as log:
        assert log.records == 1
    assert path.read_bytes() == whole


@pytest.mark.parametrize("tamper", [
    lambda data: data.replace(b"issued", b"denied"), lambda data: data.replace(b'"serial":1', b'"serial": 1'),
    lambda data: b"\n" + data, lambda data: b"[]\n" + data, lambda data: data[data.index(b"\n") + 1 :],
    lambda data: b"[" * 100_000 + b"\n" + data,
])  # fmt: skip
def test_a_broken_file_is_refused_and_stays_as_it_is(tamper, tmp_path):
    path = tmp_path / "audit"
    with AuditLog(path) as log:
        for record in RECORDS:
            log.append(record)
    broken = tamper(path.read_bytes())
    path.write_bytes(broken)
    assert not verify_file(path).intact
    with pytest.raises(ConfigurationError, match="broken"):
        AuditLog(path)
    assert path.read_bytes() == broken


def test_a_second_writer_is_refused(tmp_path):
    with AuditLog(tmp_path / "audit"), pytest.raises(ConfigurationError, match="another process"):
        AuditLog(tmp_path / "audit")


def test_a_record_with_a_field_called_hash_or_too_large_is_refused_and_nothing_written(tmp_path):
    with AuditLog(tmp_path / "audit") as log:
        for record in ({"hash": "x"}, {"a": "x" * (1 << 20)}):
            with pytest.raises(ConfigurationError):
                log.append(record)
    assert (tmp_path / "audit").read_bytes() == b""


FULL_DISK = """
import resource, signal, sys
from appliance.daemon.audit import AuditLog
from appliance.errors import ApplianceError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
log = AuditLog(sys.argv[1])
head = log.append({"event": "issued", "serial": 1})
resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
try:
    log.append({"event": "x" * 200})
except ApplianceError as error:
    print(error)
    assert log.head == head
"""


def test_a_full_disk_is_an_error_and_the_file_stays_good(tmp_path):
    command = [sys.executable, "-c", FULL_DISK, tmp_path / "audit"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "does not fit on the disk" in done.stdout
    assert verify_file(tmp_path / "audit") == (1, sealed(RECORDS)[0][1], "")


@given(
    st.lists(
        st.dictionaries(
            st.text(max_size=5).filter(lambda key: key != "hash"), st.integers() | st.text() | st.booleans()
        ),
        max_size=5,
    )
)
def test_what_is_written_verifies(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("audit") / "log"
    written = 0
    with AuditLog(path, sync="never") as log:
        for record in records:
            try:
                log.append(record)
            except ConfigurationError:
                continue
            written += 1
        assert verify_file(path, head=log.head) == (written, log.head, "")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.binary() | st.complex_numbers()
    | st.text(st.characters(categories=None), max_size=8),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(st.characters(categories=None), max_size=4) | st.integers(), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(values=st.lists(anything, max_size=4))
def test_every_record_can_be_written_and_verified(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("audit") / "log"
    with AuditLog(path, sync="never") as log:
        for value in values:
            log.append({"value": value})
    assert verify_file(path, head=log.head) == (len(values), log.head, "")


def test_octets_that_are_no_text_are_told_from_text_that_looks_like_them():
    assert total("a\udcff") == {"octets": "61ff", "text": "a\\udcff"}
    assert total("a\\udcff") == "a\\udcff"
    assert total([float("inf"), float("nan"), 1.5, "é"]) == ["inf", "nan", 1.5, "é"]


def test_a_file_that_was_removed_takes_no_more_records(tmp_path):
    with AuditLog(tmp_path / "log") as log:
        log.append({"a": 1})
        (tmp_path / "log").unlink()
        with pytest.raises(ApplianceError, match="removed while in use"):
            log.append({"a": 2})

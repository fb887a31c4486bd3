"""Status answers on disk."""

import os
import stat

import pytest

from appliance.certmon.cache import StatusCache

ID = "47530d89"


def test_an_answer_is_read_back(tmp_path):
    cache = StatusCache(str(tmp_path / "a" / "b"))
    assert cache.read(ID, 7) == b""
    cache.write(ID, 7, b"answer")
    cache.write(ID, 7, b"later answer")
    assert cache.read(ID, 7) == b"later answer"
    assert cache.read(ID, 8) == cache.read("00000000", 7) == b""


def test_files_are_private_and_leave_nothing_behind(tmp_path):
    cache = StatusCache(str(tmp_path / "cache"))
    cache.write(ID, 7, b"answer")
    (file,) = (tmp_path / "cache").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_a_forgotten_answer_is_gone(tmp_path):
    cache = StatusCache(str(tmp_path))
    cache.write(ID, 7, b"answer")
    cache.forget(ID, 7)
    cache.forget(ID, 7)
    assert cache.read(ID, 7) == b""


def test_the_oldest_go_first_and_other_files_stay(tmp_path):
    cache = StatusCache(str(tmp_path), max_entries=3)
    (tmp_path / "README").write_text("somebody's")
    for serial in range(6):
        cache.write(ID, serial, b"answer")
        for number, path in enumerate(sorted(tmp_path.glob("*.ocsp"))):
            os.utime(path, (1000 + number, 1000 + number))
    kept = [serial for serial in range(6) if cache.read(ID, serial)]
    assert kept == [3, 4, 5]
    assert (tmp_path / "README").exists()


def test_what_was_just_written_stays_though_the_clock_is_behind(tmp_path):
    cache = StatusCache(str(tmp_path), max_entries=3)
    for serial in range(3):
        cache.write(ID, serial, b"answer")
    for path in tmp_path.glob("*.ocsp"):
        os.utime(path, (4e9, 4e9))
    cache.write(ID, 9, b"answer")
    assert cache.read(ID, 9) == b"answer"
    assert len(list(tmp_path.glob("*.ocsp"))) == 3


@pytest.mark.parametrize("obstacle", ["file", "link to nowhere"])
def test_a_directory_that_cannot_be_had_is_one_warning_and_no_failure(tmp_path, obstacle, caplog):
    place = tmp_path / "cache"
    if obstacle == "file":
        place.write_text("in the way")
    else:
        place.symlink_to("/dev/null/nowhere")
    cache = StatusCache(str(place))
    cache.write(ID, 1, b"x")
    cache.write(ID, 2, b"x")
    assert cache.read(ID, 1) == b""
    assert caplog.text.count("cannot be written") == 1


def test_what_is_no_answer_is_not_read(tmp_path):
    cache = StatusCache(str(tmp_path))
    name = f"{ID}-{1:020d}.ocsp"
    (tmp_path / name).mkdir()
    assert cache.read(ID, 1) == b""
    os.mkfifo(tmp_path / f"{ID}-{2:020d}.ocsp")
    assert cache.read(ID, 2) == b""
    (tmp_path / f"{ID}-{3:020d}.ocsp").write_bytes(b"x" * 100_000)
    assert cache.read(ID, 3) == b""


def test_what_a_killed_tool_has_left_is_swept_with_the_next_answer(tmp_path):
    cache = StatusCache(str(tmp_path / "cache"))
    cache.write(ID, 7, b"answer")
    left = tmp_path / "cache" / f".{ID}-{8:020d}.ocsp.1.0123456789ab"
    left.write_bytes(b"half")
    os.utime(left, (1, 1))
    cache.write(ID, 9, b"answer")
    assert not left.exists()
    assert len(list((tmp_path / "cache").iterdir())) == 2

"""Periodic backups: what is removed is one's own and the oldest, whatever the clock said."""

import sqlite3
from pathlib import Path

import pytest

from appliance.cms.backup import Backups
from appliance.errors import ConfigurationError

NOW = 1_800_000_000.0
TEN_YEARS = 10 * 365 * 86400.0


@pytest.fixture
def database(tmp_path):
    return make_database(tmp_path / "one")


def make_database(directory):
    directory.mkdir()
    path = directory / "certs.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE t (a)")
    connection.close()
    return str(path)


@pytest.fixture
def shared(tmp_path):
    place = tmp_path / "backups"
    place.mkdir()
    return place


def file_names(paths):
    return sorted(Path(path).name for path in paths)


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_the_latest_are_kept_and_the_oldest_go(database, shared):
    backups = Backups(database, str(shared), "01234567")
    made = [Path(backups.make(NOW + i, 3)).name for i in range(5)]
    assert names(shared) == made[2:]
    with sqlite3.connect(shared / made[-1]) as copy:
        assert copy.execute("SELECT count(*) FROM t").fetchone() == (0,)
    copy.close()


def test_a_clock_that_was_ahead_for_a_moment_takes_no_later_backup_away(database, shared):
    backups = Backups(database, str(shared), "01234567")
    for i in range(3):
        backups.make(NOW + TEN_YEARS + i, 3)
    for i in range(4):
        # What the log names is there.
        assert Path(backups.make(NOW + i, 3)).exists()
    assert not any("2036" in name or "2037" in name for name in names(shared))
    assert len(names(shared)) == 3


def test_a_clock_that_stands_still_or_goes_back_makes_no_name_twice(database, shared):
    backups = Backups(database, str(shared), "01234567")
    made = [backups.make(NOW - i // 2, 10) for i in range(4)]
    assert len(set(made)) == 4


@pytest.mark.parametrize("other", ["01234567", "89abcdef"])
def test_two_services_with_one_directory_leave_each_others_backups_alone(tmp_path, database, shared, other):
    """Also where both serve the same authority."""
    first = Backups(database, str(shared), "01234567")
    second = Backups(make_database(tmp_path / "two"), str(shared), other)
    theirs = [second.make(NOW + i, 2) for i in range(2)]
    mine = [first.make(NOW + i, 2) for i in range(5)][3:]
    assert file_names(theirs + mine) == names(shared)


def test_a_service_that_starts_again_goes_on_counting(database, shared):
    made = [Backups(database, str(shared), "01234567").make(NOW, 2) for _ in range(4)]
    assert file_names(made[2:]) == names(shared)


def test_files_of_other_names_are_never_removed(database, shared):
    kept = ["certs_backup_20300101T000000Z.db", "certs_backup_by_hand.db", "certs.db", "notes.txt"]
    for name in kept:
        (shared / name).write_text("somebody's")
    backups = Backups(database, str(shared), "01234567")
    for i in range(3):
        backups.make(NOW + i, 1)
    assert set(kept) < set(names(shared))
    assert len(names(shared)) == len(kept) + 1


def test_what_an_interrupted_backup_has_left_is_swept(database, shared):
    backups = Backups(database, str(shared), "01234567")
    made = backups.make(NOW, 1)
    (shared / f"{Path(made).name}.1f.partial").write_text("half")
    (shared / "certs_backup_89abcdef-00000000_000001_20300101T000000Z.db.1f.partial").write_text("another's")
    backups.make(NOW, 1)
    assert [name for name in names(shared) if name.endswith(".partial")] == [
        "certs_backup_89abcdef-00000000_000001_20300101T000000Z.db.1f.partial"
    ]


def test_a_backup_that_fails_takes_no_other_away(database, shared):
    backups = Backups(database, str(shared), "01234567")
    made = [backups.make(NOW + i, 2) for i in range(2)]
    Path(database).unlink()
    with pytest.raises(ConfigurationError, match="no database"):
        backups.make(NOW + 9, 2)
    assert file_names(made) == names(shared)


def test_a_directory_that_is_not_there_is_named(database, tmp_path):
    with pytest.raises(ConfigurationError, match="directory of the backups cannot be read"):
        Backups(database, str(tmp_path / "none"), "01234567").make(NOW, 2)

"""Revocations beside the database: kept, whole, and of this authority only."""

import os

import pytest

from appliance.cms.journal import Journal, JournalError
from appliance.cms.lifecycle import Lifecycle
from appliance.cms.store import Store
from appliance.errors import ConfigurationError
from tests.helpers.cms import Clock


@pytest.fixture
def path(tmp_path):
    return tmp_path / "certs.db.revoked"


def test_what_was_added_is_there_after_reopening_and_nobody_else_reads_it(path):
    journal = Journal(str(path), "01234567")
    journal.add([(1, 10), (2, 20)])
    journal.add([(2, 99)])
    journal.close()
    assert Journal(str(path), "01234567").known == {1: 10, 2: 20}
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_line_that_a_power_cut_left_incomplete_is_taken_off(path):
    journal = Journal(str(path), "01234567")
    journal.add([(1, 10)])
    journal.close()
    with path.open("a") as file:
        file.write("2 2")
    journal = Journal(str(path), "01234567")
    assert journal.known == {1: 10}
    journal.add([(3, 30)])
    journal.close()
    assert Journal(str(path), "01234567").known == {1: 10, 3: 30}


def test_revocations_of_another_authority_stay_in_the_file_and_do_not_count(path):
    for issuer, serial in (("01234567", 1), ("89abcdef", 2), ("01234567", 3)):
        journal = Journal(str(path), issuer)
        journal.add([(serial, 5)])
        journal.close()
    assert Journal(str(path), "01234567").known == {1: 5, 3: 5}
    assert Journal(str(path), "01234567", ["89abcdef"]).known == {1: 5, 2: 5, 3: 5}, "a former one's count"
    assert Journal(str(path), "89abcdef").known == {2: 5}


@pytest.mark.parametrize(
    "text", ["1 2\n", "pvacms revocations 1 01234567\nx y\n", "pvacms revocations 1 01234567\n1\n", "\n"]
)
def test_a_damaged_journal_is_refused(path, text):
    path.write_text(text)
    with pytest.raises(ConfigurationError, match="damaged"):
        Journal(str(path), "01234567")


def test_lines_of_all_releases_count_wherever_they_stand(path):
    """Many lines are read at once, the odd ones one by one."""
    head = "pvacms revocations 1 01234567\n"
    lines = ["1 10", "2 11 key", "3 12 only", "4 13", "2 14 only", " 5  15  only", "6 16 only"]
    text = head + "".join(f"{line}\n" for line in lines) + "pvacms revocations 1 89abcdef\n7 17 key\n"
    path.write_text(text)
    path.chmod(0o600)
    journal = Journal(str(path), "01234567")
    assert journal.known == {1: 10, 2: 14, 3: 12, 4: 13, 5: 15, 6: 16}
    assert journal.barred == {1, 2, 4}
    journal.close()
    path.write_text(f"{text}8 18 key\n9 19 nokey\n")
    with pytest.raises(ConfigurationError, match="damaged") as caught:
        Journal(str(path), "01234567")
    assert caught.value.line == 12


def test_what_could_not_be_written_is_written_later(path):
    journal = Journal(str(path), "01234567")
    writable, journal._fd = journal._fd, os.open(path, os.O_RDONLY)
    with pytest.raises(JournalError, match="cannot be written"):
        journal.add([(1, 10)])
    os.close(journal._fd)
    journal._fd = writable
    lifecycle = Lifecycle(Store(":memory:", "01234567"), journal, Clock(), None)
    lifecycle.catch_up_journal()
    assert not journal.missing
    lifecycle.catch_up_journal()
    journal.close()
    assert Journal(str(path), "01234567").known == {1: 10}

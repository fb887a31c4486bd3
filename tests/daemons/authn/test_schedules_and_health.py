"""``pvxcert -S``, ``-H`` and ``-M`` at a running service: what the C++ tool shows, and what only ours does."""

import itertools
import json
from datetime import UTC, datetime, timedelta

import pytest

NUMBERS = itertools.count()


def hours(begin, end):
    """A window from ``begin`` to ``end`` hours after now, in UTC, on each day."""
    now = datetime.now(UTC)
    return f"*,{now + timedelta(hours=begin):%H:%M},{now + timedelta(hours=end):%H:%M}"


@pytest.fixture
def shift(site):
    """An account with a certificate, and its identifier."""
    account = site.account()
    done = account.run("authnstd", "-n", f"shift-{next(NUMBERS)}", "-u", "client")
    identifier = done.out.split("Certificate identifier  : ")[1].strip()
    assert site.administrator().run("pvxcert", "-A", identifier).status == 0
    return account, identifier


def test_hours_are_shown_set_and_cleared_and_count_at_once(site, shift):
    account, identifier = shift
    administrator = site.administrator()
    empty = administrator.run("pvxcert", "-S", "show", identifier)
    assert empty.out.splitlines()[:3] == ["Schedule:", "=" * 44, "  (no schedule windows)"], empty.err
    later = hours(6, 7)
    done = administrator.run("pvxcert", "-S", later, identifier)
    assert done.status == 0, done.err
    _, begin, end = later.split(",")
    assert f"  Every day {begin} - {end} UTC" in done.out.splitlines()
    assert "Set By        : an administrator" in done.out
    assert "Status        : SCHEDULED_OFFLINE" in done.out
    shown = account.run("pvxcert", identifier)
    assert shown.status == 6
    assert f"Schedule:\n  Every day {begin} - {end} UTC\n" in shown.out
    facts = json.loads(account.run("pvxcert", "--json", identifier).out)["status"]
    assert facts["schedule"] == [{"day_of_week": "*", "start_time": begin, "end_time": end}]
    now_open = administrator.run("pvxcert", "-S", later, "-S", hours(-1, 1), "--json", identifier)
    answer = json.loads(now_open.out)
    assert (answer["state"], answer["by"], len(answer["schedule"])) == ("VALID", "admin", 2)
    assert account.run("pvxcert").status == 0
    listed = administrator.run("pvxcert", "list").out.splitlines()
    assert "SCHEDULE" in listed[0]
    assert administrator.run("pvxcert", "-S", "none", identifier).status == 0
    assert "Schedule" not in account.run("pvxcert").out


def test_hours_of_another_time_zone_are_shown_as_they_were_set_and_in_utc(site, shift):
    account, identifier = shift
    done = site.administrator().run(
        "pvxcert", "-S", "MON-TUE,08:00,17:00", "--time-zone", "Asia/Tokyo", identifier
    )
    lines = done.out.splitlines()
    assert lines[2:4] == ["  Mon       08:00 - 17:00 Asia/Tokyo", "  Tue       08:00 - 17:00 Asia/Tokyo"], (
        done.err
    )
    at = lines.index("In UTC, as of today:")
    assert lines[at + 1 : at + 3] == ["  Sun       23:00 - 08:00 UTC", "  Mon       23:00 - 08:00 UTC"]
    assert "Time Zone     : Asia/Tokyo" in account.run("pvxcert", identifier).out
    wrong = site.administrator().run(
        "pvxcert", "-S", "MON,08:00,17:00", "--time-zone", "Asia/Kyoto", identifier
    )
    assert wrong.status == 1
    assert "Asia/Kyoto" in wrong.err


def test_the_holder_may_look_and_not_change(site, shift):
    account, identifier = shift
    shown = account.run("pvxcert", "-S", "show")
    assert "(no schedule windows)" in shown.out, shown.err
    refused = account.run("pvxcert", "-S", "none", identifier)
    assert refused.status == 1
    assert "only administrators" in refused.err
    other = site.account()
    assert other.run("authnstd", "-n", f"other-{next(NUMBERS)}").status == 3
    assert other.run("pvxcert", "-S", "show", identifier).status == 1


def test_the_holder_sees_its_hours_also_when_it_is_off_them(site, shift):
    account, identifier = shift
    later = hours(6, 7)
    assert site.administrator().run("pvxcert", "-S", later, identifier).status == 0
    _, begin, end = later.split(",")
    shown = account.run("pvxcert", "-w", "2", "-S", "show")
    assert shown.status == 0, shown.err
    assert f"  Every day {begin} - {end} UTC" in shown.out.splitlines()
    assert "Status        : SCHEDULED_OFFLINE" in shown.out
    assert "your certificate is SCHEDULED_OFFLINE" in shown.err
    assert "what the certificate's status says" in shown.err
    facts = json.loads(account.run("pvxcert", "-w", "2", "-S", "show", "--json", identifier).out)
    assert (facts["state"], facts["schedule"][0]["start_time"]) == ("SCHEDULED_OFFLINE", begin)
    assert account.run("pvxcert", "-w", "2", "-S", "none", identifier).status == 1


def test_health_and_metrics_are_shown_to_everybody(site):
    account = site.account()
    done = account.run("pvxcert", "-H")
    assert done.status == 0, done.err
    lines = done.out.splitlines()
    assert lines[:3] == ["", "PVACMS Health", "=" * 44]
    for line in (
        "  Status                         : OK",
        "  Database Integrity             : OK",
        "  CA Certificate                 : Valid",
        "  Cluster Mode                   : DISABLED",
        "  Cluster Members                : 1",
    ):
        assert line in lines
    named = account.run("pvxcert", "-H", "--json", "--issuer", site.cms.issuer.upper())
    assert json.loads(named.out)["ok"] is True
    metrics = account.run("pvxcert", "-M")
    assert "    Certificates Created         : " in metrics.out, metrics.err
    assert " ms\n" in metrics.out
    assert json.loads(account.run("pvxcert", "-M", "--json").out)["db_size_bytes"] > 0


def test_a_service_that_does_not_answer_is_status_1_with_a_sentence(site):
    nowhere = site.account().run("pvxcert", "-H", "-w", "0.5", "--issuer", "00000000")
    assert nowhere.status == 1
    assert "No certificate service could be asked" in nowhere.err

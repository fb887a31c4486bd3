"""What is due: by the cadence in the certificate's status, else by age; and the settings of what a renewal keeps."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from appliance.authn.due import cadence, due_by_age, due_by_status
from appliance.authn.settings import RequesterSettings, resolve_requester
from appliance.authn.status import CheckedStatus
from appliance.certmon.status_pv import StatusReport
from appliance.certs.ocsp import StatusAnswer
from appliance.certs.status import CertState, ocsp_state
from appliance.epoch import EPICS_EPOCH_S
from appliance.errors import ConfigurationError
from tests.helpers.pki import DAY, NOW, site

S = site()
YEAR = S.ca.keychain(not_before=NOW - 300 * DAY, not_after=NOW + 65 * DAY).certificate
MINUTE = timedelta(minutes=1)


def status(
    state: CertState, by: datetime | None, *, hint: bool = False, signed: bool = True
) -> CheckedStatus:
    seconds = 0 if by is None else int(by.timestamp()) - EPICS_EPOCH_S
    answer = None
    if signed:
        answer = StatusAnswer(ocsp_state(state), 1, NOW, NOW + 30 * MINUTE, None, b"")
    report = StatusReport(state, 1, b"", "", "", "", "", seconds, hint)
    shown = state if signed else CertState.UNKNOWN
    return CheckedStatus(shown, state, answer, "", "", "", "", report)


VALID = CertState.VALID


@pytest.mark.parametrize(
    ("report", "due"),
    [
        (None, None),
        (status(VALID, NOW + DAY, signed=False), None),
        (status(VALID, None), None),
        (status(VALID, NOW + 65 * DAY), None),
        (status(VALID, NOW + DAY), False),
        (status(VALID, NOW + 16 * MINUTE), False),
        (status(VALID, NOW + 15 * MINUTE), True),
        (status(VALID, NOW - MINUTE), True),
        (status(VALID, NOW + DAY, hint=True), True),
        (status(CertState.SCHEDULED_OFFLINE, NOW + DAY), False),
        (status(CertState.PENDING_RENEWAL, NOW - MINUTE), True),
        (status(CertState.PENDING_RENEWAL, None), True),
        (status(CertState.EXPIRED, NOW + DAY), True),
        (status(CertState.REVOKED, NOW + DAY), True),
        (status(CertState.UNKNOWN, None), True),
    ],
)
def test_the_cadence_in_a_signed_status_decides(report: CheckedStatus | None, due: bool | None) -> None:
    found = due_by_status(YEAR, report, NOW)
    assert (None if found is None else found.due) is due
    assert due_by_age(YEAR, None, NOW).due, "its age alone would say so"


def test_a_person_is_told_when_it_must_be_renewed() -> None:
    waiting = due_by_status(YEAR, status(VALID, NOW + DAY), NOW)
    assert waiting is not None
    assert "not due yet; it must be renewed by" in waiting.sentence
    assert "not due before" in due_by_age(YEAR, None, NOW - 200 * DAY).sentence


def test_a_cadence_is_read_in_both_epochs_and_never_beyond_the_end() -> None:
    by = NOW + DAY
    for epoch in (0, EPICS_EPOCH_S):
        assert cadence(int(by.timestamp()) - epoch, YEAR) == by
        assert cadence(int((NOW + 65 * DAY).timestamp()) - epoch, YEAR) is None
    assert cadence(0, YEAR) is None
    ancient = S.ca.keychain(not_before=NOW - 15_000 * DAY, not_after=NOW + 65 * DAY).certificate
    assert cadence(int(by.timestamp()) - EPICS_EPOCH_S, ancient) == by, "a token's nbf of 1985"


# ---------------------------------------------------------------------- settings


def settings(
    tmp_path: Path, usage: str = "client", environ: dict[str, str] | None = None, **given: object
) -> RequesterSettings:
    return resolve_requester(usage, given, {"XDG_CONFIG_HOME": str(tmp_path), **(environ or {})})


def names(found: RequesterSettings) -> list[str]:
    return [str(name) for name in found.san]


BOTH = {"EPICS_PVA_AUTH_SAN": "dns=a.lab, ip=10.0.0.1", "EPICS_PVA_AUTH_SERVER_SAN": "hostname=ioc1"}


@pytest.mark.parametrize(
    ("usage", "environ", "given", "wanted"),
    [
        ("client", {}, {}, []),
        ("client", BOTH, {}, ["dns=a.lab", "ip=10.0.0.1"]),
        ("server", BOTH, {}, ["hostname=ioc1"]),
        ("ioc", {"EPICS_PVA_AUTH_SAN": "dns=A.Lab"}, {}, ["dns=a.lab"]),
        ("client", BOTH, {"san": ["ip=::1"], "server_san": ["dns=b"]}, ["ip=::1"]),
        ("server", BOTH, {"san": ["ip=::1"]}, ["ip=::1"]),
        ("ioc", BOTH, {"san": ["ip=::1"], "server_san": ["dns=b"]}, ["dns=b"]),
    ],
)
def test_alternative_names_come_from_the_first_place_that_has_any(
    tmp_path: Path, usage: str, environ: dict[str, str], given: dict[str, object], wanted: list[str]
) -> None:
    assert names(settings(tmp_path, usage, environ, **given)) == wanted


@pytest.mark.parametrize(
    ("given", "environ", "why"),
    [
        ({"san": ["mail=x"]}, {}, "--san: .*ip=ADDRESS"),
        ({}, {"EPICS_PVA_AUTH_SAN": "dns=a,,rubbish"}, "EPICS_PVA_AUTH_SAN: .*rubbish"),
        ({"san": ["dns=a", "dns=A"]}, {}, "--san: .*twice"),
        ({"schedule": ["MON,08:00"]}, {}, "--schedule: .*DAY,HH:MM,HH:MM"),
        ({"time_zone": "Europe/Berlin"}, {}, "--time-zone has no effect without --schedule"),
        ({"schedule": ["*,08:00,17:00"], "time_zone": "Mars/Base"}, {}, "no time zone"),
        ({"schedule": ["*,08:00,17:00"], "no_status": True}, {}, "schedule has no effect"),
        ({"schedule": ["*,08:00,17:00"]}, {"EPICS_PVA_AUTH_NO_STATUS": "YES"}, "schedule has no effect"),
        ({"add_config_uri": True, "no_status": True}, {}, "--add-config-uri has no effect"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_with_its_place(
    tmp_path: Path, given: dict[str, object], environ: dict[str, str], why: str
) -> None:
    with pytest.raises(ConfigurationError, match=why):
        settings(tmp_path, "client", environ, **given)


def test_a_range_of_days_is_one_window_for_each(tmp_path: Path) -> None:
    found = settings(tmp_path, schedule=["MON-FRI,08:00,17:00", "*,22:00,06:00"], time_zone="Europe/Berlin")
    assert [window.day for window in found.schedule] == ["*", "1", "2", "3", "4", "5"]
    assert found.time_zone == "Europe/Berlin"
    assert settings(tmp_path, add_config_uri=True).config_uri_base == "CERT"

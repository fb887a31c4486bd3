"""What a client makes of ``renew_by`` and ``renewal_due`` in a status: the date, one line of the log, one warning."""

import logging
from datetime import UTC, datetime, timedelta

import pytest

from appliance.certmon.endpoints import open_server
from appliance.certmon.status_source import StatusSource, reference
from appliance.certs.status import CertState, written_renew_by
from tests.helpers.live import keychain_file, number, server_config, until
from tests.helpers.pki import site
from tests.helpers.status_service import StatusService

S = site()
KEYCHAIN = S.ca.keychain("softioc", "server", status=True)
DUE = "due for renewal"


@pytest.fixture
async def cms():
    async with StatusService(S.ca) as service:
        yield service


def tell(cms, *, state=CertState.VALID, **more):
    value = cms.value(KEYCHAIN.serial, state)
    for field, content in more.items():
        value[field] = content
    cms.post(KEYCHAIN.status_pv, value)


def counted(when):
    return written_renew_by(int(when.timestamp()))


async def test_a_date_from_1970_or_from_1990_is_the_date_and_the_end_of_the_certificate_is_none(cms):
    ref = reference((KEYCHAIN.certificate, *KEYCHAIN.chain))
    source = StatusSource(cms.client_config())
    await source.start()
    try:
        when = (datetime.now(UTC) + timedelta(hours=1)).replace(microsecond=0)
        tell(cms, renew_by=counted(when))
        following = source.follow(ref, lambda: None)
        await until(lambda: following.status.renew_by == when)
        tell(cms, renew_by=counted(ref.not_after))
        await until(lambda: following.status.renew_by is None)
        tell(cms, renew_by=int(when.timestamp()))
        await until(lambda: following.status.renew_by == when)
        # The hint of pvxs-cms has 0 there: it did not mean to say "never".
        tell(cms, renew_by=0, renewal_due=True)
        await until(lambda: following.status.renewal_due)
        assert following.status.renew_by == when
        tell(cms, renew_by=0)
        await until(lambda: following.status.renew_by is None)
    finally:
        await source.close()


def lines(caplog, level):
    return [r for r in caplog.records if r.levelno == level and DUE in r.getMessage()]


async def test_the_hint_is_routine_and_a_warning_comes_when_nothing_follows_it(cms, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    tell(cms, renew_by=counted(datetime.now(UTC) + timedelta(hours=1)))
    file = keychain_file(tmp_path, "server", KEYCHAIN)
    async with open_server(
        server_config(file),
        prepare=lambda server: server.add_pv("pv", number(1.0)),
        status_client=cms.client_config(),
    ):
        tell(cms, renew_by=counted(datetime.now(UTC) + timedelta(seconds=5)), renewal_due=True)
        await until(lambda: lines(caplog, logging.INFO))
        await until(lambda: lines(caplog, logging.WARNING), 30)
        assert "not renewed yet" in lines(caplog, logging.WARNING)[0].getMessage()
        tell(cms, renew_by=counted(datetime.now(UTC) + timedelta(hours=2)))
        tell(cms, renew_by=counted(datetime.now(UTC) + timedelta(hours=2)), renewal_due=True)
        await until(lambda: len(lines(caplog, logging.INFO)) == 2)
    assert len(lines(caplog, logging.WARNING)) == 1

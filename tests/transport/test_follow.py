"""Following a status: what is believed, for how long, and what it costs; a real service, a clock of the test's own."""

import asyncio
import sys
from datetime import UTC, datetime, timedelta

import pytest

from appliance.certmon.cache import StatusCache
from appliance.certmon.status_source import StatusSource, reference
from appliance.certs.status import CertState, OCSPState, StatusClass
from appliance.errors import CertificateStatusError
from tests.helpers.cert_status import encode_status
from tests.helpers.live import until
from tests.helpers.pki import DAY, site
from tests.helpers.status_service import StatusService

S = site()
VALID, REVOKED, OFFLINE = CertState.VALID, CertState.REVOKED, CertState.SCHEDULED_OFFLINE


class Clock:
    def __init__(self):
        self.offset = timedelta()

    def __call__(self):
        return datetime.now(UTC) + self.offset


@pytest.fixture
async def cms():
    async with StatusService(S.ca) as service:
        yield service


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def source(cms, clock):
    it = StatusSource(cms.client_config(), now=clock, beacons=False)
    await it.start()
    yield it
    await it.close()


def certificate(**more):
    return S.ca.keychain("operator", "client", status=True, **more)


def ref_of(keychain):
    return reference((keychain.certificate, *keychain.chain))


async def follow(source, keychain):
    """Follow a certificate and wait for the first word."""
    following = source.follow(ref_of(keychain), lambda: None)
    await until(lambda: following.status.delivered)
    return following


def again(following):
    """Judge at the time that the clock shows now, as the timer would."""
    following._follower._evaluate()
    return following.status


async def test_a_good_status_ends_with_its_validity_and_not_before(cms, source, clock):
    """SPVA 4.7.2."""
    keychain = certificate()
    cms.set(keychain, VALID)
    following = await follow(source, keychain)
    await cms.stop()
    clock.offset = timedelta(minutes=29)
    assert again(following).status_class is StatusClass.GOOD
    assert following.status.response
    clock.offset = timedelta(minutes=30, seconds=1)
    assert again(following).status_class is StatusClass.UNKNOWN
    assert following.status.delivered
    assert not following.status.response, "and it is stapled no more"


async def test_a_revocation_outlives_the_validity_of_its_answer(cms, source, clock):
    keychain = certificate()
    cms.set(keychain, REVOKED)
    following = await follow(source, keychain)
    clock.offset = timedelta(days=400)
    assert again(following).status_class is StatusClass.BAD


async def test_a_certificate_ends_by_its_own_date_whatever_its_status_says(cms, source, clock):
    keychain = certificate(not_after=datetime.now(UTC).replace(microsecond=0) + timedelta(minutes=10))
    cms.set(keychain, VALID)
    following = await follow(source, keychain)
    clock.offset = timedelta(minutes=11)
    assert again(following).state is CertState.EXPIRED
    assert following.status.status_class is StatusClass.BAD


async def test_an_older_answer_never_replaces_a_newer_one(cms, source):
    """A replay: yesterday's word, still within its validity."""
    keychain = certificate()
    now = datetime.now(UTC)
    cms.set(keychain, OFFLINE, this_update=now)
    following = await follow(source, keychain)
    assert following.status.status_class is StatusClass.SUSPENDED
    cms.set(keychain, VALID, this_update=now - timedelta(minutes=10))
    cms.set(keychain, OFFLINE, this_update=now + timedelta(seconds=1), valid=timedelta(hours=2))
    await until(lambda: following.status.valid_until > now + timedelta(hours=1))
    assert following.status.state is OFFLINE


async def test_a_revocation_is_taken_from_a_node_whose_clock_is_behind(cms, source):
    """Another node of the same certificate service has signed what is known."""
    keychain = certificate()
    now = datetime.now(UTC)
    cms.set(keychain, VALID, this_update=now)
    following = await follow(source, keychain)
    cms.set(keychain, REVOKED, this_update=now - timedelta(seconds=5))
    await until(lambda: following.status.state is REVOKED)
    assert following.status.status_class is StatusClass.BAD
    cms.set(keychain, VALID, this_update=now + timedelta(seconds=5))
    cms.set(keychain, REVOKED, this_update=now + timedelta(seconds=10), valid=timedelta(hours=2))
    await until(lambda: following._follower.answer.this_update > now)
    assert following.status.state is REVOKED


@pytest.mark.parametrize("state", [VALID, REVOKED, OFFLINE, CertState.PENDING_APPROVAL])
async def test_an_unsigned_word_is_never_good_and_never_bad(cms, source, state):
    keychain = certificate()
    now = datetime.now(UTC)
    value = encode_status(state, keychain.serial, this_update=now, next_update=now + timedelta(minutes=30))
    cms.post(keychain.status_pv, value)
    following = await follow(source, keychain)
    assert following.status.status_class is StatusClass.UNKNOWN


async def test_an_unsigned_word_changes_nothing_while_a_signed_one_stands(cms, source):
    keychain = certificate()
    cms.set(keychain, VALID)
    following = await follow(source, keychain)
    now = datetime.now(UTC)
    for state in (REVOKED, OFFLINE, CertState.UNKNOWN):
        cms.post(
            keychain.status_pv,
            encode_status(state, keychain.serial, this_update=now, next_update=now + timedelta(minutes=30)),
        )
    cms.set(keychain, VALID, this_update=now + timedelta(seconds=5), valid=timedelta(hours=1))
    await until(lambda: following.status.valid_until > now + timedelta(minutes=45))
    assert following.status.state is VALID


@pytest.mark.parametrize("state", list(CertState))
async def test_what_the_service_says_is_what_is_known(cms, source, state):
    keychain = certificate()
    cms.set(keychain, state)
    following = await follow(source, keychain)
    assert following.status.state is state


async def test_a_good_signature_does_not_make_up_for_a_worse_word(cms, source):
    keychain = certificate()
    cms.set(keychain, OFFLINE, signed=OCSPState.GOOD)
    following = await follow(source, keychain)
    assert following.status.status_class is StatusClass.SUSPENDED


async def test_a_subscription_that_ends_is_opened_again(cms, source, monkeypatch):
    monkeypatch.setattr("appliance.certmon.status_source.AGAIN_S", 0.05)
    keychain = certificate()
    cms.set(keychain, VALID)
    following = await follow(source, keychain)
    pv = cms.pvs[keychain.status_pv]
    pv.close()
    pv.open(cms.value(keychain.serial, REVOKED))
    await until(lambda: following.status.state is REVOKED)


async def test_all_who_follow_one_certificate_share_a_subscription(cms, source):
    keychain = certificate()
    cms.set(keychain, VALID)
    calls = []
    followings = [source.follow(ref_of(keychain), lambda: calls.append(1)) for _ in range(50)]
    await until(lambda: len(calls) == 50)
    assert len(cms.pvs[keychain.status_pv]._subscriptions) == 1
    for following in followings:
        following.close()
        following.close()
    assert source.followed == 1, "for a while: clients come back"


async def test_a_certificate_that_nobody_asks_about_is_forgotten(cms, source, monkeypatch):
    monkeypatch.setattr("appliance.certmon.status_source.LINGER_S", 0.02)
    keychain = certificate()
    cms.set(keychain, VALID)
    following = await follow(source, keychain)
    following.close()
    await until(lambda: source.followed == 0)
    await until(lambda: not cms.pvs[keychain.status_pv]._subscriptions)


async def test_the_number_of_certificates_is_bounded_and_idle_ones_make_room(cms, source):
    source.max_followed = 3
    followings = [source.follow(ref_of(certificate()), lambda: None) for _ in range(3)]
    with pytest.raises(CertificateStatusError, match="3 certificates"):
        source.follow(ref_of(certificate()), lambda: None)
    followings[1].close()
    source.follow(ref_of(certificate()), lambda: None)
    assert source.followed == 3


async def test_the_same_serial_of_another_authority_is_another_certificate(cms, source):
    one = certificate(serial=4711)
    other = S.other_ca.keychain("operator", serial=4711, status_pv=one.status_pv)
    cms.set(one, VALID)
    good = await follow(source, one)
    bad = source.follow(ref_of(other), lambda: None)
    assert source.followed == 2
    await until(lambda: bad._follower.warned)
    assert (good.status.status_class, bad.status.delivered) == (StatusClass.GOOD, False)


async def test_certificates_of_an_intermediate_authority_are_followed(source, clock):
    below = S.ca.intermediate()
    keychain = below.keychain("operator", status=True)
    async with StatusService(below) as service:
        service.set(keychain, VALID)
        other = StatusSource(service.client_config(), now=clock, beacons=False)
        await other.start()
        try:
            following = await follow(other, keychain)
            assert following.status.state is VALID
        finally:
            await other.close()


async def test_only_what_the_signature_alone_proves_is_kept_on_disk(cms, clock, tmp_path):
    """A good answer that stood beside 'offline' must not be read as VALID by the next process."""
    cache = StatusCache(str(tmp_path / "cache"))
    source = StatusSource(cms.client_config(), cache=cache, now=clock, beacons=False)
    await source.start()
    try:
        keychain = certificate()
        ident = (S.ca.issuer_id, keychain.serial)
        cms.set(keychain, VALID)
        following = await follow(source, keychain)
        await until(lambda: cache.read(*ident))
        cms.set(
            keychain, OFFLINE, signed=OCSPState.GOOD, this_update=datetime.now(UTC) + timedelta(seconds=2)
        )
        await until(lambda: following.status.state is OFFLINE)
        await until(lambda: not cache.read(*ident))
        cms.set(keychain, REVOKED, this_update=datetime.now(UTC) + timedelta(seconds=4))
        await until(lambda: following.status.state is REVOKED)
        await until(lambda: cache.read(*ident))
    finally:
        await source.close()


async def test_nothing_is_left_running_after_close(cms, clock):
    before = asyncio.all_tasks()
    source = StatusSource(cms.client_config(), now=clock, beacons=False)
    await source.start()
    keychain = certificate(not_after=datetime.now(UTC) + DAY)
    cms.set(keychain, VALID)
    await follow(source, keychain)
    await source.close()
    await asyncio.sleep(0)
    await until(lambda: asyncio.all_tasks() <= before)


async def test_following_a_status_needs_no_numpy(cms):
    """A tool that speaks TLS must not wait a tenth of a second for arrays that it does not have."""
    script = (
        "import asyncio, sys\n"
        "from appliance.client.context import Context\n"
        "from appliance.certmon.status_pv import decode_status\n"
        "from appliance.config.address import Endpoint\n"
        "from appliance.config.pva import ClientConfig\n"
        "async def main():\n"
        "    config = ClientConfig(addr_list=(Endpoint('127.0.0.1', int(sys.argv[1])),), auto_addr_list=False)\n"
        "    async with Context(config, beacons=False, octets=True) as context:\n"
        "        reports = []\n"
        "        context.monitor(sys.argv[2], on_update=lambda value: reports.append(decode_status(value)))\n"
        "        while not reports:\n"
        "            await asyncio.sleep(0.01)\n"
        "        print(reports[0].state, len(reports[0].ocsp_response) > 300, 'numpy' in sys.modules)\n"
        "asyncio.run(main())\n"
    )
    keychain = certificate()
    cms.set(keychain, VALID)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(cms.udp_port), keychain.status_pv, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await asyncio.wait_for(process.communicate(), 30)
    assert output.decode().split() == ["VALID", "True", "False"]

"""What an end does with its own certificate (SPVA 7.3.1, 8.4; on_expiration)."""

import itertools

import pytest

from appliance.certmon.live_keychain import Validity
from appliance.certmon.policy import Mode, choose_mode
from appliance.certs.status import StatusClass
from appliance.config.tls_options import TLSOptions

FALL, STOP, STANDBY = (
    TLSOptions(on_expiration=choice) for choice in ("fallback-to-tcp", "shutdown", "standby")
)
REQUIRED = TLSOptions(tls_required=True)
GOOD, SUSPENDED, UNKNOWN, BAD = StatusClass
NONE, PENDING, CURRENT, EXPIRED = Validity


@pytest.mark.parametrize(
    ("validity", "status", "options", "server", "client"),
    [
        (CURRENT, GOOD, FALL, Mode.TLS, Mode.TLS),
        (CURRENT, SUSPENDED, FALL, Mode.TCP, Mode.TCP),
        (CURRENT, UNKNOWN, FALL, Mode.TCP, Mode.TCP),
        (CURRENT, BAD, FALL, Mode.TCP, Mode.TCP),
        (CURRENT, BAD, STOP, Mode.SHUTDOWN, Mode.SHUTDOWN),
        (CURRENT, BAD, STANDBY, Mode.STANDBY, Mode.SHUTDOWN),
        (CURRENT, SUSPENDED, STOP, Mode.TCP, Mode.TCP),
        (EXPIRED, GOOD, FALL, Mode.TCP, Mode.ANONYMOUS),
        (EXPIRED, BAD, FALL, Mode.TCP, Mode.TCP),
        (EXPIRED, GOOD, STOP, Mode.SHUTDOWN, Mode.SHUTDOWN),
        (EXPIRED, UNKNOWN, STANDBY, Mode.STANDBY, Mode.SHUTDOWN),
        (PENDING, GOOD, FALL, Mode.TCP, Mode.TCP),
        (PENDING, GOOD, STANDBY, Mode.TCP, Mode.TCP),
        (NONE, GOOD, FALL, Mode.TCP, Mode.ANONYMOUS),
        (CURRENT, GOOD, REQUIRED, Mode.TLS, Mode.TLS),
        (CURRENT, UNKNOWN, REQUIRED, Mode.STANDBY, Mode.STANDBY),
        (CURRENT, BAD, REQUIRED, Mode.STANDBY, Mode.STANDBY),
        (EXPIRED, GOOD, REQUIRED, Mode.STANDBY, Mode.ANONYMOUS),
        (PENDING, GOOD, REQUIRED, Mode.STANDBY, Mode.STANDBY),
        (NONE, GOOD, REQUIRED, Mode.STANDBY, Mode.ANONYMOUS),
        (CURRENT, BAD, STOP._replace(tls_required=True), Mode.SHUTDOWN, Mode.SHUTDOWN),
    ],
)
def test_the_table(validity, status, options, server, client):
    assert choose_mode(validity, status, options, server_side=True) is server
    assert choose_mode(validity, status, options, server_side=False) is client


def test_only_a_current_certificate_with_a_good_status_is_shown():
    for validity, status, options, side in itertools.product(
        Validity, StatusClass, (FALL, STOP, STANDBY, REQUIRED), (True, False)
    ):
        mode = choose_mode(validity, status, options, server_side=side)
        if mode is Mode.TLS:
            assert (validity, status) == (CURRENT, GOOD)
        assert not (options.tls_required and mode is Mode.TCP)

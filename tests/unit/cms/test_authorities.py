"""What verifies the certificates of a service's authorities, present and former."""

import pytest

from appliance.cms.authorities import KnownAuthority, bundle
from tests.helpers.pki import DAY, NOW, Authority

OLD = Authority("Site Root", begun=3000 * DAY)
NEW = Authority("Site Root")
FOREIGN = Authority("Site Root")
CROSSED = (OLD.crossed(NEW), NEW.crossed(OLD))


def row(authority, crossed=(), ends=None):
    return KnownAuthority(authority.issuer_id, (authority.certificate,), tuple(crossed), ends, 1)


def test_before_and_after_the_switch_the_bundle_has_both_roots_and_what_crosses_them():
    rows = [row(OLD), row(NEW, CROSSED)]
    assert bundle(OLD.certificate, rows, NOW) == (OLD.certificate, *CROSSED, NEW.certificate)
    assert bundle(NEW.certificate, rows, NOW) == (NEW.certificate, *CROSSED, OLD.certificate)
    ended = [row(OLD, ends=int(NOW.timestamp())), row(NEW, CROSSED)]
    assert bundle(NEW.certificate, ended, NOW) == (NEW.certificate, *CROSSED)


@pytest.mark.parametrize(
    "crossed",
    [(), (FOREIGN.certificate,), (FOREIGN.crossed(NEW),), (FOREIGN.crossed(FOREIGN),)],
    ids=range(4),
)
def test_a_root_that_only_the_database_names_is_not_in_it(crossed):
    """Who can write the database would otherwise have it trusted by each host that gets the bundle."""
    rows = [row(NEW, CROSSED), row(FOREIGN, crossed)]
    found = bundle(NEW.certificate, rows, NOW)
    assert FOREIGN.certificate not in found
    assert NEW.certificate in found
    assert FOREIGN.certificate in bundle(NEW.certificate, rows, NOW, held=(FOREIGN.certificate,))

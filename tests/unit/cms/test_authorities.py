"""What verifies the certificates of a service's authorities, present and former."""

from datetime import timedelta

import pytest

from appliance.certs.profiles import CertificateAuthority
from appliance.cms import authorities
from appliance.cms.authorities import KnownAuthority, bundle, check_not_over, introduce, known_authorities
from appliance.cms.store import Store
from appliance.errors import ConfigurationError
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


def held(authority, ends=None):
    return authorities.Authority(
        CertificateAuthority(authority.signer, authority.certificate), authority.certificate, ends=ends
    )


def test_an_end_is_taken_back_only_by_a_node_that_holds_the_authority_that_took_over(tmp_path, engine):
    store = Store(engine.db(tmp_path), NEW.issuer_id)
    store.open()
    clock = -2

    def start(present, *former):
        """What a node does at its start."""
        return store.run(
            lambda transaction: introduce(
                transaction, (present, *former), NOW + clock * DAY, present=present.issuer_id
            )
        )

    def ends():
        known = store.run(lambda transaction: known_authorities(transaction.connection))
        return known[OLD.issuer_id].ends, known[NEW.issuer_id].ends

    end = int((NOW + DAY).timestamp())
    start(held(OLD))
    clock += 1
    start(held(NEW), held(OLD, NOW + DAY))
    assert ends() == (end, None)
    start(held(OLD))
    assert ends() == (end, None), "a node that has not been switched yet"
    known = store.run(lambda transaction: known_authorities(transaction.connection))
    check_not_over(held(OLD), known, NOW)
    check_not_over(held(NEW), known, NOW + 2 * DAY)
    with pytest.raises(ConfigurationError, match=r"Site Root.* ended at .* and another one has taken over"):
        check_not_over(held(OLD), known, NOW + DAY)
    start(held(OLD), held(NEW, NOW + DAY))
    assert ends() == (None, end), "the site goes back"
    store.close()


@pytest.mark.parametrize("later_s", [0, -100], ids=["within a second", "after a clock was set back"])
def test_the_authority_that_takes_over_is_the_later_one(tmp_path, engine, later_s):
    store = Store(engine.db(tmp_path), NEW.issuer_id)
    store.open()
    for at, own in (
        (NOW, (held(OLD),)),
        (NOW + timedelta(seconds=later_s), (held(NEW), held(OLD, NOW + DAY))),
    ):
        known = store.run(
            lambda transaction, own=own, at=at: introduce(transaction, own, at, present=own[0].issuer_id)
        )
    by = authorities.successor_of(known[OLD.issuer_id], known, {OLD.issuer_id})
    assert by is not None, "a node that was not switched follows it"
    assert by.issuer_id == NEW.issuer_id
    store.close()

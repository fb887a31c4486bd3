"""Which request renews which certificate: every condition in a table, without a service (SPVA 9.4)."""

from datetime import UTC, datetime, timedelta

import pytest

from appliance.certs.san import San, canonical
from appliance.certs.schedule import Schedule, read_windows
from appliance.certs.status import CertState
from appliance.cms.inherit import LOST, Deliveries, answer_lost, approved_before, may_supersede
from appliance.cms.model import NewCertificate, san_text
from appliance.cms.renewal import Fresh, Renewed, judge
from appliance.cms.transaction import IN_DOUBT, CertRecord
from appliance.errors import RequestRefused

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
T = int(NOW.timestamp())
HOUR, DAY = 3600, 86400
SUBJECT = {"CN": "softioc", "O": "lab", "OU": "", "C": ""}
IDENTITY = "https://idp.example|softioc"
NAMES = canonical([San("dns", "ioc7.lab"), San("hostname", "ioc7")])
PROVED = (San("dns", "ioc7"), San("dns", "ioc7.lab"), San("ip", "10.0.0.7"))
VALID, DUE = CertState.VALID, CertState.PENDING_RENEWAL


def at(seconds):
    return NOW + timedelta(seconds=seconds)


def record(**changes):
    good = CertRecord(
        serial=7, subject="softioc\x1flab\x1f\x1f", usage="client", method="jwt", not_before=T - DAY, not_after=T + 30 * DAY,
        renew_by=T + 600, state=VALID, state_date=T - DAY, approved=False, delivered=1, skid="aa", identity=IDENTITY,
        no_status=False,
    )  # fmt: skip
    return good._replace(**changes)


def request(**changes):
    """A request with a token of one more hour, at an issuer whose certificates live for 30 days."""
    good = NewCertificate(
        serial=8, subject=SUBJECT, usage="client", method="jwt", identity=IDENTITY, skid="aa", not_before=NOW,
        not_after=at(30 * DAY), approval_needed=False, inherit=True, roll_over=True, facts={}, renew_by=at(HOUR),
    )  # fmt: skip
    return good._replace(**changes)


def std_record(**changes):
    return record(**{"method": "std", "identity": "", "approved": True, **changes})


def std(**changes):
    """A request of the standard authenticator with a proof, at a site that wants a renewal every hour."""
    good = request(
        method="std", identity="", roll_over=False, approval_needed=True, proved=True, cadence=HOUR,
        not_after=at(180 * DAY),
    )  # fmt: skip
    return good._replace(**changes)


def judged(asked, *records, state=VALID):
    return judge(asked, [(r, state) for r in records], NOW)


# -- what is renewed ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "old", "renew_by"),
    [
        (request(), record(), T + HOUR),
        (request(), record(renew_by=T - 5), T + HOUR),
        (request(renew_by=at(60)), record(), T + 600),
        (request(proved=True), record(), T + HOUR),
        (request(approval_needed=True), record(approved=True), T + HOUR),
        (request(not_after=at(90 * DAY)), record(), T + HOUR),
        (request(san_proved=PROVED), record(san=san_text(NAMES)), T + HOUR),
        (request(san=NAMES, san_proved=PROVED), record(san=san_text(NAMES)), T + HOUR),
        (std(), std_record(), T + HOUR),
        (std(), std_record(renew_by=T + 2 * DAY), T + 2 * DAY),
        (std(proved=False, peer_serial=7), std_record(), T + HOUR),
        (std(proved=False, approval_needed=False), std_record(), T + HOUR),
        (std(proved=False, inherit_unproven=True), std_record(), T + HOUR),
        (std(san=NAMES), std_record(san=san_text(NAMES)), T + HOUR),
        (std(), std_record(san=san_text(NAMES)), T + HOUR),
        (std(inherit=False), std_record(), T + HOUR),
        (std(), std_record(not_before=T + DAY), T + DAY + HOUR),
        (std(cadence=0), std_record(), 0),
        (std(), std_record(not_after=T + 1800, renew_by=T + 600), 0),
        # The cadence is the service's: a short life that is asked for does not end it.
        (std(not_after=at(60), renew_by=None), std_record(), T + HOUR),
    ],
)
def test_the_holder_moves_the_date(asked, old, renew_by):
    assert judged(asked, old) == Renewed(old, renew_by)


@pytest.mark.parametrize("state", list(CertState))
def test_every_live_state_except_waiting_for_approval_is_renewed(state):
    renewable = state in (VALID, CertState.PENDING, DUE, CertState.SCHEDULED_OFFLINE)
    for asked, old in ((request(), record()), (std(), std_record())):
        assert (judged(asked, old, state=state) is not None) is renewable


# -- what is another certificate's matter ---------------------------------------------------------------


@pytest.mark.parametrize(
    "old",
    [
        record(skid="bb"),
        record(usage="server"),
        record(usage="ioc"),
        record(method="std", identity=""),
        record(method="krb"),
        record(identity="https://idp.example|softioc2"),
        record(identity="https://other.example|softioc"),
        record(identity=""),
        record(renew_by=0),
        record(no_status=True),
        record(delivered=IN_DOUBT),
        record(san=san_text(NAMES)),
    ],
)
def test_a_token_renews_no_certificate_that_is_not_exactly_its_own(old):
    assert judged(request(), old) is None


@pytest.mark.parametrize(
    "old",
    [
        std_record(skid="bb"),
        std_record(usage="ioc"),
        std_record(method="jwt", identity=IDENTITY),
        std_record(method="jwt", identity=""),
        std_record(renew_by=0),
    ],
)
def test_the_standard_authenticator_renews_no_other_kind_key_or_usage(old):
    assert judged(std(), old) is None


@pytest.mark.parametrize(
    "asked",
    [
        request(san=NAMES[:1], san_proved=PROVED),
        request(san=(San("ip", "10.0.0.7"),), san_proved=PROVED),
        request(san_proved=PROVED[:1]),
        request(san_proved=()),
    ],
)
def test_a_token_with_other_names_than_the_certificates_gets_a_new_one_and_renews_nothing(asked):
    assert judged(asked, record(san=san_text(NAMES))) is None
    assert judged(request(san=NAMES, san_proved=PROVED), record()) is None


def test_without_a_lifetime_a_token_gets_a_new_certificate():
    assert judged(request(renew_by=None, not_after=at(HOUR)), record()) is None


@pytest.mark.parametrize("renew_by", [at(600), at(601), None])
def test_a_token_that_ends_after_the_certificate_gets_a_new_one_and_the_old_one_runs_out(renew_by):
    old = record(not_after=T + 600, renew_by=T + 300)
    assert judged(request(renew_by=renew_by), old) == Fresh(old)


def test_the_one_that_lives_longest_is_renewed():
    old, new = record(serial=1, not_after=T + DAY), record(serial=2)
    assert judged(request(), old, new) == judged(request(), new, old) == Renewed(new, T + HOUR)
    other = record(serial=3, not_after=T + 60 * DAY, san=san_text(NAMES))
    assert judged(request(), old, other, new) == Renewed(new, T + HOUR)
    assert judged(request()) is None


# -- refusals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked",
    [
        std(proved=False),
        std(proved=False, peer_serial=9),
        std(proved=False, inherit=False, inherit_unproven=True),
        std(proved=False, cadence=0),
        std(proved=False, san=NAMES),
    ],
)
@pytest.mark.parametrize("state", [VALID, DUE])
def test_without_proof_nobody_renews_what_needed_an_approval(asked, state):
    with pytest.raises(RequestRefused, match="does not prove that the certificate is yours"):
        judged(asked, std_record(san=san_text(asked.san)), state=state)


@pytest.mark.parametrize(
    ("asked", "had", "why"),
    [
        (NAMES, (), "has no alternative names, and a renewal does not add any"),
        (NAMES, NAMES[:1], "has other alternative names"),
        (NAMES[:1], NAMES, "has other alternative names"),
        ((San("dns", "ioc8.lab"),), NAMES, "have it revoked first"),
    ],
)
def test_a_renewal_swaps_no_names(asked, had, why):
    with pytest.raises(RequestRefused, match=why):
        judged(std(san=asked), std_record(san=san_text(had)))


# -- the approval of names ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "had", "inherited"),
    [
        ((), (), True),
        ((), NAMES, True),
        (NAMES, NAMES, True),
        (NAMES, (), False),
        (NAMES, NAMES[:1], False),
        (NAMES[:1], NAMES, False),
    ],
)
def test_an_approval_is_inherited_with_the_same_names_only(asked, had, inherited):
    old = std_record(san=san_text(had), state=CertState.EXPIRED)
    assert approved_before(std(not_after=at(30 * DAY), san=asked), [old]) is inherited
    assert not approved_before(std(not_after=at(30 * DAY), san=asked), [old._replace(approved=False)])
    assert not approved_before(std(not_after=at(30 * DAY), san=asked, proved=False), [old])
    # The reference's way gives names away, but never alternative ones.
    unproven = std(not_after=at(30 * DAY), san=asked, proved=False, inherit_unproven=True)
    assert approved_before(unproven, [old]) is (not asked)


@pytest.mark.parametrize(
    ("approved_days", "asked_days", "inherited"),
    [
        (5, 5, True),
        (5, 4, True),
        (5, 6, False),
        (5, 181, False),
        (181, 184, True),  # six months and six other months
        (28, 31, True),
        (365, 366, True),
        (181, 365, False),
    ],
)
def test_an_approval_is_inherited_for_no_longer_than_what_was_approved(approved_days, asked_days, inherited):
    old = std_record(
        not_before=T - 200 * DAY, not_after=T - 200 * DAY + approved_days * DAY, state=CertState.EXPIRED
    )
    assert (
        approved_before(std(not_before=at(-300), not_after=at(-300 + asked_days * DAY)), [old]) is inherited
    )


SHIFT = Schedule(read_windows([("1", "08:00", "17:00")]), "Europe/Berlin")


@pytest.mark.parametrize(
    ("asked", "had", "inherited"),
    [
        (SHIFT, SHIFT, True),
        (SHIFT, Schedule(), True),
        (Schedule(), SHIFT, False),
        (SHIFT._replace(zone=""), SHIFT, False),
        (Schedule(read_windows([("*", "08:00", "17:00")]), "Europe/Berlin"), SHIFT, False),
        # What an administrator has set holds for the next certificate, whatever is asked for.
        (Schedule(), SHIFT._replace(by="admin"), True),
    ],
)
def test_an_approval_of_some_hours_is_inherited_with_these_hours_only(asked, had, inherited):
    old = std_record(schedule=had.to_text(), state=CertState.EXPIRED)
    assert approved_before(std(not_after=at(30 * DAY), schedule=asked), [old]) is inherited


# -- what nobody knows to be delivered ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "state", "gives_way"),
    [
        (std(skid="bb", proved=False, approval_needed=False), VALID, False),
        (std(skid="bb", proved=True, approval_needed=False), VALID, False),
        (std(skid="bb", proved=False, inherit_unproven=True), VALID, False),
        (std(skid="bb", proved=False, approval_needed=False), DUE, False),
        (std(skid="aa", proved=False, approval_needed=False), VALID, False),
        (std(skid="aa", proved=False, inherit_unproven=True), VALID, False),
        (std(skid="aa", proved=True), VALID, True),
        (std(skid="bb", proved=False, peer_serial=7), VALID, True),
        (std(skid="bb", proved=False), CertState.PENDING_APPROVAL, False),
        (std(skid="aa", proved=False), CertState.PENDING_APPROVAL, False),
        (std(skid="aa", proved=True), CertState.PENDING_APPROVAL, True),
    ],
)
def test_a_stranger_does_not_end_a_certificate_whose_delivery_is_in_doubt(asked, state, gives_way):
    old = std_record(delivered=IN_DOUBT, state=state)
    granted = not asked.approval_needed or asked.inherit_unproven
    assert bool(may_supersede(asked, old, state, granted=granted, proven=False)) is gives_way


def test_who_proves_the_name_gets_it_back_after_a_crash():
    old = std_record(delivered=IN_DOUBT)
    assert may_supersede(std(skid="bb"), old, VALID, granted=True, proven=True)


# -- who asks again because the answer was lost ----------------------------------------------------------


def unanswered(**changes):
    """A certificate of node a, recorded twenty seconds ago, of which nobody knows whether its holder has it."""
    return std_record(**{"delivered": 0, "node": "a", "state_date": T - 20, **changes})


def deliveries(*alive, answering=()):
    made = Deliveries()
    made.answering.update(answering)
    made.is_alive = alive.__contains__
    return made


@pytest.mark.parametrize(
    ("asked", "old", "found", "answer"),
    [
        (std(), unanswered(), deliveries(), LOST),
        (std(), unanswered(state_date=T), deliveries(), LOST),
        (std(), unanswered(), deliveries("a"), LOST),
        (std(), unanswered(delivered=IN_DOUBT), deliveries("a"), LOST),
        (std(), unanswered(delivered=IN_DOUBT, node="b"), deliveries(answering=[7]), LOST),
        (request(proved=True), record(delivered=0, node="a"), deliveries(), LOST),
        (std(), unanswered(delivered=1), deliveries(), ""),
        (std(), unanswered(node="b"), deliveries(), ""),
        (std(proved=False), unanswered(), deliveries(), ""),
        (std(skid="bb"), unanswered(), deliveries(), ""),
        (std(usage="server"), unanswered(), deliveries(), ""),
        (request(proved=True), unanswered(), deliveries(), ""),
        (request(proved=True, identity="https://idp.example|other"), record(delivered=0, node="a"), deliveries(), ""),
        (std(peer_serial=7), unanswered(), deliveries(), ""),
    ],
    ids=[
        "its node is dead", "its node died at once", "its node lives and has had time", "in doubt", "in doubt at this node",
        "with a token", "it was delivered", "this node has answered it", "no proof", "another key", "another usage",
        "another authenticator", "another identity", "the connection shows it",
    ],
)  # fmt: skip
def test_a_certificate_whose_answer_was_lost_gives_way_to_the_holder_of_its_key(asked, old, found, answer):
    assert answer_lost(asked, old, at=T, node="b", deliveries=found) == answer


@pytest.mark.parametrize(
    ("old", "found", "wait"),
    [
        (unanswered(node="b"), deliveries(answering=[7]), "the same request is being answered; retry in 1 s"),
        (
            unanswered(state_date=T),
            deliveries("a"),
            "another node is answering the same request; retry in 2 s",
        ),
    ],
    ids=["this node", "another node"],
)
def test_who_asks_while_the_answer_is_on_its_way_is_told_when_to_ask_again(old, found, wait):
    with pytest.raises(RequestRefused, match=wait):
        answer_lost(std(), old, at=T, node="b", deliveries=found)

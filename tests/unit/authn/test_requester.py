"""What a requester accepts as its certificate, when it asks for the next one, and where its settings come from."""

import io
import json
import os
from datetime import UTC, datetime, timedelta

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.authn.ccr import CertReply
from appliance.authn.due import renewal_time
from appliance.authn.jwt.requester import check_token, jwt_request, read_token, token_source
from appliance.authn.requester import Requester, Trusting, check_issued
from appliance.authn.sending import cms_only
from appliance.authn.settings import resolve_requester
from appliance.authn.std.requester import as_before, std_request, std_subject
from appliance.authn.trust import (
    KnownAnchors,
    Offer,
    Trust,
    decide,
    fingerprint,
    load_anchor_file,
    parse_fingerprint,
    read_offer,
)
from appliance.certs.keychain import Keychain, dump_keychain, dump_trust_anchors
from appliance.certs.profiles import build_ca, generate_key, subject_name
from appliance.certs.signer import KeySigner
from appliance.certs.status import CertState
from appliance.certs.x509 import subject_text
from appliance.cms.wire_types import root_value
from appliance.errors import CertificateError, ConfigurationError, KeychainError, SecurityError
from tests.helpers.pki import DAY, NOW, Authority, site

S = site()


def pem(*certificates) -> str:
    return b"".join(c.public_bytes(Encoding.PEM) for c in certificates).decode()


def reply(keychain, *chain, serial=0, cert=None) -> CertReply:
    text = cert if cert is not None else pem(keychain.certificate, *(chain or keychain.chain))
    return CertReply(CertState.VALID, "", serial, text, "")


def judged(keychain, *, usage="client", subject=None, now=NOW, key=None, anchors=None, answer=None):
    return check_issued(
        answer or reply(keychain),
        key=key or keychain.key,
        anchors=anchors or (S.ca.certificate,),
        usage=usage,
        subject=subject,
        now=now,
    )


# ---------------------------------------------------------------------- answers


def test_the_certificate_that_was_asked_for_becomes_a_keychain():
    made = judged(S.client, subject=subject_name("client", organization="localhost"))
    assert made == S.client


def test_a_chain_through_an_intermediate_is_accepted_and_kept():
    below = S.ca.intermediate()
    keychain = below.keychain("deep")
    assert judged(keychain).chain == (below.certificate, S.ca.certificate)


def test_a_start_that_is_a_little_ahead_is_a_difference_of_clocks():
    keychain = S.ca.keychain("soon", not_before=NOW + timedelta(minutes=5))
    assert judged(keychain).serial == keychain.serial


WRONG = {
    "another-key": lambda: judged(S.client, key=generate_key("ec-p256")),
    "another-authority": lambda: judged(S.other_ca.keychain("client")),
    "look-alike-authority": lambda: judged(Authority().keychain("client")),
    "no-chain": lambda: judged(S.client, answer=reply(S.client, cert=pem(S.client.certificate))),
    "narrower-usage": lambda: judged(S.client, usage="ioc"),
    "wider-usage": lambda: judged(S.ioc, usage="client"),
    "other-usage": lambda: judged(S.server, usage="client"),
    "service-usage": lambda: judged(S.ca.keychain("pvacms", "cms"), usage="ioc"),
    "other-name": lambda: judged(S.client, subject=subject_name("admin", organization="localhost")),
    "other-organization": lambda: judged(S.client, subject=subject_name("client", organization="other")),
    "serial": lambda: judged(S.client, answer=reply(S.client, serial=5)),
    "expired": lambda: judged(S.ca.expired()),
    "far-future": lambda: judged(S.ca.keychain("later", not_before=NOW + 3 * DAY, not_after=NOW + 9 * DAY)),
    "rubbish": lambda: judged(S.client, answer=reply(S.client, cert="rubbish")),
    "empty": lambda: judged(S.client, answer=reply(S.client, cert="")),
    "too-many": lambda: judged(S.client, answer=reply(S.client, cert=pem(*[S.ca.certificate] * 17))),
    "authority-itself": lambda: judged(
        S.client, key=S.ca.key, answer=reply(S.client, cert=pem(S.ca.certificate))
    ),
    "lone-surrogate": lambda: judged(S.client, answer=reply(S.client, cert="\ud800")),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_answer_with_one_thing_wrong_is_refused_and_nothing_is_written(case):
    with pytest.raises(SecurityError, match="nothing was written"):
        WRONG[case]()


def test_only_the_services_own_certificate_may_hear_a_token():
    own = S.ca.keychain("PVACMS", "cms")
    cms_only(None, (own.certificate.public_bytes(Encoding.DER),))
    for other in (S.server, S.ioc, S.client):
        with pytest.raises(CertificateError, match="not the certificate service's own"):
            cms_only(None, (other.certificate.public_bytes(Encoding.DER),))
    for chain in ((), (b"x",)):
        with pytest.raises(CertificateError, match="cannot be read"):
            cms_only(None, chain)


def test_renewal_is_at_two_thirds_of_the_lifetime_or_of_the_time_until_renew_by():
    plain = S.ca.keychain(not_before=NOW, not_after=NOW + 30 * DAY).certificate
    assert renewal_time(plain) == NOW + 20 * DAY
    early = S.ca.keychain(not_before=NOW, not_after=NOW + 30 * DAY, renew_by=NOW + 15 * DAY).certificate
    assert renewal_time(early) == NOW + 10 * DAY


def with_an_ended_anchor() -> Keychain:
    own = S.ca.keychain(not_before=NOW - DAY, not_after=NOW + 3 * DAY)
    key = generate_key("ec-p256")
    dates = {"not_before": NOW - 9 * DAY, "not_after": NOW - DAY}
    ended = build_ca(KeySigner(key), subject=subject_name("Old Root"), serial=3, **dates)
    return own._replace(anchors=(*own.anchors, ended))


def test_renewal_is_reckoned_from_the_life_that_was_left_at_issue():
    """A token's nbf may be 0, and the certificate is valid from then on."""
    old = S.ca.keychain(not_before=NOW - 9999 * DAY, not_after=NOW + 30 * DAY).certificate
    assert renewal_time(old, NOW) == NOW + 20 * DAY
    assert renewal_time(old) < NOW
    for senseless in (NOW - 10_000 * DAY, NOW + 31 * DAY):
        assert renewal_time(old, senseless) == renewal_time(old)
    due = S.ca.keychain(
        not_before=NOW - 9999 * DAY, not_after=NOW + 30 * DAY, renew_by=NOW + 15 * DAY
    ).certificate
    assert renewal_time(due, NOW) == NOW + 10 * DAY


@pytest.mark.parametrize(
    ("keychain", "usage", "due"),
    [
        (S.ca.keychain(not_before=NOW - DAY, not_after=NOW + 3 * DAY), "client", False),
        (S.ca.keychain(not_before=NOW - 3 * DAY, not_after=NOW + DAY), "client", True),
        (S.ca.expired(), "client", True),
        (S.client, "ioc", True),
        (S.ca.trust_only(), "client", True),
        (with_an_ended_anchor(), "client", False),
        (None, "client", True),
    ],
    ids=["young", "old", "expired", "wrong-usage", "anchor-only", "ended-anchor-beside", "none"],
)
def test_what_is_due(tmp_path, keychain, usage, due):
    path = tmp_path / "k.p12"
    if keychain is not None:
        path.touch(mode=0o600)
        data = dump_trust_anchors(keychain.anchors) if keychain.is_trust_only else dump_keychain(keychain)
        path.write_bytes(data)
    settings = resolve_requester(usage, {"keychain": str(path)}, {"XDG_CONFIG_HOME": str(tmp_path)})
    asking = Requester(settings, Trusting(), say=lambda _: None, timeout_s=1, now=lambda: NOW)
    assert asking.renewal_due(asking.look())[0] is due


def writer(path, said=None):
    settings = resolve_requester("client", {"keychain": str(path)}, {"XDG_CONFIG_HOME": str(path.parent)})
    return Requester(settings, Trusting(), say=(said if said is not None else []).append, timeout_s=1)


def test_a_keychain_that_is_renewed_stays_its_owners(tmp_path):
    owner = 65534 if os.geteuid() == 0 else os.geteuid()
    path = tmp_path / "k.p12"
    path.touch(mode=0o640)
    path.chmod(0o640)
    os.chown(path, owner, -1)
    asking = writer(path)
    asking._check_destination()
    asking._write(b"new")
    found = path.stat()
    assert (path.read_bytes(), found.st_uid, found.st_mode & 0o777) == (b"new", owner, 0o640)


def test_a_link_of_another_user_gives_nothing_away(tmp_path):
    """Root renews; the user whose directory it is has put a link there to what root alone may write."""
    owner = 65534 if os.geteuid() == 0 else os.geteuid()
    (tmp_path / "home").mkdir()
    precious = tmp_path / "precious"
    precious.touch(mode=0o600)
    before = precious.stat()
    path = tmp_path / "home/k.p12"
    path.symlink_to(precious)
    os.chown(path, owner, -1, follow_symlinks=False)
    os.chown(tmp_path / "home", owner, -1)
    asking = writer(path)
    if os.geteuid() == 0:
        for step in (asking._check_destination, lambda: asking._write(b"newer")):
            with pytest.raises(ConfigurationError, match="not in a directory of that user"):
                step()
        assert (precious.stat().st_uid, precious.read_bytes()) == (before.st_uid, b"")
    real = tmp_path / "home/real.p12"
    real.touch(mode=0o600)
    os.chown(real, owner, -1)
    path.unlink()
    path.symlink_to(real)
    os.chown(path, owner, -1, follow_symlinks=False)
    asking._write(b"newest")
    assert (real.read_bytes(), real.stat().st_uid, path.is_symlink()) == (b"newest", owner, True)


# ---------------------------------------------------------------------- trust


def offer(authority=S.ca, crossed=()) -> Offer:
    return Offer(authority.certificate, (authority.certificate,), authority.issuer_id, tuple(crossed))


def decided(tmp_path, authority=S.ca, crossed=(), **more):
    said = []
    known = KnownAnchors(f"{tmp_path}/{{}}".format, "CERT", "")
    more.setdefault("first_use", True)
    return decide(offer(authority, crossed), known=known, now=NOW, say=said.append, **more), said


def test_what_is_given_counts_before_what_is_known_and_that_before_first_use(tmp_path):
    theirs = (S.other_ca.certificate,)
    KnownAnchors(f"{tmp_path}/{{}}".format, "CERT", "").keep(S.other_ca.certificate)
    ours = (S.ca.certificate,)
    assert decided(tmp_path, given=ours, keychain=theirs)[0].why == "file"
    assert decided(tmp_path, keychain=ours)[0].why == "keychain"
    with pytest.raises(SecurityError, match="has changed"):
        decided(tmp_path)
    with pytest.raises(SecurityError, match="has changed"):
        decided(tmp_path, given=theirs)
    with pytest.raises(SecurityError, match="has changed"):
        decided(tmp_path, keychain=theirs)
    found, said = decided(tmp_path, wanted=fingerprint(S.ca.certificate), keychain=theirs)
    assert (found.why, found.anchors, said) == ("fingerprint", ours, [])
    assert decided(tmp_path)[0].why == "kept"


OLD = Authority("Site Root", begun=3000 * DAY)
NEW = Authority("Site Root")
CROSSED = (OLD.crossed(NEW), NEW.crossed(OLD))
BUNDLE = (*CROSSED, OLD.certificate)
"""What a service shows beside the new root, until the old one has ended."""


@pytest.mark.parametrize("source", ["given", "keychain", "kept"])
def test_a_new_root_that_a_known_one_has_signed_takes_its_place(tmp_path, source):
    known = {source: (OLD.certificate,)}
    if known.pop("kept", None):
        KnownAnchors(f"{tmp_path}/{{}}".format, "CERT", "").keep(OLD.certificate)
    found, said = decided(tmp_path, NEW, BUNDLE, first_use=False, **known)
    assert (found.why, found.anchor, found.anchors) == ("rollover", NEW.certificate, (NEW.certificate,))
    assert found.crossed == CROSSED, "the new root vouches for the old one, until that certificate ends"
    assert fingerprint(NEW.certificate) in said[-1]
    if source == "kept":
        assert decided(tmp_path, NEW, BUNDLE)[0].why == "kept"
    for crossed in ((), CROSSED[1:], [S.other_ca.crossed(NEW), CROSSED[1]]):
        other = tmp_path / "other"
        if source == "kept":
            KnownAnchors(f"{other}/{{}}".format, "CERT", "").keep(OLD.certificate)
        with pytest.raises(SecurityError, match=r"has changed.*nothing was sent to it"):
            decided(other, NEW, crossed, **known)


def test_what_was_trusted_beside_the_old_root_stays(tmp_path):
    both = (S.ca.certificate, OLD.certificate)
    found, _ = decided(tmp_path, NEW, BUNDLE, keychain=both)
    assert found.anchors == (NEW.certificate, S.ca.certificate)
    found, _ = decided(tmp_path, NEW, CROSSED[:1], keychain=both)
    assert found.anchors == (NEW.certificate, *both), (
        "without its cross-certificate nothing would verify old certificates"
    )
    assert found.crossed == CROSSED[:1]


@pytest.mark.parametrize("source", ["given", "keychain"])
def test_an_old_root_that_is_trusted_beside_the_new_one_ends_too(tmp_path, source):
    """A file may have both, as pvacms --print-bundle writes it."""
    both = {source: (NEW.certificate, OLD.certificate, S.ca.certificate)}
    found, _ = decided(tmp_path, NEW, BUNDLE, **both)
    assert (found.anchors, found.crossed) == ((NEW.certificate, S.ca.certificate), CROSSED)
    for crossed in ((), CROSSED[:1]):
        found, _ = decided(tmp_path, NEW, crossed, **both)
        assert found.anchors == both[source], "nothing else would verify old certificates"
    found, _ = decided(tmp_path, OLD, CROSSED, **both)
    assert found.anchors == both[source], "an answer with the old root takes the new one from nobody"


def test_a_fingerprint_introduces_nobody_and_first_use_is_none_where_a_root_is_known(tmp_path):
    with pytest.raises(SecurityError, match="not the one that was asked for"):
        decided(tmp_path, NEW, BUNDLE, wanted=fingerprint(OLD.certificate), keychain=(OLD.certificate,))
    with pytest.raises(SecurityError, match="has changed"):
        decided(tmp_path, NEW, [S.other_ca.crossed(NEW)], keychain=(OLD.certificate,), first_use=True)
    found, _ = decided(tmp_path, NEW, BUNDLE)
    assert (found.why, found.anchors, found.crossed) == ("first use", (NEW.certificate,), CROSSED)


@pytest.mark.parametrize("source", ["given", "keychain", "kept", "first use", "both"])
def test_an_old_root_that_has_ended_is_trusted_in_no_way(tmp_path, source):
    """The service keeps the cross-certificates, for who comes late, and does not show the old root any more."""
    known = {source: (OLD.certificate,)} if source in ("given", "keychain") else {}
    if source == "both":
        known = {"keychain": (NEW.certificate, OLD.certificate)}
    if source == "kept":
        KnownAnchors(f"{tmp_path}/{{}}".format, "CERT", "").keep(OLD.certificate)
    found, _ = decided(tmp_path, NEW, CROSSED, **known)
    assert (found.anchor, found.anchors, found.crossed) == (NEW.certificate, (NEW.certificate,), ())
    newest = Authority("Site Root", begun=DAY)
    more = (*CROSSED, NEW.crossed(newest), newest.crossed(NEW), NEW.certificate)
    found, _ = decided(tmp_path / "newest", newest, more, keychain=(NEW.certificate,))
    assert found.crossed == more[2:4], "the one before the last goes, and the last one stays"


def test_nobody_is_led_back_to_the_old_root_or_over_two_roots(tmp_path):
    with pytest.raises(SecurityError, match=r"has signed the new one, but its root is not later"):
        decided(tmp_path, OLD, CROSSED, keychain=(NEW.certificate,))
    newest = Authority("Site Root", begun=DAY)
    both = (*CROSSED, NEW.crossed(newest), newest.crossed(NEW))
    with pytest.raises(SecurityError, match="has changed"):
        decided(tmp_path, newest, both, keychain=(OLD.certificate,))
    assert decided(tmp_path, newest, both, keychain=(NEW.certificate,))[0].why == "rollover"


def test_the_key_of_an_issuing_authority_makes_no_root(tmp_path):
    """Its certificate has the name and the key of whatever root its holder makes of it, and the trusted root has signed it."""
    issuing = OLD.intermediate("Site Issuing CA")
    signed = issuing.certificate
    issuing.certificate = build_ca(
        issuing.signer, subject=signed.subject, not_before=NOW - DAY, not_after=NOW + 9999 * DAY, serial=1, path_length=0
    )  # fmt: skip
    with pytest.raises(SecurityError, match=r"has signed the new one, but .*not that of a root"):
        decided(tmp_path, issuing, (signed, issuing.crossed(OLD)), keychain=(OLD.certificate,))


def test_a_limit_of_the_old_root_is_told_with_the_refusal(tmp_path):
    limited = OLD.crossed(NEW, path_length=0)
    with pytest.raises(
        SecurityError, match=r"Site Root.* has signed the new one, but .* limits the authorities below"
    ):
        decided(tmp_path, NEW, (limited, CROSSED[1]), keychain=(OLD.certificate,))


def test_the_bundle_of_an_offer_counts_only_as_far_as_it_can_be_read():
    value = root_value("0123abcd", NEW.certificate, (), (NEW.certificate, *CROSSED))
    assert read_offer(value, now=NOW).crossed == (NEW.certificate, *CROSSED)
    value["bundle"] = "-----BEGIN CERTIFICATE-----\nrubbish\n-----END CERTIFICATE-----\n"
    assert read_offer(value, now=NOW).crossed == ()
    assert read_offer(root_value("0123abcd", NEW.certificate, ()), now=NOW).crossed == ()


def test_another_prefix_and_another_issuer_have_anchors_of_their_own(tmp_path):
    names = {
        KnownAnchors("d/{}".format, p, i).path for p in ("CERT", "X:Y", "../x") for i in ("", "0123abcd")
    }
    assert names == {
        "d/trust-anchor.pem", "d/trust-anchor-0123abcd.pem", "d/trust-anchor-X_Y.pem", "d/trust-anchor-X_Y-0123abcd.pem",
        "d/trust-anchor-___x.pem", "d/trust-anchor-___x-0123abcd.pem",
    }  # fmt: skip


def test_an_anchor_that_cannot_be_kept_does_not_stop_the_request(tmp_path):
    (tmp_path / "file").write_text("")
    known = KnownAnchors(f"{tmp_path}/file/below/{{}}".format, "CERT", "")
    said = []
    # lexists() of a path below a file says no: as if nothing were kept.
    assert decide(offer(), known=known, first_use=True, now=NOW, say=said.append).why == "first use"
    assert "could not be kept" in said[-1]


@pytest.mark.parametrize(
    "text", ["", "sha256:", "sha1:" + "0" * 40, "0" * 63, "g" * 64, "sha256:" + "0" * 65, "\n" * 64]
)
def test_what_is_no_fingerprint(text):
    with pytest.raises(ConfigurationError, match="is not a fingerprint"):
        parse_fingerprint(text)


def test_an_offer_must_hold_a_current_self_signed_authority():
    good = read_offer(root_value("0123abcd", S.ca.certificate, ()), now=NOW)
    assert (good.anchor, good.issuer) == (S.ca.certificate, "0123abcd")
    below = S.ca.intermediate()
    through = read_offer(root_value("", below.certificate, (S.ca.certificate,)), now=NOW)
    assert (through.anchor, through.issuer) == (S.ca.certificate, below.issuer_id)
    for value in (
        root_value("x", S.client.certificate, ()),
        root_value("x", below.certificate, ()),
    ):
        with pytest.raises(SecurityError, match="not a self-signed certificate"):
            read_offer(value, now=NOW)
    with pytest.raises(SecurityError, match="clock"):
        read_offer(root_value("x", S.ca.certificate, ()), now=NOW + 36500 * DAY)


def test_an_authority_whose_certificates_would_not_be_accepted_is_asked_for_none():
    below = S.ca.intermediate("Ended")
    offer = root_value("", below.certificate, (S.ca.certificate,))
    assert read_offer(offer, now=NOW).anchor == S.ca.certificate
    with pytest.raises(SecurityError, match=r"signs with CN=Ended.*nothing was requested"):
        read_offer(offer, now=NOW + 3001 * DAY)


async def test_a_keychain_that_could_not_be_read_again_is_known_before_anything_is_requested(tmp_path):
    settings = std_settings(tmp_path, S.ca.expired(), name="client")
    key = generate_key("ec-p256")
    dates = {"not_before": NOW - DAY, "not_after": NOW + DAY}
    many = [
        build_ca(KeySigner(key), subject=subject_name(f"Root {n}"), serial=n + 9, **dates) for n in range(65)
    ]
    asking = Requester(settings, Trusting(), say=lambda _: None, timeout_s=1)

    async def trust(_):
        return Trust((S.ca.certificate, *many), S.ca.certificate, "0123abcd", "file")

    async def never(*_, **__):
        raise AssertionError

    asking.establish, asking._send = trust, never
    with pytest.raises(KeychainError, match=r"more than 64 certificates.*nothing was requested"):
        await asking.request(std_request(settings, now=NOW), subject=None, force=True)


def test_anchor_files_of_both_forms_and_none_of_others(tmp_path):
    path = tmp_path / "anchor"
    path.write_bytes(
        b"# text\n"
        + S.client.certificate.public_bytes(Encoding.PEM)
        + S.ca.certificate.public_bytes(Encoding.PEM)
    )
    assert load_anchor_file(str(path)) == (S.ca.certificate,)
    path.write_bytes(dump_trust_anchors([S.ca.certificate]))
    assert load_anchor_file(str(path)) == (S.ca.certificate,)
    path.write_bytes(S.client.certificate.public_bytes(Encoding.PEM))
    with pytest.raises(KeychainError, match="no self-signed"):
        load_anchor_file(str(path))
    for content in (b"-----BEGIN rubbish", b"", b"x" * (1 << 19)):
        path.write_bytes(content)
        with pytest.raises((KeychainError, ConfigurationError)):
            load_anchor_file(str(path))
    for bad in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ConfigurationError):
            load_anchor_file(str(bad))


# ---------------------------------------------------------------------- settings


def resolved(usage="client", arguments=None, **environ):
    return resolve_requester(
        usage, arguments or {}, {"XDG_CONFIG_HOME": "/c", "XDG_DATA_HOME": "/d", **environ}
    )


@pytest.mark.parametrize("what", ["NAME", "ORGANIZATION", "ORGANIZATIONAL_UNIT", "COUNTRY"])
def test_servers_look_at_their_own_variable_first_and_clients_at_theirs_only(what):
    field = what.lower()
    one, two = ("CH", "DE") if what == "COUNTRY" else ("one", "two")
    both = {f"EPICS_PVA_AUTH_{what}": one, f"EPICS_PVAS_AUTH_{what}": two}
    assert getattr(resolved("client", **both), field) == one
    assert getattr(resolved("server", **both), field) == two
    assert getattr(resolved("ioc", **both), field) == two
    assert getattr(resolved("server", **{f"EPICS_PVA_AUTH_{what}": one}), field) == one
    assert getattr(resolved("client", **{f"EPICS_PVAS_AUTH_{what}": two}), field) not in (one, two)
    assert getattr(resolved("server", {field: "FR"}, **both), field) == "FR"


def test_keychains_by_usage_and_never_a_keychain_for_the_search():
    assert resolved().keychain == "/c/pva/1.5/client.p12"
    assert resolved("server").keychain == resolved("ioc").keychain == "/c/pva/1.5/server.p12"
    variables = {"EPICS_PVA_TLS_KEYCHAIN": "/a.p12", "EPICS_PVAS_TLS_KEYCHAIN": "/b.p12"}
    assert resolved(**variables).keychain == "/a.p12"
    assert resolved("server", **variables).keychain == "/b.p12"
    assert resolved("server", EPICS_PVA_TLS_KEYCHAIN="/a.p12").keychain == "/a.p12"
    assert resolved(EPICS_PVA_TLS_KEYCHAIN="").keychain == "/c/pva/1.5/client.p12"
    assert resolved(**variables).client.tls_keychain == ""


def test_the_rest_of_the_variables():
    found = resolved(
        EPICS_PVA_AUTH_CERT_VALIDITY_MINS="1d",
        EPICS_PVA_AUTH_ISSUER="ABCD0123",
        EPICS_PVA_AUTH_NO_STATUS="YES",
    )
    assert (str(found.validity), found.issuer, found.no_status) == ("1d", "abcd0123", True)
    assert found.pv("CREATE") == "CERT:CREATE:abcd0123"
    assert resolved("client", {"cert_pv_prefix": "SITE"}).pv("CREATE") == "SITE:CREATE"
    assert resolved(LANG="de_CH.UTF-8").country == "CH"
    assert resolved(LANG="C.UTF-8").country == "US"


@pytest.mark.parametrize(
    ("usage", "arguments"),
    [
        ("admin", {}),
        ("client", {"issuer": "xyz"}),
        ("client", {"validity": "1.5h"}),
        ("client", {"cert_pv_prefix": "a b"}),
    ],
)
def test_bad_settings_are_refused(usage, arguments):
    with pytest.raises(ConfigurationError):
        resolved(usage, arguments)


def test_a_standard_request_begins_now_and_may_leave_the_end_to_the_service():
    """SPVA 9.1. PVACMS of PVXS 1.3.1 refuses a begin of 0: "Not before time is before issuer's not before time"."""
    now = datetime(2026, 1, 31, tzinfo=UTC)
    settings = resolved("ioc", {"name": "n", "organization": "o", "validity": "1M", "country": "ch"})
    request = std_request(settings, now=now)("PEM")
    assert datetime.fromtimestamp(request.not_before, UTC) == now
    assert datetime.fromtimestamp(request.not_after, UTC) == datetime(2026, 2, 28, tzinfo=UTC)
    assert std_request(resolved(), now=now)("PEM").not_after == 0
    assert std_subject(settings) == subject_name("n", country="CH", organization="o")
    with pytest.raises(CertificateError):
        std_subject(settings._replace(name="x" * 65))
    for part in ("name", "organization", "organizational_unit"):
        # 33 characters, which is fewer than 64.
        with pytest.raises(CertificateError, match="66 octets in UTF-8; at most 64 are allowed"):
            std_subject(settings._replace(**{part: "\u00e9" * 33}))


# ---------------------------------------------------------------------- tokens


def token_file(tmp_path, claims, mode=0o600):
    path = tmp_path / "token"
    path.touch(mode=0o600)
    path.write_text(jwt.encode(claims, "0" * 32, "HS256") + "\n")
    path.chmod(mode)
    return str(path)


def test_a_token_file_that_others_may_read_is_used_with_a_warning(tmp_path):
    said = []
    assert read_token(token_file(tmp_path, {"sub": "a"}, 0o644), said.append).claims == {"sub": "a"}
    assert "chmod 600" in said[0]


def test_a_token_shows_in_no_repr_and_in_no_exception(tmp_path):
    path = token_file(tmp_path, {"sub": "a", "exp": 5})
    token = read_token(path, print)
    request = jwt_request(resolved(), token)("PEM")
    with pytest.raises(SecurityError) as caught:
        check_token(token, now=NOW)
    for shown in (repr(token), repr(request), str(caught.value), repr(caught.value)):
        assert token.text not in shown
        assert token.text.split(".")[2] not in shown
    assert request.verifier == {"token": token.text}


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        (
            {"sub": "a", "exp": 1_700_000_000},
            "token expired at Tue Nov 14 22:13:20 2023 UTC; fetch a new one",
        ),
        ({"sub": "a", "nbf": 4_000_000_000}, "check this host's clock"),
        ({"exp": 4_000_000_000}, "no subject"),
        ({"sub": 5}, "no subject"),
        ({"sub": "a", "exp": -(10**30)}, "token expired at"),
    ],
)
def test_a_token_that_would_be_refused_for_certain_is_refused_here(tmp_path, claims, why):
    import base64

    head = base64.urlsafe_b64encode(b'{"alg":"HS256"}').rstrip(b"=")
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=")
    path = tmp_path / "token"
    path.touch(mode=0o600)
    path.write_bytes(head + b"." + body + b".c2ln")
    with pytest.raises(SecurityError, match=why):
        check_token(read_token(str(path), print), now=NOW)


def test_odd_claims_are_left_to_the_service(tmp_path):
    for claims in ({"sub": "a", "exp": 10**30}, {"sub": "a"}):
        check_token(read_token(token_file(tmp_path, claims), print), now=NOW)


def test_a_terminal_is_no_place_for_a_token(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("sys.stdin", Terminal("x"))
    with pytest.raises(ConfigurationError, match="terminal"):
        read_token("-", print)


def test_where_a_token_comes_from():
    assert token_source("f", {"EPICS_AUTH_JWT_FILE": "g"}) == "f"
    assert token_source(None, {"EPICS_AUTH_JWT_FILE": "g"}) == "g"
    assert token_source("~/t", {}).startswith("/")
    with pytest.raises(ConfigurationError, match="no token was given"):
        token_source(None, {})


# ---------------------------------------------------------------------- whose keychain it is


def std_settings(tmp_path, keychain=None, **arguments):
    path = tmp_path / "k.p12"
    if keychain is not None:
        path.touch(mode=0o600)
        path.write_bytes(dump_keychain(keychain))
    environ = {"XDG_CONFIG_HOME": str(tmp_path)}
    return resolve_requester("client", {"keychain": str(path), **arguments}, environ)


def test_a_request_without_a_name_keeps_that_of_the_keychain_that_is_there(tmp_path):
    """What appliance doctor proposes for a certificate that has ended is authnstd without more."""
    settings = std_settings(tmp_path, S.ca.expired("operator"))
    asking = Requester(settings, Trusting(), say=lambda _: None, timeout_s=1)
    there = asking.certificate_there()
    assert std_subject(as_before(settings, there)) == there.subject != std_subject(settings)
    assert as_before(settings, None) == settings


def test_a_part_that_is_named_counts_before_that_of_the_keychain(tmp_path):
    settings = std_settings(tmp_path, S.ca.expired("operator"), name="operator", organization="lab")
    asking = Requester(settings, Trusting(), say=lambda _: None, timeout_s=1)
    kept = as_before(settings, asking.certificate_there())
    assert kept == settings
    assert (kept.name, kept.organization) == ("operator", "lab")


@pytest.mark.parametrize("named", [{"name": "visitor"}, {"organization": "lab"}, {"country": "FR"}])
async def test_the_refusal_names_the_subject_that_force_gets(tmp_path, named):
    settings = std_settings(tmp_path, S.ca.expired("operator"), **named)
    forced = std_subject(settings)
    asking = Requester(settings, Trusting(), say=lambda _: None, timeout_s=1)
    kept = as_before(settings, asking.certificate_there())
    with pytest.raises(KeychainError) as refused:
        await asking.request(std_request(kept, now=asking.now()), subject=std_subject(kept))
    assert f"and {subject_text(forced)} is asked for" in str(refused.value)


async def test_another_subject_in_a_keychain_that_is_there_needs_force(tmp_path):
    settings = std_settings(tmp_path, S.ca.expired("operator"), name="alice")
    asking = Requester(settings, Trusting(), say=lambda _: None, timeout_s=1)
    settings = as_before(settings, asking.certificate_there())
    assert settings.name == "alice"
    before = (tmp_path / "k.p12").read_bytes()

    def never(_):
        raise AssertionError

    for if_due in (True, False):
        with pytest.raises(KeychainError, match=r"keychain of CN=operator.*CN=alice.*--force"):
            await asking.request(never, subject=std_subject(settings), if_due=if_due)
    assert (tmp_path / "k.p12").read_bytes() == before


def test_what_a_token_stands_for_does_not_replace_somebody_elses_keychain(tmp_path):
    settings = std_settings(tmp_path, S.ca.keychain("operator"))
    asking = Requester(settings, Trusting(), say=lambda _: None, timeout_s=1)
    existing = asking.look()
    asking._check_token_identity(existing, S.ca.keychain("operator"), "x:1")
    with pytest.raises(KeychainError, match=r"keychain of CN=operator.*x:1.*CN=bob.*--force"):
        asking._check_token_identity(existing, S.ca.keychain("bob"), "x:1")


@pytest.mark.parametrize("knows_zones", [True, False])
def test_hours_of_a_zone_are_not_taken_for_utc_in_silence(tmp_path, knows_zones):
    """The C++ service of 2026 passes the zone over and answers with the hours that it was asked for."""
    settings = std_settings(tmp_path, S.ca.expired(), schedule=["1,08:00,17:00"], time_zone="Europe/Berlin")
    assert settings.time_zone == "Europe/Berlin"
    said = []
    asking = Requester(settings, Trusting(), say=said.append, timeout_s=1)
    zone = "Europe/Berlin" if knows_zones else ""
    reply = CertReply(
        CertState.VALID, "", 7, "PEM", "", schedule=settings.schedule, time_zone=zone, knows_zones=knows_zones
    )
    asking._tell_if_other_schedule(reply)
    assert [("takes the hours for UTC" in text) for text in said] == ([] if knows_zones else [True])

"""An authority's key in a token (SoftHSM 2): found, used, lost and found again, and its PIN."""

import threading
import time

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, padding

from appliance.certs.profiles import generate_key
from appliance.cms import pkcs11
from appliance.cms.pkcs11 import TokenSigner
from appliance.config.pkcs11_uri import parse_pkcs11_uri
from appliance.config.secret import Secret
from appliance.errors import SigningError
from tests.helpers.softhsm import MODULE, PIN, WRONG, SoftToken, token_here

KEY = generate_key("ec-p256")


@pytest.fixture
def token(tmp_path, monkeypatch):
    return token_here(tmp_path, monkeypatch)


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """A token that is gone is looked for again soon."""
    monkeypatch.setattr(pkcs11, "_AGAIN_S", 0.02)
    monkeypatch.setattr(pkcs11, "_AGAIN_MAX_S", 0.1)


@pytest.fixture
def opened():
    made = []

    def make(uri, pin=PIN, **more):
        signer = TokenSigner(parse_pkcs11_uri(uri), Secret(pin), **more)
        made.append(signer)
        return signer

    yield make
    for signer in made:
        signer.close()


def why(opened, *arguments, **more):
    with pytest.raises(SigningError) as caught:
        opened(*arguments, **more)
    assert PIN not in str(caught.value)
    assert WRONG not in str(caught.value)
    return str(caught.value)


def until_it_works(signer):
    end = time.monotonic() + 60
    while signer.trouble:
        assert time.monotonic() < end, signer.trouble
        threading.Event().wait(0.01)


@pytest.mark.parametrize("algorithm", ["ec-p256", "ec-p384", "rsa-2048", "ed25519"])
def test_keys_of_every_kind_sign(token, opened, algorithm):
    key = generate_key(algorithm)
    token.store(key)
    signer = opened(token.uri)
    assert signer.public_key() == key.public_key()
    assert not signer.is_quick
    made, public = signer.sign(b"body"), key.public_key()
    match signer.algorithm:
        case "ecdsa-sha256":
            public.verify(made, b"body", ec.ECDSA(hashes.SHA256()))
        case "ecdsa-sha384":
            public.verify(made, b"body", ec.ECDSA(hashes.SHA384()))
        case "rsa-sha256":
            public.verify(made, b"body", padding.PKCS1v15(), hashes.SHA256())
        case _:
            public.verify(made, b"body")


def test_a_token_that_is_gone_refuses_at_once_and_is_found_again(token, opened, caplog):
    token.store(KEY)
    signer = opened(token.uri, public_key=KEY.public_key())
    token.unplug()
    with pytest.raises(
        SigningError, match="the authority's key cannot be reached: pkcs11:token=site;object=ca: "
    ):
        signer.sign(b"body")
    assert signer.trouble
    with pytest.raises(SigningError, match="cannot be reached"):
        signer.sign(b"body")
    token.plug_in()
    until_it_works(signer)
    KEY.public_key().verify(signer.sign(b"body"), b"body", ec.ECDSA(hashes.SHA256()))
    assert [record.event for record in caplog.records if record.levelname in ("ERROR", "WARNING")] == [
        "token-failed",
        "token-works",
    ]


def test_the_loss_of_a_token_is_noticed_without_a_request(token, opened, monkeypatch):
    monkeypatch.setattr(pkcs11, "_PROBE_S", 0.02)
    token.store(KEY)
    signer = opened(token.uri)
    token.unplug()
    end = time.monotonic() + 60
    while not signer.trouble:
        assert time.monotonic() < end
        threading.Event().wait(0.01)
    token.plug_in()
    until_it_works(signer)


def test_a_wrong_pin_is_tried_once_and_not_again_by_the_next_start(token, opened):
    token.store(KEY)
    assert "the PIN is wrong; it is not tried again by itself" in why(opened, token.uri, WRONG)
    # Whether the right PIN or a wrong one: it is not tried, because the token says that the last one was wrong.
    for pin in (PIN, WRONG):
        assert "the last PIN that this token was given is wrong, and none is tried" in why(
            opened, token.uri, pin
        )


def test_a_pin_that_is_wrong_when_the_token_comes_back_waits_for_the_administrator(token, opened):
    token.store(KEY)
    signer = opened(token.uri)
    signer._pin = Secret(WRONG)  # somebody has changed it in the token
    token.unplug()
    with pytest.raises(SigningError):
        signer.sign(b"body")
    token.plug_in()
    end = time.monotonic() + 60
    while "PIN" not in signer.trouble:
        assert time.monotonic() < end
        threading.Event().wait(0.01)
    assert "the PIN is wrong" in signer.trouble
    assert signer.due == float("inf")
    signer.try_pin(Secret(PIN))
    assert signer.trouble == ""
    signer.sign(b"body")


def test_the_same_pin_again_changes_nothing_while_the_token_works(token, opened):
    token.store(KEY)
    signer = opened(token.uri)
    session = signer._session
    signer.try_pin(Secret(PIN))
    assert signer._session is session


def test_a_key_that_is_not_that_of_the_certificate_is_refused(token, opened):
    token.store(KEY)
    other = generate_key("ec-p256").public_key()
    assert "not that of the authority's certificate" in why(opened, token.uri, public_key=other)


def test_another_token_of_the_same_name_is_not_taken_for_the_one_that_was_lost(token, opened, tmp_path):
    token.store(KEY)
    other = SoftToken(tmp_path / "other")
    other.store(generate_key("ec-p256"))
    signer = opened(token.uri)
    token.swap(other)
    end = time.monotonic() + 60
    while "not that of" not in signer.trouble:
        assert time.monotonic() < end
        with pytest.raises(SigningError):
            signer.sign(b"body")
        threading.Event().wait(0.01)


def test_what_cannot_be_found_is_told(token, opened):
    token.store(KEY)
    token.store(generate_key("ec-p256"), identifier="02")
    token.new("spare")
    assert "without a PIN" in why(opened, token.uri, "")
    assert "several such private keys" in why(opened, token.uri)
    assert opened(token.uri.replace("object=ca", "object=ca;id=%01")).public_key() == KEY.public_key()
    assert "no such private key" in why(opened, token.uri.replace("object=ca", "object=cb"))
    assert "no token fits" in why(opened, token.uri.replace("token=site", "token=none"))
    assert "several tokens fit" in why(opened, f"pkcs11:object=ca?module-path={MODULE}")
    assert "does not exist" in why(opened, "pkcs11:object=ca?module-path=/nowhere.so")


@pytest.mark.parametrize(
    ("key", "kind"), [(ed448.Ed448PrivateKey.generate(), "Ed448"), (dsa.generate_private_key(2048), "DSA")]
)
def test_a_key_of_a_kind_that_is_not_supported_is_told(token, opened, key, kind):
    token.store(key)
    assert f"the key is of the kind {kind}, which is not supported; make one of RSA" in why(opened, token.uri)


def test_a_key_that_becomes_ambiguous_is_not_chosen_by_chance(token, opened):
    """Somebody stores another key of this label while the service runs; then the connection is lost."""
    token.store(KEY)
    signer = opened(token.uri, public_key=KEY.public_key())
    token.store(generate_key("ec-p256"), identifier="02")
    token.unplug()
    with pytest.raises(SigningError):
        signer.sign(b"body")
    token.plug_in()
    end = time.monotonic() + 60
    while "several such private keys; add id=%01" not in signer.trouble:
        assert time.monotonic() < end, signer.trouble
        threading.Event().wait(0.01)
    with pytest.raises(SigningError, match="several such private keys"):
        signer.sign(b"body")


def test_a_file_that_is_no_such_library_is_told(token, opened, tmp_path):
    file = tmp_path / "odd.so"
    file.write_text("no library")
    assert "odd.so" in why(opened, f"pkcs11:object=ca?module-path={file}")


def test_two_keys_of_one_token_survive_each_others_reconnection(token, opened):
    other = generate_key("ec-p384")
    token.store(KEY)
    token.store(other, label="former", identifier="02")
    one, two = opened(token.uri), opened(token.uri.replace("object=ca", "object=former"))
    token.unplug()
    for signer in (one, two):
        with pytest.raises(SigningError):
            signer.sign(b"body")
    token.plug_in()
    for signer in (one, two):
        until_it_works(signer)
    KEY.public_key().verify(one.sign(b"body"), b"body", ec.ECDSA(hashes.SHA256()))
    other.public_key().verify(two.sign(b"body"), b"body", ec.ECDSA(hashes.SHA384()))


def test_a_token_that_does_not_answer_stops_nobody_for_long(token, opened, monkeypatch):
    monkeypatch.setattr(pkcs11, "_ANSWER_S", 0.05)
    token.store(KEY)
    signer = opened(token.uri)
    hangs = threading.Event()
    threading.Thread(target=signer._library.call, args=(hangs.wait, 60), daemon=True).start()
    while not signer._library._calls.empty():
        threading.Event().wait(0.01)
    with pytest.raises(SigningError, match=r"has not answered within 0\.05 s"):
        signer.sign(b"body")
    assert "has not answered" in signer.trouble
    hangs.set()
    monkeypatch.setattr(pkcs11, "_ANSWER_S", 60.0)
    until_it_works(signer)
    signer.sign(b"body")


def test_no_pin_is_shown(token, opened):
    token.store(KEY)
    assert repr(opened(token.uri)) == "<TokenSigner pkcs11:token=site;object=ca ecdsa-sha256>"

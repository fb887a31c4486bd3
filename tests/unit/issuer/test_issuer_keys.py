"""Signing keys on disk."""

from __future__ import annotations

import json
import os

import pytest

from appliance.errors import ConfigurationError
from appliance.issuer.keys import MAX_RETIRED, KeyStore
from tests.helpers.tokens import rsa_key


def store(path, now: float = 0.0, kid: str = "demo-key-1") -> KeyStore:
    return KeyStore(str(path), kid, published_s=100, now=now)


def kids(keys: KeyStore, now: float) -> list[str]:
    return [key["kid"] for key in keys.jwks(now)]


def test_files_are_for_the_owner_only(tmp_path) -> None:
    os.umask(0o022)
    path = tmp_path / "new" / "keys"
    store(path).rotate(0)
    assert path.stat().st_mode & 0o777 == 0o700
    files = {file.name: file.stat().st_mode & 0o777 for file in path.iterdir()}
    assert files == {"id_rsa.pem": 0o600, "id_rsa.pub": 0o600, "keys.json": 0o600}


def test_files_of_the_quick_start_are_taken_over_and_closed(tmp_path) -> None:
    from cryptography.hazmat.primitives import serialization

    tmp_path.chmod(0o755)
    pem = tmp_path / "id_rsa.pem"
    pem.write_bytes(
        rsa_key().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    pem.chmod(0o644)
    keys = store(tmp_path, kid="mine")
    assert keys.current.kid == "mine"
    assert keys.current.private.private_numbers() == rsa_key().private_numbers()
    assert pem.stat().st_mode & 0o777 == 0o600
    assert tmp_path.stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "id_rsa.pub").exists()


def test_keys_survive_a_restart(tmp_path) -> None:
    keys = store(tmp_path)
    first = keys.jwks(0)
    assert store(tmp_path).jwks(0) == first
    assert keys.rotate(10) == "demo-key-2"
    assert keys.rotate(20) == "demo-key-3"
    again = store(tmp_path, now=30)
    assert again.jwks(30) == keys.jwks(30)
    assert kids(again, 30) == ["demo-key-3", "demo-key-2", "demo-key-1"]
    assert kids(again, 111) == ["demo-key-3", "demo-key-2"]
    assert kids(store(tmp_path, now=200), 200) == ["demo-key-3"]


def test_a_rotation_cut_off_between_its_files_loses_nothing(tmp_path, monkeypatch) -> None:
    keys = store(tmp_path)
    before = keys.jwks(0)
    write = KeyStore._write

    def cut(self: KeyStore, name: str, data: bytes) -> None:
        if name == "id_rsa.pem":
            raise ConfigurationError("cannot write: No space left on device", file=name)
        write(self, name, data)

    monkeypatch.setattr(KeyStore, "_write", cut)
    with pytest.raises(ConfigurationError, match="No space left"):
        keys.rotate(10)
    monkeypatch.undo()
    assert keys.current.kid == "demo-key-1"
    again = store(tmp_path, now=11)
    assert again.jwks(11) == before
    assert again.rotate(12) == "demo-key-2"


def test_a_clock_that_is_ahead_for_a_moment_loses_no_published_key(tmp_path) -> None:
    keys = store(tmp_path)
    keys.rotate(0)
    before = keys.jwks(1)
    assert kids(keys, 10 * 365 * 86400) == ["demo-key-2"]
    assert keys.jwks(2) == before
    keys.rotate(10 * 365 * 86400)
    assert kids(keys, 3) == ["demo-key-3", "demo-key-2", "demo-key-1"]


def test_retired_keys_are_bounded_in_number(tmp_path) -> None:
    keys = store("")
    for _ in range(MAX_RETIRED + 3):
        keys.rotate(0)
    assert len(keys.jwks(1)) == MAX_RETIRED + 1


@pytest.mark.parametrize(("first", "second"), [("k", "k-2"), ("k9", "k10"), ("7", "8"), ("a-1b", "a-1b-2")])
def test_key_ids_count_on(first: str, second: str) -> None:
    assert store("", kid=first).rotate(0) == second


def test_a_key_never_shows_in_a_repr() -> None:
    assert repr(store("").current) == "<SigningKey demo-key-1>"


@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_a_damaged_key_is_a_clear_error_and_stays(tmp_path, content: bytes) -> None:
    (tmp_path / "id_rsa.pem").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"id_rsa\.pem: is not an unencrypted private key"):
        store(tmp_path)
    assert (tmp_path / "id_rsa.pem").read_bytes() == content


def test_a_weak_key_is_refused(tmp_path) -> None:
    from cryptography.hazmat.primitives import serialization

    (tmp_path / "id_rsa.pem").write_bytes(
        rsa_key(1024).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    with pytest.raises(ConfigurationError, match="at least 2048 bits"):
        store(tmp_path)


@pytest.mark.parametrize(
    "state",
    [
        "",
        "[]",
        "{}",
        '{"kids":7,"retired":[]}',
        json.dumps({"kids": {}, "retired": [{"kid": "a", "pem": "x", "until": 1e12}]}),
    ],
)
def test_damaged_state_is_a_clear_error(tmp_path, state: str) -> None:
    store(tmp_path)
    (tmp_path / "keys.json").write_text(state)
    with pytest.raises(ConfigurationError, match=r"keys\.json: is damaged; remove it"):
        store(tmp_path)


def test_a_directory_that_cannot_be_made_is_a_clear_error(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"cannot be used: .*a file is in its place"):
        store(tmp_path / "file" / "keys")


def test_only_the_default_directory_may_be_missing(tmp_path, monkeypatch, caplog) -> None:
    """The quick start's directory needs root; without it the demo goes on with a key in memory, and says so."""
    from appliance.config.secret import FilePath
    from appliance.issuer import daemon
    from appliance.issuer.config import IssuerConfig

    (tmp_path / "file").write_text("")
    unusable = IssuerConfig(demo=True, key_dir=FilePath(tmp_path / "file"))
    with pytest.raises(ConfigurationError):
        daemon._open_keys(unusable)
    monkeypatch.setattr(daemon, "DEMO", unusable)
    keys = daemon._open_keys(unusable)
    assert keys is not None
    assert kids(keys, 0) == ["demo-key-1"]
    assert "kept in memory" in caplog.text

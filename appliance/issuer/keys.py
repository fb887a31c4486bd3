"""The issuer's signing keys: one that signs, and retired ones that stay published until their tokens have expired."""

from __future__ import annotations

import json
import logging
import os
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from appliance.authn.jwt.jwk import jwk_of, thumbprint
from appliance.authn.jwt.strict_json import StrictFormatError
from appliance.config.files import make_directories, read_private, write_private
from appliance.errors import ConfigurationError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

__all__ = ["KeyStore", "SigningKey"]

MAX_RETIRED: Final = 10
_KEY_FILE: Final = "id_rsa.pem"
_PUBLIC_FILE: Final = "id_rsa.pub"
_STATE_FILE: Final = "keys.json"
_MAX_FILE_BYTES: Final = 256 * 1024

_log = logging.getLogger(__name__)


class SigningKey(NamedTuple):
    """The key that signs."""

    kid: str
    private: RSAPrivateKey

    def __repr__(self) -> str:
        return f"<SigningKey {self.kid}>"


class _Retired(NamedTuple):
    kid: str
    pem: str
    until: float


class KeyStore:
    """RSA keys in a directory (mode 0700, files 0600), or only in memory if `directory` is empty.

    `published_s` is how long a retired key stays published: at least the longest life of a token. Times are POSIX seconds
    and are given as `now`.

    Raises:
        ConfigurationError: A file cannot be read, written or understood.
    """

    def __init__(self, directory: str, first_kid: str, *, published_s: float, now: float) -> None:
        self._directory = directory
        self._published_s = published_s
        self._kids: dict[str, str] = {}
        self._retired: list[_Retired] = []
        private = None
        if directory:
            self._prepare()
            self._load_state()
            private = self._load_key()
        if private is None:
            private = _generate()
            self._write(_KEY_FILE, _private_pem(private))
        self._write(_PUBLIC_FILE, _public_pem(private.public_key()).encode())
        self.current = SigningKey(self._kids.get(_thumb(private.public_key()), first_kid), private)
        # Only here, where the files still have what is left out: later the clock may be wrong for a moment.
        self._retired = self._published(now)

    def rotate(self, now: float) -> str:
        """Retire the current key, sign with a new one from now on, and return the new key's id."""
        old = self.current
        new = SigningKey(self._next_kid(), _generate())
        retired = _Retired(old.kid, _public_pem(old.private.public_key()), now + self._published_s)
        self._retired = [retired, *self._retired][:MAX_RETIRED]
        self._kids = {_thumb(key.private.public_key()): key.kid for key in (old, new)}
        # State first: if the process dies between the two files, the old key still signs under its old name.
        self._write_state()
        self._write(_KEY_FILE, _private_pem(new.private))
        self._write(_PUBLIC_FILE, _public_pem(new.private.public_key()).encode())
        self.current = new
        return new.kid

    def jwks(self, now: float) -> list[dict[str, str]]:
        """Return the published keys as JWKs, the current one first."""
        pairs = [(self.current.kid, _public_pem(self.current.private.public_key()))]
        pairs += [(key.kid, key.pem) for key in self._published(now)]
        return [{**jwk_of(pem), "kid": kid, "alg": "RS256", "use": "sig"} for kid, pem in pairs]

    def public_key(self, kid: str | None, now: float) -> RSAPublicKey:
        """Return the published key of that id, the current one for an id that is not published."""
        from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        for key in self._published(now):
            if key.kid == kid:
                public = load_pem_public_key(key.pem.encode())
                assert isinstance(public, RSAPublicKey)
                return public
        return self.current.private.public_key()

    def _published(self, now: float) -> list[_Retired]:
        """Return the retired keys that are still published."""
        mine = self.current.kid
        return [key for key in self._retired if key.until > now and key.kid != mine]

    def _next_kid(self) -> str:
        taken = {self.current.kid, *(key.kid for key in self._retired)}
        match = re.fullmatch(r"(.*?)([0-9]{1,9})", self.current.kid)
        stem, number = (match[1], int(match[2])) if match else (f"{self.current.kid}-", 1)
        while f"{stem}{number}" in taken or number < 2:
            number += 1
        return f"{stem}{number}"

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, name)  # noqa: PTH118

    def _prepare(self) -> None:
        try:
            make_directories(self._directory)
        except ConfigurationError as error:
            raise ConfigurationError(f"cannot be used: {error}", key="key_dir") from error
        try:
            if os.stat(self._directory).st_mode & 0o077:  # noqa: PTH116
                os.chmod(self._directory, 0o700)  # noqa: PTH101
                _log.warning("%s was open to others; its mode is now 0700", self._directory)
            for name in (_KEY_FILE, _PUBLIC_FILE, _STATE_FILE):
                path = self._path(name)
                if os.path.exists(path) and os.stat(path).st_mode & 0o077:  # noqa: PTH110, PTH116
                    os.chmod(path, 0o600)  # noqa: PTH101
        except OSError as error:
            raise ConfigurationError(
                f"cannot be used: {error.strerror}", file=self._directory, key="key_dir"
            ) from error

    def _write(self, name: str, data: bytes) -> None:
        if self._directory:
            write_private(self._path(name), data)

    def _write_state(self) -> None:
        state = {
            "kids": self._kids,
            "retired": [{"kid": key.kid, "pem": key.pem, "until": key.until} for key in self._retired],
        }
        self._write(_STATE_FILE, json.dumps(state, indent=1).encode())

    def _load_state(self) -> None:
        path = self._path(_STATE_FILE)
        if not os.path.exists(path):  # noqa: PTH110
            return
        try:
            state: Any = json.loads(read_private(path, _MAX_FILE_BYTES).data)
            self._kids = {str(thumb): str(kid) for thumb, kid in state["kids"].items()}
            self._retired = [
                _Retired(str(key["kid"]), str(key["pem"]), float(key["until"])) for key in state["retired"]
            ][:MAX_RETIRED]
            for key in self._retired:
                jwk_of(key.pem)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, StrictFormatError):
            raise ConfigurationError(
                "is damaged; remove it to continue without the retired keys", file=path
            ) from None

    def _load_key(self) -> RSAPrivateKey | None:
        from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        path = self._path(_KEY_FILE)
        if not os.path.exists(path):  # noqa: PTH110
            return None
        try:
            key = load_pem_private_key(read_private(path, _MAX_FILE_BYTES).data, password=None)
        except (ValueError, TypeError):
            raise ConfigurationError(
                "is not an unencrypted private key in PEM form; remove it, and a new one is made", file=path
            ) from None
        if not isinstance(key, RSAPrivateKey) or key.key_size < 2048:
            raise ConfigurationError("must be an RSA key of at least 2048 bits", file=path)
        return key


def _generate() -> RSAPrivateKey:
    from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

    return generate_private_key(public_exponent=65537, key_size=2048)


def _private_pem(key: RSAPrivateKey) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _public_pem(key: RSAPublicKey) -> str:
    from cryptography.hazmat.primitives import serialization

    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ).decode()


def _thumb(key: RSAPublicKey) -> str:
    return thumbprint(dict(jwk_of(_public_pem(key))))

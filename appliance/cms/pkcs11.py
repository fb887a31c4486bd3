"""The authority's key in a PKCS#11 token: a hardware security module, a smart card, a TPM, or SoftHSM.

Source: PKCS#11 2.40, by python-pkcs11 (decision 104). This is the only module that imports it.

All calls of a library are made by one thread. The standard forbids two at once in a session, a token may take any time to
answer, and who waits for it must be able to give up. A token that is gone is looked for again, at first each second.

A wrong PIN is tried once, then never again by itself, not even after a restart: tokens lock themselves after a few.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, Final, NamedTuple, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key

from appliance.certs.signer import signature_algorithm
from appliance.config.pkcs11_uri import PKCS11URI
from appliance.config.secret import Secret
from appliance.errors import SigningError

__all__ = ["TokenSigner"]

_log: Final = logging.getLogger(__name__)
_T = TypeVar("_T")
_ANSWER_S: Final = 5.0
"""How long somebody waits for the token."""
_FIRST_S: Final = 30.0
"""The same at a start: network modules take long to connect."""
_AGAIN_S: Final = 1.0
_AGAIN_MAX_S: Final = 30.0
_PROBE_S: Final = 30.0
"""After this time without a signature, one is made to see whether the token is still there."""
_PROBE: Final = b"pvacms: is this token still here"
"""No certificate and no status begins like this."""
_PIN_FAULTS: Final = {
    "PinIncorrect": "the PIN is wrong",
    "PinInvalid": "the PIN is wrong",
    "PinLenRange": "the PIN has a length that the token never accepts",
    "PinLocked": "the PIN is locked; unlock it with the token's own tool",
    "PinExpired": "the PIN has expired; change it with the token's own tool",
    "UserPinNotInitialized": "the token has no PIN for users yet; set one with the token's own tool",
}


_UNSUPPORTED: Final = "the key is of the kind {}, which is not supported; make one of RSA, of EC on P-256 or P-384, or of Ed25519"


class _PINError(SigningError):
    """The token does not take the PIN."""


class _Call(NamedTuple):
    what: Callable[[], Any]
    answer: Future[Any]


class _Library:
    """A manufacturer's library in this process, and the thread that calls it."""

    _all: Final[dict[str, _Library]] = {}
    _lock: Final = threading.Lock()

    def __init__(self, path: str) -> None:
        self.path = path
        self.generation = 0
        """How often the library was started again: then every session of before is gone."""
        self._users: list[TokenSigner] = []
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._library: Any = None
        self._thread = threading.Thread(target=self._work, name="pkcs11", daemon=True)

    @classmethod
    def used_by(cls, signer: TokenSigner, path: str) -> _Library:
        with cls._lock:
            found = cls._all.get(path)
            if found is None:
                found = cls._all[path] = cls(path)
                found._thread.start()
            found._users = [*found._users, signer]
            return found

    def left_by(self, signer: TokenSigner) -> None:
        with self._lock:
            self._users = [user for user in self._users if user is not signer]
            if self._users:
                return
            self._all.pop(self.path, None)
        self._calls.put(None)
        self._thread.join(_ANSWER_S)

    def call(self, what: Callable[[], _T], wait_s: float) -> _T:
        """Call something in the thread. Raises what it raises, or TimeoutError."""
        answer: Future[_T] = Future()
        self._calls.put(_Call(what, answer))
        try:
            return answer.result(wait_s)
        except FutureTimeoutError:
            answer.cancel()
            raise

    def started(self, generation: int) -> Any:
        """Return the library, started again if nobody did that since ``generation``; in the thread only."""
        import pkcs11

        library = self._library
        if library is None:
            # Without this check the loader's text would say nothing of the file.
            if not os.path.isfile(self.path):  # noqa: PTH113 - text in
                raise SigningError(f"the library {self.path} does not exist")
            library = self._library = pkcs11.lib(self.path)
        elif generation == self.generation:
            with contextlib.suppress(pkcs11.PKCS11Error):
                library.finalize()
            self.generation += 1
            library.initialize()
        return library

    def _work(self) -> None:
        while True:
            due = min((user.due for user in self._users), default=float("inf"))
            try:
                call = self._calls.get(timeout=min(max(due - time.monotonic(), 0.0), 3600.0))
            except queue.Empty:
                for user in self._users:
                    user.look()
                continue
            if call is None:
                break
            if call.answer.set_running_or_notify_cancel():
                try:
                    call.answer.set_result(call.what())
                except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to who asked
                    call.answer.set_exception(error)
        if self._library is not None:
            with contextlib.suppress(RuntimeError):
                self._library.finalize()


class TokenSigner:
    """A key in a token. Its ``repr`` never shows the PIN."""

    is_quick: Final = False

    def __init__(
        self, uri: PKCS11URI, pin: Secret, *, public_key: CertificatePublicKeyTypes | None = None
    ) -> None:
        """Connect to the token, and try the key.

        Args:
            uri: Which key.
            pin: The user's PIN; empty for tokens that need none.
            public_key: The public half of the key. None: read it from the token.

        Raises:
            SigningError: The key cannot be used; the text says why and what to do.
        """
        self.uri = uri
        self.trouble = ""
        self.algorithm = ""
        self._pin = pin
        self._public = public_key
        self._session: Any = None
        self._key: Any = None
        self._generation = -1
        self._pin_refused = False
        self._back_off = _AGAIN_S
        self.due = float("inf")
        """When `look` is due, on the monotonic clock."""
        self._library = _Library.used_by(self, uri.module_path)
        try:
            self._call(self._open, _FIRST_S)
        except BaseException:
            self._library.left_by(self)
            raise

    def __repr__(self) -> str:
        return f"<TokenSigner {self.uri} {self.trouble or self.algorithm}>"

    def public_key(self) -> CertificatePublicKeyTypes:
        """Return the public half of the key."""
        assert self._public is not None
        return self._public

    def sign(self, body: bytes) -> bytes:
        """Return the signature of ``body``; may take up to five seconds.

        Raises:
            SigningError: The key cannot be reached, or does not sign.
        """
        if self.trouble:
            raise SigningError(self.trouble)
        return self._call(lambda: self._signed(body), _ANSWER_S)

    def try_pin(self, pin: Secret) -> None:
        """Use another PIN, or the same once more: somebody has corrected what was wrong."""
        with contextlib.suppress(SigningError):
            self._call(lambda: self._begin_again(pin), _ANSWER_S)

    def close(self) -> None:
        """Log out."""
        with contextlib.suppress(SigningError):
            self._call(self._forget, _ANSWER_S)
        self._library.left_by(self)

    def _call(self, what: Callable[[], _T], wait_s: float) -> _T:
        try:
            return self._library.call(what, wait_s)
        except FutureTimeoutError:
            self._failed(f"the token has not answered within {wait_s:g} s")
            raise SigningError(self.trouble) from None

    # -- in the library's thread -----------------------------------------------------------------------

    def look(self) -> None:
        """Do what is due: connect again, or see whether the token is still there."""
        if time.monotonic() < self.due:
            return
        with contextlib.suppress(SigningError):
            if self._key is None:
                self._reopen()
            else:
                self._signed(_PROBE)

    def _signed(self, body: bytes) -> bytes:
        try:
            if self._key is None:
                self._reopen()
            try:
                made = self._sign(body)
            except RuntimeError as error:
                # A session ends when a connection breaks, or the library was started again for another key.
                _log.info("the token %s: %s; connecting again", self.uri, _reason(error))
                self._forget()
                self._reopen()
                made = self._sign(body)
        except RuntimeError as error:
            self._forget()
            self._failed(_reason(error))
            raise SigningError(self.trouble) from error
        self._works()
        return made

    def _reopen(self) -> None:
        if self._pin_refused:
            self.due = float("inf")
            raise SigningError(self.trouble)
        try:
            self._open()
        except SigningError as error:
            self._failed(str(error))
            raise SigningError(self.trouble) from error
        self._works()

    def _begin_again(self, pin: Secret) -> None:
        if self._key is not None and pin.reveal() == self._pin.reveal():
            return
        self._pin, self._pin_refused = pin, False
        self._forget()
        try:
            self._open(asked=True)
        except SigningError as error:
            self._failed(str(error))
            raise
        self._works()

    def _open(self, *, asked: bool = False) -> None:
        """Log in and find the key; ``asked``: somebody wants the PIN to be tried."""
        try:
            import pkcs11  # noqa: F401 - only services with a token need it
        except ImportError as error:
            raise SigningError(
                "a key in a token needs the Python package python-pkcs11, which is not installed; install spva-appliance[pkcs11]"
            ) from error
        try:
            self._connect(asked=asked)
            made = self._sign(_PROBE)
        except SigningError:
            self._forget()
            raise
        except Exception as error:
            self._forget()
            if not isinstance(error, (RuntimeError, ValueError)):
                raise
            raise SigningError(f"{self.uri}: {_reason(error)}") from error
        if not _verifies(self.public_key(), made, _PROBE):
            self._forget()
            raise SigningError(
                f"{self.uri}: the key in the token is not that of the authority's certificate; name the right key, or the certificate of this one"
            )
        self.due = time.monotonic() + _PROBE_S

    def _connect(self, *, asked: bool) -> None:
        import pkcs11

        library = self._library.started(self._generation)
        self._generation = self._library.generation
        token = _one(
            [token for token in _tokens(library) if _fits(self.uri, token)],
            f"no token fits {self.uri}: is it plugged in, or its service running?",
            f"several tokens fit {self.uri}; add token=LABEL or serial=NUMBER",
        )
        pin = self._pin.reveal()
        marks = pkcs11.TokenFlag.USER_PIN_FINAL_TRY | pkcs11.TokenFlag.USER_PIN_LOCKED
        if not asked:
            marks |= pkcs11.TokenFlag.USER_PIN_COUNT_LOW
        if pin and token.flags & marks:
            self._pin_refused = True
            raise _PINError(
                f"{self.uri}: the last PIN that this token was given is wrong, and none is tried, because tokens lock themselves; "
                "correct the PIN, and log in once by hand: "
                f"pkcs11-tool --module {self.uri.module_path} --login --list-objects"
            )
        try:
            self._session = token.open(user_pin=pin) if pin else token.open()
        except pkcs11.UserAlreadyLoggedIn:
            self._session = token.open()  # for another key of this token
        except pkcs11.PKCS11Error as error:
            fault = _PIN_FAULTS.get(type(error).__name__)
            if fault is None:
                raise
            self._pin_refused = True
            raise _PINError(
                f"{self.uri}: {fault}; it is not tried again by itself, because tokens lock themselves: correct it (ca_key_pin or pin-source), then "
                "reload the service"
            ) from error
        self._key = _one(
            self._objects(pkcs11.ObjectClass.PRIVATE_KEY),
            f"{self.uri}: the token has no such private key"
            + ("" if pin else "; without a PIN (ca_key_pin) most tokens show none"),
            f"{self.uri}: the token has several such private keys; add id=%01 (octets in hexadecimal)",
        )
        kind = self._key.key_type
        if kind not in (pkcs11.KeyType.RSA, pkcs11.KeyType.EC, pkcs11.KeyType.EC_EDWARDS):
            raise SigningError(f"{self.uri}: {_UNSUPPORTED.format(getattr(kind, 'name', kind))}")
        if self._public is None:
            self._public = _public_key(
                _one(
                    self._objects(pkcs11.ObjectClass.PUBLIC_KEY),
                    f"{self.uri}: the token has the private key, but not its public half; copy it there",
                    f"{self.uri}: the token has several such public keys; add id=%01 (octets in hexadecimal)",
                )
            )
        self.algorithm = signature_algorithm(self._public)

    def _objects(self, kind: Any) -> list[Any]:
        import pkcs11

        wanted: dict[Any, Any] = {pkcs11.Attribute.CLASS: kind}
        if self.uri.object:
            wanted[pkcs11.Attribute.LABEL] = self.uri.object
        if self.uri.id:
            wanted[pkcs11.Attribute.ID] = self.uri.id
        assert self._session is not None
        return list(self._session.get_objects(wanted))

    def _sign(self, body: bytes) -> bytes:
        from pkcs11 import Mechanism

        key = self._key
        assert key is not None
        match self.algorithm:
            case "rsa-sha256":
                return bytes(key.sign(body, mechanism=Mechanism.SHA256_RSA_PKCS))
            case "ed25519":
                return bytes(key.sign(body, mechanism=Mechanism.EDDSA))
        hashed = (hashlib.sha384 if self.algorithm == "ecdsa-sha384" else hashlib.sha256)(body).digest()
        made = bytes(key.sign(hashed, mechanism=Mechanism.ECDSA))
        half = len(made) // 2
        return encode_dss_signature(int.from_bytes(made[:half], "big"), int.from_bytes(made[half:], "big"))

    def _forget(self) -> None:
        session, self._session, self._key = self._session, None, None
        # After the library was started again its number may be another one's.
        if session is not None and self._generation == self._library.generation:
            with contextlib.suppress(RuntimeError):
                session.close()

    # -- what is told ------------------------------------------------------------------------------------

    def _failed(self, why: str) -> None:
        why = why.removeprefix(f"{self.uri}: ")
        if not self.trouble:
            _log.error(
                "the authority's key in the token cannot be used: %s: %s; nothing is issued, and no status is signed, until it can be",
                self.uri,
                why,
                extra={"event": "token-failed"},
            )
        self.trouble = f"the authority's key cannot be reached: {self.uri}: {why}"
        self.due = float("inf") if self._pin_refused else time.monotonic() + self._back_off
        self._back_off = min(2 * self._back_off, _AGAIN_MAX_S)

    def _works(self) -> None:
        if self.trouble:
            _log.warning(
                "the authority's key in the token can be used again: %s",
                self.uri,
                extra={"event": "token-works"},
            )
        self.trouble, self._back_off = "", _AGAIN_S
        self.due = time.monotonic() + _PROBE_S


def _tokens(library: Any) -> list[Any]:
    import pkcs11

    found = []
    for slot in library.get_slots(token_present=True):
        with contextlib.suppress(pkcs11.TokenNotPresent, pkcs11.TokenNotRecognised):
            token = slot.get_token()
            if token.flags & pkcs11.TokenFlag.TOKEN_INITIALIZED:
                found.append(token)
    return found


def _fits(uri: PKCS11URI, token: Any) -> bool:
    slot = token.slot
    serial = token.serial.decode("utf-8", "replace") if isinstance(token.serial, bytes) else str(token.serial)
    wanted = (
        (uri.token, token.label),
        (uri.manufacturer, token.manufacturer_id),
        (uri.model, token.model),
        (uri.serial, serial),
        (uri.slot_description, slot.slot_description),
        (uri.slot_manufacturer, slot.manufacturer_id),
    )
    return all(not asked or asked == str(has).strip(" \0") for asked, has in wanted) and (
        uri.slot_id is None or uri.slot_id == slot.slot_id
    )


def _one(found: Sequence[_T], none: str, several: str) -> _T:
    if len(found) != 1:
        raise SigningError(several if found else none)
    return found[0]


def _public_key(found: Any) -> CertificatePublicKeyTypes:
    from pkcs11 import Attribute, KeyType
    from pkcs11.util import ec as curves
    from pkcs11.util import rsa as moduli

    if found.key_type == KeyType.EC_EDWARDS:
        # An OCTET STRING, or, from some tokens, its content.
        point = bytes(found[Attribute.EC_POINT])
        if len(point) not in (32, 34):
            raise SigningError(_UNSUPPORTED.format("Ed448"))
        return ed25519.Ed25519PublicKey.from_public_bytes(point[-32:])
    if found.key_type == KeyType.RSA:
        der = moduli.encode_rsa_public_key(found)
    else:
        der = curves.encode_ec_public_key(found)
    return load_der_public_key(der)  # type: ignore[return-value]


def _verifies(key: CertificatePublicKeyTypes, signature: bytes, body: bytes) -> bool:
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            by = hashes.SHA384() if key.curve.key_size > 256 else hashes.SHA256()
            key.verify(signature, body, ec.ECDSA(by))
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, body, padding.PKCS1v15(), hashes.SHA256())
        else:
            assert isinstance(key, ed25519.Ed25519PublicKey)
            key.verify(signature, body)
    except InvalidSignature:
        return False
    return True


def _reason(error: Exception) -> str:
    name = type(error).__name__
    text = str(error)
    return f"{name}: {text}" if text else f"the token answers {name}"

"""One end's identity in TLS: its keychain file, how it may be used now, and the contexts made from it.

Source: SPVA specification 4.1.1, 4.7.1, 14; configuration reference, EPICS_PVA_TLS_OPTIONS.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from cryptography import x509

from appliance.certmon.policy import Validity
from appliance.certs.keychain import Keychain, check_keychain, ended_anchor_warnings, load_keychain
from appliance.certs.x509 import shown_id
from appliance.config.files import read_private
from appliance.config.pva import ClientConfig, ServerConfig
from appliance.config.tls_options import TLS_REQUIRED
from appliance.errors import ConfigurationError, KeychainError
from appliance.tls.context import StapleCheck, TLSContext, client_context, server_context

__all__ = ["LiveKeychain", "utc_now"]

_log: Final = logging.getLogger(__name__)

POLL_S: Final = 1.0
"""Seconds between two looks at the keychain file and at the clock."""
_MAX_BYTES: Final = 1 << 18


def utc_now() -> datetime:
    """Return the present time, aware."""
    return datetime.now(UTC)


_Signature = tuple[int, int, int, int]


class LiveKeychain:
    """Keeps one keychain file in use, from its first reading to its last replacement.

    ``load`` reads it; ``watch`` then checks it once a second. A new file that cannot be used changes nothing except the log:
    the old keychain stays in use. ``staple`` and ``check_staple`` may be set at any time: contexts call them in each handshake.
    """

    def __init__(self, config: ClientConfig | ServerConfig, *, now: Callable[[], datetime] = utc_now) -> None:
        self.config = config
        self.path = config.tls_keychain
        self.server_side = isinstance(config, ServerConfig)
        self.keychain: Keychain | None = None
        """The keychain in use; None if none could be read."""
        self.trouble: KeychainError | None = None
        """Why the present file is not, or not fully, in use."""
        self.generation = 0
        """Counts the keychains that were used."""
        self.staple: Callable[[], bytes | None] | None = None
        self.check_staple: StapleCheck | None = None
        self._now = now
        self._signature: _Signature | None = None
        self._full: TLSContext | None = None
        self._anonymous: TLSContext | None = None
        self._keylog: int = -1
        self._seen = Validity.NONE
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    # -- what it says --------------------------------------------------------------------------------

    @property
    def usage(self) -> str:
        """``server`` or ``client``."""
        return "server" if self.server_side else "client"

    @property
    def validity(self) -> Validity:
        """What the dates of the certificate say now; NONE for a keychain of trust anchors."""
        keychain = self.keychain
        if keychain is None or keychain.certificate is None or self._full is None:
            return Validity.NONE
        now = self._now()
        everything = (keychain.certificate, *keychain.chain)
        if any(now > certificate.not_valid_after_utc for certificate in everything):
            return Validity.EXPIRED
        if any(now < certificate.not_valid_before_utc for certificate in everything):
            return Validity.PENDING
        return Validity.CURRENT

    @property
    def issuers(self) -> tuple[x509.Certificate, ...]:
        """The certificates of the authorities that this keychain knows."""
        keychain = self.keychain
        return () if keychain is None else (*keychain.anchors, *keychain.chain)

    @property
    def full(self) -> TLSContext | None:
        """The context that shows the certificate, whatever its dates say."""
        return self._full

    @property
    def anonymous(self) -> TLSContext | None:
        """A client's context that shows no certificate: only the server is authenticated. Made when first needed."""
        if self._anonymous is None and self.keychain is not None and not self.server_side:
            self._anonymous = self._client(self.keychain.anchors_alone())
        return self._anonymous

    def _client(self, keychain: Keychain) -> TLSContext:
        options = self.config.tls_options
        return client_context(
            keychain,
            want_staple=not options.no_stapling and not options.no_revocation_check,
            check_staple=self._judge_staple,
            keylog=self._open_keylog(),
        )

    # -- reading -------------------------------------------------------------------------------------

    def load(self) -> None:
        """Read the file for the first time. Raises KeychainError, which says what to do."""
        self._signature = self._look()
        try:
            self._take(self._read())
        except KeychainError as error:
            self.trouble = error
            raise

    def refusal(self, trouble: KeychainError) -> KeychainError | None:
        """Return why this end must not start without its keychain; None if the TLS options say how it goes on.

        Args:
            trouble: What ``load`` raised.
        """
        options = self.config.tls_options
        if isinstance(self.config, ServerConfig) and self.config.tls_stop_if_no_cert:
            return trouble
        if options.on_no_keychain == "fallback-to-tcp":
            return None
        if options.tls_required:
            # A server waits for a file that is not there yet, and serves nobody meanwhile. In all other cases waiting would not help.
            waits = self.server_side and not os.path.lexists(self.path)
            return None if waits else KeychainError(f"{trouble}; {TLS_REQUIRED}")
        return KeychainError(
            f"{trouble}; without its keychain this {self.usage} does not start: correct the file or its name, or allow plain TCP "
            "with the TLS option on_no_keychain=fallback-to-tcp"
        )

    def rehearse(self) -> tuple[str, bool]:
        """Load the keychain as a start does, for a check of the configuration.

        Returns:
            What the start would say of it, empty if all is well; and whether the start would end with that.
        """
        try:
            self.load()
        except KeychainError as error:
            refusal = self.refusal(error)
            return str(refusal or error), refusal is not None
        return "", False

    def _look(self) -> _Signature | None:
        try:
            found = os.stat(self.path)  # noqa: PTH116 - pathlib costs start-up time
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino, found.st_ctime_ns

    def _read(self) -> Keychain:
        """Read and parse. All slow work is done here, so that it can run beside the event loop."""
        try:
            read = read_private(self.path, _MAX_BYTES, strict=False)
        except ConfigurationError as error:
            raise KeychainError(str(error)) from error
        if read.finding:
            _log.warning("%s", read.finding)
        try:
            return load_keychain(read.data, self.config.tls_keychain_password)
        except KeychainError as error:
            raise KeychainError(f"{self.path}: {error}") from error

    def _take(self, keychain: Keychain) -> None:
        """Build the contexts of ``keychain`` and start to use it."""
        full: TLSContext | None = None
        trouble: KeychainError | None = None
        try:
            self._check(keychain)
        except KeychainError as error:
            if self.server_side or keychain.is_trust_only:
                raise
            # A keychain without a usable certificate can still authenticate servers.
            trouble = error
        options = self.config.tls_options
        if self.server_side:
            full = server_context(
                keychain,
                require_client_cert=options.client_cert_required,
                staple=None if options.no_stapling else self._give_staple,
                keylog=self._open_keylog(),
            )
        elif trouble is None and not keychain.is_trust_only:
            full = self._client(keychain)
        self.keychain, self._full, self._anonymous, self.trouble = keychain, full, None, trouble
        self.generation += 1
        self._seen = self.validity
        for warning in ended_anchor_warnings(keychain, self._now()):
            _log.warning("%s: %s", self.path, warning)
        if trouble is not None:
            _log.warning("%s: %s; servers are authenticated, this client is anonymous", self.path, trouble)

    def _check(self, keychain: Keychain) -> None:
        """Check everything except the certificate's own dates, which change how it is used and not whether it works."""
        certificate = keychain.certificate
        now = self._now()
        if certificate is not None:
            earliest = max(c.not_valid_before_utc for c in (certificate, *keychain.chain))
            latest = min(c.not_valid_after_utc for c in (certificate, *keychain.chain))
            now = min(max(now, earliest), latest)
        check_keychain(keychain, now=now, usage=self.usage)

    def _give_staple(self) -> bytes | None:
        return None if self.staple is None else self.staple()

    def _judge_staple(self, staple: bytes | None, chain: tuple[bytes, ...]) -> None:
        if self.check_staple is not None:
            self.check_staple(staple, chain)

    # -- replacement ---------------------------------------------------------------------------------

    def watch(self, changed: Callable[[], None]) -> None:
        """Call ``changed`` whenever another keychain is in use or the dates say something else."""
        # Between two looks there is a timer and no task: the loop may be a program's, which counts the tasks that it left.
        self._timer = asyncio.get_running_loop().call_later(POLL_S, self._look_again, changed)

    def _look_again(self, changed: Callable[[], None]) -> None:
        try:
            same = self._look() == self._signature
        except Exception:  # noqa: BLE001 - the watch must outlive whatever one file does to it
            _log.exception("%s: internal error while looking at the keychain", self.path)
            same = True
        if same:
            self._looked(changed, again=False)
        else:
            self._task = asyncio.get_running_loop().create_task(self._read_again(changed))

    async def _read_again(self, changed: Callable[[], None]) -> None:
        again = False
        try:
            again = await self.refresh()
        except Exception:  # noqa: BLE001 - as above
            _log.exception("%s: internal error while looking at the keychain", self.path)
        self._looked(changed, again=again)

    def _looked(self, changed: Callable[[], None], *, again: bool) -> None:
        self.watch(changed)
        validity = self.validity
        if again or validity is not self._seen:
            self._seen = validity
            changed()

    async def refresh(self) -> bool:
        """Check the file now; return whether another keychain is in use."""
        signature = self._look()
        if signature == self._signature:
            return False
        self._signature = signature
        if signature is None:
            if self.keychain is not None:
                _log.warning("%s was removed; the keychain that was read from it stays in use", self.path)
            return False
        try:
            keychain = await asyncio.get_running_loop().run_in_executor(None, self._read)
            if _same(keychain, self.keychain):
                return False
            current = self.validity
            fresh = keychain.certificate is None or keychain.certificate.not_valid_after_utc > self._now()
            if current is Validity.CURRENT and not fresh:
                raise KeychainError(f"{self.path}: the new certificate has already expired")  # noqa: TRY301 - one way out for all refusals
            self._take(keychain)
        except KeychainError as error:
            self.trouble = error
            kept = "; the keychain that was read before stays in use" if self.keychain is not None else ""
            where = "" if self.path in str(error) else f"{self.path}: "
            _log.warning("%s%s%s", where, error, kept)
            return False
        told = {"event": "keychain-taken", "keychain": str(self.path)}
        if keychain.certificate is not None:
            told["cert_id"] = shown_id(keychain.issuer_id, keychain.serial)
        _log.info("%s: now in use: %r", self.path, keychain, extra=told)
        return True

    def stop(self) -> None:
        """Stop watching."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._task is not None:
            self._task.cancel()
            self._task = None
        if self._keylog >= 0:
            os.close(self._keylog)
            self._keylog = -1

    # -- key log -------------------------------------------------------------------------------------

    def _open_keylog(self) -> Callable[[bytes], None] | None:
        path = self.config.tls_keylog_file
        if not path:
            return None
        if self._keylog < 0:
            try:
                fd = os.open(
                    path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600
                )  # fmt: skip
            except OSError as error:
                _log.warning("SSLKEYLOGFILE: %s cannot be written: %s", path, error.strerror)
                return None
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_mode & 0o077 or found.st_uid != os.geteuid():
                os.close(fd)
                _log.warning(
                    "SSLKEYLOGFILE: %s is not used: it must be a regular file of this user that nobody else can read; "
                    "run: chmod 600 %s",
                    path,
                    path,
                )
                return None
            self._keylog = fd
            _log.warning(
                "SSLKEYLOGFILE: the secrets of all TLS connections are written to %s; anyone who can read it can decrypt the traffic",
                path,
            )
        return self._write_keylog

    def _write_keylog(self, line: bytes) -> None:
        if self._keylog >= 0:
            try:
                os.write(self._keylog, line + b"\n")
            except OSError as error:
                _log.warning("SSLKEYLOGFILE: %s", error.strerror)

    def __repr__(self) -> str:
        return f"<LiveKeychain {self.usage} {self.path} {self.validity.value}>"


def _same(one: Keychain, other: Keychain | None) -> bool:
    """Whether two keychains hold the same certificates, and therefore the same key."""
    return other is not None and one[1:] == other[1:]

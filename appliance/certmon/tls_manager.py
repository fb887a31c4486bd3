"""What clients and servers share: a keychain, the status of its certificate, and a gate for their peers."""

from __future__ import annotations

import asyncio
import logging
import random
from abc import ABC, abstractmethod
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509

from appliance.certmon.cache import StatusCache
from appliance.certmon.gate import PATIENCE_S, StatusGate, describe_plight
from appliance.certmon.live_keychain import LiveKeychain
from appliance.certmon.policy import Mode, Validity, choose_mode
from appliance.certmon.status_source import CertStatus, Following, StatusSource, reference
from appliance.certs.keychain import Keychain
from appliance.certs.status import CertState, StatusClass
from appliance.config.pva import ClientConfig, ServerConfig
from appliance.errors import CertificateError, CertificateStatusError, KeychainError, SecurityError

__all__ = ["TLSManager"]

_log: Final = logging.getLogger(__name__)
_LONGEST_SLEEP_S: Final = 60.0
_SHORTEST_LEFT_S: Final = 20.0
"""With less time than this until the end of a replaced certificate, its connections are not replaced more often than with this."""


class TLSManager(ABC):
    """Keeps one end's TLS up to date with its keychain file, the clock and the certificate service.

    ``changed`` is for subclasses: the event loop calls it whenever the result of ``choose`` or the keychain may have changed.
    """

    def __init__(self, config: ClientConfig | ServerConfig, status_config: ClientConfig) -> None:
        self.identity = LiveKeychain(config)
        self.options = config.tls_options
        self.source: StatusSource | None = None
        self.gate: StatusGate | None = None
        self.generation = 0
        self.mode: Mode | None = None
        self._in_use: Keychain | None = None
        self._own: Following | None = None
        self._own_generation = 0
        self._heard = asyncio.Event()
        self._overdue: asyncio.TimerHandle | None = None
        self._status_trouble = ""
        self._reminder: asyncio.TimerHandle | None = None
        self._renewal_told = False
        self._kept: tuple[Following, Keychain, x509.Certificate] | None = None
        """A keychain that was replaced, and that connections still use, and its certificate."""
        self._kept_timer: asyncio.TimerHandle | None = None
        self._renewal: asyncio.TimerHandle | None = None
        """The next time at which such connections are replaced."""
        self._kept_until: datetime | None = None
        """The end of the replaced certificate that `_renewal` was planned for."""
        if not self.options.no_revocation_check:
            cache = StatusCache(config.status_cache) if config.status_cache else None
            self.source = StatusSource(status_config, cache=cache)
            self.gate = StatusGate(self.source, self.options, server_side=self.identity.server_side)
            self.identity.staple = self._staple
            self.identity.check_staple = self.source.check_staple

    # -- life ----------------------------------------------------------------------------------------

    async def open(self) -> KeychainError | None:
        """Read the keychain and get the status of its certificate; return what is wrong with the file.

        Waits for the certificate service for a limited time.

        Raises:
            KeychainError: The file cannot be used, and the options do not say how to go on without it.
            CertificateStatusError: No status came and ``on_no_cms=throw`` is set.
        """
        trouble: KeychainError | None = None
        try:
            self.identity.load()
        except KeychainError as error:
            refusal = self.identity.refusal(error)
            if refusal is not None:
                raise refusal from error
            trouble = error
        if self.source is not None:
            self.source.authenticate(self.identity.keychain)
            await self.source.start()
            self._follow_own()
            if self._own is not None and not self._own.status.delivered:
                try:
                    async with asyncio.timeout(PATIENCE_S):
                        await self._heard.wait()
                except TimeoutError:
                    self._no_cms(self._own)
        return trouble

    def _no_cms(self, own: Following) -> None:
        why = (
            f"no status for {own.ref} from {own.ref.status_pv} within {PATIENCE_S:g} s; "
            "check that the certificate service runs and that EPICS_PVA_ADDR_LIST reaches it"
        )
        if self.options.on_no_cms == "throw":
            raise CertificateStatusError(why)
        instead = "Nothing is connected" if self.options.tls_required else "Plain TCP is used"
        _log.warning("%s %s until it answers.", why, instead)

    def watch(self) -> None:
        """Begin to watch the keychain file."""
        self.identity.watch(self._identity_changed)

    async def close(self) -> None:
        """Stop following and watching."""
        self.identity.stop()
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None
        self._forget_renewal()
        self._let_go()
        if self._own is not None:
            self._own.close()
            self._own = None
        if self.gate is not None:
            self.gate.close()
        if self.source is not None:
            await self.source.close()

    # -- the own certificate -------------------------------------------------------------------------

    def _follow_own(self) -> None:
        """Follow the certificate that is in use now, and no other."""
        identity, source, gate = self.identity, self.source, self.gate
        if source is None or gate is None or self._own_generation == identity.generation:
            return
        self._own_generation = identity.generation
        former, self._own = self._own, None
        self._status_trouble = ""
        self._forget_renewal()
        keychain = identity.keychain
        if keychain is not None and keychain.certificate is not None and identity.full is not None:
            try:
                ref = reference((keychain.certificate, *keychain.chain))
                if ref is not None:
                    self._own = source.follow(ref, self._own_changed)
            except (CertificateError, CertificateStatusError) as error:
                # A certificate whose status cannot be followed although it should be is not used.
                self._status_trouble = str(error)
                _log.warning("%s: %s", identity.path, error)
        gate.own = self._own
        if former is not None:
            former.close()

    def _own_changed(self) -> None:
        assert self.gate is not None
        if self._own is None:
            return
        status = self._own.status
        if status.delivered:
            self._heard.set()
        self.gate.own_changed()
        self._watch_renewal(status)
        self.changed()

    def _watch_renewal(self, status: CertStatus) -> None:
        """Tell that the certificate is due for renewal, and warn if half of the time that is left then was not used."""
        assert self.source is not None
        if not status.renewal_due or status.state is CertState.PENDING_RENEWAL:
            # Of a certificate that was not renewed in time the source tells, as of each change of state.
            self._forget_renewal()
        elif not self._renewal_told:
            self._renewal_told = True
            now, renew_by = self.source.now(), status.renew_by
            by = "" if renew_by is None else f" by {renew_by:%Y-%m-%d %H:%M:%S} UTC"
            _log.info("%s: the certificate is due for renewal%s; this is routine", self.identity.path, by)
            if renew_by is not None:
                self._remind(now + (renew_by - now) / 2)

    def _remind(self, when: datetime) -> None:
        """Warn at ``when``, and look again at least once a minute until then, because the clock may be set."""
        assert self.source is not None
        self._reminder = None
        left_s = (when - self.source.now()) / timedelta(seconds=1)
        if left_s > 0:
            loop = asyncio.get_running_loop()
            self._reminder = loop.call_later(min(left_s + 0.01, _LONGEST_SLEEP_S), self._remind, when)
        else:
            _log.warning(
                "%s: the certificate is due for renewal and was not renewed yet; renew it before it is suspended",
                self.identity.path,
            )

    def _forget_renewal(self) -> None:
        self._renewal_told = False
        if self._reminder is not None:
            self._reminder.cancel()
            self._reminder = None

    def _identity_changed(self) -> None:
        if self.source is not None:
            self.source.authenticate(self.identity.keychain)
        self._follow_own()
        if self._own is not None and not self._own.status.delivered:
            # The new certificate is used together with its status, not before: otherwise there would be plain TCP in between. If no
            # status comes, plain TCP is what follows.
            if self._overdue is not None:
                self._overdue.cancel()
            self._overdue = asyncio.get_running_loop().call_later(PATIENCE_S, self._waited_long_enough)
        self.changed()

    def _waited_long_enough(self) -> None:
        self._overdue = None
        self.changed()

    @property
    def settled(self) -> bool:
        """Whether it is time to act: our own certificate's status is known, or none is expected."""
        return self._own is None or self._own.status.delivered or self._overdue is None

    def _staple(self) -> bytes | None:
        own = self._own
        if own is None or own.status.status_class is not StatusClass.GOOD:
            return None
        return own.status.response or None

    @property
    def status_class(self) -> StatusClass:
        """What the service says of our own certificate; GOOD if it has no status."""
        if self._status_trouble:
            return StatusClass.UNKNOWN
        return StatusClass.GOOD if self._own is None else self._own.status.status_class

    # -- a certificate that was replaced -------------------------------------------------------------

    def _keep(self, former: Keychain) -> bool:
        """Let connections of a replaced certificate go on as long as it is good; return whether its status can be followed.

        Another authority has certified the same key and names, so a new connection would prove nothing else. A client replaces each
        connection when its server has a new certificate too. So a monitor loses its connection once, and not once for each end. What
        is left at the end of the authority is closed then, because its certificates are EXPIRED.
        """
        certificate = former.certificate
        if self.source is None or certificate is None or self._kept is not None:
            return False
        try:
            ref = reference((certificate, *former.chain))
            if ref is None:
                return False
            self._kept = self.source.follow(ref, self._look_at_kept), former, certificate
        except (CertificateError, CertificateStatusError):
            return False
        self._look_at_kept()
        return self._kept is not None

    def _look_at_kept(self) -> None:
        """Close the connections of the replaced certificate if it is not good any more; look again in time."""
        if self._kept is None:
            return
        assert self.source is not None
        following, former, certificate = self._kept
        status = following.status
        left_s = (certificate.not_valid_after_utc - self.source.now()) / timedelta(seconds=1)
        if self._kept_timer is not None:
            self._kept_timer.cancel()
        if left_s > 0 and (status.status_class is StatusClass.GOOD or not status.delivered):
            loop = asyncio.get_running_loop()
            self._kept_timer = loop.call_later(min(left_s + 0.01, _LONGEST_SLEEP_S), self._look_at_kept)
            # The status tells the holder until when it has to be replaced, and after a while when the authority ends.
            until = min(certificate.not_valid_after_utc, status.renew_by or certificate.not_valid_after_utc)
            if until != self._kept_until:
                self._kept_until = until
                self._renew_later(former, until)
            return
        state = status.state if left_s > 0 else CertState.EXPIRED
        self._let_go()
        _log.info("%s: the former certificate is %s: its connections are closed", self.identity.path, state)
        self.close_connections_of(certificate, SecurityError(f"the former certificate is {state}"))

    def _renew_later(self, former: Keychain, until: datetime) -> None:
        """Replace the connections of a replaced keychain long before ``until``, and again in half of the time that is left then.

        Nobody tells when the peers have changed, so it is tried again and again. The moments are random, because a facility has
        thousands of such connections.
        """
        assert self.source is not None
        if self._renewal is not None:
            self._renewal.cancel()
        quarter_s = max((until - self.source.now()) / timedelta(seconds=1), _SHORTEST_LEFT_S) / 4

        def renew() -> None:
            self.renew_connections_of(former, min(quarter_s, _LONGEST_SLEEP_S))
            self._renewal = asyncio.get_running_loop().call_later(quarter_s, self._renew_later, former, until)

        delay = random.uniform(0, quarter_s)  # noqa: S311 - this number is no secret
        self._renewal = asyncio.get_running_loop().call_later(delay, renew)

    def _let_go(self) -> None:
        if self._renewal is not None:
            self._renewal.cancel()
            self._renewal = None
        self._kept_until = None
        if self._kept_timer is not None:
            self._kept_timer.cancel()
            self._kept_timer = None
        if self._kept is not None:
            self._kept[0].close()
            self._kept = None

    @abstractmethod
    def close_connections_of(self, certificate: x509.Certificate, reason: SecurityError) -> None:
        """Close the connections in which this end has shown ``certificate``."""

    @abstractmethod
    def renew_connections_of(self, former: Keychain, within_s: float) -> None:
        """Replace connections in which this end has shown ``former``, where that is for good, ``within_s`` seconds."""

    # -- what follows --------------------------------------------------------------------------------

    def choose(self) -> Mode:
        """Return the mode for the present state."""
        return choose_mode(
            self.identity.validity, self.status_class, self.options, server_side=self.identity.server_side
        )

    def begin(self) -> Mode:
        """Return the mode for the start.

        Raises:
            KeychainError: The mode is to end.
        """
        self.mode = mode = self.choose()
        self.generation, self._in_use = self.identity.generation, self.identity.keychain
        if mode is Mode.SHUTDOWN:
            raise KeychainError(f"{self.identity.path}: {self.why()}; request a new certificate")
        return mode

    def news(self) -> tuple[str, bool] | None:
        """Return what has changed; None if nothing has, or if it is not time to act.

        Returns:
            Why, and whether existing TLS connections must close. Connections of a certificate that is only suspended stay,
            because the gate holds them. They also stay if only more authorities are trusted than before, or if another authority has
            certified the same key and names. The change is logged.
        """
        if not self.settled:
            return None
        mode, identity = self.choose(), self.identity
        replaced = identity.generation != self.generation
        if mode is self.mode and not replaced:
            return None
        self.mode, self.generation = mode, identity.generation
        former, self._in_use = self._in_use, identity.keychain
        present = identity.keychain
        goes_on = former is not None and present is not None and present.goes_on(former)
        if mode is Mode.TLS and not goes_on and former is not None and present is not None:
            goes_on = present.takes_over(former) and self._keep(former)
        why = "a new keychain is in use" if replaced else self.why()
        if mode is Mode.SHUTDOWN:
            what = "server stops" if identity.server_side else "client ends"
            _log.error("%s: %s: the %s, according to on_expiration", identity.path, self.why(), what)
        else:
            level = logging.INFO if mode is Mode.TLS else logging.WARNING
            _log.log(level, "%s: %s: %s", identity.path, why, mode.value)
        must_go = (replaced and not goes_on) or self.ended
        if must_go:
            self._let_go()
        return why, must_go

    def why(self) -> str:
        """Say what is wrong with our own certificate."""
        if self.identity.validity is not Validity.CURRENT:
            return {
                Validity.NONE: "there is no usable certificate",
                Validity.PENDING: "the certificate is not valid yet",
                Validity.EXPIRED: "the certificate has expired",
            }[self.identity.validity]
        if self._status_trouble:
            return self._status_trouble
        return (
            "the certificate is VALID"
            if self._own is None
            else f"the certificate is {self._own.status.state}"
        )

    def plight(self) -> str:
        """Return why identities cannot be proved over this end's connections now, for refused peers; empty if they can."""
        if self.mode is not Mode.TCP:
            return ""
        if self.identity.validity is Validity.CURRENT and self._own is not None:
            return describe_plight(self._own.status)
        return self.why()

    @property
    def ended(self) -> bool:
        """Whether connections that use our own certificate must close: it has ended, and is not only suspended."""
        return self.identity.validity is not Validity.CURRENT or self.status_class is StatusClass.BAD

    @abstractmethod
    def changed(self) -> None:
        """Apply what may have changed."""

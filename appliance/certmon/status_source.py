"""Follow the status of certificates: one subscription each, verified, remembered while it is valid.

Source: SPVA specification 4.7.2, 7.3, 7.4, 8.4.

A status is proved by a signature of the certificate's issuer, never by the server that sent it. So the rules are short. A
verified answer is valid until it expires, whatever happens to its connection; an older one never replaces it; REVOKED is
final, also if it seems to be older: the clocks of two nodes that sign for one authority may differ. An answer without a valid
signature is ignored while a verified one is valid.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from appliance.certmon.cache import StatusCache
from appliance.certmon.live_keychain import utc_now
from appliance.certmon.status_pv import StatusReport, decode_status
from appliance.certs.keychain import Keychain
from appliance.certs.ocsp import StatusAnswer, verify_response
from appliance.certs.status import STATUS_CLASS, CertState, OCSPState, StatusClass, judge, read_renew_by
from appliance.certs.x509 import (
    issuer_id,
    load_der,
    serial_number,
    shown_id,
    status_pv,
    subject_key_identifier,
    subject_text,
)
from appliance.client.context import Context
from appliance.client.end import Timings
from appliance.config.pva import ClientConfig
from appliance.errors import ApplianceError, CertificateError, CertificateStatusError
from appliance.pvdata.value import Value

__all__ = ["CertRef", "CertStatus", "Following", "StatusSource", "reference"]

_log: Final = logging.getLogger(__name__)

LINGER_S: Final = 30.0
"""Seconds for which a certificate is followed after the last interest in it, because clients come back."""
AGAIN_S: Final = 5.0
"""Seconds after which a subscription that its server has ended is opened again."""
SEARCH_S: Final = 5.0
"""Greatest seconds between two searches for a status PV: while it is not found, people cannot work."""
_LONGEST_SLEEP_S: Final = 60.0
"""The clock may be set while a timer runs, so check it at least this often, in seconds."""
_EVER: Final = datetime.max.replace(tzinfo=UTC)

_CLAIM: Final = {
    OCSPState.GOOD: CertState.VALID,
    OCSPState.REVOKED: CertState.REVOKED,
    OCSPState.UNKNOWN: CertState.UNKNOWN,
}


class CertRef(NamedTuple):
    """A certificate whose status can be followed."""

    issuer: x509.Certificate
    serial: int
    status_pv: str
    """As the certificate's extension names it (4.3): used unchanged, never rebuilt."""
    not_after: datetime
    subject: str
    not_before: datetime | None = None

    @property
    def key(self) -> tuple[bytes, int, str]:
        """What distinguishes it from all others."""
        return self.issuer.fingerprint(SHA256()), self.serial, self.status_pv

    @property
    def issuer_id(self) -> str:
        """First eight hex digits of the issuer's subject key identifier."""
        return issuer_id(self.issuer)

    def __str__(self) -> str:
        return f"{self.subject} ({shown_id(self.issuer_id, self.serial)})"


def reference(chain: Sequence[x509.Certificate]) -> CertRef | None:
    """Return what to follow of a verified chain, the leaf first; None if the certificate names no status PV (4.3).

    Raises:
        CertificateError: The extension cannot be read.
    """
    if not chain:
        return None
    leaf = chain[0]
    name = status_pv(leaf)
    if not name:
        return None
    return CertRef(
        chain[1] if len(chain) > 1 else leaf,
        serial_number(leaf),
        name,
        leaf.not_valid_after_utc,
        subject_text(leaf.subject),
        leaf.not_valid_before_utc,
    )


class CertStatus(NamedTuple):
    """What is known of a certificate now."""

    state: CertState
    status_class: StatusClass
    valid_until: datetime | None
    """Until when; None if nothing verified is known."""
    delivered: bool
    """Whether something authoritative was received, even if it only says that the certificate is not good."""
    renewal_due: bool
    response: bytes
    """The signed answer, while it is valid."""
    renew_by: datetime | None = None
    """When the certificate must have been renewed, as the service last said; None if it need not be, or is not known."""


_NOTHING: Final = CertStatus(CertState.UNKNOWN, StatusClass.UNKNOWN, None, False, False, b"")


class Following:
    """One caller's interest in one certificate."""

    __slots__ = ("_follower", "changed")

    def __init__(self, follower: _Follower, changed: Callable[[], None]) -> None:
        self._follower = follower
        self.changed = changed

    @property
    def status(self) -> CertStatus:
        """What is known now."""
        return self._follower.status

    @property
    def ref(self) -> CertRef:
        """The certificate."""
        return self._follower.ref

    def offer(self, response: bytes) -> None:
        """Take an answer that came another way, such as a staple. One that does not verify is ignored."""
        self._follower.offer(response)

    def close(self) -> None:
        """End the caller's interest. May be called again."""
        self._follower.drop(self)


class _Follower:
    """One certificate that somebody is interested in."""

    __slots__ = (
        "_again", "_claimed", "_due", "_linger", "_renew_by", "_subscription", "_timer", "answer", "followings", "ref",
        "source", "status", "warned",
    )  # fmt: skip

    def __init__(self, source: StatusSource, ref: CertRef) -> None:
        self.source = source
        self.ref = ref
        self.followings: dict[Following, None] = {}
        self.status = _NOTHING
        self.answer: StatusAnswer | None = None
        self.warned = ""
        self._claimed = CertState.UNKNOWN
        self._due = False
        self._renew_by: datetime | None = None
        self._subscription: Any = None
        self._timer: asyncio.TimerHandle | None = None
        self._linger: asyncio.TimerHandle | None = None
        self._again: asyncio.TimerHandle | None = None

    def start(self) -> None:
        cache = self.source.cache
        if cache is not None:
            kept = cache.read(self.ref.issuer_id, self.ref.serial)
            if kept and self._verify(kept, quiet=True):
                self._evaluate()
        self._subscribe()

    def _subscribe(self) -> None:
        self._again = None
        self._subscription = self.source.context.monitor(self.ref.status_pv, on_update=self._update)

    def stop(self) -> None:
        if self._subscription is not None:
            self._subscription.close()
            self._subscription = None
        for timer in (self._timer, self._linger, self._again):
            if timer is not None:
                timer.cancel()
        self._timer = self._linger = self._again = None

    # -- interest ------------------------------------------------------------------------------------

    def add(self, following: Following) -> None:
        self.followings[following] = None
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None

    def drop(self, following: Following) -> None:
        if self.followings.pop(following, self) is self or self.followings:
            return
        self._linger = self.source.loop.call_later(LINGER_S, self.source.forget, self)

    # -- news ----------------------------------------------------------------------------------------

    def _update(self, item: Any) -> None:
        if isinstance(item, Value):
            try:
                self._take(item)
            except CertificateStatusError as error:
                self._warn(str(error))
        elif isinstance(item, ApplianceError):
            # The server has ended the subscription; what is known stays true.
            self._subscription = None
            self._warn(str(item))
            if self._again is None and self.source.running:
                self._again = self.source.loop.call_later(AGAIN_S, self._subscribe)

    def _take(self, value: Value) -> None:
        report = decode_status(value)
        if report.ocsp_response:
            if self._verify(report.ocsp_response, claimed=report.state):
                self._due = report.renewal_due
                self._renew_by = self._date_of_renewal(report)
                self._evaluate()
                self._keep()
            return
        # Without a signature it can only say that there is no good status, and only if nothing better is known.
        if self.answer is None or (
            self.answer.state is not OCSPState.REVOKED and self.answer.next_update <= self.source.now()
        ):
            state = CertState.UNKNOWN if report.state is CertState.VALID else report.state
            self._become(CertStatus(state, StatusClass.UNKNOWN, None, True, False, b""))

    def _date_of_renewal(self, report: StatusReport) -> datetime | None:
        """Return when the certificate must have been renewed; None if it need not be.

        Services in C++ of 2026 write the end of the certificate for "never", and 0 beside the hint that a renewal is due.
        """
        found = read_renew_by(report.renew_by, self.ref.not_before)
        if found is None:
            return self._renew_by if report.renewal_due else None
        return found if found < self.ref.not_after else None

    def offer(self, response: bytes) -> None:
        if self._verify(response, quiet=True):
            self._evaluate()
            self._keep()

    def _verify(self, response: bytes, *, claimed: CertState | None = None, quiet: bool = False) -> bool:
        """Take a response if it verifies and is not older than what is known."""
        known = self.answer
        if known is not None and response == known.der:
            # Received again, after a reconnection or as a staple, which says less than the PV. A signature check is not worth it.
            if claimed is not None:
                self._claimed = claimed
            return claimed is not None
        try:
            answer = verify_response(
                response, issuer=self.ref.issuer, serial=self.ref.serial, now=self.source.now()
            )
        except CertificateStatusError as error:
            if not quiet:
                self._warn(f"a status was ignored: {error}")
            return False
        if known is not None:
            if known.state is OCSPState.REVOKED and answer.state is not OCSPState.REVOKED:
                self._warn("a status that takes back a revocation was ignored")
                return False
            is_news = answer.state is OCSPState.REVOKED is not known.state
            if answer.this_update < known.this_update and not is_news:
                return False
        self.answer = answer
        self._claimed = _CLAIM[answer.state] if claimed is None else claimed
        return True

    def _warn(self, why: str) -> None:
        if why != self.warned:
            self.warned = why
            _log.warning("%s: %s", self.ref, why)

    def _keep(self) -> None:
        cache, answer = self.source.cache, self.answer
        if cache is None or answer is None or not self.status.delivered:
            return
        ident = (self.ref.issuer_id, self.ref.serial)
        # Only what the signature alone proves is stored: GOOD beside "offline by schedule" would be read as VALID.
        if self.status.status_class is StatusClass.GOOD or answer.state is OCSPState.REVOKED:
            if cache.read(*ident) != answer.der:
                self.source.in_background(cache.write, *ident, answer.der)
        else:
            self.source.in_background(cache.forget, *ident)

    # -- what follows --------------------------------------------------------------------------------

    def _evaluate(self) -> None:
        """Set what the known answer means now, and when that ends."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        answer = self.answer
        if answer is None:
            return
        now = self.source.now()
        if answer.state is OCSPState.REVOKED:
            state, until = CertState.REVOKED, _EVER
        else:
            state, _, until = judge(answer.state, self._claimed, next_update=answer.next_update, now=now)
            if now >= self.ref.not_after:
                state, until = CertState.EXPIRED, _EVER
            else:
                until = min(until, self.ref.not_after)
        holds = now < answer.next_update
        self._become(
            CertStatus(
                state,
                STATUS_CLASS[state],
                until,
                True,
                self._due,
                answer.der if holds else b"",
                self._renew_by,
            )
        )
        if now < until < _EVER:
            wait = (until - now) / timedelta(seconds=1)
            self._timer = self.source.loop.call_later(min(wait, _LONGEST_SLEEP_S) + 0.01, self._evaluate)

    def _become(self, status: CertStatus) -> None:
        before, self.status = self.status, status
        if (before.state, before.delivered) != (status.state, status.delivered):
            level = (
                logging.INFO
                if status.status_class is StatusClass.GOOD or not before.delivered
                else logging.WARNING
            )
            told = {
                "event": "certificate-status",
                "cert_id": shown_id(self.ref.issuer_id, self.ref.serial),
                "state": str(status.state),
            }
            _log.log(level, "%s: %s -> %s", self.ref, before.state, status.state, extra=told)
        elif before == status:
            return
        for following in list(self.followings):
            try:
                following.changed()
            except Exception:  # noqa: BLE001 - the others must learn that the certificate was revoked
                _log.exception("%s: telling the status failed", self.ref)


def _authority(certificate: x509.Certificate) -> bytes:
    """Return what all certificates of one authority have in common, including those that other authorities have signed for it."""
    return certificate.subject.public_bytes() + subject_key_identifier(certificate)


class StatusSource:
    """Follows certificates for one process. ``start`` it before the first ``follow``."""

    def __init__(
        self,
        config: ClientConfig,
        *,
        cache: StatusCache | None = None,
        now: Callable[[], datetime] = utc_now,
        max_followed: int = 10_000,
        beacons: bool = True,
    ) -> None:
        self._tls_alone = config.tls_alone
        servers = config.name_servers if self._tls_alone else [s for s in config.name_servers if not s.tls]
        plain = config._replace(tls_keychain="", name_servers=tuple(servers))
        # Over plain TCP on purpose: a certificate's status cannot depend on the certificate, and it is signed.
        self.context = Context(
            plain, beacons=beacons, octets=True, timings=Timings(longest_search_s=SEARCH_S)
        )
        self.cache = cache
        self.now = now
        self.max_followed = max_followed
        self.running = False
        self.loop: asyncio.AbstractEventLoop = None  # type: ignore[assignment]
        self._authorities: set[bytes] = set()
        self._followers: OrderedDict[tuple[bytes, int, str], _Follower] = OrderedDict()
        self._background: set[asyncio.Future[None]] = set()

    def authenticate(self, keychain: Keychain | None) -> None:
        """Verify servers with the trust anchors of ``keychain``, if name servers with ``pvas://`` leave no other way than TLS.

        No certificate is shown, and none of a server's is followed: what comes is signed.
        """
        if not self._tls_alone or keychain is None or not keychain.anchors:
            return
        from appliance.tls.context import client_context

        self.context.set_tls(client_context(keychain.anchors_alone(), want_staple=False))

    async def start(self) -> None:
        """Open the sockets."""
        self.loop = asyncio.get_running_loop()
        await self.context.start()
        self.running = True

    async def close(self) -> None:
        """Stop following."""
        self.running = False
        for follower in list(self._followers.values()):
            follower.stop()
        self._followers.clear()
        if self._background:
            await asyncio.gather(*self._background, return_exceptions=True)
        await self.context.close()

    @property
    def followed(self) -> int:
        """Number of certificates that are followed."""
        return len(self._followers)

    def follows_issuer_of(self, chain: Sequence[x509.Certificate]) -> bool:
        """Whether the authority of a verified chain is one whose certificates have a status.

        This is known from certificates met so far, above all this end's own. An authority without a certificate service has none.
        """
        return len(chain) > 1 and _authority(chain[1]) in self._authorities

    def follow(self, ref: CertRef, changed: Callable[[], None]) -> Following:
        """Call ``changed`` whenever the status of a certificate changes; never from inside this call.

        All callers with the same certificate share one subscription.

        Raises:
            CertificateStatusError: There are too many certificates.
        """
        self._authorities.add(_authority(ref.issuer))
        follower = self._followers.get(ref.key)
        if follower is None:
            if len(self._followers) >= self.max_followed and not self._make_room():
                raise CertificateStatusError(
                    f"{self.max_followed} certificates are followed already, which is the limit"
                )
            follower = self._followers[ref.key] = _Follower(self, ref)
            follower.start()
        following = Following(follower, changed)
        follower.add(following)
        return following

    def _make_room(self) -> bool:
        idle = next((follower for follower in self._followers.values() if not follower.followings), None)
        if idle is None:
            return False
        self.forget(idle)
        return True

    def forget(self, follower: _Follower) -> None:
        """Forget a certificate that nobody has asked about for a while."""
        if not follower.followings:
            follower.stop()
            self._followers.pop(follower.ref.key, None)

    def in_background(self, work: Callable[..., None], *args: Any) -> None:
        """Run work that waits for the disk beside the event loop."""
        future = self.loop.run_in_executor(None, work, *args)
        self._background.add(future)
        future.add_done_callback(self._background.discard)

    def check_staple(self, staple: bytes | None, chain: tuple[bytes, ...]) -> None:
        """Judge a stapled answer inside the handshake (13.1): REVOKED ends it.

        A staple that is outdated or does not verify counts as none; the live status then decides.

        Raises:
            CertificateStatusError: The certificate is REVOKED.
        """
        if not staple or not chain:
            return
        try:
            leaf, *above = map(load_der, chain)
            issuer = above[0] if above else leaf
            answer = verify_response(staple, issuer=issuer, serial=serial_number(leaf), now=self.now())
        except (CertificateError, CertificateStatusError) as error:
            _log.warning("a stapled status was ignored: %s", error)
            return
        if answer.state is OCSPState.REVOKED:
            raise CertificateStatusError(f"the certificate {subject_text(leaf.subject)} is REVOKED")

"""The keeper of a process's keychains: follows their certificates, and requests what the plan says.

All keychains of a process have one keeper, because one token may serve several of them, and only at the same time
(docs/decisions/0083). The certificate service is asked in a new connection without a certificate of ours: a suspended session
could not ask for the renewal that ends the suspension (SPVA specification 9.4).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple, Protocol

from cryptography import x509

from appliance.authn.ccr import CertRequest
from appliance.authn.due import cadence, ended_early
from appliance.authn.live.plan import (
    Action,
    Facts,
    Failure,
    Past,
    Step,
    after_failure,
    next_step,
    noticed,
    renewed,
)
from appliance.authn.requester import Existing, NotHeldError, Requester
from appliance.authn.sending import LIMITED, Line
from appliance.authn.waiting import keeps_its_place
from appliance.certmon.status_source import Following, StatusSource, reference
from appliance.certs.keychain import Keychain
from appliance.certs.status import CertState, format_date
from appliance.certs.x509 import shown_id
from appliance.errors import (
    ApplianceError,
    ChannelClosedError,
    ConfigurationError,
    OperationTimeoutError,
    RemoteError,
    TokenUnavailable,
    TransportError,
)

__all__ = ["Keeper", "Kept", "Maker", "Prepared"]

_log: Final = logging.getLogger(__name__)

LONGEST_SLEEP_S: Final = 30.0
"""The clock may be set while the keeper sleeps, so it looks at it at least this often, in seconds."""
BETWEEN_QUESTIONS_S: Final = 5.0
"""Seconds between two questions for the whole status of one certificate."""
FIRST_STATUS_S: Final = 5.0
"""Seconds to wait at the start for the status of certificates that are there."""
_PASSING: Final = (OperationTimeoutError, TransportError, ChannelClosedError)
_UNAVAILABLE: Final = {
    "none": Failure.NO_TOKEN,
    "unreachable": Failure.TRANSIENT,
    "limited": Failure.LIMITED,
    "refused": Failure.REFUSED,
}


class Prepared(NamedTuple):
    """What proves the identity in the requests of one moment."""

    request: Callable[[Requester], tuple[Callable[[str], CertRequest], x509.Name | None]]
    """Returns what makes one keychain's request from its public key, and the subject of its certificate if it is known."""
    answered: Callable[[], None]
    """Called when the service has answered a request, so that a proof for one use is not sent again."""


class Maker(Protocol):
    """What an authenticator contributes. The keeper knows neither tokens nor names."""

    @property
    def early(self) -> bool:
        """Whether the service issues a certificate before the end of the one that it follows."""

    @property
    def together(self) -> bool:
        """Whether one proof serves all keychains, and is used up by that."""

    def line(self) -> Line:
        """Return a new connection for the requests of one moment."""

    async def prepare(self, better_than: datetime | None) -> Prepared:
        """Return the proof for the requests of this moment.

        Args:
            better_than: A renewal must move ``renew_by`` beyond this time; None for a new certificate.

        Raises:
            TokenUnavailable: There is none at present.
            ApplianceError: There will be none until somebody changes something.
        """
        ...

    async def close(self) -> None:
        """Give back what it holds."""


class Kept:
    """One keychain, and what its keeper knows of it."""

    def __init__(self, requester: Requester) -> None:
        self.requester = requester
        self.existing = Existing()
        self.facts = Facts(requester.now())
        self.past = Past()
        self.spread = 0.0
        self.following: Following | None = None
        self.stopped = ""
        """Why nothing more is requested; empty while it is kept."""
        self.said = ""
        """Why the last attempt failed; empty after a success."""
        self.logged = ("", False)
        self.questions = 0
        """Statuses since the last rest that only the service's whole answer can explain."""
        self.new_key = False
        """Whether the service renews a certificate of this key that never arrived, so that only another key gets a new one."""

    @property
    def path(self) -> str:
        """The keychain file."""
        return self.requester.settings.keychain

    @property
    def keychain(self) -> Keychain | None:
        """The keychain, if it has a certificate."""
        return self.existing.keychain if self.existing.certificate is not None else None

    def status_line(self) -> str:
        """Return one line for ``systemctl status``."""
        name = self.path.rpartition("/")[2]
        keychain, facts = self.keychain, self.facts
        if keychain is None:
            return f"{name}: no certificate yet{f' ({self.said})' if self.said else ''}"
        parts = [f"{name} {shown_id(keychain.issuer_id, keychain.serial)}: {facts.state.value}"]
        if facts.cadence is not None:
            parts.append(f"renew by {format_date(facts.cadence)}")
        elif facts.not_after is not None:
            parts.append(f"until {format_date(facts.not_after)}")
        if facts.renewed is not None:
            parts.append(f"last renewed {format_date(facts.renewed)}")
        if self.stopped or self.said:
            parts.append(self.stopped or self.said)
        return ", ".join(parts)


class Keeper:
    """Keeps the keychains of one process until it is cancelled, or until all their certificates are revoked.

    Args:
        requesters: One for each keychain.
        maker: What the authenticator contributes.
        source: Follows the certificates; it has been started.
        changed: Called when a keychain, its certificate or its dates have changed.
        dice: Returns random numbers, 0 to 1.
    """

    def __init__(
        self,
        requesters: Sequence[Requester],
        maker: Maker,
        source: StatusSource,
        *,
        changed: Callable[[], None] = lambda: None,
        dice: Callable[[], float] = random.random,
    ) -> None:
        self.kept = [Kept(requester) for requester in requesters]
        self._maker = maker
        self._source = source
        self._told = changed
        self._dice = dice
        self._now = requesters[0].now
        self._news = asyncio.Event()
        self._look_again = False
        self._asking: set[asyncio.Task[None]] = set()

    @property
    def complete(self) -> bool:
        """Whether every keychain has a certificate, if only one that waits for approval."""
        return all(kept.keychain is not None for kept in self.kept)

    def look_now(self) -> None:
        """Read the keychains again and decide without waiting: what SIGHUP asks for."""
        self._look_again = True
        self._news.set()

    async def run(self) -> None:
        """Keep the keychains. Returns when there is nothing more to do for any of them.

        Raises:
            ApplianceError: A keychain cannot be read at the start.
        """
        for kept in self.kept:
            self._look(kept)
        self._told()
        await self._first_status()
        try:
            while True:
                if self._look_again:
                    self._look_again = False
                    self._read_again()
                self._news.clear()
                steps = self._steps()
                if all(kept.stopped for kept in self.kept):
                    return
                due = [kept for kept, step in steps if step.action in (Action.RENEW, Action.REPLACE)]
                if due:
                    await self._request(due)
                    continue
                until = min(step.until for _, step in steps if step.until is not None)
                await self._sleep((until - self._now()).total_seconds())
        finally:
            for kept in self.kept:
                self._unfollow(kept)
            for task in self._asking:
                task.cancel()

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(max(0.0, min(seconds, LONGEST_SLEEP_S))):
                await self._news.wait()
        except TimeoutError:
            pass

    def _steps(self) -> list[tuple[Kept, Step]]:
        steps = []
        for kept in self.kept:
            if kept.stopped:
                continue
            kept.facts = kept.facts._replace(now=self._now())
            step = next_step(kept.facts, kept.past, kept.spread)
            if step.action is Action.STOP:
                kept.stopped = step.why
                _log.error(
                    "%s: %s; an automatic renewal does not undo that. If the reason is gone, request a new one without -D",
                    kept.path, step.why, extra=self._extra(kept, "certificate-revoked"),
                )  # fmt: skip
                self._told()
            else:
                steps.append((kept, step))
        return steps

    # -- what is there ---------------------------------------------------------------------------------

    def _look(self, kept: Kept) -> None:
        """Read a keychain, and follow its certificate."""
        requester = kept.requester
        existing = requester.look()
        requester.refuse_unreadable(existing)
        kept.existing = existing
        now = self._now()
        certificate = existing.certificate
        self._unfollow(kept)
        kept.spread = self._dice()
        due = requester.renewal_due(existing)
        if certificate is None or due.when is None:
            kept.facts = Facts(now)
            return
        kept.facts = Facts(now, certificate.not_valid_after_utc, due.when if self._maker.early else None)
        keychain = existing.keychain
        assert keychain is not None
        self._source.authenticate(keychain)
        followed = reference((certificate, *keychain.chain, *keychain.anchors))
        if followed is not None:
            kept.following = self._source.follow(followed, lambda: self._status(kept))
            self._status(kept)

    def _unfollow(self, kept: Kept) -> None:
        following, kept.following = kept.following, None
        if following is not None:
            following.close()

    def _read_again(self) -> None:
        """Read keychains that somebody else may have replaced; one that cannot be read now is kept as it was."""
        for kept in self.kept:
            before = kept.existing.certificate
            try:
                existing = kept.requester.look()
                kept.requester.refuse_unreadable(existing)
            except ApplianceError as error:
                self._complain(kept, str(error))
                continue
            if existing.certificate != before or kept.stopped:
                kept.stopped = ""
                kept.past = Past()
                self._look(kept)
            else:
                kept.past = kept.past._replace(pause_s=0.0)
        self._told()

    async def _first_status(self) -> None:
        """Wait a little for the status of what is there, because it decides what is due."""
        try:
            async with asyncio.timeout(FIRST_STATUS_S):
                while any(
                    kept.following is not None and not kept.following.status.delivered for kept in self.kept
                ):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            pass

    def _status(self, kept: Kept) -> None:
        """Take what the followed status says now."""
        following, certificate = kept.following, kept.existing.certificate
        if following is None or certificate is None:
            return
        status = following.status
        if not status.delivered:
            return
        by = status.renew_by
        self._notice(
            kept,
            noticed(
                kept.facts,
                self._now(),
                state=status.state if status.valid_until is not None else CertState.UNKNOWN,
                renew_by=by if by is not None and by < certificate.not_valid_after_utc else None,
                hint=status.renewal_due,
            ),
        )
        if status.state is CertState.UNKNOWN and status.response:
            # Perhaps it was forgotten; only the whole answer can tell.
            kept.questions += 1
            if kept.questions == 1:
                task = self._source.loop.create_task(self._ask_once_each(kept))
                self._asking.add(task)
                task.add_done_callback(self._asking.discard)

    async def _ask_once_each(self, kept: Kept) -> None:
        """Ask until nothing new was said during the question. One at a time: whoever sends statuses decides how many come."""
        asked = 0
        try:
            while asked != kept.questions:
                if asked:
                    await asyncio.sleep(BETWEEN_QUESTIONS_S)
                asked = kept.questions
                await self._ask(kept)
        finally:
            kept.questions = 0

    async def _ask(self, kept: Kept) -> None:
        """Ask for the status once, and take what it says."""
        existing = kept.existing
        report = await kept.requester.report(existing)
        certificate = existing.certificate
        if report is None or certificate is None or not report.verified or kept.existing is not existing:
            return
        forgotten = bool(ended_early(report)) and report.state is CertState.UNKNOWN
        by = cadence(report.report.renew_by, certificate)
        self._notice(
            kept,
            noticed(
                kept.facts,
                self._now(),
                state=report.state,
                renew_by=by,
                hint=report.report.renewal_due,
                forgotten=forgotten,
            ),
        )

    def _notice(self, kept: Kept, facts: Facts) -> None:
        before, kept.facts = kept.facts, facts
        if facts.renew_by != before.renew_by:
            kept.spread = self._dice()
        if facts._replace(now=before.now) != before:
            self._told()
        self._news.set()

    # -- requests --------------------------------------------------------------------------------------

    async def _request(self, due: list[Kept]) -> None:
        """Request for those that are due; and for all others too, if one proof serves all and is used up by that."""
        wanted = due
        if self._maker.together:
            wanted = [
                kept
                for kept in self.kept
                if not kept.stopped and (kept in due or kept.facts.state is not CertState.PENDING_APPROVAL)
            ]
        dates = [kept.facts.cadence for kept in due if kept.facts.cadence is not None]
        try:
            prepared = await self._maker.prepare(max(dates, default=None))
        except TokenUnavailable as error:
            for kept in due:
                self._failed(kept, _UNAVAILABLE[error.kind], str(error), wait_s=error.retry_s)
            return
        except ApplianceError as error:
            for kept in due:
                self._failed(kept, Failure.REFUSED, str(error))
            return
        async with self._maker.line() as line:
            for kept in wanted:
                await self._request_one(kept, prepared, line, is_due=kept in due)

    async def _request_one(self, kept: Kept, prepared: Prepared, line: Line, *, is_due: bool) -> None:
        requester, before = kept.requester, kept.facts
        try:
            existing = requester.look()
            requester.refuse_unreadable(existing)
            make, subject = prepared.request(requester)
            requester.check_identity(existing, subject)
            outcome = await requester.take_waiting(existing)
            sent = outcome is None
            if outcome is None:
                outcome = await requester.obtain(
                    make, existing, subject=subject, line=line, new_key=kept.new_key, any_name=True,
                    beside=not before.forgotten and keeps_its_place(before.state),
                )  # fmt: skip
        except ApplianceError as error:
            kind, wait_s = _kind(error)
            kept.new_key = kept.new_key or isinstance(error, NotHeldError)
            if isinstance(error, (RemoteError, NotHeldError)):
                prepared.answered()
            if kind is Failure.TRANSIENT:
                # The answer may be what was lost.
                await self._ask(kept)
                date = kept.facts.renew_by
                if date is not None and (before.renew_by is None or date > before.renew_by):
                    prepared.answered()
                    self._succeeded(
                        kept, renewed(kept.facts, self._now(), state=kept.facts.state, renew_by=date)
                    )
                    return
            self._failed(kept, kind, str(error), wait_s=wait_s)
            return
        if sent:
            prepared.answered()
        if outcome.action == "waiting":
            self._failed(
                kept,
                Failure.REFUSED,
                f"the new certificate {outcome.cert_id} waits for approval (pvxcert --approve {outcome.cert_id}); until then the "
                "keychain keeps the one that it has",
            )
            return
        if outcome.action == "created":
            self._look(kept)
            now = self._now()
            self._succeeded(
                kept, kept.facts._replace(now=now, state=outcome.state, renew_by=outcome.renew_by, since=now)
            )
            return
        facts = renewed(kept.facts, self._now(), state=outcome.state, renew_by=outcome.renew_by)
        moved = outcome.renew_by is not None and (
            before.renew_by is None or outcome.renew_by > before.renew_by
        )
        passed = facts.cadence is not None and facts.cadence <= facts.now
        if (moved or not is_due) and not passed:
            self._succeeded(kept, facts)
            return
        kept.facts = facts
        why = "the service renewed the certificate without moving its renew-by date"
        if moved and passed:
            # The next renewal is due at once, so this counts as a failure, which has a pause.
            why = (
                f"the service renewed the certificate until {format_date(facts.cadence)}, which has passed already; check the "
                "clocks of both hosts"
            )
        self._failed(kept, Failure.REFUSED, why)

    def _succeeded(self, kept: Kept, facts: Facts) -> None:
        kept.facts, kept.past, kept.said, kept.logged = facts, Past(), "", ("", False)
        kept.new_key = False
        kept.spread = self._dice()
        by, keychain = facts.cadence, kept.keychain
        until = f"renew by {format_date(by)}" if by is not None else f"until {format_date(facts.not_after)}"
        if facts.state is CertState.PENDING_APPROVAL and keychain is not None:
            ident = shown_id(keychain.issuer_id, keychain.serial)
            until = f"an administrator approves it with: pvxcert --approve {ident}"
        _log.info(
            "%s: the certificate is %s, %s", kept.path, facts.state.value, until,
            extra=self._extra(kept, "keychain-renewed"),
        )  # fmt: skip
        self._told()
        self._news.set()

    def _failed(self, kept: Kept, kind: Failure, why: str, *, wait_s: float = 0.0) -> None:
        kept.past = after_failure(kept.past, kind, kept.facts, jitter=self._dice(), wait_s=wait_s)
        self._complain(kept, why, quiet=kind is Failure.NO_TOKEN and not _pressing(kept.facts))
        self._told()

    def _complain(self, kept: Kept, why: str, *, quiet: bool = False) -> None:
        """Log a reason once, and again only after another one; at first quietly if there is time left."""
        kept.said = why
        if (why, quiet) != kept.logged:
            kept.logged = (why, quiet)
            _log.log(
                logging.INFO if quiet else logging.WARNING, "%s: %s", kept.path, why,
                extra=self._extra(kept, "keychain-not-renewed"),
            )  # fmt: skip

    def _extra(self, kept: Kept, event: str) -> dict[str, str]:
        keychain = kept.keychain
        ident = "" if keychain is None else shown_id(keychain.issuer_id, keychain.serial)
        return {"event": event, "keychain": kept.path, "cert_id": ident}


def _pressing(facts: Facts) -> bool:
    """Whether three quarters of the way to ``renew_by`` are over, or there is none."""
    by, since = facts.cadence, facts.since
    if by is None or since is None:
        return True
    return facts.now >= since + timedelta(seconds=(by - since).total_seconds() * 0.75)


def _kind(error: ApplianceError) -> tuple[Failure, float]:
    """Return how a failed request is repeated, and the seconds that the service named."""
    if isinstance(error, RemoteError):
        limited = LIMITED.search(str(error))
        return (Failure.LIMITED, float(limited[1])) if limited else (Failure.REFUSED, 0.0)
    passing = isinstance(error, _PASSING) or isinstance(error.__cause__, _PASSING)
    return (
        Failure.TRANSIENT if passing and not isinstance(error, ConfigurationError) else Failure.REFUSED
    ), 0.0

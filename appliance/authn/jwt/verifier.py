"""Judge a token and its circumstances: the result is a grant or a refusal."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Self

from appliance.authn.grant import USAGES, Grant, ProvenIdentity, backdated
from appliance.authn.jwt import jwk, naming, uri
from appliance.authn.jwt import token as tokens
from appliance.authn.jwt.config import JWTConfig, TrustedIssuer, claim_values
from appliance.authn.jwt.fetch import Fetcher
from appliance.authn.jwt.introspect import Introspector
from appliance.authn.jwt.jwks import JWKSClient
from appliance.authn.jwt.replay import USED_BEFORE, ReplayStore
from appliance.authn.ratelimit import RateLimiter, peer_key, retry_sentence
from appliance.certs.san import San, in_certificate, parse_san
from appliance.errors import ApplianceError, TokenRefused

__all__ = ["JWTVerifier"]

_REPEATED: Final = "repeated"
_PLAINTEXT: Final = (
    "tokens are accepted over TLS only, and this one was sent unencrypted: have it withdrawn, fetch a new one"
)
_NOT_TRUSTED: Final = "the token's issuer is not trusted here"

_SAME_USE_S: Final = 30.0
"""Seconds in which one connection may use a token for its other usages."""
_MOST_USES: Final = 10_000
_MOST_WORDS: Final = 1000

_log = logging.getLogger(__name__)


class _Trusted:
    """One trusted issuer with what is needed to ask it."""

    def __init__(self, settings: TrustedIssuer, clock: Callable[[], float]) -> None:
        self.settings = settings
        self.limiter = RateLimiter(settings.per_minute, settings.burst, clock=clock)
        self.fetcher = Fetcher(ca_file=settings.ca_file)
        self._introspector: Introspector | None = None
        self._jwks: JWKSClient | None = None
        self._secret = b""
        if settings.mode == "introspect":
            self._introspector = Introspector(settings, self.fetcher, clock=clock)
        elif settings.mode == "jwks":
            self._jwks = JWKSClient(
                settings.jwks_uri,
                self.fetcher,
                clock=clock,
                stale_s=float(settings.jwks_stale_s),
                insecure_http=settings.allow_insecure_http,
            )
        else:
            self._secret = settings.shared_secret.reveal().encode("utf-8")

    async def authenticate(self, token: tokens.Token) -> None:
        """Raise TokenRefused unless the issuer confirms the token."""
        if self._introspector is not None:
            await self._introspector.check(token)
        elif self._jwks is not None:
            key = await self._jwks.key_for(token.kid, token.alg)
            try:
                jwk.check_signature(key, token.alg, token.signing_input, token.signature)
            except TokenRefused:
                newer = await self._jwks.newer_key(key, token.kid, token.alg)
                if newer is None:
                    raise
                jwk.check_signature(newer, token.alg, token.signing_input, token.signature)
        else:
            jwk.check_hmac(self._secret, token.alg, token.signing_input, token.signature)


class JWTVerifier:
    """Judges tokens for the certificate service. Every doubt, and every defect in this code, is a refusal.

    `clock` is monotonic and is for caches and rate limits; the wall clock comes with each call as `now`. Use it in one event
    loop, and `close` it (or use ``async with``).
    """

    def __init__(
        self,
        config: JWTConfig,
        *,
        replay: ReplayStore,
        reserved_names: Iterable[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._replay = replay
        self._reserved = naming.ReservedNames(reserved_names)
        self._peers = RateLimiter(config.peer_per_minute, config.peer_burst, clock=clock)
        self._organizations = config.organizations()
        self._by_name = {issuer.issuer: _Trusted(issuer, clock) for issuer in config.issuers if issuer.issuer}
        self._same_use = _SameUse(clock)
        self._by_uri = next((_Trusted(issuer, clock) for issuer in config.issuers if not issuer.issuer), None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections to the issuers."""
        for trusted in (*self._by_name.values(), *((self._by_uri,) if self._by_uri else ())):
            await trusted.fetcher.close()

    def reserve(self, names: Iterable[str]) -> None:
        """Replace the names that no token may obtain, for example when administrators change."""
        self._reserved = naming.ReservedNames(names)

    async def verify(
        self,
        token: str,
        *,
        usage: str,
        public_key: bytes | str,
        peer: str,
        now: datetime,
        is_tls: bool,
        san: Sequence[San] = (),
        key_id: str = "",
    ) -> Grant:
        """Judge one submission.

        A token that is accepted counts as used, so the caller must act on the grant.

        Args:
            token: The token's text.
            usage: ``client``, ``server`` or ``ioc``.
            public_key: The public key of the request, in PEM form.
            peer: The sender's address and port.
            now: The present time, aware.
            is_tls: Whether the submission came over TLS.
            san: The alternative names that are asked for.
            key_id: What tells the key from others, if the requester has proved to hold it: then it may send the token again
                if it lost the answer. Empty: it may not.

        Returns:
            What the requester may obtain.

        Raises:
            TokenRefused: The token is not accepted. Nothing else is raised.
        """
        facts: dict[str, str] = {"peer": tokens.clean(peer), "usage": tokens.clean(usage)}
        try:
            if now.tzinfo is None:
                raise ValueError("now must be aware")  # noqa: TRY301 - a defect like any other: refuse
            return await self._verify(
                token,
                usage=usage,
                public_key=public_key,
                peer=peer,
                now=now.timestamp(),
                is_tls=is_tls,
                san=san,
                key_id=key_id,
                facts=facts,
            )
        except TokenRefused as refusal:
            refusal.facts = {**facts, **refusal.facts}
            raise
        except Exception as error:  # noqa: BLE001 - the last line of defence: whatever fails, nobody is let in
            # The text of an unexpected exception may quote its input, so only its type is logged.
            _log.error("a token was refused because of a defect: %s", type(error).__name__)
            raise TokenRefused("internal_error", facts=facts) from None

    async def _verify(
        self,
        text: str,
        *,
        usage: str,
        public_key: bytes | str,
        peer: str,
        now: float,
        is_tls: bool,
        san: Sequence[San],
        key_id: str,
        facts: dict[str, str],
    ) -> Grant:
        if not is_tls and not self._config.allow_plaintext_token:
            raise TokenRefused("plaintext_transport", _PLAINTEXT)
        wait_s = self._peers.take(peer_key(peer))
        if wait_s:
            raise TokenRefused("rate_limited_peer", retry_sentence(wait_s))
        token = tokens.parse(text)
        facts.update(token.facts())
        trusted = self._choose(token.issuer)
        settings = trusted.settings
        facts["mode"] = settings.mode
        tokens.check_header(token, algorithms=settings.algorithms, types=settings.typ)
        claims = tokens.check_claims(
            token,
            now=now,
            leeway=settings.leeway_s,
            longest_validity=settings.longest_validity_s,
            audience=settings.audience,
            require_jti=settings.require_jti,
        )
        if claims.expires <= now:
            # Within the leeway the issuer may be right and our clock ahead, but a certificate ends with its token.
            raise TokenRefused("no_validity_left", tokens.EXPIRED)
        _check_usage(settings, token.claims, usage)
        proved = _proved_names(settings, token.claims)
        _check_names(settings, san, proved)
        if claims.confirmation is not None:
            jwk.confirm(claims.confirmation, public_key)
        name = naming.common_name(
            claims.subject,
            rule=settings.subject_rule,
            extra_characters=settings.subject_extra_characters,
            non_ascii=settings.subject_non_ascii,
            reserved=self._reserved,
        )
        wait_s = trusted.limiter.take("")
        if wait_s:
            raise TokenRefused("rate_limited_issuer", retry_sentence(wait_s))
        await trusted.authenticate(token)
        issuer = claims.issuer or settings.name
        connection = peer if is_tls else ""
        again, first_use = await self._use_once(
            issuer, claims, now, settings.leeway_s, usage=usage, connection=connection, key_id=key_id
        )
        if again:
            facts[again] = "yes"
        expires = datetime.fromtimestamp(claims.expires, UTC)
        present = datetime.fromtimestamp(int(now), UTC)
        lives = settings.lifetime
        end, renew_by = (lives.after(present), expires) if lives else (expires, None)
        begin = next((t for t in (claims.not_before, claims.issued_at) if t is not None), None)
        return Grant(
            method="jwt",
            subject={"CN": name, "O": self._organizations[settings.name], "OU": "", "C": ""},
            not_before=backdated(present, end) if begin is None else datetime.fromtimestamp(begin, UTC),
            not_after=end,
            approval_needed=settings.approval,
            identity=ProvenIdentity(issuer, claims.subject),
            audit={**facts, "iss": tokens.clean(issuer)},
            renew_by=renew_by,
            san=proved,
            repeated=first_use,
        )

    def _choose(self, issuer: str | None) -> _Trusted:
        if issuer is not None and issuer in self._by_name:
            return self._by_name[issuer]
        fallback = self._by_uri
        if issuer is None:
            if fallback is None:
                raise TokenRefused("iss_missing", _NOT_TRUSTED)
            return fallback
        if fallback is None or not uri.issuer_covers(issuer, fallback.settings.trusted_uri):
            raise TokenRefused("iss_not_trusted", self._not_trusted(issuer))
        return fallback

    def _not_trusted(self, issuer: str) -> str:
        """Return why an issuer is not trusted: with what it was compared, for whoever comes that near to it."""
        for name in self._by_name:
            if uri.nearly(issuer) == uri.nearly(name):
                return f"{_NOT_TRUSTED}: its iss is {tokens.clean(issuer)!r}, compared letter by letter with {name!r}"
        fallback = self._by_uri
        if fallback is not None and uri.issuer_covers(uri.nearly(issuer), fallback.settings.trusted_uri):
            return (
                f"{_NOT_TRUSTED}: its iss is {tokens.clean(issuer)!r}, compared letter by letter with the beginning of "
                f"{fallback.settings.trusted_uri!r}"
            )
        return f"{_NOT_TRUSTED}: its iss is {tokens.clean(issuer)!r}, and none of the issuers of this service is like it"

    async def _use_once(
        self,
        issuer: str,
        claims: tokens.Claims,
        now: float,
        leeway: int,
        *,
        usage: str,
        connection: str,
        key_id: str,
    ) -> tuple[str, int]:
        """Record the use of a token.

        Returns:
            How it belongs to the use before it, in a word for the audit, empty if it does not; and when that was, if the same key
            repeats it (POSIX seconds).

        Raises:
            TokenRefused: The token was used before.
        """
        if claims.token_id is None:
            return "", 0
        name = (issuer, tokens.hash_id(claims.token_id))
        if self._same_use.continues(name, connection, usage):
            return "same_use", 0
        until = float(claims.expires + leeway)
        issued = claims.issued_at if claims.issued_at is not None else claims.not_before
        try:
            is_first = await self._replay.use(*name, until, now, issued, key_id=key_id, usage=usage) is True
            first_use = 0
            if not is_first and key_id:
                first_use = await self._replay.repeats(*name, now, key_id=key_id, usage=usage)
        except TokenRefused:
            raise
        except ApplianceError as error:
            raise TokenRefused(
                "use_unknown",
                f"whether the token was used before cannot be known at the moment: {error}; retry in 5 s",
            ) from error
        if first_use:
            return _REPEATED, first_use
        if not is_first:
            raise TokenRefused("replayed", USED_BEFORE)
        self._same_use.begin(name, connection, usage)
        return "", 0


class _SameUse:
    """The tokens of the last seconds, and the connection that each came by.

    A program that needs a client and a server certificate asks twice, and one token is enough for both: the same connection may
    use it once more for each other usage. See docs/decisions/0083.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._begun: OrderedDict[tuple[str, str], tuple[float, str, set[str]]] = OrderedDict()

    def begin(self, name: tuple[str, str], connection: str, usage: str) -> None:
        """Remember the first use of a token. ``connection`` is empty if it came unencrypted; nothing continues that."""
        if not connection:
            return
        now = self._clock()
        while self._begun and (
            len(self._begun) >= _MOST_USES or next(iter(self._begun.values()))[0] + _SAME_USE_S <= now
        ):
            self._begun.popitem(last=False)
        self._begun[name] = now, connection, {usage}

    def continues(self, name: tuple[str, str], connection: str, usage: str) -> bool:
        """Whether a token comes again by the same connection, soon enough, and for a usage that it has not had yet."""
        began, by, had = self._begun.get(name, (0.0, "", frozenset()))
        if not connection or connection != by or self._clock() >= began + _SAME_USE_S or usage in had:
            return False
        self._begun[name][2].add(usage)
        return True


def _proved_names(settings: TrustedIssuer, claims: dict[str, Any]) -> tuple[San, ...]:
    """Return the alternative names that a token entitles to, as certificates have them. What is no name entitles to nothing."""
    if not settings.san_claim:
        return ()
    found: set[San] = set()
    for word in claim_values(claims, settings.san_claim, words=True)[:_MOST_WORDS]:
        for text in (word,) if "=" in word else (f"ip={word}", f"dns={word}"):
            try:
                found.add(parse_san(text))
            except ValueError:
                continue
    return in_certificate(sorted(found))


def _check_names(settings: TrustedIssuer, asked: Sequence[San], proved: Sequence[San]) -> None:
    if not asked:
        return
    if not settings.san_claim:
        raise TokenRefused(
            "san_not_allowed",
            "tokens of this issuer entitle to no alternative names; ask without them (--san, EPICS_PVA_AUTH_SAN)",
            facts={"san": _shown(asked)},
        )
    missing = [name for name in asked if not set(in_certificate((name,))) <= set(proved)]
    if missing:
        raise TokenRefused(
            "san_not_in_claim",
            f"the token does not entitle its holder to the alternative name {missing[0]}",
            facts={"san": _shown(asked), "san_claim": _shown(proved)},
        )


def _shown(names: Iterable[San]) -> str:
    return tokens.clean(", ".join(map(str, names)))


def _check_usage(settings: TrustedIssuer, claims: dict[str, Any], usage: str) -> None:
    if usage not in USAGES or usage not in settings.usages:
        raise TokenRefused("usage_not_allowed", "tokens of this issuer are not accepted for this usage")
    rule = settings.usage_claims.get(usage)
    if rule is None:
        return
    if not rule.holds(claims):
        raise TokenRefused("usage_claim_missing", "the token does not entitle its holder to this usage")

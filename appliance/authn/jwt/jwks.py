"""The keys that an issuer publishes: fetched rarely, kept for a limited time, replaced only by a usable set."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from typing import Final

from appliance.authn.jwt.fetch import Fetcher, FetchError, check_endpoint
from appliance.authn.jwt.jwk import Jwk, KeySetError, fitting, read_key_set, select
from appliance.errors import TokenRefused

__all__ = ["FRESH_S", "MAX_JWKS_BYTES", "REFETCH_S", "JWKSClient", "fresh_for"]

MAX_JWKS_BYTES: Final = 1024 * 1024
FRESH_S: Final = (300.0, 86_400.0)
"""Least and greatest time in seconds for which keys count as fresh, whatever Cache-Control says."""
REFETCH_S: Final = 30.0
"""Seconds between two fetches for unknown key ids, which anyone can send, and between two failing fetches."""
_EMPTY_RETRY_S: Final = 5.0
"""Seconds between two failing fetches while there are no keys and no token can be accepted."""
_CANNOT_ASK: Final = "the token's issuer could not be asked for its keys; try again later"
_NO_KEYS: Final = (
    "the token's issuer answered{}, but without keys that can be used; try again later, or tell the administrator of the "
    "certificate service"
)
_UNKNOWN_KEY: Final = "the issuer does not publish the key of this token; try again in half a minute"
_SEVERAL: Final = (
    "the issuer publishes several keys that match this token; each of its keys must have its own kid, and its tokens "
    "must name it"
)
_MAX_AGE: Final = re.compile(r"(?:^|[,\s])max-age\s*=\s*\"?([0-9]{1,10})")

_log = logging.getLogger(__name__)


def fresh_for(cache_control: str) -> float:
    """Return the seconds for which keys with this Cache-Control header (RFC 9111 section 5.2.2) are fresh, within `FRESH_S`."""
    directives = cache_control.lower()
    match = _MAX_AGE.search(directives)
    age = 0.0 if match is None or "no-store" in directives or "no-cache" in directives else float(match[1])
    return min(max(age, FRESH_S[0]), FRESH_S[1])


class JWKSClient:
    """The key set of one issuer. `clock` is monotonic, so that changes of the wall clock neither expire nor revive keys.

    Use it in one event loop only.
    """

    def __init__(
        self,
        url: str,
        fetcher: Fetcher,
        *,
        clock: Callable[[], float],
        stale_s: float = 86_400.0,
        insecure_http: bool = False,
    ) -> None:
        self._url = url
        self._fetcher = fetcher
        self._clock = clock
        self._stale_s = stale_s
        self._insecure_http = insecure_http
        self._keys: tuple[Jwk, ...] = ()
        self._fresh_until = float("-inf")
        self._usable_until = float("-inf")
        self._last_failure = float("-inf")
        self._last_refetch = float("-inf")
        self._failure = FetchError("not_reachable")
        self._version = 0
        self._lock = asyncio.Lock()

    async def key_for(self, kid: str | None, alg: str) -> Jwk:
        """Return the key that signed a token with this header.

        Raises:
            TokenRefused: ``jwks_...`` if there are no keys, ``key_unknown`` if none matches, ``key_ambiguous`` if more than
                one does.
        """
        fetched = False
        if self._clock() >= self._fresh_until:
            fetched = await self._refresh(self._version)
        if self._clock() >= self._usable_until:
            self._keys = ()
            failure = self._failure
            facts = {"issuer_answer": str(failure)}
            said = ""
            if failure.status:
                facts["http_status"] = str(failure.status)
                said = f" (HTTP status {failure.status})"
            public = _NO_KEYS.format(said) if failure.answered else _CANNOT_ASK
            raise TokenRefused("jwks_not_available", public, facts=facts)
        key = select(self._keys, kid=kid, alg=alg)
        # A known key that does not match the algorithm will not match after another fetch.
        known = kid is not None and any(key.kid == kid for key in self._keys)
        if key is None and not fetched and not known and await self._refetch():
            key = select(self._keys, kid=kid, alg=alg)
        if key is None:
            if fitting(self._keys, kid=kid, alg=alg):
                raise TokenRefused("key_ambiguous", _SEVERAL)
            raise TokenRefused("key_unknown", _UNKNOWN_KEY)
        return key

    async def newer_key(self, old: Jwk, kid: str | None, alg: str) -> Jwk | None:
        """Return the key that replaced `old`, which did not verify a signature; None if there is none.

        An issuer that is set up again may use the old key id for a new key, or no key ids at all.
        """
        if not await self._refetch():
            return None
        key = select(self._keys, kid=kid, alg=alg)
        return None if key is None or key.key == old.key else key

    async def _refetch(self) -> bool:
        """Fetch for a token that matches no key. Anyone can send one, so fetch at most every `REFETCH_S`."""
        now = self._clock()
        if now - self._last_refetch < REFETCH_S:
            async with self._lock:  # an earlier caller may be fetching the key that this token needs
                return True
        self._last_refetch = now
        return await self._refresh(self._version)

    async def _refresh(self, version: int) -> bool:
        """Fetch, unless another task has just done so or the last failure is too recent. Return whether the keys are new."""
        async with self._lock:
            if self._version != version:
                return True
            now = self._clock()
            pause = REFETCH_S if now < self._usable_until else _EMPTY_RETRY_S
            if now - self._last_failure < pause:
                return False
            try:
                keys, fresh_s = await self._fetch()
            except FetchError as error:
                self._last_failure = self._clock()
                self._failure = error
                _log.warning("keys of %s could not be fetched: %s", self._url, error)
                return False
            now = self._clock()
            self._keys = keys
            self._fresh_until = now + fresh_s
            self._usable_until = self._fresh_until + self._stale_s
            self._last_failure = float("-inf")
            self._version += 1
            return True

    async def _fetch(self) -> tuple[tuple[Jwk, ...], float]:
        check_endpoint(self._url, insecure_http=self._insecure_http)
        answer = await self._fetcher.request(
            "GET",
            self._url,
            limit=MAX_JWKS_BYTES,
            headers={"Accept": "application/jwk-set+json, application/json"},
        )
        if answer.status != 200:
            raise FetchError("unexpected_status", answer.status)
        try:
            keys = read_key_set(answer.body)
        except KeySetError as error:
            raise FetchError(str(error), answer.status) from error
        return keys, fresh_for(answer.cache_control)

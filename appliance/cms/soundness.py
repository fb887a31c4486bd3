"""The slow part of checking a public key: beside other work, a millisecond at a time, once per key."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Final

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

from appliance.authn.ratelimit import retry_sentence
from appliance.certs.public_keys import composite_steps
from appliance.errors import CertificateError

__all__ = ["Soundness"]

_REMEMBERED: Final = 10_000
_LARGE_BITS: Final = 3072
_MOST_SMALL: Final = 64
_MOST_LARGE: Final = 4
"""Requests that may wait for the check of a large key. Others are refused, so that these never take all places."""


class _Queue:
    def __init__(self, most: int) -> None:
        self.lock = asyncio.Lock()
        self.length = 0
        self.most = most


async def _look(modulus: int) -> str | None:
    steps = composite_steps(modulus)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            problem: str | None = end.value
            return problem
        await asyncio.sleep(0)


class Soundness:
    """Remembers keys that were found good.

    One key at a time is checked, so that many requests do not block everything else. Large keys, which take up to two
    seconds, wait only for each other.
    """

    def __init__(self) -> None:
        self._good: OrderedDict[str, None] = OrderedDict()
        self._small, self._large = _Queue(_MOST_SMALL), _Queue(_MOST_LARGE)

    async def check(self, key: CertificatePublicKeyTypes, key_id: str) -> None:
        """Check a key.

        Raises:
            CertificateError: Anybody can break the key.
        """
        if not isinstance(key, rsa.RSAPublicKey) or key_id in self._good:
            return
        queue = self._large if key.key_size > _LARGE_BITS else self._small
        if queue.length >= queue.most:
            raise CertificateError(
                f"too many RSA keys of this size wait to be checked; {retry_sentence(5.0)}, or use a key of another kind"
            )
        queue.length += 1
        try:
            async with queue.lock:
                problem = None if key_id in self._good else await _look(key.public_numbers().n)
        finally:
            queue.length -= 1
        if problem:
            raise CertificateError(f"the public key is not acceptable: {problem}")
        self._good[key_id] = None
        if len(self._good) > _REMEMBERED:
            self._good.popitem(last=False)

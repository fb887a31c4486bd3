"""The part of looking at a public key that takes long: beside other work, a millisecond at a time, once per key."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Final

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

from appliance.certs.public_keys import composite_steps
from appliance.errors import CertificateError

__all__ = ["Soundness"]

_REMEMBERED: Final = 10_000
_LARGE_BITS: Final = 3072


class Soundness:
    """Remembers the keys that were found good.

    One key at a time is looked at, so that many requests together do not stop everything else; large ones, which take up to
    two seconds, wait for each other only.
    """

    def __init__(self) -> None:
        self._good: OrderedDict[str, None] = OrderedDict()
        self._small, self._large = asyncio.Lock(), asyncio.Lock()

    async def check(self, key: CertificatePublicKeyTypes, key_id: str) -> None:
        """Look at a key. Raises CertificateError for one that anybody can break."""
        if not isinstance(key, rsa.RSAPublicKey) or key_id in self._good:
            return
        async with self._large if key.key_size > _LARGE_BITS else self._small:
            if key_id in self._good:
                return
            steps = composite_steps(key.public_numbers().n)
            while True:
                try:
                    next(steps)
                except StopIteration as end:
                    problem = end.value
                    break
                await asyncio.sleep(0)
        if problem:
            raise CertificateError(f"the public key is not acceptable: {problem}")
        self._good[key_id] = None
        if len(self._good) > _REMEMBERED:
            self._good.popitem(last=False)

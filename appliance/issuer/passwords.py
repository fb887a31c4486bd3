"""Passwords as scrypt hashes (RFC 7914), in one line of text."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
from typing import Final

__all__ = ["MAX_PASSWORD_BYTES", "UNKNOWN_USER", "hash_password", "is_hash", "matches"]

MAX_PASSWORD_BYTES: Final = 1024
_LOG2_N: Final = 15
_R: Final = 8
_P: Final = 1
_SHAPE: Final = re.compile(
    r"scrypt\$(1[0-8])\$([1-9]|1[0-6])\$([1-4])\$([A-Za-z0-9+/=]{22,64})\$([A-Za-z0-9+/=]{43,88})"
)
UNKNOWN_USER: Final = "scrypt$15$8$1$AAAAAAAAAAAAAAAAAAAAAA==$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
"""Matches no password, but costs as much as a real one, so the time of an answer does not show which users exist."""


def hash_password(password: str) -> str:
    """Return the line for a configuration file: ``scrypt$log2(N)$r$p$salt$key``."""
    salt = os.urandom(16)
    key = _scrypt(password, salt, _LOG2_N, r=_R, p=_P)
    return f"scrypt${_LOG2_N}${_R}${_P}${base64.b64encode(salt).decode()}${base64.b64encode(key).decode()}"


def is_hash(text: str) -> bool:
    """Whether `text` is such a line, with a cost that we accept for every attempt."""
    match = _SHAPE.fullmatch(text)
    if match is None:
        return False
    try:
        base64.b64decode(match[4], validate=True)
        base64.b64decode(match[5], validate=True)
    except binascii.Error:
        return False
    return True


def matches(password: str, line: str) -> bool:
    """Whether the password is the hashed one, in a time that does not depend on it; False for a malformed line."""
    match = _SHAPE.fullmatch(line)
    if match is None:
        return False
    expected = base64.b64decode(match[5])
    n, r, p = (int(number) for number in match.groups()[:3])
    key = _scrypt(password, base64.b64decode(match[4]), n, r=r, p=p, size=len(expected))
    # HMAC fills a short key with zeros, so a password with NULs at its end would match without them.
    return hmac.compare_digest(key, expected) and line != UNKNOWN_USER and "\0" not in password


def _scrypt(password: str, salt: bytes, log2_n: int, *, r: int, p: int, size: int = 32) -> bytes:
    n = 1 << log2_n
    return hashlib.scrypt(
        password.encode("utf-8", "surrogatepass"),
        salt=salt,
        n=n,
        r=r,
        p=p,
        maxmem=256 * n * r * p,
        dklen=size,
    )

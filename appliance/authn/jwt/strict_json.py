"""Strict JSON and base64url. Lenient readers could let two programs see two different tokens."""

from __future__ import annotations

import base64
import binascii
import json
import math
from typing import Any, Final

from appliance.errors import ApplianceError

__all__ = ["MAX_DEPTH", "StrictFormatError", "b64url_decode", "b64url_encode", "load_object"]

MAX_DEPTH: Final = 16
_ALPHABET: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


class StrictFormatError(ApplianceError):
    """Text that is not strict JSON or strict base64url. `reason` is a stable code."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason.replace("_", " "))


def b64url_encode(data: bytes) -> str:
    """Encode as base64url without padding (RFC 7515 section 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def b64url_decode(text: bytes) -> bytes:
    """Decode unpadded base64url.

    Unused bits at the end must be zero. Otherwise one token has several texts, and a list of seen texts or hashes could be
    bypassed.

    Raises:
        StrictFormatError: For any other spelling of the same bytes.
    """
    if not _ALPHABET.issuperset(text):
        raise StrictFormatError("base64url_invalid")
    try:
        data = base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        raise StrictFormatError("base64url_invalid") from None
    if base64.urlsafe_b64encode(data).rstrip(b"=") != text:
        raise StrictFormatError("base64url_not_canonical")
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise StrictFormatError("json_duplicate_key")
    return members


def _no_constant(_text: str) -> Any:
    raise StrictFormatError("json_not_finite")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise StrictFormatError("json_not_finite")
    return number


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite
)


def load_object(data: bytes) -> dict[str, Any]:
    """Read one JSON object: UTF-8, no duplicate keys, no NaN or Infinity, at most `MAX_DEPTH` levels.

    The caller bounds the size.

    Raises:
        StrictFormatError: The data is anything else; its reason says what.
    """
    try:
        value = _DECODER.decode(data.decode("utf-8"))
    except StrictFormatError:
        raise
    except UnicodeDecodeError:
        raise StrictFormatError("json_not_utf8") from None
    except RecursionError:
        raise StrictFormatError("json_too_deep") from None
    except ValueError:
        raise StrictFormatError("json_invalid") from None
    if not isinstance(value, dict):
        raise StrictFormatError("json_not_an_object")
    _check(value)
    return value


def _check(root: dict[str, Any]) -> None:
    level: list[Any] = [root]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                for key, value in item.items():
                    _check_text(key)
                    below.append(value)
            elif isinstance(item, list):
                below.extend(item)
            elif isinstance(item, str):
                _check_text(item)
        if not below:
            return
        level = below
    if any(isinstance(item, dict | list) for item in level):
        raise StrictFormatError("json_too_deep")
    for item in level:
        if isinstance(item, str):
            _check_text(item)


def _check_text(text: str) -> None:
    # A lone surrogate can be written as \ud800 but cannot be encoded again, so storing or logging it would fail.
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise StrictFormatError("json_lone_surrogate") from None

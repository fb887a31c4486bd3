"""Names of status PVs in text for people, together with the usual form of the certificate's identifier."""

from __future__ import annotations

import re

__all__ = ["identified"]

# Each tool imports this module at its start, so it does not import typing.
_PADDED = re.compile(r":STATUS:([0-9a-f]{8}):0+([0-9]{1,19})(?![0-9])")


def identified(text: str) -> str:
    """Add the certificate's identifier to a status PV whose serial number is padded with zeros.

    On the wire the name has twenty digits (SPVA specification 7.1), but identifiers are printed and logged without leading
    zeros. A search for an identifier must find these lines too.
    """
    if ":STATUS:" not in text:
        return text

    def beside(found: re.Match[str]) -> str:
        identifier = f"{found[1]}:{found[2]}"
        return found[0] if identifier in text else f"{found[0]} ({identifier})"

    return _PADDED.sub(beside, text)

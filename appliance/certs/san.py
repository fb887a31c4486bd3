"""Alternative names of a certificate's subject: the syntax of options and requests, and the form in certificates.

Source: SPVA specification 4.5; pvxs-docs, generic authenticator options; pvxs-cms of 2026 for what is a name.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Final, NamedTuple

__all__ = [
    "MOST_NAMES",
    "San",
    "canonical",
    "in_certificate",
    "parse_san",
    "read_san",
]

MOST_NAMES: Final = 32
"""Largest number of alternative names of one request."""
_LONGEST: Final = 253
_LONGEST_LABEL: Final = 63
_KINDS: Final = "write ip=ADDRESS, dns=NAME or hostname=LABEL"


class San(NamedTuple):
    """One alternative name."""

    type: str
    """``ip``, ``dns`` or ``hostname``."""
    value: str
    """An address in its canonical form, or a name in lower case."""

    def __str__(self) -> str:
        return f"{self.type}={self.value}"


def parse_san(text: str) -> San:
    """Read ``TYPE=VALUE`` as options and variables have it.

    Raises:
        ValueError: It is no such text; the message says what is wrong.
    """
    kind, equals, value = text.strip().partition("=")
    if not equals:
        raise ValueError(f"the alternative name {text[:64]!r} has no type; {_KINDS}")
    return read_san(kind.strip(), value.strip())


def read_san(kind: str, value: str) -> San:
    """Read one entry of a request's ``san[]``.

    Raises:
        ValueError: It is no usable name; the message says what is wrong.
    """
    kind = kind.lower()
    if kind not in ("ip", "dns", "hostname"):
        raise ValueError(f"the alternative name {value[:64]!r} has the type {kind[:32]!r}; {_KINDS}")
    address = _address(value)
    if kind == "ip":
        if not address:
            raise ValueError(f"the alternative name ip={value[:64]!r} is no IPv4 or IPv6 address")
        return San("ip", address)
    name = value.lower()
    shown = f"the alternative name {kind}={value[:64]!r}"
    if address:
        raise ValueError(f"{shown} is an address; write ip={address}")
    if kind == "hostname" and "." in name:
        raise ValueError(f"{shown} has a dot; write dns= for a whole name")
    if len(name) > _LONGEST or not all(map(_is_label, name.split("."))):
        raise ValueError(
            f"{shown} is no host name: parts of 1 to 63 letters, digits and '-', with dots between them, and no '-' at either "
            "end of a part"
        )
    return San(kind, name)


def _is_label(text: str) -> bool:
    return (
        0 < len(text) <= _LONGEST_LABEL
        and text.isascii()
        and text.replace("-", "a").isalnum()
        and not text.startswith("-")
        and not text.endswith("-")
    )


def _address(text: str) -> str:
    """Return an address in its canonical form; empty if the text is none.

    One with a zone is none: it means something on this host only. An IPv4 address in IPv6 is written as access rules read it.
    """
    from ipaddress import ip_address

    try:
        found = ip_address(text) if "%" not in text else None
    except ValueError:
        found = None
    return "" if found is None else str(getattr(found, "ipv4_mapped", None) or found)


def canonical(names: Iterable[San]) -> tuple[San, ...]:
    """Return the names in a fixed order, so that equal sets are equal.

    Raises:
        ValueError: A name occurs twice, or there are more than `MOST_NAMES`.
    """
    found = sorted(names)
    if len(found) > MOST_NAMES:
        raise ValueError(f"there are {len(found)} alternative names; at most {MOST_NAMES} are accepted")
    for name, following in pairwise(found):
        if name == following:
            raise ValueError(f"the alternative name {name} is there twice")
    return tuple(found)


def in_certificate(names: Iterable[San]) -> tuple[San, ...]:
    """Return the names as a certificate has them, in the same order: a ``hostname`` is a name in DNS there, and each is there once."""
    return tuple(dict.fromkeys(San("dns" if kind == "hostname" else kind, value) for kind, value in names))

"""Alternative names of a certificate's subject: the syntax of options and requests, and the form in certificates.

Source: SPVA specification 4.5; pvxs-docs, generic authenticator options.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

__all__ = ["MOST_NAMES", "San", "canonical", "parse_san", "read_san"]

MOST_NAMES: Final = 32
"""Largest number of alternative names of one request."""


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
    raise NotImplementedError


def read_san(kind: str, value: str) -> San:
    """Read one entry of a request's ``san[]``.

    Raises:
        ValueError: It is no usable name; the message says what is wrong.
    """
    raise NotImplementedError


def canonical(names: Iterable[San]) -> tuple[San, ...]:
    """Return the names in a fixed order, so that equal sets are equal.

    Raises:
        ValueError: A name occurs twice, or there are more than `MOST_NAMES`.
    """
    raise NotImplementedError

"""How the value of one setting is read, whether it is text of a variable or comes from YAML or an argument.

Each function returns the usable value, or raises ValueError with what was expected; `PartlyUsable` if a part can be used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

from appliance.config.address import Endpoint, parse_endpoints
from appliance.config.tls_options import TLSOptions, parse_tls_options
from appliance.config.words import read_yes_no

__all__ = [
    "PartlyUsable",
    "addresses",
    "boolean",
    "client_port",
    "directory",
    "period",
    "port",
    "prefix",
    "seconds",
    "servers",
    "text",
    "tls_options",
]


def port(value: object) -> int:
    """Read a port; 0 means any free one."""
    number: object = value
    if isinstance(value, str):
        digits = value.strip()
        if not (digits.isascii() and digits.isdecimal() and len(digits) < 9):
            raise ValueError("expected a port number from 0 to 65535")
        number = int(digits)
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= 65535:
        raise ValueError("expected a port number from 0 to 65535")
    return number


def client_port(value: object) -> int:
    """Read a port of others, which cannot be 0."""
    number = port(value)
    if not number:
        raise ValueError("expected a port number from 1 to 65535; 0 (any free port) is for servers only")
    return number


def seconds(value: object) -> float:
    """Read a number of seconds, zero or more."""
    number = -1.0
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            number = float(value)
    if not 0 <= number < 2**63:
        raise ValueError("expected a number of seconds, zero or more")
    return number


def period(value: object) -> float:
    """Read a number of seconds, more than zero."""
    number = seconds(value)
    if number <= 0:
        raise ValueError("expected a number of seconds, more than zero")
    return number


def boolean(value: object) -> bool:
    """Read a word for yes or no."""
    answer = value if isinstance(value, bool) else read_yes_no(str(value))
    if answer is None:
        raise ValueError("expected YES or NO")
    return answer


def text(value: object) -> str:
    """Read text that a file name can be made of."""
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("expected text")
    return value


def directory(value: object) -> str:
    """Read an absolute path, without a slash at its end."""
    path = text(value)
    if not path.startswith("/"):
        raise ValueError("expected an absolute path")
    return path.rstrip("/")


def prefix(value: object) -> str:
    """Read the beginning of PV names."""
    beginning = text(value)
    if not beginning or not beginning.isprintable() or " " in beginning:
        raise ValueError("expected the beginning of a PV name")
    return beginning


class PartlyUsable(ValueError):  # noqa: N818 - carries what is usable of a bad value
    """Part of the value can be used; the text explains the rest."""

    def __init__(self, usable: Any, faults: list[str]) -> None:
        super().__init__("; ".join(faults))
        self.usable = usable
        self.faults = faults


def addresses(value: object, *, uri: bool = False) -> tuple[Endpoint, ...]:
    """Read addresses of IP, separated by blanks or as a list."""
    if isinstance(value, str):
        items: Iterable[object] = value.split()
    elif isinstance(value, list | tuple):
        items = value
    else:
        raise ValueError("expected addresses, as a list or separated by blanks")  # noqa: TRY004 - all faults are ValueErrors here
    endpoints, faults = parse_endpoints((str(item) for item in items), uri=uri)
    if faults:
        raise PartlyUsable(endpoints, faults)
    return endpoints


def servers(value: object) -> tuple[Endpoint, ...]:
    """Read name servers; addresses may be URIs."""
    return addresses(value, uri=True)


def tls_options(value: object) -> TLSOptions:
    """Read TLS options, as text or as a mapping."""
    if isinstance(value, TLSOptions):
        return value
    if not isinstance(value, str | Mapping):
        raise ValueError("expected TLS options, as text or as a mapping")  # noqa: TRY004 - all faults are ValueErrors here
    options, warnings = parse_tls_options(value)
    if warnings:
        raise PartlyUsable(options, warnings)
    return options

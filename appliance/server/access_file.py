"""Read files of access security from disk, with the addresses of the hosts that they name."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Final

from appliance.acf import AccessSecurity, PVList, load_acf
from appliance.config.files import read_regular
from appliance.errors import AccessFileError, ConfigurationError

__all__ = ["load_access_file", "load_pvlist"]

_LIMIT: Final = 4 << 20


def load_access_file(
    file: str, *, macros: Mapping[str, str] | None = None, gateway: bool = False
) -> AccessSecurity:
    """Read an access security file, and look its hosts up; blocks.

    Args:
        file: Its path.
        macros: Values for ``$(NAME)``.
        gateway: Read accesses as a gateway does (:func:`appliance.acf.load_acf`).

    Returns:
        The rules.

    Raises:
        AccessFileError: The file cannot be read, or it is wrong.
    """
    text = _read(file, "access security file")
    return load_acf(text, file=file, macros=macros, resolve=_resolve, gateway=gateway)


def load_pvlist(file: str) -> PVList:
    """Read a PV list, and look its hosts up; blocks.

    Raises:
        AccessFileError: The file cannot be read, or it is wrong.
    """
    return PVList(_read(file, "PV list"), file=file, resolve=_resolve)


def _read(file: str, kind: str) -> str:
    try:
        return read_regular(file, _LIMIT).decode("utf-8")
    except (ConfigurationError, UnicodeDecodeError) as error:
        why = (
            error.why.removeprefix("cannot read: ")
            if isinstance(error, ConfigurationError)
            else "it is not UTF-8 text"
        )
        raise AccessFileError(f"cannot read the {kind}: {why}", file=file) from None


def _resolve(host: str) -> list[str]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(address) for *_, (address, *_) in found]

"""A certificate that waits for approval, beside a keychain whose certificate is still good.

The keychain stays as it is until the new certificate is valid: otherwise whoever asks for the next certificate in time would be without
one, and an administrator could not even approve his own.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final, NamedTuple

from appliance.authn.due import ended_early
from appliance.certs.keychain import Keychain, load_keychain
from appliance.certs.status import CertState
from appliance.certs.x509 import shown_id
from appliance.config.files import read_private, replace_private
from appliance.config.secret import Secret
from appliance.errors import ConfigurationError

if TYPE_CHECKING:
    from appliance.authn.status import CheckedStatus

__all__ = ["Beside", "forget", "keeps_its_place", "look_beside", "path_beside", "put_beside"]

_SUFFIX: Final = ".waiting"
_MOST: Final = 1 << 18


class Beside(NamedTuple):
    """The file beside a keychain."""

    path: str
    data: bytes
    keychain: Keychain

    @property
    def cert_id(self) -> str:
        """Identifier of its certificate."""
        return shown_id(self.keychain.issuer_id, self.keychain.serial)

    def verdict(self, report: CheckedStatus | None) -> CertState:
        """Return the state of its certificate; UNKNOWN if nobody says it, REVOKED also if the service does not know it any more."""
        if report is None or not report.verified:
            return CertState.UNKNOWN
        return CertState.REVOKED if ended_early(report) else report.state


def path_beside(path: str) -> str:
    """Return where a certificate waits for its place in the keychain at ``path``."""
    return path + _SUFFIX


def keeps_its_place(state: CertState) -> bool:
    """Whether a certificate in this state is of use until the next one is valid; UNKNOWN: nobody says that it is not."""
    return state not in (CertState.REVOKED, CertState.EXPIRED, CertState.PENDING_APPROVAL)


def look_beside(path: str, password: Secret) -> Beside | None:
    """Return what waits beside a keychain; None if nothing does.

    Raises:
        ConfigurationError: The file cannot be read.
        KeychainError: It is no keychain, or its password is another one.
    """
    name = path_beside(path)
    if not os.path.lexists(name):
        return None
    data = read_private(name, _MOST, strict=False).data
    return Beside(name, data, load_keychain(data, password))


def put_beside(path: str, data: bytes) -> list[str]:
    """Write a certificate that waits beside the keychain at ``path``; return sentences for the user.

    Raises:
        ConfigurationError: The file cannot be written.
    """
    return replace_private(path_beside(path), data)


def forget(path: str) -> None:
    """Remove what waits beside a keychain.

    Raises:
        ConfigurationError: It cannot be removed.
    """
    name = path_beside(path)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)  # noqa: PTH108 - start-up time
    except OSError as error:
        raise ConfigurationError(f"cannot remove: {error.strerror}", file=name) from error

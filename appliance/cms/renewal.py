"""Whether a request renews a certificate that its requester has already. Pure.

Source: SPVA specification 9.4. Who may renew is decided by what the service recorded when it issued: the same subject, key,
usage, authenticator and identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from appliance.certs.status import CertState
from appliance.cms.model import NewCertificate
from appliance.cms.store import CertRecord

__all__ = ["Fresh", "Renewed", "judge"]


class Renewed(NamedTuple):
    """The request renews this certificate; nothing is signed."""

    record: CertRecord
    renew_by: int
    """The new date (POSIX seconds); 0: it need not be renewed any more."""


class Fresh(NamedTuple):
    """The request gets a new certificate, although it could renew this one."""

    release: CertRecord
    """The old certificate, which need not be renewed any more and runs out undisturbed."""


def judge(
    _request: NewCertificate, _live: Sequence[tuple[CertRecord, CertState]], _now: datetime
) -> Renewed | Fresh | None:
    """Decide what a request means for the certificates that its subject has.

    Args:
        _request: The request, whose proof of identity was verified.
        _live: The certificates of the subject that are not at their end, with their present states.
        _now: The present time, aware.

    Returns:
        None if no certificate of the subject can be renewed by it, so that the request is one for a new certificate.

    Raises:
        RequestRefused: It is a renewal that is not permitted; the text says why.
    """
    return None

"""Judge a request without proof of identity: it gets what it asks for, within limits, after approval.

Source: SPVA specification 9.1 (type ``std``); the verifier sub-structure is empty.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from appliance.authn.grant import Grant, backdated
from appliance.epoch import LAST_SECOND
from appliance.errors import CertificateError

__all__ = ["StdRequest", "verify"]

_SKEW: Final = timedelta(seconds=60)
"""A begin that is this little in the future comes from the requester's clock: requesters send their time (section 9.1)."""


class StdRequest(NamedTuple):
    """The parts of a request that the standard authenticator reads. Times are POSIX seconds; 0: not given."""

    name: str
    organization: str
    organizational_unit: str
    country: str
    usage: str
    not_before: int
    not_after: int


def verify(
    request: StdRequest,
    *,
    now: datetime,
    default_end: datetime,
    custom_durations: bool,
    approval_needed: bool,
) -> Grant:
    """Judge a request. ``default_end`` applies if the request names no end, or may not name one.

    The profile checks the form of the subject.

    Raises:
        CertificateError: For an impossible validity.
    """
    end = default_end
    if request.not_after and custom_durations:
        end = _time(request.not_after, "end")
    start = _time(request.not_before, "begin") if request.not_before else now
    if start <= now + _SKEW:
        start = backdated(now, end)
    if end <= now:
        raise CertificateError(f"the certificate would already have ended at {end:%Y-%m-%d %H:%M:%S} UTC")
    if end <= start:
        raise CertificateError(f"the certificate would end ({end:%Y-%m-%d %H:%M:%S}) before it begins")
    return Grant(
        method="std",
        subject={
            "CN": request.name,
            "O": request.organization,
            "OU": request.organizational_unit,
            "C": request.country,
        },
        not_before=start,
        not_after=end,
        approval_needed=approval_needed,
        identity=None,
        audit={},
    )


def _time(seconds: int, what: str) -> datetime:
    if not 0 < seconds <= LAST_SECOND:
        raise CertificateError(f"the time {seconds} at which the certificate should {what} is not a date")
    return datetime.fromtimestamp(seconds, UTC)

"""What an end does with its own certificate: one table for dates, live status and EPICS_PVA_TLS_OPTIONS.

Source: SPVA specification 7.3.1 and 8.4 (own certificate); configuration reference, ``on_expiration``.
"""

from __future__ import annotations

from enum import Enum

from appliance.certs.status import StatusClass
from appliance.config.tls_options import TLSOptions

__all__ = ["Mode", "Validity", "choose_mode"]


class Validity(Enum):
    """What the dates of our own certificate say."""

    NONE = "none"
    """There is no usable certificate of our own."""
    PENDING = "pending"
    """It is not valid yet."""
    CURRENT = "current"
    EXPIRED = "expired"


class Mode(Enum):
    """How an end communicates."""

    TLS = "tls"
    """With its certificate; plain TCP if the peer has no TLS."""
    ANONYMOUS = "anonymous"
    """A client with TLS but without a certificate of its own: it only authenticates servers."""
    TCP = "tcp"
    """Over plain TCP while the certificate cannot be used."""
    STANDBY = "standby"
    """A server that answers nothing, or a client that connects nowhere, until it has a good certificate."""
    SHUTDOWN = "shutdown"
    """Not at all: it ends."""


def choose_mode(validity: Validity, status: StatusClass, options: TLSOptions, *, server_side: bool) -> Mode:
    """Return the mode for our own certificate. ``status`` is GOOD if nobody tells a status."""
    without = Mode.STANDBY if options.tls_required else Mode.TCP
    if validity is Validity.NONE:
        return without if server_side else Mode.ANONYMOUS
    ended = validity is Validity.EXPIRED or status is StatusClass.BAD
    if ended and options.on_expiration != "fallback-to-tcp":
        # For a client standby is the same as shutdown, because no peer depends on it.
        return Mode.STANDBY if server_side and options.on_expiration == "standby" else Mode.SHUTDOWN
    if validity is Validity.EXPIRED and status is not StatusClass.BAD and not server_side:
        return Mode.ANONYMOUS
    if validity is Validity.CURRENT and status is StatusClass.GOOD:
        return Mode.TLS
    return without

"""The epoch of EPICS, which counts seconds from 1990-01-01 00:00 UTC, and the last second of a certificate.

Everything else here counts from 1970.
"""

from typing import Final

__all__ = ["EPICS_EPOCH_S", "LAST_SECOND"]

EPICS_EPOCH_S: Final = 631_152_000
"""Seconds from the epoch of POSIX to that of EPICS (epicsTime.h, POSIX_TIME_AT_EPICS_EPOCH)."""
LAST_SECOND: Final = 253_402_300_799
"""9999-12-31T23:59:59Z in POSIX seconds: the last time that a certificate can hold (RFC 5280 section 4.1.2.5)."""

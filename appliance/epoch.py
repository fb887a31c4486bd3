"""The epoch of EPICS, which counts seconds from 1990-01-01 00:00 UTC. Everything else here counts from 1970."""

from typing import Final

__all__ = ["EPICS_EPOCH_S"]

EPICS_EPOCH_S: Final = 631_152_000
"""Seconds from the epoch of POSIX to that of EPICS (epicsTime.h, POSIX_TIME_AT_EPICS_EPOCH)."""

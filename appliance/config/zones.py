"""Time zones by their names."""

from __future__ import annotations

from datetime import UTC, tzinfo

from appliance.errors import ConfigurationError

__all__ = ["time_zone"]

_LONGEST = 64


def time_zone(name: str) -> tzinfo:
    """Return the time zone with an IANA name such as ``Europe/Berlin``; UTC for an empty one.

    Raises:
        ConfigurationError: No zone has this name here.
    """
    if name in ("", "UTC"):
        return UTC
    from zoneinfo import ZoneInfo

    try:
        if len(name) <= _LONGEST:
            return ZoneInfo(name)
    except (OSError, ValueError):
        pass  # ZoneInfoNotFoundError is a KeyError; the others are names that are no names of files
    except KeyError:
        pass
    raise ConfigurationError(
        f"there is no time zone {name[:_LONGEST]!r} here; write a name such as Europe/Berlin or America/New_York, or install "
        "the Python package tzdata if this host has no time zones"
    )

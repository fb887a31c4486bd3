"""Time zones by their names."""

from __future__ import annotations

from datetime import UTC, tzinfo

from appliance.errors import ConfigurationError

__all__ = ["time_zone"]

_LONGEST = 64
_NOT_PLACES = ("localtime", "Factory", "posixrules", "right/", "posix/")
"""Names in databases of zones that mean no place."""


def time_zone(name: str) -> tzinfo:
    """Return the time zone with an IANA name such as ``Europe/Berlin``; UTC for an empty one.

    Raises:
        ConfigurationError: No zone has this name here.
    """
    if name in ("", "UTC"):
        return UTC
    from zoneinfo import ZoneInfo

    if name.startswith(_NOT_PLACES):
        raise ConfigurationError(
            f"the time zone {name[:_LONGEST]!r} is no place: it depends on the host, or counts leap seconds; write a name such as Europe/Berlin"
        )
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

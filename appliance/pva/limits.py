"""How much a peer may ask for. Every size that travels on the wire is compared with one of these."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from appliance.pvdata.primitives import DecodeLimits

__all__ = ["DEFAULT_LIMITS", "Limits", "show_changed"]


def show_changed(value: Any) -> str:
    """Show the fields of a named tuple that differ from their defaults; signatures in ``help()`` stay short by this."""
    defaults = value._field_defaults
    fields = ((name, getattr(value, name)) for name in value._fields)
    changed = (f"{name}={item!r}" for name, item in fields if name not in defaults or item != defaults[name])
    return f"{type(value).__name__}({', '.join(changed)})"


class Limits(NamedTuple):
    """Bounds for one connection.

    The memory that a peer can make this end hold before any of its own values is decoded is at most
    ``max_message`` plus one read (256 KiB); before the peer is validated, ``max_message_unvalidated`` plus
    one read.
    """

    max_message: int = 256 * 1024 * 1024
    """Octets of one message, all of its segments together."""
    max_message_unvalidated: int = 64 * 1024
    """The same before the connection is validated; less, because the peer is unknown."""
    max_name: int = 2048
    """Octets of a PV name or of a field's path."""
    max_channels: int = 250_000
    """Channels, those included that were asked for and not yet accepted or rejected."""
    max_operations: int = 500_000
    max_request_octets: int = 64 * 1024 * 1024
    """Octets of memory for the pvRequests of all operations together. Requests that many operations share count once."""
    max_types: int = DecodeLimits.CACHED_TYPES
    """Types that the peer may define by ID on one connection (section 5.6)."""
    max_queue_size: int = 65_536
    """Updates of one subscription that a client may ask the server to keep."""
    max_search_names: int = 65_535
    """Names in one SEARCH message; section 7.5 allows as many."""
    max_auth_methods: int = 32

    def __repr__(self) -> str:
        return show_changed(self)


DEFAULT_LIMITS: Final = Limits()

"""One name at the servers of one client side: whether it is there, and who depends on it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, ClassVar, Final, Protocol

from appliance.client.channel import Channel, ChannelRequest, ChannelState, Waiter
from appliance.client.end import Timer
from appliance.gateway.accounts import PVAccount
from appliance.pva.typed import encode_typed
from appliance.pvdata.pvrequest import OPTIONS
from appliance.pvdata.types import STRING, StructType, TypeDesc
from appliance.pvdata.value import Value

__all__ = [
    "NOBODY",
    "TOO_SLOW",
    "Dependent",
    "Opening",
    "Upstream",
    "UpstreamOwner",
    "request_key",
    "with_options",
]


MOVE_S: Final = 1.0
"""Seconds that a move from plain TCP to TLS may take before the clients' channels close."""


class _Nobody(Waiter):
    """The waiter of requests whose outcome nobody waits for: they answer a client themselves."""

    __slots__ = ()

    def __init__(self) -> None:
        pass

    def result(self, value: Any) -> None:
        pass

    def error(self, error: Exception) -> None:
        pass


KEPT_WEIGHT: Final = 16 * 1024
"""Octets of memory of a pvRequest's type up to which the type with other options is kept."""
NOBODY: Final = _Nobody()
TOO_SLOW: Final = (
    "too many answers wait for your client already, which reads too slowly; read them before you ask for more"
)


class UpstreamOwner(Protocol):
    """The client side that a name belongs to."""

    def found(self, upstream: Upstream) -> None:
        """Handle that a server of the name is there."""

    def lost(self, upstream: Upstream) -> None:
        """Handle that it is gone."""

    def access_changed(self, upstream: Upstream) -> None:
        """Handle that the server judged the gateway's own rights again."""


class Dependent(Protocol):
    """What a server side shows of a name."""

    @property
    def in_use(self) -> bool:
        """Whether a client has a channel of it."""

    def lost(self) -> None:
        """Close all channels: the server of the name is gone."""

    def review(self) -> None:
        """Judge again what the clients may do."""


class Opening(Protocol):
    """A client's request to open a channel, which waits for a server of the name."""

    def found(self, upstream: Upstream) -> None:
        """Open the channel: the server is there."""


class Keep(ChannelRequest):
    """Keeps the channel of one name open, and tells what becomes of it."""

    __slots__ = ("upstream",)

    LASTS: ClassVar[bool] = True

    def __init__(self, channel: Channel, upstream: Upstream) -> None:
        super().__init__(channel, NOBODY)
        self.upstream = upstream

    def start(self) -> None:
        """Tell that the server is there."""
        self.upstream.begin()

    def disconnected(self, why: str, *, moving: bool = False) -> None:
        """Tell that the server is gone, or that its channel moves to TLS and will be back at once."""
        if moving:
            self.upstream.move(why)
        else:
            self.upstream.end(why)

    def access_changed(self) -> None:
        """Tell that the gateway's own rights have changed."""
        self.upstream.owner.access_changed(self.upstream)


class Upstream(PVAccount):
    """One name at one client side. All clients that use it, on all server sides, share it.

    Args:
        owner: The client side.
        channel: The name's channel.
        asked: When a client asked for the name.
    """

    __slots__ = (
        "_keep",
        "_moves",
        "active",
        "asked",
        "channel",
        "gets",
        "handlers",
        "kind",
        "monitors",
        "owner",
        "waiting",
    )

    def __init__(self, owner: UpstreamOwner, channel: Channel, asked: float) -> None:
        super().__init__()
        self.owner = owner
        self.channel = channel
        self.active = False
        """Whether a server of the name is there: only then is the name claimed."""
        self.asked = asked
        """When a client last asked for the name, in seconds on the event loop's clock."""
        self.handlers: dict[object, Any] = {}
        """What each server side shows of the name (`Dependent`), by server side."""
        self.waiting: dict[Opening, None] = {}
        """Clients' requests to open a channel."""
        self.gets: dict[Any, Any] = {}
        """GETs that clients share, by pvRequest and hold-off."""
        self.monitors: dict[Any, Any] = {}
        """Subscriptions that clients share, by pvRequest."""
        self.kind: TypeDesc | None = None
        """The whole type, once a server has answered a GET_FIELD for it; it holds as long as the channel."""
        self._keep = Keep(channel, self)
        self._moves: Timer | None = None
        """Ends the time that a move to TLS may take."""

    @property
    def name(self) -> str:
        """The name, as its server knows it."""
        return self.channel.name

    @property
    def in_use(self) -> bool:
        """Whether a client has a channel of it, or waits for one."""
        return bool(self.waiting) or any(handler.in_use for handler in self.handlers.values())

    @property
    def permissions(self) -> int:
        """What the server permits the gateway: a union of ``PERMIT_*``."""
        return self.channel.permissions

    def settle(self) -> int:
        """Bring the counts of octets up to date; return how many subscriptions and GETs were looked at."""
        looked = 0
        if self.monitors:
            for monitor in self.monitors.values():
                monitor.settle()
                looked += len(monitor.subscribers)
        if self.gets:
            for get in self.gets.values():
                get.settle()
            looked += len(self.gets)
        return looked

    def search(self) -> None:
        """Begin to look for a server."""
        self.channel.add(self._keep)

    def begin(self) -> None:
        """Handle that a server of the name is there."""
        if self._moves is not None:
            self._moves.cancel()
            self._moves = None
        self.kind = None
        self.active = True
        self.owner.found(self)
        for opening in list(self.waiting):
            opening.found(self)

    def move(self, why: str) -> None:
        """Keep the clients' channels for a moment: the server speaks TLS now, and its channel moves there."""
        if self.active and self._moves is None:
            self._moves = self.channel.end.clock.call_later(MOVE_S, self.end, why)

    def end(self, why: str) -> None:
        """Handle that the server is gone: requests in progress are told, then all channels of the name close."""
        if not self.active:
            return
        if self._moves is not None:
            self._moves.cancel()
            self._moves = None
        self.active = False
        for request in list(self.channel.requests):
            if request is not self._keep:
                request.disconnected(why)
        self._close_channels()
        self.owner.lost(self)

    def renew(self) -> None:
        """Close all clients' channels: the server is there, but the name has another type. They open it again."""
        for request in list(self.channel.requests):
            if request is not self._keep:
                request.cancel()
        self._close_channels()

    def _close_channels(self) -> None:
        self.kind = None
        self.gets.clear()
        self.monitors.clear()
        for handler in self.handlers.values():
            handler.lost()

    def give_up(self) -> None:
        """Stop using the name."""
        if self.channel.state is not ChannelState.CLOSED:
            self._keep.cancel()

    def __repr__(self) -> str:
        return f"<Upstream {self.name!r} {'active' if self.active else self.channel.state.value}>"


# -- pvRequests ----------------------------------------------------------------------------------------


def with_options(request: Value, drop: frozenset[str], add: dict[str, str]) -> Value:
    """Return a pvRequest with other options (``record._options``); the request itself is not changed.

    Args:
        request: The client's pvRequest.
        drop: Options to leave out.
        add: Options to add, as text.
    """
    kind = request.type
    assert isinstance(kind, StructType)
    make = _cached_type if kind.weight <= KEPT_WEIGHT else _type_with_options
    wanted = make(kind, drop, tuple(add))
    if wanted is kind:
        return request
    made = Value(wanted)
    places = wanted.offsets
    for name, text in add.items():
        made.store[places[f"record.{OPTIONS}.{name}"]] = text
    added = {f"record.{OPTIONS}.{name}" for name in add}
    for path, place in places.items():
        if path not in added:
            made.store[place] = request.store[kind.offsets[path]] if path in kind.offsets else None
    return made


def _type_with_options(kind: StructType, drop: frozenset[str], add: tuple[str, ...]) -> StructType:
    """Return the type of a pvRequest of type ``kind`` with other options; ``kind`` itself if there is no difference."""
    record = kind.members.get("record")
    options = record.members.get(OPTIONS) if isinstance(record, StructType) else None
    present = dict(options.fields) if isinstance(options, StructType) else {}
    if not add and drop.isdisjoint(present):
        return kind
    kept: dict[str, TypeDesc] = {
        name: type_ for name, type_ in present.items() if name not in drop and name not in add
    }
    wanted: dict[str, TypeDesc] = kept | dict.fromkeys(add, STRING)
    members: dict[str, TypeDesc] = dict(kind.fields)
    others = {
        name: type_
        for name, type_ in (record.fields if isinstance(record, StructType) else ())
        if name != OPTIONS
    }
    if wanted:
        others[OPTIONS] = StructType(tuple(wanted.items()))
    if others:
        members["record"] = StructType(tuple(others.items()))
    else:
        members.pop("record", None)
    return StructType(tuple(members.items()), id=kind.id)


# A type refers to itself: one that was made for each subscription would stay until the next collection of garbage, and with
# many channels that is an hour.
_cached_type: Final = lru_cache(maxsize=256)(_type_with_options)


def request_key(request: Value) -> bytes:
    """Return what equal pvRequests have in common: their octets."""
    return b"".join(encode_typed(request, big=False))

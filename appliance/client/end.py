"""The state that all parts of one client share: settings, TLS, gate, clock and timings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from appliance.config.pva import ClientConfig
from appliance.pva.limits import DEFAULT_LIMITS, Limits, show_changed
from appliance.pvdata.value import Value
from appliance.transport.gate import PeerGate

if TYPE_CHECKING:
    from appliance.tls.context import TLSContext

__all__ = ["DEFAULT_TIMINGS", "ClientEnd", "Clock", "ServerAddress", "Timer", "Timings"]


class ServerAddress(NamedTuple):
    """The address at which a server accepts connections."""

    host: str
    port: int
    tls: bool
    """Whether that port speaks TLS."""


class Timings(NamedTuple):
    """The waiting times of a client, in seconds. The defaults suit an ordinary client."""

    search_s: tuple[float, ...] = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0)
    """Pauses between searches for one name; the last value repeats."""
    longest_search_s: float = 30.0
    """The longest pause between two searches for one name."""
    search_tick_s: float = 0.02
    """The pause between two bursts of searches."""
    hurry_holdoff_s: float = 5.0
    """News of servers hurry the search at most once in this time; earlier news take effect at its end."""
    resolve_s: float = 60.0
    """How long the resolved addresses of an address list are kept."""
    resolve_holdoff_s: float = 1.0
    """The pause after the loss of a server before names are resolved again."""
    silence_s: float = 360.0
    """A server without a beacon for this time counts as gone: two periods of slow beacons."""
    silence_check_s: float = 60.0
    """The pause between two checks for silent servers."""
    idle_channel_s: float = 10.0
    """How long an unused channel is kept."""
    name_server_retry_s: float = 5.0
    """The pause after the loss of a name server before it is connected again."""
    probes_s: tuple[float, ...] = (0.0, 0.3, 2.0, 6.0, 12.0)
    """Delays after which servers are asked whether they speak TLS now. After an outage of the certificate service, a
    server learns its status at the same time as we do, or one search later."""
    upgrade_patience_s: float = 5.0
    """How long requests in progress may delay the move of a plain connection to TLS."""
    upgrade_check_s: float = 0.05
    """The pause between two checks whether such requests are done."""
    suspicion_s: float = 2.0
    """A server that seems to have been restarted must answer an echo within this time."""
    close_s: float = 1.0
    """When the client closes, servers must take the remaining octets within this time."""

    def __repr__(self) -> str:
        return show_changed(self)


DEFAULT_TIMINGS = Timings()


class Timer(Protocol):
    """A call that is scheduled and can be cancelled."""

    def cancel(self) -> None:
        """Cancel the call."""


class Clock(Protocol):
    """Tells the time and schedules calls. An event loop is a clock; a test may use its own."""

    def time(self) -> float:
        """Return the present time in seconds, on a clock that never goes back."""

    def call_soon(self, callback: Callable[..., object], /, *args: Any) -> Timer:
        """Call ``callback`` at the next turn."""

    def call_later(self, delay: float, callback: Callable[..., object], /, *args: Any) -> Timer:
        """Call ``callback`` after ``delay`` seconds."""

    def call_at(self, when: float, callback: Callable[..., object], /, *args: Any) -> Timer:
        """Call ``callback`` when ``time()`` reaches ``when``."""


class ClientEnd:
    """The state that all parts of one client share.

    Args:
        config: Addresses, ports and time-outs.
        tls: The TLS context of the client's keychain; without it the client uses plain TCP only.
        require_tls: Whether PVs are used over TLS only.
        gate: Checks TLS connections by the status of certificates.
        limits: Bounds of what one server may send.
        segment_size: Octets; a longer message is sent in segments. 0 means no segments.
        octets: Whether ``uint8[]`` is read as ``bytes``, without numpy; for values that are read only.
        timings: The waiting times of the client.
        ignore_guids: GUIDs of servers whose answers and beacons are not used: those of this process.
        ignore_servers: Addresses of servers whose answers are not used; port 0 means every port.
        search_tls: The TLS context for name servers (``pvas://``), if it is another one; then no PV is used over these connections.
    """

    __slots__ = (
        "_claimed",
        "clock",
        "closed",
        "config",
        "gate",
        "ignored_guids",
        "ignored_servers",
        "limits",
        "loop",
        "now",
        "octets",
        "require_tls",
        "search_tls",
        "segment_size",
        "timings",
        "tls",
    )

    loop: asyncio.AbstractEventLoop
    """The event loop that the client runs in; set by ``start``."""
    clock: Clock
    """Usually the event loop."""
    now: Callable[[], float]
    """The clock's time."""

    def __init__(
        self,
        config: ClientConfig,
        *,
        tls: TLSContext | None = None,
        require_tls: bool = False,
        gate: PeerGate | None = None,
        limits: Limits = DEFAULT_LIMITS,
        segment_size: int = 0,
        octets: bool = False,
        timings: Timings = DEFAULT_TIMINGS,
        ignore_guids: frozenset[bytes] = frozenset(),
        ignore_servers: frozenset[tuple[str, int]] = frozenset(),
        search_tls: TLSContext | None = None,
    ) -> None:
        self.config = config
        self.tls = tls
        self.require_tls = require_tls
        self.gate = gate
        self.limits = limits
        self.segment_size = segment_size
        self.octets = octets
        self.timings = timings
        self.ignored_guids = ignore_guids
        self.ignored_servers = ignore_servers
        self.search_tls = search_tls
        self.closed = False
        """Whether the client is closed or closing; then it starts nothing new."""
        self._claimed: Value | None = None

    def start(self, loop: asyncio.AbstractEventLoop, clock: Clock | None = None) -> None:
        """Use the event loop, and also as the clock unless ``clock`` is given."""
        self.loop = loop
        self.use_clock(loop if clock is None else clock)

    def use_clock(self, clock: Clock) -> None:
        """Take the time from ``clock``."""
        self.clock = clock
        self.now = clock.time

    def protocols(self) -> tuple[str, ...]:
        """Return the protocols of a search; ``tcp`` is always among them, since PVXS ignores names in a search without it."""
        return ("tls", "tcp") if self.require_tls or self.tls is not None else ("tcp",)

    def avoids_tls(self, guid: bytes) -> bool:
        """Whether TLS to the server with this GUID cannot be used at present (SPVA 12.5)."""
        return self.gate is not None and self.gate.avoids(guid)

    def ignores(self, guid: bytes, host: str, port: int) -> bool:
        """Whether the server with this GUID at this address must not be used."""
        if guid in self.ignored_guids:
            return True
        ignored = self.ignored_servers
        return bool(ignored) and ((host, 0) in ignored or (host, port) in ignored)

    def claimed_identity(self) -> Value:
        """Return the payload of authentication method ``ca``."""
        if self._claimed is None:
            from appliance.client.account import claimed_identity

            self._claimed = claimed_identity()
        return self._claimed

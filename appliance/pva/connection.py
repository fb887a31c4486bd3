"""The common part of both ends of a PVAccess connection: framing, segmentation, echo, output.

No input or output happens here. The shell feeds ``receive_data`` and sends what ``data_to_send`` hands out;
between the two, everything is a pure function of the bytes.

Source: PVAccess protocol specification, sections 4 (format), 11 (segmentation), 12 (flow control).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar, Final, Generic, TypeVar

from appliance.errors import DecodeError, LocalProtocolError, RemoteProtocolError
from appliance.pva import commands as c
from appliance.pva.events import Event, RemoteMessage
from appliance.pva.limits import DEFAULT_LIMITS, Limits
from appliance.pva.outbox import Outbox
from appliance.pva.packing import HEADER, U32
from appliance.pva.states import CLOSED, READY, VALIDATING, ConnectionState
from appliance.pvdata.fielddesc import TypeReader
from appliance.pvdata.pace import Pace
from appliance.pvdata.primitives import Buffer, Lendable, decode_string, encode_string

__all__ = ["CommandHandler", "Connection"]

_HEADER_LE: Final = HEADER[False]
_SIZE_BE: Final = U32[True]

EVENTS_PER_CALL: Final = 32
"""Events after which ``receive_data`` stops parsing: what they are answered with must leave before more is
asked for, or a peer that asks and never reads could make this end hold any number of answers."""

UNPACED: Final = 2048
"""Octets of the longest message that is parsed without asking for the time inside it."""

LENT_OCTETS: Final = 1 << 20
"""A message of this size gives its buffer to the arrays in it, which else would be copied out of it."""

ALIGNMENT: Final = 16
"""Octets to which the memory of a buffer is aligned; numbers need at most 8."""

MESSAGES_PER_CALL: Final = 64
"""Messages after which ``receive_data`` stops parsing, also those that lead to nothing: so that time is asked for."""

MAX_TEXT: Final = 4096
"""Characters of a MESSAGE, in and out."""

OUT_LIMIT: Final = 4 * 1024 * 1024
"""Octets of waiting output above which ``receive_data`` stops parsing, for the same reason."""


EventT = TypeVar("EventT", bound=Event)
CommandHandler = Callable[[Any, Buffer, int, int, bool], None]
"""Handles a message. Arguments: connection, octets, start and end of the payload, whether it is big-endian."""


class Connection(Generic[EventT]):
    """One end of one connection; ServerConnection and ClientConnection add the two roles."""

    IS_SERVER: ClassVar[bool]
    ACCEPTS: ClassVar[dict[ConnectionState, frozenset[int]]]

    __slots__ = (
        "_begin",
        "_lent",
        "_lent_at",
        "_need",
        "_pace",
        "_paced",
        "_pad",
        "_remains",
        "_rx",
        "_segment_command",
        "_segments",
        "_small",
        "data_to_send",
        "due",
        "events",
        "held",
        "limits",
        "outbox",
        "received",
        "stalled",
        "state",
        "types",
    )

    def __init__(self, *, limits: Limits = DEFAULT_LIMITS, segment_size: int = 0, big: bool = False) -> None:
        self.limits = limits
        self.outbox = Outbox(from_server=self.IS_SERVER, big=big, segment_size=segment_size)
        self.data_to_send = self.outbox.take
        """Returns everything that waits to be sent, and forgets it."""
        self.events: list[EventT | RemoteMessage] = []
        """What has happened and was not handed out yet. The list is replaced when it is: keep no reference to it."""
        self.state = VALIDATING
        self.types = TypeReader(limits.max_types)
        self.received = 0
        """Octets received so far; a value that does not change shows a silent peer."""
        self.stalled = False
        """Whether whole messages may wait unparsed: flush the output, then call ``receive_data(b"")``."""
        self.due: Callable[[], bool] | None = None
        """Says when it is time to let others go first, also inside a message; then ``stalled`` is set."""
        self.held = False
        """Server: whether requests wait unparsed for the verdict on the client: read no more from it until then, which
        is what bounds them. The verdict makes the connection ``stalled``."""
        self._rx: Lendable | None = None
        self._pace: Pace | None = None
        """The message in hand if it takes more than one call; else None."""
        self._paced: Buffer | None = None
        """The buffer that contains it."""
        self._remains: Iterator[None] | None = None
        """The work that is left of the end of the connection: see ``_end``."""
        self._lent = False
        """Whether arrays may refer to the buffer in hand, which must not change any more then."""
        self._lent_at = 0
        """Where the last message that was lent began in its buffer."""
        self._pad = 0
        """Octets before the next large message, so that its array is aligned."""
        self._begin = 0
        """Where the first message in ``_rx`` begins."""
        self._need = 8
        self._small = min(limits.max_message, limits.max_message_unvalidated)
        self._segments: Lendable | None = None
        self._segment_command = -1

    # -- input ---------------------------------------------------------------------------------------

    @property
    def _is_closed(self) -> bool:
        return self.state is CLOSED

    def receive_data(self, data: Buffer) -> list[EventT | RemoteMessage]:
        """Parse what arrived, and return its events.

        Args:
            data: The next octets from the peer; none to go on with what ``stalled`` left.

        Returns:
            Events in the order of the messages.

        Raises:
            RemoteProtocolError: The peer broke the protocol. The events before the fault are lost on purpose, the
                connection is CLOSED, and what is in the outbox may still be sent; ``receive_eof`` tells what
                the end of the connection ended.
        """
        if self._is_closed:
            if self._remains is None:
                return []
            self._work_off()
            return self.pending_events()
        self.received += len(data)
        self.stalled = False
        rx = self._rx
        start = 0
        if rx is not None:
            rx += data
            if len(rx) < self._need and self._pace is None:
                return []
            data = rx
            self._rx = None
            start, self._begin = self._begin, 0
        end = len(data)
        try:
            pos = start
            if self._pace is None or self._go_on():
                pos = self._parse(data, pos, end)
        except RemoteProtocolError:
            self.events = []
            self._close()
            raise
        if pos < end and not self._is_closed:
            if self._need >= LENT_OCTETS:
                self._rx = self._padded(memoryview(data)[pos:])
            elif data is rx and data is not self._paced and not self._lent:
                # Cutting a bytearray's front moves a pointer; no view into it outlives the parsing, since
                # decoders copy out of what can change.
                del rx[:pos]
                self._rx = rx
            else:
                self._rx = Lendable(memoryview(data)[pos:])
        self._lent = False
        events = self.events
        if events:
            self.events = []
        return events

    def _parse(self, data: Buffer, pos: int, end: int) -> int:
        """Parse whole messages from ``pos`` on; return the start of the first one that is left for later."""
        events = self.events
        due = self.due
        outbox = self.outbox
        count = 0
        while end - pos >= 8 and not self.stalled:
            if (
                count >= MESSAGES_PER_CALL
                or len(events) >= EVENTS_PER_CALL
                or outbox.size > OUT_LIMIT
                or (count and due is not None and due())
            ):
                self.stalled = True
                break
            after = self._message(data, pos, end)
            if after < 0:
                return pos
            pos = after
            count += 1
            if self.state is CLOSED:
                return end
        self._need = 8
        return pos

    def _go_on(self) -> bool:
        """Continue with the long message; return whether it is done."""
        pace = self._pace
        assert pace is not None
        if pace.go_on():
            self._pace = None
            self._paced = None
            return True
        self.stalled = True
        return False

    def _message(self, data: Buffer, pos: int, end: int) -> int:
        """Handle the message at ``pos``; return the start of the next one, or -1 if this one is incomplete."""
        size: int
        magic, version, flags, command, size = _HEADER_LE.unpack_from(data, pos)
        if magic != c.MAGIC or version == 0:
            raise RemoteProtocolError(
                f"not a PVAccess message: it starts with 0x{magic:02x} 0x{version:02x} instead of 0xca and a version"
            )
        if bool(flags & c.FLAG_SERVER) is self.IS_SERVER:
            raise RemoteProtocolError("the message's direction bit says that it comes from our own side")
        big = bool(flags & c.FLAG_BIG_ENDIAN)
        if big:
            (size,) = _SIZE_BE.unpack_from(data, pos + 4)
        if flags & c.FLAG_CONTROL:
            self._control(command, size, big=big)
            return pos + 8
        body = pos + 8
        if size > self._small:
            self._check_size(size)
        if size > end - body:
            self._need = 8 + size
            return -1
        after = body + size
        segment = flags & c.FLAG_SEGMENT_MASK
        if segment or self._segments is not None:
            whole = self._segment(segment, command, data, body, after)
            if whole is None:
                return after
            self._dispatch(command, whole, 0, len(whole), big)
        else:
            self._dispatch(command, self._lend(data, pos, size), body, after, big)
        return after

    def _lend(self, data: Buffer, pos: int, size: int) -> Buffer:
        """Let a large array refer to our buffer instead of being copied: nobody changes the buffer after this."""
        if size < LENT_OCTETS or type(data) is not Lendable:
            return data
        self._lent = True
        self._lent_at = pos
        return memoryview(data).toreadonly()

    def _padded(self, data: Buffer) -> Lendable:
        """Make the buffer of a large message, whose array is aligned if it stands where the last one stood."""
        skew = self.types.skew
        if skew >= 0:
            self._pad = (self._lent_at - skew) % ALIGNMENT
            self.types.skew = -1
        self._begin = self._pad
        self._need += self._pad
        rx = Lendable(self._pad)
        rx += data
        return rx

    def _check_size(self, size: int) -> None:
        limits = self.limits
        bound = limits.max_message if self.state is READY else limits.max_message_unvalidated
        if size > bound:
            raise RemoteProtocolError(f"a message of {size} octets exceeds the limit of {bound}")

    def _segment(self, segment: int, command: int, data: Buffer, body: int, after: int) -> Buffer | None:
        """Collect one segment; return the whole payload after the last one."""
        parts = self._segments
        if segment in (c.FLAG_SEGMENT_NONE, c.FLAG_SEGMENT_FIRST):
            if parts is not None:
                if segment == c.FLAG_SEGMENT_NONE and command != self._segment_command:
                    # Section 11.3 lets whole messages of other commands come between segments.
                    return memoryview(data)[body:after]
                raise RemoteProtocolError("a new message starts before the last segment of the one before it")
            self._segments = parts = Lendable()
            self._segment_command = command
        elif parts is None:
            raise RemoteProtocolError("a continuation segment came without a first segment")
        elif command != self._segment_command:
            raise RemoteProtocolError(
                f"a segment of command {command} came inside a message of command {self._segment_command}"
            )
        self._check_size(len(parts) + after - body)
        parts += memoryview(data)[body:after]
        if segment != c.FLAG_SEGMENT_LAST:
            return None
        self._segments = None
        return parts

    def _dispatch(self, command: int, buf: Buffer, pos: int, end: int, big: bool) -> None:
        if command not in self.ACCEPTS[self.state]:
            if command > c.CMD_ORIGIN_TAG or self.state is READY:
                return  # section 16.3: what is unknown is skipped; so is what has no meaning on a stream
            raise RemoteProtocolError(f"command {command} is not allowed while {self.state.value}")
        handler = self.HANDLERS.get(command)
        if handler is None:
            return
        if end - pos <= UNPACED:
            handler(self, buf, pos, end, big)
            return
        self._pace = Pace(partial(handler, self, buf, pos, end, big), self.due)
        self._paced = buf
        self._go_on()

    def _control(self, command: int, value: int, *, big: bool) -> None:
        if command == c.CTRL_SET_MARKER:
            self.outbox.control(c.CTRL_ACK_MARKER, value)
        elif command == c.CTRL_SET_ENDIAN and not self.IS_SERVER:
            # The value field would allow "as you like"; every existing peer means the flag (see conformance.md).
            self.outbox.set_byte_order(big=big)

    def _on_echo(self, buf: Buffer, pos: int, end: int, big: bool) -> None:
        if self.IS_SERVER:
            self.outbox.send(c.CMD_ECHO, bytes(memoryview(buf)[pos:end]))

    def _on_message(self, buf: Buffer, pos: int, end: int, big: bool) -> None:
        if end - pos < 5:
            raise DecodeError("MESSAGE is too short")
        (ioid,) = U32[big].unpack_from(buf, pos)
        kind = buf[pos + 4]
        text, _ = decode_string(buf, pos + 5, end, big)
        self.events.append(RemoteMessage(ioid, kind, text[:MAX_TEXT]))

    def _on_ignored(self, buf: Buffer, pos: int, end: int, big: bool) -> None:
        """Tolerate a command that neither end of this package uses (AUTHNZ: section 6.4)."""

    # -- output --------------------------------------------------------------------------------------

    @property
    def big(self) -> bool:
        """Whether the messages of this end are big-endian."""
        return self.outbox.big

    def echo(self, payload: bytes = b"") -> None:
        """Ask the peer for a sign of life (section 12.1)."""
        self.outbox.send(c.CMD_ECHO, payload)

    def send_message(self, ioid: int, kind: int, text: str) -> None:
        """Send a text about operation ``ioid`` to the peer's operator (section 12.4)."""
        big = self.outbox.big
        self.outbox.send(
            c.CMD_MESSAGE,
            U32[big].pack(ioid) + bytes((kind,)) + encode_string(text[:MAX_TEXT], big),
        )

    # -- end -----------------------------------------------------------------------------------------

    def receive_eof(self) -> list[EventT | RemoteMessage]:
        """Close the connection, because the peer has gone; return the events of what ended.

        With ``due`` they may come in parts: while ``stalled``, call ``receive_data(b"")`` for the next one.
        """
        if self.state is not CLOSED:
            self._close()
        elif not self.events:
            self._work_off()
        return self.pending_events()

    def pending_events(self) -> list[EventT | RemoteMessage]:
        """Return the events that methods called outside ``receive_data`` caused."""
        events = self.events
        if events:
            self.events = []
        return events

    def _close(self) -> None:
        """Enter CLOSED and drop everything that only an open connection needs."""
        if self.state is CLOSED:
            return
        self.state = CLOSED
        self.stalled = False  # nothing is left to parse: a shell that waits for the rest would wait for ever
        self.held = False
        self._rx = None
        self._segments = None
        if self._pace is not None:
            self._pace.drop()
            self._pace = self._paced = None
        self.types.clear()
        self._remains = self._end()
        self._work_off()

    def _work_off(self) -> None:
        """Do a part of the work that the end of the connection left."""
        remains = self._remains
        if remains is None:
            return
        due = self.due
        self.stalled = False
        for _ in remains:
            if due is not None and (len(self.events) >= EVENTS_PER_CALL or due()):
                self.stalled = True
                return
        self._remains = None

    def _end(self) -> Iterator[None]:
        """Drop what the connection had, one thing after the other, with its events."""
        yield from ()

    def _require(self, state: ConnectionState, what: str) -> None:
        if self.state is not state:
            raise LocalProtocolError(
                f"{what} needs a connection that is {state.value}, this one is {self.state.value}"
            )

    def __repr__(self) -> str:
        details: dict[str, Any] = {
            "state": self.state.value,
            "received": self.received,
            "out": self.outbox.size,
        }
        return f"<{type(self).__name__} {' '.join(f'{key}={value}' for key, value in details.items())}>"

    HANDLERS: ClassVar[dict[int, CommandHandler]] = {
        c.CMD_ECHO: _on_echo,
        c.CMD_MESSAGE: _on_message,
        c.CMD_AUTHNZ: _on_ignored,
    }
    """The method for each command. A table of bound methods in each connection would cost time and be a cycle."""

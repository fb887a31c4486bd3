"""Each message of a connection in the log: name, size, direction. It costs nothing unless it is wanted.

`StreamLink` checks once, when a connection begins, whether the log wants it. If not, the connection is not wrapped and
this module is not imported.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from appliance.pva import commands as c

if TYPE_CHECKING:
    from appliance.pva.connection import Connection

__all__ = ["MessageReader", "tapped"]

_log: Final = logging.getLogger(__name__)
_HEADER: Final = 8
_NAMES: Final = {
    value: name.removeprefix("CMD_") for name, value in vars(c).items() if name.startswith("CMD_")
}
_CONTROLS: Final = {
    value: name.removeprefix("CTRL_") for name, value in vars(c).items() if name.startswith("CTRL_")
}
_SEGMENTS: Final = {
    c.FLAG_SEGMENT_NONE: "",
    c.FLAG_SEGMENT_FIRST: ", first segment",
    c.FLAG_SEGMENT_MIDDLE: ", middle segment",
    c.FLAG_SEGMENT_LAST: ", last segment",
}


class MessageReader:
    """Finds the messages in a stream of octets, however it is cut.

    Args:
        tell: Gets each message's name, and the octets that follow its header.
    """

    __slots__ = ("_head", "_skip", "_tell")

    def __init__(self, tell: Callable[[str, int], None]) -> None:
        self._tell = tell
        self._head = b""
        self._skip = 0

    def feed(self, data: Any) -> None:
        """Read the next octets. After an octet that cannot begin a message, report nothing more."""
        view = memoryview(data).cast("B")
        pos, end = 0, len(view)
        while pos < end:
            if self._skip:
                step = min(self._skip, end - pos) if self._skip > 0 else end - pos
                pos += step
                self._skip -= step if self._skip > 0 else 0
                continue
            step = min(_HEADER - len(self._head), end - pos)
            self._head += bytes(view[pos : pos + step])
            pos += step
            if len(self._head) == _HEADER:
                self._message(self._head)
                self._head = b""

    def _message(self, head: bytes) -> None:
        if head[0] != c.MAGIC:
            self._skip = -1
            return
        flags, command = head[2], head[3]
        size = int.from_bytes(head[4:], "big" if flags & c.FLAG_BIG_ENDIAN else "little")
        if flags & c.FLAG_CONTROL:
            # The field is the message's value; nothing follows.
            self._tell(_CONTROLS.get(command, f"control message {command}"), 0)
            return
        self._tell(_NAMES.get(command, f"message {command}") + _SEGMENTS[flags & c.FLAG_SEGMENT_MASK], size)
        self._skip = size


class _Tap:
    """A connection, as its link uses it, that logs its messages in both directions."""

    def __init__(self, connection: Connection[Any], peer: Callable[[], str]) -> None:
        self._connection = connection
        self._in = MessageReader(lambda name, size: _log.debug("%s -> %s (%d octets)", peer(), name, size))
        self._out = MessageReader(lambda name, size: _log.debug("%s <- %s (%d octets)", peer(), name, size))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def receive_data(self, data: Any) -> list[Any]:
        """Log the messages of ``data``, and let the connection parse it."""
        self._in.feed(data)
        return self._connection.receive_data(data)

    def data_to_send(self) -> list[Any]:
        """Return what waits to be sent, and log its messages."""
        chunks = self._connection.data_to_send()
        self._told(chunks)
        return chunks

    def _told(self, chunks: Iterable[Any]) -> None:
        for chunk in chunks:
            self._out.feed(chunk)


def tapped(connection: Any, peer: Callable[[], str]) -> Any:
    """Return ``connection`` wrapped, so that it logs its messages.

    Args:
        connection: Sends and receives through `receive_data` and `data_to_send`.
        peer: Gives the peer's address for the log.
    """
    return _Tap(connection, peer)

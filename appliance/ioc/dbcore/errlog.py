"""EPICS Base's messages while it serves: its error log, taken from standard error, and its printed output.

Names and values that clients send end up in its messages, control characters included, and as often as a client likes. So
messages are no longer printed, but passed to a function that escapes and bounds them.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Final

from appliance.ioc.dbcore import _c
from appliance.ioc.dbcore.streams import STDERR, buffer_stream, prints_to

__all__ = [
    "Printed",
    "errors_printed_to",
    "give_errors_back",
    "print_errors_to",
    "printed_aside",
    "set_log_prefix",
    "take_errors",
    "want_errors",
]

_LISTENER: Final = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_char_p)
_START_UP: Final = b"iocRun: "
_PRINTED: Final = 4096


class _Taken:
    """The function that receives the messages."""

    listener: object = None
    address: ctypes.c_void_p | None = None


class _Console:
    """Where messages are printed. EPICS does not tell what it uses, so it is noted here."""

    lock: Final = threading.Lock()
    streams: Final[list[Any]] = []
    """Streams that stand for standard error, the one in use last."""
    wants: ClassVar = True
    """Whether the site wants messages to be printed (``eltc`` of the shell)."""

    @classmethod
    def update(cls) -> None:
        """Tell EPICS which stream it prints to now, and whether it does."""
        with cls.lock:
            # Not None: EPICS would take the stream that a shell command of this thread prints its errors to, which is closed soon.
            _c.errlogSetConsole(cls.streams[-1] if cls.streams else STDERR)
            _c.com.eltc(int(bool(cls.streams) or (cls.wants and _Taken.address is None)))


def print_errors_to(stream: int) -> None:
    """Print messages to a stream from now on, whether or not they are printed otherwise."""
    _Console.streams.append(stream)
    _Console.update()


@contextmanager
def errors_printed_to(stream: int) -> Iterator[None]:
    """Have messages printed to a stream inside the block, and afterwards where they were printed before, or not at all."""
    print_errors_to(stream)
    try:
        yield
    finally:
        _c.errlogFlush()
        _Console.streams.remove(stream)
        _Console.update()


def want_errors(wanted: int) -> None:
    """Switch the printing of messages on standard error on or off, while nobody has taken them over."""
    _Console.wants = bool(wanted)
    _Console.update()


def take_errors(function: Callable[[str], None]) -> None:
    """Pass all further messages to a function, in a thread of EPICS, and stop printing them."""

    def listen(_private: int | None, message: bytes) -> None:
        # This line marks the end of the start-up, in the words that people expect.
        if message.startswith(_START_UP):
            os.write(2, message)
        else:
            function(_c.text(message))

    give_errors_back()
    listener = _LISTENER(listen)
    _c.errlogFlush()
    _Taken.listener, _Taken.address = listener, ctypes.cast(listener, ctypes.c_void_p)
    _Console.update()
    _c.errlogAddListener(_Taken.address, None)


def give_errors_back() -> None:
    """Print messages again."""
    address = _Taken.address
    if address is not None:
        _c.errlogFlush()
        _c.errlogRemoveListeners(address, None)
        _Taken.listener = _Taken.address = None
        _Console.update()


def set_log_prefix(prefix: str) -> None:
    """Begin the lines for the log server of iocLogInit with a text (iocLogPrefix); only the first call counts."""
    _c.com.iocLogPrefix(_c.raw(prefix))


class Printed:
    """The collected output."""

    text = ""


@contextmanager
def printed_aside() -> Iterator[Printed]:
    """Collect the first octets of what EPICS prints in this thread inside the block, instead of printing it."""
    buffer = ctypes.create_string_buffer(_PRINTED)
    printed = Printed()
    with buffer_stream(buffer) as stream, prints_to(output=stream):
        yield printed
    printed.text = _c.c_text(buffer.raw)

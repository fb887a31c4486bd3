"""EPICS Base's messages while it serves: its error log, taken from standard error, and its printed output.

Names and values that clients send end up in its messages, control characters included, and as often as a client likes. So
messages are no longer printed, but passed to a function that escapes and bounds them.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from appliance.ioc.dbcore import _c

__all__ = ["Printed", "give_errors_back", "printed_aside", "set_log_prefix", "take_errors"]

_LISTENER: Final = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_char_p)
_START_UP: Final = b"iocRun: "
_PRINTED: Final = 4096
_libc: Final = ctypes.CDLL(None)
_libc.fmemopen.restype = ctypes.c_void_p
_libc.fmemopen.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
_libc.fclose.argtypes = (ctypes.c_void_p,)
_set_stdout: Final = _c.com.epicsSetThreadStdout
_set_stdout.argtypes = (ctypes.c_void_p,)
_set_stdout.restype = None


class _Taken:
    """The function that receives the messages."""

    listener: object = None
    address: ctypes.c_void_p | None = None


def is_taken() -> bool:
    """Whether somebody has taken the messages over."""
    return _Taken.address is not None


def print_errors(*, really: bool) -> None:
    """Switch the printing of messages on standard error on or off (eltc)."""
    _c.com.eltc(int(really))


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
    _Taken.listener, _Taken.address = listener, ctypes.cast(listener, ctypes.c_void_p)
    _c.errlogFlush()
    print_errors(really=False)
    _c.errlogAddListener(_Taken.address, None)


def give_errors_back() -> None:
    """Print messages again."""
    address = _Taken.address
    if address is not None:
        _c.errlogFlush()
        _c.errlogRemoveListeners(address, None)
        print_errors(really=True)
        _Taken.listener = _Taken.address = None


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
    stream = _libc.fmemopen(buffer, _PRINTED, b"w")
    if not stream:
        yield printed
        return
    _set_stdout(stream)
    try:
        yield printed
    finally:
        _set_stdout(None)
        _libc.fclose(stream)
        printed.text = _c.c_text(buffer.raw)

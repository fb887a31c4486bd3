"""What commands print, by way of a function: for a terminal, which must not get what clients wrote into records as it is."""

from __future__ import annotations

import codecs
import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ctypes import c_char_p, c_int, c_size_t, c_void_p
from typing import Final

from appliance.ioc.dbcore import _c

__all__ = ["printed_through"]

_libc: Final = ctypes.CDLL(None)
_libc.fdopen.restype = c_void_p
_libc.fdopen.argtypes = (c_int, c_char_p)
_libc.fclose.argtypes = (c_void_p,)
_libc.setvbuf.argtypes = (c_void_p, c_char_p, c_int, c_size_t)
_set_stdout: Final = _c.com.epicsSetThreadStdout
_set_stdout.argtypes = (c_void_p,)
_set_stdout.restype = None
_BY_LINE: Final = 1
"""_IOLBF: what a command prints appears at once, line by line."""
_PIECE: Final = 65536


@contextmanager
def printed_through(write: Callable[[str], None]) -> Iterator[None]:
    """Give what the commands of this thread print to a function, as it comes; all of it has been given at the end of the block.

    A thread of its own calls the function, with one or more lines, or a part of one.
    """
    reading, writing = os.pipe()
    stream = _libc.fdopen(writing, b"w")
    _libc.setvbuf(stream, None, _BY_LINE, 0)

    def pass_on() -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        while piece := os.read(reading, _PIECE):
            # The command must not wait for ever because nobody can be shown anything.
            with suppress(OSError, ValueError):
                write(decoder.decode(piece))
        with suppress(OSError, ValueError):
            write(decoder.decode(b"", final=True))

    thread = threading.Thread(target=pass_on, name="shell output", daemon=True)
    thread.start()
    _set_stdout(stream)
    try:
        yield
    finally:
        _set_stdout(None)
        _libc.fclose(stream)
        thread.join()
        os.close(reading)

"""Streams of the C library that EPICS Base prints to, and files in memory behind them."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["memory_stream", "open_stream", "visible", "written"]

_UNBUFFERED: Final = 2
"""_IONBF of stdio.h."""
_libc: Final = ctypes.CDLL(None)
_libc.fdopen.restype = ctypes.c_void_p
_libc.fdopen.argtypes = (ctypes.c_int, ctypes.c_char_p)
_libc.fclose.argtypes = (ctypes.c_void_p,)
_libc.setvbuf.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_size_t)


def open_stream(descriptor: int) -> int:
    """Return a ``FILE *`` that writes each text at once to a copy of a file's descriptor."""
    stream: int = _libc.fdopen(os.dup(descriptor), b"w")
    _libc.setvbuf(stream, None, _UNBUFFERED, 0)
    return stream


@contextmanager
def memory_stream() -> Iterator[tuple[int, int]]:
    """Open a file in memory: its descriptor, and a ``FILE *`` that writes to it."""
    descriptor = os.memfd_create("epics")
    try:
        stream = open_stream(descriptor)
        try:
            yield descriptor, stream
        finally:
            _libc.fclose(stream)
    finally:
        os.close(descriptor)


def written(descriptor: int, start: int = 0, limit: int | None = None) -> str:
    """Return the text of a file from an octet on, at most so many octets; a note follows if there is more.

    Its position does not matter, and does not move.
    """
    size = os.fstat(descriptor).st_size - start
    length = size if limit is None else min(size, limit)
    text = os.pread(descriptor, max(length, 0), start).decode("utf-8", "replace")
    return text if length >= size else f"{text}\n... ({size} octets)\n"


def visible(text: str) -> str:
    """Return a text with an escape, as Python writes it, for what is neither printable nor a tab or the end of a line.

    Names and values come from clients: what they hold must not command the terminal of whoever reads them.
    """
    if text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(
        each if each in "\n\t" or each.isprintable() else each.encode("unicode_escape").decode()
        for each in text.replace("\r\n", "\n")
    )

"""Streams of the C library that EPICS Base prints to: files behind them, and which of them a thread prints to."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import c_char_p, c_int, c_size_t, c_void_p
from typing import Any, Final

from appliance.ioc.dbcore import _c

__all__ = [
    "STDERR",
    "STDOUT",
    "buffer_stream",
    "error_stream",
    "flush_streams",
    "line_stream",
    "memory_stream",
    "open_stream",
    "output_stream",
    "print_to",
    "prints_to",
    "visible",
    "written",
]

# stdio.h
_BY_LINE: Final = 1
"""_IOLBF"""
_UNBUFFERED: Final = 2
"""_IONBF"""
_libc: Final = ctypes.CDLL(None)
_libc.fdopen.restype = c_void_p
_libc.fdopen.argtypes = (c_int, c_char_p)
_libc.fmemopen.restype = c_void_p
_libc.fmemopen.argtypes = (c_void_p, c_size_t, c_char_p)
_libc.fclose.argtypes = (c_void_p,)
_libc.fflush.argtypes = (c_void_p,)
_libc.fputs.argtypes = (c_char_p, c_void_p)
_libc.setvbuf.argtypes = (c_void_p, c_char_p, c_int, c_size_t)
STDOUT: Final = c_void_p.in_dll(_libc, "stdout")
STDERR: Final = c_void_p.in_dll(_libc, "stderr")


def _stream_getter(name: str) -> Any:
    function = getattr(_c.com, name)
    function.restype = c_void_p
    function.argtypes = ()
    return function


def _stream_setter(name: str) -> Any:
    function = getattr(_c.com, name)
    function.restype = None
    function.argtypes = (c_void_p,)
    return function


output_stream: Final = _stream_getter("epicsGetStdout")
"""Return what this thread prints to: its own stream, or that of the process."""
error_stream: Final = _stream_getter("epicsGetStderr")
"""The same for errors."""
# These are None for a thread without a stream of its own.
_own_output: Final = _stream_getter("epicsGetThreadStdout")
_own_errors: Final = _stream_getter("epicsGetThreadStderr")
_set_output: Final = _stream_setter("epicsSetThreadStdout")
_set_errors: Final = _stream_setter("epicsSetThreadStderr")


@contextmanager
def prints_to(*, output: int | None = None, errors: int | None = None) -> Iterator[None]:
    """Have EPICS print to other streams in this thread inside the block, and afterwards to those that it had before.

    A command may run others, so a block can stand inside another one.

    Args:
        output: the stream for its output; None leaves it.
        errors: the stream for errors; None leaves it.
    """
    before_output, before_errors = _own_output(), _own_errors()
    if output is not None:
        _set_output(output)
    if errors is not None:
        _set_errors(errors)
    try:
        yield
    finally:
        if output is not None:
            _set_output(before_output)
        if errors is not None:
            _set_errors(before_errors)


def print_to(stream: Any, text: str) -> None:
    """Print a text to a stream; a NUL, which would end it, is written as an escape sequence."""
    _libc.fputs(_c.raw(text.replace("\0", "\\0")), stream)


def flush_streams() -> None:
    """Flush standard output and standard error of the process."""
    # Not all streams: a shell that waits for a line holds the lock of standard input.
    _libc.fflush(STDOUT)
    _libc.fflush(STDERR)


def open_stream(descriptor: int, *, by_line: bool = False) -> int:
    """Return a ``FILE *`` that writes each text, or each line, at once to a copy of a file's descriptor."""
    stream: int = _libc.fdopen(os.dup(descriptor), b"w")
    _libc.setvbuf(stream, None, _BY_LINE if by_line else _UNBUFFERED, 0)
    return stream


@contextmanager
def line_stream(descriptor: int) -> Iterator[int]:
    """Open a ``FILE *`` that writes each line at once to a copy of a file's descriptor."""
    stream = open_stream(descriptor, by_line=True)
    try:
        yield stream
    finally:
        _libc.fclose(stream)


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


@contextmanager
def buffer_stream(buffer: ctypes.Array[ctypes.c_char]) -> Iterator[int | None]:
    """Open a ``FILE *`` that writes to a buffer, which is complete when it is closed; None if there is no memory for it."""
    stream: int | None = _libc.fmemopen(buffer, len(buffer), b"w")
    try:
        yield stream
    finally:
        if stream is not None:
            _libc.fclose(stream)


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
